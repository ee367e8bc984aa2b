"""Memory for what is kept of utterances from epoch to epoch: one bound for all data sets of a machine's processes, not one for each."""

import functools
import os

from torch.utils.data import get_worker_info

CACHE_GB = 1.0
GB = 10**9


class ExampleMemory:
    """How many bytes of examples and waveforms may be kept, and are.

    Args:
        n_bytes: of all processes of this machine and their loaders together; each has an even share.
        n_loaders: loader processes of each process.
    """

    def __init__(self, n_bytes: float = CACHE_GB * GB, n_loaders: int = 0) -> None:
        self.n_bytes, self.n_loaders, self.used = n_bytes, n_loaders, 0

    @property
    def share(self) -> float:
        """Bytes of this process."""
        info = get_worker_info()
        n_loaders = self.n_loaders if info is None else max(self.n_loaders, info.num_workers)
        return self.n_bytes / (_n_processes_here() * (1 + n_loaders))

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for so many more; they then count as kept."""
        if self.used + n_bytes > self.share:
            return False
        self.used += n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """So many are no longer kept."""
        self.used -= n_bytes


@functools.cache
def shared_memory() -> ExampleMemory:
    """That of the data sets of this process that were given none."""
    return ExampleMemory()


def _n_processes_here() -> int:
    """Processes that share this machine's memory, at most: torchrun says how many there are here, Ray how many there are in all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
