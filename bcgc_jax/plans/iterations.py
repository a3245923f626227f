"""All N cycle times of an iteration: independent ones of one law, a sample of iterations, draws alone.

Times are slowest first: axis n holds T_(N-n). What is done by when is asked with a `Load` and a rule of
completion, in units of κ.
"""

import functools
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
from bcgc_jax.distributions import Deterministic, Distribution, Empirical, EmpiricalRows, JointDistribution
from bcgc_jax.distributions.joint import NO_EXACT_ANSWER
from bcgc_jax.exact import order_statistics
from bcgc_jax.exact.order_statistics import is_count, static_workers
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import AnyOf, Completion
from bcgc_jax.plans.evaluate import (
    NUM_NODES,
    evaluation_cost,
    exceedance,
    expected_completion,
    smoothed_exceedance,
    with_rounding,
)
from bcgc_jax.plans.worker import Load, Worker, delivered, last_delivery
from bcgc_jax.problem import Problem

# Numbers at a time: draws, workers and levels.
_CHUNK = 2**18
# Of a joint law the iteration has the times.
_NO_LAW = Deterministic(1.0)


class Iteration:
    """What is asked about an iteration's times, and about tasks of a `load` in them.

    A new dependence of the workers is a subclass with `sorted_draws` and `laws`; one with `exact` answers has
    all that `Independent` has, and `alike` workers are independent ones of one law. `polyhedral` says whether
    E τ is so in the load; `smooth`, whether times have one density without kinks, and all begin at once;
    `stepped`, whether P(τ > t) is a step function.
    """

    exact = alike = False
    worker: Worker
    num_workers: ArrayLike

    rows: Array | None = None  # of a sample its iterations, `[S, N]`, of which everything is a mean

    def no_answer(self, *_: Any, **__: Any) -> Any:
        """In place of each exact answer."""
        raise ValueError(NO_EXACT_ANSWER)

    polyhedral = smooth = property(no_answer)
    pooled = evaluation_cost = typical_times = expected_start_ups = expected_shared_time = no_answer
    expected_order_statistics = order_survival = no_answer
    expected_completion = exceedance = smoothed_exceedance = no_answer

    @property
    def stepped(self) -> bool:
        return self.polyhedral

    @property
    def any_of(self) -> AnyOf:
        """Level n is there with the (N-n)-th delivery."""
        return AnyOf(self.num_workers)

    def laws(self) -> Sequence[Distribution]:
        """The laws whose means must be finite."""
        return [] if self.worker.start.constant else [self.worker.start]

    def check_finite_means(self) -> None:
        """Raise ValueError where a concrete law has an infinite mean."""
        for one in () if is_traced(self) else self.laws():
            batched = any(np.ndim(leaf) for leaf in jax.tree.leaves(one)) and not one.atomic
            mean = concrete(one.mean())  # traced within a caller's jit
            if batched or mean is None or np.all(np.isfinite(mean)):
                continue
            named = f"{'the start-up, ' * (one is self.worker.start)}{type(one).__name__}"
            raise ValueError(
                f"the mean of {named} is infinite, or above the largest number, "
                f"{jnp.finfo(working_dtype(one)).max:.1e}, and so is the expected runtime of a scheme that "
                "ever waits for the slowest worker: take a law with a lighter tail, or plan for a deadline "
                "(Deadline; in a shell --objective completion-probability)"
            )

    def least_start_up(self) -> Array:
        """E S_(1), of the shortest start-up of the N workers, in the unit of runtimes."""
        return self.worker.infimum() * self.worker.unit

    typical_start_up = least_start_up

    def sorted_draws(self, key: Array, num_draws: int, dtype: Any) -> Array:
        """Draws of the times, `[num_draws, max_workers]`."""
        raise NotImplementedError

    def simulate_max(self, key: Array, load: Load, num_draws: int) -> Array:
        """Draws of when all levels are there, `[num_draws]`."""
        return self.max_of_sorted(load, self.sorted_draws(key, num_draws, load.work.dtype))

    def max_of_sorted(self, load: Load, times: Array) -> Array:
        """The same for one start-up of all and sorted times, slowest first, `[..., N]` to `[...]`."""
        ready = delivered(load, times.astype(load.work.dtype), self.worker.overlap)
        last = jnp.max(ready, axis=-1)
        return last if self.worker.plain else self.worker.infimum().astype(last.dtype) + last

    def expected_max(self, load: Load, *, num_nodes: int = NUM_NODES) -> Expectation:
        """E of when all levels are there."""
        return self.expected_completion(load, self.any_of, num_nodes=num_nodes)

    def expected_max_and_slope(self, load: Load, *, num_nodes: int = NUM_NODES) -> tuple[Expectation, Load]:
        """The same with its slope in the load; only the value can be differentiated."""

        def value_of(load: Load) -> tuple[Array, Expectation]:
            found = self.expected_max(load, num_nodes=num_nodes)
            return found.value, found

        slope, found = jax.grad(value_of, has_aux=True)(load)
        return found, jax.lax.stop_gradient(slope)


