"""Whole units: a search next to the rounded partition, under the exact expected runtime."""

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.problem import Problem
from bcgc_jax.runtime import unit_runtime

# Moves that are evaluated together.
_BATCH = 64


@jax.jit
def improve_units(problem: Problem, counts: Array, levels: Array) -> Array:
    """Move units, one or two at a time, between `levels` as long as the runtime falls; `[max_workers]`."""
    size = counts.size
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
