"""Processes forked from this one, which meet as those of torchrun do: they start at once, with what is loaded already."""

import os
import socket
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

from moe.training import processes


def fork(n_processes: int, do: Callable[..., object], *arguments: Any) -> None:
    """Call `do(number, *arguments)` in so many processes and wait for them; what one of them raises is raised. They meet by `processes.join`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(_as_one, (n_processes, port, do, arguments), nprocs=n_processes, start_method="fork")


def _as_one(number: int, n_processes: int, port: int, do: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": n_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    do(number, *arguments)
    processes.leave()
