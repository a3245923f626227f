r"""Sweeps on disk: chunk by chunk, by several processes, and on again where one was cut off.

Each solved chunk is a file in the folder FILE.parts, put there whole or not at all. When all are there they
are joined in order: neither an interruption nor the number of processes shows in FILE. Several processes
(`jax.distributed`) need a folder that all of them see.
"""

import csv
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcgc_jax._extras import to_install
from bcgc_jax.sweeps.cells import Table
from bcgc_jax.sweeps.run import Chunk, Sweep

FORMATS = (".csv", ".parquet")


def write_sweep(
    sweep: Sweep,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    r"""Solve a sweep and write its rows to a CSV or Parquet file (by the name), which is returned.

    In CSV, NaN is an empty field, a partition numbers with blanks between. Under `jax.distributed` every
    process calls this with the same sweep; the first one joins the parts. `progress` gets the number of cells
    that this process has done, those found on disk included, and of all its cells.

    Args:
      resume: go on with the parts of an earlier call; return at once where the file is complete.

    The file FILE.sweep.json tells which sweep it was. A scheme of your own is known by its name, and
    `Sweep.problem` by the first and the last problem of each size: other edits are not noticed.

    Raises ValueError for a name of no known format, where `resume` meets the parts or the file of another
    sweep (other cells, methods, problem, precision or devices), and where processes differ in it;
    FileExistsError where there are parts, or a file, and `resume` is False; ImportError where pyarrow is
    missing.

    >>> import tempfile
    >>> from bcgc_jax import Problem, ShiftedExponential
    >>> from bcgc_jax.sweeps import grid
    >>> def problem(num_workers, rate, max_workers):
    ...     return Problem(ShiftedExponential(rate, 50.0), num_workers, 20_000, 50, max_workers=max_workers)
    >>> cells = grid(num_workers=[2, 3], rate=[1e-3, 1e-2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = write_sweep(Sweep(problem, cells, ["time", "uncoded"]), f"{folder}/sweep.csv")
    ...     print(done.read_text().splitlines()[1][:22])
    2,0.001,time,converged
    """
    path = Path(path)
    form = _format_of(path)
    parts, note = parts_of(path), path.with_name(path.name + ".sweep.json")
    first, mark = jax.process_index() == 0, fingerprint(sweep)
    if jax.process_count() > 1:
        _compare_processes(mark)
    if not _start(path, note, mark, resume):
        try:
            _solve_parts(sweep, parts, form, progress)
        except ValueError:
            # A method that does not fit the problem leaves nothing that the corrected call would trip over.
            if first and not any(part.suffix == form for part in parts.iterdir()):
                shutil.rmtree(parts)
                note.unlink()
            raise
        multihost_utils.sync_global_devices("sweep solved")
        if first:
            files = [_part(parts, index, form) for index in range(len(sweep))]
            join = _join_csv if form == ".csv" else _join_parquet
            _put(path, functools.partial(join, sweep.names, files))
    if first and parts.exists():
        shutil.rmtree(parts)
    multihost_utils.sync_global_devices("sweep written")
    return path


def parts_of(path: Path) -> Path:
    """The folder of what is solved, until it is joined."""
    return path.with_name(path.name + ".parts")


def _format_of(path: Path) -> str:
    """The suffix; an error for what cannot be written there."""
    form = path.suffix.lower()
    if form not in FORMATS:
        raise ValueError(f"a sweep is written to a file named *{' or *'.join(FORMATS)}, got {path.name}")
    if form == ".parquet":
        _pyarrow()
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(path.absolute().parent))
    return form


def _start(path: Path, note: Path, mark: str, resume: bool) -> bool:
    """`_prepare` in the first process, before anyone solves or writes; all get its answer or its failure."""
    state = 0
    trouble: Exception = ValueError("the first process could not start the sweep: see its message")
    if jax.process_index() == 0:
        try:
            state = int(_prepare(path, note, mark, resume))
        except (OSError, ValueError) as error:
            state, trouble = 2, error
    state = int(multihost_utils.broadcast_one_to_all(np.int32(state)))
    if state == 2:
        raise trouble
    return state == 1


def _prepare(path: Path, note: Path, mark: str, resume: bool) -> bool:
    """Note which sweep it is, or accept what there is of it; whether the file itself is complete."""
    parts, done = parts_of(path), path.exists()
    begun = parts.exists() and any(parts.iterdir())
    if (done or begun) and not resume:
        finished = "a finished sweep is not overwritten: remove it or name another"
        cut_off = "parts of a sweep that was cut off: go on with resume, or remove the folder"
        raise FileExistsError(17, finished if done else cut_off, str(path if done else parts))
    if (done or begun) and not (note.exists() and note.read_text() == mark):
        raise ValueError(
            f"{path if done else parts} is of another sweep (cells, methods, problem, precision or devices "
            "differ): name another file, or remove it"
        )
    if not done:
        parts.mkdir(exist_ok=True)
        _put(note, lambda target: target.write_text(mark))
    return done


