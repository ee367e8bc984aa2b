"""Kills the second of several processes that share a step's work, once the step has left something to go on from."""

import contextlib
import time
from collections.abc import Callable

import psutil

from steps.tracking.store import unfinished_root

WAITS_S = 300


def rank(process: psutil.Process) -> str | None:
    """Which of the sharing processes it is, as whoever started them numbers them."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RANK")
    return None


def kill_second(killed: list[int], once: str) -> None:
    """Kill the second process with signal 9 and note its number.

    Args:
        once: as of `once_there`.
    """

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if rank(process) == "1":
                process.kill()
                killed.append(process.pid)

    once_there(once, kill, lambda: bool(killed))


def once_there(once: str, do: Callable[[], None], is_done: Callable[[], bool] = lambda: True) -> None:
    """Do something when the step has left something to go on from, until it is done.

    Args:
        once: files below unfinished work whose first one is waited for, as a pattern.
    """
    end = time.monotonic() + WAITS_S
    while time.monotonic() < end:
        time.sleep(0.02)
        if any(unfinished_root().rglob(once)):
            do()
            if is_done():
                return
