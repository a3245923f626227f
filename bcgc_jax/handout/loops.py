"""The steps of training loops, which add up their gradients themselves.

All end their chunks, then their sums go into an all-reduce. When all chunks are done, and every
worker waits for that, all are told at once that the step is complete. So no sum of another attempt
meets the others.
"""

import csv
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from bcgc_jax.handout.attempt import Attempt, Tell
from bcgc_jax.handout.messages import NOT_JOINED, Answer, Begin, Done, Join, Seat, wrong_loads
from bcgc_jax.steps.placement import Placement

# Seconds after which it is said for whom a step waits.
_SILENCE = 5.0
# Of a line of the record.
COLUMNS = ("step", "worker", "subset", "chunk", "load", "seconds", "asking")
# A question that was too quick for a clock.
_QUICKEST = 1e-6


class LoopAttempt(Attempt):
    """An attempt that ends when all chunks are done and all workers rest, or that fails.

    Attributes:
      step: its number, as loops count.
      began: when.
      heard: when a worker was heard, of those that have begun.
      rows: of the record.
      is_over: whether it has ended, or failed.
    """

    def __init__(self, number: int, step: int, place: Placement, now: float) -> None:
        super().__init__(number, place.storage, place.sizes, "chunks", line=place.load_line)
        self.number = number
        self.step = step
        self.workers = place.num_workers
        self.began = now
        self.heard: dict[int, float] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.is_over = False

    def is_at(self, rank: int, question: Done) -> bool:
        """Whether it is not over, the worker has begun it, and the ticket is one of it."""
        return not self.is_over and rank in self.heard and question.ticket[0] == self.number

    def rest(self, rank: int, tell: Tell, now: float) -> None:
        """A worker is free."""
        self.heard[rank] = now
        self.resting[rank] = tell

    def note(self, rank: int, question: Done, now: float) -> None:
        """Note a chunk that is done; ValueError where the worker has no such ticket."""
        finished = self.done(rank, question.ticket, now)
        if finished is None:
            raise ValueError("it is no ticket of this worker")
        subset, number = finished.chunk
        load = self.loads[subset][number] if subset in self.loads else ""
        asking = round(max(_QUICKEST, now - finished.since - question.seconds), 6)
        self.rows.append((self.step, rank, subset, number, load, question.seconds, asking))

    def serve(self, now: float) -> None:
        """Hand out chunks to those that rest; end when all chunks are done and all workers rest."""
        for rank, ticket, chunk in self.hand_out(self.resting, now):
            self.resting.pop(rank)(Answer(ticket, chunk))
        if self.ledger.complete and len(self.resting) == self.workers:
            self.end(Answer(over=True))

    def end(self, answer: Answer) -> None:
        self.is_over = True
        self.tell_all(answer)


