r"""Start-up S and cycle time T apart, from seconds S + T y of several loads y.

With one load in each iteration S and T are not both seen, but the mean E S + y E T and
the variance Var S + 2 y Cov(S, T) + y² Var T are a line and a parabola in the load.
With several loads in an iteration of a worker each iteration has a line of its own,
which gives its S and its T up to the noise around it.
"""

import math
from typing import NamedTuple

import numpy as np

from bcgc_jax._pytree import check
from bcgc_jax.distributions import Deterministic, Distribution, EmpiricalPairs
from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.measured.samples import FEWEST, check_enough
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.words import counted

# Loads that differ by less than this share of them are taken for one: own choice.
_ALIKE = 0.01


class Estimate(NamedTuple):
    """A number and its standard error; NaN where it is not known."""

    value: float
    error: float

    def __str__(self) -> str:
        if not math.isfinite(self.error):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ± {self.error:.2g}"

    @property
    def in_percent(self) -> str:
        return f"{100 * self.value:.3g} ± {100 * self.error:.2g} %"


class StartUpFit(NamedTuple):
    """A start-up S and a cycle time T, seconds = S + T · load.

    Attributes:
      apart: keywords of a `Problem` for S and T: `cycle_time`, and a constant
        `start_up`; or `EmpiricalPairs`, both.
      per_cycle: the distribution of seconds over load: the cycle time, did all time
        grow with the load.
      means: E S and E T, `[2]`, and `covariance`, `[2, 2]`, of these estimates.
      loads: the smallest, the mean and the largest.
      start_up_variance: Var S.
      pairs: `[C, 2]`, S and T of each worker's iterations, where they have several
        loads, less their noise.
      num_times: how many were fitted to; of `num_left_out` nothing could be learnt.
    """

    apart: dict[str, Distribution]
    per_cycle: Distribution
    means: np.ndarray
    covariance: np.ndarray
    loads: tuple[float, float, float]
    start_up_variance: Estimate
    pairs: np.ndarray | None
    num_times: int
    num_left_out: int

    @property
    def mean_start_up(self) -> Estimate:
        return Estimate(float(self.means[0]), math.sqrt(self.covariance[0, 0]))

    @property
    def mean_cycle_time(self) -> Estimate:
        return Estimate(float(self.means[1]), math.sqrt(self.covariance[1, 1]))

    @property
    def separable(self) -> bool:
        """Whether a plan for S and T is better than one for all time as if it grew with
        the load.

        It is where both are seen, or S is known to deviate by less than 0.3 of its
        mean. A T that has the spread of S too costs 3 to 4 % in simulated traces, to
        leave the start-up out 0.1 to 1.4 %.
        """
        upper_bound = self.start_up_variance.value + 1.96 * self.start_up_variance.error
        return self.pairs is not None or bool(upper_bound < (0.3 * self.means[0]) ** 2)

    def share(self, load: float) -> Estimate:
        """Return the share of time that is start-up: E S / (E S + load E T)."""
        start, cycle = self.means
        total = start + load * cycle
        slope = np.array([load * cycle, -load * start]) / total**2
        return Estimate(
            float(start / total), math.sqrt(slope @ self.covariance @ slope)
        )

    def remarks(self) -> list[str]:
        """Say what share is start-up, and whether S and T depend on each other."""
        low, _, high = self.loads
        said = [
            f"{self.share(low).in_percent} of the time does not grow with the load at "
            f"a load of {low:g}, {self.share(high).in_percent} at {high:g}: redundancy "
            "multiplies the rest only, and waits for fewer starts."
        ]
        unseen = (
            "With one load in each iteration the distribution of the start-up is not "
            "seen: "
        )
        if self.pairs is not None:
            said.append("Start-up and cycle time of an iteration are kept as pairs.")
        elif self.separable:
            said.append(f"{unseen}it varies little, so plans take it as constant.")
        else:
            said.append(
                f"{unseen}it may vary, so a plan is made as if all time grew with the "
                "load, which costs less than to take a start-up that varies as "
                "constant. Record several loads within an iteration, block by block, "
                "to see it."
            )
        if self.num_left_out:
            said.append(
                f"This takes no account of {counted(self.num_left_out, 'time')}."
            )
        return said


class _Means(NamedTuple):
    """What the times say of S and T; the fields are those of `StartUpFit`."""

    means: np.ndarray
    covariance: np.ndarray
    start_up_variance: Estimate
    pairs: np.ndarray | None
    num_times: int
    num_left_out: int


