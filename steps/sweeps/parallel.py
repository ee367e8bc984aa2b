"""Trials side by side, each in a process of its own: all end where one of them is interrupted or this process ends."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

from moe.training.processes import places
from steps.tracking.environment import environment
from steps.tracking.parents import below
from steps.tracking.processes import end_with, threads_of_each
from steps.tracking.runs import raise_terminated

Work = TypeVar("Work")
Found = TypeVar("Found")
GPUS = "CUDA_VISIBLE_DEVICES"


def side_by_side(do: Callable[[Work], Found], works: Sequence[Work], parent_run_id: str) -> list[Found]:
    """What `do` finds for each, all at once.

    Args:
        do: a function of a module, as its arguments and what it gives are sent to other processes and back.
        parent_run_id: the run below which they show theirs.

    Raises:
        RuntimeError: a process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    started = []
    try:
        for number, work in enumerate(works):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(theirs, do, work, parent_run_id, os.getpid()))
            with environment(_share(number, len(works))):
                process.start()
            theirs.close()
            started.append((process, ours))
        return [_received(ours) for _, ours in started]
    except BaseException:
        for process, _ in started:
            process.terminate()
        raise
    finally:
        for process, _ in started:
            process.join()


def _answer(answers: Connection, do: Callable[[Work], Found], work: Work, parent_run_id: str, waiting: int) -> None:
    """The whole of a process; `waiting` is the id of the one that waits for it."""
    signal.signal(signal.SIGTERM, raise_terminated)
    threading.Thread(target=end_with, args=[waiting], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), below(parent_run_id):
        answers.send(do(work))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to end


def _received(answers: "Connection[object, Found]") -> Found:
    try:
        return answers.recv()
    except EOFError:
        raise RuntimeError("a trial's process ended without an answer: start the same command again") from None


def _share(number: int, n_processes: int) -> dict[str, str]:
    """What a process is told: its share of the cores, and a GPU of its own where there are several."""
    most, what = places()
    given = {"OMP_NUM_THREADS": str(threads_of_each(n_processes))}
    if what == "GPUs" and most > 1 and GPUS not in os.environ:
        given[GPUS] = str(number % most)
    return given
