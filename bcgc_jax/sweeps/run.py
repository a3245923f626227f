r"""Sweeps: thousands of problems solved together, and the answers on disk as they come.

Cells are grouped by the number of workers: a cell costs O(N²) to O(N³), so padding all of them to the largest
N may waste most of the work, and every size costs a compilation. Each group has one compiled function, which
solves a chunk of cells with every method, spread over the local devices. Each process of `jax.distributed`
takes its share of the chunks. Nothing is kept but the chunks at hand: memory does not grow with their number.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, show
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Needs, Solution
from bcgc_jax.solvers.methods import Method, Methods, each_method, method_of
from bcgc_jax.solvers.solve import solve

ProblemOf = Callable[..., Problem]
Table = dict[str, np.ndarray]

# Sizes that partitions may be padded to, 1.25 apart.
_LADDER = (1, 3, 5, 8, 12, 15, 19, 24, 30)
# What compiling a size is worth, in cells · N^2.5: 5.5 s on two cores, where a cell of the optimum and of a
# baseline takes 0.9 µs · N^2.5 (16 ms at N = 50, 5 ms at N = 30; measured together).
_COMPILATION = 6e6
# What a chunk takes at most, in cells · N²: 1 or 2 s for the optimum on two CPU cores.
_CHUNK = 2**19
# Entries, in cells · N², that a CPU takes at a time: more would leave its caches, fewer would leave lanes of
# the optimum idle. On an accelerator the memory counts: bytes a cell and pair of levels, all arrays together.
_CACHED, _BYTES = 2**16, 4096


_NUMBERS = ("status", "expected_runtime", "runtime_error", "lower_bound", "relative_gap", "num_steps")
# What a scheme needs, the last of them yes or no; NaN and None where that is not known.
_NEEDS = Needs._fields
_RESERVED = (*_NUMBERS, *_NEEDS, "method", "completion_probability", "partition", "max_workers")


@dataclasses.dataclass(frozen=True, repr=False)
class Cells:
    """Named numbers of C problems: `columns` of one entry a cell, or of one an axis for all combinations."""

    columns: Mapping[str, np.ndarray]
    product: bool

    def __len__(self) -> int:
        sizes = [len(values) for values in self.columns.values()]
        return math.prod(sizes) if self.product else sizes[0]

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}={show(values)}" for name, values in self.columns.items())
        return f"Cells({len(self)} {'combinations' if self.product else 'rows'} of {columns})"

    def take(self, index: np.ndarray) -> Table:
        """The numbers of some cells, a column each."""
        if not self.product:
            return {name: values[index] for name, values in self.columns.items()}
        places = np.unravel_index(index, [len(values) for values in self.columns.values()])
        return {name: values[i] for (name, values), i in zip(self.columns.items(), places, strict=True)}


def grid(**axes: ArrayLike | Sequence[float]) -> Cells:
    r"""All combinations of numbers, `num_workers` slowest, then in the order given.

    >>> cells = grid(rate=[1e-3, 1e-2], num_workers=[4, 8], shift=50.0)
    >>> len(cells), cells.take(np.array([1]))
    (4, {'num_workers': array([4]), 'rate': array([0.01]), 'shift': array([50.])})
    """
    columns = {name: np.atleast_1d(np.asarray(values)) for name, values in axes.items()}
    if "num_workers" in columns:
        columns = {"num_workers": np.sort(columns.pop("num_workers"))} | columns
    return Cells(_checked(columns), True)


def _checked(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "num_workers" not in columns:
        raise ValueError("the cells of a sweep need num_workers")
    for name, values in columns.items():
        if name in _RESERVED:
            raise ValueError(f"{name} is a column of the answers: call the number of the cells otherwise")
        if values.ndim != 1 or not values.size:
            raise ValueError(f"{name} must be a number or a row of numbers, at least one, got {values!r}")
        if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
            raise ValueError(f"{name} must be numbers, got {values.dtype}")
    workers = columns["num_workers"]
    if not np.all((workers >= 1) & (workers == np.floor(workers))):
        raise ValueError(f"num_workers must be whole numbers from 1 on, got {workers}")
    return {**columns, "num_workers": workers.astype(int)}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some cells, by their indices, that are solved together, padded to `max_workers`."""

    index: int
    cells: np.ndarray
    max_workers: int


