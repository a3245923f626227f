"""What a worker and a coordinator tell each other: data, never code.

A worker joins once on each line. Then it begins a step, and says of each chunk that it
is done: both ask what is next. Tickets have numbers, all different within an attempt at
a step. So no two questions of a worker in a step are the same: one that is
repeated has the same answer. In a step that is not shared it asks nothing, and says
once that its own chunks are done. A worker that leaves a step says so, and hears
nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

# The attempt at a step, and the number of a hand-out there.
Ticket = tuple[int, int]
Chunk = tuple[int, int]  # its subset, and its number there

# Seconds after which it is said for whom or what somebody waits.
SILENCE = 5.0
# Seconds that no chunk takes.
_AGES = 1e9
# No load is so large.
_LARGEST_LOAD = 1e100


class Join(NamedTuple):
    """This is the line of worker `rank`, on a host.

    Workers with the same `process` may be devices of one compiled program, which can
    begin a step again only when it has ended on all of them: if the step fails for one
    it fails for the others. "" is a process of its own.
    """

    rank: int
    host: str = ""
    process: str = ""


class TakeSeat(NamedTuple):
    """What must this worker know before the first step? Answered once that is known."""


class Begin(NamedTuple):
    """What is the first chunk of a step?

    `loads` say how long the worker's own chunks are, and `present` who takes part; None
    for all.
    """

    step: int
    loads: list[float] | None = None
    present: list[int] | None = None


class Done(NamedTuple):
    """A chunk is done, which took so many seconds: what is next?"""

    ticket: Ticket
    seconds: float = 0.0


class OwnDone(NamedTuple):
    """All own chunks of a step that is not shared are done: what is the next step?

    `since` are the seconds from the last answer until they were begun, `seconds` those
    of each.
    """

    step: int
    since: float
    seconds: list[float]
    loads: list[float] | None = None


class Leave(NamedTuple):
    """The worker has left a step before its end. This has no answer."""

    step: int


class Covers(NamedTuple):
    """Do these workers store all data? An answer that refuses says what is missing."""

    present: list[int]


class Copies(NamedTuple):
    """Are the worker's copies of a step's chunks those of the other workers?

    Each of `checksums` is the subset of a chunk, its number there, and the checksum of
    the rows that the worker stores for it. An answer that refuses names a copy that
    differs.
    """

    step: int
    checksums: list[list[int]]


AfterJoin = TakeSeat | Begin | Done | OwnDone | Leave | Covers | Copies
Question = Join | AfterJoin
_WORDS = {
    Join: "join",
    TakeSeat: "seat",
    Begin: "begin",
    Done: "done",
    OwnDone: "own",
    Leave: "leave",
    Covers: "covers",
    Copies: "copies",
}


class Seat(NamedTuple):
    """What a worker must know before the first step.

    Attributes:
      workers: how many there are.
      chunks: whole ones of a subset.
      edges: where each chunk of a subset ends that is handed out, shares of 1.
      stored: the chunks that it may be given.
      most_subsets: how many subsets the worker stores that stores the most data.
    """

    workers: int
    chunks: int
    edges: tuple[float, ...]
    stored: tuple[Chunk, ...]
    most_subsets: float


class Answer(NamedTuple):
    """What is next: a chunk, or the end.

    Attributes:
      ticket, chunk: what to compute.
      over: whether the step is over.
      seat: of a worker that has joined a training loop, if it is known.
      shares: whether the next step is shared, where it is over or a worker has joined.
      failed: why no sum of this step counts; it can be begun again.
      lost: the workers whose loss is the reason, in ascending order.
      refused: why the question has no answer.
    """

    ticket: Ticket | None = None
    chunk: Chunk | None = None
    over: bool = False
    seat: Seat | None = None
    failed: str = ""
    refused: str = ""
    shares: bool = True
    lost: tuple[int, ...] = ()


# How to tell a worker what is next.
Tell = Callable[[Answer], None]

NOT_JOINED = Answer(
    refused="it has not joined, or another process has taken its place. Call "
    "dispatch.join again if this process goes on, or end it"
)


def data_of(question: Question) -> list[Any]:
    """A question as data, which `question_of` reads.

    >>> data_of(Begin(7)), question_of(["done", [1, 4], 0.5])
    (['begin', 7, None, None], Done(ticket=(1, 4), seconds=0.5))
    """
    return [_WORDS[type(question)], *question]


def question_of(data: Any) -> Question:
    """The question; ValueError where it is none. `wrong_loads` checks the loads."""
    match data:
        case ["done", [attempt, number], seconds] if _whole(
            attempt, number
        ) and _is_time(seconds):
            return Done((attempt, number), float(seconds))
        case ["begin", step, loads, None | [*_] as present]:
            if _whole(step, *(present or ())):
                return Begin(step, loads, present)
        case ["covers", [*present]] if _whole(*present):
            return Covers(present)
        case ["own", step, since, [*seconds], loads] if _whole(step):
            if all(map(_is_time, [since, *seconds])):
                return OwnDone(step, float(since), list(map(float, seconds)), loads)
        case ["leave", step] if _whole(step):
            return Leave(step)
        case ["join", rank, str(host), str(process)] if _whole(rank):
            return Join(rank, host, process)
        case ["copies", step, [*checksums]] if _whole(step):
            if all(len(row) == 3 and _whole(*row) for row in map(_listed, checksums)):
                return Copies(step, checksums)
        case ["seat"]:
            return TakeSeat()
    raise ValueError("it is no message of a worker")


def _whole(*numbers: Any) -> bool:
    return all(type(number) is int for number in numbers)


def _listed(row: Any) -> list[Any]:
    return row if isinstance(row, list) else []


def _is_time(seconds: Any) -> bool:
    return type(seconds) in (int, float) and 0 <= seconds < _AGES


def answer_of(data: Any) -> Answer:
    """The answer, with tuples for lists; JSON makes its data of an `Answer`."""
    ticket, chunk, over, seat, *words, shares, lost = data
    failed, refused = words
    if ticket is not None:
        ticket, chunk = tuple(ticket), tuple(chunk)
    if seat is not None:
        workers, chunks, edges, stored, most_subsets = seat
        seat = Seat(
            workers, chunks, tuple(edges), tuple(map(tuple, stored)), most_subsets
        )
    return Answer(ticket, chunk, over, seat, failed, refused, shares, (*lost,))


def loads_of_whole(loads: list[float], num_chunks: int) -> list[float]:
    """Lengths of whole chunks: the pieces of the last one are one.

    >>> loads_of_whole([8.0, 4.0, 2.0, 1.0], 2)
    [8.0, 7.0]
    """
    last = num_chunks - 1
    return [*loads[:last], sum(loads[last:])]


def wrong_rank(rank: int, num_workers: int) -> str:
    """Say what is wrong with the rank of a worker; nothing if it is right.

    >>> wrong_rank(2, 2)
    'there are 2 workers, from 0 to 1: got rank 2'
    """
    if 0 <= rank < num_workers:
        return ""
    return (
        f"there are {num_workers} workers, from 0 to {num_workers - 1}: got rank {rank}"
    )


def wrong_loads(loads: Any, count: int) -> str:
    """Say what is wrong with the lengths of a worker's own chunks; nothing if they are
    right.

    >>> wrong_loads([3.0, 1.5], 2), wrong_loads(None, 2)
    ('', '')
    >>> wrong_loads([3.0, -1.0], 2)
    'loads must be 2 positive numbers, those of the chunks of `own`: got -1.0'
    """
    if loads is None:
        return ""
    expectation = (
        f"loads must be {count} positive numbers, those of the chunks of `own`: got"
    )
    if not isinstance(loads, list):
        return f"{expectation} {type(loads).__name__}"
    if len(loads) != count:
        return f"{expectation} {len(loads)}"
    for load in loads:
        if type(load) not in (int, float) or not 0 < load < _LARGEST_LOAD:
            return f"{expectation} {load!r:.40}"
    return ""
