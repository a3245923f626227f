"""Measured times of chunks (microbatches), the parts of a worker's step."""

from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.balancing.chunk_lengths import LoadLine


class Microbatches(NamedTuple):
    """C chunks of W workers in S steps; NaN where a worker has no such chunk.

    Args:
      seconds: `[S, W, C]`, of the forward and the backward pass.
      forward: `[S, W, C]`, the part of the forward pass; None where it is not known.
      load: `[S, W, C]`, the lengths, such as tokens, in any unit; None where they are
        not known.
      asking: the median seconds of a question before a chunk; None where it is not
        known.

    >>> Microbatches(
    ...     np.array([[[3.0, 6.0]]]), forward=np.array([[[1.0, 2.0]]])
    ... ).forward_ratio
    0.5
    """

    seconds: np.ndarray
    forward: np.ndarray | None = None
    load: np.ndarray | None = None
    asking: float | None = None

    @property
    def forward_ratio(self) -> float | None:
        """Time of forward passes over backward ones; None if not timed apart."""
        if self.forward is None:
            return None
        forward = np.nansum(self.forward)
        return float(forward / (np.nansum(self.seconds) - forward))

    def whole_steps(self) -> "Microbatches":
        """Leave out the steps in which a worker has no time."""
        whole = np.isfinite(self.seconds).all(axis=(1, 2))
        return self.take(whole)

    def take(self, where: Any) -> "Microbatches":
        """Some of the steps, or of all steps some workers: an index of the arrays."""
        forward, load = (None if part is None else part[where] for part in self[1:3])
        return Microbatches(self.seconds[where], forward, load, self.asking)


def predicted_seconds(seconds: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Seconds by a line through the loads, of least squares, `[S, W, C]` all three."""
    line = LoadLine.fitted(load, seconds)
    # In binary fractions sums are exact: what is equal is so on every machine, whatever
    # its rounding of the line.
    unit = 2.0 ** (np.floor(np.log2(line.usual)) - 40)
    return np.round(line.costs(load) / unit) * unit
