"""Work sharing in many steps at once, an event at a time in all; no program is compiled for it.

The rule is that of `plans.shared_step`. Where costs of chunks are predicted, r_b is a sum of costs,
and the greatest product of min r_b e_b and the chunk's cost decides: a long chunk is begun early,
unless its other holders have time for it.
"""

from typing import NamedTuple

import numpy as np

from bcgc_jax.plans.chunk_tables import ChunkTables

# In place of the weight of a chunk that somebody has begun.
_BEGUN = -1


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


def handed_out(tables: ChunkTables, chunks: Chunks, round_trip: float = 0.0) -> np.ndarray:
    """Return when all have ended their last chunks, `[S]`, handed out neediest first.

    Workers' paces are learnt from their chunks.

    >>> from bcgc_jax.plans.chunk_tables import chunk_tables
    >>> from bcgc_jax.plans.storage import spread
    >>> chunks = Chunks(np.array([[1.0, 3.0]]), np.ones((1, 4)), np.zeros((1, 2, 0)))
    >>> handed_out(chunk_tables(spread(2, 2, 2), (1, 1)), chunks).tolist()
    [3.0]
    """
    size, stored, holders = (np.asarray(part, np.intp) for part in tables)
    steps, workers = chunks.paces.shape
    count = len(size) - 1
    # Of a byte: those that are not begun stay in a processor's cache.
    weight: np.ndarray = np.broadcast_to(size.astype(np.int8), (steps, count + 1))
    if chunks.costs is not None:
        weight = np.pad(chunks.costs, [(0, 0), (0, 1)])
    others = _others(stored, holders, workers)
    clock = _Clock(chunks, round_trip)
    every = clock.steps
    # Of what nobody has begun the weight, and less than nothing of the rest.
    fresh = np.where(np.arange(count + 1) < count, weight, weight.dtype.type(_BEGUN))
    # Nobody, who holds what is no chunk, comes last.
    left = np.append(weight[:, stored].sum(axis=2, dtype=float), np.zeros((steps, 1)), axis=1)
    need = np.full((steps, workers + 1), np.inf)
    learnt = _Learnt(steps, workers)
    for _ in range(count + workers):
        worker = clock.until.argmin(axis=1)
        expected = learnt.expected(clock.until, clock.until[every, worker])
        np.multiply(left[:, :workers], expected, out=need[:, :workers])
        mine = stored[worker]
        own = _entries(fresh, mine)
        first = np.min([_entries(need, some[worker]) for some in others], axis=0)
        if chunks.costs is None:
            key = np.where(own == own.max(axis=1, keepdims=True), first, -1.0)
        else:
            key = np.where(own > _BEGUN, first * own, -1.0)
        place = key.argmax(axis=1)
        some = own[every, place] > _BEGUN
        chunk = np.where(some, mine[every, place], count)
        taken = weight[every, chunk]
        fresh[every, chunk] = _BEGUN
        for holder in holders[chunk].T:
            left[every, holder] -= taken
        learnt.begin(worker, taken, some, clock.until[every, worker])
        clock.begin(worker, np.minimum(chunk, count - 1), some)
    return clock.end


class _Learnt:
    """What each worker took for a unit of size, `[S, N]`, in its last chunk and in this one."""

    def __init__(self, steps: int, workers: int) -> None:
        self.steps = np.arange(steps)
        self.last = np.zeros((steps, workers))
        self.unknown = np.ones((steps, workers))
        self.ones = np.ones(workers)
        self.running = np.ones((steps, workers))
        self.began = np.full((steps, workers), np.inf)

    def begin(
        self, worker: np.ndarray, size: np.ndarray, some: np.ndarray, now: np.ndarray
    ) -> None:
        """Let a worker in each step, `[S]`, begin a chunk of this size if there are `some`."""
        at = self.steps, worker
        self.running[at] = np.where(some, size, 1)
        self.began[at] = np.where(some, now, np.inf)

    def expected(self, until: np.ndarray, now: np.ndarray) -> np.ndarray:
        """e, `[S, N]`, once chunks that last `until` now have ended; 1 where nothing is known."""
        so_far = now[:, None] - self.began
        so_far /= self.running
        ended = until == now[:, None]
        ended &= so_far > 0
        np.copyto(self.last, so_far, where=ended)
        np.copyto(self.unknown, 0.0, where=ended)
        # Products are sums in a fifth of the time.
        count = len(self.ones) - self.unknown @ self.ones
        mean = np.where(count > 0, self.last @ self.ones / np.maximum(count, 1), 1.0)
        # Of a chunk that has ended, so far is its whole pace.
        return np.maximum(self.last + self.unknown * mean[:, None], so_far)


def _entries(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return of each row of a table, `[S, M]`, the entries at its `columns`, `[S, K]`."""
    first = np.arange(0, table.size, table.shape[1])
    return table.ravel().take(first[:, None] + columns)


def _others(stored: np.ndarray, holders: np.ndarray, workers: int) -> list[np.ndarray]:
    """Return of each worker's chunks the first other holders, `[N, S]`, second, …; N for none."""
    found = holders[stored]
    found = np.where(found == np.arange(workers)[:, None, None], workers, found)
    found = np.sort(found, axis=2)[:, :, : max(found.shape[2] - 1, 1)]
    return list(np.moveaxis(found, 2, 0))
