"""`solve`: the entry point of all schemes, with exact runtimes and certificates."""

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
    r"""A scheme for `problem`, with its exact expected runtime and its distance from
    the best.

    Args:
      problem: what to solve; under `jax.vmap` a batch of them (`num_workers` included).
      method: an object with options, or the short name of its defaults: "optimal"
        (`Optimal`), "subgradient" (`Subgradient`), "time" (x^(t)), "frequency" (x^(f));
        "nested" (`Nested`); `Deadline(t)`; baselines such as "uncoded", "single_block"
        (the best single level), "tandon:3" (`Tandon`), "tandon_partial",
        "ferdinand_full", "cyclic:3" (`Cyclic`); "sharing:2" (`Sharing`); "limit" and
        "limit:2" (`Limit`), which no scheme beats; or a `Scheme` of one's own.
      key: randomness of methods that draw, and of all methods for `Heterogeneous`
        workers. Methods with a `seed`, such as `Sharing`, have a key of their own.
      num_draws: S, of the sample that `Heterogeneous` workers are planned for, from 2
        on; 16 S fresh draws judge the plan.

    "optimal" ends with a search over whole units where these are few (at most 1000,
    known before tracing, and not too many atoms); the other plans are rounded. Closed
    forms and baselines ignore setup when planning; their runtime includes it.

    Under `EmpiricalRows` all of this is exact for the sample. For `Heterogeneous`
    workers `expected_runtime` is a mean, of the same draws for all methods that get the
    same key, `runtime_error` its standard error, and `lower_bound` a 97.5 % confidence
    limit (`solvers.sample_average`).

    Raises ValueError for an unknown method, a missing key, what a method cannot do, and
    for a distribution whose mean is known to be infinite. What shows only in traced
    values is a `Status`: INVALID, with NaN for the runtime, or INFEASIBLE for a scheme
    that does not exist.

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
        raise TypeError(f"problem must be a Problem, got {problem!r}")
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
            f'method="{method.name}" here draws cycle times: pass '
            "key=jax.random.key(seed)"
        )
    if not iteration.exact or method.needs_mean(problem):
        iteration.check_finite_means()
    if iteration.exact or drawn:
        solution = method.plan(problem, key)
    else:
        assert key is not None
        solution = _judged(problem, method, key, num_draws)
    if is_traced((problem, method)):  # what could not be checked when it was made
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
    """`solution`, or, where the problem makes no sense, INVALID and NaN.

    What is NaN, also for a scheme that does not exist, has NaN for its derivatives in
    `of`.
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
    """For `Heterogeneous` workers: a plan for the mean over draws, judged by others."""
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
    """The standard error of a value, by K parts of the fresh draws; the method is no
    partition.

    All parts have the plan that is judged: where two are as good, each part may prefer
    another.
    """

    def value(part: Problem) -> Array:
        if plan is None or plan.completion is None:
            return method.plan(part, None).expected_runtime
        return integrate_runtime(part, plan).value

    return sample_average.mean_of_parts(fresh, value)[1]
