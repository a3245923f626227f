"""Where a condition on a number begins to hold."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def bisect(
    holds: Callable[[Array], Array], low: Array, high: Array, steps: int = 64
) -> tuple[Array, Array]:
    """The ends of where `holds` becomes true, after `steps` halvings from `low` to
    `high`.

    Elementwise, for a condition that holds from some number on; at `high` it is taken
    for granted. 64 halvings exhaust float64.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        reached = holds(middle)
        return jnp.where(reached, ends[0], middle), jnp.where(reached, middle, ends[1])

    return jax.lax.fori_loop(0, steps, halve, (low, high))
