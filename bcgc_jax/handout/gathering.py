"""Training loops' workers say their hosts as they join; this tells who stores what."""

import math
import warnings
from collections.abc import Callable, Sequence

from bcgc_jax.handout.loops import Loops
from bcgc_jax.handout.messages import (
    NOT_JOINED,
    SILENCE,
    AfterJoin,
    Answer,
    Join,
    Tell,
    wrong_rank,
)
from bcgc_jax.handout.workers import Workers
from bcgc_jax.steps.hosts import numbered
from bcgc_jax.steps.placement import Placement


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
