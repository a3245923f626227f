"""How long workers take for a tick, for `Ledger`; callers say what time it is `now`."""

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from bcgc_jax.steps.ledger import Chunk, Ledger, Name

# A copy is worth it if this many times its own time is less than the expected rest of
# the running chunk.
WORTH = 1.5
# A worker is overdue after this many times the mean. With less there are false alarms
# where times vary.
PATIENCE = 2.0


class Paces:
    """The times of one step, for `Ledger`: `seconds` and `worth` for `next`, `overdue`
    for `late`.

    A worker is expected to take as long for a tick as for its last chunk, or as its
    running chunk has taken by now if that is more. Before its first one it is expected
    to take the mean of the others. Before anybody has done a chunk all are taken to be
    alike. `Queue.weight` says how many ticks a chunk has.

    >>> paces = Paces(2)
    >>> for worker in (0, 1):
    ...     paces.began(worker, (worker, 0), ticks=4, now=0.0)
    >>> paces.ended(0, now=2.0)
    >>> paces.seconds(now=2.0), paces.worth(0, now=2.0)
    (array([0.5, 0.5]), [])
    >>> paces.next_look(now=2.0), paces.worth(0, now=3.0), paces.overdue(now=4.0)
    (3.0, [(1, 0)], [1])
    """

    def __init__(self, num_workers: int):
        self._last = np.zeros(num_workers)  # for a tick; 0 before there is one
        self._taken = np.zeros(num_workers)  # for all chunks that are done
        self._done = np.zeros(num_workers)  # their ticks
        self._taken_by_all = self._done_by_all = 0.0
        # Of all workers, for a tick; infinity before anything is known.
        self._mean = math.inf
        self._own_mean = np.zeros(num_workers)
        self._expected = np.full(num_workers, np.inf)  # for a tick, whatever runs
        # Workers whose last chunk took no time, or none yet.
        self._unknown = set(range(num_workers))
        # The running chunk; infinity for none.
        self._began = np.full(num_workers, np.inf)
        self._ticks = np.ones(num_workers)  # of the running chunk
        self._running: dict[int, Chunk] = {}
        self._runners: dict[Chunk, set[int]] = {}

    def began(self, worker: int, chunk: Chunk, ticks: int, now: float) -> None:
        """A worker has been given a chunk."""
        self.lost(worker)
        self._running[worker] = chunk
        self._runners.setdefault(chunk, set()).add(worker)
        self._began[worker] = now
        self._ticks[worker] = ticks

    def ended(self, worker: int, now: float) -> None:
        """A worker has done its chunk."""
        ticks = self._ticks[worker]
        seconds = now - self._began[worker]
        self.lost(worker)
        self._last[worker] = self._expected[worker] = seconds / ticks
        change = self._unknown.add
        if seconds > 0:
            change = self._unknown.discard
        change(worker)
        self._taken[worker] += seconds
        self._done[worker] += ticks
        self._own_mean[worker] = self._taken[worker] / self._done[worker]
        self._taken_by_all += seconds
        self._done_by_all += float(ticks)
        self._mean = self._taken_by_all / self._done_by_all
        if 0 < len(self._unknown) < len(self._last):
            # `lockstep` adds up the same numbers in the same order.
            unknown = list(self._unknown)
            self._expected[unknown] = self._last.sum() / (
                len(self._last) - len(unknown)
            )

    def lost(self, worker: int) -> None:
        """A worker's process is given up; its known speed stays for the next."""
        chunk = self._running.pop(worker, None)
        if chunk is not None:
            self._runners[chunk].remove(worker)
            self._began[worker] = np.inf

    def seconds(self, now: float) -> np.ndarray:
        """Each worker's seconds for a tick, `[N]`; by default the mean, or 1."""
        if len(self._unknown) == len(self._last):
            return np.ones(len(self._last))
        return np.maximum(self._expected, (now - self._began) / self._ticks)

    def worth(
        self, worker: int, now: float, among: Iterable[Chunk] | None = None
    ) -> list[Chunk]:
        """The running chunks that are worth a copy by a free worker, the latest
        expected end first.

        Chunks are looked for `among` these, by default all that run.
        """
        pace = max(
            self._expected[worker], (now - self._began[worker]) / self._ticks[worker]
        )
        ends: dict[Chunk, float] = {}
        for chunk in self._runners if among is None else among:
            runs = sorted(self._runners.get(chunk, ()))
            if runs and np.all(self._worth_from(runs, pace, now) <= now):
                ends[chunk] = np.min(self._ends(runs, now))
        return sorted(ends, key=lambda chunk: (-ends[chunk], chunk))

    def overdue(self, now: float, voided: int = 0) -> list[int]:
        """Workers that run a chunk for too long; a voided sum doubles patience."""
        return np.flatnonzero(self._deadlines(voided) <= now).tolist()

    def patience(self, worker: int, ticks: int, voided: int = 0) -> float:
        """Seconds in which a worker has done a chunk; infinity if nothing is known."""
        return (
            PATIENCE
            * 2**voided
            * max(float(self._own_mean[worker]), self._mean)
            * ticks
        )

    def worth_anew(self, anew: float, usual: float, voided: int = 0) -> float:
        """Seconds until a sum is computed `anew`; others came within `usual` ones."""
        return 2**voided * max(usual, WORTH * anew)

    def next_look(
        self,
        now: float,
        voided: int = 0,
        copies: Mapping[int, Collection[Chunk]] | None = None,
    ) -> float:
        """When a worker is overdue or a copy worth it next, if nothing else happens;
        inf for never.

        `copies` are the running chunks that each free worker may copy; by default all.
        """
        if copies is None:
            copies = dict.fromkeys(
                np.flatnonzero(self._began == np.inf).tolist(), self._runners
            )
        times = self._deadlines(voided)
        for worker, chunks in copies.items():
            runs = [run for chunk in chunks for run in self._runners.get(chunk, ())]
            times = np.append(
                times, self._worth_from(runs, self._expected[worker], now)
            )
        return float(np.min(times, where=times > now, initial=np.inf))

    def _deadlines(self, voided: int) -> np.ndarray:
        """Of each worker, infinity where no chunk runs or nothing is known."""
        expected = np.maximum(self._own_mean, self._mean) * self._ticks
        return self._began + PATIENCE * 2**voided * expected

    def _ends(self, workers: list[int], now: float) -> np.ndarray:
        """Expected ends; an unknown or late chunk takes twice its time so far."""
        began = self._began[workers]
        expected = began + self._last[workers] * self._ticks[workers]
        return np.where(expected > now, expected, now + (now - began))

    def _worth_from(self, workers: list[int], pace: float, now: float) -> np.ndarray:
        """When a copy by a worker of this pace begins to be worth it."""
        began = self._began[workers]
        ticks = self._ticks[workers]
        least_remainder = WORTH * pace * ticks
        expected = self._last[workers] * ticks
        return np.where(
            began + expected - now > least_remainder,
            now,
            began + np.maximum(expected, least_remainder),
        )


def hand_out(
    ledger: Ledger, paces: Paces, free: Collection[int], now: float
) -> list[tuple[int, Name, Chunk]]:
    """Gives free workers chunks from now on: the worker, its ticket, the chunk."""
    handed_out = []
    seconds = paces.seconds(now)
    for worker in ledger.may_be_given(free):
        begun = ledger.begun(worker)
        worth = paces.worth(worker, now, begun) if begun else ()
        ticket_and_chunk = ledger.next(ledger.member(worker), seconds, worth)
        if ticket_and_chunk is not None:
            ticket, chunk = ticket_and_chunk
            paces.began(worker, chunk, ledger.queue.weight(chunk), now)
            handed_out.append((worker, ticket, chunk))
    return handed_out
