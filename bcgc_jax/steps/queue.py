"""Which of the chunks that nobody has begun a free worker computes next: the neediest one."""

import math
from collections.abc import Collection, Sequence, Set

from bcgc_jax.steps.placement import Storage

Chunk = tuple[int, int]  # its subset, and its number there


class Queue:
    """The open chunks of a step, those that nobody has begun, and what they leave to each worker.

    A free worker takes the open chunk c whose other holders would come to it last: of those that
    it stores the one with the greatest

        weight(c) min_b left(b) seconds(b),    b: the other holders of c that answer,

    where left(b) is the weight of all open chunks that b stores, in ticks. As long as no length is
    known the largest chunks come first, and min_b decides between them. Of equal ones a worker
    takes its own, then the first by number.

    Args:
      storage: who stores which chunk.
      sizes: of each subset and chunk, as in `Storage.holders`, in whole units, so that ties are
        exact.
      ticks_of_unit: what a unit of size weighs until lengths of chunks are known, see `reweigh`.

    Attributes:
      holders: of each chunk the workers that store it.
      stored: of each worker the chunks that it stores, its own first.
      sizes: of each chunk.
      open: the chunks that nobody has begun; changed by `take` and `put_back` alone.

    >>> queue = Queue(Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    >>> queue.best(0, [1.0, 1.0]), queue.left(1)
    ((0, 0), 8)
    >>> queue.take((0, 0))
    >>> queue.best(0, [1.0, 1.0]), queue.left(1)
    ((1, 0), 4)
    """

    def __init__(self, storage: Storage, sizes: Sequence[Sequence[int]], ticks_of_unit: int = 1):
        self.holders = {
            (j, c): who for j, row in enumerate(storage.holders) for c, who in enumerate(row)
        }
        self.sizes = {(j, c): size for j, row in enumerate(sizes) for c, size in enumerate(row)}
        if self.sizes.keys() != self.holders.keys():
            raise ValueError(f"sizes must be of the subsets and chunks of the storage, got {sizes}")
        self.stored = storage.chunks()
        self.open = set(self.holders)
        # The open chunks that a worker stores, in the same order.
        self._fresh = [dict.fromkeys(stored) for stored in self.stored]
        # What these weigh: ticks where lengths are known, and else units of size.
        self._ticks_left = [0] * len(self.stored)
        self._units_left = [sum(map(self.sizes.__getitem__, stored)) for stored in self.stored]
        self._ticks: dict[Chunk, int] = {}  # of chunks whose lengths are known
        self._ticks_of_unit = ticks_of_unit
        self._known_ticks = self._known_units = 0  # of all that was known, open or not
        # Chunks with the same holders are needed alike.
        groups: dict[frozenset[int], int] = {}
        self._group = {
            chunk: groups.setdefault(frozenset(who), len(groups))
            for chunk, who in self.holders.items()
        }
        self._members = list(groups)

    def fresh(self, worker: int) -> Collection[Chunk]:
        """The open chunks that a worker stores, its own first."""
        return self._fresh[worker]

    def left(self, worker: int) -> int:
        """What the open chunks that a worker stores weigh, in ticks."""
        return self._ticks_left[worker] + self._units_left[worker] * self._ticks_of_unit

    def weight(self, chunk: Chunk) -> int:
        """The ticks of a chunk, by its length if it is known, else by its size."""
        known = self._ticks.get(chunk)
        return self.sizes[chunk] * self._ticks_of_unit if known is None else known

    def best(
        self, worker: int, seconds: Sequence[float], silent: Set[int] = frozenset()
    ) -> Chunk | None:
        """The chunk for a free worker; None if it stores no open one.

        Args:
          worker: who is free.
          seconds: what each worker takes for a tick, `[N]`, as expected now.
          silent: the workers that do not answer, and so never come.
        """
        fresh = list(self._fresh[worker])
        if not fresh:
            return None
        weigh = self.weight if self._ticks else self.sizes.__getitem__
        groups = set(map(self._group.__getitem__, fresh))
        if len(groups) == 1:
            return max(fresh, key=weigh)
        members = {group: self._members[group] for group in groups}
        comes = self._comes(worker, frozenset().union(*members.values()), seconds, silent)
        needs = {group: min(map(comes.__getitem__, who)) for group, who in members.items()}
        need = [needs[self._group[chunk]] for chunk in fresh]
        keys: list[tuple[float, float]] = list(zip(map(weigh, fresh), need, strict=True))
        if self._ticks:
            keys = [(first * ticks, ticks) for ticks, first in keys]
        return fresh[keys.index(max(keys))]

    def take(self, chunk: Chunk) -> None:
        """Somebody begins an open chunk."""
        self.open.remove(chunk)
        self._count(chunk, -1)
        for holder in self.holders[chunk]:
            del self._fresh[holder][chunk]

    def put_back(self, chunk: Chunk) -> None:
        """A chunk that was taken is open again."""
        self.open.add(chunk)
        self._count(chunk, 1)
        for holder in self.holders[chunk]:
            stored = self.stored[holder]
            self._fresh[holder] = dict.fromkeys(c for c in stored if c in self.open)

    def reweigh(self, subset: int, ticks: Sequence[int]) -> None:
        """The lengths of a subset's chunks are known: whole ticks >= 1, `[C]`.

        Chunks of unknown length weigh by their size, as much as the known ones do on average.
        """
        for number, weight in enumerate(ticks):
            chunk = subset, number
            self._known_ticks += weight
            self._known_units += self.sizes[chunk]
            is_open = chunk in self.open
            if is_open:
                self._count(chunk, -1)
            self._ticks[chunk] = weight
            if is_open:
                self._count(chunk, 1)
        mean = round(self._known_ticks / self._known_units)
        self._ticks_of_unit = max(1, mean)

    def _comes(
        self, worker: int, holders: frozenset[int], seconds: Sequence[float], silent: Set[int]
    ) -> dict[int, float]:
        """When each of these holders would have done all that is left to it; the worker never."""
        unit = self._ticks_of_unit
        ticks = self._ticks_left
        units = self._units_left
        comes = {b: (ticks[b] + units[b] * unit) * seconds[b] for b in holders}
        for late in holders & silent:
            comes[late] = math.inf
        comes[worker] = math.inf
        return comes

    def _count(self, chunk: Chunk, sign: int) -> None:
        """A chunk is open (1) or not (-1): what is left to its holders follows."""
        known = self._ticks.get(chunk)
        left, weight = (self._units_left, self.sizes[chunk])
        if known is not None:
            left, weight = self._ticks_left, known
        for worker in self.holders[chunk]:
            left[worker] += sign * weight
