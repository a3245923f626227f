"""`solve`: plan a problem with any method, and evaluate the plan."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import check_key, check_whole, is_traced, replace
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.runtime import integrate_runtime
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution
from bcgc_jax.solvers import sample_average
from bcgc_jax.solvers.method import Method
from bcgc_jax.solvers.methods import method_of


def solve(
    problem: Problem,
    method: str | Method = "optimal",
    *,
    key: Array | None = None,
    num_draws: int = sample_average.NUM_DRAWS,
) -> Solution:
    r"""Plan a problem with a method, and evaluate the plan.

    Args:
      problem: The problem to solve. Under `jax.vmap` it is a batch of problems, which
        may differ in `num_workers`, too.
      method: Name of a method with its default options, or a method object:

        - "optimal" (`Optimal`): the partition of least expected runtime, with a
          certified optimality gap. "subgradient" (`Subgradient`) is the paper's
          iterative method.
        - "time", "frequency": the closed forms x^(t) and x^(f) of the paper.
        - "nested" (`Nested`): nested groups of replicas, without a code.
        - "sharing:2" (`Sharing`): dynamic load balancing, two subsets per worker.
        - "uncoded", "single_block", "tandon:3" (`Tandon`), "tandon_partial",
          "ferdinand_full", "cyclic:3" (`Cyclic`): baselines. "single_block" is the best
          single level.
        - "limit", "limit:2" (`Limit`): a lower bound on the runtime of every exact
          scheme, or of schemes that store two subsets per worker.
        - `Deadline(t)`: the partition that most probably finishes by time t.
        - a `Scheme` of your own.
      key: PRNG key. Required by methods that draw random numbers, and by all methods
        for `Heterogeneous` workers. Methods with a `seed`, such as `Sharing`, default
        to a key made from it.
      num_draws: Number of Monte Carlo samples, S ≥ 2, for which `Heterogeneous` workers
        are planned. The plan is evaluated on 16 S independent samples.

    Returns:
      The `Solution`: the plan, its expected runtime with an error, and a lower bound.
      Its `kind` says how these values are to be read. For `EmpiricalRows` they are
      exact for the recorded steps. For `Heterogeneous` workers they are Monte Carlo
      estimates, and methods that get the same key use the same samples.

    Raises:
      TypeError: If `problem` is not a `Problem`.
      ValueError: If the method is unknown, cannot solve this problem, or needs a key.
        Also if the distribution is known to have an infinite mean.

    Traced values cannot raise. If they are invalid, `Solution.status` is INVALID and
    the runtime NaN. If the scheme does not exist for them, the status is INFEASIBLE.

    Partitions are rounded to integers. "optimal" instead searches over integers if
    there are at most 1000 coordinates or units, known before tracing, and few atoms.
    Closed forms and baselines ignore `setup_cycles` when they plan, but not when they
    are evaluated.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000
    ... )
    >>> solution = solve(problem, "time")
    >>> (
    ...     solution.rounded.tolist(),
    ...     bool(solution.lower_bound < solution.expected_runtime),
    ... )
    ([802, 454, 744], True)
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"`problem` must be a Problem, got {problem!r}")
    method = method_of(method, problem=problem)
    method.check(problem)
    check_whole("num_draws", num_draws, 2)
    if key is not None:
        check_key(key)
    elif method.seed is not None:
        key = jax.random.key(method.seed)
    iteration = iteration_of(problem)
    drawn = method.is_drawn(problem)
    if key is None and (drawn or method.draws or not iteration.exact):
        raise ValueError(
            f'method="{method.name}" draws random cycle times for this problem. '
            "Pass key=jax.random.key(seed)."
        )
    if not iteration.exact or method.needs_mean(problem):
        iteration.check_finite_means()
    if iteration.exact or drawn:
        solution = method.plan(problem, key)
    else:
        assert key is not None
        solution = _judged(problem, method, key, num_draws)
    if is_traced((problem, method)):  # traced values were not checked at construction
        solution = _invalid_without(
            problem.valid & method.valid(), solution, (problem, method)
        )
        judgement = solution.runtime_error, solution.lower_bound, solution.history
        error, lower, history = without_derivative(judgement, (problem, method))
        solution = replace(
            solution, runtime_error=error, lower_bound=lower, history=history
        )
    kind = "confidence"
    if iteration.exact and not drawn:
        kind = solution.kind
    return replace(solution, method=method.name, problem=problem, kind=kind)


def _invalid_without(sense: Array, solution: Solution, of: Any) -> Solution:
    """Return `solution`, with status INVALID and NaN unless `sense`.

    A value that is NaN has NaN derivatives in `of`, too. This includes the values of a
    scheme that does not exist.
    """

    def checked(value: Array) -> Array:
        nothing = without_derivative(jnp.full_like(value, jnp.nan), of)
        return jnp.where(sense & ~jnp.isnan(value), value, nothing)

    names = (
        "expected_runtime",
        "runtime_error",
        "completion_probability",
        "rounded_value",
    )
    values = {name: getattr(solution, name) for name in names}
    numbers = {
        name: checked(value) for name, value in values.items() if value is not None
    }
    status = jnp.where(sense, solution.status, int(Status.INVALID))
    return replace(solution, status=status, **numbers)


def _judged(problem: Problem, method: Method, key: Array, num_draws: int) -> Solution:
    """Plan `Heterogeneous` workers on samples, and evaluate on independent samples."""
    plan, fresh = sample_average.draw_problems(key, problem, num_draws=num_draws)
    if not method.is_partition:
        solution = method.plan(fresh, key)
        error = _error_of_parts(fresh, method, solution.plan)
        return replace(solution, runtime_error=error)
    solution = method.plan(plan, key)
    assert solution.rounded is not None
    assert solution.levels is not None
    counts = partition_of_units(problem, solution.rounded)
    numbers = sample_average.judged(method, fresh, solution)
    del numbers["relative_gap"]
    numbers["rounded_value"] = sample_average.judge(
        fresh, counts, solution.levels
    ).expected_runtime
    exists = solution.status != int(Status.INFEASIBLE)
    numbers = {
        name: jnp.where(exists, value, jnp.nan) for name, value in numbers.items()
    }
    return replace(solution, **numbers)


@jax.jit
def _error_of_parts(fresh: Problem, method: Method, plan: Plan | None) -> Array:
    """Estimate the standard error of a runtime from K parts of the fresh samples.

    All parts evaluate the same plan, if there is one. If each part planned again,
    near-optimal plans could differ between the parts.
    """

    def value(part: Problem) -> Array:
        if plan is None or plan.completion is None:
            return method.plan(part, None).expected_runtime
        return integrate_runtime(part, plan).value

    return sample_average.mean_of_parts(fresh, value)[1]
