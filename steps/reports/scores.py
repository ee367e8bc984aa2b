"""Evaluate runs as tables to compare."""

from collections.abc import Mapping

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from analysis.systems import SystemScores
from moe.files import read_json
from steps.options.step_options import SYNTHETIC
from steps.reports.colours import number_of
from steps.tracking import artifacts
from steps.tracking.names import STEP_TAG
from steps.tracking.run_ids import whole_id
from steps.tracking.store import connect

DEV, LOSS, STARTS = ("dev/wer", "dev/loss"), "train/loss", "dev/wer_start"
CURVES = (*DEV, LOSS)


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


def corpus_of(system: SystemScores) -> str:
    """What the corpus of its test set is called."""
    return str(system.metadata.get("corpus", SYNTHETIC))


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
        metadata=scores | {"number": number_of(scores["system"])},
        expert_wer=scores["expert_wer"],
        history=_history(evaluate_run_id),
    )


def _history(evaluate_run_id: str) -> pd.DataFrame | None:
    """Learning curves of the run whose model was scored, behind those of the training that it went on from; None where it has none.

    Dev metrics by epoch, counted from 1 through all stages, with what is known of a start as the epoch before; training loss by update.
    """
    client = connect().client
    model_run = client.get_run(whole_id(client.get_run(evaluate_run_id).data.params["model_run_id"]))
    earlier = model_run.data.params.get("experts_run_id", "none")
    stages = [*([client.get_run(whole_id(earlier))] if earlier not in artifacts.NONE_GIVEN else []), model_run]
    curves, n_epochs, n_updates = list[pd.DataFrame](), 0, 0
    for run in stages:
        found = {name: _points(client, run, name) for name in (*CURVES, STARTS)}
        curves += _stage_curves(found, run.data.tags.get(STEP_TAG, ""), n_epochs, n_updates)
        n_epochs += 1 + max((step for name in DEV for step, _ in found[name]), default=-1)
        n_updates += max((step for step, _ in found[LOSS]), default=0)
    return pd.concat(curves, ignore_index=True) if curves else None


def _points(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def _stage_curves(found: Mapping[str, list[tuple[int, float]]], stage: str, n_epochs: int, n_updates: int) -> list[pd.DataFrame]:
    """A stage's curves, moved behind the epochs and updates before it; its first row of each holds its name."""
    curves = {name: [(n_epochs + step + 1, value) for step, value in found[name]] for name in DEV}
    curves[LOSS] = [(n_updates + step, value) for step, value in found[LOSS]]
    if curves["dev/wer"]:
        curves["dev/wer"] = [(n_epochs, value) for _, value in found[STARTS]] + curves["dev/wer"]
    tables = [
        pd.DataFrame(points, columns=["update" if name == LOSS else "epoch", name]) for name, points in curves.items() if points
    ]
    return [table.assign(stage=[stage] + [None] * (len(table) - 1)) for table in tables]
