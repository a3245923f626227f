"""One iteration of a schedule, worker by worker and task by task, in NumPy."""

from typing import Any

import numpy as np


def simulated(
    schedule: Any, times: Any, starts: Any, setup: float = 0.0, chain: float = 0.0, shares: Any = None
) -> tuple[float, float]:
    """τ and who sends how much, task by task for one draw; `[N]` each. Subsets are alike but for `shares`."""
    workers, sizes = len(times), np.asarray(schedule.sizes)
    work = np.ones(workers) if shares is None else workers * shares
    end = np.cumsum(sizes)
    first: dict[tuple[int, int], tuple[float, int]] = {}
    for w in range(workers):
        clock, opened = starts[w], set()
        carried: dict[int, float] = {}
        for delta, block in zip(*map(np.asarray, (schedule.completion.turn, schedule.block)), strict=True):
            subset = int((w + delta) % workers)
            cost = work[subset] * sizes[block] + (0 if delta in opened else setup)
            cost += chain * max(end[block] - carried.get(delta, 0), 0)
            opened.add(delta)
            carried[delta] = max(carried.get(delta, 0), end[block])
            clock += times[w] * cost
            task = (int(block), subset)
            first[task] = min(first.get(task, (np.inf, -1)), (clock, w))
    tau = max(first[block, j][0] for block in range(sizes.size) for j in range(workers))
    sent = np.zeros(workers)
    for block in range(sizes.size):
        for w in {first[block, j][1] for j in range(workers)}:
            sent[w] += sizes[block]
    return tau, sent.mean() / sizes.sum()
