r"""The paper's scheme with less storage: the certified optimum for every number of stored subsets.

A worker that stores D of the N data subsets can compute a coordinate on at most D of them: levels 0 … D - 1
are all that there is, as in `Optimal(levels=range(D))`. Fewer levels also means more that is waited for: of a
coordinate at level n the messages of N - n workers are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, check_whole
from bcgc_jax.laws.joint import NO_EXACT_ANSWER
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.solve import check_finite_mean, optimum


class StorageCurve(NamedTuple):
    """The optimum for each number of stored subsets, `[max_workers]` each but for `partition`.

    `stored_subsets`: D = 1 … N, then N again for padding; `expected_runtime`, with its error, of the
    `partition`, `[max_workers, max_workers]`, a row for each D; no partition of the levels below D (with
    setup cycles, of those that were found best to use) is below `lower_bound`; `relative_gap`; `awaited`:
    Σ x_n (N-n) / (N L), the coordinates of a worker that are waited for, on average, in shares of L;
    `status`, a `Status`.
    """

    stored_subsets: Array
    expected_runtime: Array
    runtime_error: Array
    lower_bound: Array
    relative_gap: Array
    awaited: Array
    partition: Array
    status: Array


def storage_curve(problem: Problem, *, tolerance: ArrayLike = 1e-7, max_steps: int = 60) -> StorageCurve:
    r"""min E τ̂(x,T) over Σ x = L, x ≥ 0, x_n = 0 for n ≥ D, for D = 1 … N (eq. 6 with less redundancy).

    One program for all D, one after the other; each as `solve` with "optimal" has it: convex problems are
    certified to a relative gap of `tolerance`, so that the curve falls but for these gaps; with random
    start-ups the best of several local searches. D = 1 is no redundancy, D = N the paper. `max_steps`, of
    each search, is static; under `jax.vmap` a curve for each of a batch.

    Raises ValueError for `Unlike` workers, of whom only draws tell, and where `solve` does.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100)
    >>> curve = storage_curve(problem, tolerance=1e-3)
    >>> curve.stored_subsets.tolist(), (100 * curve.expected_runtime / curve.expected_runtime[0]).round()
    ([1, 2, 3], Array([100.,  78.,  54.], dtype=float32))
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {problem!r}")
    if not problem.iteration.exact:
        raise ValueError(NO_EXACT_ANSWER)
    check("tolerance", tolerance, "> 0")
    check_whole("max_steps", max_steps, 1)
    check_finite_mean(problem)
    return _curve(problem, jnp.asarray(tolerance, problem.dtype), max_steps)


@functools.partial(jax.jit, static_argnames="max_steps")
def _curve(problem: Problem, tolerance: Array, max_steps: int) -> StorageCurve:
    level, size = np.arange(problem.max_workers), problem.max_workers

    def one(levels: Array) -> tuple[Array, ...]:
        found = optimum(problem, levels & problem.exists, False, tolerance=tolerance, max_steps=max_steps)
        assert found.partition is not None
        value, error = found.expected_runtime, found.runtime_error
        return value, error, found.lower_bound, found.relative_gap, found.partition, found.status

    value, error, lower, gap, partition, status = jax.lax.map(one, jnp.asarray(np.tri(size, dtype=bool)))
    workers = jnp.asarray(problem.num_workers)
    awaited = partition @ jnp.maximum(workers - level, 0).astype(partition.dtype) / (workers * problem.total)
    return StorageCurve(jnp.minimum(level + 1, workers), value, error, lower, gap, awaited, partition, status)
