"""The tracking store and the experiment that every step logs to.

`MLFLOW_TRACKING_URI` names the store; without it, it is `mlflow.db` in the project root with artifacts under `./mlruns`. A local
sqlite store is made once, aside and under a file lock (two processes that make the schema at the same moment break each other), and is
put into write-ahead mode, in which writers wait a third as long for each other.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import transformers
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.telemetry import set_telemetry_client
from sqlalchemy.exc import SQLAlchemyError

from steps.tracking import dead_runs
from steps.tracking.retries import RetryingClient
from steps.tracking.secrets import without_secrets

EXPERIMENT = "whisper-moe"
NOTE_TAG = "mlflow.note.content"
SQLITE = "sqlite:///"
UNFINISHED = "unfinished"
N_SCHEMA_TRIES, SCHEMA_WAIT_S = 4, 2.0
NOTE = """Speech recognition for atypical speech with a mixture of experts on Whisper.

Each run is one step of the chain `prepare → embed → cluster → gate → experts → asr → evaluate → compare → register`; its parameters
`…_run_id` name the runs it read from. `main` runs the whole chain as nested runs. To list one step, search for
`tags.moe.step = 'evaluate'`."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A connected tracking store."""

    client: RetryingClient
    experiment_id: str


def project_root() -> Path:
    """The folder that holds `steps/`."""
    return Path(__file__).resolve().parents[2]


def unfinished_root() -> Path:
    """Folder on this machine for the work of steps that have not finished; one for each store, git-ignored where it is the project's."""
    uri = _tracking_uri()
    path = _sqlite_path(uri)
    if path is not None:
        return path.parent / "mlruns" / UNFINISHED / path.stem
    return project_root() / "mlruns" / UNFINISHED / hashlib.sha256(uri.encode()).hexdigest()[:8]


def connect() -> Store:
    """Connect to the tracking store; make schema and experiment where they are missing; close runs whose process is gone.

    Raises:
        RuntimeError: the store or the experiment cannot be reached.
    """
    _quiet_transformers()
    uri = _tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        experiment_id = _prepare(uri, _experiment_name())
        return Store(RetryingClient(MlflowClient(tracking_uri=uri)), experiment_id)
    except (MlflowException, OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise RuntimeError(without_secrets(f"tracking store {uri} cannot be used: {error}")) from error


@functools.cache
def _prepare(uri: str, experiment: tuple[str, str]) -> str:
    """Done once in a process: schema, experiment (its id is returned), and an end to runs without a process."""
    _no_telemetry()
    with _one_at_a_time(uri):
        _make_whole(_sqlite_path(uri))
        client = _first_client(uri)
        experiment_id = _experiment_id(client, uri, *experiment)
        _write_ahead(uri)
    dead_runs.close_stale(client)
    return experiment_id


def _make_whole(path: Path | None) -> None:
    """Make a sqlite store's schema aside: what is killed meanwhile leaves no half of it, which MLflow could neither use nor mend."""
    if path is None or path.exists():
        return
    aside = path.with_name(f".{path.name}.making")
    for leftover in path.parent.glob(f"{aside.name}*"):
        leftover.unlink()
    SqlAlchemyStore(f"{SQLITE}{aside}", (path.parent / "mlruns").as_uri()).engine.dispose()
    with contextlib.suppress(FileExistsError):  # an `mlflow run` made it meanwhile
        os.link(aside, path)
    aside.unlink()


def _first_client(uri: str) -> MlflowClient:
    """The client whose making makes the schema. An `mlflow run` that makes it at the same moment holds no lock: wait for it."""
    for _ in range(N_SCHEMA_TRIES - 1):
        with contextlib.suppress(SQLAlchemyError, MlflowException):
            return MlflowClient(tracking_uri=uri)
        time.sleep(SCHEMA_WAIT_S)
    return MlflowClient(tracking_uri=uri)


def _experiment_name() -> tuple[str, str]:
    """Name and id asked for; the id, which `mlflow run` passes on, wins and is empty otherwise."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, os.environ.get("MLFLOW_EXPERIMENT_ID", "")


def _tracking_uri() -> str:
    """The store's address, with the path of a sqlite file made absolute, so that child processes mean the same file."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{project_root() / 'mlflow.db'}"
    path = _sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{path}"


def _sqlite_path(uri: str) -> Path | None:
    if not uri.startswith(SQLITE) or uri.removeprefix(SQLITE) in ("", ":memory:"):
        return None
    return Path(uri.removeprefix(SQLITE)).absolute()


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Hold the lock file beside a sqlite store; other stores look after themselves."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _quiet_schema_log(path):
            yield


@contextlib.contextmanager
def _quiet_schema_log(path: Path) -> Iterator[None]:
    """Some fifty migration lines would be the first thing a new user reads; one line says it as well."""
    if not path.exists():
        print(f"making the tracking store {path}", flush=True)
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_ahead(uri: str) -> None:
    path = _sqlite_path(uri)
    if path is None:
        return
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
        if database.execute("pragma journal_mode").fetchone()[0] != "wal":
            database.execute("pragma journal_mode=wal")


def _experiment_id(client: MlflowClient, uri: str, name: str, given_id: str) -> str:
    experiment = client.get_experiment(given_id) if given_id else client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=_artifact_location(uri, name)))
    if experiment.name == EXPERIMENT and NOTE_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, NOTE)
    return experiment.experiment_id


def _artifact_location(uri: str, name: str) -> str | None:
    """Beside a sqlite file, wherever the process was started; a server decides for itself."""
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlruns" / name).as_uri()


def _quiet_transformers() -> None:
    """Its notices repeat with every batch; what a user must know, our own errors say."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _no_telemetry() -> None:
    """MLflow reports its use over the network unless told otherwise; this project is offline by default."""
    if os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true").lower() == "true":
        set_telemetry_client()
