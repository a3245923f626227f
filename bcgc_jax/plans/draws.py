"""Draw the workers' start-up and cycle times in batches of limited size."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.worker import AT_A_TIME
from bcgc_jax.problem import Problem


def draw_workers(key: Array, problem: Problem, num_draws: int) -> tuple[Array, Array]:
    """Draw start-up (in κ) and cycle times, `[K, max_workers]`, in random order."""
    draw_key, order_key = jax.random.split(key)
    worker = iteration_of(problem).worker
    dtype = problem.dtype
    shape = num_draws, problem.max_workers
    if iteration_of(problem).alike:  # i.i.d. times need no permutation
        return worker.draw(draw_key, shape, dtype)
    times = iteration_of(problem).sorted_draws(draw_key, num_draws, dtype)
    exists = np.arange(shape[1]) < jnp.asarray(problem.num_workers)
    order = jnp.argsort(
        jnp.where(exists, jax.random.uniform(order_key, shape, dtype), 2.0), axis=1
    )
    starts = jnp.full(shape, worker.start, dtype)
    return starts, jnp.take_along_axis(times, order, axis=1)


def over_draws(
    key: Array,
    problem: Problem,
    function: Callable[[Array, Array], Any],
    num_draws: int,
    width: int,
) -> Any:
    """Apply `function` to sampled start-up and cycle times, `[K, N]` each, in batches.

    `function` returns `[K]`. It uses `width` numbers per sample and worker.
    """
    count, size = _parts(num_draws, problem.max_workers, width)

    def of_part(key: Array) -> Array:
        return function(*draw_workers(key, problem, size))

    values = jax.lax.map(of_part, jax.random.split(key, count))
    return jax.tree.map(lambda a: a.ravel()[:num_draws], values)


def over_drawn(
    drawn: tuple[Array, Array], function: Callable[[Array, Array], Any], width: int
) -> Any:
    """Apply `function` as `over_draws` does, to given samples, `[K, N]` each."""
    num_draws, workers = drawn[0].shape
    count, size = _parts(num_draws, workers, width)
    padding = [(0, count * size - num_draws), (0, 0)]
    parts = [jnp.pad(a, padding, "edge").reshape(count, size, workers) for a in drawn]
    values = jax.lax.map(lambda part: function(*part), tuple(parts))
    return jax.tree.map(lambda a: a.ravel()[:num_draws], values)


def _parts(num_draws: int, workers: int, width: int) -> tuple[int, int]:
    """Return the number of batches, and the number of samples in each."""
    largest = max(AT_A_TIME // (2 * workers * width), 1)
    count = math.ceil(num_draws / largest)
    # Batches of nearly equal size waste few samples. The size is odd because rows of
    # 2048 samples would share few cache lines.
    return count, math.ceil(num_draws / count) | 1
