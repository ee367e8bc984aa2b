"""What is reported of a gate, and of the classifier of domains, which is one: how sure it is, and how often it is right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.calibration import confusion_table, expected_calibration_error, reliability
from analysis.plots.gate import confusion_figure, reliability_figure
from moe.routing.gate import probabilities
from moe.routing.gate_training import GateResult
from steps.tracking.step_run import StepRun


def reliability_of(result: GateResult, vectors: np.ndarray, labels: np.ndarray, what: str, note: str) -> Figure:
    """A gate as it is kept beside what was not kept; calibrated probabilities are those of speakers not fitted on.

    Args:
        vectors, labels: of the dev utterances, (n_dev, D) and (n_dev,).
        what: it is called.
    """
    raw = probabilities(result.gate, vectors, False)  # (n_dev, n_experts)
    kept, other = (result.held_out, raw) if result.is_calibrated else (raw, result.held_out)
    tables = [(reliability(each, labels), expected_calibration_error(each, labels)) for each in (kept, other) if each is not None]
    title = (
        "Reliability on dev speakers whom no calibration was fitted on" if len(tables) > 1 else f"Reliability of {what} on dev"
    )
    return reliability_figure(*tables[0], title, note, tables[1] if len(tables) > 1 else None, result.is_calibrated)


def log_classifier(
    step: StepRun, result: GateResult, vectors: np.ndarray, domains: np.ndarray, names: Sequence[str], note: str
) -> None:
    """Log the classifier of domains: its metrics, what it takes for what, and how sure it is.

    Args:
        vectors, domains: of the dev utterances that have a domain, (n_dev, D), and its number (n_dev,).
        names: of the domains.
    """
    step.log_metrics({"dev/domain_accuracy": result.metrics["dev/accuracy"]})
    step.log_table(pd.DataFrame(list(result.metrics.items()), columns=["metric", "value"]), "tables/classifier_metrics.json")
    confusion = confusion_table(domains, probabilities(result.gate, vectors).argmax(1), len(names))
    confusion = confusion.rename(index=dict(enumerate(names)), columns=dict(enumerate(names)))
    confusion = confusion.rename_axis(index="domain", columns="classified as")
    step.log_table(confusion.reset_index(), "tables/classifier.json")
    if step.plots:
        step.log_figure(confusion_figure(confusion, "Dev: domain, and what it is classified as", note), "plots/classifier.png")
        figure = reliability_of(result, vectors, domains, "the classifier", note)
        step.log_figure(figure, "plots/classifier_reliability.png")
