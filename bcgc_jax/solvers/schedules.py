r"""Schemes without a code, by name: schedules, backup workers, work that is shared out.

Their runtimes are exact where one block is covered by workers that are alike (`FirstHolder`), and where the
fastest workers are enough; else means of draws, with standard errors. The draws of a schedule are those of
the cyclic one too, whose mean is then known: what they have in common drops out (a control variate).

E τ of a schedule (see `plans.schedules`) is not convex in the sizes x ≥ 0, Σ x = L, of its blocks: it is that
of a max of mins. For `MultiMessage` stochastic subgradient steps on log x (Adam; Kingma & Ba 2015) find sizes
from each of a few orders of the tasks, among them one block, one alternating group and the paper's order.
Orders within a thousandth of the best by fresh draws, and not above the best start, are good; the good one
with the fewest blocks is searched further.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import concrete, is_traced, pytree_dataclass, replace, static_field
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.circle import schedule_runtime
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.runtime import draw_runtimes, integrate_runtime
from bcgc_jax.plans.schedules import (
    Group,
    circle_plan,
    cycles_of_problem,
    draw_circle,
    first_holder_of,
    over_draws,
    schedule_of,
    sent_of,
    tasks_of,
    turns_of,
)
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import NUM_DRAWS, Numbered


class Scheduled(Numbered):
    """A scheme without a code, in which every finished subset or chunk counts."""

    what = "a number of stored subsets"
    refuses: Sequence[str] = ("send_time",)  # who sends what is decided as they go
    baseline = True
    is_partition = False

    def is_drawn(self, problem: Problem) -> bool:
        return True

    def needs_mean(self, problem: Problem) -> bool:
        return self.is_drawn(problem)

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        """What the workers do."""
        raise NotImplementedError

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        """Judged by draws that its search has not seen."""
        search, judge = (None, None) if key is None else jax.random.split(key)
        workers, drawn = concrete(problem.num_workers), self.is_drawn(problem)
        if workers is not None and not workers.ndim and drawn:  # draws of workers that are none take as long
            problem = replace(problem, max_workers=int(workers))
        schedule = self.schedule(problem, search)
        found, needs = _evaluate(problem, schedule, judge if drawn else None)
        solution = solution_of_value(problem, found, drawn=drawn)
        return replace(solution, plan=replace(schedule, known_needs=needs))


@pytree_dataclass
class Cyclic(Scheduled):
    """Workers store `stored` subsets each and go through them one by one, around the circle.

    Amiri & Gündüz, Computation scheduling for distributed machine learning with straggling workers, 2019.
    """

    stored: int = static_field()

    word = "cyclic"
    counts = (("stored", 1),)

    def is_drawn(self, problem: Problem) -> bool:
        return not iteration_of(problem).alike

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        return schedule_of([Group(self.stored, 1)], problem.total[None])


@pytree_dataclass
class Alternating(Scheduled):
    """As `Cyclic`, in `num_blocks` equal blocks, every second subset backwards: two meet within a subset."""

    stored: int = static_field()
    num_blocks: int = static_field(default=10)

    counts = (("stored", 1), ("num_blocks", 1))
    word = "alternating"
    refuses = "send_time", "unit_costs"

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        sizes = jnp.full(self.num_blocks, problem.total / self.num_blocks)
        return schedule_of([Group(self.stored, self.num_blocks)], sizes)


@pytree_dataclass
class MultiMessage(Scheduled):
    """The schedule of least expected runtime that is found, with `max_subsets` stored (all by default).

    Sizes of blocks, their depth and the order of tasks; a local search from cyclic, alternating and block by
    block schedules, so never worse than these by more than its standard error. Needs a key.
    """

    max_subsets: int | None = static_field(default=None)

    counts = (("max_subsets", 1),)
    word = "multi_message"
    refuses = "send_time", "unit_costs"
    baseline = False

    def check(self, problem: Problem) -> None:
        super().check(problem)
        workers, stored = problem.max_workers, self._stored(problem)
        most = 2**22 // workers  # a subset of a worker takes 0.01 to 0.02 s
        if stored > most:
            raise ValueError(
                f'method="{self.name}" takes more than a day for {workers:,} workers with {stored:,} subsets '
                f'each: store fewer, as in "multi_message:{most}"'
            )

    def _stored(self, problem: Problem) -> int:
        return min(self.max_subsets or problem.max_workers, problem.max_workers)

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        assert key is not None
        stored = self._stored(problem)
        found = _searched(key, problem, stored)
        if is_traced(found):
            return found
        block = np.asarray(found.block)  # without the tasks and blocks that are none
        there = block >= 0
        turns = np.asarray(turns_of(found))[there]
        return circle_plan(found.sizes[: block.max() + 1], turns, block[there], stored)


@pytree_dataclass
class Backup(Numbered):
    """The fastest N - `spare` workers, uncoded: not the gradient of all data, but of a random part of it.

    Chen et al., Revisiting distributed synchronous SGD, 2016.
    """

    spare: int = static_field()

    counts = (("spare", 0),)
    word, what = "backup", "a number of spare workers"
    baseline = True
    is_partition = False

    def needs_mean(self, problem: Problem) -> bool:
        return False

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        one, late = np.ones(1, int), jnp.asarray([self.spare])
        rule = AnyOf(problem.num_workers, late, exact_gradient=self.spare == 0)
        plan = Plan(problem.total[None], 0 * one, one, one.astype(problem.dtype), rule)
        found = _existing(integrate_runtime(problem, plan), self.spare + 1, problem)
        return replace(solution_of_value(problem, found), plan=plan)


@jax.jit
def _evaluate(problem: Problem, schedule: Plan, key: Array | None) -> tuple[Expectation, Requirements]:
    """Expected runtime, by draws with a key, and what the schedule needs; NaN where workers are too few."""
    found = integrate_runtime(problem, schedule) if key is None else _by_draws(problem, schedule, key)
    cycles = cycles_of_problem(problem, schedule)

    def sent(starts: Array, times: Array) -> Array:
        return sent_of(schedule, cycles, times, starts, problem.num_workers)

    # The same draws always: of a figure with two digits. Of many workers each draw has many.
    draws = min(2**12, max(2**22 // problem.max_workers, 32))
    each = over_draws(jax.random.key(0), problem, sent, draws, 2 * schedule.sizes.size)
    stored = jnp.max(jnp.where(jnp.asarray(schedule.block) >= 0, turns_of(schedule) + 1, 0))
    needs = Requirements(stored, jnp.mean(each), jnp.sum(schedule.sizes > 0), jnp.asarray(True))
    return _existing(found, stored, problem), needs


def _existing(found: Expectation, least: ArrayLike, problem: Problem) -> Expectation:
    """NaN where there are fewer workers than the `least` that a scheme needs."""
    exists = jnp.asarray(problem.num_workers) >= least
    return Expectation(*(jnp.where(exists, number, jnp.nan) for number in found))


def _by_draws(problem: Problem, schedule: Plan, key: Array) -> Expectation:
    known = schedule_of([Group(first_holder_of(schedule).stored, 1)], problem.total[None])
    cycles, of_known = (cycles_of_problem(problem, one) for one in (schedule, known))
    workers = problem.num_workers

    def both(starts: Array, times: Array) -> tuple[Array, ...]:
        return tuple(schedule_runtime(of_one, times, starts, workers) for of_one in (cycles, of_known))

    width = schedule.sizes.size + 1
    tau, beside = (problem.scale * a for a in over_draws(key, problem, both, NUM_DRAWS, width))
    mean, error = jnp.mean(tau), jnp.std(tau) / NUM_DRAWS**0.5
    if not iteration_of(problem).alike:
        return Expectation(mean, error)
    exact = integrate_runtime(problem, known)
    off = beside - jnp.mean(beside)
    share = jnp.mean(off * tau) / jnp.maximum(jnp.mean(off**2), jnp.finfo(tau.dtype).tiny)
    rest = jnp.std(tau - share * beside) / NUM_DRAWS**0.5
    # Where the variance is infinite there is nothing to gain, and nothing known.
    better = jnp.isfinite(exact.value) & (rest < error)
    value = jnp.where(better, mean + share * (exact.value - jnp.mean(beside)), mean)
    return Expectation(value, jnp.where(better, rest + share * exact.error, error))


@functools.partial(jax.jit, static_argnames="stored")
def _searched(key: Array, problem: Problem, stored: int) -> Plan:
    """Padded with empty tasks and blocks."""
    search, compare, last = jax.random.split(key, 3)
    subset, block, sizes = (jnp.asarray(a) for a in _starts(stored))
    sizes = (problem.total * sizes).astype(problem.dtype)
    block = jnp.where(subset < jnp.asarray(problem.num_workers), block, -1)  # N may be below `stored`

    def mean(plan: Plan) -> Array:
        """By draws that are the same for all."""
        return jnp.mean(draw_runtimes(compare, problem, plan, 2**14))

    def found_from(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Sizes, their mean, and that of the start."""
        subset, block, sizes = given
        start = circle_plan(sizes, subset, block, stored)
        found = search_sizes(search, problem, start, steps=150, draws=256)
        before, after = (mean(start.with_sizes(x)) for x in (sizes, found))
        return jnp.where(after < before, found, sizes), jnp.fmin(before, after), before

    found, means, starts = jax.lax.map(found_from, (subset, block, sizes))
    chosen = jnp.argmax(means <= jnp.fmin(1.001 * jnp.nanmin(means), jnp.nanmin(starts)))
    best = circle_plan(found[chosen], subset[chosen], block[chosen], stored)
    polished = best.with_sizes(search_sizes(last, problem, best, steps=400, draws=512))
    better = mean(polished) < means[chosen]
    return best.with_sizes(jnp.where(better, polished.sizes, best.sizes))


