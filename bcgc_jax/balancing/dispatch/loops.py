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
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bcgc_jax.balancing.dispatch.judge import Judge
from bcgc_jax.balancing.dispatch.loop_attempts import COLUMNS, OwnAttempt, SharedAttempt
from bcgc_jax.balancing.dispatch.messages import (
    NOT_JOINED,
    SILENCE,
    AfterJoin,
    Answer,
    Begin,
    Copies,
    Covers,
    Done,
    Join,
    Leave,
    OwnDone,
    Seat,
    TakeSeat,
    Tell,
    wrong_loads,
    wrong_rank,
)
from bcgc_jax.balancing.dispatch.workers import Workers
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.balancing.storage import missing


class Checksums:
    """Checksums of the copies of a step's chunks, as workers have sent them.

    Copies are compared only with copies of the same step, because each step has other
    rows.

    >>> checksums = Checksums()
    >>> checksums.difference(rank=0, step=3, checksums=[[1, 0, 77]])
    ''
    >>> checksums.difference(rank=2, step=3, checksums=[[1, 0, 78]])[:54]
    'worker 2 stores other rows for chunk 0 of subset 1 tha'
    >>> checksums.difference(rank=2, step=4, checksums=[[1, 0, 78]])
    ''
    """

    def __init__(self) -> None:
        self._step = -1
        # The rank and the checksum of the first copy of each chunk.
        self._first: dict[tuple[int, int], tuple[int, int]] = {}

    def difference(
        self, rank: int, step: int, checksums: Sequence[Sequence[int]]
    ) -> str:
        """Name a copy of this worker that differs from the copy of another worker.

        Args:
          rank: The rank of the worker.
          step: The number of the step.
          checksums: Of each chunk that the worker stores, its subset, its number there
            and the checksum of its rows.

        Returns:
          What differs and what to do, or an empty string if nothing differs.
        """
        if step != self._step:
            self._step = step
            self._first = {}
        for subset, number, checksum in checksums:
            other_rank, other_checksum = self._first.setdefault(
                (subset, number), (rank, checksum)
            )
            if checksum != other_checksum:
                return (
                    f"worker {rank} stores other rows for chunk {number} of subset "
                    f"{subset} than worker {other_rank} in step {step}. Pass the "
                    "arrays that `shared.place(batch)` returns, with the same batch in "
                    "all processes"
                )
        return ""


# An attempt by which programs are compiled, and the least share of a step that is its
# chunks'.
_SETTLED, _SHORT = 5, 0.02


class Failure(NamedTuple):
    """What a worker that was computing hears with its next request.

    Attributes:
      attempt: the number of the attempt that has failed.
      answer: that it has failed.
    """

    attempt: int
    answer: Answer


class FailedLaunch(NamedTuple):
    """A step that has failed for some workers of a process.

    The process may run it as one compiled program on all its devices, and begin it
    again only when this has ended on each of them.

    Attributes:
      step: its number.
      answer: that it has failed.
      untold: connections of the other workers: they hear it when they begin the step.
    """

    step: int
    answer: Answer
    untold: set[Tell]


