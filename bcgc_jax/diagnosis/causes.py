r"""What slows the steps of a log: a model of its times, and what each cause adds to the
loss.

Chunk c of worker w in step t takes y = e^{A[t,w] + B[t,w]} G[t,w,c] + P[t,w,c]: A of a
worker that stays slow (or fast), B of one that is slow in this step alone, G of the
chunk's data, P a pause.

In each step B has mean 0 over the workers. So the mean worker of a step, by the mean of
ln seconds, is not slow at random in it; how long its step takes is of its data. What is
true of a log is meant so too: of workers of which one takes twice as long, B is ln 2 (1
- 1/W) for that one, and -ln 2 / W for the others.

The loss of a step is the time of its slowest worker less the mean. What a cause adds to
it is its Shapley value: what the loss grows by as the cause is put in, a mean over all
orders in which the causes can be put in.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.steps import Steps
from bcgc_jax.diagnosis.pauses import beyond_usual, pauses_for_length, pauses_of_passes
from bcgc_jax.diagnosis.slow_steps import random_of, variance_of
from bcgc_jax.diagnosis.slow_workers import (
    FEWEST_STEPS,
    Level,
    levels,
    levels_drawn,
    levels_with_errors,
    ranks_of,
    scores_of,
    slow_in_all_steps,
)
from bcgc_jax.traces.microbatches import Microbatches, predicted_seconds

CAUSES = ("data", "steady", "random", "pauses")
# Draws of a model: a mean over them is known to a quarter of what they differ by. Of a
# log of so many chunks, or without chunks, there are fewer, and it is known to 0.4.
_DRAWS, _FEWER_DRAWS, _MANY_CHUNKS = 20, 8, 40_000
# Logs that chance makes, for steps that are slow as a whole: for 40 steps of 4 workers
# that deviate by 20 % these make it known to 0.23 % of a step, half as many to 0.33 %.
_SHUFFLES = 20


class Parts(NamedTuple):
    """What the seconds of chunks are made of; together they are the log again.

    Attributes:
      steady: A, `[S, W]`.
      random: B, `[S, W]`.
      data: G, seconds, `[S, W, C]`.
      pauses: P, seconds, `[S, W, C]`.
    """

    steady: np.ndarray
    random: np.ndarray
    data: np.ndarray
    pauses: np.ndarray

    @property
    def pace(self) -> np.ndarray:
        """The factor of the data's seconds, `[S, W]`."""
        return np.exp(self.steady + self.random)

    @property
    def seconds(self) -> np.ndarray:
        """The log, `[S, W, C]`."""
        return self.pace[:, :, None] * self.data + self.pauses

    def steps(
        self, costs: np.ndarray | None = None, *, lock_step: bool = False
    ) -> Steps:
        """What schemes are replayed in, with predicted lengths, `[S, W, C]`."""
        parts = self.pace, self.data, self.pauses, self.steady
        return Steps(*parts, costs, lock_step=lock_step)

    def whole(self) -> "Parts":
        """The same with one chunk in a worker's step."""
        data, pauses = (
            part.sum(axis=2, keepdims=True) for part in (self.data, self.pauses)
        )
        return self._replace(data=data, pauses=pauses)

    def times(self, causes: Collection[str] = CAUSES) -> np.ndarray:
        """The seconds of workers if there were these causes only, `[S, W]`."""
        return self.until_met(causes)[:, :, 0]

    def until_met(
        self, causes: Collection[str] = CAUSES, *, lock_step: bool = False
    ) -> np.ndarray:
        """The same until they meet, `[S, W, K]`: once, or in lock-step each chunk."""
        _, _, work, pauses = self if lock_step else self.whole()
        if "data" not in causes:
            equal = work.mean(axis=2, keepdims=True).mean(axis=1, keepdims=True)
            work = np.broadcast_to(equal, work.shape)
        pace = self.steady * ("steady" in causes) + self.random * ("random" in causes)
        return np.exp(pace)[:, :, None] * work + pauses * ("pauses" in causes)


def loss(times: np.ndarray) -> np.ndarray:
    """Return the slowest worker's excess over the mean, `[S, W, …]` to `[S, …]`."""
    return times.max(axis=1) - times.mean(axis=1)


def losses(parts: Parts, *, lock_step: bool = False) -> dict[str, np.ndarray]:
    """What each cause adds to the loss of each step, `[S]`: they add up to it.

    In lock-step chunk k of all workers ends with the slowest: the loss is that of each
    k, summed.

    >>> parts = Parts(
    ...     np.log([[1.0, 3.0]]),
    ...     np.zeros((1, 2)),
    ...     np.ones((1, 2, 1)),
    ...     np.array([[[0.0], [2.0]]]),
    ... )
    >>> {cause: round(float(added[0]), 12) for cause, added in losses(parts).items()}
    {'data': 0.0, 'steady': 1.0, 'random': 0.0, 'pauses': 1.0}
    """
    if not lock_step:
        parts = parts.whole()
    return shapley_values(
        lambda causes: loss(parts.until_met(causes, lock_step=lock_step)).sum(axis=1)
    )


