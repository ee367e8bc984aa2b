"""A Ray cluster of two nodes of one CPU each on this machine, by Ray's own utility; one of them can be taken away.

`python -m tests.toys.two_nodes` holds it, since it asks for a main thread and for signals of its own, until its input ends.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STARTS_S = 600
MEMORY = 80 * 2**20  # of each node, for what goes through Ray
REPLACE = "replace"


class TwoNodes:
    """The cluster, which `cluster=auto` finds."""

    def __init__(self, holder: subprocess.Popen[str], said: Path) -> None:
        self._holder, self._said = holder, said
        self.address = self._answer()

    def replace_second(self) -> None:
        """Take the second node away, with all that runs on it, and put another one there."""
        assert self._holder.stdin is not None
        self._holder.stdin.write(f"{REPLACE}\n")
        self._holder.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._holder.stdout is not None
        if answer := self._holder.stdout.readline().strip():
            return answer
        raise RuntimeError(f"the cluster has ended: {self._said.read_text(encoding='utf-8')[-1500:]}")


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """The cluster for as long as the block. Its files lie under a short path: Ray's sockets bear no long one."""
    folder = tempfile.mkdtemp(prefix="ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        said = Path(folder, "said")
        with open(said, "w", encoding="utf-8") as errors:
            holder = subprocess.Popen(
                [sys.executable, "-m", "tests.toys.two_nodes"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )  # fmt: skip
        try:
            nodes = TwoNodes(holder, said)
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield nodes
        finally:
            holder.communicate()
            shutil.rmtree(folder, ignore_errors=True)


def hold() -> None:
    """Start the cluster, print its address, replace the second node when asked to, and end with the input."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)

    def add_node() -> Any:
        until = time.monotonic() + STARTS_S
        while True:
            try:
                return cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            except (
                Exception
            ):  # Ray gives a node 30 s to start, which beside other work are too few; the next try finds files in memory
                if time.monotonic() > until:
                    raise

    second = add_node()
    print(cluster.address, flush=True)
    try:
        for line in sys.stdin:
            if line.strip() == REPLACE:
                cluster.remove_node(second, allow_graceful=False)
                second = add_node()
                print("replaced", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    hold()
