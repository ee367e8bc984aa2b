"""A step whose work several processes share: one holds the run and waits, torchrun or Ray starts the others, the first of them logs.

    python -m steps.experts --num_processes=2      opens the run, starts two of itself, ends the run when they have ended
      python -m steps.experts … (process 0)        does the work, and logs to that run
      python -m steps.experts … (process 1)        does the work, logs nothing and writes nothing

Each is the head of a session of its own, so that Ctrl-C reaches the one that waits, which sends all others SIGTERM once.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import joblib
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from moe.options import NONE, Options, OptionsType
from moe.training import processes
from steps.tracking import placement, torchrun
from steps.tracking.ends import STOPPED, LostProcess, first_fault
from steps.tracking.environment import environment
from steps.tracking.metric_log import MetricLog, history
from steps.tracking.node_process import WAITING
from steps.tracking.resuming import OpenRun
from steps.tracking.step_run import StepRun
from steps.tracking.store import connect, project_root
from steps.tracking.work_folders import WorkFolder

TOLD = "MOE_PROCESS_OF"  # variable that tells a process whose work it shares
LEFT_TO_FIRST = {
    "export_dir": None, "push_to_hub": False, "hub_model_id": None, "hub_private": True, "report_to": NONE, "log_file": None, "no_plot": True,
}  # fmt: skip
SHUTDOWN_S = 60  # for a process to end its update and write a checkpoint
MOST_REPLACED, SECOND_S = 3, 1.0
READS = ("get_", "search_", "list_", "download_")


class ReadingClient:
    """A client of a store that writes nothing."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name) if name.startswith(READS) else lambda *_, **__: None


def is_told() -> bool:
    """Whether this process shares the work of a step that another one holds."""
    return TOLD in os.environ


def join_run(step: str) -> StepRun:
    """The run whose work this process shares, of which the first writes and all others only read."""
    told, store, is_first = json.loads(os.environ[TOLD]), connect(), processes.number() == 0
    client = store.client if is_first else cast(MlflowClient, ReadingClient(store.client))
    folder = WorkFolder(Path(told["folder"]))
    held = frozenset((metric.key, metric.step) for metric in history(store.client, told["run_id"])) if is_first else frozenset()
    metrics = MetricLog(client, told["run_id"], folder.pending_path if is_first else None, held)
    return StepRun(client, OpenRun(told["run_id"], folder, metrics), step, told["name"], told["plots"] and is_first)


def share(options: OptionsType) -> OptionsType:
    """The options of this process: what leaves the run is the first's."""
    left = {name: value for name, value in LEFT_TO_FIRST.items() if hasattr(options, name)}
    return options if processes.number() == 0 else dataclasses.replace(options, **left)


def work_as_told(run: Callable[[OptionsType], str], options: OptionsType) -> None:
    """Share the work and end the process; what goes wrong is left for the one that waits, which says it."""
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # it ends with the process
    with_parent = signal.SIGKILL if json.loads(os.environ[TOLD])["placed"] else signal.SIGTERM
    try:
        threading.Thread(target=end_with, args=[int(os.environ[WAITING]), with_parent], daemon=True).start()
        try:
            processes.join()
            run(options)
        except Exception as error:
            _leave_word(error)
            sys.exit(1)
        processes.leave()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def start(run: StepRun, options: Options, asked: processes.ProcessOptions) -> None:
    """Start the processes that share a run's work, and wait for them; one that is killed is replaced, and goes on from what is saved.

    Raises:
        RuntimeError: what went wrong first in any of them.
    """
    where = f" on cluster={asked.cluster}" if asked.is_placed else ""
    print(f"{run.step}: {asked.num_processes} processes{where}, threads of each: {_threads(asked)}", flush=True)
    run.opened.metrics.finish()  # what waits for the store is the first process's from here on
    for n_left in reversed(range(MOST_REPLACED + 1)):
        try:
            _start(run, options, asked)
            return
        except LostProcess as error:
            if not n_left:
                raise
            print(f"{run.step}: {error}; the work goes on from what is saved", file=sys.stderr, flush=True)
            with contextlib.suppress(MlflowException):
                run.set_tags({"moe.replaced_process": str(error)})


def threads_of_each(num_processes: int) -> int:
    """Threads that each process of this machine computes with, where nobody says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, joblib.cpu_count() // num_processes))


def _threads(asked: processes.ProcessOptions) -> int:
    """Threads that each process computes with, here or on a cluster, where nobody says otherwise."""
    if asked.is_placed:
        return int(os.environ.get("OMP_NUM_THREADS") or asked.cpus_per_process)
    return threads_of_each(asked.num_processes)


def _start(run: StepRun, options: Options, asked: processes.ProcessOptions) -> None:
    words = ["-m", f"steps.{run.step}"]
    words += [
        f"--{name}={text}" for name, text in Options.as_parameters(options).items()
    ]  # a step may log some of them otherwise
    with environment(_told(run, asked)), _one_signal():
        if asked.is_placed:
            ends = placement.run_together(run.step, words, asked, run.opened.work_folder.folder, SHUTDOWN_S)
        else:
            ends = torchrun.run_together(run.run_id, words, asked.num_processes, SHUTDOWN_S)
    if ends:
        raise first_fault(ends, asked.num_processes)


def _leave_word(error: Exception) -> None:
    """Write down what went wrong, for the one that waits."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if isinstance(error, RuntimeError):
        time.sleep(SECOND_S)  # another process may have ended and so broken what this one waited for: then SIGTERM comes now
    get_error_handler().record_exception(error)


def _told(run: StepRun, asked: processes.ProcessOptions) -> dict[str, str]:
    """What the processes that are started are told."""
    told = {"run_id": run.run_id, "folder": str(run.opened.work_folder.folder), "name": run.name, "plots": run.plots}
    told["placed"] = asked.is_placed
    path = os.pathsep.join(filter(None, [str(project_root()), os.environ.get("PYTHONPATH")]))
    given = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(_threads(asked))}
    return given | {TOLD: json.dumps(told), WAITING: str(os.getpid())}  # on a cluster another one waits, which says so itself


@contextlib.contextmanager
def _one_signal() -> Iterator[None]:
    """In this block the first SIGTERM or Ctrl-C does what it would have done, and no second one cuts the ending short."""
    handlers = {number: signal.getsignal(number) for number in STOPPED}
    if threading.current_thread() is not threading.main_thread() or not all(map(callable, handlers.values())):
        yield
        return

    def came(number: int, frame: FrameType | None) -> None:
        for each in STOPPED:
            signal.signal(each, lambda *_: None)  # to ignore one that is on its way already, Python prints an error
        cast(Callable[..., None], handlers[signal.Signals(number)])(number, frame)

    for number in STOPPED:
        signal.signal(number, came)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with(parent: int, number: signal.Signals = signal.SIGTERM, shutdown_s: float = SHUTDOWN_S) -> None:
    """End this process by a signal, once the one that waits for it is gone, and kill it where it has not ended some seconds later.

    Args:
        parent: its process id, from whoever started this one: where it was gone before this one could ask, nobody knows it here.
        number: SIGTERM lets it save its state; not on a cluster, where others may be started in its place meanwhile.
    """
    while os.getppid() == parent:
        time.sleep(SECOND_S)
    os.kill(os.getpid(), number)
    time.sleep(shutdown_s)
    os.kill(os.getpid(), signal.SIGKILL)  # who waits within torch for other processes hears no SIGTERM
