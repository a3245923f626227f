"""Hands out the chunks of a step to the loops of others, who add up their gradients themselves.

All end their chunks, then their sums go into an all-reduce. Nobody is told that a step is complete before all
workers take part in it and all chunks are done: so a sum that is not of this attempt never meets the others.
"""

import csv
import itertools
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from bcgc_jax.handout.client import key_of
from bcgc_jax.handout.server import Reply, Server
from bcgc_jax.plans.desk import chunk_sizes
from bcgc_jax.plans.handout import Chunk, Handout, Name
from bcgc_jax.plans.storage import Storage, spread, whole_subsets
from bcgc_jax.plans.timing import Timing

# Of a line of the record.
COLUMNS = ("step", "worker", "subset", "chunk", "load", "seconds")


class _Attempt:
    """One step, as far as it is. A step that failed is begun anew by another one."""

    def __init__(self, number: int, step: int, storage: Storage, sizes: Sequence[int]) -> None:
        workers = len(storage.holders)
        self.number, self.step = number, step
        self.handout = Handout(number, storage, [sizes] * workers, "chunks")
        self.timing = Timing(workers)
        self.workers = set(range(workers))
        self.begun: set[int] = set()
        self.told: set[int] = set()  # that it is over
        self.given: dict[int, tuple[Name, Chunk]] = {}
        self.resting: dict[int, tuple[Reply, bool]] = {}  # how to tell a worker, and if its last one counts
        self.heard: dict[int, float] = {}  # when, of those that have begun
        self.rows: list[tuple[Any, ...]] = []
        self.failed = ""

    @property
    def is_over(self) -> bool:
        return bool(self.failed) or self.told == self.workers

    @property
    def silent(self) -> dict[int, float]:
        """Since when, of those that take part and do not rest."""
        if self.is_over:
            return {}
        known = self.resting.keys() | self.told
        return {rank: since for rank, since in self.heard.items() if rank not in known}

    def done(self, rank: int, ticket: int, seconds: float, now: float) -> bool:
        """Whether it counts."""
        name, chunk = self.given.get(rank, (None, None))
        if name is None or chunk is None or name.number != ticket:
            return False
        del self.given[rank]
        self.timing.ended(rank, now)
        self.rows.append((self.step, rank, *chunk, self.handout.sizes[chunk], seconds))
        return self.handout.done(self.handout.member(rank), name) is not None

    def serve(self, now: float) -> None:
        """Chunks for those that rest; that it is over, once everybody is here and all is done."""
        expected = self.timing.seconds(now)
        for rank in self.handout.may_be_given(self.resting):
            given = self.handout.next(self.handout.member(rank), expected)
            if given is not None:
                name, chunk = self.given[rank] = given
                self.timing.began(rank, chunk, self.handout.sizes[chunk], now)
                self._tell(rank, over=False, ticket=name.number, chunk=chunk)
        if self.handout.complete and self.begun == self.workers:
            for rank in list(self.resting):
                self.told.add(rank)
                self._tell(rank, over=True)

    def fail(self, why: str) -> None:
        self.failed = why
        for reply, _ in self.resting.values():
            reply({"failed": why})
        self.resting.clear()

    def _tell(self, rank: int, **more: Any) -> None:
        reply, keep = self.resting.pop(rank)
        reply({"keep": keep, **more})


