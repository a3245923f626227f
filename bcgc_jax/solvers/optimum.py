"""`Optimal`: the partition of least expected runtime, and which search finds it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import with_slopes, without_derivative
from bcgc_jax._pytree import (
    concrete,
    is_traced,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.runtime import (
    Certificate,
    certificate,
    expected_runtime,
    lower_bound_of,
    with_total,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess_shares, solution_of, with_whole_numbers
from bcgc_jax.solvers import sample_average
from bcgc_jax.solvers.closed_form import expected_times
from bcgc_jax.solvers.discrete import best_levels, improve_units
from bcgc_jax.solvers.large_n import is_of_many, is_rough, optimum_of_many
from bcgc_jax.solvers.method import Method
from bcgc_jax.solvers.optimal import least_gap, optimal_partition
from bcgc_jax.solvers.polyhedral import Cuts
from bcgc_jax.solvers.search import Optimum

# Largest number of units for which integers are searched. With more units, rounding
# changes the runtime too little to be worth the search.
FEW_UNITS = 1000
# Default relative optimality gap.
TOLERANCE = 1e-7
# Number of cuts per level whose derivatives are added up. The cuts of least weight are
# left out. Twice as many cuts have no more weight.
_CUTS = 8


@pytree_dataclass
class Optimal(Method):
    r"""Minimise the expected runtime over partitions, to a certified optimality gap.

    minimise E τ̂(x, T) over x ≥ 0 with Σ_n x_n = L.

    Args:
      tolerance: Relative optimality gap at which the search ends. Defaults to 1e-7.
        The gap has a floor of (64 + 8 N) eps, which is 3e-5 in float32 at N = 20. For
        distributions with atoms and `EmpiricalRows`, the floor is at least 1e-6, and
        3e-4 in float32.
      levels: Redundancy levels that may be used. Defaults to all levels. Must be
        static. With setup cycles, the search also chooses which of them to use, and
        the lower bound applies to `Solution.levels`. If a traced number of workers has
        fewer levels, the solution is INFEASIBLE.
      max_steps: Maximum number of steps of Newton's method. Defaults to 60. Must be
        static.

    Raises:
      ValueError: If `tolerance` ≤ 0 or `max_steps` < 1.

    >>> Optimal(levels=[0, 2]).levels
    (0, 2)
    """

    tolerance: ArrayLike = TOLERANCE
    levels: Sequence[int] | None = static_field(default=None)
    max_steps: int = static_field(default=60)

    name = "optimal"
    conditions = (("tolerance", "> 0"),)
    counts = (("max_steps", 1),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(np.unique(self.levels).tolist()))

    def check(self, problem: Problem) -> None:
        super().check(problem)
        workers = concrete(problem.num_workers)
        top = (problem.max_workers if workers is None else int(workers.min())) - 1
        if self.levels is None:
            return
        if not self.levels or not set(self.levels) <= set(range(top + 1)):
            raise ValueError(
                f"`levels` must be integers from 0 to {top}, got {list(self.levels)}"
            )

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        solution = with_whole_numbers(problem, self._real_partition(problem))
        if not _few_units(problem):
            return solution
        return replace(
            solution, rounded=improve_units(problem, solution.rounded, solution.levels)
        )

    def _real_partition(self, problem: Problem) -> Solution:
        # Up to 1024 workers, dense steps of O(N³) each are affordable. They reach gaps
        # below 1e-5, which smooth steps may not.
        dense = problem.max_workers <= 1024
        smooth = self.levels is None and is_of_many(problem) and not is_traced(self)
        if smooth and not (dense and is_rough(iteration_of(problem).pooled())):
            solution = _optimum_of_many(problem, self)
            loose = solution.relative_gap > max(np.max(self.tolerance), 1e-5)
            if not (dense and loose):
                return solution
        levels = np.arange(problem.max_workers)
        tolerance = jax.lax.stop_gradient(self.tolerance)
        allowed = (
            problem.exists if self.levels is None else np.isin(levels, self.levels)
        )
        return optimum(problem, allowed, tolerance=tolerance, max_steps=self.max_steps)


@sample_average.judged.register
def _(method: Optimal, fresh: Problem, solution: Solution) -> dict[str, Array]:
    """Evaluate an optimum on independent samples, with a bound by optima of parts."""
    by_optima = functools.partial(sample_average.judge, by_optima=True)
    return with_slopes(
        by_optima, None, fresh, solution.partition, solution.levels
    )._asdict()


def _optimum_of_many(problem: Problem, method: Optimal) -> Solution:
    tolerance = float(np.max(method.tolerance))
    best = optimum_of_many(problem, tolerance=tolerance, max_steps=method.max_steps)
    answer = best.point, best.status, best.num_steps, problem.exists
    if iteration_of(problem).smooth:
        return solution_of(problem, *answer, _certificate_of(best))
    # The quadrature rules between kinks in `assess_shares` estimate their own error.
    return _judged(problem, assess_shares(problem, *answer), None, method.tolerance)


def _few_units(problem: Problem) -> bool:
    count = concrete(problem.num_coordinates)
    if is_traced(problem) or count is None or count.ndim or count > FEW_UNITS:
        return False
    # For measured times, 1e9 operations for all N² moves of a unit take a few seconds.
    return iteration_of(problem).evaluation_cost() * problem.max_workers**2 <= 1e9


def optimum(problem: Problem, allowed: ArrayLike, **options: Any) -> Solution:
    """Return the optimum without rounding; it has converged if its gap is met."""
    # The closed forms use the same compiled program.
    times = None
    if problem.has_setup:
        times = expected_times(problem)
    best, answer, solution = _searched(problem, allowed, times, **options)
    if solution is None:
        # All partitions are assessed with this program. Plain problems use only its
        # lower bound.
        solution = with_slopes(_assessed, None, problem, *answer)
        solution = replace(solution, plan=without_derivative(solution.plan, problem))
        bound = best.bound
        if problem.plain:
            bound = None
        solution = _judged(problem, solution, bound, options["tolerance"])
    if best.aux is None:
        return solution
    # Each piece of a piecewise linear runtime has its own derivatives.
    pieces = best.point, best.aux
    value = with_slopes(_by_pieces, solution.expected_runtime, problem, pieces)
    return replace(solution, expected_runtime=value)


def _by_pieces(problem: Problem, plan: tuple[Array, Cuts]) -> Array:
    """Return the polyhedral runtime of a partition as a weighted sum of its cuts.

    The derivatives of this sum in the partition are equal at all levels in use. Its
    derivatives in the problem are a subgradient of the optimal value.
    """
    partition, all_cuts = plan
    x = with_total(problem, partition)

    def add(value: Array, cut: Cuts) -> tuple[Array, None]:
        point = cut.points * problem.total
        runtime = functools.partial(expected_runtime, problem)
        at_point, slope = jax.jvp(runtime, (point,), (x - point,))
        return value + cut.weights * (at_point + slope), None

    # Apart from ties, at most as many cuts as there are levels have weight.
    count = min(_CUTS * x.size, all_cuts.weights.size)
    weights, index = jax.lax.top_k(all_cuts.weights, count)
    cuts = Cuts(all_cuts.points[index], weights / jnp.sum(weights))
    return jax.lax.scan(jax.checkpoint(add), jnp.zeros((), x.dtype), cuts)[0]


def _assessed(problem: Problem, partition: Array, *answer: Array) -> Solution:
    return assess_shares(problem, with_total(problem, partition), *answer)


def _certified(problem: Problem, partition: Array, levels: Array) -> Certificate:
    return certificate(problem, with_total(problem, partition), levels)


@functools.partial(jax.jit, static_argnames="max_steps")
def _searched(
    problem: Problem, allowed: Array, times: Array | None, **options: Any
) -> tuple[Optimum, tuple[Array, ...], Solution | None]:
    """Search; return the optimum, what to assess, and the solution if certified."""
    still = jax.lax.stop_gradient(problem)
    used = allowed
    rounds = 0
    if problem.has_setup:
        assert times is not None
        times = jax.lax.stop_gradient(times)
        of_levels = best_levels(still, allowed, times, **options)
        used, rounds, best = of_levels.point, of_levels.num_steps, of_levels.aux
    else:
        best = optimal_partition(still, used, **options)
    best = without_derivative(best, problem)
    # A traced number of workers may be too small for some of the allowed levels.
    lacks = jnp.any(allowed & ~problem.exists)
    status = jnp.where(lacks, int(Status.INFEASIBLE), best.status).astype(int)
    answer = best.point, status, jnp.asarray(rounds + best.num_steps, int), used
    iteration = iteration_of(problem)
    if not (problem.plain and (iteration.smooth or iteration.polyhedral)):
        return best, answer, None
    certified = with_slopes(
        _certified, _certificate_of(best), problem, best.point, used
    )
    solution = solution_of(problem, *answer, certified)
    return best, answer, _judged(problem, solution, None, options["tolerance"])


@jax.jit
def _judged(
    problem: Problem, solution: Solution, bound: Array | None, tolerance: ArrayLike
) -> Solution:
    """Return the solution with the better of two bounds, and a status for its gap."""
    value = solution.expected_runtime
    error = solution.runtime_error
    lower = solution.lower_bound
    if bound is not None:
        certain = bound - error  # NaN if the error is unknown
        lower = jnp.minimum(jnp.where(certain > lower, certain, lower), value)
        solution = replace(solution, lower_bound=lower)
    least = least_gap(problem)
    # The rule that evaluates the solution may differ from the last rule of the search.
    # Then the rounding errors of both count.
    resolved = jnp.maximum(tolerance, least) + least + error / value
    loose = (solution.status == int(Status.CONVERGED)) & (
        solution.relative_gap > resolved
    )
    return replace(
        solution, status=jnp.where(loose, int(Status.PRECISION), solution.status)
    )


def _certificate_of(best: Optimum) -> Certificate:
    """Return value, error and bound of a search as a `Certificate`."""
    lower = lower_bound_of(best.bound - best.error, best.value)
    return Certificate(best.value, best.error, lower, 1 - lower / best.value)
