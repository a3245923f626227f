"""The whole steps of a trace, and why the others are left out."""

from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted


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


def left_out_in_words(steps: WholeSteps) -> list[str]:
    """Say which steps are left out; nothing where none is."""
    timed = np.isfinite(steps.table)
    num_incomplete = int(np.sum(~timed.all(axis=1))) - len(_with_fewer_chunks(steps))
    said = fewer_chunks_in_words(steps)
    if num_incomplete:
        counts = timed.sum(axis=0)
        worker = int(counts.argmin())
        name = steps.trace.worker_names[worker]
        said.append(
            f"Left out: {counted(num_incomplete, 'step')} in which a worker has no "
            "whole time."
        )
        said.append(
            f"Worker {name} has one in {counts[worker]} of "
            f"{counted(len(timed), 'step')}."
        )
    return said


def fewer_chunks_in_words(steps: WholeSteps) -> list[str]:
    """Say which steps are left out for having fewer chunks, and what to do."""
    counts = _with_fewer_chunks(steps)
    if not counts.size:
        return []
    assert steps.trace.microbatches is not None
    num_chunks = steps.trace.microbatches.seconds.shape[2]
    left = f"Left out: {counted(len(counts), 'step')} in which"
    if np.all(counts == counts[:, :1]):
        fewer = " or ".join(map(str, np.unique(counts)))
        apart = "Ask about these steps again in a log of their own."
        return [f"{left} each worker has {fewer} of {num_chunks} chunks. {apart}"]
    said = (
        f"{left} a worker has fewer than {num_chunks} chunks, {counts.min()} at least."
    )
    if len(counts) == 1:  # where a log breaks off
        return [said]
    sums = (
        "give a row for each step and worker, with the sum of its seconds, and no "
        "column chunk"
    )
    return [f"{said} To use them, {sums}."]


def _with_fewer_chunks(steps: WholeSteps) -> np.ndarray:
    """How many chunks are timed in steps with all workers, not all chunks, `[K, W]`."""
    parts = steps.trace.microbatches
    if parts is None:
        return np.zeros((0, 1), int)
    counts = np.isfinite(parts.seconds).sum(axis=2)
    missed = ~np.isfinite(steps.table).all(axis=1)
    return counts[np.all(counts > 0, axis=1) & missed]
