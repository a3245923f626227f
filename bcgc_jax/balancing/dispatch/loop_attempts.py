"""Attempts at a step of training loops: a shared one, and one of own chunks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bcgc_jax.balancing.chunk_lengths import TICKS_OF_UNIT, UNITS, LoadLine
from bcgc_jax.balancing.dispatch.judge import DoneStep
from bcgc_jax.balancing.dispatch.messages import (
    Answer,
    Done,
    OwnDone,
    Tell,
    loads_of_whole,
)
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.placement import Placement

# Columns of the record; `share` is that of a whole chunk.
COLUMNS = ("step", "worker", "subset", "chunk", "share", "load", "seconds", "asking")
# Seconds of what was too quick for a clock: the last digit that is recorded.
_QUICKEST = 1e-6


class SharedAttempt:
    """Ends when all chunks are done and all workers rest, or fails.

    Attributes:
      number: Its own, never used twice.
      step: Its number, as loops count.
      present: The workers that take part.
      began: When it began.
      heard: The workers that have begun, and their connections.
      resting: Workers without a chunk, and how to tell them what is next.
      rows: Its rows of the record.
      is_over: Whether it has ended, or failed.
    """

    def __init__(
        self,
        number: int,
        step: int,
        place: Placement,
        now: float,
        present: frozenset[int],
    ) -> None:
        self.number = number
        self.step = step
        self.present = present
        self.began = now
        self.heard: dict[int, Tell] = {}
        self.resting: dict[int, Tell] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.is_over = False
        sizes = [place.sizes] * place.num_workers
        self._ledger = Ledger(place.storage, sizes, TICKS_OF_UNIT, present)
        self._shares = [size / UNITS for size in place.sizes]
        # Predicts what a chunk takes from its load. By default, the mean chunk of the
        # first worker is a usual one.
        self._line = place.load_line
        self._loads: dict[int, list[float]] = {}  # of each subset
        self._workers = place.num_workers
        self._starts: dict[int, float] = {}
        self._ended = now

    def begin(
        self, rank: int, loads: list[float] | None, tell: Tell, now: float
    ) -> None:
        """A worker begins, and is free."""
        self._starts[rank] = now
        self.heard[rank] = self.resting[rank] = tell
        if loads is not None:
            self._loads[rank] = loads
            if self._line is None:
                self._line = LoadLine.proportional(loads, self._shares)
            ticks = self._line.ticks(loads, self._shares)
            self._ledger.queue.reweigh(rank, ticks.tolist())

    def is_at(self, rank: int, question: Done) -> bool:
        """Whether the worker has begun it, the ticket fits, and it is not over."""
        return (
            not self.is_over
            and rank in self.heard
            and question.ticket[0] == self.number
        )

    def note(self, rank: int, question: Done, tell: Tell, now: float) -> None:
        """A chunk is done; ValueError where the worker has no such ticket."""
        handout = self._ledger.done(rank, question.ticket[1], now)
        if handout is None:
            raise ValueError("this ticket was not issued to this worker")
        subset, number = handout.chunk
        share = self._shares[number]
        load = self._loads[subset][number] if subset in self._loads else ""
        asking = round(max(_QUICKEST, now - handout.since - question.seconds), 6)
        self.rows.append(
            (self.step, rank, subset, number, share, load, question.seconds, asking)
        )
        self._ended = now
        self.resting[rank] = tell

    def serve(self, now: float) -> bool:
        """Hand out chunks; whether all are done, and all workers rest."""
        for handout in self._ledger.hand_out(self.resting, now):
            tell = self.resting.pop(handout.worker)
            tell(Answer((self.number, handout.ticket), handout.chunk))
        return self._ledger.complete and len(self.resting) == len(self.present)

    def end(self, answer: Answer) -> None:
        self.is_over = True
        _tell_all(self.resting, answer)

    def as_done(self) -> DoneStep:
        """The complete step of all workers, for a judge."""
        rows = sorted(self.rows, key=lambda row: row[2:4])
        starts = np.array([self._starts[rank] for rank in range(self._workers)])
        ticks = None
        if len(self._loads) == self._workers:
            ticks = np.array([self._ledger.queue.weight(row[2:4]) for row in rows])
        return DoneStep(
            is_shared=True,
            who=np.array([row[1] for row in rows]),
            seconds=np.maximum([row[6] for row in rows], _QUICKEST),
            starts=starts - starts.min(),
            took=self._ended - starts.min(),
            questions=[row[7] for row in rows],
            ticks=ticks,
        )


class OwnAttempt:
    """Ends when all workers have done their own chunks, or fails. They ask nothing
    before.

    Its attributes are those of `SharedAttempt`. `began` is when the first worker has
    ended, and `heard` has those that have ended.
    """

    def __init__(self, number: int, step: int, place: Placement, now: float) -> None:
        self.number = number
        self.step = step
        self.present = frozenset(range(place.num_workers))
        self.began = now
        self.heard: dict[int, Tell] = {}
        self.resting: dict[int, Tell] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.is_over = False
        self._place = place
        self._done: dict[int, OwnDone] = {}

    def note(self, rank: int, question: OwnDone, tell: Tell) -> None:
        """A worker has done its chunks; ValueError where these are others."""
        if len(question.seconds) != self._place.chunks:
            raise ValueError(f"there are {self._place.chunks} own chunks")
        self._done[rank] = question
        loads: Sequence[Any] = [""] * self._place.chunks
        if question.loads is not None:
            loads = loads_of_whole(question.loads, self._place.chunks)
        for number, (load, seconds) in enumerate(
            zip(loads, question.seconds, strict=True)
        ):
            self.rows.append((self.step, rank, rank, number, 1.0, load, seconds, ""))
        self.heard[rank] = self.resting[rank] = tell

    def serve(self, now: float) -> bool:
        """Whether all are done."""
        return len(self.resting) == len(self.present)

    def end(self, answer: Answer) -> None:
        self.is_over = True
        _tell_all(self.resting, answer)

    def as_done(self) -> DoneStep:
        """The complete step, for a judge."""
        done = [self._done[rank] for rank in sorted(self.present)]
        since = np.array([question.since for question in done])
        return DoneStep(
            is_shared=False,
            who=np.repeat(np.arange(len(done)), self._place.chunks),
            seconds=np.maximum(
                np.ravel([question.seconds for question in done]), _QUICKEST
            ),
            starts=since - since.min(),
            ticks=self._ticks([question.loads for question in done]),
        )

    @property
    def share_of_chunks(self) -> float:
        """The largest share that chunks have of a worker's time between answers."""
        done = [
            (sum(question.seconds), question.since) for question in self._done.values()
        ]
        return max(busy / max(busy + since, _QUICKEST) for busy, since in done)

    def _ticks(self, loads: Sequence[list[float] | None]) -> np.ndarray | None:
        """The lengths of all pieces, where all workers have sent them."""
        if any(of_worker is None for of_worker in loads):
            return None
        shares = self._place.shares
        line = self._place.load_line or LoadLine.proportional(loads, shares)
        return line.ticks(loads, shares).ravel()


def _tell_all(resting: dict[int, Tell], answer: Answer) -> None:
    """Tell those who rest what is next, so that they rest no more."""
    workers = [*resting]
    for worker in workers:
        resting.pop(worker)(answer)
