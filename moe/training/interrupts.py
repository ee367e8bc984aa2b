"""SIGTERM and Ctrl-C held back until a training has saved its state; then they do what they would have done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """A request to stop the training.

    Attributes:
        wished: the signal that came; None while there is none.
        may_interrupt: whether a signal takes effect at once, as where there is no update to be finished.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.may_interrupt = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the signals back in this block; only a process's main thread can, and what is ignored stays ignored."""
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
        for number in self._before:
            signal.signal(number, self._came)
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block a signal takes effect at once."""
        self.may_interrupt = True
        try:
            if self.requested is not None:
                self.raise_now()
            yield
        finally:
            self.may_interrupt = False

    def raise_now(self) -> None:
        """Do what the signal would have done, usually to raise; returns where it would have done nothing."""
        self._release()
        signal.raise_signal(self.requested or signal.SIGTERM)

    def _came(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested is not None, number
        if again or self.may_interrupt:  # a second signal does not wait
            self.raise_now()

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
