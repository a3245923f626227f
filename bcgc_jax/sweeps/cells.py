r"""The cells of a sweep, and the chunks that they are solved in.

Cells are grouped by the number of workers: a cell costs O(N²) to O(N³), so padding all
to the largest N wastes work, and every size costs a compilation.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bcgc_jax._pytree import represent
from bcgc_jax.plans.plan import Requirements

Table = dict[str, np.ndarray]


class Number(NamedTuple):
    """A number that a sweep says of each solution: its attribute `name`, its `unit`."""

    name: str
    unit: str
    about: str


NUMBERS = (
    Number(
        "expected_runtime",
        "time",
        "Exact, of the continuous plan: whole numbers take a little longer.",
    ),
    Number("runtime_error", "time", "Estimate of its absolute error."),
    Number(
        "lower_bound",
        "time",
        "No partition has an expected runtime below it; null without a certificate.",
    ),
    Number(
        "relative_gap",
        "1",
        "1 - lower_bound / expected_runtime; null without a certificate.",
    ),
)
# Columns of the answers: numbers that `solve` gives, what a scheme needs, and some that
# are not in every sweep.
NEEDS = Requirements._fields
ANSWERED = (
    *("method", "status", *(number.name for number in NUMBERS)),
    *("kind", "bound_of", "num_steps"),
    *(*NEEDS, "saved", "completion_probability", "partition"),
)

# What compiling a size is worth, in cells · N^2.5: 5.5 s on two cores, where a cell
# takes 0.9 µs · N^2.5.
_COMPILATION = 6e6
# Cells · N² that a CPU takes at a time, half a second of optima: more would leave its
# caches, fewer would leave lanes of the optimum idle. An accelerator takes as many as
# half its memory holds.
_CACHED = 2**16


@dataclasses.dataclass(frozen=True, repr=False)
class Cells:
    """Named numbers of C problems: `columns` with an entry for each cell, or each value
    of an axis.

    With `product` the cells are all combinations of the axes.
    """

    columns: Mapping[str, np.ndarray]
    product: bool
    __repr__ = represent

    def __len__(self) -> int:
        sizes = [len(values) for values in self.columns.values()]
        if self.product:
            return math.prod(sizes)
        return sizes[0]

    def take(self, index: np.ndarray) -> Table:
        """The numbers of some cells, a column each."""
        if not self.product:
            return {name: values[index] for name, values in self.columns.items()}
        places = np.unravel_index(
            index, [len(values) for values in self.columns.values()]
        )
        place_of = dict(zip(self.columns, places, strict=True))
        return {name: values[place_of[name]] for name, values in self.columns.items()}


def grid(**axes: ArrayLike | Sequence[float]) -> Cells:
    r"""Return all combinations of numbers, `num_workers` slowest, then in the order
    given.

    >>> cells = grid(rate=[1e-3, 1e-2], num_workers=[4, 8], shift=50.0)
    >>> len(cells), cells.take(np.array([1]))
    (4, {'num_workers': array([4]), 'rate': array([0.01]), 'shift': array([50.])})
    """
    columns = {name: np.atleast_1d(np.asarray(values)) for name, values in axes.items()}
    if "num_workers" in columns:
        columns = {"num_workers": np.sort(columns.pop("num_workers"))} | columns
    return Cells(_checked(columns), True)


def as_cells(cells: Cells | Mapping[str, ArrayLike]) -> Cells:
    """Return a `grid` as it is, and columns `[C]` as cells, one after another."""
    if isinstance(cells, Cells):
        return cells
    columns = _checked({name: np.asarray(values) for name, values in cells.items()})
    if len({values.size for values in columns.values()}) > 1:
        raise ValueError(
            f"the columns of the cells must have one length, got {columns}"
        )
    return Cells(columns, False)


def _checked(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "num_workers" not in columns:
        raise ValueError("the cells of a sweep need num_workers")
    for name, values in columns.items():
        if name in (*ANSWERED, "max_workers"):
            rename = "call the number of the cells otherwise"
            raise ValueError(f"{name} is a column of the answers: {rename}")
        if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
            requirement = "numbers, at least one of them, in a row"
            raise ValueError(f"{name} must be {requirement}, got {values!r}")
        if values.dtype.kind in "iu" and np.any(
            values > jnp.iinfo(jnp.result_type(int)).max
        ):
            enable = "call jax.config.update('jax_enable_x64', True) first"
            raise ValueError(f"{name} needs 64 bits: {enable}")
    workers = columns["num_workers"]
    if not np.all((workers >= 1) & (workers == np.floor(workers))):
        raise ValueError(f"num_workers must be whole numbers from 1 on, got {workers}")
    return {**columns, "num_workers": workers.astype(int)}


class CellGroup(NamedTuple):
    """Cells padded to `max_workers`, by index; a `chunk` of them is solved at once."""

    max_workers: int
    cells: range | np.ndarray
    chunk: int


def groups_of(
    cells: Cells, devices: Sequence[jax.Device], *, apart: bool = False
) -> list[CellGroup]:
    """The cells by padded size: as many sizes as cost least, compilations and padding
    together.

    With `apart`, each number of workers is a size of its own.
    """
    workers = cells.columns["num_workers"]
    # 1 unless a grid, where num_workers varies slowest.
    repeats = len(cells) // len(workers)
    sizes, counts = np.unique(workers, return_counts=True)
    ends = np.r_[0, np.cumsum(counts) * repeats]
    # The best padding of the cells up to each size: that up to an earlier one, and one
    # size for the rest.
    costs = np.zeros(1)
    before = []
    compilation = _COMPILATION
    if apart:
        compilation = 0
    for i, size in enumerate(sizes):
        solving = (ends[i + 1] - ends[: i + 1]) * size**2.5
        of_each = costs + compilation + solving
        before.append(int(np.argmin(of_each)))
        costs = np.append(costs, of_each.min())
    bounds = [sizes.size]
    while bounds[0] > 0:
        bounds.insert(0, before[bounds[0] - 1])
    group_of = np.searchsorted(sizes[np.array(bounds[1:]) - 1], workers)
    order: range | np.ndarray = range(len(cells))
    if np.any(np.diff(group_of) < 0):
        order = np.argsort(group_of, kind="stable")
    groups = [
        (int(sizes[end - 1]), order[ends[start] : ends[end]])
        for start, end in itertools.pairwise(bounds)
    ]
    return [
        CellGroup(size, members, _chunk(size, len(members), devices))
        for size, members in groups
    ]


def _chunk(max_workers: int, cells: int, devices: Sequence[jax.Device]) -> int:
    """The number of cells that are solved together, as many on each device."""
    at_once = _CACHED
    # 4 kB a cell and pair of levels, all arrays together.
    if devices[0].platform != "cpu":
        at_once = (
            (devices[0].memory_stats() or {}).get("bytes_limit", 2**33) // 2 // 4096
        )
    largest = int(np.clip(at_once // max_workers**2, 1, 512)) * len(devices)
    return math.ceil(cells / math.ceil(cells / largest) / len(devices)) * len(devices)