@pytree_dataclass
class Independent(Iteration):
    """N independent and alike workers; N may be traced, and padded levels hold ess inf T."""

    worker: Worker
    num_workers: ArrayLike
    max_workers: int = static_field()

    exact = alike = True

    @property
    def law(self) -> Distribution:
        return self.worker.cycle_time

    @property
    def polyhedral(self) -> bool:
        return self.worker.constant and self.worker.stepwise

    @property
    def smooth(self) -> bool:
        return self.worker.plain and self.law.smooth

    @property
    def stepped(self) -> bool:
        return self.worker.stepwise

    def laws(self):
        return (self.law, *super().laws())

    def pooled(self):
        """The distribution of one worker's time."""
        return self.law

    def evaluation_cost(self):
        """Operations of one expectation as far as it grows with measured times."""
        if self.worker.plain and not self.stepped:
            return 0.0
        return evaluation_cost(self.worker, self.max_workers)

    def typical_start_up(self):
        """The mean start-up, in the unit of runtimes; the median where that is infinite."""
        start = self.worker.start
        if self.worker.pairs is not None:
            return jnp.mean(self.worker.pairs.arrays()[0])
        median, mean = start.inverse_cumulative_hazard(jnp.log(2.0)), start.mean()
        return jnp.where(jnp.isfinite(mean), mean, median)

    def least_start_up(self):
        if self.worker.constant:
            return super().least_start_up()
        return jnp.take(self.expected_start_ups(), jnp.asarray(self.num_workers, int) - 1)

    def expected_start_ups(self):
        """E S_(N-n) of random start-ups, slowest first, `[max_workers]`."""
        law = self.worker.start
        if self.worker.pairs is not None:
            starts = self.worker.pairs.arrays()[0]
            law = Empirical(jnp.maximum(starts, jnp.finfo(starts.dtype).tiny))  # 0 is no time
        return order_statistics.moments(law, self.num_workers, None, self.max_workers)

    def sorted_draws(self, key, num_draws, dtype):
        return order_statistics.sorted_draws(
            key, self.law, self.num_workers, num_draws, self.max_workers, dtype
        )

    def simulate_max(self, key, load, num_draws):
        if self.worker.plain and load.sent is None:
            return order_statistics.simulate_max(key, self.law, load.work, self.num_workers, num_draws)
        if self.worker.constant:
            return super().simulate_max(key, load, num_draws)
        starts, times = self.worker.draw(key, (num_draws, self.max_workers), load.work.dtype)
        last = functools.partial(last_delivery, load, self.worker.overlap, self.num_workers)
        chunk = max(_CHUNK // (self.max_workers**3 if self.worker.overlap else self.max_workers**2), 1)
        return jax.lax.map(lambda draw: last(*draw), (starts, times), batch_size=min(chunk, num_draws))

    def typical_times(self, deviations: Sequence[float]):
        """Times so many standard deviations from the typical ones, `[len(deviations), max_workers]`."""
        one = jnp.ones(self.max_workers, working_dtype(self.law))
        sigma = np.asarray(deviations, one.dtype)[:, None]
        mean, above = order_statistics.typical_hazards(one, self.num_workers, (0.0, 1.0))
        spread = above - mean
        # In the logarithm below: a time is positive.
        below = mean * jnp.exp(np.minimum(sigma, 0) * spread / jnp.where(mean > 0, mean, 1))
        hazard = below + np.maximum(sigma, 0) * spread
        return self.law.inverse_cumulative_hazard(hazard.astype(one.dtype))

    def expected_order_statistics(self, function=None):
        """E g(T_(N-n)), `[max_workers]`, of the `function` g; of T without one."""
        return order_statistics.moments(self.law, self.num_workers, function, self.max_workers)

    def expected_completion(self, load, rule, *, num_nodes=NUM_NODES):
        """E of when all tasks are there by a rule."""
        return expected_completion(self.worker, load, rule, num_nodes=num_nodes)

    def exceedance(self, load, t, rule=None):
        """P(not all is there by t), for t of any shape; by default of levels."""
        return exceedance(self.worker, load, self.any_of if rule is None else rule, t)

    def smoothed_exceedance(self, load, t, spread):
        """The same for one t, with the steps of a `stepped` iteration spread by a factor e^±`spread`."""
        if not self.stepped:
            return self.exceedance(load, t)
        return smoothed_exceedance(self.worker, load, self.any_of, t, spread)

    def order_survival(self, t):
        """P(T_(N-n) > t_n), `[max_workers]`."""
        return order_statistics.order_survival(self.law, self.num_workers, t)

    def expected_shared_time(self, dtype):
        """E[1 / Σ_n 1/T_n], the time of a cycle that all workers share."""
        return order_statistics.expected_shared_time(self.law, self.num_workers, dtype)


@pytree_dataclass
class Sampled(Iteration):
    """Equally likely iterations, `rows` `[S, N]`, slowest first: all is a mean over them, so exact."""

    worker: Worker
    rows: Array

    exact = True
    polyhedral, smooth = True, False

    @property
    def num_workers(self) -> int:  # type: ignore[override]
        return self.rows.shape[-1]

    def pooled(self):
        return EmpiricalRows(self.rows).pooled()

    def evaluation_cost(self):
        return float(self.rows.size)

    def sorted_draws(self, key, num_draws, dtype):
        chosen = jax.random.randint(key, (num_draws,), 0, len(self.rows))
        return self.rows[chosen].astype(dtype)

    def typical_times(self, deviations):
        log_times = jnp.log(self.rows)
        spread = jnp.std(log_times, axis=0) * np.asarray(deviations, log_times.dtype)[:, None]
        return jnp.exp(jnp.mean(log_times, axis=0) + spread)

    def expected_order_statistics(self, function=None):
        return jnp.mean(self.rows if function is None else function(self.rows), axis=0)

    def expected_completion(self, load, rule, *, num_nodes=NUM_NODES):
        _refuse_order(rule)
        value = jnp.mean(self.max_of_sorted(load, self.rows))
        return with_rounding(load.work, Expectation(value, jnp.zeros_like(value)))

    def exceedance(self, load, t, rule=None):
        _refuse_order(rule)
        finish = jnp.sort(self.max_of_sorted(load, self.rows))
        return 1 - jnp.searchsorted(finish, t, side="right") / jnp.asarray(finish.size, finish.dtype)

    def smoothed_exceedance(self, load, t, spread):
        log_finish = jnp.log(self.max_of_sorted(load, self.rows))
        return jnp.mean(jax.nn.sigmoid((log_finish - jnp.log(t)) / spread))

    def order_survival(self, t):
        return jnp.mean(self.rows > t, axis=0, dtype=t.dtype)

    def expected_shared_time(self, dtype):
        return jnp.mean(1 / jnp.sum(1 / self.rows, axis=1)).astype(dtype)


def _refuse_order(rule: Completion | None) -> None:
    """Rows are sorted."""
    if rule is not None and not isinstance(rule, AnyOf):
        raise ValueError(NO_EXACT_ANSWER)


@pytree_dataclass
class Drawn(Iteration):
    """Workers of which only draws tell: those of a `JointDistribution` without exact answers."""

    joint: JointDistribution
    num_workers: ArrayLike
    worker: Worker
    max_workers: int = static_field()

    def laws(self):
        return (*self.joint.members(), *super().laws())

    def sorted_draws(self, key, num_draws, dtype):
        times = self.joint.draw_rows(key, num_draws)
        return _of_all_workers(times, self.num_workers, self.max_workers).astype(dtype)


def iteration_of(problem: Problem) -> Iteration:
    """All N start-ups and cycle times of an iteration, for whatever is asked about them."""
    problem.check_single()
    delivery: dict[str, Any] = {"overlap": bool(problem.overlap)}
    if problem.start_up is not None or problem.cycle_time.has_start_up:
        start: Any = problem.start_up
        start = start if start is None or problem.random_start_up else jnp.asarray(start, problem.dtype)
        delivery |= {"start_up": start, "unit": problem.scale}
    return _iteration(problem.cycle_time, problem.num_workers, problem.max_workers, **delivery)


def _iteration(
    law: Distribution | JointDistribution, num_workers: ArrayLike, max_workers: int, **delivery: Any
) -> Iteration:
    """NaN where a traced `num_workers` is not that of a joint law; `delivery` is that of a `Worker`."""
    law.check_single()
    match law:
        case Distribution():
            return Independent(Worker(law, **delivery), num_workers, max_workers)
        case EmpiricalRows():
            times = _of_all_workers(jnp.asarray(law.times), num_workers, max_workers)
            return Sampled(Worker(_NO_LAW, **delivery), times)
        case _:
            return Drawn(law, num_workers, Worker(_NO_LAW, **delivery), max_workers)


def _of_all_workers(times: Array, num_workers: ArrayLike, max_workers: int) -> Array:
    width = times.shape[-1]
    if width != max_workers:
        raise ValueError(
            f"the law is that of {width} workers together, not of {max_workers}: workers that are not alike "
            "are neither left out nor padded"
        )
    return jnp.where(jnp.asarray(num_workers) == width, times, jnp.nan)


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

    `num_workers` may be traced where the static `max_workers` is given; columns from num_workers on hold the
    law's infimum. `dtype` is that of the law's parameters by default.

    >>> from bcgc_jax.distributions import Uniform
    >>> t = sorted_cycle_times(jax.random.key(0), Uniform(1.0, 2.0), 3, 5)
    >>> t.shape, bool((t[:, :-1] >= t[:, 1:]).all())
    ((5, 3), True)
    """
    check_key(key)
    check_whole("num_draws", num_draws, 1)
    max_workers = static_workers(num_workers, max_workers)
    dtype = working_dtype(law) if dtype is None else jnp.result_type(dtype)
    draws = _iteration(law, num_workers, max_workers).sorted_draws(key, num_draws, dtype)
    return _if_valid(draws, law, num_workers, max_workers)


def expected_order_statistics(
    law: Distribution | JointDistribution,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None = None,
    *,
    max_workers: int | None = None,
) -> Array:
    r"""E[g(T_(N-n))] for n = 0…N-1, slowest first, `[max_workers]`; E T_(N-n) without a `function`.

    Where the expectation diverges the result is inf. Columns from num_workers on hold g(ess inf T).

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> expected_order_statistics(ShiftedExponential(rate=1.0), 3).round(4)
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    max_workers = static_workers(num_workers, max_workers)
    found = _iteration(law, num_workers, max_workers).expected_order_statistics(function)
    return _if_valid(found, law, num_workers, max_workers)


def _if_valid(
    value: Array, law: Distribution | JointDistribution, num_workers: ArrayLike, max_workers: int
) -> Array:
    """NaN where numbers that are traced make no law, or no number of workers below `max_workers`."""
    if not is_traced((law, num_workers)):
        return value
    return jnp.where(law.valid() & is_count(num_workers, max_workers), value, jnp.nan)
