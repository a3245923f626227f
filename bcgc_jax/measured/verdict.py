"""The remedy that is advised: the cheapest of those that save nearly as much as the best."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.intervals import Interval, block_for, resample
from bcgc_jax.measured.remedies import LIMIT, NOTHING, Replay

# Less time saved than this share is no reason to change anything.
WORTH = 0.02
# So much is given for a cheaper remedy.
FOR_CHEAPER = 0.01
FEWEST_STEPS = 8


class Savings(NamedTuple):
    """What each remedy saves of a used sample's time, as a share; `drawn` in resampled steps."""

    block: int
    values: dict[str, float]
    drawn: dict[str, np.ndarray]

    def interval(self, name: str) -> Interval:
        low, high = np.quantile(self.drawn[name], [0.025, 0.975])
        return Interval(self.values[name], float(low), float(high))


def savings_of(replays: dict[str, Replay], seed: int = 0) -> Savings:
    """Return what all remedies save, in the same resampled steps."""
    names = list(replays)
    series = np.stack([replay.seconds / (1 - replay.lost) for replay in replays.values()], axis=1)
    now, least = (series[:, names.index(name)] for name in (NOTHING, LIMIT))
    block = block_for(now, least)
    resamples = resample(series, block, seed)

    def saved(means: np.ndarray) -> np.ndarray:
        return 1 - means.T / means.T[names.index(NOTHING)]

    values = dict(zip(names, map(float, saved(resamples.means)), strict=True))
    return Savings(block, values, dict(zip(names, saved(resamples.drawn), strict=True)))


def advised(models: Sequence[Savings], cheapest_first: Sequence[str]) -> str | None:
    """One of these remedies, or None where none saves anything that is worth it.

    Those count that save 2 % or more, and something by their interval of 95 % too. The best has the
    highest lower end. The first is advised that saves, by the interval, at most one point less than
    the best. A log may speak for several models alike. Then a remedy has to save by all of them,
    and what it saves less than the best is a mean over them.

    >>> drawn = {"a": np.array([0.04, 0.06]), "b": np.array([0.045, 0.065]),
    ...     "c": np.array([-0.1, 0.9])}
    >>> savings = Savings(1, {name: float(values.mean()) for name, values in drawn.items()}, drawn)
    >>> advised([savings], ["a", "b", "c"]), advised([savings], ["c"])
    ('a', None)
    """
    lows = [{name: savings.interval(name).low for name in cheapest_first} for savings in models]
    mean = {name: np.mean([savings.values[name] for savings in models]) for name in cheapest_first}
    worth = [name for name in cheapest_first if mean[name] >= WORTH]
    candidates = [name for name in worth if min(low[name] for low in lows) > 0]
    if not candidates:
        return None
    less = dict.fromkeys(candidates, 0.0)
    for low, savings in zip(lows, models, strict=True):
        best = savings.drawn[max(candidates, key=low.__getitem__)]
        for name in candidates:
            less[name] += float(np.quantile(best - savings.drawn[name], 0.975)) / len(models)
    fine = [name for name in candidates if less[name] <= FOR_CHEAPER]
    return fine[0] if fine else min(candidates, key=less.__getitem__)
