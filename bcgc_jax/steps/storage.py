"""Who stores which data: static, of a known number of workers."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Sets of offsets that are tried for each chunk.
_TRIES = 400


class Storage(NamedTuple):
    """The data of a step are N subsets, one for each worker, and subset w is worker w's own.

    Attributes:
      holders: of each subset and each of its chunks the workers that store it, its owner first if
        it does; whole subsets have one chunk.
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
            others = [w for w in workers if subset in kept[w] and w != subset]
            return (subset, *others) if subset in kept[subset] else tuple(others)

        return cls(tuple((holders(subset),) for subset in workers))

    def subsets_of(self, worker: int) -> tuple[int, ...]:
        """Those of which a worker stores something, ascending."""
        rows = enumerate(self.holders)
        return tuple(j for j, row in rows if any(worker in some for some in row))

    @functools.lru_cache(maxsize=8)  # noqa: B019, of a tuple: nothing is kept alive but its key
    def chunks(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What each worker stores: chunks, each a subset and a number there, its own subset first.

        >>> Storage((((0, 1),), ((1, 0),))).chunks()
        (((0, 0), (1, 0)), ((1, 0), (0, 0)))
        """
        stored: list[list[tuple[int, int]]] = [[] for _ in self.holders]
        for j, row in enumerate(self.holders):
            for c, holders in enumerate(row):
                for worker in holders:
                    stored[worker].append((j, c))
        for worker, mine in enumerate(stored):
            mine.sort(key=lambda chunk: chunk[0] != worker)
        return tuple(map(tuple, stored))


def on_circle(num_workers: int, stored: int) -> Storage:
    """Worker w stores the subsets w, w+1, …, w + `stored` - 1 of a circle."""
    turns = range(stored)
    return Storage.of_subsets([[(w + k) % num_workers for k in turns] for w in range(num_workers)])


@functools.cache
def spread(num_workers: int, max_subsets: int, num_chunks: int) -> Storage:
    """Worker w stores its own subset, and single chunks of others: `max_subsets` subsets in all.

    Chunk c of subset j is stored by j and by j + o for the offsets o of this chunk, others for
    each: so help comes from nearly everywhere, not from neighbours alone.

    >>> spread(5, 2, 3).holders[0]
    ((0, 2), (0, 1), (0, 3))
    """
    offsets = [(0, *of_chunk) for of_chunk in _offsets(num_workers, max_subsets, num_chunks)]

    def holders(subset: int, of_chunk: tuple[int, ...]) -> tuple[int, ...]:
        return tuple((subset + offset) % num_workers for offset in of_chunk)

    subsets = range(num_workers)
    return Storage(tuple(tuple(holders(j, of_chunk) for of_chunk in offsets) for j in subsets))


@functools.cache
def whole_subsets(num_workers: int, max_subsets: int, num_chunks: int) -> Storage:
    """All chunks of a subset have the same holders, for data loaders that serve whole subsets.

    Subset j is stored by j and by j + o for `max_subsets` - 1 offsets o, the same for all subsets.

    >>> whole_subsets(20, 3, 1).holders[0]
    ((0, 1, 5),)
    """
    offsets = _uneven_offsets(num_workers, max_subsets)
    of_subset = [tuple((j + o) % num_workers for o in offsets) for j in range(num_workers)]
    return Storage(tuple((holders,) * num_chunks for holders in of_subset))


def _uneven_offsets(workers: int, stored: int) -> list[int]:
    """Offsets one by one, each with the least Σ_{k≠0} |Σ_o e^{2πiko/N}|⁸: help comes from far."""
    turns = np.outer(np.arange(workers), np.arange(1, workers)) / workers
    waves = np.exp(2j * np.pi * turns.T)  # of each offset, [N - 1, N]
    offsets = [0]
    together = np.ones(workers, complex)
    for _ in range(stored - 1):
        sizes = np.sum(np.abs(together + waves)[:, 1:] ** 8, axis=1)
        sizes[np.array(offsets[1:], int) - 1] = np.inf
        best = int(np.argmin(np.round(sizes, 6)))  # of equal ones the nearest
        together = together + waves[best]
        offsets.append(best + 1)
    return sorted(offsets)


def _offsets(workers: int, stored: int, chunks: int) -> list[tuple[int, ...]]:
    """Of each chunk `stored` - 1 of them."""
    if stored == workers:
        return [tuple(range(1, workers))] * chunks
    if stored == 2:
        half = sorted(range(1, (workers + 1) // 2), key=lambda o: 0.618 * o % 1)
        middle = [workers // 2] if workers % 2 == 0 else []
        in_turn = [*half, *middle, *(workers - o for o in half)]
        return [(in_turn[c % len(in_turn)],) for c in range(chunks)]
    if stored == 1:
        return [()] * chunks
    return _even_offsets(workers, stored, chunks)


def _even_offsets(workers: int, stored: int, chunks: int) -> list[tuple[int, ...]]:
    """Chunk by chunk the offsets whose differences occurred least: no two workers share much."""
    rng = np.random.default_rng(0)
    apart = ~np.eye(stored, dtype=bool)
    met = np.zeros(workers, int)

    def met_with(offsets: np.ndarray) -> np.ndarray:
        """How often each difference has occurred, with those of a chunk of these offsets."""
        differences = (offsets[:, None] - offsets)[apart] % workers
        return met + np.bincount(differences, minlength=workers)

    of_chunks = []
    for _ in range(chunks):
        others = [rng.choice(workers - 1, stored - 1, replace=False) + 1 for _ in range(_TRIES)]
        counts = [met_with(np.append(0, some)) for some in others]
        best = min(range(_TRIES), key=lambda k: int(np.sum(counts[k] ** 2)))
        met = counts[best]
        of_chunks.append(tuple(sorted(others[best].tolist())))
    return of_chunks
