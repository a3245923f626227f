"""What slows the steps of a trace: a model of its times, each cause's share, and who
stays slow.

`bcgc advise`, `bcgc fit` and `bcgc solve` say it in the same words.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.alike import (
    NOT_TIMED_APART,
    WAITED_ELSEWHERE,
    equal,
    workers_alike,
)
from bcgc_jax.measured.cause_shares import shares_of
from bcgc_jax.measured.causes import (
    Model,
    Parts,
    as_data,
    as_one_chunk,
    as_pauses,
    losses,
    model_of_chunks,
    model_of_steps,
    slow_together,
)
from bcgc_jax.measured.intervals import Interval, percent, ratio_of_means
from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.slow_workers import FEWEST_STEPS, levels, ranks_of
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.whole_steps import WholeSteps, whole_steps
from bcgc_jax.measured.words import counted
from bcgc_jax.steps.chunk_lengths import LoadLine
from bcgc_jax.steps.steps import Steps

# Chunks that a step is taken to have where the log does not say.
CHUNKS = 8
# A worker that is slow by less is not told: ln of the ratio.
_TOLD = 0.05
# Slow workers that are told in words.
MOST_TOLD = 3
# A first step that takes so many times as long as the median one has perhaps compiled.
_COMPILED = 5.0
# A smaller share of the time is of no consequence for a plan: own choice.
_SMALL = 0.05
# Without chunks a log does not say whether what is not steady is of workers, data or
# pauses.
STEADY = "steady"
REST = "rest"
# Without loads and forward passes chunks do not say whether a long one is long or has
# paused.
DATA_OR_PAUSES = "data or pauses"
# A few steps do not say whether a slow worker stays slow.
WORKERS = "workers"
IN_WORDS = {
    "data": "the data: some chunks are longer than others",
    STEADY: "workers that stay slow",
    "random": "workers that are slow in single steps, at random",
    "pauses": "pauses within a chunk",
    DATA_OR_PAUSES: "long chunks: data, or pauses within a chunk",
    WORKERS: "workers that are slow",
    REST: "single slow steps: workers, data or pauses",
}
# More steps than this that count as one are said in words.
_ALIKE_STEPS = 3.0


class SlowWorker(NamedTuple):
    """A worker that took `ratio` times as long as the others in some steps, by their
    names.
    """

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
    """Chunks above three times their worker's median: how many, and their share of a
    cause.
    """

    chunks: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Slowness:
    """What the whole steps of a trace lose, and why.

    Attributes:
      steps: the whole ones, that it is of.
      num_workers: W.
      num_steps: whole ones, which were replayed.
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
        """Whether most of the loss is of long chunks, which are long on each worker, or
        pause.
        """
        return any(
            self.causes[k].value > 0.5
            for k in ("data", DATA_OR_PAUSES)
            if k in self.causes
        )

    def cause_shows(self, name: str) -> bool:
        """Whether a cause is above chance: by its interval, or by a worker that stays
        slow.
        """
        named = name in (STEADY, WORKERS) and bool(self.slow_workers)
        return self.causes[name].shows or named

    @property
    def too_few(self) -> bool:
        """Whether there are too few steps to say that a slow worker stays slow."""
        return self.num_steps < FEWEST_STEPS

    def causes_in_words(self) -> list[str]:
        """The shares of the causes; nothing where only one could be found, or none."""
        if not self.causes:
            return []
        if REST in self.causes and not (
            STEADY in self.causes and self.cause_shows(STEADY)
        ):
            return []
        causes = [
            (share.value, name)
            for name, share in self.causes.items()
            if self.cause_shows(name)
        ]
        causes.sort(key=lambda pair: -pair[0])
        shares = [
            f"{percent(value)} % is due to {IN_WORDS[name]}" for value, name in causes
        ]
        said = [
            "Workers do not end together. Of the time that this costs, "
            f"{'; '.join(shares)}."
        ]
        if self.of_data:
            what = "chunks, by their data or by pauses, are"
            if "data" in self.causes:
                what = "data are"
            said.append(
                f"The {what} slow more than the workers. Plans here suppose slow "
                "workers: what they promise does not hold for this trace. bcgc advise "
                "replays what helps."
            )
        return said + self.doubts()

    def doubts(self) -> list[str]:
        """Say what the log does not tell of its causes, and where an estimate may be
        off.
        """
        said = []
        if DATA_OR_PAUSES in self.causes and self.cause_shows(DATA_OR_PAUSES):
            said.append(self._long_chunks_in_words())
        if WORKERS in self.causes or (self.too_few and REST in self.causes):
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
        """Say that nothing can be learnt, and what else it may be that workers are
        alike.
        """
        said = WAITED_ELSEWHERE
        if self.collective is None:
            said = NOT_TIMED_APART
        if not self.slow_together:
            return [
                said,
                f"If the log has these already, {percent(self.loss)} % of the time is "
                "lost because workers do not end together.",
            ]
        share = (
            f": {percent(self.together.value)} % of the time "
            f"({self.together.in_percent()})"
        )
        return [
            said,
            "If the log has these already, all workers are slow in the same "
            f"steps{share if self.together.shows else ''}. No scheme helps against "
            "that. Look at what they share: storage, network, cooling, or the length "
            "of a step's data.",
        ]

    def collective_in_words(self) -> list[str]:
        """Say what the collective itself takes; nothing where the log does not."""
        if self.collective is None:
            return []
        share = percent(self.collective / (self.step + self.collective))
        return [
            f"The collective itself takes {self.collective:.4g} s more, {share} % of "
            "all. Nothing here shortens it, and no other number has it."
        ]

    def remarks(self) -> list[str]:
        """Say where workers are not what the paper assumes, and what that means for a
        plan.
        """
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