class Loops:
    """Whoever begins a step first begins an attempt at it; others join in, or begin it
    again.

    An attempt fails for all that have begun it as soon as one of them is lost or leaves
    it, because nobody else has its sum. It waits for the others `timeout` seconds. If
    one of these was there and has gone, another process may take its place, since no
    sum is lost; if none has after `GRACE` seconds, all that wait hear of it once.

    If it fails for some workers of a process it fails for the others there too, because
    they may be devices of one compiled program. Threads with loops of their own begin
    it once more than they must.

    It warns after five seconds which workers a step waits for.

    Args:
      place: who stores what.
      timeout: seconds of silence after which a worker that others wait for is lost.
      record: a CSV of the chunks of complete steps.
      judge: says which steps are shared; None: all or none, as `shares` says.
      shares: whether the first step is.
    """

    def __init__(
        self,
        place: Placement,
        timeout: float,
        record: str | os.PathLike[str] | None,
        judge: Judge | None = None,
        shares: bool = True,
    ) -> None:
        self._place = place
        self._record = record
        self._judge = judge
        self._shares = shares
        self._numbers = itertools.count(1)
        self._checksums = Checksums()
        self._attempt: SharedAttempt | OwnAttempt | None = None
        self._all = frozenset(range(place.num_workers))
        self._workers = Workers(timeout)
        self._failed: dict[int, Failure] = {}
        self._launches: dict[str, FailedLaunch] = {}  # by process
        # Workers that were lost in attempts at a step that is not complete, and why.
        self._lost: tuple[int, dict[int, str]] = (-1, {})
        # Workers, and the sizes that they have computed.
        self._seen: set[tuple[int, float]] = set()
        self._due = 0.0  # nobody is overdue before that
        self._warned = 0  # the attempt of which it was said who is missing
        self._warns_of_short = True
        self._write([COLUMNS], "w")

    # What the coordinator calls.

    def joined(self, who: Join, tell: Tell, now: float) -> Answer:
        rank = who.rank
        if why := wrong_rank(rank, self._place.num_workers):
            return Answer(refused=why)
        self._workers.join(who, tell, now)
        self._seen = {seen for seen in self._seen if seen[0] != rank}
        self._fail_if_heard(rank, _replaced(rank))
        return Answer(seat=self._seat(rank), shares=self._shares)

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        rank = who.rank
        if not self._workers.has(rank, tell):
            if not isinstance(question, Leave):
                tell(NOT_JOINED)
            return
        self._workers.hear(rank, now)
        if isinstance(question, TakeSeat):
            tell(Answer(seat=self._seat(rank)))
        elif isinstance(question, Covers):
            tell(Answer(refused=self._missing_of(frozenset(question.present))))
        elif isinstance(question, Copies):
            tell(Answer(refused=self._checksums.difference(who.rank, *question)))
        elif isinstance(question, Done):
            self._done(rank, question, tell, now)
        elif isinstance(question, Leave):
            self._due = 0.0
            self._fail_if_heard(rank, self._workers.leave(rank, question.step, now))
        else:
            self._at_step(rank, question, tell, now)

    def left(self, who: Join, tell: Tell, now: float) -> None:
        rank = who.rank
        if why := self._workers.close(rank, tell, now):
            self._due = 0.0
            self._fail_if_heard(rank, why, {rank: why})
        self._workers.forget(tell)

    def time_goes_on(self, now: float) -> float:
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            return math.inf
        if attempt.serve(now):
            self._complete(attempt)
            return math.inf
        later = self._warn(attempt, now)
        if self._due <= now:  # who has been heard since may take longer
            deadlines = {
                rank: self._workers.deadline(
                    rank, attempt.began, attempt.heard.values()
                )
                for rank in attempt.present.difference(attempt.resting)
            }
            self._due = min(deadlines.values(), default=math.inf)
            if self._due <= now:
                self._fail_without(
                    {rank for rank, time in deadlines.items() if time <= now}
                )
                return math.inf
        return min(later, self._due)

    # What a question brings.

    def _seat(self, rank: int) -> Seat:
        place = self._place
        sizes = place.sizes
        edges = tuple(end / sum(sizes) for end in itertools.accumulate(sizes))
        chunks = place.storage.chunks()
        most_subsets = max(
            sum(place.shares[number] for _, number in held) for held in chunks
        )
        return Seat(
            place.num_workers,
            place.chunks,
            edges,
            chunks[rank],
            most_subsets / place.chunks,
        )

    def _at_step(
        self, rank: int, question: Begin | OwnDone, tell: Tell, now: float
    ) -> None:
        """A worker begins a shared step, or has ended its own chunks of another one."""
        self._workers.takes_part(rank)
        if self._workers.has_absences:  # of which this worker may not have heard
            self._due = 0.0
        step = question.step
        if failed := self._failed_before(step, tell):
            tell(failed)
            return
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
            attempt.note(rank, question, tell)

    def _not_now(
        self, rank: int, question: Begin | OwnDone, present: frozenset[int]
    ) -> Answer | None:
        """Why a worker cannot take part. If it can, the attempt it ends has failed."""
        step = question.step
        if why := self._refusal(rank, question, present):
            return Answer(refused=why)
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            return None
        if rank in attempt.heard:
            why = f"worker {rank} has begun step {step} again"
            if step != attempt.step:
                why = f"worker {rank} has left step {attempt.step} before its end, and"
                why += f" asks for step {step}"
            self._fail(why)
            return None
        if step == attempt.step and present != attempt.present:
            return self._without_lost(rank, attempt, present)
        if step < attempt.step:
            return Answer(
                refused=f"worker {rank} asks for step {step}, the others are at "
                f"{attempt.step}"
            )
        if step > attempt.step:
            self._fail(
                f"worker {rank} asks for step {step}, others are at {attempt.step}"
            )
        return None

    def _without_lost(
        self, rank: int, attempt: SharedAttempt | OwnAttempt, present: frozenset[int]
    ) -> Answer | None:
        """Workers differ about who is present: some do not know yet who was lost.

        These hear it. Any other difference is refused.
        """
        step, lost = self._lost
        unknown_here = attempt.present - present
        unknown_there = present - attempt.present
        if step != attempt.step or not unknown_here | unknown_there <= lost.keys():
            return Answer(
                refused=f"step {attempt.step}: worker {rank} says that "
                f"{_listed(present)} are present, others say "
                f"{_listed(attempt.present)}: all must say the same"
            )
        if unknown_here:
            self._fail("; ".join(lost[rank] for rank in sorted(unknown_here)), lost)
        if unknown_there:
            why = "; ".join(lost[rank] for rank in sorted(unknown_there))
            return _failed(why, step, unknown_there)
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
        return missing(self._place.storage, present)

    def _new_attempt(
        self, step: int, present: frozenset[int], *, is_shared: bool, now: float
    ) -> SharedAttempt | OwnAttempt:
        number = next(self._numbers)
        self._due = 0.0
        if is_shared:
            self._attempt = SharedAttempt(number, step, self._place, now, present)
        else:
            self._attempt = OwnAttempt(number, step, self._place, now)
        return self._attempt

    def _done(self, rank: int, question: Done, tell: Tell, now: float) -> None:
        attempt = self._attempt
        if isinstance(attempt, SharedAttempt) and attempt.is_at(rank, question):
            attempt.note(rank, question, tell, now)
            return
        failure = self._failed.pop(rank, None)
        if failure is not None and failure.attempt == question.ticket[0]:
            tell(failure.answer)
        else:
            tell(Answer(failed="this attempt at the step is over"))

    def _complete(self, attempt: SharedAttempt | OwnAttempt) -> None:
        """All are told at once; what they compute next is not held up by the rest."""
        if self._judge is not None and attempt.present == self._all:
            self._shares = self._judge.mode.is_shared
        attempt.end(Answer(over=True, shares=self._shares))
        self._lost = (-1, {})
        self._note(attempt.rows)
        if isinstance(attempt, OwnAttempt) and self._warns_of_short:
            self._warn_of_short(attempt)
        sizes = {(row[1], row[4]) for row in attempt.rows}
        # Who computes a size for the first time compiles for it.
        is_judged = sizes <= self._seen and attempt.present == self._all
        if self._judge is not None and is_judged:
            self._judge.add(attempt.as_done())
        self._seen |= sizes

    # How an attempt fails.

    def _fail_if_heard(
        self, rank: int, why: str, lost: Mapping[int, str] | None = None
    ) -> None:
        """A worker is lost, or another one has its place: its sum is gone with it."""
        attempt = self._attempt
        if attempt is not None and not attempt.is_over and rank in attempt.heard:
            self._fail(why, lost)
            self._workers.know(rank, attempt.heard.values())

    def _fail_without(self, ranks: Collection[int]) -> None:
        """Nobody waits any longer for these."""
        assert self._attempt is not None
        absences = {rank: self._workers.overdue(rank) for rank in sorted(ranks)}
        lost = {rank: absence.why for rank, absence in absences.items()}
        why = "; ".join(lost.values())
        missing = self._missing(self._attempt, besides=ranks)
        is_lost = {rank for rank in lost if absences[rank].is_lost}
        self._fail(why, {rank: lost[rank] for rank in is_lost}, missing)
        for rank in ranks:
            self._workers.know(rank, self._attempt.heard.values())

    def _fail(
        self, why: str, lost: Mapping[int, str] | None = None, missing: str = ""
    ) -> None:
        """All that have begun the attempt hear it, now or when their chunk is done."""
        attempt = self._attempt
        assert attempt is not None
        step = attempt.step
        lost = lost or {}
        lost_before = self._lost[1] if self._lost[0] == step else {}
        self._lost = step, {**lost_before, **lost}
        answer = _failed(why, step, lost, missing)
        for rank in attempt.heard.keys() - attempt.resting.keys():
            self._failed[rank] = Failure(attempt.number, answer)
        told_lines = set(attempt.heard.values())
        for process in {self._workers.process(line) for line in told_lines} - {""}:
            self._fail_launch(process, step, answer, told_lines)
        attempt.end(answer)

    def _fail_launch(
        self, process: str, step: int, answer: Answer, told_lines: set[Tell]
    ) -> None:
        untold = self._workers.lines_of(process) - told_lines
        self._launches[process] = FailedLaunch(step, answer, untold)

    def _failed_before(self, step: int, tell: Tell) -> Answer | None:
        """That a step has failed for the process of a worker, before this one began it.

        Else the process has launched another step, or this one again.
        """
        launch = self._launches.get(self._workers.process(tell))
        if launch is None:
            return None
        if launch.step == step and tell in launch.untold:
            launch.untold.remove(tell)
            return launch.answer
        del self._launches[self._workers.process(tell)]
        return None

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

    def _missing(
        self, attempt: SharedAttempt | OwnAttempt, besides: Collection[int] = ()
    ) -> str:
        """A sentence with the workers that have not begun the step, or ""."""
        ranks: dict[str, list[str]] = {}
        for rank in sorted(attempt.present.difference(attempt.heard, besides)):
            ranks.setdefault(self._workers.state(rank), []).append(str(rank))
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


def _failed(
    why: str, step: int, lost: Collection[int] = (), missing: str = ""
) -> Answer:
    failed = f"{why}. Step {step} has failed and must be repeated{missing}"
    return Answer(failed=failed, lost=tuple(sorted(lost)))


def _replaced(rank: int) -> str:
    return f"another process has taken the place of worker {rank}"


def _listed(ranks: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
