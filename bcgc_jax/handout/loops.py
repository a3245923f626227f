"""The steps of training loops, which add up their gradients themselves.

All end their chunks, then their sums go into an all-reduce. When all chunks are done,
and every worker waits for that, all are told at once that the step is complete, and
whether the next one is shared. So no sum of another attempt meets the others, and all
know the mode of a step.
"""

import csv
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from bcgc_jax.handout import copies
from bcgc_jax.handout.attempt import Tell
from bcgc_jax.handout.judge import Judge
from bcgc_jax.handout.loop_attempts import COLUMNS, Deadline, OwnAttempt, SharedAttempt
from bcgc_jax.handout.messages import (
    NOT_JOINED,
    SILENCE,
    AfterJoin,
    Answer,
    Begin,
    Copies,
    Covers,
    Done,
    Join,
    OwnDone,
    Seat,
    TakeSeat,
    wrong_loads,
    wrong_rank,
)
from bcgc_jax.steps import absences
from bcgc_jax.steps.placement import Placement

# An attempt by which programs are compiled, and the least share of a step that is its
# chunks'.
_SETTLED, _SHORT = 5, 0.02


class Loops:
    """Whoever begins a step first begins an attempt at it; others join in, or begin it
    anew.

    It warns after five seconds which workers a step waits for.

    Args:
      place: who stores what.
      patience: seconds that a worker may take for a chunk before it counts as lost.
      record: a CSV of the chunks of complete steps.
      judge: says which steps are shared; None: all or none, as `shares` says.
      shares: whether the first step is.
    """

    def __init__(
        self,
        place: Placement,
        patience: float,
        record: str | os.PathLike[str] | None,
        judge: Judge | None = None,
        shares: bool = True,
    ) -> None:
        self._place = place
        self._patience = patience
        self._record = record
        self._judge = judge
        self._shares = shares
        self._numbers = itertools.count(1)
        self._copies = copies.Copies()
        self._attempt: SharedAttempt | OwnAttempt | None = None
        self._all = frozenset(range(place.num_workers))
        self._present = self._all  # in the last attempt
        self._lines: dict[int, Tell] = {}  # of the workers that are here
        self._gone: dict[int, float] = {}  # since when, of workers that were here
        self._failed = ""  # why the last attempt has
        # Who was lost and why, for each worker that hears it only when its own chunks
        # are done.
        self._fails: dict[int, dict[int, str]] = {}
        # Workers, and the sizes that they have computed.
        self._seen: set[tuple[int, float]] = set()
        self._due = 0.0  # before that nobody is out of patience
        self._warned = 0  # the attempt of which it was said who is missing
        self._warns_of_short = True
        self._write([COLUMNS], "w")

    # What the coordinator calls.

    def joined(self, who: Join, tell: Tell) -> Answer:
        rank = who.rank
        if why := wrong_rank(rank, self._place.num_workers):
            return Answer(refused=why)
        if rank in self._lines:
            self._lose(rank, f"another process has taken the place of worker {rank}")
        self._lines[rank] = tell
        self._gone.pop(rank, None)
        self._fails.pop(rank, None)
        self._seen = {seen for seen in self._seen if seen[0] != rank}
        return Answer(seat=self._seat(rank), shares=self._shares)

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        if self._lines.get(who.rank) != tell:
            tell(NOT_JOINED)
        elif isinstance(question, TakeSeat):
            tell(Answer(seat=self._seat(who.rank)))
        elif isinstance(question, Covers):
            tell(Answer(refused=self._missing_of(frozenset(question.present))))
        elif isinstance(question, Copies):
            tell(Answer(refused=self._copies.difference(who.rank, *question)))
        elif isinstance(question, Done):
            self._done(who.rank, question, tell, now)
        else:
            self._at_step(who.rank, question, tell, now)

    def left(self, who: Join, tell: Tell, now: float) -> None:
        if self._lines.get(who.rank) == tell:
            del self._lines[who.rank]
            self._gone[who.rank] = now
            self._fails.pop(who.rank, None)
            self._lose(who.rank, f"worker {who.rank} is gone")

    def time_goes_on(self, now: float) -> float:
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            return math.inf
        if attempt.serve(now):
            self._complete(attempt)
            return math.inf
        later = self._warn(attempt, now)
        if now < self._due:  # who has been heard since may take longer
            return min(later, self._due)
        deadlines = attempt.deadlines(self._lines, self._patience)
        # Who has ended before it began is waited for: perhaps it comes again.
        gone = {
            rank: since for rank, since in self._gone.items() if rank in attempt.present
        }
        for rank, since in gone.items():
            time = max(since, attempt.began) + self._patience
            deadlines[rank] = Deadline(time, self._patience)
        if not deadlines:
            return later
        rank, first = min(deadlines.items(), key=lambda item: item[1].time)
        self._due = first.time
        if self._due > now:
            return min(later, self._due)
        what = "was silent"
        if rank in gone:
            what = "has been gone"
        why = f"worker {rank} {what} for {first.patience:g} s"
        missing = self._missing(attempt, besides=rank)
        self._fail(f"{why}: step {attempt.step} is to be begun anew{missing}")
        return math.inf

    # What a question brings.

    def _seat(self, rank: int) -> Seat:
        place = self._place
        sizes = place.sizes
        edges = tuple(end / sum(sizes) for end in itertools.accumulate(sizes))
        chunks = place.storage.chunks()
        most = max(sum(place.shares[number] for _, number in held) for held in chunks)
        return Seat(
            place.num_workers,
            place.chunks,
            edges,
            chunks[rank],
            most / place.chunks,
        )

    def _at_step(
        self, rank: int, question: Begin | OwnDone, tell: Tell, now: float
    ) -> None:
        """A worker begins a shared step, or has ended its own chunks of another one."""
        step = question.step
        present = self._all
        if isinstance(question, Begin) and question.present is not None:
            present = frozenset(question.present)
        is_shared = self._shares or present != self._all
        if isinstance(question, Begin) is not is_shared:
            raise ValueError("all workers have been told whether this step is shared")
        if not_now := self._not_now(rank, question, present):
            tell(not_now)
            return
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            attempt = self._new_attempt(step, present, is_shared=is_shared, now=now)
        if isinstance(attempt, SharedAttempt):
            attempt.begin(rank, question.loads, tell, now)
        elif isinstance(question, OwnDone):
            attempt.note(rank, question, tell, now)

    def _not_now(
        self, rank: int, question: Begin | OwnDone, present: frozenset[int]
    ) -> Answer | None:
        """Why a worker cannot take part. If it can, the attempt it ends has failed."""
        step = question.step
        for lost, why in self._fails.pop(rank, {}).items():
            if lost in present:
                return Answer(failed=f"{why}: step {step} is to be begun anew")
        if why := self._refusal(rank, question, present):
            return Answer(refused=why)
        attempt = self._attempt
        if attempt is not None and rank in attempt.heard:
            if step > attempt.step and not attempt.is_over:
                left = f"worker {rank} has left step {attempt.step} before its end"
                self._fail(f"{left}, and asks for step {step}")
            self._fail_if_begun(f"worker {rank} has begun it anew")
        if attempt is None or attempt.is_over:
            return None
        if why := _conflict(attempt, rank, step, present):
            return Answer(refused=why)
        if step > attempt.step:
            self._fail(
                f"worker {rank} asks for step {step}, others are at {attempt.step}"
            )
        return None

    def _refusal(
        self, rank: int, question: Begin | OwnDone, present: frozenset[int]
    ) -> str:
        """Why a question has no answer; nothing if it has."""
        if why := wrong_loads(question.loads, len(self._place.sizes)):
            return f"worker {rank}, step {question.step}: {why}"
        if rank not in present or not present <= self._all:
            return (
                f"step {question.step}: those present must be worker {rank} and others "
                f"from 0 to {len(self._all) - 1}: got {_listed(present) or 'nobody'}"
            )
        why = self._missing_of(present)
        if why:
            return f"step {question.step}: {why}"
        return ""

    def _missing_of(self, present: frozenset[int]) -> str:
        if present == self._all:
            return ""
        return absences.missing(self._place.storage, present)

    def _new_attempt(
        self, step: int, present: frozenset[int], *, is_shared: bool, now: float
    ) -> SharedAttempt | OwnAttempt:
        number = next(self._numbers)
        self._due = 0.0
        self._present = present
        if is_shared:
            self._attempt = SharedAttempt(number, step, self._place, now, present)
        else:
            self._attempt = OwnAttempt(number, step, self._place, now)
        return self._attempt

    def _done(self, rank: int, question: Done, tell: Tell, now: float) -> None:
        attempt = self._attempt
        if not isinstance(attempt, SharedAttempt) or not attempt.is_at(rank, question):
            tell(Answer(failed=self._failed or "this attempt at the step is over"))
            return
        attempt.note(rank, question, tell, now)

    def _complete(self, attempt: SharedAttempt | OwnAttempt) -> None:
        """All are told at once; what they compute next is not held up by the rest."""
        if self._judge is not None and attempt.present == self._all:
            self._shares = self._judge.mode.is_shared
        attempt.end(Answer(over=True, shares=self._shares))
        self._note(attempt.rows)
        if isinstance(attempt, OwnAttempt) and self._warns_of_short:
            self._warn_of_short(attempt)
        sizes = {(row[1], row[4]) for row in attempt.rows}
        # Who computes a size for the first time compiles for it.
        is_judged = sizes <= self._seen and attempt.present == self._all
        if self._judge is not None and is_judged:
            self._judge.add(attempt.as_done())
        self._seen |= sizes

    def _lose(self, rank: int, why: str) -> None:
        """A worker is lost: if it has begun a step that is not over, nobody's sum of it
        counts.

        Of a step that is not shared nobody knows who has begun it: all that are at it
        hear it, at once or when they end.
        """
        if rank not in self._present:
            return
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            begun = set()
        else:
            begun = set(attempt.heard)
        if rank in begun or not self._shares:
            self._fail_if_begun(why)
        if not self._shares:
            for other_rank in set(self._lines) - begun - {rank}:
                self._fails.setdefault(other_rank, {})[rank] = why

    def _fail_if_begun(self, why: str) -> None:
        attempt = self._attempt
        if attempt is not None and not attempt.is_over:
            self._fail(f"{why}: step {attempt.step} is to be begun anew")

    def _fail(self, why: str) -> None:
        assert self._attempt is not None
        self._failed = why
        self._attempt.end(Answer(failed=why))

    # What is said of it.

    def _warn(self, attempt: SharedAttempt | OwnAttempt, now: float) -> float:
        """Say once who has not begun the step; return when to."""
        if len(attempt.heard) == len(attempt.present) or self._warned == attempt.number:
            return math.inf
        waited = now - attempt.began
        if waited < SILENCE:
            return attempt.began + SILENCE
        self._warned = attempt.number
        missing = self._missing(attempt)
        warnings.warn(
            f"step {attempt.step} has waited for {waited:.0f} s{missing}", stacklevel=1
        )
        return math.inf

    def _warn_of_short(self, attempt: OwnAttempt) -> None:
        """Say once that chunks are too short: it seems nobody waits for a device."""
        self._warns_of_short = attempt.number < _SETTLED
        share = attempt.share_of_chunks
        if not self._warns_of_short and share < _SHORT:
            warnings.warn(
                f"chunks took {100 * share:.2g} % of step {attempt.step}. If a device "
                "computes in the background, wait for it before the next chunk is "
                "asked for, as by jax.block_until_ready: else the seconds of chunks "
                "say nothing",
                stacklevel=1,
            )

    def _missing(self, attempt: SharedAttempt | OwnAttempt, besides: int = -1) -> str:
        """A sentence with the workers that have not begun the step, or ""."""
        ranks: dict[str, list[str]] = {}
        for rank in sorted(attempt.present):
            if rank not in attempt.heard and rank != besides:
                state = "have not joined"
                if rank in self._lines:
                    state = "have joined, but not begun it"
                elif rank in self._gone:
                    state = "are gone"
                ranks.setdefault(state, []).append(str(rank))
        return "".join(
            f". Workers that {state}: {', '.join(names)}"
            for state, names in ranks.items()
        )

    def _note(self, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self._write(rows, "a")
        except OSError as error:
            warnings.warn(
                f"the record ends here, the training goes on: {error}", stacklevel=1
            )
            self._record = None

    def _write(self, rows: Sequence[Sequence[Any]], mode: str) -> None:
        if self._record is not None:
            with open(self._record, mode, newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)


def _conflict(
    attempt: SharedAttempt | OwnAttempt, rank: int, step: int, present: frozenset[int]
) -> str:
    """Why a worker can neither join an attempt nor begin a later step, or ""."""
    if step < attempt.step:
        return f"worker {rank} asks for step {step}, the others are at {attempt.step}"
    if step == attempt.step and present != attempt.present:
        return (
            f"step {step}: worker {rank} says that {_listed(present)} are present, "
            f"others say {_listed(attempt.present)}: all must say the same"
        )
    return ""


def _listed(ranks: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
