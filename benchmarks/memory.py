"""The most memory that a process has held, on Linux and on macOS."""

import platform
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_peak_mib() -> float:
    """MiB of this process. A new process inherits its parent's `ru_maxrss` on Linux, but not its `VmHWM`."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
