"""Sqlite stores of benchmarks whose rows share what comes before their trainings."""

import contextlib
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from steps.tracking.store import connect


def copy_database(source: Path, target: Path) -> None:
    """Copy a store with what still lies in its write-ahead log."""
    with contextlib.closing(sqlite3.connect(source)) as ours, contextlib.closing(sqlite3.connect(target)) as theirs:
        ours.backup(theirs)


def shared_database(folder: Path, name: str, make: Sequence[str]) -> Path:
    """The store `name.db` that rows start from; the first process has it made, and the others wait.

    Args:
        make: module and arguments of the command that fills it; where `MLFLOW_TRACKING_URI` points.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, aside = folder / f"{name}.db", folder / f"making-{name}.db"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            subprocess.run([sys.executable, "-m", *make], check=True, env={**os.environ, "MLFLOW_TRACKING_URI": address(aside)})
            copied = aside.with_suffix(".copied")
            copy_database(aside, copied)
            copied.rename(path)
            for left in folder.glob(f"{aside.name}*"):
                left.unlink()
    return path


def start_from(shared: Path, path: Path) -> None:
    """Use a copy of a shared store from now on."""
    copy_database(shared, path)
    os.environ["MLFLOW_TRACKING_URI"] = address(path)
    connect()


def remove_database(path: Path) -> None:
    """Remove a store and what sqlite and MLflow keep beside it."""
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


def address(path: Path) -> str:
    """A store's address for MLflow."""
    return f"sqlite:///{path.resolve()}"
