"""All N cycle times of an iteration, slowest first, and what is asked about them.

Independent times of one kind, a sample of iterations, or draws alone: axis n holds
T_(N-n). What is done by when is asked with a `Load` and a rule of completion, in units
of κ.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    check_key,
    check_whole,
    concrete,
    is_traced,
    pytree_dataclass,
    static_field,
    working_dtype,
)
from bcgc_jax.distributions import (
    Distribution,
    EmpiricalRows,
    JointDistribution,
)
from bcgc_jax.distributions.joint import NO_EXACT_ANSWER
from bcgc_jax.exact import order_statistics
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans import evaluate
from bcgc_jax.plans.completion import AnyOf, Exact
from bcgc_jax.plans.evaluate import NUM_NODES
from bcgc_jax.plans.worker import Load, Worker, delivered
from bcgc_jax.problem import Problem


@pytree_dataclass
class Iteration:
    """Answers about an iteration's times, and about tasks of a `load` in them: here by
    draws alone.

    A kind with `exact` answers has all that `Independent` has, and `alike` workers are
    independent ones of one distribution; a joint one is the cycle time of `worker`.
    `polyhedral`: whether E τ is so in the load; `smooth`, whether times have one
    density without kinks, and all begin at once; `stepped`, whether P(τ > t) is a step
    function. N may be traced; of other numbers than a joint distribution is of all is
    NaN.
    """

    worker: Worker
    num_workers: ArrayLike
    max_workers: int = static_field()

    exact = alike = False

    def no_answer(self, *_: Any, **__: Any) -> Any:
        """In place of each exact answer."""
        raise ValueError(NO_EXACT_ANSWER)

    polyhedral = smooth = stepped = property(no_answer)
    evaluation_cost = typical_times = expected_shared_time = no_answer
    expected_order_statistics = order_survival = no_answer
    expected_completion = exceedance = smoothed_exceedance = no_answer

    @property
    def law(self) -> Any:
        return self.worker.cycle_time

    @property
    def rows(self) -> Array | None:
        """Of a sample its iterations, `[S, N]`, of which everything is a mean."""
        return None

    @property
    def any_of(self) -> AnyOf:
        """Level n is there with the (N-n)-th delivery."""
        return AnyOf(self.num_workers)

    def pooled(self) -> Distribution:
        """The distribution of one worker's time."""
        return self.law.pooled()

    def check_finite_means(self) -> None:
        """Raise ValueError where a concrete distribution has an infinite mean."""
        if is_traced(self):
            return
        if self.alike:
            laws = [self.law]
        else:
            laws = list(self.law.members())
        names = [type(law).__name__ for law in laws]
        for law, name in zip(laws, names, strict=True):
            batched = (
                any(np.ndim(leaf) for leaf in jax.tree.leaves(law)) and not law.atomic
            )
            mean = concrete(law.mean())  # traced within a caller's jit
            if batched or mean is None or np.all(np.isfinite(mean)):
                continue
            raise ValueError(
                f"the mean of {name} is infinite, or above the largest number, "
                f"{jnp.finfo(working_dtype(law)).max:.1e}, and so is the expected "
                "runtime of a scheme that ever waits for the slowest worker: take a "
                "distribution with a lighter tail, or plan for a deadline (Deadline; "
                "in a shell --method deadline)"
            )

    def sorted_draws(self, key: Array, num_draws: int, dtype: Any) -> Array:
        """Draws of the times, `[num_draws, max_workers]`."""
        return self._if_all(self.law.draw_rows(key, num_draws)).astype(dtype)

    def _if_all(self, times: Array) -> Array:
        return jnp.where(
            jnp.asarray(self.num_workers) == times.shape[-1], times, jnp.nan
        )

    def simulate_max(self, key: Array, load: Load, num_draws: int) -> Array:
        """Draws of when all levels are there, `[num_draws]`."""
        return self.max_of_sorted(
            load, self.sorted_draws(key, num_draws, load.work.dtype)
        )

    def max_of_sorted(self, load: Load, times: Array) -> Array:
        """When all levels are there, `[...]`: one start-up, sorted times `[..., N]`."""
        ready = delivered(load, times.astype(load.work.dtype), self.worker.overlap)
        last = jnp.max(ready, axis=-1)
        if self.worker.plain:
            return last
        return self.worker.start.astype(last.dtype) + last


