"""Local minima over a simplex by spectral projected gradients (Birgin, Martínez & Raydan 2000)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.plans.partitions import project_partition

# Values remembered by the line search, which may rise for a while (Birgin, Martínez & Raydan's 10).
_MEMORY = 10
# The most steps of a local search: of nested groups, and from each start with random start-ups.
MAX_STEPS = 300
# Armijo's: the share of what a slope promises that a step must bring. As customary, of all line
# searches.
SUFFICIENT = 1e-4


class Minimum(NamedTuple):
    """The best point of a search, its value and slope, and what else the function says, `aux`.

    `residual` says how far it is from a minimum.
    """

    point: Array
    value: Array
    slope: Array
    residual: Array
    num_steps: Array
    aux: Any = None


class _Search(NamedTuple):
    """A search before an evaluation at point + scale · direction.

    `slope`, `descent` and `memory` are those of the point. `best` is the best so far, and `before`
    its value some steps ago: the value may rise for a while, and at a cliff of the function for
    good.
    """

    best: Minimum
    point: Array
    direction: Array
    scale: Array
    slope: Array
    descent: Array
    memory: Array
    before: Array


def spectral_projected_gradient(
    function: Callable[[Array], Array],
    levels: Array,
    start: Array,
    *,
    tolerance: ArrayLike,
    max_steps: int = MAX_STEPS,
    least_gain: float = 0.0,
    patience: int = _MEMORY,
) -> Minimum:
    """A local minimum of `function` over shares u ≥ 0, Σu = 1, that are 0 but on `levels`, bool.

    Stops where a projected gradient step moves no entry by more than `tolerance`, and where the
    best value fell by no more than `least_gain`, if it is not 0, in as many steps as `patience`. A
    round is one evaluation, after which the step is taken or cut: under `vmap` no search waits for
    another's line search.
    """
    dtype = start.dtype
    tiny = float(jnp.finfo(start.dtype).tiny)
    evaluate = jax.value_and_grad(function)

    def go_on(s: _Search) -> Array:
        steps = s.best.num_steps
        early = (steps <= patience) | (steps % patience != 0) | (least_gain == 0)
        falls = early | (s.best.value < s.before - least_gain)
        return (steps <= max_steps) & (s.best.residual > tolerance) & falls

    def round_(s: _Search) -> _Search:
        point = s.point + s.scale * s.direction
        steps = s.best.num_steps
        value, slope = evaluate(point)
        first = steps == 0
        highest = jnp.max(s.memory) + SUFFICIENT * s.scale * s.descent
        cut = ~first & (value > highest) & (s.scale > 1e-10)
        moved = point - s.point
        change = slope - s.slope
        curvature = jnp.maximum(jnp.sum(moved * change), tiny)
        steepest = jnp.maximum(jnp.max(jnp.abs(slope)), tiny)
        # The longest step, where f is concave.
        length = jnp.clip(jnp.where(first, 1 / steepest, jnp.sum(moved**2) / curvature), 1e-8, 1e4)
        lengths = jnp.stack([length, jnp.ones((), dtype)])

        def projected_step(length: Array) -> Array:
            return project_partition(point - length * slope, 1.0, levels) - point

        step, unit_step = jax.vmap(projected_step)(lengths)
        here = Minimum(
            point=point,
            value=value,
            slope=slope,
            residual=jnp.max(jnp.abs(unit_step)),
            num_steps=steps + 1,
        )
        old = s.best._replace(residual=here.residual, num_steps=here.num_steps)
        better = first | (value < old.value)  # NaN from the start on is the answer
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), here, old)
        oldest = np.arange(_MEMORY) == steps % _MEMORY
        memory = jnp.where(first, value, jnp.where(oldest, value, s.memory))
        before = jnp.where(steps % patience == 0, s.best.value, s.before)
        taken = _Search(
            best=best,
            point=point,
            direction=step,
            scale=lengths[1],
            slope=slope,
            descent=jnp.sum(slope * step),
            memory=memory,
            before=before,
        )
        again = s._replace(scale=s.scale / 2)
        return jax.tree.map(lambda a, b: jnp.where(cut, a, b), again, taken)

    best = jax.lax.while_loop(go_on, round_, _begin(start)).best
    return best._replace(num_steps=best.num_steps - 1)


def _begin(start: Array) -> _Search:
    """Before the first evaluation, at `start`."""
    zero = jnp.zeros((), start.dtype)
    none = 0 * start
    nowhere = Minimum(
        point=start,
        value=zero + jnp.inf,
        slope=start,
        residual=zero + jnp.inf,
        num_steps=jnp.asarray(0),
    )
    return _Search(
        best=nowhere,
        point=start,
        direction=none,
        scale=zero,
        slope=none,
        descent=zero,
        memory=jnp.zeros(_MEMORY, start.dtype),
        before=zero + jnp.inf,
    )