class Coordinator:
    """Made by `serve`. It ends with the `with`, or by `close`: who asks later gets a ConnectionError.

    Attributes:
      address: host and port, for `join`.
      max_subsets: how many subsets' worth of data each worker stores.
    """

    def __init__(
        self,
        storage: Storage,
        sizes: Sequence[int],
        key: bytes,
        host: str,
        port: int,
        patience: float,
        record: str | os.PathLike[str] | None,
    ) -> None:
        self._storage, self._sizes, self._patience, self._record = storage, tuple(sizes), patience, record
        self._numbers = itertools.count(1)
        self._attempt: _Attempt | None = None
        self._lives = [0] * len(storage.holders)
        self._lines: dict[int, Reply] = {}
        self._early: list[tuple[Any, Reply]] = []  # who asks for the next step while others are to be told
        if record is not None:
            with open(record, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(COLUMNS)
        self._server = Server(self, host, port, key)
        self.address = self._server.address

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
        if "join" in message:
            self._join(_whole(message, "join"), reply)
            return
        rank, life = _whole(message, "rank"), _whole(message, "life")
        if not 0 <= rank < len(self._lives) or self._lives[rank] != life:
            reply({"refused": f"another process has taken the place of worker {rank}"})
        elif "begin" in message:
            self._begin(rank, _whole(message, "begin"), message, reply)
        else:
            ticket = None if message.get("ticket") is None else _whole(message, "ticket")
            self._question(rank, _whole(message, "attempt"), ticket, _seconds(message), reply)

    def left(self, reply: Reply) -> None:
        """A line has ended."""
        for rank in [rank for rank, own in self._lines.items() if own == reply]:
            del self._lines[rank]
            self._lose(rank, f"worker {rank} is gone")

    def look(self) -> float:
        now, attempt = time.monotonic(), self._attempt
        if attempt is None:
            return math.inf
        deadlines = {rank: since + self._patience for rank, since in attempt.silent.items()}
        for rank, deadline in deadlines.items():
            if deadline <= now:
                self._lose(rank, f"worker {rank} was silent for {self._patience:g} s")
        if not attempt.is_over:
            attempt.serve(now)
        if attempt.is_over:
            self._end(attempt)
            return math.inf
        return min(attempt.silent.values(), default=math.inf) + self._patience - now

    def _join(self, rank: int, reply: Reply) -> None:
        workers = len(self._lives)
        if not 0 <= rank < workers:
            reply({"refused": f"there are {workers} workers, from 0 to {workers - 1}: got rank {rank}"})
            return
        self._lives[rank] += 1
        self._lose(rank, f"another process has taken the place of worker {rank}")
        self._lines[rank] = reply
        ends = itertools.accumulate(self._sizes)
        edges = [end / sum(self._sizes) for end in ends]
        held = [
            (subset, number)
            for subset, row in enumerate(self._storage.holders)
            for number, holders in enumerate(row)
            if rank in holders
        ]
        held.sort(key=lambda chunk: chunk[0] != rank)
        reply({"life": self._lives[rank], "workers": workers, "edges": edges, "held": held})

    def _begin(self, rank: int, step: int, message: Any, reply: Reply) -> None:
        attempt = self._attempt
        if attempt is not None and not attempt.is_over:
            if rank in attempt.told:
                self._early.append((message, reply))
                return
            if rank in attempt.begun:
                self._lose(rank, f"worker {rank} has begun step {attempt.step} anew")
            elif step != attempt.step:
                reply({"refused": f"worker {rank} asks for step {step}, the others are at {attempt.step}"})
                return
        if attempt is None or attempt.is_over:
            number = next(self._numbers)
            attempt = self._attempt = _Attempt(number, step, self._storage, self._sizes)
        attempt.begun.add(rank)
        attempt.heard[rank] = time.monotonic()
        reply({"attempt": attempt.number})

    def _question(self, rank: int, number: int, ticket: int | None, seconds: float, reply: Reply) -> None:
        attempt, now = self._attempt, time.monotonic()
        if attempt is None or number != attempt.number or rank not in attempt.begun:
            reply({"failed": "this attempt at the step was given up"})
        elif attempt.failed:
            reply({"failed": attempt.failed})
        else:
            attempt.heard[rank] = now
            keep = ticket is not None and attempt.done(rank, ticket, seconds, now)
            attempt.resting[rank] = reply, keep

    def _lose(self, rank: int, why: str) -> None:
        attempt = self._attempt
        if attempt is not None and rank in attempt.begun and not attempt.is_over:
            attempt.fail(f"{why}: step {attempt.step} is to be begun anew")

    def _end(self, attempt: _Attempt) -> None:
        """Write the record, and hear who was early."""
        if self._record is not None and not attempt.failed:
            with open(self._record, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(attempt.rows)
            attempt.rows = []
        early, self._early = self._early, []
        for message, reply in early:
            self.asked(message, reply)


def _whole(message: dict[str, Any], name: str) -> int:
    found = message.get(name)
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError("it is no message of a worker")
    return found


def _seconds(message: dict[str, Any]) -> float:
    found = message.get("seconds")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError("it is no message of a worker")
    return float(found)


def serve(
    num_workers: int,
    max_subsets: int = 2,
    chunks: int = 8,
    *,
    key: bytes | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    equal_chunks: bool = False,
    whole: bool = False,
    patience: float = 60.0,
    record: str | os.PathLike[str] | None = None,
) -> Coordinator:
    """Hand out the chunks of each step to the N workers that `join`, in a thread of this process.

    The data of a step are N subsets of C chunks, the last one cut again into a half and two quarters. Each
    worker stores as much as D subsets: its own, and chunks of others. Whoever is free is given, of the chunks
    that it stores, the one whose other holders would come to it last (docs/how-it-works.md).

    Args:
      num_workers: N.
      max_subsets: D, from 1, where nothing is shared, to N.
      chunks: C.
      key: that workers need; by default the environment variable BCGC_HANDOUT_KEY.
      host: of the network that is listened to; by default this machine alone.
      port: by default a free one, see `address`.
      equal_chunks: whether the last chunk stays whole.
      whole: whether workers store whole subsets, for loaders that can do no other.
      patience: seconds that a worker may be silent within a step, before it counts as lost.
      record: a CSV of who did which chunk in how many seconds, of complete steps.

    Raises ValueError for numbers that are no such plan, or without a key; OSError where it cannot listen.

    >>> from bcgc_jax.handout import join
    >>> with serve(2, key="secret") as coordinator:
    ...     (one, two) = (join(coordinator.address, rank, key="secret") for rank in range(2))
    ...     len(one.held), one.held[0].subset, two.held[0].subset
    (20, 0, 1)
    """
    if not 1 <= max_subsets <= num_workers or chunks < 1:
        raise ValueError(
            f"{num_workers} workers store from 1 to {num_workers} subsets each, in 1 chunk or more: got "
            f"{max_subsets} subsets in {chunks} chunks"
        )
    sizes = chunk_sizes(chunks, equal_chunks)
    storage = whole_subsets if whole else spread
    stored = storage(num_workers, max_subsets, len(sizes))
    return Coordinator(stored, sizes, key_of(key), host, port, patience, record)
