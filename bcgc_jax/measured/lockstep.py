"""Work sharing in many steps at once, an event at a time in all; no program is compiled for it.

The rule is that of `plans.shared_step`. Where costs of chunks are predicted, r_b is a sum of costs,
and the greatest product of min r_b e_b and the chunk's cost decides: a long chunk is begun early,
unless its other holders have time for it.
"""

from typing import NamedTuple

import numpy as np

from bcgc_jax.plans.desk import Desk


class Chunks(NamedTuple):
    """What is handed out in S steps, M chunks in each to N workers.

    Attributes:
      paces: by which a worker multiplies a chunk's length, `[S, N]`.
      lengths: seconds at pace 1, `[S, M]`.
      pauses: seconds that a worker pauses in its first chunk, its second, …, `[S, N, K]`.
      costs: as predicted, `[S, M]`; None where nothing is known but the sizes.
    """

    paces: np.ndarray
    lengths: np.ndarray
    pauses: np.ndarray
    costs: np.ndarray | None = None


class _Clock:
    """When each worker of each step is free again, `[S, N]`, and how many chunks it has begun."""

    def __init__(self, chunks: Chunks, round_trip: float) -> None:
        steps, workers = chunks.paces.shape
        self.chunks = chunks
        self.round_trip = round_trip
        self.steps = np.arange(steps)
        self.until = np.zeros((steps, workers))
        self.begun = np.zeros((steps, workers), int)
        # After its last recorded chunk a worker pauses no more.
        self.pauses = np.append(chunks.pauses, np.zeros((steps, workers, 1)), axis=2)
        self.end = np.zeros(steps)

    def begin(self, worker: np.ndarray, chunk: np.ndarray, some: np.ndarray) -> None:
        """Let a worker in each step, `[S]`, begin a chunk if there are `some`, else rest."""
        at = self.steps, worker
        number = np.minimum(self.begun[at], self.pauses.shape[2] - 1)
        seconds = self.chunks.paces[at] * self.chunks.lengths[self.steps, chunk]
        until = self.until[at] + self.round_trip + seconds + self.pauses[self.steps, worker, number]
        self.end = np.where(some, np.maximum(self.end, until), self.end)
        self.until[at] = np.where(some, until, np.inf)
        self.begun[at] += 1


def in_turn(chunks: Chunks, order: np.ndarray, round_trip: float = 0.0) -> np.ndarray:
    """Return when all is done, `[S]`, if all store all and take chunks in this order, `[S, M]`.

    >>> chunks = Chunks(np.ones((1, 2)), np.array([[2.0, 3.0, 1.0]]), np.zeros((1, 2, 0)))
    >>> in_turn(chunks, np.array([[0, 2, 1]])).tolist()
    [4.0]
    """
    clock = _Clock(chunks, round_trip)
    some = np.ones(len(order), bool)
    for chunk in order.T:
        clock.begin(clock.until.argmin(axis=1), chunk, some)
    return clock.end


def handed_out(desk: Desk, chunks: Chunks, round_trip: float = 0.0) -> np.ndarray:
    """Return when all have ended their last chunks, `[S]`, handed out neediest first.

    Workers' paces are learnt from their chunks.

    >>> from bcgc_jax.plans.desk import desk_of
    >>> from bcgc_jax.plans.storage import spread
    >>> chunks = Chunks(np.array([[1.0, 3.0]]), np.ones((1, 4)), np.zeros((1, 2, 0)))
    >>> handed_out(desk_of(spread(2, 2, 2), (1, 1)), chunks).tolist()
    [3.0]
    """
    size, stored, holders = (np.asarray(part) for part in desk)
    count = len(size) - 1
    steps = np.arange(len(chunks.paces))
    known = chunks.costs is not None
    weight = np.tile(size.astype(float), (len(steps), 1))
    if chunks.costs is not None:
        weight[:, :count] = chunks.costs
    clock = _Clock(chunks, round_trip)
    workers = clock.until.shape[1]
    is_open = np.append(np.ones((len(steps), count), bool), np.zeros((len(steps), 1), bool), axis=1)
    left = weight[:, stored].sum(axis=2)
    # Nobody, who holds what is no chunk, never needs anything.
    need = np.full((len(steps), workers + 1), np.inf)
    last, running, began = (np.zeros((len(steps), workers)) for _ in range(3))
    others = _others(stored, holders, workers)
    for _ in range(count + workers):
        now = clock.until.min(axis=1, keepdims=True)
        worker = clock.until.argmin(axis=1)
        ended = (clock.until == now) & (running > 0)
        if ended.any():
            last = np.where(ended, (now - began) / np.where(running > 0, running, 1), last)
            running = np.where(ended, 0.0, running)
        need[:, :workers] = left * _expected(last, running, began, now)
        mine = stored[worker]
        can = is_open[steps[:, None], mine]
        first = need[steps[:, None, None], others[worker]].min(axis=2)
        own = weight[steps[:, None], mine]
        if known:
            key = np.where(can, first * own, -1.0)
        else:
            largest = np.max(own, axis=1, where=can, initial=0.0)
            key = np.where(can & (own == largest[:, None]), first, -1.0)
        place = key.argmax(axis=1)
        some = can.any(axis=1)
        chunk = np.where(some, mine[steps, place], count)
        is_open[steps, chunk] = False
        taken = weight[steps, chunk]
        at = holders[chunk]
        for k in range(at.shape[1]):
            real = at[:, k] < workers
            left[steps[real], at[real, k]] -= taken[real]
        running[steps, worker] = np.where(some, taken, 0.0)
        began[steps, worker] = now[:, 0]
        clock.begin(worker, np.minimum(chunk, count - 1), some)
    return clock.end


def _others(stored: np.ndarray, holders: np.ndarray, workers: int) -> np.ndarray:
    """Return the other holders of each worker's chunks, `[N, S, D]`; N for none."""
    found = holders[stored]
    return np.where(found == np.arange(workers)[:, None, None], workers, found)


def _expected(
    last: np.ndarray, running: np.ndarray, began: np.ndarray, now: np.ndarray
) -> np.ndarray:
    """e, seconds for a unit of size, `[S, N]`; 1 where nothing is known."""
    known = last > 0
    count = known.sum(axis=1, keepdims=True)
    mean = np.where(count > 0, last.sum(axis=1, keepdims=True) / np.maximum(count, 1), 1.0)
    expected = np.where(known, last, mean)
    so_far = np.where(running > 0, (now - began) / np.where(running > 0, running, 1), 0.0)
    return np.maximum(expected, so_far)
