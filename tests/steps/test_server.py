"""The tracking server, with PostgreSQL really started: chains at once lose nothing and double nothing, and a second start goes on."""

import collections
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from steps import server
from steps.tracking.metric_log import history
from steps.tracking.postgres import running
from steps.tracking.retries import with_retries
from steps.tracking.store import project_root
from tests.toys.chains import STAGES
from tests.toys.databases import ask, missing
from tests.toys.registry import toy_store

pytestmark = pytest.mark.slow
SEEDS = (7, 8, 9, 10)
LIMIT_S = 300.0
needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """`make server` on a folder while the block runs: its address."""
    port = free_port()
    command = [sys.executable, "-m", "steps.server", "--port", str(port), "--folder", str(folder), "--workers", "1"]
    process = subprocess.Popen(command, cwd=project_root(), start_new_session=True)
    uri, end = f"http://127.0.0.1:{port}", time.monotonic() + LIMIT_S
    try:
        while not answers(uri):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        yield uri
    finally:
        process.send_signal(signal.SIGINT)  # Ctrl-C
        status = process.wait(LIMIT_S)
    assert status == 0 and not answers(uri) and not (folder / "postgres/data/postmaster.pid").exists()


def answers(uri: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{uri}/health", timeout=5).ok
    return False


def run_chains(*chains: tuple[str, int]) -> None:
    words = [sys.executable, "-m", "tests.toys.chains", *(str(word) for chain in chains for word in chain)]
    with tempfile.TemporaryDirectory() as copies:  # what they fetch from the server
        given = {
            "MLFLOW_EXPERIMENT_NAME": "chains",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "TMPDIR": copies,
        }
        done = subprocess.run(words, cwd=project_root(), env=os.environ | given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


Points = collections.Counter[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Held:
    """What a store holds of the chains: every run, and how often each (metric, step) of it is there."""

    runs: list[Run]
    points: dict[str, Points]

    @property
    def mains(self) -> list[Run]:
        return [run for run in self.runs if run.data.tags["moe.step"] == "main"]

    def stages(self, main: Run) -> dict[str, str]:
        """Step → id of the run that this chain ran or reused."""
        return {
            key.rpartition(".")[2]: value for key, value in main.data.tags.items() if key.startswith(("moe.ran.", "moe.reused."))
        }

    def points_of(self, main: Run) -> dict[str, Points]:
        return {step: self.points[run_id] for step, run_id in self.stages(main).items()}


def read(uri: str) -> Held:
    client = MlflowClient(tracking_uri=uri)
    runs = list(client.search_runs([client.get_experiment_by_name("chains").experiment_id]))
    return Held(runs, {run.info.run_id: points(client, run.info.run_id) for run in runs})


def points(client: MlflowClient, run_id: str) -> Points:
    return Points((metric.key, metric.step) for metric in history(client, run_id))


def tag_at_once(uri: str) -> list[str]:
    """Set one new tag from several threads at the same moment; what went wrong."""
    client = MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("chains").experiment_id
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(with_retries, client.set_experiment_tag, number, "new", str(value)) for value in range(8)]
    return [str(call.exception()) for call in calls if call.exception()]


@dataclasses.dataclass(frozen=True)
class Found:
    """One chain that has a sqlite store to itself, several at once on the server, and what its folder held when it was stopped."""

    alone: Held
    at_once: Held
    faults: list[str]
    n_runs_after: int
    artifacts: list[str]


@pytest.fixture(scope="module")
def found(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    with toy_store(empty_store, tmp_path_factory.mktemp("alone") / "store") as store, tempfile.TemporaryDirectory() as made:
        alone, folder = f"sqlite:///{store / 'mlflow.db'}", Path(made) / "server"
        Path(made).chmod(0o755)  # as root, PostgreSQL runs as another user, who has to get there
        with served(folder) as uri:
            run_chains((alone, SEEDS[0]), *((uri, seed) for seed in SEEDS))
            at_once, faults = read(uri), tag_at_once(uri)
        with running(folder / "postgres") as address:
            ((n_runs,),) = ask(address, "select count(*) from runs")
        yield Found(
            read(alone),
            at_once,
            faults,
            n_runs,
            [path.parent.parent.name for path in folder.glob("artifacts/*/*/artifacts/gate")],
        )


@needs_postgres
def test_chains_at_once_hold_every_metric_once(found: Found) -> None:
    (main,) = found.alone.mains
    wanted = found.alone.points_of(main)
    assert sorted(wanted) == sorted(STAGES) and len(wanted["gate"]) > 10
    assert [found.at_once.points_of(each) for each in found.at_once.mains] == [wanted] * len(SEEDS)
    assert {n for each in found.at_once.points.values() for n in each.values()} == {1}


@needs_postgres
def test_chains_at_once_have_one_run_for_each_stage_that_they_ran(found: Found) -> None:
    ran = [value for each in found.at_once.mains for key, value in each.data.tags.items() if key.startswith("moe.ran.")]
    ids = {run.info.run_id for run in found.at_once.runs}
    assert len(ran) == len(set(ran)) and ids == {*ran, *(each.info.run_id for each in found.at_once.mains)}
    assert {run.info.status for run in found.at_once.runs} == {"FINISHED"}
    assert {value for each in found.at_once.mains for value in found.at_once.stages(each).values()} == set(ran)


@needs_postgres
def test_runs_and_artifacts_lie_in_the_folder_when_the_server_has_stopped(found: Found) -> None:
    gates = {run.info.run_id for run in found.at_once.runs if run.data.tags["moe.step"] == "gate"}
    assert len(gates) == len(SEEDS) and set(found.artifacts) == gates
    assert found.n_runs_after == len(found.at_once.runs)


@needs_postgres
def test_what_several_write_at_the_same_moment_is_written(found: Found) -> None:
    assert found.faults == []


def test_a_port_that_is_taken_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "NEEDS", ())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            server.main(["--port", str(port), "--folder", str(tmp_path / "server")])
    said = capsys.readouterr().err
    assert end.value.code == 1 and not (tmp_path / "server").exists()
    assert (
        said
        == f"server: port {port} of 127.0.0.1 cannot be listened on (Address already in use); make server PORT=… takes another\n"
    )


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "NEEDS", ("no_such_driver",))
    with pytest.raises(RuntimeError, match="^the server needs no_such_driver: pip install -r requirements-server.txt$"):
        server.serve(server.parser().parse_args(["--folder", str(tmp_path)]))
