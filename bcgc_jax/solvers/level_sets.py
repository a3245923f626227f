r"""Which levels to use where each level in use costs setup cycles.

For a given set S of levels the optimum is convex (`optimal_partition`); over the sets it is a search: from
several starts, as long as adding, dropping or moving a level by one makes it better. At N ≤ 8 this equals
the best of all 2^N - 1 sets in every case tried (tests).
"""

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.problem import Problem
from bcgc_jax.solvers.baselines import single_block_partition
from bcgc_jax.solvers.closed_form import time_partition
from bcgc_jax.solvers.optimal import optimal_partition

# Gap to which sets are compared, and the least gain for which one is changed.
_TOLERANCE, _GAIN = 1e-5, 1e-6
# Sets solved side by side; more would wait for the slowest of them.
_BATCH = 8


@jax.jit
def best_levels(problem: Problem, allowed: Array) -> tuple[Array, Array]:
    """Bool `[max_workers]`, a set that no single change improves, and the rounds of the search."""
    allowed = problem.exists & allowed
    level = jnp.arange(allowed.size)

    def value_of(levels: Array, least: Array) -> Array:
        return optimal_partition(problem, levels, tolerance=_TOLERANCE, least=least).value

    def neighbours(levels: Array) -> Array:
        """The set itself and all that differ by one change."""
        here = level[:, None] == level[None, :]
        flipped = (levels ^ here) & allowed
        flipped = jnp.where(jnp.any(flipped, axis=1)[:, None], flipped, levels)

        def moved(by: int) -> Array:
            there = level[:, None] + by == level[None, :]
            possible = levels & ~jnp.any(there & levels, axis=1) & jnp.any(there & allowed, axis=1)
            return jnp.where(possible[:, None], (levels & ~here) | there, levels)

        sets = jnp.concatenate([levels[None], flipped, moved(-1), moved(1)])
        # Whole batches: the rest of a map would be compiled once more.
        return jnp.concatenate([sets, jnp.tile(sets[:1], (-len(sets) % _BATCH, 1))])

    def improve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        levels, value, _, rounds = carry
        sets = neighbours(levels)
        enough = (1 - _GAIN) * value
        # First the value of the set itself, then of those that may be better: what cannot be ends early.
        first = jnp.arange(len(sets)) == 0
        wanted = jnp.where(jnp.isinf(value), first, jnp.any(sets != levels, axis=1))
        values = jax.lax.map(lambda s: value_of(*s), (sets, jnp.where(wanted, enough, 0)), batch_size=_BATCH)
        best = jnp.argmin(values)
        better = values[best] < enough
        return (
            jnp.where(better, sets[best], levels),
            jnp.where(better, values[best], value),
            better,
            rounds + 1,
        )

    def search(levels: Array) -> tuple[Array, Array, Array]:
        unknown = jnp.asarray(jnp.inf, problem.dtype)
        carry = (levels, unknown, jnp.asarray(True), jnp.asarray(0))
        levels, value, _, rounds = jax.lax.while_loop(lambda c: c[2], improve, carry)
        return levels, value, rounds

    single = level == jnp.argmax(jnp.where(allowed, single_block_partition(problem), -1))
    highest = jnp.max(jnp.where(allowed, level, -1))
    ends = (level == jnp.argmax(allowed)) | (level == highest)
    large = allowed & (time_partition(problem) >= 0.03 * problem.total)
    sets, values, rounds = jax.lax.map(search, jnp.stack([single, ends, large | single]))
    return sets[jnp.argmin(values)], jnp.sum(rounds)
