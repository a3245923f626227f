"""Measured cycle times: the seconds of each step and worker, read from CSV."""

import contextlib
import csv
import difflib
import gzip
import io
import itertools
import math
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

LAYOUTS = ("auto", "long", "wide")
# The column of the loads, where none is named.
LOAD = "load"
_LONGEST_HEADER = 1 << 20
# Each with its line.
Rows = Iterator[tuple[int, list[str]]]
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_NO_TIME = {"nan", "na", "n/a", "null", "none", "-"}


class ColumnError(ValueError):
    """A file does not have the columns that it was read by."""


class Trace(NamedTuple):
    """R times of S steps and W workers: one of each cell, or where there are loads one of each load of it.

    Args:
      step_names: `[S]`, str, in the order of their numbers, or of first mention where one is no number.
      worker_names: `[W]`, str, in the order of first mention.
      step, worker: `[R]`, int, places in the two.
      seconds: `[R]`, float64, positive; from the beginning of the iteration.
      censored: `[R]`, bool: the worker was cut off, its time is longer than that.
      load: `[R]`, float64, positive: the work done by then, in any unit; None where it is always the same.
      of_cycles: whether the seconds are those of a cycle, as `per_cycle` makes them, not of an iteration.

    >>> names, twice = np.array(["a", "b"]), np.array([0, 0, 1])
    >>> trace = Trace(names, names, twice, np.array([0, 1, 0]), np.array([3.0, 1.0, 2.0]), twice > 0)
    >>> trace.num_missing, trace.table().tolist()
    (1, [[3.0, 1.0], [nan, nan]])
    """

    step_names: np.ndarray
    worker_names: np.ndarray
    step: np.ndarray
    worker: np.ndarray
    seconds: np.ndarray
    censored: np.ndarray
    load: np.ndarray | None = None
    of_cycles: bool = False

    @property
    def num_workers(self) -> int:
        return len(self.worker_names)

    @property
    def num_steps(self) -> int:
        return len(self.step_names)

    @property
    def num_missing(self) -> int:
        """How many of the S·W cells have no time, not even a censored one."""
        return self.num_steps * self.num_workers - np.unique(self.cell).size

    @property
    def cell(self) -> np.ndarray:
        """`[R]`, int: which step and worker, in one number."""
        return self.step.astype(np.int64) * self.num_workers + self.worker

    def largest_loads(self) -> "Trace":
        """Of each cell the time of its largest load alone; a trace without loads is returned as it is."""
        if self.load is None:
            return self
        order = np.lexsort((self.load, self.cell))
        last = np.sort(order[np.append(np.diff(self.cell[order]) > 0, True)])
        rows = {name: getattr(self, name)[last] for name in ("step", "worker", "seconds", "censored", "load")}
        return self._replace(**rows)

    def per_cycle(self) -> "Trace":
        """Seconds over load, of each cell at its largest load: cycle times, as if all time grew with it.

        A trace without loads is returned as it is.
        """
        if self.load is None:
            return self
        last = self.largest_loads()
        return last._replace(seconds=last.seconds / last.load, load=None, of_cycles=True)

    def table(self) -> np.ndarray:
        """The times as `[S, W]`, NaN where there is none or only a censored one; ValueError with `load`s."""
        if self.load is not None:
            advice = "take fit_start_up, or per_cycle() if all time grows with the load"
            raise ValueError(f"these are times of loads, no cycle times: {advice}")
        times = np.full((self.num_steps, self.num_workers), np.nan)
        times[self.step, self.worker] = np.where(self.censored, np.nan, self.seconds)
        return times

    def rows(self) -> np.ndarray:
        """The times of each step, `[S, W]`; ValueError where one is missing or censored, and with `load`s."""
        times = self.table()
        for i, j in np.argwhere(np.isnan(times))[:1]:
            step, worker = self.step_names[i], self.worker_names[j]
            kind = "only a censored" if np.any((self.step == i) & (self.worker == j)) else "no"
            raise ValueError(f"step {step} has {kind} time of worker {worker}: a replay needs all")
        return times


