"""Small linear systems without LAPACK."""

import jax
import jax.numpy as jnp
from jax import Array


def solve_positive(matrix: Array, rhs: Array, width: int = 32) -> Array:
    """matrix⁻¹ rhs, `[N]` or `[N, K]`, for a positive definite matrix, by Gauss–Jordan elimination in blocks.

    In plain array code: LAPACK calls inside a loop may lock up the CPU's thread pool (see
    `crossing_probability`).
    """
    size = matrix.shape[0]
    width = min(width, size)
    short = -size % width
    system = jnp.pad(matrix, (0, short)) + jnp.diag(jnp.where(jnp.arange(size + short) < size, 0, 1))
    columns = jnp.pad(rhs.reshape(size, -1), [(0, short), (0, 0)])
    system = jnp.concatenate([system, columns], axis=1)

    def pivot(i: Array, rows: Array) -> Array:
        """One column of a block of rows, the block's own columns first."""
        row = rows[i] / rows[i, i]
        return (rows - rows[:, i, None] * row).at[i].set(row)

    def eliminate(i: Array, system: Array) -> Array:
        start = i * width
        rows = jax.lax.dynamic_slice_in_dim(system, start, width, 0)
        columns = jax.lax.dynamic_slice_in_dim(system, start, width, 1)
        block = jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        rows = jax.lax.fori_loop(0, width, pivot, jnp.concatenate([block, rows], axis=1))[:, width:]
        return jax.lax.dynamic_update_slice_in_dim(system - columns @ rows, rows, start, 0)

    return jax.lax.fori_loop(0, (size + short) // width, eliminate, system)[:size, size + short :].reshape(
        rhs.shape
    )
