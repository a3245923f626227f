r"""A smooth law of measured times: a monotone curve through them, and a tail that goes on beyond the last.

`Empirical` gives each measured time its share and nothing to any other: it never exceeds the largest time
that was seen, and its expected runtime is a polyhedral function. Here T = Λ⁻¹(A), A ~ Exp(1), with Λ⁻¹ a
rational quadratic spline (Gregory & Delbourgo 1982: monotone, once differentiable, and inverted in closed
form) through the means of groups of neighbouring times. The mean hazard of the i-th of K sorted times is
Σ_{j≤i} 1/(K-j+1) (Rényi; for censored times the estimate of Nelson and Aalen).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import pytree_dataclass
from bcgc_jax.laws.families import Law
from bcgc_jax.measured.likelihood import Sample, fit_tail, sorted_times, spread_ties

# Times below this many are too few for a curve; knots at most; the share of times that is the tail.
_FEWEST, _MOST_KNOTS, _TAIL = 20, 32, 0.1
_FEWEST_VALUES = 8


@pytree_dataclass
class HazardSpline(Law):
    r"""Λ⁻¹ through (`hazards`, `times`), `[K]`, with `slopes` dΛ⁻¹/da; above, a generalised Pareto tail.

    Beyond the last knot u, P(T > u + z | T > u) = (1 + ξ z/σ)^{-1/ξ} with σ the last slope and ξ ≥ 0 the
    `tail_index`; ξ = 0 is exponential. Knots ascend strictly, the first hazard is 0. Times and slopes carry
    the unit of time. Built by `smooth_empirical`.
    """

    hazards: Array
    times: Array
    slopes: Array
    tail_index: ArrayLike = 0.0

    def cumulative_hazard(self, t):
        (low, high), (t0, t1), (d0, d1) = self._piece(jnp.asarray(t, float), self.times)
        step, rise = high - low, t1 - t0
        # Shares of the piece, not times: fourth powers of short ones are 0 in float32.
        y, d0, d1 = jnp.clip((t - t0) / rise, 0, 1), d0 * step / rise, d1 * step / rise
        # θ of the way through the piece: a quadratic equation, by the root that does not cancel.
        a = 1 - d0 + y * (d0 + d1 - 2)
        b = d0 - y * (d0 + d1 - 2)
        c = -y
        root = jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0))
        inside = low + step * 2 * c / (-b - root)
        beyond = jnp.maximum(t - self.times[-1], 0) / self.slopes[-1]
        index = jnp.asarray(self.tail_index, beyond.dtype)
        positive = index > 0
        heavy = jnp.log1p(index * beyond) / jnp.where(positive, index, 1)
        tail = self.hazards[-1] + jnp.where(positive, heavy, beyond)
        return jnp.where(jnp.greater(t, self.times[-1]), tail, inside)

    def inverse_cumulative_hazard(self, a):
        (low, high), (t0, t1), (d0, d1) = self._piece(jnp.asarray(a, float), self.hazards)
        step, rise = high - low, t1 - t0
        share = jnp.clip((a - low) / step, 0, 1)
        mean, cross = rise / step, share * (1 - share)
        inside = t0 + rise * (mean * share**2 + d0 * cross) / (mean + (d0 + d1 - 2 * mean) * cross)
        beyond = jnp.maximum(a - self.hazards[-1], 0)
        index = jnp.asarray(self.tail_index, beyond.dtype)
        positive = index > 0
        heavy = jnp.expm1(index * beyond) / jnp.where(positive, index, 1)
        tail = self.times[-1] + self.slopes[-1] * jnp.where(positive, heavy, beyond)
        return jnp.where(jnp.greater(a, self.hazards[-1]), tail, inside)

    def _piece(self, value: Array, knots: Array) -> tuple[tuple[Array, Array], ...]:
        """The ends, in hazard, time and slope, of the piece that each value lies in."""
        i = jnp.clip(jnp.searchsorted(knots, value, side="right") - 1, 0, knots.size - 2)
        return tuple((x[i], x[i + 1]) for x in (self.hazards, self.times, self.slopes))

    def mean(self):
        points, weights = np.polynomial.legendre.leggauss(8)
        step = jnp.diff(self.hazards)[:, None]
        a = self.hazards[:-1, None] + step * (points + 1) / 2
        body = jnp.sum(self.inverse_cumulative_hazard(a) * jnp.exp(-a) * step * weights / 2)
        finite = jnp.less(self.tail_index, 1)
        excess = self.slopes[-1] / jnp.where(finite, 1 - self.tail_index, 1)
        tail = jnp.exp(-self.hazards[-1]) * (self.times[-1] + excess)
        return jnp.where(finite, body + tail, jnp.inf)

    def infimum(self):
        return self.times[0]

    def kinks(self):
        # Once differentiable only.
        return self.times[1:]

    def ends(self):
        return False


class Tail(NamedTuple):
    """Where the tail of a smooth law begins, its scale, its index with a standard error, its times."""

    threshold: float
    scale: float
    tail_index: float
    tail_index_error: float
    num_times: int


def smooth_empirical(
    times: ArrayLike, censored: ArrayLike | None = None, *, pareto_tail: bool = False
) -> HazardSpline:
    r"""The smooth law of measured `times`, `[K]`, K ≥ 20; True in `censored` marks lower bounds.

    √K / 2 knots (5 to 32), each the mean of a group of neighbours, up to the largest tenth of the times;
    beyond, an exponential tail with the mean of that tenth, or with `pareto_tail` a generalised Pareto tail
    fitted to it (index ξ ≥ 0): for short samples whose largest time is not the largest there will be.

    Raises ValueError for fewer than 20 times, times that are not positive, or too few different ones.

    >>> law = smooth_empirical(np.random.default_rng(0).gamma(3.0, 2.0, 400))
    >>> abs(float(law.mean()) - 6.0) < 0.3
    True
    """
    return smooth_law_and_tail(times, censored, pareto_tail=pareto_tail)[0]


def smooth_law_and_tail(
    times: ArrayLike, censored: ArrayLike | None = None, *, pareto_tail: bool = False
) -> tuple[HazardSpline, Tail]:
    """`smooth_empirical`, and what is known about its tail."""
    t, cut = sorted_times(times, censored)
    if t.size < _FEWEST:
        raise ValueError(f"a smooth law needs at least {_FEWEST} times, got {t.size}: use Empirical")
    if np.unique(t).size < _FEWEST_VALUES:
        raise ValueError("the times take too few different values for a smooth law: use Empirical")
    t = spread_ties(t)
    hazard = np.cumsum(np.where(cut, 0, 1 / np.arange(t.size, 0, -1)))
    whole_t, whole_hazard = t[~cut], hazard[~cut]
    if whole_t.size < _FEWEST:
        raise ValueError(f"only {whole_t.size} of {t.size} times are whole, the others are cut off")
    in_tail = max(int(_TAIL * whole_t.size), 5)
    body = whole_t.size - in_tail
    threshold, base = whole_t[body - 1], whole_hazard[body - 1]
    scale, index, error = _tail_above(threshold, t, cut, pareto_tail)
    count = int(np.clip(np.sqrt(whole_t.size) / 2, 5, _MOST_KNOTS))
    groups = np.array_split(np.arange(body - 1), min(count, body - 1))
    knots = np.array([(whole_hazard[g].mean(), whole_t[g].mean()) for g in groups] + [(base, threshold)])
    # Where the clock is coarse, neighbouring groups may have one time.
    dtype = jnp.result_type(float)
    apart = np.r_[True, np.diff(knots[:, 1]) > 64 * jnp.finfo(dtype).eps * threshold]
    a, y = knots[apart].T
    if a.size < 4 or scale <= 64 * jnp.finfo(dtype).eps * threshold:
        raise ValueError(
            "the times are too close to each other for a smooth law in this precision: use Empirical"
        )
    # The curve through the lowest groups goes on to hazard 0, but not below half of the smallest time.
    begin = y[0] - a[0] * (y[1] - y[0]) / (a[1] - a[0])
    begin = np.clip(begin, 0.5 * whole_t[0], whole_t[0])
    begin = min(begin, y[0] * (1 - 64 * jnp.finfo(dtype).eps))
    a, y = np.r_[0.0, a], np.r_[begin, y]
    step, mean = np.diff(a), np.diff(y) / np.diff(a)
    # Geometric means of the two sides, the nearer one counting more; at the end the tail's own.
    share = step[1:] / (step[1:] + step[:-1])
    inner = np.exp(share * np.log(mean[:-1]) + (1 - share) * np.log(mean[1:]))
    slopes = np.r_[mean[0] ** 2 / inner[0], inner, scale]
    a, y, slopes = (jnp.asarray(v, dtype) for v in (a, y, slopes))
    law = HazardSpline(a, y, slopes, index)
    return law, Tail(float(threshold), scale, index, error, in_tail)


def _tail_above(threshold: float, t: np.ndarray, cut: np.ndarray, heavy: bool) -> tuple[float, ...]:
    """Scale, index and its standard error, in 64 bit."""
    excess, open_ = t[t > threshold] - threshold, cut[t > threshold]
    if not heavy:
        return float(np.sum(excess) / max(np.sum(~open_), 1)), 0.0, 0.0
    # Zeros that are lower bounds add nothing: one program for all lengths up to the next power of two.
    padding = 2 ** math.ceil(math.log2(excess.size)) - excess.size
    tail = Sample(np.pad(excess, (0, padding)), np.pad(open_, (0, padding), constant_values=True))
    with jax.enable_x64(True):
        scale, index, error = map(float, fit_tail(tail, heavy=True))
    return scale, index, error
