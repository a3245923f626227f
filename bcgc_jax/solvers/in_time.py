r"""The fastest of the plans that meet a deadline often enough: minimise E τ̂(x,T) over P(τ̂(x,T) ≤ t) ≥ p.

An augmented Lagrangian (Powell 1969; Hestenes 1969) in log P(τ̂ > t), its minima by spectral projected
gradients. It begins between the plan of least E τ̂ and the one of most P, where P = p, and its answer is moved
towards the latter as far as P ≥ p takes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.partitions import project_partition
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import expected_runtime, load_of
from bcgc_jax.solvers.completion import CompletionResult
from bcgc_jax.solvers.spectral import spectral_projected_gradient

# Minima of the Lagrangian, one after the other; the weight of the square in it, in shares of E τ̂ for one unit
# of log P(τ̂ > t), with 2 and a multiplier that is too large at first 7e-5 of E τ̂ were lost; halvings of what
# is between two plans.
_ROUNDS, _WEIGHT, _HALVINGS = 8, 20.0, 50


@functools.partial(jax.jit, static_argnames="max_steps")
def fastest_in_time(
    problem: Problem,
    deadline: ArrayLike,
    min_completion: ArrayLike,
    fastest: Array,
    surest: CompletionResult,
    *,
    tolerance: ArrayLike = 1e-6,
    max_steps: int = 2000,
) -> CompletionResult:
    r"""argmin E τ̂(x,T) over partitions with P(τ̂(x,T) ≤ deadline) ≥ min_completion; P is that of the answer.

    `fastest` is the partition of least E τ̂, `surest` that of most P. INFEASIBLE where its P is too low.
    """
    workers, total, iteration = problem.num_workers, problem.total, problem.iteration
    t = jnp.asarray(deadline, problem.dtype) / problem.scale
    most = 1 - jnp.asarray(min_completion, problem.dtype)
    tiny, least_gain = (float(a) for a in (jnp.finfo(problem.dtype).tiny, 8 * jnp.finfo(problem.dtype).eps))
    steps_a_round = max(max_steps // _ROUNDS, 1)

    def late(share: Array) -> Array:
        return iteration.exceedance(load_of(problem, share * total), t)

    def excess(share: Array) -> Array:
        return jnp.log(jnp.maximum(late(share), tiny)) - jnp.log(most)

    def project(share: Array) -> Array:
        return project_partition(share, 1.0, workers)

    sure, fast = surest.partition / total, fastest / total
    first = _towards(lambda share: late(share) <= most, fast, sure)
    unit = expected_runtime(problem, first * total)

    def round_(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        share, multiplier = state

        def lagrangian(share: Array) -> Array:
            pressed = jnp.maximum(multiplier + _WEIGHT * excess(share), 0)
            return expected_runtime(problem, share * total) / unit + pressed**2 / (2 * _WEIGHT)

        found = spectral_projected_gradient(
            lagrangian, project, share, tolerance=tolerance, max_steps=steps_a_round, least_gain=least_gain
        )
        multiplier = jnp.maximum(multiplier + _WEIGHT * excess(found.point), 0)
        return (found.point, multiplier), (found.residual, found.num_steps)

    begin = (first, jnp.zeros((), first.dtype))
    (share, _), (residuals, steps) = jax.lax.scan(round_, begin, None, length=_ROUNDS)
    share = _towards(lambda share: late(share) <= most, share, sure)
    in_time = late(fast) <= most
    share = jnp.where(in_time, fast, share)
    ended = (residuals[-1] <= tolerance) | (steps[-1] < steps_a_round)  # or all that rounding leaves
    status = jnp.where(in_time | ended, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    status = jnp.where(late(sure) <= most, status, int(Status.INFEASIBLE))
    probability = jnp.clip(1 - late(share), 0, 1)
    return surest._replace(
        partition=share * total, probability=probability, status=status, num_steps=jnp.sum(steps)
    )


def _towards(good: Callable[[Array], Array], begin: Array, end: Array) -> Array:
    """The point nearest to `begin`, on the way to `end`, that is `good`; `end` if none is."""

    def half(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        ok = good(begin + middle * (end - begin))
        return jnp.where(ok, ends[0], middle), jnp.where(ok, middle, ends[1])

    one = jnp.ones((), begin.dtype)
    _, way = jax.lax.fori_loop(0, _HALVINGS, half, (0 * one, one))
    return begin + way * (end - begin)
