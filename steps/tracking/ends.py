"""How the processes that share a step's work ended, and what went wrong first."""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

STOPPED = (signal.SIGINT, signal.SIGTERM)


class LostProcess(RuntimeError):
    """A process that was killed, and by which signal, or that went with its node."""


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended."""

    number: int
    exit_code: int  # of one that was killed, the signal below zero
    at: float  # seconds, on one clock for all of them
    told: Any = None  # what it wrote down of its error, as torch's error handler does
    went_with: str = ""  # what it was lost with, where nobody saw it end


def first_fault(ends: Sequence[End], num_processes: int) -> RuntimeError:
    """What went wrong first: those that were asked to end because of it count last."""
    asked = {128 + number for number in STOPPED} | {-number for number in STOPPED}
    first = min(ends, key=lambda end: (end.exit_code in asked, end.at, end.number))
    which = f"process {first.number} of {num_processes}"
    if first.went_with:
        return LostProcess(f"{which} was lost with {first.went_with}")
    if first.exit_code < 0:
        return LostProcess(f"{which} was killed by {_name_of(-first.exit_code)}")
    told = first.told.get("message", {}) if isinstance(first.told, dict) else {}
    if not isinstance(told, dict) or "extraInfo" not in told:
        return RuntimeError(f"{which} ended with exit code {first.exit_code}")
    kind, _, text = told["message"].partition(": ")
    said = text if kind in ("ValueError", "RuntimeError", "OSError") else f"{which}: {told['message']}"
    fault = RuntimeError(said)
    fault.__cause__ = RuntimeError(told["extraInfo"]["py_callstack"])
    return fault


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
