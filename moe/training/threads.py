"""How many threads compute, and how they wait for each other.

torch starts a thread for every core that it sees. In a container that may use fewer, and where OMP_NUM_THREADS does not say
otherwise, there are as many as it may use. The load of the machine changes nothing: another number of threads adds in another order,
and a training that goes on after an interruption must end with the same bits.

What a busy machine does need is threads that sleep while they wait. OpenMP's own wait in a loop, and beside other work the loop takes
the core that the thread awaited needs: a stage slows down tenfold. To wake a thread takes longer than many of a small model's products,
so that on an idle machine sleeping at once costs a third of the speed. GOMP_SPINCOUNT lets threads of GNU's OpenMP, torch's on Linux, loop
for some microseconds first. OpenMP reads both when torch is loaded, so a program cannot set them for itself;
`steps.options.project_files` writes them into the commands of MLproject.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

WAIT_POLICY, PASSIVE = "OMP_WAIT_POLICY", "passive"


def settle_threads() -> str:
    """Keep torch to the cores that this process may use, and say in a few words how it computes: "2 threads, passive waiting"."""
    import joblib  # here: models compute without it

    n_allowed = joblib.cpu_count()
    if "OMP_NUM_THREADS" not in os.environ and n_allowed < torch.get_num_threads():
        torch.set_num_threads(n_allowed)
    return described(torch.get_num_threads(), os.environ.get(WAIT_POLICY))


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the block.

    A data loader's worker has one thread. What is computed in a worker or in the training process, as `num_workers` says, must have the
    same bits, and without AVX-512 two threads round a log-mel otherwise than one.
    """
    with threads(1):
        yield


def described(n_threads: int, policy: str | None) -> str:
    """Threads and their way of waiting, and what would be better where one thread would hold up the others."""
    if n_threads == 1:
        return "1 thread"
    if (policy or "").strip().lower() == PASSIVE:
        return f"{n_threads} threads, passive waiting"
    return f"{n_threads} threads, active waiting; beside other work {WAIT_POLICY}={PASSIVE} is faster"