def _starts(stored: int) -> list[np.ndarray]:
    """Orders of the tasks to search from, those with few blocks first.

    The subset and the block of each task, `[G, K]`, and the shares to begin with, `[G, B]`.
    """
    alone = [Group(depth, 1) for depth in range(1, min(stored, 4) + 1)]
    fronts = [alone[:n] for n in range(len(alone) + 1)]
    tried = [[*front, Group(stored, 1)] for front in fronts]
    if stored > 1:
        tried += [[*front, Group(stored, 4)] for front in fronts[1:3]]
        tried += [[*front, Group(stored, 10)] for front in fronts[:3]]
        # 0.5 % better than 2 and 16 parts at N = 20 and 50 of the paper; 8 and 32 are no better at N = 50.
        tried.append([*fronts[1], Group(2, 8), Group(stored, 16)])
    subsets, blocks = zip(*map(tasks_of, tried), strict=True)
    shares = []
    for *front, last in tried:
        # A seventh in each of the first groups: in the paper's setting at N = 20 a bit less than they get.
        share = [1 / 7 / group.num_blocks for group in front for _ in range(group.num_blocks)]
        shares.append(np.array(share + [(1 - sum(share)) / last.num_blocks] * last.num_blocks))
    return [
        np.stack([np.pad(row, (0, max(map(len, rows)) - len(row)), constant_values=padding) for row in rows])
        for rows, padding in ((subsets, 0), (blocks, -1), (shares, 0))
    ]


