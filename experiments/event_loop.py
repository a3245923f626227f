"""Simulate one step event by event, with the rules that assign chunks to workers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.ledger import Ledger


class StepEnd(NamedTuple):
    """How a step has ended.

    Attributes:
      time: when its last chunk has ended, seconds.
      busy: until when each worker computes, or does not begin, `[N]`.
      who: has computed each chunk, in the order of `Ledger.holders`, `[M]`.
    """

    time: float
    busy: np.ndarray
    who: np.ndarray


def driven(
    ledger: Ledger,
    seconds: np.ndarray,
    starts: Sequence[float] | np.ndarray | None = None,
    pauses: np.ndarray | None = None,
    asking: Asking | None = None,
) -> StepEnd:
    """Play all workers, and the coordinator, of a step that nobody has begun.

    A worker asks at its start, and again when it has ended a chunk. The coordinator
    hears one question at a time, and knows then of all chunks that have ended by now.
    `lockstep` computes many such steps at once.

    Args:
      ledger: of the step.
      seconds: of each chunk with each worker, `[N, M]`, in the order of
        `Ledger.holders`.
      starts: when each worker begins, `[N]`; None: all at 0.
      pauses: seconds by which the first chunk of each worker takes longer, its second,
        …, `[N, K]`.
      asking: what a question costs; nothing by default.

    Raises ValueError where nobody is left who could compute a chunk.

    >>> from bcgc_jax.balancing.placement import Storage
    >>> ledger = Ledger(Storage((((0, 1),) * 2, ((1, 0),) * 2)), [[4, 4], [4, 4]])
    >>> driven(ledger, np.array([[1.0] * 4, [3.0] * 4]))
    StepEnd(time=3.0, busy=array([3., 3.]), who=array([0, 0, 1, 0]))
    """
    asking = asking or Asking()
    workers = len(seconds)
    number = {chunk: k for k, chunk in enumerate(ledger.holders)}
    asks = np.zeros(workers) if starts is None else np.array(starts, float)
    to_come = [
        [] if pauses is None else list(pauses[worker]) for worker in range(workers)
    ]
    who = np.zeros(len(number), int)
    resting: set[int] = set()
    now = hears = end = 0.0  # the coordinator hears no question before `hears`
    while not ledger.complete:
        now = max(float(asks.min()), hears)
        if now == math.inf:
            raise ValueError(
                "nobody is left who stores the chunks that are missing, and asks"
            )
        for worker in np.flatnonzero(asks <= now).tolist():
            if worker in ledger.running:
                handout = ledger.running[worker]
                ledger.done(worker, handout.ticket, now)
                who[number[handout.chunk]] = worker
                end = max(end, float(asks[worker]))
        if ledger.complete:
            break
        while hears <= now and asks.min() <= now:
            heard = int(asks.argmin())
            asks[heard] = np.inf
            resting.add(heard)
            hears = now + asking.service
        for worker, _, chunk, _ in ledger.hand_out(resting, now):
            resting.remove(worker)
            pause = to_come[worker].pop(0) if to_come[worker] else 0.0
            asks[worker] = now + asking.alone + seconds[worker, number[chunk]] + pause
    busy = np.where(np.isfinite(asks), asks, end)
    return StepEnd(end, np.maximum(busy, end), who)
