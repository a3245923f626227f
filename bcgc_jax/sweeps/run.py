r"""Sweeps: thousands of problems solved together, and the answers on disk as they come.

Each group of cells has one compiled function, which solves a chunk of them with every method, spread over the
local devices. Each process of `jax.distributed` takes its share of the chunks. Nothing is kept but the chunks
at hand: memory does not grow with their number.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.methods import Method, Methods, each_method, method_of
from bcgc_jax.solvers.solve import solve
from bcgc_jax.sweeps.cells import NEEDS, NUMBERS, CellGroup, Cells, Table, as_cells, groups_of

ProblemOf = Callable[..., Problem]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some cells of a group, by their indices, that are solved together."""

    index: int
    cells: np.ndarray
    group: CellGroup


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
    certificate. `stored_subsets`, `sent`, `round_trips` and `exact_gradient` are what the scheme `needs`, NaN
    and None where that is not known.

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
        self.cells = as_cells(cells)
        if key is not None:
            check_key(key)
        self.problem, self.key, self.partitions, self.labels = problem, key, partitions, labels or {}
        asked = [method_of(method) for method in dict.fromkeys(each_method(methods))]
        self.methods = {method.name: method for method in asked}
        self.has_deadline = "deadline" in self.cells.columns
        if not asked or len(self.methods) < len(asked):
            raise ValueError(f"a sweep needs methods, each of them once, got {[m.name for m in asked]}")
        if any(m.lacks_deadline for m in asked) and not self.has_deadline:
            raise ValueError('the method "deadline" needs deadlines: a column "deadline" of the cells')
        self.mesh = Mesh(np.array(jax.local_devices()), ("cells",))
        self.groups = groups_of(self.cells, jax.local_devices(), apart=self.apart)
        self._check_methods()

    @property
    def apart(self) -> bool:
        """Whether a method needs to know the number of workers before tracing."""
        return any(method.fixed_workers for method in self.methods.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of a row."""
        more = ("completion_probability",) * self.has_deadline + ("partition",) * self.partitions
        return (*self.labels, *self.cells.columns, "method", *NUMBERS, *NEEDS, *more)

    def __repr__(self) -> str:
        return f"Sweep({self.cells!r}, {list(self.methods)}, in {len(self)} chunks)"

    def __len__(self) -> int:
        """The number of chunks."""
        return sum(-(-group.size // group.chunk) for group in self.groups)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in the order of the file."""
        every = ((cells, group) for group in self.groups for cells in group.chunks())
        for index, (cells, group) in enumerate(every):
            yield Chunk(index, cells, group)

    def problem_at(self, group: CellGroup, place: int) -> Problem:
        """That of a cell of a group; ValueError where its numbers make none."""
        cell = {name: values[0] for name, values in self.cells.take(group.take(place, place + 1)).items()}
        return self.problem(max_workers=group.max_workers, **_of_problem(cell))

    def solve(self, chunk: Chunk) -> Table:
        """The rows of a chunk, a column each; `partition` is a list of integers for each row, or None."""
        cells = self.cells.take(chunk.cells)
        shape = len(chunk.cells), len(self.methods)
        valid = self._valid(cells, chunk.group.max_workers)
        host = self._found(chunk, cells, valid) if valid.any() else {}
        rows: Table = {name: np.full(shape, text, object).ravel() for name, text in self.labels.items()}
        rows |= {name: np.repeat(values, len(self.methods)) for name, values in cells.items()}
        rows["method"] = np.tile(np.array(list(self.methods), object), shape[0])

        def column(name: str) -> np.ndarray:
            """In the rows' order, the methods of a cell after each other: `[cells, methods]`."""
            if not host:
                return np.full(shape, np.nan)
            found = np.stack([host[method][name][: shape[0]] for method in self.methods], axis=1)
            return np.where(valid[:, None], found, np.nan)

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

    def _found(self, chunk: Chunk, cells: Table, valid: np.ndarray) -> dict[str, Table]:
        """The columns of each method; cells that make no sense are solved as one that does."""
        given = {name: np.where(valid, v, v[np.argmax(valid)]) for name, v in cells.items()}
        padded = np.minimum(np.arange(chunk.group.chunk), len(chunk.cells) - 1)
        inputs = {name: values[padded] for name, values in given.items()}, chunk.cells[padded]
        spread = jax.device_put(inputs, NamedSharding(self.mesh, PartitionSpec("cells")))
        found: dict[str, Table] = jax.device_get(self._compiled(chunk.group)(*spread, *self._given()))
        return found

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
        numbers, count = _of_problem(cells), len(cells["num_workers"])

        def makes_sense(i: int) -> bool:
            try:
                self.problem(max_workers=max_workers, **{name: values[i] for name, values in numbers.items()})
            except ValueError:
                return False
            return True

        try:
            self.problem(max_workers=max_workers, **numbers)  # all at once, where its arithmetic permits
        except Exception:
            valid = np.array([makes_sense(i) for i in range(count)])
        else:
            valid = np.full(count, True)
        if self.has_deadline:
            valid &= np.isfinite(cells["deadline"]) & (cells["deadline"] > 0)
        return valid

    def _check_methods(self) -> None:
        """ValueError for a method that no cell can be solved with."""
        group, largest = self.groups[-1], int(self.cells.columns["num_workers"].max())
        cell = _of_problem({name: values[0] for name, values in self.cells.take(group.take(0, 1)).items()})
        del cell["num_workers"]

        def names(cell: dict[str, Array]) -> None:
            problem = self.problem(max_workers=group.max_workers, num_workers=largest, **cell)
            for method in self.methods.values():
                method.check(problem)

        jax.eval_shape(names, cell)  # traced: whatever the numbers are

    def _given(self) -> tuple[Array | None, dict[str, Method]]:
        """The key and the methods, whose numbers are no part of the program."""
        methods = jax.tree.map(jnp.asarray, self.methods)
        return jax.device_put((self.key, methods), NamedSharding(self.mesh, PartitionSpec()))

    def _compiled(self, group: CellGroup) -> Callable[..., dict[str, dict[str, Array]]]:
        """The compiled function of a group; that of the next one is compiled meanwhile, in a thread."""
        place = self.groups.index(group)
        coming = [self._start_compiling(one) for one in self.groups[place : place + 2]]
        try:
            return coming[0].result()
        except BaseException:
            _compiling.cache_clear()  # keeps no failure
            raise

    def _start_compiling(self, group: CellGroup) -> "Future[Callable[..., Any]]":
        types = tuple((name, values.dtype.str) for name, values in self.cells.columns.items())
        leaves, tree = jax.tree.flatten(self._given())
        given = tree, tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in leaves)
        x64 = jnp.result_type(float) == jnp.float64
        return _compiling(self.program(group), group.chunk, types, given, x64)

    def program(self, group: CellGroup) -> "SweepProgram":
        """What is compiled for a group."""
        methods = jax.tree.structure(self.methods)
        size = group.max_workers, self.apart, group.batch
        return SweepProgram(self.problem, methods, self.has_deadline, self.partitions, *size, self.mesh)


