"""Hands out the open chunks of one step, each of them once, the neediest first.

There is no I/O here and no clock, because callers pass in what needs them.
"""

import functools
from collections.abc import Collection, Sequence, Set
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.placement import Storage


class Paces:
    """The paces of one step's workers. Callers say what time it is `now`.

    A worker is expected to take as long for a tick as for its last chunk, or as its
    running chunk has taken by now if that is more. Before its first one it is expected
    to take the mean of the others. Before anybody has done a chunk all are taken to be
    alike. `Queue.weight` says how many ticks a chunk has.

    >>> paces = Paces(2)
    >>> for worker in (0, 1):
    ...     paces.began(worker, ticks=4, now=0.0)
    >>> paces.ended(0, now=2.0)
    >>> paces.seconds(now=2.0), paces.seconds(now=3.0)
    (array([0.5, 0.5]), array([0.5 , 0.75]))
    """

    def __init__(self, num_workers: int):
        self._last = np.zeros(num_workers)  # for a tick; 0 before there is one
        self._expected = np.full(num_workers, np.inf)  # for a tick, whatever runs
        # Workers whose last chunk took no time, or none yet.
        self._unknown = set(range(num_workers))
        # The running chunk; infinity for none.
        self._began = np.full(num_workers, np.inf)
        self._ticks = np.ones(num_workers)  # of the running chunk

    def began(self, worker: int, ticks: int, now: float) -> None:
        """A worker has been given a chunk."""
        self._began[worker] = now
        self._ticks[worker] = ticks

    def ended(self, worker: int, now: float) -> None:
        """A worker has done its chunk."""
        seconds = now - self._began[worker]
        self._began[worker] = np.inf
        self._last[worker] = self._expected[worker] = seconds / self._ticks[worker]
        change = self._unknown.add
        if seconds > 0:
            change = self._unknown.discard
        change(worker)
        if 0 < len(self._unknown) < len(self._last):
            # `lockstep` adds up the same numbers in the same order.
            unknown = list(self._unknown)
            self._expected[unknown] = self._last.sum() / (
                len(self._last) - len(unknown)
            )

    def seconds(self, now: float) -> np.ndarray:
        """Each worker's seconds for a tick, `[N]`; 1 before anything is known."""
        if len(self._unknown) == len(self._last):
            return np.ones(len(self._last))
        return np.maximum(self._expected, (now - self._began) / self._ticks)


Chunk = tuple[int, int]  # its subset, and its number there

# In place of the weight of a chunk that is not open: its key is below those of open
# ones.
_BEGUN = -1