class Loops:
    """Whoever begins a step first begins an attempt at it; others join in, or begin it anew.

    It warns after five seconds which workers a step waits for.

    Args:
      place: who stores what.
      patience: seconds that a worker may take for a chunk before it counts as lost.
      record: a CSV of the chunks of complete steps.
    """

    def __init__(
        self, place: Placement, patience: float, record: str | os.PathLike[str] | None
    ) -> None:
        self._place = place
        self._patience = patience
        self._record = record
        self._numbers = itertools.count(1)
        self._attempt: LoopAttempt | None = None
        self._lines: dict[int, Tell] = {}  # of the workers that are here
        self._gone: dict[int, float] = {}  # since when, of workers that were here
        self._failed = ""  # why the last attempt has
        self._due = 0.0  # before that nobody is out of patience
        self._warned = 0  # the attempt of which it was said who is missing
        self._write([COLUMNS], "w")

    # What the coordinator calls.

    def joined(self, who: Join, tell: Tell) -> Answer:
        rank = who.rank
        workers = self._place.num_workers
        if not 0 <= rank < workers:
            why = f"there are {workers} workers, from 0 to {workers - 1}: got rank {rank}"
            return Answer(refused=why)
        self._lose(rank, f"another process has taken the place of worker {rank}")
        self._lines[rank] = tell
        self._gone.pop(rank, None)
        sizes = self._place.sizes
        edges = tuple(end / sum(sizes) for end in itertools.accumulate(sizes))
        return Answer(seat=Seat(workers, edges, tuple(self._place.storage.chunks()[rank])))

    def asked(self, who: Join, question: Begin | Done, tell: Tell, now: float) -> None:
        if self._lines.get(who.rank) != tell:
            tell(NOT_JOINED)
        elif isinstance(question, Begin):
            self._begin(who.rank, question, tell, now)
        else:
            self._done(who.rank, question, tell, now)

    def left(self, who: Join, tell: Tell, now: float) -> None:
        if self._lines.get(who.rank) == tell:
            del self._lines[who.rank]
            self._gone[who.rank] = now
            self._lose(who.rank, f"worker {who.rank} is gone")

    def time_goes_on(self, now: float) -> float:
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            return math.inf
        attempt.serve(now)
        if attempt.is_over:
            self._note(attempt.rows)
            return math.inf
        later = self._warn(attempt, now)
        if now < self._due:  # who has been heard since may take longer
            return min(later, self._due)
        # Who has not begun is waited for: perhaps it writes a checkpoint. But not who has ended.
        waited = {rank: max(since, attempt.began) for rank, since in self._gone.items()}
        for rank, since in attempt.heard.items():
            if rank not in attempt.resting:
                waited[rank] = since
        since, rank = min(((since, rank) for rank, since in waited.items()), default=(now, -1))
        self._due = since + self._patience
        if self._due > now:
            return min(later, self._due)
        what = "has been gone" if rank in self._gone else "was silent"
        why = f"worker {rank} {what} for {self._patience:g} s"
        missing = self._missing(attempt, besides=rank)
        self._fail(f"{why}: step {attempt.step} is to be begun anew{missing}")
        return math.inf

    # What a question brings.

    def _begin(self, rank: int, question: Begin, tell: Tell, now: float) -> None:
        step, loads = question
        if why := wrong_loads(loads, len(self._place.sizes)):
            tell(Answer(refused=f"worker {rank}, step {step}: {why}"))
            return
        self._lose(rank, f"worker {rank} has begun it anew")
        attempt = self._attempt
        if attempt is not None and not attempt.is_over:
            if step < attempt.step:
                why = f"worker {rank} asks for step {step}, the others are at {attempt.step}"
                tell(Answer(refused=why))
                return
            if step > attempt.step:
                self._fail(f"worker {rank} asks for step {step}, others are at {attempt.step}")
        if attempt is None or attempt.is_over:
            attempt = LoopAttempt(next(self._numbers), step, self._place, now)
            self._attempt = attempt
        attempt.rest(rank, tell, now)
        if loads is not None:
            attempt.reweigh(rank, loads)

    def _done(self, rank: int, question: Done, tell: Tell, now: float) -> None:
        attempt = self._attempt
        if attempt is None or not attempt.is_at(rank, question):
            tell(Answer(failed=self._failed or "this attempt at the step is over"))
            return
        attempt.note(rank, question, now)
        attempt.rest(rank, tell, now)

    def _lose(self, rank: int, why: str) -> None:
        """A worker is lost: if it has begun a step that is not over, nobody's sum of it counts."""
        attempt = self._attempt
        if attempt is not None and rank in attempt.heard and not attempt.is_over:
            self._fail(f"{why}: step {attempt.step} is to be begun anew")

    def _fail(self, why: str) -> None:
        assert self._attempt is not None
        self._failed = why
        self._attempt.end(Answer(failed=why))

    # What is said of it.

    def _warn(self, attempt: LoopAttempt, now: float) -> float:
        """Say once who has not begun the step; return when to."""
        if len(attempt.heard) == attempt.workers or self._warned == attempt.number:
            return math.inf
        waited = now - attempt.began
        if waited < _SILENCE:
            return attempt.began + _SILENCE
        self._warned = attempt.number
        missing = self._missing(attempt)
        warnings.warn(f"step {attempt.step} has waited for {waited:.0f} s{missing}", stacklevel=1)
        return math.inf

    def _missing(self, attempt: LoopAttempt, besides: int = -1) -> str:
        """A sentence with the workers that have not begun the step; nothing if all have."""
        ranks: dict[str, list[str]] = {}
        for rank in range(attempt.workers):
            if rank not in attempt.heard and rank != besides:
                state = "have not joined"
                if rank in self._lines:
                    state = "have joined, but not begun it"
                elif rank in self._gone:
                    state = "are gone"
                ranks.setdefault(state, []).append(str(rank))
        return "".join(
            f". Workers that {state}: {', '.join(names)}" for state, names in ranks.items()
        )

    def _note(self, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self._write(rows, "a")
        except OSError as error:
            warnings.warn(f"the record ends here, the training goes on: {error}", stacklevel=1)
            self._record = None

    def _write(self, rows: Sequence[Sequence[Any]], mode: str) -> None:
        if self._record is not None:
            with open(self._record, mode, newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
