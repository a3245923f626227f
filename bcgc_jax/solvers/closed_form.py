"""The paper's closed forms: partitions that are optimal for given cycle times."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem


@jax.jit
def partition_for_times(problem: Problem, times: Array) -> Array:
    r"""Compute the partition that is optimal for given cycle times (Theorem 2).

    It is argmin_x max_n t_(N-n) y_n, with y_n ∝ 1/t_(N-n), so all levels finish at the
    same time. If a time is 0, all coordinates are at the highest level, which is the
    limit t → 0. If a time is infinite, its level stays empty.

    Args:
      problem: The problem to plan.
      times: Sorted cycle times t_(N-n), slowest first, `[max_workers]`.

    Returns:
      The partition x, `[max_workers]`, which sums to L.

    >>> from bcgc_jax.distributions import Uniform
    >>> problem = Problem(Uniform(1.0, 2.0), num_workers=2, num_coordinates=3)
    >>> partition_for_times(problem, jnp.array([2.0, 1.0])).tolist()
    [2.0, 1.0]
    """
    level = np.arange(problem.max_workers)
    zero = jnp.any((level < problem.num_workers) & (times <= 0))
    inverse = 1 / jnp.where(times > 0, times, 1)
    rise = jnp.diff(inverse, prepend=jnp.zeros(1, inverse.dtype))
    share = rise / (level + 1).astype(inverse.dtype)
    share = jnp.where(
        zero, level == jnp.asarray(problem.num_workers) - 1, jnp.maximum(share, 0)
    )
    share = jnp.where(problem.exists, share, 0)
    return (problem.total * share / jnp.sum(share)).astype(problem.dtype)


@jax.jit
def expected_times(problem: Problem) -> Array:
    """Compute E T_(N-n), `[max_workers]`, in a program that all methods share."""
    return iteration_of(problem).expected_order_statistics()


def time_partition(problem: Problem) -> Array:
    r"""Compute the closed form x^(t), `[max_workers]`: Theorem 2 at t_n = E T_(n).

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000
    ... )
    >>> time_partition(problem)[:3].round().tolist()  # Fig. 3 prints 5696, 1076, 609
    [5697.0, 1076.0, 609.0]
    """
    return partition_for_times(problem, expected_times(problem))


@jax.jit
def frequency_partition(problem: Problem) -> Array:
    r"""Compute the closed form x^(f): Theorem 2 at t'_n = 1 / E[1/T_(n)]."""
    rates = iteration_of(problem).expected_order_statistics(jnp.reciprocal)
    return partition_for_times(problem, jnp.where(jnp.isinf(rates), 0, 1 / rates))
