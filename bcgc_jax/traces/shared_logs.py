"""Logs of `dispatch.serve(record=)`: of shared steps what they would have taken without
sharing.

A log of chunks is of workers' own chunks. Where chunks were handed out, each tells of
the pace of who did it and of the length of its data, so own chunks follow
(`balancing/estimates.py`).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.estimates import Estimate, Reader

Rows = Iterator[tuple[int, list[str]]]
# Beside those of a log of chunks: whose data a chunk is, and its share of a whole one.
COLUMNS = ("subset", "share")


class _Places(NamedTuple):
    """Where the columns stand."""

    step: int
    worker: int
    subset: int
    chunk: int
    share: int
    seconds: int
    load: int | None


class _Group(NamedTuple):
    """The chunks of a step, in the order of subsets and numbers."""

    rows: list[tuple[int, list[str]]]
    workers: list[str]
    who: np.ndarray
    seconds: np.ndarray
    shares: np.ndarray

    @property
    def is_shared(self) -> bool:
        own_workers = np.repeat(
            np.arange(len(self.workers)), self.who.size // len(self.workers)
        )
        return bool(np.any(self.shares < 1) or np.any(self.who != own_workers))


def own_rows(rows: Rows, header: Sequence[str], names: dict[str, str]) -> Rows:
    """The rows of a log with `COLUMNS`, of own whole chunks alone; `names` are those of
    columns.

    Shared steps that lack a chunk are left out.

    >>> header = ["step", "worker", "subset", "chunk", "share", "seconds"]
    >>> text = ["1,a,a,0,1,2", "1,a,a,1,1,2", "1,a,b,0,1,2", "1,b,b,1,1,6"]
    >>> rows = enumerate((line.split(",") for line in text), 2)
    >>> [row for _, row in own_rows(rows, header, {name: name for name in header})][2:]
    [['1', 'b', 'b', '0', '1', '6.0'], ['1', 'b', 'b', '1', '1', '6.0']]
    """
    index_of = {
        name: header.index(names.get(name, name)) for name in _Places._fields[:-1]
    }
    load = None
    if "load" in names:
        load = header.index(names["load"])
    places = _Places(**index_of, load=load)
    reader: Reader | None = None
    for _, numbered_rows in itertools.groupby(rows, lambda row: row[1][places.step]):
        step_rows = list(numbered_rows)
        group = _group(step_rows, places)
        if group is None:
            # Own steps as they are, also broken ones: who reads them says what is
            # wrong.
            if all(row[places.worker] == row[places.subset] for _, row in step_rows):
                yield from step_rows
            continue
        size = len(group.workers)
        if reader is None or reader.num_workers != size:
            reader = Reader(np.ones(0), size)
        if group.is_shared:
            reader.shares = group.shares[: group.who.size // size]
        estimate = reader.read(group.is_shared, group.who, group.seconds)
        yield from (
            _as_own(reader, estimate, group, places) if group.is_shared else step_rows
        )


def _group(rows: list[tuple[int, list[str]]], places: _Places) -> _Group | None:
    """The chunks of a step; None where they are not each chunk of each subset once."""
    try:
        subsets = sorted({row[places.subset] for _, row in rows})
        chunks = sorted({int(row[places.chunk]) for _, row in rows})
        place = {name: number for number, name in enumerate(subsets)}
        rows = sorted(rows, key=lambda row: _order(row[1], place, places))
        who = np.array([place[row[places.worker]] for _, row in rows])
        seconds = np.array([float(row[places.seconds]) for _, row in rows])
        shares = np.array([float(row[places.share]) for _, row in rows])
    except (KeyError, ValueError):
        return None
    order = [_order(row, place, places) for _, row in rows]
    whole = order == list(itertools.product(range(len(subsets)), chunks))
    sane = np.all(seconds > 0) and np.all((shares > 0) & (shares <= 1))
    if whole and sane:
        return _Group(rows, subsets, who, seconds, shares)
    return None


def _order(row: list[str], place: dict[str, int], places: _Places) -> tuple[int, int]:
    return place[row[places.subset]], int(row[places.chunk])


def _as_own(reader: Reader, estimate: Estimate, group: _Group, places: _Places) -> Rows:
    """A pause is in the first chunk of who made it."""
    seconds = estimate.paces[:, None] * reader.whole(estimate)
    seconds[:, 0] += estimate.pauses
    pieces = group.who.size // len(group.workers)
    for (subset, chunk), took in np.ndenumerate(seconds):
        first = subset * pieces + chunk
        if chunk + 1 < seconds.shape[1]:
            last = first + 1
        else:
            last = (subset + 1) * pieces
        line, row = group.rows[first]
        changed = [*row]
        changed[places.worker] = group.workers[subset]
        changed[places.share] = "1"
        changed[places.seconds] = repr(float(took))
        if places.load is not None and row[places.load].strip():
            loads = [float(row[places.load]) for _, row in group.rows[first:last]]
            changed[places.load] = repr(math.fsum(loads))
        yield line, changed
