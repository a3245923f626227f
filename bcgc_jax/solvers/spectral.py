"""A local minimum over a convex set, by spectral projected gradients (Birgin, Martínez & Raydan 2000)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Values remembered by the line search, which may rise for a while; its slope; bounds of the step size.
_MEMORY, _SUFFICIENT, _SHORTEST, _LONGEST = 10, 1e-4, 1e-8, 1e4


class SpectralResult(NamedTuple):
    """The best point, its value and slope, what the function says beside; how far a projected step would move
    the last point, and the steps taken."""

    point: Array
    value: Array
    slope: Array
    aux: Any
    residual: Array
    num_steps: Array


class _Search(NamedTuple):
    """Before an evaluation at point + scale · direction; the rest is what is known at the point.

    `best` is the best point so far: the value may rise for a while, and at a cliff of the function for good.
    """

    num_steps: Array
    point: Array
    direction: Array
    scale: Array
    value: Array
    slope: Array
    descent: Array
    residual: Array
    memory: Array
    best: tuple[Array, Array, Any]
    least: Array
    before: Array


def spectral_projected_gradient(
    function: Callable[[Array], Any],
    project: Callable[[Array], Array],
    start: Array,
    *,
    tolerance: ArrayLike,
    max_steps: int,
    least_gain: float = 0.0,
    has_aux: bool = False,
) -> SpectralResult:
    """A local minimum of `function` over the set that `project` projects on.

    With `has_aux` the function gives a value and what else it has to say. Stops where a projected gradient
    step moves no entry by more than `tolerance`, and where the best of a positive function fell by no more
    than a share `least_gain` in the last ten steps. A round is one evaluation, after which the step is taken
    or cut: under `vmap` no search waits for the line search of another.
    """
    dtype = start.dtype
    evaluate = jax.value_and_grad(function if has_aux else lambda x: (function(x), None), has_aux=True)
    (_, aux), _ = jax.eval_shape(evaluate, start)

    def go_on(s: _Search) -> Array:
        early = (s.num_steps <= _MEMORY) | (s.num_steps % _MEMORY != 0)
        falls = early | (s.least < (1 - least_gain) * s.before)
        return (s.num_steps <= max_steps) & (s.residual > tolerance) & (falls if least_gain else True)

    def round_(s: _Search) -> _Search:
        point = s.point + s.scale * s.direction
        (value, aux), slope = evaluate(point)
        first = s.num_steps == 0
        highest = jnp.max(s.memory) + _SUFFICIENT * s.scale * s.descent
        cut = ~first & (value > highest) & (s.scale > 1e-10)
        moved, change = point - s.point, slope - s.slope
        curvature = jnp.sum(moved * change)
        spectral = jnp.sum(moved**2) / jnp.where(curvature > 0, curvature, 1)
        length = jnp.where(curvature > 0, jnp.clip(spectral, _SHORTEST, _LONGEST), _LONGEST)
        steepest = jnp.maximum(jnp.max(jnp.abs(slope)), float(jnp.finfo(dtype).tiny))
        length = jnp.where(first, jnp.minimum(1 / steepest, _LONGEST), length)
        one = jnp.ones((), dtype)
        step, unit_step = jax.vmap(lambda a: project(point - a * slope) - point)(jnp.stack([length, one]))
        memory = jnp.where(first, value, s.memory.at[s.num_steps % _MEMORY].set(value))
        descent, residual = jnp.sum(slope * step), jnp.max(jnp.abs(unit_step))
        better = first | (value < s.least)  # NaN from the start on is the answer
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), (point, slope, aux), s.best)
        least = jnp.where(better, value, s.least)
        before = jnp.where(s.num_steps % _MEMORY == 0, s.least, s.before)
        at_point = value, slope, descent, residual, memory, best, least, before
        taken = _Search(s.num_steps + 1, point, step, one, *at_point)
        return jax.tree.map(lambda a, b: jnp.where(cut, a, b), s._replace(scale=s.scale / 2), taken)

    zero, none = jnp.zeros((), dtype), 0 * start
    infinite, memory = zero + jnp.inf, jnp.zeros(_MEMORY, dtype)
    best = start, start, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)
    known = zero, none, zero, infinite, memory, best, infinite, infinite
    last = jax.lax.while_loop(go_on, round_, _Search(jnp.asarray(0), start, none, zero, *known))
    point, slope, aux = last.best
    return SpectralResult(point, last.least, slope, aux, last.residual, last.num_steps - 1)