def shapley_values(
    value_of: Callable[[Collection[str]], np.ndarray],
) -> dict[str, np.ndarray]:
    """Return what each cause adds to a value of sets of causes: its Shapley value."""
    size = len(CAUSES)
    counts = range(size + 1)
    sets = [
        frozenset(causes)
        for k in counts
        for causes in itertools.combinations(CAUSES, k)
    ]
    values = {causes: value_of(causes) for causes in sets}
    added = {cause: np.zeros_like(values[frozenset()]) for cause in CAUSES}
    for cause in CAUSES:
        for causes in sets:
            if cause not in causes:
                before = len(causes)
                orders = math.factorial(before) * math.factorial(size - 1 - before)
                gain = values[causes | {cause}] - values[causes]
                added[cause] += orders / math.factorial(size) * gain
    return added


def slow_together(times: np.ndarray) -> np.ndarray:
    """Return what steps take more because all workers are slow, `[S, W]` to `[S]`; it
    is no loss.

    More than the lowest quarter of steps takes, and less what it would be if each
    worker's ratio to the median one came in any other step: chance makes some means of
    a few workers large.
    """
    ratios = times / np.median(times, axis=1, keepdims=True)
    ratios = ratios[:, np.argsort(np.log(times).mean(axis=0), kind="stable")]
    rng = np.random.default_rng(0)
    by_chance = [
        _above_most(rng.permuted(ratios, axis=0)).mean() for _ in range(_SHUFFLES)
    ]
    return _above_most(times) - np.mean(by_chance) * np.median(times)


def _above_most(times: np.ndarray) -> np.ndarray:
    means = times.mean(axis=1)
    error = np.median(times.std(axis=1, ddof=1)) / math.sqrt(times.shape[1])
    return means - min(np.quantile(means, 0.25) + 0.6745 * error, np.median(means))


class Model(NamedTuple):
    """A model of the seconds of a log.

    Attributes:
      parts: the best one.
      draws: D others that are as likely, to be averaged over; their B is drawn where
        one shows.
      random_shows: whether B is above chance. If not, it is 0 in `parts`, and drawn up
        to what chance may hide in `draws`.
      slow_in_all: in a few steps, workers that are slow in all of them: how many times
        as slow.
      levels: the levels of workers that stay slow, or fast, in any of `draws`, without
        bias and with their errors.
      of_random: the part of what these do not explain that is slowness at random.
    """

    parts: Parts
    draws: list[Parts]
    random_shows: bool
    slow_in_all: dict[int, float]
    levels: list[Level]
    of_random: float

    def levels_in(self, draw: Parts) -> list[Level]:
        """The levels of workers that stay slow, or fast, in one of the draws."""
        return [k for k in self.levels if draw.steady[k.first, k.worker] != 0]

    def changed(self, change: Callable[[Parts], Parts]) -> "Model":
        draws = [change(draw) for draw in self.draws]
        return self._replace(parts=change(self.parts), draws=draws)

    def without_chance(self) -> "Model":
        """The model without slowness at random where it is no more than by chance."""
        if self.random_shows:
            return self
        return self.changed(without_random)._replace(of_random=0.0)

    def of_workers(self, order: np.ndarray, unit: float) -> "Model":
        """The model with place w as worker `order[w]`, its seconds times `unit`."""
        place = np.argsort(order)

        # What draws have in common is in memory once.
        moved: dict[int, np.ndarray] = {}

        def in_seconds(values: np.ndarray) -> np.ndarray:
            if id(values) not in moved:
                moved[id(values)] = unit * values[:, place]
            return moved[id(values)]

        def change(parts: Parts) -> Parts:
            steady, random = (values[:, place] for values in parts[:2])
            return Parts(steady, random, *map(in_seconds, parts[2:]))

        slow = {int(order[worker]): ratio for worker, ratio in self.slow_in_all.items()}
        levels = [
            level._replace(worker=int(order[level.worker])) for level in self.levels
        ]
        return self.changed(change)._replace(slow_in_all=slow, levels=levels)


