"""Hands out the chunks of one step, so that each is in exactly one sum that is added.

That holds whatever is late, lost, repeated or reordered. There is no I/O here and no clock: callers
pass in what needs them.

A chunk is open (nobody has begun it), begun (workers compute it), kept (in a worker's sum), or
added (that sum has arrived). `Ledger._keeper` has one sum for a kept chunk. So no two sums
overlap.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from bcgc_jax.steps.storage import Storage

Chunk = tuple[int, int]  # its subset, and its number there
Label = frozenset[Chunk]  # what a sum consists of


class Name(NamedTuple):
    """The name, never used twice, of a ticket (one handing-out of a chunk) or of a sum."""

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


class _Sum(NamedTuple):
    worker: int
    name: Name


class Ledger:
    """Who computes which chunk of a step, and whose gradient counts.

    A worker makes one exchange at a time and repeats it until it is answered: `done` with its last
    ticket, `wanted`, `next`, and `stands` for each of its sums and the one that `done` names. With
    the answer it forgets the sums that do not stand. Then it adds or drops its gradient. Only then
    it begins the next chunk. So it has two vectors at most: a sum and the current gradient, or a
    sum on its way and the next one. It never changes a sum that it was asked for. Another thread
    sends this sum while a chunk computes.

    If the step ends with `"sums"`, whoever receives a whole vector calls `arrived`, and adds the
    vector if told so. The step ends when it is `settled`. If it ends with `"chunks"`, the sums go
    into an all-reduce when the step is `complete` and every worker was told. Then nothing is
    copied, and a lost worker makes the step fail.

    Args:
      step: its number; a step that is tried again needs a new one.
      storage: who stores which chunk.
      sizes: of each subset and chunk, as in `Storage.holders`, in whole units, so that ties are
        exact.
      ends: how the step ends.
      before: the workers after the last step; all are alive if there was none.
      ticks_of_unit: what a unit of size weighs until lengths of chunks are known, see `reweigh`.

    >>> ledger = Ledger(0, Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    >>> first, second = Member(0, 0, 0), Member(0, 1, 0)
    >>> ticket, chunk = ledger.next(first, [1.0, 1.0])
    >>> chunk
    (0, 0)
    >>> name = ledger.done(first, ticket)
    >>> ledger.done(second, ledger.next(second, [1.0, 1.0])[0]) == name
    False
    >>> ledger.complete, ledger.wanted(first) == (name, {(0, 0)})
    (True, True)
    >>> ledger.arrived(first, name, {(0, 0)}), ledger.arrived(first, name,
    ...     {(0, 0)}), ledger.settled
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
        self.holders = {
            (j, c): who for j, row in enumerate(storage.holders) for c, who in enumerate(row)
        }
        self.sizes = {(j, c): size for j, row in enumerate(sizes) for c, size in enumerate(row)}
        if self.sizes.keys() != self.holders.keys():
            raise ValueError(f"sizes must be of the subsets and chunks of the storage, got {sizes}")
        # Of equal chunks the first is taken: a worker's own, then those of others by number.
        self._stored = storage.chunks()
        self._open = set(self.holders)
        # The open chunks that a worker stores, in the same order.
        self._fresh = [dict.fromkeys(stored) for stored in self._stored]
        # What these weigh: ticks where lengths are known, and else units of size.
        self._ticks_left = [0] * len(workers)
        self._units_left = [sum(map(self.sizes.__getitem__, stored)) for stored in self._stored]
        self._ticks: dict[Chunk, int] = {}  # of chunks whose lengths are known
        self._ticks_of_unit = ticks_of_unit
        self._known_ticks = self._known_units = 0  # of all that was known, begun or not
        # Chunks with the same holders are needed alike.
        groups: dict[frozenset[int], int] = {}
        self._group = {
            chunk: groups.setdefault(frozenset(who), len(groups))
            for chunk, who in self.holders.items()
        }
        self._members = list(groups)
        self._running: dict[int, tuple[Name, Chunk]] = {}  # the ticket of each worker that has one
        self._runners: dict[Chunk, set[int]] = {chunk: set() for chunk in self.holders}
        self._begun: set[Chunk] = set()  # somebody computes it, and nobody keeps it
        self._decided: dict[tuple[Member, Name], Name | None] = {}
        self._keeper: dict[Chunk, _Sum] = {}
        self._filling: dict[int, _Sum] = {}
        self._closed: dict[int, _Sum] = {}
        self._contents: dict[_Sum, set[Chunk]] = {}  # of those that live
        self._added: set[Chunk] = set()
        self._named = 0
        self._lives = list(before.lives)
        self._alive = set(before.alive)
        self._overdue = set(before.overdue)
        self.voided = 0  # sums; the watch doubles its patience with each
        self.failed = False

    # What a worker asks.

    def done(self, who: Member, ticket: Name) -> Name | None:
        """The sum to add this gradient to, the same if asked again; None: drop the gradient."""
        if not self._hears(who):
            return None
        held, chunk = self._running.get(who.worker, (None, None))
        if chunk is not None and held == ticket:
            self._decided[who, ticket] = self._keep(who.worker, chunk)
            self._end(who.worker)
        return self._decided.get((who, ticket))

    def next(
        self, who: Member, seconds: Sequence[float], worth: Iterable[Chunk] = ()
    ) -> tuple[Name, Chunk] | None:
        """A ticket and the chunk to compute, the same until it is done; None: rest, and ask again.

        Args:
          seconds: what each worker takes for a tick, `[N]`, as expected now.
          worth: the begun chunks of which a copy by this worker is worth its time, the best first.
        """
        if not self._hears(who) or self.failed:
            return None
        worker = who.worker
        if worker not in self._running:
            chunk = self._choice(worker, seconds, worth)
            if chunk is None:
                return None
            self._begin(worker, chunk)
        return self._running[worker]

    def stands(self, who: Member, name: Name) -> bool:
        """Whether the worker still needs this sum of its own."""
        worker = who.worker
        mine = self._filling.get(worker), self._closed.get(worker)
        return self.present(who) and _Sum(worker, name) in mine

    def wanted(self, who: Member) -> tuple[Name, Label] | None:
        """The sum to send, as soon as it consists of exactly these chunks."""
        if not self.present(who):
            return None
        worker = who.worker
        if self.complete and worker in self._filling and worker not in self._closed:
            # what it computes from now on is another sum
            self._closed[worker] = self._filling.pop(worker)
        closed = self._closed.get(worker)
        return None if closed is None else (closed.name, frozenset(self._contents[closed]))

    def arrived(self, who: Member, name: Name, label: Collection[Chunk]) -> bool:
        """Whether to add this vector, now: True at most once. The worker can forget it then."""
        if not self._hears(who) or not self.stands(who, name):
            return False
        this = _Sum(who.worker, name)
        if self._closed.get(who.worker) != this or self._contents[this] != frozenset(label):
            self._void(this)
            return False
        del self._closed[who.worker], self._contents[this]
        for chunk in label:
            del self._keeper[chunk]
            self._added.add(chunk)
        return True

    def seconds_anew(self, worker: int, seconds: Sequence[float]) -> float:
        """Seconds in which others compute the closed sum of a worker anew, one chunk after another.

        Infinity where a chunk has no other holder that answers. `seconds` are those of `next`.
        """
        closed = self._closed.get(worker)
        if closed is None:
            return math.inf
        total = 0.0
        for chunk in self._contents[closed]:
            others = [b for b in self.holders[chunk] if b != worker and self._answers(b)]
            total += self.weight(chunk) * min((seconds[b] for b in others), default=math.inf)
        return total

    # What is known of lengths.

    def reweigh(self, subset: int, ticks: Sequence[int]) -> None:
        """The lengths of a subset's chunks are known: whole ticks >= 1, `[C]`.

        Begun chunks keep their weight. Chunks of unknown length weigh by their size, as much as the
        known ones do on average.
        """
        for number, weight in enumerate(ticks):
            chunk = subset, number
            self._known_ticks += weight
            self._known_units += self.sizes[chunk]
            is_open = chunk in self._open
            if is_open:
                self._count(chunk, -1)
            self._ticks[chunk] = weight
            if is_open:
                self._count(chunk, 1)
        mean = round(self._known_ticks / self._known_units)
        self._ticks_of_unit = max(1, mean)

    def weight(self, chunk: Chunk) -> int:
        """The ticks of a chunk, by its length if it is known, else by its size."""
        known = self._ticks.get(chunk)
        return self.sizes[chunk] * self._ticks_of_unit if known is None else known

    # What is heard of a worker.

    def member(self, worker: int) -> Member:
        """A worker's present process, in this step."""
        return Member(self.step, worker, self._lives[worker])

    def present(self, who: Member) -> bool:
        """Whether this is a living worker's present process, in this step."""
        return who.worker in self._alive and who == self.member(who.worker)

    def late(self, worker: int) -> None:
        """Marks a worker until it is heard of. By that alone it loses nothing."""
        if worker in self._alive:
            self._overdue.add(worker)

    def lost(self, worker: int) -> None:
        """The worker's process is given up: what it keeps and computes is open again."""
        if worker not in self._alive:
            return
        self._alive.remove(worker)
        self._overdue.discard(worker)
        self._lives[worker] += 1
        self.failed = self.ends == "chunks"
        if worker in self._running:
            self._reopen([self._end(worker)])
        for mine in (self._filling.get(worker), self._closed.get(worker)):
            if mine is not None:
                self._void(mine)

    def join(self, worker: int) -> int:
        """The life of a worker's new process. Its old process never learns it."""
        self.lost(worker)
        self._alive.add(worker)
        return self._lives[worker]

    # How the step stands.

    def may_be_given(self, free: Collection[int]) -> list[int]:
        """Of workers that ask, those to ask `next` for, by number; it gives the others nothing.

        Who was overdue is among them, for it is heard of now.
        """
        if all(self._fresh[worker] for worker in free):
            return sorted(free)
        copied = self._may_be_copied()
        able = [w for w in free if self._fresh[w]]
        if copied:
            able = [w for w in free if self._fresh[w] or not copied.isdisjoint(self._stored[w])]
        return sorted(self._overdue.intersection(free).union(able))

    def begun(self, worker: int) -> list[Chunk]:
        """The chunks that a worker may copy: others compute them, and it stores no open one."""
        if self._fresh[worker]:
            return []
        return [chunk for chunk in self._stored[worker] if chunk in self._begun]

    @property
    def roster(self) -> Roster:
        """The workers, for the next step."""
        return Roster(tuple(self._lives), frozenset(self._alive), frozenset(self._overdue))

    @property
    def complete(self) -> bool:
        """Whether every chunk is kept or added."""
        return not self.failed and len(self._keeper) + len(self._added) == len(self.holders)

    @property
    def settled(self) -> bool:
        """Whether every chunk is added."""
        return len(self._added) == len(self.holders)

    def possible(self, coming: Collection[int] = ()) -> bool:
        """Whether the step can end with the living workers and those that are coming."""
        if self.failed:
            return False
        able = self._alive.union(coming)
        missing = self.holders.keys() - self._added
        return not any(able.isdisjoint(self.holders[chunk]) for chunk in missing)

    # Which chunk is next.

    def _choice(
        self, worker: int, seconds: Sequence[float], worth: Iterable[Chunk]
    ) -> Chunk | None:
        if worker in self._closed:  # its gradient could become a third vector
            return None
        if self._fresh[worker]:
            return self._neediest(worker, seconds)
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

    def _neediest(self, worker: int, seconds: Sequence[float]) -> Chunk:
        """The open chunk whose other holders would come to it last, `max` over need times weight.

        Where no length is known, that of the largest chunks. Of equal ones it is the first.
        """
        fresh = list(self._fresh[worker])
        weigh = self.weight if self._ticks else self.sizes.__getitem__
        groups = set(map(self._group.__getitem__, fresh))
        if len(groups) == 1:
            return max(fresh, key=weigh)
        members = {group: self._members[group] for group in groups}
        comes = self._comes(worker, frozenset().union(*members.values()), seconds)
        needs = {group: min(map(comes.__getitem__, who)) for group, who in members.items()}
        need = [needs[self._group[chunk]] for chunk in fresh]
        keys: list[tuple[float, float]] = list(zip(map(weigh, fresh), need, strict=True))
        if self._ticks:
            keys = [(first * ticks, ticks) for ticks, first in keys]
        return fresh[keys.index(max(keys))]

    def _comes(
        self, worker: int, holders: frozenset[int], seconds: Sequence[float]
    ) -> dict[int, float]:
        """When each of these holders would have done all that is left of what it stores.

        The worker itself never comes, nor does who does not answer.
        """
        unit = self._ticks_of_unit
        ticks = self._ticks_left
        units = self._units_left
        comes = {b: (ticks[b] + units[b] * unit) * seconds[b] for b in holders}
        for silent in holders & self._silent():
            comes[silent] = math.inf
        comes[worker] = math.inf
        return comes

    def _silent(self) -> set[int]:
        """Workers that are lost, or late and not heard of since."""
        if len(self._alive) == len(self._lives):
            return self._overdue
        lost = set(range(len(self._lives))) - self._alive
        return lost | self._overdue

    def _given_up(self, worker: int) -> Chunk | None:
        """One that only overdue workers compute, or else one that such a worker keeps."""
        if not self._overdue:
            return None
        stored = self._stored[worker]
        begun = (c for c in stored if c in self._begun and self._runners[c] <= self._overdue)
        kept = (c for c in stored if self._replaceable(c))
        return next(itertools.chain(begun, kept), None)

    def _replaceable(self, chunk: Chunk) -> bool:
        """Whether an overdue worker keeps it, nobody copies it, and others can do its whole sum."""
        kept = self._keeper.get(chunk)
        if kept is None or kept.worker not in self._overdue:
            return False
        if not self._runners[chunk] <= self._overdue:
            return False
        return all(any(map(self._answers, self.holders[other])) for other in self._contents[kept])

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
        if chunk in self._open:
            self._open.remove(chunk)
            self._begun.add(chunk)
            self._count(chunk, -1)
            for holder in self.holders[chunk]:
                del self._fresh[holder][chunk]

    def _end(self, worker: int) -> Chunk:
        _, chunk = self._running.pop(worker)
        self._runners[chunk].remove(worker)
        if not self._runners[chunk]:
            self._begun.discard(chunk)
        return chunk

    def _keep(self, worker: int, chunk: Chunk) -> Name | None:
        """Keeps it if it is the first, or if the first one's worker is overdue and not heard of."""
        kept = self._keeper.get(chunk)
        if chunk in self._added or (kept is not None and kept.worker not in self._overdue):
            return None
        if kept is not None:
            self._void(kept)
        if worker not in self._filling:
            self._filling[worker] = _Sum(worker, self._name())
            self._contents[self._filling[worker]] = set()
        self._keeper[chunk] = self._filling[worker]
        self._contents[self._filling[worker]].add(chunk)
        self._begun.discard(chunk)
        return self._filling[worker].name

    def _void(self, this: _Sum) -> None:
        """A sum is given up as a whole: nobody can take a single chunk out of it."""
        chunks = self._contents.pop(this)
        for chunk in chunks:
            del self._keeper[chunk]
        for sums in (self._filling, self._closed):
            if sums.get(this.worker) == this:
                del sums[this.worker]
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
                self._open.add(chunk)
                self._count(chunk, 1)
                for holder in self.holders[chunk]:
                    stored = self._stored[holder]
                    self._fresh[holder] = dict.fromkeys(c for c in stored if c in self._open)

    def _count(self, chunk: Chunk, sign: int) -> None:
        """A chunk is open (1) or not (-1): what is left to its holders follows."""
        known = self._ticks.get(chunk)
        left, weight = (self._units_left, self.sizes[chunk])
        if known is not None:
            left, weight = self._ticks_left, known
        for worker in self.holders[chunk]:
            left[worker] += sign * weight
