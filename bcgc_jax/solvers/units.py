"""Whole units: a search next to the rounded partition, under the exact expected runtime.

Of up to 64 levels all moves of one and of two units are tried. Of more these are too many: there the slope
of the runtime, a bound where that is convex, ranks them, and the best of a batch is made.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.runtime import load_of, partition_of_units, unit_runtime
from bcgc_jax.problem import Problem

# Moves that are evaluated together; the levels up to which all of them are.
_BATCH, _ALL_MOVES = 64, 64


@jax.jit
def improve_units(problem: Problem, counts: Array, levels: Array) -> Array:
    """Move units, one or two at a time, between `levels` as long as the runtime falls; `[max_workers]`."""
    size = counts.size
    if size > _ALL_MOVES:
        return _improve_many(problem, counts, levels)
    one = jnp.eye(size, dtype=counts.dtype)
    # move[i, j] takes a unit from level i to level j.
    move = (one[None, :, :] - one[:, None, :]).reshape(-1, size)
    moves = jnp.concatenate([move, 2 * move])
    # Whole batches: the rest of a map would be compiled once more. The first one moves nothing, for a start.
    moves = jnp.pad(moves, ((1, -(len(moves) + 1) % _BATCH), (0, 0)))

    def value(candidate: Array) -> Array:
        possible = jnp.all(candidate >= 0) & jnp.all(levels | (candidate == 0))
        found = unit_runtime(problem, jnp.maximum(candidate, 0))
        return jnp.where(possible, found, jnp.inf)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        counts, best, _ = carry
        values = jax.lax.map(lambda m: value(counts + m), moves, batch_size=_BATCH)
        i = jnp.argmin(values)
        better = values[i] < best * (1 - 64 * jnp.finfo(best.dtype).eps)
        return jnp.where(better, counts + moves[i], counts), jnp.where(better, values[i], best), better

    unknown = jnp.asarray(jnp.inf, problem.dtype)
    start = (counts, unknown, jnp.asarray(True))
    return jax.lax.while_loop(lambda carry: carry[2], step, start)[0]


def _improve_many(problem: Problem, counts: Array, levels: Array) -> Array:
    """The same by the moves of one unit that promise most."""
    size = counts.size

    def value(candidate: Array) -> Array:
        return unit_runtime(problem, candidate)

    def slopes(counts: Array) -> Array:
        """Of one unit more at each level, at its own cost."""
        x = partition_of_units(problem, counts)
        load, pull_back = jax.vjp(lambda x: load_of(problem, x), x)
        _, slope = iteration_of(problem).expected_max_and_slope(load)
        mean = jnp.sum(x) / jnp.maximum(jnp.sum(counts), 1)
        return problem.scale * pull_back(slope)[0] * mean

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        counts, best, _ = carry
        slope = slopes(counts)
        gain = slope[:, None] - slope[None, :]  # of a unit that leaves i for j
        possible = (counts > 0)[:, None] & levels[None, :] & ~jnp.eye(size, dtype=bool)
        _, chosen = jax.lax.top_k(jnp.where(possible, gain, -jnp.inf).ravel(), _BATCH)
        source, target = chosen // size, chosen % size
        sure = jnp.take(possible.ravel(), chosen)
        moved = counts + jax.nn.one_hot(target, size, dtype=counts.dtype)
        moved = moved - jax.nn.one_hot(source, size, dtype=counts.dtype)
        moved = jnp.where(sure[:, None], moved, counts)
        values = jax.lax.map(value, moved)
        i = jnp.argmin(values)
        better = values[i] < best * (1 - 64 * jnp.finfo(best.dtype).eps)
        return jnp.where(better, moved[i], counts), jnp.where(better, values[i], best), better

    start = (counts, value(counts), jnp.asarray(True))
    return jax.lax.while_loop(lambda carry: carry[2], step, start)[0]
