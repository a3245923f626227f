"""Schemes that lose samples: the slowest are not waited for, or all stop at a threshold."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bcgc_jax.schemes.base import Scheme, in_words, plural
from bcgc_jax.steps.rule import Rule
from bcgc_jax.steps.steps import Outcome, Steps

# Quantiles of workers' times that are tried as thresholds.
_THRESHOLDS = np.linspace(0.3, 1.0, 57)


class Backup(Scheme):
    """The slowest B workers of each step are not waited for; B has the least time for a sample."""

    word = "backup"

    def needs(self, choice: Sequence[float]) -> str:
        number = in_words(choice)
        return f"{number} worker{plural(number)} left out"

    def plan_on(self, steps: Steps, which: np.ndarray) -> Rule:
        ends = _slowest_first(steps.times())
        workers = ends.shape[1]
        used = 1 - np.arange(workers) / workers
        return AllBut(int(np.argmin(ends[which].mean(axis=0) / used)))


@dataclasses.dataclass(frozen=True)
class AllBut(Rule):
    """A step ends with all but so many workers."""

    spare: int

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        seconds = _slowest_first(times)[:, self.spare]
        used = times <= seconds[:, None]
        return Outcome(seconds, used[:, :, None], choice=(float(self.spare),))


def _slowest_first(times: np.ndarray) -> np.ndarray:
    return np.sort(times, axis=1)[:, ::-1]


class Drop(Scheme):
    """Workers stop at a threshold that has the least time for a sample which is used.

    It is one of the quantiles of workers' times. DropCompute, arXiv 2306.10598.
    """

    word = "drop"

    def needs(self, choice: Sequence[float]) -> str:
        return f"a stop after {in_words(choice)} s"

    def plan_on(self, steps: Steps, which: np.ndarray) -> Rule:
        begins, ends = (clock[which] for clock in _clocks(steps))
        rules = list(map(StopAfter, np.quantile(ends[:, :, -1], _THRESHOLDS).tolist()))
        for_used = []
        for rule in rules:
            seconds, used = rule.stopped(begins, ends)
            for_used.append(seconds.mean() / float(used.mean()))
        return rules[int(np.argmin(for_used))]


@dataclasses.dataclass(frozen=True)
class StopAfter(Rule):
    """Workers stop after the chunk in which the `threshold` is passed; what is left is lost."""

    threshold: float

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        rows = slice(None) if which is None else which
        seconds, used = self.stopped(*(clock[rows] for clock in _clocks(steps)))
        return Outcome(seconds, used, choice=(self.threshold,))

    def stopped(self, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """When steps end, `[S]`, and which chunks are used, if chunks begin and end so."""
        used = begins < self.threshold
        return np.max(np.where(used, ends, 0), axis=(1, 2)), used


def _clocks(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """When each chunk begins and ends, `[S, N, C]`, for workers that go on."""
    seconds = steps.seconds
    ends = np.cumsum(seconds, axis=2)
    return ends - seconds, ends