def model_of_chunks(parts: Microbatches) -> Model:
    """Model whole steps of C ≥ 2 chunks.

    Pauses are told from long chunks by loads or forward passes; without both there are
    none, and the data has them. No time is missing.
    """
    length = np.ones_like(parts.seconds)
    if parts.load is not None:
        length = predicted_seconds(parts.seconds, parts.load)
    if parts.forward is not None:
        pauses = pauses_of_passes(parts.seconds, parts.forward)
    elif parts.load is not None:
        pauses = length * pauses_for_length(parts.seconds / length)
    else:
        pauses = np.zeros_like(parts.seconds)
    work = parts.seconds - pauses
    paces = work.sum(axis=2) / length.sum(axis=2)
    logs = np.log(work / length)
    scores = scores_of(work / length)
    rng = np.random.default_rng(0)
    steady = levels(scores, paces)
    scores_without_steady = scores_of(work / length / np.exp(steady)[:, :, None])
    count = _FEWER_DRAWS
    if parts.seconds.size < _MANY_CHUNKS:
        count = _DRAWS
    steady_draws = _levels_drawn(steady, scores_without_steady, paces, count, rng)
    random, random_draws, shows = random_of(
        logs - steady[:, :, None],
        [logs - level[:, :, None] for level in steady_draws],
        np.random.default_rng(0),
    )

    def of(level: np.ndarray, pace: np.ndarray) -> Parts:
        return Parts(level, pace, work / np.exp(level + pace)[:, :, None], pauses)

    return Model(
        parts=of(steady, random),
        draws=list(map(of, steady_draws, random_draws)),
        random_shows=shows,
        slow_in_all=_slow_in_all(scores, paces),
        levels=_levels_of_draws(steady, steady_draws, paces),
        of_random=variance_of(logs - steady[:, :, None]).of_random,
    )


def _slow_in_all(scores: np.ndarray, times: np.ndarray) -> dict[int, float]:
    if len(scores) < FEWEST_STEPS:
        return slow_in_all_steps(scores, times)
    return {}


def _levels_drawn(
    steady: np.ndarray,
    scores: np.ndarray,
    times: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    apart = np.log(times)
    apart = apart - np.median(apart, axis=1, keepdims=True) - steady
    return [levels_drawn(steady, scores, apart, rng) for _ in range(count)]


def _levels_of_draws(
    steady: np.ndarray, draws: Sequence[np.ndarray], times: np.ndarray
) -> list[Level]:
    stays = np.any([level.any(axis=0) for level in draws], axis=0)
    return levels_with_errors(steady, stays & ~steady.any(axis=0), times)


def model_of_steps(
    times: np.ndarray, chunks: int, expected: np.ndarray | None = None
) -> Model:
    """Model whole steps without chunks, `[S, W]`: what is not steady is of workers, at
    random.

    But for what a worker's load makes be `expected`, in seconds, `[S, W]`: that is of
    the data.
    """
    if expected is not None:
        of_workers = model_of_steps(times / expected, chunks)
        return of_workers.changed(
            lambda parts: parts._replace(data=parts.data * expected[:, :, None])
        )
    ranks = ranks_of(times)
    steady = levels(ranks, times)
    usual = np.exp(np.log(times) - steady).mean(axis=1, keepdims=True)
    data = (
        np.repeat(np.broadcast_to(usual, times.shape)[:, :, None], chunks, axis=2)
        / chunks
    )
    without = ranks_of(times / np.exp(steady))
    rng = np.random.default_rng(0)

    no_pauses = np.zeros_like(data)

    def of(level: np.ndarray) -> Parts:
        return Parts(level, np.log(times / usual) - level, data, no_pauses)

    draws = _levels_drawn(steady, without, times, _FEWER_DRAWS, rng)
    return Model(
        parts=of(steady),
        draws=list(map(of, draws)),
        random_shows=True,
        slow_in_all=_slow_in_all(ranks, times),
        levels=_levels_of_draws(steady, draws, times),
        of_random=1.0,
    )


def as_data(parts: Parts) -> Parts:
    """Return other parts of the same seconds: workers slow at random have long chunks
    instead.

    Lengths within a worker's step are drawn: as uneven as independent ones are whose
    sums differ so much.
    """
    uneven = math.sqrt(parts.data.shape[2]) * parts.random.std()
    drawn = np.empty(parts.data.shape)
    # In the order of their speeds, whatever the workers' numbers are.
    by_speed = np.argsort(np.log(parts.times()).mean(axis=0), kind="stable")
    drawn[:, by_speed] = np.random.default_rng(0).standard_normal(drawn.shape)
    drawn = np.exp(uneven * drawn)
    data = (
        np.exp(parts.random)[:, :, None]
        * parts.data
        * drawn
        / drawn.mean(axis=2, keepdims=True)
    )
    return parts._replace(random=np.zeros_like(parts.random), data=data)


def as_one_chunk(parts: Parts) -> Parts:
    """Other parts of the same seconds: one chunk has all above the median worker."""
    pace = np.exp(parts.random)
    usual = np.minimum(pace, np.median(pace, axis=1, keepdims=True))
    data = usual[:, :, None] * parts.data
    data[:, :, data.shape[2] // 2] += (pace - usual) * parts.data.sum(axis=2)
    return parts._replace(random=np.zeros_like(parts.random), data=data)


def as_pauses(parts: Parts) -> Parts:
    """Return other parts of the same seconds: what long chunks take more is a pause."""
    pauses = beyond_usual(parts.pace[:, :, None] * parts.data)
    data = parts.data - pauses / parts.pace[:, :, None]
    return parts._replace(data=data, pauses=parts.pauses + pauses)


def without_random(parts: Parts) -> Parts:
    """Other parts of the same seconds: the data have what was slow at random."""
    data = parts.data * np.exp(parts.random)[:, :, None]
    return parts._replace(random=np.zeros_like(parts.random), data=data)
