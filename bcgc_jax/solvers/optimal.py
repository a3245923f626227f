"""The optimal partition and its lower bound, by Newton's method or cutting planes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.exact.linear_algebra import LARGE, dot
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.evaluate import with_rounding
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import sent_load
from bcgc_jax.plans.marks import marks_of
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.expected_maximum import Workers
from bcgc_jax.solvers.newton import SimplexProblem, search
from bcgc_jax.solvers.polyhedral import cutting_plane
from bcgc_jax.solvers.search import Optimum


@functools.partial(jax.jit, static_argnames="max_steps")
def optimal_partition(
    problem: Problem,
    levels: ArrayLike,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
    least: ArrayLike = jnp.inf,
) -> Optimum:
    r"""Minimise E τ̂(x,T) over partitions, to a relative optimality gap of `tolerance`.

    Setup cycles are a load that is linear in x, because Σx = L gives
    (n+1) f/b = (n+1) f/(b L) Σx.

    Args:
      problem: The problem to solve.
      levels: Levels that may be used, bool `[max_workers]`. Setup cycles are paid for
        these levels.
      tolerance: Relative gap between the runtime and its lower bound. With atoms or
        rows, the runtime is polyhedral, and the gap is not smaller than 1e-6.
      max_steps: Maximum number of steps of Newton's method. Must be static.
      least: Newton's method ends early when no partition can be faster than this time.

    Returns:
      The `Optimum`. `point` is the partition, `[max_workers]`. With kinks, `error`
      bounds only rounding. With atoms or rows, `aux` holds the `Cuts` of `polyhedral`.
    """
    levels = problem.exists & jnp.asarray(levels)
    if problem.start_up is not None:  # a constant adds to the runtime of all partitions
        start = jnp.asarray(problem.start_up, problem.dtype)
        plain = replace(problem, start_up=None)
        limits = {
            "tolerance": tolerance,
            "max_steps": max_steps,
            "least": least - start,
        }
        fresh = optimal_partition(plain, levels, **limits)
        return fresh._replace(value=fresh.value + start, bound=fresh.bound + start)
    iteration = iteration_of(problem)
    unit = problem.scale * problem.total
    # Steps beyond the working precision make no progress.
    tolerance = jnp.maximum(jnp.asarray(tolerance, problem.dtype), least_gap(problem))
    if iteration.polyhedral or not problem.plain:
        return _by_cuts(problem, levels, tolerance)
    law = iteration.pooled().with_fast_inverse()
    count = jnp.asarray(problem.num_workers)
    marks = marks_of(law, jnp.ones(levels.size, problem.dtype), count)
    least = jnp.asarray(least, problem.dtype) / unit
    simplex_problem = SimplexProblem(
        workers=Workers(law, marks, count),
        levels=levels,
        loads=_loads(problem, levels),
        tolerance=tolerance,
        least=least,
    )
    finite = jnp.isfinite(law.mean())
    start = first_shares(levels, marks.times[2])
    optimum = search(simplex_problem, start, finite, max_steps, unit)
    value, error = with_rounding(
        optimum.point, Expectation(optimum.value, optimum.error)
    )
    return optimum._replace(
        point=optimum.point * problem.total,
        value=jnp.where(finite, value, jnp.inf),
        error=jnp.where(finite, error, 0),
    )


def _by_cuts(problem: Problem, levels: Array, tolerance: Array) -> Optimum:
    """Minimise a runtime that is polyhedral, or whose Hessian has no formula."""
    iteration = iteration_of(problem)
    loads = _loads(problem, levels)
    total = problem.total
    start = first_shares(
        levels, iteration.typical_times((0.0,))[0].astype(problem.dtype)
    )

    def value_of(u: Array) -> Array:
        # The load of the link is in coordinates, so u is scaled back.
        load = Load(
            total * dot(loads, u), sent_load(problem, total * jnp.where(levels, u, 0))
        )
        return iteration.expected_completion(load).value / total

    optimum = cutting_plane(jax.value_and_grad(value_of), start, levels, tolerance)
    aux = None
    if iteration.polyhedral:
        aux = optimum.aux
    unit = problem.scale * total
    rounded = with_rounding(
        optimum.point, Expectation(unit * optimum.value, 0 * optimum.value)
    )
    return optimum._replace(
        point=optimum.point * total,
        value=rounded.value,
        error=rounded.error,
        bound=unit * optimum.bound,
        aux=aux,
    )


def least_gap(problem: Problem) -> float:
    """Return the smallest optimality gap that the working precision resolves."""
    eps = float(jnp.finfo(problem.dtype).eps)
    rounding = (64 + 8 * problem.max_workers) * eps
    # The normal equations of `polyhedral` resolve only 2500 eps, 3e-4 in float32.
    if iteration_of(problem).polyhedral:
        return max(rounding, 1e-6, 2500 * eps)
    return rounding


def _loads(problem: Problem, levels: Array) -> Array:
    """Return the matrix that maps u to loads, with setup and chain cycles.

    Setup and chain cycles are paid at the highest level up to each level.
    """
    below = np.tri(levels.size)
    subsets = jnp.where(levels, np.arange(1, levels.size + 1), 0)
    highest = jax.lax.cummax(subsets)[:, None]
    loads = below * subsets + highest * (problem.setup_load / problem.total)
    loads = loads + highest * problem.chain_load * jnp.where(levels, below, 0)
    return jnp.asarray(loads, problem.dtype)


def first_shares(levels: Array, times: Array, moved: float = 0.1) -> Array:
    """Return the closed form for `times` (Theorem 2), moved into the simplex.

    The result is (1 - `moved`) times the closed form plus `moved` times an inner point.
    """
    dtype = times.dtype
    subsets = np.arange(1, times.size + 1).astype(times.dtype)
    share = jnp.diff(1 / times, prepend=np.zeros(1, dtype)) / subsets
    share = jnp.where(levels & (share > 0) & (share < jnp.inf), share, 0)
    # With many levels, an equal share at high levels would dominate the load.
    weight = 1 / subsets**2 if times.size > LARGE else jnp.ones_like(times)
    inside = jnp.where(levels, weight, 0)
    inside = inside / jnp.sum(inside)
    share = share / jnp.maximum(jnp.sum(share), jnp.finfo(dtype).tiny)
    start = (1 - moved) * share + moved * inside
    return start / jnp.sum(start)
