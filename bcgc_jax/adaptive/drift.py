"""Whether the last iterations are like those before: ranks, so that no law has to be known."""

import math

import numpy as np

# Iterations that are compared with those before them, and the fewest of these.
RECENT, BEFORE = 12, 12


def has_drifted(times: np.ndarray, false_alarms: float) -> bool:
    r"""Whether a worker, or all of them together, became faster or slower in the last `RECENT` iterations.

    Mann & Whitney's test of each worker's times and of the iterations' mean logarithms, `times` `[R, N]`,
    each at a level of `false_alarms` / (N + 1): of iterations that are independent and alike at most that
    share is taken for a drift. Where iterations are tied to each other there are more.

    >>> rng = np.random.default_rng(0)
    >>> steady = rng.exponential(1.0, (40, 4))
    >>> has_drifted(steady, 1e-3), has_drifted(np.r_[steady, 9 * steady[:12]], 1e-3)
    (False, True)
    """
    if len(times) < BEFORE + RECENT:
        return False
    series = np.column_stack([times, np.mean(np.log(times), axis=1)])
    old, size = len(series) - RECENT, len(series)
    ordered = np.sort(series, axis=0)
    farthest = 0.0
    for one, all_ in zip(series.T, ordered.T, strict=True):
        # The sum of the last ones' mean ranks, from 0, and what it is by chance; equal times are ties.
        first, last = (np.searchsorted(all_, one, side=side) for side in ("left", "right"))
        ties = float(np.sum((last - first) ** 2 - 1)) / (size * (size - 1))
        variance = RECENT * old / 12 * (size + 1 - ties)
        found = float(np.sum((first + last - 1)[old:])) / 2
        if variance > 1e-9:
            farthest = max(farthest, abs(found - RECENT * (size - 1) / 2) / math.sqrt(variance))
    return math.erfc(farthest / math.sqrt(2)) < false_alarms / series.shape[1]
