r"""The best partition that is found for random start-ups, where E τ̂ is not convex.

It jumps where a level comes into use below all others: from then on N - n workers are
waited for, however little is at that level. So each lowest level has two starts: all at
this level, and the optimum of the convex relaxation (`with_least_start_up`) with what
lies below moved up. Local searches go on from the fastest ones.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.exact.bisection import bisect
from bcgc_jax.plans.evaluate import NUM_NODES
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import load_of
from bcgc_jax.plans.runtime import with_least_start_up
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.descent import projected_descent
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.search import Optimum

# Starts that are evaluated together, and local searches that go on from the fastest
# ones. With 5 seven of 133 plans for 2 to 16 workers were slower, by 3.6 % at most, and
# with 20 one of 93 was faster, by 1.2 %.
_NUM_SEARCHES = 10


@functools.partial(jax.jit, static_argnames="max_steps")
def best_found(
    problem: Problem,
    levels: ArrayLike = True,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
) -> Optimum:
    r"""The least E τ̂(x,T) of several local searches over `levels`, bool
    `[max_workers]`.

    `bound` is the larger of `ordered_bound` and the certified optimum of the convex
    relaxation, whose search has `tolerance` and `max_steps`. CONVERGED: the best search
    ended at a local optimum.
    """
    levels = problem.exists & jnp.asarray(levels)
    total = problem.total
    bounding = with_least_start_up(problem)
    relaxed = optimal_partition(
        bounding, levels, tolerance=tolerance, max_steps=max_steps
    )

    def value_of(share: Array) -> Array:
        # A quarter of the time for a uniform start-up; with half of the nodes 2 of 200
        # plans were slower.
        load = load_of(problem, share * total)
        nodes = NUM_NODES * 3 // 4
        runtime = iteration_of(problem).expected_completion(load, num_nodes=nodes)
        return problem.scale * runtime.value

    starts = _starts(levels, relaxed.point / total)
    values = jax.lax.map(value_of, starts, batch_size=_NUM_SEARCHES)
    # A start for each level that there is.
    values = jnp.where(jnp.tile(levels, 2), values, jnp.inf)
    unit = jnp.nanmin(values)

    def search(share: Array) -> Optimum:
        # What starts without a level may take it up, but for those below its lowest.
        open_ = levels & (jnp.cumsum(share) > 0)
        # Ten steps that gain less than 1e-6 of the value are the last.
        limits: dict[str, Any] = {"tolerance": 1e-5, "least_gain": 1e-6}
        return projected_descent(lambda u: value_of(u) / unit, open_, share, **limits)

    searches = jax.vmap(search)(starts[jnp.argsort(values)[:_NUM_SEARCHES]])
    best = jax.tree.map(lambda a: a[jnp.nanargmin(searches.value)], searches)
    return best._replace(
        point=best.point * total,
        value=unit * best.value,
        bound=jnp.maximum(relaxed.bound, ordered_bound(problem, levels)),
        num_steps=jnp.sum(searches.num_steps),
        aux=None,
    )


def ordered_bound(problem: Problem, levels: Array) -> Array:
    r"""A lower bound on E τ̂ of all partitions of these levels, from means of order
    statistics.

    Of sums a_w + b_w the (i+j-1)-th is at least a_(i) + b_(j), so a partition whose
    lowest level is m takes E τ̂ ≥ E S_(i) + κ y_n E T_(N-n+1-i) for all n ≥ m and i ≤ N
    - n. By a time t it gets no further than y_n = min_i (t - E S_(i)) / (κ E
    T_(N-n+1-i)), ascending; the bound is the least t by which, from the best m, these
    are L coordinates.
    """
    iteration = iteration_of(problem)
    size = problem.max_workers
    workers = jnp.asarray(problem.num_workers)
    starts = iteration.expected_start_ups()
    times = iteration.expected_order_statistics()
    n = np.arange(size)[:, None]
    p = np.arange(size)
    possible = (p >= n) & (p < workers)
    time = times[jnp.clip(workers - 1 - (p - n), 0, size - 1)]  # slowest first, as p
    subsets = (p + 1).astype(starts.dtype)

    def coordinates(t: Array) -> Array:
        """How many coordinates can be done by t, with the best lowest level."""
        ends = (t - starts) / (problem.scale * time)
        work = jnp.min(jnp.where(possible, ends, jnp.inf), axis=1)
        work = jnp.where(problem.exists, jnp.maximum(work, 0), jnp.inf)
        work = jax.lax.cummin(work, reverse=True)
        # Level m and all above: Σ_{k>m} (y_k - y_{k-1}) / (k+1) + y_m / (m+1).
        sizes = jnp.diff(work, prepend=np.zeros(1, work.dtype))
        sizes = jnp.where(problem.exists, sizes, 0) / subsets
        above = jax.lax.cumsum(sizes, reverse=True) - sizes
        return jnp.max(jnp.where(levels, work / subsets + above, 0))

    longest = jnp.max(starts) + problem.scale * problem.total * size * jnp.max(times)
    return bisect(lambda t: coordinates(t) >= problem.total, 0 * longest, longest)[0]


def _starts(levels: Array, relaxed: Array) -> Array:
    """First shares, `[2 max_workers, max_workers]`: `relaxed` for a level not there."""
    open_ = levels & np.tri(levels.size, dtype=bool).T
    lowest = jax.nn.one_hot(jnp.argmax(open_, axis=1), levels.size, dtype=relaxed.dtype)
    above = jnp.where(open_, relaxed, 0)
    moved = above + lowest * (1 - jnp.sum(above, axis=1, keepdims=True))
    exists = jnp.tile(levels[:, None], (2, 1))
    return jnp.where(exists, jnp.concatenate([moved, lowest]), relaxed)