def _of_problem(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that `Sweep.problem` is asked with."""
    return {name: value for name, value in cell.items() if name != "deadline"}


@dataclasses.dataclass(frozen=True)
class SweepProgram:
    """What a sweep compiles for a size, by its values: another sweep that asks for the same finds it."""

    problem: ProblemOf
    methods: jax.tree_util.PyTreeDef
    has_deadline: bool
    partitions: bool
    max_workers: int
    apart: bool
    batch: int
    mesh: Mesh

    def function(self) -> jax.stages.Wrapped:
        """Cells, their indices, the key and the methods to the columns of each method."""
        cells, same = PartitionSpec("cells"), PartitionSpec()

        def local(columns: Table, index: Array, key: Array | None, methods: Any) -> dict[str, Table]:
            def one(cell: tuple[dict[str, Any], Array]) -> dict[str, dict[str, Array]]:
                numbers, index = cell
                if self.apart:
                    numbers = numbers | {"num_workers": self.max_workers}
                problem = self.problem(max_workers=self.max_workers, **_of_problem(numbers))
                own = None if key is None else jax.random.fold_in(key, index)
                deadline = numbers.get("deadline")
                return {name: self._solve(problem, method, own, deadline) for name, method in methods.items()}

            return jax.lax.map(one, (columns, index), batch_size=self.batch)

        return jax.jit(
            jax.shard_map(
                local, mesh=self.mesh, in_specs=(cells, cells, same, same), out_specs=cells, check_vma=False
            )
        )

    def _solve(
        self, problem: Problem, method: Method, key: Array | None, deadline: Array | None
    ) -> dict[str, Array]:
        solution = solve(problem, method.with_deadline(deadline), key=key)
        columns = {name: getattr(solution, name) for name in NUMBERS}
        unknown = jnp.full_like(solution.expected_runtime, jnp.nan)
        infeasible = solution.status == int(Status.INFEASIBLE)
        missing = infeasible | (solution.status == int(Status.INVALID))
        needs = dict.fromkeys(NEEDS, unknown) if solution.needs is None else solution.needs._asdict()
        columns |= {name: jnp.where(missing, unknown, value) for name, value in needs.items()}
        if deadline is not None:
            chance = unknown
            if solution.partition is not None:
                chance = completion_probability(problem, solution.partition, deadline)
            columns["completion_probability"] = jnp.where(infeasible, unknown, chance)
        if self.partitions and solution.rounded is not None:
            columns["partition"] = solution.rounded
        return columns


@functools.lru_cache(maxsize=64)
def _compiling(
    program: SweepProgram, size: int, types: tuple[tuple[str, str], ...], given: Any, x64: bool
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


def sweep(
    problem: ProblemOf,
    cells: Cells | Mapping[str, ArrayLike],
    methods: Methods = "optimal",
    **keywords: Any,
) -> Table:
    r"""Solve many problems together; the columns of the rows (cell, method), see `Sweep`.

    For more than fits in memory, and to go on where a sweep was cut off, see `write_sweep`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> from bcgc_jax.sweeps import grid
    >>> def problem(num_workers, rate, max_workers):
    ...     return Problem(ShiftedExponential(rate, 50.0), num_workers, 20_000, 50, max_workers=max_workers)
    >>> rows = sweep(problem, grid(num_workers=[2, 3], rate=[1e-3, 1e-2]), ["time", "uncoded"])
    >>> rows["method"].tolist()[:2], rows["expected_runtime"].shape
    (['time', 'uncoded'], (8,))
    """
    plan = Sweep(problem, cells, methods, **keywords)
    tables = [plan.solve(chunk) for chunk in plan.chunks()]
    return {name: np.concatenate([table[name] for table in tables]) for name in plan.names}
