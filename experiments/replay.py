"""What plans that were made from the past of measured times would have taken in the steps that followed.

A plan is made once, from the first part, or anew every few steps, from a window of the last ones. Times are
of whole steps as they were recorded: uncoded a step takes its longest time, and a worker's time is
proportional to its work. Beside the plans with a code there are three kinds without: schedules, in which
every finished subset counts, work that a master shares out chunk by chunk, and shares of the data in
proportion to each worker's speed, 1 / its mean time so far.

Worker w of a trace is worker w on the circle of a schedule in every step: a cluster does not reshuffle its
data, so who is slow stays beside the same neighbours. What questions take is left out.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax.adaptive import WorkPlan
from bcgc_jax.plans.circle import schedule_runtime
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.runtime import draw_runtimes
from bcgc_jax.plans.schedules import Group, cycles_of, schedule_of
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.worker import Load
from bcgc_jax.solvers.schedules import MultiMessage
from experiments.report import each

# So many that whole numbers of them need no search.
COORDINATES = 1_000_000
# Chunks a worker of work that is shared out, blocks of an alternating schedule, and draws of a promise.
CHUNKS, _BLOCKS, _DRAWS = 5, 10, 2**14
# What comes before the alternating blocks of a multi-message schedule. In the first halves of four traces the
# better of both is within 0.2 % of what six orders and twice the steps find.
_FRONTS = (Group(1, 1),), (Group(1, 1), Group(2, 2))
# Adam's steps, and the largest of them.
_STEPS, _LARGEST_STEP = 300, 0.2

# The times of steps under a plan: `[R, N]` to `[R]`.
Runtimes = Callable[[np.ndarray], np.ndarray]
# From steps, `[R, N]`, the time of a step that a plan promises, and the plan.
Planned = Callable[[np.ndarray], tuple[float, Runtimes]]


class Rule(NamedTuple):
    """How a plan is made, from how many of the last steps, every how many; 0 for once, from all before."""

    plan: Planned
    window: int = 0
    every: int = 0


class Replayed(NamedTuple):
    """A scheme in the steps that followed, `[R]` each: what its plan promised, and what it took."""

    promised: np.ndarray
    taken: np.ndarray


def problem(law: bcgc.distributions.Distribution | bcgc.EmpiricalRows, num_workers: int) -> bcgc.Problem:
    """One step as it was recorded: uncoded, a worker spends a cycle."""
    return bcgc.Problem(law, num_workers, COORDINATES, cycles=num_workers / COORDINATES)


def pooled(rows: np.ndarray) -> bcgc.distributions.Distribution:
    """The law of all times, as if workers were alike and steps independent."""
    try:
        return bcgc.measured.smooth_empirical(rows.ravel())
    except ValueError:  # too few different times for a curve
        return bcgc.Empirical(rows.ravel())


def _coded(partition: np.ndarray) -> WorkPlan:
    workers = partition.size
    return WorkPlan("coded", _even(workers), partition_plan(partition / partition.sum(), workers))


def _even(workers: int) -> np.ndarray:
    return np.full(workers, 1 / workers)


def _as_seen(plan: WorkPlan, rows: np.ndarray) -> tuple[float, Runtimes]:
    """A plan that promises the mean of the steps that it was made from."""
    return float(plan.runtimes(rows).mean()), plan.runtimes


def _solved(
    law: Callable[[np.ndarray], bcgc.distributions.Distribution | bcgc.EmpiricalRows], method: str
) -> Planned:
    def plan(rows: np.ndarray) -> tuple[float, Runtimes]:
        solution = bcgc.solve(given := problem(law(rows), rows.shape[1]), method)
        plan: Any = solution.plan
        plan = bcgc.solvers.place_workers(given, plan, rows) if method == "nested" else plan
        made = WorkPlan(method, _even(rows.shape[1]), plan.with_sizes(plan.sizes / COORDINATES))
        return float(solution.expected_runtime), made.runtimes

    return plan


def _last_step(rows: np.ndarray) -> tuple[float, Runtimes]:
    return _as_seen(_coded(best_partition(rows[-1])), rows[-1:])


def best_partition(times: np.ndarray) -> np.ndarray:
    """The best partition of a step if its times were known (Theorem 2): y_n ∝ 1/t_(N-n), `[N]`."""
    return np.diff(np.sort(1 / times), prepend=0) / np.arange(1, times.size + 1)


def _by_speed(rows: np.ndarray) -> tuple[float, Runtimes]:
    speed = 1 / rows.mean(axis=0)
    return _as_seen(WorkPlan("shares", speed / speed.sum(), schedule_of([Group(1, 1)], np.ones(1))), rows)


def _scheduled(schedule: Plan, workers: int) -> WorkPlan:
    return WorkPlan("schedule", _even(workers), schedule.with_sizes(schedule.sizes / schedule.sizes.sum()))


def _equal_blocks(blocks: int, stored: int | None = None) -> Planned:
    """All subsets, or so many, in blocks of one size: nothing of the times is in it but the promise."""

    def plan(rows: np.ndarray) -> tuple[float, Runtimes]:
        workers = rows.shape[1]
        group = Group(min(stored or workers, workers), blocks)
        return _as_seen(_scheduled(schedule_of([group], np.ones(blocks)), workers), rows)

    return plan


def _multi_message_alike(rows: np.ndarray) -> tuple[float, Runtimes]:
    """The package's search for workers that are alike, all subsets stored."""
    workers, (search, compare) = rows.shape[1], jax.random.split(jax.random.key(0))
    given = problem(pooled(rows), workers)
    found = MultiMessage().schedule(given, search)
    promised = jnp.mean(draw_runtimes(compare, given, found, _DRAWS))
    return float(promised), _scheduled(found, workers).runtimes


