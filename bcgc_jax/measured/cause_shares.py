"""The share of each cause in the loss by equally likely draws, with its interval."""

from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.intervals import (
    ENDS,
    Interval,
    dependence,
    resample_draws,
    widened,
)


class Shares(NamedTuple):
    """Shares of K causes, and how many dependent steps count as one, `[K]`."""

    intervals: list[Interval]
    dependence: list[float]


class Added(NamedTuple):
    """What causes add to the loss of each step by equally likely draws, `[D, S, K]`.

    Attributes:
      likely: by the draws.
      with_errors: with what each step adds by its influence on workers' levels, and
        with levels without bias.
    """

    likely: np.ndarray
    with_errors: np.ndarray


class _Resampled(NamedTuple):
    """Shares, `[K]`, in resampled steps, `[R, K]`, and each step's part, `[S, K]`."""

    values: np.ndarray
    drawn: np.ndarray
    influence: np.ndarray


def shares_of(added: Added, without: Added | None = None, seed: int = 0) -> Shares:
    """Return v_k = mean added_k / Σ mean added, at least 0, and its interval.

    Args:
      added: what causes add. The values are those of the draws that are likely; the
        intervals are those with errors.
      without: the same without slowness at random, where that does not show. The shares
        are those; the intervals are the union of both.
      seed: of the resampled steps.
    """
    resampled = _resampled(added.with_errors, seed)
    estimates = [(resampled.values, resampled)]
    if without is not None:
        # Draws with it are of chance: their middle is the median.
        estimates = [(np.median(resampled.drawn, axis=0), resampled)]
        added, resampled = without, _resampled(without.with_errors, seed)
        estimates.append((resampled.values, resampled))
    positive = np.maximum(added.likely.mean(axis=(0, 1)), 0.0)
    values = positive / max(float(positive.sum()), 1e-300)
    intervals = []
    for k, value in enumerate(values.tolist()):
        ends = [
            widened(
                middle[k],
                np.quantile(estimate.drawn[:, k], ENDS),
                estimate.influence[:, k],
            )
            for middle, estimate in estimates
        ]
        low, high = np.clip([np.min(ends), np.max(ends)], 0.0, 1.0).tolist()
        intervals.append(Interval(value, min(low, value), max(high, value)))
    return Shares(intervals, [dependence(series) for series in resampled.influence.T])


def _resampled(draws: np.ndarray, seed: int) -> _Resampled:
    mean = draws.mean(axis=0)
    of_cause = mean.mean(axis=0)
    loss = max(float(of_cause.sum()), 1e-300)
    values = of_cause / loss
    drawn = resample_draws(draws, seed)
    drawn = drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300)
    influence = (mean - values * mean.sum(axis=1, keepdims=True)) / loss
    return _Resampled(values, drawn, influence)
