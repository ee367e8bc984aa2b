"""A run with its lineage as a folder, to take it from one store to another: parameters, tags, metrics, inputs, artifacts, and ids.

    <folder>/export.json    runs/<run id>/run.json    runs/<run id>/artifacts/…

Runs keep their ids, so that the chain of ids holds in the other store and its steps reuse them. A tracking server gives runs ids of its
own: import where its database is.
"""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.dbmodels.models import SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from moe.files import read_json, write_json
from steps.tracking.artifacts import lineage
from steps.tracking.dead_runs import HOST_TAG, PID_TAG, START_TAG
from steps.tracking.metric_log import history, log_all
from steps.tracking.resuming import PARENT_TAG
from steps.tracking.store import connect, tracking_address

RECORD, RUN_FILE, RUNS, ARTIFACTS = "export.json", "run.json", "runs", "artifacts"
STAGE_TAGS = ("moe.ran.", "moe.reused.")
UNFINISHED_TAG = "moe.importing"  # on a run until all of it is there
VERSION = 1


def export(run_id: str, folder: Path) -> list[str]:
    """Write a run and all runs that it was made from, or that its chain ran, to an empty folder: their ids.

    Raises:
        ValueError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    client = connect().client
    run_ids = _with_stages(client, run_id)
    for each in run_ids:
        _write_run(client, client.get_run(each), folder / RUNS / each)
    write_json(folder / RECORD, {"version": VERSION, "run_id": run_id, "runs": run_ids})
    return run_ids


def read_back(folder: Path) -> tuple[list[str], list[str]]:
    """Import every run of an exported folder into the store's experiment: ids of the runs imported, and of those that were there.

    Raises:
        ValueError: the folder is no export, or the store gives runs ids of its own.
    """
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} holds no {RECORD}: it is no export of a run")
    address = tracking_address()
    if address.uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        raise ValueError(
            f"{address.uri} gives runs ids of its own: import where its database is, with MLFLOW_TRACKING_URI naming that"
        )
    imported, there = list[str](), list[str]()
    for run_id in read_json(folder / RECORD)["runs"]:
        (imported if _import(folder / RUNS / run_id) else there).append(run_id)
    return imported, there


def _with_stages(client: MlflowClient, run_id: str) -> list[str]:
    """The run's lineage, and for a chain its stages'."""
    tags = client.get_run(run_id).data.tags
    stages = [value for name, value in sorted(tags.items()) if name.startswith(STAGE_TAGS)]
    return list(dict.fromkeys(each for start in [run_id, *stages] for each in lineage(start)))


def _write_run(client: MlflowClient, run: Run, folder: Path) -> None:
    folder.mkdir(parents=True)
    download_artifacts(artifact_uri=run.info.artifact_uri, dst_path=str(folder))  # below its last part, `artifacts`
    inputs = [
        {"dataset": dict(each.dataset), "tags": {tag.key: tag.value for tag in each.tags}}
        for each in (run.inputs.dataset_inputs if run.inputs else [])
    ]
    record = {
        "info": {name: getattr(run.info, name) for name in ("run_id", "run_name", "user_id", "status", "start_time", "end_time")},
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": [[metric.key, metric.value, metric.timestamp, metric.step] for metric in history(client, run.info.run_id)],
        "inputs": inputs,
    }
    write_json(folder / RUN_FILE, record)


def _import(folder: Path) -> bool:
    """Whether the run was imported; one that is there already is left as it is, unless an import of it was interrupted."""
    record, store = read_json(folder / RUN_FILE), connect()
    run_id = record["info"]["run_id"]
    try:
        if UNFINISHED_TAG not in store.client.get_run(run_id).data.tags:
            return False
    except MlflowException:
        _make(record["info"], store.experiment_id)
    place = store.client.get_run(run_id).info.artifact_uri  # a client keeps the place that a run of this id had in another store
    get_artifact_repository(place).log_artifacts(str(folder / ARTIFACTS))
    _fill(store.client, run_id, record)
    store.client.set_terminated(run_id, record["info"]["status"], record["info"]["end_time"])
    store.client.delete_tag(run_id, UNFINISHED_TAG)
    return True


def _make(info: dict[str, Any], experiment_id: str) -> None:
    """A run with an id of another store; MLflow's own calls give every run a new one."""
    client, address = connect().client, tracking_address()
    location = client.get_experiment(experiment_id).artifact_location.rstrip("/")
    run = SqlRun(
        run_uuid=info["run_id"], name=info["run_name"], user_id=info["user_id"], status="RUNNING", start_time=info["start_time"],
        lifecycle_stage="active", source_type="UNKNOWN", source_name="", source_version="", entry_point_name="",
        experiment_id=int(experiment_id), artifact_uri=f"{location}/{info['run_id']}/artifacts",
    )  # fmt: skip
    store = SqlAlchemyStore(address.uri, address.artifact_root or location)
    with store.ManagedSessionMaker(read_only=False) as session:
        session.add(run)
    client.set_tag(info["run_id"], UNFINISHED_TAG, "true")


def _fill(client: MlflowClient, run_id: str, record: dict[str, Any]) -> None:
    ours = (HOST_TAG, PID_TAG, START_TAG)  # of a process elsewhere
    tags = [RunTag(name, value) for name, value in record["tags"].items() if name not in ours]
    client.log_batch(run_id, tags=tags)
    if PARENT_TAG in record["tags"] and not _exists(client, record["tags"][PARENT_TAG]):
        client.delete_tag(run_id, PARENT_TAG)
    parameters = [Param(name, value) for name, value in record["params"].items()]
    log_all(client, run_id, [Metric(*each) for each in record["metrics"]], parameters)
    inputs = [
        DatasetInput(Dataset(**each["dataset"]), [InputTag(name, value) for name, value in each["tags"].items()])
        for each in record["inputs"]
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
        return True
    except MlflowException:
        return False
