"""The tracking store that every step logs to.

`MLFLOW_TRACKING_URI` names the store; without it, it is `mlflow.db` in the project root with artifacts under `./mlruns`. A local
sqlite store is made once, aside and under a file lock (two processes that make the schema at the same moment break each other), and is
put into write-ahead mode, in which writers wait a third as long for each other.
"""

import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import mlflow
import transformers
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.telemetry import set_telemetry_client
from sqlalchemy.exc import SQLAlchemyError

from steps.tracking import dead_runs, moved_store
from steps.tracking.addresses import Address, parse_address, sqlite_address
from steps.tracking.experiments import asked_experiment, name_default, open_experiment
from steps.tracking.loggers import quiet
from steps.tracking.retries import retrying
from steps.tracking.secrets import without_secrets

UNFINISHED = "unfinished"
N_SCHEMA_TRIES, SCHEMA_WAIT_S = 4, 2.0
SCHEMA_LOGGERS = ("alembic", "mlflow.store.db.utils")


@dataclasses.dataclass(frozen=True)
class Store:
    """A connected tracking store."""

    client: MlflowClient
    experiment_id: str


def project_root() -> Path:
    """The folder that holds `steps/`."""
    return Path(__file__).resolve().parents[2]


def unfinished_root() -> Path:
    """Folder on this machine for the work of steps that have not finished; one for each store, git-ignored where it is the project's."""
    address = tracking_address()
    if address.sqlite_path is not None:
        return address.sqlite_path.parent / "mlruns" / UNFINISHED / address.sqlite_path.stem
    return project_root() / "mlruns" / UNFINISHED / hashlib.sha256(address.uri.encode()).hexdigest()[:8]


def artifact_folder() -> Path | None:
    """The folder that artifacts lie in; None where a server decides."""
    path = tracking_address().sqlite_path
    return None if path is None else path.parent / "mlruns"


def tracking_address() -> Address:
    """Where the store is: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the project; installed as a package, in the folder one works in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    home = project_root() if (project_root() / "MLproject").is_file() else Path.cwd()
    return parse_address(uri) if uri else sqlite_address(home / "mlflow.db")


def connect() -> Store:
    """Connect to the tracking store; make schema and experiment where they are missing; close runs whose process is gone.

    Raises:
        RuntimeError: the store or the experiment cannot be used.
    """
    _quiet_libraries()
    address = tracking_address()
    mlflow.set_tracking_uri(address.uri)
    try:
        experiment_id = _prepare(address, asked_experiment())
        return Store(retrying(MlflowClient(tracking_uri=address.uri)), experiment_id)
    except (MlflowException, OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise RuntimeError(without_secrets(f"tracking store {address.uri} cannot be used: {error}")) from error


@functools.cache
def _prepare(address: Address, experiment: tuple[str, str]) -> str:
    """Done once in a process: schema, experiment (its id is returned), and an end to runs without a process."""
    _no_telemetry()
    with _one_at_a_time(address.sqlite_path):
        _make_whole(address)
        client = _first_client(address.uri)
        for old in moved_store.follow(address):
            print(f"the store was moved from {old}: its artifacts are read and written here", flush=True)
        _remove_encoded_folder(address.sqlite_path)
        name_default(client, address, project_root())
        experiment_id = open_experiment(client, address, *experiment)
        _write_ahead(address.sqlite_path)
    dead_runs.close_stale(client)
    return experiment_id


def _make_whole(address: Address) -> None:
    """Make a sqlite store's schema aside: what is killed meanwhile leaves no half of it, which MLflow could neither use nor mend."""
    path = address.sqlite_path
    if path is None or path.exists():
        return
    aside = path.with_name(f".{path.name}.making")
    for leftover in path.parent.glob(f"{glob.escape(aside.name)}*"):
        leftover.unlink()
    SqlAlchemyStore(sqlite_address(aside).uri, address.artifact_root).engine.dispose()
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


@contextlib.contextmanager
def _one_at_a_time(path: Path | None) -> Iterator[None]:
    """Hold the lock file beside a sqlite store; other stores look after themselves."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # some fifty migration lines would be the first thing a new user reads; one line says it as well
            print(f"making the tracking store {path}", flush=True)
        with quiet(SCHEMA_LOGGERS, logging.WARNING):
            yield


def _write_ahead(path: Path | None) -> None:
    if path is None:
        return
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
        if database.execute("pragma journal_mode").fetchone()[0] != "wal":
            database.execute("pragma journal_mode=wal")


def _remove_encoded_folder(path: Path | None) -> None:
    """An `mlflow run` without an address leaves an empty `my%20project` beside the project `my project`."""
    if path is not None and (encoded := quote(str(path.parent))) != str(path.parent):
        with contextlib.suppress(OSError):  # it is not there, or not empty
            os.removedirs(encoded)


def _quiet_libraries() -> None:
    """Notices of transformers repeat with every batch; what a user must know, our own errors say. MLflow shows a bar for each copied file."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _no_telemetry() -> None:
    """MLflow reports its use over the network unless it is switched off; this project is offline by default."""
    if os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true").lower() == "true":
        set_telemetry_client()
