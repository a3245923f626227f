"""Solve many problems together, and write the results to a CSV file as they come.

A cell is one problem of a sweep. With N workers, it costs O(N²) to O(N³), and each
padded number of workers costs a compilation. Therefore cells are grouped by the number
of workers. Each group has one compiled function, which solves a batch of cells
(`Chunk`) with every method, distributed over the local devices.
"""

import csv
import functools
import hashlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, meets, replace
from bcgc_jax.plans.plan import Requirements
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import KINDS
from bcgc_jax.solvers.methods import Method, Methods, each_method, method_of
from bcgc_jax.solvers.solve import solve

__all__ = ["Sweep", "grid", "sweep", "write_sweep"]

Table = dict[str, np.ndarray]


# Attributes of a `Solution` that are columns.
NUMBERS = ("expected_runtime", "runtime_error", "lower_bound", "relative_gap")
# All columns of results: these numbers, the requirements of a scheme, and some columns
# that only some sweeps have.
NEEDS = Requirements._fields
ANSWERED = (
    *("method", "status", *NUMBERS),
    *("kind", "bound_of", "num_steps"),
    *(*NEEDS, "saved", "completion_probability", "partition"),
)

# Cost of compiling one size, in cells · N^2.5. On two cores, it takes 5.5 s, and a cell
# takes 0.9 µs · N^2.5.
_COMPILATION = 6e6
# Maximum cells · N² of a batch on a CPU: half a second of optima. A larger batch leaves
# the caches. A smaller one leaves lanes of the optimiser idle. On an accelerator, the
# limit is half of its memory.
_CACHED = 2**16


# Sharding of the inputs: cells are distributed over the devices, and all else is
# replicated.
_CELLS = PartitionSpec("cells")
_SAME = PartitionSpec()
_BOUNDS = ("levels", "groups", "storage")


