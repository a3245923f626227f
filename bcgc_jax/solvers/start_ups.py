r"""The best partition that is found where start-ups are random: the expected runtime is then not convex.

It jumps where a level comes into use below all others: from then on N - n workers are waited for, however
little is at that level. So each lowest level has two starts: the closed form for typical times, where level n
ends at s_n + t_n κ y_n, and the optimum of the convex relaxation (`with_least_start_up`) with what lies below
moved up. There are many local optima: a differential evolution goes on from there, the best that it knows go
through a local search, and so once more.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.exact import order_statistics
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.partitions import project_on_levels
from bcgc_jax.plans.runtime import load_of, with_least_start_up
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.optimal import OptimalResult, optimal_partition
from bcgc_jax.solvers.spectral import SpectralResult, spectral_projected_gradient

# Searches side by side; their steps, what a last one moves, in shares, and what ten of them have to gain, in
# shares of the value; intervals of their rule.
_MOST_STARTS, _MOST_STEPS, _TOLERANCE, _LEAST_GAIN, _NUM_NODES = 10, 300, 1e-5, 1e-6, 48
# Before them a differential evolution, of so many generations at N = 1, some points at a time. Of 200
# problems of at most 8 workers another global search beat searches from the starts alone by up to 3 %, in 6
# of them by over 0.1 %.
_POPULATION, _WORK, _ROUNDS, _WEIGHT, _TAKEN, _BATCH = 40, 320, 2, 0.7, 0.8, 8


@functools.partial(jax.jit, static_argnames="max_steps")
def best_found(
    problem: Problem, levels: ArrayLike = True, *, tolerance: ArrayLike = 1e-7, max_steps: int = 60
) -> OptimalResult:
    r"""The least E τ̂(x,T) of several local searches over `levels`, bool `[max_workers]`.

    `lower_bound` is the larger of `ordered_bound` and the certified optimum of the convex relaxation, whose
    search has `tolerance` and `max_steps`. CONVERGED: the best search ended at a local optimum.
    """
    levels, total = problem.exists & jnp.asarray(levels), problem.total
    bounding = with_least_start_up(problem)
    relaxed = optimal_partition(bounding, levels, tolerance=tolerance, max_steps=max_steps)

    def value_of(share: Array) -> Array:
        load = load_of(problem, share * total)
        return problem.scale * iteration_of(problem).expected_max(load, num_nodes=_NUM_NODES).value

    def search(share: Array, unit: Array) -> SpectralResult:
        # What starts without a level may take it up, but for those below its lowest.
        open_ = levels & (jnp.cumsum(share) > 0)
        return spectral_projected_gradient(
            lambda u: value_of(u) / unit,
            lambda u: project_on_levels(u, 1.0, open_),
            share,
            tolerance=_TOLERANCE,
            max_steps=_MOST_STEPS,
            least_gain=_LEAST_GAIN,
        )

    def round_(known: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], SpectralResult]:
        points, values = _evolve(key, value_of, *known, levels)
        chosen = _promising(points, values)
        unit = jnp.nanmin(values)
        found = jax.vmap(search, (0, None))(_shares(points[chosen], levels), unit)
        found = found._replace(value=unit * found.value)
        return (points.at[chosen].set(found.point), values.at[chosen].set(found.value)), found

    points = _first_generation(_starts(problem, levels, relaxed.partition / total), levels)
    keys = jax.random.split(jax.random.key(0), _ROUNDS)  # of the way, not of the answer
    _, rounds = jax.lax.scan(round_, (points, jnp.full(len(points), jnp.inf, points.dtype)), keys)
    # The last search goes on from the best that is known.
    best = jnp.nanargmin(rounds.value[-1])
    found = jax.tree.map(lambda a: a[-1, best], rounds)
    ended = (found.residual <= _TOLERANCE) | (found.num_steps < _MOST_STEPS)
    status = jnp.where(ended, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    bound = jnp.maximum(relaxed.lower_bound, ordered_bound(problem, levels))
    steps = jnp.sum(rounds.num_steps)
    return OptimalResult(found.point * total, found.value, 0 * found.value, bound, status, steps)


def _evolve(
    key: Array, value_of: Callable[[Array], Array], points: Array, values: Array, levels: Array
) -> tuple[Array, Array]:
    """Points, `[C, max_workers]`, whose positive parts are shares, and their values."""

    def generation(i: Array, known: tuple[Array, Array]) -> tuple[Array, Array]:
        points, values = known
        trial = jnp.where(i == 0, points, _trial(jax.random.fold_in(key, i), points, values))
        found = jax.lax.map(value_of, _shares(trial, levels), batch_size=_BATCH)
        better = found < values
        return jnp.where(better[:, None], trial, points), jnp.where(better, found, values)

    return jax.lax.fori_loop(0, max(_WORK // levels.size, 1) + 1, generation, (points, values))


def _shares(points: Array, levels: Array) -> Array:
    """The positive parts of points, `[C, max_workers]`, as shares."""
    share = jnp.where(levels & (points > 0), points, 0)
    total = jnp.sum(share, axis=1, keepdims=True)
    return jnp.where(total > 0, share, levels) / jnp.where(total > 0, total, jnp.sum(levels))


def _promising(points: Array, values: Array) -> Array:
    """Where to search from: the best, and the best of the best for each lowest level."""
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    half = _MOST_STARTS // 2
    order = jnp.argsort(values)
    lowest = jnp.argmax(points > 0, axis=1)
    per_level = jnp.where(lowest == np.arange(points.shape[1])[:, None], values, jnp.inf)
    others = jnp.argmin(per_level, axis=1)[jnp.argsort(jnp.min(per_level, axis=1))][1:]
    return jnp.concatenate([order[:half], others[:half]])


def _first_generation(starts: Array, levels: Array) -> Array:
    """The starts, and shares of one to four levels; always the same, `[C, max_workers]`, whole batches."""
    rng = np.random.default_rng(0)
    whole = -(-max(_POPULATION, len(starts)) // _BATCH) * _BATCH
    shape = whole - len(starts), levels.size
    used = np.argsort(rng.random(shape), axis=1) < 1 + np.arange(shape[0])[:, None] % 4
    return jnp.concatenate([starts, jnp.asarray(rng.exponential(size=shape) * used, starts.dtype)])


def _trial(key: Array, points: Array, values: Array) -> Array:
    """Storn & Price's crossing of each with the best, or with another, and the difference of two more."""
    keys, size = jax.random.split(key, 5), len(points)
    a, b, c = (points[jax.random.permutation(k, size)] for k in keys[:3])
    to_best = jax.random.uniform(keys[3], (2, size, 1), points.dtype)
    taken = jax.random.uniform(keys[4], points.shape, points.dtype)
    base = jnp.where(to_best[0] < 0.5, points[jnp.nanargmin(values)], a)
    trial = jnp.where(taken < _TAKEN, base + _WEIGHT * (1 + to_best[1]) / 2 * (b - c), points)
    total = jnp.sum(jnp.maximum(trial, 0), axis=1, keepdims=True)
    # Negative parts are levels out of use; without a limit they would never come back.
    return jnp.clip(trial, -0.3, 1.0) / jnp.maximum(total, 1e-3)


