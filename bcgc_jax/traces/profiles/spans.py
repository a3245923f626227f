"""Spans of time: their union, exposed seconds of collectives, and times of chunks."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.profiles.recording import Recording
from bcgc_jax.traces.profiles.waits import Waits


class Spans:
    """Collect spans of time compactly, and compute their union.

    A span that begins within the last span is merged with it.

    >>> spans = Spans()
    >>> for begin, end in ((0.0, 3.0), (1.0, 2.0), (5.0, 6.0), (4.0, 5.5)):
    ...     spans.add(begin, end)
    >>> spans.union().tolist()
    [[0.0, 3.0], [4.0, 6.0]]
    """

    def __init__(self) -> None:
        self._begins = array("d")
        self._ends = array("d")

    def add(self, begin: float, end: float) -> None:
        if self._ends and self._begins[-1] <= begin <= self._ends[-1]:
            self._ends[-1] = max(end, self._ends[-1])
        else:
            self._begins.append(begin)
            self._ends.append(end)

    def __len__(self) -> int:
        return len(self._begins)

    def union(self) -> np.ndarray:
        """Return the union as disjoint spans in order, `[n, 2]`."""
        if not self._begins:
            return np.zeros((0, 2))
        begins, ends = np.frombuffer(self._begins), np.frombuffer(self._ends)
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], np.maximum.accumulate(ends[order])
        first = np.append(True, begins[1:] > ends[:-1])
        return np.stack([begins[first], ends[np.append(first[1:], True)]], axis=1)


def covered(spans: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return how many seconds of disjoint spans, `[n, 2]`, are before each time."""
    if not len(spans):
        return np.zeros(len(times))
    begins, ends = spans.T
    before = np.append(0.0, np.cumsum(ends - begins))
    # The last span that has begun by each time.
    last = np.searchsorted(begins, times) - 1
    of_last = np.minimum(times, ends[last]) - begins[last]
    return np.where(last < 0, 0.0, before[last] + of_last)


def exposed(collectives: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Return the seconds of each collective in which no computation runs (exposed).

    A gap is a time without computation within a collective, if computation follows
    before the collective ends.

    Args:
      collectives: Begins and ends, `[C, 2]`, sorted by begin. If two collectives
        overlap, the first one gets the common seconds.
      work: Disjoint spans of computation, `[n, 2]`. Empty if not known.

    Returns:
      Exposed seconds, `[C, 2]`: with gaps as waiting, and with gaps as computation.

    >>> work = np.array([[0.0, 2.0], [3.0, 4.0]])
    >>> exposed(np.array([[1.0, 5.0]]), work).tolist()
    [[2.0, 1.0]]
    """
    begins, ends = collectives.T
    before = np.append(-np.inf, np.maximum.accumulate(ends)[:-1])
    begins = np.maximum(begins, before)
    ends = np.maximum(begins, ends)
    as_waits = ends - begins - (covered(work, ends) - covered(work, begins))
    if not len(work):
        return np.stack([as_waits, as_waits], axis=1)
    last = np.searchsorted(work[:, 0], ends) - 1
    busy = np.where(last < 0, -np.inf, work[last, 1])
    as_work = ends - np.clip(busy, begins, ends)
    return np.stack([as_waits, as_work], axis=1)


class Chunks(NamedTuple):
    """C chunks of W workers in S steps, `[S, W, C]`.

    Attributes:
      seconds: Seconds from a chunk's begin to the next one's begin. The last chunk ends
        with the step.
      wait: Exposed seconds of the collectives that end within the chunk.
      forward: Seconds of the forward pass. NaN if not known.
    """

    seconds: np.ndarray
    wait: np.ndarray
    forward: np.ndarray

    def outside(self, waits: Waits) -> float:
        """Return the fraction of the compute time that is outside of chunks."""
        own_seconds = waits.seconds.sum() - waits.wait.sum()
        return float(1 - (self.seconds.sum() - self.wait.sum()) / own_seconds)


def chunks_of(ranks: Sequence[Recording], waits: Waits) -> Chunks | None:
    """Cut the steps into chunks. Return None if the numbers of chunks differ."""
    firsts = [np.searchsorted(rank.chunk_step, waits.steps) for rank in ranks]
    counts = [np.searchsorted(rank.chunk_step, waits.steps, "right") for rank in ranks]
    count = np.array(counts) - np.array(firsts)
    if count.min() == 0 or count.min() < count.max():
        return None
    rows = [first[:, None] + np.arange(count.max()) for first in firsts]
    cut = [
        _cut(rank, which, waits, place)
        for place, (rank, which) in enumerate(zip(ranks, rows, strict=True))
    ]
    return Chunks(*(np.stack(part, axis=1) for part in zip(*cut, strict=True)))


def _cut(
    rank: Recording, which: np.ndarray, waits: Waits, place: int
) -> tuple[np.ndarray, ...]:
    """Return the seconds, waits and forward passes of a rank's chunks, `[S, C]`."""
    begins = rank.begin[which]
    ends = np.append(begins[:, 1:], waits.ends[:, [place]], axis=1)
    exposed = np.append(0.0, np.cumsum(rank.exposed[:, 0]))
    # Number of collectives that have ended by each time. It is clipped to the step,
    # because the clocks of two threads differ.
    first = np.searchsorted(rank.step, waits.steps)[:, None]
    ended = np.searchsorted(np.maximum.accumulate(rank.end), ends, "right")
    ended = np.append(first, np.clip(ended, first, first + waits.collectives), axis=1)
    return ends - begins, np.diff(exposed[ended], axis=1), rank.forward[which]
