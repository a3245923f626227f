"""What a partition is worth: rounded, evaluated exactly, certified."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.partitions import round_partition, round_to_units
from bcgc_jax.problem import Problem, Solution, Status
from bcgc_jax.runtime import Certificate, certificate, levels_of_bound


def assess(
    problem: Problem,
    partition: Array,
    status: Array | None = None,
    num_steps: Array | None = None,
    *,
    written_out: bool = False,
) -> Solution:
    """The `Solution` that a partition is: rounded, evaluated exactly, certified."""
    # The same shapes and dtypes whatever is known: compiled once for all methods.
    solution = assess_shares(
        problem,
        jnp.asarray(partition, problem.dtype),
        Status.CONVERGED.value if status is None else status,
        0 if num_steps is None else num_steps,
        np.ones(problem.max_workers, bool),
        written_out=written_out,
    )
    return with_whole_numbers(problem, solution)


def with_whole_numbers(problem: Problem, solution: Solution) -> Solution:
    """`solution` with the whole numbers, which are sorted for."""
    assert solution.partition is not None
    if problem.unit_costs is None:
        rounded = round_partition(solution.partition, problem.num_coordinates)
    else:
        rounded = round_to_units(solution.partition, jnp.asarray(problem.unit_costs, problem.dtype))
    return dataclasses.replace(solution, rounded=rounded)  # type: ignore[type-var]


@functools.partial(jax.jit, static_argnames="written_out")
def assess_shares(
    problem: Problem,
    partition: Array,
    status: ArrayLike,
    num_steps: ArrayLike,
    levels: ArrayLike,
    lower_bound: Array | None = None,
    *,
    written_out: bool,
) -> Solution:
    """All of the solution but the whole numbers; `lower_bound` is one that the solver knows."""
    partition = jnp.where(jnp.asarray(status) != int(Status.INFEASIBLE), partition, 0)
    found = certificate(problem, partition, levels, written_out=written_out)
    if lower_bound is not None:
        known = lower_bound - found.runtime_error  # NaN where there is no error to speak of
        lower = jnp.where(known > found.lower_bound, known, found.lower_bound)
        found = found._replace(lower_bound=lower, relative_gap=1 - lower / found.expected_runtime)
    return solution_of(problem, partition, status, num_steps, levels, found)


def solution_of(
    problem: Problem,
    partition: Array,
    status: ArrayLike,
    num_steps: ArrayLike,
    levels: ArrayLike,
    found: Certificate,
) -> Solution:
    """What is known of a partition, and the status that it has by its value."""
    status, num_steps = jnp.asarray(status, int), jnp.asarray(num_steps, int)
    feasible = status != int(Status.INFEASIBLE)
    value, error, lower, gap = found
    value = jnp.where(feasible, value, jnp.nan)
    status = jnp.where(jnp.isinf(value), int(Status.INFINITE), status)
    status = jnp.where(jnp.isnan(value) & feasible, int(Status.INVALID), status)
    gap = jnp.where(jnp.isfinite(value), gap, jnp.where(jnp.isinf(value), 1, jnp.nan))
    used = levels_of_bound(problem, partition) & jnp.asarray(levels)
    return Solution(partition, None, value, error, lower, gap, status, num_steps, levels=used)


def is_partition(problem: Problem, x: Array) -> Array:
    """Whether x ≥ 0, Σ x = L to rounding, and x_n = 0 for n ≥ N; False where anything is NaN."""
    share = x / problem.total
    slack = 1e3 * jnp.finfo(x.dtype).eps
    inside = jnp.all(share >= -slack) & jnp.all(problem.exists | (share <= slack))
    return inside & (jnp.abs(jnp.sum(share) - 1) <= slack * max(x.size, 10))
