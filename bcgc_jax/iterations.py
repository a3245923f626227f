"""All N cycle times of an iteration: independent ones of one law, a sample of iterations, draws alone.

A law is of one time, an iteration of all; `Problem.iteration` makes it once, and everything else asks it.
Times are slowest first: axis n holds T_(N-n).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax import expectation, order_statistics
from bcgc_jax._pytree import check_key, check_whole, is_traced, pytree_dataclass, static_field, working_dtype
from bcgc_jax.crossing import crossing_probability
from bcgc_jax.deliveries import Load, Worker, delivered, last_of_draws
from bcgc_jax.expectation import NUM_NODES, with_rounding
from bcgc_jax.laws import Atomic, Empirical, JointLaw, Law, Pairs, Rows, Smooth
from bcgc_jax.laws.atoms import mass_of
from bcgc_jax.laws.joint import NO_EXACT_ANSWER
from bcgc_jax.order_statistics import is_count, max_finish_time, static_workers
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.evaluate import evaluation_cost, exceedance, expected_completion, smoothed_exceedance
from bcgc_jax.quadrature import Expectation


class Iteration:
    """What is asked about an iteration's times; `load` is `[max_workers]` and ascends, or a `Load` of such.

    A new dependence of the workers is a subclass with `sorted_draws` and `laws`; one with `exact` answers has
    all of it. `polyhedral` says whether E max_n load_n T_(N-n) is so in the load; `smooth`, whether it is an
    integral by rules that nest.
    """

    exact = False

    @property
    def polyhedral(self) -> bool:
        raise ValueError(NO_EXACT_ANSWER)

    @property
    def smooth(self) -> bool:
        raise ValueError(NO_EXACT_ANSWER)

    @property
    def stepped(self) -> bool:
        """Whether P(max > t) is a step function of the load."""
        return self.polyhedral

    def least_start_up(self) -> Array:
        """E S_(1), of the shortest start-up of the N workers, in the unit of runtimes."""
        return jnp.zeros(())

    def typical_start_up(self) -> Array:
        """The mean start-up, in the unit of runtimes; the median where that is infinite."""
        return jnp.zeros(())

    def laws(self) -> Sequence[Law]:
        """The laws whose means must be finite."""
        return ()

    def sorted_draws(self, key: Array, num_draws: int, dtype: Any) -> Array:
        """Draws of the times, `[num_draws, max_workers]`."""
        raise NotImplementedError

    def simulate_max(self, key: Array, load: Any, num_draws: int) -> Array:
        """Draws of max_n load_n T_(N-n), `[num_draws]`."""
        return max_finish_time(load, self.sorted_draws(key, num_draws, load.dtype))

    def max_of_sorted(self, load: Any, times: Array) -> Array:
        """max_n load_n T_(N-n) for times that are sorted already, slowest first, `[..., N]` to `[...]`."""
        return max_finish_time(load, times)

    def pooled(self) -> Law:
        """The law of one worker's time."""
        raise ValueError(NO_EXACT_ANSWER)

    def evaluation_cost(self) -> float:
        """Operations of one expectation as far as it grows with measured times."""
        raise ValueError(NO_EXACT_ANSWER)

    def typical_times(self, deviations: Sequence[float]) -> Array:
        """Times so many standard deviations from the typical ones, `[len(deviations), max_workers]`."""
        raise ValueError(NO_EXACT_ANSWER)

    def expected_order_statistics(self, function: Callable[[Array], Array] | None = None) -> Array:
        """E g(T_(N-n)), `[max_workers]`, of the `function` g; of T without one."""
        raise ValueError(NO_EXACT_ANSWER)

    def expected_max(
        self, load: Any, *, num_nodes: int = NUM_NODES, written_out: bool = False
    ) -> Expectation:
        """E max_n load_n T_(N-n)."""
        raise ValueError(NO_EXACT_ANSWER)

    def expected_max_and_slope(
        self, load: Any, *, num_nodes: int = NUM_NODES, written_out: bool = False
    ) -> tuple[Expectation, Array]:
        """The same with its slope in the load; only the value can be differentiated."""
        raise ValueError(NO_EXACT_ANSWER)

    def exceedance(self, load: Any, t: Array) -> Array:
        """P(max_n load_n T_(N-n) > t), for t of any shape."""
        raise ValueError(NO_EXACT_ANSWER)

    def smoothed_exceedance(self, load: Any, t: Array, spread: Array) -> Array:
        """The same for one t, with the steps of a `polyhedral` iteration spread by a factor e^±`spread`."""
        raise ValueError(NO_EXACT_ANSWER)

    def order_survival(self, t: Array) -> Array:
        """P(T_(N-n) > t_n), `[max_workers]`."""
        raise ValueError(NO_EXACT_ANSWER)

    def expected_larger(self, alpha: Array, levels: Array) -> Expectation:
        """E max(α T_(N-s), T_(N)), α ≥ 1, for the `levels` s."""
        raise ValueError(NO_EXACT_ANSWER)

    def expected_shared_time(self, dtype: Any) -> Array:
        """E[1 / Σ_n 1/T_n], the time of a cycle that all workers share."""
        raise ValueError(NO_EXACT_ANSWER)


