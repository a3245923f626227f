r"""Partitions x of L coordinates over levels, and the coordinates' levels s."""

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
    r"""s_l = min{i : Σ_{n≤i} x_n ≥ l}, l = 1…L, `[num_coordinates]` (Theorem 1 of the
    paper).

    `num_coordinates` is static, by default the sum, which must be known. Of a traced x
    that is no partition all levels are -1.

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
    # A sum that rounding left below L ends on the last level in use.
    levels = jnp.minimum(
        jnp.searchsorted(reached, rank, side="left"), jnp.argmax(reached)
    )
    return jnp.where(jnp.all(x >= 0), levels, -1)


def partition_from_levels(levels: Numbers, num_workers: int | None = None) -> Array:
    r"""x_n = #{l : s_l = n}, n = 0…N-1, `[num_workers]` (Theorem 1 of the paper).

    `num_workers` is static, by default one more than the highest level, which must be
    known. Of a traced s with levels that these workers do not have all entries are -1.

    >>> partition_from_levels([0, 2, 2]).tolist()
    [1, 0, 2]
    """
    s = jnp.asarray(levels)
    if num_workers is None:
        num_workers = int(np.asarray(s).max()) + 1
    check_levels(s, num_workers)
    return _counts(s, num_workers)


def check_levels(levels: Numbers, num_workers: int) -> None:
    """Raise ValueError for known levels that so many workers do not have."""
    if is_traced(levels):
        return
    s = np.asarray(levels)
    if s.size and not 0 <= s.min() <= s.max() < num_workers:
        raise ValueError(
            f"levels must be from 0 to {num_workers - 1}, below N, got {s.min()} to "
            f"{s.max()}"
        )


@functools.partial(jax.jit, static_argnums=1)
def _counts(levels: Array, num_workers: int) -> Array:
    exist = jnp.all((levels >= 0) & (levels < num_workers))
    return jnp.where(exist, jnp.bincount(levels, length=num_workers), -1)


@jax.jit
def cumulative_load(partition: ArrayLike) -> Array:
    """y_n = Σ_{i≤n} (i+1) x_i, along the last axis: cycles until level n is done."""
    x = jnp.asarray(partition)
    return _up_to(jnp.sum, x * jnp.arange(1, x.shape[-1] + 1))


@jax.jit
def finish_load(
    partition: Array, used: Array, setup: ArrayLike, chain: ArrayLike = 0.0
) -> Array:
    """y_n + (n+1) (setup + chain Σ_{i≤n} x_i); at unused levels as at the last used."""
    subsets = _up_to(jnp.max, jnp.where(used, jnp.arange(1, used.shape[-1] + 1), 0))
    x = jnp.where(used, partition, 0)
    return cumulative_load(x) + subsets * (setup + chain * _up_to(jnp.sum, x))


def _up_to(reduce: Callable[..., Array], values: Array) -> Array:
    """The sum of the first n along the last axis, for each n, or the maximum of numbers
    ≥ 0.

    Of few levels by O(N²) terms: one kernel to compile, where a running sum takes five.
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
    """argmin ‖x - values‖₂ over x ≥ 0, Σ x = total, 0 at levels that do not `exist`.

    It is max(values - λ, 0).
    """
    values = jnp.asarray(values)
    values = values.astype(jnp.result_type(values, jnp.float32))
    # A shift changes no projection; far from the simplex the sum would be lost in
    # rounding.
    values = jnp.where(
        exists, values - jnp.max(jnp.where(exists, values, -jnp.inf)), -jnp.inf
    )
    highest_first = jnp.sort(values)[::-1]
    # λ of the first k alone, (Σ - total) / k, is largest for those that stay above it.
    excess = jnp.cumsum(highest_first) - jnp.asarray(total, values.dtype)
    shift = jnp.max(excess / np.arange(1, values.size + 1, dtype=values.dtype))
    return jnp.maximum(values - shift, 0)


def round_partition(partition: Array, total: ArrayLike) -> Array:
    r"""Integers next to `partition` that sum to `total` exactly, by the largest
    remainder.

    Levels at exactly 0 stay empty. For units of unequal cost see `round_to_units`.

    >>> round_partition(jnp.array([1.5, 0.0, 2.2, 0.3]), 4).tolist()
    [2, 0, 2, 0]
    """
    # Two sorts: not worth a compilation where the numbers are known.
    xp = jnp if is_traced((partition, total)) else np
    partition = xp.asarray(partition)
    # NaN, of what is no partition, is none either
    whole = xp.where(partition > 0, xp.floor(partition), 0)
    counts = whole.astype(int)
    remainder = xp.where(partition > 0, partition - whole, -1)
    missing = xp.asarray(total, counts.dtype) - xp.sum(counts)
    rank = xp.argsort(xp.argsort(-remainder, stable=True), stable=True)
    counts = counts + ((rank < missing) & (partition > 0))
    # Beyond 2^24 coordinates float32 has no fractions left: what is still missing goes
    # to the largest.
    leftover = xp.asarray(total, counts.dtype) - xp.sum(counts)
    largest = xp.arange(counts.size) == xp.argmax(partition)
    return jnp.asarray(counts + xp.where(largest, leftover, 0))


@jax.jit
def round_to_units(partition: Array, unit_costs: Array) -> Array:
    r"""Whole units at each level: their row is cut where it is nearest to the sum of
    `partition`.

    >>> round_to_units(jnp.array([2.0, 0.0, 3.0]), jnp.array([1.5, 2.5, 1.0])).tolist()
    [1, 0, 2]
    """
    level = jnp.arange(partition.size)
    middles = jnp.cumsum(unit_costs) - unit_costs / 2
    ends = jnp.searchsorted(middles, jnp.cumsum(partition), side="right")
    # The last cut is the end, whatever rounding made of the sum.
    last = jnp.max(jnp.where(partition > 0, level, 0))
    return jnp.diff(jnp.where(level >= last, middles.size, ends), prepend=0)


@jax.jit
def cost_of_units(counts: Array, unit_costs: Array) -> Array:
    """The partition of costs by `counts` units at each level, in their order."""
    ends = jnp.concatenate([jnp.zeros(1, unit_costs.dtype), jnp.cumsum(unit_costs)])
    return jnp.diff(ends[jnp.cumsum(counts)], prepend=0)
