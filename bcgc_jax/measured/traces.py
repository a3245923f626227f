"""Measured cycle times: the seconds of each step and worker, read from CSV or Parquet."""

import contextlib
import difflib
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from bcgc_jax.measured.tables import Table, open_table, opened

LAYOUTS = ("auto", "long", "wide")
# The column of the loads, where none is named.
LOAD = "load"
# What each column holds, as `tables` has it.
_KIND_OF = {"step": "label", "worker": "label", "seconds": "number", "censored": "flag", "load": "load"}

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
    """Read measured times from CSV (separated by comma, semicolon, tab or |), also by gzip, or Parquet.

    An empty cell (Parquet: null) is a time that was not measured.

    Args:
      path: of a file; or an open one of bytes, such as `sys.stdin.buffer` (Parquet: one that can be sought).
      step, worker, seconds: the names of the columns; others are ignored in the long layout.
      censored: the column that says, by 0/1, false/true or no/yes, whether the worker was cut off.
      load: the column of the work done when the seconds were over, in any unit; by default `load`, where
        there is one. A step and worker may then have several rows, one for each load.
      layout: "long", a row for each step and worker; "wide", a row for each step and a column named after
        each worker, the step column optional; "auto", wide only where there is neither a worker nor a seconds
        column and the columns are numbered alike, like w0, w1.
      progress: called now and then with the share that has been read.

    Raises ValueError, with the line (Parquet: the row), for what is no trace, such as two times of one cell
    and load, or times of a cell that fall while its load grows; OSError for a file that cannot be opened;
    ImportError where Parquet's reader is missing.

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
    asked = zip(_KIND_OF, (step, worker, seconds, censored, load), strict=True)
    columns = {column: name for column, name in asked if name is not None}
    if len({*columns.values()}) < len(columns):
        raise ValueError(f"{', '.join(_KIND_OF)} must be different columns, got {[*columns.values()]}")
    with contextlib.ExitStack() as stack:
        if isinstance(path, str | os.PathLike):
            name, file = str(path), stack.enter_context(open(path, "rb"))
        else:
            name, file = opened(path)
        table = open_table(file, name, progress or (lambda share: None))
        return _read(table, name, *_places(name, table.header, columns, layout))


def _places(
    path: str, header: Sequence[str], columns: Mapping[str, str], layout: str
) -> tuple[list[int], list[str]]:
    """The places of all columns to read, and what kind each is: labels first, then times (long: one)."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one")
    if "load" not in columns and LOAD in header and LOAD not in columns.values():
        columns = {**columns, "load": LOAD}
    names, kinds = list(columns.values()), [_KIND_OF[column] for column in columns]
    missing = [name for name in names if name not in header]
    others = [name for name in header if name != names[0]]
    if layout == "auto":
        # A long file whose columns have other names must not pass for a wide one, nor a row of numbers for a
        # header.
        wide = names[1:] == ["worker", "seconds"] and missing[-2:] == names[1:] and len(others) > 1
        wide = wide and _alike(others) and (names[0] in header or not _is_number(others[0]))
        layout = "wide" if wide else "long"
    if layout == "long":
        if missing:
            raise ColumnError(_no_column(path, header, missing))
        return [header.index(name) for name in names], kinds
    _check_wide(path, header, names, kinds, others)
    # The step's column first: sorting keeps the order of the others.
    places = sorted(range(len(header)), key=lambda k: header[k] != names[0])
    return places, ["label"] * (len(header) - len(others)) + ["number"] * len(others)


