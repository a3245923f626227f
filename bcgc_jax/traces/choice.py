r"""The distribution that stands for measured times: an atom for each if that is quick,
or smooth.

`Empirical` never exceeds the largest time that was seen, and its expected runtime is
polyhedral. The smooth one is a monotone curve through the times, and a tail beyond the
last: T = Λ⁻¹(A), A ~ Exp(1), with Λ⁻¹ a rational quadratic spline (Gregory & Delbourgo
1982: monotone, once differentiable, inverted in closed form) through the means of
groups of neighbouring times. The mean hazard of the i-th of K sorted times is Σ_{j≤i}
1/(K-j+1) (Rényi; for censored times the estimate of Nelson and Aalen). N workers see
order statistics, each known to a standard deviation of 1/√N in the variable 2 arcsin
√F: groups are equally wide in it, and so finer at both ends.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bcgc_jax._pytree import working_dtype
from bcgc_jax.distributions import Distribution, Empirical, HazardSpline
from bcgc_jax.traces.samples import sorted_times, spread_ties
from bcgc_jax.traces.units import counted

KINDS = ("auto", "atoms", "smooth", "pareto-tail")
# Rules of integration overlook the knots of more workers: the maximum of so many times
# shows none.
_MANY = 20


def distribution_of(
    times: ArrayLike,
    num_workers: int,
    censored: ArrayLike | None = None,
    *,
    kind: str = "auto",
) -> Distribution:
    """Return the distribution of all measured `times` together, for N workers taken as
    alike.

    Args:
      times: K of them in any shape, positive.
      num_workers: N. An optimum under atoms takes K N (N² + K / 6) operations, else no
        more for a larger K.
      censored: in the shape of `times`, True where one is a lower bound, of which there
        is no atom.
      kind: "atoms", "smooth", or "pareto-tail" for a smooth distribution with a fitted
        tail. "auto" takes atoms where an optimum is quick or nothing smooth is near the
        times, else "smooth".

    Raises ValueError where there is no such distribution.

    >>> times = np.random.default_rng(0).gamma(3.0, 2.0, 400)
    >>> (
    ...     type(distribution_of(times, 4)).__name__,
    ...     type(distribution_of(times, 100)).__name__,
    ... )
    ('Empirical', 'HazardSpline')
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    size = np.size(times)
    cut = 0
    if censored is not None:
        cut = np.sum(np.asarray(censored))
    # An optimum of 1e7 operations takes some ten seconds.
    if kind == "auto" and (
        cut or size * num_workers * (num_workers**2 + size / 6) > 1e7
    ):
        return smooth_or_atoms(times, censored, num_workers)
    if kind in ("smooth", "pareto-tail"):
        heavy = kind == "pareto-tail"
        return smooth_empirical(
            times, censored, pareto_tail=heavy, large_n=num_workers > _MANY
        )
    instead = "take a smooth distribution"
    if cut:
        are = "are"
        if cut == 1:
            are = "is"
        raise ValueError(
            f"{cut} of {counted(size, 'time')} {are} censored, no atoms: {instead}"
        )
    if size * num_workers**3 > 3600 * 1e8:  # an hour for one exact runtime
        raise ValueError(f"for {size:,} atoms it would take more than a day: {instead}")
    return Empirical(np.ravel(np.asarray(times)))


def smooth_or_atoms(
    times: ArrayLike, censored: ArrayLike | None = None, num_workers: float = np.inf
) -> Distribution:
    """Return a smooth distribution; atoms where nothing smooth is near the times.

    By default it is smooth enough for any number of workers.
    """
    try:
        return smooth_empirical(times, censored, large_n=num_workers > _MANY)
    except ValueError:
        if censored is not None and np.any(censored):
            raise
        return Empirical(np.ravel(np.asarray(times)))


class Tail(NamedTuple):
    """A tail: where it begins, scale, index with a standard error, number of times."""

    threshold: float
    scale: float
    tail_index: float
    tail_index_error: float
    num_times: int


