"""A training by a clock of its own, whose workers ask a coordinator."""

import functools
import heapq
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from bcgc_jax.balancing.chunk_lengths import UNITS
from bcgc_jax.balancing.dispatch.coordinator import Coordinator
from bcgc_jax.balancing.dispatch.judge import Judge
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import Answer, Begin, Done, Join, OwnDone
from bcgc_jax.balancing.dispatch.transport import Memory
from bcgc_jax.balancing.placement import Placement

QUESTION = 7e-4  # seconds


class Fickle:
    """In place of a judge: a mode for each step, whatever it took."""

    def __init__(self):
        self.mode = SimpleNamespace(is_shared=False)

    def add(self, step):
        assert step.starts.min() == 0


class Training:
    """Workers of a placement. A step counts `units`, quarters of chunks, by subset."""

    def __init__(self, place: Placement, record=None, judge: Any = None):
        self.place = place
        self.now = 0.0
        self.judge = judge or Judge(place, run=lambda work: work())
        shares = self.judge.mode.is_shared
        self.loops = Loops(place, 1e9, record, self.judge, shares)
        self.coordinator = Coordinator(Memory(), self.loops, lambda: self.now)
        self.answers: dict[int, Answer] = {}
        ranks = range(place.num_workers)
        self.replies = [functools.partial(self.hear, rank) for rank in ranks]
        joined = [
            self.loops.joined(Join(rank), self.replies[rank], 0.0) for rank in ranks
        ]
        self.is_shared = joined[0].shares
        self.shares: list[bool] = []
        self.units: Counter[tuple[int, int]] = Counter()

    def hear(self, rank: int, answer: Answer) -> None:
        self.answers[rank] = answer

    def run(self, paces: np.ndarray) -> None:
        """Steps in which chunks take these seconds, `[steps, N]`."""
        with self.coordinator:
            for step, pace in enumerate(paces.tolist()):
                self.shares.append(self.is_shared)
                self.step(step, pace)

    def step(
        self, step: int, pace: list[float], present: list[int] | None = None
    ) -> float:
        """What it took."""
        self.units.clear()
        is_shared = self.is_shared or present is not None
        began = self.now
        asks: list[tuple[float, int, Any]] = []
        for rank in range(self.place.num_workers) if present is None else present:
            if is_shared:
                asks.append((began, rank, Begin(step, None, present)))
                continue
            own_chunks = [pace[rank]] * self.place.chunks
            asks.append((began + sum(own_chunks), rank, OwnDone(step, 0.0, own_chunks)))
            self.add(rank, 0, UNITS * self.place.chunks)
        edges = np.cumsum([0, *self.place.sizes]).tolist()
        while asks:
            self.now, rank, question = heapq.heappop(asks)
            self.answers.clear()
            self.loops.asked(Join(rank), question, self.replies[rank], self.now)
            self.loops.time_goes_on(self.now)
            for asker, answer in self.answers.items():
                assert not answer.refused, answer.refused
                if answer.ticket is not None and answer.chunk is not None:
                    subset, number = answer.chunk
                    self.add(subset, edges[number], edges[number + 1])
                    seconds = pace[asker] * self.place.shares[number]
                    done = Done(answer.ticket, seconds)
                    heapq.heappush(asks, (self.now + QUESTION + seconds, asker, done))
        assert [answer.over for answer in self.answers.values()] == [True] * self.count(
            present
        )
        self.is_shared = next(iter(self.answers.values())).shares
        return self.now - began

    def count(self, present: list[int] | None) -> int:
        return self.place.num_workers if present is None else len(present)

    def add(self, subset: int, begin: int, end: int) -> None:
        self.units.update((subset, unit) for unit in range(begin, end))

    @property
    def is_whole(self) -> bool:
        """Whether all data were in the last step once."""
        units = range(UNITS * self.place.chunks)
        return self.units == Counter(
            (j, u) for j in range(self.place.num_workers) for u in units
        )
