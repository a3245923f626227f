"""Work sharing on processes: chunks are handed out, and the master adds the sums."""

import contextlib
import dataclasses
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
from bcgc_jax.handout.attempt import Attempt, Tell
from bcgc_jax.handout.messages import (
    AfterJoin,
    Answer,
    Begin,
    Done,
    Join,
    wrong_loads,
)
from bcgc_jax.steps.ledger import Member, Name, Roster


class _Sending(NamedTuple):
    """A sum on its way.

    Attributes:
      worker: whose it is.
      asked_at: when it was asked for.
      seconds_anew: in which others would compute its chunks anew.
    """

    worker: int
    asked_at: float
    seconds_anew: float


@dataclasses.dataclass
class _Dialogue:
    """What a worker's process and the coordinator have said; a successor's is another.

    Attributes:
      began: when the process first asked.
      ticket: of the chunk that it last said to be done; None before.
      answer, answered: the last answer, and the ticket that it answers.
      keep: the sum that its last gradient belongs to, which it is to be told.
      sums: those that it may have.
    """

    began: float
    ticket: int | None = None
    answer: Answer | None = None
    answered: int | None = None
    keep: Name | None = None
    sums: set[Name] = dataclasses.field(default_factory=set)


class SharedRound(Attempt):
    """A `Round` of chunks: an attempt that ends with the sums, which the master adds.

    A chunk is handed out by `time_goes_on`. When it is done, which `asked` hears, the
    ledger names the sum of the worker that its gradient is added to. Once each chunk is
    in a sum, every worker is asked for its sums: one that computes by `look`, one that
    rests by `time_goes_on`. A sum that comes, which `heard` is told, is added if the
    ledger says so. The round is over when all chunks are added.

    Two threads use it. The master's calls `begin`, then `heard`, `lost` and `look`, and
    at last `gradient` and `end`. The coordinator's calls `asked` and `time_goes_on`,
    and looks when it is touched. Whoever has the `_turn` reads and changes the books;
    the total is the master's alone.
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
        self.arrived = np.zeros((1, plan.num_workers), bool)
        self.completed = np.full(1, np.inf)
        self.work: list[Work] = []
        self._params = params
        self._iteration = iteration
        self._leaves = leaves
        self._place = place
        self._touch = touch
        self._pace = pace
        self._sizes = plan.sizes
        self._workers = range(plan.num_workers)
        self._turn = threading.Lock()
        self._dialogues: dict[int, _Dialogue] = {}  # with workers that have asked
        self._sendings: dict[Name, _Sending] = {}
        self._silent: set[int] = set()  # workers whose sum is overdue
        self._last_arrival: float | None = None  # of a sum
        self._slowest_sending = 0.0  # seconds, of sums that have arrived
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
        counts = False
        with self._turn:
            self._silent.discard(ask.worker)
            if message is not None:
                counts = self._arrives(ask.worker, message, now)
            else:  # the worker has forgotten the sum
                self._sendings.pop(Name(self.ledger.step, ask.arguments[1]), None)
        if counts:  # added now, by this thread
            self._add(message.leaves)
            self.arrived[0, ask.worker] = True
            if self.ledger.settled:
                self.completed[0] = now
        self._touch()
        return self.look(now)

    def ended(self, ask: Ask, message: Any) -> bool:
        return ask.method == "deliver"

    def lost(self, worker: int, now: float) -> list[Ask]:
        with self._turn:
            self.ledger.lost(worker)
            self.paces.lost(worker)
            self._forget(worker)
            self._sendings = {
                name: sending
                for name, sending in self._sendings.items()
                if sending.worker != worker
            }
        self._touch()
        return self.look(now)

    def look(self, now: float) -> list[Ask]:
        """Ask those who compute for their sums; those who rest ask by themselves."""
        asks = []
        with self._turn:
            if not self.ledger.complete:
                return []
            for worker in self._workers:
                if worker in self.resting:
                    continue
                request = self._request(worker, now)
                if request is not None:
                    asks.append(Ask(worker, "deliver", (self.ledger.step, *request)))
        return asks

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
        total = [array.astype(jnp.result_type(leaf)) for leaf, array in pairs]
        return jax.device_put(jax.tree.unflatten(tree, total))

    def end(self) -> None:
        """Whoever asks is told that it is over, whether there is a gradient or not."""
        self._over = True
        self._touch(self._tell_over)

    # For the thread that is asked by workers.

    def joined(self, who: Join, tell: Tell, now: float) -> Answer:
        return Answer()

    def left(self, who: Join, tell: Tell, now: float) -> None:
        """Ray says more of that."""

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        """A worker has begun, or done its chunk: `time_goes_on` tells it what is next.

        Its line may have broken before it heard the answer. Then it asks again, and has
        the same answer.
        """
        if not isinstance(question, Begin | Done):
            raise ValueError("it is a message of a training loop")
        with self._guarded():
            worker = who.rank
            if isinstance(question, Begin):
                step, ticket = (question.step, None)
            else:
                step, ticket = question.ticket
            # A question of an earlier step, or of a process that was given up.
            if self._over or not self.ledger.present(Member(step, worker, who.life)):
                tell(Answer(over=True))
                return
            dialogue = self._dialogues.setdefault(worker, _Dialogue(now))
            self._speaks(worker, now)
            if dialogue.answer is not None and dialogue.answered == ticket:
                tell(dialogue.answer)
                return
            if isinstance(question, Done):
                self._take_done(worker, question, now)
            elif why := wrong_loads(question.loads, len(self._sizes)):
                tell(Answer(refused=f"worker {worker}: {why}"))
                return
            elif question.loads is not None and worker not in self.loads:
                self.reweigh(worker, question.loads)
            dialogue.ticket = ticket
            self.resting[worker] = tell

    def time_goes_on(self, now: float) -> float:
        """Do what time and the master's thread brought; return when to look next."""
        with self._guarded():
            if self._over or self.ledger.settled:
                self.tell_all(Answer(over=True))
                return math.inf
            self._mark_late(now)
            self._serve(now)
            deadlines = [
                deadline for _, deadline in self._deadlines() if deadline > now
            ]
            copies = {
                worker: self.ledger.begun(worker)
                for worker in self.ledger.may_be_given(self._free())
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

    def _speaks(self, worker: int, now: float) -> None:
        """A worker that asks is not frozen: from now on it sends its sum."""
        self._silent.discard(worker)
        for name, sending in self._sendings.items():
            if sending.worker == worker:
                self._sendings[name] = sending._replace(asked_at=now)

    def _take_done(self, worker: int, question: Done, now: float) -> None:
        finished = self.done(worker, question.ticket, now)
        if finished is None:
            return
        dialogue = self._dialogues[worker]
        subset, chunk = finished.chunk
        self.work.append(
            Work(
                iteration=self._iteration,
                worker=worker,
                block=chunk,
                seconds=question.seconds,
                subset=subset,
                done=now - dialogue.began,
                heard=now,
            )
        )
        dialogue.keep = finished.keep
        if finished.keep is not None:
            dialogue.sums.add(finished.keep)

    def _mark_late(self, now: float) -> None:
        """Tell the ledger whose chunk or sum is overdue by now.

        This is done before chunks are handed out: a chunk that is done changes what
        others are expected to take.
        """
        self._silent.update(
            worker for worker, deadline in self._deadlines() if deadline <= now
        )
        for worker in self._silent.union(self.paces.overdue(now, self.ledger.voided)):
            self.ledger.late(worker)

    def _serve(self, now: float) -> None:
        """Hand out chunks, and ask for sums once all chunks are in one."""
        for worker, ticket, chunk in self.hand_out(self._free(), now):
            self._tell(worker, Answer(ticket, chunk))
        if self.ledger.complete:
            for worker in sorted(self.resting):
                request = self._request(worker, now)
                if request is not None:
                    self._tell(worker, Answer(send=request[0]))

    def _tell_over(self) -> None:
        with self._turn:
            self.tell_all(Answer(over=True))

    def _tell(self, worker: int, answer: Answer) -> None:
        """Tell what is next, where the last gradient goes, and which sums stand."""
        dialogue = self._dialogues[worker]
        who = self.ledger.member(worker)
        dialogue.sums = {
            name for name in dialogue.sums if self.ledger.stands(who, name)
        }
        keep = None
        if dialogue.keep is not None:
            keep = dialogue.keep.number
        standing = tuple(sorted(name.number for name in dialogue.sums))
        dialogue.keep = None
        dialogue.answer = answer._replace(keep=keep, standing=standing)
        dialogue.answered = dialogue.ticket
        self.resting.pop(worker)(dialogue.answer)

    # For both, who have the turn.

    def _forget(self, worker: int) -> None:
        """Forget what an earlier process said and was told."""
        self.resting.pop(worker, None)
        self.running.pop(worker, None)
        self._dialogues.pop(worker, None)
        self._silent.discard(worker)

    def _request(self, worker: int, now: float) -> tuple[int, int] | None:
        """The sum to send now, asked for once: its number and its count of chunks."""
        closed = self.ledger.sum_to_send(self.ledger.member(worker))
        if closed is None or closed[0] in self._sendings:
            return None
        name, label = closed
        seconds_anew = self.ledger.seconds_anew(worker, self.paces.seconds(now))
        self._sendings[name] = _Sending(worker, now, seconds_anew)
        return name.number, len(label)

    def _free(self) -> set[int]:
        """Workers that rest, but for those that may be frozen while they send."""
        return self.resting.keys() - self._silent

    def _arrives(self, worker: int, message: Sum, now: float) -> bool:
        """Whether a sum that has come is to be added."""
        name = Name(self.ledger.step, message.number)
        sending = self._sendings.pop(name, None)
        self._last_arrival = now
        if sending is not None:
            seconds = now - sending.asked_at
            self._slowest_sending = max(self._slowest_sending, seconds)
        return self.ledger.arrived(self.ledger.member(worker), name, message.label)

    def _deadlines(self) -> Iterator[tuple[int, float]]:
        """Workers whose sums are on their way, and when these are overdue."""
        for sending in self._sendings.values():
            yield sending.worker, self._deadline(sending)

    def _deadline(self, sending: _Sending) -> float:
        """a + p of a worker that computes, max(a, c) + max(p, 2 r) of one that rests.

        The sum was asked for at a, and a large chunk takes less than p. The last sum
        has come at c, and the slowest took r. Who rests has sent its sum, so the master
        may be behind with those of others: until a first one has come there is no
        deadline. Others may compute the chunks anew in less time, w of `worth_anew`:
        then the sum is overdue at max(a, c) + w.
        """
        voided = self.ledger.voided
        patience = self.paces.patience(sending.worker, self.longest, voided)
        behind = sending.asked_at
        if self._last_arrival is not None:
            behind = max(behind, self._last_arrival)
        if sending.worker not in self.resting:
            deadline = sending.asked_at + patience
        elif self._last_arrival is None:
            deadline = math.inf
        else:
            deadline = behind + max(patience, 2 * self._slowest_sending)
        if self._slowest_sending:
            sooner = self.paces.worth_anew(
                sending.seconds_anew, 2 * self._slowest_sending, voided
            )
            deadline = min(deadline, behind + sooner)
        return deadline

    # For the master's thread alone.

    def _add(self, leaves: list[np.ndarray]) -> None:
        """Add a sum to the total; the first one is Ray's own, and to be read only."""
        if not leaves:
            return
        if not self._total:
            self._total = list(leaves)
            return
        for place, leaf in enumerate(leaves):
            array = self._total[place]
            out = None
            if array.flags.writeable:
                out = array
            self._total[place] = np.add(array, leaf, out=out)
