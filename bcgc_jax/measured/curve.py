r"""The smooth law of many measured times for many workers: a curve that rules of few nodes integrate.

What an iteration of N workers sees of a law are its order statistics. The hazard of rank k is known to
a standard deviation of 1/√N in the variable 2 arcsin √F, so that knots which are equally far apart there are
equally fine for all ranks, and finer ones are not seen. Through the measured quantiles goes a quintic
spline (de Boor 1978) of log(T - start) against the logarithm of the mean hazards, in least squares; the
largest times make an exponential tail of their own mean.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bcgc_jax._pytree import working_dtype
from bcgc_jax.laws.curve import HazardCurve
from bcgc_jax.measured.likelihood import sorted_times, spread_ties

_DEGREE = 5
# Times at least that a curve needs, and in the first piece; of the tail.
_FEWEST, _FIRST, _TAIL = 40, 8, 50
# The hazard of the last knot: beyond, there is no time in any sample.
_LAST_HAZARD = 60.0
# Weight of the curve's second differences, in shares of the times of a piece; the least slope, in that of
# the whole curve, where times lie so close together that none is left.
_STIFFNESS, _LEAST_SLOPE = 1e-3, 1e-3


def hazard_curve(times: ArrayLike, num_knots: int = 50, *, num_tail: int | None = None) -> HazardCurve:
    r"""The smooth law of measured `times`, `[K]`, with `num_knots` in the bulk and some for the tail.

    The `num_tail` largest are one exponential tail, with the mean that they have. There are no more
    knots than an eighth of the times.

    Raises ValueError for fewer than 40 times, fewer than twice those of the tail, times that are not
    positive, or too few different ones.

    >>> law = hazard_curve(np.random.default_rng(0).gamma(3.0, 2.0, 4000))
    >>> abs(float(law.mean()) - 6.0) < 0.1
    True
    """
    t, _ = sorted_times(times, None)
    num_tail = min(_TAIL, t.size // 10) if num_tail is None else num_tail
    if t.size < max(_FEWEST, 2 * num_tail):
        raise ValueError(f"a smooth curve needs at least {max(_FEWEST, 2 * num_tail)} times, got {t.size}")
    num_knots = max(4, min(num_knots, t.size // _FIRST))
    if np.unique(t).size < 2 * _FIRST:
        raise ValueError("the times take too few different values for a smooth curve: use Empirical")
    t = spread_ties(t)
    hazard = np.cumsum(1 / np.arange(t.size, 0, -1))
    # As far below the first time as a hundredth of them is above it.
    start = max(t[0] / 2, t[0] - max(t[t.size // 100] - t[0], 1e-3 * t[0]))
    knots = _knots(t.size, num_knots, num_tail)
    body = t.size - num_tail
    threshold, base = t[body - 1], hazard[body - 1]
    # The tail has as many points as it needs, which together weigh as much as its times.
    beyond = np.exp(np.linspace(np.log(base), knots[-1], 10 * num_tail))
    tail = threshold + np.mean(t[body:] - threshold) * (beyond - base)
    v = np.log(np.r_[hazard[:body], beyond])
    z = np.log(np.r_[t[:body], tail] - start)
    weight = np.r_[np.ones(body), np.full(beyond.size, 0.1)]
    there = v >= knots[0]
    coefficients = _least_squares(knots, v[there], z[there], weight[there])
    dtype = working_dtype(times)
    return HazardCurve(*(jnp.asarray(a, dtype) for a in (start, knots, coefficients)))


def _knots(size: int, count: int, num_tail: int) -> np.ndarray:
    """Of the logarithm of the hazard."""
    first = 2 * np.arcsin(np.sqrt(_FIRST / size))
    last = np.pi - 2 * np.arcsin(np.sqrt(num_tail / size))
    body = np.log(-2 * np.log(np.cos(np.linspace(first, last, count) / 2)))
    step, end = max(body[-1] - body[-2], 0.15), np.log(_LAST_HAZARD)
    return np.r_[body, np.linspace(body[-1], end, int((end - body[-1]) / step) + 2)[1:]]


def _least_squares(knots: np.ndarray, v: np.ndarray, z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients of the pieces, in powers of the share of the way through each, `[K - 1, 6]`."""
    step = np.diff(knots)[[0, -1]]
    outside = np.arange(1, _DEGREE + 1)
    padded = np.r_[knots[0] - step[0] * outside[::-1], knots, knots[-1] + step[1] * outside]
    size = padded.size - _DEGREE - 1
    piece = np.clip(np.searchsorted(knots, v, side="right") - 1, 0, knots.size - 2)
    basis = _basis(padded, piece, v)
    column = piece[:, None] + np.arange(_DEGREE + 1)
    matrix, right = np.zeros((size, size)), np.zeros(size)
    weighted = weight[:, None] * basis
    np.add.at(right, column, weighted * z[:, None])
    np.add.at(matrix, (column[:, :, None], column[:, None, :]), weighted[:, :, None] * basis[:, None, :])
    # A spline's coefficients are values of the curve, nearly, at these.
    at = np.array([padded[i + 1 : i + _DEGREE + 1].mean() for i in range(size)])
    bend = np.diff(np.diff(np.eye(size), axis=0) / np.diff(at)[:, None], axis=0)
    typical = np.diff(at).mean()
    stiffness = _STIFFNESS * v.size / size * typical**2
    found = np.linalg.solve(matrix + stiffness * bend.T @ bend, right)
    # A spline ascends where its coefficients do.
    least = _LEAST_SLOPE * (found[-1] - found[0]) / (at[-1] - at[0])
    found = _ascending(found - least * at) + least * at
    share = np.linspace(0, 1, _DEGREE + 1)
    number = np.repeat(np.arange(knots.size - 1), share.size)
    where = (knots[:-1, None] + share * np.diff(knots)[:, None]).ravel()
    values = np.sum(found[number[:, None] + np.arange(_DEGREE + 1)] * _basis(padded, number, where), axis=1)
    return np.linalg.solve(np.vander(share, increasing=True), values.reshape(-1, share.size).T).T


def _basis(padded: np.ndarray, piece: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The B-splines that are not 0 on each value's piece, `[..., 6]` (Cox and de Boor)."""
    i = piece + _DEGREE
    basis = np.ones((v.size, 1))
    for degree in range(1, _DEGREE + 1):
        following = np.zeros((v.size, degree + 1))
        for r in range(degree):
            low, high = padded[i - degree + 1 + r], padded[i + 1 + r]
            share = basis[:, r] / (high - low)
            following[:, r] += (high - v) * share
            following[:, r + 1] += (v - low) * share
        basis = following
    return basis


def _ascending(values: np.ndarray) -> np.ndarray:
    """The nearest values that do not descend: neighbours that do are pooled (Barlow et al. 1972)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + mean * count) / (counts[-1] + count)
            counts[-1] += count
    return np.repeat(means, counts)
