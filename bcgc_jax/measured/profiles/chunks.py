"""What of a step each chunk took: from its begin to the next one, or to the end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.profiles.recording import Recording
from bcgc_jax.measured.profiles.waits import Waits


class Chunks(NamedTuple):
    """C chunks of W workers in S steps, `[S, W, C]`.

    Attributes:
      seconds: from begin to begin, the last one's to the end of the step.
      wait: the exposed seconds of the collectives that end within it.
      forward: seconds of the forward pass; NaN where they are not known.
    """

    seconds: np.ndarray
    wait: np.ndarray
    forward: np.ndarray

    def outside(self, waits: Waits) -> float:
        """The share of the workers' own time that is in no chunk."""
        own_seconds = waits.seconds.sum() - waits.wait.sum()
        return float(1 - (self.seconds.sum() - self.wait.sum()) / own_seconds)


def chunks_of(ranks: Sequence[Recording], waits: Waits) -> Chunks | None:
    """Cut the steps into chunks; None where not all have the same number of them."""
    firsts = [np.searchsorted(rank.chunk_step, waits.steps) for rank in ranks]
    counts = [np.searchsorted(rank.chunk_step, waits.steps, "right") for rank in ranks]
    count = np.array(counts) - np.array(firsts)
    if count.min() == 0 or count.min() < count.max():
        return None
    rows = [first[:, None] + np.arange(count.max()) for first in firsts]
    cut = [
        _cut(rank, which, waits, place)
        for place, (rank, which) in enumerate(zip(ranks, rows, strict=True))
    ]
    return Chunks(*(np.stack(part, axis=1) for part in zip(*cut, strict=True)))


def _cut(
    rank: Recording, which: np.ndarray, waits: Waits, place: int
) -> tuple[np.ndarray, ...]:
    """Seconds, waits and forward passes of a rank's chunks, by place, `[S, C]`."""
    begins = rank.begin[which]
    ends = np.append(begins[:, 1:], waits.ends[:, [place]], axis=1)
    exposed = np.append(0.0, np.cumsum(rank.exposed[:, 0]))
    # The collectives that have ended by then: of this step, for clocks of two threads
    # differ.
    first = np.searchsorted(rank.step, waits.steps)[:, None]
    ended = np.searchsorted(np.maximum.accumulate(rank.end), ends, "right")
    ended = np.append(first, np.clip(ended, first, first + waits.collectives), axis=1)
    return ends - begins, np.diff(exposed[ended], axis=1), rank.forward[which]
