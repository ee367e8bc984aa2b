"""Work side by side, each piece in a process of its own: all end where one of them fails or is interrupted, or this process ends."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from mlflow.exceptions import MlflowException

from moe.progress import IN_LINES
from moe.training.processes import places
from steps.tracking.environment import environment
from steps.tracking.parents import below
from steps.tracking.processes import end_with, threads_of_each
from steps.tracking.runs import raise_terminated

Work = TypeVar("Work")
Found = TypeVar("Found")
GPUS = "CUDA_VISIBLE_DEVICES"
SAID_IN_A_LINE = (ValueError, RuntimeError, OSError, MlflowException)  # as `steps.tracking.runs.command` says them


def side_by_side(do: Callable[[Work], Found], works: Sequence[Work], parent_run_id: str | None, at_once: int) -> list[Found]:
    """What `do` finds for each, in their order; the next starts where one has ended.

    Args:
        do: a function of a module, as its arguments and what it gives are sent to other processes and back.
        parent_run_id: the run below which they show theirs; None where there is none.
        at_once: how many run at a time; each has its share of the cores and, where there are several, a GPU of its own.

    Raises:
        ValueError, RuntimeError, OSError, MlflowException: what `do` raised first.
        RuntimeError: a process ended without an answer.
    """
    waiting, found = list(enumerate(works)), dict[int, Found]()
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, work = waiting.pop(0)
                place = min(set(range(at_once)) - {each.place for each in running})
                running.append(_started(do, work, parent_run_id, number, place, at_once))
            for each in _ended(running):
                found[each.number] = _received(each.answers)
                each.process.join()
                running.remove(each)
    except BaseException:
        for each in running:
            each.process.terminate()
        raise
    finally:
        for each in running:
            each.process.join()
    return [found[number] for number in range(len(works))]


@dataclasses.dataclass(frozen=True)
class _Running:
    """A process at work: the number of its work, its place among those that run at once, and where it answers."""

    number: int
    place: int
    process: BaseProcess
    answers: "Connection[Any, Any]"


def _started(
    do: Callable[[Work], Found], work: Work, parent_run_id: str | None, number: int, place: int, at_once: int
) -> _Running:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, do, work, parent_run_id, os.getpid()))
    with environment(_share(place, at_once)):
        process.start()
    theirs.close()
    return _Running(number, place, process, ours)


def _ended(running: Sequence[_Running]) -> list[_Running]:
    """Waits until one has answered or has ended."""
    ready = wait([each.answers for each in running])
    return [each for each in running if each.answers in ready]


def _answer(answers: Connection, do: Callable[[Work], Found], work: Work, parent_run_id: str | None, waiting: int) -> None:
    """The whole of a process; `waiting` is the id of the one that waits for it."""
    signal.signal(signal.SIGTERM, raise_terminated)
    threading.Thread(target=end_with, args=[waiting], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), below(parent_run_id):
        try:
            found: Found | Exception = do(work)
        except SAID_IN_A_LINE as error:
            found = error
        answers.send(found)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to end


def _received(answers: "Connection[Any, Any]") -> Any:
    try:
        found = answers.recv()
    except EOFError:
        raise RuntimeError("a process ended without an answer: start the same command again") from None
    if isinstance(found, Exception):
        raise found
    return found


def _share(place: int, at_once: int) -> dict[str, str]:
    """What a process is told: to show its progress in lines, its share of the cores, and a GPU of its own where there are several."""
    most, what = places()
    given = {IN_LINES: "1", "OMP_NUM_THREADS": str(threads_of_each(at_once))}
    if what == "GPUs" and most > 1 and GPUS not in os.environ:
        given[GPUS] = str(place % most)
    return given
