r"""Start-up and cycle time apart: from seconds S + T y of several loads y to the means and laws of S and T.

With one load in each iteration a regression gives E S and E T, and how much S varies. With several loads in
an iteration each gives its S and its T, a pair, and what they have to do with each other is kept.
"""

import math
from typing import NamedTuple

import numpy as np

from bcgc_jax.distributions import Deterministic, Distribution, EmpiricalPairs
from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.measured.start_up_moments import Estimate, lines, lines_of_cells
from bcgc_jax.measured.traces import Trace

_FEWEST = 10
# Loads that differ by less than this share of them are one load.
_ALIKE = 0.01
# Below this share of its mean, a start-up's deviation costs a plan less than that the start-up is left out.
_NEARLY_CONSTANT = 0.3
# Laws are such as many workers need: with start-ups, panels between knots would take minutes.
_ANY_WORKERS = 1000

ONE_LOAD = (
    "with one load the time before the work cannot be told from that of the work: time at least two loads, "
    "better three, far apart, and say which in a column `load`"
)


class StartUpFit(NamedTuple):
    """A start-up S and a cycle time T, seconds = S + T · load.

    Attributes:
      apart: keywords of a `Problem` for S and T: `cycle_time`, and a constant `start_up`; or
      `EmpiricalPairs`, both. per_cycle: law of seconds over load: the cycle time, did all time grow with the
      load. means: E S and E T, `[2]`, and `covariance`, `[2, 2]`, of these estimates. loads: the smallest,
      the mean and the largest. start_up_variance: Var S. pairs: `[C, 2]`, S and T of each worker's
      iterations, where they have several loads, less their noise. num_times: how many were fitted to; of
      `num_left_out` nothing could be learnt.
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
        return Estimate(float(self.means[0]), _root(self.covariance[0, 0]))

    @property
    def mean_cycle_time(self) -> Estimate:
        return Estimate(float(self.means[1]), _root(self.covariance[1, 1]))

    @property
    def separable(self) -> bool:
        """Whether a plan for S and T is better than one for all time as if it grew with the load.

        It is where both are seen, or S is known to be nearly constant. A law of T that has the spread of S
        too costs 3 to 4 % in simulated traces, to leave the start-up out 0.1 to 1.4 %.
        """
        most = self.start_up_variance.value + 1.96 * self.start_up_variance.error
        return self.pairs is not None or bool(most < (_NEARLY_CONSTANT * self.means[0]) ** 2)

    @property
    def laws(self) -> dict[str, Distribution]:
        """Keywords of the `Problem` to plan for."""
        return self.apart if self.separable else {"cycle_time": self.per_cycle}

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
            found.append("Start-up and cycle time of an iteration are kept as pairs.")
        else:
            found.append(
                "With one load in each iteration the law of the start-up is not seen: "
                + (
                    "it varies little, so plans take it as constant."
                    if self.separable
                    else "it may vary, so a plan is made as if all time grew with the load, which costs less "
                    "than to take a start-up that varies as constant. Record several loads within an "
                    "iteration, block by block, to see it."
                )
            )
        if self.num_left_out:
            found.append(f"{self.num_left_out} times say nothing of this: left out.")
        return found


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.3g} ± {100 * share.error:.2g} %"


def fit_start_up(trace: Trace) -> StartUpFit:
    r"""Means and laws of S and T from a trace of several loads, seconds = S + T · load.

    With one load in each iteration of a worker: a weighted line through all times gives the means; S is taken
    as constant, and T as the mean times what each time is of the mean at its load, with the law that `law_of`
    has for it. With several loads in most iterations: a line through those of each, which gives its S and T.

    The means leave times that are cut off out, and T's law counts them as lower bounds. Raises ValueError for
    a trace without loads, with loads that are alike to 1 %, with too few times (10 at least are not cut off),
    and with times that are all on one line.

    >>> rng = np.random.default_rng(0)
    >>> load = np.tile([100.0, 200.0, 400.0], 100)
    >>> seconds = rng.gamma(4.0, 0.5, 300) + load * (0.01 + rng.exponential(0.01, 300))
    >>> step, worker = np.divmod(np.arange(300), 5)
    >>> names = np.arange(60).astype(str), np.arange(5).astype(str)
    >>> fit = fit_start_up(Trace(*names, step, worker, seconds, np.zeros(300, bool), load))
    >>> abs(fit.mean_start_up.value - 2) < 2 * fit.mean_start_up.error
    True
    """
    _check_loads(trace)
    assert trace.load is not None
    whole = ~trace.censored
    cells = lines_of_cells(trace.seconds[whole], trace.load[whole], trace.cell[whole], trace.step[whole])
    # Iterations with several loads are rather all or none.
    several = len(cells.start_up) >= max(_FEWEST, np.unique(trace.cell).size / 2)
    if several:
        means, covariance = cells.means()
        variance = Estimate(float(max(cells.covariance()[0, 0], 0)), math.nan)
        used, left_out = len(cells.start_up), np.unique(trace.cell).size - len(cells.start_up)
    else:
        trace = trace.largest_loads()
        assert trace.load is not None
        whole = ~trace.censored
        means, covariance, variance = lines(trace.seconds[whole], trace.load[whole], trace.step[whole])
        used, left_out = trace.seconds.size, 0
    if means[1] <= 0:
        raise ValueError(
            f"the times do not grow with the load (E T = {means[1]:.3g}): are these the loads that the "
            "workers did?"
        )
    pairs = np.maximum(cells.without_noise(), [0, 1e-3 * means[1]]) if several else None
    apart: dict[str, Distribution] = (
        _alone(trace, means) if pairs is None else {"cycle_time": EmpiricalPairs(*pairs.T)}
    )
    rates, load = trace.per_cycle(), np.asarray(trace.load)
    per_cycle = smooth_or_atoms(rates.seconds, _ANY_WORKERS, rates.censored)
    loads = float(load.min()), float(load.mean()), float(load.max())
    return StartUpFit(apart, per_cycle, means, covariance, loads, variance, pairs, used, left_out)


def _alone(trace: Trace, means: np.ndarray) -> dict[str, Distribution]:
    """A constant start-up, and the law of what each time is of the mean at its load."""
    assert trace.load is not None
    start = max(means[0], 0.0)  # a time less E S may be below 0
    times = means[1] * trace.seconds / (start + means[1] * trace.load)
    cycle = {"cycle_time": smooth_or_atoms(times, _ANY_WORKERS, trace.censored)}
    return cycle | {"start_up": Deterministic(start)} if start > 0 else cycle


def one_load(trace: Trace) -> bool:
    """Whether the loads of a trace are alike, or there are none: then S and T cannot be told apart."""
    if trace.load is None:
        return True
    load = trace.load[~trace.censored]
    return load.size == 0 or bool(load.max() < load.min() * (1 + _ALIKE))


def _check_loads(trace: Trace) -> None:
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
