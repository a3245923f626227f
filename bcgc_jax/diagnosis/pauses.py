"""Pauses: seconds of a chunk that its length does not explain."""

import math
from statistics import NormalDist

import numpy as np

# ln of a chunk's time over its worker's median is a pause above this,
_LEAST_PAUSE = 0.6
# and where twice as many chunks are as long as lengths explain: this share of them,
_MOST_PAUSES = 0.03
# but so many at least.
_FEWEST = 10
# So is one that is so long by chance in no log of a thousand.
_CHANCE = 1e-3
# Two quantiles, through which the tail of lengths is drawn.
_BODY = (0.80, 0.95)
# With forward passes: of ln(forward / backward), in chunks of about the same length.
_LEAST_SHIFT = 0.3
_DEVIATIONS = 6.0
_BIN = 25
# A chunk is long that takes so many times its worker's median.
LONG = 3.0


def beyond_usual(seconds: np.ndarray) -> np.ndarray:
    """Return what long chunks take more than their worker's usual, `[S, W, C]`; of
    others 0.

    They may have paused, or have long data: seconds alone do not tell.
    """
    usual = _usual(seconds)
    return np.where(seconds > LONG * usual, seconds - usual, 0.0)


def _usual(seconds: np.ndarray) -> np.ndarray:
    if seconds.shape[2] == 2:
        # The mean of two would have the pause in it.
        return seconds.min(axis=2, keepdims=True)
    return np.median(seconds, axis=2, keepdims=True)


def pauses_for_length(seconds: np.ndarray) -> np.ndarray:
    """Return seconds above the worker's usual of chunks so long that most such have
    paused.

    ln of lengths is taken to have quantiles a z^k, z those of the normal distribution
    and k ≥ 1 for tails that are heavier. So a body that many long chunks have made wide
    is not taken for pauses.
    """
    usual = _usual(seconds)
    excess = np.log(seconds / usual)
    low, high = np.quantile(excess, _BODY)
    normal = NormalDist().inv_cdf
    inner, outer = map(normal, _BODY)
    power = 1.0
    # Most rounded times may be equal: such a body has no heavy tail.
    if low > 0:
        power = max(math.log(high / low) / math.log(outer / inner), 1.0)

    def explained(share: float) -> float:
        return float(high * (normal(1 - share) / outer) ** power)

    threshold = explained(_CHANCE / excess.size)
    if excess.size * _MOST_PAUSES > _FEWEST:
        shares = np.geomspace(_MOST_PAUSES, _FEWEST / excess.size, 40)
        seen = np.quantile(excess, 1 - shares)
        for end, share in zip(seen, shares, strict=True):
            if end >= explained(share / 2):
                threshold = min(threshold, float(end))
    return np.where(excess > max(_LEAST_PAUSE, threshold), seconds - usual, 0.0)


def pauses_of_passes(seconds: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Return what a pass takes beyond the other's: long chunks are long in both."""
    backward = seconds - forward
    ratio = np.log(forward / backward)
    # The length by the pass that did not pause.
    length = np.minimum(forward * np.exp(-np.median(ratio)), backward)
    order = np.argsort(length, axis=None, kind="stable")
    usual = np.empty(ratio.size)
    deviation = np.empty(ratio.size)
    for places in np.array_split(order, max(1, ratio.size // _BIN)):
        ratios = ratio.ravel()[places]
        usual[places] = np.median(ratios)
        deviation[places] = 1.4826 * np.median(np.abs(ratios - usual[places]))
    usual = usual.reshape(ratio.shape)
    deviation = deviation.reshape(ratio.shape)
    shift = ratio - usual
    expected = np.exp(usual)
    excess = np.where(
        shift > 0, forward - expected * backward, backward - forward / expected
    )
    large = excess > np.median(seconds, axis=2, keepdims=True) / 2
    odd = np.abs(shift) > np.maximum(_LEAST_SHIFT, _DEVIATIONS * deviation)
    return np.where(odd & large, excess, 0.0)
