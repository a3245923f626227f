"""Where the rows of each chunk lie among the rows that a worker stores."""

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.dispatch.client import Chunk, Share


class Place(NamedTuple):
    """Consecutive rows of a worker: `size` rows from row `begin`."""

    begin: int
    size: int


class Layout(NamedTuple):
    """The rows that the workers of this process store, in the order of `Share.held`.

    Attributes:
      num_samples: Number of samples per step, M, over all workers.
      num_subsets: Number of subsets, N, which is the number of workers.
      num_rows: Number of rows that each worker passes to the program. If workers store
        different amounts of data, it is the number of the worker that stores most.
      begins: First row of each chunk, by worker, subset and number of the chunk.
      sizes: Numbers of rows that a chunk can have, in decreasing order.
      rows: Indices of the step's samples that each worker stores, by worker.
    """

    num_samples: int
    num_subsets: int
    num_rows: int
    begins: Mapping[tuple[int, int, int], int]
    sizes: tuple[int, ...]
    rows: Mapping[int, list[int]]

    def place(self, worker: int, chunk: Chunk) -> Place:
        """The rows of a chunk. In a step that is not shared, the last chunk is whole:
        its pieces follow each other.
        """
        begin = self.begins[worker, chunk.subset, chunk.number]
        return Place(begin, len(chunk.rows(self.num_samples, self.num_subsets)))


def layout_of(shares: Mapping[int, Share], num_samples: int) -> Layout:
    """Lay out M samples.

    Raises:
      ValueError: If the samples cannot be divided evenly among the chunks.
    """
    first = next(iter(shares.values()))
    unit = _unit(first)
    if num_samples % unit or num_samples < 1:
        following = unit * max(1, math.ceil(num_samples / unit))
        raise ValueError(
            f"{num_samples} samples per step cannot be divided evenly among "
            f"{first.num_workers} workers with {first.num_chunks} chunks each. Use a "
            f"multiple of {unit} samples, for example {following}"
        )
    begins = {}
    sizes = {num_samples // (first.num_workers * first.num_chunks)}
    rows: dict[int, list[int]] = {}
    for worker, share in shares.items():
        rows[worker] = []
        for chunk in share.held:
            samples = chunk.rows(num_samples, share.num_workers)
            begins[worker, chunk.subset, chunk.number] = len(rows[worker])
            sizes.add(len(samples))
            rows[worker] += samples
    by_size = tuple(sorted(sizes, reverse=True))
    num_rows = round(num_samples * _most_stored(first) / first.num_workers)
    return Layout(num_samples, first.num_workers, num_rows, begins, by_size, rows)


def layout_of_rows(shares: Mapping[int, Share], num_rows: int) -> Layout:
    """Lay out the samples of a step of which each worker passes `num_rows` rows.

    Raises:
      ValueError: If no step has that many rows for each worker.
    """
    first = next(iter(shares.values()))
    rows_of_unit = _unit(first) * _most_stored(first) / first.num_workers
    if num_rows < 1 or num_rows % rows_of_unit:
        following = rows_of_unit * max(1, math.ceil(num_rows / rows_of_unit))
        raise ValueError(
            f"`stored` has {num_rows} rows for each worker, but this number must be a "
            f"multiple of {rows_of_unit}, for example {following}, because each worker "
            f"stores {float(_most_stored(first)):g} subsets of {first.num_chunks} "
            "chunks. Pass the arrays that `shared.place(batch)` returns"
        )
    return layout_of(shares, int(num_rows / rows_of_unit) * _unit(first))


def chunks_of(shares: Mapping[int, Share]) -> dict[int, tuple[object, ...]]:
    """What a program depends on: the chunks that each worker stores."""
    return {
        worker: (share.num_workers, share.num_chunks, share.held, share.most_stored)
        for worker, share in shares.items()
    }


def _unit(share: Share) -> int:
    """The least number of samples that can be divided evenly among all chunks."""
    return share.num_workers * math.lcm(
        *(Fraction(chunk.end).limit_denominator().denominator for chunk in share.own)
    )


def _most_stored(share: Share) -> Fraction:
    return Fraction(share.most_stored).limit_denominator()


def number_of_rows(batch: Any, name: str) -> int:
    """The number of rows that all arrays of a batch have; `name` is its name.

    Raises:
      ValueError: If an array has no rows, or two arrays have different numbers of rows.
    """
    names: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        leaf_name = f"`{name}{jax.tree_util.keystr(path)}`"
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"{leaf_name} is a scalar, but rows are distributed over the workers. "
                "Pass it to the program as another argument"
            )
        names.setdefault(np.shape(leaf)[0], leaf_name)
    if len(names) != 1:
        listed = ", ".join(f"{leaf} has {rows} rows" for rows, leaf in names.items())
        raise ValueError(
            f"all arrays of `{name}` must have the same number of rows, but "
            f"{listed or 'it has no arrays'}"
        )
    return next(iter(names))


def place_whole(batch: Any, layout: Layout, mesh: Mesh, axis: str) -> Any:
    """Place a batch that each process has as a whole, or that is a global array."""
    put = functools.partial(_put, mesh, axis)
    index = stored_rows(layout)

    def place(leaf: Any) -> Array:
        is_global = isinstance(leaf, Array) and (
            jax.process_count() == 1 or not leaf.is_fully_addressable
        )
        if is_global:
            return _take(mesh, axis, leaf, put(index))
        return put(np.asarray(leaf)[index])

    return jax.tree.map(place, batch)


def place_part(batch: Any, layout: Layout, mesh: Mesh, axis: str) -> Any:
    """Place a batch of which each process has only the subsets of its own workers."""
    put = functools.partial(_put, mesh, axis)
    index = put(stored_rows(layout))
    return jax.tree.map(lambda leaf: _take(mesh, axis, put(leaf), index), batch)


def stored_rows(layout: Layout) -> np.ndarray:
    """Indices of the step's samples that the workers of this process store, worker by
    worker, `[local workers × num_rows]`.

    A worker that stores less than others has its first row several times at the end.
    """
    rows: list[int] = []
    for worker in sorted(layout.rows):
        stored: Sequence[int] = layout.rows[worker]
        rows += [*stored, *[stored[0]] * (layout.num_rows - len(stored))]
    return np.array(rows, np.int32)


def _put(mesh: Mesh, axis: str, local: Any) -> Array:
    sharding = NamedSharding(mesh, P(axis))
    return jax.make_array_from_process_local_data(sharding, np.asarray(local))


def _take(mesh: Mesh, axis: str, leaf: Array, index: Array) -> Array:
    """Rows of a global array; other processes send the rows that this one lacks."""
    # In explicit mode the type of the result of a gather would be ambiguous.
    automatic = Mesh(
        mesh.devices,
        mesh.axis_names,
        axis_types=(AxisType.Auto,) * len(mesh.axis_names),
    )
    if isinstance(leaf.sharding, NamedSharding):
        leaf = jax.device_put(leaf, NamedSharding(automatic, leaf.sharding.spec))
    else:
        leaf = jax.device_put(leaf, NamedSharding(automatic, P()))
    index = jax.device_put(index, NamedSharding(automatic, P(axis)))
    stored = _gather(automatic, axis)(leaf, index)
    return jax.device_put(stored, NamedSharding(mesh, P(axis)))


@functools.cache
def _gather(mesh: Mesh, axis: str) -> Any:
    take = lambda leaf, index: leaf[index]  # noqa: E731
    return jax.jit(take, out_shardings=NamedSharding(mesh, P(axis)))
