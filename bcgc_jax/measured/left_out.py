"""Steps of a log that are left out, because a worker has no time of all of its step, and why."""

import numpy as np

from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.words import counted


def seldom_there(trace: Trace) -> str:
    """Name the worker with the fewest times."""
    counts = _timed(trace).sum(axis=0)
    worker = int(counts.argmin())
    name = trace.worker_names[worker]
    return f"Worker {name} has one in {counts[worker]} of {counted(trace.num_steps, 'step')}."


def left_out_in_words(trace: Trace) -> list[str]:
    """Say which steps are left out; nothing where none is."""
    fewer = _with_fewer_chunks(trace)
    rest = int(np.sum(~_timed(trace).all(axis=1) & ~fewer))
    said = fewer_chunks_in_words(trace)
    if rest:
        said.append(f"Left out: {counted(rest, 'step')} in which a worker has no whole time.")
        said.append(seldom_there(trace))
    return said


def fewer_chunks_in_words(trace: Trace) -> list[str]:
    """Say which steps are left out because they have fewer chunks than others, and what to do."""
    steps = np.flatnonzero(_with_fewer_chunks(trace))
    if not steps.size:
        return []
    assert trace.microbatches is not None
    most = trace.microbatches.seconds.shape[2]
    counts = _chunks(trace)[steps]
    left = f"Left out: {counted(steps.size, 'step')} in which"
    if np.all(counts == counts[:, :1]):
        fewer = " or ".join(map(str, np.unique(counts)))
        apart = "Ask about these steps again in a log of their own."
        return [f"{left} each worker has {fewer} of {most} chunks. {apart}"]
    said = f"{left} a worker has fewer than {most} chunks, {counts.min()} at least."
    if steps.size == 1:  # where a log breaks off
        return [said]
    sums = "give a row for each step and worker, with the sum of its seconds, and no column chunk"
    return [f"{said} To use them, {sums}."]


def _timed(trace: Trace) -> np.ndarray:
    """Whether a worker has a time of all of its step, `[S, W]`."""
    last = trace.largest_loads()
    whole = ~last.censored
    timed = np.zeros((trace.num_steps, trace.num_workers), bool)
    timed[last.step[whole], last.worker[whole]] = True
    return timed


def _chunks(trace: Trace) -> np.ndarray:
    """How many chunks of a worker's step are timed, `[S, W]`."""
    assert trace.microbatches is not None
    return np.isfinite(trace.microbatches.seconds).sum(axis=2)


def _with_fewer_chunks(trace: Trace) -> np.ndarray:
    """Whether all workers are in a step, but a chunk is not, `[S]`."""
    if trace.microbatches is None:
        return np.zeros(trace.num_steps, bool)
    there = np.all(_chunks(trace) > 0, axis=1)
    return np.asarray(there & ~_timed(trace).all(axis=1))
