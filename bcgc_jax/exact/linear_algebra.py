"""Compute matrix products in full precision, and solve small systems without LAPACK.

The systems are triangular, for crossing probabilities, or positive definite.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# By default, GPUs round the factors of a float32 product to 10 bits, and TPUs to 7
# bits.
_FULL = jax.lax.Precision.HIGHEST
einsum = functools.partial(jnp.einsum, precision=_FULL)

# Above this size of a triangular system, matrix products are faster than loops over
# columns.
LARGE = 150


def dot(a: ArrayLike, b: ArrayLike, *factors: ArrayLike) -> Array:
    """Compute `a @ b @ …` in the full precision of the dtype."""
    product = jnp.matmul(a, b, precision=_FULL)
    if factors:
        return dot(product, *factors)
    return product


def solve_positive(matrix: Array, rhs: Array) -> Array:
    """Solve a positive definite system for `rhs`, `[N]` or `[N, K]`.

    It uses only array operations. LAPACK calls inside a loop may lock up the CPU's
    thread pool (see `crossing_probability`).
    """
    size = matrix.shape[0]
    system = jnp.concatenate([matrix, rhs.reshape(size, -1)], axis=1)
    width = 8  # rows per block for N > 30: a third of the time at N = 300
    if size <= 30:
        first = size
    else:
        first = size % width
    system = jax.lax.fori_loop(0, first, _pivot, system)

    def eliminate(i: Array, system: Array) -> Array:
        start = first + i * width
        rows = jax.lax.dynamic_slice_in_dim(system, start, width, 0)
        columns = jax.lax.dynamic_slice_in_dim(system, start, width, 1)
        block = jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        rows = jnp.concatenate([block, rows], axis=1)
        rows = jax.lax.fori_loop(0, width, _pivot, rows)[:, width:]
        return jax.lax.dynamic_update_slice_in_dim(
            system - dot(columns, rows), rows, start, 0
        )

    if first < size:
        system = jax.lax.fori_loop(0, size // width, eliminate, system)
    return system[:, size:].reshape(rhs.shape)


def _pivot(i: Array, rows: Array) -> Array:
    """Transform column i of the rows to column i of the identity."""
    row, column = (jax.lax.dynamic_index_in_dim(rows, i, axis) for axis in (0, 1))
    row = row / jax.lax.dynamic_index_in_dim(row, i, 1)
    return jax.lax.dynamic_update_slice_in_dim(rows - column * row, row, i, 0)


def solve_unit_upper(rows: Array, strict: Array, batched: bool = False) -> Array:
    """Solve X (I + strict) = rows, `[M, N, …]`, with strictly upper `strict`.

    The first N rows of `rows` and X are upper triangular, so halving skips most of the
    zeros. A batch is halved down to columns with explicit sums, which takes half the
    time. For a single problem, this would take too long to compile: 1.1 s instead of
    0.3 s at N = 50.
    """
    size = strict.shape[0]
    batched &= size <= LARGE
    if batched and size <= 8:
        solved = [rows[:, 0]]
        for k in range(1, size):
            solved.append(rows[:, k] - sum(solved[i] * strict[i, k] for i in range(k)))
        return jnp.stack(solved, axis=1)
    if size <= LARGE and not batched:
        return _solve_by_columns(rows, strict)
    half = size // 2
    later_half = size - half
    near = jnp.concatenate([rows[:half], rows[size:]])
    left = solve_unit_upper(near[:, :half], strict[:half, :half], batched)
    if size <= LARGE:
        product = _product
    else:
        product = functools.partial(einsum, "ji...,ik...->jk...")
    above = near[:, half:] - product(left, strict[:half, half:])
    below = jnp.concatenate([rows[half:size, half:], above])
    right = solve_unit_upper(below, strict[half:, half:], batched)
    above = jnp.concatenate([left, right[later_half:]], axis=1)
    below = jnp.concatenate(
        [jnp.zeros_like(rows[half:size, :half]), right[:later_half]], axis=1
    )
    return jnp.concatenate([above[:half], below, above[half:]])


def _solve_by_columns(rows: Array, strict: Array) -> Array:
    """Solve for a few columns of X at a time.

    First subtract all earlier columns, then each of these columns from the later ones.
    """
    size = strict.shape[0]
    width = 5  # fastest at N = 20 and N = 50
    short = (0, -size % width)
    unpadded_axes = [(0, 0)] * (rows.ndim - 2)
    rows = jnp.pad(rows, [(0, 0), short, *unpadded_axes])
    strict = jnp.pad(strict, [short, short, *unpadded_axes])

    def solve_columns(block: Array, solved: Array) -> Array:
        start = block * width
        above = jax.lax.dynamic_slice_in_dim(strict, start, width, 1)

        def take_out(i: Array, left: Array) -> Array:
            for j in range(width):
                earlier = jax.lax.dynamic_index_in_dim(solved, i * width + j, 1)
                left = left - earlier * jax.lax.dynamic_index_in_dim(
                    above, i * width + j, 0
                )
            return left

        left = jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        left = jax.lax.fori_loop(0, block, take_out, left)
        diagonal = jax.lax.dynamic_slice_in_dim(above, start, width, 0)

        def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            # The loop carries the column separately. Otherwise XLA copies all columns
            # before each write.
            left, column = carry
            left = left - column[:, None] * diagonal[k]
            return left, left[:, k + 1]

        left, _ = jax.lax.fori_loop(0, width - 1, step, (left, left[:, 0]))
        return jax.lax.dynamic_update_slice_in_dim(solved, left, start, 1)

    blocks = strict.shape[0] // width
    return jax.lax.fori_loop(0, blocks, solve_columns, jnp.zeros_like(rows))[:, :size]


def _product(left: Array, right: Array) -> Array:
    """Compute Σ_i left_ji right_ik, `[M, N, …]`, a few i at a time."""
    group = 4
    whole = len(right) // group

    def add(i: Array, sum_: Array) -> Array:
        for j in range(group):
            sum_ = sum_ + left[:, i * group + j, None] * right[i * group + j]
        return sum_

    remainder = sum(
        left[:, i, None] * right[i] for i in range(whole * group, len(right))
    )
    start = jnp.zeros((len(left), *right.shape[1:]), right.dtype) + remainder
    if whole:
        return jax.lax.fori_loop(0, whole, add, start)
    return start
