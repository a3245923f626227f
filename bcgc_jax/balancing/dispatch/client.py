"""A worker's training loop asks which chunk of a step it computes next; no JAX.

A worker may be several processes, of which one asks."""

import contextlib
import functools
import operator
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bcgc_jax.balancing.dispatch.messages import (
    NOT_JOINED,
    SILENCE,
    Answer,
    Begin,
    Copies,
    Covers,
    Done,
    Join,
    Leave,
    OwnDone,
    Question,
    Seat,
    TakeSeat,
    answer_of,
    data_of,
    loads_of_whole,
    wrong_loads,
)
from bcgc_jax.balancing.dispatch.transport import Line, Tcp, Transport


class Chunk(NamedTuple):
    """Some samples of a step, the same for whoever computes them.

    Attributes:
      step: its number, as it was asked for.
      subset, number: subset j of N, and its chunk.
      begin, end: from where to where in its subset, shares of 1.

    >>> Chunk(7, 2, 0, 0.25, 0.5).rows(num_samples=64, num_subsets=4)
    range(36, 40)
    """

    step: int
    subset: int
    number: int
    begin: float
    end: float

    def rows(self, num_samples: int, num_subsets: int) -> range:
        """Which of a step's M samples: subset j of N has those from j M/N to (j + 1)
        M/N, rounded.

        All chunks of a step have each sample once. ValueError where there are too few
        samples for a chunk.
        """
        first = round((self.subset + self.begin) * num_samples / num_subsets)
        last = round((self.subset + self.end) * num_samples / num_subsets)
        if first == last:
            raise ValueError(
                f"chunk {self.number} of subset {self.subset} has none of the "
                f"{num_samples} samples: take fewer chunks, or equal_chunks=True"
            )
        return range(first, last)

    @property
    def seed(self) -> tuple[int, int, int]:
        """For random numbers, the same whoever computes: add a seed of yours."""
        return self.step, self.subset, self.number


class GroupShare:
    """A share that all processes of a worker have; made by `Share.for_group`, and by
    `follow`.

    Args:
      broadcast: gives all of the group the value that its first process passes; the
        others pass None. It carries what can be pickled.
      share: of the first process; None in the others.

    Attributes:
      num_workers, num_chunks, held, own: as those of `Share`.
    """

    def __init__(
        self, broadcast: Callable[[Any], Any], share: "Share | None" = None
    ) -> None:
        self._broadcast = broadcast
        self._share = share
        seat = None
        if share is not None:
            seat = share.num_workers, share.num_chunks, share.held, share.own
        self.num_workers, self.num_chunks, self.held, self.own = broadcast(seat)

    def step(
        self,
        step: int,
        loads: Iterable[float] | None = None,
        present: Iterable[int] | None = None,
    ) -> Iterator[Chunk]:
        """The chunks of the worker, the same in all of its group; all raise what the
        first raises.

        A chunk is done when the first process asks for the next one: its collectives
        have ended.
        """
        chunks = None
        if self._share is not None:
            chunks = self._share.step(step, loads, present)
        while (chunk := self._next(chunks)) is not None:
            yield chunk

    def _next(self, chunks: Iterator[Chunk] | None) -> Chunk | None:
        """The next chunk in the whole group."""
        following: Any = None
        try:
            if chunks is not None:
                following = next(chunks, None)
        except Exception as error:
            following = error
        following = self._broadcast(following)
        if isinstance(following, Exception):
            raise following
        if following is None:
            return None
        return Chunk(*following)


def follow(broadcast: Callable[[Any], Any]) -> GroupShare:
    """The share of a group in a process that is not its first one."""
    return GroupShare(broadcast)


# The environment variable with the key that the coordinator and its workers have.
KEY = "BCGC_HANDOUT_KEY"
# Seconds until it is tried again whether a coordinator listens: a worker is so late.
_AGAIN = 0.1
# What the workers of this process have in common, and no others.
_PROCESS = secrets.token_hex(8)


