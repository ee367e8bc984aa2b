"""Open the run of a step: go on in the one that an earlier start left unfinished, join the one `mlflow run` made, or start a new one.

An unfinished run is RUNNING again, keeps its metrics and gets no second copy of them. The run that `mlflow run` makes for each of its
starts cannot be exchanged: it takes over the metrics of the one it continues, and each names the other in a tag. Any other run that
`MLFLOW_RUN_ID` names is refused (see `steps.tracking.joining`), but for a KILLED one that this start would continue anyway.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

import mlflow
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException

from steps.tracking.dead_runs import MESSAGE_TAG, STOPPED_TAG, is_gone, is_here, process_tags
from steps.tracking.joining import run_to_join
from steps.tracking.metric_log import MetricLog, history, log_all
from steps.tracking.parents import parent_id
from steps.tracking.retries import with_retries
from steps.tracking.store import Store, unfinished_root
from steps.tracking.work_folders import WorkFolder, claim

CONTINUES_TAG, CONTINUED_BY_TAG, N_STARTS_TAG = "moe.continues", "moe.continued_by", "moe.n_starts"
WORK_TAG = "moe.work"  # the token of the folder that the run was made for
PARENT_TAG = "mlflow.parentRunId"


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run that MLflow takes as active, the step's folder, and the metrics on their way."""

    run_id: str
    work_folder: WorkFolder
    metrics: MetricLog


def open_run(store: Store, step: str, digest: str, name: str, tags: dict[str, str], resume: bool) -> OpenRun:
    """Open the run of a step.

    Args:
        digest: the step's fingerprint; an unfinished run with another one is not continued.
        name: the run's name in the UI.
        tags: on the run from its first moment, beside those that name this process.
        resume: whether to continue; else what an earlier start left is discarded.

    Raises:
        RuntimeError: the run cannot be opened, or the folder for unfinished work cannot be written.
    """
    work_folder = claim(unfinished_root(), step, digest, lambda found: _may_be_alive(store, found.run_id))
    try:
        earlier = _earlier(store, work_folder) if resume else None
        given = run_to_join(store, step, earlier)
        if earlier is None:
            work_folder.discard()
            tags = tags | {WORK_TAG: work_folder.announce()}
        run_id = _start(store, given, earlier, name, tags | process_tags())
        held = history(store.client, earlier.info.run_id) if earlier is not None else []
        if earlier is not None:
            _go_on(store, earlier, run_id, held)
        work_folder.belongs_to(run_id)
        points = frozenset((metric.key, metric.step) for metric in held)
        return OpenRun(run_id, work_folder, MetricLog(store.client, run_id, work_folder.pending_path, points))
    except BaseException:
        work_folder.close(finished=False)
        raise


def close_run(run_id: str, store: Store, status: str) -> None:
    """Mark a run and take it from MLflow's stack of active runs; the latter even where the store does not answer."""
    try:
        store.client.set_terminated(run_id, status)
    finally:
        active = mlflow.active_run()
        with contextlib.suppress(MlflowException):
            if active is not None and active.info.run_id == run_id:
                mlflow.end_run(
                    status
                )  # takes the run from the stack first, so that asking it again would end the run around this one


def _start(store: Store, given: str | None, earlier: Run | None, name: str, tags: dict[str, str]) -> str:
    active = mlflow.active_run()
    run_id = given or (earlier.info.run_id if earlier else None)
    if parent := parent_id():
        tags = tags | {PARENT_TAG: parent}
    try:
        if run_id is not None:  # before it is RUNNING again, or another start would take it for a dead one
            store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        nested = active is not None
        run: Run = with_retries(
            mlflow.start_run, run_id, run_name=name, experiment_id=store.experiment_id, nested=nested, tags=tags
        )
    except MlflowException as error:
        raise RuntimeError(f"the run {run_id or name} cannot be opened: {error}") from error
    return str(run.info.run_id)


def _earlier(store: Store, work_folder: WorkFolder) -> Run | None:
    """The run that an earlier start left; None where there is none, it is FINISHED or was deleted."""
    run = _run(store, work_folder.run_id) or _announced(store, work_folder.token)
    return None if run is None or run.info.status == "FINISHED" or run.info.lifecycle_stage == "deleted" else run


def _announced(store: Store, token: str | None) -> Run | None:
    """The run that a start made and, killed in the same moment, could not note."""
    found = store.client.search_runs([store.experiment_id], f"tags.`{WORK_TAG}` = '{token}'") if token else []
    return found[0] if found else None


def _may_be_alive(store: Store, run_id: str | None) -> bool:
    """Whether the folder's run may be at work on another machine; on this one the lock would be held."""
    run = _run(store, run_id)
    return run is not None and run.info.status == "RUNNING" and not is_here(run.data.tags) and not is_gone(run.data.tags)


def _run(store: Store, run_id: str | None) -> Run | None:
    if run_id is None:
        return None
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _go_on(store: Store, earlier: Run, run_id: str, held: Sequence[Metric]) -> None:
    """Make the run one that goes on: it no longer says that it was stopped, and holds the metrics so far."""
    n_starts = int(earlier.data.tags.get(N_STARTS_TAG, "1")) + 1
    store.client.set_tag(run_id, N_STARTS_TAG, n_starts)
    was = f"{earlier.info.run_id[:8]} was {earlier.info.status}"
    if run_id == earlier.info.run_id:
        for tag in (MESSAGE_TAG, STOPPED_TAG):
            if tag in earlier.data.tags:
                store.client.delete_tag(run_id, tag)
    else:
        log_all(store.client, run_id, held)
        store.client.set_tag(run_id, CONTINUES_TAG, earlier.info.run_id)
        store.client.set_tag(earlier.info.run_id, CONTINUED_BY_TAG, run_id)
    print(f"run {was}: it goes on in {run_id[:8]}", flush=True)