@pytree_dataclass
class Independent(Iteration):
    """N independent times of one `law`; N may be traced, and padded levels hold ess inf T."""

    law: Law
    num_workers: ArrayLike
    max_workers: int = static_field()

    exact = True

    @property
    def polyhedral(self) -> bool:
        return isinstance(self.law.pieces(), Atomic)

    @property
    def smooth(self) -> bool:
        return isinstance(self.law.pieces(), Smooth)

    def laws(self):
        return (self.law,)

    def pooled(self):
        return self.law

    def evaluation_cost(self):
        pieces = self.law.pieces()
        return float(pieces.times.size * self.max_workers**3) if isinstance(pieces, Atomic) else 0.0

    def sorted_draws(self, key, num_draws, dtype):
        return order_statistics.sorted_draws(
            key, self.law, self.num_workers, num_draws, self.max_workers, dtype
        )

    def simulate_max(self, key, load, num_draws):
        return order_statistics.simulate_max(key, self.law, load, self.num_workers, num_draws)

    def typical_times(self, deviations):
        one = jnp.ones(self.max_workers, working_dtype(self.law))
        sigma = np.asarray(deviations, one.dtype)[:, None]
        mean, above = order_statistics.typical_hazards(one, self.num_workers, (0.0, 1.0))
        spread = above - mean
        # In the logarithm below: a time is positive.
        below = mean * jnp.exp(np.minimum(sigma, 0) * spread / jnp.where(mean > 0, mean, 1))
        hazard = below + np.maximum(sigma, 0) * spread
        return self.law.inverse_cumulative_hazard(hazard.astype(one.dtype))

    def expected_order_statistics(self, function=None):
        return order_statistics.moments(self.law, self.num_workers, function, self.max_workers)

    def expected_max(self, load, *, num_nodes=NUM_NODES, written_out=False):
        return expectation.expected_max(
            self.law, load, self.num_workers, num_nodes=num_nodes, written_out=written_out
        )

    def expected_max_and_slope(self, load, *, num_nodes=NUM_NODES, written_out=False):
        return expectation.expected_max_and_slope(
            self.law, load, self.num_workers, num_nodes=num_nodes, written_out=written_out
        )

    def exceedance(self, load, t):
        return expectation.exceedance(self.law, load, self.num_workers, t)

    def smoothed_exceedance(self, load, t, spread):
        pieces = self.law.pieces()
        if not isinstance(pieces, Atomic):
            return self.exceedance(load, t)
        mass, tiny = mass_of(self.law, pieces.times), jnp.finfo(load.dtype).tiny
        log_threshold = jnp.log(t) - jnp.log(jnp.where(load > 0, load, 1))
        slow = mass * jax.nn.sigmoid((jnp.log(pieces.times) - log_threshold[:, None]) / spread)
        survival = jnp.where(load > 0, jnp.maximum(jnp.sum(slow, axis=1), tiny), tiny)
        return crossing_probability(-jnp.log(survival), self.num_workers)

    def order_survival(self, t):
        return order_statistics.order_survival(self.law, self.num_workers, t)

    def expected_larger(self, alpha, levels):
        return expectation.expected_larger(
            self.law, alpha, levels, self.num_workers, self.max_workers, jnp.result_type(alpha)
        )

    def expected_shared_time(self, dtype):
        return order_statistics.expected_shared_time(self.law, self.num_workers, dtype)