def load_trace(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    step: str = "step",
    worker: str = "worker",
    seconds: str = "seconds",
    censored: str | None = None,
    load: str | None = None,
    layout: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Trace:
    """Read measured times from CSV, separated by comma, semicolon, tab or |, perhaps packed by gzip.

    An empty cell is a time that was not measured.

    Args:
      path: of a file; or an open one of bytes, such as `sys.stdin.buffer`.
      step, worker, seconds: the names of the columns; others are ignored in the long layout.
      censored: the column that says, by 0/1, false/true or no/yes, whether the worker was cut off.
      load: the column of the work done when the seconds were over, in any unit; by default `load`, where
        there is one. A step and worker may then have several rows, one for each load.
      layout: "long", a row for each step and worker; "wide", a row for each step and a column named after
        each worker, the step column optional; "auto", wide only where there is neither a worker nor a seconds
        column and the columns are numbered alike, like w0, w1.
      progress: called now and then with the share that has been read.

    Raises ValueError, with the line, for what is no trace, such as two times of one cell and load, or times
    of a cell that fall while its load grows; OSError for a file that cannot be opened.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "steps.csv")
    ...     _ = path.write_text("step,w0,w1\\n10,1.5,2.5\\n9,,1.25\\n")
    ...     trace = load_trace(path)
    >>> trace.step_names.tolist(), trace.worker_names.tolist(), trace.table().tolist()
    (['9', '10'], ['w0', 'w1'], [[nan, 1.25], [1.5, 2.5]])
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    asked = {"step": step, "worker": worker, "seconds": seconds, "censored": censored, "load": load}
    columns = {column: name for column, name in asked.items() if name is not None}
    if len({*columns.values()}) < len(columns):
        raise ValueError(f"{', '.join(asked)} must be different columns, got {[*columns.values()]}")
    with contextlib.ExitStack() as stack:
        if isinstance(path, str | os.PathLike):
            name, file = str(path), cast(BinaryIO, stack.enter_context(open(path, "rb")))
        else:
            file, given = path, getattr(path, "name", 0)  # of a pipe a number
            name = given.replace("<stdin>", "standard input") if isinstance(given, str) else "the stream"
        rows = _read_table(file, name, progress or (lambda share: None))
        _, header = next(rows)
        if LOAD in header and LOAD not in columns.values():
            columns.setdefault("load", LOAD)
        if _is_wide(name, header, columns, layout):
            rows, header = _long_rows(rows, header, step), [*columns.values()]
        return _read(rows, name, {column: header.index(name) for column, name in columns.items()}, columns)


def _read_table(file: BinaryIO, path: str, progress: Callable[[float], None]) -> Rows:
    """The header and the rows of an open file that a person calls `path`.

    Separators are found out: a comma, a semicolon, a tab or |. `progress` gets the share that was read.
    """
    buffer: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[type-var]
    begin = buffer.peek(4)[:4]
    if begin == b"PAR1" or Path(path).suffix.lower() in (".parquet", ".pq"):
        raise ValueError(
            f"{path} is Parquet, a trace must be CSV: convert it, by pandas as "
            "pandas.read_parquet(FILE).to_csv('trace.csv', index=False)"
        )
    content = gzip.GzipFile(fileobj=buffer) if begin[:2] == b"\x1f\x8b" else buffer
    text = io.TextIOWrapper(content, "utf-8-sig", newline="")
    head, blank = "\n", -1
    try:
        while head.isspace():
            head, blank = text.readline(_LONGEST_HEADER), blank + 1
        if not head:
            raise ValueError(f"{path} is empty: a trace has a header and rows of measured times")
        if len(head) == _LONGEST_HEADER or "\0" in head:
            raise ValueError(f"{path} is not a text file (UTF-8): its first line is no header")
        separator = max(",;\t|", key=re.sub('"[^"]*"', "", head).count)
        lines = itertools.chain([head], text)
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        header = [name.strip() for name in next(reader)]
        yield blank + reader.line_num, header
        size = 0  # of a pipe, or a file in memory
        with contextlib.suppress(OSError):
            size = os.fstat(buffer.fileno()).st_size if buffer.seekable() else 0
        for count, row in enumerate(reader, 1):
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {blank + reader.line_num}: {len(row)} fields, the header has "
                    f"{len(header)} (separated by {separator!r}): is the line cut off, or has it another "
                    "separator or a decimal comma?"
                )
            if row:
                yield blank + reader.line_num, row
            if size and count % 4096 == 0:
                progress(min(buffer.tell() / size, 1.0))
        progress(1.0)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file (UTF-8): {error.reason}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {blank + reader.line_num}: not a CSV file: {error}") from None


def _is_wide(path: str, header: Sequence[str], columns: dict[str, str], layout: str) -> bool:
    """Whether the layout is wide; ValueError where it lacks columns, or has others."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one")
    step, *names = columns.values()
    workers = [name for name in header if name != step]
    # Neither must a long file with other names pass for a wide one, nor a row of numbers for a header.
    numbered = _alike(workers) and (step in header or not _is_number(workers[0])) and len(workers) > 1
    if layout == "wide" or (layout == "auto" and numbered and names == ["worker", "seconds"]):
        _check_wide(path, header, columns, workers)
        return True
    if missing := [name for name in (step, *names) if name not in header]:
        raise ColumnError(_no_column(path, header, missing))
    return False


