r"""Confidence intervals of 95 % over measured steps, which may be few and depend on
each other.

Single steps are resampled. The ends are then moved away from the value: by √f, where f
steps that depend on each other are worth one; and by `stretch`, for the percentiles of
a few are too narrow. Resampled blocks of steps, in which the dependence is kept, held
the true value less often.
"""

import math
from typing import NamedTuple

import numpy as np

# Resampled means: their percentiles are known to 3 % of half an interval.
_REPLICATES = 2000
# The percentiles between which 95 % are.
ENDS = (0.025, 0.975)
# So many numbers are resampled at once.
_AT_ONCE = 2**22
# Steps that depend on each other are worth this many independent ones at least,
_FEWEST = 4.0
# and f is taken from correlations up to this.
_MOST_CORRELATION = 0.95


def percent(share: float, form: str = "z.1f") -> str:
    """Write a share in per cent; `z` makes 0 of -0."""
    return f"{100 * share:{form}}"


class Interval(NamedTuple):
    """An estimate and its confidence interval of 95 %; NaN where nothing tells it."""

    value: float
    low: float
    high: float

    @property
    def shows(self) -> bool:
        """Whether a share can be told from none."""
        return self.low > 0

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.low)

    def in_percent(self) -> str:
        return f"{percent(self.low)} to {percent(self.high)}"

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "unknown"
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


def resample(series: np.ndarray, seed: int = 0, count: int = _REPLICATES) -> np.ndarray:
    """Resample the steps of `[S, K]`, all series in the same steps: means,
    `[count, K]`.

    >>> resample(np.full((8, 1), 3.5), count=2).tolist()
    [[3.5], [3.5]]
    """
    size, width = series.shape
    rng = np.random.default_rng(seed)
    # All groups of ten thousand steps at once would take gigabytes.
    groups = math.ceil(count * size * width / _AT_ONCE)
    group_sizes = [len(group) for group in np.array_split(np.arange(count), groups)]
    means = []
    for group_size in group_sizes:
        drawn = rng.integers(size, size=(group_size, size))
        # Means over the first axis take a third of the time of others.
        means.append(series.take(np.ascontiguousarray(drawn.T), axis=0).mean(axis=0))
    return np.concatenate(means)


def resample_draws(draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """Resample `[D, S, K]`, of which D draws are as likely, each in its part of the
    replicates.

    So an interval has in it what draws differ by, as it must (multiple imputation:
    Rubin 1987).
    """
    count = math.ceil(_REPLICATES / len(draws))
    return np.concatenate(
        [resample(draw, seed + d, count) for d, draw in enumerate(draws)]
    )


def dependence(influence: np.ndarray) -> float:
    """As how many steps one counts that depend on each other: f = (1 + ρ) / (1 - ρ).

    Args:
      influence: what each step adds to the estimate, `[S]`. ρ is its correlation with
        the next step's, (1 + 3ρ) / S added for its bias (Kendall 1954), from 0 to 0.95.

    >>> dependence(np.arange(8.0) % 3)
    1.0
    """
    size = len(influence)
    centred = influence - influence.mean()
    squares = max(float(centred @ centred), 1e-300)
    correlation = float(centred[1:] @ centred[:-1]) / squares
    correlation += (1 + 3 * correlation) / size
    correlation = min(max(correlation, 0.0), _MOST_CORRELATION)
    return (1 + correlation) / (1 - correlation)


def stretch(steps: float) -> float:
    """By how much percentiles of so few resampled steps are too narrow.

    t_{0.975, n-1} / 1.96 · √(n / (n-1)) for n steps (Hesterberg 2014), t by its
    expansion in 1 / (n - 1).

    >>> [round(stretch(steps), 4) for steps in (4, 8, 20, 40, 100)]
    [1.8054, 1.2853, 1.0954, 1.0451, 1.0175]
    """
    free = max(steps, 2.5) - 1
    z = 1.96
    first = (z**2 + 1) / 4
    second = (5 * z**4 + 16 * z**2 + 3) / 96
    return (1 + first / free + second / free**2) * math.sqrt((free + 1) / free)


def widened(value: float, ends: np.ndarray, influence: np.ndarray) -> np.ndarray:
    """Move percentiles of resampled steps √f · stretch(S / f) as far from the value."""
    f = dependence(influence)
    independent = max(len(influence) / f, _FEWEST)
    return value + (ends - value) * math.sqrt(f) * stretch(independent)


def enough_steps(half: float, influence: np.ndarray) -> int:
    """About how many steps have an interval of ± `half`, if steps go on like these.

    The mean of n steps has the standard error √(f/n) times the deviation of a step's
    influence. So n = f (1.96 deviation / half)².

    >>> enough_steps(0.1, np.array([1.0, -1.0] * 20))
    385
    """
    return math.ceil(
        dependence(influence) * (1.96 * float(influence.std()) / half) ** 2
    )


def interval_of(value: float, resampled: np.ndarray, influence: np.ndarray) -> Interval:
    """The interval of 95 % of an estimate, by `resampled`, `[R]`, and `influence`."""
    low, high = widened(value, np.quantile(resampled, ENDS), influence)
    return Interval(value, float(low), float(high))


def share_interval(
    value: float, resampled: np.ndarray, influence: np.ndarray
) -> Interval:
    """The interval of 95 % of a share of the time, which is 1 at most; arguments as in
    `interval_of`.

    An interval that is cut at what is possible holds the true value as often. To move
    the ends of the logarithm of 1 - share instead held it in 0.82 to 0.95 of simulated
    logs of 40 or 100 steps, in place of 0.83 to 0.95.
    """
    interval = interval_of(value, resampled, influence)
    return Interval(value, min(interval.low, 1.0), min(interval.high, 1.0))


def ratio_of_means(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> Interval:
    """The interval of r = mean part / mean whole, `[S]`; influence part - r whole.

    A part is at most the whole.
    """
    means = resample(np.stack([part, whole], axis=1), seed)
    value = float(part.mean() / whole.mean())
    influence = (part - value * whole) / whole.mean()
    return share_interval(value, means[:, 0] / means[:, 1], influence)