def fingerprint(sweep: Sweep) -> str:
    """A digest of what the rows follow from: cells, methods, options, some problems, precision, chunks."""
    key = None if sweep.key is None else np.asarray(jax.random.key_data(sweep.key)).tolist()
    cells, devices = sweep.cells, sweep.mesh.devices
    facts: list[Any] = [sweep.names, tuple(sweep.labels.values()), len(sweep), devices.size, key]
    facts += [jax.numpy.result_type(float).name, devices.flat[0].platform, cells.product]
    facts += [(name, method.digest()) for name, method in sweep.methods.items()]
    facts += [(values.dtype.name, values.tobytes()) for values in cells.columns.values()]
    for group in sweep.groups:
        # Two problems of each size stand for what the function does beside the cells.
        for index in (group.cells[0], group.cells[-1]):
            try:
                problem = sweep.problem(max_workers=group.max_workers, **sweep.numbers_at(index))
                leaves, tree = jax.tree.flatten(problem)
            except ValueError as error:  # a cell that makes no sense
                facts.append(str(error))
            else:
                facts.append((str(tree), len(group.cells), [np.asarray(leaf).tobytes() for leaf in leaves]))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _solve_parts(sweep: Sweep, parts: Path, form: str, progress: Callable[[int, int], None]) -> None:
    """Solve the chunks of this process that are not there yet."""

    process, count = jax.process_index(), jax.process_count()
    write = _write_csv if form == ".csv" else _write_parquet

    def mine() -> Iterator[Chunk]:
        return (chunk for chunk in sweep.chunks() if chunk.index % count == process)

    done, total = 0, sum(len(chunk.cells) for chunk in mine())
    progress(done, total)
    for chunk in mine():
        part = _part(parts, chunk.index, form)
        if not part.exists():
            _put(part, functools.partial(write, sweep.solve(chunk)))
        done += len(chunk.cells)
        progress(done, total)


def _part(parts: Path, index: int, form: str) -> Path:
    return parts / f"{index:08d}{form}"


def _put(path: Path, write: Callable[[Path], Any]) -> None:
    """A file that is there whole or not at all."""
    target = path.with_name(f"{path.name}.{os.getpid()}")
    write(target)
    os.replace(target, path)


def _write_csv(table: Table, path: Path) -> None:
    columns = (map(_field, column.tolist()) for column in table.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))


def _field(value: Any) -> str:
    if value is None or value != value:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow: {to_install('parquet')}") from error
    return pyarrow


def _write_parquet(table: Table, path: Path) -> None:
    pyarrow = _pyarrow()
    types = {"method": pyarrow.string(), "status": pyarrow.string(), "exact_gradient": pyarrow.bool_()}
    types["partition"] = pyarrow.list_(pyarrow.int64())
    columns = {name: pyarrow.array(values.tolist(), types.get(name)) for name, values in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _join_csv(names: Sequence[str], files: list[Path], path: Path) -> None:
    with path.open("wb") as out:
        out.write((",".join(names) + "\n").encode())
        for name in files:
            with name.open("rb") as part:
                shutil.copyfileobj(part, out)


def _join_parquet(names: Sequence[str], files: list[Path], path: Path) -> None:
    del names  # each part has them
    parquet = _pyarrow().parquet
    with parquet.ParquetWriter(path, parquet.read_schema(files[0])) as out:
        for name in files:
            out.write_table(parquet.read_table(name))


def _compare_processes(mark: str) -> None:
    """ValueError in every process where one has been started with another sweep."""
    mine = np.frombuffer(bytes.fromhex(mark), np.uint8)
    try:
        marks = multihost_utils.process_allgather(mine)
    except ValueError as error:
        raise ValueError(f"the processes must have as many devices each: {error}") from None
    if np.any(marks != mine):
        raise ValueError("the processes were started with different sweeps: give each the same arguments")


def read_rows(path: Path, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Some columns of a sweep's file, or all, row by row, without reading all of it at once."""
    if path.suffix.lower() == ".parquet":
        with _pyarrow().parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=None if names is None else list(names)):
                yield from batch.to_pylist()
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row if names is None else {name: row[name] for name in names}
