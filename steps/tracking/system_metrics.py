"""Use of processor, memory, disk and GPU while a training runs, as metrics `system/…` of its run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logging.getLogger("mlflow.system_metrics").setLevel(
    logging.ERROR
)  # it says that it starts and stops, and of every kind of GPU that is not there


@contextmanager
def system_metrics(run_id: str, wanted: bool) -> Iterator[None]:
    """Log them in this block, every ten seconds; a shorter one has none. What goes wrong with them ends no training."""
    monitor = SystemMetricsMonitor(run_id, resume_logging=True) if wanted else None
    if monitor is not None:
        monitor.start()
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()