class StepFailed(RuntimeError):
    """The step has failed for all workers that have begun it: no sum counts.

    Attributes:
      lost: The ranks of the workers whose loss is the reason, if any. A loop whose
        all-reduce can do without them asks for the step again with the other ranks as
        `present`, if `share.covers` them.
    """

    def __init__(self, why: str, lost: Iterable[int] = ()) -> None:
        super().__init__(why)
        self.lost = frozenset(lost)


def ask(line: Line, question: Question) -> Answer:
    """The answer of a coordinator; StepFailed or ValueError where it says so."""
    answer = answer_of(line.ask(data_of(question)))
    if answer.failed:
        raise StepFailed(answer.failed, answer.lost)
    if answer.refused:
        raise ValueError(answer.refused)
    return answer


class Share:
    """A worker's part in the steps of a training; made by `join`. One thread uses it.

    Attributes:
      num_workers: how many share the steps, and how many subsets there are.
      num_chunks: C, whole ones of a subset.
      held: the chunks that this worker may be given, those of its own subset first;
        their step is -1. In a step that is not shared the small ones at the end of its
        own subset are one.
      own: the chunks of its own subset, in order: `step` takes their lengths as
        `loads`.
      shares: whether the next step is shared.

    Where workers say their hosts as they join, all but `shares` are known once all
    have: until then whoever asks for them waits.
    """

    def __init__(self, line: Line, rank: int, host: str = "") -> None:
        self._line = line
        self._rank = rank
        self._steps = 0  # that it has begun
        process = f"{_PROCESS}-{os.getpid()}"  # also after a fork
        answer = self._ask(Join(rank, host=host, process=process))
        self.shares = answer.shares
        self._known_seat = answer.seat

    @property
    def _seat(self) -> Seat:
        if self._known_seat is None:
            self._known_seat = self._ask(TakeSeat()).seat
        assert self._known_seat is not None
        return self._known_seat

    @property
    def num_workers(self) -> int:
        return self._seat.workers

    @property
    def num_chunks(self) -> int:
        return self._seat.chunks

    @property
    def most_stored(self) -> float:
        """How many subsets the worker stores that stores the most data."""
        return self._seat.most_subsets

    @functools.cached_property
    def held(self) -> tuple[Chunk, ...]:
        return tuple(self._chunk(-1, *chunk) for chunk in self._seat.stored)

    @functools.cached_property
    def own(self) -> tuple[Chunk, ...]:
        return tuple(chunk for chunk in self.held if chunk.subset == self._rank)

    def step(
        self,
        step: int,
        loads: Iterable[float] | None = None,
        present: Iterable[int] | None = None,
    ) -> Iterator[Chunk]:
        """This worker's chunks of a step, one by one, until all workers have done all
        chunks.

        Where sharing would save nothing, these are the whole chunks of its own subset,
        and nobody is asked before all are done.

        Args:
          step: its number.
          loads: how long the chunks of `own` are in this step, such as their tokens, in
            any unit that is the same for all workers. Long chunks are begun early then.
            They travel with the first question. If they are wrong the step is slower,
            never another sum.
          present: the ranks that take part, the same in all of them; by default all.
            Those present do the chunks of the others too, so the sum is that of all
            data; such a step is shared.

        Who asks for the next one has done the one before: its gradient is there, and in
        this worker's sum. In JAX that takes `jax.block_until_ready`. After the last one
        the sum can go into the all-reduce.

        If you leave the iterator before its end, by `break` or because a chunk raises,
        the step fails for the others too.

        Raises StepFailed if a worker is lost meanwhile, with the ranks in `lost`:
        forget the sum, and ask for the step again. ValueError if the others are at a
        later step, for loads that are none, and, before anything is computed, where
        those `present` do not store all data; ConnectionError if the coordinator is
        gone, 20 s after its machine has vanished.
        """
        for (chunk,) in self._begun(step, loads, present, at_once=False):
            yield chunk

    def runs(
        self, step: int, loads: Iterable[float] | None = None
    ) -> Iterator[tuple[Chunk, ...]]:
        """This worker's chunks of a step, as many at a time as need no question.

        For a program that computes a run without coming back to Python. In a step that
        is not shared its own chunks are one run. What they took together is divided
        among them by their lengths.
        """
        return self._begun(step, loads, None, at_once=True)

    def _begun(
        self,
        step: int,
        loads: Iterable[float] | None,
        present: Iterable[int] | None,
        *,
        at_once: bool,
    ) -> Iterator[tuple[Chunk, ...]]:
        step = operator.index(step)
        lengths = self._lengths(step, loads)
        ranks = None
        if present is not None:
            ranks = sorted({*map(operator.index, present)})
        self._steps += 1
        number = self._steps
        if self.shares or (ranks is not None and len(ranks) < self.num_workers):
            runs = self._handed_out(Begin(step, lengths, ranks))
        else:
            runs = self._own_chunks(step, lengths, at_once=at_once)
        try:
            yield from runs
        except GeneratorExit:  # the loop has left it, as by break or by an error
            if number == self._steps:
                with contextlib.suppress(OSError):  # the others hear it anyway
                    self._line.send(data_of(Leave(step)))
            raise

    def _lengths(self, step: int, loads: Iterable[float] | None) -> list[float] | None:
        lengths = None
        if loads is not None:
            lengths = [float(load) for load in loads]
        if why := wrong_loads(lengths, len(self.own)):
            raise ValueError(f"worker {self._rank}, step {step}: {why}")
        return lengths

    def covers(self, present: Iterable[int]) -> bool:
        """Whether these ranks store all data: they alone can do a step.

        Raises ConnectionError if the coordinator is gone, or another process has taken
        this worker's place.
        """
        question = Covers(sorted({*map(operator.index, present)}))
        answer = answer_of(self._line.ask(data_of(question)))
        if answer == NOT_JOINED:
            raise ConnectionError(f"worker {self._rank}: {answer.refused}")
        return not answer.refused

    def compare_copies(self, step: int, checksums: list[list[int]]) -> None:
        """Compare this worker's copies of chunks with those of the other workers.

        Args:
          step: The number of the step.
          checksums: Of each chunk of `held`, its subset, its number there and the
            checksum of the rows that this worker stores for it.

        Raises:
          ValueError: If another worker has sent another checksum for a chunk in this
            step.
          ConnectionError: If the coordinator has ended.
        """
        self._ask(Copies(step, checksums))

    def _handed_out(self, begin: Begin) -> Iterator[tuple[Chunk, ...]]:
        answer = self._ask(begin)
        while answer.ticket is not None and answer.chunk is not None:
            began = time.perf_counter()
            yield (self._chunk(begin.step, *answer.chunk),)
            seconds = time.perf_counter() - began
            answer = self._ask(Done(answer.ticket, seconds))
        self.shares = answer.shares

    def _own_chunks(
        self, step: int, loads: list[float] | None, *, at_once: bool
    ) -> Iterator[tuple[Chunk, ...]]:
        since = time.perf_counter() - self._heard
        weights = [1.0] * self.num_chunks
        if loads is not None:
            weights = loads_of_whole(loads, self.num_chunks)
        chunks = [self._whole_chunk(step, number) for number in range(self.num_chunks)]
        length = len(chunks) if at_once else 1
        seconds: list[float] = []
        for first in range(0, len(chunks), length):
            began = time.perf_counter()
            yield tuple(chunks[first : first + length])
            took = time.perf_counter() - began
            of_run = weights[first : first + length]
            seconds += [took * weight / sum(of_run) for weight in of_run]
        self.shares = self._ask(OwnDone(step, since, seconds, loads)).shares

    def _ask(self, question: Question) -> Answer:
        try:
            return ask(self._line, question)
        except ValueError as error:
            raise ValueError(f"worker {self._rank}: {error}") from None
        finally:
            self._heard = time.perf_counter()

    def for_group(self, broadcast: Callable[[Any], Any]) -> GroupShare:
        """The share of a worker that is several processes, such as a group of FSDP.

        In the first process of the group; the others call `dispatch.follow(broadcast)`
        at the same time, and then all the same `step`. In PyTorch `broadcast` is
        `broadcast_object_list` over the group.

        >>> from bcgc_jax.balancing.dispatch import Memory, join, serve
        >>> memory = Memory()
        >>> with serve(1, 1, chunks=2, transport=memory) as coordinator:
        ...     with join(coordinator.address, 0, transport=memory) as share:
        ...         alone = share.for_group(lambda value: value)
        ...         [chunk.number for chunk in alone.step(0)]
        [0, 1]
        """
        return GroupShare(broadcast, self)

    def close(self) -> None:
        """Leave. A step that is not complete fails for the others."""
        self._line.close()

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def _whole_chunk(self, step: int, number: int) -> Chunk:
        begin, end = number / self.num_chunks, (number + 1) / self.num_chunks
        return Chunk(step, self._rank, number, begin, end)

    def _chunk(self, step: int, subset: int, number: int) -> Chunk:
        edges = (0.0, *self._seat.edges)
        return Chunk(step, subset, number, edges[number], edges[number + 1])


