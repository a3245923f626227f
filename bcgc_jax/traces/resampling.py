"""Confidence intervals of runtimes over measured steps."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import Numbers, check_key
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import check_partition, problem_tasks
from bcgc_jax.problem import Problem
from bcgc_jax.traces.intervals import interval_of, resample


def bootstrap_interval(
    key: Array, problem: Problem, partition: Numbers
) -> tuple[Array, Array]:
    r"""Return a 95 % interval of E τ̂(x,T) for a given x under `EmpiricalRows`, as
    `advise` does.

    Rows are resampled 2000 times. The ends are then moved away from the mean, the more
    so the more a step is like the next one and the fewer steps there are. An x planned
    on the same rows looks better than it is, the more so the fewer they are. Raises
    ValueError for a `cycle_time` that is not `EmpiricalRows`.

    >>> from bcgc_jax.distributions import EmpiricalRows
    >>> times = jax.random.exponential(jax.random.key(0), (300, 3)) + 0.5
    >>> problem = Problem(EmpiricalRows(times), num_workers=3, num_coordinates=10)
    >>> low, high = bootstrap_interval(jax.random.key(1), problem, [8.0, 1.0, 1.0])
    >>> bool(low < high)
    True
    """
    if iteration_of(problem).rows is None:
        raise ValueError(
            "only measured rows are resampled: the problem's cycle_time must be "
            "EmpiricalRows"
        )
    check_key(key)
    check_partition(problem, partition)
    runtimes = _runtimes(problem, partition)
    steps = np.asarray(runtimes, float)
    mean = float(steps.mean())
    drawn = resample(steps[:, None], seed=int(jax.random.bits(key)))[:, 0]
    _, low, high = interval_of(mean, drawn, steps - mean)
    return jnp.asarray(low, runtimes.dtype), jnp.asarray(high, runtimes.dtype)


@jax.jit
def _runtimes(problem: Problem, partition: Numbers) -> Array:
    iteration = iteration_of(problem)
    load, _, scale = problem_tasks(problem, partition)
    assert iteration.rows is not None
    return scale * iteration.max_of_sorted(load, iteration.rows)
