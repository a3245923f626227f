"""Uncoded or work sharing? What the last steps took decides, step by step; no I/O, no clock.

Nothing is computed in advance: both are tried, for stints of some steps. To try uncoded steps loses
nothing, for a training takes them anyway. What steps of sharing lose against them is counted, the
change to sharing included. It is tried again while that is a small share of all the time, or once
it would be clearly faster.
"""

import math
from collections import deque
from collections.abc import Collection
from statistics import fmean
from typing import NamedTuple

import numpy as np

# Steps of a trial. The first step of a stint is left out of means: it holds the change, and the
# overrun of the scheme before.
FIRST = 4
# Steps of the longest stint. A stint is twice as long as the one before if the same scheme has won
# again.
_LONGEST = 64
# Steps of each scheme that are compared, at most: old ones say nothing of workers that have
# changed.
_KEPT = 8
# Sharing is clearly faster if its gain is more than so many standard errors.
_CLEAR = 1.5
# What sharing may have lost when it is tried again, a share of the time so far.
_LOST = 0.01
# What it may lose in the first stint, which has the change, a share of all steps.
_LOST_FIRST = 0.01
# Seconds of the shortest chunk. A hand-out takes 1 to 2 ms of cores that compute: with chunks of
# 8 ms sharing took 1.75 times as long as without redundancy (`experiments.busy`).
SHORTEST = 0.02
# Compiling for it may take this share of what perfect sharing would save. On the same cores it took
# 2 s of a training of 13 s there, of which 4 s could be saved at most.
_COMPILING = 0.1
# What it may lose in a later stint.
_LOST_AT_ONCE = 0.004


class Decision(NamedTuple):
    """The scheme of a training was changed, or sharing is not tried: then all stays "uncoded".

    Attributes:
      step: the first iteration with the new scheme.
      before, after: "uncoded", or "sharing:D:C".
      uncoded, sharing: mean seconds of the last steps of either; NaN as long as there are none.
      reason: in a sentence.
    """

    step: int
    before: str
    after: str
    uncoded: float
    sharing: float
    reason: str = ""


def not_worth_trying(took: np.ndarray, chunk: float, compiling: float, num_steps: int) -> str:
    """Why work sharing is not tried, in a sentence; "" if it is.

    Args:
      took: seconds of each worker's subset in the last uncoded steps, `[K, N]`.
      chunk: seconds of a chunk.
      compiling: seconds that workers would compile for it.
      num_steps: of the training to come.

    >>> not_worth_trying(np.array([[0.4, 0.1]]), chunk=0.05, compiling=2.0, num_steps=1000)
    ''
    >>> not_worth_trying(np.array([[0.4, 0.1]]), chunk=0.05, compiling=2.0, num_steps=50)
    'sharing is not tried: compiling takes 2 s, and perfect sharing would save 12 s at most'
    """
    if chunk < SHORTEST:
        return (
            f"sharing is not tried: a chunk would take {1e3 * chunk:.2g} ms, and to hand out one "
            f"pays from {1e3 * SHORTEST:.2g} ms on"
        )
    shared = took.shape[1] / np.sum(1 / took, axis=1)
    saved = num_steps * float(np.mean(took.max(axis=1) - shared))
    if compiling > _COMPILING * saved:
        return (
            f"sharing is not tried: compiling takes {compiling:.2g} s, and perfect sharing would "
            f"save {saved:.2g} s at most"
        )
    return ""


class Trials:
    """Observes what steps take, and says whether the next one is done by `sharing`.

    >>> trials = Trials(num_steps=200)
    >>> for _ in range(50):
    ...     trials.observe(0.6 if trials.sharing else 1.0, trials.sharing)
    >>> trials.sharing, trials.means
    (True, (1.0, 0.6))
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.step = 0
        self.sharing = False
        self._took = {sharing: deque[float](maxlen=_KEPT) for sharing in (False, True)}
        # Steps of the next stint with sharing, and of one without after sharing has lost.
        self._with = self._without = FIRST
        self._stint = FIRST  # its steps
        self._done = 0  # those that are done
        self._lost = self._lost_in_stint = 0.0  # seconds, by sharing

    @property
    def means(self) -> tuple[float, float]:
        """Seconds of a step, uncoded and by sharing; NaN as long as there are none."""
        uncoded, sharing = (fmean(took) if took else math.nan for took in self._took.values())
        return uncoded, sharing

    def observe(self, seconds: float, sharing: bool) -> None:
        """A step took so many seconds, a change before it included.

        As long as workers still compile what the next step should be done by, they are slower: such
        a step says nothing of either.
        """
        self.step += 1
        if sharing is not self.sharing:
            return
        if self._done or not self._took[False]:
            self._took[sharing].append(seconds)
        self._done += 1
        uncoded = fmean(self._took[False])
        if sharing:
            self._lost += seconds - uncoded
            self._lost_in_stint += seconds - uncoded
            most = _LOST_FIRST if self._done == 1 else _LOST_AT_ONCE
            ends = self._lost_in_stint > most * self.num_steps * uncoded
        else:  # sharing would be clearly faster by now
            ends = self._done > FIRST and self._is_clear()
        if ends or self._done >= self._stint:
            self._decide()

    def _is_clear(self) -> bool:
        """Whether sharing saves more than chance would."""
        uncoded, sharing = self._took.values()
        error = math.sqrt(_variance(uncoded) + _variance(sharing))
        return bool(sharing) and fmean(uncoded) - fmean(sharing) > _CLEAR * error

    def _decide(self) -> None:
        uncoded, sharing = self.means
        faster = sharing < uncoded
        clear = self._is_clear()
        if self.sharing:
            self._without = FIRST if faster else min(2 * self._without, _LONGEST)
            self._begin(False, self._without)
        elif clear:
            self._with = min(2 * self._with, _LONGEST)
            self._begin(True, self._with)
        elif self._lost <= _LOST * self.step * uncoded:
            self._with = 2 * FIRST if faster else FIRST
            self._begin(True, self._with)
        else:
            self._stint += FIRST

    def _begin(self, sharing: bool, steps: int) -> None:
        self.sharing = sharing
        self._stint = steps
        self._done = 0
        self._lost_in_stint = 0.0


def _variance(took: Collection[float]) -> float:
    """The variance of the mean; 0 where it is not known."""
    if len(took) < 2:
        return 0.0
    mean = fmean(took)
    return sum((each - mean) ** 2 for each in took) / (len(took) - 1) / len(took)
