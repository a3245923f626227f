r"""Schedules: every subset that a worker has finished counts, without a code.

Worker w of N on a circle holds the subsets w, w+1, …, w+D-1; all do their tasks, a block of the gradient of a
subset each, in the same order. A block is done when each of its N subsets has been finished by somebody, so
with C[δ, b] the cycles at the end of a worker's task on its δ-th subset and block b,

    τ = max_b max_j min_{δ<D} S_(j-δ) + T_(j-δ) (M b / N) C[δ, b].

Within a group of blocks every second subset is done backwards, so that two neighbours meet in the middle of a
subset. One group of one block is the cyclic schedule (Amiri & Gündüz 2019), groups of depths 1, 2, … the
paper's order of work.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import Numbers
from bcgc_jax.plans.circle import soonest
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.worker import AT_A_TIME, Cost
from bcgc_jax.problem import Problem


class Group(NamedTuple):
    """Blocks that are done together, on so many subsets, before the next group begins."""

    depth: int
    num_blocks: int


def circle_plan(sizes: Numbers, subset: ArrayLike, block: ArrayLike, stored: int) -> Plan:
    """Task k computes `block[k]` of a worker's subset `subset[k]`, of `stored` ones; beyond the last -1.

    >>> alternating = schedule_of([Group(2, 2)], [60.0, 40.0])
    >>> list(zip(turns_of(alternating).tolist(), alternating.block.tolist()))
    [(0, 0), (0, 1), (1, 1), (1, 0)]
    """
    block, sizes = jnp.asarray(block), jnp.asarray(sizes)
    rule = FirstHolder(None, turn=jnp.asarray(subset), stored=stored)
    one = np.ones(block.shape, int)
    return Plan(sizes, block, one, one.astype(sizes.dtype), rule)


def turns_of(plan: Plan) -> Array:
    """The subset of each task, `[K]`, counted from the worker's own."""
    return first_holder_of(plan).turn  # type: ignore[return-value]


def first_holder_of(plan: Plan) -> FirstHolder:
    """The rule of a schedule."""
    if not isinstance(plan.completion, FirstHolder) or plan.completion.turn is None:
        raise ValueError("a schedule is a plan in which the first worker that has done a subset is enough")
    return plan.completion


def schedule_of(groups: Sequence[Group], sizes: Numbers) -> Plan:
    """The groups one after the other, for as many sizes as they have blocks."""
    return circle_plan(sizes, *tasks_of(groups), max(group.depth for group in groups))


def tasks_of(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Subset and block of each task, `[K]` each."""
    tasks: list[tuple[int, int]] = []
    first = 0
    for depth, num_blocks in groups:
        there = list(range(first, first + num_blocks))
        for subset in range(depth):
            tasks += [(subset, block) for block in (there if subset % 2 == 0 else there[::-1])]
        first += num_blocks
    subset, block = np.array(tasks).T
    return subset, block


def cycles_of(plan: Plan, setup: ArrayLike = 0.0, chain: ArrayLike = 0.0) -> Array:
    """C, cycles at the end of each task in coordinates, `[D, B]`; inf for what is not done."""
    rule = first_holder_of(plan)
    load = rule.load(plan.sizes, plan.tasks, Cost(jnp.asarray(setup), jnp.asarray(chain), None, 0))
    return load.work.reshape(rule.stored, -1)


def sent_of(plan: Plan, cycles: Array, times: Array, starts: Array, num_workers: ArrayLike) -> Array:
    """L that a worker sends on average, `[K]`: a sum for each block of which it had a subset first."""
    workers, size = jnp.asarray(num_workers), times.shape[1]
    place, best = np.arange(size), soonest(cycles, times, starts, workers)

    def asks(asked: Array, delta: Array) -> tuple[Array, None]:
        """Of worker w's subsets the δ-th: whether it was the first with it."""
        subset = (place + delta) % workers
        mine = starts[..., None] + times[..., None] * cycles[delta]
        return asked | (mine <= best[:, subset]), None

    nobody = jnp.zeros((*times.shape, cycles.shape[1]), bool)
    asked, _ = jax.lax.scan(asks, nobody, jnp.arange(len(cycles)))
    share = plan.sizes / jnp.sum(plan.sizes)
    each = jnp.sum(jnp.where(asked, share, 0), axis=2)
    return jnp.sum(jnp.where(place < workers, each, 0), axis=1) / workers


def draw_circle(key: Array, problem: Problem, num_draws: int) -> tuple[Array, Array]:
    """Start-ups, in units of κ, and cycle times of workers in a random order, `[K, max_workers]` each."""
    one, other = jax.random.split(key)
    worker, dtype = iteration_of(problem).worker, problem.dtype
    shape = num_draws, problem.max_workers
    if iteration_of(problem).alike:  # any order is a random one
        return worker.draw(one, shape, dtype)
    times = iteration_of(problem).sorted_draws(one, num_draws, dtype)
    exists = np.arange(shape[1]) < jnp.asarray(problem.num_workers)
    order = jnp.argsort(jnp.where(exists, jax.random.uniform(other, shape, dtype), 2.0), axis=1)
    return jnp.full(shape, worker.infimum(), dtype), jnp.take_along_axis(times, order, axis=1)


def cycles_of_problem(problem: Problem, plan: Plan) -> Array:
    """`cycles_of` with the setup and the chain of a problem."""
    return cycles_of(plan, problem.setup_load, problem.chain_load).astype(problem.dtype)


def over_draws(
    key: Array, problem: Problem, function: Callable[[Array, Array], Any], num_draws: int, width: int
) -> Any:
    """A function of start-ups and cycle times, `[K, N]` each to `[K]`, of so many draws, some at a time.

    For each draw and worker it has `width` numbers, of start-ups and of times.
    """
    count = -(-num_draws // max(AT_A_TIME // (2 * problem.max_workers * width), 1))
    # Hardly one is drawn for nothing. An odd number: rows of 2048 draws share few places of a cache.
    chunk = -(-num_draws // count) | 1

    def some(key: Array) -> Array:
        return function(*draw_circle(key, problem, chunk))

    found = jax.lax.map(some, jax.random.split(key, count))
    return jax.tree.map(lambda a: a.ravel()[:num_draws], found)
