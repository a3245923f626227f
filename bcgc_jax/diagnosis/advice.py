"""The advice on a log: what a step loses, why, what helps, and how much.

Causes and remedies are replayed in the steps of the log, not read off shares of
variance. A remedy is advised if it saves time in steps that its plan has not seen, by
its interval of 95 % too.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.balancing.asking import MEASURED, Asking
from bcgc_jax.balancing.remedies import Limit, Nothing, Replaced, stay_slow
from bcgc_jax.balancing.scheme import Costs, Resources, Scheme
from bcgc_jax.balancing.scheme_names import possible
from bcgc_jax.balancing.steps import Outcome, Steps
from bcgc_jax.diagnosis.causes import Model, Parts
from bcgc_jax.diagnosis.log_model import Log, model_of
from bcgc_jax.diagnosis.replays import Replays, Report, halves, replayed
from bcgc_jax.diagnosis.slowness import Slowness, SlowWorker, slowness_of
from bcgc_jax.traces.intervals import (
    Interval,
    enough_steps,
    interval_of,
    resample_draws,
    share_interval,
)
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.whole_steps import WholeSteps, left_out_in_words, whole_steps

# Less time saved than this share is no reason to change anything.
WORTH = 0.02
# So much is given for a cheaper remedy.
FOR_CHEAPER = 0.01
FEWEST_STEPS = 8


class Savings(NamedTuple):
    """What each remedy saves of a used sample's time, as a share.

    Attributes:
      values: v = 1 - mean r / mean n, r and n the seconds of a step with the remedy and
        without.
      drawn: v in resampled steps, `[R]`, the same for all remedies.
      influence: what each step adds to v, ((1 - v) n - r) / mean n, `[S]`.
    """

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    influence: dict[str, np.ndarray]

    def interval(self, name: str) -> Interval:
        return share_interval(self.values[name], self.drawn[name], self.influence[name])

    def less(self, name: str, best: str) -> Interval:
        """What a remedy saves less than another one, in the same steps."""
        return interval_of(
            self.values[best] - self.values[name],
            self.drawn[best] - self.drawn[name],
            self.influence[best] - self.influence[name],
        )


def savings_of(draws: Sequence[Mapping[str, Outcome]], seed: int = 0) -> Savings:
    """Return what all remedies save, in the same resampled steps of likely draws."""
    names = list(draws[0])

    def series(outcomes: Mapping[str, Outcome]) -> np.ndarray:
        rows = outcomes.values()
        return np.stack(
            [(row.seconds + row.planning) / (1 - row.lost) for row in rows], axis=1
        )

    drawn_series = np.stack([series(outcomes) for outcomes in draws])
    baseline = names.index(Nothing.name)

    def saved(means: np.ndarray) -> np.ndarray:
        return 1 - means.T / means.T[baseline]

    seconds = drawn_series.mean(axis=0)
    values = saved(seconds.mean(axis=0))
    without = seconds[:, baseline]
    influence = ((1 - values)[:, None] * without - seconds.T) / without.mean()
    return Savings(
        values=dict(zip(names, values.tolist(), strict=True)),
        drawn=dict(zip(names, saved(resample_draws(drawn_series, seed)), strict=True)),
        influence=dict(zip(names, influence, strict=True)),
    )


def advised(models: Sequence[Savings], cheapest_first: Sequence[str]) -> str | None:
    """One of these remedies, or None where none saves anything that is worth it.

    Those count that save 2 % or more, and something by their interval of 95 % too. The
    best has the highest lower end. The first is advised that saves, by the interval, at
    most one point less than the best. A log may speak for several models alike. Then a
    remedy has to save by all of them, and what it saves less than the best is a mean
    over them.

    >>> drawn = {
    ...     "a": np.array([0.04, 0.06]),
    ...     "b": np.array([0.045, 0.065]),
    ...     "c": np.array([-0.1, 0.9]),
    ... }
    >>> values = {name: float(saved.mean()) for name, saved in drawn.items()}
    >>> savings = Savings(values, drawn, dict.fromkeys(drawn, np.zeros(1000)))
    >>> advised([savings], ["a", "b", "c"]), advised([savings], ["c"])
    ('a', None)
    """
    lows = [
        {name: savings.interval(name).low for name in cheapest_first}
        for savings in models
    ]
    mean = {
        name: np.mean([savings.values[name] for savings in models])
        for name in cheapest_first
    }
    worth = [name for name in cheapest_first if mean[name] >= WORTH]
    candidates = [name for name in worth if min(low[name] for low in lows) > 0]
    if not candidates:
        return None
    less = dict.fromkeys(candidates, 0.0)
    for low, savings in zip(lows, models, strict=True):
        best = max(candidates, key=low.__getitem__)
        for name in candidates:
            less[name] += savings.less(name, best).high / len(models)
    fine = [name for name in candidates if less[name] <= FOR_CHEAPER]
    if fine:
        return fine[0]
    return min(candidates, key=less.__getitem__)


def as_good(
    models: Sequence[Savings], remedy: str, candidates: Sequence[str]
) -> list[str]:
    """Return the candidates that save as much as a remedy, within the error."""
    remedies = []
    for name in candidates:
        less = [savings.less(name, remedy) for savings in models]
        equal = all(interval.low <= 0 <= interval.high for interval in less)
        if equal and name != remedy:
            remedies.append(name)
    return remedies


# Draws of the model in which schemes are replayed; one of a log of so many chunks.
_REPLAYED_DRAWS, _MANY_CHUNKS = 5, 20_000
# Intervals of what it saves to replace the slowest of 32 workers held in .73 of logs of
# 40 steps where 2 or 3 steps change by that, in none of 7 where fewer do, and in .96 of
# 138 logs from 4 on.
_FEWEST_CHANGED = 4
# An interval of ± this is useful, and one of ± so much is not: own choice.
_USEFUL, _USELESS = 0.1, 0.25


class Remedy(NamedTuple):
    """What a remedy saves, loses and needs.

    Attributes:
      scheme: as it was replayed.
      saved: less time than now for a sample that is used, as a share. The interval is
        that of all models which the log speaks for; NaN where nothing is planned.
      enough_steps: about how many steps have an interval of ± 10 points, by any one
        model; 0 where the interval is NaN.
      range: of `saved`, by whether slowness is the workers' or the data's, where the
        log does not say.
      lost: share of the samples that are lost; 0 where the gradient is exact.
      longer: how many times as long as the others the lost ones take; None where none
        are.
      stored_subsets: of the data, that a worker must be able to read.
      choice: what was planned in the two halves: how many workers are left out or
        replaced, the threshold in seconds, or how many steps shares are made of.
      needs: in words.
    """

    scheme: Scheme
    saved: Interval
    enough_steps: int
    range: tuple[float, float]
    lost: float
    longer: float | None
    stored_subsets: int
    choice: tuple[float, ...]
    needs: str

    @property
    def remedy(self) -> str:
        """Its name."""
        return self.scheme.name

    @property
    def equal_chunks(self) -> bool:
        """In work sharing, whether the last chunk of a subset stays whole."""
        return self.scheme.equal_chunks


@dataclass(frozen=True, kw_only=True)
class Advice(Slowness):
    """What a log says: what its steps lose, why, and what helps.

    Attributes, after those of `Slowness`:
      rows: what can be done, the most saved first, and last the limits; none where
        `alike`.
      costs: of work sharing, beside the passes, which the replays count.
      num_judged: steps in which the remedies were judged: all, or as many random ones
        of a very long log as a minute allows.
      enough: whether there are enough steps for advice.
      advised: a remedy, or None where nothing is worth it; without chunks it saves by
        three models: workers, data or single chunks are slow; by the first alone where
        it stays with a worker in the next step.
      without_lengths: one for workers that cannot send the lengths of their chunks, or
        None.
      beforehand: one for workers that cannot ask within a step, or None.
      look_at: workers that stay slow, if to replace them is worth it; those that cost
        the most time first, and of each the steps that cost the most.
      as_good: exact remedies that save as much as the advised one, within the error.
    """

    rows: list[Remedy]
    costs: Costs
    num_judged: int
    enough: bool
    advised: str | None
    without_lengths: str | None
    beforehand: str | None
    look_at: list[SlowWorker]
    as_good: list[str]

    @property
    def several_models(self) -> bool:
        """Whether what is saved depends on what the log does not say."""
        return any(row.range[0] < row.range[1] for row in self.rows)

    @property
    def too_wide(self) -> list[Remedy]:
        """The remedies of which hardly anything is known in so few steps."""
        most_steps = self.num_judged * (_USELESS / _USEFUL) ** 2
        return [row for row in self.rows if row.enough_steps > most_steps]

    def may_advise(self, row: Remedy) -> bool:
        """Whether a remedy may be advised, if it saves enough."""
        return _may_advise(row.scheme, self)

    def row(self, remedy: str) -> Remedy:
        return next(row for row in self.rows if row.remedy == remedy)


def advise(
    trace: Trace,
    *,
    chunks: int | None = None,
    stored: int | None = None,
    round_trip: float | None = None,
    chunk_overhead: float = 0.0,
    codes: Sequence[Scheme] = (),
    forward: float | None = None,
    seed: int = 0,
    timed_apart: bool = False,
    lock_step: bool = False,
    report: Report = lambda what, done, total: None,
) -> Advice:
    """What a log says: what its steps lose, why, and which remedy is worth it.

    Steps in which a worker has no time are left out. The loss is mean over steps of
    max_w T_w - mean_w T_w.

    Args:
      trace: the log, as `measured.load_trace` reads it.
      chunks: C, of a worker's step, where the trace has no chunks; by default 8.
      stored: the most subsets that a worker can store; by default all.
      round_trip: seconds of a question before each chunk. By default they are what the
        log has, or else `steps.asking.MEASURED`: a delay, and the coordinator's time,
        which answers one question at a time.
      chunk_overhead: seconds of a chunk, in the recorded ones, that do not depend on
        its size.
      codes: schemes to replay too, such as `solvers.methods.code_of("nested:2")`.
      forward: what a forward pass takes of a backward pass, for codes; by default what
        the log has, or else nothing.
      seed: of the resampling.
      timed_apart: say that the seconds are of each worker's own computation, so that
        workers may well be alike. Else nothing is advised where they look as if each
        had waited for the slowest, behind a collective.
      lock_step: say that chunk k of all workers is computed together, as with FSDP: it
        ends with the slowest, and all have as many. Then only what keeps their numbers
        is replayed.
      report: is called before each part of the work: with what it is, how many remedies
        have been replayed, and of how many.

    Raises ValueError for less than two whole steps or workers, and for `chunks` of a
    trace that has its own.

    Here one of four workers is slow; `advise` is `bcgc_jax.advise`.

    >>> times = np.ones((40, 4)) + 0.01 * np.random.default_rng(0).random((40, 4))
    >>> times[:, 1] *= 1.5
    >>> step, worker = np.indices(times.shape).reshape(2, -1)
    >>> names, whole = np.arange(40).astype(str), np.zeros(160, bool)
    >>> advice = advise(Trace(names, names[:4], step, worker, times.ravel(), whole))
    >>> advice.advised, advice.slow_workers[0].worker
    ('sharing:3', '1')
    """
    whole = whole_steps(trace)
    if whole.too_small:
        raise ValueError(
            "advice needs two workers or more, and two steps with a time of each. "
            f"Workers in the log: {trace.num_workers}. Steps with a time of each: "
            f"{len(whole.times)}. " + " ".join(left_out_in_words(whole))
        )
    report("finding the causes", 0, 0)
    log = model_of(whole, chunks, lock_step=lock_step)
    slowness = slowness_of(log, seed, timed_apart=timed_apart or trace.of_lengths)
    enough = slowness.num_steps >= FEWEST_STEPS
    if round_trip is None:
        asking = _asking(whole)
    else:
        asking = Asking(round_trip)
    costs = Costs(asking, chunk_overhead)
    if slowness.alike:
        nothing: Any = dict.fromkeys(("advised", "without_lengths", "beforehand"))
        nothing |= {"rows": [], "look_at": [], "as_good": [], "costs": costs}
        nothing["num_judged"] = 0
        return Advice(**vars(slowness), enough=enough, **nothing)
    resources = Resources(
        trace.num_workers,
        stored,
        log.costs is not None,
        costs,
        lock_step,
        not trace.of_lengths,
    )
    if not slowness.unlike_workers:
        resources = resources._replace(hosts=trace.hosts)
    if forward is None:
        forward = trace.forward_ratio or 0.0
    replays, models = _by_models(log, resources, codes, forward, seed, report)
    one_model = not log.recorded and _stays(log.model.parts.random)
    judges = models
    if one_model:
        judges = models[:1]
    may = [
        name
        for name, scheme in replays.schemes.items()
        if enough and _may_advise(scheme, slowness)
    ]
    do = advised(judges, may)
    equals: list[str] = []
    if do is not None:
        equals = as_good(judges, do, may)
    by_size = [name for name in may if not replays.schemes[name].by_length]
    before = [name for name in may if not replays.schemes[name].asks]
    steps = log.model.without_chance().parts.steps()
    rows = _rows(replays, steps.take(replays.judged), judges, models)
    replaced = next((row.saved for row in rows if row.remedy == Replaced.name), None)
    pays = replaced is not None and replaced.low > 0 and replaced.value >= WORTH
    look_at: list[SlowWorker] = []
    if enough and pays:
        look_at = _replaced(slowness, steps)
    return Advice(
        **vars(slowness),
        rows=rows,
        costs=costs,
        num_judged=len(replays.judged),
        enough=enough,
        advised=do,
        without_lengths=advised(judges, by_size),
        beforehand=advised(judges, before),
        as_good=equals,
        look_at=look_at,
    )


def _may_advise(scheme: Scheme, slowness: Slowness) -> bool:
    """Shares by speeds that have just changed are not advised."""
    return scheme.advisable and not (slowness.changing and scheme.by_speed)


def _by_models(
    log: Log,
    resources: Resources,
    codes: Sequence[Scheme],
    forward: float,
    seed: int,
    report: Report,
) -> tuple[Replays, list[Savings]]:
    """Replay all schemes; return what they save by a log's model, and by its others."""
    best, draws = best_and_drawn(log.model)
    likely, drawn = _as_steps(log, best, draws)
    likely = likely._replace(forward=forward)
    remedies = possible(resources)
    begun = itertools.count()
    total = len(codes) + len(remedies) * (1 + len(log.other_models))

    def begin(name: str) -> None:
        report(f"replaying {name}", next(begun), total)

    replays = replayed([*codes, *remedies.values()], likely, drawn, report=begin)
    models = [savings_of(replays.draws, seed)]
    # By all models a worker takes the same seconds.
    coded = {code.name: replays.draws[0][code.name] for code in codes}
    schemes = [scheme for name, scheme in replays.schemes.items() if name not in coded]
    for changed in log.other_models:
        steps = _as_steps(log, changed(best), map(changed, draws))
        outcomes = replayed(schemes, *steps, chosen=True, report=begin).draws
        models.append(savings_of([coded | ended for ended in outcomes], seed))
    return replays, models


