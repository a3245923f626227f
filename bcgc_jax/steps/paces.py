"""How long workers are expected to take for a tick, by the chunks that have ended."""

import numpy as np


class Paces:
    """The paces of one step's workers. Callers say what time it is `now`.

    A worker is expected to take as long for a tick as for its last chunk, or as its
    running chunk has taken by now if that is more. Before its first one it is expected
    to take the mean of the others. Before anybody has done a chunk all are taken to be
    alike. `Queue.weight` says how many ticks a chunk has.

    >>> paces = Paces(2)
    >>> for worker in (0, 1):
    ...     paces.began(worker, ticks=4, now=0.0)
    >>> paces.ended(0, now=2.0)
    >>> paces.seconds(now=2.0), paces.seconds(now=3.0)
    (array([0.5, 0.5]), array([0.5 , 0.75]))
    """

    def __init__(self, num_workers: int):
        self._last = np.zeros(num_workers)  # for a tick; 0 before there is one
        self._expected = np.full(num_workers, np.inf)  # for a tick, whatever runs
        # Workers whose last chunk took no time, or none yet.
        self._unknown = set(range(num_workers))
        # The running chunk; infinity for none.
        self._began = np.full(num_workers, np.inf)
        self._ticks = np.ones(num_workers)  # of the running chunk

    def began(self, worker: int, ticks: int, now: float) -> None:
        """A worker has been given a chunk."""
        self._began[worker] = now
        self._ticks[worker] = ticks

    def ended(self, worker: int, now: float) -> None:
        """A worker has done its chunk."""
        seconds = now - self._began[worker]
        self._began[worker] = np.inf
        self._last[worker] = self._expected[worker] = seconds / self._ticks[worker]
        change = self._unknown.add
        if seconds > 0:
            change = self._unknown.discard
        change(worker)
        if 0 < len(self._unknown) < len(self._last):
            # `lockstep` adds up the same numbers in the same order.
            unknown = list(self._unknown)
            self._expected[unknown] = self._last.sum() / (
                len(self._last) - len(unknown)
            )

    def seconds(self, now: float) -> np.ndarray:
        """Each worker's seconds for a tick, `[N]`; 1 before anything is known."""
        if len(self._unknown) == len(self._last):
            return np.ones(len(self._last))
        return np.maximum(self._expected, (now - self._began) / self._ticks)