class Sweep:
    r"""What a sweep computes: rows of (cell, method), in chunks that any process can solve on its own.

    Args:
      problem: (max_workers=…, **cell) to a `Problem`, of traced numbers; `max_workers` is static.
      cells: of `grid`, or a mapping of columns `[C]`; each has `num_workers`, and maybe `deadline`, which is
        not passed to `problem`.
      methods: for `solve`, by name or with options; "deadline" takes the cells' own.
      key: for methods that draw; cell i draws with `fold_in(key, i)`.
      partitions: also give the rounded partitions.
      labels: columns of one text, first in every row, such as the name of the law.

    Chunks come by size, and within a size in the order of the cells: for a `grid` in its own order. Rows have
    the numbers of the cell, `method`, `status` and what `solve` says of the continuous partition, which is
    also what a `completion_probability` is of; `lower_bound` and `relative_gap` are NaN where there is no
    certificate. `stored_subsets`, `sent`, `round_trips` and `exact_gradient` are what the scheme `needs`.

    Raises ValueError for an unknown method and for cells that are none. A cell whose numbers make no
    sense has the status "invalid"; an expected runtime that is infinite and a search that stops early are a
    status too, and all other cells are solved.
    """

    def __init__(
        self,
        problem: ProblemOf,
        cells: Cells | Mapping[str, ArrayLike],
        methods: Methods = "optimal",
        *,
        key: Array | None = None,
        partitions: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(cells, Cells):
            columns = {name: np.asarray(values) for name, values in cells.items()}
            if len({values.shape for values in columns.values()}) > 1:
                shapes = {name: values.shape for name, values in columns.items()}
                raise ValueError(f"the columns of the cells must have one length, got {shapes}")
            cells = Cells(_checked(columns), False)
        if key is not None:
            check_key(key)
        self.problem, self.cells, self.key, self.partitions = problem, cells, key, partitions
        self.labels = labels or {}
        asked = [method_of(method) for method in dict.fromkeys(each_method(methods))]
        self.methods = {method.name: method for method in asked}
        self.has_deadline = "deadline" in cells.columns
        if not asked or len(self.methods) < len(asked):
            raise ValueError(f"a sweep needs methods, each of them once, got {[m.name for m in asked]}")
        if any(m.lacks_deadline for m in asked) and not self.has_deadline:
            raise ValueError('the method "deadline" needs deadlines: a column "deadline" of the cells')
        self.groups = _groups(cells)
        self.mesh = Mesh(np.array(jax.local_devices()), ("cells",))
        self._check_methods()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of a row."""
        names = [*self.labels, *self.cells.columns, "method", *_NUMBERS, *_NEEDS]
        names += ["completion_probability"] if self.has_deadline else []
        return (*names, "partition") if self.partitions else tuple(names)

    def __repr__(self) -> str:
        return f"Sweep({self.cells!r}, {list(self.methods)}, in {len(self)} chunks)"

    def __len__(self) -> int:
        """The number of chunks."""
        return sum(-(-group.size // self._chunk_size(group.max_workers)) for group in self.groups)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in the order of the file."""
        index = 0
        for group in self.groups:
            size = self._chunk_size(group.max_workers)
            for start in range(0, group.size, size):
                yield Chunk(index, group.take(start, min(start + size, group.size)), group.max_workers)
                index += 1

    def solve(self, chunk: Chunk) -> Table:
        """The rows of a chunk, a column each; `partition` is a list of integers for each row, or None."""
        count = len(chunk.cells)
        cells = self.cells.take(chunk.cells)
        valid = self._valid(cells, chunk.max_workers)
        inputs = cells
        if not valid.all():  # they are solved as a cell that makes sense, if there is one
            inputs = {name: np.where(valid, v, v[np.argmax(valid)]) for name, v in cells.items()}
        padded = np.minimum(np.arange(self._chunk_size(chunk.max_workers)), count - 1)
        inputs = {name: values[padded] for name, values in inputs.items()}
        host: dict[str, dict[str, np.ndarray]] = {}
        if valid.any():
            spread = NamedSharding(self.mesh, PartitionSpec("cells"))
            inputs, index = jax.device_put((inputs, chunk.cells[padded]), spread)
            host = jax.device_get(self._compiled(chunk)(inputs, index, *self._given()))
        rows: Table = {name: np.repeat(values, len(self.methods)) for name, values in cells.items()}
        rows |= {name: np.full(count * len(self.methods), text, object) for name, text in self.labels.items()}
        rows["method"] = np.tile(np.array(list(self.methods), object), count)

        def column(name: str) -> np.ndarray:
            """In the rows' order, the methods of a cell after each other: `[cells, methods]`."""
            if not host:
                return np.full((count, len(self.methods)), np.nan)
            return np.where(
                valid[:, None], np.stack([host[m][name][:count] for m in self.methods], axis=1), np.nan
            )

        status = np.nan_to_num(column("status"), nan=int(Status.INVALID)).astype(int)
        rows["status"] = np.array([Status(code).name.lower() for code in status.ravel()], object)
        for name in self.names:
            if name == "partition":
                rows[name] = self._partitions(host, cells["num_workers"], status)
            elif name not in rows:
                rows[name] = column(name).ravel()
        rows["num_steps"] = np.nan_to_num(rows["num_steps"]).astype(int)
        certified = rows["lower_bound"] > 0  # 0 bounds any runtime: it is no certificate
        for name in ("lower_bound", "relative_gap"):
            rows[name] = np.where(certified, rows[name], np.nan)
        exact = rows["exact_gradient"].tolist()
        rows["exact_gradient"] = np.array([None if x != x else x == 1 for x in exact], object)
        return {name: rows[name] for name in self.names}

    def _partitions(
        self, host: Mapping[str, Mapping[str, Any]], workers: np.ndarray, status: np.ndarray
    ) -> np.ndarray:
        rows = np.full(status.shape, None, object)
        for j, method in enumerate(self.methods):
            counts = host.get(method, {}).get("partition")
            for i, n in enumerate(workers):
                if counts is not None and status[i, j] not in (Status.INFEASIBLE, Status.INVALID):
                    rows[i, j] = np.asarray(counts[i][:n]).tolist()
        return rows.ravel()

    def _valid(self, cells: Table, max_workers: int) -> np.ndarray:
        """Whether the numbers of each cell make a problem: what is traced cannot be refused any more."""
        numbers = {name: values for name, values in cells.items() if name != "deadline"}
        deadlines = np.isfinite(cells["deadline"]) & (cells["deadline"] > 0) if self.has_deadline else True
        count = len(cells["num_workers"])
        try:
            self.problem(max_workers=max_workers, **numbers)  # all at once, where its arithmetic permits
        except Exception:
            return np.array([self._makes_sense(numbers, i, max_workers) for i in range(count)]) & deadlines
        return np.full(count, True) & deadlines

    def _makes_sense(self, numbers: Table, i: int, max_workers: int) -> bool:
        try:
            self.problem(max_workers=max_workers, **{name: values[i] for name, values in numbers.items()})
        except ValueError:
            return False
        return True

    def _check_methods(self) -> None:
        """ValueError for a method that no cell can be solved with."""
        group, largest = self.groups[-1], int(self.cells.columns["num_workers"].max())
        cell = {k: v[0] for k, v in self.cells.take(group.take(0, 1)).items() if k != "deadline"}
        del cell["num_workers"]

        def names(cell: dict[str, Array]) -> None:
            problem = self.problem(max_workers=group.max_workers, num_workers=largest, **cell)
            for method in self.methods.values():
                method.check(problem)

        jax.eval_shape(names, cell)  # traced: whatever the numbers are

    def _largest_batch(self, max_workers: int) -> int:
        """Cells that a device takes at a time, at most."""
        device = self.mesh.devices.flat[0]
        if device.platform == "cpu":
            return int(np.clip(_CACHED // max_workers**2, 1, 256))
        memory = (device.memory_stats() or {}).get("bytes_limit", 2**33)
        return int(np.clip(memory // 2 // (_BYTES * max_workers**2), 1, 2**14))

    def _layout(self, max_workers: int) -> tuple[int, int]:
        """Cells that a device takes at a time, and how often for a chunk: alike for all of a group, and such
        that its last chunk is nearly full.
        """
        cells, largest = self._group(max_workers).size, self._largest_batch(max_workers)
        chunks = -(-cells // max(largest * self.mesh.size, min(_CHUNK // max_workers**2, 4096)))
        share = -(-cells // (chunks * self.mesh.size))
        rounds = -(-share // largest)
        return -(-share // rounds), rounds

    def _batch(self, max_workers: int) -> int:
        return self._layout(max_workers)[0]

    def _chunk_size(self, max_workers: int) -> int:
        return math.prod(self._layout(max_workers)) * self.mesh.size

    def _group(self, max_workers: int) -> "_Group":
        return next(group for group in self.groups if group.max_workers == max_workers)

    def _given(self) -> tuple[Array | None, dict[str, Method]]:
        """The key and the methods, whose numbers are no part of the program."""
        methods = jax.tree.map(jnp.asarray, self.methods)
        return jax.device_put((self.key, methods), NamedSharding(self.mesh, PartitionSpec()))

    def _compiled(self, chunk: Chunk) -> Callable[..., dict[str, dict[str, Array]]]:
        """The compiled function of a chunk; that of the next size is compiled meanwhile, in a thread."""
        x64 = jnp.result_type(float) == jnp.float64
        sizes = [group.max_workers for group in self.groups]
        place = sizes.index(chunk.max_workers)
        coming = [self._start_compiling(size, x64) for size in sizes[place : place + 2]]
        try:
            return coming[0].result()
        except BaseException:
            _compiling.cache_clear()  # keeps no failure
            raise

    def _start_compiling(self, max_workers: int, x64: bool) -> "Future[Callable[..., Any]]":
        types = {name: values.dtype.str for name, values in self.cells.columns.items()}
        leaves, tree = jax.tree.flatten(self._given())
        given = tree, tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in leaves)
        return _compiling(
            self.program(max_workers), self._chunk_size(max_workers), tuple(types.items()), given, x64
        )

    def program(self, max_workers: int) -> "Program":
        """What is compiled for a size."""
        return Program(
            self.problem,
            jax.tree.structure(self.methods),
            self.has_deadline,
            self.partitions,
            max_workers,
            self._batch(max_workers),
            self.mesh,
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """What a sweep compiles for a size, by its values: another sweep that asks for the same finds it."""

    problem: ProblemOf
    methods: jax.tree_util.PyTreeDef
    has_deadline: bool
    partitions: bool
    max_workers: int
    batch: int
    mesh: Mesh

    def function(self) -> jax.stages.Wrapped:
        """Cells, their indices, the key and the methods to the columns of each method."""
        cells, same = PartitionSpec("cells"), PartitionSpec()

        def local(columns: Table, index: Array, key: Array | None, methods: Any) -> dict[str, Table]:
            def one(cell: tuple[dict[str, Array], Array]) -> dict[str, dict[str, Array]]:
                numbers, index = dict(cell[0]), cell[1]
                deadline = numbers.pop("deadline", None)
                problem = self.problem(max_workers=self.max_workers, **numbers)
                own = None if key is None else jax.random.fold_in(key, index)
                return {name: self._solve(problem, method, own, deadline) for name, method in methods.items()}

            return jax.lax.map(one, (columns, index), batch_size=self.batch)

        return jax.jit(
            jax.shard_map(
                local, mesh=self.mesh, in_specs=(cells, cells, same, same), out_specs=cells, check_vma=False
            )
        )

    def _solve(
        self,
        problem: Problem,
        method: Method,
        key: Array | None,
        deadline: Array | None,
    ) -> dict[str, Array]:
        solution: Solution = solve(problem, method.with_deadline(deadline), key=key)
        columns = {name: getattr(solution, name) for name in _NUMBERS} | _needs_of(solution)
        if self.has_deadline:
            assert deadline is not None
            late = jnp.full_like(solution.expected_runtime, jnp.nan)
            if solution.partition is not None:
                late = completion_probability(problem, solution.partition, deadline)
                late = jnp.where(solution.status == int(Status.INFEASIBLE), jnp.nan, late)
            columns["completion_probability"] = late
        if self.partitions and solution.rounded is not None:
            columns["partition"] = solution.rounded
        return columns


def _needs_of(solution: Solution) -> dict[str, Array]:
    known, unknown = solution.needs, jnp.full_like(solution.expected_runtime, jnp.nan)
    if known is None:
        return dict.fromkeys(_NEEDS, unknown)
    exists = (solution.status != int(Status.INFEASIBLE)) & (solution.status != int(Status.INVALID))
    return {name: jnp.where(exists, value, unknown) for name, value in known._asdict().items()}


@functools.lru_cache(maxsize=64)
def _compiling(
    program: Program, size: int, types: tuple[tuple[str, str], ...], given: Any, x64: bool
) -> "Future[Callable[..., Any]]":
    """The function of a program for chunks of `size`, compiled in a thread."""
    sharding = NamedSharding(program.mesh, PartitionSpec("cells"))

    def column(dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), jax.dtypes.canonicalize_dtype(dtype), sharding=sharding)

    def compile_() -> Callable[..., Any]:
        with jax.enable_x64(x64):  # a setting of each thread
            columns = {name: column(dtype) for name, dtype in types}
            key, numbers = jax.tree.unflatten(*given)
            return program.function().lower(columns, column("int64"), key, numbers).compile()

    thread = ThreadPoolExecutor(1)
    coming = thread.submit(compile_)
    thread.shutdown(wait=False)  # it ends with its work
    return coming


@dataclasses.dataclass(frozen=True)
class _Group:
    """Cells of one padded size: those of `order`, or a run of consecutive ones."""

    max_workers: int
    size: int
    start: int
    order: np.ndarray | None

    def take(self, start: int, stop: int) -> np.ndarray:
        if self.order is None:
            return np.arange(self.start + start, self.start + stop)
        return self.order[self.start + start : self.start + stop]


def _groups(cells: Cells) -> list[_Group]:
    """The cells by padded size: as many sizes as cost least, compilations and padding together."""
    workers = cells.columns["num_workers"]
    repeats = len(cells) // len(workers)  # 1 unless a grid, where num_workers varies slowest
    ladder = list(_LADDER)
    while ladder[-1] < workers.max():
        ladder.append(math.ceil(1.23 * ladder[-1]))
    place = np.searchsorted(ladder, workers)
    steps = np.unique(place)
    tops = [int(workers[place == step].max()) for step in steps]
    ends = [int(np.sum(place <= step)) * repeats for step in steps]
    # The best sizes for the cells up to each step: those up to an earlier one, and one size for the rest.
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for last, top in enumerate(tops):
        starts = [0, *ends[:last]]
        costs = [
            best[i][0] + _COMPILATION + (ends[last] - start) * top**2.5 for i, start in enumerate(starts)
        ]
        cheapest = int(np.argmin(costs))
        best.append((costs[cheapest], [*best[cheapest][1], last]))
    chosen = best[-1][1]
    order = None
    group_of = np.searchsorted(steps[chosen], place)
    if not cells.product and np.any(np.diff(group_of) < 0):
        order = np.argsort(group_of, kind="stable")
    starts = [0, *(ends[i] for i in chosen[:-1])]
    return [_Group(tops[i], ends[i] - start, start, order) for i, start in zip(chosen, starts, strict=True)]


def sweep(
    problem: ProblemOf,
    cells: Cells | Mapping[str, ArrayLike],
    methods: Methods = "optimal",
    **keywords: Any,
) -> Table:
    r"""Solve many problems together; the columns of the rows (cell, method), see `Sweep`.

    For more than fits in memory, and to go on where a sweep was cut off, see `write_sweep`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> def problem(num_workers, rate, max_workers):
    ...     return Problem(ShiftedExponential(rate, 50.0), num_workers, 20_000, 50, max_workers=max_workers)
    >>> rows = sweep(problem, grid(num_workers=[2, 3], rate=[1e-3, 1e-2]), ["time", "uncoded"])
    >>> rows["method"].tolist()[:2], rows["expected_runtime"].shape
    (['time', 'uncoded'], (8,))
    """
    plan = Sweep(problem, cells, methods, **keywords)
    tables = [plan.solve(chunk) for chunk in plan.chunks()]
    return {name: np.concatenate([table[name] for table in tables]) for name in plan.names}
