"""SIGTERM and Ctrl-C held back until a training has saved its state; then they do what they would have done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A wish to stop.

    Attributes:
        wished: the signal that came; None while nobody wishes to stop.
        may_interrupt: whether a signal takes effect at once, as where there is no update to be finished.
    """

    def __init__(self) -> None:
        self.wished: int | None = None
        self.may_interrupt = False
        self._before: dict[int, object] = {}

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
            if self.wished is not None:
                self.obey()
            yield
        finally:
            self.may_interrupt = False

    def obey(self) -> None:
        """Do what the signal would have done, usually to raise; returns where it would have done nothing."""
        self._release()
        signal.raise_signal(self.wished or signal.SIGTERM)

    def _came(self, number: int, frame: FrameType | None) -> None:
        again, self.wished = self.wished is not None, number
        if again or self.may_interrupt:  # who asks twice does not want to wait
            self.obey()

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
