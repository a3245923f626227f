r"""Local minima over shares u ≥ 0, Σu = 1, by descents that take one evaluation a
round.

`projected_descent` goes by spectral projected gradients (Birgin, Martínez & Raydan
2000). `quasi_newton_descent`, of a positive function of a few shares, goes by BFGS on
the logarithms of both. With u = softmax(v), ∂ log f/∂v_k = u_k (∂f/∂u_k - Σ_j u_j
∂f/∂u_j) / f. The best shares for times that hardly differ lie between 0.99 and 10⁻⁴.
Projected gradients do not get there: after 300 steps they were 82 % above the minimum.
Its line search asks for a lower value and a smaller slope (weak Wolfe conditions), so
that BFGS gets past kinks (Lewis & Overton 2013).

After an evaluation a step is taken or cut: under `vmap` no search waits for another's
line search.
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

# Values remembered by the projected line search, which may rise for a while (Birgin,
# Martínez & Raydan's 10).
_MEMORY = 10
# The most steps of a local search: of nested groups, and from each start with random
# start-ups.
MAX_STEPS = 300
# Armijo's: the share of what a slope promises that a step must bring (Nocedal & Wright
# 2006, section 3.1), of all line searches.
SUFFICIENT = 1e-4
# The share of a slope that may be left after a step of quasi-Newton's (ibid.).
_LEFT = 0.9
# The longest step of a logarithm. It decides how many steps there are.
_FURTHEST = 3.0
# The shortest interval of a line search: at a kink it closes. Half of it would be one
# more evaluation.
_CLOSED = 1e-10


class Evaluation(NamedTuple):
    """A function at a point, its slope there, and what else it says, `aux`.

    `residual` says how far the search is from a minimum, after so many evaluations,
    `num_steps`.
    """

    point: Array
    value: Array
    slope: Array
    residual: Array
    num_steps: Array
    aux: Any = None


class _Search(NamedTuple):
    """The best point so far, its value some steps ago, and the line to the next
    evaluation.

    Values may rise for a while, and at a cliff of the function for good.
    """

    best: Evaluation
    before: Array
    line: Any


class _Projected(NamedTuple):
    """Before an evaluation at point + scale · direction; all else is the point's."""

    point: Array
    direction: Array
    scale: Array
    slope: Array
    descent: Array
    memory: Array


class _Logarithms(NamedTuple):
    """Before an evaluation at point + length · direction; `value` and `slope` are of
    log f.

    The next length lies between `low` and `high`. `inverse` is that of the Hessian, 0
    at first.
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
    """A local minimum of `function` over shares that are 0 but on `levels`, bool.

    Stops where a projected gradient step moves no entry by more than `tolerance`, and
    where the best value fell by no more than `least_gain`, if it is not 0, in as many
    steps as `patience`.
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
        # The longest step, where f is concave.
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
        better = first | (value < best.value)  # NaN from the start on is the answer
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
    """A local minimum of `function`, which gives a positive value and what else it has
    to say.

    Over the shares of those `used`, bool. Stops where no slope lies below their mean by
    more than `tolerance` of the value, which bounds the gap of a convex function; at a
    kink it may never: also where the best value fell by no more than `tolerance` in as
    many steps as `patience`. Stops early where that bound reaches `least`.
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
        # Slopes overflow beside shares near 0: too far for the line search.
        value = jnp.where(jnp.all(jnp.isfinite(slope)), value, jnp.nan)
        mean = jnp.sum(slope * share)
        residual = jnp.max(jnp.where(used, mean - slope, 0)) / value
        evaluation = Evaluation(share, value, slope, residual, steps + 1, aux)
        first = steps == 0
        # NaN from the start on is the answer; a point that is flat, but higher, is
        # none.
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
        # a few of the longest steps from the largest
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
    """Rounds until the residual meets the tolerance, or the value no more `falls`."""

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
    """Before the first evaluation, at `start`; `aux` has the shapes of its results."""
    endless = jnp.full((), jnp.inf, start.dtype)
    aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)
    nowhere = Evaluation(start, endless, start, endless, jnp.asarray(0), aux)
    return _Search(nowhere, endless, line)


def _weak_wolfe(
    line: _Logarithms, value: Array, slope: Array
) -> tuple[Array, _Logarithms]:
    """Whether the line is to be searched on, and then between which lengths."""
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
    """The line from a point, by its slope and the inverse Hessian there."""
    # Not known where log f has been concave so far.
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
    """The inverse Hessian after a step and its change of slopes (BFGS)."""
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
    """Whether it is positive definite; at first it is 0."""
    return inverse[0, 0] > 0
