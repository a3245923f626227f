"""One attempt at a step: who computes which chunk, and who waits for the next one."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

from bcgc_jax.handout.messages import Answer, Ticket
from bcgc_jax.steps.chunk_lengths import TICKS_OF_UNIT, UNITS, LoadLine
from bcgc_jax.steps.ledger import Chunk, Ledger, Name, Roster
from bcgc_jax.steps.paces import Paces, hand_out
from bcgc_jax.steps.placement import Storage

Tell = Callable[[Answer], None]


class Finished(NamedTuple):
    """A chunk that is done, since when it ran, and the sum its gradient joins."""

    chunk: Chunk
    since: float
    keep: Name | None


class Attempt:
    """What training loops and processes have in common; an attempt that fails has a
    successor.

    Args:
      number: its own, never used twice.
      storage, sizes: who stores which chunk, and how large those of a subset are.
      ends, before: as in `Ledger`.
      line: predicts what a chunk takes from its load; None: the first worker's mean
        chunk is usual.

    Attributes:
      resting: workers without a chunk, and how to tell them what is next.
      running: of each worker that computes, its ticket, its chunk and since when.
      loads: as workers have sent them, of each subset.
      longest: the ticks of the longest chunk, as far as is known.
    """

    def __init__(
        self,
        number: int,
        storage: Storage,
        sizes: Sequence[int],
        ends: Literal["sums", "chunks"],
        before: Roster | None = None,
        line: LoadLine | None = None,
    ) -> None:
        workers = len(storage.holders)
        unit = TICKS_OF_UNIT
        self.ledger = Ledger(
            number, storage, [sizes] * workers, ends, before, ticks_of_unit=unit
        )
        self.paces = Paces(workers)
        self.resting: dict[int, Tell] = {}
        self.running: dict[int, tuple[Name, Chunk, float]] = {}
        self.loads: dict[int, list[float]] = {}
        self.longest = max(sizes) * unit
        self._shares = [size / UNITS for size in sizes]
        self._line = line

    def reweigh(self, worker: int, loads: list[float]) -> None:
        """A worker has said how long the chunks of its own subset are."""
        self.loads[worker] = loads
        if self._line is None:
            self._line = LoadLine.proportional(loads, self._shares)
        ticks = self._line.ticks(loads, self._shares).tolist()
        self.longest = max(self.longest, *ticks)
        self.ledger.queue.reweigh(worker, ticks)

    def done(self, worker: int, ticket: Ticket, now: float) -> Finished | None:
        """A chunk is done; None if it is no ticket that runs."""
        name, chunk, since = self.running.get(worker, (None, None, now))
        if name is None or chunk is None or name != ticket:
            return None
        del self.running[worker]
        self.paces.ended(worker, now)
        return Finished(
            chunk, since, self.ledger.done(self.ledger.member(worker), name)
        )

    def hand_out(
        self, free: Collection[int], now: float
    ) -> list[tuple[int, Name, Chunk]]:
        """Chunks for workers that rest: each is to be told its ticket and chunk."""
        handed_out = hand_out(self.ledger, self.paces, free, now)
        for worker, ticket, chunk in handed_out:
            self.running[worker] = ticket, chunk, now
        return handed_out

    def tell_all(self, answer: Answer) -> None:
        """Tell those who rest, who rest no more."""
        resting = self.resting
        self.resting = {}
        for tell in resting.values():
            tell(answer)
