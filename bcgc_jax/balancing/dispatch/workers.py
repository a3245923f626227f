"""Which workers of a training are connected, and when each of them was last heard."""

from collections.abc import Iterable
from typing import NamedTuple

from bcgc_jax.balancing.dispatch.messages import Join, Tell

# Seconds after which a step fails if a worker was there and has gone: another process
# may take its place meanwhile.
GRACE = 1.0


class Absence(NamedTuple):
    """Since when a worker takes no part, and why.

    Attributes:
      since: the time.
      why: a sentence that names the worker.
      is_lost: whether its process has ended; otherwise it has left a step.
      told_lines: connections of workers that have heard of it.
    """

    since: float
    why: str
    is_lost: bool
    told_lines: set[Tell]


class Workers:
    """The connections of workers: the last one of each rank, and older open ones.

    Args:
      timeout: seconds of silence after which a worker that others wait for is lost.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lines: dict[int, Tell] = {}
        self._processes: dict[Tell, str] = {}  # of all open connections
        # The connections by which each process takes part. If a worker joins again it
        # may still be in a step by the older one, until that is closed or it has begun
        # a step by the new one.
        self._in_use: dict[str, dict[int, Tell]] = {}
        self._heard: dict[int, float] = {}
        self._absences: dict[int, Absence] = {}

    def join(self, who: Join, tell: Tell, now: float) -> None:
        rank = who.rank
        self._lines[rank] = tell
        self._processes[tell] = who.process
        self._in_use.setdefault(who.process, {}).setdefault(rank, tell)
        self._heard[rank] = now
        self._absences.pop(rank, None)

    def close(self, rank: int, tell: Tell, now: float) -> str:
        """A connection has ended; if it was the last one of its worker, say so."""
        lines = self._in_use.get(self.process(tell), {})
        if lines.get(rank) == tell:
            del lines[rank]
            newer = self._lines.get(rank, tell)
            if newer != tell and self.process(newer) == self.process(tell):
                lines[rank] = newer
        if not self.has(rank, tell):
            return ""
        del self._lines[rank]
        why = f"worker {rank} is lost, because its connection was closed"
        self._absences[rank] = Absence(now, why, True, set())
        return why

    def leave(self, rank: int, step: int, now: float) -> str:
        """A worker has left a step before its end; return a sentence that says so."""
        why = f"worker {rank} has left step {step} before its end"
        self._absences[rank] = Absence(now, why, False, set())
        return why

    def takes_part(self, rank: int) -> None:
        """A worker comes to a step, by its last connection."""
        self._absences.pop(rank, None)
        line = self._lines[rank]
        self._in_use.setdefault(self.process(line), {})[rank] = line

    def hear(self, rank: int, now: float) -> None:
        self._heard[rank] = now

    def has(self, rank: int, tell: Tell | None = None) -> bool:
        """Whether a worker is connected, by this line if one is given."""
        line = self._lines.get(rank)
        return line is not None and tell in (None, line)

    def process(self, tell: Tell) -> str:
        """That of a connection, until `forget`."""
        return self._processes.get(tell, "")

    def forget(self, tell: Tell) -> None:
        process = self._processes.pop(tell, None)
        if process is not None and not self._in_use.get(process):
            self._in_use.pop(process, None)

    def lines_of(self, process: str) -> set[Tell]:
        """The connections by which the workers of a process take part in steps."""
        return {*self._in_use.get(process, {}).values()}

    @property
    def has_absences(self) -> bool:
        return bool(self._absences)

    def know(self, rank: int, lines: Iterable[Tell]) -> None:
        """If a worker is absent, others have heard of it."""
        if rank in self._absences:
            self._absences[rank].told_lines.update(lines)

    def deadline(self, rank: int, began: float, waiting: Iterable[Tell]) -> float:
        """Until when others that began to wait at `began` wait for a worker.

        Those that have heard that it is absent have decided to wait for another one.
        """
        absence = self._absences.get(rank)
        if absence is not None and not absence.told_lines.issuperset(waiting):
            return max(absence.since, began) + min(GRACE, self._timeout)
        return max(self._heard.get(rank, began), began) + self._timeout

    def overdue(self, rank: int) -> Absence:
        """Why nobody waits any longer for a worker whose deadline is over."""
        if rank in self._absences:
            return self._absences[rank]
        why = f"worker {rank} has not joined within {self._timeout:g} s"
        if self.has(rank):
            why = f"worker {rank} is lost, because it was silent for"
            why += f" {self._timeout:g} s"
        return Absence(self._heard.get(rank, 0.0), why, True, set())

    def state(self, rank: int) -> str:
        """What a worker does that has not begun a step, as a verb phrase."""
        if self.has(rank):
            return "have joined, but not begun it"
        if rank in self._absences:
            return "are lost"
        return "have not joined"
