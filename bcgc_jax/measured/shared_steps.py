"""Work sharing in the steps of a trace of microbatches: what it would have saved.

Who is slow? If it is the workers, each takes its own time for a unit of size, whatever the data. If it is the
data, a microbatch takes its recorded seconds, whoever computes it. The times of microbatches say which.
"""

from typing import NamedTuple

import numpy as np

from bcgc_jax.measured.description import Interval, slow_data, worker_share
from bcgc_jax.measured.lockstep import Chunks, handed_out, in_turn
from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.traces import Trace
from bcgc_jax.plans.desk import UNITS, desk_of
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.storage import spread


class Saving(NamedTuple):
    """Less time than the uncoded scheme, as a share of its time, and the standard error.

    `by_length`: whether the lengths of microbatches are known before they are computed.
    """

    stored_subsets: int
    by_length: bool
    saved: float
    error: float


class SharedSteps(NamedTuple):
    """Work sharing in so many steps of a trace, in the microbatches that were recorded.

    Attributes:
      worker_share: of the variance of a microbatch's seconds within a step.
      slow_data: whether a microbatch takes its recorded seconds whoever computes it; else workers are slow.
      num_steps: that were replayed: all, or the second half where what microbatches cost is learnt in the
        first.
      uncoded: mean seconds of a step of the uncoded scheme.
      savings: with two subsets stored and with all, without lengths and with them, if there are any.
      limit: no division of the work saves more.
    """

    worker_share: Interval
    slow_data: bool
    num_steps: int
    uncoded: float
    savings: list[Saving]
    limit: float


def share_steps(trace: Trace) -> SharedSteps | None:
    """None where there are no microbatches, or too few to say who is slow."""
    parts = trace.microbatches
    if parts is None:
        return None
    parts = parts.whole_steps()
    share = worker_share(parts.seconds)
    if np.isnan(share.value):
        return None
    of_data = slow_data(share)
    uncoded, taken, least = _slow_data(parts) if of_data else _slow_workers(parts.seconds)
    mean = float(uncoded.mean())
    count = len(uncoded)
    savings = []
    for (stored, by_length), seconds in sorted(taken.items()):
        less = (uncoded - seconds) / mean
        error = float(less.std(ddof=1) / np.sqrt(count)) if count > 1 else np.nan
        savings.append(Saving(stored, by_length, float(less.mean()), error))
    return SharedSteps(
        worker_share=share,
        slow_data=of_data,
        num_steps=count,
        uncoded=mean,
        savings=savings,
        limit=1 - float(least.mean()) / mean,
    )


# Seconds of each step, `[S]`: uncoded, by stored subsets and whether lengths are known, and the least.
_Times = tuple[np.ndarray, dict[tuple[int, bool], np.ndarray], np.ndarray]


def _slow_workers(seconds: np.ndarray) -> _Times:
    times = seconds.sum(axis=2)
    _, workers, chunks = seconds.shape
    rules = {stored: WorkSharing(workers, stored, chunks, equal_chunks=True) for stored in {2, workers}}
    taken = {(stored, False): steps_of_slow_workers(times, rule) for stored, rule in rules.items()}
    return times.max(axis=1), taken, workers / np.sum(1 / times, axis=1)


def _slow_data(parts: Microbatches) -> _Times:
    half = len(parts.seconds) // 2
    costs = predicted_seconds(parts, slice(half)) if half else None
    judged = slice(None) if costs is None else slice(half, None)
    seconds = parts.seconds[judged]
    workers = seconds.shape[1]
    taken = {(stored, False): steps_of_slow_data(seconds, stored) for stored in {2, workers}}
    if costs is not None:
        known = costs[judged]
        taken |= {(stored, True): steps_of_slow_data(seconds, stored, known) for stored in {2, workers}}
    times = seconds.sum(axis=2)
    return times.max(axis=1), taken, times.mean(axis=1)


def steps_of_slow_workers(times: np.ndarray, rule: WorkSharing) -> np.ndarray:
    """`[S]`, of the seconds that each worker takes for a subset, `[S, W]`.

    >>> steps_of_slow_workers(np.array([[1.0, 1.0, 4.0]]), WorkSharing(3, 3, 2, equal_chunks=True)).tolist()
    [2.0]
    """
    steps, workers = times.shape
    sizes = np.tile(rule.sizes, (steps, workers))
    chunks = Chunks(times / (UNITS * rule.chunks), sizes, np.zeros((steps, workers, 0)))
    if rule.max_subsets == workers:
        return in_turn(chunks, np.argsort(-sizes, axis=1, kind="stable"))
    return handed_out(desk_of(rule.stored, rule.sizes), chunks)


def steps_of_slow_data(seconds: np.ndarray, max_subsets: int, costs: np.ndarray | None = None) -> np.ndarray:
    """`[S]`, of the seconds of microbatches, and what they are expected to cost, `[S, W, C]` each.

    Without costs all are expected to cost the same. All workers have one pace, which is known.

    >>> seconds = np.array([[[1.0, 1.0], [1.0, 3.0]]])
    >>> [steps_of_slow_data(seconds, 2, costs).tolist() for costs in (None, seconds)]
    [[4.0], [3.0]]
    """
    steps, workers, count = seconds.shape
    expected = np.ones_like(seconds) if costs is None else costs
    paces = np.ones((steps, workers))
    no_pauses = np.zeros((steps, workers, 0))
    if max_subsets == workers:
        # Of equal ones first the first of all subsets, so that each worker begins with its own.
        by_number, cost = (values.swapaxes(1, 2).reshape(steps, -1) for values in (seconds, expected))
        return in_turn(Chunks(paces, by_number, no_pauses), np.argsort(-cost, axis=1, kind="stable"))
    chunks = Chunks(paces, seconds.reshape(steps, -1), no_pauses, expected.reshape(steps, -1))
    return handed_out(desk_of(spread(workers, max_subsets, count), (1,) * count), chunks, alike=True)
