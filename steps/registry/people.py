"""People in the registry: a registered model of each one's own, `NAME.person.PERSON`, beside the recogniser NAME; gone without trace when asked."""

import contextlib
import hashlib
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import mlflow
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlParam
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from moe.experts.people.folders import RECORD, PersonRecord, read_person_record
from moe.options import NONE
from moe.serving.people import INFIX, PROFILE_TAG, registered_person
from moe.system import Record
from steps.registry.versions import SCHEME
from steps.tracking import artifacts
from steps.tracking.experiments import every_experiment
from steps.tracking.store import connect, tracking_address

FOLDER = "person"
PERSON_TAG, ABOVE_TAG = "moe.person", "moe.recogniser"
STEP = "person"  # of the run that holds one person
NAMING = ("person", "speaker")  # parameters whose value is a person


def digest_of(text: str) -> str:
    """What stands in a log for a text that may tell who somebody is."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_names(parameters: Mapping[str, str], private: Collection[str]) -> dict[str, str]:
    """Parameters as logged: of those that may tell who somebody is, a digest."""
    return {name: digest_of(value) if name in private and value != NONE else value for name, value in parameters.items()}


def registered_of(reference: str, record: Record) -> str:
    """The registered name that people above a recogniser go by: its own, or the system's where it is no registered one."""
    if reference.startswith(SCHEME):
        return reference.removeprefix(SCHEME).partition("@")[0].partition("/")[0]
    return record.system.replace("_", "-")


def register_person(recogniser: str, above: str, run_id: str, record: PersonRecord, has_profile: bool = False) -> str:
    """A new version of a person, whose folder is an artifact of a run.

    Args:
        recogniser: registered name that the person goes by.
        above: what was named as the recogniser: `models:/…`, or a run.
        has_profile: whether the folder holds a profile of their voice.
    """
    client, name = connect().client, registered_person(recogniser, record.name)
    try:
        client.create_registered_model(name, tags={ABOVE_TAG: above})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.set_registered_model_tag(name, PROFILE_TAG, str(has_profile).lower())
    tags = {"recogniser_digest": record.recogniser, "kept": record.kept}
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    return str(client.create_model_version(name, source, run_id=run_id, tags=tags).version)


def versions_of(recogniser: str, name: str) -> list[ModelVersion]:
    """The versions of a person, the newest first."""
    try:
        found = connect().client.search_model_versions(f"name = '{registered_person(recogniser, name)}'", max_results=1000)
    except MlflowException:
        return []
    return sorted(found, key=lambda version: -int(version.version))


def person_folder(recogniser: str, name: str) -> Path | None:
    """Where a person's newest version is; None where nobody has the name."""
    found = versions_of(recogniser, name)
    if not found or found[0].run_id is None:
        return None
    folder = artifacts.upstream(found[0].run_id, FOLDER)
    return folder if (folder / RECORD).exists() else None


def above_of(recogniser: str, name: str) -> str | None:
    """What a person's recogniser was named as when they were enrolled; None where nobody has the name."""
    try:
        above: str | None = connect().client.get_registered_model(registered_person(recogniser, name)).tags.get(ABOVE_TAG)
        return above
    except MlflowException:
        return None


def people_of(recogniser: str) -> Iterator[PersonRecord]:
    """Everybody who is enrolled above a registered recogniser."""
    connect()
    for model in mlflow.search_registered_models(filter_string=f"name LIKE '{recogniser}{INFIX}%'"):
        if not model.name.startswith(f"{recogniser}{INFIX}"):
            continue
        folder = person_folder(recogniser, model.name.removeprefix(f"{recogniser}{INFIX}"))
        if folder is not None:
            yield read_person_record(folder)


def left_without(recogniser: str, digest: str) -> int:
    """How many people a recogniser with this digest would not serve."""
    return sum(record.recogniser != digest for record in people_of(recogniser))


def forget(name: str) -> int:
    """Delete a person's versions, runs and files, and every trace of the name in a store on this machine; how many things were deleted.

    In an order that a second call goes on with after a crash: files first, then runs, then the registered model.

    Raises:
        RuntimeError: another process is at work in the store; the person is deleted, and a second call overwrites what is left.
    """
    client, n_deleted = connect().client, 0
    everywhere, theirs = every_experiment(client, ViewType.ALL), f"tags.`{PERSON_TAG}` = '{name}'"
    runs = client.search_runs(everywhere, theirs, run_view_type=ViewType.ALL, max_results=1000)
    for run in runs:
        _delete_run(run.info.run_id, run.info.artifact_uri)
        n_deleted += 1
    for model in client.search_registered_models(f"name LIKE '%{INFIX}{name}'", max_results=1000):
        if not model.name.endswith(f"{INFIX}{name}"):  # `_` stands for any character there
            continue
        client.delete_registered_model(model.name)
        n_deleted += 1
    _erase(name)
    return n_deleted


def _delete_run(run_id: str, artifact_uri: str) -> None:
    local = artifacts.local_folder(artifact_uri)
    if local is not None:
        shutil.rmtree(local.parent, ignore_errors=True)  # RUN/artifacts
    with contextlib.suppress(MlflowException):  # deleted by an earlier call
        connect().client.delete_run(run_id)
    address = tracking_address()
    if address.sqlite_path is not None:
        SqlAlchemyStore(address.uri, address.artifact_root)._hard_delete_run(run_id)


def _erase(name: str) -> None:
    """Overwrite what a deleted row leaves in a sqlite file: parameters that name the person, free pages, the write-ahead log.

    Of parameters `mlflow run` logs what it is given. Another one of the same value (`seed=7` beside a person `7`) names nobody.

    Raises:
        RuntimeError: another process is at work in the file.
    """
    address = tracking_address()
    if address.sqlite_path is None:
        return
    with SqlAlchemyStore(address.uri, address.artifact_root).ManagedSessionMaker(read_only=False) as session:
        named = session.query(SqlParam).filter(SqlParam.key.in_(NAMING), SqlParam.value == name)
        named.delete(synchronize_session=False)
    try:
        with contextlib.closing(sqlite3.connect(address.sqlite_path, timeout=20)) as database:
            database.execute("pragma secure_delete=on")
            database.execute("vacuum")
            is_busy = database.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
    except sqlite3.OperationalError:
        is_busy = True
    if is_busy:
        raise RuntimeError(
            "the person is deleted, but another process is at work in the store, which may hold the name's bytes in free pages: forget again"
        )
