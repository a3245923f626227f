"""The advice on a log: what a step loses, why, what helps, how much, and how sure that is.

Causes and remedies are replayed in the steps of the log, not read off shares of variance. A remedy
is advised if it saves time in steps that its plan has not seen, by its interval of 95 % too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.measured import remedies
from bcgc_jax.measured.causes import Model, Parts
from bcgc_jax.measured.intervals import Interval
from bcgc_jax.measured.left_out import left_out_in_words
from bcgc_jax.measured.remedies import Costs, Planned, Replay
from bcgc_jax.measured.slowness import (
    Slowness,
    SlowWorker,
    model_of,
    slowness_of,
    whole_steps,
)
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.verdict import (
    FEWEST_STEPS,
    WORTH,
    Savings,
    advised,
    as_good,
    savings_of,
)
from bcgc_jax.steps.asking import MEASURED, Asking

_QUESTION = "a question for each chunk"
_LENGTHS_SENT = f"{_QUESTION}; lengths"
_NEEDS = {
    remedies.DEALT: "lengths of chunks before the step",
    remedies.FIXED: "workers that keep their speed",
    remedies.ANEW: "new shares before each step",
    remedies.REPLACED: "{} other machine{s}",
    remedies.BACKUP: "{} worker{s} left out",
    remedies.DROP: "a stop after {} s",
    remedies.LIMIT: "",
}
_NEEDS_OF_CODE = "workers that are slow, not their data"
# Draws of the model in which remedies are replayed; one of a log of so many chunks.
_REPLAYED_DRAWS, _MANY_CHUNKS = 5, 20_000
# Exact ones for workers that cannot ask within a step.
_BEFOREHAND = (remedies.DEALT, remedies.FIXED, remedies.ANEW)


class Remedy(NamedTuple):
    """What a remedy saves, loses and needs.

    Attributes:
      remedy: its name.
      saved: less time than now for a sample that is used, as a share. The interval is that of all
        models which the log speaks for; NaN where nothing is planned.
      range: of `saved`, by whether slowness is the workers' or the data's, where the log does not
        say.
      lost: share of the samples that are lost; 0 where the gradient is exact.
      longer: how many times as long as the others the lost ones take; None where none are.
      stored_subsets: of the data, that a worker must be able to read.
      choice: what was planned in the two halves: how many workers are left out or replaced, the
        threshold in seconds, or how many steps shares are made of.
      needs: in words.
      equal_chunks: in work sharing, whether the last chunk of a subset stays whole.
    """

    remedy: str
    saved: Interval
    range: tuple[float, float]
    lost: float
    longer: float | None
    stored_subsets: int
    choice: tuple[float, ...]
    needs: str
    equal_chunks: bool = False

    @property
    def is_sharing(self) -> bool:
        """Whether chunks are handed out within the step."""
        return self.needs.startswith(_QUESTION)


@dataclass(frozen=True, kw_only=True)
class Advice(Slowness):
    """What a log says: what its steps lose, why, and what helps.

    Attributes, after those of `Slowness`:
      rows: what can be done, the most saved first, and last the limit; none where `alike`.
      costs: of work sharing, beside the passes, which the replays count.
      enough: whether there are enough steps for advice.
      advised: a remedy, or None where nothing is worth it; without chunks it saves by three models:
        workers, data or single chunks are slow; by the first alone where it stays with a worker in
        the next step.
      without_lengths: one for workers that cannot send the lengths of their chunks, or None.
      beforehand: one for workers that cannot ask within a step, or None.
      look_at: workers that stay slow, if to replace them is worth it; those that cost the most time
        first, and of each the steps that cost the most.
      as_good: exact remedies that save as much as the advised one, within the error.
    """

    rows: list[Remedy]
    costs: Costs
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

    def row(self, remedy: str) -> Remedy:
        return next(row for row in self.rows if row.remedy == remedy)


def advise(
    trace: Trace,
    *,
    chunks: int | None = None,
    stored: int | None = None,
    round_trip: float | None = None,
    chunk_overhead: float = 0.0,
    methods: Mapping[str, Planned] = MappingProxyType({}),
    seed: int = 0,
    timed_apart: bool = False,
) -> Advice:
    """What a log says: what its steps lose, why, and which remedy is worth it.

    Steps in which a worker has no time are left out. The loss is mean over steps of max_w
    T_w - mean_w T_w.

    Args:
      trace: the log, as `measured.load_trace` reads it.
      chunks: C, of a worker's step, where the trace has no chunks; by default 8.
      stored: the most subsets that a worker can store; by default all.
      round_trip: seconds of a question before each chunk. By default they are what the log has,
        or else `steps.asking.MEASURED`: a delay, and the coordinator's time, which answers one
        question at a time.
      chunk_overhead: seconds of a chunk, in the recorded ones, that do not depend on its size.
      methods: codes to replay too, by name; see `solvers.measured_steps`.
      seed: of the resampling.
      timed_apart: say that the seconds are of each worker's own computation, so that workers may
        well be alike. Else nothing is advised where they look as if each had waited for the
        slowest, behind a collective.

    Raises ValueError for less than two whole steps or workers, and for `chunks` of a trace that has
    its own.

    Here one of four workers is slow; `advise` is `bcgc_jax.advise`.

    >>> times = np.ones((40, 4)) + 0.01 * np.random.default_rng(0).random((40, 4))
    >>> times[:, 1] *= 1.5
    >>> step, worker = np.indices(times.shape).reshape(2, -1)
    >>> names, whole = np.arange(40).astype(str), np.zeros(160, bool)
    >>> found = advise(Trace(names, names[:4], step, worker, times.ravel(), whole))
    >>> found.advised, found.slow_workers[0].worker
    ('sharing:3', '1')
    """
    times, _ = whole_steps(trace)
    if min(times.shape) < 2:
        raise ValueError(
            "advice needs two workers or more, and two steps with a time of each. Workers in the "
            f"log: {trace.num_workers}. Steps with a time of each: {len(times)}. "
            + " ".join(left_out_in_words(trace))
        )
    log = model_of(trace, times, chunks)
    slowness = slowness_of(trace, log, seed, timed_apart=timed_apart)
    enough = len(times) >= FEWEST_STEPS
    asking = _asking(trace) if round_trip is None else Asking(round_trip)
    costs = Costs(asking, chunk_overhead)
    if slowness.alike:
        nothing: Any = dict.fromkeys(("advised", "without_lengths", "beforehand"))
        nothing |= {"rows": [], "look_at": [], "as_good": [], "costs": costs}
        return Advice(**vars(slowness), enough=enough, **nothing)
    best, draws = best_and_drawn(log.model)
    replays = remedies.replays(best, draws, log.costs, stored, costs, methods)
    savings = savings_of(replays, seed)
    # by all models a worker takes the same seconds
    codes = {name: replays[0][name] for name in methods}
    others = []
    for changed in log.others:
        changed_draws = [changed(draw) for draw in draws]
        replayed = remedies.replays(
            changed(best), changed_draws, log.costs, stored, costs, like=replays[0]
        )
        others.append(savings_of([drawn | codes for drawn in replayed], seed))
    one_model = not log.recorded and _stays(log.model.parts.random)
    judges = [savings] if one_model else [savings, *others]
    exact = _cheapest_first(trace.num_workers, slowness.changing) if enough else []
    may = [name for name in exact if name in replays[0]]
    do = advised(judges, may)
    rows = _rows(replays[0], judges, [savings, *others], trace.num_workers)
    replaced = next(row.saved for row in rows if row.remedy == remedies.REPLACED)
    pays = enough and replaced.low > 0 and replaced.value >= WORTH
    return Advice(
        **vars(slowness),
        rows=rows,
        costs=costs,
        enough=enough,
        advised=do,
        without_lengths=advised(judges, [name for name in may if not _needs_lengths(name)]),
        beforehand=advised(judges, [name for name in may if name in _BEFOREHAND]),
        as_good=[] if do is None else as_good(judges, do, may),
        look_at=_replaced(trace, best, slowness.slow_workers) if pays else [],
    )


def _asking(trace: Trace) -> Asking:
    """What a question took in the log; else as measured on one machine."""
    measured = None if trace.microbatches is None else trace.microbatches.asking
    if measured is None:
        return MEASURED
    return Asking(measured, MEASURED.service)


def best_and_drawn(model: Model) -> tuple[Parts, list[Parts]]:
    """The best parts and a few draws; of many chunks the best, for they leave little to chance."""
    likely = model.without_chance()
    best = likely.parts
    return best, [best] if best.data.size >= _MANY_CHUNKS else likely.draws[:_REPLAYED_DRAWS]


def _replaced(trace: Trace, model: Parts, slow: list[SlowWorker]) -> list[SlowWorker]:
    """Those that are replaced in a half of the steps; of each the first that is listed."""
    first = np.arange(len(model.data)) < len(model.data) // 2
    replaced = remedies.stay_slow(model, first) | remedies.stay_slow(model, ~first)
    names = {str(name) for name in trace.worker_names[replaced]}
    found: dict[str, SlowWorker] = {}
    for worker in slow:
        if worker.worker in names:
            found.setdefault(worker.worker, worker)
    return list(found.values())


def _stays(random: np.ndarray) -> bool:
    """Say whether half of what workers take more, `[S, W]`, stays in the next step's data."""
    return bool(np.sum(random[1:] * random[:-1]) > np.sum(random[:-1] ** 2) / 2)