def _as_steps(
    log: Log, best: Parts, draws: Iterable[Parts]
) -> tuple[Steps, list[Steps]]:
    """The best parts of a log and drawn ones, with the lengths that are predicted."""
    return log.as_steps(best), [log.as_steps(draw) for draw in draws]


def _asking(steps: WholeSteps) -> Asking:
    """What a question took in the log; else as measured on one machine."""
    parts = steps.trace.microbatches
    measured = None if parts is None else parts.asking
    if measured is None:
        return MEASURED
    return Asking(measured, MEASURED.service)


def best_and_drawn(model: Model) -> tuple[Parts, list[Parts]]:
    """The best parts and a few draws; the best alone where chunks are many."""
    likely = model.without_chance()
    if likely.parts.data.size >= _MANY_CHUNKS:
        return likely.parts, [likely.parts]
    return likely.parts, likely.draws[:_REPLAYED_DRAWS]


def _replaced(slowness: Slowness, steps: Steps) -> list[SlowWorker]:
    """The workers that are replaced in half of the steps, each as first listed."""
    first, second = halves(len(steps.pace))
    replaced = stay_slow(steps, first) | stay_slow(steps, second)
    names = {str(name) for name in slowness.steps.trace.worker_names[replaced]}
    stretches: dict[str, SlowWorker] = {}
    for worker in slowness.slow_workers:
        if worker.worker in names:
            stretches.setdefault(worker.worker, worker)
    return list(stretches.values())


