"""Measured times of chunks (microbatches), the parts of a worker's step."""

from typing import NamedTuple

import numpy as np


class Microbatches(NamedTuple):
    """C chunks of W workers in S steps; NaN where a worker has no such chunk.

    Args:
      seconds: `[S, W, C]`, of the forward and the backward pass.
      forward: `[S, W, C]`, the part of the forward pass; None where it is not known.
      load: `[S, W, C]`, the lengths, such as tokens, in any unit; None where they are not known.
      asking: the median seconds of a question before a chunk; None where it is not known.

    >>> Microbatches(np.array([[[3.0, 6.0]]]), forward=np.array([[[1.0, 2.0]]])).forward_ratio
    0.5
    """

    seconds: np.ndarray
    forward: np.ndarray | None = None
    load: np.ndarray | None = None
    asking: float | None = None

    @property
    def forward_ratio(self) -> float | None:
        """The forward passes' time over the backward passes'; None if not timed apart."""
        if self.forward is None:
            return None
        forward = np.nansum(self.forward)
        return float(forward / (np.nansum(self.seconds) - forward))

    def whole_steps(self) -> "Microbatches":
        """Leave out the steps in which a worker has no time."""
        whole = np.isfinite(self.seconds).all(axis=(1, 2))
        return Microbatches(
            seconds=self.seconds[whole],
            forward=None if self.forward is None else self.forward[whole],
            load=None if self.load is None else self.load[whole],
            asking=self.asking,
        )


def predicted_seconds(seconds: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Seconds as a + b · load, by least squares, `[S, W, C]` all three."""
    x = load.ravel()
    y = seconds.ravel()
    (a, b), *_ = np.linalg.lstsq(np.stack([np.ones(x.size), x], axis=1), y, rcond=None)
    # A line may go below 0 where nothing was measured.
    found = np.maximum(a + b * load, 0.01 * y.mean())
    # In binary fractions sums are exact: what is equal is so on every machine, whatever its
    # rounding of a and b.
    unit = 2.0 ** (np.floor(np.log2(y.mean())) - 40)
    return np.round(found / unit) * unit
