"""How plans are made from the cycle times of the last iterations: each rule one plan, in one go.

Shares are even, or by speed: in proportion to 1 / a worker's mean time. On them there is nothing more, or two
subsets each in blocks that neighbours do from both ends, or `credit`: a first block, some on two subsets and
some on as many as fit, with sizes by stochastic subgradients on the iterations themselves, workers in random
order. Or they are coded, by the certified optimum for the law of all times.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.laws import Empirical, Law, Rows
from bcgc_jax.measured.smooth import smooth_empirical
from bcgc_jax.problem import Problem
from bcgc_jax.schedules import Group, schedule_of
from bcgc_jax.solvers.credit import search_sizes
from bcgc_jax.solvers.methods import Optimal
from bcgc_jax.solvers.solve import solve

# Subsets that a worker stores at most where it is not said otherwise.
MOST_STORED = 20
# Iterations that sizes are searched on, drawn from those known; steps, and draws of a step.
_ROWS, _STEPS, _DRAWS = 64, 150, 64
# Shares to begin with of the first block and of those on two subsets.
_FRONT = 1 / 7
# Workers up to which a law of few different times is searched for a code.
_MOST_OF_ATOMS = 32
# So many whole coordinates that nothing is lost by rounding.
_COORDINATES = 1_000_000


class Window(NamedTuple):
    """Cycle times of the last iterations, `[R, N]`, a worker's last ones at the end."""

    times: np.ndarray
    max_stored: int
    key: jax.Array


Rule = Callable[[Window], WorkPlan]


def even(window: Window) -> np.ndarray:
    workers = window.times.shape[1]
    return np.full(workers, 1 / workers)


def by_speed(window: Window) -> np.ndarray:
    speed = 1 / window.times.mean(axis=0)
    return speed / speed.sum()


def _uncoded(name: str, shares: Callable[[Window], np.ndarray]) -> Rule:
    def rule(window: Window) -> WorkPlan:
        return WorkPlan(name, shares(window), schedule_of([Group(1, 1)], np.ones(1)))

    return rule


def _alternating(name: str, shares: Callable[[Window], np.ndarray], parts: int) -> Rule:
    def rule(window: Window) -> WorkPlan:
        depth = min(2, window.max_stored, window.times.shape[1])
        return WorkPlan(name, shares(window), schedule_of([Group(depth, parts)], np.full(parts, 1 / parts)))

    return rule


def _credit(name: str, shares: Callable[[Window], np.ndarray], parts: int) -> Rule:
    def rule(window: Window) -> WorkPlan:
        workers = window.times.shape[1]
        depth = min(window.max_stored, workers)
        groups = [Group(1, 1), Group(min(2, depth), parts), Group(depth, 2 * parts)]
        rest = (1 - 2 * _FRONT) / (2 * parts)
        sizes = np.r_[_FRONT, np.full(parts, _FRONT / parts), np.full(2 * parts, rest)]
        share = shares(window)
        draw, search = jax.random.split(window.key)
        row = np.asarray(jax.random.randint(draw, (_ROWS,), 0, len(window.times)))
        law = Rows(jnp.asarray((workers * share * window.times)[row], jnp.float32))
        schedule = schedule_of(groups, jnp.asarray(sizes, jnp.float32))
        found = search_sizes(search, Problem(law, workers, 1), schedule, _STEPS, _DRAWS)
        return WorkPlan(name, share, schedule.with_sizes(found))

    return rule


def _pooled(times: np.ndarray) -> Law:
    try:
        return smooth_empirical(times)
    except ValueError:  # too few different times for a curve
        return Empirical(times)


def _coded(window: Window) -> WorkPlan:
    """The certified optimum of codes for the law of all times, workers alike."""
    workers = window.times.shape[1]
    law = _pooled(window.times.ravel())
    if isinstance(law, Empirical) and workers > _MOST_OF_ATOMS:
        return WorkPlan("coded", even(window), partition=np.eye(workers)[0])  # a search takes minutes
    problem = Problem(law, workers, _COORDINATES, cycles=workers / _COORDINATES)
    levels = None if window.max_stored >= workers else range(window.max_stored)
    partition = np.asarray(solve(problem, Optimal(levels=levels)).rounded, float)
    return WorkPlan("coded", even(window), partition=partition / partition.sum())


def rules(parts: int) -> dict[str, Rule]:
    """All of them, with so many blocks of two subsets: more gain a little, and each is a message a subset."""
    return {
        "uncoded": _uncoded("uncoded", even),
        "shares": _uncoded("shares", by_speed),
        "alternating": _alternating("alternating", even, parts),
        "shares, alternating": _alternating("shares, alternating", by_speed, parts),
        "credit": _credit("credit", even, parts),
        "shares, credit": _credit("shares, credit", by_speed, parts),
        "coded": _coded,
    }


RULES: Mapping[str, Rule] = MappingProxyType(rules(8))
