r"""The optimal partition of many workers, by Newton's method over smooth changes.

With many workers, all levels are in use, and the optimal x_n is smooth in n except near
both ends. So a step multiplies x by exp Σ_a ρ_a β_a(n). Each level near an end has its
own column β_a. In between, the columns are splines in a coordinate that is logarithmic
from either end. This gives about two hundred unknowns for any N. Value, gradient and
certificate over all levels are exact (`windows`).

Only the Hessian is a model (`smooth_model`), which affects only the direction. A step
leaves a tenth to a third of the error. Distributions with density near 0, or with
distant modes, need shortened steps. Their search may end with a larger gap, which the
solution reports.

The search is a NumPy loop on the host. Most time is spent in programs of
`smooth_model`. Threads sum over some nodes each in parallel, and a program computes
Newton's direction.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import at_hand, concrete
from bcgc_jax.distributions import Distribution, HazardSpline
from bcgc_jax.exact.crossing import MANY
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.exact.windows import LEFT_OUT
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.marks import Marks, homogeneous_slope, marks_of, search_rule
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.descent import SUFFICIENT
from bcgc_jax.solvers.expected_maximum import NUM_NODES
from bcgc_jax.solvers.newton import FINEST, next_barrier, step_length
from bcgc_jax.solvers.optimal import least_gap
from bcgc_jax.solvers.search import Optimum
from bcgc_jax.solvers.smooth_model import (
    NODES_AT_A_TIME,
    first_partition,
    newton_direction,
    sums_of_piece,
)

# Number of levels at either end that have their own column, and distance between two
# knots of the splines.
_ENDS, _SPACING = 20, 0.06

# Each is one program. Without `jit`, every operation would be compiled separately.
_marks = jax.jit(marks_of)
_slope = jax.jit(homogeneous_slope)


class _Point(NamedTuple):
    """A point x at which f was evaluated.

    Attributes:
      x: The point, a multiple of a partition, `[N]`.
      value: f(x).
      error: Error of `value`.
      slope: Gradient in x, `[N]`.
      least: Smallest entry of the gradient, minus its error beyond the value's error.
      gap: Relative optimality gap without errors.
      rows: Input of the model.
    """

    x: np.ndarray
    value: float
    error: float
    slope: np.ndarray
    least: float
    gap: float
    rows: tuple[np.ndarray, ...]

    @property
    def certified_gap(self) -> float:
        """The gap with the errors of value and bound included."""
        return 1 - (self.least * self.x.sum() - self.error) / self.value


def is_of_many(problem: Problem) -> bool:
    """Check for many i.i.d. workers without atoms, which must not be traced."""
    if problem.max_workers <= MANY or not at_hand(problem) or not problem.bare:
        return False
    iteration = iteration_of(problem)
    workers = concrete(problem.num_workers)
    return (
        iteration.alike and not iteration.polyhedral and workers == problem.max_workers
    )


def is_rough(law: Distribution) -> bool:
    """Check for a density near 0 or knots, with which gaps may stay above 1e-5."""
    if isinstance(law, HazardSpline):
        return True
    early = jnp.asarray(1e-3 * float(law.mean()))
    return float(law.infimum()) == 0 and float(law.cumulative_hazard(early)) > 1e-7


def optimum_of_many(problem: Problem, *, tolerance: float, max_steps: int) -> Optimum:
    """Minimise E τ̂(x,T) over all levels, like `optimal_partition`; not under `jit`.

    Newton's steps, as in `newton`, use one rule until they no longer help, and then a
    finer rule. Its rules with half and a quarter of the nodes give its error.
    """
    law = iteration_of(problem).pooled().with_fast_inverse()
    unit_load = jnp.ones(problem.max_workers, problem.dtype)
    tolerance = max(tolerance, least_gap(problem))
    refine = max(2, round((problem.max_workers / 640) ** 0.5))
    search = _Search(law, unit_load, refine)
    while True:
        stalled = search.run(tolerance, max_steps)
        coarse_gap = search.best.gap
        search.begin(search.best.x, 2 * search.refine)
        gap = search.point.certified_gap
        stuck = stalled and gap <= 2 * coarse_gap
        if (
            gap <= tolerance
            or search.steps >= max_steps
            or stuck
            or search.refine > FINEST
        ):
            break
    point = search.point
    if gap <= tolerance:
        status = Status.CONVERGED
    elif search.steps >= max_steps:
        status = Status.STEP_LIMIT
    else:
        status = Status.PRECISION
    total = point.x.sum()
    unit = float(problem.scale * problem.total)
    return Optimum(
        point=jnp.asarray(point.x / total * float(problem.total), problem.dtype),
        value=jnp.asarray(unit * point.value / total, problem.dtype),
        error=jnp.asarray(unit * point.error / total, problem.dtype),
        bound=jnp.asarray(unit * point.least, problem.dtype),
        status=jnp.asarray(int(status)),
        num_steps=jnp.asarray(search.steps),
    )


class _Direction(NamedTuple):
    """Newton's step in the logarithms of the columns.

    `descent` is the derivative of the merit along the step, and `length` is the
    fraction of the step that is tried.
    """

    step: np.ndarray
    descent: float
    length: float


class _Search:
    """Newton's method along the central path, over columns, by the rule `refine`."""

    def __init__(self, law: Distribution, unit_load: Array, refine: int) -> None:
        self.columns, samples = _basis(unit_load.size)
        self._on_device = (jnp.asarray(self.columns), jnp.asarray(samples))
        marks = _marks(law, unit_load, unit_load.size)
        self._evaluate = functools.partial(_evaluate, law, marks, self._on_device[1])
        self.steps = 0
        self.barrier = 1e-4 / self.columns.shape[1]
        self.begin(np.asarray(first_partition(law, unit_load), float), refine)

    def begin(self, x: np.ndarray, refine: int) -> None:
        """Continue from x by this rule, with f(x) as the unit and new multipliers."""
        self.refine = refine
        self.point = self._evaluate(x, refine)
        self.best = self.point
        self.multipliers = self.barrier / self._mass(self.point)
        self.unit = self.point.value
        self.direction: _Direction | None = None
        self.since = 0

    def run(self, tolerance: float, max_steps: int) -> bool:
        """Step until the gap is small or the search stalls; return if it stalls."""
        while True:
            best = self.best
            # Close to the optimum, the gap that remains after three steps is below the
            # resolution of the splines.
            patience = 12
            if best.gap < 1e-4:
                patience = 3
            stalled = self.since >= patience
            enough = best.gap <= max(tolerance, min(best.error / best.value, 1e-4))
            if enough or stalled or self.steps >= max_steps:
                return stalled
            self._step()

    def _step(self) -> None:
        """Try a step; take it, or halve it for the next try."""
        if self.direction is None:
            self.direction = self._newton()
        newton, descent, length = self.direction
        # The factor is the exponential of a spline. Products of 1 + splines would leave
        # changes that no later spline can undo.
        step = length * newton
        factor = np.exp(self.columns @ (np.sign(step) * np.log1p(np.abs(step))))
        point = self.point
        new = self._evaluate(point.x * factor, self.refine)
        self.steps += 1
        self.since += 1
        if new.gap < 0.7 * self.best.gap:
            self.since = 0
        if new.gap < self.best.gap:
            self.best = new
        highest = self._merit(point) + SUFFICIENT * length * descent + 1e-11
        if new.gap > 0.5 * point.gap and self._merit(new) > highest and length > 1e-3:
            self.direction = self.direction._replace(length=length / 2)
            return
        self.multipliers = self._moved_multipliers(newton)
        if length > 0.5:
            product = np.mean(self.multipliers * self._mass(new))
            least = 1e-10 / self.multipliers.size
            self.barrier = float(next_barrier(self.barrier, product, least))
        self.point = new
        self.direction = None

    def _moved_multipliers(self, newton: np.ndarray) -> np.ndarray:
        """Return the multipliers after a Newton step."""
        z = self.multipliers
        on_path = self.barrier / self._mass(self.point)
        change = on_path - z - z * newton
        moved = z + float(step_length(z, change)) * change
        return np.maximum(moved, 1e-4 * on_path)

    def _newton(self) -> _Direction:
        point = self.point
        slope = point.slope / self.unit
        step, descent = newton_direction(
            *self._on_device,
            point.x,
            slope,
            self.multipliers,
            self.barrier,
            self.unit,
            point.rows,
        )
        step = np.asarray(step)
        # The length limits the growth of a column to about a factor of ten.
        length = float(10 / max(np.abs(step).max(), 10))
        return _Direction(step, float(descent), length)

    def _mass(self, point: _Point) -> np.ndarray:
        return self.columns.T @ point.x

    def _merit(self, point: _Point) -> float:
        barrier = self.barrier * np.log(self._mass(point)).sum()
        return float(point.value / self.unit - np.log(point.x.sum()) - barrier)