def grid(**axes: ArrayLike | Sequence[float]) -> Table:
    """Return all combinations of numbers as the cells of a sweep.

    Args:
      **axes: Values of each number of a cell, by name. One of them is `num_workers`.

    Returns:
      One column `[C]` for each number, with an entry for each of the C cells.
      `num_workers` varies slowest, and the last number fastest.

    Raises:
      ValueError: If values are not numbers, or `num_workers` is missing.

    >>> {name: c.tolist() for name, c in grid(rate=[1.0, 2.0], num_workers=[8]).items()}
    {'num_workers': [8, 8], 'rate': [1.0, 2.0]}
    """
    columns = {name: np.atleast_1d(np.asarray(values)) for name, values in axes.items()}
    _check_columns(columns)
    columns = {"num_workers": np.sort(columns.pop("num_workers"))} | columns
    of_cells = np.meshgrid(*columns.values(), indexing="ij")
    return {
        name: values.ravel() for name, values in zip(columns, of_cells, strict=True)
    }


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if the columns do not describe cells."""
    if "num_workers" not in columns:
        raise ValueError("the cells of a sweep have no column num_workers. Add it.")
    for name, values in columns.items():
        if name in (*ANSWERED, "max_workers"):
            rename = "Choose another name for the numbers of the cells."
            raise ValueError(f"{name} is the name of a column of results. {rename}")
        if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
            requirement = "a sequence of one or more numbers"
            raise ValueError(f"{name} must be {requirement}, got {values!r}")
        if values.dtype.kind in "iu" and np.any(
            values > jnp.iinfo(jnp.result_type(int)).max
        ):
            enable = "Call jax.config.update('jax_enable_x64', True) first."
            raise ValueError(f"{name} needs 64-bit integers. {enable}")
    workers = columns["num_workers"]
    if not np.all((workers >= 1) & (workers == np.floor(workers))):
        raise ValueError(f"num_workers must be integers >= 1, got {workers}")


class Chunk(NamedTuple):
    """Hold a batch of cells that are solved together.

    Attributes:
      max_workers: Number of workers to which the problems are padded.
      cells: Indices of the cells.
      room: Number of cells to which the batch is padded.
    """

    max_workers: int
    cells: np.ndarray
    room: int


def _padded_sizes(
    sizes: np.ndarray, counts: np.ndarray, compilation: float
) -> list[int]:
    """Return the numbers of workers to which cells are padded.

    Args:
      sizes: Numbers of workers of the cells, ascending, without repetition.
      counts: Number of cells of each size.
      compilation: Cost of an additional program, in cells · N^2.5.

    The sizes are divided where this saves most padding, and both parts again. This ends
    when a division saves less than a compilation costs.
    """
    cost = sizes.astype(float) ** 2.5
    saved = np.cumsum(counts) * (cost[-1] - cost)
    cut = int(np.argmax(saved)) + 1
    if cut == len(sizes) or saved[cut - 1] <= compilation:
        return [int(sizes[-1])]
    return [
        *_padded_sizes(sizes[:cut], counts[:cut], compilation),
        *_padded_sizes(sizes[cut:], counts[cut:], compilation),
    ]


def _chunks(
    workers: np.ndarray, devices: Sequence[jax.Device], *, apart: bool
) -> list[Chunk]:
    """Return all batches, in ascending order of the number of workers.

    With `apart`, each number of workers has its own program.
    """
    compilation = _COMPILATION
    if apart:
        compilation = 0.0
    padded_sizes = _padded_sizes(
        *np.unique(workers, return_counts=True), compilation=compilation
    )
    size_of_cell = np.searchsorted(padded_sizes, workers)
    chunks = []
    for place, size in enumerate(padded_sizes):
        cells = np.flatnonzero(size_of_cell == place)
        room = _room(size, len(cells), devices)
        chunks += [
            Chunk(size, cells[start : start + room], room)
            for start in range(0, len(cells), room)
        ]
    return chunks


def _room(max_workers: int, cells: int, devices: Sequence[jax.Device]) -> int:
    """Return the number of cells of a batch, a multiple of the number of devices."""
    at_once = _CACHED
    # All arrays together take 4 kB per cell and pair of levels.
    if devices[0].platform != "cpu":
        at_once = (
            (devices[0].memory_stats() or {}).get("bytes_limit", 2**33) // 2 // 4096
        )
    largest = int(np.clip(at_once // max_workers**2, 1, 512)) * len(devices)
    return math.ceil(cells / math.ceil(cells / largest) / len(devices)) * len(devices)


class Sweep:
    """Describe a sweep: a grid of problems, and the methods that solve them.

    A row has the results of one method for one cell. Its columns are the numbers of the
    cell, `method`, `status`, and the numbers of the `Solution` before rounding:

    - `lower_bound` and `relative_gap` are NaN if there is no certificate. `kind` and
      `bound_of` describe the bound, as in `Solution`; `bound_of` may be None.
    - `stored_subsets`, `sent`, `round_trips`, `exact_gradient` and `lost` are the
      requirements of the scheme. They are NaN or None if they are unknown.
    - `saved` is present if "uncoded" is one of the methods. It is the fraction of the
      uncoded time that the scheme saves per sample in the gradient.
    - `completion_probability` is present if the cells have a `deadline`.
    - A cell with invalid numbers has the status "invalid".

    Batches are in ascending order of the number of workers, and keep the order of the
    cells.

    Args:
      problem: Function that returns the `Problem` of a cell. It gets the numbers of the
        cell, which are traced, and a static `max_workers`, as keyword arguments.
      cells: Columns `[C]` with an entry for each cell, as `grid` returns them. One is
        `num_workers`. A column `deadline` is not passed to `problem`.
      methods: Methods for `solve`, by name or with options. "deadline" uses the
        deadlines of the cells. Defaults to "optimal".
      key: PRNG key for methods that draw random numbers. Cell i uses `fold_in(key, i)`.
      partitions: Whether rows include the rounded partitions. Defaults to False.
      labels: Texts that are the same in every row, by column, such as the name of the
        distribution. These columns come first.

    Attributes:
      cells: The columns of the cells.
      num_cells: Number of cells, C.
      names: Names of the columns of the rows.

    Raises:
      ValueError: If a method is unknown, or the cells are invalid.
    """

    def __init__(
        self,
        problem: Callable[..., Problem],
        cells: Mapping[str, ArrayLike],
        methods: Methods = "optimal",
        *,
        key: Array | None = None,
        partitions: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.cells = {name: np.asarray(values) for name, values in cells.items()}
        _check_columns(self.cells)
        if len({values.size for values in self.cells.values()}) > 1:
            lengths = {name: values.size for name, values in self.cells.items()}
            raise ValueError(
                f"all columns of the cells must have the same length, got {lengths}"
            )
        workers = self.cells["num_workers"].astype(int)
        self.cells["num_workers"] = workers
        self.num_cells = len(workers)
        if key is not None:
            check_key(key)
        self.problem = problem
        self.key = key
        self.partitions = partitions
        self.labels = labels or {}
        asked = [method_of(method) for method in dict.fromkeys(each_method(methods))]
        self.methods = {method.name: method for method in asked}
        has_deadline = "deadline" in self.cells
        if not asked or len(self.methods) < len(asked):
            names = [method.name for method in asked]
            raise ValueError(
                f"methods must be different, and at least one, got {names}"
            )
        if any(method.lacks_deadline for method in asked) and not has_deadline:
            raise ValueError(
                'the method "deadline" needs deadlines. Add a column "deadline" to the '
                "cells."
            )
        self.mesh = Mesh(np.array(jax.local_devices()), ("cells",))
        not_in_every_sweep = {
            "saved": "uncoded" in self.methods,
            "completion_probability": has_deadline,
            "partition": partitions,
        }
        answered = [name for name in ANSWERED if not_in_every_sweep.get(name, True)]
        self.names = (*self.labels, *self.cells, *answered)
        self.apart = any(method.fixed_workers for method in asked)
        self.chunks = _chunks(workers, jax.local_devices(), apart=self.apart)
        first = self.numbers_at(self.chunks[-1].cells[0])
        jax.eval_shape(self._check, first)  # traced, so it accepts all numbers

    def _check(self, cell: dict[str, Array]) -> None:
        """Raise ValueError if a method cannot solve any cell."""
        largest = self.chunks[-1].max_workers
        numbers = {**cell, "num_workers": largest}
        problem = self.problem(max_workers=largest, **numbers)
        for method in self.methods.values():
            method.check(problem)

    def numbers_at(self, index: int) -> dict[str, Any]:
        """Return the keyword arguments of `problem` for a cell."""
        return {
            name: values[index]
            for name, values in self.cells.items()
            if name != "deadline"
        }

    def solve(self, chunk: Chunk) -> Table:
        """Return a batch's rows by column. A `partition` is a list, or None."""
        answers = jax.device_get(_solved(*self._inputs(chunk), self._static(chunk)))
        methods = list(self.methods)
        size = len(chunk.cells) * len(methods)
        rows: Table = {
            name: np.full(size, text, object) for name, text in self.labels.items()
        }
        rows |= {
            name: np.repeat(values[chunk.cells], len(methods))
            for name, values in self.cells.items()
        }
        rows["method"] = np.tile(np.array(methods, object), len(chunk.cells))
        # All methods of a cell are consecutive.
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
        """Return the saved fraction of the uncoded time, per sample in the gradient."""
        methods = list(self.methods)
        runtime = rows["expected_runtime"] / (1 - np.nan_to_num(rows["lost"]))
        uncoded = np.repeat(
            runtime[methods.index("uncoded") :: len(methods)], len(methods)
        )
        finite = np.isfinite(runtime) & np.isfinite(uncoded)
        return np.where(finite, 1 - runtime / np.where(finite, uncoded, 1), np.nan)

    def _inputs(self, chunk: Chunk) -> tuple[Any, ...]:
        """Return a batch's cells, their indices, the key and the methods, as arrays.

        Copies of the last cell pad the batch.
        """
        index = np.pad(chunk.cells, (0, chunk.room - len(chunk.cells)), mode="edge")
        cells = {name: values[index] for name, values in self.cells.items()}
        # A list keeps the order of the methods, which a dictionary would lose. The
        # methods' numbers are inputs of the program.
        shared = self.key, jax.tree.map(jnp.asarray, [*self.methods.values()])
        spread = jax.device_put((cells, index), NamedSharding(self.mesh, _CELLS))
        return *spread, *jax.device_put(shared, NamedSharding(self.mesh, _SAME))

    def _static(self, chunk: Chunk) -> tuple[Any, ...]:
        return (
            *(self.problem, self.mesh, self.apart, self.partitions),
            chunk.max_workers,
        )