def ordered_bound(problem: Problem, levels: Array) -> Array:
    r"""A lower bound on E τ̂ of all partitions of these levels, from means of order statistics alone.

    Of sums a_w + b_w the (i+j-1)-th is at least a_(i) + b_(j), so a partition whose lowest level is m takes
    E τ̂ ≥ E S_(i) + κ y_n E T_(N-n+1-i) for all n ≥ m and i ≤ N - n. By a time t it gets no further than
    y_n = min_i (t - E S_(i)) / (κ E T_(N-n+1-i)), ascending; the bound is the least t by which, from the
    best m, these are L coordinates.
    """
    iteration, size, workers = iteration_of(problem), problem.max_workers, jnp.asarray(problem.num_workers)
    starts, times = iteration.expected_start_ups(), iteration.expected_order_statistics()
    n, p = np.arange(size)[:, None], np.arange(size)
    both = (p >= n) & (p < workers)
    time = times[jnp.clip(workers - 1 - (p - n), 0, size - 1)]  # slowest first, as p
    subsets = (p + 1).astype(starts.dtype)

    def coordinates(t: Array) -> Array:
        """Of the best lowest level."""
        ends = (t - starts) / (problem.scale * time)
        work = jnp.min(jnp.where(both, ends, jnp.inf), axis=1)
        work = jnp.where(problem.exists, jnp.maximum(work, 0), jnp.inf)
        work = jax.lax.cummin(work, reverse=True)
        work = jnp.where(jnp.isfinite(work), work, 0)
        # Level m and all above: Σ_{k>m} (y_k - y_{k-1}) / (k+1) + y_m / (m+1).
        more = jnp.where(problem.exists, jnp.diff(work, prepend=np.zeros(1, work.dtype)), 0) / subsets
        above = jnp.cumsum(more[::-1])[::-1] - more
        return jnp.max(jnp.where(levels, work / subsets + above, 0))

    longest = jnp.max(starts) + problem.scale * problem.total * size * jnp.max(times)
    return bisect(lambda t: coordinates(t) >= problem.total, 0 * longest, longest)[0]


