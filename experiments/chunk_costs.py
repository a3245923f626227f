"""The cost of chunks in an undisturbed step: a worker's time against that of whole
passes.

A worker of a code computes the gradients of two subsets, by a dense network of six
layers of 512 × 512 and by a small convolutional net, with one thread on one core. Its
times are the processor's, so that other programs matter little, and each is held
against that of whole passes in the same round. Three minutes.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cluster.worker import Duty, WorkerProcess
from bcgc_jax.coding.gradients import coding_plan
from experiments.models import Model, convolutional, perceptron
from experiments.report import number, print_table, run_command, save, with_progress

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
CHUNKS = (1, 2, 4, 8, 16)
SAMPLES = {"dense": (32, 128, 512, 2048), "convolutional": (16, 64, 256, 1024)}
# Each row takes so many seconds and rounds at least.
SECONDS = 8.0
ROUNDS = 5


def run(
    out: Path,
    *,
    samples: Mapping[str, Sequence[int]] = SAMPLES,
    chunks: Sequence[int] = CHUNKS,
    width: int = 512,
    seconds: float = SECONDS,
) -> None:
    if __name__ == "__main__":  # before JAX makes its threads
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    tasks = [(name, size) for name, sizes in samples.items() for size in sizes]
    rows: list[dict[str, Any]] = []
    for name, size in with_progress(tasks, "timing"):
        if name == "dense":
            model = perceptron([width] * 7, size)
        else:
            model = convolutional(size)
        whole, ratios = _times(model, chunks, seconds)
        rows.append({"model": name, "samples": size, "whole_seconds": whole, **ratios})
    title = (
        "A worker's processor time with passes over chunks, against whole passes; "
        "medians"
    )
    print_table(
        title,
        [
            "model",
            "samples of a subset",
            "whole passes (s)",
            *(f"{c} chunks" for c in chunks[1:]),
        ],
        [
            (
                *(row["model"], row["samples"], number(row["whole_seconds"], 3)),
                *(f"{row[str(c)]:.2f}" for c in chunks[1:]),
            )
            for row in rows
        ],
    )
    save(out, {"chunk_costs": rows})


def _times(
    model: Model, chunks: Sequence[int], seconds: float
) -> tuple[float, dict[str, float]]:
    """Seconds of a step of whole passes, and what other `chunks` take against it."""
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
    plan = jax.tree.map(
        np.asarray, coding_plan(jax.random.key(0), model.params, [0, count])
    )
    subsets: dict[int, Any] = {0: model.batch, 1: model.batch}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]

    def worker(parts: int) -> WorkerProcess:
        duty = Duty(
            model.loss,
            replace(plan, chunks=parts),
            model.params,
            np.ones(2),
            None,
            0,
            False,
        )
        return WorkerProcess(duty, 0, subsets)

    workers = [worker(parts) for parts in chunks]
    for process in workers:
        process.warm_up()
    rounds: list[list[float]] = []
    until = time.perf_counter() + seconds
    while len(rounds) < ROUNDS or time.perf_counter() < until:
        rounds.append([])
        for process in workers:
            begin = time.process_time()
            for _ in process.compute(len(rounds), 0, leaves):
                pass
            rounds[-1].append(time.process_time() - begin)
    times = np.array(rounds)
    ratios = np.median(times / times[:, :1], axis=0)
    return float(np.median(times[:, 0])), {
        str(c): float(r) for c, r in zip(chunks, ratios, strict=True)
    }


if __name__ == "__main__":
    sys.exit(run_command(run))
