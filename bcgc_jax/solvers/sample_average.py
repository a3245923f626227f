r"""Sample average approximation for heterogeneous workers, with confidence limits.

The mean of τ̂(x,T) over S sampled steps is also convex and homogeneous in x, so
`EmpiricalRows` makes it an ordinary problem. Its optimum is evaluated on K S
independent samples, which estimate E τ̂ without bias. They also give a 97.5 % lower
confidence limit of the optimal value, in one of two ways:

- For optima: E min ≤ min E, so the certified bounds of the optima of K samples have a
  mean below the true optimum (Mak, Morton & Wood 1999). Student's t gives the limit.
- For any other x: with subgradients g of τ̂ at x, min_n E[τ̂ - g·x + L g_n] is a lower
  bound (`runtime.certificate`). The limit is the minimum of the N means, each minus
  1.96 standard errors.

Both ways rely on the central limit theorem, so they fail for infinite variances.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.distributions import EmpiricalRows
from bcgc_jax.distributions.special_functions import f_quantile
from bcgc_jax.exact.linear_algebra import dot
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import as_partition, load_of
from bcgc_jax.plans.runtime import Certificate
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.optimal import optimal_partition

NUM_DRAWS = 4096  # S
NUM_REPLICATIONS = 16  # K
NUM_FRESH_DRAWS = NUM_DRAWS * NUM_REPLICATIONS
_NORMAL = 1.959963984540054  # the normal distribution's 97.5 % quantile


def draw_problems(
    key: Array, problem: Problem, *, num_draws: int = NUM_DRAWS
) -> tuple[Problem, Problem]:
    """Sample two problems: one of S steps for planning, one of K S for evaluation."""
    plan, fresh = _draw(key, problem, (num_draws, num_draws * NUM_REPLICATIONS))
    return replace(problem, cycle_time=plan), replace(problem, cycle_time=fresh)


@functools.partial(jax.jit, static_argnames="sizes")
def _draw(key: Array, problem: Problem, sizes: tuple[int, ...]) -> list[EmpiricalRows]:
    keys = jax.random.split(key, len(sizes))
    shapes = [(size, problem.max_workers) for size in sizes]
    return [
        EmpiricalRows(problem.cycle_time.sample(*of))
        for of in zip(keys, shapes, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="by_optima")
def judge(
    fresh: Problem, partition: ArrayLike, levels: ArrayLike, by_optima: bool = False
) -> Certificate:
    r"""Estimate E τ̂(x,T) and a 97.5 % lower limit of the optimal value over `levels`.

    Args:
      fresh: Problem with samples that are independent of the partition.
      partition: The partition x, `[N]`.
      levels: Levels that the lower bound allows, bool `[N]`.
      by_optima: Whether the limit is by optima of K parts of the samples. By default,
        it is by subgradients.
    """
    x = as_partition(fresh, partition)
    iteration = iteration_of(fresh)
    rows = iteration.rows.astype(x.dtype)  # type: ignore[union-attr]

    def runtime(x: Array, times: Array) -> Array:
        return fresh.scale * iteration.max_of_sorted(load_of(fresh, x), times)

    def bound(part: Problem) -> Array:
        # A gap of 1e-4 is negligible for a confidence limit.
        return optimal_partition(part, levels, tolerance=1e-4).bound

    if not by_optima:
        value, slope = jax.vmap(jax.value_and_grad(runtime), (None, 0))(x, rows)
        constant = 0
        if not fresh.bare:
            constant = value - dot(slope, x)
        below, deviation = _mean(constant + fresh.total * slope.T)
        limit = jnp.min(jnp.where(levels, below - _NORMAL * deviation, jnp.inf))
    else:
        value = runtime(x, rows)
        below, deviation = mean_of_parts(fresh, bound)
        limit = below - f_quantile(0.95, 1, NUM_REPLICATIONS - 1) ** 0.5 * deviation
    mean, error = _mean(value)
    lower = jnp.where(jnp.isfinite(limit), jnp.maximum(limit, 0), 0)
    return Certificate(mean, error, lower, 1 - lower / mean)


@functools.singledispatch
def judged(method: Any, fresh: Problem, solution: Solution) -> dict[str, Array]:
    """Return the fields of a solution that independent samples estimate."""
    assert solution.partition is not None
    assert solution.levels is not None
    return judge(fresh, solution.partition, solution.levels)._asdict()


def mean_of_parts(
    fresh: Problem, value: Callable[[Problem], Array]
) -> tuple[Array, Array]:
    """Return mean and standard error of `value` over K parts of the samples."""
    shape = NUM_REPLICATIONS, -1, fresh.max_workers
    rows = iteration_of(fresh).rows.reshape(shape)  # type: ignore[union-attr]

    def value_of_part(part: Array) -> Array:
        return value(replace(fresh, cycle_time=EmpiricalRows(part)))

    return _mean(jax.lax.map(value_of_part, rows))


def _mean(values: Array) -> tuple[Array, Array]:
    """Return the mean over the last axis, and its standard error."""
    return jnp.mean(values, axis=-1), jnp.std(values, axis=-1) / jnp.sqrt(
        values.shape[-1] - 1
    )
