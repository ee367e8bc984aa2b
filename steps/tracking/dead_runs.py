"""Runs whose process is gone: a killed step cannot mark its own run, so the next start does.

Every run carries the host, the process id and the start time of that process; together they name one process for ever, so a new process
with a recycled id is not taken for the old one. Linux counts the start time from boot, which no change of the clock moves; elsewhere, as on
macOS, it is the time of day that psutil reads. Runs of other hosts are left alone: nothing is known about them. So are those of a container
that has this host's name but processes of its own.
"""

import contextlib
import os
import socket
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.tracking.experiments import every_experiment

HOST_TAG, PID_TAG, START_TAG, NAMESPACE_TAG = "moe.host", "moe.pid", "moe.process_start", "moe.pid_namespace"
MESSAGE_TAG = "moe.message"
STOPPED_TAG = "moe.stopped"
GONE = "the process was gone (killed, or the machine stopped); marked at the next start"
PROC = Path("/proc")


def process_tags() -> dict[str, str]:
    """Tags that name this process."""
    start = process_start(os.getpid()) or "unknown"
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid()), START_TAG: start, NAMESPACE_TAG: pid_namespace()}


def pid_namespace() -> str:
    """What process ids count in: a container has its own, whatever it is called; empty where the system has no such thing."""
    with contextlib.suppress(OSError):
        return os.readlink(PROC / "self/ns/pid")
    return ""


def process_start(pid: int) -> str | None:
    """What tells a live process from all others with its id; None where there is none, or only a zombie."""
    return _linux_start(pid) if PROC.is_dir() else _start_elsewhere(pid)


def _linux_start(pid: int) -> str | None:
    """Boot id and start time in clock ticks since boot."""
    try:
        status = (PROC / str(pid) / "stat").read_text()
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # the command's name, in brackets before these, may hold anything
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_ticks}"


def _start_elsewhere(pid: int) -> str | None:
    """Start time in seconds since 1970."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.3f}"
    except psutil.Error:
        return None


def is_here(tags: dict[str, str]) -> bool:
    """Whether these tags name a process of this host, and of this container where there are some."""
    return tags.get(HOST_TAG) == socket.gethostname() and tags.get(NAMESPACE_TAG, pid_namespace()) == pid_namespace()


def is_gone(tags: dict[str, str]) -> bool:
    """Whether the process these tags name has certainly ended; False where it cannot be known."""
    if not is_here(tags) or not tags.get(PID_TAG, "").isdigit():
        return False
    return tags.get(START_TAG) != "unknown" and process_start(int(tags[PID_TAG])) != tags.get(START_TAG)


def close_stale(client: MlflowClient) -> list[str]:
    """Mark every RUNNING run of this host whose process has ended as KILLED; returns their ids.

    A run that Ctrl-C or SIGTERM ended has marked itself KILLED, but an `mlflow run` above it calls it FAILED: that is put right too.
    """
    closed = [run.info.run_id for run in _runs_here(client, "attributes.status = 'RUNNING'") if is_gone(run.data.tags)]
    for run_id in closed:
        client.set_tag(run_id, MESSAGE_TAG, GONE)
        client.set_terminated(run_id, "KILLED")
        print(f"run {run_id} was left RUNNING: {GONE}", flush=True)
    for run in _runs_here(client, f"attributes.status = 'FAILED' and tags.`{STOPPED_TAG}` = 'true'"):
        client.set_terminated(run.info.run_id, "KILLED", end_time=run.info.end_time)
    return closed


def close_own(client: MlflowClient) -> None:
    """Mark every RUNNING run of this process as KILLED: the signal may have come between the making of a run and its use."""
    for run in _runs_here(client, "attributes.status = 'RUNNING'"):
        if process_tags().items() <= run.data.tags.items():
            client.set_terminated(run.info.run_id, "KILLED")


def _runs_here(client: MlflowClient, condition: str) -> list[Run]:
    host = socket.gethostname().replace("'", "")
    return client.search_runs(every_experiment(client), f"{condition} and tags.`{HOST_TAG}` = '{host}'")
