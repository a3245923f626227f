r"""Partitions that meet a deadline: maximise P(τ̂(x,T) ≤ t).

The problem is not convex. Spectral projected gradients (Birgin, Martínez & Raydan 2000)
minimise the log-odds of being late from several starts. If the distribution has atoms,
then P is a step function of x. In that case the search plans for a smoothed
distribution. Its atoms (or, for rows, runtimes) are spread by a factor e^±h with h → 0.
Each plan that the search reaches is evaluated with the true P.

The chance-constrained problem is min E τ̂(x,T) over P(τ̂(x,T) ≤ t) ≥ p. An augmented
Lagrangian (Powell 1969; Hestenes 1969) in log P(τ̂ > t) solves it. The search starts
where P = p, between the plan of least E τ̂ and the plan of largest P. Its result is
moved towards the latter plan until P ≥ p.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import with_slopes, without_derivative
from bcgc_jax._pytree import pytree_dataclass, replace, static_field
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import load_of
from bcgc_jax.plans.runtime import completion_probability, expected_runtime, with_total
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers import sample_average
from bcgc_jax.solvers.closed_form import partition_for_times
from bcgc_jax.solvers.descent import projected_descent
from bcgc_jax.solvers.method import SETUP, Method
from bcgc_jax.solvers.optimum import Optimal, optimum
from bcgc_jax.solvers.search import Optimum, local_optimum

# Typical times at which searches start, in standard deviations. With `STARTS`, 98 % of
# 600 problems reach the best of eleven starts (five families, N = 3 to 24, deadlines of
# 0.45 to 3 expected runtimes). The largest loss of P is 4e-4. With x^(t), x^(f) and the
# optimum in place of these five, it is 3e-3. In 312 other problems, 0 σ without the
# others gives the same P to 1e-13, except for two problems, which differ by 4e-6. With
# only -1.5 and -1 σ, or only -1 to 1 σ, one problem loses 3e-5.
_DEVIATIONS = (-1.5, -1.0, 0.0, 1.0, 2.0)
STARTS = (
    *(f"typical times {sigma:+g} σ" for sigma in _DEVIATIONS),
    "harmonic",
    "single level",
)

# Share of L at which the derivative of an empty level is taken, because at 0 it may be
# infinite, for example with heavy tails. Of 84 problems (Pareto, shapes 0.4 to 2.2,
# N = 3, 5, 8), one ends at the step limit, and P is at most 2e-6 below the best. With
# 1e-8 it is five problems and 1e-4, at 0 it is 39 problems and 2e-3. Half or twice this
# value changes none of 72 problems by 1e-15; 100 times changes one by 2e-5.
_BESIDE = 1e-4
# A search ends when a projected step moves no entry by more than this, by bytes of the
# dtype. In float32, 1e-6 was not met in 2000 steps, and 3e-6 was met in 11 steps.
_TOLERANCE = {8: 1e-6, 4: 1e-5}
# In float32, derivatives do not resolve this tolerance for N ≥ 20, because a step of
# 4e-5 remains at the optimum. So a search also ends after this number of steps without
# gain. Then P of 16 problems had errors from 2e-8 to 4e-6 (N = 20, 50). With 25 steps,
# P of 48 problems is up to 5e-6 lower. With 100, it is up to 1e-6 higher, for 1.4 times
# as many steps.
_PATIENCE = 50


def _search(
    function: Callable[[Array], Array], levels: Array, start: Array, **options: Any
) -> Optimum:
    tolerance = _TOLERANCE[start.dtype.itemsize]
    return projected_descent(function, levels, start, tolerance=tolerance, **options)


@pytree_dataclass
class Deadline(Method):
    r"""Maximise the probability that a step finishes by a deadline, over partitions.

    maximise P(τ̂(x,T) ≤ deadline) over x ≥ 0 with Σ_n x_n = L.

    The result is the best local optimum from several starts. For an empirical
    distribution of few times, the search plans for a smoothed distribution, and it
    often misses the best plan. In 56 of 60 problems (N = 6 and 8, 9 to 17 atoms) a
    better plan existed. Its probability was at most 0.23 higher.

    With `min_completion`, the problem is min E τ̂(x,T) over P(τ̂(x,T) ≤ deadline) ≥
    min_completion. The result is a local optimum. It is INFEASIBLE if the search does
    not reach this probability.

    Args:
      deadline: The deadline, in the unit of the runtime. In a `Sweep`, None means the
        deadline of the cell.
      max_steps: Maximum number of steps from each start. Defaults to 2000. Must be
        static.
      min_completion: Smallest allowed probability. The distribution must have a finite
        mean and no atoms. Defaults to None, which maximises the probability.

    Raises:
      ValueError: If `deadline` ≤ 0, or 0 < `min_completion` < 1 does not hold. `solve`
        raises it if `deadline` is missing, or `min_completion` is not supported.

    >>> Deadline(8e7, min_completion=0.99).name
    'deadline'
    """

    deadline: ArrayLike | None = None
    max_steps: int = static_field(default=2000)
    min_completion: ArrayLike | None = None

    name = "deadline"
    conditions = (
        ("deadline", "> 0"),
        ("min_completion", "> 0"),
        ("min_completion", "< 1"),
    )
    counts = (("max_steps", 1),)
    refuses = SETUP
    on_steps = False

    @property
    def lacks_deadline(self) -> bool:  # type: ignore[override]
        return self.deadline is None

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.min_completion is not None and iteration_of(problem).stepped:
            raise ValueError(
                "`min_completion` requires a distribution without atoms. Fit a smooth "
                "distribution to measured times."
            )

    def needs_mean(self, problem: Problem) -> bool:
        return self.min_completion is not None

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        if self.deadline is None:
            raise ValueError(
                "the deadline is missing. Use Deadline(t), with t in the unit of the "
                "runtime."
            )
        numbers = problem, self.deadline, self.min_completion
        still, deadline, least = jax.lax.stop_gradient(numbers)
        surest = completion_partition(still, deadline, max_steps=self.max_steps)
        if least is None:
            surest = without_derivative(surest, numbers)
            arguments = surest.point, self.deadline
            solution = assess(problem, surest.point, surest.status, surest.num_steps)
            probability = with_slopes(_in_time, surest.value, problem, *arguments)
            return replace(solution, completion_probability=probability)
        fastest = optimum(
            still, still.exists, tolerance=1e-6, max_steps=Optimal.max_steps
        )
        assert fastest.partition is not None
        ends = fastest.partition, surest
        best = chance_constrained(
            still, deadline, least, *ends, max_steps=self.max_steps
        )
        best = without_derivative(best, numbers)
        solution = assess(problem, best.point, best.status, best.num_steps)
        # The optimum without the constraint is a lower bound, too.
        lower = jnp.maximum(solution.lower_bound, fastest.lower_bound)
        lower = jnp.minimum(lower, solution.expected_runtime)
        return replace(solution, lower_bound=lower, completion_probability=best.value)


@sample_average.judged.register
def _(method: Deadline, fresh: Problem, solution: Solution) -> dict[str, Array]:
    numbers = sample_average.judged.dispatch(object)(method, fresh, solution)
    in_time = completion_probability(fresh, solution.partition, method.deadline)  # type: ignore[arg-type]
    # P is a step function under these samples, so it has no useful derivative.
    in_time = without_derivative(in_time, (fresh, method.deadline))
    return numbers | {"completion_probability": in_time}


@functools.partial(jax.jit, static_argnames="max_steps")
def completion_partition(
    problem: Problem, deadline: ArrayLike, *, max_steps: int = 2000
) -> Optimum:
    r"""Maximise P(τ̂(x,T) ≤ deadline) over partitions.

    The result is the best local optimum that the searches from `STARTS` reach. A search
    has converged when a projected gradient step of the log-odds changes hardly any
    entry.

    Args:
      problem: The problem.
      deadline: The deadline, in the unit of the runtime.
      max_steps: Maximum number of steps from each start. Must be static.

    Returns:
      The `Optimum`. `point` is the partition, `[max_workers]`, and `value` its
      probability. `aux` has the probability that each of `STARTS` leads to.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(0.1, 1.0), num_workers=3, num_coordinates=100
    ... )
    >>> best = completion_partition(problem, 600.0)
    >>> bool(best.value >= best.aux.max()), int(best.status)
    (True, 0)
    """
    iteration = iteration_of(problem)
    deadline = jnp.asarray(deadline, problem.dtype)
    t = deadline / problem.scale
    shares, searches = _from_starts(problem, deadline, max_steps)
    steps = jnp.max(jnp.sum(searches.num_steps, axis=1))
    if iteration.stepped:  # the search minimised a smoothed function
        on_time = 1 - jax.lax.map(functools.partial(_late, problem, t), shares)
    else:
        on_time = jax.nn.sigmoid(-searches.value[:, -1])
    probabilities = jnp.clip(on_time, 0, 1)
    best = jnp.argmax(probabilities)
    converged = searches.status[best, -1] == int(Status.CONVERGED)
    ended = converged & resolved(probabilities[best])
    partition = shares[best] * problem.total
    return local_optimum(partition, probabilities[best], ended, steps, probabilities)


def _from_starts(
    problem: Problem, deadline: Array, max_steps: int
) -> tuple[Array, Optimum]:
    """Search from `STARTS`; return the final points, `[S, N]`, and the searches."""
    iteration = iteration_of(problem)
    total = problem.total
    still = jax.lax.stop_gradient
    t = deadline / problem.scale
    tiny = float(jnp.finfo(t.dtype).tiny)
    least = (
        _BESIDE
        * total
        * np.cumsum(np.arange(1, problem.max_workers + 1)).astype(t.dtype)
    )

    def log_odds_of(load: Load, spread: Array) -> Array:
        q = iteration.smoothed_exceedance(load, t, spread)
        # 1 - q loses digits if completion is improbable, but then q dominates.
        return jnp.log(jnp.maximum(q, tiny)) - jnp.log(jnp.maximum(1 - q, tiny))

    def log_odds(share: Array, spread: Array) -> Array:
        """Compute log-odds whose derivatives at loads of 0 are taken next to 0."""
        load = load_of(problem, share * total)
        used = jax.tree.map(lambda y: jnp.where(y > 0, y, still(y)), load)
        unused = jax.tree.map(
            lambda y: jnp.where(y > 0, still(y), least + y - still(y)), load
        )
        loads = jax.tree.map(lambda a, b: jnp.stack([a, b]), used, unused)
        value, beside = jax.vmap(log_odds_of, (0, None))(loads, spread)
        return value + beside - still(beside)

    def stage(share: Array, spread: Array) -> tuple[Array, Optimum]:
        function = functools.partial(log_odds, spread=spread)
        local_best = _search(
            function, problem.exists, share, max_steps=max_steps, **rounding
        )
        return local_best.point, local_best

    single = {"least_gain": float(jnp.finfo(t.dtype).eps), "patience": _PATIENCE}
    rounding = {}
    if t.dtype.itemsize == 4:
        rounding = single
    spreads = [0.0]
    if iteration.stepped:
        spreads = [0.1, 0.03, 0.01, 0.003]
    stages = jnp.asarray(spreads, t.dtype)
    starts = _starts(problem, deadline)
    return jax.vmap(lambda share: jax.lax.scan(stage, share, stages))(starts)


def _in_time(problem: Problem, partition: Array, deadline: ArrayLike) -> Array:
    return completion_probability(problem, with_total(problem, partition), deadline)


def resolved(probability: Array) -> Array:
    """Check whether P exceeds rounding, so that a search can follow its derivative."""
    return probability > 64 * jnp.finfo(probability.dtype).eps


def _late(problem: Problem, t: Array, share: Array) -> Array:
    """Compute P(τ̂ > t) for a time t in units of κ."""
    return iteration_of(problem).exceedance(load_of(problem, share * problem.total), t)


def _starts(problem: Problem, deadline: Array) -> Array:
    """Return the starting points on the simplex, `[len(STARTS), max_workers]`."""
    iteration = iteration_of(problem)
    subsets = np.arange(1, problem.max_workers + 1, dtype=deadline.dtype)
    harmonic = jnp.where(problem.exists, 1 / subsets, 0)
    harmonic = harmonic / jnp.sum(harmonic)
    times = iteration.typical_times(_DEVIATIONS)
    planned = jax.vmap(partition_for_times, (None, 0))(problem, times)
    # If all typical times are infinite, the closed form is NaN.
    planned = jnp.where(jnp.isfinite(planned), planned / problem.total, harmonic)
    # This is the time that start-up and link leave for computation.
    start = problem.start_up_or_zero.astype(deadline.dtype)
    left = jnp.maximum(
        deadline - start - problem.send_load * problem.total, 1e-3 * deadline
    )
    # If some workers never finish, P is constant until a level is empty. So the best
    # single level is a start, too.
    late = iteration.order_survival(left / (problem.scale * problem.total) / subsets)
    single = subsets == 1 + jnp.argmin(jnp.where(problem.exists, late, jnp.inf))
    return jnp.concatenate([planned, jnp.stack([harmonic, single])]).astype(
        problem.dtype
    )


@functools.partial(jax.jit, static_argnames="max_steps")
def chance_constrained(
    problem: Problem,
    deadline: ArrayLike,
    min_completion: ArrayLike,
    fastest: Array,
    surest: Optimum,
    *,
    max_steps: int = 2000,
) -> Optimum:
    r"""Minimise E τ̂(x,T) over partitions with P(τ̂(x,T) ≤ deadline) ≥ min_completion.

    Args:
      problem: The problem.
      deadline: The deadline, in the unit of the runtime.
      min_completion: Smallest allowed probability.
      fastest: Partition of least E τ̂, `[max_workers]`.
      surest: Optimum of `completion_partition`.
      max_steps: Maximum number of steps in all rounds. Must be static.

    Returns:
      The `Optimum`, with P as `value`. It is INFEASIBLE if P of `surest` is too low.
    """
    total = problem.total
    dtype = problem.dtype
    late = functools.partial(
        _late, problem, jnp.asarray(deadline, dtype) / problem.scale
    )
    allowed_late = 1 - jnp.asarray(min_completion, dtype)
    tiny = float(jnp.finfo(dtype).tiny)
    # Number of minimisations of the Lagrangian, and the weight of the squared
    # constraint, relative to E τ̂ per unit of log P(τ̂ > t). With a weight of 2 and a
    # multiplier that is too large at first, E τ̂ was 7e-5 too high.
    rounds = 8
    weight = 20.0
    most_steps = max(max_steps // rounds, 1)

    def often_enough(share: Array) -> Array:
        return late(share) <= allowed_late

    def pressed(share: Array, multiplier: Array) -> Array:
        excess = jnp.log(jnp.maximum(late(share), tiny)) - jnp.log(allowed_late)
        return jnp.maximum(multiplier + weight * excess, 0)

    sure = surest.point / total
    fast = fastest / total
    first = _towards(often_enough, fast, sure)
    unit = expected_runtime(problem, first * total)

    def round_(
        state: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], Optimum]:
        share, multiplier = state

        def lagrangian(share: Array) -> Array:
            penalty = pressed(share, multiplier) ** 2 / (2 * weight)
            return expected_runtime(problem, share * total) / unit + penalty

        gain = 8 * float(jnp.finfo(dtype).eps)
        limits: dict[str, Any] = {"least_gain": gain, "max_steps": most_steps}
        minimum = _search(lagrangian, problem.exists, share, **limits)
        return (minimum.point, pressed(minimum.point, multiplier)), minimum

    begin = (first, jnp.zeros((), first.dtype))
    (share, _), searches = jax.lax.scan(round_, begin, None, length=rounds)
    in_time = often_enough(fast)
    share = jnp.where(in_time, fast, _towards(often_enough, share, sure))
    status = jnp.where(in_time, int(Status.CONVERGED), searches.status[-1])
    status = jnp.where(often_enough(sure), status, int(Status.INFEASIBLE))
    return surest._replace(
        point=share * total,
        value=jnp.clip(1 - late(share), 0, 1),
        status=status,
        num_steps=jnp.sum(searches.num_steps),
    )


def _towards(good: Callable[[Array], Array], begin: Array, end: Array) -> Array:
    """Return the first `good` point on the line from `begin` to `end`, or `end`."""
    whole_way = jnp.ones((), begin.dtype)
    _, way = bisect(
        lambda way: good(begin + way * (end - begin)), 0 * whole_way, whole_way
    )
    return begin + way * (end - begin)
