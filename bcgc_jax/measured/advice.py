"""From a log to a verdict: what a step loses, why, what can be done, what that is worth and how sure it is.

Causes and remedies are replayed in the steps of the log, not read off shares of variance. A remedy is advised
if it saves time in steps that its plan has not seen, by its interval of 95 % too.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured import remedies
from bcgc_jax.measured.causes import (
    CAUSES,
    Parts,
    as_data,
    as_one_chunk,
    losses,
    parts_of,
    parts_of_steps,
    slow_together,
)
from bcgc_jax.measured.intervals import Interval, resample
from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.remedies import (
    ALL_DATA,
    ANEW,
    BACKUP,
    DEALT,
    DROP,
    FIXED,
    LIMIT,
    REPLACED,
    Planned,
    Replay,
)
from bcgc_jax.measured.slow_workers import SlowWorker
from bcgc_jax.measured.traces import ALIKE, Trace
from bcgc_jax.measured.verdict import FEWEST_STEPS, Savings, advised, savings_of

# Chunks that a step is taken to have where the log does not say.
CHUNKS = 8
# A worker that is slow by less is not told: ln of the ratio.
_TOLD = 0.05
# Without chunks a log does not say whether what is not steady is of workers, data or pauses.
STEADY = "steady"
REST = "rest"

_QUESTION = "a question for each chunk"
_NEEDS = {
    DEALT: "lengths of chunks before the step",
    "sharing:2": _QUESTION,
    "sharing:3": _QUESTION,
    ALL_DATA: _QUESTION,
    FIXED: "workers that keep their speed",
    ANEW: "new shares before each step",
    REPLACED: "{} other machines",
    BACKUP: "{} workers left out",
    DROP: "a stop after {} s",
    LIMIT: "",
}


class Row(NamedTuple):
    """A remedy.

    Attributes:
      remedy: its name.
      saved: less time than now for a sample that is used, as a share.
      range: of `saved`, by whether slowness is the workers' or the data's, where the log does not say.
      lost: share of the samples that are lost; 0 where the gradient is exact.
      longer: how many times as long as the others the lost ones take; None where none are.
      stored_subsets: of the data, that a worker must be able to read.
      choice: what was planned in the two halves: how many workers are left out or replaced, the threshold in
        seconds, or how many steps shares are made of.
      needs: in words.
    """

    remedy: str
    saved: Interval
    range: tuple[float, float]
    lost: float
    longer: float | None
    stored_subsets: int
    choice: tuple[float, ...]
    needs: str


class Advice(NamedTuple):
    """What a log says.

    Attributes:
      num_workers: W.
      num_steps: whole ones, which were replayed.
      left_out: steps in which a worker has no time.
      num_chunks: C, of a worker's step.
      recorded: whether the log has the chunks; else they are taken to be equal.
      lengths: what the lengths of chunks are predicted from, "load" or "forward_seconds"; None for nothing.
      block: so many neighbouring steps are resampled together.
      step: mean seconds of a step.
      balanced: mean seconds of a worker, which a step would take if all ended together.
      causes: of `step` - `balanced`, as shares of it: "data", "steady", "random" and "pauses", or without
        chunks "steady" and "rest", and with loads "data".
      together: what steps take more in which all workers are slow, as a share of `step`; no part of the loss.
      slow_workers: that stay slow, first those that take the most time more.
      changing: whether a worker has become slow or fast in the last quarter of the steps.
      rows: what can be done, the most saved first, and last the limit.
      enough: whether there are enough steps for advice.
      advised: a remedy, or None where nothing is worth it; without chunks it saves by three models: workers,
        data or single chunks are slow; by the first alone where it stays with a worker in the next step.
      beforehand: one for workers that cannot ask within a step, or None.
    """

    num_workers: int
    num_steps: int
    left_out: int
    num_chunks: int
    recorded: bool
    lengths: str | None
    block: int
    step: float
    balanced: float
    causes: dict[str, Interval]
    together: Interval
    slow_workers: list[SlowWorker]
    changing: bool
    rows: list[Row]
    enough: bool
    advised: str | None
    beforehand: str | None

    @property
    def loss(self) -> float:
        """What a step loses, as a share of it."""
        return 1 - self.balanced / self.step

    @property
    def alike(self) -> bool:
        """Whether all workers of a step take one time, as those do that have waited for each other."""
        return self.loss < ALIKE

    def row(self, remedy: str) -> Row:
        return next(row for row in self.rows if row.remedy == remedy)


class Log(NamedTuple):
    """The whole steps of a trace: a model of them, and others that they speak for as much."""

    model: Parts
    others: list[Parts]
    costs: np.ndarray | None
    lengths: str | None


def advise(
    trace: Trace,
    *,
    chunks: int | None = None,
    stored: int | None = None,
    round_trip: float = 0.0,
    methods: Mapping[str, Planned] = MappingProxyType({}),
    seed: int = 0,
) -> Advice:
    """What a log says: what its steps lose, why, and which remedy is worth it.

    Steps in which a worker has no time are left out. The loss is mean over steps of max_w T_w - mean_w T_w.

    Args:
      trace: the log, as `measured.load_trace` reads it.
      chunks: C, of a worker's step, where the trace has no microbatches; by default 8.
      stored: the most subsets that a worker can store; by default all.
      round_trip: seconds of a question before each chunk.
      methods: codes to replay too, by name; see `solvers.measured_steps`.
      seed: of the resampling.

    Raises ValueError for less than two whole steps or workers, and for `chunks` of a trace that has its own.

    Here one of four workers is slow; `advise` is `bcgc_jax.advise`.

    >>> times = np.ones((40, 4)) + 0.01 * np.random.default_rng(0).random((40, 4))
    >>> times[:, 1] *= 1.5
    >>> step, worker = np.indices(times.shape).reshape(2, -1)
    >>> names, whole = np.arange(40).astype(str), np.zeros(160, bool)
    >>> found = advise(Trace(names, names[:4], step, worker, times.ravel(), whole))
    >>> found.advised, found.slow_workers[0].worker
    ('sharing:3', '1')
    """
    times = _table(trace)
    whole = np.isfinite(times).all(axis=1)
    times = times[whole]
    if min(times.shape) < 2:
        raise ValueError(
            f"the log has {len(times)} steps with a time of each of its {trace.num_workers} workers: give at "
            "least two steps of two workers"
        )
    log = model_of(trace, times, chunks)
    replays = remedies.replays(log.model, log.costs, stored, round_trip, methods)
    savings = savings_of(replays, seed)
    codes = {name: replays[name] for name in methods}  # by all models a worker takes the same seconds
    others = [
        savings_of(remedies.replays(other, log.costs, stored, round_trip) | codes, seed)
        for other in log.others
    ]
    judges = [savings] if _stays(log.model.random) else [savings, *others]
    causes, together = _causes(log, savings.block, seed)
    changing = bool(np.any(np.diff(log.model.steady[3 * len(times) // 4 :], axis=0)))
    enough = len(times) >= FEWEST_STEPS
    may = [name for name in _cheapest_first(trace.num_workers, changing) if name in replays and enough]
    return Advice(
        num_workers=trace.num_workers,
        num_steps=len(times),
        left_out=trace.num_steps - len(times),
        num_chunks=log.model.data.shape[2],
        recorded=not log.others,
        lengths=log.lengths,
        block=savings.block,
        step=float(times.max(axis=1).mean()),
        balanced=float(times.mean()),
        causes=causes,
        together=together,
        slow_workers=_slow_workers(trace, np.flatnonzero(whole), log.model.steady),
        changing=changing,
        rows=_rows(replays, savings, others, trace.num_workers),
        enough=enough,
        advised=advised(judges, may),
        beforehand=advised(judges, [name for name in may if name in (DEALT, FIXED, ANEW)]),
    )


def _stays(random: np.ndarray) -> bool:
    """Whether half of what workers take more, `[S, W]`, is there in the next step: its data are others."""
    return bool(np.sum(random[1:] * random[:-1]) > np.sum(random[:-1] ** 2) / 2)


def _table(trace: Trace) -> np.ndarray:
    """`[S, W]`; of a worker's step with several loads the time of the largest."""
    return trace.largest_loads()._replace(load=None).table()