def _cheapest_first(workers: int, changing: bool) -> list[str]:
    """Exact remedies; shares by speed are last, for a new slow worker spoils them.

    Where speeds are changing there are none.
    """
    at_any_speed = [remedies.DEALT, *remedies.sharing_rows(workers, workers)]
    return at_any_speed if changing else [*at_any_speed, remedies.FIXED, remedies.ANEW]


def _needs_lengths(name: str) -> bool:
    return name == remedies.DEALT or name.endswith(", lengths")


def _plural(choice: str) -> str:
    """The ending after numbers such as "3 or 1"."""
    return "" if choice.endswith(" 1") or choice == "1" else "s"


def _rows(
    replays: dict[str, Replay], judges: list[Savings], models: list[Savings], workers: int
) -> list[Remedy]:
    shared = remedies.sharing_rows(workers, workers)
    needs = _NEEDS | {
        name: _LENGTHS_SENT if row.by_length else _QUESTION for name, row in shared.items()
    }
    stored = {name: row.max_subsets for name, row in shared.items()}
    stored |= dict.fromkeys((*_BEFOREHAND, remedies.LIMIT), workers)
    rows = []
    for name, replay in replays.items():
        if name == remedies.NOTHING:
            continue
        values = [savings.values[name] for savings in models]
        choice = " or ".join(f"{each:.3g}" for each in dict.fromkeys(replay.choice))
        is_code = name not in needs
        equal = "; equal chunks" if replay.equal_chunks else ""
        row = Remedy(
            remedy=name,
            saved=_saved(name, replay, judges),
            range=(min(values), max(values)),
            lost=replay.lost,
            longer=replay.longer,
            stored_subsets=int(max(replay.choice)) if is_code else stored.get(name, 1),
            choice=replay.choice,
            needs=needs.get(name, _NEEDS_OF_CODE).format(choice, s=_plural(choice)) + equal,
            equal_chunks=replay.equal_chunks,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (row.remedy == remedies.LIMIT, -row.saved.value))


def _saved(name: str, replay: Replay, judges: list[Savings]) -> Interval:
    """By the first model; the interval is that of all which the log speaks for."""
    if name in (remedies.REPLACED, remedies.BACKUP) and not all(replay.choice):
        # Another log's plan may not be none: these steps do not say what that saves.
        return Interval(judges[0].values[name], math.nan, math.nan)
    each = [savings.interval(name) for savings in judges]
    low, high = min(one.low for one in each), max(one.high for one in each)
    return Interval(each[0].value, low, high)
