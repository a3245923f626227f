r"""What no scheme beats: perfectly divisible work, and the bound of storage.

`limit` is E[κ N / Σ_n 1/T_n], of workers that store all data, with κ the cycles of a
pass over a subset. `limit:D` is the mean of `plans.storage_bound` over draws, of
workers that store D subsets each on average.
"""

import bisect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import at_hand, concrete, pytree_dataclass, replace, static_field
from bcgc_jax.balancing import remedies
from bcgc_jax.balancing.storage import least_alone
from bcgc_jax.distributions.order import slowest_first
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.draws import draw_workers
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import Numbered


def storage_bound(starts: Array | None, times: Any, alone: Any) -> Any:
    r"""max_k min{t: Σ_{w among the k slowest} (t - S_w)⁺ / T_w ≥ N C(k, D) / C(N, D)},
    of one draw.

    No exact scheme with D subsets stored has a mean below that of these. S, `[N]`, are
    the start-ups, None if there are none; T, `[N]`, the seconds for a subset, forward
    and backward pass; `alone` is `least_alone`. Without start-ups `times` may be those
    of many draws, `[..., N]`, also of NumPy.

    Data that only k workers store can only be computed by these. However the data are
    placed, k workers that are picked at random store at least N C(k, D) / C(N, D)
    subsets that nobody else has, on average: with r holders of a datum this is C(k, r)
    / C(N, r), which is convex in r. Workers are exchangeable, so the k slowest are as
    good as k random ones. A mean of maxima is at least the maximum of means.
    """
    if starts is None:
        xp = np if isinstance(times, np.ndarray) else jnp
        together = xp.cumsum(1 / slowest_first(times), axis=-1)
        return xp.max(xp.asarray(alone, times.dtype) / together, axis=-1)
    workers = len(times)
    alone = jnp.asarray(alone, times.dtype)
    rank = jnp.zeros(workers, int).at[jnp.argsort(-times)].set(np.arange(workers))
    order = jnp.argsort(starts)

    def least_end(slowest: tuple[Array, Array]) -> Array:
        """When the slowest are done: those that have begun by then share the work."""
        count, data = slowest
        speed = jnp.where(rank[order] < count, 1 / times[order], 0)
        together = jnp.cumsum(speed)
        work = data + jnp.cumsum(speed * starts[order])
        ends = work / jnp.where(together > 0, together, 1)
        return jnp.min(jnp.where(together > 0, ends, jnp.inf))

    # One set after the other: all together would be N² numbers for each draw.
    ends = jax.lax.map(least_end, (jnp.arange(workers) + 1, alone))
    return jnp.max(jnp.where(alone > 0, ends, 0))


# Draws of the bound.
_DRAWS = 2**16
# More workers than these have fewer draws: each takes longer and says more.
_WORKERS = 2**5
# The fewest draws.
FEWEST_DRAWS = 2**8


@pytree_dataclass
class Limit(Numbered):
    """What no scheme beats whose workers store `max_subsets` subsets each; by default
    all.

    Of all it is exact (`runtime_limit`). Of fewer it is a mean of draws, of `seed`
    where `solve` is given no key, for exact schemes that do not know who will be slow
    when the data are placed (`storage_bound`). Where one may know that, for workers
    that are not alike and for whole rows, it is the limit of all data: no bound of less
    is known there.
    """

    max_subsets: int | None = static_field(default=None)
    seed: int = static_field(default=0)

    word = remedies.Limit.name
    what = "a number of subsets that each worker stores"
    counts = (("max_subsets", 1),)
    is_partition = on_steps = False

    @property
    def fixed_workers(self) -> bool:  # type: ignore[override]
        return self.max_subsets is not None

    def is_drawn(self, problem: Problem) -> bool:
        return self.max_subsets is not None

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        if self.max_subsets is None:
            value = runtime_limit(problem)
            return solution_of_value(problem, Expectation(value, jnp.zeros_like(value)))
        assert key is not None
        bound = mean_bound(problem, drawn_workers(key, problem), self.max_subsets)
        return solution_of_value(problem, bound, drawn=True)


@jax.jit
def runtime_limit(problem: Problem) -> Array:
    r"""E[M (L (b + h) + f) / Σ_n 1/T_n]: perfectly divisible work of which every cycle
    counts.

    No scheme that gives the whole gradient beats it. Of each sample all coordinates
    must be computed, b L in all, and whoever computes the last of them goes through all
    layers, f + h L. With start-ups E S_(1) comes before it, which no scheme beats
    either; with a link no scheme comes near.
    """
    work = problem.pass_load * problem.num_samples * problem.cycles
    value = work * iteration_of(problem).expected_shared_time(problem.dtype)
    value = value + problem.start_up_or_zero
    return value * jnp.where(problem.valid, 1.0, jnp.nan)  # and so are its derivatives


