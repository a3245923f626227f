"""A loss, and a check that it is a mean, or a sum, over the rows that it receives."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bcgc_jax.compiled.tracing import coarsest_eps, uses_last_argument

Reduction = Literal["mean", "sum"]
# A loss that uses its key draws other random numbers for each part of a chunk. Then
# only a loss that is off by a factor of two is an error, if the halves agree so well.
_AGREE, _FACTOR = 0.2, 1.7


_ADVICE = (
    'If the loss is a sum over rows or tokens, use reduction="sum" and return counts '
    "as auxiliary values. A loss in which rows depend on each other, such as a maximum "
    "or a loss with BatchNorm, cannot be computed chunk by chunk. check=False turns "
    "this check off"
)


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

    def value(self, *arguments: Any) -> Array:
        """The loss without auxiliary values."""
        value = self.function(*arguments)
        return value[0] if self.has_aux else value

    def of_halves(self, params: Any, rows: Any, key: tuple[Array, ...]) -> Array:
        """The losses of the first n // 2 of n rows, and of the other rows, `[2]`.

        A single row has no halves. The loss of two copies of it shows whether the loss
        is a mean or a sum: the losses that are returned give the loss of the row.
        """
        count = len(jax.tree.leaves(rows)[0])
        half = count // 2
        if count == 1:
            value = self._single(params, twice(rows), key)
            if self.reduction == "sum":
                return jnp.stack([jnp.zeros_like(value), value / 2])
            return jnp.stack([value, value])
        if count % 2 == 0:
            halves = jax.tree.map(
                lambda leaf: leaf.reshape(2, half, *leaf.shape[1:]), rows
            )
            return lax.map(lambda part: self._single(params, part, key), halves)
        parts = [
            jax.tree.map(lambda leaf, part=part: leaf[part], rows)
            for part in (slice(half), slice(half, None))
        ]
        return jnp.stack([self._single(params, part, key) for part in parts])

    def check_of(self, params: Any, rows: Any, key: tuple[Array, ...]) -> "LossCheck":
        """What the check must know of the loss of these arguments."""
        program = jax.make_jaxpr(jax.jit(self.value))(params, rows, *key).jaxpr
        is_random = bool(key) and uses_last_argument(program)
        # The losses come to the check in float32.
        eps = max(coarsest_eps(program), float(jnp.finfo(jnp.float32).eps))
        return LossCheck(self.reduction, eps**0.5, is_random)

    def _single(self, params: Any, rows: Any, key: tuple[Array, ...]) -> Array:
        return self.value(params, rows, *key).astype(jnp.float32)


class LossCheck(NamedTuple):
    """Compares the loss of a chunk with the losses of its halves.

    Attributes:
      reduction: How losses of chunks are combined.
      tolerance: Relative difference that rounding may cause.
      is_random: Whether the loss uses its key.
    """

    reduction: Reduction
    tolerance: float
    is_random: bool

    def compare(self, whole: float, halves: Sequence[float], num_rows: int) -> None:
        """Compare the loss of `num_rows` rows with those of the first n // 2 rows and
        of the other rows.

        Raises:
          ValueError: If the losses of the halves, combined by the reduction, are not
            the loss of the whole chunk.
        """
        first, second = halves
        if self.reduction == "sum":
            combined = first + second
        else:
            weight = (num_rows // 2) / num_rows
            combined = weight * first + (1 - weight) * second
        largest = max(abs(whole), abs(first), abs(second))
        if not math.isfinite(largest) or self._agrees(whole, combined, halves, largest):
            return
        raise ValueError(
            f"the loss of a chunk of {num_rows} rows is {whole:.7g}, but its halves "
            f'give {combined:.7g} with reduction="{self.reduction}". {_ADVICE}'
        )

    def _agrees(
        self, whole: float, combined: float, halves: Sequence[float], largest: float
    ) -> bool:
        if not self.is_random:
            return abs(whole - combined) <= self.tolerance * largest
        spread = abs(halves[0] - halves[1])
        if spread > _AGREE * largest or whole * combined <= 0:
            return True
        return 1 / _FACTOR < whole / combined < _FACTOR
