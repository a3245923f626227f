r"""Local searches over sets of levels, and over integer partitions.

Both searches move to the best neighbour as long as it is better.

Levels: If each level in use costs setup cycles, the problem is convex only for a given
set of levels (`optimal_partition`). From several starts, a set changes by adding,
dropping or moving a level. At N ≤ 8, the result was the best of all 2^N - 1 sets in
every test.

Units: The search starts from the rounded partition, and minimises the exact expected
runtime. With up to 64 levels, the neighbours are all moves of one or two units between
levels. With more levels, they are the moves of one unit that the derivative ranks
first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.runtime import expected_runtime, value_and_slope
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.baselines import single_block_for_times
from bcgc_jax.solvers.closed_form import partition_for_times
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.search import Optimum, choose, local_optimum

# Number of moves that are evaluated together, and largest number of levels for which
# all moves are evaluated.
_MOVES = 64
# Optimality gap of the optima that are compared, and smallest relative gain for which a
# set is changed.
_ROUGH = 1e-5
_GAIN = 1e-6


def _descend(
    problem: Problem,
    start: Array,
    neighbours: Callable[[Array], Array],
    values_of: Callable[[Array], Array],
    gain: float,
) -> Array:
    """Move to the best neighbour until the relative gain is at most `gain`.

    The first neighbour of a point must be the point itself.
    """

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        point, best, _ = carry
        candidates = neighbours(point)
        values = values_of(candidates)
        i = jnp.argmin(values)
        better = values[i] < best * (1 - gain)
        point = jnp.where(better, candidates[i], point)
        return point, jnp.where(better, values[i], best), better

    carry = (start, jnp.asarray(jnp.inf, problem.dtype), jnp.asarray(True))
    return jax.lax.while_loop(lambda carry: carry[2], step, carry)[0]


def _in_batches(candidates: Array, size: int) -> Array:
    """Pad to complete batches, because an incomplete batch would be compiled, too."""
    return jnp.concatenate(
        [candidates, jnp.tile(candidates[:1], (-len(candidates) % size, 1))]
    )


class _Search(NamedTuple):
    """The state of the search over sets of levels.

    Attributes:
      levels: The best set of levels so far, bool `[max_workers]`.
      best: Its optimum over partitions.
      rounds: Number of rounds so far.
      improved: Whether the last round improved the set.
    """

    levels: Array
    best: Optimum
    rounds: Array
    improved: Array


@functools.partial(jax.jit, static_argnames="max_steps")
def best_levels(
    problem: Problem,
    allowed: Array,
    times: Array,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
) -> Optimum:
    """Find a set of levels that no single change improves.

    Optima of sets are compared at a rough tolerance. The last search solves the best
    set to `tolerance`. It is part of the same loop, so that Newton's method is compiled
    once.

    Args:
      problem: The problem.
      allowed: Levels that may be used, bool `[max_workers]`.
      times: E T_(N-n), `[max_workers]`, from which starts are made.
      tolerance: Relative optimality gap.
      max_steps: Maximum number of steps of Newton's method. Must be static.

    Returns:
      The `Optimum`. `point` is the set, bool `[max_workers]`, and `aux` the optimum
      over partitions with these levels. `num_steps` counts rounds.
    """
    allowed = problem.exists & allowed
    tolerance = jnp.asarray(tolerance, problem.dtype)

    def solve(levels: Array, enough: Array, least: ArrayLike) -> Optimum:
        options: dict[str, Any] = {
            "tolerance": enough,
            "max_steps": max_steps,
            "least": least,
        }
        return optimal_partition(problem, levels, **options)

    def round_(last: Array, state: _Search) -> _Search:
        """Move to the best neighbour; in the first round, only solve the set itself."""
        sets = _neighbours(state.levels, allowed)
        first = jnp.isinf(state.best.value)
        due = jnp.where(
            first, jnp.arange(len(sets)) == 0, jnp.any(sets != sets[0], axis=1)
        )
        # If few levels are in use, most neighbours equal the set. They are sorted last
        # and skipped.
        due_first = jnp.argsort(~due)
        enough = jnp.where(last, tolerance, jnp.maximum(tolerance, _ROUGH))

        def try_(i: Array, s: _Search) -> _Search:
            # A search that cannot be better ends early.
            least = jnp.where(first, jnp.inf, (1 - _GAIN) * s.best.value)
            levels = sets[due_first[i]]
            optimum = solve(levels, enough, least)
            new = _Search(
                levels, optimum, s.rounds, jnp.isfinite(optimum.value) & ~last
            )
            return choose(first | (optimum.value < least), new, s)

        begin = state._replace(rounds=state.rounds + ~last, improved=jnp.asarray(False))
        return jax.lax.fori_loop(0, jnp.sum(due), try_, begin)

    def search(best: _Search, start: tuple[Array, Array]) -> tuple[_Search, None]:
        levels, last = start
        levels = jnp.where(last, best.levels, levels)
        begin = _Search(levels, nothing, best.rounds, jnp.asarray(True))
        end = jax.lax.while_loop(
            lambda s: s.improved, functools.partial(round_, last), begin
        )
        better = last | (end.best.value < best.best.value)
        return choose(better, end, best)._replace(rounds=end.rounds), None

    # The last start is replaced by the best set in `search`.
    starts = _starts(problem, allowed, times)
    starts = jnp.concatenate([starts, starts[:1]])
    shapes = jax.eval_shape(solve, allowed, tolerance, tolerance)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    nothing = nothing._replace(value=jnp.full_like(nothing.value, jnp.inf))
    initial = _Search(starts[0], nothing, jnp.asarray(0), jnp.asarray(False))
    last = np.arange(len(starts)) == len(starts) - 1
    end = jax.lax.scan(search, initial, (starts, last))[0]
    return local_optimum(end.levels, end.best.value, True, end.rounds, end.best)


def _starts(problem: Problem, allowed: Array, times: Array) -> Array:
    """Return the starts: the best level, both ends, and the closed form's levels."""
    level = jnp.arange(allowed.size)
    single = level == jnp.argmax(
        jnp.where(allowed, single_block_for_times(problem, times), -1)
    )
    ends = (level == jnp.argmax(allowed)) | (
        level == jnp.max(jnp.where(allowed, level, -1))
    )
    large = allowed & (partition_for_times(problem, times) >= 0.03 * problem.total)
    return jnp.stack([single, ends, large | single])


