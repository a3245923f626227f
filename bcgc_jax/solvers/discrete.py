r"""Searches over what is whole: which levels to use, and how many units each gets.

Both go from a start to the best of its neighbours, as long as that is better. Where
each level in use costs setup cycles, the problem is convex for a given set of levels
(`optimal_partition`); from several starts sets change by adding, dropping or moving a
level by one. At N ≤ 8 this equals the best of all 2^N - 1 sets in every case tried
(tests). Whole units move from the rounded partition on, under the exact expected
runtime: of up to 64 levels by all moves of one and of two, of more by the moves of one
that the slope ranks first.
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

# Moves of units that are evaluated together; the levels up to which all moves are.
_MOVES = 64
# The gap to which the optima of sets are compared, and the least gain for which a set
# is changed.
_ROUGH = 1e-5
_GAIN = 1e-6


def _descend(
    problem: Problem,
    start: Array,
    neighbours: Callable[[Array], Array],
    values_of: Callable[[Array], Array],
    gain: float,
) -> Array:
    """Where no neighbour, the first of them the point, gains a share of `gain`."""

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
    """Whole batches: what is left of a map would be compiled once more."""
    return jnp.concatenate(
        [candidates, jnp.tile(candidates[:1], (-len(candidates) % size, 1))]
    )


class _Search(NamedTuple):
    """The best set of levels so far, bool `[max_workers]`, and its best partition.

    And how many rounds there were, and whether the last one improved it.
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
    """A set of levels, bool `[max_workers]`, that no single change improves.

    `aux` is the optimum over partitions of these levels, and `num_steps` counts rounds.
    `times` are E T_(N-n), `[max_workers]`, by which the search begins. Optima of sets
    are compared at a rough tolerance. The last search, from the best set, is for its
    own optimum: Newton's method is compiled once.
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
        """The best of the neighbours; at first, the set itself with its optimum."""
        sets = _neighbours(state.levels, allowed)
        first = jnp.isinf(state.best.value)
        due = jnp.where(
            first, jnp.arange(len(sets)) == 0, jnp.any(sets != sets[0], axis=1)
        )
        # Two of three changes are none where few levels are in use: they come last, and
        # are left.
        due_first = jnp.argsort(~due)
        enough = jnp.where(last, tolerance, jnp.maximum(tolerance, _ROUGH))

        def try_(i: Array, s: _Search) -> _Search:
            # What cannot be better ends early.
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

    # The best set comes in place of the last one.
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
    """First sets: the best level, both ends, and the closed form's largest levels."""
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
    """The set itself, and all with a level more, a level less, or one moved by one."""
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
    """Move one or two units at a time between `levels` while the runtime falls."""
    size = counts.size
    few_levels = counts.size <= _MOVES
    unit = jnp.eye(size, dtype=counts.dtype)

    def moves(counts: Array) -> Array:
        """From level i to level j; the first moves nothing."""
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
