"""Shared by all tests: threads, examples, and a tracking store of one's own.

One thread, unless OMP_NUM_THREADS says otherwise: small toys gain nothing from more, and two processes share two cores. Whatever the
number, the tests hold: nothing here expects the same bits of two different computations.

Making MLflow's schema takes seconds, so it is made once and copied for each test.
"""

import contextlib
import gc
import importlib.util
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch or a BLAS is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside other work two threads that wait in a loop take ten times as long
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # on the CPU also where there is a GPU, unless one is named
os.environ["COLUMNS"] = "160"  # what is printed must not depend on the terminal
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before mlflow is loaded
os.environ.setdefault("MPLBACKEND", "agg")

# the same examples on every machine, however slow; others with `pytest --hypothesis-profile=default`
settings.register_profile("anywhere", deadline=None, derandomize=True)
settings.load_profile("anywhere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that processes that share the suite end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Encoded audio by its size: some encoders write the time into it, and processes that share the suite must agree on names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What is loaded by now is left out of garbage collection: each training of a toy collects, and the libraries alone take it half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with schema and experiment, to be copied."""
    from steps.tracking.store import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        _forget_environment(patch)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        connect()
        _let_go()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a tracking store of the test's own; `steps.tracking.store.connect()` connects to it, artifacts lie below it."""
    folder = tmp_path / "store"
    folder.mkdir()
    with (
        contextlib.closing(sqlite3.connect(empty_store)) as source,
        contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as copy,
    ):
        source.backup(copy)
        query = "update experiments set artifact_location = replace(artifact_location, ?, ?)"
        copy.execute(query, (str(empty_store.parent), str(folder)))
        copy.commit()
    _forget_environment(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    yield folder
    _let_go()


@pytest.fixture
def toy_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Writes source as `steps/NAME.py` of a project of its own, imports it afresh and returns the module."""
    from steps.tracking.fingerprint import forget_code

    folder = tmp_path / "project" / "steps"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else a second version of the same second would not be read

    def make(name: str, source: str) -> ModuleType:
        path = folder / f"{name}.py"
        path.write_text(source)
        specification = importlib.util.spec_from_file_location(f"toy_steps.{name}", path)
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, specification.name, module)
        forget_code()
        specification.loader.exec_module(module)
        return module

    return make


def _forget_environment(patch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        patch.delenv(name, raising=False)


def _let_go() -> None:
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