class Log(NamedTuple):
    """The whole steps of a trace: a model of them, and others that they speak for as
    much.

    Attributes:
      steps: that it is of.
      model: of the seconds.
      other_models: what makes other parts of the same seconds, by which other causes
        are slow.
      costs: of chunks, as predicted, `[S, W, C]`; None where their lengths are not
        known.
      line: predicts a chunk's seconds from its load, by which the costs are.
      recorded: whether the log has the chunks.
      told_apart: whether loads or forward passes tell long chunks from pauses.
      lock_step: whether chunk k of all workers is computed together.
    """

    steps: WholeSteps
    model: Model
    other_models: Sequence[Callable[[Parts], Parts]]
    costs: np.ndarray | None
    line: LoadLine | None
    recorded: bool
    told_apart: bool
    lock_step: bool = False

    def as_steps(self, parts: Parts) -> Steps:
        """Parts of the seconds as steps, with the lengths that are predicted."""
        return parts.steps(self.costs, lock_step=self.lock_step)

    def causes(self) -> list[tuple[str, str]]:
        """The causes that the log tells apart, each after its name among those of
        `losses`.
        """
        few_steps = len(self.model.parts.data) < FEWEST_STEPS
        if not self.recorded:
            lengths = []
            if self.line is not None:
                lengths = [("data", "data")]
            return [
                *lengths,
                *([] if few_steps else [("steady", STEADY)]),
                ("random", REST),
            ]
        if few_steps:
            workers = [("random", WORKERS)]
        else:
            workers = [("steady", STEADY), ("random", "random")]
        if self.told_apart:
            return [("data", "data"), *workers, ("pauses", "pauses")]
        return [("data", DATA_OR_PAUSES), *workers]

    def losses(self) -> dict[str, np.ndarray]:
        """What each cause adds to the loss of each step in each of D draws,
        `[D, S]`.
        """
        return self._added(self.model.without_chance().draws)

    def _added(self, draws: Sequence[Parts]) -> dict[str, np.ndarray]:
        losses_of_draws = [losses(parts, lock_step=self.lock_step) for parts in draws]
        return {
            name: np.stack([added[cause] for added in losses_of_draws])
            for cause, name in self.causes()
        }

    def shares(self, seed: int) -> tuple[dict[str, Interval], float]:
        """The shares of the causes, and as how many steps one counts that depend on
        each other.
        """
        added, without = self._added(self.model.draws), None
        if not self.model.random_shows:
            without = self._stacked(self.losses())
        shares = shares_of(self._stacked(added), without, seed)
        causes = dict(zip(added, shares.intervals, strict=True))
        dependences = [
            dependence
            for dependence, share in zip(
                shares.dependence, shares.intervals, strict=True
            )
            if share.shows
        ]
        return causes, max(dependences, default=1.0)

    def _stacked(self, added: dict[str, np.ndarray]) -> np.ndarray:
        """`[D, S, K]`; where all take one time, rounding is no cause."""
        rounding = 1e-9 * self.model.parts.times().max(axis=1)
        return np.stack(
            [
                np.where(np.abs(values) > rounding, values, 0.0)
                for values in added.values()
            ],
            axis=-1,
        )

    def long_chunks(self) -> LongChunks | None:
        """What may be pauses, where chunks are not told from them."""
        if not self.recorded or self.told_apart:
            return None
        pausing = as_pauses(self.model.without_chance().parts)
        added = losses(pausing, lock_step=self.lock_step)
        data, pauses = (float(added[cause].mean()) for cause in ("data", "pauses"))
        share = min(max(pauses, 0.0) / max(data + pauses, 1e-300), 1.0)
        return LongChunks(int(np.count_nonzero(pausing.pauses)), share)


