"""Hypotheses in MLflow's own evaluation view: `mlflow.models.evaluate` with the project's WER and CER."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pandas as pd
from mlflow.metrics import MetricValue
from mlflow.models import EvaluationMetric, make_metric

from analysis.error_rates import count_errors

NAMES = {"word": "wer", "char": "cer"}
SHOWN = ("utterance_id", "speaker", "etiology", "reference", "hypothesis")


def evaluate_hypotheses(run_id: str, counted: pd.DataFrame) -> None:
    """Log `eval_results_table.json`, with the rates of every utterance, and their ratios of sums to a run."""
    noisy = logging.getLogger("mlflow.models.evaluation")
    before = noisy.level
    noisy.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), _active(run_id):
            warnings.simplefilter("ignore")
            mlflow.models.evaluate(
                data=counted[[name for name in SHOWN if name in counted]].reset_index(drop=True),
                targets="reference",
                predictions="hypothesis",
                extra_metrics=[error_rate_metric(unit) for unit in NAMES],
                evaluators="default",
            )
    finally:
        noisy.setLevel(before)


@contextlib.contextmanager
def _active(run_id: str) -> Iterator[None]:
    """MLflow's active run is this one: it is not yet in a process that shares the work of a run, and goes on after the block."""
    if mlflow.active_run() is not None:
        yield
        return
    mlflow.start_run(run_id, log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run("RUNNING")


def error_rate_metric(unit: str) -> EvaluationMetric:
    """WER (`word`) or CER (`char`) as a metric of MLflow: a score for each utterance, and `corpus`, the ratio of the sums."""
    return make_metric(eval_fn=_rate_of(unit), greater_is_better=False, name=NAMES[unit])


def _rate_of(unit: str) -> Callable[..., MetricValue]:
    def rate(predictions: pd.Series, targets: pd.Series, metrics: dict[str, Any]) -> MetricValue:
        ids = [str(number) for number in range(len(targets))]
        table = pd.DataFrame({"utterance_id": ids, "speaker": "", "reference": list(targets), "hypothesis": list(predictions)})
        counted = count_errors(table)
        errors, length = counted[f"{unit}_errors"], counted[f"n_{unit}s"]
        scores = (errors / length.where(length > 0, 1)).tolist()
        return MetricValue(scores=scores, aggregate_results={"corpus": float(errors.sum() / max(1, length.sum()))})

    return rate
