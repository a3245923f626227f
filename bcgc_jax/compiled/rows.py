"""Places the rows of a batch on the workers that store them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.compiled.layout import Layout


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