def _multi_message(stored: int | None = None) -> Planned:
    """Sizes of least mean runtime that are found for the steps as they were, workers in their places."""

    def plan(rows: np.ndarray) -> tuple[float, Runtimes]:
        workers = rows.shape[1]
        last = Group(min(stored or workers, workers), _BLOCKS)
        orders = [(*front, last) for front in _FRONTS if front[-1].depth < last.depth] or [(last,)]
        found = [schedule_of(order, _fitted(jnp.asarray(rows), order)) for order in orders]
        return min((_as_seen(_scheduled(one, workers), rows) for one in found), key=lambda one: one[0])

    return plan


@functools.partial(jax.jit, static_argnames="order")
def _fitted(rows: Array, order: Sequence[Group]) -> Array:
    """Subgradient steps on log x, half of the coordinates in the last group at first; the best seen."""
    *front, last = order
    before = sum(group.num_blocks for group in front)
    shares = 0.5 / max(before, 1), (0.5 if before else 1) / last.num_blocks
    share = np.repeat(shares, [before, last.num_blocks])
    begin = jnp.log(jnp.asarray(share, rows.dtype))
    schedule = schedule_of(order, jnp.exp(begin))

    def loss(logits: Array) -> Array:
        return jnp.mean(schedule_runtime(cycles_of(schedule.with_sizes(jax.nn.softmax(logits))), rows))

    unit = loss(begin)
    optimiser = optax.adam(optax.cosine_decay_schedule(_LARGEST_STEP, _STEPS, 0.02))

    def step(_: int, carry: tuple) -> tuple:
        logits, state, least, best = carry
        value, slope = jax.value_and_grad(loss)(logits)
        best = jnp.where(value < least, logits, best)
        update, state = optimiser.update(slope / unit, state)
        return optax.apply_updates(logits, update), state, jnp.minimum(value, least), best

    start = begin, optimiser.init(begin), unit, begin
    *_, best = jax.lax.fori_loop(0, _STEPS, step, start)
    return jax.nn.softmax(best)


