"""Measured times of which some are cut off: a lower bound of what they would be."""

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

FEWEST = 10  # whole times that a fit needs: own choice


@dataclasses.dataclass(frozen=True)
class Sample:
    """Times in ascending order, `[K]`, and which are lower bounds, bool `[K]`."""

    times: np.ndarray
    censored: np.ndarray

    @cached_property
    def whole(self) -> np.ndarray:
        """The times that are not cut off."""
        return self.times[~self.censored]

    @cached_property
    def cut(self) -> np.ndarray:
        """The times that are cut off."""
        return self.times[self.censored]

    @cached_property
    def first(self) -> float:
        """The smallest whole time."""
        return float(self.whole[0])

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the smallest √K whole times."""
        num_smallest = int(len(self.times) ** 0.5) + 1
        reach = self.times[-1]
        if num_smallest < len(self.whole):
            reach = self.whole[num_smallest]
        return max(float(reach - self.first) / num_smallest, 1e-9 * self.first)


def sorted_times(
    times: ArrayLike, censored: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Measured times in ascending order, `[K]`, and which are lower bounds, `[K]`."""
    t = np.asarray(times, float).ravel()
    if censored is None:
        cut = np.zeros(t.size, bool)
    else:
        cut = np.asarray(censored, bool).ravel()
    if t.shape != cut.shape:
        raise ValueError(
            f"censored must have one entry for each time, got {cut.size} for {t.size}"
        )
    if not (np.isfinite(t).all() and (t > 0).all()):
        raise ValueError("times must be finite and positive")
    # At a tie the whole time comes first: the cut-off one is larger.
    order = np.lexsort((cut, t))
    return t[order], cut[order]


def check_enough(whole: int) -> None:
    """Raise ValueError for fewer `whole` times than a fit needs."""
    if whole < FEWEST:
        raise ValueError(
            f"a fit needs at least {FEWEST} times that are not cut off, got {whole}"
        )


def spread_ties(times: np.ndarray) -> np.ndarray:
    """Spread ties of ascending times, `[K]`, evenly over a tick: there a density is
    infinite.

    Where more than a tenth of the times are tied the clock is coarse, and its tick the
    median distance of different values; else it is the least one.
    """
    values, place, counts = np.unique(times, return_inverse=True, return_counts=True)
    if values.size in (1, times.size):
        return times
    gaps = np.diff(values)
    if values.size < 0.9 * times.size:
        tick = np.median(gaps)
    else:
        tick = gaps.min()
    tick = min(tick, values[0])  # stay positive
    first = np.cumsum(counts) - counts
    share = (np.arange(times.size) - first[place] + 0.5) / counts[place] - 0.5
    return times + tick * share
