"""What a trace looks like, and how far it is from the paper's independent, identically distributed times.

Three questions decide whether a plan for such times can be trusted. Are the workers alike (the share of the
variance that is between workers)? Are they slow one by one (the share that all workers of a step have in
common)? Does a slow worker stay slow (the autocorrelation from step to step)?
"""

import math
from typing import NamedTuple

import numpy as np

from bcgc_jax.distributions.special_functions import f_quantile
from bcgc_jax.measured.causes import parts_of
from bcgc_jax.measured.choice import tail_of
from bcgc_jax.measured.intervals import Interval as Interval
from bcgc_jax.measured.likelihood import sorted_times, spread_ties
from bcgc_jax.measured.slow_workers import SlowWorker, slow_workers
from bcgc_jax.measured.traces import ALIKE, Trace

# Below this a share of the variance or a correlation is of no consequence for a plan: own choice.
_SMALL = 0.05
# Slow workers that are told in words.
_MOST_TOLD = 3

NOTHING = "Nothing here speaks against independent workers of one distribution."


_UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Description(NamedTuple):
    """A trace in numbers; times in its own unit.

    Attributes:
      mean, deviation, median, high, largest: of the times, `high` the 99 % quantile.
      tail_index: ξ of P(T > u + z) ∝ (1 + ξ z/σ)^{-1/ξ} above the largest tenth; 0 is exponential, moments
        of order 1/ξ and more are infinite.
      between_workers: share of the variance between workers; 0 where they are alike. Pauses that chunks
        show are taken out here, and in all that follows but `spread`.
      between_steps: share that the workers of a step have in common; 0 where they are slow one by one.
      autocorrelation: of a worker's time with its next one.
      spread: from the fastest to the slowest worker of a step, as a share of their mean; a median.
      slow_workers: that were slow for some steps or for all; first those that took the most time more.
      worker_share: share of the variance of a microbatch's seconds within a step that is its worker's;
        unknown without microbatches.
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
    between_workers: Interval
    between_steps: Interval
    autocorrelation: Interval
    spread: float
    slow_workers: list[SlowWorker]
    worker_share: Interval = _UNKNOWN
    forward_ratio: float | None = None

    @property
    def alike(self) -> bool:
        """Whether all workers of a step take one time, as those do that have waited for each other."""
        return self.spread < ALIKE

    @property
    def unlike_workers(self) -> bool:
        """Whether workers differ by more than chance and by more than a plan can overlook."""
        return self.between_workers.low > 0 and self.between_workers.value > _SMALL

    @property
    def slow_together(self) -> bool:
        """Whether the workers of a step have as much in common."""
        return self.between_steps.low > 0 and self.between_steps.value > _SMALL

    def remarks(self) -> list[str]:
        """In words: where the trace is not what the paper assumes, and what that means for a plan."""
        tail = self.tail_index
        onward = self.autocorrelation
        known = [
            (
                self.alike,
                f"The workers of a step take the same time, to {100 * self.spread:.1g} %: were they timed "
                "behind a collective (an all-reduce, a barrier), where each has waited for the slowest? Then "
                "nothing can be learnt here: time each worker's own computation, up to the collective.",
            ),
            *((True, remark) for remark in self.slowness_in_words()),
            (
                self.unlike_workers,
                f"The workers are not alike: {100 * self.between_workers.value:.0f} % of the variance is "
                "between them. A plan for one distribution takes them for alike, and slow ones to change; "
                "keep them apart (`EmpiricalRows`), or leave the slowest out.",
            ),
            (bool(self.slow_workers), self._slow_workers_in_words()),
            (
                self.slow_together,
                f"The workers are slow together: {100 * self.between_steps.value:.0f} % of the variance is "
                "common to a step. Redundancy helps against single slow workers only, so it gains less than "
                "a plan for independent workers says; plan on whole steps (`EmpiricalRows`).",
            ),
            (
                onward.low * onward.high > 0 and abs(onward.value) > _SMALL,
                f"A slow worker {'stays slow' if onward.value > 0 else 'is fast next'}: the correlation from "
                f"step to step is {onward.value:.2f}. The expected runtime does not depend on it; how far "
                "the mean of a run may be from it does.",
            ),
            (
                tail.low > 0.5,
                f"The tail is heavy (index {tail.value:.2f}, where 0 is exponential): the "
                f"{'mean' if tail.high > 1 else 'variance'} may be infinite, and a sample says little about "
                "the slowest steps to come; compare with a Pareto tail.",
            ),
            (
                self.num_censored > 0,
                f"{self.num_censored} of {self.num_times} times are cut off: fits take them as lower bounds.",
            ),
            (
                math.isnan(self.between_workers.value) or math.isnan(self.between_steps.value),
                "There are too few steps or workers to say how alike or how independent workers are.",
            ),
        ]
        return [remark for holds, remark in known if holds] or [NOTHING]

    def slowness_in_words(self) -> list[str]:
        """Whether workers are slow or their data; nothing where there are no microbatches."""
        if math.isnan(self.worker_share.value):
            return []
        share, low, high = (f"{100 * max(value, 0):.2g}" for value in self.worker_share)
        if self.worker_share.low < 0.5 < self.worker_share.high:
            who = "Workers and data are slow alike"
        elif slow_data(self.worker_share):
            who = "The data are slow, not the workers"
        else:
            who = "The workers are slow, not their data"
        return [
            f"{who}: of the variance of a microbatch's seconds within a step, {share} % ({low} to {high} %) "
            "is its worker's, the rest its data's."
        ]

    def _slow_workers_in_words(self) -> str:
        said = [str(one) for one in self.slow_workers[:_MOST_TOLD]]
        if (more := len(self.slow_workers) - _MOST_TOLD) > 0:
            said.append(f"There {'are' if more > 1 else 'is'} {more} more of these.")
        said.append("Look for the cause: a plan for one distribution supposes that slow workers change.")
        return " ".join(said)


def describe(trace: Trace, *, with_tail: bool = True) -> Description:
    """`trace` in numbers, times that are cut off left out of all but the tail, which is fitted.

    >>> times = np.random.default_rng(0).gamma(2.0, 1.0, (50, 4))
    >>> step, worker = np.indices(times.shape).reshape(2, -1)
    >>> whole = np.zeros(200, bool)
    >>> trace = Trace(np.arange(50).astype(str), np.array(list("abcd")), step, worker, times.ravel(), whole)
    >>> describe(trace).remarks()
    ['Nothing here speaks against independent workers of one distribution.']
    """
    table = trace.table()
    calm = _without_pauses(trace, table)
    persistence = autocorrelation(calm)
    whole = table[np.isfinite(table)]
    tail = _UNKNOWN
    if with_tail and whole.size >= 100 and np.unique(whole).size >= 50:  # ten times in the tail
        times, cut = sorted_times(trace.seconds, trace.censored)
        fit = tail_of(spread_ties(times), cut, heavy=True)
        index = fit.tail_index
        error = 1.96 * fit.tail_index_error
        tail = Interval(index, max(index - error, 0), index + error)
    parts = trace.microbatches
    steps = table[np.isfinite(table).sum(axis=1) > 1]
    ranges = (np.nanmax(steps, axis=1) - np.nanmin(steps, axis=1)) / np.nanmean(steps, axis=1)
    spread = float(np.median(ranges)) if steps.size else math.nan
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
        between_workers=variance_between(calm.T, np.clip(np.nan_to_num(persistence.value), 0, 0.99)),
        between_steps=variance_between(calm),
        autocorrelation=persistence,
        spread=spread,
        slow_workers=_slow_workers(trace, calm),
        worker_share=_UNKNOWN if parts is None else worker_share(parts.seconds),
        forward_ratio=None if parts is None else parts.forward_ratio,
    )


def _without_pauses(trace: Trace, table: np.ndarray) -> np.ndarray:
    """The `table` less the pauses that the model of `advise` finds in chunks, where there are any."""
    parts = trace.microbatches
    if parts is None or parts.seconds.shape[2] < 2:
        return table
    whole = np.isfinite(table).all(axis=1)
    calm = table.copy()
    if whole.any():
        calm[whole] -= parts_of(parts.whole_steps()).pauses.sum(axis=2)
    return calm


def _slow_workers(trace: Trace, table: np.ndarray) -> list[SlowWorker]:
    """Those of the `table`, by their names in the trace, the most time lost first."""
    found = slow_workers(table)
    found.sort(key=lambda one: (one.ratio - 1) * (one.last - one.first + 1), reverse=True)
    return [
        SlowWorker(
            worker=str(trace.worker_names[one.worker]),
            first_step=str(trace.step_names[one.first]),
            last_step=str(trace.step_names[one.last]),
            ratio=one.ratio,
        )
        for one in found
    ]


def variance_between(groups: np.ndarray, persistence: float = 0.0) -> Interval:
    r"""The share of the variance that is between groups, `[G, K]` with NaN for missing entries.

    (B - W) / (B + (k-1) W) with the mean squares B between and W within groups of k entries, and the interval
    that the F distribution gives for normal times (Searle 1971); negative where groups differ less than
    chance makes them. The means of the columns are taken out first: what all groups have in common would hide
    what they have not. Neighbours in a group that are correlated by `persistence` are worth fewer entries.
    """
    groups = groups[:, np.isfinite(groups).any(axis=0)]
    groups = groups - np.nanmean(groups, axis=0)
    groups = groups[np.isfinite(groups).any(axis=1)]
    counts = np.isfinite(groups).sum(axis=1)
    total = counts.sum()
    outer = len(groups) - 1
    inner = total - sum(groups.shape) + 1
    if outer < 1 or inner < 1:
        return _UNKNOWN
    means = np.nanmean(groups, axis=1)
    grand = np.nanmean(groups)
    within = np.nansum((groups - means[:, None]) ** 2) / inner
    between = np.sum(counts * (means - grand) ** 2) / outer
    size = (total - np.sum(counts**2) / total) / outer
    if within == 0:
        return Interval(1.0, 1.0, 1.0) if between > 0 else _UNKNOWN
    ratio = between / within * (1 - persistence) / (1 + persistence)
    return _share_between(ratio, outer, inner, size)


def worker_share(seconds: np.ndarray) -> Interval:
    r"""The share of the variance of a microbatch's seconds within a step that belongs to its worker.

    `[S, W, C]`, NaN where a worker has no step. Seconds are a part of the step, one of the worker in this
    step and one of the microbatch, with variances v and w. The share v / (v + w) is estimated as in
    `variance_between` by mean squares: B, of workers around their step's mean, estimates w + C v, and W, of
    microbatches around their worker's mean, estimates w, both without bias.

    >>> worker_share(np.array([[[1.0, 3.0], [5.0, 7.0]]])).value
    0.7777777777777778
    """
    whole = np.isfinite(seconds).all(axis=2)
    size = seconds.shape[2]
    counts = whole.sum(axis=1)
    outer = int(np.sum(np.maximum(counts - 1, 0)))
    inner = int(counts.sum()) * (size - 1)
    if outer < 1 or inner < 1:
        return _UNKNOWN
    means = np.where(whole, seconds.mean(axis=2), 0)
    of_step = means.sum(axis=1) / np.maximum(counts, 1)
    between = size * np.sum((means - of_step[:, None])[whole] ** 2) / outer
    within = np.sum((seconds - means[:, :, None])[whole] ** 2) / inner
    if within == 0:
        return Interval(1.0, 1.0, 1.0) if between > 0 else _UNKNOWN
    return _share_between(between / within, outer, inner, size)


def slow_data(share: Interval) -> bool:
    """Whether slowness belongs to the data more than to the workers, by the `worker_share`."""
    return share.value < 0.5


def _share_between(ratio: float, outer: int, inner: int, size: float) -> Interval:
    """Of mean squares between and within groups of this size, with so many degrees of freedom."""

    def share(ratio: float) -> float:
        return float((ratio - 1) / (ratio - 1 + size))

    less = f_quantile(0.975, outer, inner)
    more = f_quantile(0.975, inner, outer)
    return Interval(share(ratio), share(ratio / less), share(ratio * more))


def autocorrelation(table: np.ndarray) -> Interval:
    """Of each worker's time with that of its next step, around its mean, all workers together; `[S, W]`.

    The interval lets workers of a step depend on each other. Corrected for the mean that was estimated.
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
    return Interval(*(float(np.clip(v, -1, 1)) for v in (value, value - error, value + error)))
