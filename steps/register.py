"""Entry point `register`: put the best mixture into the model registry, as one self-contained pyfunc model.

Of the `evaluate` runs given, the mixture with the lowest test WER is registered, with alias `challenger`. Example:
    mlflow run . -e register -P evaluate_run_ids=ID,ID
"""

import dataclasses
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from analysis.systems import MIXTURE, SystemScores
from moe.options import Options, option
from steps import tracking
from steps.compare import read_scores
from steps.step_run import StepRun
from steps.store import connect, project_root

CHALLENGER = "challenger"
CODE = ("moe",)
SERVING = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pandas", "soundfile", "soxr", "av", "tqdm",
    "jiwer", "pyarrow", "scipy", "scikit-learn", "fsspec", "accelerate", "joblib", "hdbscan",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Register the best mixture."""

    evaluate_run_ids: str = option("none", "evaluate runs to choose from, comma list")
    registered_model: str = option("whisper-moe", "name in the registry")

    @property
    def run_ids(self) -> list[str]:
        """The ids as a list."""
        return [part.strip() for part in self.evaluate_run_ids.split(",") if part.strip()]


def run(options: StepOptions) -> str:
    """Register the best mixture and return the run id."""
    with tracking.step_run("register", options, f"register · {options.registered_model}") as step:
        best = best_mixture([read_scores(run_id) for run_id in options.run_ids])
        wer = _wer(best)
        asr_run_id = connect().client.get_run(best.run_id).data.params["asr_run_id"]
        version = _register(options, tracking.upstream(asr_run_id, tracking.MODEL))
        tags = {"test_wer": f"{wer:.4f}", "evaluate_run_id": best.run_id, "asr_run_id": asr_run_id, "register_run_id": step.run_id}
        tags["synthetic"] = str(bool(best.metadata["note"])).lower()
        _tag(step, options, version, tags)
        step.log_metrics({"test/wer": wer})
        lineage = "\n".join(f"- {name} `{run_id}`" for run_id, name in tracking.lineage(step.run_id).items())
        step.describe(
            f"## Registered {options.registered_model} version {version}\n{'SYNTHETIC speech only. ' if best.metadata['note'] else ''}"
            f"Test WER {100 * wer:.1f} %. Alias `{CHALLENGER}`. Everything it was made from:\n{lineage}"
        )
    return step.run_id


def best_mixture(systems: list[SystemScores]) -> SystemScores:
    """The mixture with the lowest WER.

    Raises:
        ValueError: none of the runs scored a mixture.
    """
    mixtures = [system for system in systems if system.kind == MIXTURE]
    if not mixtures:
        raise ValueError(f"none of the {len(systems)} evaluate runs scored a mixture: there is nothing to register")
    return min(mixtures, key=_wer)


def _wer(system: SystemScores) -> float:
    return float(system.hypotheses["word_errors"].sum() / system.hypotheses["n_words"].sum())


def _register(options: StepOptions, model_dir: Path) -> str:
    """Log the model to the active run and register it: its version."""
    pins = (project_root() / "requirements.txt").read_text(encoding="utf-8").split()
    info = mlflow.pyfunc.log_model(
        name="recognizer",
        python_model=str(project_root() / "steps" / "pyfunc_model.py"),
        artifacts={"model": str(model_dir)},
        code_paths=[str(project_root() / name) for name in CODE],
        signature=signature(),
        pip_requirements=[pin for pin in pins if pin.split("==")[0] in SERVING],
        registered_model_name=options.registered_model,
    )
    return str(info.registered_model_version)


def signature() -> ModelSignature:
    """Audio bytes in; text and expert weights out; beams and top-k as parameters (top_k 0: as trained)."""
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "audio")]),
        outputs=Schema([ColSpec(DataType.string, "text"), ColSpec(Array(DataType.double), "expert_weights")]),
        params=ParamSchema([ParamSpec("beam_size", DataType.long, 1), ParamSpec("top_k", DataType.long, 0)]),
    )


def _tag(step: StepRun, options: StepOptions, version: str, tags: dict[str, str]) -> None:
    client = connect().client
    for name, value in tags.items():
        client.set_model_version_tag(options.registered_model, version, name, value)
    client.set_registered_model_alias(options.registered_model, CHALLENGER, version)
    step.set_tags({"moe.registered": f"{options.registered_model}/{version}"})


def main() -> None:
    """Command line."""
    tracking.command(run, StepOptions)


if __name__ == "__main__":
    main()
