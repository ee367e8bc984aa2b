"""Blocks of utterances dealt out to the processes: each block is done by one of them, and what fails twice is named once all others are done.

A block is whole batches as one process makes them, so that an utterance is computed beside the same others, and its result has the same
bits, however many processes there are.
"""

import contextlib
import dataclasses
import errno
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from moe.training import processes

ATTEMPTS = 2
FAULTS = (ValueError, RuntimeError, OSError, MemoryError)  # any other exception is a defect and stops the work
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # where nothing can be kept, nothing need be done
MARK = "begun_"
LOG = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why a block could not be done, in text: an exception would hold the batch in memory."""

    utterance_ids: tuple[str, ...]
    reason: str
    callstack: str = ""


def dealt(n_blocks: int) -> range:
    """The blocks of this process, by number: every n-th of n processes."""
    return range(processes.number(), n_blocks, processes.n_processes())


def in_order(own: Sequence[Value]) -> list[Value]:
    """What the processes made of the blocks dealt to each, in the order of all blocks."""
    shares = processes.gathered(list(own))
    return [shares[number % len(shares)][number // len(shares)] for number in range(sum(map(len, shares)))]


def do_each(blocks: Mapping[int, Sequence[str]], do: Callable[[int], None], folder: Path | None) -> None:
    """Do this process's blocks; where their results are kept in a folder, one that fails stops no other and is tried again at the end.

    Args:
        blocks: ids of the utterances of each block, by the block's number.
        do: does a block, in which no other process has a share.
        folder: also holds a mark of each block that is being worked on: one that twice kills its process is not begun again.

    Raises:
        RuntimeError: in every process, when all other blocks are done: the utterances of the blocks that failed twice, and why.
    """
    if folder is None:
        for number in blocks:
            with processes.alone():
                do(number)
        return
    folder.mkdir(parents=True, exist_ok=True)
    faults, waiting = dict[int, Fault](), list(blocks)
    for _ in range(ATTEMPTS):
        tried = {number: _fault(do, number, blocks[number], _mark(folder, number)) for number in waiting}
        faults = {number: fault for number, fault in tried.items() if fault}
        waiting = list(faults)
    for number in waiting:
        _mark(folder, number).unlink(missing_ok=True)  # the next start tries them again
    _refuse(list(faults.values()))


def _fault(do: Callable[[int], None], number: int, names: Sequence[str], mark: Path) -> Fault | None:
    """Why a block cannot be done; None where it is done."""
    if _n_begun(mark) >= ATTEMPTS:
        return Fault(tuple(names), "the process that worked on them was killed")
    try:
        with _marked(mark), processes.alone():
            do(number)
    except FAULTS as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        LOG.warning("%d utterances failed: %s", len(names), reason)
        return Fault(tuple(names), reason, traceback.format_exc())
    return None


def _mark(folder: Path, number: int) -> Path:
    return folder / f"{MARK}{number:06d}"


@contextlib.contextmanager
def _marked(mark: Path) -> Iterator[None]:
    """A mark that stays only where the process is killed inside the block; a process that works alone is not replaced and makes none."""
    if processes.n_processes() == 1:
        yield
        return
    mark.write_text("x" * (_n_begun(mark) + 1), encoding="ascii")
    try:
        yield
    finally:
        mark.unlink()


def _n_begun(mark: Path) -> int:
    return len(mark.read_text(encoding="ascii")) if mark.exists() else 0


def _refuse(own: Sequence[Fault]) -> None:
    faults = [each for share in processes.gathered(list(own)) for each in share]
    if not faults:
        return
    names = sorted(name for fault in faults for name in fault.utterance_ids)
    reasons = "; ".join(dict.fromkeys(fault.reason for fault in faults))
    raise RuntimeError(f"{len(names)} utterances failed {ATTEMPTS} times ({reasons}): {', '.join(names)}") from RuntimeError(
        faults[0].callstack
    )
