"""Work sharing in many steps at once, an event at a time in all; no program is compiled
for it.

The rule is that of `Ledger` and `Paces`, to the last bit: what `serve` hands out is
what is replayed here (tests/balancing/dispatch/test_promise.py).
"""

from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.placement import ChunkTables

# In place of the weight of a chunk that somebody has begun.
_BEGUN = -1
# So many chunks are replayed at once, because their tables then stay in a cache.
_AT_ONCE = 2**18


class Chunks(NamedTuple):
    """What is handed out in S steps, M chunks in each to N workers.

    Attributes:
      paces: by which a worker multiplies a chunk's length, `[S, N]`.
      lengths: seconds at pace 1, `[S, M]`.
      pauses: seconds that a worker pauses in its first chunk, its second, …,
        `[S, N, K]`.
      ticks: predicted lengths, `[S, M]`, whole; None where nothing is known but the
        sizes.
      starts: when a worker begins, `[S, N]`; None: all at 0.
    """

    paces: np.ndarray
    lengths: np.ndarray
    pauses: np.ndarray
    ticks: np.ndarray | None = None
    starts: np.ndarray | None = None

    def take(self, which: slice) -> "Chunks":
        """Return some of the steps."""
        parts: Any = (None if part is None else part[which] for part in self)
        return Chunks(*parts)


class _Clock:
    """When each worker asks again, `[S, N]`, and how many chunks it has begun."""

    def __init__(self, chunks: Chunks, asking: Asking) -> None:
        steps, workers = chunks.paces.shape
        self.chunks = chunks
        self.asking = asking
        self.steps = np.arange(steps)
        self.until = np.zeros((steps, workers))
        if chunks.starts is not None:
            self.until += chunks.starts
        self.begun = np.zeros((steps, workers), int)
        # After its last recorded chunk a worker pauses no more.
        self.pauses = np.append(chunks.pauses, np.zeros((steps, workers, 1)), axis=2)
        # From then on the coordinator hears the next question.
        self.free = np.zeros(steps)
        self.end = np.zeros(steps)

    def hear(self, worker: np.ndarray) -> np.ndarray:
        """Return when the coordinator hears what a worker in each step asks, `[S]`."""
        heard = np.maximum(self.until[self.steps, worker], self.free)
        self.free = heard + self.asking.service
        return heard

    def begin(
        self,
        worker: np.ndarray,
        chunk: np.ndarray,
        begins: np.ndarray,
        heard: np.ndarray,
    ) -> None:
        """A worker in each step, `[S]`, begins a chunk where it `begins`, or rests."""
        place = self.steps, worker
        number = np.minimum(self.begun[place], self.pauses.shape[2] - 1)
        seconds = self.chunks.paces[place] * self.chunks.lengths[self.steps, chunk]
        until = (
            heard
            + self.asking.alone
            + seconds
            + self.pauses[self.steps, worker, number]
        )
        self.end = np.where(begins, np.maximum(self.end, until), self.end)
        self.until[place] = np.where(begins, until, np.inf)
        self.begun[place] += 1


def in_turn(chunks: Chunks, order: np.ndarray, round_trip: float = 0.0) -> np.ndarray:
    """Return when all is done, `[S]`, if all store all and take chunks in this order,
    `[S, M]`.

    >>> chunks = Chunks(
    ...     np.ones((1, 2)), np.array([[2.0, 3.0, 1.0]]), np.zeros((1, 2, 0))
    ... )
    >>> in_turn(chunks, np.array([[0, 2, 1]])).tolist()
    [4.0]
    """
    clock = _Clock(chunks, Asking(round_trip))
    always = np.ones(len(order), bool)
    for chunk in order.T:
        worker = clock.until.argmin(axis=1)
        clock.begin(worker, chunk, always, clock.hear(worker))
    return clock.end


