r"""Workers that were slow for a while, from ranks within a step, and how slow.

The ranks hardly move with others' pauses.

A worker that is as fast as the others has ranks around the middle. The ranks of a slow
one are high for as long as it is slow. Where that begins and ends is where two means of
ranks differ most (circular binary segmentation: Olshen, Venkatraman, Lucito, Wigler,
Biostatistics 2004).

Measured on synthetic logs of 200 steps and 8 or 32 workers, 200 of each kind, with
seeds from 500,000 on; the constants were chosen on seeds below 3,000. Each worker takes
5 times as long in 2 % of its steps. One is slow in steps 70 to 129. Found in so many of
200 logs, and the largest error of the ratio:

    deviation of the times      1.1 times as slow  1.2 times   1.5 times  nobody is slow
    5 %                         200, 3 %           200, 3 %    200, 3 %   0
    10 %                        148 to 171, 6 %    200, 5 %    200, 6 %   0 to 1
    20 %                        13                 146 to 159  200, 11 %  0 to 1
    30 %, gamma                 1 to 4             32 to 38    199        0 to 1
    10 %, correlated (ρ = 0.5)  65 to 75, 9 %      197, 12 %   200, 14 %  1 to 3

Where 15 % of all steps are up to 4 times as slow at random, a slow worker is claimed
falsely in 1 to 4 % of logs (6 to 300 workers, chunks known). One that is slow for a
fifth of a short log may then be missed: 2.5 times as slow, it was found in 42 of 60
logs of 40 steps and 6 workers.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Steps of the shortest stretch: a single pause is none.
_SHORTEST = 4
# So many lengths of a stretch are tried at once: more take minutes in long logs.
_LENGTHS_AT_ONCE = 1000
# In fewer steps stretches are not looked for.
FEWEST_STEPS = 2 * _SHORTEST
# A squared mean, in squares of its standard error, counts above 2 log(steps · workers)
# + this.
_ABOVE_CHANCE = 6.0
# Less of the variance of all workers' scores, or of the 1 that ranks by chance have, is
# not believed: in short logs it is chance.
_LEAST_VARIANCE = 0.5
# θ of the bound of chance below: so many deviations are tried, none more than 12 % from
# the best.
_TILTS = np.geomspace(0.02, 16, 30)
# A worker is slow in all of a few steps where that is chance in less than so many of
# logs.
_BY_CHANCE = 0.01
# These tell 0.8 % from that.
_PERMUTATIONS = 2000

# A worker, its first step, and the end.
Stretch = tuple[int, int, int]


def levels(scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return ln of a worker's time over others' while it stays slow, or fast; else 0,
    `[S, W]`.

    Args:
      scores: ranks within the step, or means of them, `[S, W]`.
      times: `[S, W]`, NaN where missing; one in each step is not.
    """
    apart = np.log(times / np.nanmedian(times, axis=1, keepdims=True))
    stretches = _unlike(scores)
    outside = _outside(stretches, times.shape)
    if not outside.any(axis=1).all():
        # As of two workers, one slow and one fast: the fast one is the usual one.
        stretches = [stretch for stretch in stretches if _mean_in(stretch, scores) > 0]
        outside = _outside(stretches, times.shape)
    kept = np.zeros(times.shape)
    for worker, first, stop in stretches:
        usual = _trimmed_mean(apart[first:stop][outside[first:stop]])
        kept[first:stop, worker] = _trimmed_mean(apart[first:stop, worker]) - usual
    return kept


