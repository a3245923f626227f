"""Work sharing on processes: the master hands out chunks, asks for the sums, and adds them as they come."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster.chunks import Begin, Decision
from bcgc_jax.cluster.rounds import Ask, Work
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import PyTree
from bcgc_jax.plans.handout import Handout, Member, Name, Roster
from bcgc_jax.plans.timing import Timing


class SharedRound:
    """A `Round` of chunks: `Handout` says who computes what and which sum counts, `Timing` what is overdue.

    The worker's questions are the answers to what it was asked: whoever has done a chunk is free.
    """

    behind = 1  # a worker computes one chunk at a time

    def __init__(
        self,
        plan: SharedPlan,
        params: PyTree,
        call: int,
        iteration: int,
        leaves: Any,
        finish: np.ndarray | None,
        before: Roster | None = None,
    ) -> None:
        workers = plan.num_workers
        self.handout = Handout(call, plan.storage, [plan.sizes] * workers, "sums", before)
        self.timing = Timing(workers)
        self.arrived = np.zeros((1, workers), bool)
        self.completed = np.full(1, np.inf)
        self.work: list[Work] = []
        self._params, self._iteration, self._leaves = params, iteration, leaves
        self._pace = None if finish is None else _paces(finish, sum(plan.sizes))
        self._largest = max(plan.sizes)
        self._free: set[int] = set()  # without a chunk
        self._silent: set[int] = set()  # whose sum is overdue: to give it a chunk is no sign of its life
        self._began: dict[int, float] = {}  # when a worker began the iteration
        self._decisions: dict[int, Decision] = {}  # the last one of each worker
        self._names: dict[int, set[Name]] = {worker: set() for worker in range(workers)}
        self._asked: dict[Name, tuple[int, float]] = {}  # sums on their way: of whom, since when
        self._total: list[np.ndarray] = []

    def begin(self, worker: int, now: float) -> list[Ask]:
        if worker not in self.handout.roster.alive:
            self.handout.join(worker)
        self._began.pop(worker, None)
        self._decisions.pop(worker, None)
        self._names[worker].clear()
        self._free.add(worker)
        self._silent.discard(worker)
        return self._asks(now)

    def heard(self, ask: Ask, message: Any, now: float) -> list[Ask]:
        worker, who = ask.worker, self._member(ask.worker)
        if ask.method == "deliver":
            name = ask.given[1]
            self._asked.pop(name, None)
            self._silent.discard(worker)
            if message is not None and self.handout.arrived(who, name, message[0]):
                self._add(message[1])
                self.arrived[0, worker] = True
                self.completed[0] = now if self.handout.settled else np.inf
            return self._asks(now)
        _, ticket, (subset, chunk), *_ = ask.given
        self.timing.ended(worker, now)
        done = now - self._began[worker]
        self.work.append(Work(self._iteration, worker, chunk, message, subset, done, now))
        keep = self.handout.done(who, ticket)
        if keep is not None:
            self._names[worker].add(keep)
        last = self._decisions[worker]
        self._decisions[worker] = last._replace(ticket=ticket, keep=keep)
        self._free.add(worker)
        return self._asks(now)

    def ended(self, ask: Ask, message: Any) -> bool:
        return True  # one message a call

    def lost(self, worker: int, now: float) -> list[Ask]:
        self.handout.lost(worker)
        self.timing.lost(worker)
        self._free.discard(worker)
        self._silent.discard(worker)
        self._asked = {name: one for name, one in self._asked.items() if one[0] != worker}
        return self._asks(now)

    def look(self, now: float) -> list[Ask]:
        return self._asks(now)

    def next_look(self, now: float) -> float:
        deadlines = [deadline for _, deadline in self._sendings() if deadline > now]
        return min(self.timing.next_look(now, self.handout.voided), *deadlines, math.inf)

    def short(self, coming: Collection[int]) -> str:
        return "" if self.handout.possible(coming) else "nobody else stores some of their chunks"

    def gradient(self) -> PyTree | None:
        if not self.handout.settled:
            return None
        leaves, tree = jax.tree.flatten(self._params)
        pairs = zip(leaves, self._total, strict=True)
        return jax.device_put(
            jax.tree.unflatten(tree, [one.astype(jnp.result_type(leaf)) for leaf, one in pairs])
        )

    def _member(self, worker: int) -> Member:
        """Its present process: what an earlier one was asked is not heard any more."""
        return self.handout.member(worker)

    def _asks(self, now: float) -> list[Ask]:
        """Chunks for those that are free, and the sums as soon as all chunks are in one.

        Who is overdue by now is known before: a chunk that is done changes what others are expected to take.
        """
        self._silent.update(worker for worker, deadline in self._sendings() if deadline <= now)
        for worker in self._silent.union(self.timing.overdue(now, self.handout.voided)):
            self.handout.late(worker)
        asks = []
        for worker in sorted(self._free - self._silent):
            seconds, worth = self.timing.seconds(now), self.timing.worth(worker, now)
            given = self.handout.next(self._member(worker), seconds, worth)
            if given is None:
                continue
            ticket, chunk = given
            self._free.remove(worker)
            self.timing.began(worker, chunk, self.handout.sizes[chunk], now)
            beginning = () if worker in self._began else (self._begin(worker), self._leaves)
            self._began.setdefault(worker, now)
            asks.append(Ask(worker, "exchange", (self._decision(worker), ticket, chunk, *beginning)))
        if self.handout.complete:
            for worker in range(len(self._names)):
                wanted = self.handout.wanted(self._member(worker))
                if wanted is not None and wanted[0] not in self._asked:
                    self._asked[wanted[0]] = worker, now
                    asks.append(Ask(worker, "deliver", (self._decision(worker), wanted[0])))
        return asks

    def _begin(self, worker: int) -> Begin:
        return Begin(self._iteration, None if self._pace is None else self._pace[worker])

    def _decision(self, worker: int) -> Decision:
        """A new one each time: two threads of the worker hear of them, and none counts after a later one."""
        last = self._decisions.get(worker, Decision(self.handout.step, 0))
        who = self._member(worker)
        self._names[worker] = {name for name in self._names[worker] if self.handout.stands(who, name)}
        standing = tuple(sorted(self._names[worker]))
        self._decisions[worker] = last._replace(number=last.number + 1, standing=standing)
        return self._decisions[worker]

    def _sendings(self) -> list[tuple[int, float]]:
        """When the sum of a worker is overdue: it takes no longer than a large chunk."""
        size, voided = self._largest, self.handout.voided
        return [(w, asked + self.timing.patience(w, size, voided)) for w, asked in self._asked.values()]

    def _add(self, leaves: list[np.ndarray]) -> None:
        """The first sum is Ray's own, and to be read only."""
        if not self._total or not leaves:
            self._total = self._total or list(leaves)
            return
        own = [one if one.flags.writeable else None for one in self._total]
        pairs = zip(self._total, leaves, own, strict=True)
        self._total = [np.add(one, other, out=out) for one, other, out in pairs]


def _paces(finish: np.ndarray, units: int) -> list[tuple[float, float]]:
    """Of each worker its begin, and seconds for a unit, from its begin and the end of a whole subset."""
    begins, ends = finish.tolist()
    return [(begin, (end - begin) / units) for begin, end in zip(begins, ends, strict=True)]