@pytree_dataclass
class Sampled(Iteration):
    """Equally likely iterations, `times` `[S, N]`, slowest first: all is a mean over them, so exact."""

    times: Array

    exact = True

    @property
    def polyhedral(self) -> bool:
        return True

    @property
    def smooth(self) -> bool:
        return False

    def pooled(self):
        return Rows(self.times).pooled()

    def evaluation_cost(self):
        return float(self.times.size)

    def sorted_draws(self, key, num_draws, dtype):
        chosen = jax.random.randint(key, (num_draws,), 0, len(self.times))
        return self.times[chosen].astype(dtype)

    def typical_times(self, deviations):
        log_times = jnp.log(self.times)
        spread = jnp.std(log_times, axis=0) * np.asarray(deviations, log_times.dtype)[:, None]
        return jnp.exp(jnp.mean(log_times, axis=0) + spread)

    def expected_order_statistics(self, function=None):
        return jnp.mean(self.times if function is None else function(self.times), axis=0)

    def expected_max(self, load, *, num_nodes=NUM_NODES, written_out=False):
        value = jnp.mean(max_finish_time(load, self.times.astype(load.dtype)))
        return with_rounding(load, Expectation(value, jnp.zeros_like(value)))

    def expected_max_and_slope(self, load, *, num_nodes=NUM_NODES, written_out=False):
        def value_of(load: Array) -> tuple[Array, Expectation]:
            found = self.expected_max(load)
            return found.value, found

        slope, found = jax.grad(value_of, has_aux=True)(load)
        return found, slope

    def exceedance(self, load, t):
        finish = jnp.sort(max_finish_time(load, self.times.astype(load.dtype)))
        return 1 - jnp.searchsorted(finish, t, side="right") / jnp.asarray(finish.size, load.dtype)

    def smoothed_exceedance(self, load, t, spread):
        log_finish = jnp.log(max_finish_time(load, self.times.astype(load.dtype)))
        return jnp.mean(jax.nn.sigmoid((log_finish - jnp.log(t)) / spread))

    def order_survival(self, t):
        return jnp.mean(self.times > t, axis=0, dtype=t.dtype)

    def expected_larger(self, alpha, levels):
        larger = jnp.maximum(alpha * self.times[:, levels], self.times[:, :1])
        mean = jnp.mean(larger, axis=0).astype(jnp.result_type(alpha))
        return Expectation(mean, jnp.zeros_like(mean))

    def expected_shared_time(self, dtype):
        return jnp.mean(1 / jnp.sum(1 / self.times, axis=1)).astype(dtype)


@pytree_dataclass
class Drawn(Iteration):
    """Workers of which only draws tell: those of a `JointLaw` without exact answers."""

    law: JointLaw
    num_workers: ArrayLike
    max_workers: int = static_field()

    def laws(self):
        return self.law.members()

    def sorted_draws(self, key, num_draws, dtype):
        times = self.law.draw_rows(key, num_draws)
        return _of_all_workers(times, self.num_workers, self.max_workers).astype(dtype)


@pytree_dataclass
class Delivering(Iteration):
    """The same workers, `of`, with start-ups and a link: the loads are `Load`s, times in units of κ."""

    of: Iteration
    worker: Worker

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.of.exact

    @property
    def polyhedral(self) -> bool:
        """Whether E max is so in the load; with random start-ups it is not even convex."""
        return self.worker.constant and self.of.polyhedral

    @property
    def smooth(self) -> bool:
        return False

    @property
    def stepped(self) -> bool:
        return self.of.polyhedral and self.worker.stepwise

    def typical_start_up(self):
        start = self.worker.start_up
        if isinstance(self.worker.cycle_time, Pairs):
            return jnp.mean(self.worker.cycle_time.arrays()[0])
        if not isinstance(start, Law):
            return jnp.asarray(start)
        median, mean = start.inverse_cumulative_hazard(jnp.log(2.0)), start.mean()
        return jnp.where(jnp.isfinite(mean), mean, median)

    def least_start_up(self):
        if self.worker.constant:
            return jnp.asarray(self.worker.start_up)
        assert isinstance(self.of, Independent)
        return jnp.take(self.expected_start_ups(), jnp.asarray(self.of.num_workers, int) - 1)

    def expected_start_ups(self) -> Array:
        """E S_(N-n) of random start-ups, slowest first, `[max_workers]`."""
        worker = self.worker
        assert isinstance(self.of, Independent)
        law = worker.start_up
        if isinstance(worker.cycle_time, Pairs):
            starts = worker.cycle_time.arrays()[0]
            law = Empirical(jnp.maximum(starts, jnp.finfo(starts.dtype).tiny))  # 0 is no time
        assert isinstance(law, Law)
        return order_statistics.moments(law, self.of.num_workers, None, self.of.max_workers)

    def laws(self):
        start = self.worker.start_up
        return (*self.of.laws(), *([start] if isinstance(start, Law) else []))

    def evaluation_cost(self):
        if isinstance(self.of, Sampled):
            return self.of.evaluation_cost()
        return evaluation_cost(self.worker, self.of.max_workers)  # type: ignore[attr-defined]

    def max_of_sorted(self, load, times):
        """When all is delivered, where all have one start-up."""
        ready = delivered(load, times.astype(load.work.dtype), self.worker.overlap)
        return self.worker.infimum().astype(load.work.dtype) + jnp.max(ready, axis=-1)

    def simulate_max(self, key, load, num_draws):
        if self.worker.constant:
            return self.max_of_sorted(load, self.of.sorted_draws(key, num_draws, load.work.dtype))
        assert isinstance(self.of, Independent)
        starts, times = self.worker.draw(key, (num_draws, self.of.max_workers), load.work.dtype)
        return last_of_draws(self.worker, load, starts, times, self.of.num_workers)

    def expected_max(self, load, *, num_nodes=NUM_NODES, written_out=False):
        del written_out
        match self.of:
            case Independent(num_workers=workers):
                return expected_completion(self.worker, load, AnyOf(workers), num_nodes=num_nodes)
            case Sampled(times=times):
                value = jnp.mean(self.max_of_sorted(load, times))
                return with_rounding(load.work, Expectation(value, jnp.zeros_like(value)))
        raise ValueError(NO_EXACT_ANSWER)

    def expected_max_and_slope(self, load, *, num_nodes=NUM_NODES, written_out=False):
        def value_of(load: Load) -> tuple[Array, Expectation]:
            found = self.expected_max(load, num_nodes=num_nodes)
            return found.value, found

        slope, found = jax.grad(value_of, has_aux=True)(load)
        return found, jax.lax.stop_gradient(slope)

    def exceedance(self, load, t):
        match self.of:
            case Independent(num_workers=workers):
                return exceedance(self.worker, load, AnyOf(workers), t)
            case Sampled(times=times):
                finish = jnp.sort(self.max_of_sorted(load, times))
                return 1 - jnp.searchsorted(finish, t, side="right") / jnp.asarray(finish.size, finish.dtype)
        raise ValueError(NO_EXACT_ANSWER)

    def smoothed_exceedance(self, load, t, spread):
        match self.of:
            case Independent(num_workers=workers):
                if not self.stepped:
                    return self.exceedance(load, t)
                return smoothed_exceedance(self.worker, load, AnyOf(workers), t, spread)
            case Sampled(times=times):
                log_finish = jnp.log(self.max_of_sorted(load, times))
                return jnp.mean(jax.nn.sigmoid((log_finish - jnp.log(t)) / spread))
        raise ValueError(NO_EXACT_ANSWER)


