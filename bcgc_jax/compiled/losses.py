"""A loss, and a check that its values are means, or sums, over the rows it receives."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bcgc_jax.compiled.tracing import coarsest_eps, uses_last_argument

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
