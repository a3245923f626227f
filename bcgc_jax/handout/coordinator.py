"""Hands out the chunks of a step to the loops of others, who add up their gradients themselves.

All end their chunks, then their sums go into an all-reduce. When all chunks are done, and every
worker waits for that, all are told at once that the step is complete. So no sum of another attempt
meets the others.
"""

import csv
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bcgc_jax.handout.client import key_of
from bcgc_jax.handout.server import Reply, Server
from bcgc_jax.steps.chunk_lengths import TICKS_OF_UNIT, LoadLine
from bcgc_jax.steps.ledger import Chunk, Ledger, Name
from bcgc_jax.steps.paces import Paces, hand_out
from bcgc_jax.steps.placement import Placement

# Seconds that no chunk takes.
_AGES = 1e9
# No load is so large.
_LARGEST_LOAD = 1e100
# Seconds after which it is said for whom a step waits.
_SILENCE = 5.0
# Of a line of the record.
COLUMNS = ("step", "worker", "subset", "chunk", "load", "seconds", "asking")
# A question that was too quick for a clock.
_QUICKEST = 1e-6


class _Attempt:
    """One step, as far as it is. A step that failed is begun anew by another one."""

    def __init__(self, number: int, step: int, place: Placement, now: float) -> None:
        self.number = number
        self.step = step
        self.place = place
        self.began = now
        self.workers = place.num_workers
        self.ledger = Ledger(
            number,
            place.storage,
            [place.sizes] * self.workers,
            "chunks",
            ticks_of_unit=TICKS_OF_UNIT,
        )
        self.paces = Paces(self.workers)
        self.line = place.load_line
        self.loads: dict[int, list[float]] = {}  # as workers have sent them
        self.heard: dict[int, float] = {}  # when, of the workers that have begun
        self.given: dict[int, tuple[Name, Chunk, float]] = {}  # with the time
        self.resting: dict[int, Reply] = {}  # how to tell a worker what is next
        self.rows: list[tuple[Any, ...]] = []  # of the record
        self.is_over = False

    def is_at(self, rank: int, ticket: Name) -> bool:
        """Whether it is not over, the worker has begun it, and the ticket is one of it."""
        return not self.is_over and rank in self.heard and ticket.step == self.number

    def rest(self, rank: int, reply: Reply, now: float) -> None:
        """A worker is free."""
        self.heard[rank] = now
        self.resting[rank] = reply

    def reweigh(self, rank: int, loads: list[float]) -> None:
        """A worker has said how long the chunks of its own subset are."""
        self.loads[rank] = loads
        shares = self.place.shares
        if self.line is None:
            # The first worker's mean chunk is a usual one.
            self.line = LoadLine(0.0, 1.0, usual=sum(loads) / sum(shares))
        self.ledger.queue.reweigh(rank, self.line.ticks(loads, shares).tolist())

    def done(self, rank: int, ticket: Name, seconds: float, now: float) -> None:
        """Note a chunk that is done; ValueError where the worker has no such ticket."""
        name, chunk, since = self.given.pop(rank, (None, None, now))
        if chunk is None or name != ticket:
            raise ValueError("it is no message of a worker")
        self.paces.ended(rank, now)
        subset, number = chunk
        load = self.loads[subset][number] if subset in self.loads else ""
        asking = round(max(_QUICKEST, now - since - seconds), 6)
        self.rows.append((self.step, rank, subset, number, load, seconds, asking))
        self.ledger.done(self.ledger.member(rank), ticket)

    def serve(self, now: float) -> None:
        """Hand out chunks to those that rest; end when all chunks are done and all workers rest."""
        for rank, ticket, chunk in hand_out(self.ledger, self.paces, self.resting, now):
            self.given[rank] = ticket, chunk, now
            self.resting.pop(rank)({"over": False, "ticket": ticket, "chunk": chunk})
        if self.ledger.complete and len(self.resting) == self.workers:
            self._end({"over": True})

    def fail(self, why: str) -> None:
        self._end({"failed": why})

    def _end(self, message: Any) -> None:
        self.is_over = True
        for reply in self.resting.values():
            reply(message)


