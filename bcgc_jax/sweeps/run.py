r"""Sweeps: thousands of problems solved together, and the answers on disk as they come.

Each group of cells has one compiled function, which solves a chunk of them with every method, spread over the
local devices. Each process of `jax.distributed` takes its share of the chunks. Memory does not grow with the
number of chunks.
"""

import dataclasses
import functools
import itertools
import math
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
      labels: columns of one text, first in every row, such as the name of the distribution.

    Chunks come by size, and within a size in the order of the cells. Rows have the numbers of the cell,
    `method`, `status` and what `solve` says of the continuous partition, which `completion_probability` is of
    too; `lower_bound` and `relative_gap` are NaN where there is no certificate. `stored_subsets`, `sent`,
    `round_trips` and `exact_gradient` are what the scheme `needs`, NaN and None where that is not known.

    Raises ValueError for an unknown method and for bad cells. A cell whose numbers make no problem has the
    status "invalid"; an infinite expected runtime and a search that stops early are a status too.
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
        more = ("completion_probability",) * self.has_deadline + ("partition",) * partitions
        # The columns of a row.
        self.names = (*self.labels, *self.cells.columns, "method", *NUMBERS, *NEEDS, *more)
        # Whether a method needs to know the number of workers before tracing.
        self.apart = any(method.fixed_workers for method in asked)
        self.groups = groups_of(self.cells, jax.local_devices(), apart=self.apart)
        group, largest = self.groups[-1], int(self.cells.columns["num_workers"].max())

        def check(cell: dict[str, Array]) -> None:
            """ValueError for a method that no cell can be solved with."""
            problem = self.problem(max_workers=group.max_workers, **cell | {"num_workers": largest})
            for method in asked:
                method.check(problem)

        jax.eval_shape(check, self.numbers_at(group.cells[0]))  # traced: whatever the numbers are

    def __repr__(self) -> str:
        return f"Sweep({self.cells!r}, {list(self.methods)}, in {len(self)} chunks)"

    def __len__(self) -> int:
        """The number of chunks."""
        return sum(math.ceil(len(group.cells) / group.chunk) for group in self.groups)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in the order of the file."""
        index = itertools.count()
        for group in self.groups:
            for start in range(0, len(group.cells), group.chunk):
                yield Chunk(next(index), np.asarray(group.cells[start : start + group.chunk]), group)

    def numbers_at(self, index: int) -> dict[str, Any]:
        """What `problem` is asked with for a cell."""
        cell = _of_problem(self.cells.take(np.array([index])))
        return {name: values[0] for name, values in cell.items()}

    def solve(self, chunk: Chunk) -> Table:
        """The rows of a chunk, a column each; `partition` is a list of integers for each row, or None."""
        cells, methods = self.cells.take(chunk.cells), list(self.methods)
        count = len(chunk.cells)
        valid = self._valid(cells, chunk.group.max_workers)
        found = self._found(chunk, cells, valid) if valid.any() else {}
        rows: Table = {
            name: np.full(count * len(methods), text, object) for name, text in self.labels.items()
        }
        rows |= {name: np.repeat(values, len(methods)) for name, values in cells.items()}
        rows["method"] = np.tile(np.array(methods, object), count)

        def column(name: str) -> np.ndarray:
            """In the rows' order, the methods of a cell after each other."""
            nothing = np.full(count, np.nan)
            values = [found[method][name][:count] if found else nothing for method in methods]
            return np.where(valid, values, np.nan).T.ravel()

        codes = np.nan_to_num(column("status"), nan=int(Status.INVALID)).astype(int)
        rows["status"] = np.array([Status(code).name.lower() for code in codes], object)
        for name in self.names:
            if name not in rows and name != "partition":
                rows[name] = column(name)
        rows["num_steps"] = np.nan_to_num(rows["num_steps"]).astype(int)
        certified = rows["lower_bound"] > 0  # 0 bounds any runtime: it is no certificate
        for name in ("lower_bound", "relative_gap"):
            rows[name] = np.where(certified, rows[name], np.nan)
        exact = rows["exact_gradient"].tolist()
        rows["exact_gradient"] = np.array([None if x != x else x == 1 for x in exact], object)
        if self.partitions:
            rows["partition"] = np.full(codes.size, None, object)
            for row in np.flatnonzero(~np.isin(codes, (Status.INFEASIBLE, Status.INVALID))):
                cell, method = divmod(row, len(methods))
                counts = found[methods[method]].get("partition")
                if counts is not None:
                    rows["partition"][row] = counts[cell][: cells["num_workers"][cell]].tolist()
        return {name: rows[name] for name in self.names}

    def _found(self, chunk: Chunk, cells: Table, valid: np.ndarray) -> dict[str, Table]:
        """The columns of each method; cells that make no sense are solved as one that does."""
        given = {name: np.where(valid, v, v[np.argmax(valid)]) for name, v in cells.items()}
        padded = np.minimum(np.arange(chunk.group.chunk), len(chunk.cells) - 1)
        inputs = {name: values[padded] for name, values in given.items()}, chunk.cells[padded]
        spread = jax.device_put(inputs, NamedSharding(self.mesh, PartitionSpec("cells")))
        found: dict[str, Table] = jax.device_get(self._compiled(chunk.group)(*spread, *self._given()))
        return found

    def _valid(self, cells: Table, max_workers: int) -> np.ndarray:
        """Whether the numbers of each cell make a problem: what is traced cannot be refused any more."""
        numbers = _of_problem(cells)
        valid = np.full(len(cells["num_workers"]), True)
        try:
            self.problem(max_workers=max_workers, **numbers)  # all at once, where its arithmetic permits
        except Exception:
            for i in range(valid.size):
                try:
                    self.problem(max_workers=max_workers, **{name: v[i] for name, v in numbers.items()})
                except ValueError:
                    valid[i] = False
        if self.has_deadline:
            valid &= np.isfinite(cells["deadline"]) & (cells["deadline"] > 0)
        return valid

    def _given(self) -> tuple[Array | None, dict[str, Method]]:
        """The key and the methods, whose numbers are no part of the program."""
        methods = jax.tree.map(jnp.asarray, self.methods)
        return jax.device_put((self.key, methods), NamedSharding(self.mesh, PartitionSpec()))

    def _compiled(self, group: CellGroup) -> Callable[..., dict[str, dict[str, Array]]]:
        """The compiled function of a group; that of the next one is compiled meanwhile, in a thread."""
        columns = tuple((name, values.dtype.str) for name, values in self.cells.columns.items())
        leaves, tree = jax.tree.flatten(self._given())
        given = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in leaves)
        asked = self.problem, self.apart, self.partitions, columns, given, tree, self.mesh
        place, x64 = self.groups.index(group), jnp.result_type(float) == jnp.float64
        soon = self.groups[place : place + 2]
        coming = [_compiling(*asked, one.max_workers, one.batch, one.chunk, x64) for one in soon]
        try:
            return coming[0].result()
        except BaseException:
            _compiling.cache_clear()  # keeps no failure
            raise


