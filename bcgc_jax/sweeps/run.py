r"""Sweeps: thousands of problems solved together, and the answers as they come.

Each group of cells has one compiled function, which solves a chunk of them with every
method, spread over the local devices. Memory does not grow with the number of chunks.
"""

import functools
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

from bcgc_jax._pytree import check_key, meets, replace
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import KINDS
from bcgc_jax.solvers.methods import Method, Methods, each_method, method_of
from bcgc_jax.solvers.solve import solve
from bcgc_jax.sweeps.cells import (
    ANSWERED,
    NEEDS,
    NUMBERS,
    CellGroup,
    Cells,
    Table,
    as_cells,
    groups_of,
)

# How inputs of a chunk's function lie on the devices: cells are shared out, the rest is
# the same for all.
_CELLS = PartitionSpec("cells")
_SAME = PartitionSpec()
_BOUNDS = ("levels", "groups", "storage")


class Sweep:
    r"""What a sweep computes: rows of (cell, method), chunk by chunk.

    Args:
      problem: (max_workers=…, **cell) to a `Problem`, of traced numbers; `max_workers`
        is static.
      cells: of `grid`, or a mapping of columns `[C]`; each has `num_workers`, and maybe
        `deadline`, which is not passed to `problem`.
      methods: for `solve`, by name or with options; "deadline" takes the cells' own.
      key: for methods that draw; cell i draws with `fold_in(key, i)`.
      partitions: also give the rounded partitions.
      labels: columns of one text, first in every row, such as the name of the
        distribution.

    Chunks come by size, and within a size in the order of the cells. Rows have the
    numbers of the cell, `method`, `status` and what `solve` says of the continuous
    partition, which `completion_probability` is of too; `lower_bound` and
    `relative_gap` are NaN where there is no certificate. `kind` and `bound_of` say what
    that is of, as in a `Solution`; the latter may be None. `stored_subsets`, `sent`,
    `round_trips`, `exact_gradient` and `lost` are what the scheme `needs`, NaN and None
    where that is not known. With "uncoded" among the methods `saved` is how much less
    time than that a scheme takes for a sample that is used, as a share of it. A cell
    whose numbers make no problem has the status "invalid".

    Raises ValueError for an unknown method and for bad cells.
    """

    def __init__(
        self,
        problem: Callable[..., Problem],
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
        self.problem = problem
        self.key = key
        self.partitions = partitions
        self.labels = labels or {}
        asked = [method_of(method) for method in dict.fromkeys(each_method(methods))]
        self.methods = {method.name: method for method in asked}
        has_deadline = "deadline" in self.cells.columns
        if not asked or len(self.methods) < len(asked):
            names = [method.name for method in asked]
            raise ValueError(f"a sweep needs methods, each of them once, got {names}")
        if any(method.lacks_deadline for method in asked) and not has_deadline:
            column = 'a column "deadline" of the cells'
            raise ValueError(f'the method "deadline" needs deadlines: {column}')
        self.mesh = Mesh(np.array(jax.local_devices()), ("cells",))
        not_in_every_sweep = {
            "saved": "uncoded" in self.methods,
            "completion_probability": has_deadline,
            "partition": partitions,
        }
        answered = [name for name in ANSWERED if not_in_every_sweep.get(name, True)]
        self.names = (*self.labels, *self.cells.columns, *answered)
        self.apart = any(method.fixed_workers for method in asked)
        self.groups = groups_of(self.cells, jax.local_devices(), apart=self.apart)
        self._programs: dict[int, Future[Callable[..., Table]]] = {}
        first = self.numbers_at(self.groups[-1].cells[0])
        jax.eval_shape(self._check, first)  # traced: whatever the numbers are

    def _check(self, cell: dict[str, Array]) -> None:
        """Raise ValueError for a method that no cell can be solved with."""
        largest = int(self.cells.columns["num_workers"].max())
        numbers = {**cell, "num_workers": largest}
        problem = self.problem(max_workers=self.groups[-1].max_workers, **numbers)
        for method in self.methods.values():
            method.check(problem)

    def __len__(self) -> int:
        """The number of chunks."""
        return sum(math.ceil(len(group.cells) / group.chunk) for group in self.groups)

    def chunks(self) -> Iterator[CellGroup]:
        """Yield all chunks, groups of few cells, in the order of the file."""
        for group in self.groups:
            for start in range(0, len(group.cells), group.chunk):
                yield group._replace(cells=group.cells[start : start + group.chunk])

    def numbers_at(self, index: int) -> dict[str, Any]:
        """What `problem` is asked with for a cell."""
        cell = self.cells.take(np.array([index]))
        return {name: values[0] for name, values in cell.items() if name != "deadline"}

    def solve(self, chunk: CellGroup) -> Table:
        """Return a chunk's rows by column; `partition` has integer lists, or None."""
        answers = jax.device_get(self._program(chunk.max_workers)(*self._inputs(chunk)))
        cells = self.cells.take(np.asarray(chunk.cells))
        methods = list(self.methods)
        size = len(chunk.cells) * len(methods)
        rows: Table = {
            name: np.full(size, text, object) for name, text in self.labels.items()
        }
        rows |= {
            name: np.repeat(values, len(methods)) for name, values in cells.items()
        }
        rows["method"] = np.tile(np.array(methods, object), len(chunk.cells))
        # The methods of a cell after each other.
        for name, values in answers.items():
            rows[name] = values.reshape(-1, *values.shape[2:])[:size]
        if "uncoded" in self.methods:
            rows["saved"] = self._saved(rows)
        names = np.array([status.name.lower() for status in Status], object)
        rows["status"] = names[rows["status"]]
        rows["kind"] = np.array(KINDS, object)[rows["kind"]]
        rows["bound_of"] = np.array([*_BOUNDS, None], object)[rows["bound_of"]]
        exact = [
            None if np.isnan(flag) else bool(flag)
            for flag in rows["exact_gradient"].tolist()
        ]
        rows["exact_gradient"] = np.array(exact, object)
        if self.partitions:
            counts = rows["partition"]
            rows["partition"] = np.full(size, None, object)
            for row in np.flatnonzero(
                (counts[:, 0] >= 0) & ~np.isnan(rows["expected_runtime"])
            ):
                rows["partition"][row] = counts[
                    row, : rows["num_workers"][row]
                ].tolist()
        return {name: rows[name] for name in self.names}

    def _saved(self, rows: Table) -> np.ndarray:
        """Return the share of the uncoded time that is saved, for samples used."""
        methods = list(self.methods)
        runtime = rows["expected_runtime"] / (1 - np.nan_to_num(rows["lost"]))
        uncoded = np.repeat(
            runtime[methods.index("uncoded") :: len(methods)], len(methods)
        )
        finite = np.isfinite(runtime) & np.isfinite(uncoded)
        return np.where(finite, 1 - runtime / np.where(finite, uncoded, 1), np.nan)

    def _inputs(self, group: CellGroup) -> tuple[Any, ...]:
        """Return the inputs of a group's program: a whole chunk, the key and the
        methods.

        The last cell fills the chunk up.
        """
        cells = np.pad(group.cells, (0, group.chunk - len(group.cells)), mode="edge")
        # In their order, which a dictionary would lose; their numbers are no part of
        # the program.
        shared = self.key, jax.tree.map(jnp.asarray, [*self.methods.values()])
        spread = jax.device_put(
            (self.cells.take(cells), cells), NamedSharding(self.mesh, _CELLS)
        )
        return *spread, *jax.device_put(shared, NamedSharding(self.mesh, _SAME))

    def _program(self, max_workers: int) -> Callable[..., Table]:
        """Return the compiled program of this size; the next one is compiled in a
        thread.

        What another sweep has compiled JAX knows by its arguments.
        """
        x64 = jnp.result_type(float) == jnp.float64

        def compile_(*arguments: Any) -> Callable[..., Table]:
            with jax.enable_x64(x64):  # a setting of each thread
                return _solved.lower(*arguments).compile()

        place = [group.max_workers for group in self.groups].index(max_workers)
        for soon in self.groups[place : place + 2]:
            if soon.max_workers not in self._programs:
                options = (
                    self.problem,
                    self.mesh,
                    self.apart,
                    self.partitions,
                    soon.max_workers,
                )
                inputs = self._inputs(soon._replace(cells=soon.cells[:1]))
                thread = ThreadPoolExecutor(1)
                self._programs[soon.max_workers] = thread.submit(
                    compile_, *inputs, options
                )
                thread.shutdown(wait=False)  # it ends with its work
        return self._programs[max_workers].result()


@functools.partial(jax.jit, static_argnums=4)
def _solved(
    columns: Table,
    index: Array,
    key: Array | None,
    methods: list[Method],
    options: tuple[Any, ...],
) -> Table:
    """Return the answers for the cells of a chunk, `[cells, methods]` each.

    `options` has what else they follow from, which is static.
    """
    problem_of, mesh, apart, partitions, max_workers = options

    def solve_cell(
        numbers: dict[str, Any], index: Array, key: Array | None, methods: list[Method]
    ) -> Table:
        deadline = numbers.pop("deadline", None)
        if apart:
            numbers["num_workers"] = max_workers
        problem = problem_of(max_workers=max_workers, **numbers)
        cell_key = None
        if key is not None:
            cell_key = jax.random.fold_in(key, index)
        answers = [
            _answer(problem, method, cell_key, deadline, partitions)
            for method in methods
        ]
        return jax.tree.map(lambda *values: jnp.stack(values), *answers)

    all_of = jax.vmap(solve_cell, (0, 0, None, None))
    specs = (_CELLS, _CELLS, _SAME, _SAME)
    spread = jax.shard_map(
        all_of, mesh=mesh, in_specs=specs, out_specs=_CELLS, check_vma=False
    )
    return spread(columns, index, key, methods)


def _answer(
    problem: Problem,
    method: Method,
    key: Array | None,
    deadline: Array | None,
    partitions: bool,
) -> dict[str, Array]:
    """What a method says of a cell."""
    cell_method = method
    if method.lacks_deadline:
        cell_method = replace(method, deadline=deadline)
    solution = solve(problem, cell_method, key=key)
    status = solution.status
    unknown = jnp.full_like(solution.expected_runtime, jnp.nan)
    columns = {number.name: getattr(solution, number.name) for number in NUMBERS}
    # 0 bounds any runtime: it is no certificate.
    for name in ("lower_bound", "relative_gap"):
        columns[name] = jnp.where(solution.lower_bound > 0, columns[name], unknown)
    needs = solution.needs
    columns |= dict.fromkeys(NEEDS, unknown) if needs is None else needs._asdict()
    if deadline is not None:
        status = jnp.where(meets(deadline, "> 0"), status, int(Status.INVALID))
        x = solution.partition
        chance = unknown
        if x is not None:
            chance = completion_probability(problem, x, deadline)
        columns["completion_probability"] = chance
    exists = (status != int(Status.INFEASIBLE)) & (status != int(Status.INVALID))
    columns = {
        name: jnp.where(exists, value, unknown) for name, value in columns.items()
    }
    # Of the method alone, but text is no result of a program.
    columns |= {
        "kind": jnp.asarray(KINDS.index(solution.kind)),
        "bound_of": jnp.asarray([*_BOUNDS, ""].index(solution.bound_of)),
    }
    columns |= {"status": status, "num_steps": jnp.where(exists, solution.num_steps, 0)}
    if partitions:
        no_partition = jnp.full(problem.max_workers, -1)
        if solution.rounded is None:
            columns["partition"] = no_partition
        else:
            columns["partition"] = solution.rounded
    return columns


def sweep(
    problem: Callable[..., Problem] | Sweep,
    cells: Cells | Mapping[str, ArrayLike] | None = None,
    methods: Methods = "optimal",
    **keywords: Any,
) -> Table:
    r"""Solve many problems together; the columns of the rows (cell, method), see
    `Sweep`.

    Rows of few workers come first, not in the order of the cells; they have the numbers
    of their cell. In place of `problem` and all that follows it takes a `Sweep`, as
    `write_sweep` does.

    Raises TypeError without cells, or with something besides a `Sweep`.

    For more than fits in memory, and to go on where a sweep was cut off, see
    `write_sweep`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> from bcgc_jax.sweeps import grid
    >>> def problem(num_workers, rate, max_workers):
    ...     return Problem(
    ...         ShiftedExponential(rate, 50.0),
    ...         num_workers,
    ...         20_000,
    ...         50,
    ...         max_workers=max_workers,
    ...     )
    >>> rows = sweep(problem, grid(num_workers=[2, 3], rate=[1e-3, 1e-2]), "uncoded")
    >>> rows["num_workers"].tolist(), rows["expected_runtime"].shape
    ([2, 2, 3, 3], (4,))
    """
    if isinstance(problem, Sweep) and cells is None:
        plan = problem
    elif not isinstance(problem, Sweep) and cells is not None:
        plan = Sweep(problem, cells, methods, **keywords)
    else:
        raise TypeError(
            "sweep takes a Sweep alone, or a function that makes a Problem of a cell, "
            f"and cells: sweep(problem, grid(...)); got {type(problem).__name__} and "
            f"{type(cells).__name__}"
        )
    tables = [plan.solve(chunk) for chunk in plan.chunks()]
    return {
        name: np.concatenate([table[name] for table in tables]) for name in plan.names
    }
