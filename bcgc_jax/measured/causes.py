r"""What slows the steps of a log: a model of its times, and what each cause adds to the loss.

Chunk c of worker w in step t takes y = e^{A[t,w] + B[t,w]} G[t,w,c] + P[t,w,c]: A of a worker that
stays slow (or fast), B of one that is slow in this step alone, G of the chunk's data, P a pause.
The loss of a step is the time of its slowest worker less the mean. What a cause adds to it is its
Shapley value: what the loss grows by as the cause is put in, a mean over all orders in which the
causes can be put in.
"""

import itertools
import math
from collections.abc import Collection
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.slow_steps import scores_of, slow_in_steps
from bcgc_jax.measured.slow_workers import levels, levels_drawn, ranks_of

CAUSES = ("data", "steady", "random", "pauses")
# ln of a chunk's time over its worker's median is a pause above this,
_LEAST_PAUSE = 0.6
# and where twice as many chunks are as long as lengths explain: this share of them,
_MOST_PAUSES = 0.03
# but so many at least.
_FEWEST = 10
# So is one that is so long by chance in no log of a thousand.
_CHANCE = 1e-3
# Two quantiles, through which the tail of lengths is drawn.
_BODY = (0.80, 0.95)
# With forward passes: of ln(forward / backward), in chunks of about the same length.
_LEAST_SHIFT = 0.3
_DEVIATIONS = 6.0
_LEAST_DEVIATION = 0.02
_BIN = 25


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

    def times(self, causes: Collection[str] = CAUSES) -> np.ndarray:
        """The seconds of workers if there were these causes only, `[S, W]`."""
        work = self.data.sum(axis=2)
        if "data" not in causes:
            work = np.broadcast_to(work.mean(axis=1, keepdims=True), work.shape)
        pace = self.steady * ("steady" in causes) + self.random * ("random" in causes)
        return np.exp(pace) * work + self.pauses.sum(axis=2) * ("pauses" in causes)


def loss(times: np.ndarray) -> np.ndarray:
    """Return what the slowest worker takes more than the mean, `[S, W]` to `[S]`."""
    return times.max(axis=1) - times.mean(axis=1)


def losses(parts: Parts) -> dict[str, np.ndarray]:
    """What each cause adds to the loss of each step, `[S]`: they add up to it.

    >>> parts = Parts(np.log([[1.0, 3.0]]), np.zeros((1, 2)), np.ones((1, 2, 1)),
    ...     np.array([[[0.0], [2.0]]]))
    >>> {cause: round(float(added[0]), 12) for cause, added in losses(parts).items()}
    {'data': 0.0, 'steady': 1.0, 'random': 0.0, 'pauses': 1.0}
    """
    size = len(CAUSES)
    counts = range(size + 1)
    sets = [frozenset(some) for k in counts for some in itertools.combinations(CAUSES, k)]
    loss_of = {some: loss(parts.times(some)) for some in sets}
    added = {cause: np.zeros(len(parts.data)) for cause in CAUSES}
    for cause in CAUSES:
        for others in sets:
            if cause not in others:
                orders = math.factorial(len(others)) * math.factorial(size - 1 - len(others))
                gain = loss_of[others | {cause}] - loss_of[others]
                added[cause] += orders / math.factorial(size) * gain
    return added


def slow_together(times: np.ndarray) -> np.ndarray:
    """Return what steps take more because all workers are slow, `[S, W]` to `[S]`; it is no loss.

    More than the lowest quarter of steps takes, and more than chance makes of the mean of so many
    workers.
    """
    means = times.mean(axis=1)
    error = np.median(times.std(axis=1, ddof=1)) / math.sqrt(times.shape[1])
    return means - min(np.quantile(means, 0.25) + 0.6745 * error, np.median(means))


def parts_of(parts: Microbatches) -> Parts:
    """Model whole steps of C ≥ 2 chunks.

    Args:
      parts: without missing times; with forward passes pauses are told from long chunks.
    """
    if parts.load is not None:
        return _parts_by_load(parts)
    seconds = parts.seconds
    if parts.forward is None:
        pauses = _pauses(seconds)
    else:
        pauses = _pauses_of_passes(seconds, parts.forward)
    rest = seconds - pauses
    steady = levels(scores_of(rest), rest.sum(axis=2))
    random = slow_in_steps(rest / np.exp(steady)[:, :, None])
    return Parts(steady, random, rest / np.exp(steady + random)[:, :, None], pauses)


def redrawn(parts: Parts, seed: int, *, by_chunks: bool) -> Parts:
    """Return other parts of the same seconds that are as likely.

    How slow those are that stay slow is known up to an error. What is slow in single steps is drawn
    where chunks without loads tell it from their data; else it is the rest.
    """
    if not by_chunks:
        more = _redrawn_level(parts, parts.random, seed)
        return parts._replace(steady=parts.steady + more, random=parts.random - more)
    work = np.log(parts.data.sum(axis=2)) + parts.random
    more = _redrawn_level(parts, work - np.median(work, axis=1, keepdims=True), seed)
    chunks = parts.data * np.exp(parts.random - more)[:, :, None]
    random = slow_in_steps(chunks, seed)
    data = chunks / np.exp(random)[:, :, None]
    return Parts(parts.steady + more, random, data, parts.pauses)


def _redrawn_level(parts: Parts, apart: np.ndarray, seed: int) -> np.ndarray:
    """Return what another draw of the levels has more, `[S, W]`."""
    rng = np.random.default_rng([seed, 1])
    return levels_drawn(parts.steady, apart, rng) - parts.steady