@functools.partial(jax.jit, static_argnums=4)
def _solved(
    columns: Table,
    index: Array,
    key: Array | None,
    methods: list[Method],
    options: tuple[Any, ...],
) -> Table:
    """Return the results for the cells of a batch, `[cells, methods]` each.

    `options` contains the static arguments.
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
    """Solve one cell with one method, and return the numbers by column."""
    cell_method = method
    if method.lacks_deadline:
        cell_method = replace(method, deadline=deadline)
    solution = solve(problem, cell_method, key=key)
    status = solution.status
    unknown = jnp.full_like(solution.expected_runtime, jnp.nan)
    columns = {name: getattr(solution, name) for name in NUMBERS}
    # A bound of 0 holds for any runtime, so it is not a certificate.
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
    # These depend only on the method. They are indices because a program cannot return
    # text.
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
    cells: Mapping[str, ArrayLike] | None = None,
    methods: Methods = "optimal",
    **keywords: Any,
) -> Table:
    """Solve a grid of problems with several methods.

    Args:
      problem: Function that returns the `Problem` of a cell, as in `Sweep`. Or a
        `Sweep`, in place of all arguments.
      cells: The grid: a result of `grid`, or a mapping from column names to arrays.
      methods: Methods for `solve`, by name or with options. Defaults to "optimal".
      **keywords: Other arguments of `Sweep`, such as `key` or `partitions`.

    Returns:
      A dictionary of columns, with one row per cell and method. Rows are sorted by
      number of workers, not in the order of `cells`, and repeat the numbers of their
      cell. See `Sweep` for the columns.

    Raises:
      TypeError: If `cells` is missing, or if other arguments accompany a `Sweep`.
      ValueError: If a method is unknown, or the cells are invalid.

    All rows are kept in memory. To stream them to a file, and to resume an interrupted
    sweep, use `write_sweep`.

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
            "sweep takes either only a Sweep, or a function that returns a Problem and "
            "cells, as in sweep(problem, grid(...)); got "
            f"{type(problem).__name__} and {type(cells).__name__}"
        )
    tables = [plan.solve(chunk) for chunk in plan.chunks]
    return {
        name: np.concatenate([table[name] for table in tables]) for name in plan.names
    }


