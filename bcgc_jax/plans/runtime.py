"""Compute the runtime of a step: for given times, in expectation, and its lower bound.

All times have the unit of the distribution's cycle time, multiplied by cycles.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import (
    Numbers,
    check,
    check_shape,
    is_traced,
    meets,
    working_dtype,
)
from bcgc_jax.distributions.order import slowest_first
from bcgc_jax.exact.order_statistics import max_finish_time
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.draws import over_draws
from bcgc_jax.plans.evaluate import NUM_NODES
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import (
    as_partition,
    check_partition,
    exact_tasks,
    levels_of_bound,
    problem_tasks,
)
from bcgc_jax.plans.partitions import check_levels, finish_load
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import CONDITIONS, Problem


class Certificate(NamedTuple):
    """Hold the exact expected runtime of a partition and its certified optimality gap.

    Attributes:
      expected_runtime: E τ̂ of the partition.
      runtime_error: Bound on the absolute quadrature error of `expected_runtime`.
      lower_bound: Lower bound on the expected runtime of every partition.
      relative_gap: 1 - lower_bound / expected_runtime.
    """

    expected_runtime: Array
    runtime_error: Array
    lower_bound: Array
    relative_gap: Array


def block_runtime(
    partition: Numbers,
    cycle_times: Numbers,
    *,
    num_samples: ArrayLike = 1.0,
    cycles: ArrayLike = 1.0,
    setup_cycles: ArrayLike = 0.0,
    chain_cycles: ArrayLike = 0.0,
    start_ups: Numbers = 0.0,
    send_time: ArrayLike = 0.0,
    overlap: bool = False,
) -> Array:
    """Compute the runtime of a step from a partition and the workers' cycle times.

    It is eq. (5) of the paper: τ̂(x, T) = (M b / N) max_n T_(N-n) Σ_{i≤n} (i + 1) x_i.
    Optional costs are added as in `Problem`.

    Args:
      partition: Partition x, `[..., N]`.
      cycle_times: Cycle times T of all workers, `[..., N]`, in any order. Leading axes
        broadcast.
      num_samples: Number of samples in a step, M. Defaults to 1.
      cycles: CPU cycles per coordinate and sample, b. Defaults to 1.
      setup_cycles: CPU cycles per sample before a subset's first coordinate, f.
        Defaults to 0.
      chain_cycles: CPU cycles per sample and coordinate passed in the backward pass, h.
        Defaults to 0.
      start_ups: Start-up times, a number or `[..., N]` in the order of `cycle_times`.
        Defaults to 0.
      send_time: Time to send one coordinate, c. Defaults to 0.
      overlap: Whether workers send while they compute. Must be static. Defaults to
        False.

    Returns:
      The runtime τ̂, `[...]`. It is NaN if traced numbers are out of range.

    Raises:
      ValueError: If the partition does not have one level per worker, or a number that
        is known before tracing is out of range.

    >>> float(
    ...     block_runtime([0.0, 2.0, 2.0, 0.0], [0.1, 0.1, 0.25, 1.0], num_samples=4.0)
    ... )
    1.0
    >>> float(
    ...     block_runtime(
    ...         [1.0, 1.0],
    ...         [1.0, 2.0],
    ...         num_samples=2.0,
    ...         start_ups=[4.0, 0.0],
    ...         send_time=0.5,
    ...     )
    ... )
    7.0
    """
    costs = {
        "setup_cycles": setup_cycles,
        "chain_cycles": chain_cycles,
        "send_time": send_time,
    }
    scale, times = _scale_and_times(
        cycle_times,
        num_samples,
        cycles,
        **costs,
        start_ups=start_ups,
        partition=partition,
    )
    dtype = times.dtype
    workers = times.shape[-1]
    x = jnp.asarray(partition, dtype)
    advice = f"pass one level for each of the {workers} workers in cycle_times"
    check_shape("partition", x, (..., workers), advice)
    setup, chain = (
        jnp.asarray(value, dtype) / cycles for value in (setup_cycles, chain_cycles)
    )
    load = finish_load(x, x > 0, setup, chain)
    zero = [
        isinstance(value, int | float) and value == 0
        for value in (start_ups, send_time)
    ]
    if all(zero) and not overlap:  # N log N operations in place of N²
        return scale * max_finish_time(load, slowest_first(times))
    starts = jnp.asarray(start_ups, dtype)
    if not starts.ndim:
        starts = jnp.full(workers, starts)
    advice = "pass one time for each of cycle_times, or a number for all"
    check_shape("start_ups", starts, (..., workers), advice)
    sent = jnp.asarray(send_time, dtype) * jnp.cumsum(x, axis=-1)
    runtime = _last_delivery(
        load, sent, starts, scale[..., None] * times, bool(overlap)
    )
    # A product makes the derivatives NaN where the runtime is NaN.
    return runtime * jnp.where(jnp.isnan(scale), jnp.nan, 1.0)


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jnp.vectorize, signature="(n),(n),(n),(n)->()", excluded={4})
def _last_delivery(
    work: Array, sent: Array, starts: Array, times: Array, overlap: bool
) -> Array:
    return AnyOf(work.size).runtimes(Load(work, sent), overlap, starts, times)


def coordinate_runtime(
    levels: Numbers,
    cycle_times: Numbers,
    *,
    num_samples: ArrayLike = 1.0,
    cycles: ArrayLike = 1.0,
    unit_costs: Numbers = 1.0,
) -> Array:
    """Compute the runtime of a step from the redundancy level of each coordinate.

    It is eq. (2) of the paper: τ(s, T) = (M b / N) max_l T_(N-s_l) Σ_{i≤l} (s_i + 1).
    By Lemma 1, ascending levels are optimal.

    Args:
      levels: Level s_l of each coordinate, integers from 0 to N - 1, `[..., L]`, in any
        order.
      cycle_times: Cycle times T of all workers, `[..., N]`, in any order.
      num_samples: Number of samples in a step, M. Defaults to 1.
      cycles: CPU cycles per coordinate and sample, b. Defaults to 1.
      unit_costs: Costs of units of unequal size, `[L]`, which multiply s_i + 1
        (footnotes 2 to 4). Defaults to 1.

    Returns:
      The runtime τ, `[...]`. It is NaN if traced numbers are out of range.

    Raises:
      ValueError: If the levels are not integers from 0 to N - 1, or another number that
        is known before tracing is out of range.

    >>> float(coordinate_runtime([1, 1, 2, 2], [0.1, 0.1, 0.25, 1.0], num_samples=4.0))
    1.0
    """
    scale, times = _scale_and_times(
        cycle_times, num_samples, cycles, unit_costs=unit_costs
    )
    s = jnp.asarray(levels)
    costs = jnp.asarray(unit_costs, times.dtype)
    workers = times.shape[-1]
    if not (s.ndim and jnp.issubdtype(s.dtype, jnp.integer)):
        raise ValueError(
            f"levels must be an array of integers, got {s.dtype}{list(s.shape)}"
        )
    check_levels(levels, workers)
    if costs.ndim:
        check_shape(
            "unit_costs",
            costs,
            (..., s.shape[-1]),
            "pass one cost for each of the levels",
        )

    @functools.partial(jnp.vectorize, signature="(l),(l),(n)->()")
    def last(s: Array, spent: Array, times: Array) -> Array:
        level = jnp.where(s < 0, workers, s)  # index N has the fill value, NaN
        awaited = slowest_first(times).at[level].get(mode="fill", fill_value=jnp.nan)
        return jnp.max(awaited * spent)

    return scale * last(s, jnp.cumsum((s + 1) * costs, axis=-1), times)


def _scale_and_times(
    cycle_times: Numbers,
    num_samples: ArrayLike,
    cycles: ArrayLike,
    **parameters: Numbers,
) -> tuple[Array, Array]:
    """Return M b / N and the times.

    Raise ValueError if known numbers are out of range. Traced ones give NaN.
    """
    numbers = {
        "cycle_times": cycle_times,
        "num_samples": num_samples,
        "cycles": cycles,
        **parameters,
    }
    sense: Array | bool = True
    for name, value in numbers.items():
        # A time is infinite if a worker never answers.
        condition = CONDITIONS.get(name, ">= 0")
        finite = name not in ("cycle_times", "start_ups")
        if is_traced(value):
            good = meets(jnp.asarray(value), condition, finite)
            sense &= jnp.all(good, axis=-1) if good.ndim else good
        else:
            check(name, value, condition, finite=finite)
    times = jnp.asarray(cycle_times, working_dtype(*numbers.values()))
    check_shape("cycle_times", times, (..., None), "pass one time for each worker")
    scale = jnp.asarray(num_samples, times.dtype) * cycles / times.shape[-1]
    return jnp.where(sense, scale, jnp.nan), times


def draw_runtimes(
    key: Array, problem: Problem, partition: Numbers | Plan, num_draws: int
) -> Array:
    """Draw Monte Carlo samples of τ, `[num_draws]`, in the unit of the cycle time."""
    load, rule, scale = problem_tasks(problem, partition)
    iteration = iteration_of(problem)
    overlap = bool(problem.overlap)
    if rule.interchangeable:
        return scale * iteration.simulate_max(key, load, num_draws)
    last = functools.partial(rule.runtimes, load, overlap)
    return scale * over_draws(key, problem, last, num_draws, rule.width(load, overlap))


def integrate_runtime(
    problem: Problem, partition: Numbers | Plan, *, num_nodes: int = NUM_NODES
) -> Expectation:
    """Compute the exact expected runtime E τ̂(x, T) with its quadrature error.

    Args:
      problem: The problem.
      partition: Partition x, `[max_workers]`, or a plan.
      num_nodes: Number of nodes of the quadrature rule. Must be static. Defaults to
        128.

    Returns:
      The `Expectation`: the value and a bound on its absolute error.

    Raises:
      ValueError: If the partition or plan does not fit the problem.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(rate=1.0),
    ...     num_workers=3,
    ...     num_coordinates=1,
    ...     num_samples=3.0,
    ... )
    >>> x = jnp.array([1.0, 0.0, 0.0])
    >>> round(float(integrate_runtime(problem, x).value), 4)  # E T_(3) = 1/3 + 1/2 + 1
    1.8333
    """
    check_partition(problem, partition)
    value, error = _integrate(problem, partition, num_nodes)
    if is_traced((problem, partition)):
        error = without_derivative(error, (problem, partition))
    return Expectation(value, error)


@functools.partial(jax.jit, static_argnums=2)
def _integrate(
    problem: Problem, partition: Numbers | Plan, num_nodes: int
) -> Expectation:
    load, rule, scale = exact_tasks(problem, partition)
    result = iteration_of(problem).expected_completion(load, rule, num_nodes=num_nodes)
    return Expectation(scale * result.value, scale * result.error)


def expected_runtime(problem: Problem, partition: Numbers | Plan) -> Array:
    """Compute the exact expected runtime E τ̂(x, T) of a partition or plan (eq. 5).

    The result is twice differentiable in `partition` and in the problem's leaves. It is
    inf if the expectation is infinite, which is derived from the distribution's mean.

    Args:
      problem: The problem.
      partition: Partition x, `[max_workers]`, or a plan.

    Returns:
      The expected runtime, a scalar.

    Raises:
      ValueError: If the partition or plan does not fit the problem.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(rate=1.0),
    ...     num_workers=3,
    ...     num_coordinates=1,
    ...     num_samples=3.0,
    ... )
    >>> round(
    ...     float(
    ...         jax.grad(expected_runtime, 1)(problem, jnp.array([1.0, 0.0, 0.0]))[0]
    ...     ),
    ...     4,
    ... )
    1.8333
    """
    return integrate_runtime(problem, partition).value


def completion_probability(
    problem: Problem, partition: Numbers | Plan, deadline: Numbers
) -> Array:
    """Compute the exact probability that a step ends by a deadline, P(τ̂(x, T) ≤ t).

    The result is twice differentiable.

    Args:
      problem: The problem.
      partition: Partition x, `[max_workers]`, or a plan.
      deadline: Deadline t in the unit of the runtime, of any shape.

    Returns:
      The probability, in the shape of `deadline`.

    Raises:
      ValueError: If the partition or plan does not fit the problem.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(rate=1.0),
    ...     num_workers=3,
    ...     num_coordinates=1,
    ...     num_samples=3.0,
    ... )
    >>> x, deadline = jnp.array([1.0, 0.0, 0.0]), float(jnp.log(2.0))
    >>> round(
    ...     float(completion_probability(problem, x, deadline)), 5
    ... )  # all three below the median
    0.125
    """
    check_partition(problem, partition)
    return _completion_probability(problem, partition, deadline)


@jax.jit
def _completion_probability(
    problem: Problem, partition: Numbers | Plan, deadline: Numbers
) -> Array:
    load, rule, scale = exact_tasks(problem, partition)
    t = jnp.asarray(deadline, load.work.dtype) / scale
    late = iteration_of(problem).exceedance(load, t, rule)
    return jnp.where(jnp.isnan(t), jnp.nan, jnp.clip(1 - late, 0, 1))


def certificate(
    problem: Problem, partition: Numbers, levels: ArrayLike | None = None
) -> Certificate:
    """Compute a lower bound on the expected runtime of every partition.

    Let f(x) = E τ̂(x, T). It is convex, therefore for all partitions x and z

        f(z) ≥ f(x) + ∇f(x)·(z - x) ≥ f(x) - ∇f(x)·x + L min_n ∂f/∂x_n.

    Without setup, ∇f(x)·x = f(x). Only f(x) has derivatives; the derivatives of the
    other results are NaN.

    Args:
      problem: The problem.
      partition: Partition x, `[max_workers]`.
      levels: Mask of the levels that z may use, `[max_workers]`. Defaults to all
        levels. With setup cycles, z may only use levels that x uses, because f is
        convex only for fixed levels.

    Returns:
      The `Certificate`: f(x), its error, the lower bound and the relative gap.

    Raises:
      ValueError: If the partition does not fit the problem.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(rate=1.0, shift=1.0), num_workers=3, num_coordinates=10
    ... )
    >>> c = certificate(problem, jnp.array([10.0, 0.0, 0.0]))
    >>> bool(c.lower_bound <= c.expected_runtime)
    True
    """
    check_partition(problem, partition)
    if levels is not None:
        advice = "pass True for each level that may be used"
        check_shape("levels", jnp.asarray(levels), (problem.max_workers,), advice)
    return _certify(problem, partition, levels)


@jax.jit
def _certify(
    problem: Problem, partition: Numbers, levels: ArrayLike | None
) -> Certificate:
    x = as_partition(problem, partition)
    # This rule is finer than the default. If nearly all coordinates are at one level,
    # the derivatives for the other levels need more nodes.
    num_nodes = NUM_NODES * 3 // 2
    value, error, slope = value_and_slope(problem, x, num_nodes)
    allowed = levels_of_bound(problem, x) & (
        True if levels is None else jnp.asarray(levels)
    )
    # Without setup, this constant is 0 up to rounding.
    constant = 0 if problem.bare else value - jnp.sum(slope * x)
    lower = constant + problem.total.astype(x.dtype) * jnp.min(
        jnp.where(allowed, slope, jnp.inf)
    )
    # The error of the value also affects its derivatives.
    lower = lower_bound_of(lower - error, value)
    return Certificate(
        value, *without_derivative((error, lower, 1 - lower / value), (problem, x))
    )


def value_and_slope(
    problem: Problem, x: Array, num_nodes: int = NUM_NODES
) -> tuple[Array, Array, Array]:
    """Return f(x), its error and its gradient. Only f(x) has derivatives."""

    def value_of(x: Array) -> tuple[Array, Expectation]:
        runtime = _integrate(problem, x, num_nodes)
        return runtime.value, runtime

    slope, (value, error) = jax.grad(value_of, has_aux=True)(x)
    return value, error, jax.lax.stop_gradient(slope)


def with_total(problem: Problem, x: Array) -> Array:
    """Return x. In its derivative, the fractions of the total stay constant."""
    return x * (problem.total / jax.lax.stop_gradient(problem.total)).astype(x.dtype)


def lower_bound_of(bound: Array, value: Array) -> Array:
    """Clip the bound to [0, value]. It is 0 if it is not finite."""
    return jnp.where(jnp.isfinite(bound), jnp.clip(bound, 0, value), 0)
