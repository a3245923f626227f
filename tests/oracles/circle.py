"""An iteration of workers on neighbouring subsets around a circle, in NumPy."""

from typing import Any

import numpy as np


def simulated(
    plan: Any,
    times: Any,
    starts: Any,
    setup: float = 0.0,
    chain: float = 0.0,
    shares: Any = None,
) -> tuple[float, float]:
    """τ and what a worker sends on average, of one draw, `[N]` each.

    `shares` are the sizes of the subsets, alike by default.
    """
    workers = len(times)
    (size,) = np.asarray(plan.sizes)
    work = np.ones(workers) if shares is None else workers * shares
    first: dict[int, tuple[float, int]] = {}
    for w in range(workers):
        clock = starts[w]
        for turn in range(len(plan.block)):
            subset = (w + turn) % workers
            clock += times[w] * (work[subset] * size + setup + chain * size)
            first[subset] = min(first.get(subset, (np.inf, w)), (clock, w))
    senders = {w for _, w in first.values()}
    return max(clock for clock, _ in first.values()), len(senders) / workers
