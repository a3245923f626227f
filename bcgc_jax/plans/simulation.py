"""Estimate runtimes by Monte Carlo: of independent steps and of consecutive steps.

In consecutive steps, each worker first completes the pass that it has begun (`passes`).
The samples are chains of consecutive steps. Chains are independent but the steps of a
chain are not, so the standard error comes from the means of the chains.
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

# Number of steps at the start of a chain that are discarded (burn-in). For ten workers
# with Pareto times (shape 1.2), the median of steps 16 to 31 was 0.15 % below the
# median of steps from 128 on. For steps 32 to 63, the difference was 0.05 %. The
# paper's distribution needs only two steps.
_FORGOTTEN = 32
# Maximum number of chains. With more chains, each has fewer steps, so a larger fraction
# of the steps is discarded.
_CHAINS = 256
# Maximum number of steps times workers times tasks times chains for one row of a table.
# It takes 0.2 s.
_ROW = 2**22
# Maximum number of chains for a row. Tables print the standard error of their mean.
_ROW_CHAINS = 32


class RuntimeEstimate(NamedTuple):
    """Hold Monte Carlo means and their standard errors.

    Attributes:
      mean: Mean of steps in which all workers are free at the beginning.
      standard_error: Standard error of `mean`.
      chained: Mean of consecutive steps, in which each worker first completes the pass
        that it has begun. None if it was not requested.
      chained_error: Standard error of `chained`.
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
    """Estimate the expected runtime E τ̂(x, T) of a partition or plan by Monte Carlo.

    Args:
      key: PRNG key.
      problem: The problem.
      partition: Partition x, `[max_workers]`, or a plan.
      num_draws: Number of Monte Carlo samples. Must be static.
      unit: Work that a worker cannot interrupt: a pass over a data "subset", over one
        of C microbatches of it ("chunk:C"), or a whole "block". Must be static.
        Defaults to "subset". With None, only independent steps are simulated, which is
        faster.

    Returns:
      The `RuntimeEstimate`. Only its `mean` has derivatives. For work sharing, they are
      NaN because the runtime of a sample is not continuous.

    Raises:
      ValueError: If an argument is out of range, or the partition or plan does not fit
        the problem.

    In a chain, heterogeneous workers keep their positions.

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
    ... )  # no worker is busy when the last one ends
    True
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
    # If no worker is ever busy at the end of a step, both means are equal.
    in_chain = mean + jnp.mean(chained - fresh), chained_error
    return RuntimeEstimate(mean, *without_derivative((error, *in_chain), of))


def simulate_completion(
    key: Array,
    problem: Problem,
    partition: Numbers | Plan,
    deadline: ArrayLike,
    num_draws: int,
) -> RuntimeEstimate:
    """Estimate the probability of meeting a deadline, P(τ ≤ t), by Monte Carlo.

    In contrast to `completion_probability`, it accepts every plan.

    Args:
      key: PRNG key.
      problem: The problem.
      partition: Partition x, `[max_workers]`, or a plan.
      deadline: Deadline t, in the unit of the runtime.
      num_draws: Number of Monte Carlo samples. Must be static.

    Returns:
      The `RuntimeEstimate` of the probability. It has no derivatives.

    Raises:
      ValueError: If an argument is out of range, or the partition or plan does not fit
        the problem.

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
    # Each sample is an indicator, whose derivative is 0 or undefined, although the
    # probability has a derivative.
    return RuntimeEstimate(*without_derivative(in_time, (problem, partition, deadline)))


def _mean(draws: Array) -> tuple[Array, Array]:
    """Return the mean and its standard error."""
    return jnp.mean(draws), jnp.std(draws) / jnp.sqrt(max(draws.size - 1, 1))


def _chains(
    key: Array, problem: Problem, partition: Numbers | Plan, num_draws: int, unit: str
) -> tuple[Array, Array]:
    """Return runtimes of independent and of consecutive steps, `[steps, chains]` each.

    Both use the same samples.
    """
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
    """Return the mean additional time of a step in a chain, and its standard error.

    All numbers must be known. NumPy computes the result because the plans of a table
    have many shapes, which would each need a compilation. All plans use the same
    samples. The result is None if the computation would be too large.
    """
    workers = int(np.asarray(problem.num_workers))
    plan = partition
    if not isinstance(plan, Plan):
        plan = _used_levels(np.asarray(plan)[:workers])
    steps = 3 * _FORGOTTEN
    chains = min(_ROW // (steps * workers * np.size(plan.block)), _ROW_CHAINS)
    if chains < 4:
        return None
    # All rows share one program. With this kind of key, it compiles in half the time.
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
    """Compute a plan's runtimes, `[S]`, from cycle times, `[S, N]`, with NumPy.

    All workers begin at time 0.
    """
    last, _ = _known_passes(problem, plan, times.shape[-1])
    return float(problem.scale) * last(np.zeros_like(times), times)


def steps_in_a_row(
    problem: Problem, plan: Plan, starts: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute τ of independent and of consecutive steps, `[S, ...]` each, with NumPy.

    Start-up and cycle times of all N workers, `[S, ..., N]`, and τ are in units of κ.
    At the end of a step, each worker first completes its chunk, as the worker processes
    do. The result is None if no worker is ever busy when a step ends.
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
    """Return the workers' passes, and a function that computes τ, `[...]`.

    Its arguments are when workers begin, and their cycle times, `[..., N]` each.
    """
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
    """Make the plan of a partition without its empty levels."""
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
    """Draw a permutation of the workers per chain, `[chains, max_workers]`.

    Padding is last.
    """
    shape = chains, problem.max_workers
    exists = np.arange(problem.max_workers) < jnp.asarray(problem.num_workers)
    return jnp.argsort(jnp.where(exists, jax.random.uniform(key, shape), 2.0), axis=1)


def draw_in_places(
    key: Array, problem: Problem, places: Array, steps: int
) -> tuple[Array, Array]:
    """Draw start-up (in κ) and cycle times, `[steps, chains, max_workers]` each.

    If each worker has a distribution, workers are at their `places`. Otherwise the
    workers are interchangeable, and drawn in any order.
    """
    iteration = iteration_of(problem)
    shape = (steps, *places.shape)
    if not iteration.law.members():
        starts, times = draw_workers(key, problem, steps * len(places))
        return starts.reshape(shape), times.reshape(shape)
    times = iteration.law.sample(key, shape).astype(problem.dtype)
    start = iteration.worker.start.astype(problem.dtype)
    return jnp.full(shape, start), jnp.take_along_axis(times, places[None], axis=2)
