"""Confidence intervals over measured steps: a block bootstrap, which keeps their correlation."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# A smaller share shows only where its interval does not have 0 in it.
_LEAST_SHARE = 0.01
_FEWEST_BLOCKS = 4
_REPLICATES = 2000
# So many numbers are resampled at once.
_AT_ONCE = 2**22


def percent(share: float) -> str:
    # Adding 0 makes 0 of -0.
    return f"{round(100 * share, 1) + 0.0:.1f}"


class Interval(NamedTuple):
    """An estimate and its confidence interval of 95 %; NaN where nothing tells it."""

    value: float
    low: float
    high: float

    @property
    def shows(self) -> bool:
        """Whether a share can be told from none."""
        return self.low > 0 or self.value > _LEAST_SHARE

    def in_percent(self) -> str:
        return f"{percent(self.low)} to {percent(self.high)}"

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "unknown"
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


class Resamples(NamedTuple):
    """Means of several series over the steps, `[K]`, and over resampled steps, `[R, K]`."""

    means: np.ndarray
    drawn: np.ndarray

    def interval(self, value: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """Return the interval of a `value` of means, `[..., K]` to `[...]`."""
        low, high = np.quantile(value(self.drawn), [0.025, 0.975])
        return Interval(float(value(self.means)), float(low), float(high))


def resample(
    series: np.ndarray, block: int, seed: int = 0, num_replicates: int = _REPLICATES
) -> Resamples:
    """Resample `[S, K]`, all in the same steps, in blocks of neighbours on a circle.

    Politis & Romano 1992.

    >>> resamples = resample(np.arange(8.0)[:, None], block=8)
    >>> (float(resamples.means[0]), float(np.ptp(resamples.drawn)))
    (3.5, 0.0)
    """
    size = len(series)
    circle = np.concatenate([np.zeros((1, series.shape[1])), series, series[: block - 1]])
    onward = np.cumsum(circle, axis=0)
    sums = onward[block:] - onward[:size]
    blocks = (num_replicates, math.ceil(size / block))
    starts = np.random.default_rng(seed).integers(size, size=blocks)
    # Of ten thousand steps in blocks of one, all at once would take gigabytes.
    groups = np.array_split(starts, math.ceil(starts.size * series.shape[1] / _AT_ONCE))
    drawn = np.concatenate([sums[some].mean(axis=1) for some in groups])
    return Resamples(series.mean(axis=0), drawn / block)


def resample_draws(series: np.ndarray, block: int, seed: int = 0) -> Resamples:
    """Resample `[D, S, K]`, of which D draws are as likely, each in its part of the replicates.

    So an interval has in it what draws differ by, as it must (multiple imputation: Rubin 1987). In
    320 synthetic logs of 4 to 32 workers it held the true share of slowness at random in 81 to
    100 % of the cases, of the data in 69 to 96 %. Intervals of means over draws did in 47 to 81 %.
    """
    part = math.ceil(_REPLICATES / len(series))
    each = [resample(drawn, block, seed + d, part) for d, drawn in enumerate(series)]
    means = np.mean([some.means for some in each], axis=0)
    return Resamples(means, np.concatenate([some.drawn for some in each]))


def block_for(now: np.ndarray, least: np.ndarray) -> int:
    """Return the block for the seconds of steps as they are and at the limit, `[S]` each.

    There are four blocks at least: in short logs chance looks like correlation.
    """
    longest = math.ceil(len(now) / _FEWEST_BLOCKS)
    return min(max(block_length(now), block_length(now - least)), longest)


def block_length(series: np.ndarray) -> int:
    r"""Steps that a block of a circular bootstrap needs: (2 G² / D)^{1/3} S^{1/3}; `[S]`.

    G = Σ λ |k| R(k), D = 4/3 (Σ λ R(k))², R the autocovariances, λ a flat-top window as wide as
    twice the lag from which on they are noise (Politis & White 2004); at most min(3 √S, S/3), and
    that where they are not yet noise at lag √S.
    """
    size = len(series)
    centred = series - series.mean()
    quiet = max(5, math.ceil(math.sqrt(math.log10(size))))
    widest = min(math.ceil(math.sqrt(size)) + quiet, size - 1)
    lags = range(min(widest + quiet, size))
    covariance = np.array([centred[: size - k] @ centred[k:] for k in lags]) / size
    if covariance[0] <= 1e-24 * np.mean(series**2):
        return 1
    loud = np.abs(covariance[1:] / covariance[0]) >= 2 * math.sqrt(math.log10(size) / size)
    longest = math.ceil(min(3 * math.sqrt(size), size / 3))
    last = next((m for m in range(widest) if not loud[m : m + quiet].any()), None)
    if last is None:
        return longest
    width = min(2 * max(last, 1), widest)
    lag = np.arange(1, width + 1)
    weighted = 2 * np.clip(2 * (1 - lag / width), 0, 1) * covariance[1 : width + 1]
    ratio = (lag @ weighted) / (covariance[0] + weighted.sum())
    return max(math.ceil(min((1.5 * ratio**2 * size) ** (1 / 3), longest)), 1)
