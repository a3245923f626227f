r"""Workers that are slow in single steps: B of y = e^{B[t,w]} G[t,w,c], drawn given the chunks.

The loss of a step is a maximum over workers: what B adds to it depends on how B is distributed.
Best guesses of B vary too little for that, for they are drawn towards 0; what chunks say of B
varies too much, for it has chance in it. So B is drawn from its distribution given the chunks
(multiple imputation: Rubin 1987). Then B and the data that are left vary, and depend on each other,
as the true ones do.

Measured on 204 synthetic logs of 17 kinds, 20 and 60 steps, on seeds that chose no constant: the
mean error of this cause's share of the loss, and the root of its mean square.

    workers, chunks              8, 2    8, 4    8, 8   100, 2   100, 4   100, 8
    B drawn                     -0.09   -0.07   -0.03     0.02     0.01     0.01
                                 0.18    0.13    0.05     0.06     0.06     0.03
    best guesses, as before     -0.09   -0.05   -0.01     0.06     0.07     0.05
                                 0.18    0.13    0.10     0.23     0.11     0.07

With few workers and steps a small B is not told from chance, and none is claimed.
"""

import math

import numpy as np

from bcgc_jax.measured.slow_workers import ranks_of

# A worker is slow in a step if its chunks are above the others' by so many deviations of chance.
_CLEARLY_SLOW = 3.6
# Workers are unlike if they differ by so many standard errors more than by chance.
_UNLIKE = 3.0
# Variances that are tried, each twice the last: octaves below that of chance.
_OCTAVES_BELOW = 4
# Squares are taken for one that differ by less than this part of an octave.
_PER_OCTAVE = 16
_ROUNDS = 60
_DEALS = 4
# By chance so many are further out than all that are dealt in one of 5^5 = 3,125 logs.
_FURTHER_OUT = 5


def scores_of(seconds: np.ndarray) -> np.ndarray:
    """The mean rank of a worker's chunks among all of the step, in standard errors, `[S, W]`."""
    steps, workers, chunks = seconds.shape
    ranks = ranks_of(seconds.reshape(steps, workers * chunks)).reshape(seconds.shape)
    return math.sqrt(chunks) * ranks.mean(axis=2)


def slow_in_steps(seconds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw B, `[S, W]`, from chunks without pauses and without what is steady, `[S, W, C]`.

    Where workers are no more unlike than by chance, only those were slow whose chunks say so by
    their ranks.
    """
    times = np.log(seconds)
    seen = _middle(times)
    rng = np.random.default_rng(seed)
    chance = _by_chance(times, rng)
    scores = scores_of(seconds)
    if _unlike_ranks(scores, seconds.shape[2]) or _further_out(seen, chance):
        return _drawn(seen, chance, rng)
    return np.where(np.abs(scores) > _CLEARLY_SLOW, seen, 0.0)


def _middle(times: np.ndarray) -> np.ndarray:
    """Average the middle half of each worker's chunks, less the mean of all workers, `[S, W]`."""
    chunks = times.shape[2]
    cut = chunks // 4
    middle = np.sort(times, axis=2)[:, :, cut : chunks - cut].mean(axis=2)
    return middle - middle.mean(axis=1, keepdims=True)


def _by_chance(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal chunks anew: what `_middle` would be if workers were alike, `[several S, W]`.

    Of the variance of single chunks a part is lost with the mean of their worker, and another one
    where a worker is dealt two of one worker.
    """
    workers, chunks = times.shape[1:]
    alone = times - times.mean(axis=2, keepdims=True)
    dealt = [_middle(rng.permuted(alone, axis=1)) for _ in range(_DEALS)]
    lost = (1 - 1 / chunks) * (1 - 1 / workers)
    return np.concatenate(dealt) / math.sqrt(lost)


def _unlike_ranks(scores: np.ndarray, chunks: int) -> bool:
    """Say whether scores vary more than the mean of a few ranks does by chance."""
    steps, workers = scores.shape
    by_chance = (workers - 1) / workers * (1 + 1 / (workers * chunks))
    error = math.sqrt((2 - 1.2 / chunks) / (steps * (workers - 1)))
    return bool(np.mean(scores**2) > by_chance * (1 + _UNLIKE * error))


def _further_out(seen: np.ndarray, chance: np.ndarray) -> bool:
    """Say whether several workers' steps are further out than all by chance."""
    return bool(np.sum(np.abs(seen) > np.abs(chance).max()) >= _FURTHER_OUT)


def _drawn(seen: np.ndarray, chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw B given B + chance.

    Each is normal of a variance that varies; how often it has which one is the most likely by all
    workers' steps (Stephens, Biostatistics 2017).
    """
    unit = max(float(np.mean(chance**2)), 1e-6 * float(np.mean(seen**2)), 1e-300)
    of_chance = _variances(chance, unit)
    squares, counts, _ = _grouped(chance, unit)
    shares = _shares(_densities(squares, of_chance), counts)

    of_workers = np.append(0.0, _variances(seen, unit))
    together = of_workers[:, None] + of_chance
    squares, counts, group = _grouped(seen, unit)
    likely = _densities(squares, together.ravel()).reshape(-1, *together.shape) * shares
    likely *= _shares(likely.sum(axis=2), counts)[:, None]

    summed = np.cumsum(likely.reshape(len(squares), -1), axis=1)
    ends = summed / summed[:, -1:] + np.arange(len(squares))[:, None]
    found = np.searchsorted(ends.ravel(), group + rng.random(seen.shape), side="right")
    which = np.minimum(found - group * together.size, together.size - 1)
    kept = (of_workers[:, None] / together).ravel()[which]
    left = kept * np.broadcast_to(of_chance, together.shape).ravel()[which]
    return kept * seen + np.sqrt(left) * rng.standard_normal(seen.shape)


def _variances(values: np.ndarray, unit: float) -> np.ndarray:
    above = math.log2(max(float(np.max(values**2)) / unit, 1))
    return unit * 2.0 ** np.arange(-_OCTAVES_BELOW, math.ceil(above) + 1)


def _grouped(values: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squares that are about equal once, how many they are, and the place of each value."""
    octave = np.round(_PER_OCTAVE * np.log2(1 + values**2 / unit))
    group, place, counts = np.unique(octave, return_inverse=True, return_counts=True)
    return unit * (2 ** (group / _PER_OCTAVE) - 1), counts, place.reshape(values.shape)


def _densities(squares: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Of normal values with these squares, but for a factor, `[len(squares), len(variances)]`."""
    return np.exp(-squares[:, None] / (2 * variances)) / np.sqrt(variances)


def _shares(densities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the most likely shares of the columns, by expectation and maximisation."""
    shares = np.full(densities.shape[1], 1 / densities.shape[1])
    for _ in range(_ROUNDS):
        likely = densities * shares
        shares = counts @ (likely / likely.sum(axis=1, keepdims=True)) / counts.sum()
    return shares
