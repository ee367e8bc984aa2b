"""The experiment that every step logs to: `MLFLOW_EXPERIMENT_NAME`, or the one that `mlflow run` passes on, or the project's own.

`mlflow run` without `--experiment-name` passes on experiment 0, which MLflow calls Default. In a local store of the project's own,
experiment 0 is the project's experiment and has its name, so that every way to start a step leads to one experiment.

A name is no folder: artifacts lie below the experiment's id, beside those of the store's other experiments.
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME
from mlflow.utils.validation import MAX_EXPERIMENT_NAME_LENGTH

from steps.tracking.addresses import Address
from steps.tracking.names import STEP_TAG
from steps.tracking.retries import with_retries
from steps.tracking.secrets import without_secrets

EXPERIMENT = "whisper-moe"
DEFAULT, DEFAULT_ID = Experiment.DEFAULT_EXPERIMENT_NAME, SqlAlchemyStore.DEFAULT_EXPERIMENT_ID
NAME, ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
NOTE_TAG = "mlflow.note.content"
KIND_TAG, TRAINING = "mlflow.experimentKind", "custom_model_development"  # the UI opens in its view of training runs
NOTE = """Speech recognition for atypical speech with a mixture of experts on Whisper.

Each run is one step of the chain `prepare → embed → cluster → gate → experts → asr → evaluate → compare → register`; its parameters
`…_run_id` name the runs it read from. `main` runs the whole chain as nested runs. To list one step, search for
`tags.moe.step = 'evaluate'`."""


def asked_experiment() -> tuple[str, str]:
    """Name and id asked for; the id, which `mlflow run` passes on, wins and is empty otherwise."""
    return os.environ.get(NAME) or EXPERIMENT, os.environ.get(ID, "")


def every_experiment(client: MlflowClient, view: int = ViewType.ACTIVE_ONLY) -> list[str]:
    """Ids of a store's experiments: a step that was started by hand may have gone to any of them."""
    return [experiment.experiment_id for experiment in client.search_experiments(view_type=view)]


def name_default(client: MlflowClient, address: Address, project: Path) -> None:
    """Give experiment 0 of a local store the project's name, unless it was renamed, deleted or used by somebody else."""
    if address.sqlite_path is None or client.get_experiment_by_name(EXPERIMENT) is not None:
        return
    experiment = client.get_experiment(DEFAULT_ID)
    if experiment.name == DEFAULT and experiment.lifecycle_stage == "active" and not _runs_of_others(client, project):
        client.rename_experiment(DEFAULT_ID, EXPERIMENT)


def open_experiment(client: MlflowClient, address: Address, name: str, given_id: str) -> str:
    """Id of an experiment, which is made where no id is given and none has the name.

    Raises:
        RuntimeError: it was deleted, there is none of that id, its name is too long, or its artifacts would go astray.
    """
    experiment = _of_id(client, address, given_id) if given_id else client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(_make(client, address, name))
    _check(_mended(client, address, experiment))
    if experiment.name == EXPERIMENT and NOTE_TAG not in experiment.tags:
        with_retries(client.set_experiment_tag, experiment.experiment_id, NOTE_TAG, NOTE)
    if KIND_TAG not in experiment.tags:
        with_retries(client.set_experiment_tag, experiment.experiment_id, KIND_TAG, TRAINING)
    if experiment.name == DEFAULT and given_id:
        print(f"this run goes to the experiment {DEFAULT}: `mlflow run --experiment-name {EXPERIMENT}` names the project's own")
    return experiment.experiment_id


def say_result(client: MlflowClient, experiment_id: str, result: str) -> None:
    """Put what a chain found first into the experiment's note, whose first line stands above the runs; a note of somebody's own stays."""
    note = client.get_experiment(experiment_id).tags.get(NOTE_TAG, NOTE)
    if note.endswith(NOTE):
        client.set_experiment_tag(experiment_id, NOTE_TAG, f"{result}\n\n{NOTE}")


def _runs_of_others(client: MlflowClient, project: Path) -> bool:
    """Whether experiment 0 holds a run that neither a step of a project nor an `mlflow run` of this one made."""
    own = os.environ.get(MLFLOW_RUN_ID.name)  # the one that `mlflow run` has just made for this process
    found = client.search_runs([DEFAULT_ID], f"tags.`{STEP_TAG}` IS NULL", max_results=1000)
    ours = (str(project), f"file://{project}")  # as `mlflow run` names a folder, and a checkout of git
    return any(run.info.run_id != own and run.data.tags.get(MLFLOW_SOURCE_NAME) not in ours for run in found)


def _of_id(client: MlflowClient, address: Address, given_id: str) -> Experiment:
    try:
        return client.get_experiment(given_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RuntimeError(
            f"{ID}={given_id}: no such experiment in {without_secrets(address.uri)}; unset it, and {NAME} or {EXPERIMENT} is used"
        ) from error


def _make(client: MlflowClient, address: Address, name: str) -> str:
    if len(name) > MAX_EXPERIMENT_NAME_LENGTH:
        raise RuntimeError(f"{NAME}={name[:40]}…: has {len(name)} characters, at most {MAX_EXPERIMENT_NAME_LENGTH} are allowed")
    if address.artifact_root is None:
        return _of_name(client, name)
    return str(SqlAlchemyStore(address.uri, address.artifact_root).create_experiment(name))


def _of_name(client: MlflowClient, name: str) -> str:
    """Id of a new experiment on a server, or of the one that another chain made at the same moment."""
    try:
        return client.create_experiment(name)
    except MlflowException as error:
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        return found.experiment_id


def _mended(client: MlflowClient, address: Address, experiment: Experiment) -> Experiment:
    """The experiment with the URI of its folder, where a bare `mlflow run` has just made the store in a folder whose name has a %.

    MLflow writes the folder's path as it stands and reads it back as `unquote(path)`; nothing can lie at either yet.
    """
    location = experiment.artifact_location
    beside = address.sqlite_path and address.sqlite_path.parent / "mlruns" / experiment.experiment_id
    if unquote(location) == location or location != str(beside) or Path(location).exists() or Path(unquote(location)).exists():
        return experiment
    uri, number = Path(location).as_uri(), int(experiment.experiment_id)
    with SqlAlchemyStore(address.uri, address.artifact_root).ManagedSessionMaker(read_only=False) as session:
        session.query(SqlExperiment).filter_by(experiment_id=number).update({"artifact_location": uri})
        for run in session.query(SqlRun).filter_by(experiment_id=number):
            run.artifact_uri = uri + run.artifact_uri.removeprefix(location)
    return client.get_experiment(experiment.experiment_id)


def _check(experiment: Experiment) -> None:
    number, location = experiment.experiment_id, experiment.artifact_location
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(
            f"the experiment {experiment.name!r} was deleted; restore it with `mlflow experiments restore --experiment-id {number}`, "
            f"or set {NAME} to another name"
        )
    if not urlsplit(location).scheme and unquote(location) != location:
        raise RuntimeError(
            f"the experiment {experiment.name!r} keeps its artifacts in {location}, which MLflow reads as {unquote(location)}: "
            f"start in a fresh clone of the project, in a folder without %"
        )
