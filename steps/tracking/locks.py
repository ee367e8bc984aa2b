"""What one process of this machine does at a time: the others wait. The lock ends with its process, however that ends."""

import contextlib
import fcntl
from collections.abc import Iterator

from steps.tracking.names import file_name
from steps.tracking.store import unfinished_root

LOCKS = "locks"


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Only one process that works with this store is in the block of this name."""
    folder = unfinished_root() / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / file_name(what), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
