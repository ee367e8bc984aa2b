"""Entry point `gate`: train the gate to send each utterance to its cluster's expert.

Reads `embed` (vectors) and `cluster` (soft labels) runs; writes the artifact `gate`. Example:
    mlflow run . --env-manager local -e gate -P embed_run_id=ID -P cluster_run_id=ID
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.calibration import confusion_table
from analysis.gate_choices import decisions_by, speaker_decisions
from analysis.groups import several
from analysis.plots.gate import confusion_figure, speakers_figure
from analysis.plots.training import training_curves
from analysis.report import markdown_table, percent
from moe.options import option
from moe.routing.embeddings import read_embeddings
from moe.routing.gate import probabilities
from moe.routing.gate_training import GateOptions, GateResult, train_gate
from moe.training.checkpoints import CheckpointOptions
from steps.inputs.corpus import SYNTHETIC_NOTE, read_prepared, soft_labels
from steps.inputs.training import checkpoints_of
from steps.options.step_options import PlotOptions
from steps.reports.gate import reliability_of
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

UNCALIBRATED, CALIBRATED = "dev/ece_uncalibrated", "dev/ece_held_out"
TORN = 0.8  # a speaker with a smaller share at one expert is torn between several


@dataclasses.dataclass(frozen=True)
class StepOptions(GateOptions, CheckpointOptions, PlotOptions):
    """Train the gate."""

    embed_run_id: str = option(help="run that made the embeddings")
    cluster_run_id: str = option(help="run that made the clusters")


def run(options: StepOptions) -> str:
    """Train the gate, log it and return the run id.

    Raises:
        ValueError: the clusters hold no dev utterances.
    """
    with runs.step_run("gate", options, f"gate · hidden {options.gating_hidden} · seed {options.seed}") as step:
        embeddings = read_embeddings(artifacts.upstream(options.embed_run_id, artifacts.EMBEDDINGS))
        labels = pd.read_parquet(artifacts.upstream(options.cluster_run_id, artifacts.LABELS))
        train, dev = (labels[labels["split"] == split] for split in ("train", "dev"))
        if not len(dev):
            raise ValueError(f"cluster run {options.cluster_run_id} has no dev utterances to select the gate by")
        result = train_gate(
            embeddings.select(train["utterance_id"]),
            soft_labels(train),
            embeddings.select(dev["utterance_id"]),
            soft_labels(dev),
            dataclasses.replace(
                options.part(GateOptions), top_k=min(options.top_k, soft_labels(train).shape[1])
            ),  # clusters may be fewer
            checkpoints=checkpoints_of(step, options),
            dev_speakers=dev["speaker"].tolist(),
        )
        with tempfile.TemporaryDirectory() as temporary:
            result.gate.save(Path(temporary) / artifacts.GATE)
            step.log_folder(Path(temporary) / artifacts.GATE, artifacts.GATE)
        _report(step, options, result, dev.reset_index(drop=True), embeddings.select(dev["utterance_id"]))
    return step.run_id


def _report(step: StepRun, options: StepOptions, result: GateResult, dev: pd.DataFrame, vectors: np.ndarray) -> None:
    note, labels, routed = _note(step), dev["cluster"].to_numpy(), probabilities(result.gate, vectors)
    by_etiology, speakers = decisions_by(dev, routed), speaker_decisions(dev, routed)
    step.log_history([(int(row["epoch"]), {k: v for k, v in row.items() if k != "epoch"}) for row in result.history])
    step.log_metrics(_final(result))
    step.log_table(confusion_table(labels, routed.argmax(1)).reset_index(), "tables/confusion.json")
    step.log_table(by_etiology, "tables/expert_by_etiology.json")
    step.log_table(speakers, "tables/expert_by_speaker.json")
    if step.plots:
        _log_figures(step, result, dev, vectors, note)
        step.log_figure(
            speakers_figure(speakers, "Where the gate sends dev speakers, unseen in training", note), "plots/speakers.png"
        )
    step.add_to_name(_corpus(step), f"accuracy {percent(result.metrics['dev/accuracy'])}")
    step.describe(_description(result, by_etiology, speakers, note))


def _log_figures(step: StepRun, result: GateResult, dev: pd.DataFrame, vectors: np.ndarray, note: str) -> None:
    labels, routed = dev["cluster"].to_numpy(), probabilities(result.gate, vectors)
    step.log_figure(reliability_of(result, vectors, labels, "the gate", note), "plots/reliability.png")
    confusion = confusion_table(labels, routed.argmax(1), routed.shape[1])
    step.log_figure(confusion_figure(confusion, "Dev: cluster and chosen expert", note), "plots/confusion.png")
    if several(dev):
        counts = pd.crosstab(dev["etiology"], pd.Series(routed.argmax(1), name="expert")).reindex(
            columns=range(routed.shape[1]), fill_value=0
        )
        step.log_figure(confusion_figure(counts, "Dev: etiology and chosen expert", note), "plots/expert_by_etiology.png")
    panels = {"KL divergence to the labels": ["train/kl", "dev/kl"], "accuracy": ["train/accuracy", "dev/accuracy"]}
    panels["calibration error, uncalibrated"] = ["train/ece", "dev/ece"]
    history = pd.DataFrame(result.history)
    step.log_figure(training_curves(history, panels, "Gate", best=result.best_epoch, note=note), "plots/training.png")


def _final(result: GateResult) -> dict[str, float]:
    """Metrics of the gate as it is kept; those it has by epoch too get `_final`."""
    by_epoch = set(result.history[0])
    return {f"{name}_final" if name in by_epoch else name: value for name, value in result.metrics.items()} | {
        "best_epoch": result.best_epoch
    }


def _description(result: GateResult, by_etiology: pd.DataFrame, speakers: pd.DataFrame, note: str) -> str:
    metrics, config = result.metrics, result.gate.gate_config
    shown = by_etiology[["group", "n_utterances", "n_speakers", "accuracy", "confidence", "entropy", "expert"]]
    n_torn = int((speakers["agreement"] < TORN).sum())
    lines = [
        f"{100 * metrics['dev/accuracy']:.1f} % of dev utterances go to their speaker's cluster{', SYNTHETIC speech' if note else ''}.",
        "",
        f"Softmax over {config.n_experts} experts{f', {config.hidden} hidden units' if config.hidden else ''}, trained with KL to the clusters' "
        f"soft labels; epoch {result.best_epoch} of {len(result.history)} kept by `{result.selection_metric}`. On dev speakers, none of whom "
        f"it was trained on: argmax accuracy {100 * metrics['dev/accuracy']:.1f} %, {_calibration(result)}.",
        "",
        f"Of {len(speakers)} unseen speakers {n_torn} have less than {TORN:.0%} of their utterances sent to one expert.",
        "",
        markdown_table(shown.round(3)),
    ]
    return "\n".join(lines)


def _calibration(result: GateResult) -> str:
    """The calibration error of the gate as it is kept, on speakers whom no temperature was fitted on, and of what was not kept."""
    metrics = result.metrics
    if UNCALIBRATED not in metrics:
        return f"calibration error {percent(metrics['dev/ece'])}"
    raw, calibrated = percent(metrics[UNCALIBRATED]), percent(metrics[CALIBRATED])
    if result.is_calibrated:
        temperature = result.gate.gate_config.temperature
        return f"calibration error {calibrated} with temperature {temperature:.2f}, {raw} without; both on speakers whom it was not fitted on"
    return f"calibration error {raw}; not calibrated, since a temperature fitted on other speakers gives {calibrated}"


def _corpus(step: StepRun) -> str:
    """Name of the corpus at the end of the lineage."""
    return read_prepared(next(run_id for run_id, name in artifacts.lineage(step.run_id).items() if name == "prepare")).name


def _note(step: StepRun) -> str:
    """Synthetic speech is labelled wherever it is shown; the corpus run at the end of the lineage says what it is."""
    lineage = artifacts.lineage(step.run_id)
    return SYNTHETIC_NOTE if "synthesize" in lineage.values() else ""


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
