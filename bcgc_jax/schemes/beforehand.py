"""Remedies before a step: chunks by length, shares by speed, other machines."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bcgc_jax.schemes.base import Scheme, count_of
from bcgc_jax.schemes.unplanned import Unplanned
from bcgc_jax.steps.rule import LogRule
from bcgc_jax.steps.steps import Outcome, Steps

# So many last steps are tried for shares by speed that are made anew.
_WINDOWS = (1, 2, 4, 8, 16)
# A worker that stays slow by less, ln of the ratio, is neither named nor replaced.
SLOW = 0.05


@dataclasses.dataclass(frozen=True)
class Dealt(Unplanned):
    """All chunks are dealt before each step by predicted lengths, longest first."""

    name = "dealt by length"
    advice = "deal the chunks to the workers by their length"
    need = "lengths of chunks before the step"
    by_chunk = advisable = by_length = of_lengths = stores_all = True

    def outcome(self, steps: Steps) -> Outcome:
        assert steps.costs is not None
        count, workers, _ = steps.costs.shape
        expected = steps.costs.reshape(count, -1)
        lengths = steps.lengths.reshape(count, -1)
        load = np.zeros((count, workers))
        work = np.zeros((count, workers))
        all_steps = np.arange(count)
        for chunk in np.argsort(-expected, axis=1, kind="stable").T:
            worker = load.argmin(axis=1)
            load[all_steps, worker] += expected[all_steps, chunk]
            work[all_steps, worker] += lengths[all_steps, chunk]
        return Outcome((steps.pace * work + steps.pauses.sum(axis=2)).max(axis=1))


class _BySpeed(Scheme):
    """Each worker has data by its speed."""

    by_chunk = advisable = by_speed = stores_all = True


@dataclasses.dataclass(frozen=True)
class Shares(_BySpeed):
    """The shares are made once."""

    name = "shares by speed"
    advice = "give each worker data by its speed, once"
    need = "workers that keep their speed"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return FixedShares(steps.times()[which].mean(axis=0))

    def without_each(self, steps: Steps, which: np.ndarray) -> Sequence[LogRule]:
        times = steps.times()[which]
        means = (times.sum(axis=0) - times) / (len(times) - 1)
        return [FixedShares(mean) for mean in means]


@dataclasses.dataclass(frozen=True)
class Anew(_BySpeed):
    """The shares are made before each step, by the steps before it."""

    name = "shares anew"
    advice = "give each worker data by its speed, anew before each step"
    need = "new shares before each step"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        steps = steps.whole()
        rules = [LastShares(window) for window in _WINDOWS if window < len(steps.pace)]
        mean_seconds = [rule.replay(steps, which).seconds.mean() for rule in rules]
        return rules[int(np.argmin(mean_seconds))]


@dataclasses.dataclass(frozen=True, eq=False)
class FixedShares(LogRule):
    """Shares by what workers took on average, `[N]`."""

    means: np.ndarray

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        means = np.repeat(self.means[None], len(steps.pace), axis=0)
        return _with_shares(steps, means, which)


@dataclasses.dataclass(frozen=True)
class LastShares(LogRule):
    """Shares by what workers took in the last steps, so many in a `window`."""

    window: int

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        steps = steps.whole()
        outcome = _with_shares(steps, _means_before(steps.times(), self.window), which)
        return outcome._replace(choice=(self.window,))


def _means_before(times: np.ndarray, window: int) -> np.ndarray:
    """The mean of the steps before each one, `[S, N]`, on a circle."""
    circle = np.concatenate([np.zeros((1, times.shape[1])), times[-window:], times])
    sums = np.cumsum(circle, axis=0)
    return (sums[window:-1] - sums[: len(times)]) / window


def _with_shares(steps: Steps, means: np.ndarray, which: np.ndarray | None) -> Outcome:
    """A worker gives away a part of its own data, or gets a part of what all others
    give away.

    By what workers took, `[S, N]`.
    """
    speed = 1 / means
    share = speed / speed.mean(axis=1, keepdims=True)
    own_work = steps.lengths.sum(axis=2)
    given_work = np.sum(np.maximum(1 - share, 0) * own_work, axis=1, keepdims=True)
    extra_share = np.maximum(share - 1, 0)
    part = extra_share / np.maximum(extra_share.sum(axis=1, keepdims=True), 1e-300)
    work = np.minimum(share, 1) * own_work + part * given_work
    seconds = (steps.pace * work + steps.pauses.sum(axis=2)).max(axis=1)
    return Outcome(seconds if which is None else seconds[which])


@dataclasses.dataclass(frozen=True)
class Replaced(Scheme):
    """Workers that stay slow are replaced by others like the rest."""

    name = "slowest replaced"
    in_lock_step = True

    def needs(self, choice: Sequence[float]) -> str:
        return count_of(choice, "other machine")

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return OtherMachines(stay_slow(steps, which))


@dataclasses.dataclass(frozen=True, eq=False)
class OtherMachines(LogRule):
    """The workers of `slow`, `[N]` bool, have the median pace of all others."""

    slow: np.ndarray

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        if which is not None:
            steps = steps.take(which)
        usual = np.median(steps.pace[:, ~self.slow], axis=1, keepdims=True)
        pace = np.where(self.slow, usual, steps.pace)
        pauses = np.where(self.slow[:, None], 0.0, steps.pauses)
        seconds = steps._replace(pace=pace, pauses=pauses).last()
        return Outcome(seconds, choice=(float(self.slow.sum()),))


def stay_slow(steps: Steps, which: np.ndarray) -> np.ndarray:
    """Whether workers, `[N]`, are slow in most steps of `which`, and replaced."""
    return np.mean(steps.stays[which] > SLOW, axis=0) > 0.5
