"""Evaluate runs as tables to compare."""

import pandas as pd

from analysis.systems import SystemScores
from moe.files import read_json
from steps.tracking import artifacts
from steps.tracking.names import STEP_TAG
from steps.tracking.store import connect

CURVES = ("dev/wer", "dev/loss", "train/loss")


def find_runs(text: str) -> list[str]:
    """Ids of the finished `evaluate` runs of the experiment that match an MLflow filter, oldest first.

    Raises:
        ValueError: fewer than two do.
    """
    store = connect()
    wanted = f"tags.`{STEP_TAG}` = 'evaluate' and attributes.status = 'FINISHED' and {text}"
    found = store.client.search_runs([store.experiment_id], wanted, order_by=["attributes.start_time ASC"], max_results=1000)
    if len(found) < 2:
        raise ValueError(f"evaluate_filter={text!r}: {len(found)} finished evaluate run(s) match, at least two are needed")
    return [run.info.run_id for run in found]


def read_scores(evaluate_run_id: str) -> SystemScores:
    """What an evaluation run found, ready to compare."""
    scores = read_json(artifacts.upstream(evaluate_run_id, artifacts.SCORES))
    hypotheses = pd.read_parquet(artifacts.upstream(evaluate_run_id, artifacts.HYPOTHESES))
    return SystemScores(
        name=scores["title"],
        run_id=evaluate_run_id,
        system=scores["system"],
        role=scores["role"],
        control=scores["control"],
        hypotheses=hypotheses,
        metadata=scores,
        expert_wer=scores["expert_wer"],
        history=_history(evaluate_run_id),
    )


def _history(evaluate_run_id: str) -> pd.DataFrame | None:
    """Learning curves of the run whose model was scored: dev metrics by epoch, training loss by update; None where it has none."""
    client = connect().client
    model_run_id = client.get_run(evaluate_run_id).data.params["model_run_id"]
    curves = []
    for name in CURVES:
        points = client.get_metric_history(model_run_id, name)
        at = "update" if name.startswith("train/") else "epoch"
        curves.append(pd.DataFrame([{at: point.step, name: point.value} for point in points]))
    curves = [curve for curve in curves if len(curve)]
    return pd.concat(curves, ignore_index=True) if curves else None
