"""Compute that nobody can interrupt: the worth of redundancy on processes that end each
chunk.

The layers of a small network sleep, forward and backward, in proportion to their
samples. So a chunk takes time, and "stop" does not end it. Workers are equal, or each
is five times as slow in one of seven seconds. Some pause. Then real matrix products:
two workers have a core each, and on one another program computes.

Schemes are trained one after the other. Their seconds are held against two predictions,
from the times that the passes of the first one took: for workers that are free when a
step ends, and for steps in a row, where each first ends what it does. Work sharing is
predicted with what a chunk costs beside its pass, as equal workers show it: a question,
its answer, and a call of the program. Twenty minutes; nothing else should run beside
it.
"""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.cluster import (
    ClosedLoop,
    Cluster,
    ClusterTraining,
    Run,
    Told,
    train_on_cluster,
)
from bcgc_jax.cluster.planning import scheme_for
from bcgc_jax.steps.chunk_lengths import chunk_sizes
from experiments.cluster import on_processes, successive
from experiments.models import perceptron
from experiments.report import number, print_table, run_command, save, with_progress

LAYERS = 2
WIDTH = 4
SAMPLES_OF_A_WORKER = 32
CHUNKS = 8  # of a subset, in the passes of a code
# Seconds of a worker's subset, times as long in a slow second, one of so many.
SUBSET = 0.29
SLOWER = 5.0
ONE_OF = 7
# Iterations that a prediction of a code is the mean of.
DRAWN = 2000
# Steps of equal workers in which the costs of a chunk are measured.
ROUND_TRIPS = 40
# Seconds between two naps of a pass, at most.
GAP = 0.01
LOOP = "ClosedLoop()"
METHODS = (
    "uncoded",
    "optimal",
    "cyclic:2",
    "nested:2",
    "sharing:2:8",
    "sharing:3:8",
    LOOP,
)
EQUAL = ("uncoded", "sharing:2:8", LOOP)
# Two workers that pause at once may be all that store a chunk twice: then all wait.
PAUSING = ("uncoded", "sharing:2:8", "sharing:3:8")
PAUSES = 0.002
# Widths of the layers and samples of a worker, where products are real.
_WIDTHS = (512,) * 7
_SAMPLES = 512


class Setting(NamedTuple):
    """Workers and their training: `slower` times as slow in a slow second; None for
    real products.

    With `pauses` so many of the chunks, ten a subset, begin 2 to 10 subsets' times
    late.
    """

    name: str
    workers: int
    slower: float | None
    steps: int
    methods: Sequence[str]
    pauses: float = 0.0


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: Sequence[int] = (4, 8),
    steps: int = 100,
    equal_steps: int = 200,
    subset: float = SUBSET,
    methods: Sequence[str] = METHODS,
    equal: Sequence[str] = EQUAL,
    pauses: float = PAUSES,
    real: bool = True,
) -> None:
    """Run `steps` of workers slow at random, `equal_steps` of equal; `subset` in s."""
    settings = [
        Setting("slow at random", count, SLOWER, steps, methods) for count in workers
    ]
    settings += [Setting("equal", workers[0], 1.0, equal_steps, equal)]
    if pauses:
        settings += [Setting("pauses", workers[-1], 1.0, equal_steps, PAUSING, pauses)]
    if real:
        settings += [Setting("a load beside one", 2, None, steps, equal)]
    tasks = [(setting, method) for setting in settings for method in setting.methods]
    rows: list[dict[str, Any]] = []
    round_trips: dict[int, float] = {}  # by the number of workers
    with contextlib.ExitStack() as stack:
        cluster = None
        first = None
        for setting, method in with_progress(tasks, "training"):
            if cluster is None or cluster.size != setting.workers:
                stack.close()
                cluster = stack.enter_context(Cluster(setting.workers))
            if method.startswith("sharing") and setting.workers not in round_trips:
                round_trips[setting.workers] = _round_trip(cluster, seed, subset)
            training = trained(cluster, seed, setting, method, subset)
            if method == setting.methods[0]:
                first = training
            assert first is not None
            round_trip = round_trips.get(setting.workers, 0.0)
            predicted = _predicted(seed, setting, subset, method, first, round_trip)
            rows.append(
                _row(setting, method, training, first, predicted)
                | {"round_trip": round_trip}
            )
    print_table(
        "Seconds of a step; nobody interrupts a pass; against the first scheme for "
        "the same workers",
        (
            "workers",
            "N",
            "scheme",
            "if all were free",
            "in a row",
            "measured",
            "± s.e.",
            "against",
            "limit",
        ),
        [_printed(row) for row in rows],
    )
    print("\nlimit: all work spread perfectly in each step, against the first scheme.")
    for count, seconds in round_trips.items():
        print(
            f"Beside its pass a chunk costs {1e3 * seconds:.1f} ms with {count} "
            "workers."
        )
    save(out, {"busy": rows})


