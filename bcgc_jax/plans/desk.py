"""The chunks that are handed out in a step of work sharing, and which of them each worker may be given."""

import functools
from typing import NamedTuple

import numpy as np

from bcgc_jax.plans.storage import Storage

# Of the last chunk of a subset, which is cut once more: small ones level out the end of a step.
_LAST = (2, 1, 1)
UNITS = sum(_LAST)


def chunk_sizes(num_chunks: int, equal: bool = False) -> tuple[int, ...]:
    """Of a subset's chunks, `UNITS` for each of `num_chunks` of equal size, of which the last is cut again.

    >>> chunk_sizes(3), chunk_sizes(3, equal=True)
    ((4, 4, 2, 1, 1), (4, 4, 4))
    """
    return (UNITS,) * num_chunks if equal else (UNITS,) * (num_chunks - 1) + _LAST


class Desk(NamedTuple):
    """Which chunks a worker may be given: static, NumPy. M chunks, of which a worker stores at most S.

    Attributes:
      size: of each chunk, and 0 for none, `[M + 1]`.
      stored: of each worker, its chunks in the order of preference, then M, `[N, S]`.
      others: of these, who else stores them, then N, `[N, S, D - 1]`.
    """

    size: np.ndarray
    stored: np.ndarray
    others: np.ndarray


@functools.cache
def desk_of(storage: Storage, sizes: tuple[int, ...]) -> Desk:
    """For subsets whose chunks have these sizes."""
    workers = len(storage.holders)
    holders = [chunk for subset in storage.holders for chunk in subset]
    size = np.array([*(sizes * workers), 0], np.int32)
    ordered = []
    for w in range(workers):
        mine = [k for k, some in enumerate(holders) if w in some]
        own = [k for k in mine if k // len(sizes) == w]
        ordered.append([*own, *(k for k in mine if k not in own)])
    most, deep = max(map(len, ordered)), max(1, max(map(len, holders)) - 1)
    stored = np.full((workers, most), len(holders), np.int32)
    others = np.full((workers, most, deep), workers, np.int32)
    for worker, own in enumerate(ordered):
        stored[worker, : len(own)] = own
        for place, k in enumerate(own):
            rest = [b for b in holders[k] if b != worker]
            others[worker, place, : len(rest)] = rest
    return Desk(size, stored, others)
