"""Runs of killed processes are marked at the next start; runs of live ones and of other hosts are left alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from steps.tracking import dead_runs
from steps.tracking.store import connect

TABLES = [name for name in ("/proc", "/no-proc-as-on-macos") if name != "/proc" or Path(name).is_dir()]


@pytest.fixture(params=TABLES, autouse=True)
def proc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Linux's table of processes where it is there, and without."""
    monkeypatch.setattr(dead_runs, "PROC", Path(request.param))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    yield process
    process.kill()
    process.wait()


def tags_of(process_id: int) -> dict[str, str]:
    start = dead_runs.process_start(process_id)
    assert start is not None
    return dead_runs.process_tags() | {dead_runs.PID_TAG: str(process_id), dead_runs.START_TAG: start}


def running_run(tags: dict[str, str]) -> tuple[MlflowClient, str]:
    found = connect()
    return found.client, found.client.create_run(found.experiment_id, tags=tags).info.run_id


@pytest.mark.usefixtures("store")
def test_a_run_whose_process_was_killed_is_marked_and_says_so(sleeper: subprocess.Popen) -> None:
    client, run_id = running_run(tags_of(sleeper.pid))
    assert dead_runs.close_stale(client) == []
    sleeper.kill()
    sleeper.wait()
    assert dead_runs.close_stale(client) == [run_id]
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and "process was gone" in run.data.tags[dead_runs.MESSAGE_TAG]
    assert dead_runs.close_stale(client) == []


@pytest.mark.usefixtures("store")
def test_a_zombie_counts_as_gone(sleeper: subprocess.Popen) -> None:
    """A killed child that nobody has waited for still has its /proc entry, and was taken for alive once (mlflow.md §8)."""
    client, run_id = running_run(tags_of(sleeper.pid))
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert dead_runs.close_stale(client) == [run_id]


@pytest.mark.usefixtures("store")
def test_a_new_process_with_a_recycled_id_is_not_the_old_one() -> None:
    client, run_id = running_run(dead_runs.process_tags() | {dead_runs.START_TAG: "another-boot/1"})
    assert dead_runs.close_stale(client) == [run_id]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("stopped", "status"), [("true", "KILLED"), ("false", "FAILED")])
def test_a_stopped_run_that_mlflow_run_calls_failed_is_killed_again(stopped: str, status: str) -> None:
    """`mlflow run` sets FAILED over the KILLED of a step that was stopped in it."""
    client, run_id = running_run(dead_runs.process_tags() | {dead_runs.STOPPED_TAG: stopped})
    client.set_terminated(run_id, "FAILED")
    dead_runs.close_stale(client)
    assert client.get_run(run_id).info.status == status


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "tags",
    [{}, {dead_runs.HOST_TAG: "elsewhere", dead_runs.PID_TAG: "1", dead_runs.START_TAG: "x"}, None],
    ids=["none", "host", "own"],
)
def test_runs_that_may_be_alive_are_left_running(tags: dict[str, str] | None) -> None:
    client, run_id = running_run(dead_runs.process_tags() if tags is None else tags)
    assert dead_runs.close_stale(client) == []
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_command_name_with_brackets_and_spaces_is_read_right(tmp_path: Path) -> None:
    script = tmp_path / "a) Z (b c"
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(script), "60"])
    try:
        assert dead_runs.process_start(process.pid).rpartition("/")[2].replace(".", "").isdigit()
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("store")
def test_a_run_in_a_container_with_this_hosts_name_is_left_alone() -> None:
    """`docker run --network host` gives a container the host's name; its process ids are its own."""
    tags = dead_runs.process_tags() | {dead_runs.START_TAG: "a-boot/1", dead_runs.NAMESPACE_TAG: "pid:[1]"}
    client, run_id = running_run(tags)
    assert dead_runs.close_stale(client) == [] and not dead_runs.is_here(tags)
    assert client.get_run(run_id).info.status == "RUNNING"
