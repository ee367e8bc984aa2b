"""Work of many threads done together: what arrives within a few milliseconds of each other and is of one kind shares a pass.

One worker thread takes the oldest waiting item and all others of its key, in the order they came. While it works the next ones
gather, so that under load nothing waits for a clock.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """An item that waits: items of one key may be worked on together."""

    key: Hashable
    item: Any
    arrived: float  # time.monotonic
    future: Future = dataclasses.field(default_factory=Future)


class MicroBatcher:
    """Batches items across threads.

    Args:
        work: key and items → results, in the order of the items; called by one thread only.
        window_s: how long the oldest item waits for company.
        max_batch: most items in one call.
    """

    def __init__(self, work: Callable[[Any, list[Any]], Sequence[Any]], window_s: float, max_batch: int) -> None:
        self.work, self.window_s, self.max_batch = work, window_s, max_batch
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False

    def submit(self, key: Hashable, item: Any) -> Future:
        """Queue an item; its future gets the result, or the exception that working on it alone raises.

        Raises:
            RuntimeError: after `close`.
        """
        job = Job(key, item, time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if self._worker is None:  # here, not in __init__: a thread does not survive a fork
                self._worker = threading.Thread(target=self._run, name="micro-batches", daemon=True)
                self._worker.start()
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish what waits and end the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join()

    def _run(self) -> None:
        while batch := self._next():
            self._settle([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _next(self) -> list[Job]:
        """The oldest job and its company; empty when closed and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return []
            deadline = self._waiting[0].arrived + self.window_s
            while len(self._waiting) < self.max_batch and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            key = self._waiting[0].key
            batch = [job for job in self._waiting if job.key == key][: self.max_batch]
            taken = set(map(id, batch))
            self._waiting = [job for job in self._waiting if id(job) not in taken]
            return batch

    def _settle(self, batch: list[Job]) -> None:
        """Results for all; where the batch fails each is tried alone, so that one bad item spoils no other's."""
        if not batch:
            return
        try:
            results = self.work(batch[0].key, [job.item for job in batch])
            for job, result in zip(batch, results, strict=True):
                job.future.set_result(result)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:
                if not job.future.done():
                    self._settle([job])
