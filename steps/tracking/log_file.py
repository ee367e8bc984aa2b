"""The log file of a run: what the project, its libraries and Python's warnings say, and how the run ended.

Stages of a chain name the same file as the chain: the outermost run writes it, all others are in it.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from mlflow.exceptions import MlflowException

from steps.tracking.step_run import StepRun

PROJECT = ("moe", "steps", "analysis")
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FOLDER = "log"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def written_to(log_file: str | None, run: StepRun) -> Iterator[None]:
    """Add all logging to a file while the block runs; then the run gets a copy, whether the block ended well or not.

    Raises:
        OSError: the file cannot be written to.
    """
    if log_file is None or _is_open(Path(log_file)):
        yield
        return
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    handlers = [logging.FileHandler(log_file, encoding="utf-8"), *_screen()]
    handlers[0].setFormatter(logging.Formatter(LINE))
    try:
        with _attached(handlers):
            log.info("%s: run %s", run.step, run.run_id)
            yield
            log.info("%s: run %s ends well", run.step, run.run_id)
    except BaseException as error:
        with _attached(handlers[:1]):  # the traceback is the file's; the screen gets one line at the end
            log.error("%s: run %s ends with %s", run.step, run.run_id, type(error).__name__, exc_info=error)
        raise
    finally:
        handlers[0].close()
        with contextlib.suppress(MlflowException, OSError):
            run.log_file(Path(log_file), FOLDER)


def _is_open(path: Path) -> bool:
    held = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return any(Path(handler.baseFilename) == path.absolute() for handler in held)


def _screen() -> list[logging.Handler]:
    """Where nobody has set up logging Python itself shows warnings, but no longer once there is a file."""
    if logging.getLogger().handlers:
        return []
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING)
    return [screen]


@contextlib.contextmanager
def _attached(handlers: list[logging.Handler]) -> Iterator[None]:
    """Handlers on the root and on every logger that keeps its records to itself; the project's loggers say more than warnings."""
    closed = [
        logger
        for logger in logging.Logger.manager.loggerDict.values()
        if isinstance(logger, logging.Logger) and not logger.propagate
    ]
    levels = {name: logging.getLogger(name).level for name in PROJECT}
    places = [(logging.getLogger(), handlers), *((logger, handlers[:1]) for logger in closed)]
    logging.captureWarnings(True)
    for logger, added in places:
        for handler in added:
            logger.addHandler(handler)
    for name in PROJECT:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, added in places:
            for handler in added:
                logger.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
