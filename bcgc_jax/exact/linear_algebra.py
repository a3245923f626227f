"""Small linear systems without LAPACK: triangular ones of a crossing probability, positive definite ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Columns of a triangular system at a time: 32 nodes at N = 20 take 0.06 ms, at N = 50 0.46 ms, 0.07 and 0.65
# with four, 0.1 and 0.8 with eight (one by one 0.1 and 1.3). Above this size, where fewer nodes go together,
# matrix products are faster: at N = 130 5.6 ms against 3.7, at N = 180 5.4 against 6.2.
# A batch goes by halves, down to eight columns that are written out, products four at a time: 0.8 ms a
# problem at N = 20, 9.7 at N = 50, where columns take 1.7 and 13. One problem would wait for the compiler: at
# N = 50 for 1.1 s instead of 0.3.
_COLUMNS, LARGE, _WRITTEN_OUT_COLUMNS, _UNROLLED = 5, 150, 8, 4
# Rows at a time, and up to where one by one: at N = 20 0.02 ms against 0.05, at N = 50 0.25 against 0.10, and
# 0.37 with 32; at N = 300 3.9 ms, 5.0 with 16 and 8.0 with 32.
_ROWS, _LARGEST_BY_ROW = 8, 30
# Blocks of columns of a large triangular system, and the width of those that go column by column.
_BLOCKS, _WIDTH = 8, 32


def solve_positive(matrix: Array, rhs: Array) -> Array:
    """matrix⁻¹ rhs, `[N]` or `[N, K]`, for a positive definite matrix, by Gauss–Jordan elimination in blocks.

    In plain array code: LAPACK calls inside a loop may lock up the CPU's thread pool (see
    `crossing_probability`).
    """
    size = matrix.shape[0]
    columns = rhs.reshape(size, -1)
    if size <= _LARGEST_BY_ROW:
        system = jnp.concatenate([matrix, columns], axis=1)
        return jax.lax.fori_loop(0, size, _pivot, system)[:, size:].reshape(rhs.shape)
    short = -size % _ROWS
    padding = np.diag(np.arange(size + short) >= size).astype(matrix.dtype)
    system = jnp.pad(matrix, (0, short)) + padding
    system = jnp.concatenate([system, jnp.pad(columns, [(0, short), (0, 0)])], axis=1)

    def eliminate(i: Array, system: Array) -> Array:
        start = i * _ROWS
        rows = jax.lax.dynamic_slice_in_dim(system, start, _ROWS, 0)
        columns = jax.lax.dynamic_slice_in_dim(system, start, _ROWS, 1)
        block = jax.lax.dynamic_slice_in_dim(rows, start, _ROWS, 1)
        rows = jax.lax.fori_loop(0, _ROWS, _pivot, jnp.concatenate([block, rows], axis=1))[:, _ROWS:]
        return jax.lax.dynamic_update_slice_in_dim(system - columns @ rows, rows, start, 0)

    solved = jax.lax.fori_loop(0, (size + short) // _ROWS, eliminate, system)
    return solved[:size, size + short :].reshape(rhs.shape)


def _pivot(i: Array, rows: Array) -> Array:
    """Column i of the rows made that of the identity."""
    row, column = (jax.lax.dynamic_index_in_dim(rows, i, axis) for axis in (0, 1))
    row = row / jax.lax.dynamic_index_in_dim(row, i, 1)
    return jax.lax.dynamic_update_slice_in_dim(rows - column * row, row, i, 0)


def solve_unit_upper(rows: Array, strict: Array) -> Array:
    """X with X (I + strict) = rows, `[M, N, …]`, for strictly upper triangular `strict`, `[N, N, …]`.

    A few columns at a time: what is known of the earlier ones is taken out of them, as many at a time, then
    each out of those that follow.
    """
    size, width = strict.shape[0], _COLUMNS
    if size > LARGE:
        rhs, matrix = (jnp.moveaxis(a, (0, 1), (-2, -1)) for a in (rows, strict))
        return jnp.moveaxis(_solve_in_blocks(rhs, matrix), (-2, -1), (0, 1))
    short, rest = (0, -size % width), [(0, 0)] * (rows.ndim - 2)
    rows, strict = jnp.pad(rows, [(0, 0), short, *rest]), jnp.pad(strict, [short, short, *rest])

    def solve_columns(block: Array, solved: Array) -> Array:
        start = block * width
        above = jax.lax.dynamic_slice_in_dim(strict, start, width, 1)

        def take_out(i: Array, left: Array) -> Array:
            for j in range(width):
                known = jax.lax.dynamic_index_in_dim(solved, i * width + j, 1)
                left = left - known * jax.lax.dynamic_index_in_dim(above, i * width + j, 0)
            return left

        left = jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        left = jax.lax.fori_loop(0, block, take_out, left)
        own = jax.lax.dynamic_slice_in_dim(above, start, width, 0)

        def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            # The column is carried beside the others, which otherwise are copied before they are written to.
            left, column = carry
            left = left - column[:, None] * own[k]
            return left, left[:, k + 1]

        left, _ = jax.lax.fori_loop(0, width - 1, step, (left, left[:, 0]))
        return jax.lax.dynamic_update_slice_in_dim(solved, left, start, 1)

    blocks = strict.shape[0] // width
    return jax.lax.fori_loop(0, blocks, solve_columns, jnp.zeros_like(rows))[:, :size]


def solve_by_halves(rows: Array, strict: Array) -> Array:
    """The same for a batch: halving leaves out most of the zeros, and what is read stays in the cache."""
    size = strict.shape[0]
    if size > LARGE:
        return solve_unit_upper(rows, strict)
    if size <= _WRITTEN_OUT_COLUMNS:
        solved = [rows[:, 0]]
        for k in range(1, size):
            solved.append(rows[:, k] - sum(solved[i] * strict[i, k] for i in range(k)))
        return jnp.stack(solved, axis=1)
    half = size // 2
    rest = size - half
    near = jnp.concatenate([rows[:half], rows[size:]])
    left = solve_by_halves(near[:, :half], strict[:half, :half])
    above = near[:, half:] - _product(left, strict[:half, half:])
    right = solve_by_halves(jnp.concatenate([rows[half:size, half:], above]), strict[half:, half:])
    above = jnp.concatenate([left, right[rest:]], axis=1)
    below = jnp.concatenate([jnp.zeros_like(rows[half:size, :half]), right[:rest]], axis=1)
    return jnp.concatenate([above[:half], below, above[half:]])


def _product(left: Array, right: Array) -> Array:
    """Σ_i left_ji right_ik for `[M, I, …]` and `[I, N, …]`, some i at a time."""

    def add(i: Array, sum_: Array) -> Array:
        for j in range(_UNROLLED):
            sum_ = sum_ + left[:, i * _UNROLLED + j, None] * right[i * _UNROLLED + j]
        return sum_

    whole = len(right) // _UNROLLED
    rest = sum(left[:, i, None] * right[i] for i in range(whole * _UNROLLED, len(right)))
    start = jnp.zeros((len(left), *right.shape[1:]), right.dtype) + rest
    return jax.lax.fori_loop(0, whole, add, start) if whole else start


def _solve_in_blocks(rhs: Array, strict: Array) -> Array:
    """X with X (I + strict) = rhs, `[..., M, N]`, for a strictly upper triangular matrix `[..., N, N]`.

    Forward substitution by blocks of columns, in matrix products. The first N rows of `rhs` are upper
    triangular too, and so are those of X: a block's rows end at its last column, but for those after N.
    """
    size, last = strict.shape[-1], rhs.shape[-2] - strict.shape[-1]
    width = -(-size // (_BLOCKS * _WIDTH)) * _WIDTH
    short = -size % width
    none = [(0, 0)] * (strict.ndim - 2)
    strict = jnp.pad(strict, [*none, (0, short), (0, short)])
    above = jnp.pad(rhs[..., :size, :], [*none, (0, short), (0, short)])
    # What is after N goes first: it belongs to every block.
    rhs = jnp.concatenate([jnp.pad(rhs[..., size:, :], [*none, (0, 0), (0, short)]), above], axis=-2)
    starts = range(0, size + short, width)
    own = jnp.stack([strict[..., i : i + width, i : i + width] for i in starts])
    inverses = _inverses(own)
    solved = rhs[..., :last, :0]
    for number, start in enumerate(starts):
        rows = last + start + width
        left = rhs[..., :rows, start : start + width]
        solved = jnp.pad(solved, [*none, (0, rows - solved.shape[-2]), (0, 0)])
        if start:
            left = left - solved @ strict[..., :start, start : start + width]
        solved = jnp.concatenate([solved, left @ inverses[number]], axis=-1)
    solved = solved[..., :size]
    return jnp.concatenate([solved[..., last : last + size, :], solved[..., :last, :]], axis=-2)


def _inverses(strict: Array) -> Array:
    """(I + block)⁻¹ of strictly upper triangular blocks, `[..., W, W]`, by doubling: W a multiple of 32."""
    width = strict.shape[-1]
    if width <= _WIDTH:

        def column(k: Array, inverse: Array) -> Array:
            entry = jax.lax.dynamic_index_in_dim(strict, k, -1, keepdims=False)
            return inverse.at[..., k].add(-jnp.sum(inverse * entry[..., None, :], axis=-1))

        identity = jnp.broadcast_to(jnp.eye(width, dtype=strict.dtype), strict.shape)
        return jax.lax.fori_loop(1, width, column, identity)
    half = -(-width // (2 * _WIDTH)) * _WIDTH
    first, rest = _inverses(strict[..., :half, :half]), _inverses(strict[..., half:, half:])
    corner = -first @ strict[..., :half, half:] @ rest
    below = jnp.zeros_like(jnp.swapaxes(corner, -1, -2))
    return jnp.concatenate(
        [jnp.concatenate([first, corner], axis=-1), jnp.concatenate([below, rest], axis=-1)], axis=-2
    )
