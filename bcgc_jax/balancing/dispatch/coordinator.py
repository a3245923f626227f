"""A coordinator: workers join it, and ask over any transport what to do next."""

import math
import os
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from bcgc_jax.balancing.dispatch.client import key_of
from bcgc_jax.balancing.dispatch.judge import Judge
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import (
    NOT_JOINED,
    SILENCE,
    AfterJoin,
    Answer,
    Join,
    Tell,
    question_of,
    wrong_rank,
)
from bcgc_jax.balancing.dispatch.server import Reply
from bcgc_jax.balancing.dispatch.transport import Tcp, Transport
from bcgc_jax.balancing.dispatch.workers import Workers
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.balancing.storage import numbered, on_one_host


class Gathering:
    """Until all workers have joined nobody has a seat; then `begin` makes the steps.

    Args:
      place: that of the workers, but for their hosts.
      begin: makes the steps of loops for a placement.
      shares: whether the first step is shared.
      timeout: seconds that the others wait for a worker that has not joined.
    """

    def __init__(
        self,
        place: Placement,
        begin: Callable[[Placement], Loops],
        shares: bool,
        timeout: float,
    ) -> None:
        self._place = place
        self._begin = begin
        self._shares = shares
        self._workers = Workers(timeout)
        self._joined: dict[int, tuple[Join, Tell]] = {}
        # Questions of workers, and when they came.
        self._waiting: dict[int, tuple[AfterJoin, float]] = {}
        self._has_warned = False
        self._loops: Loops | None = None

    def joined(self, who: Join, tell: Tell, now: float) -> Answer:
        if self._loops is not None:
            return self._loops.joined(who, tell, now)
        if why := wrong_rank(who.rank, self._place.num_workers):
            return Answer(refused=why)
        self._workers.join(who, tell, now)
        self._joined[who.rank] = who, tell
        if len(self._joined) == self._place.num_workers:
            self._loops = self._begun(now)
        return Answer(shares=self._shares)

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        if self._loops is not None:
            self._loops.asked(who, question, tell, now)
        elif not self._workers.has(who.rank, tell):
            tell(NOT_JOINED)
        else:
            self._waiting[who.rank] = question, now

    def left(self, who: Join, tell: Tell, now: float) -> None:
        if self._loops is not None:
            self._loops.left(who, tell, now)
        elif self._workers.close(who.rank, tell, now):
            self._workers.forget(tell)
            del self._joined[who.rank]
            self._waiting.pop(who.rank, None)

    def time_goes_on(self, now: float) -> float:
        """Say once for whom the others wait, and fail when it does not come."""
        if self._loops is not None:
            return self._loops.time_goes_on(now)
        if not self._waiting:
            return math.inf
        began = min(asked_at for _, asked_at in self._waiting.values())
        missing = [
            rank for rank in range(self._place.num_workers) if rank not in self._joined
        ]
        lines = [self._joined[rank][1] for rank in self._waiting]
        deadlines = {
            rank: self._workers.deadline(rank, began, lines) for rank in missing
        }
        rank = min(missing, key=deadlines.__getitem__)
        if deadlines[rank] <= now:
            self._fail(rank)
            return math.inf
        return min(deadlines[rank], self._warn(missing, began, now))

    def _warn(self, missing: Sequence[int], began: float, now: float) -> float:
        """Say once who has not joined; return when to."""
        if self._has_warned:
            return math.inf
        if now < began + SILENCE:
            return began + SILENCE
        self._has_warned = True
        warnings.warn(
            "who stores what is known once all workers have said their hosts. Workers "
            f"that have not joined: {', '.join(map(str, missing))}",
            stacklevel=1,
        )
        return math.inf

    def _fail(self, rank: int) -> None:
        absence = self._workers.overdue(rank)
        why = f"{absence.why}. Who stores what is known once all workers have joined"
        waiting, self._waiting = self._waiting, {}
        self._workers.know(rank, [self._joined[asker][1] for asker in waiting])
        for asker in waiting:
            self._joined[asker][1](Answer(failed=why, lost=(rank,)))

    def _begun(self, now: float) -> Loops:
        """The steps of the hosts that are here, of which all workers hear."""
        ranks = range(self._place.num_workers)
        hosts = numbered([self._joined[rank][0].host for rank in ranks])
        loops = self._begin(self._place._replace(hosts=hosts))
        for rank in ranks:
            loops.joined(*self._joined[rank], now)
        for rank, (question, asked_at) in self._waiting.items():
            who, tell = self._joined[rank]
            loops.asked(who, question, tell, asked_at)
        return loops


