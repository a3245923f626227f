"""The chunks that a step of work sharing hands out, and who may be given which of them."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bcgc_jax.steps.storage import Storage

if TYPE_CHECKING:
    from jax import Array

# The parts of the last chunk of a subset: small ones level out the end of a step.
_LAST = (2, 1, 1)
UNITS = sum(_LAST)


def chunk_sizes(num_chunks: int, equal: bool = False) -> tuple[int, ...]:
    """The sizes of a subset's chunks: `UNITS` each, of which the last is cut again if not `equal`.

    >>> chunk_sizes(3), chunk_sizes(3, equal=True)
    ((4, 4, 2, 1, 1), (4, 4, 4))
    """
    return (UNITS,) * num_chunks if equal else (UNITS,) * (num_chunks - 1) + _LAST


class ChunkTables(NamedTuple):
    """Which chunks a worker may be given, in NumPy. There are M; a worker stores at most S.

    Attributes:
      size: of each chunk, and 0 for none, `[M + 1]`.
      stored: of each worker, its chunks in the order of preference, then M, `[N, S]`.
      holders: of each chunk, who stores it, then N, `[M + 1, D]`.
    """

    size: "np.ndarray | Array"
    stored: "np.ndarray | Array"
    holders: "np.ndarray | Array"


@functools.cache
def chunk_tables(storage: Storage, sizes: tuple[int, ...]) -> ChunkTables:
    """For subsets whose chunks have these sizes."""
    chunks = [some for subset in storage.holders for some in subset]
    stored = [[j * len(sizes) + c for j, c in mine] for mine in storage.chunks()]
    size = np.array([*(sizes * len(stored)), 0], np.int32)
    return ChunkTables(size, _table(stored, len(chunks)), _table([*chunks, ()], len(stored)))


def _table(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Rows of one length, `[len(rows), longest]`."""
    table = np.full((len(rows), max(map(len, rows))), filler, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table
