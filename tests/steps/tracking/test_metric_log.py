"""Metrics reach the store once each and in order, whatever happens to the store or to the process in between."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from steps.tracking import metric_log
from steps.tracking.metric_log import MetricLog, read_metrics
from steps.tracking.retries import RetryingClient

AWAY = MlflowException("API request to http://127.0.0.1:1/api failed with exception refused")
LOCKED = MlflowException("(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE)
SAME_ROW = MlflowException("(psycopg.errors.UniqueViolation) duplicate key value violates unique constraint", BAD_REQUEST)
FULL = MlflowException("(sqlite3.OperationalError) database or disk is full", TEMPORARILY_UNAVAILABLE)
WRONG = MlflowException("Invalid metric name", INVALID_PARAMETER_VALUE)


class Store:
    """Takes metrics, unless told to raise."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, float]] = []
        self.error: Exception | None = None

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        if self.error is not None:
            raise self.error
        self.taken += [(metric.key, metric.step, metric.value) for metric in metrics]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(metric_log.time, "monotonic", lambda: now[0])
    return now


def points(*steps: int, key: str = "loss") -> list[Metric]:
    return [Metric(key, step / 2, 1, step) for step in steps]


def taken(*steps: int) -> list[tuple[str, int, float]]:
    return [("loss", step, step / 2) for step in steps]


@pytest.mark.parametrize("error", [AWAY, LOCKED, SAME_ROW, FULL])
def test_a_store_that_takes_nothing_costs_no_metric_and_no_order(tmp_path: Path, clock: list[float], error: Exception) -> None:
    store = Store()
    metrics = MetricLog(RetryingClient(store), "r", tmp_path / "pending.jsonl")
    metrics.add(points(0))
    store.error = error
    for step in range(1, 6):
        metrics.add(points(step))
        clock[0] += 0.4
    assert store.taken == taken(0) and [metric.step for metric in read_metrics(tmp_path / "pending.jsonl")]
    store.error, clock[0] = None, clock[0] + 60
    metrics.add(points(6))
    assert store.taken == taken(*range(7)) and not (tmp_path / "pending.jsonl").exists()


def test_a_store_that_is_away_is_asked_ever_more_seldom(tmp_path: Path, clock: list[float]) -> None:
    store, asked = Store(), []
    store.log_batch = lambda run_id, metrics: asked.append(clock[0]) or (_ for _ in ()).throw(AWAY)
    metrics = MetricLog(RetryingClient(store), "r", tmp_path / "pending.jsonl")
    for step in range(120):
        metrics.add(points(step))
        clock[0] += 1
    assert [round(at - 1000) for at in asked] == [0, 1, 3, 7, 15, 31, 61, 91]


def test_wrong_input_is_an_error_at_once(tmp_path: Path) -> None:
    store = Store()
    store.error = WRONG
    with pytest.raises(MlflowException, match="Invalid metric"):
        MetricLog(RetryingClient(store), "r", tmp_path / "pending.jsonl").add(points(0))


def test_what_the_run_holds_is_not_logged_again(tmp_path: Path) -> None:
    store = Store()
    metrics = MetricLog(RetryingClient(store), "r", tmp_path / "p", frozenset({("loss", 1), ("wer", 2)}))
    metrics.add(points(0, 1, 2))
    assert store.taken == taken(0, 2)


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 60))
def test_metrics_that_waited_outlive_the_process_once_each(tmp_path_factory, sizes: list[int], cut: int) -> None:
    """A process dies while the store is away, at any byte of its last write; the next one logs the rest again, none twice."""
    path, store = tmp_path_factory.mktemp("m") / "pending.jsonl", Store()
    store.error = AWAY
    first, step = MetricLog(RetryingClient(store), "r", path), 0
    for size in sizes:
        first.add(points(*range(step, step + size)))
        step += size
    first.keep()
    if path.exists() and cut:
        path.write_bytes(path.read_bytes()[:-cut])
    n_whole = len(read_metrics(path))
    store.error = None
    second = MetricLog(RetryingClient(store), "r", path)
    second.add(points(*range(n_whole, step)))
    assert store.taken == taken(*range(step))


def test_before_a_checkpoint_everything_waiting_is_on_the_disk_or_it_is_an_error(tmp_path: Path) -> None:
    store = Store()
    store.error = AWAY
    metrics = MetricLog(RetryingClient(store), "r", tmp_path / "gone" / "pending.jsonl")
    (tmp_path / "gone").write_text("a file, so that no folder can be made there")
    metrics.add(points(1, 2))  # goes on in memory
    with pytest.raises(OSError):
        metrics.keep()
    store.error = None
    metrics.finish()
    assert store.taken == taken(1, 2)


def test_the_end_waits_for_the_store_and_says_what_it_has_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.tracking.retries.FIRST_WAIT_S", 0.01)
    store, n_asked = Store(), []

    def back_at_the_third(run_id: str, metrics: list[Metric]) -> None:
        n_asked.append(1)
        if len(n_asked) < 4:
            raise AWAY
        Store.log_batch(store, run_id, metrics)

    store.log_batch = back_at_the_third
    metrics = MetricLog(RetryingClient(store), "r", tmp_path / "p")
    metrics.add(points(1))
    metrics.finish()
    assert store.taken == taken(1)
    store.log_batch, store.error = lambda run_id, metrics: (_ for _ in ()).throw(FULL), FULL
    metrics.add(points(2))
    with pytest.raises(RuntimeError, match=r"has not taken 1 metrics of run r: .*disk is full"):
        metrics.finish()
    assert [metric.step for metric in read_metrics(tmp_path / "p")] == [2]
