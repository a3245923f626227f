"""The optimal partition and its bound, by Newton's method or by cuts, as f is smooth or not."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.exact.linear_algebra import LARGE
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.evaluate import with_rounding
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.marks import marks
from bcgc_jax.plans.runtime import sent_load
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.newton import Given, Shares, search
from bcgc_jax.solvers.polyhedral import cutting_plane, row_program

# What the path's normal equations resolve in float64 and in float32; the room for cuts.
_POLYHEDRAL, _POLYHEDRAL_SINGLE, _MAX_CUTS = 1e-6, 3e-4, 500


class OptimalResult(NamedTuple):
    """Partition, `[max_workers]`, its expected runtime and a bound on that of the best one.

    `error` is that of both, as far as the rule knows it: 0 for laws with kinks and atoms. `num_steps` counts
    Newton steps, for laws of atoms cuts.
    """

    partition: Array
    value: Array
    error: Array
    lower_bound: Array
    status: Array
    num_steps: Array


@functools.partial(jax.jit, static_argnames="max_steps")
def optimal_partition(
    problem: Problem,
    levels: ArrayLike = True,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
    least: ArrayLike = jnp.inf,
) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts where every level takes about equally long, moved inside. `max_steps` is static. `levels`, bool
    `[max_workers]`, are those that may be used, and for which setup cycles are paid. They enter as a load
    that is linear in x, as Σx = L: (n+1) f/b = (n+1) f/(b L) Σx. For laws of atoms or rows f is polyhedral,
    and cutting planes take the place of Newton's method, down to a gap of 1e-6. Newton's method ends, and is
    content with what it has, once no partition can be faster than `least`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100)
    >>> result = optimal_partition(problem, np.array([True, False, True]), tolerance=1e-3)
    >>> int(result.status), round(float(result.partition.sum()), 3), float(result.partition[1])
    (0, 100.0, 0.0)
    """
    levels = problem.exists & jnp.asarray(levels)
    tolerance = jnp.asarray(tolerance, problem.dtype)
    iteration = iteration_of(problem)
    if problem.start_up is not None:  # the same for all, and for every partition
        alike = replace(problem, start_up=None)
        start = jnp.asarray(problem.start_up, problem.dtype)
        options = {"tolerance": tolerance, "max_steps": max_steps}
        found = optimal_partition(alike, levels, least=least - start, **options)
        return found._replace(value=found.value + start, lower_bound=found.lower_bound + start)
    if iteration.polyhedral or not problem.plain:
        return _by_cuts(problem, levels, tolerance)
    law = iteration.pooled().with_fast_inverse()
    known = marks(law, jnp.ones(levels.size, problem.dtype), jnp.asarray(problem.num_workers))
    unit = problem.scale * problem.total
    least = jnp.asarray(least, problem.dtype) / unit
    given = Given(law, known, *_in_unit_shares(problem, levels, tolerance), least)
    finite = jnp.isfinite(law.mean())
    done, steps, x, numbers = search(given, _start(given, known.times[2]), finite, max_steps)
    missed = jnp.where(steps < max_steps, int(Status.PRECISION), int(Status.STEP_LIMIT))
    status = jnp.where(done, int(Status.CONVERGED), missed)
    value, error, bound = unit * numbers
    value, error = with_rounding(x, Expectation(value, error))
    value, error = jnp.where(finite, value, jnp.inf), jnp.where(finite, error, 0)
    return OptimalResult(x * problem.total, value, error, bound, status, steps)


def _by_cuts(problem: Problem, levels: Array, tolerance: Array) -> OptimalResult:
    """The least of an f that is polyhedral, or whose Hessian is not known, by cutting planes."""
    iteration = iteration_of(problem)
    share = _in_unit_shares(problem, levels, tolerance)
    start = _start(share, iteration.typical_times((0.0,))[0].astype(problem.dtype))
    total, unit = problem.total, problem.scale * problem.total

    def value_of(u: Array) -> Array:
        # In coordinates, as the link takes them.
        load = Load(total * (share.loads @ u), sent_load(problem, total * jnp.where(levels, u, 0)))
        return iteration.expected_max(load).value / total

    def evaluate(u: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(value_of)(u)

    tolerance = jnp.maximum(share.tolerance, least_gap(problem))
    if iteration.rows is not None and problem.plain:
        found = row_program(iteration.rows, share.loads, start, levels, tolerance)
    else:
        found = cutting_plane(evaluate, start, levels, tolerance=tolerance, max_cuts=_MAX_CUTS)
    met = found.value - found.lower_bound <= tolerance * found.value
    return OptimalResult(
        found.share * total,
        unit * found.value,
        0 * found.value,
        unit * found.lower_bound,
        jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT)),
        found.num_steps,
    )


def least_gap(problem: Problem) -> float:
    """The smallest gap that is looked for in the working precision."""
    if iteration_of(problem).polyhedral:
        return _POLYHEDRAL if problem.dtype == jnp.float64 else _POLYHEDRAL_SINGLE
    return _least_gap(problem.max_workers, problem.dtype)


def _least_gap(size: int, dtype: Any) -> float:
    return (64 + 8 * size) * float(jnp.finfo(dtype).eps)


def _in_unit_shares(problem: Problem, levels: Array, tolerance: Array) -> Shares:
    dtype, size = problem.dtype, levels.size
    level = np.arange(size)
    # Steps beyond the working precision only wander.
    tolerance = jnp.maximum(tolerance, _least_gap(size, dtype))
    loads = np.tri(size) * jnp.where(levels, level + 1, 0)
    # The highest level in use pays setup, and the chain so far, for each of its subsets.
    highest = jax.lax.cummax(jnp.where(levels, level + 1, 0))[:, None]
    loads = loads + highest * (problem.setup_load / problem.total)
    loads = loads + highest * problem.chain_load * jnp.where(levels, np.tri(size), 0)
    count = jnp.sum(levels).astype(dtype)
    return Shares(jnp.asarray(problem.num_workers), levels, count, jnp.asarray(loads, dtype), tolerance)


def _start(given: "Given | Shares", times: Array) -> Array:
    """The closed form for the typical `times` of the levels (Theorem 2, without its limits), moved inside."""
    dtype, levels = times.dtype, given.levels
    share = jnp.diff(1 / times, prepend=np.zeros(1, dtype)) / np.arange(1, times.size + 1).astype(dtype)
    share = jnp.where(levels & (share > 0) & (share < jnp.inf), share, 0)
    inside = jnp.where(levels, 1 / given.num_levels, 0)
    if times.size > LARGE:  # equal shares of the highest levels would be most of the load
        inside = jnp.where(levels, 1 / np.arange(1, times.size + 1).astype(dtype) ** 2, 0)
        inside = inside / jnp.sum(inside)
    start = 0.9 * share / jnp.maximum(jnp.sum(share), jnp.finfo(dtype).tiny) + 0.1 * inside
    start = jnp.where(levels, start, 0)
    return start / jnp.sum(start)
