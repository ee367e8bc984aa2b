"""How benchmarks measure: variants in turn in one process, order reversed every other round, so that a busy machine slows all alike.

Time is the CPU time of this process with one thread (wall time on a busy machine says nothing), on CUDA the wall time of work that has
ended. Memory is the peak of a process of its own above its imports.
"""

import concurrent.futures
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import resident_peak_mib

LIBRARIES = ("torch", "transformers", "peft", "numpy")

Variants = Mapping[str, Callable[[], object]]


def alternate(variants: Variants, repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each variant in each round.

    Args:
        variants: what is timed, by name; each is called once a round.
        repeats: rounds.
        device: `cpu` measures CPU time, after one call of the first variant that does not count; `cuda` wall time, after a whole round
            that does not (kernels are chosen in it).
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names if device == "cuda" else names[:1]:
        variants[name]()
    for number in range(repeats):
        for name in names if number % 2 == 0 else names[::-1]:
            seconds[name].append(seconds_of(variants[name], device))
    return seconds


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that one call takes."""
    start = _now(device)
    work()
    return _now(device) - start


def peak_memory(work: Callable[..., object], *arguments: object) -> float:
    """MiB that a call needs at its peak, in a fresh process: device memory on CUDA, else resident memory above the imports.

    Args:
        work: a module-level function.
        arguments: passed to it.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=one_thread) as pool:
        return pool.submit(_peak, work, arguments).result()


def one_thread() -> None:
    """All of torch's CPU work on one thread: CPU time is then time."""
    torch.set_num_threads(1)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on and with."""
    facts = {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    facts |= {name: version(name) for name in LIBRARIES}
    return facts | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _peak(work: Callable[..., object], arguments: tuple) -> float:
    before = resident_peak_mib()
    work(*arguments)
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak_mib() - before


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
