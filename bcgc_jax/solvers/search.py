"""The result of a search: its best point, and a lower bound."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.problem import Status

Tree = TypeVar("Tree")


class Optimum(NamedTuple):
    """The best point of a search, and a lower bound on the objective.

    Attributes:
      point: The best point.
      value: The objective at `point`.
      error: Error of `value` and `bound`, as far as the search knows it.
      bound: Lower bound on the objective. NaN after a local search.
      status: Integer value of a `Status`.
      num_steps: Number of steps.
      aux: Other results of the search.
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
    """Return the result of a local search, without a bound.

    The search has `ended` by itself, or has reached its maximum number of steps.
    """
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
    """Return CONVERGED if the search has `ended` by itself, otherwise STEP_LIMIT."""
    return jnp.where(ended, int(Status.CONVERGED), int(Status.STEP_LIMIT))


def choose(condition: Array, new: Tree, previous: Tree) -> Tree:
    """Apply `jnp.where` to all arrays of a loop's state."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, previous)
