r"""Workers that are not alike: sample averages for expectations, and how far they can
be trusted.

The mean of τ̂(x,T) over S draws of an iteration is convex and homogeneous in x too, and
`EmpiricalRows` makes it a problem like any other. K S fresh draws judge its optimum:
they estimate E τ̂ without bias, and bound the best from below, with 97.5 % confidence,
in one of two ways:

- for optima: E min ≤ min E, so the certified bounds of K samples' optima have a mean
  below the true optimum (Mak, Morton & Wood 1999); Student's t gives the limit;
- for any other x: with subgradients g of τ̂ at x, E[τ̂ - g·x + L g_n] at the best level
  n is a bound (`runtime.certificate`); the least of the N means less 1.96 standard
  errors is a limit.

Both rest on the central limit theorem: infinite variances need more draws than anyone
has.
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
    """`problem` under S draws of its times, to plan, and K S fresh ones, to judge."""
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
    r"""E τ̂(x,T), its standard error, and a 97.5 % limit of the best over `levels`,
    bool `[N]`.

    The limit is `by_optima` of K parts of the draws, which must be independent of x, or
    by subgradients.
    """
    x = as_partition(fresh, partition)
    iteration = iteration_of(fresh)
    rows = iteration.rows.astype(x.dtype)  # type: ignore[union-attr]

    def runtime(x: Array, times: Array) -> Array:
        return fresh.scale * iteration.max_of_sorted(load_of(fresh, x), times)

    def bound(part: Problem) -> Array:
        # No confidence limit sees such a gap.
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
    """The fields of a solution that fresh draws say of a method's partition."""
    assert solution.partition is not None
    assert solution.levels is not None
    return judge(fresh, solution.partition, solution.levels)._asdict()


def mean_of_parts(
    fresh: Problem, value: Callable[[Problem], Array]
) -> tuple[Array, Array]:
    """The mean of `value` over K parts of the fresh draws, and its standard error."""
    shape = NUM_REPLICATIONS, -1, fresh.max_workers
    rows = iteration_of(fresh).rows.reshape(shape)  # type: ignore[union-attr]

    def value_of_part(part: Array) -> Array:
        return value(replace(fresh, cycle_time=EmpiricalRows(part)))

    return _mean(jax.lax.map(value_of_part, rows))


def _mean(values: Array) -> tuple[Array, Array]:
    """Mean over the last axis and its standard error."""
    return jnp.mean(values, axis=-1), jnp.std(values, axis=-1) / jnp.sqrt(
        values.shape[-1] - 1
    )