def fit_start_up(trace: Trace) -> StartUpFit:
    r"""Means and distributions of S and T from a trace of several loads, seconds = S +
    T · load.

    With one load in each iteration of a worker a weighted line through all times gives
    the means. S is taken as constant. T is the mean times what each time is of the mean
    at its load, with the distribution that `distribution_of` has for it. With several
    loads in most iterations a line through each gives both.

    The means leave times that are cut off out, and T's distribution counts them as
    lower bounds. Raises ValueError for loads that are alike to 1 %, for less than 10
    whole times, and for times all on one line.

    >>> rng = np.random.default_rng(0)
    >>> load = np.tile([100.0, 200.0, 400.0], 100)
    >>> seconds = rng.gamma(4.0, 0.5, 300) + load * (0.01 + rng.exponential(0.01, 300))
    >>> step, worker = np.divmod(np.arange(300), 5)
    >>> names = np.arange(60).astype(str), np.arange(5).astype(str)
    >>> fit = fit_start_up(
    ...     Trace(*names, step, worker, seconds, np.zeros(300, bool), load)
    ... )
    >>> abs(fit.mean_start_up.value - 2) < 2 * fit.mean_start_up.error
    True
    """
    _check_loads(trace)
    num_cells = np.unique(trace.cell).size
    pairs, cells, noise = lines_of_cells(*_columns(trace, "cell"))
    # Iterations with several loads are rather all or none.
    if len(pairs) >= max(FEWEST, num_cells / 2):
        estimates = _from_pairs(pairs, cells // trace.num_workers, noise, num_cells)
    else:
        trace = trace.largest_loads()
        estimates = _from_line(trace)
    cycle = estimates.means[1]
    if cycle <= 0:
        grow = f"the times do not grow with the load (E T = {cycle:.3g})"
        raise ValueError(f"{grow}: are these the loads?")
    load = np.asarray(trace.load)
    rates = trace.per_cycle()
    return StartUpFit(
        apart=_apart(trace, estimates),
        per_cycle=smooth_or_atoms(rates.seconds, rates.censored),
        loads=(float(load.min()), float(load.mean()), float(load.max())),
        **estimates._asdict(),
    )


def _from_pairs(
    pairs: np.ndarray, step: np.ndarray, noise: np.ndarray, num_cells: int
) -> _Means:
    """Take the means of S and T of iterations, and the pairs less their noise."""
    means, covariance = _mean(pairs, step)
    pair_covariance = np.cov(pairs, rowvar=False) - noise
    less_noise = pairs
    if noise[1, 1] > 1e-9 * np.var(pairs[:, 1]):  # else it is rounding
        less_noise = with_covariance(pairs, pair_covariance)
    return _Means(
        means=means,
        covariance=covariance,
        start_up_variance=Estimate(float(max(pair_covariance[0, 0], 0)), math.nan),
        pairs=np.maximum(less_noise, [0, 1e-3 * means[1]]),
        num_times=len(pairs),
        num_left_out=num_cells - len(pairs),
    )


def _from_line(trace: Trace) -> _Means:
    """Take the means of S and T from a line through the times of one load each."""
    means, covariance, variance = line(*_columns(trace, "step"))
    return _Means(
        means=means,
        covariance=covariance,
        start_up_variance=variance,
        pairs=None,
        num_times=trace.seconds.size,
        num_left_out=0,
    )


def _apart(trace: Trace, estimates: _Means) -> dict[str, Distribution]:
    if estimates.pairs is not None:
        return {"cycle_time": EmpiricalPairs(*estimates.pairs.T)}
    start = max(estimates.means[0], 0.0)  # a time less E S may be below 0
    cycle = estimates.means[1]
    times = cycle * trace.seconds / (start + cycle * np.asarray(trace.load))
    apart: dict[str, Distribution] = {
        "cycle_time": smooth_or_atoms(times, trace.censored)
    }
    if start > 0:
        apart["start_up"] = Deterministic(start)
    return apart


def _columns(trace: Trace, *names: str) -> list[np.ndarray]:
    """The seconds, the loads and more columns, of times that are not cut off."""
    return [
        getattr(trace, name)[~trace.censored] for name in ("seconds", "load", *names)
    ]


def one_load(trace: Trace) -> bool:
    """Say whether a trace has one load, or none: then S and T cannot be told apart."""
    if trace.load is None:
        load = np.zeros(0)
    else:
        load = trace.load[~trace.censored]
    return load.size == 0 or bool(load.max() < load.min() * (1 + _ALIKE))


def _check_loads(trace: Trace) -> None:
    """Raise ValueError for a trace that cannot tell S and T apart."""
    if one_load(trace):
        raise ValueError(
            "the time before the work cannot be told from that of the work: time at "
            "least two loads, better three, far apart, and say which in a column `load`"
        )
    check("seconds", trace.seconds, "> 0")
    check("load", trace.load, "> 0")
    seconds, load = _columns(trace)
    check_enough(seconds.size)
    cycle, start = np.polyfit(load, seconds, 1)
    if np.abs(seconds - start - cycle * load).max() < 1e-9 * seconds.max():
        raise ValueError(
            f"all times are {start:g} + {cycle:g} · load: nothing is random"
        )


def line(
    seconds: np.ndarray, load: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Estimate]:
    """Estimate E S and E T, `[2]`, their covariance, and Var S, from times of one load
    each, `[K]`.

    Errors come from a jackknife over 40 groups of steps, for workers of a step may
    depend on each other.
    """
    place = _places(step)
    group = place * min(40, place.max() + 1) // (place.max() + 1)
    moments = _moments(seconds, load)
    masks = [group != g for g in range(group.max() + 1)]
    without = np.array([_moments(seconds[mask], load[mask]) for mask in masks])
    covariance = np.cov(without, rowvar=False, ddof=0) * (len(without) - 1)
    variance = Estimate(float(moments[2]), math.sqrt(covariance[2, 2]))
    return moments[:2], covariance[:2, :2], variance


def _places(step: np.ndarray) -> np.ndarray:
    """Number each row's step; each row where steps are too few to tell errors from."""
    _, place = np.unique(step, return_inverse=True)
    if place.max() >= 4:
        return place
    return np.arange(step.size)


def _moments(seconds: np.ndarray, load: np.ndarray) -> np.ndarray:
    """E S, E T, Var S, Cov(S, T), Var T; the covariance is 0, and unknown, below three
    loads.

    Weighted least squares of the seconds, and of their squared distances to the line,
    in turn.
    """
    unit = load.mean()
    y = load / unit
    line = np.stack([np.ones_like(y), y], axis=1)
    parabola = np.stack([np.ones_like(y), 2 * y, y**2], axis=1)
    if np.unique(load).size > 2:
        used = [0, 1, 2]
    else:
        used = [0, 2]
    variance = np.full(y.size, 1.0)
    variances = np.zeros(3)
    for _ in range(4):
        means = _least_squares(line, seconds, variance)
        squares = (seconds - line @ means) ** 2
        variances[used] = _least_squares(parabola[:, used], squares, variance**2)
        variance = np.maximum(parabola @ variances, 0.05 * squares.mean() + 1e-300)
    return np.r_[means / [1, unit], variances / [1, unit, unit**2]]


def _least_squares(
    columns: np.ndarray, values: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    weight = 1 / np.sqrt(variance)
    return np.linalg.lstsq(columns * weight[:, None], values * weight, rcond=None)[0]


def _mean(pairs: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return E S and E T of pairs, `[C, 2]`, and their covariance by steps."""
    mean = pairs.mean(axis=0)
    place = _places(step)
    steps = place.max() + 1
    sums = np.zeros((steps, 2))
    np.add.at(sums, place, pairs - mean)
    return mean, sums.T @ sums / len(pairs) ** 2 * steps / (steps - 1)


def with_covariance(pairs: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Draw the pairs, `[C, 2]`, towards their mean until they have a covariance."""
    mean = pairs.mean(axis=0)
    scale = pairs.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    scaled = (pairs - mean) / scale
    whitened = scaled @ _power(np.cov(scaled, rowvar=False) + 1e-12 * np.eye(2), -0.5)
    return mean + whitened @ _power(covariance / np.outer(scale, scale), 0.5) * scale


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Return a power of a symmetric matrix without its negative part: noise."""
    values, axes = np.linalg.eigh(matrix)
    return axes * np.maximum(values, 0) ** exponent @ axes.T


def lines_of_cells(
    seconds: np.ndarray, load: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit S and T, `[C, 2]`, to each cell of several loads, from `[R]`; return which
    cells, `[C]`.

    With the mean covariance of their errors, `[2, 2]`: 0 where no cell has three loads
    to tell it from.
    """
    cells, place, count = np.unique(cell, return_inverse=True, return_counts=True)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values)

    middle = total(load) / count
    level = total(seconds) / count
    off = load - middle[place]
    square = total(off**2)
    has_slope = square > 1e-12 * middle**2
    slope = total(off * (seconds - level[place])) / np.where(has_slope, square, 1)
    start = level - slope * middle
    residual = total((seconds - start[place] - slope[place] * load) ** 2)
    spare = np.sum(count[has_slope] - 2)
    noise = 0.0
    if spare:
        noise = np.sum(residual[has_slope]) / spare
    m = middle[has_slope]
    s = square[has_slope]
    of_start = np.sum(m**2 / s + 1 / count[has_slope])
    crossed = -np.sum(m / s)
    sums = np.array([[of_start, crossed], [crossed, np.sum(1 / s)]])
    errors = sums / max(np.sum(has_slope), 1)
    return np.stack([start, slope], axis=1)[has_slope], cells[has_slope], noise * errors
