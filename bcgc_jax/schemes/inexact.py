"""Schemes that lose samples: they drop the slowest, or stop at a threshold."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bcgc_jax.schemes.base import Scheme, count_of, in_words
from bcgc_jax.steps.rule import LogRule
from bcgc_jax.steps.steps import Outcome, Steps

# Between quantiles of workers' times that are tried as thresholds.
_STEP = 1 / 80


@dataclasses.dataclass(frozen=True)
class Backup(Scheme):
    """The slowest B workers are left out; B has the least time for a sample."""

    name = "backup"

    def needs(self, choice: Sequence[float]) -> str:
        return f"{count_of(choice, 'worker')} left out"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        ends = _slowest_first(steps.times())
        workers = ends.shape[1]
        used = 1 - np.arange(workers) / workers
        return AllBut(int(np.argmin(ends[which].mean(axis=0) / used)))


@dataclasses.dataclass(frozen=True)
class AllBut(LogRule):
    """A step ends with all but so many workers."""

    spare: int
    exact_gradient = False

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        seconds = _slowest_first(times)[:, self.spare]
        used = times <= seconds[:, None]
        return Outcome(seconds, used[:, :, None], choice=(float(self.spare),))


def _slowest_first(times: np.ndarray) -> np.ndarray:
    return np.sort(times, axis=1)[:, ::-1]


@dataclasses.dataclass(frozen=True)
class Drop(Scheme):
    """Workers stop at a threshold that has the least time for a sample which is used.

    It is one of the quantiles of workers' times, from the first of 1/N on: at least one
    worker ends all its chunks on average, as `Backup` leaves at least one. Workers
    first end their chunk; those of `solvers.Drop`, for which there is a formula, stop
    at once. DropCompute, arXiv 2306.10598.
    """

    name = "drop"

    def needs(self, choice: Sequence[float]) -> str:
        return f"a stop after {in_words(choice)} s"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        begins, ends = (clock[which] for clock in _clocks(steps))
        shares = np.append(np.arange(1, 1 / ends.shape[1], -_STEP), 1 / ends.shape[1])
        rules = list(map(StopAfter, np.quantile(ends[:, :, -1], shares[::-1]).tolist()))
        for_used = []
        for rule in rules:
            seconds, used = stopped(rule.threshold, begins, ends)
            for_used.append(seconds.mean() / float(used.mean()))
        return rules[int(np.argmin(for_used))]


@dataclasses.dataclass(frozen=True)
class StopAfter(LogRule):
    """Workers stop after the chunk that passes the `threshold`; the rest is lost."""

    threshold: float
    exact_gradient = False

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        rows = slice(None) if which is None else which
        begins, ends = (clock[rows] for clock in _clocks(steps))
        seconds, used = stopped(self.threshold, begins, ends)
        return Outcome(seconds, used, choice=(self.threshold,))


def stopped(
    threshold: float, begins: np.ndarray, ends: np.ndarray, *, at_once: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """When steps end, `[...]`, and which chunks are used, `[..., N, C]`, if they begin
    and end so.

    By default a worker first ends the chunk in which the threshold is passed. If all
    stop `at_once` such a chunk is lost.

    >>> begins, ends = (
    ...     np.array([[0.0, 2.0], [0.0, 3.0]]),
    ...     np.array([[2.0, 4.0], [3.0, 6.0]]),
    ... )
    >>> [
    ...     stopped(2.5, begins, ends, at_once=at_once)[0].item()
    ...     for at_once in (False, True)
    ... ]
    [4.0, 2.5]
    """
    if at_once:
        return np.minimum(ends.max(axis=(-1, -2)), threshold), ends <= threshold
    used = begins < threshold
    return np.where(used, ends, 0).max(axis=(-1, -2)), used


def _clocks(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """When each chunk begins and ends, `[S, N, C]`, for workers that go on."""
    seconds = steps.seconds
    ends = np.cumsum(seconds, axis=2)
    return ends - seconds, ends
