"""A Ray cluster of this machine alone, held by a process in a session of its own: a signal to the step and all its children ends no node.

Started as `python -m steps.tracking.local_ray CPUS GPUS` it prints its address, and ends with its input. It takes only what has the token
that the step and it share.
"""

import contextlib
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AUTHENTICATION = "RAY_AUTH_MODE"
STORE_BYTES = 128 * 2**20  # Ray's shared memory; nothing of size goes through it


@contextlib.contextmanager
def local_ray(cpus: int, gpus: int) -> Iterator[str]:
    """The cluster's address, for as long as the block; before Ray is imported in this process for the first time.

    Raises:
        ConnectionError: it does not start.
    """
    if AUTHENTICATION not in os.environ:  # Ray would write a token into the user's home, and keep it
        os.environ |= {AUTHENTICATION: "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = [sys.executable, "-m", "steps.tracking.local_ray", str(cpus), str(gpus)]
    pipes: dict[str, Any] = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=Path(__file__).parents[2], start_new_session=True, **pipes) as holder:
        address = holder.stdout.readline().strip() if holder.stdout else ""
        if not address:
            raise ConnectionError("Ray does not start on this machine")
        yield address


def hold(cpus: int, gpus: int) -> None:
    """Start the cluster, print its address and wait for the end of the input."""
    import ray

    ray.init(
        address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    hold(int(sys.argv[1]), int(sys.argv[2]))