def handed_out(
    tables: ChunkTables, chunks: Chunks, asking: Asking | None = None
) -> np.ndarray:
    """Return when all have ended their last chunks, `[S]`, handed out neediest first.

    Workers' paces are learnt from their chunks. By default questions cost nothing.

    >>> from bcgc_jax.balancing.placement import chunk_tables, spread
    >>> chunks = Chunks(np.array([[1.0, 3.0]]), np.ones((1, 4)), np.zeros((1, 2, 0)))
    >>> handed_out(chunk_tables(spread(2, 2, 2), (1, 1)), chunks).tolist()
    [3.0]
    """
    steps, count = chunks.lengths.shape
    together = max(_AT_ONCE // count, 1)
    ends = [
        _handed_out(tables, chunks.take(np.s_[first : first + together]), asking)
        for first in range(0, steps, together)
    ]
    return np.concatenate(ends)


def _handed_out(
    tables: ChunkTables, chunks: Chunks, asking: Asking | None
) -> np.ndarray:
    size, stored, holders = (np.asarray(part, np.intp) for part in tables)
    steps, workers = chunks.paces.shape
    count = len(size) - 1
    # Sizes take a byte: chunks that are not begun stay in a processor's cache.
    weight: np.ndarray = np.broadcast_to(size.astype(np.int8), (steps, count + 1))
    if chunks.ticks is not None:
        weight = np.pad(chunks.ticks, [(0, 0), (0, 1)])
    clock = _Clock(chunks, asking or Asking())
    all_steps = clock.steps
    # The weight of what nobody has begun, and less than nothing for the rest.
    fresh = np.where(np.arange(count + 1) < count, weight, weight.dtype.type(_BEGUN))
    needs = None
    if stored.shape[1] != count:
        needs = _Needs(weight, stored, holders, workers)
    for _ in range(count + workers):
        worker = clock.until.argmin(axis=1)
        heard = clock.hear(worker)
        stored_here = stored[worker]
        open_here = _entries(fresh, stored_here)
        if needs is None:
            # All store all, so all chunks are needed alike.
            place = open_here.argmax(axis=1)
        else:
            place = _neediest(needs.first(worker, clock.until, heard), open_here)
        begins = open_here[all_steps, place] > _BEGUN
        chunk = np.where(begins, stored_here[all_steps, place], count)
        fresh[all_steps, chunk] = _BEGUN
        if needs is not None:
            needs.begin(worker, chunk, begins, heard)
        clock.begin(worker, np.minimum(chunk, count - 1), begins, heard)
    return clock.end


def _neediest(first: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the places, `[S]`, of the greatest needs times weights, `[S, K]`.

    Of equal products the greatest weight is taken. The weight of a chunk that is not
    open is below 0, so its key is below those of open ones.
    """
    key = first * weight
    greatest = key == key.max(axis=1, keepdims=True)
    return np.where(greatest, weight, _BEGUN).argmax(axis=1)


class _Needs:
    """When other holders would come to a chunk, by what is left and by paces."""

    def __init__(
        self, weight: np.ndarray, stored: np.ndarray, holders: np.ndarray, workers: int
    ) -> None:
        steps = len(weight)
        self.steps = np.arange(steps)
        self.weight = weight
        self.holders = holders
        self.other_holders = _other_holders(stored, holders, workers)
        # Nobody, who holds what is no chunk, comes last.
        left_of_nobody = np.zeros((steps, 1))
        self.left = np.append(
            weight[:, stored].sum(axis=2, dtype=float), left_of_nobody, axis=1
        )
        self.need = np.full((steps, workers + 1), np.inf)
        self.learnt = _Learnt(steps, workers)

    def first(
        self, worker: np.ndarray, until: np.ndarray, heard: np.ndarray
    ) -> np.ndarray:
        """When the first other holder would come to a worker's chunks, `[S, K]`."""
        expected = self.learnt.expected(until, heard)
        np.multiply(self.left[:, :-1], expected, out=self.need[:, :-1])
        return np.min(
            [_entries(self.need, holders[worker]) for holders in self.other_holders],
            axis=0,
        )

    def begin(
        self, worker: np.ndarray, chunk: np.ndarray, begins: np.ndarray, now: np.ndarray
    ) -> None:
        weight = self.weight[self.steps, chunk]
        for holder in self.holders[chunk].T:
            self.left[self.steps, holder] -= weight
        self.learnt.begin(worker, weight, begins, now)


class _Learnt:
    """What each worker took for a tick, `[S, N]`, in its last chunk and in this one."""

    def __init__(self, steps: int, workers: int) -> None:
        self.steps = np.arange(steps)
        self.last = np.zeros((steps, workers))
        self.running = np.ones((steps, workers))
        self.began = np.full((steps, workers), np.inf)

    def begin(
        self,
        worker: np.ndarray,
        weight: np.ndarray,
        begins: np.ndarray,
        now: np.ndarray,
    ) -> None:
        """Where it `begins`, `[S]`, a worker of each step begins a chunk."""
        place = self.steps, worker
        self.running[place] = np.where(begins, weight, 1)
        self.began[place] = np.where(begins, now, np.inf)

    def expected(self, until: np.ndarray, now: np.ndarray) -> np.ndarray:
        """e, `[S, N]`, once chunks `until` now have ended; 1 where nothing is known."""
        so_far = now[:, None] - self.began
        so_far /= self.running
        ended = until <= now[:, None]
        np.copyto(self.last, so_far, where=ended & (so_far > 0))
        np.copyto(self.began, np.inf, where=ended)
        timed = self.last > 0
        count = np.count_nonzero(timed, axis=1)
        # `Paces` adds up the same numbers in the same order.
        mean = self.last.sum(axis=1) / np.maximum(count, 1)
        # A chunk that has ended has taken its whole pace so far.
        expected = np.maximum(np.where(timed, self.last, mean[:, None]), so_far)
        return np.where(count[:, None] > 0, expected, 1.0)


def _entries(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the entries of each row of a table, `[S, M]`, at `columns`, `[S, K]`."""
    first = np.arange(0, table.size, table.shape[1])
    return table.ravel().take(first[:, None] + columns)


def _other_holders(
    stored: np.ndarray, holders: np.ndarray, workers: int
) -> list[np.ndarray]:
    """Return first, second, … other holders of chunks, each `[N, S]`; N for none."""
    numbers = holders[stored]
    is_self = numbers == np.arange(workers)[:, None, None]
    numbers = np.sort(np.where(is_self, workers, numbers), axis=2)
    count = max(numbers.shape[2] - 1, 1)
    return list(np.moveaxis(numbers[:, :, :count], 2, 0))
