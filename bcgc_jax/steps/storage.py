"""Who stores which chunk of a step's data."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Storage(NamedTuple):
    """The data of a step are N subsets, one for each worker, and subset w is worker w's
    own.

    Attributes:
      holders: of each subset and each of its chunks the workers that store it, its
        owner first if it does; whole subsets have one chunk.
    """

    holders: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of_subsets(cls, stored: Sequence[Iterable[int]]) -> "Storage":
        """Of whole subsets: those that each worker stores.

        >>> Storage.of_subsets([(0, 1), (1, 2), (2, 0)]).holders
        (((0, 2),), ((1, 0),), ((2, 1),))
        """
        kept = list(map(frozenset, stored))
        workers = range(len(kept))

        def holders(subset: int) -> tuple[int, ...]:
            other_workers = [w for w in workers if subset in kept[w] and w != subset]
            if subset in kept[subset]:
                return (subset, *other_workers)
            return tuple(other_workers)

        return cls(tuple((holders(subset),) for subset in workers))

    @functools.lru_cache(maxsize=8)  # noqa: B019, of a tuple: nothing is kept alive but its key
    def chunks(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What each worker stores: chunks, each a subset and a number there, its own
        subset first.

        >>> Storage((((0, 1),), ((1, 0),))).chunks()
        (((0, 0), (1, 0)), ((1, 0), (0, 0)))
        """
        stored: list[list[tuple[int, int]]] = [[] for _ in self.holders]
        for j, row in enumerate(self.holders):
            for c, holders in enumerate(row):
                for worker in holders:
                    stored[worker].append((j, c))
        for worker, worker_chunks in enumerate(stored):
            worker_chunks.sort(key=lambda chunk: chunk[0] != worker)
        return tuple(map(tuple, stored))


def least_alone(num_workers: int, max_subsets: int) -> np.ndarray:
    """N C(k, D) / C(N, D), `[N]`: mean number of subsets that only k workers store."""
    all_sets = math.comb(num_workers, max_subsets)
    sets = [math.comb(k, max_subsets) for k in range(1, num_workers + 1)]
    return np.array([num_workers * count / all_sets for count in sets])
