"""Convert between partitions x of L coordinates and the coordinates' levels s."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import Numbers, check, is_traced
from bcgc_jax.exact.crossing import MANY


def levels_from_partition(
    partition: Numbers, num_coordinates: int | None = None
) -> Array:
    """Compute the level of each coordinate from a partition (Theorem 1 of the paper).

    The level of coordinate l = 1, …, L is s_l = min{i : Σ_{n≤i} x_n ≥ l}.

    Args:
      partition: Partition x in integers, `[N]`.
      num_coordinates: Number of coordinates, L. Must be static. Defaults to the sum of
        `partition`, which must then be known.

    Returns:
      The levels s, ascending integers, `[num_coordinates]`. All are -1 if a traced
      partition has a negative entry.

    Raises:
      ValueError: If a known partition has a negative entry.

    >>> levels_from_partition([1, 0, 2]).tolist()
    [0, 2, 2]
    """
    x = jnp.asarray(partition)
    if not is_traced(x):
        check("partition", x, ">= 0")
    if num_coordinates is None:
        num_coordinates = int(np.asarray(x).sum())
    return _levels(x, num_coordinates)


@functools.partial(jax.jit, static_argnums=1)
def _levels(x: Array, num_coordinates: int) -> Array:
    rank = jnp.arange(1, num_coordinates + 1)
    reached = jnp.cumsum(x)
    # If rounding makes the sum smaller than L, the last coordinates get the last level
    # in use.
    levels = jnp.minimum(
        jnp.searchsorted(reached, rank, side="left"), jnp.argmax(reached)
    )
    return jnp.where(jnp.all(x >= 0), levels, -1)


def partition_from_levels(levels: Numbers, num_workers: int | None = None) -> Array:
    """Count the coordinates at each level (Theorem 1 of the paper).

    The partition is x_n = #{l : s_l = n} for n = 0, …, N - 1.

    Args:
      levels: Level s_l of each coordinate, integers, `[L]`.
      num_workers: Number of workers, N. Must be static. Defaults to the highest level
        plus 1, which must then be known.

    Returns:
      The partition x in integers, `[num_workers]`. All entries are -1 if a traced level
      is not in 0, …, N - 1.

    Raises:
      ValueError: If a known level is not in 0, …, N - 1.

    >>> partition_from_levels([0, 2, 2]).tolist()
    [1, 0, 2]
    """
    s = jnp.asarray(levels)
    if num_workers is None:
        num_workers = int(np.asarray(s).max()) + 1
    check_levels(s, num_workers)
    return _counts(s, num_workers)


def check_levels(levels: Numbers, num_workers: int) -> None:
    """Raise ValueError if a known level is not in 0, …, N - 1."""
    if is_traced(levels):
        return
    s = np.asarray(levels)
    if s.size and not 0 <= s.min() <= s.max() < num_workers:
        raise ValueError(
            f"levels must be from 0 to {num_workers - 1}, less than the number of "
            f"workers, got {s.min()} to {s.max()}"
        )


@functools.partial(jax.jit, static_argnums=1)
def _counts(levels: Array, num_workers: int) -> Array:
    exist = jnp.all((levels >= 0) & (levels < num_workers))
    return jnp.where(exist, jnp.bincount(levels, length=num_workers), -1)


@jax.jit
def cumulative_load(partition: ArrayLike) -> Array:
    """Compute y_n = Σ_{i≤n} (i + 1) x_i, the cycles up to level n, on the last axis."""
    x = jnp.asarray(partition)
    return _up_to(jnp.sum, x * jnp.arange(1, x.shape[-1] + 1))


@jax.jit
def finish_load(
    partition: Array, used: Array, setup: ArrayLike, chain: ArrayLike = 0.0
) -> Array:
    """Compute y_n + (n + 1) (setup + chain Σ_{i≤n} x_i).

    An unused level has the value of the last used level before it.
    """
    subsets = _up_to(jnp.max, jnp.where(used, jnp.arange(1, used.shape[-1] + 1), 0))
    x = jnp.where(used, partition, 0)
    return cumulative_load(x) + subsets * (setup + chain * _up_to(jnp.sum, x))


def _up_to(reduce: Callable[..., Array], values: Array) -> Array:
    """Reduce the first n entries along the last axis, for each n.

    `reduce` is a sum, or a maximum of numbers ≥ 0. For few levels, O(N²) terms in one
    kernel compile faster than a running sum, which takes five kernels.
    """
    size = values.shape[-1]
    if size > MANY:
        running = jax.lax.cummax
        if reduce is jnp.sum:
            running = jax.lax.cumsum
        return running(values, axis=values.ndim - 1)
    return reduce(jnp.where(np.tri(size, dtype=bool), values[..., None, :], 0), axis=-1)


@jax.jit
def project_partition(values: Array, total: ArrayLike, exists: Array) -> Array:
    """Project `values` onto {x ≥ 0, Σ x = total, x_n = 0 unless `exists`_n}.

    The projection is max(values - λ, 0).
    """
    values = jnp.asarray(values)
    values = values.astype(jnp.result_type(values, jnp.float32))
    # A shift does not change the projection. Without it, the sum would lose its digits
    # far from the simplex.
    values = jnp.where(
        exists, values - jnp.max(jnp.where(exists, values, -jnp.inf)), -jnp.inf
    )
    highest_first = jnp.sort(values)[::-1]
    # If only the k largest values stay positive, λ = (Σ - total) / k. λ is largest for
    # the correct k.
    excess = jnp.cumsum(highest_first) - jnp.asarray(total, values.dtype)
    shift = jnp.max(excess / np.arange(1, values.size + 1, dtype=values.dtype))
    return jnp.maximum(values - shift, 0)


def round_partition(partition: Array, total: ArrayLike) -> Array:
    """Round a partition to integers with sum `total`, by largest remainders.

    Levels at exactly 0 stay empty. For units of unequal cost, use `round_to_units`.

    >>> round_partition(jnp.array([1.5, 0.0, 2.2, 0.3]), 4).tolist()
    [2, 0, 2, 0]
    """
    # If the numbers are known, NumPy avoids the compilation of two sorts.
    xp = jnp if is_traced((partition, total)) else np
    partition = xp.asarray(partition)
    # NaN entries, which mark a partition that does not exist, become 0.
    whole = xp.where(partition > 0, xp.floor(partition), 0)
    counts = whole.astype(int)
    remainder = xp.where(partition > 0, partition - whole, -1)
    missing = xp.asarray(total, counts.dtype) - xp.sum(counts)
    rank = xp.argsort(xp.argsort(-remainder, stable=True), stable=True)
    counts = counts + ((rank < missing) & (partition > 0))
    # Above 2^24 coordinates, float32 has no fractions. The remaining coordinates go to
    # the largest level.
    leftover = xp.asarray(total, counts.dtype) - xp.sum(counts)
    largest = xp.arange(counts.size) == xp.argmax(partition)
    return jnp.asarray(counts + xp.where(largest, leftover, 0))


@jax.jit
def round_to_units(partition: Array, unit_costs: Array) -> Array:
    """Round a partition of costs to numbers of units at each level.

    The sequence of units is cut where its cumulative cost is nearest to the cumulative
    sum of `partition`.

    >>> round_to_units(jnp.array([2.0, 0.0, 3.0]), jnp.array([1.5, 2.5, 1.0])).tolist()
    [1, 0, 2]
    """
    level = jnp.arange(partition.size)
    middles = jnp.cumsum(unit_costs) - unit_costs / 2
    ends = jnp.searchsorted(middles, jnp.cumsum(partition), side="right")
    # The last cut includes all units, even if rounding changed the sum.
    last = jnp.max(jnp.where(partition > 0, level, 0))
    return jnp.diff(jnp.where(level >= last, middles.size, ends), prepend=0)


@jax.jit
def cost_of_units(counts: Array, unit_costs: Array) -> Array:
    """Compute the partition of costs from the number of units at each level."""
    ends = jnp.concatenate([jnp.zeros(1, unit_costs.dtype), jnp.cumsum(unit_costs)])
    return jnp.diff(ends[jnp.cumsum(counts)], prepend=0)
