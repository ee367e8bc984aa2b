"""Use of processor, memory, disk and GPU while a training runs, as metrics `system/…` of its run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

CHATTER = "mlflow.system_metrics"  # logs that it starts and stops, and of every kind of GPU that is not there


@contextmanager
def system_metrics(run_id: str, wanted: bool) -> Iterator[None]:
    """Log them in this block, every ten seconds; a shorter one has none. What goes wrong with them ends no training."""
    if not wanted:
        yield
        return
    logging.getLogger(CHATTER).setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
