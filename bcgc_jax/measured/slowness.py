"""What slows the steps of a trace: a model of its times, each cause's share, and who stays slow.

`bcgc advise`, `bcgc fit` and `bcgc solve` say it in the same words.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured import remedies
from bcgc_jax.measured.alike import NOT_TIMED_APART, equal, workers_alike
from bcgc_jax.measured.causes import (
    CAUSES,
    Parts,
    as_data,
    as_one_chunk,
    losses,
    parts_of,
    parts_of_steps,
    redrawn,
    slow_together,
)
from bcgc_jax.measured.intervals import Interval, block_for, percent, resample_draws
from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.slow_workers import levels, ranks_of
from bcgc_jax.measured.traces import Trace
from bcgc_jax.plans.chunk_lengths import LoadLine

# Chunks that a step is taken to have where the log does not say.
CHUNKS = 8
# A worker that is slow by less is not told: ln of the ratio.
_TOLD = 0.05
# Slow workers that are told in words.
MOST_TOLD = 3
# Steps, of all draws, over which what causes add is averaged: a few steps are drawn many times.
_DRAWN_STEPS = 400
# A first step that takes so many times as long as the median one has perhaps compiled.
_COMPILED = 5.0
# A smaller share of the time is of no consequence for a plan: own choice.
_SMALL = 0.05
# Without chunks a log does not say whether what is not steady is of workers, data or pauses.
STEADY = "steady"
REST = "rest"
IN_WORDS = {
    "data": "the data: some chunks are longer than others",
    STEADY: "workers that stay slow",
    "random": "workers that are slow in single steps, at random",
    "pauses": "pauses within a chunk",
    REST: "single slow steps: workers, data or pauses",
}


class SlowWorker(NamedTuple):
    """A worker that took `ratio` times as long as the others in some steps, by their names."""

    worker: str
    first_step: str
    last_step: str
    ratio: float

    def __str__(self) -> str:
        return self.in_words(f"Worker {self.worker}")

    def in_words(self, subject: str) -> str:
        when = f"steps {self.first_step} to {self.last_step}"
        return f"{subject} was {self.ratio:.3g} times as slow as the others in {when}."


@dataclass(frozen=True, kw_only=True)
class Slowness:
    """What the whole steps of a trace lose, and why.

    Attributes:
      num_workers: W.
      num_steps: whole ones, which were replayed.
      left_out: steps in which a worker has no time.
      num_chunks: C, of a worker's step.
      recorded: whether the log has the chunks; else they are taken to be equal.
      lengths: what the lengths of chunks are predicted from, "load"; None for nothing. A forward
        pass is no length: it is timed when its chunk has been handed out.
      load_line: predicts a chunk's seconds from its load; None without loads.
      block: so many neighbouring steps are resampled together.
      step: mean seconds of a step.
      balanced: mean seconds of a worker, which a step would take if all ended together.
      alike: whether the workers of a step look as if each had waited for the slowest. Then there
        are no causes.
      causes: of `step` - `balanced`, as shares of it: "data", "steady", "random" and "pauses", or
        without chunks "steady" and "rest", and with loads "data".
      together: what steps take more in which all workers are slow, as a share of `step`; no part of
        the loss.
      slow_workers: that stay slow, first those that take the most time more.
      changing: whether a worker has become slow or fast in the last quarter of the steps.
    """

    num_workers: int
    num_steps: int
    left_out: int
    num_chunks: int
    recorded: bool
    lengths: str | None
    load_line: LoadLine | None
    block: int
    step: float
    balanced: float
    alike: bool
    causes: dict[str, Interval]
    together: Interval
    slow_workers: list[SlowWorker]
    changing: bool

    @property
    def loss(self) -> float:
        """What a step loses, as a share of it."""
        return 1 - self.balanced / self.step

    @property
    def unlike_workers(self) -> bool:
        """Whether workers stay slow, or fast, for longer than by chance."""
        steady = self.causes.get(STEADY)
        return bool(self.slow_workers) or (steady is not None and _matters(steady))

    @property
    def slow_together(self) -> bool:
        """Whether steps are slow for all workers at once."""
        return _matters(self.together)

    @property
    def of_data(self) -> bool:
        """Whether most of the loss is of long chunks, which are long on each worker."""
        return "data" in self.causes and self.causes["data"].value > 0.5

    def causes_in_words(self) -> list[str]:
        """The shares of the causes; nothing where only one could be found, or none."""
        if not self.causes:
            return []
        if self.causes.keys() == {STEADY, REST} and not self.causes[STEADY].shows:
            return []
        shown = [(share.value, name) for name, share in self.causes.items() if share.shows]
        shown.sort(key=lambda each: -each[0])
        shares = [f"{percent(value)} % is due to {IN_WORDS[name]}" for value, name in shown]
        said = [f"Workers do not end together. Of the time that this costs, {'; '.join(shares)}."]
        if self.of_data:
            said.append(
                "The data are slow more than the workers. Plans here suppose slow workers: what "
                "they promise does not hold for this trace. bcgc advise replays what helps."
            )
        return said

    def slow_workers_in_words(self) -> list[str]:
        said = [str(one) for one in self.slow_workers[:MOST_TOLD]]
        if (more := len(self.slow_workers) - MOST_TOLD) > 0:
            said.append(f"There {'are' if more > 1 else 'is'} {more} more of these.")
        return said

    def together_in_words(self) -> str:
        share = f"{percent(self.together.value)} % of the time ({self.together.in_percent()})"
        return f"All workers are slow at once: {share}."

    def alike_in_words(self) -> list[str]:
        """Say that nothing can be learnt, and what else it may be that workers are alike."""
        if not self.slow_together:
            return [
                NOT_TIMED_APART,
                f"If the log has these already, {percent(self.loss)} % of the time is lost because "
                "workers do not end together.",
            ]
        share = f": {percent(self.together.value)} % of the time ({self.together.in_percent()})"
        return [
            NOT_TIMED_APART,
            "If the log has these already, all workers are slow in the same steps"
            f"{share if self.together.shows else ''}. No scheme helps against that. Look at what "
            "they share: storage, network, cooling, or the length of a step's data.",
        ]

    def remarks(self) -> list[str]:
        """Say where workers are not what the paper assumes, and what that means for a plan."""
        if self.alike:
            return self.alike_in_words()
        said = self.causes_in_words()
        if self.unlike_workers:
            named = " ".join(["The workers are not alike.", *self.slow_workers_in_words()])
            said.append(
                f"{named} Look for the cause. A plan for one distribution takes workers for alike, "
                "and slow ones to change: keep them apart (`EmpiricalRows`), or leave the slowest "
                "out."
            )
        if self.slow_together:
            said.append(
                f"{self.together_in_words()} Redundancy helps against single slow workers only, so "
                "it gains less than a plan for independent workers says: plan on whole steps "
                "(`EmpiricalRows`)."
            )
        return said


class Log(NamedTuple):
    """The whole steps of a trace: a model of them, and others that they speak for as much.

    `draws` has the model with other draws of what is known up to an error.
    """

    model: Parts
    others: list[Parts]
    costs: np.ndarray | None
    line: LoadLine | None
    draws: Sequence[Parts] = ()

    def losses(self) -> dict[str, np.ndarray]:
        """What each cause adds to the loss of each step, `[S]`, in each of D draws, `[D, S]`."""
        each = [losses(parts) for parts in (self.model, *self.draws)]
        return {cause: np.stack([added[cause] for added in each]) for cause in CAUSES}


def whole_steps(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of steps with a time of each worker, `[S, W]`, and their places, `[S]`."""
    times = _table(trace)
    steps = np.flatnonzero(np.isfinite(times).all(axis=1))
    return times[steps], steps


