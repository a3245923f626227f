"""A worker's own training loop asks which chunk of a step's data it computes next. No JAX is needed here."""

import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bcgc_jax.handout.line import Line

# The environment variable with the key that the coordinator and its workers have.
KEY = "BCGC_HANDOUT_KEY"


class StepFailed(RuntimeError):
    """Somebody was lost before a step was complete: nobody's sum counts, and all begin the step anew."""


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
        """Which of a step's samples: subset j has those from j M/N to (j + 1) M/N, rounded."""
        edges = [(self.subset + share) * num_samples / num_subsets for share in (self.begin, self.end)]
        return range(*(round(edge) for edge in edges))

    @property
    def seed(self) -> tuple[int, int, int]:
        """For random numbers that do not depend on who computes it: after a seed of one's own."""
        return self.step, self.subset, self.number


class Share:
    """A worker's part in the steps of a training; made by `join`.

    Attributes:
      num_workers: how many share the steps, and how many subsets there are.
      held: the chunks that this worker may be given, those of its own subset first; their step is -1.
    """

    def __init__(self, line: Line, rank: int) -> None:
        self._line, self._rank = line, rank
        told = self._ask({"join": rank})
        self._life, self.num_workers = told["life"], told["workers"]
        self._edges = [0.0, *told["edges"]]
        self.held = tuple(self._chunk(-1, *chunk) for chunk in told["held"])
        self._attempt = -1
        self._given: tuple[int, Chunk] | None = None  # the ticket of a chunk that is not reported yet
        self._since = 0.0
        self._next: Any = None

    def step(self, step: int) -> Iterator[Chunk]:
        """This worker's chunks of a step, one after the other, until all chunks of all workers are done.

        Raises StepFailed if another worker is lost meanwhile: forget the sum, and ask for the step again.
        ValueError if the others are at another step.
        """
        self._given = None
        self._attempt = self._ask({"begin": step, "rank": self._rank, "life": self._life})["attempt"]
        self._next = self._question(None)
        while not self._next["over"]:
            ticket, chunk = self._next["ticket"], self._chunk(step, *self._next["chunk"])
            self._given, self._since = (ticket, chunk), time.perf_counter()
            yield chunk
            if self._given is not None:
                self.counts(chunk)

    def counts(self, chunk: Chunk) -> bool:
        """The chunk's gradient is there: whether to add it to this worker's sum."""
        if self._given is None or self._given[1] != chunk:
            raise ValueError("counts is asked once for each chunk, when its gradient is there")
        (ticket, _), self._given = self._given, None
        self._next = self._question(ticket)
        return bool(self._next["keep"])

    def close(self) -> None:
        self._line.close()

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def _question(self, ticket: int | None) -> Any:
        seconds = time.perf_counter() - self._since if ticket is not None else 0.0
        asked = {"attempt": self._attempt, "rank": self._rank, "life": self._life}
        return self._ask({**asked, "ticket": ticket, "seconds": seconds})

    def _ask(self, message: Any) -> Any:
        told = self._line.ask(message)
        if "failed" in told:
            raise StepFailed(told["failed"])
        if "refused" in told:
            raise ValueError(told["refused"])
        return told

    def _chunk(self, step: int, subset: int, number: int) -> Chunk:
        return Chunk(step, subset, number, self._edges[number], self._edges[number + 1])


def join(address: tuple[str, int], rank: int, *, key: bytes | str | None = None) -> Share:
    """Take part in the steps that a coordinator hands out.

    Args:
      address: host and port of the coordinator.
      rank: which of its workers this is, from 0; one that comes again takes the place of the one before.
      key: that of the coordinator; by default the environment variable BCGC_HANDOUT_KEY.

    Raises ConnectionError where no coordinator answers there, or with another key; ValueError for a rank that
    it does not have.
    """
    return Share(Line(address, key_of(key)), rank)


def key_of(key: bytes | str | None) -> bytes:
    """ValueError if there is none."""
    given = os.environ.get(KEY, "") if key is None else key
    if not given:
        raise ValueError(f"a coordinator and its workers need the same key: set {KEY}, or give key=")
    return given.encode() if isinstance(given, str) else given
