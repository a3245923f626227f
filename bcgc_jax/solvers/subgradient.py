r"""The stochastic projected subgradient method (section V-A of the paper), scale-free.

On the unit simplex u = x/L, with the objective in a unit near its value:

    u ← Π(u - η_i g_i),   g_i = ∇_u mean_b max_n T_(N-n) y_n(u) over a fresh mini-batch,
    η_i = D / (Σ_{j≤i} ‖g_j - mean g_j‖²)^½,

This is the step size of AdaGrad in norm form (Streeter & McMahan 2010; Ward et al.
2019). Unlike the paper's fixed schedule, it does not depend on the distribution's
scale, derivative or tail. The result is an average of the iterates with more weight on
later ones (Shamir & Zhang 2013).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import at_hand, pytree_dataclass, replace, static_field
from bcgc_jax.exact.order_statistics import max_finish_time
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.partitions import cumulative_load, project_partition
from bcgc_jax.plans.runtime import expected_runtime
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers.closed_form import time_partition
from bcgc_jax.solvers.method import SETUP, Method
from bcgc_jax.solvers.search import Optimum

# Step size D, relative to the simplex. Of 0.03, 0.1, 0.3 and 1, this value is within
# 0.4 % of the best for nine distributions, from nearly deterministic ones to Pareto
# with shape 1.2, at N = 5 and 20 after 1000 steps. The other values are 1 % off.
_STEP = 0.1


@pytree_dataclass
class Subgradient(Method):
    r"""Minimise the expected runtime by stochastic projected subgradients.

    This is the paper's iterative method (section V-A). `solve` needs a key for it.

    Args:
      tolerance: The search stops when the best value has improved relatively by at most
        this since the check before last. Defaults to 1e-4. A negative value disables
        the rule.
      batch_size: Number of samples per step. Defaults to 512. Must be static.
      check_every: Number of steps between exact evaluations. Defaults to 100. Must be
        static.
      max_steps: Maximum number of steps. Defaults to 2000. Must be static.
    """

    tolerance: ArrayLike = 1e-4
    batch_size: int = static_field(default=512)
    check_every: int = static_field(default=100)
    max_steps: int = static_field(default=2000)

    name = "subgradient"
    conditions = (("tolerance", ""),)
    counts = (("batch_size", 1), ("check_every", 1), ("max_steps", 1))
    refuses = SETUP
    draws = True

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        assert key is not None
        best = subgradient_partition(problem.without_delivery, key, self)
        solution = assess(problem, best.point, best.status, best.num_steps)
        if problem.plain:
            return replace(solution, history=best.aux)
        return solution


class _Search(NamedTuple):
    """The state of the search before a check.

    Attributes:
      best: The best averaged iterate so far.
      share: The current iterate, on the unit simplex, `[max_workers]`.
      average: The weighted average of the iterates, `[max_workers]`.
      squares: The sum of squared subgradients so far.
      check: Number of checks so far.
      goes_on: Whether another check follows.
    """

    best: Optimum
    share: Array
    average: Array
    squares: Array
    check: Array
    goes_on: Array


def step_of(slope: Array, squares: Array) -> tuple[Array, Array]:
    """Return the step -D g / (Σ ‖g‖²)^½ for the `slope` g, and the new sum of squares.

    `squares` is the sum of the previous steps.
    """
    squares = squares + jnp.sum(slope**2)
    return -_STEP * slope / jnp.sqrt(
        jnp.maximum(squares, jnp.finfo(squares.dtype).tiny)
    ), squares


def subgradient_partition(problem: Problem, key: Array, method: Subgradient) -> Optimum:
    r"""Minimise E τ̂(x,T) by stochastic subgradients, starting from x^(t).

    The averaged iterate is evaluated exactly every `check_every` steps. The result is
    the best iterate evaluated, and `aux` has the best value at each check. If nothing
    is traced, exact evaluations use programs that other methods share.
    """
    traced = not at_hand((problem, key, method))
    xp: Any = np
    if traced:
        xp = jnp
    start, total = (xp.asarray(a) for a in (time_partition(problem), problem.total))
    share = start / total
    zero: Any = np.asarray(0)
    checks = math.ceil(method.max_steps / method.check_every)
    history: Any = np.full(checks + 1, np.nan, share.dtype)
    squares: Any = np.zeros((), share.dtype)
    goes_on: Any = np.asarray(True)
    endless: Any = np.asarray(np.inf, share.dtype)
    unknown: Any = np.asarray(np.nan, share.dtype)
    state = _Search(
        best=Optimum(start, endless, squares, unknown, zero, zero, history),
        share=share,
        average=share,
        squares=squares,
        check=zero,
        goes_on=goes_on,
    )

    def runtime(x: Array) -> Array:
        if traced:
            return expected_runtime(problem, x)
        return assess(problem, x, whole_numbers=False).expected_runtime

    def check_and_go_on(state: _Search) -> _Search:
        return _go_on(
            problem, key, state, runtime(xp.asarray(state.average) * total), method
        )

    if traced:
        return jax.lax.while_loop(
            lambda state: state.goes_on, check_and_go_on, state
        ).best
    while state.goes_on:
        state = check_and_go_on(state)
    return state.best


@jax.jit
def _go_on(
    problem: Problem, key: Array, state: _Search, value: Array, method: Subgradient
) -> _Search:
    """Check the averaged iterate with this `value`, and step to the next check."""
    iteration = iteration_of(problem)
    levels = problem.exists
    workers = problem.num_workers
    # The steps do not depend on the unit, but without a unit near the objective,
    # squares of derivatives could underflow.
    law = iteration.pooled().with_fast_inverse()
    half = jnp.log(2.0).astype(problem.dtype)
    median = law.inverse_cumulative_hazard(half)

    def batch_loss(share: Array, times: Array) -> Array:
        return jnp.mean(max_finish_time(cumulative_load(share), times)) / median

    def step(
        i: Array, iterate: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        share, average, squares = iterate
        times = iteration.sorted_draws(
            jax.random.fold_in(key, i), method.batch_size, problem.dtype
        )
        slope = jax.grad(batch_loss)(share, times)
        mean = jnp.sum(jnp.where(levels, slope, 0)) / workers
        # The mean of a subgradient does not move a point of the simplex, so it does not
        # count in the norm either.
        move, squares = step_of(jnp.where(levels, slope - mean, 0), squares)
        share = project_partition(share + move, 1.0, levels)
        eta = 3.0  # as in Shamir & Zhang
        return share, average + (share - average) * (1 + eta) / (i + 1 + eta), squares

    check = state.check
    least = jnp.minimum(value, state.best.value)
    history = state.best.aux.at[check].set(least)
    improvement = 1 - history[check] / history[jnp.maximum(check - 2, 0)]
    met = (check >= 2) & ~(improvement > method.tolerance)
    goes_on = (check < history.size - 1) & ~met
    first = check * method.check_every
    last = jnp.where(
        goes_on, jnp.minimum(first + method.check_every, method.max_steps), first
    )
    iterate = (state.share, state.average, state.squares)
    share, average, squares = jax.lax.fori_loop(first, last, step, iterate)
    converged = met & (improvement <= method.tolerance)
    status = jnp.where(converged, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    status = jnp.where(jnp.isfinite(history[0]), status, int(Status.INFINITE))
    best = state.best._replace(
        point=jnp.where(
            value < state.best.value, state.average * problem.total, state.best.point
        ),
        value=least,
        status=status.astype(int),
        num_steps=jnp.minimum(first, method.max_steps),
        aux=history,
    )
    return _Search(
        best=best,
        share=share,
        average=average,
        squares=squares,
        check=check + goes_on,
        goes_on=goes_on,
    )
