"""The advised remedy: the cheapest of those that save nearly as much as the best."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.intervals import (
    Interval,
    interval_of,
    resample_draws,
    share_interval,
)
from bcgc_jax.schemes.unplanned import Nothing
from bcgc_jax.steps.steps import Outcome

# Less time saved than this share is no reason to change anything.
WORTH = 0.02
# So much is given for a cheaper remedy.
FOR_CHEAPER = 0.01
FEWEST_STEPS = 8


class Savings(NamedTuple):
    """What each remedy saves of a used sample's time, as a share.

    Attributes:
      values: v = 1 - mean r / mean n, r and n the seconds of a step with the remedy and
        without.
      drawn: v in resampled steps, `[R]`, the same for all remedies.
      influence: what each step adds to v, ((1 - v) n - r) / mean n, `[S]`.
    """

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    influence: dict[str, np.ndarray]

    def interval(self, name: str) -> Interval:
        return share_interval(self.values[name], self.drawn[name], self.influence[name])

    def less(self, name: str, best: str) -> Interval:
        """What a remedy saves less than another one, in the same steps."""
        return interval_of(
            self.values[best] - self.values[name],
            self.drawn[best] - self.drawn[name],
            self.influence[best] - self.influence[name],
        )


def savings_of(draws: Sequence[Mapping[str, Outcome]], seed: int = 0) -> Savings:
    """Return what all remedies save, in the same resampled steps of likely draws."""
    names = list(draws[0])

    def series(outcomes: Mapping[str, Outcome]) -> np.ndarray:
        rows = outcomes.values()
        return np.stack(
            [(row.seconds + row.planning) / (1 - row.lost) for row in rows], axis=1
        )

    drawn_series = np.stack([series(outcomes) for outcomes in draws])
    baseline = names.index(Nothing.name)

    def saved(means: np.ndarray) -> np.ndarray:
        return 1 - means.T / means.T[baseline]

    seconds = drawn_series.mean(axis=0)
    values = saved(seconds.mean(axis=0))
    without = seconds[:, baseline]
    influence = ((1 - values)[:, None] * without - seconds.T) / without.mean()
    return Savings(
        values=dict(zip(names, values.tolist(), strict=True)),
        drawn=dict(zip(names, saved(resample_draws(drawn_series, seed)), strict=True)),
        influence=dict(zip(names, influence, strict=True)),
    )


def advised(models: Sequence[Savings], cheapest_first: Sequence[str]) -> str | None:
    """One of these remedies, or None where none saves anything that is worth it.

    Those count that save 2 % or more, and something by their interval of 95 % too. The
    best has the highest lower end. The first is advised that saves, by the interval, at
    most one point less than the best. A log may speak for several models alike. Then a
    remedy has to save by all of them, and what it saves less than the best is a mean
    over them.

    >>> drawn = {
    ...     "a": np.array([0.04, 0.06]),
    ...     "b": np.array([0.045, 0.065]),
    ...     "c": np.array([-0.1, 0.9]),
    ... }
    >>> values = {name: float(saved.mean()) for name, saved in drawn.items()}
    >>> savings = Savings(values, drawn, dict.fromkeys(drawn, np.zeros(1000)))
    >>> advised([savings], ["a", "b", "c"]), advised([savings], ["c"])
    ('a', None)
    """
    lows = [
        {name: savings.interval(name).low for name in cheapest_first}
        for savings in models
    ]
    mean = {
        name: np.mean([savings.values[name] for savings in models])
        for name in cheapest_first
    }
    worth = [name for name in cheapest_first if mean[name] >= WORTH]
    candidates = [name for name in worth if min(low[name] for low in lows) > 0]
    if not candidates:
        return None
    less = dict.fromkeys(candidates, 0.0)
    for low, savings in zip(lows, models, strict=True):
        best = max(candidates, key=low.__getitem__)
        for name in candidates:
            less[name] += savings.less(name, best).high / len(models)
    fine = [name for name in candidates if less[name] <= FOR_CHEAPER]
    if fine:
        return fine[0]
    return min(candidates, key=less.__getitem__)


def as_good(
    models: Sequence[Savings], remedy: str, candidates: Sequence[str]
) -> list[str]:
    """Return the candidates that save as much as a remedy, within the error."""
    remedies = []
    for name in candidates:
        less = [savings.less(name, remedy) for savings in models]
        equal = all(interval.low <= 0 <= interval.high for interval in less)
        if equal and name != remedy:
            remedies.append(name)
    return remedies
