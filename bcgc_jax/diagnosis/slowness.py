"""What slows the steps of a trace: each cause's share, and who stays slow.

If each worker has waited for the slowest, behind a collective, nothing can be learnt.

`bcgc advise`, `bcgc fit` and `bcgc solve` say it in the same words.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.chunk_lengths import LoadLine
from bcgc_jax.balancing.remedies import SLOW
from bcgc_jax.diagnosis.causes import as_pauses, losses, slow_together
from bcgc_jax.diagnosis.log_model import (
    DATA_OR_PAUSES,
    REST,
    STEADY,
    WORKERS,
    Log,
    model_of,
)
from bcgc_jax.diagnosis.slow_workers import FEWEST_STEPS, levels, ranks_of
from bcgc_jax.traces.intervals import Interval, percent, ratio_of_means
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted
from bcgc_jax.traces.whole_steps import WholeSteps, whole_steps

# Less of the time than this is lost: nothing waits, whatever the cause. Own choice.
_EQUAL = 0.01
# Common to all workers of a step, over between them. In own computation recorded by the
# four sources of `experiments` it is at most 1.0 for any 8 steps in a row.
_COMMON = 2.0
# More by this over the number of differences between workers, of which short logs have
# few.
_FOR_FEW = 4.0
# Behind a collective nobody takes so many times as long as the median worker of the
# step,
_FAR = 2.0
# but in this share of all times, as where a clock fails.
_SELDOM = 1e-3
# Workers of a step that differ by less, ln of the ratio, may do so by jitter alone.
_JITTER = 0.1
# In fewer steps two workers are alike by chance too often.
_FEWEST_TO_COMPARE = 8
# The deviation of a normal distribution over the median distance from 0.
_OF_MEDIAN = 1.4826

NOT_TIMED_APART = (
    "All workers of a step take the same time, or nearly. Were they timed behind a "
    "collective (an all-reduce, a barrier), where each has waited for the slowest? "
    "Then nothing can be learnt here. Record the seconds of each worker's own "
    "computation, up to the collective. Or add a column `wait`: the seconds that each "
    "worker was in the collective."
)
# The same of a log that has waits.
WAITED_ELSEWHERE = (
    "All workers of a step take the same time, or nearly, also without their `wait`. "
    "Have they waited for the slowest elsewhere (a barrier, a copy to the host, a "
    "collective that was not recorded)? Then nothing can be learnt here: put that into "
    "`wait` too."
)


def equal(times: np.ndarray) -> bool:
    """Whether the slowest worker takes hardly more than the mean one, `[S, W]`."""
    return bool(1 - times.mean() / times.max(axis=1).mean() < _EQUAL)


def deviations(times: np.ndarray) -> tuple[float, float]:
    """Return how much ln seconds differ: from step to step for all workers, and between
    workers.

    Args:
      times: `[S, W]`, S and W ≥ 2, steps in their order.

    The first is 0 where chance between workers explains what the means of steps change
    by.

    >>> times = np.exp([[0.0, 0.2], [1.0, 1.2], [0.0, 0.2]])
    >>> [round(deviation, 2) for deviation in deviations(times)]
    [1.04, 0.14]
    """
    workers = times.shape[1]
    logs = np.log(times)
    means = logs.mean(axis=1)
    between = float(np.sum((logs - means[:, None]) ** 2)) / (len(times) * (workers - 1))
    change = _OF_MEDIAN * float(np.median(np.abs(np.diff(means))))
    common = max(change**2 / 2 - between / workers, 0.0)
    return math.sqrt(common), math.sqrt(between)


def perhaps_jitter(times: np.ndarray) -> list[str]:
    """Say that times, `[S, W]`, may differ by jitter alone; nothing if by more."""
    _, between = deviations(times)
    if between > _JITTER:
        return []
    return [
        f"The workers of a step deviate by {100 * between:.2g} %. If they were timed "
        "behind a collective, that is jitter, and nothing can be learnt here without a "
        "column `wait`."
    ]


def workers_alike(times: np.ndarray) -> bool:
    """Whether whole steps, `[S, W]`, look as if workers had waited for the slowest."""
    if equal(times):
        return True
    if len(times) < _FEWEST_TO_COMPARE:
        return False
    far = np.mean(times > _FAR * np.median(times, axis=1, keepdims=True))
    common, between = deviations(times)
    differences = len(times) * (times.shape[1] - 1)
    least_ratio = _COMMON * (1 + _FOR_FEW / differences)
    return bool(far <= _SELDOM and common >= least_ratio * between)


# Slow workers that are told in words.
MOST_TOLD = 3
# A first step that takes so many times as long as the median one has perhaps compiled.
_COMPILED = 5.0
# The cause "data" where only forward passes tell it from pauses.
_LONG_PASSES = "data by forward passes"
# A smaller share of the time is of no consequence for a plan: own choice.
_SMALL = 0.05
IN_WORDS = {
    "data": "the data: some chunks are longer than others",
    STEADY: "workers that stay slow",
    "random": "workers that are slow in single steps, at random",
    "pauses": "pauses within a chunk",
    DATA_OR_PAUSES: "long chunks: data, or pauses within a chunk",
    _LONG_PASSES: "long chunks: data, or a core that others use",
    WORKERS: "workers that are slow",
    REST: "single slow steps: workers, data or pauses",
}
# More steps than this that count as one are said in words.
_ALIKE_STEPS = 3.0


class SlowWorker(NamedTuple):
    """A worker that took `ratio` times as long as the others in some named steps."""

    worker: str
    first_step: str
    last_step: str
    ratio: float

    def __str__(self) -> str:
        return self.in_words(f"Worker {self.worker}")

    def in_words(self, subject: str, when: str | None = None) -> str:
        when = when or f"steps {self.first_step} to {self.last_step}"
        return f"{subject} was {self.ratio:.3g} times as slow as the others in {when}."


class LongChunks(NamedTuple):
    """Chunks above three times a worker's median: how many, their share of a cause."""

    chunks: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Slowness:
    """What the whole steps of a trace lose, and why.

    Attributes:
      steps: the whole ones, that it is of.
      num_workers: W.
      num_steps: whole ones.
      left_out: steps in which a worker has no time.
      num_chunks: C, of a worker's step.
      recorded: whether the log has the chunks; else they are taken to be equal.
      lengths: what the lengths of chunks are predicted from, "load"; None for nothing.
        A forward pass is no length: it is timed when its chunk has been handed out.
      load_line: predicts a chunk's seconds from its load; None without loads.
      block: so many neighbouring steps are alike, and count as one; 1 where they are
        independent.
      lock_step: whether chunk k of all workers ends with the slowest.
      step: mean seconds of a step.
      balanced: mean seconds of a worker, which a step would take if all ended together.
      collective: mean seconds of a step's collective itself, no part of `step`; None
        where the log has no waits.
      alike: whether the workers of a step look as if each had waited for the slowest.
        Then there are no causes.
      causes: of `step` - `balanced`, as shares of it: "data", "steady", "random" and
        "pauses". Where the log does not tell them apart "data or pauses" is one, and in
        fewer than eight steps "workers" (steady or random). Without chunks "rest" is
        all but "steady", and with loads "data".
      together: what steps take more in which all workers are slow, as a share of
        `step`; no part of the loss.
      slow_workers: that stay slow, first those that take the most time more.
      changing: whether a worker has become slow or fast in the last quarter of the
        steps.
      long_chunks: that may have paused, where "data or pauses" is a cause; else None.
    """

    steps: WholeSteps = field(repr=False, compare=False)
    num_workers: int
    num_steps: int
    left_out: int
    num_chunks: int
    recorded: bool
    lengths: str | None
    load_line: LoadLine | None
    block: float
    lock_step: bool
    step: float
    balanced: float
    collective: float | None
    alike: bool
    causes: dict[str, Interval]
    together: Interval
    slow_workers: list[SlowWorker]
    changing: bool
    long_chunks: LongChunks | None

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
        """Whether most of the loss is of chunks that are long anywhere, or pause."""
        return any(
            self.causes[k].value > 0.5
            for k in ("data", DATA_OR_PAUSES)
            if k in self.causes
        )

    def cause_shows(self, name: str) -> bool:
        """Whether a cause is above chance: by its interval, or by a slow worker."""
        named = name in (STEADY, WORKERS) and bool(self.slow_workers)
        return self.causes[name].shows or named

    def cause_in_words(self, name: str) -> str:
        if name == "data" and self._by_passes:
            return IN_WORDS[_LONG_PASSES]
        return IN_WORDS[name]

    @property
    def _by_passes(self) -> bool:
        """Whether forward passes alone tell long chunks from pauses."""
        return "data" in self.causes and self.lengths is None

    @property
    def too_few(self) -> bool:
        """Whether there are too few steps to say that a slow worker stays slow."""
        return self.num_steps < FEWEST_STEPS

    def causes_in_words(self) -> list[str]:
        """The shares of the causes; nothing where only one could be found, or none."""
        if self.alike:
            return []
        steady_shows = STEADY in self.causes and self.cause_shows(STEADY)
        if not self.recorded and not steady_shows:
            return []
        causes = [
            (share.value, name)
            for name, share in self.causes.items()
            if self.cause_shows(name)
        ]
        causes.sort(key=lambda pair: -pair[0])
        shares = [
            f"{percent(value)} % is due to {self.cause_in_words(name)}"
            for value, name in causes
        ]
        said = [
            "Workers do not end together. Of the time that this costs, "
            f"{'; '.join(shares)}."
        ]
        if self.of_data:
            said.append(
                f"{self._data_in_words()}. Plans here suppose slow workers: what they "
                "promise does not hold for this trace. bcgc advise replays what helps."
            )
        return said + self.doubts()

    def _data_in_words(self) -> str:
        """Say of the largest cause, in the words that it has everywhere, what it is."""
        cause = max(self.causes, key=lambda name: self.causes[name].value)
        what, _, why = self.cause_in_words(cause).partition(": ")
        if what == "the data":
            return "The data are slow more than the workers"
        return f"Most of this is due to {what} ({why}), not to slow workers"

    def doubts(self) -> list[str]:
        """Say what the log does not tell of its causes, or estimates badly."""
        said = []
        if DATA_OR_PAUSES in self.causes and self.cause_shows(DATA_OR_PAUSES):
            said.append(self._long_chunks_in_words())
        if self._by_passes and self.cause_shows("data"):
            said.append(
                "Forward passes are longer too: that is data, or a core that others "
                "use. A column `load` decides."
            )
        if self.too_few and not self.alike:
            said.append(
                f"{counted(self.num_steps, 'step')} do not tell whether slow workers "
                f"stay slow: record {FEWEST_STEPS} steps or more."
            )
        if self.recorded and self.num_chunks == 2:
            said.append(
                "Of two chunks the data's share is too high where lengths are very "
                "skewed: 76 % in place of 59 % for exponential ones."
            )
        if self.block > _ALIKE_STEPS:
            worth = max(round(self.num_steps / self.block), 1)
            said.append(
                f"Neighbouring steps are alike: {self.num_steps} are worth about "
                f"{worth} independent ones."
            )
        return said

    def _long_chunks_in_words(self) -> str:
        said = (
            "Data and pauses are not told apart without a column `load` or "
            "`forward_seconds`."
        )
        long = self.long_chunks
        if long is None or long.chunks == 0:
            return f"{said} No chunk takes more than three times its worker's median."
        chunks = "1 chunk takes"
        if long.chunks != 1:
            chunks = f"{long.chunks} chunks take"
        return (
            f"{said} {chunks} more than three times the worker's median: "
            f"{percent(long.share)} % of this cause."
        )

    def slow_workers_in_words(self) -> list[str]:
        period = None
        if self.too_few:
            period = f"all {counted(self.num_steps, 'step')}"
        said = [
            slow.in_words(f"Worker {slow.worker}", period)
            for slow in self.slow_workers[:MOST_TOLD]
        ]
        num_untold = len(self.slow_workers) - MOST_TOLD
        if num_untold == 1:
            said.append("There is 1 more of these.")
        if num_untold > 1:
            said.append(f"There are {num_untold} more of these.")
        return said

    def together_in_words(self) -> str:
        share = (
            f"{percent(self.together.value)} % of the time "
            f"({self.together.in_percent()})"
        )
        return f"All workers are slow at once: {share}."

    def alike_in_words(self) -> list[str]:
        """Say that nothing can be learnt, and why else workers may be alike."""
        said = WAITED_ELSEWHERE
        if self.collective is None:
            said = NOT_TIMED_APART
        if not self.slow_together:
            return [
                said,
                f"If the log has these already, {percent(self.loss)} % of the time is "
                "lost because workers do not end together.",
            ]
        share = ""
        if self.together.shows:
            share = (
                f": {percent(self.together.value)} % of the time "
                f"({self.together.in_percent()})"
            )
        return [
            said,
            "If the log has these already, all workers are slow in the same steps"
            f"{share}. No scheme helps against that. Look at what they share: storage, "
            "network, cooling, or the length of a step's data.",
        ]

    def collective_in_words(self) -> list[str]:
        """Say what the collective itself takes; nothing where the log does not."""
        if self.collective is None:
            return []
        share = percent(self.collective / (self.step + self.collective))
        return [
            f"The collective itself takes {self.collective:.4g} s more, {share} % of "
            "all. Nothing here shortens it. All other numbers are without it."
        ]

    def remarks(self) -> list[str]:
        """Say where workers break the paper's assumptions, and what follows."""
        if self.alike:
            return self.alike_in_words()
        said = [*self.collective_in_words(), *self.causes_in_words()]
        if self.unlike_workers:
            named = " ".join(
                ["The workers are not alike.", *self.slow_workers_in_words()]
            )
            said.append(
                f"{named} Look for the cause. A plan for one distribution takes "
                "workers for alike, and slow ones to change: keep them apart "
                "(`EmpiricalRows`), or leave the slowest out."
            )
        if self.slow_together:
            said.append(
                f"{self.together_in_words()} Redundancy helps against single slow "
                "workers only, so it gains less than a plan for independent workers "
                "says: plan on whole steps (`EmpiricalRows`)."
            )
        return said