def long_start_in_words(steps: WholeSteps) -> list[str]:
    """Say that the first step counts as much as many others; nothing where it does
    not.
    """
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
    alike = not timed_apart and (equal(times) if stays else workers_alike(times))
    ends = _until_all_end(log)
    return Slowness(
        steps=log.steps,
        num_workers=times.shape[1],
        num_steps=len(times),
        left_out=len(log.steps.table) - len(times),
        num_chunks=log.model.parts.data.shape[2],
        recorded=log.recorded,
        lengths=None if log.line is None else "load",
        load_line=log.line,
        block=dependence,
        lock_step=log.lock_step,
        step=float(ends.mean()),
        balanced=float(times.mean()),
        collective=log.steps.collective,
        alike=alike,
        causes={} if alike else causes,
        together=ratio_of_means(slow_together(times), ends, seed),
        slow_workers=slow_workers,
        changing=bool(np.any(np.diff(steady[3 * len(times) // 4 :], axis=0))),
        long_chunks=log.long_chunks(),
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


def model_of(
    steps: WholeSteps, chunks: int | None = None, *, lock_step: bool = False
) -> Log:
    """Model whole steps; of `chunks` in a worker's step, where the trace has none.

    Slowness is drawn for workers in the order of their speeds, in seconds over their
    median: what the log calls its workers and in which unit it counts makes no
    difference.
    """
    order = np.argsort(np.log(steps.times).mean(axis=0), kind="stable")
    unit = float(np.median(steps.times))
    parts = steps.trace.microbatches
    if steps.load is not None:
        log = _model_of_loads(steps, steps.load, chunks or CHUNKS, order, unit)
    elif parts is None or parts.seconds.shape[2] < 2:
        model = model_of_steps(steps.times[:, order] / unit, chunks or CHUNKS)
        log = _without_chunks(steps, model)
    elif chunks is not None:
        count = parts.seconds.shape[2]
        raise ValueError(f"the log itself says that a worker's step has {count} chunks")
    else:
        log = _model_of_parts(steps, parts.whole_steps(), order, unit)
    if lock_step and not log.recorded:
        raise ValueError(
            "lock-step is of chunks, and the log has none: give a row for each, with "
            "its number in a column chunk"
        )
    return log._replace(model=log.model.of_workers(order, unit), lock_step=lock_step)


def _without_chunks(
    steps: WholeSteps,
    model: Model,
    costs: np.ndarray | None = None,
    line: LoadLine | None = None,
) -> Log:
    other_models = [as_data, as_one_chunk]
    return Log(
        steps, model, other_models, costs, line, recorded=False, told_apart=False
    )


def _model_of_parts(
    steps: WholeSteps, parts: Microbatches, order: np.ndarray, unit: float
) -> Log:
    if parts.load is not None and np.ptp(parts.load) == 0:
        # Equal loads, such as a batch's size, say nothing of lengths.
        parts = parts._replace(load=None)
    ordered = parts.take(np.s_[:, order])
    forward = None
    if ordered.forward is not None:
        forward = ordered.forward / unit
    model = model_of_chunks(
        ordered._replace(seconds=ordered.seconds / unit, forward=forward)
    )
    told_apart = parts.load is not None or parts.forward is not None
    other_models = []
    if not told_apart and as_pauses(model.parts).pauses.any():
        other_models = [as_pauses]
    costs, line = None, None
    if parts.load is not None:
        costs, line = _costs(parts.seconds, parts.load)
    return Log(
        steps, model, other_models, costs, line, recorded=True, told_apart=told_apart
    )


def _model_of_loads(
    steps: WholeSteps, load: np.ndarray, chunks: int, order: np.ndarray, unit: float
) -> Log:
    """Model a log that has the load of each worker's step: equal chunks are
    supposed.
    """
    expected = predicted_seconds(steps.times, load)
    costs, line = _costs(steps.times, load)
    model = model_of_steps(
        steps.times[:, order] / unit, chunks, expected[:, order] / unit
    )
    costs = np.repeat(costs[:, :, None], chunks, axis=2) / chunks
    line = line._replace(base=line.base / chunks, usual=line.usual / chunks)
    return _without_chunks(steps, model, costs, line)


def _costs(seconds: np.ndarray, load: np.ndarray) -> tuple[np.ndarray, LoadLine]:
    """Predict chunks by their loads, from the other half of the steps; and the line of
    all steps.

    Forward passes predict nothing: a chunk's own is timed after it has been handed out.
    """
    first = np.arange(len(seconds)) < len(seconds) // 2
    costs = np.empty(seconds.shape)
    for half in (first, ~first):
        line = LoadLine.fitted(load[~half], seconds[~half])
        costs[half] = line.costs(load[half])
    return costs, LoadLine.fitted(load, seconds)


def _levels(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, by their places, and what workers take more in them that stay slow.

    Without chunks and loads the steps need not be whole.
    """
    if log.recorded or log.line is not None:
        return log.steps.places, log.model.parts.steady
    table = log.steps.table
    places = np.flatnonzero(np.isfinite(table).any(axis=1))
    return places, levels(ranks_of(table[places]), table[places])


def _slow_workers(log: Log) -> list[SlowWorker]:
    """The stretches in which a worker stays slow, those that cost the most time
    first.
    """
    places, steady = _levels(log)
    trace = log.steps.trace
    slow: list[tuple[float, SlowWorker]] = []
    for worker, level in enumerate(steady.T):
        ends = np.flatnonzero(np.diff(level, prepend=np.nan, append=np.nan) != 0)
        for first, stop in itertools.pairwise(ends):
            if level[first] > _TOLD:
                ratio = float(np.exp(level[first]))
                stretch = _slow_worker(trace, worker, places[[first, stop - 1]], ratio)
                slow.append(((ratio - 1) * (stop - first), stretch))
    for worker, ratio in log.model.slow_in_all.items():
        if not steady.any() and ratio > math.exp(_TOLD):
            first_and_last = log.steps.places[[0, -1]]
            slow.append((ratio - 1, _slow_worker(trace, worker, first_and_last, ratio)))
    return [worker for _, worker in sorted(slow, key=lambda cost: -cost[0])]


def _slow_worker(
    trace: Trace, worker: int, ends: np.ndarray, ratio: float
) -> SlowWorker:
    first, last = map(str, trace.step_names[ends])
    return SlowWorker(str(trace.worker_names[worker]), first, last, ratio)
