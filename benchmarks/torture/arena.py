"""Where things are killed: processes forked from this one, which has loaded all libraries, a store of their own, and what they left.

The parent never opens a store and never trains, so that what it forks is as fresh as a process that was started; it only waits,
kills and compares. Results come back as JSON.
"""

import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflow.entities import Run

from moe.files import file_digest
from steps import asr, baseline, decoder, experts, gate, main, pretrain, steer
from steps.chain.chain import Chain
from steps.chain.options import ChainOptions
from steps.chain.stages import stage_options
from steps.tracking import runs as tracking
from steps.tracking.fingerprint import imported_libraries
from steps.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]
TIMES = (
    "seconds", "real_time_factor", "training_seconds", "training_compute_seconds", "training_real_time_factor",
    "training_utterances_per_s", "training_loader_stall", "seconds_per_utterance", "peak_memory_mb", "peak_memory_gb",
)  # fmt: skip
LONGEST_S = 3600.0
TOY = {
    "mode": "quick", "styles": "typical,parkinsons,als", "num_experts": 3, "n_train_speakers": 2, "n_dev_speakers": 1,
    "n_test_speakers": 1, "n_utterances": 4, "n_dev_utterances": 3, "n_test_utterances": 4, "n_resamples": 100, "n_workers": 1,
    "seed": 7, "no_plot": True, "ablation_utterances": 6, "expert_epochs": 3, "asr_epochs": 2, "expert_batch_size": 4, "asr_batch_size": 4,
    "save_every_n_updates": 2, "augment": True, "speed_factors": "0.9,1.0,1.1", "noise_share": 0.5, "lora_dropout": 0.1,
    "gating_epochs": 12, "gating_batch_size": 4, "gating_patience": 12, "gating_hidden": 8, "gating_dropout": 0.2,
    "logging_steps": 2,
}  # fmt: skip
SCRATCH = {"init_from": "scratch", "tokenizer": "characters", "pretrain_updates": 10, "pretrain_batch_size": 4}
STEER = {"steer_epochs": 3, "steer_batch_size": 4, "steering_log_every": 2, "steering_dropout": 0.1}
STAGES: dict[str, tuple[ModuleType, tuple[str, ...], dict[str, Any]]] = {
    "pretrain": (pretrain, ("prepare",), SCRATCH),
    "gate": (gate, ("embed", "cluster"), {}),
    "experts": (experts, ("prepare", "pretrain", "cluster"), {}),
    "asr": (asr, ("prepare", "pretrain", "embed", "cluster", "gate", "experts"), {"num_experts": None}),
    "single_lora": (baseline, ("prepare", "pretrain", "asr"), {"system": "single_lora"}),
    "steer": (steer, ("prepare", "pretrain", "decoder"), STEER),
}


@dataclasses.dataclass
class Child:
    """A forked process, its log and its result."""

    pid: int
    log: Path
    result: Path
    status: int | None = None

    def is_alive(self) -> bool:
        """Whether it runs still; collects it where it does not."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is None

    def after(self, seconds: float, number: int = signal.SIGKILL) -> bool:
        """Send a signal after so long; False where the process had ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.is_alive():
            time.sleep(0.005)
        if alive := self.is_alive():
            os.kill(self.pid, number)
        return alive

    def wait(self, seconds: float = LONGEST_S) -> None:
        """Until it has ended.

        Raises:
            AssertionError: it has not.
        """
        end = time.monotonic() + seconds
        while self.is_alive():
            assert time.monotonic() < end, f"process {self.pid} has not ended in {seconds:.0f} s"
            time.sleep(0.01)

    def value(self, seconds: float = LONGEST_S) -> Any:
        """What the function returned.

        Raises:
            AssertionError: it failed; with the end of its log.
        """
        self.wait(seconds)
        assert self.status == 0 and self.result.exists(), f"process ended with {self.status}: {self.said()[-1500:]}"
        return json.loads(self.result.read_text(encoding="utf-8"))

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclasses.dataclass
class Arena:
    """A folder with a store, in which the toy chain has run once, to the stage `until`."""

    folder: Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    until: str = "asr"

    @property
    def unfinished(self) -> Path:
        """Folders of unfinished work in the store."""
        return self.folder / "mlruns" / "unfinished" / "mlflow"

    def uri(self) -> str:
        """The store's address."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def fork(self, function: Callable[..., Any], *arguments: Any, **environment: str) -> Child:
        """Run a function in a forked process with the store's address in its environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        imported_libraries(Path(main.__file__).resolve(), ROOT)  # parses the code, once and not in each child for its fingerprint
        stem = self.folder / f"process-{time.monotonic_ns()}"
        child = Child(0, stem.with_suffix(".log"), stem.with_suffix(".json"))
        sys.stdout.flush()
        child.pid = os.fork()
        if child.pid == 0:
            settings = {"MLFLOW_TRACKING_URI": self.uri(), "MLFLOW_EXPERIMENT_NAME": "torture"} | self.environment | environment
            _be(child, function, arguments, settings)
        return child

    def ids(self) -> dict[str, str]:
        """Ids of the toy chain's runs; it runs at the first call."""
        path = self.folder / f"ids_to_{self.until}.json"
        if not path.exists():
            found = self.fork(run_chain, self.until).value()
            path.write_text(json.dumps(found))
        return json.loads(path.read_text())