@pytree_dataclass
class Independent(Iteration):
    """N independent and alike workers; padded levels hold ess inf T."""

    exact = alike = True

    @property
    def polyhedral(self) -> bool:
        return self.law.atomic

    @property
    def smooth(self) -> bool:
        return self.worker.plain and self.law.smooth

    @property
    def stepped(self) -> bool:
        return self.law.atomic

    def evaluation_cost(self):
        """Rough operations of one expectation, as they grow with measured times."""
        size = self.max_workers
        if self.law.atomic:
            return float(self.law.breaks().size * size**3)
        if self.worker.plain:
            return 0.0
        pieces = max(int(self.law.breaks().size), 1)
        nodes = NUM_NODES
        if pieces != 1:
            nodes = 9 * min(size, 24) * pieces
        return 20.0 * nodes * size * pieces

    def sorted_draws(self, key, num_draws, dtype):
        return order_statistics.sorted_draws(
            key, self.law, self.num_workers, num_draws, self.max_workers, dtype
        )

    def simulate_max(self, key, load, num_draws):
        if self.worker.plain and load.sent is None:
            return order_statistics.simulate_max(
                key, self.law, load.work, self.num_workers, num_draws
            )
        return super().simulate_max(key, load, num_draws)

    def typical_times(self, deviations: Sequence[float]):
        """Times at so many deviations from the typical ones, `[D, max_workers]`."""
        ones = jnp.ones(self.max_workers, working_dtype(self.law))
        sigma = np.asarray(deviations, ones.dtype)[:, None]
        mean, above = order_statistics.typical_hazards(
            ones, self.num_workers, (0.0, 1.0)
        )
        spread = above - mean
        # Times below the mean go by logarithms: a time is positive.
        below = mean * jnp.exp(
            np.minimum(sigma, 0) * spread / jnp.where(mean > 0, mean, 1)
        )
        hazard = below + np.maximum(sigma, 0) * spread
        return self.law.inverse_cumulative_hazard(hazard.astype(ones.dtype))

    def expected_order_statistics(self, function=None):
        """E g(T_(N-n)), `[max_workers]`, of the `function` g; of T without one."""
        return order_statistics.moments(
            self.law, self.num_workers, function, self.max_workers
        )

    def expected_completion(self, load, rule=None, *, num_nodes=NUM_NODES):
        """E of when all tasks are there by a rule; by default all levels."""
        return evaluate.expected_completion(
            self.worker, load, rule or self.any_of, num_nodes=num_nodes
        )

    def exceedance(self, load, t, rule=None):
        """P(not all is there by t), for t of any shape."""
        end = t
        if self.stepped:
            end = just_after(t)
        return evaluate.exceedance(self.worker, load, rule or self.any_of, end)

    def smoothed_exceedance(self, load, t, spread):
        """P(not all is there by t); `stepped` iterations are spread by e^±`spread`."""
        if not self.stepped:
            return self.exceedance(load, t)
        return evaluate.smoothed_exceedance(self.worker, load, self.any_of, t, spread)

    def order_survival(self, t):
        """P(T_(N-n) > t_n), `[max_workers]`."""
        return order_statistics.order_survival(self.law, self.num_workers, t)

    def expected_shared_time(self, dtype):
        """E[1 / Σ_n 1/T_n], the time of a cycle that all workers share."""
        return order_statistics.expected_shared_time(self.law, self.num_workers, dtype)


