"""Record a trace of measured times: processes that compute in step with each other beside a competing load.

Every worker is a process and computes the gradient of a perceptron on its own samples, on a core of this
machine that is lent to one worker at a time, as if it had a machine of its own; now and then rivals take most
of a core away. A worker notes how long its own gradient took before it waits for the others at the end of the
step: compute time before the collective. `experiments/data/steps.csv` was made by this command; no two runs
are alike. Needs Linux.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.models import perceptron
from experiments.report import run_command, save
from experiments.rivals import rivals

WIDTHS, SAMPLES = (64, 256, 256, 10), 2000
# Mean seconds for which the rivals compute and do not: not longer than a step, so that the next is another.
_BUSY, _IDLE = 0.03, 0.06
# Until the rivals have begun.
_WARM_UP = 3.0
_PATIENCE = 120.0  # seconds for the slowest worker, to begin and at each step


def record(workers: int, steps: int, seed: int) -> list[tuple[float, ...]]:
    """Seconds that each worker's gradient took, a row for each step and a column for each worker."""
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    locks = {core: context.Lock() for core in cores}
    meeting = Meeting(context.Barrier(workers + 1), context.Barrier(workers), locks)
    with ProcessPoolExecutor(workers, context, _meet, (meeting,)) as pool:
        # Each waits for all others, so that no process takes two.
        asked = [(worker, cores[worker % len(cores)], steps, seed) for worker in range(workers)]
        found = [pool.submit(_measure, *one) for one in asked]
        meeting.ready.wait(_PATIENCE)
        with rivals(cores, seed, busy=_BUSY, idle=_IDLE):
            time.sleep(_WARM_UP)
            meeting.ready.wait(_PATIENCE)
            return list(zip(*(one.result() for one in found), strict=True))


class Meeting(NamedTuple):
    """How the processes wait for each other: before the first step, after each, and for a core."""

    ready: Barrier
    step: Barrier
    cores: dict[int, Lock]


_meeting: Meeting


def _meet(meeting: Meeting) -> None:
    global _meeting
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # read when JAX is first used
    _meeting = meeting


def _measure(worker: int, core: int, steps: int, seed: int) -> list[float]:
    """A worker's own seconds of each step."""
    os.sched_setaffinity(0, [core])
    model = perceptron(WIDTHS, SAMPLES, seed=seed + worker)
    gradient = jax.jit(jax.grad(model.loss))
    jax.block_until_ready(gradient(model.params, model.batch))  # compiled
    _meeting.ready.wait(_PATIENCE)
    _meeting.ready.wait(_PATIENCE)
    seconds = []
    for _ in range(steps):
        with _meeting.cores[core]:
            begun = time.perf_counter()
            jax.block_until_ready(gradient(model.params, model.batch))
            seconds.append(time.perf_counter() - begun)
        _meeting.step.wait(_PATIENCE)
    return seconds


def run(out: Path, seed: int = 0, *, workers: int = 8, steps: int = 120) -> None:
    rows = record(workers, steps, seed)
    cells = [
        {"step": step, "worker": worker, "seconds": f"{seconds:.5f}"}
        for step, row in enumerate(rows)
        for worker, seconds in enumerate(row)
    ]
    save(out, {"steps": cells})


if __name__ == "__main__":
    sys.exit(run_command(run))