def _of_problem(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that `Sweep.problem` is asked with."""
    return {name: value for name, value in cell.items() if name != "deadline"}


@functools.lru_cache(maxsize=64)
def _compiling(
    problem_of: ProblemOf,
    apart: bool,
    partitions: bool,
    columns: tuple[tuple[str, str], ...],
    given: tuple[jax.ShapeDtypeStruct, ...],
    tree: jax.tree_util.PyTreeDef,
    mesh: Mesh,
    max_workers: int,
    batch: int,
    chunk: int,
    x64: bool,
) -> "Future[Callable[..., Any]]":
    """The function of a group, (cells, their indices, key, methods) to columns, compiled in a thread.

    All that it depends on is an argument: another sweep that asks for the same finds it.
    """
    cells, same = PartitionSpec("cells"), PartitionSpec()

    def of_device(columns: Table, index: Array, key: Array | None, methods: Any) -> dict[str, Table]:
        def one(cell: tuple[dict[str, Any], Array]) -> dict[str, dict[str, Array]]:
            numbers, index = cell
            if apart:
                numbers = numbers | {"num_workers": max_workers}
            problem = problem_of(max_workers=max_workers, **_of_problem(numbers))
            own = None if key is None else jax.random.fold_in(key, index)
            given = own, numbers.get("deadline"), partitions
            return {name: _solve(problem, method, *given) for name, method in methods.items()}

        return jax.lax.map(one, (columns, index), batch_size=batch)

    def column(dtype: str) -> jax.ShapeDtypeStruct:
        kind = jax.dtypes.canonicalize_dtype(dtype)
        return jax.ShapeDtypeStruct((chunk,), kind, sharding=NamedSharding(mesh, cells))

    def compile_() -> Callable[..., Any]:
        specs = cells, cells, same, same
        spread = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=cells, check_vma=False)
        with jax.enable_x64(x64):  # a setting of each thread
            shapes = {name: column(dtype) for name, dtype in columns}, column("int64")
            return jax.jit(spread).lower(*shapes, *jax.tree.unflatten(tree, given)).compile()

    thread = ThreadPoolExecutor(1)
    coming = thread.submit(compile_)
    thread.shutdown(wait=False)  # it ends with its work
    return coming


def _solve(
    problem: Problem, method: Method, key: Array | None, deadline: Array | None, partitions: bool
) -> dict[str, Array]:
    """The columns of a cell."""
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
    if partitions and solution.rounded is not None:
        columns["partition"] = solution.rounded
    return columns


def sweep(
    problem: ProblemOf, cells: Cells | Mapping[str, ArrayLike], methods: Methods = "optimal", **keywords: Any
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