def _parts_by_load(parts: Microbatches) -> Parts:
    """Model chunks of known lengths: a worker is slow by what its step takes more than its lengths.

    What single chunks take more stays with them: over a worker's step it adds up to nothing.
    """
    expected = predicted_seconds(parts, slice(None))
    assert expected is not None
    for_unit = parts.seconds / expected
    if parts.forward is None:
        pauses = expected * _pauses(for_unit)
    else:
        pauses = _pauses_of_passes(parts.seconds, parts.forward)
    rest = parts.seconds - pauses
    pace = rest.sum(axis=2) / expected.sum(axis=2)
    steady = levels(scores_of(rest / expected), pace)
    random = np.log(pace) - steady
    random -= random.mean(axis=1, keepdims=True)
    return Parts(steady, random, rest / np.exp(steady + random)[:, :, None], pauses)


def parts_of_steps(times: np.ndarray, chunks: int, expected: np.ndarray | None = None) -> Parts:
    """Model whole steps without chunks, `[S, W]`: what is not steady is of workers, at random.

    But for what a worker's load makes be `expected`, in seconds, `[S, W]`: that is of the data.
    """
    if expected is not None:
        of_workers = parts_of_steps(times / expected, chunks)
        return of_workers._replace(data=of_workers.data * expected[:, :, None])
    steady = levels(ranks_of(times), times)
    usual = np.exp(np.log(times) - steady).mean(axis=1, keepdims=True)
    data = np.repeat(np.broadcast_to(usual, times.shape)[:, :, None], chunks, axis=2) / chunks
    return Parts(steady, np.log(times / usual) - steady, data, np.zeros_like(data))


def as_data(parts: Parts) -> Parts:
    """Return other parts of the same seconds: workers slow at random have long chunks instead.

    Lengths within a worker's step are drawn: as uneven as independent ones are whose sums differ so
    much.
    """
    uneven = math.sqrt(parts.data.shape[2]) * parts.random.std()
    drawn = np.exp(uneven * np.random.default_rng(0).standard_normal(parts.data.shape))
    data = np.exp(parts.random)[:, :, None] * parts.data * drawn / drawn.mean(axis=2, keepdims=True)
    return parts._replace(random=np.zeros_like(parts.random), data=data)


def as_one_chunk(parts: Parts) -> Parts:
    """Return other parts of the same seconds: one chunk takes what is above the median worker."""
    pace = np.exp(parts.random)
    usual = np.minimum(pace, np.median(pace, axis=1, keepdims=True))
    data = usual[:, :, None] * parts.data
    data[:, :, data.shape[2] // 2] += (pace - usual) * parts.data.sum(axis=2)
    return parts._replace(random=np.zeros_like(parts.random), data=data)


def _pauses(seconds: np.ndarray) -> np.ndarray:
    """Return seconds above the worker's usual of chunks so long that most such have paused.

    ln of lengths is taken to have quantiles a z^k, z those of the normal distribution and k ≥ 1 for
    tails that are heavier. So a body that many long chunks have made wide is not taken for pauses.
    """
    usual = np.median(seconds, axis=2, keepdims=True)
    if seconds.shape[2] == 2:
        # The mean of two would have the pause in it.
        usual = seconds.min(axis=2, keepdims=True)
    excess = np.log(seconds / usual)
    low, high = np.quantile(excess, _BODY)
    normal = NormalDist().inv_cdf
    inner, outer = map(normal, _BODY)
    power = 1.0
    # Of rounded times most may be equal: such a body has no heavy tail.
    if low > 0:
        power = max(math.log(high / low) / math.log(outer / inner), 1.0)

    def explained(share: float) -> float:
        return float(high * (normal(1 - share) / outer) ** power)

    threshold = explained(_CHANCE / excess.size)
    if excess.size * _MOST_PAUSES > _FEWEST:
        shares = np.geomspace(_MOST_PAUSES, _FEWEST / excess.size, 40)
        seen = np.quantile(excess, 1 - shares)
        for end, share in zip(seen, shares, strict=True):
            if end >= explained(share / 2):
                threshold = min(threshold, float(end))
    return np.where(excess > max(_LEAST_PAUSE, threshold), seconds - usual, 0.0)


def _pauses_of_passes(seconds: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Return seconds of one pass that the other does not explain: long chunks are long in both."""
    backward = seconds - forward
    ratio = np.log(forward / backward)
    # The length by the pass that did not pause.
    length = np.minimum(forward * np.exp(-np.median(ratio)), backward)
    order = np.argsort(length, axis=None, kind="stable")
    usual = np.empty(ratio.size)
    deviation = np.empty(ratio.size)
    for some in np.array_split(order, max(1, ratio.size // _BIN)):
        own = ratio.ravel()[some]
        usual[some] = np.median(own)
        deviation[some] = max(1.4826 * np.median(np.abs(own - usual[some])), _LEAST_DEVIATION)
    usual = usual.reshape(ratio.shape)
    deviation = deviation.reshape(ratio.shape)
    shift = ratio - usual
    expected = np.exp(usual)
    excess = np.where(shift > 0, forward - expected * backward, backward - forward / expected)
    large = excess > np.median(seconds, axis=2, keepdims=True) / 2
    odd = np.abs(shift) > np.maximum(_LEAST_SHIFT, _DEVIATIONS * deviation)
    return np.where(odd & large, excess, 0.0)
