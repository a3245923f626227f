"""A master and workers that share work in one process, on a clock of their own."""

import functools
import heapq
import itertools
from typing import Any

import jax
import numpy as np

from bcgc_jax.cluster.chunks import ChunkWorker, Place
from bcgc_jax.cluster.shared_round import SharedRound
from bcgc_jax.handout.messages import Begin, Join
from bcgc_jax.handout.transport import Memory

NOWHERE = Place(("", 0), Memory())


class World:
    """Worker w takes `seconds(w, chunk)` for a chunk. Frozen workers speak once thawed.

    `breaks()`: whether the line of a worker that asks breaks, before the answer comes.
    """

    def __init__(self, workers, seconds, plan, sending=0.0):
        self.workers = workers
        self.seconds = seconds
        self.plan = plan
        self.sending = [sending] * plan.num_workers  # of the sum of each worker
        self.busy = [0.0] * plan.num_workers
        self.roster, self.calls = None, itertools.count(1)
        self.frozen: set[int] = set()
        self.breaks = lambda: False

    def step(self, params, killed=(), successors=(), frozen=(), thawed=(), iteration=1):
        """The gradient, and when it was there. Faults are pairs (time, worker)."""
        leaves = jax.tree.leaves(params)
        self.order = itertools.count()
        self.now = 0.0
        self.events: list[Any] = []
        self.held: list[Any] = []
        assignment = self.plan, params, next(self.calls), iteration, leaves, None
        self.round = SharedRound(*assignment, NOWHERE, self.touch, self.roster)
        for worker in set(range(self.plan.num_workers)) - self.frozen:
            self.put(self.busy[worker], self.begin, worker)
        happens = (
            (self.kill, killed),
            (self.freeze, frozen),
            (self.thaw, thawed),
            (self.join, successors),
        )
        for what, when in happens:
            for moment, *arguments in when:
                self.put(moment, what, *arguments)
        while (gradient := self.round.gradient()) is None:
            look = self.round.time_goes_on(self.now)
            if not self.events or look < self.events[0][0]:
                assert look < np.inf, "nothing moves"
                self.now = look
                continue
            self.now, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
            self.send(self.round.look(self.now))
        self.round.end()
        for _, worker, process in successors:
            if self.workers[worker] is None:  # it is there for the next step
                self.workers[worker], self.busy[worker] = process, 0.0
        self.roster = self.round.ledger.roster
        self.busy = [max(end - self.now, 0.0) for end in self.busy]
        return gradient, self.now

    def put(self, moment, what, *arguments):
        heapq.heappush(self.events, (moment, next(self.order), what, arguments))

    def touch(self, first=lambda: None):
        first()

    def send(self, asks):
        for ask in asks:
            process = self.workers[ask.worker]
            if ask.method == "deliver":
                arrives = self.now + self.sending[ask.worker]
                self.put(
                    arrives, self.hear, ask, process.deliver(*ask.arguments), process
                )
            else:
                process.open(*ask.arguments[:2])
                self.ask(ask, process, Begin(ask.arguments[0].step))

    def ask(self, ask, process, question):
        if ask.worker in self.frozen:
            self.held.append((ask.worker, self.ask, ask, process, question))
        elif self.workers[ask.worker] is process:
            who = Join(ask.worker, ask.arguments[0].life)
            if self.breaks():
                self.round.asked(who, question, lambda answer: None, self.now)
                self.put(self.now + 0.1, self.ask, ask, process, question)
            else:
                tell = functools.partial(self.tell, ask, process)
                self.round.asked(who, question, tell, self.now)

    def tell(self, ask, process, answer):
        """The worker does it at once, and asks again when that has taken its time."""
        if answer.over:
            return
        question, end = process.work(answer), self.now
        if answer.chunk is not None:
            self.busy[ask.worker] = end = self.now + self.seconds(
                ask.worker, answer.chunk
            )
        if answer.send is not None:  # it asks again while that is on its way
            arrives = self.now + self.sending[ask.worker]
            self.put(arrives, self.hear, ask, process.sum(answer.send), process)
        self.put(end, self.ask, ask, process, question)

    def begin(self, worker):
        if self.workers[worker] is not None:
            self.send(self.round.begin(worker, self.now))

    def hear(self, ask, answer, process):
        if ask.worker in self.frozen:
            self.held.append((ask.worker, self.hear, ask, answer, process))
        elif self.workers[ask.worker] is process:
            self.send(self.round.heard(ask, answer, self.now))

    def kill(self, worker):
        self.workers[worker] = None
        self.send(self.round.lost(worker, self.now))

    def freeze(self, worker):
        self.frozen.add(worker)

    def thaw(self, worker):
        self.frozen.discard(worker)
        for which, what, *arguments in self.held:
            if which == worker:
                self.put(self.now, what, *arguments)
        self.held = [message for message in self.held if message[0] != worker]

    def join(self, worker, process):
        self.workers[worker], self.busy[worker] = process, self.now
        self.begin(worker)


def chunk_worker(duty, worker, cut):
    return ChunkWorker(
        duty, worker, {chunk: cut[chunk] for chunk in duty.plan.held(worker)}
    )
