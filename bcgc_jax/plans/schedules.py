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
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.worker import AT_A_TIME
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
    if not isinstance(plan.completion, FirstHolder) or plan.completion.turn is None:
        raise ValueError("a schedule is a plan in which the first worker that has done a subset is enough")
    return plan.completion.turn


def stored_by(plan: Plan) -> int:
    """The subsets that a worker of a schedule stores."""
    assert isinstance(plan.completion, FirstHolder)
    return plan.completion.stored


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
    """C, cycles at the end of each task in coordinates, `[D, B]`; inf for what is not done.

    A subset pays `setup` with its first task, and the `chain` once for each coordinate.
    """
    sizes, block, stored = plan.sizes, jnp.asarray(plan.block), stored_by(plan)
    there, place, end = block >= 0, np.arange(block.size), jnp.cumsum(sizes)
    task = jnp.where(there, turns_of(plan), stored), block  # subsets beyond the last are dropped
    order = jnp.full((stored, sizes.size), block.size).at[task].set(place, mode="drop")
    earlier = order[:, None] < order[:, :, None]  # of blocks b', for b of the same subset, [D, b, b']
    carried = jnp.max(jnp.where(earlier, end, 0), axis=2)
    cost = sizes + jnp.where(jnp.any(earlier, axis=2), 0, setup) + chain * jnp.maximum(end - carried, 0)
    done = jnp.cumsum(jnp.where(there, cost[task], 0))
    return jnp.full(order.shape, jnp.inf, done.dtype).at[task].set(done, mode="drop")


def schedule_runtime(
    cycles: Array, times: Array, starts: Array | None = None, num_workers: ArrayLike | None = None
) -> Array:
    """τ in units of κ, `[K]`, of cycle times and start-ups (units of κ) around the circle, `[K, N]`.

    Differentiable where no tasks tie. Workers from `num_workers` on do not count.

    >>> cycles = cycles_of(schedule_of([Group(2, 1)], [10.0]))
    >>> schedule_runtime(cycles, jnp.array([[1.0, 5.0]])).tolist()  # the fast one does both
    [20.0]
    """
    workers = jnp.asarray(times.shape[1] if num_workers is None else num_workers)
    starts = jnp.zeros_like(times) if starts is None else starts
    worker, subset, block = _critical(*jax.lax.stop_gradient((cycles, times, starts)), workers)
    row = np.arange(len(times))
    return starts[row, worker] + times[row, worker] * cycles[subset, block]


def _critical(cycles: Array, times: Array, starts: Array, workers: Array) -> tuple[Array, Array, Array]:
    """Who finishes last what is needed: worker, and subset and block of the task; `[K]` each."""
    depth, num_blocks = cycles.shape
    place, row = np.arange(times.shape[1]), np.arange(len(times))
    best = _soonest(cycles, times, starts, workers)
    # A block without tasks is none.
    counts = (place < workers)[:, None] & jnp.isfinite(jnp.min(cycles, axis=0))
    flat = jnp.where(counts, best, -jnp.inf).reshape(len(times), -1)
    last = jnp.argmax(flat, axis=1)
    which, block = last // num_blocks, last % num_blocks
    worker = (which[:, None] - np.arange(depth)) % workers
    done = jnp.take_along_axis(starts, worker, 1) + jnp.take_along_axis(times, worker, 1) * cycles[:, block].T
    subset = jnp.argmin(done, axis=1)
    return worker[row, subset], subset, block


def _soonest(cycles: Array, times: Array, starts: Array, workers: Array) -> Array:
    """When each subset of each block has first been finished, in units of κ, `[K, N, B]`."""
    place = np.arange(times.shape[1])

    def sooner(best: Array, delta: Array) -> tuple[Array, None]:
        worker = (place - delta) % workers
        done = starts[:, worker, None] + times[:, worker, None] * cycles[delta]
        return jnp.minimum(best, done), None

    never = jnp.full((*times.shape, cycles.shape[1]), jnp.inf, times.dtype)
    return jax.lax.scan(sooner, never, jnp.arange(len(cycles)))[0]


def sent_of(plan: Plan, cycles: Array, times: Array, starts: Array, num_workers: ArrayLike) -> Array:
    """L that a worker sends on average, `[K]`: a sum for each block of which it had a subset first."""
    workers, size = jnp.asarray(num_workers), times.shape[1]
    place, best = np.arange(size), _soonest(cycles, times, starts, workers)

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


def simulate_schedule(key: Array, problem: Problem, plan: Plan, num_draws: int) -> Array:
    """Draws of τ, in the unit of the cycle time, `[num_draws]`. What is sent depends on all: no link."""
    cycles = cycles_of_problem(problem, plan)

    def some(starts: Array, times: Array) -> Array:
        return schedule_runtime(cycles, times, starts, problem.num_workers)

    return problem.scale * over_draws(key, problem, some, num_draws, plan.sizes.size)


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