class Queue:
    """The open chunks of a step, those that nobody has begun, and what they leave to
    each worker.

    A free worker takes, of the open chunks c that it stores, the one with the greatest

        weight(c) min_b left(b) seconds(b),    b: the other holders of c that take part,

    where left(b) is the weight of all open chunks that b stores, in ticks. So left(b)
    seconds(b) is when b would have done all of these. Of equal products the greatest
    weight decides. Of equal weights a worker takes its own chunk, then the first by
    number.

    Args:
      storage: who stores which chunk.
      sizes: of each subset and chunk, as in `Storage.holders`, in whole units, so that
        ties are exact.
      ticks_of_unit: what a unit of size weighs until lengths of chunks are known, see
        `reweigh`.

    Attributes:
      holders: of each chunk the workers that store it.
      stored: of each worker the chunks that it stores, its own first.
      open: the chunks that nobody has begun; changed by `take` alone.

    >>> queue = Queue(Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    >>> queue.best(0, [1.0, 1.0]), queue.left(1)
    ((0, 0), 8)
    >>> queue.take((0, 0))
    >>> queue.best(0, [1.0, 1.0]), queue.left(1)
    ((1, 0), 4)
    """

    def __init__(
        self, storage: Storage, sizes: Sequence[Sequence[int]], ticks_of_unit: int = 1
    ):
        if [len(row) for row in sizes] != [len(row) for row in storage.holders]:
            raise ValueError(
                f"sizes must be of the subsets and chunks of the storage, got {sizes}"
            )
        self._tables = _tables(storage)
        self.holders = self._tables.holders
        self.stored = storage.chunks()
        self.open = set(self.holders)
        self._num_open = [len(chunks) for chunks in self.stored]
        # Weights are in ticks, by length where it is known.
        self._sizes = np.array([size for row in sizes for size in row])
        self._is_known = np.zeros(len(self._sizes), bool)
        self._weights = self._sizes * ticks_of_unit
        # `_BEGUN` for those that are not open.
        self._open_weights = self._weights.copy()
        self._left = self._weights_stored()
        # When each worker would have done all that is left to it; the last entry is for
        # none.
        self._comes = np.full(len(self.stored) + 1, np.inf)

    def left(self, worker: int) -> int:
        """What the open chunks that a worker stores weigh, in ticks."""
        return int(self._left[worker])

    def weight(self, chunk: Chunk) -> int:
        """The ticks of a chunk, by its length if it is known, else by its size."""
        return int(self._weights[self._tables.number[chunk]])

    def best(
        self,
        worker: int,
        seconds: Sequence[float] | np.ndarray,
        absent: Set[int] = frozenset(),
    ) -> Chunk | None:
        """The chunk for a free worker; None if it stores no open one.

        Args:
          worker: who is free.
          seconds: what each worker takes for a tick, `[N]`, as expected now.
          absent: the workers that do not take part, and so never come.
        """
        if not self._num_open[worker]:
            return None
        tables = self._tables
        weight = self._open_weights[tables.stored[worker]]
        comes = self._comes
        np.multiply(self._left, seconds, out=comes[:-1])
        comes[worker] = np.inf
        if absent:
            comes[list(absent)] = np.inf
        # Chunks with the same holders are needed alike.
        need = np.minimum.reduce(comes[tables.groups[worker]], axis=1)
        key = need[tables.group[worker]] * weight
        place = np.where(key == key.max(), weight, _BEGUN).argmax()
        return self.stored[worker][place]

    def take(self, chunk: Chunk) -> None:
        """Somebody begins an open chunk."""
        self.open.remove(chunk)
        number = self._tables.number[chunk]
        self._open_weights[number] = _BEGUN
        who = self._tables.who[number]
        self._left[who] -= self._weights[number]
        for worker in who.tolist():
            self._num_open[worker] -= 1

    def reweigh(self, subset: int, ticks: Sequence[int]) -> None:
        """The lengths of a subset's chunks are known: whole ticks >= 1, `[C]`.

        Chunks of unknown length weigh by their size, as much as the known ones do on
        average.
        """
        numbers = [self._tables.number[subset, place] for place in range(len(ticks))]
        self._is_known[numbers] = True
        self._weights[numbers] = ticks
        is_known = self._is_known
        unit = round(self._weights[is_known].sum() / self._sizes[is_known].sum())
        self._weights[~is_known] = self._sizes[~is_known] * max(1, unit)
        is_open = self._open_weights != _BEGUN
        self._open_weights[is_open] = self._weights[is_open]
        self._left = self._weights_stored()

    def _weights_stored(self) -> np.ndarray:
        """What the open chunks that each worker stores weigh, `[N]`."""
        chunks, workers = self._tables.pairs
        weights = np.maximum(self._open_weights, 0)[chunks]
        # Sums of whole numbers below 2^53 are exact.
        return np.bincount(workers, weights, len(self.stored)).astype(np.int64)


class _Tables(NamedTuple):
    """Who stores what, by numbers of chunks; N in place of a holder stands for none.

    Attributes:
      number: of each chunk.
      holders: of each chunk the workers that store it.
      who: the same, by the chunk's number.
      pairs: the same, a chunk's number and a worker in each column, `[2, P]`.
      stored: of each worker the numbers of its chunks, in the order of
        `Storage.chunks`, `[K]`.
      groups: of each worker the other holders of its chunks, each set once, then N,
        `[G, D]`.
      group: of each worker the row in `groups` of each of its chunks, `[K]`.
    """

    number: dict[Chunk, int]
    holders: dict[Chunk, tuple[int, ...]]
    who: list[np.ndarray]
    pairs: np.ndarray
    stored: list[np.ndarray]
    groups: list[np.ndarray]
    group: list[np.ndarray]


