"""A loss, a check of its values, and which of them can be added up, in which types."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bcgc_jax.balancing.compiled.tracing import coarsest_eps, uses_last_argument, varies

Reduction = Literal["mean", "sum"]
# A loss that uses its key draws other random numbers for each part of a chunk. Then
# only a loss that is off by a factor of two is an error, if the halves agree so well.
_AGREE, _FACTOR = 0.2, 1.7
THE_LOSS = "the loss"

_ADVICE = (
    'If the loss is a sum over rows or tokens, use reduction="sum" and return counts '
    "as auxiliary values. A loss in which rows depend on each other, such as a maximum "
    "or a loss with BatchNorm, cannot be computed chunk by chunk. The same holds for "
    "auxiliary values: return the sums that such a value needs, or compute it outside "
    "of the gradient. check=False turns this check off"
)


def name_of_value(path: tuple[Any, ...], has_aux: bool) -> str:
    """The name of a value of a loss in a message, from its path in the result."""
    if has_aux and path[0].idx == 1:
        return f"the auxiliary value `aux{jax.tree_util.keystr(path[1:])}`"
    return THE_LOSS


def weighted_sums(values: Any) -> Array:
    """A weighted sum of the entries of each array, `[L]`. A scalar has the weight 1.

    A mean or a sum over chunks is linear, so it holds for these sums, too.
    """
    sums = [_weighted_sum(jnp.asarray(leaf)) for leaf in jax.tree.leaves(values)]
    return jnp.stack(sums)


def _weighted_sum(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    entries = leaf.astype(jnp.float32).ravel()
    # Entries of different places have different weights between 1 and 2.
    weights = 1 + np.arange(entries.size) * ((5**0.5 - 1) / 2) % 1
    return jnp.sum(entries * weights.astype(np.float32))


def twice(rows: Any) -> Any:
    """The rows, and the same ones behind them."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rows)


class Loss(NamedTuple):
    """A loss, and how the losses of chunks are combined.

    Attributes:
      function: Maps (params, rows), or (params, rows, key), to the loss of the rows.
      reduction: Whether it is a mean or a sum over the rows.
      has_aux: Whether it returns auxiliary values, too.
    """

    function: Callable[..., Any]
    reduction: Reduction
    has_aux: bool

    def of_halves(self, params: Any, rows: Any, key: tuple[Array, ...]) -> Array:
        """What `LossCheck.compare` must know of the first n // 2 of n rows, and of the
        other rows, `[2, 2, L]`.

        A single row has no halves. The values of two copies of it show whether they are
        means or sums, because they give the values of the row.
        """
        count = len(jax.tree.leaves(rows)[0])
        half = count // 2
        if count == 1:
            values = self._of_part(params, twice(rows), key)
            if self.reduction == "sum":
                return jnp.stack([jnp.zeros_like(values), values / 2])
            return jnp.stack([values, values])
        if count % 2 == 0:
            halves = jax.tree.map(
                lambda leaf: leaf.reshape(2, half, *leaf.shape[1:]), rows
            )
            return lax.map(lambda part: self._of_part(params, part, key), halves)
        parts = [
            jax.tree.map(lambda leaf, part=part: leaf[part], rows)
            for part in (slice(half), slice(half, None))
        ]
        return jnp.stack([self._of_part(params, part, key) for part in parts])

    def check_of(self, params: Any, rows: Any, key: tuple[Array, ...]) -> "LossCheck":
        """What the check must know of the loss of these arguments."""
        traced, types = jax.make_jaxpr(jax.jit(self.function), return_shape=True)(
            params, rows, *key
        )
        is_random = bool(key) and uses_last_argument(traced.jaxpr)
        # The values come to the check in float32.
        eps = max(coarsest_eps(traced.jaxpr), float(jnp.finfo(jnp.float32).eps))
        names: list[str] = []
        for path, kind in jax.tree_util.tree_leaves_with_path(types):
            is_array = "a weighted sum of " if kind.ndim else ""
            names.append(is_array + name_of_value(path, self.has_aux))
        return LossCheck(self.reduction, tuple(names), eps**0.5, is_random)

    def _of_part(self, params: Any, rows: Any, key: tuple[Array, ...]) -> Array:
        """A weighted sum of each value, and of its absolute entries, `[2, L]`."""
        values = self.function(params, rows, *key)
        return jnp.stack(
            [weighted_sums(values), weighted_sums(jax.tree.map(jnp.abs, values))]
        )


class LossCheck(NamedTuple):
    """Compares the values of a chunk with the values of its halves.

    Attributes:
      reduction: How values of chunks are combined.
      names: The names of the loss and of its auxiliary values, in messages.
      tolerance: Relative difference that rounding may cause.
      is_random: Whether the loss uses its key.
    """

    reduction: Reduction
    names: tuple[str, ...]
    tolerance: float
    is_random: bool

    def compare(self, whole: np.ndarray, halves: np.ndarray, num_rows: int) -> None:
        """Compare the values of `num_rows` rows with those of the first n // 2 rows and
        of the other rows.

        Args:
          whole: The `weighted_sums` of the values of all rows, `[L]`.
          halves: The result of `Loss.of_halves`, `[2, 2, L]`.
          num_rows: The number of rows.

        Raises:
          ValueError: If the values of the halves, combined by the reduction, are not
            those of the whole chunk.
        """
        # An auxiliary value may vary far more with the random numbers than the loss.
        names = self.names[:1] if self.is_random else self.names
        for number, name in enumerate(names):
            all_rows = float(whole[number])
            sums, sizes = halves[:, 0, number], halves[:, 1, number]
            first, second = sums.tolist()
            if self.reduction == "sum":
                combined = first + second
            else:
                weight = (num_rows // 2) / num_rows
                combined = weight * first + (1 - weight) * second
            largest = float(np.max([abs(all_rows), *sizes]))
            if np.isfinite(largest) and not self._agrees(
                all_rows, combined, abs(first - second), largest
            ):
                raise ValueError(
                    f"{name} of a chunk of {num_rows} rows is {all_rows:.7g}, but its "
                    f"halves give {combined:.7g} with "
                    f'reduction="{self.reduction}". {_ADVICE}'
                )

    def _agrees(
        self, whole: float, combined: float, spread: float, largest: float
    ) -> bool:
        """Whether the value of all rows is that of the halves, which differ by
        `spread`.
        """
        if not self.is_random:
            return abs(whole - combined) <= self.tolerance * largest
        if spread > _AGREE * largest or whole * combined <= 0:
            return True
        return 1 / _FACTOR < whole / combined < _FACTOR


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
