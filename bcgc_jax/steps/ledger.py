"""Hands out the chunks of one step, each of them once.

There is no I/O here and no clock, because callers pass in what needs them.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from bcgc_jax.steps.paces import Paces
from bcgc_jax.steps.placement import Storage
from bcgc_jax.steps.queue import Chunk, Queue


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