@functools.lru_cache(maxsize=8)
def _tables(storage: Storage) -> _Tables:
    holders = {
        (j, c): who
        for j, row in enumerate(storage.holders)
        for c, who in enumerate(row)
    }
    number = {chunk: place for place, chunk in enumerate(holders)}
    no_worker = len(storage.holders)
    stored, groups, group = [], [], []
    for worker, chunks in enumerate(storage.chunks()):
        other_holders = [
            tuple(sorted({*holders[chunk]} - {worker})) for chunk in chunks
        ]
        row_of = {who: row for row, who in enumerate(dict.fromkeys(other_holders))}
        width = max(map(len, row_of), default=0)
        rows = [(*who, no_worker, *[no_worker] * (width - len(who))) for who in row_of]
        stored.append(np.array([number[chunk] for chunk in chunks], int))
        groups.append(np.array(rows, int))
        group.append(np.array([row_of[who] for who in other_holders], int))
    who = list(map(np.array, holders.values()))
    pairs = np.array(
        [np.repeat(np.arange(len(who)), list(map(len, who))), np.concatenate(who)]
    )
    return _Tables(number, holders, who, pairs, stored, groups, group)


class HandOut(NamedTuple):
    """A chunk that a worker computes.

    Attributes:
      worker: The worker.
      ticket: The number of the hand-out in the step, used once.
      chunk: The chunk.
      since: When the worker was given it.
    """

    worker: int
    ticket: int
    chunk: Chunk
    since: float


class Ledger:
    """Who computes which chunk of a step, and whether all are done.

    Args:
      storage: Who stores which chunk.
      sizes: Sizes of chunks, as in `Queue`.
      ticks_of_unit: What a unit of size weighs, as in `Queue`.
      present: The workers that take part. Defaults to all.

    Attributes:
      queue: The open chunks. It is told the lengths that are known.
      holders: The workers that store each chunk.
      running: What each worker computes.

    >>> ledger = Ledger(Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    >>> first, second = ledger.hand_out([0, 1], now=0.0)
    >>> first.chunk, second.chunk
    ((0, 0), (1, 0))
    >>> ledger.done(0, first.ticket, now=1.0) == first, ledger.done(0, 7, now=1.0)
    (True, None)
    >>> ledger.complete, ledger.hand_out([0], now=1.0)
    (False, [])
    """

    def __init__(
        self,
        storage: Storage,
        sizes: Sequence[Sequence[int]],
        ticks_of_unit: int = 1,
        present: Collection[int] | None = None,
    ):
        workers = frozenset(range(len(storage.holders)))
        self.queue = Queue(storage, sizes, ticks_of_unit)
        self.holders = self.queue.holders
        self.running: dict[int, HandOut] = {}
        self._paces = Paces(len(workers))
        self._absent = workers.difference(workers if present is None else present)
        self._num_issued = 0
        self._num_done = 0

    @property
    def complete(self) -> bool:
        """Whether every chunk is done."""
        return self._num_done == len(self.holders)

    def hand_out(self, free: Collection[int], now: float) -> list[HandOut]:
        """Give free workers chunks from now on, as far as they store open ones."""
        seconds = self._paces.seconds(now)
        handed_out = []
        for worker in sorted(free):
            chunk = self.queue.best(worker, seconds, self._absent)
            if chunk is not None:
                self.queue.take(chunk)
                self._paces.began(worker, self.queue.weight(chunk), now)
                self._num_issued += 1
                handout = HandOut(worker, self._num_issued, chunk, now)
                self.running[worker] = handout
                handed_out.append(handout)
        return handed_out

    def done(self, worker: int, ticket: int, now: float) -> HandOut | None:
        """A worker has done its chunk; None if it does not compute by this ticket."""
        handout = self.running.get(worker)
        if handout is None or handout.ticket != ticket:
            return None
        del self.running[worker]
        self._paces.ended(worker, now)
        self._num_done += 1
        return handout
