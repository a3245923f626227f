"""Confidence intervals of runtimes over measured steps: a block bootstrap in JAX."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax._pytree import Numbers, check, check_key
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import check_partition, problem_tasks
from bcgc_jax.problem import Problem


def bootstrap_interval(key: Array, problem: Problem, partition: Numbers) -> tuple[Array, Array]:
    r"""Return a 95 % interval (percentiles) of E τ̂(x,T) for a given x under `EmpiricalRows`.

    Rows are resampled 2000 times, in blocks of S^(1/3) neighbours on a circle (Politis & Romano
    1992), which keeps the correlation of a step with the next. An x planned on the same rows looks
    better than it is, the more so the fewer they are. Raises ValueError for a `cycle_time` that is
    not `EmpiricalRows`.

    >>> from bcgc_jax.distributions import EmpiricalRows
    >>> times = jax.random.exponential(jax.random.key(0), (300, 3)) + 0.5
    >>> problem = Problem(EmpiricalRows(times), num_workers=3, num_coordinates=10)
    >>> low, high = bootstrap_interval(jax.random.key(1), problem, [8.0, 1.0, 1.0])
    >>> bool(low < high)
    True
    """
    if iteration_of(problem).rows is None:
        raise ValueError(
            "only measured rows are resampled: the problem's cycle_time must be EmpiricalRows"
        )
    check_partition(problem, partition)
    means = resampled_means(key, _runtimes(problem, partition))
    low, high = jnp.quantile(means, jnp.array([0.025, 0.975], means.dtype))
    return low, high


@jax.jit
def _runtimes(problem: Problem, partition: Numbers) -> Array:
    iteration = iteration_of(problem)
    load, _, scale = problem_tasks(problem, partition)
    assert iteration.rows is not None
    return scale * iteration.max_of_sorted(load, iteration.rows)


@functools.partial(jax.jit, static_argnames=("num_replicates", "block"))
def resampled_means(
    key: Array, values: Array, *, num_replicates: int = 2000, block: int | None = None
) -> Array:
    """Return means over the steps of `values`, `[S, ...]` to `[num_replicates, ...]`.

    Steps are resampled in blocks as above.
    """
    check_key(key)
    size = len(values)
    block = math.ceil(size ** (1 / 3)) if block is None else block
    if not 1 <= block <= size:
        raise ValueError(f"block must be from 1 to {size}, the number of rows, got {block}")
    check("num_replicates", num_replicates, ">= 1")
    sums = jax.lax.fori_loop(1, block, lambda i, sums: sums + jnp.roll(values, -i, axis=0), values)
    starts = jax.random.randint(key, (num_replicates, math.ceil(size / block)), 0, size)
    return jnp.mean(sums[starts], axis=1) / block