def _row(
    setting: Setting,
    method: str,
    training: ClusterTraining,
    first: ClusterTraining,
    predicted: tuple[float, float] | None,
) -> dict[str, Any]:
    seconds = training.seconds
    passes = _passes(first, setting.workers)
    return {
        "workers": setting.name,
        "num_workers": setting.workers,
        "scheme": method,
        "steps": setting.steps,
        "free": predicted and predicted[0],
        "in_a_row": predicted and predicted[1],
        "measured": seconds.mean(),
        "standard_error": seconds.std(ddof=1) / np.sqrt(setting.steps),
        "against_first": seconds.mean() / first.seconds.mean(),
        "limit": float(
            np.mean(setting.workers / np.sum(1 / passes, axis=1))
            / np.mean(passes.max(axis=1))
        ),
    }


def _printed(row: dict[str, Any]) -> list[object]:
    return [
        *(row["workers"], row["num_workers"], row["scheme"]),
        *(number(row[name], 3) for name in ("free", "in_a_row", "measured")),
        number(row["standard_error"], 2),
        *(f"{row[name]:.3f}" for name in ("against_first", "limit")),
    ]


def _passes(training: ClusterTraining, workers: int) -> np.ndarray:
    """Seconds of workers' subsets in steps, `[K, N]`, of an uncoded training."""
    seconds = np.zeros((len(training.seconds), workers))
    for item in training.work:
        seconds[item.iteration, item.worker] += item.seconds
    return seconds


def _round_trip(cluster: Cluster, seed: int, subset: float) -> float:
    """Mean seconds that a chunk takes beside its pass, by equal workers."""
    setting = Setting("equal", cluster.size, 1.0, ROUND_TRIPS, ())
    work = trained(cluster, seed, setting, "sharing:2:8", subset).work
    heard: dict[tuple[int, int], float] = {}
    sizes = chunk_sizes(CHUNKS)
    beside = []
    for item in sorted(work, key=lambda item: item.heard):
        before = heard.get((item.iteration, item.worker))
        heard[item.iteration, item.worker] = item.heard
        if before is not None:
            beside.append(item.heard - before - subset * sizes[item.block] / sum(sizes))
    return float(np.mean(beside))


def _problem(workers: int, law: bcgc.distributions.Distribution) -> bcgc.Problem:
    """A pass is forward, back through the layers, and the gradients: each a third."""
    count = LAYERS * WIDTH**2
    samples = workers * SAMPLES_OF_A_WORKER
    costs = np.full(LAYERS, float(WIDTH**2))
    return bcgc.Problem(
        *(law, workers, LAYERS, samples),
        unit_costs=costs,
        setup_cycles=count,
        chain_cycles=1.0,
    )


def _cycle_times(passes: np.ndarray) -> bcgc.Empirical:
    """Return the law of the seconds of whole passes."""
    return bcgc.Empirical(passes / (SAMPLES_OF_A_WORKER * 3 * LAYERS * WIDTH**2))


def _planned_for(workers: int, slower: float, subset: float) -> bcgc.Problem:
    return _problem(
        workers, _cycle_times(np.array([1.0] * (ONE_OF - 1) + [slower]) * subset)
    )


def _plans_for(setting: Setting, method: str, subset: float) -> Told:
    """Plan whole leaves: a pass for a part of a leaf's gradient computes it all."""
    assert setting.slower is not None
    problem = _planned_for(setting.workers, setting.slower, subset)
    options = {}
    if not method.startswith("sharing"):
        options = {"chunks": CHUNKS}
    return Told(problem, on_processes(method), {"units": "leaves", **options})


def _predicted(
    seed: int,
    setting: Setting,
    subset: float,
    method: str,
    first: ClusterTraining,
    round_trip: float,
) -> tuple[float, float] | None:
    """Return seconds of a step if all were free, and in a row, with passes of the first
    scheme.

    Of the plan that is trained with. None of a loop, of workers that are unlike, and
    where they pause.
    """
    if method == LOOP or setting.slower is None or setting.pauses:
        return None
    law = _cycle_times(_passes(first, setting.workers).ravel())
    plans = _plans_for(setting, method, subset)
    key = jax.random.key(seed)
    if method.startswith("sharing"):
        plan: Any = bcgc.solve(
            plans.problem, replace(on_processes(method), round_trip=round_trip)
        ).plan
        runtime = bcgc.simulate_runtime(
            key, _problem(setting.workers, law), plan, 2**14
        )
        assert runtime.chained is not None
        return float(runtime.mean), float(runtime.chained)
    scheme = scheme_for(key, plans, range(setting.workers), _params(seed), None)
    times = np.asarray(law.sample(key, (DRAWN, setting.workers)), float)
    free = [scheme.plan.completed(scheme.pace(0.0, row)).max() for row in times]
    return float(np.mean(free)), float(
        successive(scheme, times, f"chunk:{CHUNKS}").mean()
    )


