"""Hands out the chunks of one step, so that each is in exactly one sum that is added.

That holds whatever is late, lost, repeated or reordered. There is no I/O here and no
clock: callers pass in what needs them.

A chunk is open (nobody has begun it), begun (workers compute it), kept (in a worker's
sum), or added (that sum has arrived). `State.keeper` has one sum for a kept chunk. So
no two sums overlap.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bcgc_jax.steps.placement import Storage
from bcgc_jax.steps.queue import Chunk, Queue

Label = frozenset[Chunk]  # what a sum consists of


class Name(NamedTuple):
    """The name, used once, of a ticket (one handing-out of a chunk) or a sum."""

    step: int
    number: int


class Member(NamedTuple):
    """Who sends a message: a worker's process in a step.

    The first process of a worker has life 0, another that of `join`.
    """

    step: int
    worker: int
    life: int


class Roster(NamedTuple):
    """What the next step must know of the workers.

    Attributes:
      lives: of each worker the number of its present process.
      alive: those that are not lost.
      overdue: those that are late and not heard of since.
    """

    lives: tuple[int, ...]
    alive: frozenset[int]
    overdue: frozenset[int]


class Sum(NamedTuple):
    """A worker's sum of gradients."""

    worker: int
    name: Name


class State(NamedTuple):
    """The books of a step as they are now.

    Attributes:
      begun: the chunks that somebody computes and nobody keeps.
      running: of each worker that computes, its ticket and the chunk.
      decided: what `done` has said of each ticket.
      keeper: of each kept chunk the sum that it is in.
      filling: of each worker the sum that its gradients are added to.
      closed: of each worker the sum that it is to send.
      added: the chunks whose sums have arrived.
    """

    begun: set[Chunk]
    running: dict[int, tuple[Name, Chunk]]
    decided: dict[tuple[Member, Name], Name | None]
    keeper: dict[Chunk, Sum]
    filling: dict[int, Sum]
    closed: dict[int, Sum]
    added: set[Chunk]


