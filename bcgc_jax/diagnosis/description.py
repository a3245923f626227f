"""What a trace looks like, and how far it is from the paper's independent, alike
workers.

What slows its steps is found as `advise` finds it. Besides: does a worker's time depend
on that of its last step, and how heavy is the tail?
"""

import math
from typing import NamedTuple

import numpy as np

from bcgc_jax.diagnosis.advice import FEWEST_STEPS
from bcgc_jax.diagnosis.slowness import Slowness, slowness_in
from bcgc_jax.traces.intervals import Interval as Interval
from bcgc_jax.traces.samples import sorted_times, spread_ties
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted

# Below this a correlation is of no consequence for a plan: own choice.
_SMALL = 0.05

NOTHING = "Nothing here speaks against independent workers of one distribution."
_UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Description(NamedTuple):
    """A trace in numbers; times in its own unit.

    Attributes:
      mean, deviation, median, high, largest: of the times, `high` the 99 % quantile.
      tail_index: ξ of P(T > u + z) ∝ (1 + ξ z/σ)^{-1/ξ} above the largest tenth; 0 is
        exponential, moments of order 1/ξ and more are infinite.
      autocorrelation: of a worker's time with its next one.
      slowness: what whole steps lose, and why; None for less than two of them, or of
        workers.
      forward_ratio: forward to backward passes; None where they are not known apart.
    """

    num_workers: int
    num_steps: int
    num_times: int
    num_missing: int
    num_censored: int
    mean: float
    deviation: float
    median: float
    high: float
    largest: float
    tail_index: Interval
    autocorrelation: Interval
    slowness: Slowness | None
    forward_ratio: float | None = None

    def remarks(self) -> list[str]:
        """Say where the trace breaks the paper's assumptions, and what follows."""
        said = []
        if self.slowness is not None:
            said = self.slowness.remarks()
        onward = self.autocorrelation
        if onward.low * onward.high > 0 and abs(onward.value) > _SMALL:
            said.append(
                "A worker's time depends on that of its last step: the correlation is "
                f"{onward.value:.2f}. The expected runtime does not depend on it; how "
                "far the mean of a run may be from it does."
            )
        tail = self.tail_index
        if tail.low > 0.5:
            moment = "variance"
            if tail.high > 1:
                moment = "mean"
            said.append(
                f"The tail is heavy (index {tail.value:.2f}, where 0 is exponential): "
                f"the {moment} may be infinite, and a sample says little about the "
                "slowest steps to come; compare with a Pareto tail."
            )
        if self.num_censored > 0:
            cut = f"{self.num_censored} of {counted(self.num_times, 'time')}"
            are = "are"
            if self.num_censored == 1:
                are = "is"
            said.append(f"{cut} {are} cut off. Fits take such a time as a lower bound.")
        if self.slowness is None or self.slowness.num_steps < FEWEST_STEPS:
            said.append(
                "There are too few steps with a time of each worker, or too few "
                "workers, to say how alike or how independent workers are."
            )
        return said or [NOTHING]


def describe(trace: Trace, *, with_tail: bool = True) -> Description:
    """`trace` in numbers, times that are cut off left out of all but the tail, which is
    fitted.

    >>> times = np.random.default_rng(0).gamma(2.0, 1.0, (50, 4))
    >>> step, worker = np.indices(times.shape).reshape(2, -1)
    >>> whole = np.zeros(200, bool)
    >>> trace = Trace(
    ...     np.arange(50).astype(str),
    ...     np.array(list("abcd")),
    ...     step,
    ...     worker,
    ...     times.ravel(),
    ...     whole,
    ... )
    >>> describe(trace).remarks()
    ['Nothing here speaks against independent workers of one distribution.']
    """
    table = trace.table()
    whole = table[np.isfinite(table)]
    tail = _UNKNOWN
    # Ten times in the tail.
    if with_tail and whole.size >= 100 and np.unique(whole).size >= 50:
        # A fit needs JAX, which all else here does without.
        from bcgc_jax.traces.choice import tail_of

        times, cut = sorted_times(trace.seconds, trace.censored)
        fit = tail_of(spread_ties(times), cut, heavy=True)
        index = fit.tail_index
        error = 1.96 * fit.tail_index_error
        tail = Interval(index, max(index - error, 0), index + error)
    return Description(
        num_workers=trace.num_workers,
        num_steps=trace.num_steps,
        num_times=trace.seconds.size,
        num_missing=trace.num_missing,
        num_censored=int(np.sum(trace.censored)),
        mean=float(whole.mean()),
        deviation=float(whole.std(ddof=1)) if whole.size > 1 else math.nan,
        median=float(np.median(whole)),
        high=float(np.quantile(whole, 0.99)),
        largest=float(whole.max()),
        tail_index=tail,
        autocorrelation=autocorrelation(table),
        slowness=slowness_in(trace),
        forward_ratio=trace.forward_ratio,
    )


def autocorrelation(table: np.ndarray) -> Interval:
    """Correlate workers' times, `[S, W]`, around their means, with those of their next
    steps.

    The interval lets workers of a step depend on each other. Corrected for the mean
    that was estimated.
    """
    counts = np.isfinite(table).sum(axis=0)
    centred = table - np.nansum(table, axis=0) / np.maximum(counts, 1)
    products = centred[:-1] * centred[1:]
    pairs = np.isfinite(products).sum()
    squares = np.nansum(centred**2)
    steps = np.nansum(products, axis=1)
    if pairs < 2 or steps.size < 3 or squares == 0:
        return _UNKNOWN
    # Σ squares has a term for each time, Σ products one for each pair.
    scale = counts.sum() / pairs / squares
    value = steps.sum() * scale + 1 / counts[counts > 0].mean()
    error = 1.96 * steps.std(ddof=1) * math.sqrt(steps.size) * scale
    return Interval(*np.clip([value, value - error, value + error], -1, 1).tolist())