def model_of(trace: Trace, times: np.ndarray, chunks: int | None) -> Log:
    parts = trace.microbatches
    if trace.load is not None:
        return _model_of_loads(trace, times, chunks or CHUNKS)
    if parts is None or parts.seconds.shape[2] < 2:
        model = parts_of_steps(times, chunks or CHUNKS)
        return Log(model, [as_data(model), as_one_chunk(model)], None, None)
    if chunks is not None:
        raise ValueError(f"the log itself says that a worker's step has {parts.seconds.shape[2]} chunks")
    parts = parts.whole_steps()
    lengths = "load" if parts.load is not None else None if parts.forward is None else "forward_seconds"
    return Log(parts_of(parts), [], _costs(parts), lengths)


def _model_of_loads(trace: Trace, times: np.ndarray, chunks: int) -> Log:
    """Of a log that has the load of each worker's step, and no chunks: equal ones are supposed."""
    largest = trace.largest_loads()
    assert largest.load is not None
    load = _table(largest._replace(seconds=largest.load))
    load = load[np.isfinite(load).all(axis=1)]
    parts = Microbatches(times[:, :, None], load=load[:, :, None])
    expected = predicted_seconds(parts, slice(None))
    costs = _costs(parts)
    assert expected is not None
    assert costs is not None
    model = parts_of_steps(times, chunks, expected[:, :, 0])
    return Log(
        model, [as_data(model), as_one_chunk(model)], np.repeat(costs, chunks, axis=2) / chunks, "load"
    )


