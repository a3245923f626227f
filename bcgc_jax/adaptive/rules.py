"""How plans are made from what the last iterations have shown: each rule one plan, in one go.

Without redundancy shares are even, else by speed: by their mean start-ups and cycle times all workers end
at once. On them each worker goes through two subsets, its own and the next one, or shares are even, in nested
groups, of which nobody is asked anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.plan import Plan, cyclic_plan, partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.nested import Nested
from bcgc_jax.solvers.solve import solve

# Subsets that a worker stores at most where it is not said otherwise.
MOST_STORED = 20
# Quantiles of all times that groups are made for.
_DRAWS = 64


class Window(NamedTuple):
    """Cycle times and start-ups of the last iterations, `[R, N]`; at most N subsets may be stored."""

    times: np.ndarray
    max_stored: int
    key: jax.Array
    start_ups: np.ndarray | float = 0.0

    @property
    def starts_late(self) -> bool:
        return float(np.mean(self.start_ups)) > 0.01 * float(np.mean(self.times))


Rule = Callable[[Window], WorkPlan]
Shares = Callable[[Window], np.ndarray]


def even_shares(window: Window) -> np.ndarray:
    workers = window.times.shape[1]
    return np.full(workers, 1 / workers)


def by_speed(window: Window) -> np.ndarray:
    """p with S_w + N p_w T_w the same for all workers, by their means; who starts too late has hardly any.

    Workers whose means differ by no more than their errors count as alike: chance is not followed, and
    subsets of few different sizes are few different programs.

    >>> by_speed(Window(np.array([[1.0, 2.0, 2.0]]), 3, jax.random.key(0), np.array([[0.0, 0.0, 0.9]])))
    array([0.575 , 0.2875, 0.1375])
    """
    workers = window.times.shape[1]
    starts = np.broadcast_to(window.start_ups, window.times.shape)
    speed, start = 1 / _alike_together(window.times), _alike_together(starts)
    order = np.argsort(start)
    # All that begin before the end share what there is: Σ (end - S_w) / T_w = N over the first k of them.
    ends = (workers + np.cumsum((speed * start)[order])) / np.cumsum(speed[order])
    share = np.maximum((float(np.min(ends)) - start) * speed, 1e-3)  # a subset without samples is none
    return share / share.sum()


def _alike_together(values: np.ndarray) -> np.ndarray:
    """Means of the columns of `[R, N]`, one for neighbours in order that differ by 1.5 errors at most.

    >>> slow = np.array([[1.0, 3.0, 1.2], [1.2, 3.1, 1.1]])
    >>> _alike_together(slow)
    array([1.125, 3.05 , 1.125])
    """
    found = np.mean(values, axis=0)
    if len(values) < 2:
        return found
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    order = np.argsort(found)
    apart = np.diff(found[order]) > 1.5 * np.hypot(error[order][1:], error[order][:-1])
    for group in np.split(order, np.flatnonzero(apart) + 1):
        found[group] = np.mean(found[group])
    return found


def uncoded(window: Window) -> WorkPlan:
    """A code of level 0, of which each message is sent, and not asked for as a sum of a schedule is."""
    shares = even_shares(window)
    return WorkPlan("uncoded", shares, partition_plan(np.ones(1), shares.size))


def _cyclic(window: Window, shares: Shares) -> WorkPlan:
    """A worker's own subset, then its neighbour's: who is alone in being slow is made up for."""
    return WorkPlan("cyclic", shares(window), cyclic_plan(1.0, min(2, window.max_stored)))


def _quantiles(times: np.ndarray, count: int = _DRAWS) -> np.ndarray:
    """Of all times, so many whatever the window: the search is one program. No time is 0."""
    return np.maximum(np.quantile(times, (np.arange(count) + 0.5) / count), 1e-12)


def nested(window: Window) -> WorkPlan:
    """Nested groups with the best sizes for all times and the mean start-up, workers alike."""
    workers = window.times.shape[1]
    law = smooth_or_atoms(_quantiles(window.times, _DRAWS // 2 * workers), num_workers=workers)
    start = float(np.mean(window.start_ups)) if window.starts_late else None
    size = 1_000_000  # so many whole coordinates that nothing is lost by rounding
    problem = Problem(law, workers, size, cycles=workers / size, start_up=start)
    plan: Any = solve(problem, Nested(window.max_stored)).plan
    # A first block of nothing would be done by all at once.
    used = np.flatnonzero(np.asarray(plan.sizes) > 0)
    rule = OneOfEach(tuple(plan.completion.groups[k] for k in used), plan.completion.kinds)
    data, one = np.asarray(plan.data)[:, used], np.ones(used.size)
    found = Plan(plan.sizes[used] / size, np.arange(used.size), data, one, rule)
    return WorkPlan("nested", even_shares(window), found)


def rules(shares: Shares = by_speed) -> dict[str, Rule]:
    """All of them."""
    return {"uncoded": uncoded, "cyclic": lambda window: _cyclic(window, shares), "nested": nested}


RULES = rules()
