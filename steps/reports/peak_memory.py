"""The most memory that a stretch of work held, not the whole process since it began: a chain runs many stages in one process."""

import resource
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5): resets the peak resident set size


def begin_peak() -> None:
    """Measure anew from here; where the system cannot (macOS), the peak stays that of the whole process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        RESET.write_text(RESET_PEAK)
    except OSError:
        return


def peak_mb() -> float:
    """MB since `begin_peak`: allocated on the accelerator, or resident of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.is_file():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
