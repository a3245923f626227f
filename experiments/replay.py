"""What plans that were made from the past of measured times would have taken in the steps that followed.

A plan is made once, from the first part, or anew every few steps, from a window of the last ones. Times are
of whole steps as they were recorded: uncoded a step takes its longest time. Every pass that a plan adds is
counted, a forward pass `FORWARD` times as long as a backward pass; workers are free as a step ends, and
questions take no time. Worker w of a trace is worker w of a plan in every step: a cluster does not reshuffle
its data.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.plans.runtime import problem_tasks
from bcgc_jax.plans.storage_bound import least_alone, storage_bound
from experiments.report import each

# So many that whole numbers of them need no search.
COORDINATES = 1_000_000
# A forward pass over a backward pass: what the training job of 32 workers recorded.
FORWARD = 0.47

# The times of steps under a plan: `[R, N]` to `[R]`.
Runtimes = Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """How a plan is made of steps, `[R, N]`: of how many of the last ones, every how many.

    0: once, of all before.
    """

    plan: Callable[[np.ndarray], Runtimes]
    window: int = 0
    every: int = 0


def problem(law: bcgc.distributions.Distribution, num_workers: int, forward: float = 0.0) -> bcgc.Problem:
    """One step as it was recorded: uncoded, a worker takes its time."""
    cycles = num_workers / COORDINATES / (1 + forward)
    setup = forward * COORDINATES * cycles or None
    return bcgc.Problem(law, num_workers, COORDINATES, cycles=cycles, setup_cycles=setup)


def pooled(rows: np.ndarray) -> bcgc.distributions.Distribution:
    """The law of all times, as if workers were alike and steps independent."""
    try:
        return bcgc.measured.smooth_empirical(rows.ravel())
    except ValueError:  # too few different times for a curve
        return bcgc.Empirical(rows.ravel())


def planned(method: str) -> Callable[[np.ndarray], Runtimes]:
    """By `solve`, for the law of all times."""

    def plan(rows: np.ndarray) -> Runtimes:
        given = problem(pooled(rows), rows.shape[1], FORWARD)
        found = bcgc.solve(given, method, key=jax.random.key(0)).plan
        assert found is not None
        if method == "nested":
            found = bcgc.solvers.place_workers(given, found, rows)
        load, rule, scale = problem_tasks(given, found)
        taken = jax.jit(lambda times: scale * rule.runtimes(load, False, jnp.zeros_like(times), times))
        return lambda times: np.asarray(taken(times))

    return plan


def by_speed(rows: np.ndarray) -> Runtimes:
    """Shares of the data by each worker's speed, 1 / its mean time so far: nobody does a pass more."""
    speed = 1 / rows.mean(axis=0)
    share = rows.shape[1] * speed / speed.sum()
    return lambda times: (share * times).max(axis=1)


# "20/1" is for a plan from the last 20 steps, made anew before each.
RULES: Mapping[str, Rule] = MappingProxyType(
    {name: Rule(planned(name)) for name in ("uncoded", "optimal", "nested")}
    | {"shares 20/1": Rule(by_speed, 20, 1)}
    | {name: Rule(planned(name)) for name in ("sharing:2", "sharing:3", "sharing:all")}
)


def bound(rows: np.ndarray, max_subsets: int) -> np.ndarray:
    """The storage bound of each step, `[R]`; it is one of the mean over all places of the workers."""
    alone = least_alone(rows.shape[1], max_subsets)
    return np.asarray(jax.jit(jax.vmap(lambda times: storage_bound(None, times, alone)))(rows))


# What no exact scheme beats.
BOUNDS: Mapping[str, Runtimes] = MappingProxyType(
    {"limit:2": lambda rows: bound(rows, 2), "limit": lambda rows: bound(rows, rows.shape[1])}
)


def replay(
    rows: np.ndarray, num_planned: int, *, rules: Mapping[str, Rule] = RULES, name: str = "steps"
) -> dict[str, np.ndarray]:
    """What every rule takes, and the bounds, in the steps of `rows`, `[S, N]`, after `num_planned`.

    A window longer than the first part is cut to it: all windows of a rule are equally long.
    """
    rest = rows[num_planned:]
    size = len(rest)
    to_do = [(key, start) for key, rule in rules.items() for start in range(0, size, rule.every or size)]
    found = {key: np.empty(size) for key in rules}
    for key, start in each(to_do, f"plans for {name}"):
        rule, now = rules[key], num_planned + start
        window = min(rule.window or num_planned, num_planned)
        held = slice(start, start + (rule.every or size))
        found[key][held] = rule.plan(rows[now - window : now])(rest[held])
    return found | {key: runtimes(rest) for key, runtimes in BOUNDS.items()}
