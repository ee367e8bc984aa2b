"""Entry point `gate`: train the gate to send each utterance to its cluster's expert.

Reads `embed` (vectors) and `cluster` (soft labels) runs; writes the artifact `gate`. Example:
    mlflow run . -e gate -P embed_run_id=ID -P cluster_run_id=ID
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.calibration import confusion_table, expected_calibration_error, reliability
from analysis.plots.gate import confusion_figure, reliability_figure
from analysis.plots.training import training_curves
from moe.embeddings import read_embeddings
from moe.gate import probabilities
from moe.gate_training import GateOptions, GateResult, train_gate
from moe.options import option
from steps import tracking
from steps.prepared import SYNTHETIC_NOTE, soft_labels
from steps.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(GateOptions):
    """Train the gate."""

    embed_run_id: str = option("none", "run that made the embeddings")
    cluster_run_id: str = option("none", "run that made the clusters")


def run(options: StepOptions) -> str:
    """Train the gate, log it and return the run id."""
    with tracking.step_run("gate", options, f"gate · hidden {options.gating_hidden} · seed {options.seed}") as step:
        embeddings = read_embeddings(tracking.upstream(options.embed_run_id, tracking.EMBEDDINGS))
        labels = pd.read_parquet(tracking.upstream(options.cluster_run_id, tracking.LABELS))
        train, dev = (labels[labels["split"] == split] for split in ("train", "dev"))
        if not len(dev):
            raise ValueError(f"cluster run {options.cluster_run_id} has no dev utterances to select the gate by")
        result = train_gate(
            embeddings.select(train["utterance_id"]),
            soft_labels(train),
            embeddings.select(dev["utterance_id"]),
            soft_labels(dev),
            options.part(GateOptions),
        )
        with tempfile.TemporaryDirectory() as temporary:
            result.gate.save(Path(temporary) / tracking.GATE)
            step.log_folder(Path(temporary) / tracking.GATE, tracking.GATE)
        _report(step, result, dev, probabilities(result.gate, embeddings.select(dev["utterance_id"])))
    return step.run_id


def _report(step: StepRun, result: GateResult, dev: pd.DataFrame, routed: np.ndarray) -> None:
    labels, note = dev["cluster"].to_numpy(), _note(step)
    error, chosen = expected_calibration_error(routed, labels), routed.argmax(1)
    history = pd.DataFrame(result.history)
    step.log_history([(int(row["epoch"]), {k: v for k, v in row.items() if k != "epoch"}) for row in result.history])
    step.log_metrics({f"{name}_final": value for name, value in result.metrics.items()} | {"dev/calibration_error_final": error})
    step.log_table(confusion_table(labels, chosen).reset_index(), "tables/confusion.json")
    by_etiology = pd.crosstab(dev["etiology"].to_numpy(), chosen, rownames=["etiology"], colnames=["expert"])
    step.log_table(by_etiology.reset_index(), "tables/expert_by_etiology.json")
    by_speaker = pd.crosstab(dev["speaker"].to_numpy(), chosen, rownames=["speaker"], colnames=["expert"])
    step.log_table(by_speaker.reset_index(), "tables/expert_by_speaker.json")
    step.log_figure(reliability_figure(reliability(routed, labels), error, note=note), "plots/reliability.png")
    step.log_figure(confusion_figure(confusion_table(labels, chosen), "Dev: cluster and chosen expert", note), "plots/confusion.png")
    panels = {"KL to soft labels": ["train/kl", "dev/kl"], "argmax accuracy": ["train/accuracy", "dev/accuracy"]}
    step.log_figure(training_curves(history, panels, "Gate", best=result.best_epoch, note=note), "plots/training.png")
    step.describe(
        f"## Gate{' on SYNTHETIC speech' if note else ''}\nSoftmax over {result.gate.gate_config.n_experts} experts, trained with KL to the "
        f"clusters' soft labels; epoch {result.best_epoch} of {len(result.history)} kept by `{result.selection_metric}`. On dev speakers, none "
        f"of whom it was trained on: argmax accuracy {100 * (chosen == labels).mean():.1f} %, calibration error {100 * error:.1f} %, "
        f"temperature {result.gate.gate_config.temperature:.2f}."
    )


def _note(step: StepRun) -> str:
    """Synthetic speech is labelled wherever it is shown; the corpus run at the end of the lineage says what it is."""
    lineage = tracking.lineage(step.run_id)
    return SYNTHETIC_NOTE if "synthesize" in lineage.values() else ""


def main() -> None:
    """Command line."""
    tracking.command(run, StepOptions)


if __name__ == "__main__":
    main()