class Steps(Protocol):
    """What a coordinator serves. It passes in what time it is, and whose line a
    question came by.

    All methods are called one after another. A worker may be told the answer at once or
    later.
    """

    def joined(self, who: Join, tell: Tell, now: float) -> Answer:
        """A worker's line is there."""

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        """A worker asks what is next. ValueError for nonsense closes its line."""

    def left(self, who: Join, tell: Tell, now: float) -> None:
        """The line of a worker has ended."""

    def time_goes_on(self, now: float) -> float:
        """Do what time and questions brought; return when to look next, or inf."""


class Coordinator:
    """Answers workers until its `with` or `close` ends it. `serve` makes one.

    Who asks later gets a ConnectionError.

    Attributes:
      address: host and port, for `join`.
      transport: what carries questions.
    """

    def __init__(
        self,
        transport: Transport,
        steps: Steps,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self._steps = steps
        self._clock = clock
        self._joined: dict[Reply, Join] = {}  # who has, by which line
        self._listening = transport.listen(self)
        self.address = self._listening.address

    def close(self) -> None:
        self._listening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    # What the transport calls.

    def asked(self, message: Any, reply: Reply) -> None:
        question = question_of(message)  # nonsense is for whoever has sent it
        who = self._joined.get(reply)
        if isinstance(question, Join):
            if who is not None:
                raise ValueError("it has joined before")
            self._joined[reply] = question
            reply(self._steps.joined(question, reply, self._clock()))
        elif who is None:
            reply(NOT_JOINED)
        else:
            self._steps.asked(who, question, reply, self._clock())

    def left(self, reply: Reply) -> None:
        """A line has ended."""
        who = self._joined.pop(reply, None)
        if who is not None:
            self._steps.left(who, reply, self._clock())

    def look(self) -> float:
        now = self._clock()
        return self._steps.time_goes_on(now) - now


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
    timeout: float = 600.0,
    record: str | os.PathLike[str] | None = None,
    transport: Transport | None = None,
    adapt: bool = True,
    hosts: Sequence[Hashable] | Literal["join"] | None = None,
    offsets: int | None = None,
) -> Coordinator:
    """Hand out the chunks of each step to the N workers that `join`, in a thread of
    this process.

    The data of a step are N subsets of C chunks, the last one cut again into a half and
    two quarters. Each worker stores as much as D subsets: its own, and chunks of
    others. Whoever is free is given, of the chunks that it stores, the one with the
    greatest product of its length and of the time until another holder would come to it
    (docs/how-it-works.md). A length is what the chunk's worker has sent, else the
    chunk's size.

    It shares the steps in which that saves time. Each step is replayed in the other
    mode: the first ones are not shared, and where workers are equal none is. A worker
    asks nothing then, and sends one message when its own chunks are done.

    Args:
      plan: N; or the path of the plan that `bcgc advise --out` wrote; or a `Placement`.
        The last two have the numbers of subsets and chunks, and what a length takes and
        the hosts, by the log.
      max_subsets: D, from 1, where nothing is shared, to N; by default 2, of one
        worker 1.
      chunks: C; by default 8.
      key: that workers need; by default the environment variable BCGC_HANDOUT_KEY.
      host: of the network that is listened to; by default this machine alone.
      port: by default a free one, see `address`.
      equal_chunks: whether the last chunk stays whole; it does where nothing is shared.
      whole: whether workers store whole subsets, for loaders that can do no other.
      timeout: Seconds for which the others wait for a worker that does not send a
        request, before the step fails with its name. Defaults to 600. It must be longer
        than any chunk, and in a step that is not shared than all chunks of a worker; it
        must also be longer than compiling, saving a checkpoint or an evaluation. A
        worker whose connection was closed is waited for for one second only.
      record: a CSV of who did which chunk in how many seconds, of complete steps, with
        the loads that workers sent, and what a question took; `bcgc advise`,
        `bcgc solve --trace` and `bcgc fit` read it.
      transport: what carries questions; by default `Tcp(host, port, key)`. With
        `Memory()` workers are threads of this process, and no key is needed.
      adapt: whether steps are shared only where that saves time; else all are.
      hosts: that of each worker: where workers of a host are slow together, or leave
        together, each chunk is stored on D hosts, as far as no host has more than N / D
        workers. "join": what workers say as they `join`; who stores what is known once
        all have. By default those of the plan.
      offsets: how many offsets from its owner the holders of chunks have; by default
        another for each chunk. Three to five bear more sets of absent workers.

    Raises ValueError for numbers that are no such plan, or without a key; OSError where
    it cannot listen, or read the plan.

    >>> from bcgc_jax.balancing.dispatch import join
    >>> with serve(2, key="secret") as coordinator:
    ...     host_and_port = coordinator.address
    ...     shares = [join(host_and_port, rank, key="secret") for rank in range(2)]
    ...     len(shares[0].held), [share.held[0].subset for share in shares]
    (20, [0, 1])
    """
    place = _placement(plan, max_subsets, chunks, equal_chunks, whole)
    if hosts is not None and hosts != "join":
        place = place._replace(hosts=numbered(hosts))
    if offsets is not None:
        place = place._replace(offsets=offsets)
    place.check()

    def loops(place: Placement) -> Loops:
        _warn_of_hosts(place)
        judge = None
        if adapt and place.max_subsets > 1:
            judge = Judge(place)
        return Loops(place, timeout, record, judge, shares=not adapt)

    steps: Steps
    if hosts == "join":
        if record is not None:
            Path(record).touch()  # raises here, not in a thread once all have joined
        steps = Gathering(place, loops, not adapt, timeout)
    else:
        steps = loops(place)
    if transport is None:
        transport = Tcp(host, port, key_of(key))
    return Coordinator(transport, steps)


def _placement(
    plan: int | Placement | str | os.PathLike[str],
    max_subsets: int | None,
    chunks: int | None,
    equal_chunks: bool,
    whole: bool,
) -> Placement:
    if isinstance(plan, int):
        if max_subsets is None:
            max_subsets = min(2, plan)
        if chunks is None:
            chunks = 8
        return Placement(plan, max_subsets, chunks, equal_chunks, whole)
    if not (max_subsets is None and chunks is None) or equal_chunks or whole:
        raise ValueError(
            "the plan has the numbers of subsets and chunks: leave out max_subsets, "
            "chunks, equal_chunks and whole, or give the number of workers in place of "
            "the plan"
        )
    if isinstance(plan, Placement):
        return plan
    return Placement.load(plan)


def _warn_of_hosts(place: Placement) -> None:
    """Say which share of the chunks a slow or absent host has alone."""
    share = 0.0
    if place.by_host:
        assert place.hosts is not None
        share = on_one_host(place.storage, place.hosts)
    if share:
        warnings.warn(
            f"{100 * share:.0f} % of the chunks have two holders on one host: a host "
            f"has more than {place.num_workers / place.max_subsets:g} of "
            f"{place.num_workers} workers",
            stacklevel=3,
        )