@functools.partial(jax.jit, static_argnames=("steps", "draws"))
def search_sizes(key: Array, problem: Problem, start: Plan, steps: int, draws: int) -> Array:
    """Sizes after so many subgradient steps, each of fresh draws; the mean of those of the last third."""
    used = start.sizes > 0
    entries = problem.max_workers * start.sizes.size * first_holder_of(start).stored
    draws = max(min(draws, 2**24 // entries), 32)  # of many workers what fits into memory

    def sizes_of(logits: Array) -> Array:
        return problem.total * jax.nn.softmax(jnp.where(used, logits, -jnp.inf))

    def loss(logits: Array, key: Array) -> Array:
        cycles = cycles_of_problem(problem, start.with_sizes(sizes_of(logits)))
        starts, times = draw_circle(key, problem, draws)
        return jnp.mean(schedule_runtime(cycles, times, starts, problem.num_workers))

    begin = jnp.log(jnp.where(used, start.sizes, 1))
    unit = loss(begin, key)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.15, steps, 0.02))

    def step(i: Array, carry: tuple) -> tuple:
        logits, state, sum_ = carry
        slope = jax.grad(loss)(logits, jax.random.fold_in(key, i)) / unit
        update, state = optimiser.update(jnp.where(used, slope, 0), state)
        logits = optax.apply_updates(logits, update)
        return logits, state, sum_ + jnp.where(i >= steps - steps // 3, sizes_of(logits), 0)

    _, _, total = jax.lax.fori_loop(0, steps, step, (begin, optimiser.init(begin), 0 * begin))
    return total / jnp.sum(total) * problem.total
