r"""The optimised schedule: sizes of blocks and their order; every finished subset counts.

E τ (see `plans.schedules`) is not convex in the sizes x ≥ 0, Σ x = L: it is that of a max of mins. From each
of a few orders of the tasks, among them one block, one alternating group and the paper's order, stochastic
subgradient steps on log x (Adam; Kingma & Ba 2015) find sizes. Orders within a thousandth of the best by
fresh draws, and not above the best start, are good; the good one with the fewest blocks is searched further.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.schedules import (
    Group,
    circle_plan,
    cycles_of_problem,
    draw_circle,
    schedule_runtime,
    simulate_schedule,
    stored_by,
    tasks_of,
)
from bcgc_jax.problem import Problem

# Parts of groups whose subsets are done forwards and backwards. Of a group of two subsets and the last one 8
# and 16 are 0.5 % better than 2 and 16 at N = 20 and 50 of the paper; 32 in place of 16 no better at N = 50.
_PARTS, _FRONT_PARTS, _MORE_PARTS = 10, 8, 16
# Steps and draws of the first searches and of the last one; Adam's largest step in log x.
_STEPS, _DRAWS, _LAST_STEPS, _LAST_DRAWS, _LARGEST_STEP = 150, 256, 400, 512, 0.15
# Draws that orders are compared by, the same for all, and by which share a mean may be above the best one.
_COMPARED, _AS_GOOD = 2**14, 1e-3
# Numbers of a batch: draws times workers times blocks times subsets.
_MOST = 2**24


def orders(stored: int) -> list[tuple[Group, ...]]:
    """Orders of the tasks to search from, those with few blocks first, for so many stored subsets."""
    depths = range(1, min(stored, 4 + 1))
    fronts = [tuple(Group(depth, 1) for depth in depths[:n]) for n in range(5)]
    found = [(*front, Group(stored, 1)) for front in fronts]
    if stored > 1:
        found += [(*front, Group(stored, 4)) for front in fronts[1:3]]
        found += [(*front, Group(stored, _PARTS)) for front in fronts[:3]]
        found.append((*fronts[1], Group(2, _FRONT_PARTS), Group(stored, _MORE_PARTS)))
    return list(dict.fromkeys(found))


@functools.partial(jax.jit, static_argnames="stored")
def optimise_multi_message(key: Array, problem: Problem, stored: int) -> Plan:
    """The best schedule found for so many stored subsets, padded with empty tasks and blocks."""
    search, compare, last = jax.random.split(key, 3)
    tried = orders(stored)
    subset, block, sizes = (jnp.asarray(a) for a in _padded(tried))
    sizes = (problem.total * sizes).astype(problem.dtype)
    block = jnp.where(subset < jnp.asarray(problem.num_workers), block, -1)  # N may be below `stored`

    def found_from(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Sizes, their mean by draws that are the same for all, and that of the start."""
        subset, block, sizes = given
        start = circle_plan(sizes, subset, block, stored)
        found = search_sizes(search, problem, start, _STEPS, _DRAWS)
        before, after = (_mean(compare, problem, start.with_sizes(x)) for x in (sizes, found))
        return jnp.where(after < before, found, sizes), jnp.fmin(before, after), before

    found, means, starts = jax.lax.map(found_from, (subset, block, sizes))
    # Those with few blocks come first.
    chosen = jnp.argmax(means <= jnp.fmin((1 + _AS_GOOD) * jnp.nanmin(means), jnp.nanmin(starts)))
    best = circle_plan(found[chosen], subset[chosen], block[chosen], stored)
    polished = best.with_sizes(search_sizes(last, problem, best, _LAST_STEPS, _LAST_DRAWS))
    better = _mean(compare, problem, polished) < means[chosen]
    return best.with_sizes(jnp.where(better, polished.sizes, best.sizes))


def _padded(tried: Sequence[Sequence[Group]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tasks, `[G, K]` each, and shares to begin with, `[G, B]`, 0 where there is no block."""
    subsets, blocks = zip(*map(tasks_of, tried), strict=True)
    shares = []
    for *front, last in tried:
        # A seventh in each of the first groups: in the paper's setting at N = 20 a bit less than they get.
        share = [1 / 7 / group.num_blocks for group in front for _ in range(group.num_blocks)]
        shares.append(np.array(share + [(1 - sum(share)) / last.num_blocks] * last.num_blocks))
    return _rows(subsets, 0), _rows(blocks, -1), _rows(shares, 0)


def _rows(rows: Sequence[np.ndarray], padding: int) -> np.ndarray:
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=padding) for row in rows])


def _mean(key: Array, problem: Problem, plan: Plan) -> Array:
    return jnp.mean(simulate_schedule(key, problem, plan, _COMPARED))


@functools.partial(jax.jit, static_argnames=("steps", "draws"))
def search_sizes(key: Array, problem: Problem, start: Plan, steps: int, draws: int) -> Array:
    """Sizes after so many subgradient steps, each of fresh draws; the mean of those of the last third."""
    used = start.sizes > 0
    entries = problem.max_workers * start.sizes.size * stored_by(start)
    draws = max(min(draws, _MOST // entries), 32)

    def sizes_of(logits: Array) -> Array:
        return problem.total * jax.nn.softmax(jnp.where(used, logits, -jnp.inf))

    def loss(logits: Array, key: Array) -> Array:
        cycles = cycles_of_problem(problem, start.with_sizes(sizes_of(logits)))
        starts, times = draw_circle(key, problem, draws)
        return jnp.mean(schedule_runtime(cycles, times, starts, problem.num_workers))

    begin = jnp.log(jnp.where(used, start.sizes, 1))
    unit = loss(begin, key)
    optimiser = optax.adam(optax.cosine_decay_schedule(_LARGEST_STEP, steps, 0.02))

    def step(i: Array, carry: tuple) -> tuple:
        logits, state, sum_ = carry
        slope = jax.grad(loss)(logits, jax.random.fold_in(key, i)) / unit
        update, state = optimiser.update(jnp.where(used, slope, 0), state)
        logits = optax.apply_updates(logits, update)
        return logits, state, sum_ + jnp.where(i >= steps - steps // 3, sizes_of(logits), 0)

    _, _, total = jax.lax.fori_loop(0, steps, step, (begin, optimiser.init(begin), 0 * begin))
    return total / jnp.sum(total) * problem.total