def long_start_in_words(trace: Trace) -> list[str]:
    """Say that the first step counts as much as many others; nothing where it does not."""
    means = whole_steps(trace)[0].mean(axis=1)
    ratio = means[0] / np.median(means)
    if ratio < _COMPILED:
        return []
    return [
        f"The first step took {ratio:.3g} times as long as the median one, and counts as much as "
        "so many others. Did it compile? Then leave it out."
    ]


def slowness_in(trace: Trace) -> Slowness | None:
    """Return what slows the steps; None for less than two whole steps or workers."""
    times, _ = whole_steps(trace)
    return slowness_of(trace, model_of(trace, times, None)) if min(times.shape) > 1 else None


def slowness_of(trace: Trace, log: Log, seed: int = 0, *, timed_apart: bool = False) -> Slowness:
    """Return what slows the steps by a `log` of whole ones; `seed` is of the resampling.

    `timed_apart`: the seconds are known to be of each worker's own computation.
    """
    times, steps = whole_steps(trace)
    block = block_for(remedies.nothing(log.model).seconds, remedies.limit(log.model).seconds)
    causes, together = _causes(log, block, seed)
    slow_workers = _slow_workers(trace, *_levels(trace, log, steps))
    # Behind a collective nobody is seen to stay slow.
    stays = bool(slow_workers) or _matters(causes[STEADY])
    alike = not timed_apart and (equal(times) if stays else workers_alike(times))
    return Slowness(
        num_workers=trace.num_workers,
        num_steps=len(times),
        left_out=trace.num_steps - len(times),
        num_chunks=log.model.data.shape[2],
        recorded=not log.others,
        lengths=None if log.line is None else "load",
        load_line=log.line,
        block=block,
        step=float(times.max(axis=1).mean()),
        balanced=float(times.mean()),
        alike=alike,
        causes={} if alike else causes,
        together=together,
        slow_workers=slow_workers,
        changing=bool(np.any(np.diff(log.model.steady[3 * len(times) // 4 :], axis=0))),
    )


def _matters(share: Interval) -> bool:
    return share.low > 0 and share.value > _SMALL


def _table(trace: Trace) -> np.ndarray:
    """Return the times, `[S, W]`; where a cell has several loads that of the largest."""
    return trace.largest_loads()._replace(load=None).table()


def model_of(trace: Trace, times: np.ndarray, chunks: int | None) -> Log:
    parts = trace.microbatches
    if trace.load is not None:
        return _model_of_loads(trace, times, chunks or CHUNKS)
    if parts is None or parts.seconds.shape[2] < 2:
        model = parts_of_steps(times, chunks or CHUNKS)
        others = [as_data(model), as_one_chunk(model)]
        draws = _draws(model, by_chunks=False)
        return Log(model, others, costs=None, line=None, draws=draws)
    if chunks is not None:
        count = parts.seconds.shape[2]
        raise ValueError(f"the log itself says that a worker's step has {count} chunks")
    parts = parts.whole_steps()
    if parts.load is not None and np.ptp(parts.load) == 0:
        # Equal loads, such as a batch's size, say nothing of lengths.
        parts = parts._replace(load=None)
    model = parts_of(parts)
    draws = _draws(model, by_chunks=parts.load is None)
    costs, line = _costs(parts)
    return Log(model, others=[], costs=costs, line=line, draws=draws)


def _draws(model: Parts, *, by_chunks: bool) -> list[Parts]:
    several = range(1, math.ceil(_DRAWN_STEPS / len(model.data)))
    return [redrawn(model, seed, by_chunks=by_chunks) for seed in several]


def _model_of_loads(trace: Trace, times: np.ndarray, chunks: int) -> Log:
    """Model a log that has the load of each worker's step: equal chunks are supposed."""
    largest = trace.largest_loads()
    assert largest.load is not None
    load = _table(largest._replace(seconds=largest.load))
    load = load[np.isfinite(load).all(axis=1)]
    parts = Microbatches(times[:, :, None], load=load[:, :, None])
    expected = predicted_seconds(parts, slice(None))
    costs, line = _costs(parts)
    assert expected is not None
    assert costs is not None
    assert line is not None
    model = parts_of_steps(times, chunks, expected[:, :, 0])
    others = [as_data(model), as_one_chunk(model)]
    costs = np.repeat(costs, chunks, axis=2) / chunks
    line = line._replace(base=line.base / chunks, usual=line.usual / chunks)
    draws = _draws(model, by_chunks=False)
    return Log(model, others, costs, line, draws=draws)


def _costs(parts: Microbatches) -> tuple[np.ndarray | None, LoadLine | None]:
    """Predict chunks by their loads, from the other half of the steps; and the line of all steps.

    Forward passes predict nothing: a chunk's own is timed after it has been handed out.
    """
    if parts.load is None:
        return None, None
    first = np.arange(len(parts.seconds)) < len(parts.seconds) // 2
    costs = np.empty(parts.seconds.shape)
    for half in (first, ~first):
        line = LoadLine.fitted(parts.load[~half], parts.seconds[~half])
        costs[half] = line.costs(parts.load[half])
    return costs, LoadLine.fitted(parts.load, parts.seconds)


def _causes(log: Log, block: int, seed: int) -> tuple[dict[str, Interval], Interval]:
    added = log.losses()
    names = list(CAUSES)
    if log.others:
        added |= {REST: added["random"]}
        names = [STEADY, REST] if log.line is None else ["data", STEADY, REST]
    times = log.model.times()
    # Where all take one time, rounding is no cause.
    rounding = 1e-9 * times.max(axis=1)
    parts = [np.where(np.abs(added[name]) > rounding, added[name], 0.0) for name in names]
    series = np.broadcast_arrays(*parts, slow_together(times), times.max(axis=1))
    resamples = resample_draws(np.stack(series, axis=-1), block, seed)
    count = len(names)

    def share(k: int) -> Interval:
        def of(mean: np.ndarray) -> np.ndarray:
            return mean[..., k] / np.maximum(mean[..., :count].sum(axis=-1), 1e-300)

        return resamples.interval(of)

    together = resamples.interval(lambda mean: mean[..., count] / mean[..., count + 1])
    return {name: share(k) for k, name in enumerate(names)}, together


def _levels(trace: Trace, log: Log, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and what workers take more in them that stay slow.

    Without chunks and loads the steps need not be whole.
    """
    if not log.others or log.line is not None:
        return steps, log.model.steady
    times = _table(trace)
    known = np.flatnonzero(np.isfinite(times).any(axis=1))
    return known, levels(ranks_of(times[known]), times[known])


def _slow_workers(trace: Trace, steps: np.ndarray, steady: np.ndarray) -> list[SlowWorker]:
    """The stretches in which a worker stays slow, those that cost the most time first."""
    slow = []
    for worker, own in enumerate(steady.T):
        ends = np.flatnonzero(np.diff(own, prepend=np.nan, append=np.nan) != 0)
        for first, stop in itertools.pairwise(ends):
            if own[first] > _TOLD:
                one = SlowWorker(
                    worker=str(trace.worker_names[worker]),
                    first_step=str(trace.step_names[steps[first]]),
                    last_step=str(trace.step_names[steps[stop - 1]]),
                    ratio=float(np.exp(own[first])),
                )
                slow.append(((one.ratio - 1) * (stop - first), one))
    return [one for _, one in sorted(slow, key=lambda each: -each[0])]
