"""What plans that were made from the past of measured times would have taken in the steps that followed.

A plan is made once, from the first part, or anew every few steps, from a window of the last ones. Times are
of whole steps as they were recorded: M b L / N = 1, so that the uncoded scheme takes a step's longest time,
and a worker's time is proportional to its work. Beside the plans with a code there are three kinds without:
schedules, in which every finished subset counts (see `scheduling`), work that a master shares out chunk by
chunk, and shares of the data in proportion to each worker's speed, 1 / its mean time so far.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.cli.waiting import each
from experiments import scheduling

# So many that whole numbers of them need no search.
COORDINATES = 1_000_000
# The time of a step that a plan promises, and its numbers, of a rule's one shape, from times, `[steps, N]`.
Plan = Callable[[np.ndarray], tuple[float, np.ndarray]]
Runtime = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """How a plan is made, from how many of the last steps, every how many; 0 for once, from all before.

    `runtime` of plans, `[R, ...]`, in as many steps, `[R, N]`, is `[R]`.
    """

    plan: Plan
    runtime: Runtime
    window: int = 0
    every: int = 0


class Replayed(NamedTuple):
    """A scheme in the steps that followed, `[R]` each: what its plan promised, and what it took."""

    promised: np.ndarray
    taken: np.ndarray


def problem(law: bcgc.Law | bcgc.Rows, num_workers: int) -> bcgc.Problem:
    """One step as it was recorded: uncoded, a worker spends a cycle."""
    return bcgc.Problem(law, num_workers, COORDINATES, cycles=num_workers / COORDINATES)


def pooled(rows: np.ndarray) -> bcgc.Law:
    """The law of all times, as if workers were alike and steps independent."""
    try:
        return bcgc.measured.smooth_empirical(rows.ravel())
    except ValueError:  # too few different times for a curve
        return bcgc.Empirical(rows.ravel())


def _solved(law: Callable[[np.ndarray], bcgc.Law | bcgc.Rows], method: str) -> Plan:
    def plan(rows: np.ndarray) -> tuple[float, np.ndarray]:
        solution = bcgc.solve(problem(law(rows), rows.shape[1]), method)
        return float(solution.expected_runtime), np.asarray(solution.partition)

    return plan


def _last_step(rows: np.ndarray) -> tuple[float, np.ndarray]:
    (x,) = best_partitions(rows[-1:])
    return float(coded(x[None], rows[-1:])[0]), x


def _by_speed(rows: np.ndarray) -> tuple[float, np.ndarray]:
    speed = 1 / rows.mean(axis=0)
    share = speed / speed.sum()
    return float(uneven(share[None], rows).mean()), share


def best_partitions(rows: np.ndarray) -> np.ndarray:
    """Of each step the best partition if its times were known (Theorem 2): y_n ∝ 1/t_(N-n), `[R, N]`."""
    speeds = np.sort(1 / rows, axis=1)
    x = np.diff(speeds, axis=1, prepend=0) / np.arange(1, rows.shape[1] + 1)
    return COORDINATES * x / x.sum(axis=1, keepdims=True)


def coded(partitions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(bcgc.block_runtime(partitions, rows, cycles=rows.shape[1] / COORDINATES))


def uneven(shares: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Worker w does the share of w of all work, N times its recorded one where that is 1."""
    return np.max(rows.shape[1] * shares * rows, axis=1)


def _alike(rows: np.ndarray) -> bcgc.Problem:
    return problem(pooled(rows), rows.shape[1])


_POOLED, _WHOLE = _solved(pooled, "optimal"), _solved(bcgc.Rows, "optimal")
# "50/10" is for a plan from the last 50 steps, made anew every 10.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "uncoded": Rule(_solved(bcgc.Rows, "uncoded"), coded),
        "single_block": Rule(_solved(bcgc.Rows, "single_block"), coded),
        "time": Rule(_solved(pooled, "time"), coded),
        "pooled": Rule(_POOLED, coded),
        "pooled 50/10": Rule(_POOLED, coded, 50, 10),
        "whole steps": Rule(_WHOLE, coded),
        "whole steps 50/10": Rule(_WHOLE, coded, 50, 10),
        "whole steps 20/1": Rule(_WHOLE, coded, 20, 1),
        "last step": Rule(_last_step, coded, 1, 1),
        "cyclic": Rule(scheduling.cyclic(), scheduling.scheduled),
        "cyclic:2": Rule(scheduling.cyclic(2), scheduling.scheduled),
        "alternating": Rule(scheduling.alternating(), scheduling.scheduled),
        "credit pooled": Rule(scheduling.credit_alike(_alike), scheduling.scheduled),
        "credit": Rule(scheduling.credit_of_steps(), scheduling.scheduled),
        "credit 50/10": Rule(scheduling.credit_of_steps(), scheduling.scheduled, 50, 10),
        "credit:2 50/10": Rule(scheduling.credit_of_steps(2), scheduling.scheduled, 50, 10),
        "sharing:5": Rule(scheduling.shared, scheduling.shared_out),
        "shares": Rule(_by_speed, uneven),
        "shares 50/10": Rule(_by_speed, uneven, 50, 10),
        "shares 20/1": Rule(_by_speed, uneven, 20, 1),
    }
)
# What only those who know a step's times could do, with a partition and with any scheme.
_IDEAL: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "each step's best": lambda rows: coded(best_partitions(rows), rows),
        "limit": lambda rows: rows.shape[1] / np.sum(1 / rows, axis=1),
    }
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
    rules = {**rules, "hindsight": Rule(lambda _: _WHOLE(rest), coded)}
    size = len(rest)
    to_do = [(key, start) for key, rule in rules.items() for start in range(0, size, rule.every or size)]
    promised = {key: np.empty(size) for key in rules}
    plans: dict[str, list[np.ndarray]] = {key: [] for key in rules}
    for key, start in each(to_do, f"plans for {name}"):
        rule = rules[key]
        now, window = num_planned + start, min(rule.window or num_planned, num_planned)
        held = slice(start, start + (rule.every or size))
        promised[key][held], plan = rule.plan(rows[now - window : now])
        plans[key] += [plan] * len(rest[held])
    found = {
        key: Replayed(promised[key], rule.runtime(np.stack(plans[key]), rest)) for key, rule in rules.items()
    }
    for key, runtime in _IDEAL.items():
        found[key] = Replayed(np.full(size, runtime(past).mean()), runtime(rest))
    return found
