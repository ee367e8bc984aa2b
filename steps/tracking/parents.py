"""The run that a step's run is shown below: the one that is open in this process, or one that another process holds."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import mlflow

_HELD_ELSEWHERE = ContextVar[str | None]("held_elsewhere", default=None)


def parent_id() -> str | None:
    """Its id; None where a step runs by itself."""
    active = mlflow.active_run()
    return _HELD_ELSEWHERE.get() if active is None else active.info.run_id


@contextlib.contextmanager
def below(run_id: str | None) -> Iterator[None]:
    """In this block runs are shown below one that another process holds."""
    before = _HELD_ELSEWHERE.set(run_id)
    try:
        yield
    finally:
        _HELD_ELSEWHERE.reset(before)
