"""Schedules, in which every finished subset counts: exact covers, draws, and the search for the best one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.plans.schedules import Group, cycles_of, schedule_of, simulate_schedule
from bcgc_jax.plans.worker import Load, Worker
from benchmarks import peers
from benchmarks.planning import LAW, paper_problem
from benchmarks.timing import compare, result_row

SIZES = (10, 20, 50)
# Workers and stored subsets of the exact covers.
COVERS = (*((n, n) for n in SIZES), (1000, 50))
METHODS = ("cyclic:{}", "alternating:{}", "credit")
# Draws of a mean.
_DRAWS = 2**14

Row = dict[str, Any]


def schedules() -> list[Row]:
    """Schedules without a code at N = 10, 20, 50 and 1000, against NumPy's matrix powers and draws."""
    with jax.enable_x64(True):
        return [*_covers(), *_draws(), *_solutions()]


def _covers() -> list[Row]:
    rows = []
    for workers, depth in COVERS:
        worker = Worker(LAW, jnp.zeros(()), jnp.ones(()))
        rule, work = FirstHolder(workers, workers), jnp.arange(1.0, depth + 1)
        cover = jax.jit(functools.partial(expected_completion, rule=rule, num_nodes=96))
        repeats = 3 if workers == 1000 else 15
        result = compare(
            {
                "package": functools.partial(cover, worker, Load(work, jnp.zeros_like(work))),
                "peer": functools.partial(peers.cyclic_runtime, workers, depth),
            },
            repeats,
        )
        value, error = (float(v) for v in result["package"].value)
        away = abs(result["peer"].value / value - 1)
        rows.append(
            result_row(
                "schedules",
                f"exact runtime, cyclic:{depth}, N={workers}",
                result["package"],
                f"error bound {error / value:.1e}; the peer is {away:.1e} away",
                peer=result["peer"],
                against="tr(A^N) in NumPy at 96 nodes",
                repeats=repeats,
                error=error / value,
                peer_error=away,
            )
        )
    return rows


def _draws() -> list[Row]:
    """The same number of draws, of the alternating schedule of all subsets."""
    rows, repeats = [], 5
    for workers in SIZES:
        schedule = schedule_of([Group(workers, 10)], jnp.full(10, 10.0))
        problem = bcgc.Problem(LAW, workers, 100, num_samples=workers)
        cycles, rng = np.asarray(cycles_of(schedule)), np.random.default_rng(0)
        draw = jax.jit(simulate_schedule, static_argnames="num_draws")
        result = compare(
            {
                "package": functools.partial(draw, jax.random.key(0), problem, schedule, num_draws=_DRAWS),
                "peer": functools.partial(peers.mean_schedule, rng, cycles, workers, _DRAWS),
            },
            repeats,
        )
        tau = np.asarray(result["package"].value)
        error = float(tau.std() / _DRAWS**0.5 / tau.mean())
        away = abs(result["peer"].value / tau.mean() - 1) / error
        rows.append(
            result_row(
                "schedules",
                f"{_DRAWS} draws, alternating:{workers}, N={workers}",
                result["package"],
                f"standard error {error:.1e}, the means {away:.1f} of them apart",
                peer=result["peer"],
                against="as many draws in NumPy",
                repeats=repeats,
                error=error,
            )
        )
    return rows


def _solutions() -> list[Row]:
    """What `solve` takes, with the error of the expected runtime, and what is sent."""
    rows = []
    for workers in SIZES:
        problem = paper_problem(workers)
        optimum = float(bcgc.solve(problem, "optimal").expected_runtime)
        for method in (name.format(workers) for name in METHODS):
            repeats = 1 if method == "credit" else 3
            solve = functools.partial(bcgc.solve, problem, method, key=jax.random.key(0))
            result = compare({"package": solve}, repeats)["package"]
            value, error = (float(v) for v in (result.value.expected_runtime, result.value.runtime_error))
            kind = "error bound" if method.startswith("cyclic") else "standard error"
            rows.append(
                result_row(
                    "schedules",
                    f"solve, {method}, N={workers}",
                    result,
                    f"expected runtime {value:.4g} ({kind} {error / value:.0e}), "
                    f"{100 * (1 - value / optimum):.1f} % less than the certified optimum with a code",
                    repeats=repeats,
                    expected_runtime=value,
                    error=error / value,
                )
            )
    return rows
