"""Which run from outside a step joins: the one that `mlflow run` has just made for it and named in `MLFLOW_RUN_ID`; every other is refused.

MLflow would take up any run, a finished one too, and overwrite what it holds.
"""

import os

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_SOURCE_TYPE

from steps.tracking.names import STEP_TAG
from steps.tracking.secrets import without_secrets
from steps.tracking.store import Store, tracking_address

MLFLOW_RUN_ID = "MLFLOW_RUN_ID"


def run_to_join(store: Store, step: str, earlier: Run | None) -> str | None:
    """Id of the run that this process was given, taken from the environment, so that the steps within this one do not join it too.

    Args:
        earlier: the unfinished run that the step goes on with; stopped (KILLED), it may be named too, as by `mlflow run --run-id`.

    Raises:
        RuntimeError: the run is not there, is deleted, has ended, or was not made for this step.
    """
    run_id = os.environ.pop(MLFLOW_RUN_ID, None)
    if not run_id:
        return None
    fault = _fault(store, run_id, step, earlier)
    if fault:
        raise RuntimeError(
            f"{MLFLOW_RUN_ID}={run_id}: {fault}; only the run that `mlflow run` has just made for {step} is joined: "
            f"unset {MLFLOW_RUN_ID}, and the step has a run of its own"
        )
    return run_id


def _fault(store: Store, run_id: str, step: str, earlier: Run | None) -> str | None:
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return f"no such run in {without_secrets(tracking_address().uri)}"
    if run.info.lifecycle_stage == "deleted":
        return "the run was deleted"
    if run.info.status == "KILLED" and earlier is not None and earlier.info.run_id == run_id:
        return None
    tags = run.data.tags
    if run.info.status not in ("RUNNING", "SCHEDULED"):
        return f"the run is {run.info.status}"
    if STEP_TAG in tags:
        return f"the run is at work as {tags[STEP_TAG]}"
    if tags.get(MLFLOW_SOURCE_TYPE) != "PROJECT" or tags.get(MLFLOW_PROJECT_ENTRY_POINT) != step:
        return "the run is another program's"
    return (
        None if run.info.experiment_id == store.experiment_id else f"the run is in another experiment ({run.info.experiment_id})"
    )
