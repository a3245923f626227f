"""Sizes of chunks, lengths that are predicted before a step, whole ticks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The parts of the last chunk of a subset: small ones level out the end of a step.
_LAST = (2, 1, 1)
UNITS = sum(_LAST)
# A usual chunk weighs so much. Whole numbers make ties exact, and round a length by
# less than 1e-5 of that; fewer would move what is saved by a tenth of a point.
TICKS = 2**16
# No chunk weighs more: sums of 131,072 stay whole in floating point.
_MOST = 2**36
# A unit of size, where no length is known.
TICKS_OF_UNIT = TICKS // UNITS
# A chunk is predicted to take this share of a usual one or more: a line may go below 0.
_LEAST = 0.01


def chunk_sizes(num_chunks: int, equal: bool = False) -> tuple[int, ...]:
    """The sizes of a subset's chunks: `UNITS` each, of which the last is cut again if
    not `equal`.

    >>> chunk_sizes(3), chunk_sizes(3, equal=True)
    ((4, 4, 2, 1, 1), (4, 4, 4))
    """
    if equal:
        return (UNITS,) * num_chunks
    return (UNITS,) * (num_chunks - 1) + _LAST


def lengths_of_pieces(
    lengths: np.ndarray, sizes: Sequence[int], fixed: Any = 0.0
) -> np.ndarray:
    """Cut whole chunks, `[..., C]`, into pieces of these sizes, `[..., C']`.

    A piece takes so many `fixed` seconds whatever its size, where its chunk takes as
    many.

    >>> lengths_of_pieces(np.array([1.0, 2.0]), chunk_sizes(2), fixed=1.0).tolist()
    [1.0, 1.5, 1.25, 1.25]
    """
    cut = np.array(sizes) / UNITS
    of_chunk = np.minimum(np.arange(len(sizes)), lengths.shape[-1] - 1)
    whole = lengths[..., of_chunk]
    return whole * cut + np.minimum(fixed, whole) * (1 - cut)


def ticks_of(costs: Any, usual: float) -> np.ndarray:
    """Return the ticks of predicted seconds, whole numbers >= 1; a `usual` chunk has
    `TICKS`.

    >>> ticks_of([0.5, 1.0, 1e-9], usual=0.5).tolist()
    [65536, 131072, 1]
    """
    return np.clip(np.rint(np.asarray(costs) / usual * TICKS), 1, _MOST).astype(
        np.int64
    )


class LoadLine(NamedTuple):
    """Predicts the seconds of a chunk from its load: a share + b load.

    Attributes:
      base: a, seconds of a whole chunk without a load.
      slope: b, seconds for a unit of load.
      usual: mean seconds of a whole chunk.
    """

    base: float
    slope: float
    usual: float

    @classmethod
    def proportional(cls, loads: Any, shares: Sequence[float]) -> "LoadLine":
        """Lengths as the loads say, of pieces with these `shares` of a chunk,
        `[..., C']`.

        >>> LoadLine.proportional([4.0, 1.0, 1.0], [1.0, 0.25, 0.25])
        LoadLine(base=0.0, slope=1.0, usual=4.0)
        """
        of_subset = np.mean(np.sum(loads, axis=-1))
        return cls(0.0, 1.0, usual=float(of_subset / np.sum(shares)))

    @classmethod
    def fitted(cls, loads: np.ndarray, seconds: np.ndarray) -> "LoadLine":
        """The line of least squares through measured chunks; missing seconds are NaN.

        >>> line = LoadLine.fitted(np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0]))
        >>> tuple(round(value, 6) for value in line)
        (1.0, 0.5, 2.166667)
        """
        measured = np.isfinite(seconds)
        x = loads[measured]
        y = seconds[measured]
        (base, slope), *_ = np.linalg.lstsq(
            np.stack([np.ones(x.size), x], axis=1), y, rcond=None
        )
        return cls(float(base), float(slope), float(y.mean()))

    def costs(self, loads: Any, shares: Any = 1.0) -> np.ndarray:
        """Return predicted seconds of chunks that are these shares of a whole one."""
        shares = np.asarray(shares)
        line = self.base * shares + self.slope * np.asarray(loads)
        return np.maximum(line, _LEAST * self.usual * shares)

    def ticks(self, loads: Any, shares: Any = 1.0) -> np.ndarray:
        """Return the ticks of chunks that are these shares of a whole one."""
        return ticks_of(self.costs(loads, shares), self.usual)
