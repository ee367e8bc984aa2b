"""Loggers of libraries, quieter for a while."""

import contextlib
import logging
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def quiet(names: Iterable[str], level: int) -> Iterator[None]:
    """Let these loggers say nothing below a level; then what they said before."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
