r"""The certified optimum of block coordinate coding by fractional repetition in nested groups.

With sizes r_1 | r_2 | … | r_K, a block of size k is computed on r_k subsets by groups of as many
neighbours, all of whom send the same sum: coefficients 0 and 1. It is complete when one of each group has
sent it. With shares x_k ≥ 0, Σ x = L,

    minimise f(x) = E max_k Q_k(T) κ y_k,  y_k = Σ_{j≤k} r_j x_j,

where Q_k is the largest over groups of r_k of the least T in each. Groups are nested, so Q_k falls in k for
every T, and the order of the blocks is best as in Lemma 1 of the paper; f is convex and homogeneous, exact
by `OneOfEach`, and certified by its slopes as in `cutting_plane`. The paper waits for any N - s of N
workers, which is what a code must be good for at the worst. Repetition is good for more at the same
s = r_k - 1 and the same work, Q_k ≤ T_(N-s), much less where T spreads, but only for some s.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, check_whole, concrete, replace
from bcgc_jax.deliveries import Load
from bcgc_jax.iterations import Independent
from bcgc_jax.plans.completion import OneOfEach, nested_groups
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.problem import Problem, Status
from bcgc_jax.quadrature import Expectation
from bcgc_jax.runtime import lower_bound_of, sent_load
from bcgc_jax.solvers.cutting_plane import cutting_plane
from bcgc_jax.solvers.method import check_finite_mean
from bcgc_jax.solvers.optimal import least_gap

# Intervals of the rule that the answer is judged by, finer than that of the cuts; the room for cuts.
_JUDGING_NODES, _MAX_CUTS = 192, 500
# What the path's normal equations resolve in float32.
_SINGLE = 3e-4


class Repetition(NamedTuple):
    """Coordinates by size, `[K]`, in the order in which they are computed, and what is known of them.

    No plan by these sizes has an expected runtime below `lower_bound`; `status` is a `Status`.
    """

    partition: Array
    expected_runtime: Array
    runtime_error: Array
    lower_bound: Array
    relative_gap: Array
    status: Array
    num_cuts: Array


def group_sizes(stored: int) -> list[tuple[int, ...]]:
    """All longest rows of sizes from 1 to D, each a divisor of the next: what is nested is in one of them.

    >>> group_sizes(12)
    [(1, 2, 4, 12), (1, 2, 6, 12), (1, 3, 6, 12)]
    """
    check_whole("stored", stored, 1)
    if stored == 1:
        return [(1,)]
    primes = [p for p in range(2, stored + 1) if stored % p == 0 and all(p % q for q in range(2, p))]
    return sorted((*inner, stored) for p in primes for inner in group_sizes(stored // p))


def nested_repetition(problem: Problem, sizes: tuple[int, ...], *, tolerance: ArrayLike = 1e-6) -> Repetition:
    r"""argmin E τ over blocks repeated in groups of these `sizes`, to a proven gap of `tolerance`.

    Args:
      problem: without setup, chain and random start-ups; workers independent and alike, N known.
      sizes: static, ascending, each a divisor of the next and the last of N. Workers store as many subsets
        as the last is; the best for D of them is that of the best of `group_sizes(D)`.
      tolerance: not below 1e-6 for laws of atoms, and in float32 not below 3e-4.

    Raises ValueError for what it cannot plan.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> found = nested_repetition(problem, (1, 2, 4), tolerance=1e-3)
    >>> found.partition.shape, bool(found.relative_gap < 1e-3)
    ((3,), True)
    """
    check("tolerance", tolerance, "> 0")
    _check_plannable(problem)
    sizes, workers = tuple(sizes), int(np.asarray(problem.num_workers))
    row = (1, *sizes, workers)
    rising = all(low < high for low, high in itertools.pairwise(sizes))
    if not sizes or not rising or any(high % low for low, high in itertools.pairwise(row)):
        raise ValueError(
            f"sizes must ascend, each a divisor of the next and the last of {workers}, got {sizes}"
        )
    return _search(problem, jnp.asarray(tolerance, problem.dtype), sizes, workers)


def _check_plannable(problem: Problem) -> None:
    problem.check_single()
    if concrete(problem.num_workers) is None:
        raise ValueError(
            "repetition needs num_workers to be known before tracing: its divisors are the sizes"
        )
    if problem.has_setup:
        raise ValueError("repetition is planned without setup_cycles and chain_cycles")
    if not problem.convex or not isinstance(problem.iteration, Independent):
        raise ValueError(
            "repetition is planned for workers with a constant start_up and independent times of one law, "
            "not for Rows or Unlike"
        )
    check_finite_mean(problem)


@functools.partial(jax.jit, static_argnames=("sizes", "workers"))
def _search(problem: Problem, tolerance: Array, sizes: tuple[int, ...], workers: int) -> Repetition:
    evaluate = functools.partial(_evaluate, replace(problem, start_up=None), sizes, workers)
    dtype = problem.dtype
    single = 0.0 if dtype == jnp.float64 else _SINGLE
    tolerance = jnp.maximum(tolerance, max(least_gap(problem), single))

    def value_and_slope(share: Array) -> tuple[Array, Array]:
        expected, slope = evaluate(share)
        return expected.value, slope

    first = 1 / np.square(np.asarray(sizes, float))  # less of what takes more work
    start, levels = jnp.asarray(first / first.sum(), dtype), jnp.ones(len(sizes), bool)
    found = cutting_plane(value_and_slope, start, levels, tolerance=tolerance, max_cuts=_MAX_CUTS)
    judged, _ = evaluate(found.share, num_nodes=_JUDGING_NODES)
    start_up = jnp.asarray(0.0 if problem.start_up is None else problem.start_up, dtype)
    unit = problem.scale * problem.total
    value, error = start_up + unit * judged.value, unit * judged.error
    lower = lower_bound_of(start_up + unit * found.lower_bound - error, value)
    met = found.value - found.lower_bound <= tolerance * found.value
    status = jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    status = jnp.where(problem.valid, status, int(Status.INVALID))
    partition = found.share * problem.total
    answer = Repetition(partition, value, error, lower, 1 - lower / value, status, found.num_cuts)
    return jax.tree.map(lambda a: jnp.where(problem.valid, a, jnp.nan) if a.dtype == dtype else a, answer)


def _evaluate(
    problem: Problem, sizes: tuple[int, ...], workers: int, share: Array, **options: Any
) -> tuple[Expectation, Array]:
    """Of the shares, in the unit κ L: the expected runtime, and its slope."""
    iteration = problem.iteration
    assert isinstance(iteration, Independent)
    total, rule = problem.total, OneOfEach(nested_groups(sizes, workers))

    def value_of(share: Array) -> tuple[Array, Expectation]:
        done = jnp.cumsum(jnp.asarray(sizes, share.dtype) * share)
        # In coordinates, as the link takes them.
        load = Load(total * done, sent_load(problem, total * share))
        found = expected_completion(iteration.worker, load, rule, **options)
        return found.value / total, found

    slope, found = jax.grad(value_of, has_aux=True)(share)
    return Expectation(found.value / total, found.error / total), slope
