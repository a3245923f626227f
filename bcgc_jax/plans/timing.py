"""How long workers take for a unit of size, as `Handout` needs it. Callers say what time it is `now`."""

import math
from typing import NamedTuple

from bcgc_jax.plans.handout import Chunk

# A copy is worth it if this many times its own time is less than the expected rest of the running chunk.
_WORTH = 1.5
# A worker is overdue after this many times the mean. With less there are false alarms where times vary.
_PATIENCE = 2.0


class _Run(NamedTuple):
    chunk: Chunk
    size: int
    began: float


class Timing:
    """The times of one step: `seconds` and `worth` for `Handout.next`, `overdue` for `Handout.late`.

    A worker is expected to take as long for a unit of size as for its last chunk, or as its running chunk has
    taken by now if that is more. Before its first one it is expected to take the mean of the others.

    >>> timing = Timing(2)
    >>> for worker in (0, 1):
    ...     timing.began(worker, (worker, 0), size=4, now=0.0)
    >>> timing.ended(0, now=2.0)
    >>> timing.seconds(now=2.0), timing.worth(0, now=2.0)
    ([0.5, 0.5], [])
    >>> timing.next_look(now=2.0), timing.worth(0, now=3.0), timing.overdue(now=4.0)
    (3.0, [(1, 0)], [1])
    """

    def __init__(self, num_workers: int):
        self._last: list[float | None] = [None] * num_workers
        self._taken = [0.0] * num_workers
        self._done = [0] * num_workers
        self._running: dict[int, _Run] = {}

    def began(self, worker: int, chunk: Chunk, size: int, now: float) -> None:
        """A worker has been given a chunk."""
        self._running[worker] = _Run(chunk, size, now)

    def ended(self, worker: int, now: float) -> None:
        """A worker has done its chunk."""
        run = self._running.pop(worker)
        self._last[worker] = (now - run.began) / run.size
        self._taken[worker] += now - run.began
        self._done[worker] += run.size

    def lost(self, worker: int) -> None:
        """A worker's process is given up. What is known of its speed stays: another one on that machine."""
        self._running.pop(worker, None)

    def seconds(self, now: float) -> list[float]:
        """What each worker takes for a unit of size, `[N]`; the mean where nothing is known, 1 before all."""
        known = [last for last in self._last if last is not None]
        mean = sum(known) / len(known) if known else 1.0
        expected = [mean if last is None else last for last in self._last]
        for worker, run in self._running.items():
            expected[worker] = max(expected[worker], (now - run.began) / run.size)
        return expected

    def worth(self, worker: int, now: float) -> list[Chunk]:
        """The running chunks that are worth a copy by a free worker, the latest expected end first."""
        own = self.seconds(now)[worker]
        ends: dict[Chunk, float] = {}
        hopeful = set()  # chunks with a runner that is expected to end before a copy would
        for run, last in self._runs():
            ends[run.chunk] = min(ends.get(run.chunk, math.inf), _end(run, last, now))
            if _worth_from(run, last, own, now) > now:
                hopeful.add(run.chunk)
        return sorted(ends.keys() - hopeful, key=lambda chunk: (-ends[chunk], chunk))

    def overdue(self, now: float, voided: int = 0) -> list[int]:
        """The workers that have run a chunk for too long. With each of `voided` sums the patience doubles."""
        return sorted(worker for worker, end in self._deadlines(voided).items() if end <= now)

    def patience(self, worker: int, size: int, voided: int = 0) -> float:
        """Seconds within which a worker has done a chunk of this size; infinity before anything is known."""
        if not any(self._done):
            return math.inf
        mean = sum(self._taken) / sum(self._done)
        own = self._taken[worker] / self._done[worker] if self._done[worker] else 0.0
        return _PATIENCE * 2**voided * max(own, mean) * size

    def next_look(self, now: float, voided: int = 0) -> float:
        """When a worker is overdue or a copy worth it next, if nothing else happens; infinity for never."""
        expected = self.seconds(now)
        times = list(self._deadlines(voided).values())
        free = [own for worker, own in enumerate(expected) if worker not in self._running]
        times += [_worth_from(run, last, own, now) for run, last in self._runs() for own in free]
        return min((time for time in times if time > now), default=math.inf)

    def _runs(self) -> list[tuple[_Run, float | None]]:
        return [(run, self._last[worker]) for worker, run in self._running.items()]

    def _deadlines(self, voided: int) -> dict[int, float]:
        """Of each running chunk's worker."""
        runs = self._running.items()
        return {worker: run.began + self.patience(worker, run.size, voided) for worker, run in runs}


def _end(run: _Run, last: float | None, now: float) -> float:
    """Of one that is unknown or late, as much is to be expected as it has taken by now."""
    if last is not None and run.began + last * run.size > now:
        return run.began + last * run.size
    return now + (now - run.began)


def _worth_from(run: _Run, last: float | None, own: float, now: float) -> float:
    """From when on a copy by a worker that takes `own` for a unit is worth its time, as it looks now."""
    needed = _WORTH * own * run.size
    expected = 0.0 if last is None else last * run.size
    if run.began + expected - now > needed:
        return now
    return run.began + max(expected, needed)
