"""What a training costs: processor time beside wall time, which other programs on the machine lengthen."""

import os
import time

import torch

CPU = "cpu"


def cpu_seconds() -> float:
    """CPU time so far of this process, in all its threads, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def device_name() -> str:
    """The accelerator that is computed on, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else CPU


def compute_clock() -> float:
    """Seconds that count so far, within one process: of all its threads together where there is no accelerator, else wall time."""
    return time.process_time() if device_name() == CPU else time.perf_counter()


def compute_seconds(wall_s: float, cpu_s: float) -> float:
    """Seconds that count: of one processor core where there is no accelerator, else those that the accelerator was held for."""
    return cpu_s if device_name() == CPU else wall_s