def _params(seed: int) -> list[np.ndarray]:
    keys = jax.random.split(jax.random.key(seed), LAYERS)
    return [
        np.asarray(jax.random.normal(layer_key, (WIDTH, WIDTH))) / 2
        for layer_key in keys
    ]


BeforeStep = Callable[[int, Cluster], None]


def trained(
    cluster: Cluster,
    seed: int,
    setting: Setting,
    method: str,
    subset: float,
    before_step: BeforeStep = lambda step, cluster: None,
) -> ClusterTraining:
    key = jax.random.key(seed)
    planned = "uncoded" if method == LOOP else method  # a loop is told nothing
    if setting.slower is None:
        model = perceptron(_WIDTHS, _SAMPLES * setting.workers)
        params = model.params
        data = model.batch
        loss = model.loss
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
        problem = bcgc.Problem(
            bcgc.Exponential(1.0), setting.workers, size, _SAMPLES * setting.workers
        )
        plans: Any = Told(problem, on_processes(planned))
    else:
        params = _params(seed)
        plans = _plans_for(setting, planned, subset)
        samples = setting.workers * SAMPLES_OF_A_WORKER
        data = np.asarray(jax.random.normal(jax.random.key(seed + 1), (samples, WIDTH)))
        # A third forward, and two backward; but none for the slope of the data.
        unit = subset / SAMPLES_OF_A_WORKER
        pauses = 10 * setting.pauses / SAMPLES_OF_A_WORKER
        loss = sleeping_loss(
            unit / (3 * LAYERS - 1), setting.slower, seed, pauses, subset
        )
    if method == LOOP:
        plans = ClosedLoop()
    alone = contextlib.nullcontext(before_step)
    with _beside_a_load() if setting.slower is None else alone as before:
        run = Run(cluster, before_step=before)
        return train_on_cluster(
            key, loss, plans, run, params, data, optax.sgd(1e-2), setting.steps
        )


@contextlib.contextmanager
def _beside_a_load() -> Iterator[BeforeStep]:
    """Give each worker one core; the first shares it with another program."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    spins = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(spins.pid, cores[:1])

    def pin(step: int, cluster: Cluster) -> None:
        for pid, core in zip(cluster.pids, cores, strict=True):
            if step or pid is None:
                threads = []
            else:
                threads = os.listdir(f"/proc/{pid}/task")
            for thread in threads:
                os.sched_setaffinity(int(thread), [core])

    try:
        yield pin
    finally:
        spins.kill()
        spins.wait()


def sleeping_loss(
    unit: float, slower: float, seed: int, pauses: float = 0.0, pause: float = 0.0
) -> Callable[[Any, Any], Any]:
    """A loss whose layers take `unit` seconds a sample for each of the three parts of a
    pass.

    The naps of a pass follow each other at once, whatever the program does between
    them: so a pass takes as long as its samples say, however few they are. For each
    sample there is so small a probability `pauses` that the pass begins 2 to 10 times
    `pause` seconds late.
    """
    ended = [0.0]  # when the last nap of this process has
    # by process: the master calls the loss too, before it is sent
    draws: dict[int, np.random.Generator] = {}

    def sleep(begins: bool, x: Any) -> np.ndarray:
        now = time.perf_counter()
        rng = np.random.default_rng([seed, os.getpid(), int(time.time())])
        slow = 1.0
        if rng.integers(ONE_OF) == 0:
            slow = slower
        follows = not begins and now - ended[0] < GAP
        ended[0] = (ended[0] if follows else now) + unit * slow * len(x)
        if pauses and begins:
            draw = draws.setdefault(
                os.getpid(), np.random.default_rng([seed, os.getpid()])
            )
            if draw.random() < pauses * len(x):
                ended[0] += pause * draw.uniform(2, 10)
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
def _sleeping_layer(
    busy: Callable[..., Any], begins: bool, weights: Any, x: Any
) -> Any:
    return busy(jnp.tanh(x @ weights), begins)


def _forward(
    busy: Callable[..., Any], begins: bool, weights: Any, x: Any
) -> tuple[Any, Any]:
    y = _sleeping_layer(busy, begins, weights, x)
    return y, (weights, x, y)


def _backward(
    busy: Callable[..., Any], begins: bool, kept: Any, slope: Any
) -> tuple[Any, Any]:
    weights, x, y = kept
    slope = slope * (1 - y * y)
    return x.T @ busy(slope), busy(slope @ weights.T)


_sleeping_layer.defvjp(_forward, _backward)


if __name__ == "__main__":
    sys.exit(run_command(run))