@functools.cache
def _basis(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return columns, `[N, m]`, that sum to 1 at every level, and the model's levels.

    Each level near an end has a column, and the other columns are cubic splines. The
    model uses two levels per knot, and all of the first and last 3 · `_ENDS` levels.
    """
    ends = _ENDS
    level = np.arange(size)
    place = np.log1p(level / 4) - np.log1p((size - 1 - level) / 4)
    inside = place[ends:-ends]
    length = inside[-1] - inside[0]
    cells = int(np.ceil(length / _SPACING))
    away = np.abs(
        (inside[:, None] - inside[0]) / length * cells - np.arange(-1, cells + 2)
    )
    columns = np.zeros((size, 2 * ends + cells + 3))
    near = 2 / 3 - away**2 + away**3 / 2
    far = np.maximum(2 - away, 0) ** 3 / 6
    splines = np.where(away < 1, near, far)
    columns[ends:-ends, ends:-ends] = splines
    columns[:ends, :ends] = columns[-ends:, -ends:] = np.eye(ends)
    sampled = np.flatnonzero(np.diff(np.round((place - place[0]) / (_SPACING / 2)))) + 1
    return columns, np.unique(
        np.r_[level[: 3 * ends], sampled, level[size - 3 * ends :]]
    )


def _evaluate(
    law: Distribution, marks: Marks, samples: Array, x: np.ndarray, refine: int
) -> _Point:
    """Evaluate f at x by the rule `refine` times as fine, and by two coarser rules."""
    dtype = marks.times.dtype
    total = float(x.sum())
    level = np.arange(1, x.size + 1)
    load = jnp.asarray(np.cumsum(level * x), dtype)
    value, slopes, rows = _sums(law, marks, samples, load, refine)
    slopes_in_x = []
    for of_rule, slope in zip(value, slopes, strict=False):
        in_load = np.asarray(_slope(of_rule, jnp.asarray(slope), load, x.size), float)
        slopes_in_x.append(level * np.cumsum(in_load[::-1])[::-1])
    least = [float(s.min()) for s in slopes_in_x]
    *by_rule, left_out = value.tolist()
    error = LEFT_OUT * by_rule[0]
    doubt = 0.0
    if law.smooth:  # Gauss rules are not nested
        doubt = float(rule_error(*map(jnp.asarray, least)))  # type: ignore[arg-type]
        off = float(rule_error(*map(jnp.asarray, by_rule)))  # type: ignore[arg-type]
        error += off + left_out
    # The error of the value is subtracted from the bound later. So only the part of the
    # bound's own error that exceeds it is subtracted here.
    extra_doubt = max(doubt - error / total, 0.0)
    return _Point(
        x=x,
        value=by_rule[0],
        error=error,
        slope=slopes_in_x[0],
        least=least[0] - extra_doubt,
        gap=1 - least[0] * total / by_rule[0],
        rows=rows,
    )


def _sums(
    law: Distribution, marks: Marks, samples: Array, load: Array, refine: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Compute values by three rules and of the tails, gradients, and the model's rows.

    Threads sum pieces of the nodes. Every `refine`-th node is enough for the model.
    """
    nodes = refine * _rule_size(law, marks, load)

    def compute(number: int) -> tuple[Any, ...]:
        # Settings of JAX in the caller's thread do not apply in this thread.
        with jax.enable_x64(load.dtype == jnp.float64):
            return sums_of_piece(law, marks, load, samples, refine, number)

    by_piece = _in_threads(compute, math.ceil(nodes / NODES_AT_A_TIME))
    starts, values, slopes, rows = zip(*by_piece, strict=True)
    value = starts[0] * np.array([1, 1, 1, 0]) + sum(values)
    coarse_nodes = slice(0, nodes, refine)
    hazard, arrive, leave, apart = (
        np.concatenate(a)[coarse_nodes] for a in zip(*rows, strict=True)
    )
    rows = (hazard, refine * arrive, leave, refine**0.5 * apart)
    return value, sum(slopes), rows


def _rule_size(law: Distribution, marks: Marks, load: Array) -> int:
    """Return the number of nodes of the unrefined rule, without computing it."""
    nodes = jax.eval_shape(
        lambda y: jnp.zeros(search_rule(law, marks, y, NUM_NODES).size), load
    )
    return nodes.size


def _in_threads(compute: Callable[[int], Any], count: int) -> list[Any]:
    """Compute results for 0, …, count - 1 in parallel threads, as NumPy arrays."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # The first call compiles before the threads start, because otherwise each
        # thread would compile. Its computation runs in parallel with the others.
        first = compute(0)
        later_results = pool.map(
            lambda number: jax.block_until_ready(compute(number)), range(1, count)
        )
        return jax.tree.map(np.asarray, [first, *later_results])
