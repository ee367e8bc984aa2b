"""Chains at once: `python -m tests.toys.chains STORE SEED STORE SEED…` loads the project once, and forks a process for each short chain."""

import os
import sys
import traceback
from pathlib import Path

from steps import main
from steps.tracking.fingerprint import code_digests
from steps.tracking.store import project_root

SHORT = {
    "mode": "quick", "styles": "typical,parkinsons,als", "num_experts": 3, "n_train_speakers": 2, "n_dev_speakers": 1,
    "n_test_speakers": 1, "n_utterances": 4, "n_dev_utterances": 3, "n_test_utterances": 4, "gating_epochs": 5, "n_workers": 1,
    "corpus_seed": 7, "no_plot": True, "systems": "whisper_moe", "until": "gate",
}  # fmt: skip
STAGES = ("synthesize", "prepare", "pretrain", "embed", "cluster", "gate")


def run_at_once(chains: list[tuple[str, int]]) -> int:
    """Run a chain for each store and seed; how many did not end well."""
    code_digests(Path(main.__file__).resolve(), project_root())  # parsed once for all of them
    children = [os.fork() or _run(uri, seed) for uri, seed in chains]
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _run(uri: str, seed: int) -> int:
    """Never returns: libraries that had threads before the fork do not survive an ordinary end."""
    status = 1
    try:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        main.run(main.StepOptions.asked(**SHORT, seed=seed))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(run_at_once([(uri, int(seed)) for uri, seed in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]))
