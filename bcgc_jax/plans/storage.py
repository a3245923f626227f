"""Who stores which data: static, of a known number of workers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Storage(NamedTuple):
    """The data of a step are N subsets, one for each worker, and subset w is worker w's own.

    Attributes:
      holders: of each subset and each of its chunks the workers that store it, its owner first if it does;
        whole subsets have one chunk.
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
        of_subset = [sorted((w for w in workers if j in kept[w]), key=lambda w: w != j) for j in workers]
        return cls(tuple((tuple(holders),) for holders in of_subset))

    def subsets_of(self, worker: int) -> tuple[int, ...]:
        """Those of which a worker stores something, ascending."""
        return tuple(j for j, chunks in enumerate(self.holders) if any(worker in some for some in chunks))

    def arc_of(self, worker: int) -> tuple[int, int]:
        """The first of a worker's subsets around the circle, where they are neighbours, and their number."""
        stored = self.subsets_of(worker)
        before = [(j - 1) % len(self.holders) for j in stored]
        starts = [j for j, last in zip(stored, before, strict=True) if last not in stored]
        return (starts or [worker])[0], len(stored)


def on_circle(num_workers: int, stored: int) -> Storage:
    """Worker w stores the subsets w, w+1, …, w + `stored` - 1 of a circle."""
    return Storage.of_subsets(
        [[(worker + turn) % num_workers for turn in range(stored)] for worker in range(num_workers)]
    )
