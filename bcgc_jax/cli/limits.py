"""What is refused before it starts, as the machine has no memory for it, or nobody the time."""

import math
import os
from contextlib import suppress
from pathlib import Path

from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem

# Of an exact runtime under measured times, an operation; an hour of it is a day of an optimum.
_SECONDS, _BYTES, _HOUR = 1e-8, 200.0, 3600.0


def check_size(problem: Problem) -> None:
    """ValueError where one exact runtime under many measured times takes more than the memory or an hour."""
    operations = iteration_of(problem).evaluation_cost()
    memory, needed = _memory(), _BYTES * operations / problem.max_workers**2
    quicker = "take fewer --workers, or --trace-law smooth"
    if needed > memory:
        raise ValueError(
            f"this takes about {needed / 2**30:,.0f} GB of memory, and the machine has "
            f"{memory / 2**30:,.0f} GB: {quicker}"
        )
    if _SECONDS * operations > _HOUR:
        raise ValueError(f"this would take more than a day: {quicker}")


def _memory() -> float:
    """Bytes that this process may have, inf where nobody says."""
    found = [math.inf]
    with suppress(AttributeError, OSError, ValueError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)