def _costs(parts: Microbatches) -> np.ndarray | None:
    """Of chunks, as predicted by their lengths from the other half of the steps."""
    first = np.arange(len(parts.seconds)) < len(parts.seconds) // 2
    of_first, of_second = (predicted_seconds(parts, learnt) for learnt in (~first, first))
    if of_first is None or of_second is None:
        return None
    return np.where(first[:, None, None], of_first, of_second)


def _causes(log: Log, block: int, seed: int) -> tuple[dict[str, Interval], Interval]:
    added = losses(log.model)
    names = list(CAUSES)
    if log.others:
        added |= {REST: added["random"]}
        names = [STEADY, REST] if log.lengths is None else ["data", STEADY, REST]
    times = log.model.times()
    series = [*(added[name] for name in names), slow_together(times), times.max(axis=1)]
    found = resample(np.stack(series, axis=1), block, seed)
    count = len(names)

    def share(k: int) -> Interval:
        return found.interval(lambda mean: mean[..., k] / np.maximum(mean[..., :count].sum(axis=-1), 1e-300))

    together = found.interval(lambda mean: mean[..., count] / mean[..., count + 1])
    return {name: share(k) for k, name in enumerate(names)}, together


def _slow_workers(trace: Trace, steps: np.ndarray, steady: np.ndarray) -> list[SlowWorker]:
    """The stretches in which a worker stays slow, those that cost the most time first."""
    found = []
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
                found.append(((one.ratio - 1) * (stop - first), one))
    return [one for _, one in sorted(found, key=lambda each: -each[0])]


def _cheapest_first(workers: int, changing: bool) -> list[str]:
    """Exact remedies; shares by speed are last, for a new slow worker spoils them.

    Where speeds are changing there are none.
    """
    asking = remedies.sharing_names(workers, workers)
    return [DEALT, *asking, *([] if changing else [FIXED, ANEW])]


def _rows(replays: dict[str, Replay], savings: Savings, others: list[Savings], workers: int) -> list[Row]:
    stored = remedies.sharing_names(workers, workers) | dict.fromkeys((DEALT, FIXED, ANEW, LIMIT), workers)
    found = []
    for name, replay in replays.items():
        if name == remedies.NOTHING:
            continue
        values = [each.values[name] for each in (savings, *others)]
        is_code = name not in _NEEDS
        found.append(
            Row(
                remedy=name,
                saved=savings.interval(name),
                range=(min(values), max(values)),
                lost=replay.lost,
                longer=replay.longer,
                stored_subsets=int(max(replay.choice)) if is_code else stored.get(name, 1),
                choice=replay.choice,
                needs=_NEEDS.get(name, "workers that are slow, not their data").format(
                    " or ".join(f"{each:.3g}" for each in dict.fromkeys(replay.choice))
                ),
            )
        )
    return sorted(found, key=lambda row: (row.remedy == LIMIT, -row.saved.value))
