"""One process at a time is in a block of a name; the lock ends with its process."""

import os
import signal
import time
from pathlib import Path

import pytest

from steps.tracking.locks import one_at_a_time


def enter(name: str, log: Path, holds_s: float) -> int:
    """A forked process that notes when it is in the block and when it leaves it."""
    if pid := os.fork():
        return pid
    with one_at_a_time(name), log.open("a") as file:
        file.write(f"in {name}\n")
        file.flush()
        time.sleep(holds_s)
        file.write(f"out {name}\n")
    os._exit(0)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path / "log"


def test_of_two_processes_one_waits_for_the_other(log: Path) -> None:
    for pid in [enter("register a/b", log, 0.2) for _ in range(3)]:
        os.waitpid(pid, 0)
    assert log.read_text().splitlines() == ["in register a/b", "out register a/b"] * 3


def test_other_names_do_not_wait_and_a_killed_holder_keeps_nobody(log: Path) -> None:
    held = enter("a", log, 60)
    while not log.exists() or not log.read_text():
        time.sleep(0.01)
    os.waitpid(enter("b", log, 0), 0)
    os.kill(held, signal.SIGKILL)
    os.waitpid(held, 0)
    os.waitpid(enter("a", log, 0), 0)
    assert log.read_text().splitlines() == ["in a", "in b", "out b", "in a", "out a"]