def write_sweep(
    sweep: Sweep,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Solve a sweep and append its rows to a CSV file, batch by batch.

    In the file, NaN is an empty field, and a partition is its numbers separated by
    blanks.

    Args:
      sweep: The sweep to solve.
      path: Path of the file, *.csv. FILE.sweep.json in the same folder identifies the
        sweep.
      resume: Whether to continue the file of an interrupted sweep. Incomplete batches
        are solved again, and nothing is solved if the file is complete. Defaults to
        False.
      progress: Function that is called with the number of solved cells and the number
        of all cells.

    Returns:
      The path.

    Raises:
      ValueError: If the name does not end in .csv, or the file to resume belongs to
        another sweep, with other cells, methods, problem, precision or devices.
      FileExistsError: If the file exists and `resume` is False.

    Your own scheme is identified by its name, and `Sweep.problem` by the first and the
    last problem of each size. Other changes are not detected.

    >>> import tempfile
    >>> from bcgc_jax import Problem, ShiftedExponential
    >>> from bcgc_jax.sweeps import grid
    >>> def problem(num_workers, rate, max_workers):
    ...     return Problem(
    ...         ShiftedExponential(rate, 50.0),
    ...         num_workers,
    ...         20_000,
    ...         50,
    ...         max_workers=max_workers,
    ...     )
    >>> cells = grid(num_workers=[2, 3], rate=[1e-3, 1e-2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = write_sweep(Sweep(problem, cells, "uncoded"), f"{folder}/sweep.csv")
    ...     print(done.read_text().splitlines()[1][:25])
    2,0.001,uncoded,converged
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"the file of a sweep must be named *.csv, got {path.name}")
    note = path.with_name(path.name + ".sweep.json")
    mark = fingerprint(sweep)
    solved_chunks = 0
    if path.exists():
        if not resume:
            advice = "the file exists. Continue it with resume, or remove it"
            raise FileExistsError(17, advice, str(path))
        if not note.exists() or note.read_text() != mark:
            raise ValueError(
                f"{path} belongs to another sweep (cells, methods, problem, precision "
                "or devices differ). Choose another file, or remove it."
            )
        solved_chunks = _keep_complete_chunks(sweep, path)
    done = 0
    progress(done, sweep.num_cells)
    for index, chunk in enumerate(sweep.chunks):
        if index >= solved_chunks:
            # The file is created with the first result, so a sweep that `solve` refuses
            # leaves no file.
            text = _csv_rows(sweep.solve(chunk))
            if not index:
                note.write_text(mark)
                text = (",".join(sweep.names) + "\n").encode() + text
            with path.open("ab") as file:
                file.write(text)
        done += len(chunk.cells)
        progress(done, sweep.num_cells)
    return path


def _keep_complete_chunks(sweep: Sweep, path: Path) -> int:
    """Truncate the file after its last complete batch, and return the number of
    batches.
    """
    with path.open("rb+") as file:
        end = len(file.readline())
        for index, chunk in enumerate(sweep.chunks):
            rows = len(chunk.cells) * len(sweep.methods)
            lines = list(itertools.islice(file, rows))
            if len(lines) < rows or not lines[-1].endswith(b"\n"):
                # If no batch is complete, the column names are written again, too.
                file.truncate(end if index else 0)
                return index
            end += sum(map(len, lines))
    return len(sweep.chunks)


def fingerprint(sweep: Sweep) -> str:
    """Return a digest of everything that determines the rows.

    It covers cells, methods, options, some problems, precision and batches.
    """
    key = None
    if sweep.key is not None:
        key = jax.random.key_data(sweep.key)
    devices = sweep.mesh.devices
    problems = list[Any]()
    for size, chunks in itertools.groupby(
        sweep.chunks, lambda chunk: chunk.max_workers
    ):
        # Two problems of each size represent what the function does in addition to the
        # cells.
        cells = np.concatenate([chunk.cells for chunk in chunks])
        for index in (cells[0], cells[-1]):
            numbers = sweep.numbers_at(index)
            try:
                problems.append(sweep.problem(max_workers=size, **numbers))
            except ValueError as error:  # a cell with invalid numbers
                problems.append(str(error))
    trees = (key, sweep.cells, sweep.methods, problems)
    leaves, structure = jax.tree.flatten(trees)
    values = [(array.dtype.name, array.tobytes()) for array in map(np.asarray, leaves)]
    facts = [
        sweep.names,
        sweep.labels,
        len(sweep.chunks),
        str(structure),
        values,
    ]
    facts += [jax.numpy.result_type(float).name, devices.size, devices.flat[0].platform]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _csv_rows(table: Table) -> bytes:
    text = io.StringIO()
    columns = (map(_field, column.tolist()) for column in table.values())
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _field(value: Any) -> Any:
    """Convert a value for CSV: nothing for NaN, and a list separated by blanks."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if value != value:
        return None
    return value


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read a sweep's file row by row, without loading it completely."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
