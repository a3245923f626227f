r"""The optimised schedule: sizes of blocks and their order, with credit for every finished subset.

min over sizes x ≥ 0, Σ x = L, of E τ (see `schedules`) is not convex: a max of mins of linear functions.
From each of a few orders of the tasks, among them one block, one alternating group and the paper's order,
stochastic subgradient steps on log x (Adam; Kingma & Ba 2015) find sizes. What is within a thousandth of the
best by fresh draws counts as good, and of these the one with the fewest blocks is taken and goes on.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax.problem import Problem
from bcgc_jax.schedules import (
    Group,
    Schedule,
    cycles_of,
    draw_circle,
    mean_of,
    schedule_of,
    schedule_runtime,
    simulate_schedule,
    tasks_of,
)

# Parts of a group whose subsets are done forwards and backwards.
_PARTS = 10
# Steps and draws of the first searches and of the last one; Adam's largest step in log x.
_STEPS, _DRAWS, _LAST_STEPS, _LAST_DRAWS, _LARGEST_STEP = 150, 256, 400, 1024, 0.15
# Draws that orders are compared by. The best is within 0.3 % of them, in steps of a thousandth.
_COMPARED, _AS_GOOD = 2**14, 1e-3
# Numbers of a batch: draws times workers times blocks times subsets.
_MOST = 2**24


class Found(NamedTuple):
    """A schedule and the groups that it is made of."""

    schedule: Schedule
    groups: tuple[Group, ...]


def orders(stored: int) -> list[tuple[Group, ...]]:
    """Orders of the tasks to search from, those with few blocks first, for so many stored subsets."""
    last = Group(stored, 1)
    depths = range(1, min(stored, 4 + 1))
    fronts: list[tuple[Group, ...]] = [tuple(Group(depth, 1) for depth in depths[:n]) for n in (1, 2, 3, 4)]
    halves: tuple[Group, ...] = tuple(Group(depth, depth) for depth in depths[:2])
    found: list[tuple[Group, ...]] = [(last,), *((*front, last) for front in fronts)]
    if stored > 1:
        found += [(*front, Group(stored, 4)) for front in fronts[:2]]
        found += [(*front, Group(stored, _PARTS)) for front in ((), fronts[0], fronts[1], halves)]
    return list(dict.fromkeys(found))


def alternating_schedule(problem: Problem, stored: int, num_blocks: int) -> Schedule:
    """One group of equal blocks."""
    return schedule_of([Group(stored, num_blocks)], jnp.full(num_blocks, problem.total / num_blocks))


def block_by_block(problem: Problem, partition: Array, stored: int) -> Schedule:
    """The paper's order of a partition's blocks: level n on n + 1 subsets, or on all that are stored."""
    depth = np.minimum(np.arange(1, problem.max_workers + 1), stored)
    return schedule_of([Group(int(d), 1) for d in depth], partition)


def optimise_credit(key: Array, problem: Problem, stored: int) -> Found:
    """The best schedule that is found for workers with so many subsets."""
    search, compare, last = jax.random.split(key, 3)
    tried = orders(stored)
    subset, block, sizes = _padded(tried, float(problem.total))
    found = _sizes_of_all(search, problem, subset, block, sizes, stored=stored)
    schedules = [schedule_of(groups, x[: _count(groups)]) for x, groups in zip(found, tried, strict=True)]
    # The same draws for all: their differences are known far better than they are.
    means = np.array([float(_mean(compare, problem, one)) for one in _alike(found, subset, block, stored)])
    chosen = int(np.flatnonzero(means <= (1 + _AS_GOOD) * np.nanmin(means))[0])
    best = _polished(last, problem, schedules[chosen])
    return Found(best, tried[chosen])


def _count(groups: Sequence[Group]) -> int:
    return sum(group.num_blocks for group in groups)


def _padded(tried: Sequence[Sequence[Group]], total: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tasks, `[G, K]` each, and sizes to begin with, `[G, B]`, 0 where there is no block."""
    tasks = [tasks_of(groups) for groups in tried]
    longest, blocks = max(s.size for s, _ in tasks), max(map(_count, tried))
    subset, block = (np.full((len(tried), longest), fill) for fill in (0, -1))
    sizes = np.zeros((len(tried), blocks))
    for i, ((s, b), groups) in enumerate(zip(tasks, tried, strict=True)):
        subset[i, : s.size], block[i, : b.size] = s, b
        # A sixth in each of the first groups, in the paper's setting at N = 20 what they get.
        share = [1 / 6 / g.num_blocks for g in groups[:-1] for _ in range(g.num_blocks)]
        rest = groups[-1].num_blocks
        sizes[i, : _count(groups)] = total * np.array(share + [(1 - sum(share)) / rest] * rest)
    return subset, block, sizes


def _alike(sizes: Array, subset: np.ndarray, block: np.ndarray, stored: int) -> list[Schedule]:
    """Of one shape, so that they are evaluated by one program."""
    return [
        Schedule(x, jnp.asarray(s), jnp.asarray(b), stored)
        for x, s, b in zip(sizes, subset, block, strict=True)
    ]


@jax.jit
def _mean(key: Array, problem: Problem, schedule: Schedule) -> Array:
    return mean_of(simulate_schedule(key, problem, schedule, _COMPARED)).value


@functools.partial(jax.jit, static_argnames="stored")
def _sizes_of_all(
    key: Array, problem: Problem, subset: Array, block: Array, sizes: Array, *, stored: int
) -> Array:
    def one(given: tuple[Array, Array, Array]) -> Array:
        subset, block, sizes = given
        return _search(key, problem, Schedule(sizes, subset, block, stored), _STEPS, _DRAWS)

    return jax.lax.map(one, (subset, block, jnp.asarray(sizes, problem.dtype)))


@jax.jit
def _polished(key: Array, problem: Problem, schedule: Schedule) -> Schedule:
    sizes = _search(key, problem, schedule, _LAST_STEPS, _LAST_DRAWS)
    return Schedule(sizes, schedule.subset, schedule.block, schedule.stored)


def _search(key: Array, problem: Problem, start: Schedule, steps: int, draws: int) -> Array:
    """Sizes after so many steps, each of fresh draws; the mean of those of the last third."""
    used = start.sizes > 0
    entries = problem.max_workers * start.sizes.size * start.stored
    draws = max(min(draws, _MOST // entries), 32)
    setup, chain = problem.setup_load, problem.chain_load

    def sizes_of(logits: Array) -> Array:
        return problem.total * jax.nn.softmax(jnp.where(used, logits, -jnp.inf))

    def loss(logits: Array, key: Array) -> Array:
        schedule = Schedule(sizes_of(logits), start.subset, start.block, start.stored)
        starts, times = draw_circle(key, problem, draws)
        return jnp.mean(
            schedule_runtime(cycles_of(schedule, setup, chain), times, starts, problem.num_workers)
        )

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
