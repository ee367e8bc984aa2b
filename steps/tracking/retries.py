"""A tracking store that does not answer is waited for: a server that is away, a database that another process keeps locked or writes to.

What a step asks of its store is asked again, ever more slowly, for LONGEST_S seconds (ten minutes) on top of what MLflow itself waits;
then the step fails. Metrics do not wait at all: see `steps.tracking.metric_log`. A full disk and wrong input are not waited for.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

LONGEST_S, FIRST_WAIT_S, LONGEST_WAIT_S = 600.0, 1.0, 30.0
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
AWAY_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
AWAY_WORDS = ("api request to", "database is locked", "503 server error", "502 server error", "504 server error")
SAME_ROW_WORDS = ("unique constraint", "duplicate entry")  # two wrote one new tag at once: asked again, the second finds it
FULL_WORDS = ("disk is full", "no space left", "readonly database", "read-only file system", "file too large", "disk i/o error")

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_longest_s: ContextVar[float] = ContextVar("longest_s", default=LONGEST_S)


class RetryingClient:
    """A MlflowClient every call of which is asked again while the store is away."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return functools.partial(with_retries, found) if callable(found) else found


def retrying(client: MlflowClient) -> MlflowClient:
    """The client, every call of which is asked again while the store is away."""
    return cast(MlflowClient, RetryingClient(client))


def with_retries(function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """The function's result; its error where the store is still away when the retries end, and any other error at once."""
    wait_s, end = FIRST_WAIT_S, time.monotonic() + _longest_s.get()
    while True:
        try:
            return function(*arguments, **named)
        except (MlflowException, OperationalError, requests.RequestException) as error:
            if not is_away(error) or time.monotonic() + wait_s > end:
                raise
            log.warning("the tracking store does not answer, asked again in %.0f s: %s", wait_s, first_line(error))
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


@contextlib.contextmanager
def no_retries() -> Iterator[None]:
    """In this block a store that does not answer fails the call within seconds (sqlite: its own 20 s)."""
    token, before = _longest_s.set(0.0), {name: os.environ.get(name) for name in QUICK}
    os.environ.update(QUICK)
    try:
        yield
    finally:
        _longest_s.reset(token)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def is_away(error: BaseException) -> bool:
    """Whether asking again later may help."""
    if is_full(error):
        return False
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in (429, 500, 502, 503, 504)
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return True
    code, said = getattr(error, "error_code", ""), str(error).lower()
    if code == "BAD_REQUEST" and any(words in said for words in SAME_ROW_WORDS):
        return True
    return code in AWAY_CODES or any(words in said for words in AWAY_WORDS)


def is_full(error: BaseException) -> bool:
    """Whether the store could not write: a full disk, a read-only one."""
    return any(words in str(error).lower() for words in FULL_WORDS)


def first_line(error: BaseException) -> str:
    """What an error says, without the query and the links that SQLAlchemy adds."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
