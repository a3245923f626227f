"""Find the number from which on a condition holds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def bisect(
    holds: Callable[[Array], Array], low: Array, high: Array, steps: int = 64
) -> tuple[Array, Array]:
    """Find where `holds` becomes true between `low` and `high`, elementwise.

    The condition must hold from some number on, and is assumed to hold at `high`. After
    64 steps, the precision of float64 is exhausted.

    Returns:
      The lower and the upper end of the last interval.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        reached = holds(middle)
        return jnp.where(reached, ends[0], middle), jnp.where(reached, middle, ends[1])

    return jax.lax.fori_loop(0, steps, halve, (low, high))
