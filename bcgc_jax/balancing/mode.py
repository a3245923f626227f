"""Whether the next step is shared, by what sharing would have saved; no clock."""

import math
from typing import NamedTuple

import numpy as np

# Steps before the first decision, and that are averaged at most.
_FIRST, _MOST = 2, 128
# So many of the newest steps may contradict those before, and by so many standard
# errors: then those before are forgotten. At least `_BEFORE` are needed to be
# contradicted.
_NEWEST = (2, 3, 4, 6, 8, 12, 16, 32)
_CONTRADICTED = 12.0
_BEFORE = 4
# Sharing must save this share of a step without it.
_MARGIN = 0.005
# Standard errors that the saving must be above 0 to begin sharing, or below 0 to end
# it.
_BEGIN, _END = 1.0, 0.5


class Mode(NamedTuple):
    """Whether to share, and what it stands on.

    Attributes:
      is_shared: whether the next step is.
      saved: seconds that sharing has saved, or would have, in each of the last steps.
      own_seconds: seconds of the same steps without sharing.

    >>> mode = Mode()
    >>> for _ in range(2):
    ...     mode = mode.after(own_seconds=10.0, shared_seconds=8.0)
    >>> mode.is_shared, mode.share
    (True, 0.2)
    """

    is_shared: bool = False
    saved: tuple[float, ...] = ()
    own_seconds: tuple[float, ...] = ()

    def after(self, own_seconds: float, shared_seconds: float) -> "Mode":
        """The mode after a step of so many seconds in either mode, one replayed."""
        saved = (*self.saved, own_seconds - shared_seconds)[-_MOST:]
        owns = (*self.own_seconds, own_seconds)[-_MOST:]
        new = _contradicting(saved, float(np.mean(owns)))
        if new:
            saved = saved[-new:]
            owns = owns[-new:]
        is_shared = self.is_shared
        if len(saved) >= _FIRST:
            mean = float(np.mean(saved))
            error = float(np.std(saved, ddof=1)) / math.sqrt(len(saved))
            least = _MARGIN * float(np.mean(owns)) + _BEGIN * error
            if self.is_shared:
                least = -_END * error
            is_shared = mean >= least
        return Mode(is_shared, saved, owns)

    @property
    def share(self) -> float:
        """What sharing saves, as a share of own steps; 0 before anything is known."""
        if self.own_seconds:
            return sum(self.saved) / sum(self.own_seconds)
        return 0.0


def _contradicting(saved: tuple[float, ...], own_seconds: float) -> int:
    """How many newest steps contradict those before most clearly; 0 for none."""
    clearest = _CONTRADICTED
    contradicting = 0
    for new in _NEWEST:
        if len(saved) < new + _BEFORE:
            break
        newest = np.array(saved[-new:])
        before = np.array(saved[:-new])
        within = new * newest.var() + before.size * before.var()
        error = math.sqrt(
            within / (new + before.size - 2) * (1 / new + 1 / before.size)
        )
        gap = abs(newest.mean() - before.mean()) - _MARGIN * own_seconds
        clear = gap / max(error, 1e-30)
        if clear > clearest:
            clearest = clear
            contradicting = new
    return contradicting
