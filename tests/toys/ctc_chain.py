"""The toy CTC through everything that a system goes through; started in a process of its own by `test_toy_system.py`.

The row is put into the table before a step is imported, as the table's own rows are; nothing else knows the system.
"""

import dataclasses
import json
import sys
from pathlib import Path

from moe.systems.table import SYSTEMS
from tests.toys.ctc_system import NAME, ROW, build
from tests.toys.registry import write_toy_model

SYSTEMS[NAME] = ROW

import mlflow  # noqa: E402
import pandas as pd  # noqa: E402

from moe.options import Options, option  # noqa: E402
from moe.recognition.dev_scores import BestOnDev  # noqa: E402
from moe.recognition.recognizer import Recognizer  # noqa: E402
from moe.serving.requests import ServiceOptions, check_params  # noqa: E402
from moe.serving.service import Service  # noqa: E402
from moe.system import DecodingOptions  # noqa: E402
from moe.systems.table import load_system  # noqa: E402
from moe.training.dataset import SpeechDataset  # noqa: E402
from moe.training.loop import fit  # noqa: E402
from steps import compare, evaluate, prepare, register, transcribe  # noqa: E402
from steps.inputs.corpus import read_prepared  # noqa: E402
from steps.inputs.training import log_system, training_facts  # noqa: E402
from steps.registry import versions  # noqa: E402
from steps.tracking import artifacts, runs  # noqa: E402
from tests.toys.chain import PLAIN  # noqa: E402
from tests.toys.training import Notes, plan, training  # noqa: E402


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Of the system's own step."""

    prepare_run_id: str = option("none", "run that made the manifest")
    seed: int = option(3, "seed", low=0)


def train(options: StepOptions) -> tuple[str, Notes]:
    """The step of the system: train it, log it."""
    with runs.step_run(NAME, options) as step:
        prepared, report, system = read_prepared(options.prepare_run_id), Notes(), build(options.seed, learning_rate=0.05)
        sets = [
            SpeechDataset(prepared.rows(split), Path(prepared.root), system.inputs, trains=True) for split in ("train", "dev")
        ]
        around = training(plan(epochs=6, batch_size=2), report)
        hooks = BestOnDev(system, sets[1], around, patience=6)
        summary = fit(system.module, sets[0], around, hooks, system.parameter_groups())
        hooks.restore_best()
        log_system(step, system, {"synthetic": False, **training_facts(system, summary, options.seed)})
    return step.run_id, report


def log_mixture(folder: Path) -> str:
    """A mixture to be compared with."""
    with runs.step_run("asr", StepOptions()) as step:
        step.log_folder(write_toy_model(folder / "model"), artifacts.MODEL)
    return step.run_id


def main(corpus: Path, folder: Path) -> None:
    """Prepare, train, evaluate, compare, register, transcribe, serve."""
    prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True))
    toy, report = train(StepOptions(prepare_run_id=prepared))
    ids = [
        evaluate.run(evaluate.StepOptions(prepare_run_id=prepared, model_run_id=run_id, ablation_utterances=2, **PLAIN))
        for run_id in (toy, log_mixture(folder))
    ]
    evaluated = ",".join(ids)
    compared = compare.run(compare.StepOptions(evaluate_run_ids=evaluated, n_resamples=100, no_plot=True))
    registered = register.run(register.StepOptions(evaluate_run_ids=evaluated, register_system=NAME, registered_model="toy-ctc"))
    asked = {"audio": str(corpus), "model": "models:/toy-ctc@challenger", "output_dir": str(folder / "plain")}
    transcribe.run(transcribe.StepOptions(**asked))
    transcribe.run(transcribe.StepOptions(**asked | {"output_dir": str(folder / "capitals"), "capitals": True}))
    system = load_system(versions.recognizer_dir("models:/toy-ctc@challenger"))
    service = Service(Recognizer(system))
    recording = (corpus / "u0.wav").read_bytes()
    answers = [
        service.answer([recording], check_params(params, ServiceOptions(), service.usual))[0].transcript.text
        for params in ({}, {"capitals": True})
    ]
    service.close()
    signature = mlflow.models.get_model_info("models:/toy-ctc@challenger").signature
    direct = Recognizer(system).transcribe(
        [SpeechDataset(read_prepared(prepared).rows("test"), corpus, system.inputs).waveform(0)]
    )
    found = {
        "losses": [value for _, value in report.of("dev/loss")],
        "blank_share": [value for _, value in report.of("dev/blank_share")],
        "hypotheses": pd.read_parquet(artifacts.upstream(ids[0], artifacts.HYPOTHESES)).columns.tolist(),
        "table": pd.read_parquet(artifacts.upstream(compared, artifacts.COMPARISON))[["system", "role"]].to_numpy().tolist(),
        "params": [param.name for param in signature.params.params],
        "answers": answers,
        "direct": direct[0].text,
        "lineage": sorted(artifacts.lineage(registered).values()),
        "options": dataclasses.asdict(DecodingOptions()),
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
