"""What every search gives: its best point, and what it proves of it."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.problem import Status

Tree = TypeVar("Tree")


class Optimum(NamedTuple):
    """The best point of a search, in the unit of what is searched, and what is proven
    of it.

    No point is better than `bound`; NaN where nothing is proven, as by local searches.
    `error` is that of `value` and `bound`, as far as the search knows it. `status` is
    the integer of a `Status`, and `aux` what else the search says.
    """

    point: Array
    value: Array
    error: Array
    bound: Array
    status: Array
    num_steps: Array
    aux: Any = None


def local_optimum(
    point: Array, value: Array, ended: ArrayLike, num_steps: ArrayLike, aux: Any = None
) -> Optimum:
    """That of a local search, which has `ended` by itself or at its limit of steps."""
    return Optimum(
        point=point,
        value=value,
        error=jnp.zeros_like(value),
        bound=jnp.full_like(value, jnp.nan),
        status=status_of(ended),
        num_steps=jnp.asarray(num_steps),
        aux=aux,
    )


def status_of(ended: ArrayLike) -> Array:
    """CONVERGED, or STEP_LIMIT."""
    return jnp.where(ended, int(Status.CONVERGED), int(Status.STEP_LIMIT))


def choose(condition: Array, new: Tree, previous: Tree) -> Tree:
    """The new arrays, or the old ones: `jnp.where` for whole states of a loop."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, previous)