class Coordinator:
    """Hands out chunks until its `with` or `close` ends it; later questions fail.

    It is made by `serve`. Who asks later gets a ConnectionError. It warns after five seconds which
    workers a step waits for.

    Attributes:
      address: host and port, for `join`.
    """

    def __init__(
        self,
        place: Placement,
        key: bytes,
        host: str,
        port: int,
        patience: float,
        record: str | os.PathLike[str] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._clock = clock
        self._patience = patience
        self._record = record
        self._numbers = itertools.count(1)
        self._attempt: _Attempt | None = None
        self._ranks: dict[Reply, int] = {}  # of each line the worker that has joined by it
        self._gone: dict[int, float] = {}  # since when, of workers that were here
        self._failed = ""  # why the last attempt has
        self._due = 0.0  # before that nobody is out of patience
        self._warned = 0  # the attempt of which it was said who is missing
        self._write([COLUMNS], "w")
        self._server = Server(self, host, port, key)
        self.address: tuple[str, int] = self._server.address

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> "Coordinator":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    # What the server calls, in its thread.

    def asked(self, message: Any, reply: Reply) -> None:
        if not isinstance(message, dict):
            raise ValueError("it is no message of a worker")
        rank = self._ranks.get(reply)
        if "join" in message:
            self._join(_whole(message, "join"), reply)
        elif rank is None:
            reply({"refused": "this worker has not joined, or another process has taken its place"})
        elif "begin" in message:
            self._begin(rank, _whole(message, "begin"), message.get("loads"), reply)
        else:
            self._done(rank, message, reply)

    def left(self, reply: Reply) -> None:
        """A line has ended."""
        rank = self._ranks.pop(reply, None)
        if rank is not None:
            self._gone[rank] = self._clock()
            self._lose(rank, f"worker {rank} is gone")

    def look(self) -> float:
        now = self._clock()
        attempt = self._attempt
        if attempt is None or attempt.is_over:
            return math.inf
        attempt.serve(now)
        if attempt.is_over:
            self._note(attempt.rows)
            return math.inf
        later = self._warn(attempt, now)
        if now < self._due:  # who has been heard since may take longer
            return min(later, self._due - now)
        # Who has not begun is waited for: perhaps it writes a checkpoint. But not who has ended.
        waited = {rank: max(since, attempt.began) for rank, since in self._gone.items()}
        for rank, since in attempt.heard.items():
            if rank not in attempt.resting:
                waited[rank] = since
        since, rank = min(((since, rank) for rank, since in waited.items()), default=(now, -1))
        self._due = since + self._patience
        if self._due > now:
            return min(later, self._due - now)
        what = "has been gone" if rank in self._gone else "was silent"
        why = f"worker {rank} {what} for {self._patience:g} s"
        missing = self._missing(attempt, besides=rank)
        self._fail(f"{why}: step {attempt.step} is to be begun anew{missing}")
        return math.inf

    def _warn(self, attempt: _Attempt, now: float) -> float:
        """Say once who has not begun the step; return the seconds until then."""
        if len(attempt.heard) == attempt.workers or self._warned == attempt.number:
            return math.inf
        waited = now - attempt.began
        if waited < _SILENCE:
            return _SILENCE - waited
        self._warned = attempt.number
        missing = self._missing(attempt)
        warnings.warn(f"step {attempt.step} has waited for {waited:.0f} s{missing}", stacklevel=1)
        return math.inf

    def _missing(self, attempt: _Attempt, besides: int = -1) -> str:
        """A sentence with the workers that have not begun the step; nothing if all have."""
        joined = {*self._ranks.values()}
        ranks: dict[str, list[str]] = {}
        for rank in range(attempt.workers):
            if rank not in attempt.heard and rank != besides:
                state = "have not joined"
                if rank in joined:
                    state = "have joined, but not begun it"
                elif rank in self._gone:
                    state = "are gone"
                ranks.setdefault(state, []).append(str(rank))
        return "".join(
            f". Workers that {state}: {', '.join(names)}" for state, names in ranks.items()
        )

    def _join(self, rank: int, reply: Reply) -> None:
        workers = self._place.num_workers
        if not 0 <= rank < workers:
            why = f"there are {workers} workers, from 0 to {workers - 1}: got rank {rank}"
            reply({"refused": why})
            return
        self._lose(rank, f"another process has taken the place of worker {rank}")
        self._ranks = {line: other for line, other in self._ranks.items() if other != rank}
        self._ranks[reply] = rank
        self._gone.pop(rank, None)
        sizes = self._place.sizes
        edges = [end / sum(sizes) for end in itertools.accumulate(sizes)]
        reply({"workers": workers, "edges": edges, "held": self._place.storage.chunks()[rank]})

    def _begin(self, rank: int, step: int, loads: Any, reply: Reply) -> None:
        if why := wrong_loads(loads, len(self._place.sizes)):
            reply({"refused": f"worker {rank}, step {step}: {why}"})
            return
        self._lose(rank, f"worker {rank} has begun it anew")
        attempt = self._attempt
        now = self._clock()
        if attempt is not None and not attempt.is_over:
            if step < attempt.step:
                why = f"worker {rank} asks for step {step}, the others are at {attempt.step}"
                reply({"refused": why})
                return
            if step > attempt.step:
                self._fail(f"worker {rank} asks for step {step}, others are at {attempt.step}")
        if attempt is None or attempt.is_over:
            attempt = _Attempt(next(self._numbers), step, self._place, now)
            self._attempt = attempt
        attempt.rest(rank, reply, now)
        if loads is not None:
            attempt.reweigh(rank, loads)

    def _done(self, rank: int, message: Any, reply: Reply) -> None:
        """A chunk is done: what is next?"""
        ticket = _ticket(message)
        attempt = self._attempt
        now = self._clock()
        if attempt is None or not attempt.is_at(rank, ticket):
            reply({"failed": self._failed or "this attempt at the step is over"})
            return
        attempt.done(rank, ticket, _seconds(message), now)
        attempt.rest(rank, reply, now)

    def _lose(self, rank: int, why: str) -> None:
        """A worker is lost: if it has begun a step that is not over, nobody's sum of it counts."""
        attempt = self._attempt
        if attempt is not None and rank in attempt.heard and not attempt.is_over:
            self._fail(f"{why}: step {attempt.step} is to be begun anew")

    def _fail(self, why: str) -> None:
        assert self._attempt is not None
        self._failed = why
        self._attempt.fail(self._failed)

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


def wrong_loads(loads: Any, count: int) -> str:
    """Say what is wrong with the lengths of a worker's own chunks; nothing if they are right.

    >>> wrong_loads([3.0, 1.5], 2), wrong_loads(None, 2)
    ('', '')
    >>> wrong_loads([3.0, -1.0], 2)
    'loads must be 2 positive numbers, those of the chunks of `own`: got -1.0'
    """
    if loads is None:
        return ""
    wanted = f"loads must be {count} positive numbers, those of the chunks of `own`: got"
    if not isinstance(loads, list) or len(loads) != count:
        return f"{wanted} {len(loads) if isinstance(loads, list) else type(loads).__name__}"
    for load in loads:
        if type(load) not in (int, float) or not 0 < load < _LARGEST_LOAD:
            return f"{wanted} {load!r:.40}"
    return ""


def _whole(message: dict[str, Any], name: str) -> int:
    number = message.get(name)
    if type(number) is not int:
        raise ValueError("it is no message of a worker")
    return number


def _ticket(message: dict[str, Any]) -> Name:
    match message.get("done"):
        case [int(attempt), int(number)]:
            return Name(attempt, number)
    raise ValueError("it is no message of a worker")


def _seconds(message: dict[str, Any]) -> float:
    seconds: Any = message.get("seconds")
    if type(seconds) not in (int, float) or not 0 <= seconds < _AGES:
        raise ValueError("it is no message of a worker")
    return float(seconds)


def serve(
    plan: int | Placement | str | os.PathLike[str],
    max_subsets: int | None = None,
    chunks: int | None = None,
    *,
    key: bytes | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    equal_chunks: bool = False,
    whole: bool = False,
    patience: float = 600.0,
    record: str | os.PathLike[str] | None = None,
) -> Coordinator:
    """Hand out the chunks of each step to the N workers that `join`, in a thread of this process.

    The data of a step are N subsets of C chunks, the last one cut again into a half and two
    quarters. Each worker stores as much as D subsets: its own, and chunks of others. Whoever is
    free is given, of the chunks that it stores, the one whose other holders would come to it last
    (docs/how-it-works.md). Where workers send the lengths of chunks, need times length decides.

    Args:
      plan: N; or the path of the plan that `bcgc advise --out` wrote; or a `Placement`. The last
        two have the numbers of subsets and chunks, and what a length takes, by the log.
      max_subsets: D, from 1, where nothing is shared, to N; by default 2.
      chunks: C; by default 8.
      key: that workers need; by default the environment variable BCGC_HANDOUT_KEY.
      host: of the network that is listened to; by default this machine alone.
      port: by default a free one, see `address`.
      equal_chunks: whether the last chunk stays whole; it does where nothing is shared.
      whole: whether workers store whole subsets, for loaders that can do no other.
      patience: seconds that a worker may take for a chunk, its compiling included, before it counts
        as lost.
      record: a CSV of who did which chunk in how many seconds, of complete steps, with the loads
        that workers sent, and what a question took; `bcgc advise`, `bcgc solve --trace` and
        `bcgc fit` read it if `max_subsets` is 1.

    Raises ValueError for numbers that are no such plan, or without a key; OSError where it cannot
    listen, or read the plan.

    >>> from bcgc_jax.handout import join
    >>> with serve(2, key="secret") as coordinator:
    ...     (one, two) = (join(coordinator.address, rank, key="secret") for rank in range(2))
    ...     len(one.held), one.held[0].subset, two.held[0].subset
    (20, 0, 1)
    """
    if isinstance(plan, int):
        subsets = 2 if max_subsets is None else max_subsets
        count = 8 if chunks is None else chunks
        place = Placement(plan, subsets, count, equal_chunks, whole)
    elif not (max_subsets is None and chunks is None) or equal_chunks or whole:
        raise ValueError(
            "the plan has the numbers of subsets and chunks: leave out max_subsets, chunks, "
            "equal_chunks and whole, or give the number of workers in place of the plan"
        )
    else:
        place = plan if isinstance(plan, Placement) else Placement.load(plan)
    place.check()
    return Coordinator(place, key_of(key), host, port, patience, record)