def iteration_of(law: Law | JointLaw, num_workers: ArrayLike, max_workers: int | None = None) -> Iteration:
    """The iteration of N workers; NaN where a traced `num_workers` is not that of a joint law."""
    max_workers = static_workers(num_workers, max_workers)
    law.check_single()
    match law:
        case Law():
            return Independent(law, num_workers, max_workers)
        case Rows():
            return Sampled(_of_all_workers(jnp.asarray(law.times), num_workers, max_workers))
        case _:
            return Drawn(law, num_workers, max_workers)


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
    law: Law | JointLaw,
    num_workers: ArrayLike,
    num_draws: int,
    *,
    max_workers: int | None = None,
    dtype: Any = None,
) -> Array:
    """Draws of the sorted cycle times, slowest first, `[num_draws, max_workers]`.

    `num_workers` may be traced where the static `max_workers` is given; columns from num_workers on
    hold the law's infimum. `dtype` is that of the law's parameters by default.

    >>> from bcgc_jax.laws import Uniform
    >>> t = sorted_cycle_times(jax.random.key(0), Uniform(1.0, 2.0), 3, 5)
    >>> t.shape, bool((t[:, :-1] >= t[:, 1:]).all())
    ((5, 3), True)
    """
    check_key(key)
    check_whole("num_draws", num_draws, 1)
    max_workers = static_workers(num_workers, max_workers)
    dtype = working_dtype(law) if dtype is None else jnp.result_type(dtype)
    draws = iteration_of(law, num_workers, max_workers).sorted_draws(key, num_draws, dtype)
    return _if_valid(draws, law, num_workers, max_workers)


def expected_order_statistics(
    law: Law | JointLaw,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None = None,
    *,
    max_workers: int | None = None,
) -> Array:
    r"""E[g(T_(N-n))] for n = 0…N-1, slowest first, `[max_workers]`; E T_(N-n) without a `function`.

    For one law by quadrature against the density of U_(k), or a sum over atoms; for `Rows` a mean over them.
    Where the expectation diverges the result is inf. Columns from num_workers on hold g(ess inf T).

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> expected_order_statistics(ShiftedExponential(rate=1.0), 3).round(4)
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    max_workers = static_workers(num_workers, max_workers)
    found = iteration_of(law, num_workers, max_workers).expected_order_statistics(function)
    return _if_valid(found, law, num_workers, max_workers)


def _if_valid(value: Array, law: Law | JointLaw, num_workers: ArrayLike, max_workers: int) -> Array:
    """NaN where numbers that are traced make no law, or no number of workers below `max_workers`."""
    if not is_traced((law, num_workers)):
        return value
    return jnp.where(law.valid() & is_count(num_workers, max_workers), value, jnp.nan)
