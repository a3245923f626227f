r"""The runtime of an iteration: of one draw, on average; and how good it can get.

All times carry the unit of the distribution's cycle time, multiplied by cycles.
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
    """Exact expected runtime of a partition and how far from the best one it can be."""

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
    r"""τ̂(x,T) = (M b / N) max_n T_(N-n) Σ_{i≤n} (i+1) x_i, eq. (5), `[...]`.

    `partition` is x, `[..., N]`; `cycle_times`, `[..., N]`, come in any order; leading
    axes broadcast. The other numbers are those of `Problem`, and `start_ups`, a number
    or `[..., N]`, are those of the workers in the order of `cycle_times`; `overlap` is
    static.

    Raises ValueError for a partition with another number of levels than there are
    workers, and for numbers that make no sense, such as negative entries and times; NaN
    where these are traced.

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
    advice = f"one level for each of the {workers} workers in cycle_times"
    check_shape("partition", x, (..., workers), advice)
    setup, chain = (
        jnp.asarray(value, dtype) / cycles for value in (setup_cycles, chain_cycles)
    )
    load = finish_load(x, x > 0, setup, chain)
    zero = [
        isinstance(value, int | float) and value == 0
        for value in (start_ups, send_time)
    ]
    if all(zero) and not overlap:  # N log N operations, not N²
        return scale * max_finish_time(load, slowest_first(times))
    starts = jnp.asarray(start_ups, dtype)
    if not starts.ndim:
        starts = jnp.full(workers, starts)
    advice = "one for each of cycle_times, or a number for all"
    check_shape("start_ups", starts, (..., workers), advice)
    sent = jnp.asarray(send_time, dtype) * jnp.cumsum(x, axis=-1)
    runtime = _last_delivery(
        load, sent, starts, scale[..., None] * times, bool(overlap)
    )
    # A product: where the runtime is NaN its derivatives are.
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
    r"""τ(s,T) = (M b / N) max_l T_(N-s_l) Σ_{i≤l} (s_i+1), eq. (2), `[...]`.

    `levels` are s, `[..., L]`; they and `cycle_times`, `[..., N]`, come in any order
    (Lemma 1: ascending levels are best). Units of unequal cost, `[L]`, count (s_i+1)
    times theirs (footnotes 2-4).

    Raises ValueError for levels that are not whole numbers from 0 to N-1, and for other
    numbers that make no sense; NaN where these are traced.

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
            f"levels must be whole numbers, a row of them, got {s.dtype}{list(s.shape)}"
        )
    check_levels(levels, workers)
    if costs.ndim:
        check_shape(
            "unit_costs", costs, (..., s.shape[-1]), "one cost for each of the levels"
        )

    @functools.partial(jnp.vectorize, signature="(l),(l),(n)->()")
    def last(s: Array, spent: Array, times: Array) -> Array:
        level = jnp.where(s < 0, workers, s)  # beyond the last there is NaN
        awaited = slowest_first(times).at[level].get(mode="fill", fill_value=jnp.nan)
        return jnp.max(awaited * spent)

    return scale * last(s, jnp.cumsum((s + 1) * costs, axis=-1), times)


def _scale_and_times(
    cycle_times: Numbers,
    num_samples: ArrayLike,
    cycles: ArrayLike,
    **parameters: Numbers,
) -> tuple[Array, Array]:
    """M b / N and the times.

    ValueError for known numbers that make no sense, NaN for traced ones.
    """
    numbers = {
        "cycle_times": cycle_times,
        "num_samples": num_samples,
        "cycles": cycles,
        **parameters,
    }
    sense: Array | bool = True
    for name, value in numbers.items():
        # A worker may never answer: inf.
        condition = CONDITIONS.get(name, ">= 0")
        finite = name not in ("cycle_times", "start_ups")
        if is_traced(value):
            good = meets(jnp.asarray(value), condition, finite)
            sense &= jnp.all(good, axis=-1) if good.ndim else good
        else:
            check(name, value, condition, finite=finite)
    times = jnp.asarray(cycle_times, working_dtype(*numbers.values()))
    check_shape("cycle_times", times, (..., None), "one for each worker")
    scale = jnp.asarray(num_samples, times.dtype) * cycles / times.shape[-1]
    return jnp.where(sense, scale, jnp.nan), times


def draw_runtimes(
    key: Array, problem: Problem, partition: Numbers | Plan, num_draws: int
) -> Array:
    """Draws of τ, in the unit of the cycle time, `[num_draws]`."""
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
    r"""Exact E τ̂(x,T) with an estimate of its quadrature error, `(value, error)`, both
    absolute.

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
    r"""Exact E τ̂(x,T), eq. (5), a scalar.

    It is differentiable in `partition` and in the problem's leaves, twice. The
    distribution's moments must exist: an infinite expectation comes out as inf where
    its mean says so.

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
    r"""P(τ̂(x,T) ≤ deadline), exact, in the shape of `deadline`; differentiable, twice.

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
    r"""f(x) = E τ̂(x,T), and a lower bound on f(z) for every partition z.

    f is convex, so f(z) ≥ f(x) + ∇f(x)·(z - x) ≥ f - ∇f·x + L min_n ∂f/∂x_n, at every
    x; without setup ∇f·x = f. `levels`, bool `[max_workers]`, are those that z may use:
    by default all, with setup cycles those that x uses, for f is affine only as long as
    these stay the same. Of its numbers only f has derivatives, others' are NaN.

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
        advice = "True for each level that may be used"
        check_shape("levels", jnp.asarray(levels), (problem.max_workers,), advice)
    return _certify(problem, partition, levels)


@jax.jit
def _certify(
    problem: Problem, partition: Numbers, levels: ArrayLike | None
) -> Certificate:
    x = as_partition(problem, partition)
    # Finer than usual: where nearly everything sits at one level, the slopes of the
    # others need it.
    num_nodes = NUM_NODES * 3 // 2
    value, error, slope = value_and_slope(problem, x, num_nodes)
    allowed = levels_of_bound(problem, x) & (
        True if levels is None else jnp.asarray(levels)
    )
    # 0 where nothing is paid for setup, up to rounding.
    constant = 0 if problem.bare else value - jnp.sum(slope * x)
    lower = constant + problem.total.astype(x.dtype) * jnp.min(
        jnp.where(allowed, slope, jnp.inf)
    )
    # The slopes share the error of the value.
    lower = lower_bound_of(lower - error, value)
    return Certificate(
        value, *without_derivative((error, lower, 1 - lower / value), (problem, x))
    )


def value_and_slope(
    problem: Problem, x: Array, num_nodes: int = NUM_NODES
) -> tuple[Array, Array, Array]:
    """f(x), its error and its slope; only the value can be differentiated."""

    def value_of(x: Array) -> tuple[Array, Expectation]:
        runtime = _integrate(problem, x, num_nodes)
        return runtime.value, runtime

    slope, (value, error) = jax.grad(value_of, has_aux=True)(x)
    return value, error, jax.lax.stop_gradient(slope)


def with_total(problem: Problem, x: Array) -> Array:
    """x, whose shares of the total stay what they are where that has a derivative."""
    return x * (problem.total / jax.lax.stop_gradient(problem.total)).astype(x.dtype)


def lower_bound_of(bound: Array, value: Array) -> Array:
    """The bound, but from 0 to a runtime that is known."""
    return jnp.where(jnp.isfinite(bound), jnp.clip(bound, 0, value), 0)
