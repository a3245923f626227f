"""Runtimes by draws: of a step that begins fresh, and of steps one after the other.

In a chain each worker first ends the pass that it has begun (`passes`). Chains are
independent, and the steps of one are not, so the standard error is that of the chains'
means. A chain begins fresh, and forgets 32 steps: with the paper's times two would do,
with heavy tails it takes tens.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import Numbers, check_key, check_whole
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.draws import draw_workers
from bcgc_jax.plans.iterations import iteration_of, just_after
from bcgc_jax.plans.loads import check_partition, passes_of, problem_tasks
from bcgc_jax.plans.passes import (
    UNIT,
    Passes,
    chunks_that_pay,
    in_a_row,
    parts_of,
)
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.runtime import draw_runtimes
from bcgc_jax.plans.worker import AT_A_TIME
from bcgc_jax.problem import Problem

# Steps that a chain forgets. Of ten workers with Pareto times (shape 1.2) the median of
# steps 16 to 31 was 0.15 % below that of steps from 128 on, of steps 32 to 63 0.05 %.
_FORGOTTEN = 32
# Chains: of many draws each has many steps, and few are forgotten.
_CHAINS = 256
# Numbers in a row of a table, of all its steps, workers and tasks: two tenths of a
# second.
_ROW = 2**22
# The most chains of a row: the error of their mean stands beside it.
_ROW_CHAINS = 32


class RuntimeEstimate(NamedTuple):
    """Monte Carlo means and their standard errors.

    `mean` is of a step in which all workers begin fresh; `chained` of steps one after
    the other, where each worker first ends the pass that it has begun; None if nobody
    asked for it.
    """

    mean: Array
    standard_error: Array
    chained: Array | None = None
    chained_error: Array | None = None


def simulate_runtime(
    key: Array,
    problem: Problem,
    partition: Numbers | Plan,
    num_draws: int,
    *,
    unit: str | None = UNIT,
) -> RuntimeEstimate:
    r"""Monte Carlo estimates of E τ̂(x,T) from `num_draws` (static) draws, with
    standard errors.

    `unit` (static) is what a worker does in one piece, for the mean of steps one after
    the other: a pass over a "subset"; over a microbatch, "chunk:C" for C a subset, as
    on processes; or a whole "block". None for the mean of fresh steps alone, which is
    faster. Workers that are unlike keep their places in a chain.

    >>> from bcgc_jax.distributions import Uniform
    >>> problem = Problem(
    ...     Uniform(1.0, 2.0), num_workers=2, num_coordinates=1, num_samples=2.0
    ... )
    >>> estimate = simulate_runtime(jax.random.key(0), problem, [1.0, 0.0], 10_000)
    >>> bool(
    ...     abs(estimate.mean - 5 / 3) < 4 * estimate.standard_error
    ... )  # E max of two uniforms
    True
    >>> bool(
    ...     estimate.chained == estimate.mean
    ... )  # nobody has more to do when the last one ends
    True

    Of these `mean` alone has derivatives, and they are NaN for work sharing, whose
    draws jump.
    """
    check_key(key)
    check_whole("num_draws", num_draws, 1)
    check_partition(problem, partition)
    if unit is not None:
        parts_of(unit)
    return _simulate(key, problem, partition, num_draws, unit)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _simulate(
    key: Array,
    problem: Problem,
    partition: Numbers | Plan,
    num_draws: int,
    unit: str | None,
) -> RuntimeEstimate:
    of = problem, partition
    if unit is None:
        mean, error = _mean(draw_runtimes(key, problem, partition, num_draws))
        return RuntimeEstimate(mean, without_derivative(error, of))
    fresh, chained = _chains(key, problem, partition, num_draws, unit)
    mean, error = _mean(fresh.ravel())
    _, chained_error = _mean(jnp.mean(chained, axis=0))
    # Where nobody is ever busy the two means are the same number.
    in_chain = mean + jnp.mean(chained - fresh), chained_error
    return RuntimeEstimate(mean, *without_derivative((error, *in_chain), of))


def simulate_completion(
    key: Array,
    problem: Problem,
    partition: Numbers | Plan,
    deadline: ArrayLike,
    num_draws: int,
) -> RuntimeEstimate:
    r"""P(τ ≤ deadline), for every plan, as a share of `num_draws` (static) draws.

    Its standard error is given beside it. Neither has derivatives.

    >>> from bcgc_jax.distributions import Uniform
    >>> problem = Problem(
    ...     Uniform(1.0, 2.0), num_workers=2, num_coordinates=1, num_samples=2.0
    ... )
    >>> estimate = simulate_completion(
    ...     jax.random.key(0), problem, [1.0, 0.0], 1.5, 10_000
    ... )
    >>> bool(abs(estimate.mean - 0.25) < 4 * estimate.standard_error)
    True
    """
    check_key(key)
    check_whole("num_draws", num_draws, 1)
    check_partition(problem, partition)
    return _simulate_completion(key, problem, partition, deadline, num_draws)


@functools.partial(jax.jit, static_argnums=4)
def _simulate_completion(
    key: Array,
    problem: Problem,
    partition: Numbers | Plan,
    deadline: ArrayLike,
    num_draws: int,
) -> RuntimeEstimate:
    tau = draw_runtimes(key, problem, partition, num_draws)
    in_time = _mean(tau <= just_after(jnp.asarray(deadline, tau.dtype)))
    # A draw is in time or not: that has no slope, and their mean has one.
    return RuntimeEstimate(*without_derivative(in_time, (problem, partition, deadline)))


def _mean(draws: Array) -> tuple[Array, Array]:
    """And its standard error."""
    return jnp.mean(draws), jnp.std(draws) / jnp.sqrt(max(draws.size - 1, 1))


def _chains(
    key: Array, problem: Problem, partition: Numbers | Plan, num_draws: int, unit: str
) -> tuple[Array, Array]:
    """Runtimes, `[steps, chains]`, of fresh steps, and of the same draws in chains."""
    load, rule, scale = problem_tasks(problem, partition)
    passes = passes_of(problem, partition)
    overlap = bool(problem.overlap)
    at_once = AT_A_TIME // (problem.max_workers * rule.width(load, overlap))
    chains = min(num_draws, max(num_draws // _FORGOTTEN, 8), max(at_once, 8), _CHAINS)
    placing, drawing = jax.random.split(key)
    places = places_of(placing, problem, chains)

    def step(late: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
        starts, times = (a[0] for a in draw_in_places(key, problem, places, 1))
        fresh = rule.runtimes(load, overlap, starts, times)
        if passes is None:
            return late, (fresh, fresh)
        end = rule.runtimes(load, overlap, late + starts, times)
        return passes.of(unit).overrun(late, starts, times, end), (fresh, end)

    steps = _FORGOTTEN + math.ceil(num_draws / chains)
    late = jnp.zeros(places.shape, scale.dtype)
    _, (fresh, chained) = jax.lax.scan(step, late, jax.random.split(drawing, steps))
    return scale * fresh[_FORGOTTEN:], scale * chained[_FORGOTTEN:]


def added_in_a_row(
    problem: Problem, partition: Numbers | Plan
) -> tuple[float, float] | None:
    """What a step takes longer in a chain, and its standard error; None if that is too
    much work.

    Of numbers that are known, by NumPy: the plans of a table have many shapes, and
    nothing is compiled for them. The draws are the same for all plans.
    """
    workers = int(np.asarray(problem.num_workers))
    plan = partition
    if not isinstance(plan, Plan):
        plan = _used_levels(np.asarray(plan)[:workers])
    steps = 3 * _FORGOTTEN
    chains = min(_ROW // (steps * workers * np.size(plan.block)), _ROW_CHAINS)
    if chains < 4:
        return None
    # One program for all rows; with this key it takes half as long to compile.
    key = jax.random.key(0, impl="unsafe_rbg")
    drawn = _steps_in_places(key, problem, steps, _ROW_CHAINS)
    starts, times = (np.asarray(a, float)[:, :chains, :workers] for a in drawn)
    runtimes = steps_in_a_row(problem, plan, starts, times)
    if runtimes is None:
        return 0.0, 0.0
    fresh, chained = (np.mean(tau[_FORGOTTEN:], axis=0) for tau in runtimes)
    added = float(problem.scale) * (chained - fresh)
    return float(added.mean()), float(added.std() / np.sqrt(chains - 1))


def fresh_steps(problem: Problem, plan: Plan, times: np.ndarray) -> np.ndarray:
    """A plan's runtimes, `[S]`, in steps of these cycle times, `[S, N]`, by NumPy.

    All workers begin at once.
    """
    last, _ = _known_passes(problem, plan, times.shape[-1])
    return float(problem.scale) * last(np.zeros_like(times), times)


def steps_in_a_row(
    problem: Problem, plan: Plan, starts: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """τ of fresh steps and of a chain, `[S, ...]` each, from start-ups and times,
    `[S, ..., N]`.

    In units of κ, of all N workers of the problem, by NumPy. Each worker ends a chunk
    first, as on processes. None where nobody is busy when a step ends.
    """
    last, passes = _known_passes(problem, plan, times.shape[-1])
    if passes is None:
        return None
    chunks = chunks_that_pay(float(np.asarray(problem.num_samples)) / times.shape[-1])
    return last(starts, times), in_a_row(
        last, passes.of(f"chunk:{chunks}"), starts, times
    )


def _known_passes(
    problem: Problem, plan: Plan, workers: int
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Passes | None]:
    """τ, `[...]`, of workers that begin and work so, `[..., N]`, and their passes."""
    if plan.is_partition:
        plan = _used_levels(np.asarray(plan.sizes)[:workers])
    passes = passes_of(problem, plan)
    rule = plan.completion
    subset = float(problem.pass_load)

    def last(begin: np.ndarray, times: np.ndarray) -> np.ndarray:
        assert rule is not None
        return rule.ended(subset, passes, np.asarray(plan.block), begin, times)

    return last, passes


def _used_levels(sizes: np.ndarray) -> Plan:
    """A partition without its empty levels, of which there are many."""
    level = np.flatnonzero(sizes > 0)
    return Plan(
        sizes=sizes[level],  # type: ignore[arg-type]
        block=np.arange(level.size),
        data=level + 1,
        share=np.ones(level.size),
        completion=AnyOf(sizes.size, survives=level),
    )


@functools.partial(jax.jit, static_argnames=("steps", "chains"))
def _steps_in_places(
    key: Array, problem: Problem, steps: int, chains: int
) -> tuple[Array, Array]:
    placing, drawing = jax.random.split(key)
    return draw_in_places(drawing, problem, places_of(placing, problem, chains), steps)


def places_of(key: Array, problem: Problem, chains: int) -> Array:
    """Who stands where in each chain, `[chains, max_workers]`; absent ones last."""
    shape = chains, problem.max_workers
    exists = np.arange(problem.max_workers) < jnp.asarray(problem.num_workers)
    return jnp.argsort(jnp.where(exists, jax.random.uniform(key, shape), 2.0), axis=1)


def draw_in_places(
    key: Array, problem: Problem, places: Array, steps: int
) -> tuple[Array, Array]:
    """Start-ups (units of κ) and cycle times of steps, `[steps, chains, max_workers]`
    each.

    Of workers that are known one by one; others are alike, and drawn in any order.
    """
    iteration = iteration_of(problem)
    shape = (steps, *places.shape)
    if not iteration.law.members():
        starts, times = draw_workers(key, problem, steps * len(places))
        return starts.reshape(shape), times.reshape(shape)
    times = iteration.law.sample(key, shape).astype(problem.dtype)
    start = iteration.worker.start.astype(problem.dtype)
    return jnp.full(shape, start), jnp.take_along_axis(times, places[None], axis=2)
