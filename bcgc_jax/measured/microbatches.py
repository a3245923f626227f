"""Measured times of microbatches, the parts of a worker's step."""

from typing import NamedTuple

import numpy as np


class Microbatches(NamedTuple):
    """C microbatches of W workers in S steps; NaN where a worker has no step.

    Args:
      seconds: `[S, W, C]`, of the forward and the backward pass.
      forward: `[S, W, C]`, the part of the forward pass; None where it is not known.
      load: `[S, W, C]`, the lengths, such as tokens, in any unit; None where they are not known.

    >>> Microbatches(np.array([[[3.0, 6.0]]]), forward=np.array([[[1.0, 2.0]]])).forward_ratio
    0.5
    """

    seconds: np.ndarray
    forward: np.ndarray | None = None
    load: np.ndarray | None = None

    @property
    def forward_ratio(self) -> float | None:
        """All forward passes to all backward passes; None where they are not known apart."""
        if self.forward is None:
            return None
        forward = np.nansum(self.forward)
        return float(forward / (np.nansum(self.seconds) - forward))

    def whole_steps(self) -> "Microbatches":
        """Without the steps in which a worker has none."""
        whole = np.isfinite(self.seconds).all(axis=(1, 2))
        return Microbatches(
            seconds=self.seconds[whole],
            forward=None if self.forward is None else self.forward[whole],
            load=None if self.load is None else self.load[whole],
        )
