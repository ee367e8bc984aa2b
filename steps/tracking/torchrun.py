"""Several processes of this machine: torchrun's agent starts them, sees how they end, and ends all others with the first that fails."""

import logging
import sys
import tempfile
from collections.abc import Sequence

from moe.training.processes import LONGEST_WAIT
from steps.tracking.ends import End
from steps.tracking.loggers import quiet

# the agent meets nobody but itself: on a busy machine it must not take itself for dead, nor give up after ten minutes
ALONE = {"join_timeout": LONGEST_WAIT.total_seconds(), "keep_alive_max_attempt": 10_000}


def run_together(run_id: str, words: Sequence[str], num_processes: int, shutdown_s: int) -> list[End]:
    """Start Python with `words` several times and wait for all of them; returns the ends of those that failed.

    Args:
        shutdown_s: seconds that a process has from SIGTERM to its end.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder, quiet(_agent_loggers(), logging.CRITICAL):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=run_id,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            rdzv_configs=dict(ALONE),  # it writes into it
            max_restarts=0,
            signals_to_handle="",
            shutdown_timeout=shutdown_s,
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            return [End(number, each.exitcode, each.timestamp, each.error_file_data) for number, each in error.failures.items()]
    return []


def _agent_loggers() -> list[str]:
    """Of the agent; of what it logs of ends the step says one line."""
    return [name for name in logging.Logger.manager.loggerDict if name.startswith("torch.distributed.")]
