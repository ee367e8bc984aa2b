"""Unfinished work: a folder for each step that has begun and not FINISHED, so that the next start goes on where this one stops.

    <beside the artifacts>/unfinished/<step>-<fingerprint>/    run.json (the run it belongs to)   lock   pending.jsonl   work/

The lock is the process's own and ends with it, however it ends; a forked loader does not hold it. A second process of the same step
finds the folder locked and does not wait: it starts a run of its own in `<step>-<fingerprint>-2`. What other options or other code
left is removed by the step's first start after `MAX_AGE_DAYS` days without a change.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from moe.files import read_json, write_json

RUN, LOCK, PENDING, WORK, DAMAGED = "run.json", "lock", "pending.jsonl", "work", "damaged"
N_DIGITS = 32
MAX_AGE_DAYS = 30
DAY_S = 24 * 3600
_CLAIMED: set[Path] = set()  # a process's own locks do not stop itself


@dataclasses.dataclass(frozen=True)
class WorkFolder:
    """A claimed folder; `close` lets go of it and `discard` of what is in it. Without a lock another process has claimed it."""

    folder: Path
    lock: IO[str] | None = None

    @property
    def run_id(self) -> str | None:
        """The run that the work in the folder belongs to; None where there is none yet."""
        return self._noted("run_id")

    @property
    def token(self) -> str | None:
        """What a run carries that was to be made for the folder, should it not have been noted any more."""
        return self._noted("token")

    @property
    def work_dir(self) -> Path:
        """Where the step keeps its own files; made on demand."""
        path = self.folder / WORK
        path.mkdir(exist_ok=True)
        return path

    @property
    def pending_path(self) -> Path:
        """Metrics that the store has not taken yet."""
        return self.folder / PENDING

    def announce(self) -> str:
        """Note that a run will be made, and the token by which it will be known."""
        token = uuid.uuid4().hex
        write_json(self.folder / RUN, {"run_id": None, "token": token})
        return token

    def belongs_to(self, run_id: str) -> None:
        """Note the run; written once, before any work."""
        write_json(self.folder / RUN, {"run_id": run_id, "token": self.token})

    def discard(self) -> None:
        """Remove all work; the folder stays claimed."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self, finished: bool) -> None:
        """Let go of the folder; a finished step leaves none, but for what it found damaged, which is kept for inspection."""
        if finished:
            self._put_aside()
            shutil.rmtree(self.folder, ignore_errors=True)
        _CLAIMED.discard(self.folder)
        if self.lock is not None:
            self.lock.close()

    def _noted(self, key: str) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(read_json(self.folder / RUN)[key])
        return None

    def _put_aside(self) -> None:
        kept = self.folder.parent / DAMAGED / f"{self.folder.name}-{self.run_id}"
        for path in sorted(self.folder.rglob(f"{DAMAGED}_*")):
            kept.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                shutil.move(path, kept / path.name)


def claim(root: Path, step: str, digest: str, is_taken: Callable[["WorkFolder"], bool] = lambda found: False) -> WorkFolder:
    """The first folder of this step and fingerprint that no live process has claimed.

    Args:
        is_taken: whether a folder without a lock belongs to somebody nevertheless, as to another machine.

    Raises:
        RuntimeError: nothing can be written there.
    """
    stem = f"{step}-{digest[:N_DIGITS]}"
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            lock = _locked(folder)
        except OSError as error:
            raise RuntimeError(f"unfinished work cannot be kept in {folder}: {error.strerror or error}") from error
        if lock is None:
            continue
        _CLAIMED.add(folder)
        found = WorkFolder(folder, lock)
        if not is_taken(found):
            _prune(root, step, stem)
            return found
        found.close(finished=False)
    raise AssertionError("counting does not end")


def _prune(root: Path, step: str, stem: str) -> None:
    """Remove old folders of a step that no process holds, but for those of the fingerprint `stem`."""
    for folder in sorted(root.glob(f"{step}-*")):
        with contextlib.suppress(OSError):  # another process was faster; what cannot be removed must not end the step
            if folder.name.startswith(stem) or not _is_old(
                folder
            ):  # a young one is not locked even for a moment: its step may start now
                continue
            if (lock := _locked_as_it_is(folder)) is None:
                continue
            with lock:
                if _is_old(folder):  # still: nobody worked in it before we had the lock
                    aside = folder.rename(folder.with_name(f"{folder.name}-old"))  # whole, so that nobody claims half of it
                    shutil.rmtree(aside)
                    print(f"unfinished work of {folder.name}, unchanged for {MAX_AGE_DAYS} days, was removed", flush=True)


def _is_old(folder: Path) -> bool:
    changed = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - changed > MAX_AGE_DAYS * DAY_S


def _locked(folder: Path) -> IO[str] | None:
    """The open lock file of a folder that is made on demand; None where another process, or a step around this one, holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its holder finished and removed the folder between two calls
            return _locked_as_it_is(folder)


def _locked_as_it_is(folder: Path) -> IO[str] | None:
    """The same for a folder that is there.

    Raises:
        FileNotFoundError: its holder finished and removed it.
    """
    if folder in _CLAIMED:
        return None
    lock = open(folder / LOCK, "a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ in how they call it
        lock.close()
        return None
    if _is_there(folder / LOCK, lock):
        return lock
    lock.close()
    raise FileNotFoundError(folder)


def _is_there(path: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
