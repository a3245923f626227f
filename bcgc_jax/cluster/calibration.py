r"""From what messages cost to what the planner asks for: cycle times, and the setup of a subset.

A worker computes block b at level n on m samples of each subset in

    T · m ((n+1) size_b + f new_b) seconds,

new_b the subsets that no block before has gone forward on. A cycle is what one coordinate of one sample
takes, so T is in seconds; f, in the same cycles, is the forward pass of a sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.cluster.master import Work
from bcgc_jax.coded_gradients import CodingPlan


class Calibration(NamedTuple):
    """What measured work says of the workers.

    Attributes:
      cycle_times: seconds per cycle of each worker in each iteration, `[K, N]`; NaN where it sent nothing.
      setup_cycles: f, cycles per sample and subset before the first coordinate.
      message_seconds: what a message costs however small it is; not in the cycle times.
    """

    cycle_times: np.ndarray
    setup_cycles: float
    message_seconds: float

    def times(self) -> np.ndarray:
        """All cycle times in one row, for `fit_laws` and `smooth_empirical`."""
        return self.cycle_times[np.isfinite(self.cycle_times)]


def calibrate(work: Sequence[Work], plan: CodingPlan, num_samples: float) -> Calibration:
    """Cycle times, setup and cost of a message from `work` done under one `plan`; M samples an iteration.

    The costs are the least squares of the median seconds of each block and worker, none of them negative; a
    plan of one block cannot tell its setup from its coordinates, and gets a setup of 0.

    Raises ValueError where there is no work.
    """
    if not work:
        raise ValueError("no work was measured: take the `work` of a training or of gradients")
    workers = plan.num_workers
    coordinates, setup = np.zeros((2, len(plan.blocks), workers))
    for w in range(workers):
        known: set[tuple[int, tuple[float, float]]] = set()
        for b, (code, block) in enumerate(zip(plan.codes, plan.blocks, strict=True)):
            portion = (block.share[1] - block.share[0]) * num_samples / workers
            subsets = {(j, block.share) for j in code.subsets[w]}
            coordinates[b, w] = portion * len(subsets) * block.size
            setup[b, w] = portion * len(subsets - known)
            known |= subsets
    iterations = sorted({item.iteration for item in work})
    place = {iteration: k for k, iteration in enumerate(iterations)}
    seconds = np.full((len(iterations), len(plan.blocks), workers), np.nan)
    for item in work:
        seconds[place[item.iteration], item.block, item.worker] = item.seconds
    known_blocks = np.isfinite(seconds).any(axis=0)
    typical = np.array([np.nanmedian(seconds[:, b, w]) for b, w in np.argwhere(known_blocks)])
    columns = [coordinates[known_blocks], setup[known_blocks], np.ones(len(typical))]
    per_cycle, per_setup, message = _nonnegative(columns if len(plan.blocks) > 1 else columns[:1], typical)
    cycles = coordinates + (per_setup / per_cycle) * setup if per_cycle > 0 else setup
    done = np.isfinite(seconds)
    spent = np.sum(np.where(done, np.maximum(seconds - message, 0), 0), axis=1)
    sent = np.sum(np.where(done, cycles, 0), axis=1)
    times = np.where((sent > 0) & (spent > 0), spent / np.where(sent > 0, sent, 1), np.nan)
    return Calibration(times, per_setup / per_cycle if per_cycle > 0 else 0.0, message)


def _nonnegative(columns: Sequence[np.ndarray], values: np.ndarray) -> tuple[float, float, float]:
    """Least squares with coefficients ≥ 0, of all choices of columns the best; 0 for those left out."""
    best, found = np.inf, np.zeros(3)
    for choice in range(1, 2 ** len(columns), 2):  # always with the first
        chosen = [k for k in range(len(columns)) if choice >> k & 1]
        # Scaled: the columns differ by the number of coordinates.
        scale = np.array([max(np.abs(columns[k]).max(), 1e-300) for k in chosen])
        matrix = np.stack([columns[k] for k in chosen], axis=1) / scale
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        error = float(np.sum((matrix @ solution - values) ** 2))
        if solution.min() >= 0 and error < best * (1 - 1e-9):
            best, found = error, np.zeros(3)
            found[chosen] = solution / scale
    return float(found[0]), float(found[1]), float(found[2])
