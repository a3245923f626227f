r"""Sweeps on disk: chunk by chunk, and on again where one was cut off.

Each solved chunk is a file in the folder FILE.parts, put there whole or not at all.
When all are there they are joined in order: an interruption does not show in FILE.
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

from bcgc_jax.sweeps.cells import Table
from bcgc_jax.sweeps.run import Sweep


def write_sweep(
    sweep: Sweep,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    r"""Solve a sweep and write its rows to a CSV file, which is returned.

    NaN is an empty field, a partition numbers with blanks between. `progress` gets the
    number of cells that are done, those found on disk included, and of all cells. With
    `resume` it goes on with the parts of an earlier call, and returns at once where the
    file is complete.

    FILE.sweep.json tells which sweep it was. A scheme of your own is known by its name,
    and `Sweep.problem` by the first and the last problem of each size: other edits are
    not noticed.

    Raises ValueError for a name that does not end in .csv, and where `resume` meets
    another sweep (other cells, methods, problem, precision or devices); FileExistsError
    where it is False and there are parts, or a file.

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
        raise ValueError(f"a sweep is written to a file named *.csv, got {path.name}")
    parts = parts_of(path)
    note = path.with_name(path.name + ".sweep.json")
    if not _prepare(path, note, fingerprint(sweep), resume):
        files: list[Path] = []
        done = 0
        total = len(sweep.cells)
        progress(done, total)
        for index, chunk in enumerate(sweep.chunks()):
            files.append(parts / f"{index:08d}.csv")
            if not files[-1].exists():
                try:
                    table = sweep.solve(chunk)
                except ValueError:  # a method that does not fit the problem
                    # leaves nothing that the next call would trip over
                    if not any(parts.glob("*.csv")):
                        shutil.rmtree(parts)
                        note.unlink()
                    raise
                _put(files[-1], functools.partial(_write, table))
            done += len(chunk.cells)
            progress(done, total)
        _put(path, functools.partial(_join, sweep.names, files))
    shutil.rmtree(parts, ignore_errors=True)
    return path


def parts_of(path: Path) -> Path:
    """The folder of what is solved, until it is joined."""
    return path.with_name(path.name + ".parts")


def _prepare(path: Path, note: Path, mark: str, resume: bool) -> bool:
    """Note which sweep it is, or accept a part of it; return whether it is complete."""
    parts = parts_of(path)
    done = path.exists()
    begun = parts.exists() and any(parts.iterdir())
    if (done or begun) and not resume:
        finished = "a finished sweep is not overwritten: remove it or name another"
        cut_off = (
            "parts of a sweep that was cut off: go on with resume, or remove the folder"
        )
        raise FileExistsError(
            17, finished if done else cut_off, str(path if done else parts)
        )
    if (done or begun) and not (note.exists() and note.read_text() == mark):
        raise ValueError(
            f"{path if done else parts} is of another sweep (cells, methods, problem, "
            "precision or devices differ): name another file, or remove it"
        )
    if not done:
        parts.mkdir(exist_ok=True)
        _put(note, lambda target: target.write_text(mark))
    return done


def fingerprint(sweep: Sweep) -> str:
    """Return a digest of what the rows follow from.

    That is cells, methods, options, some problems, precision and chunks.
    """
    key = None
    if sweep.key is not None:
        key = jax.random.key_data(sweep.key)
    devices = sweep.mesh.devices
    problems = list[Any]()
    for group in sweep.groups:
        # Two problems of each size stand for what the function does beside the cells.
        for index in (group.cells[0], group.cells[-1]):
            numbers = sweep.numbers_at(index)
            try:
                problems.append(sweep.problem(max_workers=group.max_workers, **numbers))
            except ValueError as error:  # a cell that makes no sense
                problems.append(str(error))
    trees = (key, dict(sweep.cells.columns), dict(sweep.methods), problems)
    leaves, structure = jax.tree.flatten(trees)
    values = [(array.dtype.name, array.tobytes()) for array in map(np.asarray, leaves)]
    facts = [
        sweep.names,
        sweep.labels,
        len(sweep),
        sweep.cells.product,
        str(structure),
        values,
    ]
    facts += [jax.numpy.result_type(float).name, devices.size, devices.flat[0].platform]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _put(path: Path, write: Callable[[Path], Any]) -> None:
    """A file that is there whole or not at all."""
    target = path.with_name(f"{path.name}.{os.getpid()}")
    write(target)
    os.replace(target, path)


def _write(table: Table, path: Path) -> None:
    columns = (map(_field, column.tolist()) for column in table.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))


def _field(value: Any) -> Any:
    """Return what CSV is to hold: nothing for NaN, a list with blanks between."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if value != value:
        return None
    return value


def _join(names: Sequence[str], files: list[Path], path: Path) -> None:
    with path.open("wb") as out:
        out.write((",".join(names) + "\n").encode())
        for part in files:
            out.write(part.read_bytes())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """A sweep's file row by row, without reading all of it at once."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
