r"""Local minimisation over shares u ≥ 0, Σu = 1, with one evaluation per round.

`projected_descent` uses spectral projected gradients (Birgin, Martínez & Raydan 2000).
`quasi_newton_descent` minimises a positive function of a few shares. It applies BFGS to
the logarithms of the function and of the shares. With u = softmax(v),
∂ log f/∂v_k = u_k (∂f/∂u_k - Σ_j u_j ∂f/∂u_j) / f. If times hardly vary, the best
shares lie between 0.99 and 10⁻⁴. After 300 steps, projected gradients were still 82 %
above the minimum. The line search of BFGS requires a lower value and a smaller
derivative (weak Wolfe conditions), so that BFGS gets past kinks (Lewis & Overton 2013).

After each evaluation, a step is accepted or shortened. So under `vmap`, no search waits
for the line search of another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.exact.linear_algebra import dot
from bcgc_jax.plans.partitions import project_partition
from bcgc_jax.solvers.search import Optimum, choose, local_optimum

# Number of values that the projected line search remembers, so that values may increase
# for a while (10 in Birgin, Martínez & Raydan).
_MEMORY = 10
# Default maximum number of steps of a local search.
MAX_STEPS = 300
# Armijo's constant for all line searches: the fraction of the predicted decrease that a
# step must reach (Nocedal & Wright 2006, section 3.1).
SUFFICIENT = 1e-4
# Largest ratio of the derivatives after and before a quasi-Newton step (ibid.).
_LEFT = 0.9
# Largest change of a logarithm in a step. It affects only the number of steps.
_FURTHEST = 3.0
# Interval of lengths at which a line search ends, because at a kink the interval only
# shrinks. Half this value takes one more evaluation.
_CLOSED = 1e-10


class Evaluation(NamedTuple):
    """The evaluation of a function at a point.

    Attributes:
      point: The point.
      value: The value.
      slope: The gradient.
      residual: Distance from a minimum, as defined by the search.
      num_steps: Number of evaluations so far.
      aux: Other results of the function.
    """

    point: Array
    value: Array
    slope: Array
    residual: Array
    num_steps: Array
    aux: Any = None


class _Search(NamedTuple):
    """The state of a search.

    Attributes:
      best: The best point so far. The last one may be worse, because values may
        increase.
      before: The best value some steps ago.
      line: The line to the next evaluation.
    """

    best: Evaluation
    before: Array
    line: Any


class _Projected(NamedTuple):
    """The state before an evaluation at point + scale · direction."""

    point: Array
    direction: Array
    scale: Array
    slope: Array
    descent: Array
    memory: Array


class _Logarithms(NamedTuple):
    """The state before an evaluation at point + length · direction, in logarithms.

    `value` and `slope` are the value and gradient of log f at the point. `inverse` is
    the inverse Hessian, which is 0 at first. The next length is in [`low`, `high`].
    """

    point: Array
    value: Array
    slope: Array
    inverse: Array
    direction: Array
    length: Array
    low: Array
    high: Array


def projected_descent(
    function: Callable[[Array], Array],
    levels: Array,
    start: Array,
    *,
    tolerance: ArrayLike,
    max_steps: int = MAX_STEPS,
    least_gain: float = 0.0,
    patience: int = _MEMORY,
) -> Optimum:
    """Minimise `function` locally by projected gradients, over shares on `levels`.

    Args:
      function: Function of the shares.
      levels: Levels that may be used, bool `[K]`; other shares are 0.
      start: First shares, `[K]`.
      tolerance: The search ends when a projected gradient step changes no share by
        more.
      max_steps: Maximum number of steps.
      least_gain: If not 0, the search also ends when the best value decreases by at
        most this in `patience` steps.
      patience: Number of steps between two such tests.
    """
    dtype = start.dtype
    tiny = float(jnp.finfo(start.dtype).tiny)
    evaluate = jax.value_and_grad(function)

    def round_(s: _Search) -> _Search:
        best, _, line = s
        point = line.point + line.scale * line.direction
        steps = best.num_steps
        value, slope = evaluate(point)
        first = steps == 0
        highest = jnp.max(line.memory) + SUFFICIENT * line.scale * line.descent
        cut = ~first & (value > highest) & (line.scale > 1e-10)
        moved = point - line.point
        change = slope - line.slope
        curvature = jnp.maximum(jnp.sum(moved * change), tiny)
        steepest = jnp.maximum(jnp.max(jnp.abs(slope)), tiny)
        # If f is concave along the step, the longest step is taken.
        length = jnp.clip(
            jnp.where(first, 1 / steepest, jnp.sum(moved**2) / curvature), 1e-8, 1e4
        )
        lengths = jnp.stack([length, jnp.ones((), dtype)])

        def projected_step(length: Array) -> Array:
            return project_partition(point - length * slope, 1.0, levels) - point

        step, unit_step = jax.vmap(projected_step)(lengths)
        evaluation = Evaluation(
            point, value, slope, jnp.max(jnp.abs(unit_step)), steps + 1
        )
        best = best._replace(
            residual=evaluation.residual, num_steps=evaluation.num_steps
        )
        better = first | (value < best.value)  # NaN at the start is returned
        oldest = np.arange(_MEMORY) == steps % _MEMORY
        onward = _Projected(
            point=point,
            direction=step,
            scale=lengths[1],
            slope=slope,
            descent=jnp.sum(slope * step),
            memory=jnp.where(first, value, jnp.where(oldest, value, line.memory)),
        )
        new_search = _Search(
            choose(better, evaluation, best), _before(s, patience), onward
        )
        return choose(
            cut, s._replace(line=line._replace(scale=line.scale / 2)), new_search
        )

    def falls(s: _Search) -> Array:
        return (least_gain == 0) | (s.best.value < s.before - least_gain)

    zero = jnp.zeros((), dtype)
    first = _Projected(
        point=start,
        direction=0 * start,
        scale=zero,
        slope=0 * start,
        descent=zero,
        memory=jnp.zeros(_MEMORY, dtype),
    )
    return _descend(round_, _begin(start, first), falls, tolerance, max_steps, patience)


def quasi_newton_descent(
    function: Callable[[Array], tuple[Array, Any]],
    used: Array,
    start: Array,
    *,
    tolerance: ArrayLike,
    least: ArrayLike = jnp.inf,
    patience: int = MAX_STEPS,
) -> Optimum:
    """Minimise a positive `function` locally by BFGS in logarithms.

    The residual is max_k (mean - ∂f/∂u_k) / f, where the mean of the derivatives is
    weighted by the shares. The residual bounds the relative gap of a convex function.

    Args:
      function: Function of the shares that returns a positive value and auxiliary data.
      used: Shares that may be positive, bool `[K]`.
      start: First shares, `[K]`.
      tolerance: The search ends when the residual is at most this. At a kink it may
        never be, so the search also ends when the best value decreases relatively by at
        most this in `patience` steps.
      least: The search ends early when the lower bound reaches this value.
      patience: Number of steps between two tests of the best value.
    """
    eps = float(jnp.finfo(start.dtype).eps)
    evaluate = jax.value_and_grad(function, has_aux=True)
    (_, aux), _ = jax.eval_shape(evaluate, start)

    def round_(s: _Search) -> _Search:
        line = s.line
        point = line.point + line.length * line.direction
        steps = s.best.num_steps
        share = jax.nn.softmax(jnp.where(used, point, -jnp.inf))
        (value, aux), slope = evaluate(share)
        # If derivatives overflow near shares of 0, the line search must go less far.
        value = jnp.where(jnp.all(jnp.isfinite(slope)), value, jnp.nan)
        mean = jnp.sum(slope * share)
        residual = jnp.max(jnp.where(used, mean - slope, 0)) / value
        evaluation = Evaluation(share, value, slope, residual, steps + 1, aux)
        first = steps == 0
        # NaN at the start is returned. A stationary point with a higher value does not
        # count.
        ended = (residual <= tolerance) & (value <= (1 + 4 * eps) * s.best.value)
        better = first | (value < s.best.value) | ended
        best = choose(better, evaluation, s.best._replace(num_steps=steps + 1))
        of_log = share * (slope - mean) / value
        cut, bracketed = _weak_wolfe(line, value, of_log)
        inverse = _updated(
            line.inverse, line.length * line.direction, of_log - line.slope
        )
        onward = _along(point, value, of_log, inverse)
        return _Search(
            best, _before(s, patience), choose(~first & cut, bracketed, onward)
        )

    def falls(s: _Search) -> Array:
        return s.best.value < (1 - tolerance) * s.before

    def goes_on(s: _Search) -> Array:
        promising = ~(s.best.value * (1 - s.best.residual) >= least)
        return (s.line.high - s.line.low > _CLOSED) & promising

    zero = jnp.zeros((), start.dtype)
    first = _Logarithms(
        # The smallest logarithm is a few steps from the largest one.
        point=jnp.log(jnp.maximum(start, 1e-6 * jnp.max(start))),
        value=zero,
        slope=0 * start,
        inverse=jnp.zeros((start.size, start.size), start.dtype),
        direction=0 * start,
        length=zero,
        low=zero,
        high=zero + jnp.inf,
    )
    begin = _begin(start, first, aux)
    return _descend(round_, begin, falls, tolerance, MAX_STEPS, patience, goes_on)


def _descend(
    round_: Callable[[_Search], _Search],
    begin: _Search,
    falls: Callable[[_Search], Array],
    tolerance: ArrayLike,
    max_steps: int,
    patience: int,
    goes_on: Callable[[_Search], ArrayLike] = lambda _: True,
) -> Optimum:
    """Run rounds until the residual meets the tolerance, or until not `falls`."""

    def open_(s: _Search) -> Array:
        steps = s.best.num_steps
        early = (steps <= patience) | (steps % patience != 0)
        may_step = (steps <= max_steps) & (s.best.residual > tolerance)
        return may_step & (early | falls(s)) & goes_on(s)

    best = jax.lax.while_loop(open_, round_, begin).best
    steps = best.num_steps - 1
    ended = (best.residual <= tolerance) | (steps < max_steps)
    return local_optimum(best.point, best.value, ended, steps, best)


def _before(s: _Search, patience: int) -> Array:
    return jnp.where(s.best.num_steps % patience == 0, s.best.value, s.before)


def _begin(start: Array, line: Any, aux: Any = None) -> _Search:
    """Return the state before the first evaluation; `aux` has shapes of its results."""
    endless = jnp.full((), jnp.inf, start.dtype)
    aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)
    nowhere = Evaluation(start, endless, start, endless, jnp.asarray(0), aux)
    return _Search(nowhere, endless, line)


def _weak_wolfe(
    line: _Logarithms, value: Array, slope: Array
) -> tuple[Array, _Logarithms]:
    """Return whether the line search continues, and its next interval of lengths."""
    descent = jnp.sum(line.slope * line.direction)
    far = _FURTHEST / jnp.max(jnp.abs(line.direction))
    rounding = 4 * float(jnp.finfo(slope.dtype).eps)
    falls = jnp.log(value / line.value) <= SUFFICIENT * line.length * descent + rounding
    steep = (
        falls
        & (jnp.sum(slope * line.direction) < _LEFT * descent)
        & (line.length < far)
    )
    low = jnp.where(steep, line.length, line.low)
    high = jnp.where(falls, line.high, line.length)
    length = jnp.where(
        high < jnp.inf, (low + high) / 2, jnp.minimum(2 * line.length, far)
    )
    return steep | ~falls, line._replace(length=length, low=low, high=high)


def _along(point: Array, value: Array, slope: Array, inverse: Array) -> _Logarithms:
    """Return the line from a point, from its gradient and inverse Hessian."""
    # The inverse Hessian is unknown as long as log f has been concave.
    steepest = -slope / jnp.max(jnp.abs(slope))
    direction = jnp.where(_is_definite(inverse), -dot(inverse, slope), steepest)
    length = jnp.minimum(1, _FURTHEST / jnp.max(jnp.abs(direction)))
    return _Logarithms(
        point=point,
        value=value,
        slope=slope,
        inverse=inverse,
        direction=direction,
        length=length,
        low=jnp.zeros_like(length),
        high=jnp.full_like(length, jnp.inf),
    )


def _updated(inverse: Array, step: Array, change: Array) -> Array:
    """Update the inverse Hessian by a step and the change of the gradient (BFGS)."""
    product = jnp.sum(step * change)
    squares = jnp.sum(change**2)
    curved = product > jnp.finfo(step.dtype).eps * squares
    size = jnp.where(curved, product, 1)
    unit = jnp.eye(step.size, dtype=step.dtype)
    before = jnp.where(
        _is_definite(inverse), inverse, unit * (size / jnp.where(curved, squares, 1))
    )
    turn = unit - jnp.outer(step, change) / size
    new = dot(turn, before, turn.T) + jnp.outer(step, step) / size
    return jnp.where(curved & jnp.all(jnp.isfinite(new)), new, inverse)


def _is_definite(inverse: Array) -> Array:
    """Check whether the inverse Hessian is positive definite; at first it is 0."""
    return inverse[0, 0] > 0
