"""Processes and a network around `Ledger`, for its tests.

They keep their own books of who added what. Each event is one of the `actions` that are
possible now. Messages are repeated, lost, late and reordered: a request is handled any
number of times while it is not answered, and perhaps once more at any later time.
"""

import dataclasses
import re
from collections import Counter

from bcgc_jax.steps.ledger import Chunk, Label, Ledger, Member, Name

Action = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Request:
    who: Member
    done: Name | None
    held: tuple[Name, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    present: bool
    step: int | None = None  # of a process that lives, in another step
    keep: Name | None = None
    standing: tuple[Name, ...] = ()
    to_send: tuple[Name, Label] | None = None
    ticket: tuple[Name, Chunk] | None = None


@dataclasses.dataclass(frozen=True)
class Parcel:
    who: Member
    name: Name
    label: Label
    vector: tuple[Chunk, ...]


@dataclasses.dataclass
class Process:
    """What a worker's process holds: of each vector the chunks that are in it."""

    who: Member
    request: Request | None  # None while it computes
    sums: dict[Name, tuple[Chunk, ...]] = dataclasses.field(default_factory=dict)
    running: tuple[Name, Chunk] | None = None
    answer: Answer | None = None
    parcel: Parcel | None = None
    parcel_answered: bool = False
    gone: bool = False

    @classmethod
    def of(cls, who: Member, gone: bool = False) -> "Process":
        return cls(who, Request(who, None, ()), gone=gone)

    def ask(self):
        self.request = Request(
            self.who, self.running[0] if self.running else None, tuple(self.sums)
        )

    def check(self):
        assert len(self.sums) + (self.running is not None) <= 2, "a third vector"


class World:
    """A master with its `Ledger`, and processes.

    The other arguments say how often something may happen.
    """

    def __init__(
        self, ledger: Ledger, stale=0, late=0, lost=0, join=0, next_first=False
    ):
        self.ledger = ledger
        self.total: Counter[Chunk] = Counter()
        members = [
            Member(ledger.step, worker, life)
            for worker, life in enumerate(ledger.roster.lives)
        ]
        self.processes = [Process.of(who) for who in members]
        self.stale: list[Request | Parcel] = []
        self.budget = {"late": late, "lost": lost, "join": join, "stale": stale}
        self.next_first = next_first
        self.names: dict[Name, object] = {}
        self.answers: dict[tuple[Member, Name], Name | None] = {}
        self.seconds = [1.0] * len(self.processes)
        self.worth: list[Chunk] = []

    # The master's shell.

    def _name(self, name: Name, owner: object):
        assert self.names.setdefault(name, owner) == owner, "a name is used twice"

    def _next(self, who: Member):
        able = self.ledger.may_be_given([who.worker])
        fresh = who.worker not in self.ledger.state().running
        ticket = self.ledger.next(who, self.seconds, self.worth)
        if ticket is not None:
            assert able or not fresh
            self._name(ticket[0], (who, ticket[1]))
            assert who.worker in self.ledger.holders[ticket[1]]
        return ticket

    def answer(self, request: Request) -> Answer:
        ledger = self.ledger
        who = request.who
        self.check_chunks()
        if not ledger.present(who):
            present = ledger.present(who._replace(step=ledger.step))
            for name in (request.done, *request.held):
                if name is not None:
                    assert ledger.done(who, name) is None
                    assert not ledger.stands(who, name)
            assert ledger.next(who, self.seconds) is None
            return Answer(present, ledger.step)
        keep = None
        if request.done is not None:
            keep = ledger.done(who, request.done)
            assert self.answers.setdefault((who, request.done), keep) == keep, (
                "another answer"
            )
            if keep is not None:
                self._name(keep, who)
        ticket = self._next(who) if self.next_first else None
        to_send = ledger.sum_to_send(who)
        ticket = ticket if self.next_first else self._next(who)
        held = (
            request.held
            if keep is None or keep in request.held
            else (*request.held, keep)
        )
        standing = tuple(name for name in held if ledger.stands(who, name))
        return Answer(True, None, keep, standing, to_send, ticket)

    def receive(self, parcel: Parcel):
        if self.ledger.arrived(parcel.who, parcel.name, parcel.label):
            self.total.update(parcel.vector)
            self.check()

    def check(self):
        assert max(self.total.values(), default=1) == 1, "added twice"
        missing = self.ledger.holders.keys() - self.total.keys()
        assert self.ledger.settled == (not missing), "settled too early or too late"

    def check_chunks(self):
        """Each is in one place."""
        books = self.ledger.state()
        queue = self.ledger.queue
        missing = queue.holders.keys() - books.keeper.keys() - books.added
        run = {chunk for _, chunk in books.running.values()}
        assert (queue.open, books.begun) == (missing - run, missing & run)
        for worker, stored in enumerate(queue.stored):
            fresh = [chunk for chunk in stored if chunk in queue.open]
            assert queue.num_open(worker) == len(fresh)
            assert queue.left(worker) == sum(map(queue.weight, fresh))

    # What can happen.

    def actions(self) -> list[Action]:
        actions: list[Action] = []
        for i, process in enumerate(self.processes):
            if not process.gone:
                actions += self._of(i, process)
        actions += [("handle_stale", (i,)) for i in range(len(self.stale))]
        faults = [what for what in ("late", "lost", "join") if self.budget[what]]
        actions += [(what, (w,)) for w in range(len(self.seconds)) for what in faults]
        return actions

    @staticmethod
    def _of(i: int, process: Process) -> list[Action]:
        actions: list[Action] = []
        if process.request is None:
            actions.append(("compute", (i,)))
        else:
            actions += [("handle", (i,)), ("handle_unheard", (i,))]
        if process.answer is not None:
            actions.append(("take", (i,)))
        if process.parcel is not None:
            actions.append(("handle_parcel", (i,)))
        if process.parcel_answered:
            actions.append(("forget", (i,)))
        return actions

    def apply(self, action: Action):
        getattr(self, action[0])(*action[1])

    def compute(self, i: int):
        self.processes[i].ask()

    def handle(self, i: int):
        process = self.processes[i]
        assert process.request is not None
        process.answer = self.answer(process.request)

    def handle_unheard(self, i: int):
        """The answer is lost."""
        before = self.processes[i].answer
        self.handle(i)
        self.processes[i].answer = before

    def take(self, i: int):
        """Forget, add or drop, begin: in this order."""
        process = self.processes[i]
        answer = process.answer
        request = process.request
        assert answer is not None
        assert request is not None
        process.answer = process.request = None
        self._leave_behind(request)
        if answer.step is not None:
            self._forget(process)
            who = process.who._replace(step=answer.step)
            self.processes[i] = Process.of(who, not answer.present)
            return
        process.sums = {
            name: v for name, v in process.sums.items() if name in answer.standing
        }
        if process.parcel is not None and process.parcel.name not in process.sums:
            self._forget(process)
        keep = answer.keep
        if process.running is not None and keep is not None and keep in answer.standing:
            process.sums[keep] = (*process.sums.get(keep, ()), process.running[1])
        if answer.to_send is not None and process.parcel is None:
            name, label = answer.to_send
            vector = process.sums.get(name, ())
            if frozenset(vector) == label:
                process.parcel = Parcel(process.who, name, label, vector)
        process.running = answer.ticket
        if process.running is None:
            process.ask()
        process.check()

    def handle_parcel(self, i: int):
        process = self.processes[i]
        assert process.parcel is not None
        self.receive(process.parcel)
        process.parcel_answered = True

    def forget(self, i: int):
        self._forget(self.processes[i])

    def _forget(self, process: Process):
        if process.parcel is not None:
            process.sums.pop(process.parcel.name, None)
            self._leave_behind(process.parcel)
        process.parcel = None
        process.parcel_answered = False

    def _leave_behind(self, message: Request | Parcel):
        """A copy of a message is still in the network."""
        if self.budget["stale"]:
            self.budget["stale"] -= 1
            self.stale.append(message)

    def handle_stale(self, i: int):
        message = self.stale.pop(i)
        if isinstance(message, Request):
            self.answer(message)
        else:
            self.receive(message)

    def late(self, worker: int):
        self.budget["late"] -= 1
        self.ledger.late(worker)

    def lost(self, worker: int):
        """The process may live on as a ghost, or do nothing any more."""
        self.budget["lost"] -= 1
        self.ledger.lost(worker)

    def join(self, worker: int):
        self.budget["join"] -= 1
        life = self.ledger.join(worker)
        self.processes.append(Process.of(Member(self.ledger.step, worker, life)))

    # What must come of it.

    def finish(self, moving: set[int], worth=()) -> bool:
        """Whether the step settles if those in `moving` go on alone, and the watch sees
        it.

        It must if each missing chunk has a holder that moves.
        """
        ledger = self.ledger
        self.worth = list(worth)
        moving = moving & ledger.roster.alive
        missing = ledger.holders.keys() - self.total.keys()
        able = all(moving.intersection(ledger.holders[chunk]) for chunk in missing)
        quiet = 0  # rounds in which nothing was handed out, kept, added or given up
        for _ in range(3 * len(ledger.holders) + 5):
            if quiet == 3:
                break
            before = len(self.names), ledger.voided, len(self.total)
            for i, process in enumerate(self.processes):
                if process.who.worker in moving and not process.gone:
                    self._turn(i)
            if ledger.settled:
                return True
            for worker in ledger.roster.alive - moving:
                ledger.late(worker)
            after = len(self.names), ledger.voided, len(self.total)
            quiet = quiet + 1 if after == before else 0
        assert not able, "what moves does not settle the step"
        return False

    def _turn(self, i: int):
        process = self.processes[i]
        if process.parcel is not None:
            self.handle_parcel(i)
            self.forget(i)
        if process.request is None:
            self.compute(i)
        self.handle(i)
        self.take(i)

    def key(self) -> str:
        """Worlds of one key have one future. Of names only the order counts."""
        books = self.ledger.state()
        held = repr([self.processes, self.stale])
        decided = [(k, v) for k, v in books.decided.items() if repr(k[1]) in held]
        sums = (books.keeper, books.filling, books.closed, books.running)
        roster = self.ledger.roster
        text = held + repr(
            [
                *(sorted(book.items()) for book in sums),
                *map(
                    sorted, (decided, books.added, self.ledger.queue.open, self.total)
                ),
                [
                    roster.lives,
                    sorted(roster.alive),
                    sorted(roster.overdue),
                    self.budget,
                ],
            ]
        )
        numbers = sorted({int(n) for n in re.findall(r"number=(\d+)", text)})
        ranks = {str(n): str(i) for i, n in enumerate(numbers)}
        return re.sub(r"number=(\d+)", lambda match: "n" + ranks[match[1]], text)