def long_start_in_words(steps: WholeSteps) -> list[str]:
    """Say that the first step counts as much as many others; nothing if it does not."""
    means = steps.times.mean(axis=1)
    ratio = means[0] / np.median(means)
    if ratio < _COMPILED:
        return []
    return [
        f"The first step took {ratio:.3g} times as long as the median one, and counts "
        "as much as so many others. Did it compile? Then leave it out."
    ]


def slowness_in(trace: Trace) -> Slowness | None:
    """Return what slows the steps; None for less than two whole steps or workers."""
    steps = whole_steps(trace)
    if steps.too_small:
        return None
    return slowness_of(model_of(steps))


def slowness_of(log: Log, seed: int = 0, *, timed_apart: bool = False) -> Slowness:
    """Return what slows the steps by a `log` of whole ones; `seed` is of the
    resampling.

    `timed_apart`: the seconds are known to be of each worker's own computation.
    """
    times = log.steps.times
    causes, dependence = log.shares(seed)
    steady = log.model.parts.steady
    slow_workers = _slow_workers(log)
    # Behind a collective nobody is seen to stay slow.
    stays = bool(slow_workers) or (STEADY in causes and _matters(causes[STEADY]))
    if timed_apart:
        alike = False
    elif stays:
        alike = equal(times)
    else:
        alike = workers_alike(times)
    if alike:
        causes = {}
    lengths = None
    if log.has_loads:
        lengths = "load"
    ends = _until_all_end(log)
    return Slowness(
        steps=log.steps,
        num_workers=times.shape[1],
        num_steps=len(times),
        left_out=len(log.steps.table) - len(times),
        num_chunks=log.model.parts.data.shape[2],
        recorded=log.recorded,
        lengths=lengths,
        load_line=log.line,
        block=dependence,
        lock_step=log.lock_step,
        step=float(ends.mean()),
        balanced=float(times.mean()),
        collective=log.steps.collective,
        alike=alike,
        causes=causes,
        together=ratio_of_means(slow_together(times), ends, seed),
        slow_workers=slow_workers,
        changing=bool(np.any(np.diff(steady[3 * len(times) // 4 :], axis=0))),
        long_chunks=_long_chunks(log),
    )


def _until_all_end(log: Log) -> np.ndarray:
    """Seconds of whole steps, `[S]`, as the log has them."""
    if not log.lock_step:
        return log.steps.times.max(axis=1)
    parts = log.steps.trace.microbatches
    assert parts is not None
    return parts.whole_steps().seconds.max(axis=1).sum(axis=1)


def _matters(share: Interval) -> bool:
    return share.low > 0 and share.value > _SMALL


def _long_chunks(log: Log) -> LongChunks | None:
    """What may be pauses, where chunks are not told from them."""
    if not log.recorded or log.told_apart:
        return None
    pausing = as_pauses(log.model.without_chance().parts)
    added = losses(pausing, lock_step=log.lock_step)
    data, pauses = (float(added[cause].mean()) for cause in ("data", "pauses"))
    share = min(max(pauses, 0.0) / max(data + pauses, 1e-300), 1.0)
    return LongChunks(int(np.count_nonzero(pausing.pauses)), share)


class _SlowStretch(NamedTuple):
    """Steps from `first` to before `stop` in which a worker stays slow by a ratio."""

    worker: int
    first: int
    stop: int
    ratio: float

    @property
    def cost(self) -> float:
        """What the worker takes more, in steps of the others."""
        return (self.ratio - 1) * (self.stop - self.first)


def _slow_workers(log: Log) -> list[SlowWorker]:
    """The stretches in which workers stay slow, the costliest first.

    Where no worker is seen to become slow, those that are slow in all of a few steps.
    """
    places, steady = _steady_levels(log)
    stretches = _slow_stretches(steady)
    if not steady.any():
        places = log.steps.places
        stretches = [
            _SlowStretch(worker, 0, len(places), ratio)
            for worker, ratio in log.model.slow_in_all.items()
            if ratio > math.exp(SLOW)
        ]
    stretches.sort(key=lambda stretch: -stretch.cost)
    return [_slow_worker(log.steps.trace, places, stretch) for stretch in stretches]


def _steady_levels(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Places of steps in the trace, and ln of workers' steady ratios in them, `[S, W]`.

    Without chunks and loads the steps need not be whole.
    """
    if log.recorded or log.has_loads:
        return log.steps.places, log.model.parts.steady
    table = log.steps.table
    places = np.flatnonzero(np.isfinite(table).any(axis=1))
    return places, levels(ranks_of(table[places]), table[places])


def _slow_stretches(steady: np.ndarray) -> list[_SlowStretch]:
    """Cut each worker's steps where its level changes; keep the slow stretches."""
    stretches = []
    for worker, level in enumerate(steady.T):
        changes = 1 + np.flatnonzero(np.diff(level))
        for first, stop in itertools.pairwise([0, *changes.tolist(), len(level)]):
            if level[first] > SLOW:
                ratio = float(np.exp(level[first]))
                stretches.append(_SlowStretch(worker, first, stop, ratio))
    return stretches


def _slow_worker(trace: Trace, places: np.ndarray, stretch: _SlowStretch) -> SlowWorker:
    ends = places[[stretch.first, stretch.stop - 1]]
    first, last = map(str, trace.step_names[ends])
    return SlowWorker(
        str(trace.worker_names[stretch.worker]), first, last, stretch.ratio
    )