def levels_drawn(
    steady: np.ndarray, scores: np.ndarray, apart: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw levels, `[S, W]`, that are as likely: each stretch has the standard error of
    its mean.

    A worker without a stretch may stay slow, or fast, by too little to be found: it
    does with the probability that its ranks give it.

    Args:
      steady: as `levels` returns them.
      scores: as there, of times without these levels.
      apart: ln of a worker's time over others', but for its level, `[S, W]`.
      rng: of the draw.
    """
    drawn = steady.copy()
    for worker in np.flatnonzero(steady.any(axis=0)):
        level = steady[:, worker]
        ends = np.flatnonzero(np.diff(level)) + 1
        for stretch in np.split(np.arange(len(level)), ends):
            if level[stretch[0]] != 0:
                drawn[stretch, worker] += (
                    _error(apart[stretch, worker]) * rng.standard_normal()
                )
    free = np.all(steady == 0, axis=0)
    if len(scores) < FEWEST_STEPS or not free.any():
        return drawn
    usual = _trimmed_mean(apart[:, free].ravel())
    stays = free & (rng.random(len(free)) < _chances_to_stay(scores, free))
    for worker in np.flatnonzero(stays):
        chance = _error(apart[:, worker]) * rng.standard_normal()
        drawn[:, worker] = _trimmed_mean(apart[:, worker]) - usual + chance
    return drawn


def _error(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _chances_to_stay(scores: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return P(worker stays slow or fast | scores) = 1 / (1 + W √S e^{-z²/2}), `[W]`.

    z is its mean score in standard errors, so this is the Bayesian information
    criterion, with a chance of one in W beforehand.
    """
    steps, workers = scores.shape
    deviation, dependence = _noise(scores)
    z = scores.mean(axis=0) * math.sqrt(steps / dependence) / deviation
    if free.sum() > 2:
        # Ranks of the others are pulled by those that are found.
        z = z - np.median(z[free])
    return 1 / (1 + workers * math.sqrt(steps) * np.exp(-(z**2) / 2))


def slow_in_all_steps(scores: np.ndarray, times: np.ndarray) -> dict[int, float]:
    """Return workers that are slow in all of a few steps, and how many times as slow as
    others.

    Their ranks add up to more than workers' do in 99 % of permutations within each
    step. Nobody is found where even the least of these chances, W^(1-S), is above 1 %.

    Args:
      scores: ranks within the step, or means of them, `[S, W]`.
      times: `[S, W]`.
    """
    steps, workers = scores.shape
    if _BY_CHANCE * workers ** (steps - 1) < 1:
        return {}
    sums = scores.sum(axis=0)
    # In this order the permutations do not depend on the workers' names.
    ordered = np.broadcast_to(
        scores[:, np.argsort(sums)], (_PERMUTATIONS, steps, workers)
    )
    permuted = np.random.default_rng(0).permuted(ordered, axis=2).sum(axis=1)
    largest = np.abs(permuted).max(axis=1)
    odd = np.abs(sums) > np.quantile(largest, 1 - _BY_CHANCE, method="higher")
    if odd.all():
        odd &= sums > 0
    apart = np.log(times / np.median(times, axis=1, keepdims=True))
    usual = _trimmed_mean(apart[:, ~odd].ravel())
    slow = np.flatnonzero(odd & (sums > 0))
    return {int(w): math.exp(_trimmed_mean(apart[:, w]) - usual) for w in slow}


def _outside(stretches: list[Stretch], shape: tuple[int, ...]) -> np.ndarray:
    outside = np.ones(shape, bool)
    for worker, first, stop in stretches:
        outside[first:stop, worker] = False
    return outside


def _mean_in(stretch: Stretch, scores: np.ndarray) -> float:
    worker, first, stop = stretch
    return float(scores[first:stop, worker].mean())


def _trimmed_mean(values: np.ndarray) -> float:
    """Average known values without the lowest and highest fifth; 0 if none is known."""
    ordered = np.sort(values[np.isfinite(values)])
    cut = len(ordered) // 5
    if ordered.size:
        return float(ordered[cut : len(ordered) - cut].mean())
    return 0.0


def _unlike(scores: np.ndarray) -> list[Stretch]:
    """Return stretches with scores that are no chance."""
    if len(scores) < FEWEST_STEPS:
        return []
    deviation, dependence = _noise(scores)
    normal = scores / (deviation * math.sqrt(dependence))
    threshold = 2 * math.log(scores.size) + _ABOVE_CHANCE
    unlike = []
    for worker, worker_scores in enumerate(normal.T):
        for first, stop in _level_stretches(worker_scores, threshold):
            if worker_scores[first:stop].mean() ** 2 * (stop - first) > threshold:
                unlike.append((worker, first, stop))
    return _no_chance(scores / np.minimum(deviation, 1), unlike, threshold * dependence)


def _no_chance(
    scores: np.ndarray, stretches: list[Stretch], threshold: float
) -> list[Stretch]:
    """Keep stretches that are no chance where few scores, but very high ones, make the
    means.

    The mean of n independent scores is m or more with a chance of at most e^{-n sup_θ
    (θ m - K(θ))} where K(θ) = ln E e^{θ score} (Chernoff). For normal scores the
    exponent is -n m² / 2. E is the mean over all scores outside the stretches.
    """
    usual_scores = scores[_outside(stretches, scores.shape)]
    if not stretches or not usual_scores.size:
        return stretches
    slow = _cumulants(usual_scores)
    fast = _cumulants(-usual_scores)
    kept = []
    for stretch in stretches:
        _, first, stop = stretch
        mean = _mean_in(stretch, scores)
        cumulants = fast
        if mean > 0:
            cumulants = slow
        exponents = _TILTS * abs(mean) - cumulants
        if 2 * exponents.max() * (stop - first) > threshold:
            kept.append(stretch)
    return kept


def _cumulants(scores: np.ndarray) -> np.ndarray:
    """Return ln of the mean of e^{θ score} for each θ of `_TILTS`."""
    largest = scores.max()
    return np.array(
        [t * largest + np.log(np.exp(t * (scores - largest)).mean()) for t in _TILTS]
    )


def ranks_of(times: np.ndarray) -> np.ndarray:
    """Rank each time within its step, ties at their mean, with mean 0 and variance 1.

    A missing time has 0.
    """
    ranks = np.zeros(times.shape)
    for step, row in enumerate(times):
        measured = np.isfinite(row)
        values = row[measured]
        ordered = np.sort(values)
        rank_sums = np.searchsorted(ordered, values, "left") + np.searchsorted(
            ordered, values, "right"
        )
        ranks[step, measured] = math.sqrt(12) * (
            rank_sums / 2 / max(values.size, 1) - 0.5
        )
    return ranks


def scores_of(seconds: np.ndarray) -> np.ndarray:
    """The mean rank of a worker's chunks in the step, in standard errors, `[S, W]`."""
    steps, workers, chunks = seconds.shape
    ranks = ranks_of(seconds.reshape(steps, workers * chunks)).reshape(seconds.shape)
    return math.sqrt(chunks) * ranks.mean(axis=2)


def _noise(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """The deviation of each worker's scores, and as how many steps one counts that
    depend.

    From differences of neighbours, to which the ends of a stretch add little. Those of
    the next but one tell how far a step depends on the last one: they are 1 + ρ times
    as large for an autocorrelation of ρ.
    """
    near, far = (
        np.mean((scores[lag:] - scores[:-lag]) ** 2, axis=0) / 2 for lag in (1, 2)
    )
    kept = float(np.clip(far.sum() / max(near.sum(), 1e-300) - 1, 0, 0.9))
    least = _LEAST_VARIANCE * max(1.0, near.mean())
    return np.sqrt(np.maximum(near, least) / (1 - kept)), (1 + kept) / (1 - kept)


def _level_stretches(scores: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Cut steps into stretches, first and end, each without a part that differs."""
    size = len(scores)
    # Lengths in ratios of 1.2, then those around the best.
    rough = np.unique(
        np.geomspace(_SHORTEST, size, 1 + int(5.5 * math.log(size))).astype(int)
    )
    gain, first, stop = _most_unlike(scores, rough)
    if gain <= threshold:
        return [(0, size)]
    first, stop = _refined(scores, first, stop)
    stretches = []
    for begin, end in ((0, first), (first, stop), (stop, size)):
        if begin < end:
            inner = _level_stretches(scores[begin:end], threshold)
            stretches += [(begin + first, begin + stop) for first, stop in inner]
    return stretches


def _refined(scores: np.ndarray, first: int, stop: int) -> tuple[int, int]:
    """Return the stretch that differs most of those that are about as long.

    Of many lengths every few are tried first, and then those around the best.
    """
    shortest, longest = int((stop - first) / 1.2), int((stop - first) * 1.2) + 1
    apart = len(scores)
    while apart > 1:
        count = longest + 1 - shortest
        apart = min(math.ceil(count / _LENGTHS_AT_ONCE), apart - 1)
        lengths = range(shortest, longest + 1, apart)
        _, first, stop = _most_unlike(scores, lengths)
        shortest = max(shortest, stop - first - apart)
        longest = min(longest, stop - first + apart)
    return first, stop


def _most_unlike(scores: np.ndarray, lengths: Iterable[int]) -> tuple[float, int, int]:
    """Return the stretch that differs most from the rest: squared z, first and end."""
    size = len(scores)
    sums = np.append(0.0, np.cumsum(scores - scores.mean()))
    best = 0.0, 0, size
    for length in lengths:
        remainder = size - length
        if min(length, remainder) >= _SHORTEST:
            gains = (sums[length:] - sums[:-length]) ** 2 * size / (length * remainder)
            first = int(gains.argmax())
            best = max(best, (float(gains[first]), first, first + int(length)))
    return best


# At each end, one of so many ratios is cut, as in `slow_workers`.
_CUT = 5


class Level(NamedTuple):
    """ln of a worker's time over the others' from step `first` to before `stop`.

    Attributes:
      worker: number of the worker that stays slow, or fast.
      first: its first step.
      stop: the step after its last one.
      value: the level.
      influence: what each of these n steps adds to the value, times S / n, `[n]`, with
        mean 0. From log to log, the value varies as the mean over S steps does.
    """

    worker: int
    first: int
    stop: int
    value: float
    influence: np.ndarray


def levels_with_errors(
    steady: np.ndarray, stays: np.ndarray, times: np.ndarray
) -> list[Level]:
    """Return the level of each stretch, and of each worker that stays slow in a draw.

    Args:
      steady: not 0 in the stretches, `[S, W]`.
      stays: whether a worker without a stretch may stay slow, or fast, `[W]`.
      times: seconds, `[S, W]`.
    """
    usual = steady == 0
    logs = np.log(times)
    levels = []
    for worker in np.flatnonzero(stays | ~usual.all(axis=0)).tolist():
        changes = 1 + np.flatnonzero(np.diff(steady[:, worker]))
        for first, stop in itertools.pairwise([0, *changes.tolist(), len(times)]):
            other_workers = usual[first:stop].copy()
            other_workers[:, worker] = False
            has_level = stays[worker] or steady[first, worker] != 0
            if has_level and other_workers.any():
                value, influence = _level(logs[first:stop], worker, other_workers)
                scaled = influence * len(times) / (stop - first)
                levels.append(Level(worker, first, stop, value, scaled))
    return levels


def _level(
    logs: np.ndarray, worker: int, other_workers: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the trimmed mean of ratios to the others, and each step's influence.

    A ratio that is cut counts as the nearest one that is kept.
    """
    apart = (logs[:, [worker]] - logs)[other_workers]
    ordered = np.sort(apart)
    cut = len(ordered) // _CUT
    kept = ordered[cut : len(ordered) - cut]
    counted = np.zeros(logs.shape)
    counted[other_workers] = np.clip(apart, kept[0], kept[-1])
    counted[other_workers] -= counted[other_workers].mean()
    return float(kept.mean()), counted.sum(axis=1) * len(logs) / len(kept)
