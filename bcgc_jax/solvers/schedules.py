r"""Schemes without a code, by name: schedules, backup workers, work that is shared out.

Their runtimes are exact where one block is covered by workers that are alike (`FirstHolder`), and where the
fastest workers are enough; else means of draws, with standard errors. The draws of a schedule are those of
the cyclic one too, whose mean is then known: what they have in common drops out (a control variate).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import concrete, pytree_dataclass, replace, static_field
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.runtime import integrate_runtime
from bcgc_jax.plans.schedules import (
    Group,
    circle_plan,
    cycles_of_problem,
    over_draws,
    schedule_of,
    schedule_runtime,
    sent_of,
    stored_by,
    turns_of,
)
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import Numbered, refuse_setup
from bcgc_jax.solvers.multi_message import optimise_multi_message
from bcgc_jax.solvers.schemes import NUM_DRAWS

# Draws of what is sent, of which two digits are enough: of many workers each draw has many.
_SENT_DRAWS, _SENT_WORKERS, _FEWEST = 2**12, 2**22, 32


class Scheduled(Numbered):
    """A scheme without a code, in which every finished subset or chunk counts."""

    baseline = True
    is_partition = False
    knows_unit_costs: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.send_time is not None:
            raise ValueError(f'method="{self.name}" knows no send_time: who sends what is decided as they go')
        if problem.unit_costs is not None and not self.knows_unit_costs:
            raise ValueError(f'method="{self.name}" cuts between coordinates: it knows no unit_costs')

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
        plan = replace(without_padding(schedule), known_needs=needs)
        return replace(solution_of_value(problem, found), plan=plan)


@jax.jit
def _evaluate(problem: Problem, schedule: Plan, key: Array | None) -> tuple[Expectation, Requirements]:
    """Expected runtime, by draws with a key, and what the schedule needs; NaN where workers are too few."""
    found = integrate_runtime(problem, schedule) if key is None else _by_draws(problem, schedule, key)
    needs = _needs_of(problem, schedule)
    exists = needs.stored_subsets <= jnp.asarray(problem.num_workers)
    return Expectation(*(jnp.where(exists, a, jnp.nan) for a in found)), needs


@pytree_dataclass
class Cyclic(Scheduled):
    """Workers store `stored` subsets each and go through them one by one, around the circle.

    Amiri & Gündüz, Computation scheduling for distributed machine learning with straggling workers, 2019.
    """

    stored: int = static_field()

    word, what = "cyclic", "a number of stored subsets"

    def is_drawn(self, problem: Problem) -> bool:
        return not iteration_of(problem).alike

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        return schedule_of([Group(self.stored, 1)], problem.total[None])


@pytree_dataclass
class Alternating(Scheduled):
    """As `Cyclic`, in `num_blocks` equal blocks, every second subset backwards: two meet within a subset."""

    stored: int = static_field()
    num_blocks: int = static_field(default=10)

    counts = (("num_blocks", 1),)
    word, what = "alternating", "a number of stored subsets"
    most_numbers = 2
    knows_unit_costs = False

    @property
    def name(self) -> str:
        return f"alternating:{self.stored}:{self.num_blocks}"

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        sizes = jnp.full(self.num_blocks, problem.total / self.num_blocks)
        return schedule_of([Group(self.stored, self.num_blocks)], sizes)


@pytree_dataclass
class Backup(Numbered):
    """The fastest N - `spare` workers, uncoded: not the gradient of all data, but of a random part of it.

    Chen et al., Revisiting distributed synchronous SGD, 2016.
    """

    spare: int = static_field()

    word, what = "backup", "a number of spare workers"
    lowest = 0
    baseline = True
    is_partition = False

    def needs_mean(self, problem: Problem) -> bool:
        return False

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        one, late = np.ones(1, int), jnp.asarray([self.spare])
        rule = AnyOf(problem.num_workers, late, exact_gradient=self.spare == 0)
        plan = Plan(problem.total[None], 0 * one, one, one.astype(problem.dtype), rule)
        exists = self.spare < jnp.asarray(problem.num_workers)
        found = (jnp.where(exists, a, jnp.nan) for a in integrate_runtime(problem, plan))
        return replace(solution_of_value(problem, Expectation(*found)), plan=plan)


@pytree_dataclass
class Sharing(Scheduled):
    """The master hands chunks, `chunks` a worker, to whoever is free, and at the end second copies.

    Each is asked for in `round_trip`, in the unit of runtimes. Every worker can read all data.
    """

    chunks: int = static_field()
    round_trip: ArrayLike = 0.0

    conditions = (("round_trip", ">= 0"),)
    word, what = "sharing", "a number of chunks a worker"

    @classmethod
    def highest(cls, problem: Problem) -> int | None:
        return None

    def check(self, problem: Problem) -> None:
        super().check(problem)
        refuse_setup(problem, self.name)

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        assert key is not None
        found = _share_out(problem, self, jax.random.split(key)[1])
        workers, one = jnp.asarray(problem.num_workers), jnp.ones((), problem.dtype)
        needs = Requirements(workers, one, jnp.asarray(self.chunks), jnp.asarray(True))
        # Nobody plans who does what.
        task = np.zeros(0, int)
        plan = Plan(problem.total[None], task, task, task.astype(problem.dtype), None, needs)
        return replace(solution_of_value(problem, found), plan=plan)


@jax.jit
def _share_out(problem: Problem, method: Sharing, key: Array) -> Expectation:
    chunk, workers = problem.total / method.chunks, jnp.asarray(problem.num_workers)
    trip = jnp.asarray(method.round_trip, problem.dtype) / problem.scale

    def shared(starts: Array, times: Array) -> Array:
        return jax.vmap(lambda s, t: share_out(s, t * chunk + trip, workers, method.chunks))(starts, times)

    # A worker's last answer needs no further question.
    tau = problem.scale * over_draws(key, problem, shared, NUM_DRAWS // 8, problem.max_workers)
    return Expectation(jnp.mean(tau), jnp.std(tau) / tau.size**0.5)


@pytree_dataclass
class MultiMessage(Scheduled):
    """The schedule of least expected runtime that is found, with `max_subsets` stored (all by default).

    Sizes of blocks, their depth and the order of tasks; a local search from cyclic, alternating and block by
    block schedules, so never worse than these by more than its standard error. Needs a key.
    """

    max_subsets: int | None = static_field(default=None)

    word, what = "multi_message", "a number of stored subsets"
    baseline = False
    knows_unit_costs = False

    def schedule(self, problem: Problem, key: Array | None) -> Plan:
        assert key is not None
        stored = problem.max_workers if self.max_subsets is None else self.max_subsets
        return optimise_multi_message(key, problem, min(stored, problem.max_workers))


def without_padding(found: Plan) -> Plan:
    """Without the tasks and blocks that are none, where it is known which these are."""
    block = concrete(jnp.asarray(found.block))
    if block is None:
        return found
    there = block >= 0
    turns = np.asarray(turns_of(found))[there]
    return circle_plan(found.sizes[: block.max() + 1], turns, block[there], stored_by(found))


def _by_draws(problem: Problem, schedule: Plan, key: Array) -> Expectation:
    known = schedule_of([Group(stored_by(schedule), 1)], problem.total[None])
    cycles, of_known = (cycles_of_problem(problem, one) for one in (schedule, known))
    workers, alike = problem.num_workers, iteration_of(problem).alike

    def both(starts: Array, times: Array) -> tuple[Array, Array]:
        tau = schedule_runtime(cycles, times, starts, workers)
        return tau, schedule_runtime(of_known, times, starts, workers) if alike else jnp.zeros_like(tau)

    width = schedule.sizes.size + 1
    tau, beside = (problem.scale * a for a in over_draws(key, problem, both, NUM_DRAWS, width))
    mean, error = jnp.mean(tau), jnp.std(tau) / NUM_DRAWS**0.5
    if not alike:
        return Expectation(mean, error)
    exact = integrate_runtime(problem, known)
    off = beside - jnp.mean(beside)
    share = jnp.mean(off * tau) / jnp.maximum(jnp.mean(off**2), jnp.finfo(tau.dtype).tiny)
    rest = jnp.std(tau - share * beside) / NUM_DRAWS**0.5
    # Where the variance is infinite there is nothing to gain, and nothing known.
    better = jnp.isfinite(exact.value) & (rest < error)
    value = jnp.where(better, mean + share * (exact.value - jnp.mean(beside)), mean)
    return Expectation(value, jnp.where(better, rest + share * exact.error, error))


def _needs_of(problem: Problem, schedule: Plan) -> Requirements:
    cycles = cycles_of_problem(problem, schedule)

    def sent(starts: Array, times: Array) -> Array:
        return sent_of(schedule, cycles, times, starts, problem.num_workers)

    # The same draws always: of a figure with two digits.
    draws = min(_SENT_DRAWS, max(_SENT_WORKERS // problem.max_workers, _FEWEST))
    found = over_draws(jax.random.key(0), problem, sent, draws, 2 * schedule.sizes.size)
    stored = jnp.max(jnp.where(jnp.asarray(schedule.block) >= 0, turns_of(schedule) + 1, 0))
    return Requirements(stored, jnp.mean(found), jnp.sum(schedule.sizes > 0), jnp.asarray(True))


def share_out(starts: Array, seconds: Array, num_workers: Array, chunks: int) -> Array:
    """When all chunks are done that are handed to whoever is free: N · `chunks`, then a second copy of each.

    `starts` and the `seconds` of a chunk, `[N]`; who asks first gets the next one. Of those that are not done
    when all have been handed out, the oldest gets the first copy.
    """
    place = np.arange(starts.size)
    exists = place < num_workers
    count = num_workers * chunks

    def asked(t: Array) -> Array:
        """How often each worker has asked by t."""
        return jnp.where(exists & (starts <= t), jnp.floor((t - starts) / seconds) + 1, 0)

    high = jnp.max(jnp.where(exists, starts + chunks * seconds, 0))
    _, last = bisect(lambda t: jnp.sum(asked(t)) >= count, jnp.zeros_like(high), high)
    had = asked(last)
    # Of those that ask in the same moment the first ones get the rest.
    surplus = jnp.sum(had) - count
    at_last = (had > 0) & (starts + (had - 1) * seconds >= last * (1 - 1e-9))
    behind = jnp.cumsum(at_last[::-1])[::-1]
    had = had - (at_last & (behind <= surplus))
    begun = starts + (had - 1) * seconds
    busy = exists & (had > 0)
    done = jnp.where(busy, begun + seconds, -jnp.inf)  # of the chunk that each has
    free = jnp.where(exists, jnp.where(busy, done, starts), jnp.inf)

    def copy(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        done, free, copied = carry
        who = jnp.argmin(free)
        now = free[who]
        left = busy & ~copied & (done > now)
        which = jnp.argmin(jnp.where(left, begun, jnp.inf))
        again = now + seconds[who]
        some = jnp.any(left)
        done = done.at[which].set(jnp.where(some, jnp.minimum(done[which], again), done[which]))
        free = free.at[who].set(jnp.where(some, again, jnp.inf))
        return done, free, copied.at[which].set(copied[which] | some)

    done, _, _ = jax.lax.fori_loop(0, 2 * starts.size, copy, (done, free, jnp.zeros(starts.size, bool)))
    return jnp.max(done)