def shared_out(rows: np.ndarray) -> np.ndarray:
    """Each step's time where a master hands out `CHUNKS` chunks a worker at no cost, `[R]`."""
    return np.asarray(_shared_out(rows))


@jax.jit
def _shared_out(rows: Array) -> Array:
    rule = WorkSharing(rows.shape[1], rows.shape[1], CHUNKS, equal_chunks=True)
    return rule.runtimes(Load(jnp.ones(1)), False, jnp.zeros_like(rows), rows)


_POOLED, _WHOLE = _solved(pooled, "optimal"), _solved(bcgc.EmpiricalRows, "optimal")
# "50/10" is for a plan from the last 50 steps, made anew every 10.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "uncoded": Rule(_solved(bcgc.EmpiricalRows, "uncoded")),
        "single_block": Rule(_solved(bcgc.EmpiricalRows, "single_block")),
        "time": Rule(_solved(pooled, "time")),
        "nested": Rule(_solved(pooled, "nested")),
        "pooled": Rule(_POOLED),
        "pooled 50/10": Rule(_POOLED, 50, 10),
        "whole steps": Rule(_WHOLE),
        "whole steps 50/10": Rule(_WHOLE, 50, 10),
        "whole steps 20/1": Rule(_WHOLE, 20, 1),
        "last step": Rule(_last_step, 1, 1),
        "cyclic": Rule(_equal_blocks(1)),
        "cyclic:2": Rule(_equal_blocks(1, 2)),
        "alternating": Rule(_equal_blocks(_BLOCKS)),
        "multi_message pooled": Rule(_multi_message_alike),
        "multi_message": Rule(_multi_message()),
        "multi_message 50/10": Rule(_multi_message(), 50, 10),
        "multi_message:2 50/10": Rule(_multi_message(2), 50, 10),
        "sharing:5": Rule(lambda rows: (float(shared_out(rows).mean()), shared_out)),
        "shares": Rule(_by_speed),
        "shares 50/10": Rule(_by_speed, 50, 10),
        "shares 20/1": Rule(_by_speed, 20, 1),
    }
)


def _best_of_each(rows: np.ndarray) -> np.ndarray:
    return np.array([_coded(best_partition(row)).runtimes(row[None])[0] for row in rows])


# What only those who know a step's times could do, with a partition and with any scheme.
_IDEAL: Mapping[str, Runtimes] = MappingProxyType(
    {"each step's best": _best_of_each, "limit": lambda rows: rows.shape[1] / np.sum(1 / rows, axis=1)}
)
# Those who know the future, the best fixed partition of all the steps replayed among them.
KNOWING = ("hindsight", *_IDEAL)


def replay(
    rows: np.ndarray, num_planned: int, *, rules: Mapping[str, Rule] = RULES, name: str = "steps"
) -> dict[str, Replayed]:
    """Every rule and what those who know could do, in the steps of `rows`, `[S, N]`, after `num_planned`.

    A window longer than the first part is cut to it: all windows of a rule are equally long.
    """
    past, rest = rows[:num_planned], rows[num_planned:]
    rules = {**rules, "hindsight": Rule(lambda _: _WHOLE(rest))}
    size = len(rest)
    to_do = [(key, start) for key, rule in rules.items() for start in range(0, size, rule.every or size)]
    found = {key: Replayed(*np.empty((2, size))) for key in rules}
    for key, start in each(to_do, f"plans for {name}"):
        rule, now = rules[key], num_planned + start
        window = min(rule.window or num_planned, num_planned)
        held = slice(start, start + (rule.every or size))
        promised, runtimes = rule.plan(rows[now - window : now])
        found[key].promised[held] = promised
        found[key].taken[held] = runtimes(rest[held])
    for key, runtimes in _IDEAL.items():
        found[key] = Replayed(np.full(size, runtimes(past).mean()), runtimes(rest))
    return found