def _stays(random: np.ndarray) -> bool:
    """Whether half of a step's slowness, `[S, W]`, stays in the next step."""
    return bool(np.sum(random[1:] * random[:-1]) > np.sum(random[:-1] ** 2) / 2)


def _rows(
    replays: Replays, steps: Steps, judges: list[Savings], models: list[Savings]
) -> list[Remedy]:
    rows = []
    without = replays.draws[0][Nothing.name].seconds
    for name, outcome in replays.draws[0].items():
        scheme = replays.schemes[name]
        if name == Nothing.name:
            continue
        changed = int(np.sum(~np.isclose(outcome.seconds, without, rtol=1e-9)))
        values = [savings.values[name] for savings in models]
        saved = _saved(scheme, outcome, judges, changed)
        enough = 0
        if saved.is_known:
            series = [savings.influence[name] for savings in judges]
            enough = max(enough_steps(_USEFUL, influence) for influence in series)
        row = Remedy(
            scheme=scheme,
            saved=saved,
            enough_steps=enough,
            range=(min(values), max(values)),
            lost=outcome.lost,
            longer=outcome.longer(steps),
            stored_subsets=scheme.stored_subsets(outcome.choice, steps.pace.shape[1]),
            choice=outcome.choice,
            needs=scheme.needs(outcome.choice),
        )
        rows.append(row)

    def place(row: Remedy) -> tuple[bool, bool, float]:
        bounds = row.remedy.startswith(Limit.name)
        return bounds, row.remedy == Limit.name, -row.saved.value

    return sorted(rows, key=place)


def _saved(
    scheme: Scheme, outcome: Outcome, judges: list[Savings], changed: int
) -> Interval:
    """By the first model; the interval is that of all which the log speaks for.

    There is none where so few steps are `changed` that they do not say how many others
    would be.
    """
    # Another log's plan may not be none.
    if not all(outcome.choice) or changed < _FEWEST_CHANGED:
        return Interval(judges[0].values[scheme.name], math.nan, math.nan)
    intervals = [savings.interval(scheme.name) for savings in judges]
    low, high = (
        min(ends.low for ends in intervals),
        max(ends.high for ends in intervals),
    )
    return Interval(intervals[0].value, low, high)