def _long_rows(rows: Rows, header: Sequence[str], step: str) -> Rows:
    """The rows of a wide table as a step, a worker and its seconds each; steps without a name are counted."""
    at = header.index(step) if step in header else None
    for number, (line, row) in enumerate(rows, 1):
        for k, worker in enumerate(header):
            if k != at:
                yield line, [str(number) if at is None else row[at], worker, row[k]]


def _check_wide(path: str, header: Sequence[str], columns: dict[str, str], workers: Sequence[str]) -> None:
    step, *names = columns.values()
    if len(names) > 2 or set(names) <= set(header):
        too_many = ", ".join(names[2:] or names)
        raise ValueError(f"{path}: the wide layout has no place for {too_many}, use the long one")
    for name in workers:
        if not name or (_is_number(name) and not name.isdigit()):
            raise ColumnError(
                f"{path}: the first line has {name!r} where the name of a worker should be: put a header "
                "before the first step, with a name for each column (pandas: index=False)"
            )
    # A step's column of another name must not pass for a worker.
    odd = len(header) > 2 and _alike(header[1:]) and not _alike(header)
    if step not in header and (step != "step" or odd or _near("step", header)):
        raise ColumnError(_no_column(path, header, [step]))


def _no_column(path: str, header: Sequence[str], missing: Sequence[str]) -> str:
    shown = ", ".join(name[:40] or "''" for name in header[:12]) + (", …" if len(header) > 12 else "")
    near = ", ".join(dict.fromkeys(name for wanted in missing for name in _near(wanted, header)))
    return (
        f"{path} has no column {', '.join(missing)}: it has {shown}{near and f' (did you mean {near}?)'}. A "
        "long trace has a row for each step and worker and the columns step, worker, seconds: give other "
        "names by step=, worker=, seconds=. A wide one has a row for each step and a column for each "
        'worker, named after it, beside the step\'s: ask for it by layout="wide"'
    )


def _near(wanted: str, header: Sequence[str]) -> list[str]:
    lower = {name.lower(): name for name in header}
    return [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=1)]


def _alike(names: Sequence[str]) -> bool:
    """Whether the names differ in their numbers only."""
    shapes = {re.sub(r"\d+", "0", name) for name in names}
    return len(shapes) == 1 and "0" in shapes.pop()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_of(label: str, known: dict[str, int]) -> int:
    """The number of a label without blanks around it, by first mention."""
    name = label.strip()
    if not name:
        raise ValueError("the label of a step or worker is empty")
    return known.setdefault(name, len(known))


