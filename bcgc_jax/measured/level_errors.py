r"""Levels of workers that stay slow, without bias, and what each step adds to them.

`slow_workers.levels` compares a worker with the median worker of its step. If the
median worker is this worker itself, it looks as fast as the others. Therefore, of 6
workers that deviate by 45 %, a worker that takes 1.5 times as long seems to take 1.45
times as long. Here a worker is compared with each of the others, except those that stay
slow or fast. The logarithm of such a ratio is as often above the level as below it.

The error of a level depends on the steps. If a worker is slow at random in some steps,
its level is higher, and it adds more to the loss of the same steps. Therefore the steps
that are resampled for an interval have to say both. Each step adds its influence to the
level (Hampel, J. Amer. Stat. Assoc. 1974).
"""

import itertools
from typing import NamedTuple

import numpy as np

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
