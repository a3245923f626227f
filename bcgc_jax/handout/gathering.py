"""Training loops' workers say their hosts as they join; this tells who stores what."""

import math
import warnings
from collections.abc import Callable

from bcgc_jax.handout.attempt import Tell
from bcgc_jax.handout.loops import Loops
from bcgc_jax.handout.messages import (
    NOT_JOINED,
    SILENCE,
    AfterJoin,
    Answer,
    Join,
    wrong_rank,
)
from bcgc_jax.steps.hosts import numbered
from bcgc_jax.steps.placement import Placement


class Gathering:
    """Until all workers have joined nobody has a seat; then `begin` makes the steps.

    Args:
      place: that of the workers, but for their hosts.
      begin: makes the steps of loops for a placement.
      shares: whether the first step is shared.
    """

    def __init__(
        self, place: Placement, begin: Callable[[Placement], Loops], shares: bool
    ) -> None:
        self._place = place
        self._begin = begin
        self._shares = shares
        self._joined: dict[int, tuple[Join, Tell]] = {}
        # Questions of workers, and when they came.
        self._waiting: dict[int, tuple[AfterJoin, float]] = {}
        self._has_warned = False
        self._loops: Loops | None = None

    def joined(self, who: Join, tell: Tell) -> Answer:
        if self._loops is not None:
            return self._loops.joined(who, tell)
        if why := wrong_rank(who.rank, self._place.num_workers):
            return Answer(refused=why)
        self._joined[who.rank] = who, tell
        if len(self._joined) == self._place.num_workers:
            self._loops = self._begun()
        return Answer(shares=self._shares)

    def asked(self, who: Join, question: AfterJoin, tell: Tell, now: float) -> None:
        if self._loops is not None:
            self._loops.asked(who, question, tell, now)
        elif self._joined.get(who.rank) != (who, tell):
            tell(NOT_JOINED)
        else:
            self._waiting[who.rank] = question, now

    def left(self, who: Join, tell: Tell, now: float) -> None:
        if self._loops is not None:
            self._loops.left(who, tell, now)
        elif self._joined.get(who.rank) == (who, tell):
            del self._joined[who.rank]
            self._waiting.pop(who.rank, None)

    def time_goes_on(self, now: float) -> float:
        """Say once for whom the others wait."""
        if self._loops is not None:
            return self._loops.time_goes_on(now)
        if self._has_warned or not self._waiting:
            return math.inf
        due = SILENCE + min(asked_at for _, asked_at in self._waiting.values())
        if now < due:
            return due
        self._has_warned = True
        workers = range(self._place.num_workers)
        missing = ", ".join(str(rank) for rank in workers if rank not in self._joined)
        warnings.warn(
            "who stores what is known once all workers have said their hosts. Workers "
            f"that have not joined: {missing}",
            stacklevel=1,
        )
        return math.inf

    def _begun(self) -> Loops:
        """The steps of the hosts that are here, of which all workers hear."""
        ranks = range(self._place.num_workers)
        hosts = numbered([self._joined[rank][0].host for rank in ranks])
        loops = self._begin(self._place._replace(hosts=hosts))
        for rank in ranks:
            loops.joined(*self._joined[rank])
        for rank, (question, now) in self._waiting.items():
            who, tell = self._joined[rank]
            loops.asked(who, question, tell, now)
        return loops
