"""Spans of time: their union, and what of a collective no computation covers."""

from array import array

import numpy as np


class Spans:
    """Collects begins and ends; what follows within or upon the last span is joined
    with it.

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
        """The disjoint spans in order, `[n, 2]`."""
        if not self._begins:
            return np.zeros((0, 2))
        begins, ends = np.frombuffer(self._begins), np.frombuffer(self._ends)
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], np.maximum.accumulate(ends[order])
        first = np.append(True, begins[1:] > ends[:-1])
        return np.stack([begins[first], ends[np.append(first[1:], True)]], axis=1)


def covered(spans: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the seconds of disjoint spans, `[n, 2]`, before each of some times."""
    if not len(spans):
        return np.zeros(len(times))
    begins, ends = spans.T
    before = np.append(0.0, np.cumsum(ends - begins))
    # The last span that has begun by then.
    last = np.searchsorted(begins, times) - 1
    of_last = np.minimum(times, ends[last]) - begins[last]
    return np.where(last < 0, 0.0, before[last] + of_last)


def exposed(collectives: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Return the exposed seconds of each collective, `[C, 2]`: with gaps as waits, or
    as work.

    Args:
      collectives: begins and ends, `[C, 2]`, by their begins; seconds of two count
        once.
      work: disjoint spans of computation, `[n, 2]`; none: not known.

    A gap is a time within a collective without computation, after which there is some
    again.

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
