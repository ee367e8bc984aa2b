"""Torture of trainings that two processes share, by torchrun and on two nodes of a Ray cluster: one of them is killed, or its node removed.

Nothing is started again from outside: the step itself replaces what was lost, and goes on in the same run.
"""

import contextlib
import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.torture.arena import Arena, Child, assert_same, train
from benchmarks.torture.store import NotHere
from moe.training.checkpoints import MANIFEST, PREFIX

STAGE = "experts"
LONGER = {"expert_epochs": 8, "num_processes": 2}
N_TRIES = 6
LIMIT_S = 1800.0
_undisturbed: dict[bool, tuple[dict[str, Any], float]] = {}


def killed_of_two(arena: Arena, seed: int) -> str:
    """kill -9 of one of two processes of this machine at a random moment of training."""
    return _disturbed(arena, seed, False, lambda: _kill_one(seed))


def killed_of_placed(arena: Arena, seed: int) -> str:
    """The same where Ray has placed them on two nodes."""
    with _two_nodes():
        return _disturbed(arena, seed, True, lambda: _kill_one(seed))


def removed_node(arena: Arena, seed: int) -> str:
    """One of two nodes is removed, with the process on it, and another one comes."""
    with _two_nodes() as nodes:

        def remove() -> str:
            nodes.replace_second()
            return "node removed"

        return _disturbed(arena, seed, True, remove)


def undisturbed(arena: Arena, placed: bool) -> tuple[dict[str, Any], float]:
    """What two processes leave when nothing happens, and the seconds from their first checkpoint to the end."""
    if placed not in _undisturbed:
        child = _start(arena, placed)
        _until_first_checkpoint(arena, child)
        began = time.monotonic()
        found = child.value(LIMIT_S)
        _undisturbed[placed] = found, time.monotonic() - began
    return _undisturbed[placed]


def _disturbed(arena: Arena, seed: int, placed: bool, disturb: Callable[[], str]) -> str:
    """Something happens at a random moment after the first checkpoint: the same bits as undisturbed, in one run, FINISHED."""
    whole, seconds = undisturbed(arena, placed)
    moment = random.Random(f"{placed}/{seed}").uniform(0.0, 1.0) * seconds
    for _ in range(N_TRIES):
        child = _start(arena, placed)
        _until_first_checkpoint(arena, child)
        time.sleep(moment)
        done = disturb() if _working() else ""
        found = child.value(LIMIT_S)
        assert_same(found, whole)
        said = found["tags"].get("moe.replaced_process", "")
        if said:
            assert not _working(), "processes are left over"
            return f"{done} {moment:.1f} of {seconds:.1f} s after the first checkpoint: {said}, {found['tags'].get('moe.resumed', '')}"
        moment *= 0.7
    raise AssertionError("the training had ended before every disturbance")


def _start(arena: Arena, placed: bool) -> Child:
    return arena.fork(_train, arena.ids(), {"cluster": "auto"} if placed else {})


def _train(ids: dict[str, str], where: dict[str, Any]) -> dict[str, Any]:
    return train(STAGE, ids, **LONGER, **where)


def _until_first_checkpoint(arena: Arena, child: Child) -> None:
    end = time.monotonic() + LIMIT_S
    while not any(arena.unfinished.glob(f"{STAGE}-*/work/**/{PREFIX}*/{MANIFEST}")):
        assert child.is_alive() and time.monotonic() < end, f"no checkpoint: {child.said()[-1500:]}"
        time.sleep(0.02)


def _kill_one(seed: int) -> str:
    rank = random.Random(f"rank/{seed}").choice("01")
    for process in _working():
        if _rank(process) == rank:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return f"process {rank} killed"


def _working() -> list[psutil.Process]:
    """The processes that share the step's work."""
    return [process for process in psutil.Process().children(recursive=True) if _rank(process) is not None]


def _rank(process: psutil.Process) -> str | None:
    """Which of them it is; None for any other process, also for one that has just ended."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RANK") if process.status() != psutil.STATUS_ZOMBIE else None
    return None


@contextlib.contextmanager
def _two_nodes() -> Iterator[Any]:
    """A fresh cluster for a trial: what a removed node leaves behind belongs to none but it."""
    if not importlib.util.find_spec("ray"):
        raise NotHere("needs requirements-cluster.txt")
    from tests.toys.two_nodes import two_nodes

    with two_nodes() as nodes:
        yield nodes
