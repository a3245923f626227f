"""Uncoded or work sharing? What the last steps took by the clock decides, step by step; no I/O, no clock.

Nothing is computed in advance: both are tried, for stints of some steps. Steps without redundancy are what a
training takes anyway, so trying them loses nothing. What sharing loses against them is counted, and so is
what a change costs: sharing is tried again only while all that it has lost is a small share of the time.
"""

import math
from collections import deque
from statistics import fmean, stdev
from typing import NamedTuple

# Steps of a trial. The first step of a stint is left out of means: it holds the change, and the overrun of
# the scheme before.
FIRST = 4
# Steps of the longest stint. A stint is twice as long as the one before if the same scheme has won again.
_LONGEST = 64
# Steps of each scheme that are compared, at most: old ones say nothing of workers that have changed.
_KEPT = 8
# Sharing is clearly faster if its gain is more than so many standard errors.
_CLEAR = 1.5
# Of the time so far sharing may have lost this share when it is tried again; of all steps, in a stint.
_LOST, _LOST_AT_ONCE = 0.01, 0.004


class Decision(NamedTuple):
    """The scheme of a training was changed.

    Attributes:
      step: the first iteration with the new scheme.
      before, after: "uncoded", or "sharing:D:C".
      uncoded, sharing: mean seconds of the last steps of either; NaN as long as there are none.
    """

    step: int
    before: str
    after: str
    uncoded: float
    sharing: float


class Trials:
    """Observes what steps take, and says whether the next one is done by `sharing`.

    >>> trials = Trials(num_steps=200)
    >>> for _ in range(50):
    ...     trials.observe(0.6 if trials.sharing else 1.0, trials.sharing)
    >>> trials.sharing, trials.means
    (True, (1.0, 0.6))
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.step = num_steps, 0
        self.sharing = False
        self._took = {sharing: deque[float](maxlen=_KEPT) for sharing in (False, True)}
        # Steps of the next stint with sharing, and of one without after sharing has lost.
        self._with = self._without = FIRST
        self._left = FIRST  # of this stint
        self._begins = False  # a stint
        self._lost = self._lost_in_stint = 0.0  # seconds, by sharing and by what is prepared for it

    @property
    def means(self) -> tuple[float, float]:
        """Seconds of a step, uncoded and by sharing; NaN as long as there are none."""
        uncoded, sharing = (fmean(took) if took else math.nan for took in self._took.values())
        return uncoded, sharing

    def observe(self, seconds: float, sharing: bool) -> None:
        """A step took so many seconds, a change before it included.

        As long as workers still compile what the next step should be done by, they are slower: such a step
        says what that costs, and nothing else.
        """
        self.step += 1
        prepares = sharing is not self.sharing
        if not (self._begins or prepares):
            self._took[sharing].append(seconds)
        uncoded = fmean(self._took[False])
        if sharing or prepares:
            self._lost += seconds - uncoded
        if prepares:
            return
        self._begins = False
        self._left -= 1
        if sharing:
            self._lost_in_stint += seconds - uncoded
            if self._lost_in_stint > _LOST_AT_ONCE * self.num_steps * uncoded:
                self._left = 0
        if self._left <= 0:
            self._decide()

    def _gain(self) -> tuple[float, float]:
        """Seconds that sharing saves a step, and the standard error."""
        uncoded, sharing = self._took.values()
        if not sharing:
            return -math.inf, 0.0
        error = [stdev(took) / math.sqrt(len(took)) for took in (uncoded, sharing) if len(took) > 1]
        return fmean(uncoded) - fmean(sharing), math.hypot(*error)

    def _decide(self) -> None:
        gain, error = self._gain()
        if self.sharing:
            self._without = FIRST if gain > 0 else min(2 * self._without, _LONGEST)
            self._begin(False, self._without)
        elif self._lost > _LOST * self.step * fmean(self._took[False]):
            self._left = FIRST
        else:
            self._with = min(2 * self._with, _LONGEST) if gain > _CLEAR * error else FIRST
            self._begin(True, self._with)

    def _begin(self, sharing: bool, steps: int) -> None:
        self.sharing, self._left, self._begins = sharing, steps, True
        self._lost_in_stint = 0.0
