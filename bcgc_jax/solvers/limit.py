r"""Lower bounds on the runtime of every scheme, for given storage per worker.

`limit` is E[κ N / Σ_n 1/T_n], for workers that store all data, where κ is the number of
cycles of a pass over a subset. `limit:D` is the mean of `storage_bound` over Monte
Carlo samples, for workers that store D subsets each on average.
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
    r"""Compute the storage bound of one step.

    max_k min{t: Σ_{w among the k slowest} (t - S_w)⁺ / T_w ≥ N C(k, D) / C(N, D)}.

    The mean of this bound over steps is a lower bound on the expected runtime of every
    exact scheme in which a worker stores D subsets on average.

    Proof: Data that only k workers store can be computed only by these workers. For any
    placement, k random workers store, on average, at least N C(k, D) / C(N, D) subsets
    that no other worker stores. To see this, consider a sample that r workers store. No
    other worker stores it with probability C(k, r) / C(N, r), which is convex in r.
    Workers are exchangeable, so the same holds for the k slowest workers. Finally, the
    mean of a maximum is at least the maximum of the means.

    Args:
      starts: Start-up times S, `[N]`, or None without start-up times.
      times: Time T of a forward and a backward pass over a subset, `[N]`. Without
        start-up times, many steps are allowed, `[..., N]`, in NumPy or JAX.
      alone: N C(k, D) / C(N, D), `[N]`, from `least_alone`.
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
        """Return the earliest end of the slowest workers' work, shared among them."""
        count, data = slowest
        speed = jnp.where(rank[order] < count, 1 / times[order], 0)
        together = jnp.cumsum(speed)
        work = data + jnp.cumsum(speed * starts[order])
        ends = work / jnp.where(together > 0, together, 1)
        return jnp.min(jnp.where(together > 0, ends, jnp.inf))

    # The sets are processed one by one, because all sets together would need N² numbers
    # per sample.
    ends = jax.lax.map(least_end, (jnp.arange(workers) + 1, alone))
    return jnp.max(jnp.where(alone > 0, ends, 0))


# Number of Monte Carlo samples of the bound.
_DRAWS = 2**16
# Above this number of workers, fewer samples are used. Each takes longer, and averages
# over more workers.
_WORKERS = 2**5
# Smallest number of samples.
FEWEST_DRAWS = 2**8


@pytree_dataclass
class Limit(Numbered):
    """Bound the expected runtime of every exact scheme from below.

    If workers store all data, the bound is exact (`runtime_limit`). If they store less,
    it is a Monte Carlo estimate (`storage_bound`). That bound assumes that the
    stragglers are not known when the data are placed. This may not hold for
    heterogeneous workers and `EmpiricalRows`, so the bound for all data is used there.

    Args:
      max_subsets: Number of data subsets D that a worker stores on average. Defaults to
        all. Must be static.
      seed: Seed of the samples, if `solve` gets no key. Defaults to 0. Must be static.
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
    r"""Compute the expected runtime of perfectly divisible work without redundancy.

    E[M (L (b + h) + f) / Σ_n 1/T_n].

    It is a lower bound for every exact scheme. For each sample, all coordinates must be
    computed, in b L cycles. The worker that computes the last coordinate must pass
    through all layers, in f + h L cycles. The start-up time is added. Sending times are
    not included, so with a link the bound is loose.

    Args:
      problem: The problem.

    Returns:
      The lower bound, in the unit of the runtime. NaN if the problem is invalid.
    """
    work = problem.pass_load * problem.num_samples * problem.cycles
    value = work * iteration_of(problem).expected_shared_time(problem.dtype)
    value = value + problem.start_up_or_zero
    # A product with NaN makes the derivatives NaN, too.
    return value * jnp.where(problem.valid, 1.0, jnp.nan)


def alone_in(problem: Problem, max_subsets: int) -> np.ndarray:
    """Return the argument `alone` of `storage_bound`, `[N]`, for a known N.

    The bound for D < N needs exchangeable workers. If workers are not i.i.d., the
    placement may use knowledge about them. For example, the data of a persistent
    straggler can be stored on more workers. Then the bound for all data is used.
    """
    workers = _known_workers(problem)
    if not iteration_of(problem).alike:
        max_subsets = workers
    return least_alone(workers, max_subsets)


def _known_workers(problem: Problem) -> int:
    return int(concrete(problem.num_workers))  # type: ignore[arg-type]


def drawn_workers(key: Array, problem: Problem) -> tuple[Any, Any]:
    """Draw start-up times, in units of κ, and cycle times, `[K, N]` each.

    They are NumPy arrays if the problem is not traced. For i.i.d. workers, N is rounded
    up to a multiple of 32, so that one program serves 32 values of N.
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
    # The samples are drawn worker by worker, so padded workers do not change the
    # samples of the others.
    shape = problem.max_workers, draws
    starts, times = iteration.worker.draw(key, shape, problem.dtype)
    return starts.T, times.T


def mean_bound(
    problem: Problem, drawn: tuple[Any, Any], max_subsets: int
) -> Expectation:
    """Return the mean of the storage bound over samples, and its standard error."""
    bounds = bound_of_draws(problem, drawn, max_subsets)
    xp = np if isinstance(bounds, np.ndarray) else jnp
    mean = xp.mean(bounds)
    error = xp.std(bounds) / len(bounds) ** 0.5
    return Expectation(
        jnp.asarray(mean, problem.dtype), jnp.asarray(error, problem.dtype)
    )


def bound_of_draws(problem: Problem, drawn: tuple[Any, Any], max_subsets: int) -> Any:
    """Compute the storage bound of each sample, `[K]`, in NumPy if not traced."""
    starts, times = drawn
    alone = alone_in(problem, max_subsets)
    if not at_hand((problem, times)):
        return _compiled_bounds(problem, starts, times, alone)
    if not problem.plain:
        return np.asarray(_compiled_bounds(problem, starts, times, alone))
    # NumPy sorts in a tenth of the time, and compiles nothing.
    whole = times * np.asarray(problem.pass_load)
    return float(problem.scale) * storage_bound(None, whole, alone)


@jax.jit
def _compiled_bounds(
    problem: Problem, starts: Array, times: Array, alone: Array
) -> Array:
    """Compute the bounds in a program that serves every number of stored subsets."""
    whole = times * problem.pass_load.astype(times.dtype)
    alone = alone.astype(times.dtype)
    if problem.plain:
        return problem.scale * storage_bound(None, whole, alone)
    bounds_of = jax.vmap(lambda start, times: storage_bound(start, times, alone))
    return problem.scale * bounds_of(starts, whole)


def enough_subsets(problem: Problem) -> int:
    """Return the smallest D whose bound is within 5 % of the bound for all data.

    All bounds use the same samples. If workers are not i.i.d., the bound does not
    depend on D.
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
    """Reduce the number of samples for many workers, down to `FEWEST_DRAWS`."""
    return max(int(draws * min(1, _WORKERS / workers)), FEWEST_DRAWS)
