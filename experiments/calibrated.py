"""Real slowness: measure workers beside a competing load, plan with that, and run the plan.

A process on each core trains a perceptron of three layers on the handwritten digits; now and then
others compute on the same core, and take most of it away. A first run, a layer at each of the first
levels, tells the costs: cycle times, the forward pass of a sample, a message. Then, round after
round, the problem is solved under the smooth empirical law of the round before (cycle times of
workers that were not waited for are censored), and the uncoded scheme and the plan are run by
turns: what the machine does meanwhile, it does to both. No time is made up here: figures differ
from machine to machine, and what the master and the messages cost is in what is measured, not in
what is predicted. Needs Linux, to keep processes on their cores; six minutes.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import (
    Calibration,
    Cluster,
    ClusterTraining,
    Told,
    Work,
    calibrate,
    train_on_cluster,
)
from bcgc_jax.coding.gradients import coding_plan, split_unevenly
from experiments.digits import cross_entropy, load_digits
from experiments.models import perceptron
from experiments.report import each, number, print_table, run_command, save
from experiments.rivals import rivals

# Mean seconds for which the rivals compute and do not.
_BUSY, _IDLE = 0.2, 0.4
# Of consecutive iterations, each longer than the rivals are busy.
_BATCHES = 20
# How often each scheme has its turn in a round: each time its processes compile nothing, but are
# told a plan.
_TURNS = 8
_METHODS = ("uncoded", "optimal")


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int | None = None,
    widths: Sequence[int] = (64, 512, 512, 10),
    steps: int = 400,
    rounds: int = 2,
) -> None:
    """Measure `steps` iterations, and run as many of each scheme a round; a worker has a core."""
    cores = sorted(os.sched_getaffinity(0))
    workers = max(len(cores), 2) if workers is None else workers
    data = jax.tree.map(np.asarray, load_digits(workers).train)
    samples = len(data[1])
    params = perceptron(widths, 1, seed).params
    order = bcgc.coding.backward_order(cross_entropy, params, jax.tree.map(lambda x: x[:2], data))
    sizes = bcgc.coding.unit_sizes(params, "layers", order)
    rows: list[dict[str, Any]] = []
    with Cluster(workers) as cluster, rivals(cores, seed, busy=_BUSY, idle=_IDLE):
        costs = found = _measure(cluster, cores, params, data, order, len(sizes), steps, seed)
        for number_ in each(range(rounds), "rounds"):
            law = bcgc.measured.smooth_empirical(found.cycle_times, found.censored)
            problem = bcgc.Problem(
                *(law, workers, len(sizes), samples),
                setup_cycles=costs.setup_cycles,
                unit_costs=sizes,
            )

            def train(method: str, count: int, problem: bcgc.Problem = problem) -> ClusterTraining:
                told = Told(problem, method, {"units": "layers", "order": order})
                given = params, data, optax.sgd(0.1), count
                return train_on_cluster(jax.random.key(seed), cross_entropy, told, cluster, *given)

            runs = _by_turns(train, steps)
            rows += [_row(number_ + 1, problem, method, runs[method][0]) for method in _METHODS]
            found = calibrate(runs["optimal"][1], cluster.plan, samples, costs=costs)
    _print(costs, rows, samples)
    times = [
        {
            "iteration": k,
            "worker": w,
            "cycle_time": float(t),
            "censored": bool(costs.censored[k, w]),
        }
        for (k, w), t in np.ndenumerate(costs.cycle_times)
    ]
    save(out, {"calibrated": rows, "calibrated_cycle_times": times})


def _measure(
    cluster: Cluster,
    cores: Sequence[int],
    params: Any,
    data: Any,
    order: Any,
    layers: int,
    steps: int,
    seed: int,
) -> Calibration:
    """Run iterations with a layer at each of the first levels, to tell costs of levels apart."""
    workers = cluster.num_workers
    counts = np.bincount(np.minimum(np.arange(layers), workers - 1), minlength=workers)
    plan = coding_plan(jax.random.key(seed), params, counts, units="layers", order=order)
    cluster.assign(cross_entropy, plan, params, split_unevenly(data, workers))
    for worker, pid in enumerate(cluster.pids):
        assert pid is not None
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), [cores[worker % len(cores)]])
    work = [item for _ in range(steps) for item in cluster.gradient(params).work]
    return calibrate(work, plan, len(data[1]))


def _by_turns(
    train: Callable[[str, int], ClusterTraining], steps: int
) -> dict[str, tuple[np.ndarray, list[Work]]]:
    """Return each scheme's seconds and what was measured, numbered as if of one training."""
    seconds: dict[str, list[np.ndarray]] = {method: [] for method in _METHODS}
    work: dict[str, list[Work]] = {method: [] for method in _METHODS}
    for part in np.array_split(np.arange(steps), min(_TURNS, steps)):
        for method in _METHODS:
            one = train(method, part.size)
            seconds[method].append(one.seconds)
            work[method] += [
                item._replace(iteration=item.iteration + int(part[0])) for item in one.work
            ]
    return {method: (np.concatenate(seconds[method]), work[method]) for method in _METHODS}


def _row(number_: int, problem: bcgc.Problem, method: str, seconds: np.ndarray) -> dict[str, Any]:
    solution = bcgc.solve(problem, method)
    # Iterations near each other are alike: the standard error is that of the means of batches.
    means = [batch.mean() for batch in np.array_split(seconds, min(_BATCHES, len(seconds)))]
    return {
        "round": number_,
        "method": method,
        "layers_at_levels": " ".join(map(str, np.asarray(solution.rounded).tolist())),
        "predicted_seconds": float(solution.rounded_runtime),
        "measured_seconds": float(seconds.mean()),
        "standard_error": float(np.std(means, ddof=1) / np.sqrt(len(means))),
    }


def _print(costs: Calibration, rows: Sequence[dict[str, Any]], samples: int) -> None:
    times = costs.cycle_times[~costs.censored]
    print(
        "\n"
        f"Measured: {times.size} cycle times, mean {times.mean():.3g} s a coordinate and sample, "
        f"standard deviation {100 * times.std() / times.mean():.0f} %;\n"
        f"a forward pass of a sample is {costs.setup_cycles:.3g} cycles, a message "
        f"{1e3 * costs.message_seconds:.2g} ms; {samples} samples."
    )
    lines: list[list[Any]] = []
    for row in rows:
        seconds = [number(row[f"{k}_seconds"], 3) for k in ("predicted", "measured")]
        names = row["round"], row["method"], row["layers_at_levels"]
        lines.append([*names, *seconds, number(row["standard_error"], 2)])
    header = ["round", "scheme", "layers at levels", "predicted", "measured", "standard error"]
    print_table("Seconds of a step, round after round", header, lines)


if __name__ == "__main__":
    sys.exit(run_command(run))