def alone_in(problem: Problem, max_subsets: int) -> np.ndarray:
    """What `storage_bound` takes as `alone`, `[N]`, for a known number of workers.

    If workers are not alike it is that of all data. That of less holds where any set of
    workers is as likely to be slow as another. Rows forget who is who, but those who
    place the data may know it: the data of a worker that is always slow are stored
    elsewhere too.
    """
    workers = _known_workers(problem)
    if not iteration_of(problem).alike:
        max_subsets = workers
    return least_alone(workers, max_subsets)


def _known_workers(problem: Problem) -> int:
    return int(concrete(problem.num_workers))  # type: ignore[arg-type]


def drawn_workers(key: Array, problem: Problem) -> tuple[Any, Any]:
    """Start-ups, in units of κ, and cycle times, `[K, N]` each; of NumPy where known.

    One program serves 32 numbers of workers that are alike.
    """
    workers = _known_workers(problem)
    size = workers
    if iteration_of(problem).alike:
        size = _WORKERS * math.ceil(workers / _WORKERS)
    drawn = _drawn(key, replace(problem, max_workers=size))
    if at_hand((key, problem)):
        drawn = tuple(map(np.asarray, drawn))
    return drawn[0][:, :workers], drawn[1][:, :workers]


@jax.jit
def _drawn(key: Array, problem: Problem) -> tuple[Array, Array]:
    iteration = iteration_of(problem)
    draws = number_of_draws(_DRAWS, problem.max_workers)
    if not iteration.alike:
        return draw_workers(key, problem, draws)
    # Worker by worker: those that do not exist change no draw of the others.
    shape = problem.max_workers, draws
    starts, times = iteration.worker.draw(key, shape, problem.dtype)
    return starts.T, times.T


def mean_bound(
    problem: Problem, drawn: tuple[Any, Any], max_subsets: int
) -> Expectation:
    """The mean of the storage bound over draws, a runtime, and its standard error."""
    bounds = bound_of_draws(problem, drawn, max_subsets)
    xp = np if isinstance(bounds, np.ndarray) else jnp
    mean = xp.mean(bounds)
    error = xp.std(bounds) / len(bounds) ** 0.5
    return Expectation(
        jnp.asarray(mean, problem.dtype), jnp.asarray(error, problem.dtype)
    )


def bound_of_draws(problem: Problem, drawn: tuple[Any, Any], max_subsets: int) -> Any:
    """The storage bound of each draw, `[K]`, a runtime; NumPy's where it is known."""
    starts, times = drawn
    alone = alone_in(problem, max_subsets)
    if not at_hand((problem, times)):
        return _compiled_bounds(problem, starts, times, alone)
    if not problem.plain:
        return np.asarray(_compiled_bounds(problem, starts, times, alone))
    # NumPy sorts in a tenth of the time, and has nothing to compile.
    whole = times * np.asarray(problem.pass_load)
    return float(problem.scale) * storage_bound(None, whole, alone)


@jax.jit
def _compiled_bounds(
    problem: Problem, starts: Array, times: Array, alone: Array
) -> Array:
    """The bound of each draw, by one program for all numbers of stored subsets."""
    whole = times * problem.pass_load.astype(times.dtype)
    alone = alone.astype(times.dtype)
    if problem.plain:
        return problem.scale * storage_bound(None, whole, alone)
    bounds_of = jax.vmap(lambda start, times: storage_bound(start, times, alone))
    return problem.scale * bounds_of(starts, whole)


def enough_subsets(problem: Problem) -> int:
    """The fewest stored subsets whose limit is within 5 % of that of all data, by one
    set of draws.

    Of workers that are alike: of others the limit is that of all data, whatever they
    store.
    """
    workers = _known_workers(problem)
    drawn = drawn_workers(jax.random.key(0), problem)

    def limit(stored: int) -> float:
        return float(mean_bound(problem, drawn, stored).value)

    target = 1.05 * limit(workers)
    return 1 + bisect.bisect_left(
        range(1, workers), True, key=lambda stored: limit(stored) <= target
    )


def number_of_draws(draws: int, workers: int) -> int:
    """Fewer draws for many workers: each takes longer and says more."""
    return max(int(draws * min(1, _WORKERS / workers)), FEWEST_DRAWS)
