"""Schedules, in which every finished subset counts: exact covers, draws, and the search for the best one."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.plans.runtime import draw_runtimes
from bcgc_jax.plans.schedules import Group, cycles_of, schedule_of
from bcgc_jax.plans.worker import Load, Worker
from benchmarks import peers
from benchmarks.planning import LAW, paper_problem
from benchmarks.timing import compare, in_float64, result_row

SIZES = (10, 20, 50)
# Workers and stored subsets of the exact covers.
COVERS = (*((n, n) for n in SIZES), (1000, 50))
METHODS = ("cyclic:{}", "alternating:{}", "multi_message")
# Draws of a mean.
_DRAWS = 2**14

Row = dict[str, Any]


@in_float64
def schedules() -> Iterator[Row]:
    """Schedules without a code at N = 10, 20, 50 and 1000, against NumPy's matrix powers and draws."""
    return itertools.chain(_covers(), _draws(), _solutions())


def _covers() -> Iterator[Row]:
    for workers, depth in COVERS:
        worker = Worker(LAW, jnp.zeros(()), jnp.ones(()))
        rule, work = FirstHolder(workers, workers), jnp.arange(1.0, depth + 1)
        cover = jax.jit(functools.partial(expected_completion, rule=rule, num_nodes=96))
        package = functools.partial(cover, worker, Load(work))
        peer = functools.partial(peers.cyclic_runtime, workers, depth)
        found = compare({"package": package, "peer": peer}, 3 if workers == 1000 else 15)
        value, bound = (float(v) for v in found["package"].value)
        error, away = bound / value, abs(found["peer"].value / value - 1)
        what, against = f"exact runtime, cyclic:{depth}, N={workers}", "tr(A^N) in NumPy at 96 nodes"
        accuracy = f"error bound {error:.1e}; the peer is {away:.1e} away"
        errors = {"error": error, "peer_error": away}
        yield result_row("schedules", what, found, accuracy, errors, against=against)


def _draws() -> Iterator[Row]:
    """The same number of draws, of the alternating schedule of all subsets."""
    for workers in SIZES:
        schedule = schedule_of([Group(workers, 10)], jnp.full(10, 10.0))
        problem = bcgc.Problem(LAW, workers, 100, num_samples=workers)
        cycles, rng = np.asarray(cycles_of(schedule)), np.random.default_rng(0)
        draw = jax.jit(draw_runtimes, static_argnames="num_draws")
        package = functools.partial(draw, jax.random.key(0), problem, schedule, num_draws=_DRAWS)
        peer = functools.partial(peers.mean_schedule, rng, cycles, workers, _DRAWS)
        found = compare({"package": package, "peer": peer}, 5)
        tau = np.asarray(found["package"].value)
        error = float(tau.std() / _DRAWS**0.5 / tau.mean())
        away = abs(found["peer"].value / tau.mean() - 1) / error
        what, against = f"{_DRAWS} draws, alternating:{workers}, N={workers}", "as many draws in NumPy"
        accuracy = f"standard error {error:.1e}, the means {away:.1f} of them apart"
        yield result_row("schedules", what, found, accuracy, {"error": error}, against=against)


def _solutions() -> Iterator[Row]:
    """What `solve` takes, with the error of the expected runtime, and what is sent."""
    for workers in SIZES:
        problem = paper_problem(workers)
        optimum = float(bcgc.solve(problem, "optimal").expected_runtime)
        for method in (name.format(workers) for name in METHODS):
            solve = functools.partial(bcgc.solve, problem, method, key=jax.random.key(0))
            found = compare({"package": solve}, 1 if method == "multi_message" else 3)
            solution = found["package"].value
            value, error = float(solution.expected_runtime), float(solution.runtime_error)
            kind = "error bound" if method.startswith("cyclic") else "standard error"
            accuracy = (
                f"expected runtime {value:.4g} ({kind} {error / value:.0e}), "
                f"{100 * (1 - value / optimum):.1f} % less than the certified optimum with a code"
            )
            what = f"solve, {method}, N={workers}"
            figures = {"expected_runtime": value, "error": error / value}
            yield result_row("schedules", what, found, accuracy, figures)