def _starts(problem: Problem, levels: Array, relaxed: Array) -> Array:
    """Shares to begin with, `[2 max_workers, max_workers]`; relaxed where there is no such level."""
    level = np.arange(levels.size)
    starts, times = _typical(problem)

    def from_level(m: Array) -> tuple[Array, Array]:
        open_ = levels & (level >= m)
        moved = jnp.where(open_, relaxed, 0)
        moved = moved.at[jnp.argmax(open_)].add(1 - jnp.sum(moved))
        planned = _closed_form(problem, open_, starts, times)
        good = jnp.any(open_) & jnp.all(jnp.isfinite(planned))
        return jnp.where(jnp.any(open_), moved, relaxed), jnp.where(good, planned, relaxed)

    return jnp.concatenate(jax.vmap(from_level)(jnp.asarray(level)))


def _typical(problem: Problem) -> tuple[Array, Array]:
    """Typical start-ups and cycle times of the N - n fastest workers, `[max_workers]` each, slowest first."""
    worker = iteration_of(problem).worker
    one = jnp.ones(problem.max_workers, problem.dtype)
    (hazard,) = order_statistics.typical_hazards(one, problem.num_workers, (0.0,))
    times = worker.cycle_time.inverse_cumulative_hazard(hazard)
    if worker.pairs is None:
        starts = worker.start.inverse_cumulative_hazard(hazard)
    else:
        starts = jnp.quantile(worker.pairs.arrays()[0], -jnp.expm1(-hazard))
    # Few workers are slow in both: half of each one's spread, with the other typical.
    middle = problem.max_workers // 2
    return tuple(((a + a[middle]) / 2).astype(one.dtype) for a in (starts, times))  # type: ignore[return-value]


def _closed_form(problem: Problem, open_: Array, starts: Array, times: Array) -> Array:
    """Shares for which all levels in `open_` end together at s_n + t_n κ y_n, as Theorem 2 for s = 0."""
    kappa, subsets = problem.scale, np.arange(1, open_.size + 1)

    def shares(t: Array) -> Array:
        work = jax.lax.cummax(jnp.where(open_, jnp.maximum(t - starts, 0) / (kappa * times), 0))
        return jnp.diff(work, prepend=jnp.zeros(1, work.dtype)) / subsets.astype(work.dtype)

    latest = jnp.max(jnp.where(open_, starts, 0))
    longest = latest + kappa * problem.total * open_.size * jnp.max(times)
    _, t = bisect(lambda t: jnp.sum(shares(t)) >= problem.total, 0 * longest, longest)
    found = shares(t)
    return found / jnp.sum(found)
