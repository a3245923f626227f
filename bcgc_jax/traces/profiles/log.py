"""Write the log of a job's traces as text, with remarks on the traces."""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.profiles.kineto import FORWARD
from bcgc_jax.traces.profiles.recording import IN_ONE_JIT, JAX, Recording
from bcgc_jax.traces.profiles.spans import Chunks, chunks_of
from bcgc_jax.traces.profiles.waits import Waits, aligned, check, waits_of
from bcgc_jax.traces.units import counted


class MadeLog(NamedTuple):
    """A log as CSV, for `load_trace`, and remarks on the traces as sentences."""

    text: str
    remarks: list[str]


def made_log(
    recordings: list[Recording], kind: str, chunk_name: str | None = None
) -> MadeLog:
    """Make the log of a job: seconds and waits of each rank's steps or chunks.

    Args:
      recordings: Recordings of all ranks.
      kind: Kind of the traces, in words.
      chunk_name: Name that begins a chunk, if the user has given one.

    Returns:
      The log.

    Raises:
      ValueError: If waits do not determine the compute times; see `check`.
    """
    ranks, moved = aligned(recordings)
    waits = waits_of(ranks)
    check(waits)
    chunks = chunks_of(ranks, waits)
    remarks = [
        _counts(waits, ranks, kind),
        *moved,
        *_chunks_in_words(ranks, waits, chunks, chunk_name),
    ]
    if kind == JAX and (chunks is None or chunks.seconds.shape[2] == 1):
        remarks.append(IN_ONE_JIT)
    rows = _rows_of_steps(waits)
    if chunks is not None:
        rows = _rows_of_chunks(waits, chunks)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return MadeLog(file.getvalue(), remarks)


def _counts(waits: Waits, ranks: list[Recording], kind: str) -> str:
    steps = len(waits.steps)
    recorded = max(len(np.unique(rank.step)) for rank in ranks)
    said = (
        f"The {kind} contain {counted(len(ranks), 'worker')} and "
        f"{counted(steps, 'step')} with {counted(waits.collectives, 'collective')} "
        "each."
    )
    if recorded > steps:
        said += (
            f" Left out: {counted(recorded - steps, 'step')}. The first step only "
            "starts the clock. Other steps lack a rank, or have another number of "
            "collectives."
        )
    return said


def _chunks_in_words(
    ranks: list[Recording], waits: Waits, chunks: Chunks | None, chunk_name: str | None
) -> list[str]:
    name = chunk_name or FORWARD
    if chunks is not None:
        count = chunks.seconds.shape[2]
        return [
            f"A chunk lasts from one {name} to the next. A worker has {count} in each "
            f"step. {percent(chunks.outside(waits))} % of the compute time is outside "
            "of chunks (data, optimizer), and is left out."
        ]
    if any(len(rank.begin) for rank in ranks):
        return [f"The numbers of {name} in a step differ, so the log has no chunks."]
    return ["No chunks were found. Name the beginning of a chunk by --chunk-name."]


def _rows_of_steps(waits: Waits) -> Iterator[tuple[object, ...]]:
    yield "step", "worker", "seconds", "wait"
    for (step, worker), seconds in np.ndenumerate(waits.seconds):
        times = _times(seconds, float(waits.wait[step, worker]))
        yield waits.steps[step], waits.ranks[worker], *times


def _rows_of_chunks(waits: Waits, chunks: Chunks) -> Iterator[tuple[object, ...]]:
    timed = bool(np.isfinite(chunks.forward).all())
    header = ("step", "worker", "chunk", "seconds", "wait")
    yield (*header, "forward_seconds") if timed else header
    for place, seconds in np.ndenumerate(chunks.seconds):
        step, worker, chunk = place
        times = _times(seconds, float(chunks.wait[place]))
        forward = [float(chunks.forward[place])] * timed
        yield waits.steps[step], waits.ranks[worker], chunk, *times, *forward


def _times(seconds: float, wait: float) -> tuple[float | str, float]:
    """Leave the seconds empty if the profiler's clocks leave no compute time."""
    if wait < seconds:
        return float(seconds), wait
    return "", wait