def join(
    address: tuple[str, int],
    rank: int,
    *,
    key: bytes | str | None = None,
    wait: float = 60.0,
    transport: Transport | None = None,
    host: str | None = None,
) -> Share:
    """Take part in the steps that a coordinator hands out.

    Args:
      address: host and port of the coordinator.
      rank: which of its workers this is, from 0; one that comes again takes the place
        of the one before.
      key: that of the coordinator; by default the environment variable
        BCGC_HANDOUT_KEY.
      wait: seconds within which the coordinator may begin to listen.
      transport: that of the coordinator; by default `Tcp`, with this key.
      host: whose workers are slow or gone together, for `serve(hosts="join")`; by
        default the name of this machine.

    Warns after five seconds in which nobody listens there. Raises ConnectionError where
    no coordinator answers there, or with another key; ValueError for a rank that it
    does not have.
    """
    line = None
    if transport is None:
        transport = Tcp(key=key_of(key))
    place = f"{address[0]}:{address[1]}"
    began = time.monotonic()
    warned = False
    while line is None:
        try:
            line = transport.connect(address)
        except ConnectionRefusedError as error:  # nobody listens yet
            waited = time.monotonic() - began
            message = (
                f"worker {rank}: nobody has listened at {place} for {waited:.0f} s. "
                "Does the process with serve run? Has it this port, and host= for "
                "other machines?"
            )
            if waited >= wait:
                raise ConnectionRefusedError(message) from error
            if waited >= SILENCE and not warned:
                warnings.warn(
                    f"{message} This worker waits for {wait:g} s.", stacklevel=2
                )
                warned = True
            time.sleep(_AGAIN)
        except OSError as error:  # no such host, no way to it, another key
            raise ConnectionError(
                f"worker {rank}: no coordinator answers at {place}: {error}. Are the "
                "address and the key those of serve?"
            ) from error
    try:
        return Share(line, rank, socket.gethostname() if host is None else host)
    except BaseException:
        line.close()
        raise


def key_of(key: bytes | str | None) -> bytes:
    """The key in bytes; ValueError if there is none."""
    secret = key
    if key is None:
        secret = os.environ.get(KEY, "")
    if not secret:
        raise ValueError(
            f"a coordinator and its workers need the same key: set {KEY}, or give key="
        )
    if isinstance(secret, str):
        return secret.encode()
    return secret
