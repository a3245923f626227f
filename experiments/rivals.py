"""Run a competing load: processes that compute at times on the workers' cores."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

# Processes on each core that compute at the same time.
_RIVALS = 5
# Seconds until a neighbour computes.
_STARTED = 0.1
_RIVAL = """
import os, random, sys, time
core, seed = map(int, sys.argv[1:3])
end, busy, idle = map(float, sys.argv[3:])
os.sched_setaffinity(0, [core])
parent = os.getppid()
draw = random.Random(seed)  # the same for all on this core
while os.getppid() == parent:
    end += draw.expovariate(1 / idle)
    time.sleep(max(end - time.time(), 0))
    end += draw.expovariate(1 / busy)
    while time.time() < end:
        pass
"""


@contextlib.contextmanager
def rivals(
    cores: Sequence[int], seed: int, *, busy: float, idle: float
) -> Iterator[None]:
    """Run five processes on each of `cores`, all `busy`, then all `idle`, for mean
    seconds each.

    Needs Linux, to keep them there.
    """
    start = str(time.time() + 2)
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                _RIVAL,
                str(core),
                str(seed + core),
                start,
                str(busy),
                str(idle),
            ]
        )
        for core in cores
        for _ in range(_RIVALS)
    ]
    try:
        yield
    finally:
        for rival in running:
            rival.kill()
            rival.wait()


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another program on the core of this process, which computes all the time."""
    running = subprocess.Popen([sys.executable, "-Ic", "while True: pass"])
    try:
        time.sleep(_STARTED)
        yield
    finally:
        running.kill()
        running.wait()
