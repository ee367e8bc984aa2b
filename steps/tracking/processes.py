"""A step whose work several processes share: one holds the run and waits, torchrun's agent in it starts the others, the first of them logs.

    python -m steps.experts --num_processes=2      opens the run, starts two of itself, ends the run when they have ended
      python -m steps.experts … (process 0)        does the work, and logs to that run
      python -m steps.experts … (process 1)        does the work, logs nothing and writes nothing

Each is the head of a session of its own, so that Ctrl-C reaches the one that waits, which sends all others SIGTERM once.
"""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
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
from steps.tracking.loggers import quiet
from steps.tracking.metric_log import MetricLog, history
from steps.tracking.resuming import OpenRun
from steps.tracking.step_run import StepRun
from steps.tracking.store import connect, project_root
from steps.tracking.work_folders import WorkFolder

TOLD = "MOE_PROCESS_OF"  # variable that tells a process whose work it shares
LEFT_TO_FIRST = {
    "export_dir": None, "push_to_hub": False, "hub_model_id": None, "hub_private": True, "report_to": NONE, "log_file": None, "no_plot": True,
}  # fmt: skip
STOPPED = (signal.SIGINT, signal.SIGTERM)
SHUTDOWN_S = 60  # for a process to end its update and write a checkpoint
MOST_REPLACED, SECOND_S = 3, 1.0
READS = ("get_", "search_", "list_", "download_")


class LostProcess(RuntimeError):
    """A process that was killed, and by which signal."""


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
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    try:
        try:
            processes.join()
            run(options)
        except Exception as error:
            _leave_word(error)
            sys.exit(1)
        processes.leave()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def start(run: StepRun, options: Options, num_processes: int) -> None:
    """Start the processes that share a run's work, and wait for them; one that is killed is replaced, and goes on from what is saved.

    Raises:
        RuntimeError: what went wrong first in any of them.
    """
    print(f"{run.step}: {num_processes} processes, threads of each: {threads_of_each(num_processes)}", flush=True)
    run.opened.metrics.finish()  # what waits for the store is the first process's from here on
    for n_left in reversed(range(MOST_REPLACED + 1)):
        try:
            _start(run, options, num_processes)
            return
        except LostProcess as error:
            if not n_left:
                raise
            print(f"{run.step}: {error}; the work goes on from what is saved", file=sys.stderr, flush=True)
            with contextlib.suppress(MlflowException):
                run.set_tags({"moe.replaced_process": str(error)})


def threads_of_each(num_processes: int) -> int:
    """Threads that each process computes with, where nobody says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, joblib.cpu_count() // num_processes))


def _start(run: StepRun, options: Options, num_processes: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    words = [f"--{name}={text}" for name, text in Options.as_parameters(options).items()]  # a step may log some of them otherwise
    with (
        tempfile.TemporaryDirectory() as folder,
        _told(run, num_processes),
        _one_signal(),
        quiet(_agent_loggers(), logging.CRITICAL),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=run.run_id,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="",
            shutdown_timeout=SHUTDOWN_S,
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", f"steps.{run.step}", *words)
        except ChildFailedError as error:
            raise _first_fault(error.failures, num_processes) from None


def _leave_word(error: Exception) -> None:
    """Write down what went wrong, for the one that waits."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if isinstance(error, RuntimeError):
        time.sleep(SECOND_S)  # another process may have ended and so broken what this one waited for: then SIGTERM comes now
    get_error_handler().record_exception(error)


def _first_fault(failures: dict[int, Any], num_processes: int) -> RuntimeError:
    """What went wrong first: those that were asked to end because of it count last."""
    asked = {128 + number for number in STOPPED} | {-number for number in STOPPED}
    number, failure = min(failures.items(), key=lambda item: (item[1].exitcode in asked, item[1].timestamp, item[0]))
    which = f"process {number} of {num_processes}"
    if failure.exitcode < 0:
        return LostProcess(f"{which} was killed by {failure.signal_name()}")
    told = failure.error_file_data.get("message", {})
    if not isinstance(told, dict) or "extraInfo" not in told:
        return RuntimeError(f"{which} ended with exit code {failure.exitcode}")
    kind, _, text = told["message"].partition(": ")
    said = text if kind in ("ValueError", "RuntimeError", "OSError") else f"{which}: {told['message']}"
    fault = RuntimeError(said)
    fault.__cause__ = RuntimeError(told["extraInfo"]["py_callstack"])
    return fault


@contextlib.contextmanager
def _told(run: StepRun, num_processes: int) -> Iterator[None]:
    """The environment of the processes that are started in this block."""
    told = {"run_id": run.run_id, "folder": str(run.opened.work_folder.folder), "name": run.name, "plots": run.plots}
    path = os.pathsep.join(filter(None, [str(project_root()), os.environ.get("PYTHONPATH")]))
    given = {TOLD: json.dumps(told), "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads_of_each(num_processes))}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def _one_signal() -> Iterator[None]:
    """In this block the first SIGTERM or Ctrl-C does what it would have done, and no second one cuts the ending short."""
    handlers = {number: signal.getsignal(number) for number in STOPPED}
    if threading.current_thread() is not threading.main_thread() or not all(map(callable, handlers.values())):
        yield
        return

    def came(number: int, frame: FrameType | None) -> None:
        for each in STOPPED:
            signal.signal(each, signal.SIG_IGN)
        cast(Callable[..., None], handlers[signal.Signals(number)])(number, frame)

    for number in STOPPED:
        signal.signal(number, came)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _agent_loggers() -> list[str]:
    """Of the agent; of what it logs of ends the step says one line."""
    return [name for name in logging.Logger.manager.loggerDict if name.startswith("torch.distributed.")]


def end_with(parent: int) -> None:
    """End this process, as by SIGTERM, once the one that waits for it is gone."""
    while os.getppid() == parent:
        time.sleep(SECOND_S)
    os.kill(os.getpid(), signal.SIGTERM)