@pytree_dataclass
class Sampled(Iteration):
    """Equally likely iterations, the `rows`: all is a mean over them, so exact."""

    exact = polyhedral = stepped = True
    smooth = False

    @property
    def rows(self):
        return self._if_all(jnp.asarray(self.law.times))

    def evaluation_cost(self):
        return float(self.rows.size)

    def typical_times(self, deviations):
        log_times = jnp.log(self.rows)
        spread = (
            jnp.std(log_times, axis=0)
            * np.asarray(deviations, log_times.dtype)[:, None]
        )
        return jnp.exp(jnp.mean(log_times, axis=0) + spread)

    def expected_order_statistics(self, function=None):
        return jnp.mean(self.rows if function is None else function(self.rows), axis=0)

    def _finish(self, load: Load, rule: Exact | None = None) -> Array:
        """When all is there in each iteration, `[S]`; rows do not name workers."""
        if rule is not None and not rule.interchangeable:
            self.no_answer()
        return self.max_of_sorted(load, self.rows)

    def expected_completion(self, load, rule=None, *, num_nodes=NUM_NODES):
        value = jnp.mean(self._finish(load, rule))
        return evaluate.with_rounding(
            load.work, Expectation(value, jnp.zeros_like(value))
        )

    def exceedance(self, load, t, rule=None):
        finish = jnp.sort(self._finish(load, rule))
        by_then = jnp.searchsorted(finish, just_after(t), side="right")
        return 1 - by_then / jnp.asarray(finish.size, finish.dtype)

    def smoothed_exceedance(self, load, t, spread):
        return jnp.mean(
            jax.nn.sigmoid((jnp.log(self._finish(load)) - jnp.log(t)) / spread)
        )

    def order_survival(self, t):
        return jnp.mean(self.rows > t, axis=0, dtype=t.dtype)

    def expected_shared_time(self, dtype):
        return jnp.mean(1 / jnp.sum(1 / self.rows, axis=1)).astype(dtype)


def just_after(t: Array) -> Array:
    """A deadline that includes times equal to `t` but for rounding."""
    return t * (1 + 64 * jnp.finfo(t.dtype).eps)


def iteration_of(problem: Problem) -> Iteration:
    """All N cycle times of an iteration, for any question."""
    problem.check_single()
    law: Any = problem.cycle_time
    start = problem.start_up
    if start is not None:
        start = jnp.asarray(start, problem.dtype) / problem.scale
    joint = Sampled if isinstance(law, EmpiricalRows) else Iteration
    kind = Independent if isinstance(law, Distribution) else joint
    worker = Worker(law, start, overlap=bool(problem.overlap))
    return kind(worker, problem.num_workers, problem.max_workers)


def sorted_cycle_times(
    key: Array,
    law: Distribution | JointDistribution,
    num_workers: ArrayLike,
    num_draws: int,
    *,
    max_workers: int | None = None,
    dtype: Any = None,
) -> Array:
    """Draws of the sorted cycle times, slowest first, `[num_draws, max_workers]`.

    `num_workers` may be traced where the static `max_workers` is given; columns from
    num_workers on hold the distribution's infimum. `dtype` is that of the
    distribution's parameters by default.

    >>> from bcgc_jax.distributions import Uniform
    >>> t = sorted_cycle_times(jax.random.key(0), Uniform(1.0, 2.0), 3, 5)
    >>> t.shape, bool((t[:, :-1] >= t[:, 1:]).all())
    ((5, 3), True)
    """
    check_key(key)
    check_whole("num_draws", num_draws, 1)
    problem = Problem(law, num_workers, 1, max_workers=max_workers or 0)
    if dtype is None:
        dtype = working_dtype(law)
    else:
        dtype = jnp.result_type(dtype)
    return _if_valid(iteration_of(problem).sorted_draws(key, num_draws, dtype), problem)


def expected_order_statistics(
    law: Distribution | JointDistribution,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None = None,
    *,
    max_workers: int | None = None,
) -> Array:
    r"""E[g(T_(N-n))] for n = 0…N-1, slowest first, `[max_workers]`; E T_(N-n) without a
    `function`.

    Where the expectation diverges the result is inf. Columns from num_workers on hold
    g(ess inf T).

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> expected_order_statistics(ShiftedExponential(rate=1.0), 3).round(4)
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    problem = Problem(law, num_workers, 1, max_workers=max_workers or 0)
    return _if_valid(iteration_of(problem).expected_order_statistics(function), problem)


def _if_valid(value: Array, problem: Problem) -> Array:
    """NaN where traced numbers make no distribution or number of workers."""
    # A product: where the value is NaN its derivatives are.
    if is_traced(problem):
        return value * jnp.where(problem.valid, 1.0, jnp.nan)
    return value
