"""Chunks dealt before a step by predicted lengths, to each worker as many as before.

So nobody waits for ever where the chunks of all workers are computed together
(`lock_step`). Each worker computes its longest chunk first.
"""

from abc import abstractmethod

import numpy as np

from bcgc_jax.schemes.base import Resources
from bcgc_jax.schemes.unplanned import Unplanned
from bcgc_jax.steps.steps import Outcome, Steps


class _Dealing(Unplanned):
    """Each worker gets C of the N C chunks, and computes them in an order."""

    by_chunk = advisable = by_length = in_lock_step = of_lengths = True

    def outcome(self, steps: Steps) -> Outcome:
        assert steps.costs is not None
        return Outcome(steps.dealt(self.chunks(steps.costs)).last())

    @abstractmethod
    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Each worker's chunks, `[S, N, C]`, numbers of all N C; costs are balanced."""


class Sorted(_Dealing):
    """Each worker computes its own chunks, the longest first: no data move."""

    name = "own chunks sorted"
    need = "lengths of chunks before the step; no data move"
    advice = "let each worker compute its own chunks by length, the longest first"

    def possible(self, resources: Resources) -> bool:
        """Elsewhere the order of a worker's own chunks changes nothing."""
        return resources.lock_step and super().possible(resources)

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """The longest first, `[S, N, C]`.

        >>> Sorted().chunks(np.array([[[1.0, 2.0], [4.0, 3.0]]])).tolist()
        [[[1, 0], [2, 3]]]
        """
        _, workers, count = costs.shape
        first_chunk = count * np.arange(workers)[:, None]
        return np.argsort(-costs, axis=2, kind="stable") + first_chunk


class AlikeRows(_Dealing):
    """The N longest chunks run together, then the next N, one for each worker."""

    name = "rows of alike chunks"
    need = "lengths of chunks before the step"
    advice = "deal the chunks so that those which are computed together are alike"

    stores_all = True

    def possible(self, resources: Resources) -> bool:
        """Elsewhere nothing is computed together."""
        return resources.lock_step and super().possible(resources)

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Row by row, the longest chunk to the worker with the least so far.

        >>> AlikeRows().chunks(np.array([[[1.0, 2.0], [4.0, 3.0]]])).tolist()
        [[[2, 0], [3, 1]]]
        """
        steps, workers, count = costs.shape
        flat = costs.reshape(steps, -1)
        rows = np.argsort(-flat, axis=1, kind="stable").reshape(steps, count, workers)
        dealt = np.empty((steps, count, workers), int)
        load = np.zeros((steps, workers))
        for row in range(count):
            free = np.argsort(load, axis=1, kind="stable")
            np.put_along_axis(dealt[:, row], free, rows[:, row], 1)
            load += np.take_along_axis(flat, dealt[:, row], 1)
        return dealt.transpose(0, 2, 1)


class DealtEqual(_Dealing):
    """The longest chunk left goes to the worker with the least so far that has room."""

    name = "dealt, equal numbers"
    need = "lengths of chunks before the step"
    advice = "deal the chunks to the workers by their length, as many to each"

    stores_all = True

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Longest first, also within a worker.

        >>> DealtEqual().chunks(np.array([[[1.0, 2.0], [9.0, 3.0]]])).tolist()
        [[[2, 0], [3, 1]]]
        """
        steps, workers, count = costs.shape
        flat = costs.reshape(steps, -1)
        all_steps = np.arange(steps)
        load = np.zeros((steps, workers))
        numbers = np.zeros((steps, workers), int)
        dealt = np.empty(costs.shape, int)
        for chunk in np.argsort(-flat, axis=1, kind="stable").T:
            worker = np.where(numbers < count, load, np.inf).argmin(axis=1)
            dealt[all_steps, worker, numbers[all_steps, worker]] = chunk
            numbers[all_steps, worker] += 1
            load[all_steps, worker] += flat[all_steps, chunk]
        return dealt
