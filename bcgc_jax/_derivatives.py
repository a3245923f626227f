"""Define the derivatives of search results.

The optimal value has its derivative at a fixed plan. All other derivatives of a result
are NaN and not 0, because a 0 could be mistaken for a true derivative.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

T = TypeVar("T")


@jax.custom_jvp
def without_derivative(tree: T, of: Any) -> T:
    """Return `tree`, which depends on `of`, with NaN as its derivatives in `of`.

    Derivatives of other results do not change.

    >>> found = lambda x: {"value": x * x, "gap": without_derivative(x / 8, x)}
    >>> [float(jax.grad(lambda x: found(x)[name])(3.0)) for name in ("value", "gap")]
    [6.0, nan]
    """
    del of
    return tree


def _without_derivative_jvp(primals, tangents):
    tree, of = primals
    float0 = jax.dtypes.float0
    leaves = [
        leaf for leaf in jax.tree.leaves(tangents[1]) if type(leaf) is not SymbolicZero
    ]
    unknown = sum(
        (
            jnp.sum(_nan_unless_zero(leaf))
            for leaf in leaves
            if getattr(leaf, "dtype", None) != float0
        ),
        start=jnp.zeros(()),
    )
    # Second derivatives are then NaN, too.
    moved = _nan_unless_zero(unknown, without_derivative(jnp.ones(()), of))

    def slope(a: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            return np.zeros(jnp.shape(a), float0)  # JAX's tangent type for integers
        return _nan_unless_zero(jnp.full_like(a, moved))

    return without_derivative(tree, of), jax.tree.map(slope, tree)


without_derivative.defjvp(_without_derivative_jvp, symbolic_zeros=True)


def _nan_unless_zero(tangent: Array, unit: ArrayLike = 1.0) -> Array:
    """Return NaN for a nonzero tangent, and 0 for a zero tangent.

    If the derivative of a result is not requested, its tangent is zero. To JAX, the
    function is linear and can be transposed. A nonzero tangent is multiplied by `unit`,
    which is 1 and has the derivative. A zero tangent is not multiplied, because 0 times
    a derivative of NaN is NaN.
    """

    def times_unit(tangent: Array) -> Array:
        return jnp.where(tangent == 0, tangent, tangent * unit)

    def solve(_: Any, tangent: Array) -> Array:
        return jnp.where(tangent == 0, tangent, jnp.nan)

    return jax.lax.custom_linear_solve(times_unit, tangent, solve, symmetric=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def with_slopes(
    function: Callable[..., Any], value: Any, problem: Any, plan: Any, *arguments: Any
) -> Any:
    """Return `function` at its optimal plan, with derivatives at the fixed plan.

    This is the envelope theorem. `value` is the value of the function if it is known,
    otherwise None. Second derivatives also need the derivatives of the plan.
    """
    if value is None:
        return function(problem, plan, *arguments)
    return value


@with_slopes.defjvp
def _with_slopes_jvp(function, primals, tangents):
    known_value, problem, plan, *arguments = primals
    _, of_problem, _, *of_arguments = tangents
    point = (problem, *arguments)
    along = (of_problem, *of_arguments)
    value, slope = jax.jvp(
        lambda problem, *arguments: function(problem, plan, *arguments), point, along
    )
    if known_value is not None:
        value = known_value
    return with_slopes(function, value, problem, plan, *arguments), slope
