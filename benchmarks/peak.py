"""Measure the peak memory of a process without JAX, which itself needs much memory."""

import resource
import sys
from pathlib import Path


def peak_memory() -> float:
    """Peak resident memory of this process, in MB."""
    status = Path("/proc/self/status")
    # what getrusage says starts from the peak of the process that started this one
    if status.exists():
        peak = next(
            line for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )
        return float(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
