"""The steps of a trace with a time of each worker: what is modelled and replayed."""

from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.traces import Trace


class WholeSteps(NamedTuple):
    """S whole steps of W workers, of a trace.

    Attributes:
      trace: all that was read.
      table: the times of all steps, NaN where a worker has none; where it has several
        loads that of the largest.
      places: of the whole steps in `table`, `[S]`.
      times: of these, `[S, W]`.
      load: of these, `[S, W]`; None where the trace has none.
    """

    trace: Trace
    table: np.ndarray
    places: np.ndarray
    times: np.ndarray
    load: np.ndarray | None

    @property
    def collective(self) -> float | None:
        """Mean seconds of the collective itself; None for a trace without waits."""
        seconds = self.trace.collective
        if seconds is None:
            return None
        return float(seconds[self.places].mean())

    @property
    def too_small(self) -> bool:
        """Whether there are less than two steps or workers: nothing can be compared."""
        return min(self.times.shape) < 2


def whole_steps(trace: Trace) -> WholeSteps:
    """Take the steps with a time of each worker.

    >>> names, row = np.array(["a", "b"]), np.array([0, 0, 1])
    >>> trace = Trace(
    ...     names, names, row, np.array([0, 1, 0]), np.array([3.0, 1.0, 2.0]), row > 1
    ... )
    >>> whole_steps(trace).times.tolist(), whole_steps(trace).too_small
    ([[3.0, 1.0]], True)
    """
    last = trace.largest_loads()
    alone = last._replace(load=None)
    table = alone.table()
    places = np.flatnonzero(np.isfinite(table).all(axis=1))
    load = None
    if last.load is not None:
        load = alone._replace(seconds=last.load).table()[places]
    return WholeSteps(trace, table, places, table[places], load)
