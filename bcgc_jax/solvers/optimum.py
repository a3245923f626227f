"""`Optimal`: the partition of least expected runtime, by its objective's search."""

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

# Up to here the loss of rounding may show, and the search over whole units is worth its
# time.
FEW_UNITS = 1000
# The relative gap of an optimum, if nobody asks for another.
TOLERANCE = 1e-7
# Cuts for each level whose slopes count, of those that bound an optimum: twice as many
# have no more weight.
_CUTS = 8


@pytree_dataclass
class Optimal(Method):
    r"""The partition of least expected runtime, to a proven relative gap of
    `tolerance`.

    Args:
      tolerance: of the gap; not below what the precision resolves, (64 + 8 N) eps: 3e-5
        in float32 at N = 20; for distributions of atoms and for `EmpiricalRows` not
        below 1e-6, in float32 3e-4.
      levels: the redundancy levels that may be used, all by default; static. With setup
        cycles it is also searched which of them to use, and the bound is for those in
        `Solution.levels`. Where the number of workers is traced and lacks one of them,
        the solution is INFEASIBLE.
      max_steps: of Newton's method; static.

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
                f"levels must be whole numbers from 0 to {top}, got {list(self.levels)}"
            )

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        solution = with_whole_numbers(problem, self._real_partition(problem))
        if not _few_units(problem):
            return solution
        return replace(
            solution, rounded=improve_units(problem, solution.rounded, solution.levels)
        )

    def _real_partition(self, problem: Problem) -> Solution:
        # Up to so many workers dense steps, O(N³) each, do what smooth ones do not: go
        # below a gap of 1e-5.
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
    """The fields that fresh draws say, with a limit also by optima of parts of them."""
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
    # The rules between kinks tell their error.
    return _judged(problem, assess_shares(problem, *answer), None, method.tolerance)


def _few_units(problem: Problem) -> bool:
    count = concrete(problem.num_coordinates)
    if is_traced(problem) or count is None or count.ndim or count > FEW_UNITS:
        return False
    # With measured times: 1e9 operations for all N² moves of a unit are a few seconds.
    return iteration_of(problem).evaluation_cost() * problem.max_workers**2 <= 1e9


def optimum(problem: Problem, allowed: ArrayLike, **options: Any) -> Solution:
    """The optimum, not rounded; converged if its certificate meets the tolerance."""
    # The schemes that go by expected times have compiled this.
    times = None
    if problem.has_setup:
        times = expected_times(problem)
    best, answer, solution = _searched(problem, allowed, times, **options)
    if solution is None:
        # All partitions are assessed with this program; plain problems have no other
        # bound.
        solution = with_slopes(_assessed, None, problem, *answer)
        solution = replace(solution, plan=without_derivative(solution.plan, problem))
        bound = best.bound
        if problem.plain:
            bound = None
        solution = _judged(problem, solution, bound, options["tolerance"])
    if best.aux is None:
        return solution
    # Where pieces of the runtime meet, each has slopes of its own.
    pieces = best.point, best.aux
    value = with_slopes(_by_pieces, solution.expected_runtime, problem, pieces)
    return replace(solution, expected_runtime=value)


def _by_pieces(problem: Problem, plan: tuple[Array, Cuts]) -> Array:
    """The runtime of a partition where pieces of a polyhedral one meet, each with its
    weight.

    So the slopes of their sum in the partition are alike at all levels in use, and
    those in the problem are a subgradient of the optimum.
    """
    partition, all_cuts = plan
    x = with_total(problem, partition)

    def add(value: Array, cut: Cuts) -> tuple[Array, None]:
        point = cut.points * problem.total
        runtime = functools.partial(expected_runtime, problem)
        at_point, slope = jax.jvp(runtime, (point,), (x - point,))
        return value + cut.weights * (at_point + slope), None

    # All that have a weight to speak of: at most as many as there are levels, but for
    # ties.
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
    """Optimum, what of it to assess, and the solution if the search certifies it."""
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
    # A traced number of workers may lack some of the levels that were asked for.
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
    """The solution with the better of the two bounds, and the status of its gap."""
    value = solution.expected_runtime
    error = solution.runtime_error
    lower = solution.lower_bound
    if bound is not None:
        certain = bound - error  # NaN where there is no error to speak of
        lower = jnp.minimum(jnp.where(certain > lower, certain, lower), value)
        solution = replace(solution, lower_bound=lower)
    least = least_gap(problem)
    # The rounding of both rules counts, where another one judged the answer than the
    # last of the search.
    resolved = jnp.maximum(tolerance, least) + least + error / value
    loose = (solution.status == int(Status.CONVERGED)) & (
        solution.relative_gap > resolved
    )
    return replace(
        solution, status=jnp.where(loose, int(Status.PRECISION), solution.status)
    )


def _certificate_of(best: Optimum) -> Certificate:
    """What a search knows of its partition."""
    lower = lower_bound_of(best.bound - best.error, best.value)
    return Certificate(best.value, best.error, lower, 1 - lower / best.value)
