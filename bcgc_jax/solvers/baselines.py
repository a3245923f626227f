r"""The schemes that block coordinate coding is compared with, by their definitions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    at_hand,
    concrete,
    pytree_dataclass,
    replace,
    static_field,
    working_dtype,
)
from bcgc_jax.balancing import remedies
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.distributions.atoms import mass_of
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.evaluate import NUM_NODES
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import load_of_plan
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.runtime import integrate_runtime
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, assess, solution_of_value
from bcgc_jax.solvers.closed_form import (
    expected_times,
    frequency_partition,
    time_partition,
)
from bcgc_jax.solvers.method import SETUP, Method, Numbered

# Levels of partial stragglers that a round tries; up to so many workers have all of
# them tried. More take longer: rounds go on until neighbours are tried.
_LEVELS = 64
# Levels that are evaluated together, for memory.
_AT_A_TIME = 16


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ClosedForm(Method):
    """A partition that needs no search, by its function; NaN where none exists."""

    name: str
    partition: Callable[[Problem], Array] = dataclasses.field(repr=False)
    baseline: bool = True
    refuses: Sequence[str] = ()

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        return assess(problem, self.partition(problem))


@pytree_dataclass
class Backup(Numbered):
    r"""The fastest N - B workers, uncoded: the gradient of a random part of the data.

    `spare` is B; by default the one with the least time for a sample that is used: of
    the least E T_(N-B) / (1 - B/N). Chen et al., Revisiting distributed synchronous
    SGD, 2016.
    """

    spare: int | None = static_field(default=None)

    counts = (("spare", 0),)
    word = remedies.Backup.name
    what = "a number of spare workers"
    baseline = True
    is_partition = on_steps = False

    def needs_mean(self, problem: Problem) -> bool:
        return False

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        ones = np.ones(1, int)
        spare = _best_spare(problem) if self.spare is None else jnp.asarray(self.spare)
        known_spare = concrete(spare)
        exact = known_spare is not None and int(known_spare) == 0
        rule = AnyOf(problem.num_workers, spare[None], exact_gradient=exact)
        plan = Plan(
            sizes=problem.total[None],
            block=0 * ones,
            data=ones,
            share=ones.astype(problem.dtype),
            completion=rule,
        )
        runtime = integrate_runtime(problem, plan)
        exists = jnp.asarray(problem.num_workers) > spare
        runtime = Expectation(
            *(jnp.where(exists, number, jnp.nan) for number in runtime)
        )
        return replace(solution_of_value(problem, runtime), plan=plan)


@pytree_dataclass
class Tandon(Numbered):
    """Gradient coding of Tandon et al. 2017: all coordinates at one redundancy `level`.

    INFEASIBLE where the number of workers is traced and has no such level.
    """

    level: int = static_field()

    word = "tandon"
    what = "a redundancy level"
    counts = (("level", 0),)
    baseline = True

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        return assess(problem, single_level_partition(problem, self.level))


@pytree_dataclass
class Ferdinand(Numbered):
    """Hierarchical coded computation with `num_layers` (Ferdinand & Draper 2018)."""

    num_layers: int = static_field()

    word = "ferdinand"
    what = "a number of layers"
    counts = (("num_layers", 1),)
    refuses = ("unit_costs",)
    baseline = True

    @classmethod
    def highest(cls, problem: Problem) -> int | None:
        coordinates = concrete(problem.num_coordinates)
        if coordinates is None:
            return None
        return int(coordinates.min())

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        return assess(problem, ferdinand_partition(problem, self.num_layers))


@pytree_dataclass
class TandonPartial(Method):
    """Partial stragglers (Tandon et al. 2017), by default of `straggler_ratio`."""

    alpha: ArrayLike | None = None

    name = "tandon_partial"
    conditions = (("alpha", ">= 1"),)
    refuses = SETUP
    baseline = True
    is_partition = False

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        iteration = iteration_of(problem)
        workers = problem.num_workers
        alpha = (
            straggler_ratio(iteration.pooled()) if self.alpha is None else self.alpha
        )
        few_levels = (
            problem.plain
            and at_hand((problem, alpha))
            and 1 < np.max(workers) <= _LEVELS
        )
        # This takes less than a compilation.
        cheap = few_levels and iteration.evaluation_cost() <= 1e7
        best = _best_partition if cheap else tandon_partial_runtime
        runtime, level = best(problem, alpha)
        plan = partial_plan(problem, level, alpha)
        return replace(solution_of_value(problem, runtime), plan=plan)


@jax.jit
def single_level_partition(problem: Problem, level: ArrayLike) -> Array:
    """All coordinates at one `level` (Tandon et al. 2017); level 0 is uncoded."""
    is_level = jnp.arange(problem.max_workers) == level
    exists = level < jnp.asarray(problem.num_workers)
    return jnp.where(exists, jnp.where(is_level, problem.total, 0), jnp.nan)


def single_block_partition(problem: Problem) -> Array:
    r"""The best single level, argmin_s (s+1) E T_(N-s)."""
    return single_block_for_times(problem, expected_times(problem))


@jax.jit
def single_block_for_times(problem: Problem, times: Array) -> Array:
    r"""The best single level, argmin_s (s+1) t_(N-s), for `times`, slowest first."""
    cost = jnp.where(
        problem.exists, jnp.arange(1, problem.max_workers + 1) * times, jnp.inf
    )
    return single_level_partition(problem, jnp.argmin(cost))


@jax.jit
def _best_spare(problem: Problem) -> Array:
    """The number of workers left out with the least time of a sample that is used."""
    iteration = iteration_of(problem)
    besides = problem.start_up_or_zero + problem.send_load * problem.total
    step = (
        besides
        + problem.scale * problem.pass_load * iteration.expected_order_statistics()
    )
    workers = jnp.asarray(problem.num_workers, step.dtype)
    used = 1 - jnp.arange(problem.max_workers, dtype=step.dtype) / workers
    used = jnp.where(problem.exists, used, 1)
    cost = jnp.where(problem.exists, step / used, jnp.inf)
    # The one that loses the fewest samples, of numbers that are as good but for
    # rounding.
    return jnp.argmax(cost <= jnp.min(cost) * (1 + 64 * jnp.finfo(cost.dtype).eps))


@jax.jit
def ferdinand_partition(problem: Problem, num_layers: ArrayLike) -> Array:
    r"""Hierarchical coded computation with r layers (Ferdinand & Draper 2018); NaN if
    none exists.

    maximise u subject to u ≤ (s_j+1)/j, j = 1…r, Σ_j s_j = rN - L, 1 ≤ s_j ≤ N-1
    ascending; each layer holds L/r coordinates at level round(s_j). Layer r caps u at
    N/r; with few layers the sum caps it lower, where Σ max(1, uj - 1) uses it up. Every
    s with s_j ≥ uj - 1 and the right sum reaches u. Of these many optima this takes the
    one with the most equal levels (least Σ s_j²): s_j = max(c, uj - 1), with c from the
    sum. With r = L every s_j is N-1.
    """
    dtype = problem.dtype
    workers = jnp.asarray(problem.num_workers, dtype)
    layers = jnp.asarray(num_layers, dtype)
    target = layers * workers - problem.total

    def level_sum(c: Array, slope: Array) -> Array:
        flat = jnp.floor(jnp.clip((c + 1) / slope, 0, layers))
        rising = slope * (layers * (layers + 1) - flat * (flat + 1)) / 2 - (
            layers - flat
        )
        return c * flat + rising

    lowest = jnp.ones((), dtype)
    cap = workers / layers
    _, slope = bisect(
        lambda u: level_sum(lowest, u) >= target, jnp.zeros((), dtype), cap
    )
    slope = jnp.where(level_sum(lowest, cap) <= target, cap, slope)
    _, c = bisect(lambda c: level_sum(c, slope) >= target, lowest, workers - 1)
    in_range = (target >= layers) & (target <= layers * (workers - 1))
    feasible = (layers >= 1) & (workers > 1) & in_range
    level = jnp.arange(problem.max_workers, dtype=dtype)
    # Layers with s_j ≥ n - 1/2: all if the flat part is there, else those on the rising
    # part. A half goes up, also where the last bisection step misses it.
    # Layers on the rising part below n - 1/2.
    reached = jnp.ceil((level + 0.5) / slope) - 1
    at_least = jnp.where(
        c >= level - 0.5 - 1e-6, layers, layers - jnp.clip(reached, 0, layers)
    )
    count = jnp.where(problem.exists, at_least, 0)
    count = count - jnp.concatenate([count[1:], jnp.zeros(1, dtype)])
    return jnp.where(feasible, count * problem.total / layers, jnp.nan)


@jax.jit
def straggler_ratio(law: Distribution | JointDistribution) -> Array:
    r"""E[T | T > median] / E[T | T ≤ median], the α of partial stragglers in Tandon et
    al. 2017.

    (1 + ln 2)/(1 - ln 2) = 5.52 for an exponential. An atom at the median counts in
    both halves. NaN for traced numbers that make no distribution.
    """
    law = law.pooled()
    if law.atomic:
        atoms = law.breaks()
        mass = mass_of(law, law.breaks())
        share = jnp.diff(jnp.clip(jnp.cumsum(mass), 0, 0.5), prepend=0.0)
        low = jnp.sum(jnp.where(share > 0, atoms * jnp.where(share > 0, share, 1), 0))
    else:
        # ∫ Λ⁻¹(-log(1-u)) over u = e^-w / 2, w = exp(v - e^-v): both ends are
        # exponentially resolved.
        v, step = jnp.linspace(-4, 6, 401, dtype=working_dtype(law), retstep=True)
        w = jnp.exp(v - jnp.exp(-v))
        share = 0.5 * jnp.exp(-w)
        times = law.inverse_cumulative_hazard(-jnp.log1p(-share))
        low = step * jnp.sum(share * w * (1 + jnp.exp(-v)) * times)
    # A product: where the ratio is NaN its derivatives are.
    return (law.mean() - low) / low * jnp.where(law.valid(), 1.0, jnp.nan)


def alpha_of(solution: Solution) -> float:
    """The α of partial stragglers: (s+1)/(s+α) of the samples are uncoded."""
    assert solution.plan is not None
    level = np.asarray(solution.plan.data)[1] - 1
    uncoded = np.asarray(solution.plan.share)[0]
    return float((level + 1) / uncoded - level)


def _best_partition(problem: Problem, alpha: ArrayLike) -> tuple[Expectation, Array]:
    """As `tandon_partial_runtime`, by the program that assesses partitions: nothing is
    compiled.

    An uncoded part, (s+1)/(s+α) of the samples, and the rest at level s take as long as
    the partition with that share of the coordinates at level 0 and the others at level
    s.
    """
    levels = np.arange(1, int(np.max(problem.num_workers)))
    uncoded = ((levels + 1) / (levels + np.asarray(alpha)))[:, None]
    single = np.eye(problem.max_workers)
    partitions = float(problem.total) * (
        uncoded * single[0] + (1 - uncoded) * single[levels]
    )
    solutions = [
        assess(problem, jnp.asarray(x), whole_numbers=False) for x in partitions
    ]
    best = int(np.argmin([float(solution.expected_runtime) for solution in solutions]))
    runtime = Expectation(
        solutions[best].expected_runtime, solutions[best].runtime_error
    )
    return runtime, jnp.asarray(levels[best])


@jax.jit
def tandon_partial_runtime(
    problem: Problem, alpha: ArrayLike
) -> tuple[Expectation, Array]:
    r"""Partial stragglers (Tandon et al. 2017): expected runtime at the best s, and
    that s.

    τ(s) = (M b L / N) (s+1)/(s+α) max{α T_(N-s), T_(N)}, s = 1…N-1: an uncoded part and
    a part coded at level s. The best s is that without start-ups and links, which are
    then waited for too. NaN for one worker, which has no level to code at.
    """
    alpha = jnp.asarray(alpha, problem.dtype)
    best = _best_level(*jax.lax.stop_gradient((problem.without_delivery, alpha)))
    value, error = integrate_runtime(problem, partial_plan(problem, best, alpha))
    # T_(N) is waited for at every s, also where α is infinite.
    value = jnp.where(
        jnp.isfinite(iteration_of(problem).pooled().mean()), value, jnp.inf
    )
    value = jnp.where(jnp.asarray(problem.num_workers) == 1, jnp.nan, value)
    return Expectation(value, error), best


def _best_level(problem: Problem, alpha: Array) -> Array:
    """The s of the least (s+1)/(s+α) E max{α T_(N-s), T_(N)}.

    Of many workers, where it hardly changes from level to level: the best of some,
    closer together near either end, then of as many between its neighbours, until they
    are all.
    """

    def value_of(level: Array) -> Array:
        load = load_of_plan(problem, partial_plan(problem, level, alpha))
        rule = _TwoMessages(problem.num_workers, level=level)
        # Half of the nodes are enough to rank levels: the best one's runtime is that of
        # all nodes.
        runtime = iteration_of(problem).expected_completion(
            load, rule, num_nodes=NUM_NODES // 2
        )
        return jnp.where(level < problem.num_workers, runtime.value, jnp.inf)

    size = max(problem.max_workers, 2)
    grid = np.arange(1, size)
    if size > _LEVELS:
        out = np.geomspace(1, size - 1, _LEVELS // 2)
        grid = np.unique(np.r_[out, size - out].astype(int))
    gaps = [int(np.diff(grid).max(initial=1))]
    # Rounds of one shape, without a rest: one program.
    grid = np.pad(grid, (0, -grid.size % _AT_A_TIME), mode="edge")
    while gaps[-1] > 1:
        gaps.append(math.ceil(2 * gaps[-1] / (grid.size - 1)))

    def look(levels: Array, gap: Array) -> tuple[Array, Array]:
        best = levels[jnp.argmin(jax.lax.map(value_of, levels, batch_size=_AT_A_TIME))]
        inside = np.linspace(-1, 1, grid.size) * gap
        return jnp.clip(best + inside.astype(levels.dtype), 1, size - 1), best

    return jax.lax.scan(look, jnp.asarray(grid), jnp.asarray(gaps))[1][-1]


@pytree_dataclass
class _TwoMessages(AnyOf):
    r"""All workers' first messages and any N - s second ones: O(1) a time in place of
    O(N²).

    P(τ ≤ t) = p^N P(B ≤ s), with p = P(a worker has sent its first message by t), and B
    ~ Bin(N, q) those without a second one, q = P(no second one | a first one).
    """

    level: ArrayLike = 0

    def late(self, hazard: Array) -> Array:
        first = jnp.exp(-hazard[..., 0])
        second = jnp.exp(-jnp.take(hazard, self.level, axis=-1))
        workers, level = (
            jnp.asarray(n, hazard.dtype) for n in (self.num_workers, self.level)
        )
        missing = -jnp.expm1(workers * jnp.log1p(-first))
        share = jnp.clip((second - first) / jnp.where(first < 1, 1 - first, 1), 0, 1)
        too_few = jax.scipy.special.betainc(level + 1, workers - level, share)
        return missing + (1 - missing) * too_few


@jax.jit
def partial_plan(problem: Problem, level: Array, alpha: ArrayLike) -> Plan:
    """Two messages of all coordinates: uncoded samples, then those at `level`."""
    uncoded = (level + 1) / (level + jnp.asarray(alpha, problem.dtype))
    late = jnp.stack([0 * level, level])
    share = jnp.stack([uncoded, 1 - uncoded])
    sizes = jnp.stack([problem.total, problem.total])
    return Plan(
        sizes=sizes,
        block=np.arange(2),
        data=late + 1,
        share=share,
        completion=AnyOf(problem.num_workers, late),
    )


@jax.jit
def _layers(problem: Problem, share: float) -> Array:
    return ferdinand_partition(
        problem, jnp.maximum(jnp.floor(problem.total * share), 1)
    )


_full = functools.partial(_layers, share=1.0)
_half = functools.partial(_layers, share=0.5)
_FORMS = (
    ClosedForm("time", time_partition, baseline=False),
    ClosedForm("frequency", frequency_partition, baseline=False),
    ClosedForm("uncoded", functools.partial(single_level_partition, level=0)),
    ClosedForm("single_block", single_block_partition),
    ClosedForm("ferdinand_full", _full, refuses=("unit_costs",)),
    ClosedForm("ferdinand_half", _half, refuses=("unit_costs",)),
)
CLOSED_FORMS = {form.name: form for form in _FORMS}