class Ledger:
    """Who computes which chunk of a step, and whose gradient counts.

    A worker makes one exchange at a time and repeats it until it is answered: `done`
    with its last ticket, `sum_to_send`, `next`, and `stands` for each of its sums and
    the one that `done` names. With the answer it forgets the sums that do not stand.
    Then it adds or drops its gradient. Only then it begins the next chunk. So it has
    two vectors at most: a sum and the current gradient, or a sum on its way and the
    next one. It never changes a sum that it was asked for. Another thread sends this
    sum while a chunk computes.

    If the step ends with `"sums"`, whoever receives a whole vector calls `arrived`, and
    adds the vector if told so. The step ends when it is `settled`. If it ends with
    `"chunks"`, the sums go into an all-reduce when the step is `complete` and every
    worker was told. Then nothing is copied, and a lost worker makes the step fail.

    Args:
      step: its number; a step that is tried again needs a new one.
      storage: who stores which chunk.
      sizes, ticks_of_unit: of chunks, as in `Queue`.
      ends: how the step ends.
      before: the workers after the last step; all are alive if there was none.

    Attributes:
      queue: the open chunks. Lengths that are known are said to it.
      holders: of each chunk the workers that store it.
      voided: how many sums were given up; the watch doubles its patience with each.
      failed: whether the step can end no more.

    >>> ledger = Ledger(0, Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    >>> first, second = Member(0, 0, 0), Member(0, 1, 0)
    >>> ticket, chunk = ledger.next(first, [1.0, 1.0])
    >>> chunk
    (0, 0)
    >>> name = ledger.done(first, ticket)
    >>> ledger.done(second, ledger.next(second, [1.0, 1.0])[0]) == name
    False
    >>> ledger.complete, ledger.sum_to_send(first) == (name, {(0, 0)})
    (True, True)
    >>> (
    ...     ledger.arrived(first, name, {(0, 0)}),
    ...     ledger.arrived(first, name, {(0, 0)}),
    ...     ledger.settled,
    ... )
    (True, False, False)
    """

    def __init__(
        self,
        step: int,
        storage: Storage,
        sizes: Sequence[Sequence[int]],
        ends: Literal["sums", "chunks"] = "sums",
        before: Roster | None = None,
        ticks_of_unit: int = 1,
    ):
        workers = range(len(storage.holders))
        if before is None:
            before = Roster((0,) * len(workers), frozenset(workers), frozenset())
        self.step = step
        self.ends = ends
        self.queue = Queue(storage, sizes, ticks_of_unit)
        self.holders = self.queue.holders
        # The ticket of each worker that has one.
        self._running: dict[int, tuple[Name, Chunk]] = {}
        self._runners: dict[Chunk, set[int]] = {chunk: set() for chunk in self.holders}
        self._begun: set[Chunk] = set()  # somebody computes it, and nobody keeps it
        self._decided: dict[tuple[Member, Name], Name | None] = {}
        self._keeper: dict[Chunk, Sum] = {}
        self._filling: dict[int, Sum] = {}
        self._closed: dict[int, Sum] = {}
        self._contents: dict[Sum, set[Chunk]] = {}  # of those that live
        self._added: set[Chunk] = set()
        self._named = 0
        self._lives = list(before.lives)
        self._alive = set(before.alive)
        self._overdue = set(before.overdue)
        self.voided = 0
        self.failed = False

    # What a worker asks.

    def done(self, who: Member, ticket: Name) -> Name | None:
        """The sum to add this gradient to, also if asked again; None: drop it."""
        if not self._hears(who):
            return None
        held, chunk = self._running.get(who.worker, (None, None))
        if chunk is not None and held == ticket:
            self._decided[who, ticket] = self._keep(who.worker, chunk)
            self._end(who.worker)
        return self._decided.get((who, ticket))

    def next(
        self,
        who: Member,
        seconds: Sequence[float] | np.ndarray,
        worth: Iterable[Chunk] = (),
    ) -> tuple[Name, Chunk] | None:
        """A ticket and the chunk to compute, the same until it is done; None: rest, and
        ask again.

        Args:
          seconds: what each worker takes for a tick, `[N]`, as expected now.
          worth: the begun chunks of which a copy by this worker is worth its time, the
            best first.
        """
        if not self._hears(who) or self.failed:
            return None
        worker = who.worker
        if worker not in self._running:
            if worker in self._closed:  # its gradient could become a third vector
                return None
            chunk = self.queue.best(worker, seconds, self._silent())
            if chunk is None:
                chunk = self._copy(worker, worth)
            if chunk is None:
                return None
            self._begin(worker, chunk)
        return self._running[worker]

    def stands(self, who: Member, name: Name) -> bool:
        """Whether the worker still needs this sum of its own."""
        worker = who.worker
        sums = self._filling.get(worker), self._closed.get(worker)
        return self.present(who) and Sum(worker, name) in sums

    def sum_to_send(self, who: Member) -> tuple[Name, Label] | None:
        """The sum to send, as soon as it consists of exactly these chunks."""
        if not self.present(who):
            return None
        worker = who.worker
        if self.complete and worker in self._filling and worker not in self._closed:
            # what it computes from now on is another sum
            self._closed[worker] = self._filling.pop(worker)
        closed = self._closed.get(worker)
        if closed is None:
            return None
        return (closed.name, frozenset(self._contents[closed]))

    def arrived(self, who: Member, name: Name, label: Collection[Chunk]) -> bool:
        """Whether to add this vector: True at most once. The worker can forget it."""
        if not self._hears(who) or not self.stands(who, name):
            return False
        closed = self._closed.get(who.worker)
        arrived_sum = Sum(who.worker, name)
        if closed != arrived_sum or self._contents[arrived_sum] != frozenset(label):
            self._void(arrived_sum)
            return False
        del self._closed[who.worker], self._contents[arrived_sum]
        for chunk in label:
            del self._keeper[chunk]
            self._added.add(chunk)
        return True

    def seconds_anew(self, worker: int, seconds: Sequence[float] | np.ndarray) -> float:
        """Seconds in which others compute the closed sum of a worker anew, one chunk
        after another.

        Infinity where a chunk has no other holder that answers. `seconds` are those of
        `next`.
        """
        closed = self._closed.get(worker)
        if closed is None:
            return math.inf
        total = 0.0
        for chunk in self._contents[closed]:
            other_holders = [
                b for b in self.holders[chunk] if b != worker and self._answers(b)
            ]
            total += self.queue.weight(chunk) * min(
                (seconds[b] for b in other_holders), default=math.inf
            )
        return total

    # What is heard of a worker.

    def member(self, worker: int) -> Member:
        """A worker's present process, in this step."""
        return Member(self.step, worker, self._lives[worker])

    def present(self, who: Member) -> bool:
        """Whether this is a living worker's present process, in this step."""
        step, worker, life = who
        return (
            worker in self._alive and step == self.step and life == self._lives[worker]
        )

    def late(self, worker: int) -> None:
        """Marks a worker until it is heard of. By that alone it loses nothing."""
        if worker in self._alive:
            self._overdue.add(worker)

    def lost(self, worker: int) -> None:
        """The worker's process is given up: its chunks are open again."""
        if worker not in self._alive:
            return
        self._alive.remove(worker)
        self._overdue.discard(worker)
        self._lives[worker] += 1
        self.failed = self.ends == "chunks"
        if worker in self._running:
            self._reopen([self._end(worker)])
        for kept_sum in (self._filling.get(worker), self._closed.get(worker)):
            if kept_sum is not None:
                self._void(kept_sum)

    def join(self, worker: int) -> int:
        """The life of a worker's new process. Its old process never learns it."""
        self.lost(worker)
        self._alive.add(worker)
        return self._lives[worker]

    # How the step stands.

    def may_be_given(self, free: Collection[int]) -> list[int]:
        """Of workers that ask, those to ask `next` for, by number; it gives the others
        nothing.

        Who was overdue is among them, for it is heard of now.
        """
        num_open = self.queue.num_open
        if all(map(num_open, free)):
            return sorted(free)
        copied = self._may_be_copied()
        able = [w for w in free if num_open(w)]
        if copied:
            stored = self.queue.stored
            able = [w for w in free if num_open(w) or not copied.isdisjoint(stored[w])]
        return sorted(self._overdue.intersection(free).union(able))

    def begun(self, worker: int) -> list[Chunk]:
        """Begun chunks that a worker may copy; none while it stores an open one."""
        if self.queue.num_open(worker):
            return []
        return [chunk for chunk in self.queue.stored[worker] if chunk in self._begun]

    def state(self) -> State:
        """A copy of the books."""
        return State(
            begun=set(self._begun),
            running=dict(self._running),
            decided=dict(self._decided),
            keeper=dict(self._keeper),
            filling=dict(self._filling),
            closed=dict(self._closed),
            added=set(self._added),
        )

    @property
    def roster(self) -> Roster:
        """The workers, for the next step."""
        return Roster(
            tuple(self._lives), frozenset(self._alive), frozenset(self._overdue)
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk is kept or added."""
        return not self.failed and len(self._keeper) + len(self._added) == len(
            self.holders
        )

    @property
    def settled(self) -> bool:
        """Whether every chunk is added."""
        return len(self._added) == len(self.holders)

    def possible(self, coming: Collection[int] = ()) -> bool:
        """Whether the step can end with living workers and those `coming`."""
        if self.failed:
            return False
        able = self._alive.union(coming)
        missing = self.holders.keys() - self._added
        return not any(able.isdisjoint(self.holders[chunk]) for chunk in missing)

    # Which begun chunk is copied.

    def _copy(self, worker: int, worth: Iterable[Chunk]) -> Chunk | None:
        if self.ends == "chunks":  # whoever has begun a chunk has to end it anyway
            return None
        for chunk in worth:
            if chunk in self._begun and worker in self.holders[chunk]:
                return chunk
        return self._given_up(worker)

    def _may_be_copied(self) -> set[Chunk]:
        """What others compute, and what overdue workers keep."""
        if self.ends == "chunks":
            return set()
        chunks = self._begun
        for sums in (self._filling, self._closed):
            for late in self._overdue.intersection(sums):
                chunks = chunks | self._contents[sums[late]]
        return chunks

    def _silent(self) -> set[int]:
        """Workers that are lost, or late and not heard of since."""
        if len(self._alive) == len(self._lives):
            return self._overdue
        lost = set(range(len(self._lives))) - self._alive
        return lost | self._overdue

    def _given_up(self, worker: int) -> Chunk | None:
        """A chunk that only overdue workers compute, or else keep."""
        if not self._overdue:
            return None
        stored = self.queue.stored[worker]
        begun = (
            c for c in stored if c in self._begun and self._runners[c] <= self._overdue
        )
        kept = (c for c in stored if self._replaceable(c))
        return next(itertools.chain(begun, kept), None)

    def _replaceable(self, chunk: Chunk) -> bool:
        """Whether its keeper is overdue, nobody copies it, others can do its sum."""
        kept = self._keeper.get(chunk)
        if kept is None or kept.worker not in self._overdue:
            return False
        if not self._runners[chunk] <= self._overdue:
            return False
        return all(
            any(map(self._answers, self.holders[kept_chunk]))
            for kept_chunk in self._contents[kept]
        )

    def _answers(self, worker: int) -> bool:
        return worker in self._alive and worker not in self._overdue

    # What changes the state of a chunk or of a sum.

    def _hears(self, who: Member) -> bool:
        present = self.present(who)
        if present:
            self._overdue.discard(who.worker)
        return present

    def _name(self) -> Name:
        self._named += 1
        return Name(self.step, self._named)

    def _begin(self, worker: int, chunk: Chunk) -> None:
        self._running[worker] = (self._name(), chunk)
        self._runners[chunk].add(worker)
        if chunk in self.queue.open:
            self.queue.take(chunk)
            self._begun.add(chunk)

    def _end(self, worker: int) -> Chunk:
        _, chunk = self._running.pop(worker)
        self._runners[chunk].remove(worker)
        if not self._runners[chunk]:
            self._begun.discard(chunk)
        return chunk

    def _keep(self, worker: int, chunk: Chunk) -> Name | None:
        """Keeps it if it is the first, or if the worker of the first is overdue."""
        kept = self._keeper.get(chunk)
        if chunk in self._added or (
            kept is not None and kept.worker not in self._overdue
        ):
            return None
        if kept is not None:
            self._void(kept)
        if worker not in self._filling:
            self._filling[worker] = Sum(worker, self._name())
            self._contents[self._filling[worker]] = set()
        self._keeper[chunk] = self._filling[worker]
        self._contents[self._filling[worker]].add(chunk)
        self._begun.discard(chunk)
        return self._filling[worker].name

    def _void(self, void_sum: Sum) -> None:
        """A sum is given up as a whole: nobody can take a single chunk out of it."""
        chunks = self._contents.pop(void_sum)
        for chunk in chunks:
            del self._keeper[chunk]
        for sums in (self._filling, self._closed):
            if sums.get(void_sum.worker) == void_sum:
                del sums[void_sum.worker]
        self.voided += 1
        self._reopen(chunks)

    def _reopen(self, chunks: Iterable[Chunk]) -> None:
        """Those that nobody keeps: where nobody computes it, it is open."""
        for chunk in chunks:
            if chunk in self._keeper or chunk in self._added:
                continue
            if self._runners[chunk]:
                self._begun.add(chunk)
            else:
                self.queue.put_back(chunk)
