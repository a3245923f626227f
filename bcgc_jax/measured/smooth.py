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
from jax.typing import ArrayLike

from bcgc_jax._pytree import working_dtype
from bcgc_jax.laws.spline import HazardSpline
from bcgc_jax.measured.likelihood import Sample, fit_tail, sorted_times, spread_ties

# Times below this many are too few for a curve; knots at most; the share of times that is the tail.
_FEWEST, _MOST_KNOTS, _TAIL = 20, 32, 0.1
_FEWEST_VALUES = 8


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
    dtype = working_dtype(times)
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
