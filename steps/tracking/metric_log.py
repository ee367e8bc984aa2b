"""Metrics on their way to the store: none is lost and none is there twice, whatever becomes of the store or of this process.

Where the store does not take them they wait, in order, and training goes on; they are offered again with every later metric, ever more
seldom, and lie in the step's unfinished folder before a checkpoint relies on them. A run that is continued logs no (name, update)
that it holds already.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils import chunk_list

from moe.files import write_whole
from steps.tracking.retries import FIRST_WAIT_S, LONGEST_WAIT_S, first_line, is_away, is_full, no_retries

N_METRICS_PER_CALL, N_PARAMETERS_PER_CALL = 1000, 100  # the store takes no more at once

log = logging.getLogger(__name__)
Point = tuple[str, int]


@dataclasses.dataclass
class MetricLog:
    """The metrics of one run.

    Attributes:
        path: file for metrics that wait; None keeps them in memory alone.
        held: what the store held when the run was opened.
    """

    client: MlflowClient
    run_id: str
    path: Path | None = None
    held: frozenset[Point] = frozenset()

    def __post_init__(self) -> None:
        self._waiting: list[Metric] = [metric for metric in read_metrics(self.path) if (metric.key, metric.step) not in self.held]
        self._n_on_disk = 0  # of those that wait; a file that an earlier process left is replaced, its end may be cut off
        self._wait_s, self._next = FIRST_WAIT_S, 0.0

    def add(self, metrics: Sequence[Metric]) -> None:
        """Log metrics, or let them wait while the store takes none."""
        self._waiting += [metric for metric in metrics if (metric.key, metric.step) not in self.held]
        if self._waiting and time.monotonic() >= self._next:
            self._offer()

    def keep(self) -> None:
        """Put what waits on the disk: what was logged until now outlives this process.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None or self._n_on_disk == len(self._waiting):
            return
        new = self._waiting[self._n_on_disk :]
        lines = [json.dumps([metric.key, metric.value, metric.timestamp, metric.step]) + "\n" for metric in new]
        if self._n_on_disk == 0:
            with write_whole(self.path) as aside:
                aside.write_text("".join(lines), encoding="utf-8")
        else:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        self._n_on_disk = len(self._waiting)

    def finish(self) -> None:
        """Wait for the store, as long as for anything else, and log all that waits.

        Raises:
            RuntimeError: it still takes none; they stay on the disk for the next start.
        """
        try:
            self._send()
        except MlflowException as error:
            n_waiting = len(self._waiting)
            self._keep_or_say()
            raise RuntimeError(
                f"the tracking store has not taken {n_waiting} metrics of run {self.run_id}: {first_line(error)}"
            ) from error

    def _offer(self) -> None:
        try:
            with no_retries():
                self._send()
        except MlflowException as error:
            if not (is_away(error) or is_full(error)):
                raise
            log.warning("%d metrics wait for the tracking store: %s", len(self._waiting), first_line(error))
            self._keep_or_say()
            self._next = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        else:
            self._wait_s = FIRST_WAIT_S

    def _send(self) -> None:
        while self._waiting:
            self.client.log_batch(self.run_id, metrics=self._waiting[:N_METRICS_PER_CALL])
            del self._waiting[:N_METRICS_PER_CALL]
            self._n_on_disk = max(0, self._n_on_disk - N_METRICS_PER_CALL)
        if self.path is not None:
            with contextlib.suppress(OSError):  # what stays there, the next start finds in the run
                self.path.unlink(missing_ok=True)
        self._n_on_disk = 0

    def _keep_or_say(self) -> None:
        try:
            self.keep()
        except OSError as error:
            log.warning("metrics that wait are kept in memory alone, %s cannot be written: %s", self.path, error.strerror)


def read_metrics(path: Path | None) -> list[Metric]:
    """Metrics that an earlier process left; a last line that was cut off counts as not logged."""
    if path is None or not path.exists():
        return []
    metrics = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            metrics.append(Metric(*json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            break
    return metrics


def log_all(client: MlflowClient, run_id: str, metrics: Sequence[Metric] = (), parameters: Sequence[Param] = ()) -> None:
    """Log any number of metrics and parameters, in as few calls as the store allows."""
    for part in chunk_list(list(parameters), N_PARAMETERS_PER_CALL):
        client.log_batch(run_id, params=part)
    for part in chunk_list(list(metrics), N_METRICS_PER_CALL):
        client.log_batch(run_id, metrics=part)


def history(client: MlflowClient, run_id: str) -> list[Metric]:
    """Every metric that a run holds."""
    names = sorted(client.get_run(run_id).data.metrics)
    return [metric for name in names for metric in client.get_metric_history(run_id, name)]
