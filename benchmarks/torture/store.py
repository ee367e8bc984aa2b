"""Torture by disks and stores: full and read-only disks under each kind of file, and a tracking server that is away for a while."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from benchmarks.databases import copy_database
from benchmarks.torture.arena import ROOT, Arena, Child, assert_same, train
from benchmarks.torture.training import undisturbed
from steps.tracking.addresses import parse_address
from steps.tracking.experiments import open_experiment

DISK_MB = 24
STAGE = "experts"
LIMIT_S = 900.0
FULL = ("no space left", "disk is full")


class NotHere(RuntimeError):
    """What a row needs is not to be had on this machine."""


def disk_full_at_checkpoint(arena: Arena, seed: int) -> str:
    """Training goes on without new checkpoints, says so, and ends as undisturbed; the checkpoints before stay whole."""
    whole = undisturbed(arena, STAGE, 0)[0]
    with small_disk(arena.unfinished) as fill:
        child = arena.fork(train, STAGE, arena.ids())
        _until(lambda: _checkpoints(arena.unfinished), child)
        fill()
        found = child.value()
    assert_same(found, whole)
    said = found["tags"].get("moe.checkpoint_not_written", "")
    assert any(words in said.lower() for words in FULL) and "earlier ones stay" in said, f"not said: {said!r}"
    return said[:90]


def disk_full_at_artifact(arena: Arena, seed: int) -> str:
    """The step fails with a clear message; with space again it goes on in the same run and ends as undisturbed."""
    whole, name = undisturbed(arena, STAGE, 0)[0], f"full-{time.time_ns()}"
    number = open_experiment(MlflowClient(tracking_uri=arena.uri()), parse_address(arena.uri()), name, "")
    with small_disk(arena.folder / "mlruns" / number) as fill:
        message, found = _failed_and_gone_on(arena, fill, arena.unfinished, MLFLOW_EXPERIMENT_NAME=name)
        assert_same(found, whole)
        assert found["statuses"] == ["FINISHED"]
    return message


def disk_full_at_database(arena: Arena, seed: int) -> str:
    """The same where the store itself cannot write: metrics wait, the step fails at last, and goes on with space again."""
    whole, disk = undisturbed(arena, STAGE, 0)[0], arena.folder / "disk"
    with small_disk(disk) as fill:
        copy_database(arena.folder / "mlflow.db", disk / "mlflow.db")
        message, found = _failed_and_gone_on(arena, fill, disk, MLFLOW_TRACKING_URI=f"sqlite:///{disk / 'mlflow.db'}")
        assert_same(found, whole)
    return message


def _failed_and_gone_on(arena: Arena, fill: "Fill", unfinished: Path, **environment: str) -> tuple[str, dict[str, Any]]:
    """The message of a step whose disk was filled after its first checkpoint, and what it left once there was space again."""
    child = arena.fork(train, STAGE, arena.ids(), **environment)
    _until(lambda: _checkpoints(unfinished), child)
    fill()
    child.wait(LIMIT_S)
    assert child.status != 0, "the step ended well on a full disk"
    message = _complaint(child)
    fill.undo()
    found = arena.fork(train, STAGE, arena.ids(), **environment).value()
    assert found["tags"]["moe.n_starts"] == "2"
    return message, found


def read_only_folder(arena: Arena, seed: int) -> str:
    """A folder that cannot be written is named before any work."""
    with small_disk(arena.unfinished):
        _mount("-o", "remount,ro", str(arena.unfinished))
        child = arena.fork(train, STAGE, arena.ids())
        child.wait(LIMIT_S)
        said = child.said()
        assert child.status != 0 and str(arena.unfinished / STAGE) in said and "Read-only file system" in said, said[-500:]
    return said.strip().splitlines()[-1][:120].replace(str(arena.folder), "…")


def server_away(arena: Arena, seed: int, seconds: float) -> str:
    """A tracking server is stopped, or killed and started again, while a stage trains: it trains on, and no metric is missing."""
    whole = undisturbed(arena, STAGE, 0)[0]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(arena))
        child = arena.fork(train, STAGE, arena.ids(), MLFLOW_TRACKING_URI=server.uri)
        _until(lambda: _checkpoints(arena.folder.parent, ROOT / "mlruns" / "unfinished"), child)
        server.stop() if seed % 2 == 0 else server.kill()
        n_before, started = child.said().count("metrics wait"), time.monotonic()
        with contextlib.suppress(AssertionError):
            child.wait(seconds)
        _until(lambda: child.said().count("metrics wait") > n_before, child)  # on a busy machine later than the seconds asked for
        n_waits = child.said().count("metrics wait") - n_before
        server.go_on() if seed % 2 == 0 else server.start()
        away = time.monotonic() - started
        found = child.value(LIMIT_S)
    assert_same(found, whole)
    return f"server {'stopped' if seed % 2 == 0 else 'killed and started'} for {away:.0f} s, metrics waited {n_waits} times"


class Server:
    """An `mlflow server` on the arena's store."""

    def __init__(self, arena: Arena) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.arena = arena
        self.process: subprocess.Popen[bytes]  # once started
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.arena.uri(), "--workers", "1"]
        command += [
            "--default-artifact-root",
            (self.arena.folder / "mlruns").as_uri(),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
        with open(self.arena.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        _until(self._answers, None)

    def stop(self) -> None:
        """It takes connections and answers none."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stop`."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """It takes no connections."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        import requests

        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.uri}/health", timeout=2).ok
        return False


class Fill:
    """Fills a disk when called."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ballast"

    def __call__(self) -> None:
        with open(self.path, "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def undo(self) -> None:
        """Space again."""
        self.path.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Fill]:
    """A disk of a few megabytes in the place of a folder.

    Raises:
        NotHere: only root may mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder))
    try:
        yield Fill(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"no disk can be mounted here: {done.stderr.strip()}")


def _checkpoints(*folders: Path) -> bool:
    return any(True for folder in folders for _ in folder.rglob("work/**/update_*/manifest.json"))


def _complaint(child: Child) -> str:
    lines = [line for line in child.said().splitlines() if any(words in line.lower() for words in FULL)]
    assert lines, f"no word of the full disk: {child.said()[-800:]}"
    return lines[-1][:110]


def _until(condition: Callable[[], bool], child: Child | None) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end and (child is None or child.is_alive()), child.said()[-800:] if child else "never"
        time.sleep(0.01)
