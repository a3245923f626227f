r"""Start-up and cycle time apart: from seconds S + T y of several loads y to the means and laws of S and T.

With one load in each iteration a regression gives E S and E T, and no more is seen of S: it is taken as
constant. With several loads in an iteration each gives its S and its T, and what they have to do with each
other is kept.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from bcgc_jax._pytree import check_key
from bcgc_jax.laws import Deterministic, Law, Pairs
from bcgc_jax.measured.description import Interval
from bcgc_jax.measured.fits import Fit, fit_laws
from bcgc_jax.measured.start_up_moments import (
    UNKNOWN,
    Cells,
    Estimate,
    lines,
    lines_of_cells,
    rank_correlation,
)
from bcgc_jax.measured.traces import Trace

_FEWEST = 10
# Loads that differ by less than this share of them are one load.
_ALIKE = 0.01
# A standard deviation below this share of the mean time is none.
_CONSTANT = 0.005

NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
ONE_LOAD = (
    "with one load the time before the work cannot be told from that of the work: time at least two loads, "
    "better three, far apart, and say which in a column `load`"
)


class StartUpFit(NamedTuple):
    """A start-up S and a cycle time T, seconds = S + T · load.

    Attributes:
      start_up: law of S; None where there is none.
      cycle_time: law of T, in seconds per unit of the load.
      start_up_fits, cycle_time_fits: of each family, the best first; empty where the law is a constant.
      means: E S and E T, `[2]`, and `covariance`, `[2, 2]`, of these estimates.
      loads: the smallest, the mean and the largest.
      rank_correlation: Spearman's, of S and T, where iterations have several loads; else NaN.
      load_covariance: Cov(S, T) from how the variance grows with the load, where there are three; else NaN.
      pairs: `[C, 2]`, S and T of each worker's iterations, where they have several loads, less their noise.
      num_times: how many were fitted to; of `num_left_out` nothing could be learnt.
    """

    start_up: Law | None
    cycle_time: Law
    start_up_fits: list[Fit]
    cycle_time_fits: list[Fit]
    means: np.ndarray
    covariance: np.ndarray
    loads: tuple[float, float, float]
    rank_correlation: Interval
    load_covariance: Estimate
    pairs: np.ndarray | None
    num_times: int
    num_left_out: int

    @property
    def mean_start_up(self) -> Estimate:
        return Estimate(float(self.means[0]), _root(self.covariance[0, 0]))

    @property
    def mean_cycle_time(self) -> Estimate:
        return Estimate(float(self.means[1]), _root(self.covariance[1, 1]))

    @property
    def dependent(self) -> bool:
        """Whether S and T of an iteration depend on each other by more than chance."""
        return self.rank_correlation.low * self.rank_correlation.high > 0

    @property
    def laws(self) -> dict[str, Law]:
        """Keywords of a `Problem`: `cycle_time`, and `start_up` if there is one; pairs are both."""
        if self.dependent and self.pairs is not None:
            return {"cycle_time": Pairs(self.pairs[:, 0], self.pairs[:, 1])}
        found = {"cycle_time": self.cycle_time}
        return found if self.start_up is None else found | {"start_up": self.start_up}

    def share(self, load: float) -> Estimate:
        """Which share of the mean time does not grow with the load: E S / (E S + load E T)."""
        start, cycle = self.means
        total = start + load * cycle
        slope = np.array([load * cycle, -load * start]) / total**2
        return Estimate(float(start / total), _root(slope @ self.covariance @ slope))

    def remarks(self) -> list[str]:
        """In words: what share does not grow with the load, and whether S and T depend on each other."""
        low, _, high = self.loads
        least, most = self.share(high), self.share(low)
        found = [
            f"{_percent(most)} of the time does not grow with the load at a load of {low:g}, "
            f"{_percent(least)} at {high:g}: redundancy multiplies the rest only, and waits for fewer starts."
        ]
        if self.pairs is not None:
            found.append(self._seen())
        else:
            found.append(self._assumed())
        if self.num_left_out:
            found.append(f"{self.num_left_out} times say nothing of this: left out.")
        return found

    def _seen(self) -> str:
        r = self.rank_correlation
        if math.isnan(r.value):
            return "Start-up and cycle time cannot depend on each other: one of them is constant."
        what = (
            "they depend on each other, and are kept as pairs"
            if self.dependent
            else "no more than chance: taken as independent"
        )
        return f"Start-up and cycle time of an iteration have the rank correlation {r}: {what}."

    def _assumed(self) -> str:
        text = (
            "With one load in each iteration the law of the start-up is not seen: plans take it as constant, "
            "and its spread as that of the cycle time"
        )
        c = self.load_covariance
        if math.isnan(c.value):
            return f"{text}. It takes three loads to see whether the two depend on each other."
        if abs(c.value) < 1.96 * c.error:
            return f"{text}. The variance at each load agrees with independent ones (covariance {c})."
        return (
            f"{text}. The variance at each load says that the two depend on each other (covariance {c}): "
            "record several loads within an iteration, block by block, to keep it."
        )


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.3g} ± {100 * share.error:.2g} %"


def fit_start_up(
    key: Array,
    trace: Trace,
    *,
    laws: Sequence[str] | None = None,
    num_replicates: int = 200,
    progress: Callable[[str], None] | None = None,
) -> StartUpFit:
    r"""Means and laws of S and T from a trace of several loads, seconds = S + T · load.

    With one load in each iteration of a worker: a weighted line through all times gives the means; S is taken
    as constant, and T as the mean times what each time is of the mean at its load. With several loads in most
    iterations: a line through those of each, which gives its S and T; then the law of each of the two, or
    where they depend on each other the pairs.

    Args:
      key: randomness of the samples behind the standard errors of the laws' parameters.
      trace: with loads; at least 10 times that are not cut off.
      laws: families, as of `fit_laws`.
      num_replicates: samples behind those standard errors.
      progress: called with the name of each law before it is fitted.

    The means leave times that are cut off out, and T's law counts them as lower bounds. Runs in 64 bit
    whatever the caller's precision. Raises ValueError for a trace without loads, with loads that are alike to
    1 %, with too few times, with times that are all on one line, and for unknown families.

    >>> import jax
    >>> rng = np.random.default_rng(0)
    >>> load = np.tile([100.0, 200.0, 400.0], 100)
    >>> seconds = rng.gamma(4.0, 0.5, 300) + load * (0.01 + rng.exponential(0.01, 300))
    >>> step, worker = np.divmod(np.arange(300), 5)
    >>> names = np.arange(60).astype(str), np.arange(5).astype(str)
    >>> trace = Trace(*names, step, worker, seconds, np.zeros(300, bool), load)
    >>> fit = fit_start_up(jax.random.key(0), trace, laws=["shifted-exponential"], num_replicates=60)
    >>> abs(fit.mean_start_up.value - 2) < 2 * fit.mean_start_up.error
    True
    """
    check_key(key)
    check_loads(trace)
    assert trace.load is not None
    whole = ~trace.censored
    cells = lines_of_cells(trace.seconds[whole], trace.load[whole], trace.cell[whole], trace.step[whole])

    def fits(times: np.ndarray, censored: np.ndarray | None = None) -> list[Fit]:
        return fit_laws(key, times, censored, laws=laws, num_replicates=num_replicates, progress=progress)

    # Iterations with several loads are rather all or none.
    if len(cells.start_up) >= max(_FEWEST, np.unique(trace.cell).size / 2):
        return _from_cells(trace, cells, fits)
    return _from_sums(trace.largest_loads(), fits)


def one_load(trace: Trace) -> bool:
    """Whether the loads of a trace are alike, or there are none: then S and T cannot be told apart."""
    if trace.load is None:
        return True
    load = trace.load[~trace.censored]
    return load.size == 0 or bool(load.max() < load.min() * (1 + _ALIKE))


def check_loads(trace: Trace) -> None:
    """ValueError for a trace that cannot tell S and T apart."""
    if trace.load is None:
        raise ValueError(f"the trace has no loads: {ONE_LOAD}")
    for name, values in (("seconds", trace.seconds), ("loads", trace.load)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            bad = values[~(np.isfinite(values) & (values > 0))][0]
            raise ValueError(f"{name} must be finite and positive, got {bad:g}")
    whole = ~trace.censored
    if np.sum(whole) < _FEWEST:
        raise ValueError(f"a fit needs at least {_FEWEST} times that are not cut off, got {np.sum(whole)}")
    if one_load(trace):
        low, high = trace.load[whole].min(), trace.load[whole].max()
        alike = f"all loads are {low:g}" if low == high else f"all loads are alike, from {low:g} to {high:g}"
        raise ValueError(f"{alike}: {ONE_LOAD}")
    y = trace.load[whole]
    line = np.polynomial.Polynomial.fit(y, trace.seconds[whole], 1)
    if np.abs(trace.seconds[whole] - line(y)).max() < 1e-9 * trace.seconds[whole].max():
        start, cycle = line.convert().coef
        raise ValueError(
            f"all times are {start:g} + {cycle:g} · load: nothing is random, start-up and cycle time are "
            "constants"
        )


def _loads(load: np.ndarray) -> tuple[float, float, float]:
    return float(load.min()), float(load.mean()), float(load.max())


def _from_sums(trace: Trace, fits: Callable[..., list[Fit]]) -> StartUpFit:
    assert trace.load is not None
    whole = ~trace.censored
    found = lines(trace.seconds[whole], trace.load[whole], trace.step[whole])
    start = max(found.means[0], 0.0)
    # What is left of a time less E S may be below 0; what it is of the mean at its load is not.
    expected = start + found.means[1] * trace.load
    if found.means[1] <= 0 or expected.min() <= 0:
        raise ValueError(
            f"the times do not grow with the load (E T = {found.means[1]:.3g}): are these the loads that "
            "the workers did?"
        )
    cycle_fits = fits(found.means[1] * trace.seconds / expected, trace.censored)
    return StartUpFit(
        Deterministic(start) if start > 0 else None,
        cycle_fits[0].law,
        [],
        cycle_fits,
        found.means,
        found.covariance,
        _loads(trace.load),
        NO_INTERVAL,
        found.dependence,
        None,
        trace.seconds.size,
        0,
    )


def _from_cells(trace: Trace, cells: Cells, fits: Callable[..., list[Fit]]) -> StartUpFit:
    assert trace.load is not None
    means, covariance = cells.means()
    pairs = np.maximum(cells.without_noise(), [0, 1e-3 * means[1]])
    level = trace.seconds[~trace.censored].mean()
    deviations = np.sqrt(np.maximum(np.diag(cells.covariance()), 0))
    laws: list[Law | None] = []
    found: list[list[Fit]] = []
    for values, mean, deviation, scale in zip(
        pairs.T, means, deviations, (1.0, trace.load.mean()), strict=True
    ):
        constant = scale * deviation < _CONSTANT * level
        found.append([] if constant else fits(np.maximum(values, 1e-3 * max(mean, 1e-300))))
        none = scale * mean < _CONSTANT * level
        laws.append(found[-1][0].law if not constant else None if none else Deterministic(mean))
    start_up, cycle = laws
    if cycle is None:
        raise ValueError("the times do not grow with the load: are these the loads that the workers did?")
    used = len(cells.start_up)
    return StartUpFit(
        start_up,
        cycle,
        found[0],
        found[1],
        means,
        covariance,
        _loads(trace.load),
        # Of what is constant only rounding has ranks.
        rank_correlation(cells) if all(found) else NO_INTERVAL,
        UNKNOWN,
        pairs,
        used,
        np.unique(trace.cell).size - used,
    )
