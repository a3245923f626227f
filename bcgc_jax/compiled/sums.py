"""Which values of chunks can be added up, and in which types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bcgc_jax.compiled.losses import THE_LOSS, Loss, name_of_value
from bcgc_jax.compiled.tracing import varies

# Integers with fewer bits can overflow in a sum of counts.
_BITS = 32
# Odd multipliers of the two numbers of a checksum.
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)


def wide(dtype: Any) -> Any:
    """The type in which values of a type are added up: float32 or more for floats."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.promote_types(dtype, jnp.float32)
    return dtype


def add_weighted(weight: float, total: Array, part: Any) -> Array:
    part = jnp.asarray(part).astype(total.dtype)
    if weight != 1.0:
        part = part * jnp.asarray(weight, total.dtype)
    return total + part


def with_dtypes(total: Any, types: Any, scale: float, ok: Array) -> Any:
    """Scale the sums, and convert them to the types of a chunk's values.

    After a failed step, floats are NaN, so that nobody takes them for a gradient.
    """

    def converted(x: Array, kind: Any) -> Array:
        if not jnp.issubdtype(kind.dtype, jnp.inexact):
            return jnp.where(ok, x, jnp.zeros_like(x))
        x = x * jnp.asarray(scale, x.dtype)
        return jnp.where(ok, x, jnp.full_like(x, jnp.nan)).astype(kind.dtype)

    return jax.tree.map(converted, total, types)


def check_reducible(loss: Loss, types: Any, axis: str) -> None:
    """Refuse values of a chunk that cannot be combined with those of other chunks.

    Args:
      loss: The loss.
      types: Types of (value, gradient), or of ((value, aux), gradient).
      axis: The axis of the workers.

    Raises:
      ValueError: If a value differs between the devices of a worker, or if an auxiliary
        value is of a type that the reduction does not keep.
    """
    value, _ = types
    for path, kind in jax.tree_util.tree_leaves_with_path(value):
        name = name_of_value(path, loss.has_aux)
        if name != THE_LOSS:
            _check_type(name, kind.dtype, loss.reduction)
        if other_axes := sorted(varies(kind) - {axis}):
            raise ValueError(
                f"{name} differs over the axis {other_axes[0]!r} of the mesh. Sum it "
                f"over that axis within the loss, for example with "
                f"jax.lax.psum(…, {other_axes[0]!r})"
            )


def _check_type(name: str, dtype: Any, reduction: str) -> None:
    if jnp.issubdtype(dtype, jnp.inexact):
        return
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    if is_integer and reduction == "sum" and jnp.iinfo(dtype).bits >= _BITS:
        return
    if not is_integer:
        advice = "Return it as float32, or as an int32 count with a sum"
    elif reduction == "mean":
        advice = (
            'Return it as float32, or use reduction="sum" if loss and values are sums'
        )
    else:
        advice = "Return it as int32, because a sum over all rows may overflow"
    verb = "averaged" if reduction == "mean" else "summed"
    raise ValueError(
        f'{name} has the type {dtype}, which cannot be {verb}; reduction="{reduction}" '
        f"is that of the loss. {advice}"
    )


def refuse_rows(types: Any, types_of_twice: Any, num_rows: int) -> None:
    """Refuse auxiliary values whose shape depends on the number of rows.

    Args:
      types: Types of (value, aux) of a chunk of `num_rows` rows.
      types_of_twice: Their types for twice as many rows.

    Raises:
      ValueError: If a shape differs.
    """
    larger = jax.tree.leaves(types_of_twice)
    paths = jax.tree_util.tree_leaves_with_path(types)
    for (path, kind), larger_kind in zip(paths, larger, strict=True):
        if kind.shape != larger_kind.shape:
            name = name_of_value(path, has_aux=True)
            raise ValueError(
                f"{name} has the shape {kind.shape} for {num_rows} "
                f"rows, but {larger_kind.shape} for {2 * num_rows} rows, so it cannot "
                "be combined with those of other chunks. Reduce it over the rows "
                "within the loss, or compute it outside of the gradient"
            )


def checksum(rows: Any) -> Array:
    """Two numbers that depend on each bit of the rows and on their order, int32 `[2]`.

    They are sums of all words of the rows, modulo 2³², with weights that depend on the
    place of a word.
    """
    totals = jnp.zeros(2, jnp.uint32)
    for place, leaf in enumerate(jax.tree.leaves(rows)):
        words = _words(leaf).reshape(-1)
        index = lax.iota(jnp.uint32, len(words)) + np.uint32(place)
        weights = [
            (index * np.uint32(multiplier)) ^ (index >> 7) | np.uint32(1)
            for multiplier in _MULTIPLIERS
        ]
        parts = [jnp.sum(words * weight, dtype=jnp.uint32) for weight in weights]
        totals = totals * np.uint32(31) + jnp.stack(parts)
    return lax.bitcast_convert_type(totals, jnp.int32)


def _words(leaf: Array) -> Array:
    """The bits of an array as unsigned integers of 32 bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    size = jnp.dtype(leaf.dtype).itemsize
    if size <= 4 and not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.astype(jnp.uint32)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)