def _check_wide(
    path: str, header: Sequence[str], names: list[str], kinds: list[str], others: list[str]
) -> None:
    if len(names) > 3:
        what = "loads" if "load" in kinds else "censored times"
        raise ValueError(f"{path}: the wide layout has no place for {what}, use the long one")
    if not set(names[1:]) - set(header):
        raise ValueError(f"{path} has the columns {names[1]} and {names[2]}: it is long, not wide")
    # A step's column of another name must not pass for a worker.
    if others and all(_is_number(name) and not name.isdigit() for name in others):
        raise ColumnError(
            f"{path}: the first line holds numbers ({', '.join(others[:3])}, …) and no names of workers: put "
            "a header before it, or the first step is lost"
        )
    odd = len(header) > 2 and _alike(header[1:]) and not _alike(header)
    if names[0] not in header and (names[0] != "step" or odd or _near("step", header)):
        raise ColumnError(_no_column(path, header, names[:1]))
    if not others:
        raise ValueError(f"{path} has no column of a worker")
    if any(not name or re.fullmatch(r"__index_level_\d+__", name) for name in others):
        raise ValueError(f"{path} has a column without a name: name it or remove it (pandas: index=False)")


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


class _Codes(dict[str, int]):
    """Labels numbered by first mention, blanks around them dropped."""

    def __missing__(self, label: str) -> int:
        name = label.strip()
        if name != label:
            return self[name]
        if not name:
            raise ValueError("the label of a step or worker is empty")
        self[name] = code = len(self)
        return code


def _read(table: Table, path: str, places: list[int], kinds: list[str]) -> Trace:
    # Arrays: lists of numbers would take five times their memory.
    step, worker, line = array("i"), array("i"), array("q")
    seconds, censored, load = array("d"), array("b"), array("d")
    steps, workers = _Codes(), _Codes()
    header, labels = [table.header[k] for k in places], kinds.count("label")
    flag, work = (kinds.index(kind) if kind in kinds else None for kind in ("flag", "load"))
    long = labels == 2
    codes = [] if long else [workers[name] for name in header[labels:]]
    names = [f"seconds of worker {name}" for name in header[labels:]]
    for number, (at, row) in enumerate(table.rows(places, kinds), 1):
        try:
            i = steps[row[0] if labels else str(number)]
            one = ((workers[row[1]], header[2], row[2]),) if long else ()
            for j, name, text in one or zip(codes, names, row[labels:], strict=True):
                if not (time := _positive(text, name)):
                    continue
                done = math.nan if work is None else _positive(row[work], header[work])
                if not done:
                    raise ValueError(
                        f"{header[work or 0]} is empty, and {name} is not: how much was done by then?"
                    )
                step.append(i)
                worker.append(j)
                seconds.append(time)
                censored.append(flag is not None and _flag(row[flag], header[flag]))
                load.append(done)
                line.append(at)
        except ValueError as error:
            raise ValueError(f"{path}, {table.unit} {at}: {error}") from None
    if not steps:
        raise ValueError(f"{path} has a header and no rows")
    if not seconds:
        raise ValueError(f"{path} has no measured time: its cells are empty")
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
    _check_cells(trace, f"{path}, {table.unit}s", line)
    return trace


def _check_cells(trace: Trace, where: str, line: Sequence[int]) -> None:
    """ValueError for two rows of a cell that cannot both be."""
    load = np.zeros(trace.seconds.size) if trace.load is None else trace.load
    cell, seconds = trace.cell, trace.seconds
    rows = np.lexsort((load, cell))
    before, after = rows[:-1], rows[1:]
    same = cell[before] == cell[after]
    again = same & (load[before] == load[after])
    found = np.flatnonzero(again | (same & (seconds[before] > seconds[after])))
    if not found.size:
        return
    k = found[np.argmin(np.maximum(before, after)[found])]
    a, b = before[k], after[k]
    step, worker = trace.step_names[trace.step[a]], trace.worker_names[trace.worker[a]]
    if again[k]:
        at = "" if trace.load is None else f" at load {load[a]:g}"
        what = f"step {step} has two times of worker {worker}{at}"
    else:
        what = (
            f"step {step}, worker {worker} had done {load[b]:g} after {seconds[b]:g}, and less ({load[a]:g}) "
            f"only after {seconds[a]:g}: seconds count from the beginning of the iteration and grow with load"
        )
    raise ValueError(f"{where} {line[min(a, b)]} and {line[max(a, b)]}: {what}")


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
