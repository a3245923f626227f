"""Record a log of chunks from synchronous processes that compete for cores.

Each worker is a process that computes the gradients of a perceptron on its own samples,
chunk by chunk. A core of this machine is lent to one worker at a time, as if each
worker had its own machine. At times, rival processes take most of a core. In the second
half of the steps, one worker shares its core with another program.

A worker records the compute time of each chunk before it waits for the others at the
end of the step. This command has made `experiments/data/chunks.csv`, and two runs are
never equal. The command needs Linux.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.models import perceptron
from experiments.report import run_command, save
from experiments.rivals import neighbour, rivals

WIDTHS = (64, 256, 256, 10)
# Samples of a chunk, in thousands, and how often: long sequences are rare.
LOADS = (2, 4, 8)
SHARES = (0.5, 0.3, 0.2)
_CHUNKS = 8
# Mean seconds for which the rivals compute and do not: not longer than a step, so that
# the next is another.
_BUSY = 0.8
_IDLE = 1.6
# The worker that has a neighbour from the middle on.
_SHARES = 1
# Until the rivals have begun.
_WARM_UP = 3.0
_PATIENCE = 120.0  # seconds for the slowest worker, to begin and at each step


def record(loads: np.ndarray, seed: int) -> np.ndarray:
    """Seconds that each chunk took, as `loads`, `[S, W, C]`."""
    workers = loads.shape[1]
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    locks = {core: context.Lock() for core in cores}
    meeting = Meeting(context.Barrier(workers + 1), context.Barrier(workers), locks)
    with ProcessPoolExecutor(workers, context, _meet, (meeting,)) as pool:
        # Each waits for all others, so that no process takes two.
        processes = [
            pool.submit(
                _measure, worker, cores[worker % len(cores)], loads[:, worker], seed
            )
            for worker in range(workers)
        ]
        meeting.ready.wait(_PATIENCE)
        with rivals(cores, seed, busy=_BUSY, idle=_IDLE):
            time.sleep(_WARM_UP)
            meeting.ready.wait(_PATIENCE)
            return np.stack([process.result() for process in processes], axis=1)


class Meeting(NamedTuple):
    """Waits of processes for each other, before and after steps, and for a core."""

    ready: Barrier
    step: Barrier
    cores: dict[int, Lock]


_meeting: Meeting


def _meet(meeting: Meeting) -> None:
    global _meeting
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false"  # read when JAX is first used
    )
    _meeting = meeting


def _measure(worker: int, core: int, loads: np.ndarray, seed: int) -> np.ndarray:
    """A worker's own seconds of its chunks, as `loads`, `[S, C]`."""
    os.sched_setaffinity(0, [core])
    model = perceptron(WIDTHS, 1000 * max(LOADS), seed=seed + worker)
    chunks = {
        load: jax.tree.map(lambda a, count=1000 * load: a[:count], model.batch)
        for load in LOADS
    }
    gradient = jax.jit(jax.grad(model.loss))
    for chunk in chunks.values():
        jax.block_until_ready(gradient(model.params, chunk))  # compiled
    _meeting.ready.wait(_PATIENCE)
    _meeting.ready.wait(_PATIENCE)
    seconds = np.empty(loads.shape)
    for step in range(len(loads)):
        shares = worker == _SHARES and step >= len(loads) // 2
        with _meeting.cores[core], neighbour() if shares else contextlib.nullcontext():
            for chunk, load in enumerate(loads[step]):
                begun = time.perf_counter()
                jax.block_until_ready(gradient(model.params, chunks[load]))
                seconds[step, chunk] = time.perf_counter() - begun
        _meeting.step.wait(_PATIENCE)
    return seconds


def run(out: Path, seed: int = 0, *, workers: int = 6, steps: int = 36) -> None:
    loads = np.random.default_rng(seed).choice(
        LOADS, (steps, workers, _CHUNKS), p=SHARES
    )
    seconds = record(loads, seed)
    cells = [
        {
            "step": place[0],
            "worker": place[1],
            "chunk": place[2],
            "load": loads[place],
            "seconds": f"{seconds[place]:.4f}",
        }
        for place in np.ndindex(loads.shape)
    ]
    save(out, {"chunks": cells})


if __name__ == "__main__":
    sys.exit(run_command(run))