def _be(child: Child, function: Callable[..., Any], arguments: tuple, settings: dict[str, str]) -> None:
    code = 1
    try:
        with open(child.log, "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(settings)
        result = function(*arguments)
        child.result.write_text(json.dumps(result), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def toy_options(**changes: Any) -> ChainOptions:
    """The toy chain's options."""
    return main.StepOptions.asked(**TOY | changes)


def run_chain(until: str) -> dict[str, str]:
    """The toy chain to a stage, and the shipped language model where all of it runs: stage → run id."""
    options = toy_options(until=until)
    with tracking.step_run("main", options):
        chain = Chain(options)
        chain.run()
    if until != "asr":
        return chain.run_ids
    return {"asr": chain.run_ids["whisper_moe"], "decoder": decoder.run(decoder.StepOptions()), **chain.run_ids}


def train(stage: str, ids: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Run one training stage on the toy chain's runs; what it left."""
    module, upstream, own = STAGES[stage]
    given = {f"{name}_run_id": ids[name] for name in upstream}
    options = stage_options(module, toy_options(), **given | own | changes)
    return outcome(module.run(options))


def outcome(run_id: str) -> dict[str, Any]:
    """Weights by their digest, every metric with its updates, and how many runs the step has."""
    client = connect().client
    run = client.get_run(run_id)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    names = sorted(name for name in run.data.metrics if name not in TIMES and not name.startswith("system/"))
    history = [metric for name in names for metric in client.get_metric_history(run_id, name)]
    runs = runs_of(run)
    return {
        "run_id": run_id,
        "weights": {path.relative_to(root).as_posix(): file_digest(path) for path in sorted(root.rglob("*.safetensors"))},
        "metrics": sorted([metric.key, metric.step, repr(metric.value)] for metric in history),
        "tags": {name: value for name, value in run.data.tags.items() if name.startswith("moe.")},
        "statuses": sorted(each.info.status for each in runs),
    }


def runs_of(run: Run) -> list[Run]:
    """All runs of a run's experiment."""
    return list(connect().client.search_runs([run.info.experiment_id]))


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Bit-identical weights and metrics, none missing, none twice.

    Raises:
        AssertionError: naming what differs first.
    """
    assert whole["weights"] and whole["metrics"], "nothing to compare"
    for part in ("weights", "metrics"):
        ours, theirs = found[part], whole[part]
        if isinstance(ours, list):
            rest = [value for value in ours if value not in theirs or ours.count(value) != theirs.count(value)]
            gaps = [value for value in theirs if value not in ours]
            assert not rest and not gaps, (
                f"{part}: {len(rest)} not in the undisturbed run {rest[:2]}, {len(gaps)} missing {gaps[:2]}"
            )
        differing = [name for name in theirs if isinstance(theirs, dict) and ours.get(name) != theirs[name]]
        assert not differing, f"{part} differ: {differing[:3]}"
    left = [status for status in found["statuses"] if status != "FINISHED"]
    assert not left, f"runs left {left}"
