"""Model the N cycle times of a step, sorted from slowest to fastest.

The times are independent and identically distributed (`Independent`), empirical rows
(`Sampled`), or any other joint distribution, which can only be sampled (`Iteration`).
On axis n, arrays hold T_(N-n). Loads and times of tasks are in units of κ.
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
    """Model the cycle times of a step by Monte Carlo samples.

    Subclasses with `exact` results define all methods that `Independent` has.
    `num_workers` may be traced. If it differs from the number of workers in a joint
    distribution, the times are NaN.

    Attributes:
      worker: Start-up and cycle time of a worker. `worker.cycle_time` is the joint
        distribution if the workers are not i.i.d.
      num_workers: N.
      max_workers: Static length of the arrays.
      exact: Whether expectations and probabilities are known exactly.
      alike: Whether the workers are i.i.d.
      polyhedral: Whether E τ is a polyhedral function of the load.
      smooth: Whether the times have a density without kinks and all workers begin at
        once.
      stepped: Whether P(τ > t) is a step function of t.
    """

    worker: Worker
    num_workers: ArrayLike
    max_workers: int = static_field()

    exact = alike = False

    def no_answer(self, *_: Any, **__: Any) -> Any:
        """Raise ValueError in place of an exact result."""
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
        """Rows of an empirical distribution, `[S, N]`. None for other distributions."""
        return None

    @property
    def any_of(self) -> AnyOf:
        """Recovery condition of the paper: level n needs N - n deliveries."""
        return AnyOf(self.num_workers)

    def pooled(self) -> Distribution:
        """Return the distribution of the time of one worker."""
        return self.law.pooled()

    def check_finite_means(self) -> None:
        """Raise ValueError if a known distribution has an infinite mean."""
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
            mean = concrete(law.mean())  # traced if the caller is in `jit`
            if batched or mean is None or np.all(np.isfinite(mean)):
                continue
            raise ValueError(
                f"the mean of {name} is infinite, or above the largest number, "
                f"{jnp.finfo(working_dtype(law)).max:.1e}. So is the expected runtime "
                "of a scheme that waits for the slowest worker. Use a distribution "
                "with a lighter tail, or plan for a deadline, with Deadline(t) or the "
                'method "deadline".'
            )

    def sorted_draws(self, key: Array, num_draws: int, dtype: Any) -> Array:
        """Draw Monte Carlo samples of the sorted times, `[num_draws, max_workers]`."""
        return self._if_all(self.law.draw_rows(key, num_draws)).astype(dtype)

    def _if_all(self, times: Array) -> Array:
        return jnp.where(
            jnp.asarray(self.num_workers) == times.shape[-1], times, jnp.nan
        )

    def simulate_max(self, key: Array, load: Load, num_draws: int) -> Array:
        """Draw samples of the time when all levels are complete, `[num_draws]`."""
        return self.max_of_sorted(
            load, self.sorted_draws(key, num_draws, load.work.dtype)
        )

    def max_of_sorted(self, load: Load, times: Array) -> Array:
        """Compute when all levels are complete from sorted times, `[..., N]`."""
        ready = delivered(load, times.astype(load.work.dtype), self.worker.overlap)
        last = jnp.max(ready, axis=-1)
        if self.worker.plain:
            return last
        return self.worker.start.astype(last.dtype) + last


@pytree_dataclass
class Independent(Iteration):
    """Model N i.i.d. workers exactly. Padded levels hold ess inf T."""

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
        """Estimate the number of operations of one expectation."""
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
        """Return sorted times at D `deviations` from typical, `[D, max_workers]`."""
        ones = jnp.ones(self.max_workers, working_dtype(self.law))
        sigma = np.asarray(deviations, ones.dtype)[:, None]
        mean, above = order_statistics.typical_hazards(
            ones, self.num_workers, (0.0, 1.0)
        )
        spread = above - mean
        # Below the mean, deviations are logarithmic, so that times stay positive.
        below = mean * jnp.exp(
            np.minimum(sigma, 0) * spread / jnp.where(mean > 0, mean, 1)
        )
        hazard = below + np.maximum(sigma, 0) * spread
        return self.law.inverse_cumulative_hazard(hazard.astype(ones.dtype))

    def expected_order_statistics(self, function=None):
        """Compute E g(T_(N-n)), `[max_workers]`. `function` is g, or the identity."""
        return order_statistics.moments(
            self.law, self.num_workers, function, self.max_workers
        )

    def expected_completion(self, load, rule=None, *, num_nodes=NUM_NODES):
        """Compute the expected time at which all tasks are complete.

        `rule` is the recovery condition. It defaults to `any_of`.
        """
        return evaluate.expected_completion(
            self.worker, load, rule or self.any_of, num_nodes=num_nodes
        )

    def exceedance(self, load, t, rule=None):
        """Compute P(the step has not ended by t), for t of any shape."""
        end = t
        if self.stepped:
            end = just_after(t)
        return evaluate.exceedance(self.worker, load, rule or self.any_of, end)

    def smoothed_exceedance(self, load, t, spread):
        """Compute `exceedance`, with steps in t spread by factors e^±`spread`."""
        if not self.stepped:
            return self.exceedance(load, t)
        return evaluate.smoothed_exceedance(self.worker, load, self.any_of, t, spread)

    def order_survival(self, t):
        """Compute P(T_(N-n) > t_n), `[max_workers]`."""
        return order_statistics.order_survival(self.law, self.num_workers, t)

    def expected_shared_time(self, dtype):
        """Compute E[1 / Σ_n 1/T_n], the time of a cycle that all workers share."""
        return order_statistics.expected_shared_time(self.law, self.num_workers, dtype)


@pytree_dataclass
class Sampled(Iteration):
    """Model a step by equally likely `rows`. All results are means over them."""

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
        """Compute when the step ends in each row, `[S]`. Rows do not name workers."""
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
    """Return a deadline that includes times equal to `t` up to rounding."""
    return t * (1 + 64 * jnp.finfo(t.dtype).eps)


def iteration_of(problem: Problem) -> Iteration:
    """Return the model of the N cycle times of a step."""
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
    """Draw Monte Carlo samples of the sorted cycle times, slowest first.

    Args:
      key: PRNG key.
      law: Distribution of the cycle times.
      num_workers: Number of workers, N. It may be traced if `max_workers` is given.
      num_draws: Number of Monte Carlo samples S. Must be static.
      max_workers: Static number of columns. Defaults to `num_workers`.
      dtype: Dtype of the result. Defaults to the dtype of the distribution's
        parameters.

    Returns:
      The sorted times, `[num_draws, max_workers]`. Columns from N on hold ess inf T.

    Raises:
      ValueError: If an argument is out of range, or `num_workers` is traced and
        `max_workers` is missing.

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
    """Compute E g(T_(N-n)) for n = 0, …, N - 1, the slowest worker first.

    Args:
      law: Distribution of the cycle times.
      num_workers: Number of workers, N. It may be traced if `max_workers` is given.
      function: Function g of an array of times. Defaults to the identity.
      max_workers: Static length of the result. Defaults to `num_workers`.

    Returns:
      The expectations, `[max_workers]`. Divergent ones are inf. Entries from N on are
      g(ess inf T).

    Raises:
      ValueError: If the distribution has no exact order statistics, or `num_workers` is
        traced and `max_workers` is missing.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> expected_order_statistics(ShiftedExponential(rate=1.0), 3).round(4)
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    problem = Problem(law, num_workers, 1, max_workers=max_workers or 0)
    return _if_valid(iteration_of(problem).expected_order_statistics(function), problem)


def _if_valid(value: Array, problem: Problem) -> Array:
    """Return the value, or NaN if traced numbers are out of range."""
    # A product makes the derivatives NaN where the value is NaN.
    if is_traced(problem):
        return value * jnp.where(problem.valid, 1.0, jnp.nan)
    return value
