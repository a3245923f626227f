"""Compute that nobody can interrupt: what redundancy is worth on worker processes that end each chunk.

The layers of a small network sleep, forward and backward, in proportion to their samples. So a chunk takes
time, and "stop" does not end it. Four workers are equal, or each is five times as slow in one of seven
seconds. Schemes are trained one after the other. Their seconds are held against two predictions, from the
times that the passes of the first one took: for workers that are free when a step ends, and for steps in a
row, where each first ends its chunk. Eight minutes.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import ClosedLoop, Cluster, ClusterTraining, Told, train_on_cluster
from experiments.report import each, number, print_table, run_command, save

LAYERS, WIDTH, SAMPLES_OF_A_WORKER = 2, 4, 32
CHUNKS = 8  # of a subset, in the passes of a code
# Seconds of a worker's subset, times as long in a slow second, one of so many.
SUBSET, SLOWER, ONE_OF = 0.29, 5.0, 7
# Seconds between two naps of a pass, at most.
GAP = 0.01
LOOP = "ClosedLoop()"
METHODS = ("uncoded", "cyclic:2", "nested:2", "sharing:2:8", LOOP)
EQUAL = ("uncoded", "sharing:2:8", LOOP)


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = 4,
    steps: int = 60,
    equal_steps: int = 200,
    subset: float = SUBSET,
    methods: Sequence[str] = METHODS,
    equal: Sequence[str] = EQUAL,
) -> None:
    """`steps` of workers that are slow at random, `equal_steps` of equal ones, a `subset` so many seconds."""
    tasks = [("slow at random", SLOWER, method, steps) for method in methods]
    tasks += [("equal", 1.0, method, equal_steps) for method in equal]
    rows: list[dict[str, Any]] = []
    passes: dict[str, np.ndarray] = {}  # seconds of each, of the first scheme
    with Cluster(workers) as cluster:
        for kind, slower, method, count in each(tasks, "training"):
            found = _trained(cluster, seed, workers, slower, method, count, subset)
            seconds = np.asarray(found.seconds)
            times = passes.setdefault(kind, np.array([item.seconds for item in found.work]))
            predicted = _predicted(seed, workers, slower, subset, method, times)
            first = next((row["measured"] for row in rows if row["workers"] == kind), seconds.mean())
            rows.append(
                {
                    "workers": kind,
                    "scheme": method,
                    "steps": count,
                    "free": predicted and float(predicted.mean),
                    "in_a_row": predicted and float(predicted.chained),
                    "measured": seconds.mean(),
                    "standard_error": seconds.std(ddof=1) / np.sqrt(count),
                    "against_first": seconds.mean() / first,
                }
            )
    print_table(
        "Seconds of a step; nobody interrupts a pass; against the first scheme for the same workers",
        ("workers", "scheme", "steps", "if all were free", "in a row", "measured", "± s.e.", "against"),
        [
            (
                *(row["workers"], row["scheme"], row["steps"]),
                *(
                    number(row["free"], 3),
                    number(row["in_a_row"], 3),
                    number(row["measured"], 3),
                    number(row["standard_error"], 2),
                    f"{row['against_first']:.3f}",
                ),
            )
            for row in rows
        ],
    )
    save(out, {"busy": rows})


def _problem(workers: int, law: bcgc.distributions.Distribution) -> bcgc.Problem:
    """A pass is forward, back through the layers, and the gradients: each a third."""
    count, samples = LAYERS * WIDTH**2, workers * SAMPLES_OF_A_WORKER
    return bcgc.Problem(law, workers, count, samples, setup_cycles=count, chain_cycles=1.0)


def _cycle_times(passes: np.ndarray) -> bcgc.Empirical:
    """Of the seconds of whole passes."""
    return bcgc.Empirical(passes / (SAMPLES_OF_A_WORKER * 3 * LAYERS * WIDTH**2))


def _planned_for(workers: int, slower: float, subset: float) -> bcgc.Problem:
    return _problem(workers, _cycle_times(np.array([1.0] * (ONE_OF - 1) + [slower]) * subset))


def _predicted(seed: int, workers: int, slower: float, subset: float, method: str, passes: np.ndarray) -> Any:
    """Seconds of a step of the plan that is trained with, if passes take as long as these; None of a loop."""
    if method == LOOP:
        return None
    plan: Any = bcgc.solve(_planned_for(workers, slower, subset), method).plan
    problem = _problem(workers, _cycle_times(passes))
    return bcgc.simulate_runtime(jax.random.key(seed), problem, plan, 2**14, unit=f"chunk:{CHUNKS}")


def _trained(
    cluster: Cluster, seed: int, workers: int, slower: float, method: str, steps: int, subset: float
) -> ClusterTraining:
    keys = jax.random.split(jax.random.key(seed), LAYERS)
    params = [np.asarray(jax.random.normal(key, (WIDTH, WIDTH))) / 2 for key in keys]
    samples = workers * SAMPLES_OF_A_WORKER
    data = np.asarray(jax.random.normal(jax.random.key(seed + 1), (samples, WIDTH)))
    # A third forward, and two backward; but none for the slope of the data.
    loss = sleeping_loss(subset / SAMPLES_OF_A_WORKER / (3 * LAYERS - 1), slower, seed)
    plans: Any = (
        ClosedLoop()
        if method == LOOP
        else Told(_planned_for(workers, slower, subset), method, {"chunks": CHUNKS})
    )
    return train_on_cluster(jax.random.key(seed), loss, plans, cluster, params, data, optax.sgd(1e-2), steps)


def sleeping_loss(unit: float, slower: float, seed: int) -> Callable[[Any, Any], Any]:
    """A loss whose layers take `unit` seconds a sample for each of the three parts of a pass.

    The naps of a pass follow each other at once, whatever the program does between them: so a pass takes as
    long as its samples say, however few they are.
    """
    ended = [0.0]  # when the last nap of this process has

    def sleep(begins: bool, x: Any) -> np.ndarray:
        now = time.perf_counter()
        rng = np.random.default_rng([seed, os.getpid(), int(time.time())])
        slow = slower if rng.integers(ONE_OF) == 0 else 1.0
        follows = not begins and now - ended[0] < GAP
        ended[0] = (ended[0] if follows else now) + unit * slow * len(x)
        time.sleep(max(ended[0] - time.perf_counter(), 0))
        return np.asarray(x)

    def busy(x: Any, begins: bool = False) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(functools.partial(sleep, begins), shape, x)

    def loss(params: Any, batch: Any) -> Any:
        x = batch
        for place, weights in enumerate(params):
            x = _sleeping_layer(busy, place == 0, weights, x)
        return jnp.mean(x**2)

    return loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sleeping_layer(busy: Callable[..., Any], begins: bool, weights: Any, x: Any) -> Any:
    return busy(jnp.tanh(x @ weights), begins)


def _forward(busy: Callable[..., Any], begins: bool, weights: Any, x: Any) -> tuple[Any, Any]:
    y = _sleeping_layer(busy, begins, weights, x)
    return y, (weights, x, y)


def _backward(busy: Callable[..., Any], begins: bool, kept: Any, slope: Any) -> tuple[Any, Any]:
    weights, x, y = kept
    slope = slope * (1 - y * y)
    return x.T @ busy(slope), busy(slope @ weights.T)


_sleeping_layer.defvjp(_forward, _backward)


if __name__ == "__main__":
    sys.exit(run_command(run))