def _read(rows: Rows, path: str, at: dict[str, int], names: dict[str, str]) -> Trace:
    """From long rows, `at` which places they have each column, and its name in the file."""
    # Arrays: lists of numbers would take five times their memory.
    step, worker, lines = array("i"), array("i"), array("q")
    seconds, censored, load = array("d"), array("b"), array("d")
    steps, workers = dict[str, int](), dict[str, int]()
    first, second, third = at["step"], at["worker"], at["seconds"]
    cut, work, name = at.get("censored"), at.get("load"), names["seconds"]
    for line, row in rows:
        try:
            i, j = _number_of(row[first], steps), _number_of(row[second], workers)
            if not (time := _positive(row[third], name)):
                continue
            done = math.nan if work is None else _positive(row[work], names["load"])
            if not done:
                raise ValueError(f"{names['load']} is empty, and the time is not: how much was done by then?")
            step.append(i)
            worker.append(j)
            seconds.append(time)
            censored.append(cut is not None and _flag(row[cut], names["censored"]))
            load.append(done)
            lines.append(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error} (worker {row[second]})") from None
    if not seconds:
        raise ValueError(f"{path} has no measured time: there are no rows, or empty ones")
    step_names, worker_names = np.array(list(steps)), np.array(list(workers))
    order = _time_order(step_names)
    trace = Trace(
        step_names[order],
        worker_names,
        np.argsort(order).astype(np.int32)[np.frombuffer(step, np.int32)],
        np.frombuffer(worker, np.int32),
        np.frombuffer(seconds),
        np.frombuffer(censored, bool),
        None if work is None else np.frombuffer(load),
    )
    _check_cells(trace, path, lines)
    return trace


def _check_cells(trace: Trace, path: str, lines: Sequence[int]) -> None:
    """ValueError for two rows of a cell that cannot both be."""
    load = np.zeros(trace.seconds.size) if trace.load is None else trace.load
    rows = np.lexsort((load, trace.cell))
    cell, more, later = (np.diff(column[rows]) for column in (trace.cell, load, trace.seconds))
    found = np.flatnonzero((cell == 0) & ((more == 0) | (later < 0)))
    if not found.size:
        return
    pairs = np.sort([rows[found], rows[found + 1]], axis=0)
    a, b = pairs[:, np.argmin(pairs[1])]  # the first to be noticed
    step, worker = trace.step_names[trace.step[a]], trace.worker_names[trace.worker[a]]
    what = f"step {step} has two times of worker {worker}"
    if trace.load is not None:
        one, other = (f"{trace.seconds[k]:g} at load {load[k]:g}" for k in (a, b))
        what += (
            f", {one} and {other}: there is one time of a load, and seconds count from the beginning of the "
            "iteration, so they grow with the load"
        )
    raise ValueError(f"{path}, lines {lines[a]} and {lines[b]}: {what}")


def _positive(text: str, name: str) -> float:
    """A positive number, or 0 for an empty cell."""
    try:
        value = float(text)
    except ValueError:
        if not text.strip():
            return 0.0
        value = math.nan
    if 0 < value < math.inf and "_" not in text:
        return value
    advice = ""
    if text.strip().lower() in _NO_TIME:
        advice = ": leave the cell empty where nothing was measured"
    elif text.count(",") == 1 and _is_number(text.replace(",", ".")):
        advice = ": write the decimal comma as a point"
    raise ValueError(f"{name} must be a positive number, got {text[:40]!r}{advice}")


def _time_order(names: np.ndarray) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        with contextlib.suppress(ValueError, OverflowError):
            if np.isfinite(numbers := names.astype(dtype)).all():
                return np.argsort(numbers, kind="stable")
    return np.arange(len(names))


def _flag(text: str, name: str) -> bool:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise ValueError(f"{name} must be one of {', '.join(_FLAGS)}, got {text[:40]!r}")
    return flag