def smooth_empirical(
    times: ArrayLike,
    censored: ArrayLike | None = None,
    *,
    pareto_tail: bool = False,
    large_n: bool = False,
) -> HazardSpline:
    r"""Return the smooth distribution of `times`, `[K]`, K ≥ 20; `censored` marks lower
    bounds.

    √K knots (5 to 64), each the mean of a group of neighbours, up to the tail: the
    largest 20 times, or the largest tenth if that is fewer, are exponential with their
    own mean. With `pareto_tail` the largest tenth are a generalised Pareto tail fitted
    to it (index ξ ≥ 0), for short samples, which larger times will exceed. For
    `large_n`, a hundred say, rules of integration overlook the knots: faster, and exact
    to 1e-6.

    Raises ValueError for fewer than 20 whole times, times that are not positive, or too
    few different ones.

    >>> law = smooth_empirical(np.random.default_rng(0).gamma(3.0, 2.0, 400))
    >>> abs(float(law.mean()) - 6.0) < 0.3
    True
    """
    t, cut = sorted_times(times, censored)
    whole = np.sum(~cut)
    different = np.unique(t).size
    if whole < 20 or different < 8:
        raise ValueError(
            "a smooth distribution needs at least 20 times that are not cut off and 8 "
            f"different ones, got {whole} and {different}: use Empirical"
        )
    t = spread_ties(t)
    tail = tail_of(t, cut, heavy=pareto_tail)
    dtype = working_dtype(times)
    hazard = np.cumsum(np.where(cut, 0, 1 / np.arange(t.size, 0, -1)))[~cut]
    a, y = _knots(hazard, t[~cut], tail)
    # Where the clock is coarse, neighbouring groups may have one time.
    least = 64 * float(jnp.finfo(dtype).eps)
    apart = np.r_[True, np.diff(y) > least * tail.threshold]
    a = a[apart]
    y = y[apart]
    if a.size < 4 or tail.scale <= least * tail.threshold:
        raise ValueError(
            "the times are too close to each other for a smooth curve: use Empirical"
        )
    # The curve through the lowest groups goes on to hazard 0, not below half of the
    # smallest time.
    begin = y[0] - a[0] * (y[1] - y[0]) / (a[1] - a[0])
    begin = np.clip(begin, 0.5 * t[~cut][0], t[~cut][0])
    a = np.r_[0.0, a]
    y = np.r_[min(begin, y[0] * (1 - least)), y]
    hazards, values, rates = (
        jnp.asarray(v, dtype) for v in (a, y, _slopes(a, y, tail))
    )
    return HazardSpline(hazards, values, rates, tail.tail_index, large_n)


def _slopes(hazards: np.ndarray, times: np.ndarray, tail: Tail) -> np.ndarray:
    """Average the slopes of both sides, the nearer one counting more; the tail has its
    own.

    The averages are geometric.
    """
    step = np.diff(hazards)
    mean = np.diff(times) / step
    share = step[1:] / (step[1:] + step[:-1])
    inner = np.exp(share * np.log(mean[:-1]) + (1 - share) * np.log(mean[1:]))
    return np.r_[mean[0] ** 2 / inner[0], inner, tail.scale]


def _knots(
    hazard: np.ndarray, times: np.ndarray, tail: Tail
) -> tuple[np.ndarray, np.ndarray]:
    """Hazards and times of knots: means of neighbours, the last where the tail is."""
    size = times.size
    body = times.size - tail.num_times
    count = int(np.clip(size**0.5, 5, 64))
    angle = np.linspace(0, np.arcsin(np.sqrt(body / size)), count + 1)
    first = np.unique(
        np.minimum(np.round(np.sin(angle[:-1]) ** 2 * size).astype(int), body - 2)
    )
    counts = np.diff(np.r_[first, body - 1])
    mean_hazard = np.add.reduceat(hazard[: body - 1], first) / counts
    mean_time = np.add.reduceat(times[: body - 1], first) / counts
    return np.r_[mean_hazard, hazard[body - 1]], np.r_[mean_time, tail.threshold]


def tail_of(t: np.ndarray, cut: np.ndarray, *, heavy: bool) -> Tail:
    """The tail of ascending times, some of them cut off."""
    whole = t[~cut]
    count = max(whole.size // 10, 5)
    # A mean needs no more, a fit takes what there is.
    count = count if heavy else min(count, 20)
    threshold = float(whole[-count - 1])
    excess = t[t > threshold] - threshold
    open_ = cut[t > threshold]
    if not heavy:
        return Tail(
            threshold=threshold,
            scale=float(np.sum(excess) / max(np.sum(~open_), 1)),
            tail_index=0.0,
            tail_index_error=0.0,
            num_times=count,
        )
    scale, index, error = fit_tail(excess, open_)
    return Tail(
        threshold=threshold,
        scale=scale,
        tail_index=index,
        tail_index_error=error,
        num_times=count,
    )


def fit_tail(excess: np.ndarray, censored: np.ndarray) -> tuple[float, float, float]:
    r"""Fit P(T > u + z | T > u) = (1 + ξ z/σ)^{-1/ξ}, z ≥ 0: scale σ, index ξ, standard
    error of ξ.

    `excess` holds the z, `[K]`. The generalised Pareto distribution of what lies above
    a high threshold u (Pickands 1975), by maximum likelihood with ξ ≥ 0: a tail that
    ends is taken for an exponential one, to be safe.
    """
    # Importing it takes most of a second, which smooth and atomic ones need not wait.
    from scipy import optimize, stats

    count = max(int(np.sum(~censored)), 1)
    mean = float(np.sum(excess) / count)

    def precise(function: Any, start: Any, args: Any = (), disp: int = 0) -> Any:
        return optimize.fmin(function, start, args, xtol=1e-10, ftol=1e-12, disp=disp)

    data = stats.CensoredData(uncensored=excess[~censored], right=excess[censored])
    index, _, scale = stats.genpareto.fit(
        data, 0.2, floc=0, scale=mean, optimizer=precise
    )
    # An index below this cannot be told from none, in any sample.
    if index < 1e-3:
        scale, index = mean, 0.0
    # The asymptotic variance (1 + ξ)² / K.
    return float(scale), float(index), float((1 + index) / count**0.5)