def _neighbours(levels: Array, allowed: Array) -> Array:
    """Return the set itself, and all sets with a level added, dropped or moved."""
    level = jnp.arange(levels.size)
    identity = level[:, None] == level
    flipped = (levels ^ identity) & allowed
    flipped = jnp.where(jnp.any(flipped, axis=1)[:, None], flipped, levels)

    def moved(by: int) -> Array:
        target = level[:, None] + by == level
        possible = levels & jnp.any(target & allowed & ~levels, axis=1)
        return jnp.where(possible[:, None], (levels & ~identity) | target, levels)

    return jnp.concatenate([levels[None], flipped, moved(-1), moved(1)])


@jax.jit
def improve_units(problem: Problem, counts: Array, levels: Array) -> Array:
    """Move one or two units at a time between `levels` while the runtime decreases."""
    size = counts.size
    few_levels = counts.size <= _MOVES
    unit = jnp.eye(size, dtype=counts.dtype)

    def moves(counts: Array) -> Array:
        """Return moves from level i to level j; the first one moves nothing."""
        if few_levels:
            move = (unit[None, :, :] - unit[:, None, :]).reshape(-1, size)
            return _in_batches(jnp.concatenate([0 * move[:1], move, 2 * move]), _MOVES)
        *_, slope = value_and_slope(problem, partition_of_units(problem, counts))
        possible = (counts > 0)[:, None] & levels & (unit == 0)
        gain = jnp.where(possible, slope[:, None] - slope, -jnp.inf)
        best, chosen = jax.lax.top_k(gain.ravel(), _MOVES)
        move = jnp.where(
            jnp.isfinite(best)[:, None], unit[chosen % size] - unit[chosen // size], 0
        )
        return jnp.concatenate([0 * move[:1], move])

    def value_of(candidate: Array) -> Array:
        possible = jnp.all(candidate >= 0) & jnp.all(levels | (candidate == 0))
        x = partition_of_units(problem, jnp.maximum(candidate, 0))
        return jnp.where(possible, expected_runtime(problem, x), jnp.inf)

    batch_size = None
    if few_levels:
        batch_size = _MOVES

    def values_of(candidates: Array) -> Array:
        return jax.lax.map(value_of, candidates, batch_size=batch_size)

    gain = 64 * float(jnp.finfo(problem.dtype).eps)
    return _descend(
        problem, counts, lambda counts: counts + moves(counts), values_of, gain
    )
