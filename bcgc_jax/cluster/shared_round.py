"""Work sharing on processes: chunks are handed out, and the master adds the sums as
they come.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster.chunks import Order, Place, Sum
from bcgc_jax.cluster.rounds import Ask, Work
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import PyTree
from bcgc_jax.coding.pace import Pace
from bcgc_jax.handout.attempt import Attempt, Finished, Tell
from bcgc_jax.handout.messages import (
    AfterJoin,
    Answer,
    Begin,
    Covers,
    Done,
    Join,
    OwnDone,
    wrong_loads,
)
from bcgc_jax.steps.ledger import Member, Name, Roster


class _Sending(NamedTuple):
    """A sum on its way.

    Attributes:
      worker: whose it is.
      since: when it was asked for.
      anew: seconds in which others would compute its chunks anew.
    """

    worker: int
    since: float
    anew: float


class SharedRound(Attempt):
    """A `Round` of chunks: an attempt that ends with the sums, which the master adds as
    they come.

    Two threads use it: the master's, and the one that workers ask what is next, which
    `touch` has look.
    """

    def __init__(
        self,
        plan: SharedPlan,
        params: PyTree,
        call: int,
        iteration: int,
        leaves: Any,
        pace: Pace | None,
        place: Place,
        touch: Callable[..., None],
        before: Roster | None = None,
    ) -> None:
        super().__init__(call, plan.storage, plan.sizes, "sums", before)
        workers = plan.num_workers
        self.arrived = np.zeros((1, workers), bool)
        self.completed = np.full(1, np.inf)
        self.work: list[Work] = []
        self._params = params
        self._iteration = iteration
        self._leaves = leaves
        self._place = place
        self._touch = touch
        self._pace = pace
        self._sizes = plan.sizes
        self._turn = threading.RLock()
        # The ticket that a worker who rests asked with; the last one, and what it was
        # told.
        self._tickets: dict[int, int | None] = {}
        self._told: dict[int, tuple[int | None, Answer]] = {}
        self._keep: dict[
            int, Name | None
        ] = {}  # the sum of a worker's last gradient, to be told
        self._silent: set[int] = set()  # whose sum is overdue
        self._began: dict[int, float] = {}  # when a worker first asked
        self._names: dict[int, set[Name]] = {worker: set() for worker in range(workers)}
        self._asked: dict[Name, _Sending] = {}
        self._came = math.inf  # when the last one came
        self._slowest = 0.0  # what that of the slowest took
        self._total: list[np.ndarray] = []
        self._over = False
        self._error: BaseException | None = None

    # For the master's thread.

    def begin(self, worker: int, now: float) -> list[Ask]:
        with self._turn:
            if worker not in self.ledger.roster.alive:
                self.ledger.join(worker)
            self._forget(worker)
            member = self.ledger.member(worker)
        pace = None
        if self._pace is not None:
            pace = self._pace.of(worker)
        order = Order(member.step, member.life, self._iteration, pace)
        return [Ask(worker, "share", (order, self._leaves, self._place))]

    def heard(self, ask: Ask, message: Any, now: float) -> list[Ask]:
        with self._turn:
            worker = ask.worker
            self._silent.discard(worker)
            counts = message is not None and self._arrives(worker, message, now)
            if message is None:  # it is not there any more
                self._asked.pop(Name(self.ledger.step, ask.given[1]), None)
        if counts:  # added now, by this thread
            self._add(message.leaves)
            self.arrived[0, worker] = True
            if self.ledger.settled:
                self.completed[0] = now
            else:
                self.completed[0] = np.inf
        self._touch()
        return self.look(now)

    def ended(self, ask: Ask, message: Any) -> bool:
        return ask.method == "deliver"

    def lost(self, worker: int, now: float) -> list[Ask]:
        with self._turn:
            self.ledger.lost(worker)
            self.paces.lost(worker)
            self._forget(worker)
            self._asked = {
                name: one for name, one in self._asked.items() if one.worker != worker
            }
        self._touch()
        return self.look(now)

    def look(self, now: float) -> list[Ask]:
        """The sums of those who compute: the others are told when they ask what is
        next.
        """
        with self._turn:
            if not self.ledger.complete:
                return []
            computing = [worker for worker in self._names if worker not in self.resting]
            wanted = [(worker, self._wanted(worker, now)) for worker in computing]
        step = self.ledger.step
        return [
            Ask(worker, "deliver", (step, *one))
            for worker, one in wanted
            if one is not None
        ]

    def short(self, coming: Collection[int]) -> str:
        with self._turn:
            possible = self.ledger.possible(coming)
        if possible:
            return ""
        return "nobody else stores some of their chunks"

    def gradient(self) -> PyTree | None:
        if self._error is not None:
            raise self._error
        if not self.ledger.settled:
            return None
        leaves, tree = jax.tree.flatten(self._params)
        pairs = zip(leaves, self._total, strict=True)
        total = [one.astype(jnp.result_type(leaf)) for leaf, one in pairs]
        return jax.device_put(jax.tree.unflatten(tree, total))

    def end(self) -> None:
        """Whoever asks is told that it is over, whether there is a gradient or not."""
        self._over = True
        self._touch(self._tell_over)

    # For the thread that is asked by workers.

    def joined(self, who: Join, tell: Tell) -> Answer:
        return Answer()

    def left(self, who: Join, tell: Tell, now: float) -> None:
        """Ray says more of that."""

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        """A worker has done its chunk, or has none: it is told what is next when
        `time_goes_on`.

        Its line may have broken before it heard the answer: then it asks again, and has
        the same answer.
        """
        if isinstance(question, OwnDone | Covers):
            raise ValueError("it is a message of a training loop")
        with self._guarded():
            worker = who.rank
            if isinstance(question, Begin):
                step, ticket = (question.step, None)
            else:
                step, ticket = question.ticket
            # of an earlier step, or it was given up
            if self._over or not self.ledger.present(Member(step, worker, who.life)):
                tell(Answer(over=True))
                return
            self._silent.discard(worker)
            for name, one in self._asked.items():
                if one.worker == worker:
                    self._asked[name] = one._replace(since=now)  # it sends that now
            self._began.setdefault(worker, now)
            told, answer = self._told.get(worker, (None, None))
            if answer is not None and ticket == told:
                tell(answer)
                return
            if isinstance(question, Done):
                finished = self.done(worker, question.ticket, now)
                if finished is not None:
                    self._note(worker, finished, question.seconds, now)
            elif why := wrong_loads(question.loads, len(self._sizes)):
                tell(Answer(refused=f"worker {worker}: {why}"))
                return
            elif question.loads is not None and worker not in self.loads:
                self.reweigh(worker, question.loads)
            self._tickets[worker] = ticket
            self.resting[worker] = tell

    def time_goes_on(self, now: float) -> float:
        """Do what time and the master's thread have brought; return when to look
        next.
        """
        with self._guarded():
            if self._over or self.ledger.settled:
                self._tell_over()
                return math.inf
            self._serve(now)
            deadlines = [deadline for _, deadline in self._sendings() if deadline > now]
            copies = {
                w: self.ledger.begun(w) for w in self.ledger.may_be_given(self._free())
            }
            next_look = self.paces.next_look(now, self.ledger.voided, copies)
            return min(next_look, *deadlines, math.inf)
        return math.inf

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What goes wrong in that thread is raised in the master's."""
        with self._turn:
            try:
                yield
            except Exception as error:
                self._error = error

    def _note(
        self, worker: int, finished: Finished, seconds: float, now: float
    ) -> None:
        subset, chunk = finished.chunk
        self.work.append(
            Work(
                iteration=self._iteration,
                worker=worker,
                block=chunk,
                seconds=seconds,
                subset=subset,
                done=now - self._began[worker],
                heard=now,
            )
        )
        self._keep[worker] = finished.keep
        if finished.keep is not None:
            self._names[worker].add(finished.keep)

    def _serve(self, now: float) -> None:
        """Give chunks to those that rest, and ask for their sums as soon as all chunks
        are in one.

        Who is overdue by now is known before: a chunk that is done changes what others
        are expected to take.
        """
        self._silent.update(
            worker for worker, deadline in self._sendings() if deadline <= now
        )
        for worker in self._silent.union(self.paces.overdue(now, self.ledger.voided)):
            self.ledger.late(worker)
        for worker, ticket, chunk in self.hand_out(self._free(), now):
            self._tell(worker, Answer(ticket, chunk))
        if self.ledger.complete:
            for worker in sorted(self.resting):
                wanted = self._wanted(worker, now)
                if wanted is not None:
                    self._tell(worker, Answer(send=wanted[0]))

    def _tell_over(self) -> None:
        with self._turn:
            self.tell_all(Answer(over=True))

    def _tell(self, worker: int, answer: Answer) -> None:
        """Tell a worker what is next, what becomes of its last gradient, and which sums
        stand.
        """
        who = self.ledger.member(worker)
        keep = self._keep.pop(worker, None)
        names = {name for name in self._names[worker] if self.ledger.stands(who, name)}
        self._names[worker] = names
        standing = tuple(sorted(name.number for name in self._names[worker]))
        answer = answer._replace(
            keep=None if keep is None else keep.number, standing=standing
        )
        self._told[worker] = self._tickets.pop(worker), answer
        self.resting.pop(worker)(answer)

    # For both.

    def _forget(self, worker: int) -> None:
        """Forget what an earlier process was told."""
        asked = (
            self.resting,
            self.running,
            self._tickets,
            self._told,
            self._keep,
            self._began,
        )
        by_worker: dict[int, Any]
        for by_worker in asked:
            by_worker.pop(worker, None)
        self._names[worker].clear()
        self._silent.discard(worker)

    def _wanted(self, worker: int, now: float) -> tuple[int, int] | None:
        """The sum that it is to be asked for now, once: its number, and how many chunks
        it has.
        """
        wanted = self.ledger.sum_to_send(self.ledger.member(worker))
        if wanted is None or wanted[0] in self._asked:
            return None
        name, label = wanted
        anew = self.ledger.seconds_anew(worker, self.paces.seconds(now))
        self._asked[name] = _Sending(worker, now, anew)
        return name.number, len(label)

    def _free(self) -> set[int]:
        """Workers that rest, but for those that may be frozen while they send their
        sums.
        """
        return self.resting.keys() - self._silent

    def _arrives(self, worker: int, message: Sum, now: float) -> bool:
        name = Name(self.ledger.step, message.number)
        sent = self._asked.pop(name, None)
        self._came = now
        if sent is not None:
            self._slowest = max(self._slowest, now - sent.since)
        return self.ledger.arrived(self.ledger.member(worker), name, message.label)

    def _sendings(self) -> Iterator[tuple[int, float]]:
        """When the sum of a worker is overdue: after as long as a large chunk.

        Who rests has sent it, and the master may be behind: others' sums have come
        first, and it has twice as long as these took, since the last one. Then it is
        overdue sooner, if others compute its chunks anew in less time.
        """
        for one in self._asked.values():
            since = one.since
            patience = self.paces.patience(one.worker, self.longest, self.ledger.voided)
            if one.worker in self.resting:
                since = max(since, self._came)
                patience = max(patience, 2 * self._slowest)
            deadline = since + patience
            if self._slowest:
                sooner = self.paces.worth_anew(
                    one.anew, 2 * self._slowest, self.ledger.voided
                )
                deadline = min(deadline, max(one.since, self._came) + sooner)
            yield one.worker, deadline

    def _add(self, leaves: list[np.ndarray]) -> None:
        """Add a sum to the total; the first one is Ray's own, and to be read only."""
        if not self._total or not leaves:
            self._total = self._total or list(leaves)
            return
        own = [one if one.flags.writeable else None for one in self._total]
        pairs = zip(self._total, leaves, own, strict=True)
        self._total = [np.add(one, other, out=out) for one, other, out in pairs]
