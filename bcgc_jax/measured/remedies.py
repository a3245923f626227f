"""What could be done about slow steps, replayed in the steps of a log.

Each remedy is planned on one half of the steps and replayed in the other, both ways: seconds of
each step, `[S]`, are those of a step that the plan has not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.causes import Parts
from bcgc_jax.steps.asking import Asking
from bcgc_jax.steps.chunk_lengths import UNITS, chunk_sizes, ticks_of
from bcgc_jax.steps.lockstep import Chunks, handed_out
from bcgc_jax.steps.placement import chunk_tables, spread

# So many last steps are tried for shares by speed that are made anew.
_WINDOWS = (1, 2, 4, 8, 16)
# Quantiles of workers' times that are tried as thresholds of `drop`.
_THRESHOLDS = np.linspace(0.3, 1.0, 57)
# Plans of more steps hardly depend on a single one.
_MANY_STEPS = 500
# A worker that stays slow by less, ln of the ratio, is not replaced.
_SLOW = 0.05


class Replay(NamedTuple):
    """What a remedy takes in each step, `[S]`, and which share of the samples it loses there.

    Attributes:
      seconds: `[S]`.
      lost: mean share of the samples of a step.
      longer: how many times as long as all others the lost ones would have taken; None where none
        are lost.
      choice: what was planned in the two halves, such as how many workers are left out.
      equal_chunks: in work sharing, whether the last chunk of a subset stays whole.
      planning: what each step changes as one that is planned on, `[S]`, with mean 0: its seconds
        and this together vary as the mean does from log to log.
    """

    seconds: np.ndarray
    lost: float = 0.0
    longer: float | None = None
    choice: tuple[float, ...] = ()
    equal_chunks: bool = False
    planning: np.ndarray | float = 0.0


Half = np.ndarray  # which steps, `[S]`, bool
# From workers' seconds in planned and in judged steps, `[S, W]` each: those of the judged steps,
# `[S]`, and how many subsets a worker stores.
Planned = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]


def _first_half(steps: int) -> Half:
    return np.arange(steps) < steps // 2


def both_ways(steps: int, taken: Callable[[Half, Half], np.ndarray]) -> np.ndarray:
    """Plan on one half and judge in the other, both ways.

    `taken(planned, judged)` has the seconds of the judged steps, `[S]`.
    """
    first = _first_half(steps)
    seconds = np.empty(steps)
    for judged in (first, ~first):
        seconds[judged] = taken(~judged, judged)
    return seconds


def nothing(parts: Parts) -> Replay:
    return Replay(parts.times().max(axis=1))


def limit(parts: Parts) -> Replay:
    """No exact scheme takes less, even if all store all, and nobody pauses."""
    return Replay(parts.data.sum(axis=(1, 2)) / np.sum(1 / parts.pace, axis=1))


class Costs(NamedTuple):
    """What work sharing costs beside the passes.

    Attributes:
      asking: of a question for each chunk.
      of_chunk: seconds of a chunk, in its recorded seconds, that do not depend on its size: each of
        the pieces into which the last chunk is cut takes them anew.
    """

    asking: Asking = Asking()
    of_chunk: float = 0.0


class Shared(NamedTuple):
    """A row of work sharing: what a worker stores, and whether the lengths of chunks are sent.

    >>> Shared("3", 3, by_length=True).name
    'sharing:3, lengths'
    """

    word: str
    max_subsets: int
    by_length: bool = False

    @property
    def name(self) -> str:
        return f"sharing:{self.word}{', lengths' if self.by_length else ''}"


def sharing_rows(workers: int, stored: int) -> dict[str, Shared]:
    """Rows of work sharing with at most so many subsets stored, by name, the cheapest first.

    >>> list(sharing_rows(3, 2))
    ['sharing:2', 'sharing:2, lengths']
    """
    words = {str(few): few for few in (2, 3) if few < workers} | {"all": workers}
    rows = [
        Shared(word, few, by_length)
        for word, few in words.items()
        for by_length in (False, True)
        if few <= stored
    ]
    return {row.name: row for row in rows}


def sharing(
    parts: Parts,
    row: Shared,
    costs: Costs,
    predicted: np.ndarray | None = None,
    *,
    equal_chunks: bool = False,
) -> Replay:
    """Chunks are handed out to workers that store more than their own; nothing is planned.

    The rule is that of `handout.serve`, with `predicted` as if each worker sent its loads.

    Args:
      parts: of the log.
      row: which sharing.
      costs: beside the passes.
      predicted: seconds of chunks, `[S, W, C]`, where lengths are sent.
      equal_chunks: whether the last chunk of a subset stays whole.
    """
    steps, workers, count = parts.data.shape
    sizes = chunk_sizes(count, equal_chunks)
    cut = np.array(sizes) / UNITS
    of_chunk = np.minimum(np.arange(len(sizes)), count - 1)

    def pieces(values: np.ndarray) -> np.ndarray:
        return values[:, :, of_chunk] * cut

    anew = np.minimum(costs.of_chunk, parts.data[:, :, of_chunk]) * (1 - cut)
    lengths = (pieces(parts.data) + anew).reshape(steps, -1)
    ticks = None
    if row.by_length:
        assert predicted is not None
        ticks = ticks_of(pieces(predicted).reshape(steps, -1), predicted.mean())
    chunks = Chunks(parts.pace, lengths, parts.pauses, ticks)
    tables = chunk_tables(spread(workers, row.max_subsets, len(sizes)), sizes)
    return Replay(handed_out(tables, chunks, costs.asking), equal_chunks=equal_chunks)


def best_cut(
    parts: Parts, row: Shared, costs: Costs, predicted: np.ndarray | None, *, draws: int = 1
) -> Replay:
    """Replay a row with equal chunks, if these take less time in both halves of the steps.

    The parts are those of the same steps in so many `draws`, one behind the other.
    """
    cut = sharing(parts, row, costs, predicted)
    equal = sharing(parts, row, costs, predicted, equal_chunks=True)
    less = (cut.seconds - equal.seconds).reshape(draws, -1).mean(axis=0)
    first = _first_half(len(less))
    return equal if less[first].mean() > 0 and less[~first].mean() > 0 else cut


def dealt(parts: Parts, costs: np.ndarray) -> Replay:
    """Deal all chunks before each step by predicted costs, `[S, W, C]`: longest first."""
    steps, workers, _ = costs.shape
    expected = costs.reshape(steps, -1)
    lengths = parts.data.reshape(steps, -1)
    load = np.zeros((steps, workers))
    work = np.zeros((steps, workers))
    every = np.arange(steps)
    for chunk in np.argsort(-expected, axis=1, kind="stable").T:
        worker = load.argmin(axis=1)
        load[every, worker] += expected[every, chunk]
        work[every, worker] += lengths[every, chunk]
    return Replay((parts.pace * work + parts.pauses.sum(axis=2)).max(axis=1))


def shares(parts: Parts, *, anew: bool) -> Replay:
    """Give each worker data by its speed: once, or `anew` before each step by the last ones."""
    times = parts.times()
    if not anew:
        first = _first_half(len(times))
        means = np.where(first[:, None], times[~first].mean(axis=0), times[first].mean(axis=0))
        return Replay(_with_shares(parts, _by_speed(means)), planning=_planning(parts, times))
    windows = [window for window in _WINDOWS if window < len(times)]
    tried = [_with_shares(parts, _by_speed(_means_before(times, window))) for window in windows]
    chosen: list[float] = []

    def taken(planned: Half, judged: Half) -> np.ndarray:
        best = int(np.argmin([seconds[planned].mean() for seconds in tried]))
        chosen.append(windows[best])
        return tried[best][judged]

    return Replay(both_ways(len(times), taken), choice=tuple(chosen))


def _planning(parts: Parts, times: np.ndarray) -> np.ndarray:
    """What each step changes in the mean step by the shares of the other half, times S, `[S]`.

    S (m-1)/m (mean of θ_{-t} - θ_{-t}), θ_{-t} the mean step without step t in a plan of m steps
    (the jackknife).
    """
    steps = len(times)
    planning = np.zeros(steps)
    if steps > _MANY_STEPS:
        return planning
    first = _first_half(steps)
    for planned in (first, ~first):
        count = int(planned.sum())
        if count < 2:
            continue
        judged = Parts(*(values[~planned] for values in parts))
        without = (times[planned].sum(axis=0) - times[planned]) / (count - 1)
        means = np.array(
            [_with_shares(judged, _by_speed(mean[None])).sum() / steps for mean in without]
        )
        planning[planned] = steps * (count - 1) / count * (means.mean() - means)
    return planning


def _means_before(times: np.ndarray, window: int) -> np.ndarray:
    """Average the steps before each one, `[S, W]`, on a circle: before the first come the last."""
    circle = np.concatenate([np.zeros((1, times.shape[1])), times[-window:], times])
    sums = np.cumsum(circle, axis=0)
    return (sums[window:-1] - sums[: len(times)]) / window


def _by_speed(means: np.ndarray) -> np.ndarray:
    """Shares, 1 on average, `[S, W]`."""
    speed = 1 / means
    return speed / speed.mean(axis=1, keepdims=True)


def _with_shares(parts: Parts, share: np.ndarray) -> np.ndarray:
    """A worker gives away a part of its own data, or gets a part of what all others give away."""
    own = parts.data.sum(axis=2)
    given = np.sum(np.maximum(1 - share, 0) * own, axis=1, keepdims=True)
    more = np.maximum(share - 1, 0)
    part = more / np.maximum(more.sum(axis=1, keepdims=True), 1e-300)
    work = np.minimum(share, 1) * own + part * given
    return (parts.pace * work + parts.pauses.sum(axis=2)).max(axis=1)


def planned(parts: Parts, method: Planned) -> Replay:
    """Replay a code, as if all slowness were the workers'.

    `choice` is how many subsets its two plans store.
    """
    times = parts.times()
    stored: list[float] = []

    def taken(planned: Half, judged: Half) -> np.ndarray:
        seconds, few = method(times[planned], times[judged])
        stored.append(float(few))
        return seconds

    return Replay(both_ways(len(times), taken), choice=tuple(stored))


def replaced(parts: Parts) -> Replay:
    """Replace workers that stayed slow in the planned half: in the other they are as others are."""
    every = parts.seconds.sum(axis=2)
    work = parts.data.sum(axis=2)
    chosen: list[float] = []

    def taken(planned: Half, judged: Half) -> np.ndarray:
        slow = stay_slow(parts, planned)
        chosen.append(float(slow.sum()))
        usual = np.median(parts.pace[judged][:, ~slow], axis=1, keepdims=True)
        return np.where(slow, usual * work[judged], every[judged]).max(axis=1)

    return Replay(both_ways(len(every), taken), choice=tuple(chosen))


def stay_slow(parts: Parts, steps: Half) -> np.ndarray:
    """Whether workers are slow in most of these steps, `[W]`: they are replaced."""
    return np.mean(parts.steady[steps] > _SLOW, axis=0) > 0.5


def backup(parts: Parts) -> Replay:
    """The slowest B workers of each step are not waited for; B has the least time for a sample."""
    times = parts.times()
    workers = times.shape[1]
    ends = np.sort(times, axis=1)[:, ::-1]  # slowest first; `advise` goes without JAX
    used = 1 - np.arange(workers) / workers
    chosen: list[int] = []

    def taken(planned: Half, judged: Half) -> np.ndarray:
        chosen.append(int(np.argmin(ends[planned].mean(axis=0) / used)))
        return ends[judged][:, chosen[-1]]

    seconds = both_ways(len(times), taken)
    late = times > seconds[:, None]
    return Replay(seconds, *_lost(late[:, :, None], parts), choice=tuple(map(float, chosen)))


def drop(parts: Parts) -> Replay:
    """Stop workers after the chunk in which a threshold is passed: DropCompute, arXiv 2306.10598.

    Of the quantiles of workers' times the threshold is that with the least time for a sample that
    is used.
    """
    ends = np.cumsum(parts.seconds, axis=2)
    begins = ends - parts.seconds
    chosen: list[float] = []

    def stopped(threshold: float, steps: Half) -> tuple[np.ndarray, float]:
        done = begins[steps] < threshold
        return np.max(np.where(done, ends[steps], 0), axis=(1, 2)), float(done.mean())

    def taken(planned: Half, judged: Half) -> np.ndarray:
        tried = np.quantile(ends[planned][:, :, -1], _THRESHOLDS)
        for_used = []
        for threshold in tried:
            seconds, used = stopped(threshold, planned)
            for_used.append(seconds.mean() / used)
        chosen.append(float(tried[np.argmin(for_used)]))
        return stopped(chosen[-1], judged)[0]

    seconds = both_ways(len(ends), taken)
    # Of the first half, which was judged first.
    threshold = np.where(_first_half(len(ends)), *chosen)
    return Replay(seconds, *_lost(begins >= threshold[:, None, None], parts), choice=tuple(chosen))


def _lost(late: np.ndarray, parts: Parts) -> tuple[float, float | None]:
    """The share of chunks that are lost, and how many times as long as the others they take."""
    late = np.broadcast_to(late, parts.data.shape)
    share = float(late.mean())
    if not late.any() or late.all():
        return share, None
    return share, float(parts.seconds[late].mean() / parts.seconds[~late].mean())


NOTHING = "nothing"
DEALT = "dealt by length"
FIXED = "shares by speed"
ANEW = "shares anew"
REPLACED = "slowest replaced"
BACKUP = "backup"
DROP = "drop"
LIMIT = "limit"


def replays(
    parts: Parts,
    draws: Sequence[Parts],
    predicted: np.ndarray | None = None,
    stored: int | None = None,
    costs: Costs | None = None,
    methods: Mapping[str, Planned] = MappingProxyType({}),
    like: Mapping[str, Replay] | None = None,
) -> list[dict[str, Replay]]:
    """Return all replays by name, for each of several draws of the parts of a log.

    Args:
      parts: the best ones, for what needs the seconds of workers, and who stays slow, alone.
      draws: parts of the same seconds, for all else.
      predicted: seconds of chunks, `[S, W, C]`; None where their lengths are not known.
      stored: the most subsets that a worker stores; None for all.
      costs: of work sharing, beside the passes; by default none.
      methods: codes to replay too, by name.
      like: replays of another model, whose chunks are cut alike; by default the best cut.
    """
    known = {NOTHING: nothing(parts)}
    known |= {name: planned(parts, method) for name, method in methods.items()}
    known |= {REPLACED: replaced(parts), BACKUP: backup(parts), DROP: drop(parts)}
    by_draw = _by_draw(draws, predicted, stored, costs or Costs(), like)
    return [drawn | known for drawn in by_draw]


def _by_draw(
    draws: Sequence[Parts],
    predicted: np.ndarray | None,
    stored: int | None,
    costs: Costs,
    like: Mapping[str, Replay] | None,
) -> list[dict[str, Replay]]:
    """Replay what needs the parts of chunks: all draws at once where steps do not depend."""
    workers = draws[0].steady.shape[1]
    most = workers if stored is None else min(stored, workers)
    seats = seats_of(draws[0], len(draws))
    every = Parts(*map(np.concatenate, zip(*map(seated, draws, seats), strict=True)))
    expected = None
    if predicted is not None:
        expected = np.concatenate([predicted[:, seat] for seat in seats])
    replayed = {LIMIT: limit(every)}
    if expected is not None and most == workers:
        replayed[DEALT] = dealt(every, expected)
    for name, row in sharing_rows(workers, most).items():
        if row.by_length and expected is None:
            continue
        if like is None:
            replayed[name] = best_cut(every, row, costs, expected, draws=len(draws))
        else:
            equal = like[name].equal_chunks
            replayed[name] = sharing(every, row, costs, expected, equal_chunks=equal)
    apart = {name: np.split(replay.seconds, len(draws)) for name, replay in replayed.items()}
    found = [
        {name: replay._replace(seconds=apart[name][d]) for name, replay in replayed.items()}
        for d in range(len(draws))
    ]
    if most == workers:
        for by_name, parts in zip(found, draws, strict=True):
            by_name |= {FIXED: shares(parts, anew=False), ANEW: shares(parts, anew=True)}
    return found


def seats_of(parts: Parts, count: int) -> list[np.ndarray]:
    """Number workers anew for each draw: who shares data with whom is not known beforehand.

    The numbers do not depend on those in the log.
    """
    by_speed = np.argsort(np.log(parts.times()).mean(axis=0), kind="stable")
    rng = np.random.default_rng(0)
    return [by_speed[rng.permutation(len(by_speed))] for _ in range(count)]


def seated(parts: Parts, seats: np.ndarray) -> Parts:
    steady, random, data, pauses = (values[:, seats] for values in parts)
    return Parts(steady, random, data, pauses)
