r"""Start-up and cycle time apart: from seconds S + T y of several loads y to the laws of S and of T.

With one load in each iteration the laws are those of the largest likelihood (`start_up_likelihood`), and S
and T independent by assumption: of one iteration they are not both seen. With several loads in an iteration
they are, and what they have to do with each other is kept.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from bcgc_jax._pytree import check_key
from bcgc_jax.laws import Deterministic, Law, Pairs
from bcgc_jax.measured.description import Interval
from bcgc_jax.measured.fits import Fit, fit_laws
from bcgc_jax.measured.start_up_errors import estimates
from bcgc_jax.measured.start_up_likelihood import (
    CHUNK,
    CYCLE_TIMES,
    NONE,
    START_UPS,
    Candidate,
    Moments,
    Times,
    search,
)
from bcgc_jax.measured.start_up_moments import (
    Cells,
    Estimate,
    covariance_by_load,
    lines,
    lines_of_cells,
    rank_correlation,
)
from bcgc_jax.measured.traces import Trace

# More times than this say no more about which laws to plan with: a random part of them is taken.
MAX_TIMES = 8 * CHUNK
_FEWEST = 10
# Loads that differ by less than this share of them are one load.
_ALIKE = 0.01
# A standard deviation below this share of the mean time is none.
_CONSTANT = 0.005

ONE_LOAD = (
    "with one load the time before the work cannot be told from that of the work: time at least two loads, "
    "better three, far apart, and say which in a column `load`"
)


class StartUpFit(NamedTuple):
    """The laws of a start-up S and a cycle time T, seconds = S + T · load.

    Attributes:
      start_up: law of S; None where there is none.
      cycle_time: law of T, in seconds per unit of the load.
      start_up_errors, cycle_time_errors: standard errors of their parameters, by name.
      means: E S and E T, `[2]`, and `covariance`, `[2, 2]`, of these estimates.
      loads: the smallest, the mean and the largest.
      candidates: pairs of families, the best first, with Akaike's criterion.
      rank_correlation: Spearman's, of S and T, where iterations have several loads; else NaN.
      load_covariance: Cov(S, T) from how the variance grows with the load, where there are three; else NaN.
      pairs: `[C, 2]`, S and T of each worker's iterations, where they have several loads, less their noise.
      num_times: how many were fitted to; of `num_left_out` nothing could be learnt.
    """

    start_up: Law | None
    cycle_time: Law
    start_up_errors: dict[str, float]
    cycle_time_errors: dict[str, float]
    means: np.ndarray
    covariance: np.ndarray
    loads: tuple[float, float, float]
    candidates: tuple[Candidate, ...]
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
            "Start-up and cycle time are taken as independent: with one load in each iteration they are not "
            "both seen"
        )
        c = self.load_covariance
        if math.isnan(c.value):
            return f"{text}, and it takes three loads to see in the variance whether they are."
        if abs(c.value) < 1.96 * c.error:
            return f"{text}; the variance at each load agrees (covariance {c})."
        return (
            f"{text}; the variance at each load says that they are not (covariance {c}): record several "
            "loads within an iteration, block by block, to keep it."
        )


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.3g} ± {100 * share.error:.2g} %"


def fit_start_up(
    key: Array,
    trace: Trace,
    *,
    start_ups: Sequence[str] | None = None,
    cycle_times: Sequence[str] | None = None,
    num_replicates: int = 40,
    progress: Callable[[str], None] | None = None,
) -> StartUpFit:
    r"""The laws of S and T from a trace of several loads, seconds = S + T · load.

    With one load in each iteration of a worker: maximum likelihood, S and T independent. With several loads
    in most iterations: a line through those of each, which gives its S and T; then the law of each of the
    two, or where they depend on each other the pairs.

    Args:
      key: randomness of the samples behind some standard errors, and of the part of too many times.
      trace: with loads; at least 10 times that are not cut off.
      start_ups: families of S, of "none" (all time grows with the load), "constant", "exponential",
        "shifted-exponential", "weibull", "gamma", "lognormal"; all by default.
      cycle_times: families of T, likewise, and "pareto".
      num_replicates: samples behind each standard error, at least 10.
      progress: called with what is fitted next.

    Runs in 64 bit whatever the caller's precision. Raises ValueError for a trace without loads, with loads
    that are alike to 1 %, with too few times, with times that are all on one line, and for unknown families.

    >>> rng = np.random.default_rng(0)
    >>> load = np.tile([100.0, 200.0, 400.0], 100)
    >>> seconds = rng.gamma(4.0, 0.5, 300) + load * (0.01 + rng.exponential(0.01, 300))
    >>> step, worker = np.divmod(np.arange(300), 5)
    >>> names = np.arange(60).astype(str), np.arange(5).astype(str)
    >>> trace = Trace(*names, step, worker, seconds, np.zeros(300, bool), load)
    >>> families = {"start_ups": ["gamma"], "cycle_times": ["shifted-exponential"]}
    >>> fit = fit_start_up(jax.random.key(0), trace, **families, num_replicates=10)
    >>> abs(fit.mean_start_up.value - 2) < 2 * fit.mean_start_up.error
    True
    """
    check_key(key)
    check_loads(trace)
    names = _families("start_ups", start_ups, START_UPS), _families("cycle_times", cycle_times, CYCLE_TIMES)
    if num_replicates < 10:
        raise ValueError(f"num_replicates must be at least 10, got {num_replicates}")
    report = progress or (lambda name: None)
    with jax.enable_x64(True):
        whole = ~trace.censored
        assert trace.load is not None
        cells = lines_of_cells(trace.seconds[whole], trace.load[whole], trace.cell[whole], trace.step[whole])
        # Iterations with several loads are rather all or none.
        if len(cells.start_up) >= max(_FEWEST, np.unique(trace.cell).size / 2):
            return _from_cells(key, trace, cells, names, num_replicates, report)
        return _from_sums(key, trace.largest_loads(), names, num_replicates, report)


def _families(name: str, given: Sequence[str] | None, known: dict) -> list[str]:
    chosen = list(known) if given is None else list(given)
    unknown = [family for family in chosen if family not in known]
    if unknown or not chosen:
        what = f"unknown family {unknown[0]!r}" if unknown else "no family"
        raise ValueError(f"{name}: {what}; known: {', '.join(known)}")
    return chosen


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


def _from_sums(
    key: Array,
    trace: Trace,
    names: tuple[list[str], list[str]],
    num_replicates: int,
    report: Callable[[str], None],
) -> StartUpFit:
    assert trace.load is not None
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    order = rng.permutation(trace.seconds.size)
    rows = np.sort(order[:MAX_TIMES])
    seconds, load, cut = trace.seconds[rows], trace.load[rows], trace.censored[rows]
    whole = ~cut
    found = lines(seconds[whole], load[whole])
    times = Times(seconds, load, cut, _spacing(seconds[whole] - found.means[1] * load[whole]))
    level = seconds[whole].mean()
    least = np.array([0.05 * level, 0.2 * level / load.mean()])
    means = np.maximum(found.means, least)
    squares = (seconds[whole] - found.means[0] - found.means[1] * load[whole]) ** 2
    moments = Moments(means, math.sqrt(squares.mean()), load.mean())
    part = rng.permutation(rows.size)[:CHUNK]
    part = part if np.sum(~cut[part]) >= _FEWEST else np.arange(rows.size)
    candidates = search(times, part, moments, *names, report)
    report("standard errors")
    best = estimates(rng, candidates[0], times, num_replicates)
    return StartUpFit(
        best.start_up,
        best.cycle_time,
        best.start_up_errors,
        best.cycle_time_errors,
        best.means,
        best.covariance,
        _loads(load),
        tuple(candidates),
        Interval(math.nan, math.nan, math.nan),
        covariance_by_load(seconds[whole], load[whole], trace.step[rows][whole]),
        None,
        rows.size,
        0,
    )


def _spacing(values: np.ndarray) -> float:
    """The mean distance of the smallest √K."""
    few = int(values.size**0.5)
    lowest = np.sort(values)[: few + 1]
    return float(max((lowest[-1] - lowest[0]) / few, 1e-9 * np.abs(values).max()))


def _from_cells(
    key: Array,
    trace: Trace,
    cells: Cells,
    names: tuple[list[str], list[str]],
    num_replicates: int,
    report: Callable[[str], None],
) -> StartUpFit:
    assert trace.load is not None
    means, covariance = cells.means()
    pairs = cells.without_noise()
    pairs = np.maximum(pairs, [0, 1e-3 * means[1]])
    level = trace.seconds[~trace.censored].mean()
    found = []
    for i, (families, scale) in enumerate(zip(names, (1.0, trace.load.mean()), strict=True)):
        report("start-up" if i == 0 else "cycle time")
        values = np.maximum(pairs[:, i], 1e-3 * max(means[i], 1e-300))
        deviation = math.sqrt(max(cells.covariance()[i, i], 0.0))
        none = scale * means[i] < _CONSTANT * level
        constant = scale * deviation < _CONSTANT * level or families == ["constant"]
        found.append(
            _marginal(jax.random.fold_in(key, i), values, means[i], none, constant, families, num_replicates)
        )
    correlation = rank_correlation(cells)
    candidates = [
        Candidate(s.name, t.name, s.log_likelihood + t.log_likelihood, s.aic + t.aic, np.zeros(0))
        for s in found[0][:3]
        for t in found[1][:3]
    ]
    start_up, cycle = found[0][0], found[1][0]
    used = len(cells.start_up)
    return StartUpFit(
        None if start_up.name == NONE else start_up.law,
        cycle.law,
        start_up.standard_errors,
        cycle.standard_errors,
        means,
        covariance,
        _loads(trace.load),
        tuple(sorted(candidates, key=lambda c: c.aic)),
        correlation,
        Estimate(math.nan, math.nan),
        pairs,
        used,
        np.unique(trace.cell).size - used,
    )


def _marginal(
    key: Array,
    values: np.ndarray,
    mean: float,
    none: bool,
    constant: bool,
    families: list[str],
    num_replicates: int,
) -> list[Fit]:
    """Laws of S or of T alone, the best first."""
    random = [name for name in families if name not in (NONE, "constant")]
    if constant or not random:
        name = NONE if none and NONE in families else "constant"
        law = Deterministic(max(mean, 1e-300))
        return [Fit(name, law, {}, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, values.size)]
    return fit_laws(key, values, laws=random, num_replicates=num_replicates)
