"""`Placement`: who stores which data, and what a coordinator must know."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bcgc_jax.balancing.chunk_lengths import UNITS, LoadLine, chunk_sizes
from bcgc_jax.balancing.storage import Storage as Storage
from bcgc_jax.balancing.storage import by_hosts, numbered

if TYPE_CHECKING:
    from jax import Array

# Sets of offsets that are tried for each chunk.
_TRIES = 400


def on_circle(num_workers: int, stored: int) -> Storage:
    """Worker w stores the subsets w, w+1, …, w + `stored` - 1 of a circle."""
    turns = range(stored)
    return Storage.of_subsets(
        [[(w + k) % num_workers for k in turns] for w in range(num_workers)]
    )


@functools.cache
def spread(
    num_workers: int, max_subsets: int, num_chunks: int, num_offsets: int | None = None
) -> Storage:
    """Worker w stores its own subset, and single chunks of others: `max_subsets`
    subsets in all.

    Chunk c of subset j is stored by j and by j + o for the offsets o of this chunk,
    others for each: so help comes from nearly everywhere, not from neighbours alone.
    With a few `num_offsets` chunks have them in turn: then more sets of absent workers
    are borne.

    >>> spread(5, 2, 3).holders[0]
    ((0, 2), (0, 1), (0, 3))
    """
    offset_sets = _offsets(num_workers, max_subsets, num_offsets or num_chunks)
    offsets = [
        (0, *offset_sets[chunk % len(offset_sets)]) for chunk in range(num_chunks)
    ]

    def holders(subset: int, of_chunk: tuple[int, ...]) -> tuple[int, ...]:
        return tuple((subset + offset) % num_workers for offset in of_chunk)

    subsets = range(num_workers)
    return Storage(
        tuple(tuple(holders(j, of_chunk) for of_chunk in offsets) for j in subsets)
    )


@functools.cache
def whole_subsets(num_workers: int, max_subsets: int, num_chunks: int) -> Storage:
    """All chunks of a subset have the same holders, for data loaders that serve whole
    subsets.

    Subset j is stored by j and by j + o for `max_subsets` - 1 offsets o, the same for
    all subsets.

    >>> whole_subsets(20, 3, 1).holders[0]
    ((0, 1, 5),)
    """
    offsets = _uneven_offsets(num_workers, max_subsets)
    of_subset = [
        tuple((j + o) % num_workers for o in offsets) for j in range(num_workers)
    ]
    return Storage(tuple((holders,) * num_chunks for holders in of_subset))


class Placement(NamedTuple):
    """N workers store as much as D subsets each, of C chunks.

    Attributes:
      num_workers: N.
      max_subsets: D, from 1, where nothing is shared, to N.
      chunks: C.
      equal_chunks: whether the last chunk of a subset stays whole; it does where
        nothing is shared.
      whole_subsets: whether workers store whole subsets, not chunks of many.
      load_line: predicts a chunk's seconds from its load; None: lengths are
        proportional to loads.
      hosts: that of each worker, by number: holders of a chunk are on different ones,
        as far as hosts are small enough; None: all alike.
      offsets: how many offsets chunks have, in turn; None: each its own.

    >>> place = Placement(num_workers=5, max_subsets=2, chunks=3)
    >>> place.sizes, place.storage.holders[0][0]
    ((4, 4, 2, 1, 1), (0, 2))
    """

    num_workers: int
    max_subsets: int = 2
    chunks: int = 8
    equal_chunks: bool = False
    whole_subsets: bool = False
    load_line: LoadLine | None = None
    hosts: tuple[int, ...] | None = None
    offsets: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of a subset's chunks: `UNITS` for a whole one."""
        return chunk_sizes(self.chunks, self.equal_chunks or self.max_subsets == 1)

    @property
    def shares(self) -> list[float]:
        """The sizes of a subset's chunks: 1 for a whole one."""
        return [size / UNITS for size in self.sizes]

    @property
    def by_host(self) -> bool:
        """Whether hosts say who stores what; where all store all nothing does."""
        return self.hosts is not None and self.max_subsets < self.num_workers

    @property
    def storage(self) -> Storage:
        count = len(self.sizes)
        if self.by_host:
            assert self.hosts is not None
            if self.whole_subsets:
                rows = by_hosts(self.hosts, self.max_subsets, 1).holders
                return Storage(tuple(row * count for row in rows))
            return by_hosts(self.hosts, self.max_subsets, count)
        if self.whole_subsets:
            return whole_subsets(self.num_workers, self.max_subsets, count)
        return spread(self.num_workers, self.max_subsets, count, self.offsets)

    def check(self) -> None:
        """Raise ValueError for numbers that are no such placement."""
        if not 1 <= self.max_subsets <= self.num_workers or self.chunks < 1:
            raise ValueError(
                f"{self.num_workers} workers store from 1 to {self.num_workers} "
                f"subsets each, in 1 chunk or more: got {self.max_subsets} subsets in "
                f"{self.chunks} chunks"
            )
        if self.hosts is not None and len(self.hosts) != self.num_workers:
            raise ValueError(
                f"hosts must name that of each of {self.num_workers} workers: got "
                f"{len(self.hosts)}"
            )
        if self.offsets is not None and not 1 <= self.offsets < max(
            self.num_workers, 2
        ):
            raise ValueError(
                f"offsets must be from 1 to {self.num_workers - 1}: got {self.offsets}"
            )
        if self.offsets is not None and (self.hosts is not None or self.whole_subsets):
            raise ValueError(
                "offsets are of chunks: leave out hosts and whole subsets, or offsets"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Placement":
        """Read the plan that `bcgc advise --out` or `bcgc solve --out` wrote.

        Raises ValueError for a file that is no plan of work sharing, OSError where it
        cannot be read.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            rule = document["plan"]["completion"]
            if rule.pop("rule") != "WorkSharing":
                raise ValueError(f"it is a plan of {document['method']}")
            place = _placement_of(rule)
            place.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no plan of work sharing, as `bcgc advise --out` writes it: "
                f"{error}"
            ) from error
        return place


class ChunkTables(NamedTuple):
    """Which chunks a worker may be given, in NumPy. There are M; a worker stores at
    most S.

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
    chunks = [holders for subset in storage.holders for holders in subset]
    stored = [
        [j * len(sizes) + c for j, c in worker_chunks]
        for worker_chunks in storage.chunks()
    ]
    size = np.array([*(sizes * len(stored)), 0], np.int32)
    return ChunkTables(
        size, _table(stored, len(chunks)), _table([*chunks, ()], len(stored))
    )


def _placement_of(rule: dict[str, Any]) -> Placement:
    names = Placement._fields[: Placement._fields.index("load_line")]
    for name in names:
        kind = type(Placement._field_defaults.get(name, 1))
        if type(rule[name]) is not kind:
            raise ValueError(
                f"{name} must be of type {kind.__name__}, got {rule[name]!r}"
            )
    line = None
    if rule.get("load_line") is not None:
        base, slope = rule["load_line"]
        line = LoadLine(float(base), float(slope), float(rule["usual_cost"]))
        if not line.usual > 0:
            raise ValueError(f"usual_cost must be above 0, got {line.usual}")
    hosts = None
    if rule.get("hosts") is not None:
        hosts = numbered(rule["hosts"])
    numbers = {name: rule[name] for name in names}
    return Placement(**numbers, load_line=line, hosts=hosts)


def _table(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Rows of one length, `[len(rows), longest]`."""
    table = np.full((len(rows), max(map(len, rows))), filler, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _uneven_offsets(workers: int, stored: int) -> list[int]:
    """Offsets in turn, each of least Σ_{k≠0} |Σ_o e^{2πiko/N}|⁸: help is from far."""
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
        middle = []
        if workers % 2 == 0:
            middle = [workers // 2]
        in_turn = [*half, *middle, *(workers - o for o in half)]
        return [(in_turn[c % len(in_turn)],) for c in range(chunks)]
    if stored == 1:
        return [()] * chunks
    return _even_offsets(workers, stored, chunks)


def _even_offsets(workers: int, stored: int, chunks: int) -> list[tuple[int, ...]]:
    """Chunk by chunk the offsets whose differences occurred least so far."""
    rng = np.random.default_rng(0)
    apart = ~np.eye(stored, dtype=bool)
    met = np.zeros(workers, int)

    def met_with(offsets: np.ndarray) -> np.ndarray:
        """How often each difference occurs, with those of these offsets."""
        differences = (offsets[:, None] - offsets)[apart] % workers
        return met + np.bincount(differences, minlength=workers)

    of_chunks = []
    for _ in range(chunks):
        draws = [
            rng.choice(workers - 1, stored - 1, replace=False) + 1
            for _ in range(_TRIES)
        ]
        counts = [met_with(np.append(0, drawn)) for drawn in draws]
        best = min(range(_TRIES), key=lambda k: int(np.sum(counts[k] ** 2)))
        met = counts[best]
        of_chunks.append(tuple(sorted(draws[best].tolist())))
    return of_chunks
