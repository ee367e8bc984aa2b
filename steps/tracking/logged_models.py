"""Scores in MLflow's Models tab: each saved model is one LoggedModel, its test metrics attached to it with the test set.

`mlflow.search_logged_models(order_by=[{"field_name": "metrics.test/wer", "dataset_name": "test manifest"}])` ranks them.
"""

import dataclasses
import time
from collections.abc import Mapping

from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelStatus, Metric

from steps.tracking.metric_log import log_all
from steps.tracking.step_run import MAX_DIGEST, StepRun
from steps.tracking.store import connect

MODEL_RUN_TAG = "moe.model_run_id"
RANKED = ("test/wer", "test/cer", "test/low", "test/high", "test/wer_clipped", "test/gating_accuracy", "real_time_factor")
CHALLENGES = "test/sapc"


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A saved model that was scored: its system, the run that made it, facts about it, and the data set by name and digest."""

    system: str
    model_run_id: str
    facts: Mapping[str, str]
    dataset_name: str
    dataset_digest: str


def attach_scores(step: StepRun, scored: ScoredModel, metrics: Mapping[str, float]) -> str:
    """Log metrics, those worth ranking by to the model's LoggedModel too, which is made where there is none; its id."""
    model = _found(scored) or _made(scored)
    now, digest = int(time.time() * 1000), scored.dataset_digest[:MAX_DIGEST]
    ranked = {name: value for name, value in metrics.items() if name in RANKED or name.startswith(CHALLENGES)}
    step.log_metrics({name: value for name, value in metrics.items() if name not in ranked})
    kept = [
        Metric(step.metric_names.of(name), float(value), now, 0, model_id=model.model_id, dataset_name=scored.dataset_name,
               dataset_digest=digest, run_id=step.run_id)
        for name, value in ranked.items()
    ]  # fmt: skip
    step.client.log_inputs(step.run_id, models=[LoggedModelInput(model.model_id)])
    log_all(step.client, step.run_id, kept)
    return model.model_id


def _found(scored: ScoredModel) -> LoggedModel | None:
    store = connect()
    wanted = f"tags.`{MODEL_RUN_TAG}` = '{scored.model_run_id}'"
    found = store.client.search_logged_models([store.experiment_id], wanted, max_results=1)
    return found[0] if found else None


def _made(scored: ScoredModel) -> LoggedModel:
    store = connect()
    tags = {MODEL_RUN_TAG: scored.model_run_id, "moe.model": f"runs:/{scored.model_run_id}/model", "moe.system": scored.system}
    model = store.client.create_logged_model(
        store.experiment_id, scored.system, scored.model_run_id, tags, dict(scored.facts), "saved model"
    )
    return store.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
