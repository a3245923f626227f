"""Measured cycle times: the seconds of each step and worker, read from CSV or Parquet."""

import contextlib
import csv
import difflib
import gzip
import io
import itertools
import math
import operator
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bcgc_jax._extras import to_install
from bcgc_jax.laws import Empirical

LAYOUTS = ("auto", "long", "wide")

_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_GZIP = b"\x1f\x8b"
_NO_TIME = {"nan", "na", "n/a", "null", "none", "-"}
_LONGEST_LABEL, _LONGEST_HEADER, _BATCH = 200, 1 << 20, 1 << 16
# Types of Parquet columns, as Arrow writes them.
_LABEL, _NUMBER = r"(large_)?string|u?int\d+", r"u?int\d+|halffloat|float|double|null"


class ColumnError(ValueError):
    """A file does not have the columns that it was read by."""


class Trace(NamedTuple):
    """The times of S steps and W workers, one of R for each cell that was measured.

    Args:
      step_names: `[S]`, str, in the order of their numbers, or of first mention where one is no number.
      worker_names: `[W]`, str, in the order of first mention.
      step, worker: `[R]`, int, places in the two.
      seconds: `[R]`, float64, positive.
      censored: `[R]`, bool: the worker was cut off, its time is longer than that.

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

    @property
    def num_workers(self) -> int:
        return len(self.worker_names)

    @property
    def num_steps(self) -> int:
        return len(self.step_names)

    @property
    def num_missing(self) -> int:
        """How many of the S·W cells have no time, not even a censored one."""
        return self.num_steps * self.num_workers - len(self.seconds)

    def law(self) -> Empirical:
        """The law of all measured times together, workers taken as alike.

        Raises ValueError where times are censored.
        """
        if self.censored.any():
            raise ValueError(
                f"{np.count_nonzero(self.censored)} of {len(self.censored)} times are censored: an atomic "
                "law needs whole times, use smooth_empirical"
            )
        return Empirical(self.seconds)

    def table(self) -> np.ndarray:
        """The times as `[S, W]`, NaN where there is none or only a censored one."""
        times = np.full((self.num_steps, self.num_workers), np.nan)
        times[self.step, self.worker] = np.where(self.censored, np.nan, self.seconds)
        return times

    def rows(self) -> np.ndarray:
        """The times of each step, `[S, W]`; ValueError where one is missing or censored."""
        times = self.table()
        lacks = np.isnan(times)
        if lacks.any():
            i, j = np.unravel_index(np.argmax(lacks), times.shape)
            step, worker = self.step_names[i], self.worker_names[j]
            kind = "only a censored" if np.any((self.step == i) & (self.worker == j)) else "no"
            raise ValueError(f"step {step} has {kind} time of worker {worker}: a replay needs all")
        return times

    def split(self, num_steps: int) -> tuple["Trace", "Trace"]:
        """The first `num_steps` steps, and the rest, of the same workers.

        Raises ValueError unless 1 ≤ num_steps < S.
        """
        if not 1 <= num_steps < self.num_steps:
            raise ValueError(
                f"num_steps must be at least 1 and leave one of the {self.num_steps} steps, got {num_steps}"
            )
        first = self.step < num_steps
        return self._part(slice(num_steps), first), self._part(slice(num_steps, None), ~first)

    def _part(self, steps: slice, rows: np.ndarray) -> "Trace":
        step, *rest = (x[rows] for x in (self.step, self.worker, self.seconds, self.censored))
        return Trace(self.step_names[steps], self.worker_names, step - (steps.start or 0), *rest)


def load_trace(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    step: str = "step",
    worker: str = "worker",
    seconds: str = "seconds",
    censored: str | None = None,
    layout: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Trace:
    """Read measured times from CSV (separated by comma, semicolon, tab or |), also by gzip, or Parquet.

    An empty cell (Parquet: null) is a time that was not measured.

    Args:
      path: of a file; or an open one of bytes, such as `sys.stdin.buffer` (Parquet: one that can be sought).
      step, worker, seconds: the names of the columns; others are ignored in the long layout.
      censored: the column that says, by 0/1, false/true or no/yes, whether the worker was cut off.
      layout: "long", a row for each step and worker; "wide", a row for each step and a column for each
        worker, named after it, the step column optional; "auto", wide only where there is neither a worker
        nor a seconds column and the columns are numbered alike, like w0, w1.
      progress: called now and then with the share that has been read.

    Raises ValueError, with the line (Parquet: the row), for what is no trace, two times of one cell included;
    OSError for a file that cannot be opened, ImportError where Parquet's reader is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "steps.csv")
    ...     _ = path.write_text("step,w0,w1\\n10,1.5,2.5\\n9,,1.25\\n")
    ...     trace = load_trace(path)
    >>> trace.step_names.tolist(), trace.worker_names.tolist(), trace.table().tolist()
    (['9', '10'], ['w0', 'w1'], [[nan, 1.25], [1.5, 2.5]])
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    names = [step, worker, seconds] + ([] if censored is None else [censored])
    if len(set(names)) < len(names):
        raise ValueError(
            f"step, worker, seconds and censored must be different columns, got {', '.join(names)}"
        )
    report = progress or (lambda share: None)
    if not isinstance(path, str | os.PathLike):
        return _load(_peekable(path), _name_of(path), names, layout, report)
    with open(path, "rb") as file:
        return _load(file, str(path), names, layout, report)


def _load(
    file: io.BufferedReader, path: str, names: list[str], layout: str, progress: Callable[[float], None]
) -> Trace:
    begin = file.peek(4)[:4]
    if begin == b"PAR1" or Path(path).suffix.lower() in (".parquet", ".pq"):
        if not file.seekable():
            raise ValueError(f"{path} is Parquet, which is read from its end: give the path of a file")
        table = _parquet(file, path, progress)
    else:
        table = _csv(file, path, begin[:2] == _GZIP, progress)
    return _read(table, path, *_columns(path, table.header, names, layout))


def _peekable(file: Any) -> io.BufferedReader:
    return file if hasattr(file, "peek") else io.BufferedReader(file)


def _name_of(file: Any) -> str:
    name = getattr(file, "name", "")
    return "standard input" if name == "<stdin>" else name if isinstance(name, str) and name else "the stream"


class _Table(NamedTuple):
    """An open file: `rows(labels, places)` gives each row's number and its texts at these places."""

    unit: str
    header: Sequence[str]
    rows: Callable[[int, Sequence[int]], Iterator[tuple[int, Sequence[str]]]]


def _columns(path: str, header: Sequence[str], names: list[str], layout: str) -> tuple[int, list[int]]:
    """How many columns are labels (2: long, 1 or 0: wide) and the places of all to read, labels first."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one")
    others = [name for name in header if name != names[0]]
    missing = [name for name in names if name not in header]
    if layout == "auto":
        # A long file whose columns have other names must not pass for a wide one, nor a row of numbers for a
        # header.
        wide = names[1:] == ["worker", "seconds"] and missing[-2:] == names[1:] and len(others) > 1
        wide = wide and _alike(others) and (names[0] in header or not _is_number(others[0]))
        layout = "wide" if wide else "long"
    if layout == "long":
        if missing:
            raise ColumnError(_no_column(path, header, missing))
        return 2, [header.index(name) for name in names]
    if len(names) > 3:
        raise ValueError(f"{path}: the wide layout has no place for censored times, use the long one")
    if not set(names[1:]) & set(missing):
        raise ValueError(f"{path} has the columns {names[1]} and {names[2]}: it is long, not wide")
    # A step's column of another name must not pass for a worker.
    if others and all(_is_number(name) and not name.isdigit() for name in others):
        raise ColumnError(
            f"{path}: the first line holds numbers ({', '.join(others[:3])}, …) and no names of workers: put "
            "a header before it, or the first step is lost"
        )
    odd = len(header) > 2 and _alike(header[1:]) and not _alike(header)
    if names[0] in missing and (names[0] != "step" or odd or _near("step", header)):
        raise ColumnError(_no_column(path, header, names[:1]))
    if not others:
        raise ValueError(f"{path} has no column of a worker")
    if any(not name or re.fullmatch(r"__index_level_\d+__", name) for name in others):
        raise ValueError(
            f"{path} has a column without a name, which would be a worker: name it or remove it (pandas: "
            "index=False)"
        )
    # The step's column first: sorting keeps the order of the others.
    return len(header) - len(others), sorted(range(len(header)), key=lambda k: header[k] != names[0])


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
        if len(name) > _LONGEST_LABEL or "\0" in name:
            raise ValueError(f"no label of a step or worker: {name[:20]!r}… of {len(name)} characters")
        self[name] = code = len(self)
        return code


def _read(table: _Table, path: str, labels: int, places: list[int]) -> Trace:
    # Arrays: lists of numbers would take five times their memory.
    step, worker, line = array("i"), array("i"), array("q")
    seconds, censored = array("d"), array("b")
    steps, workers = _Codes(), _Codes()
    header = [table.header[k] for k in places]
    long, flagged, cut = labels == 2, labels == 2 and len(header) == 4, False
    try:
        codes = [] if long else [workers[name] for name in header[labels:]]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = [f"seconds of worker {name}" for name in header[labels:]]
    for number, (at, row) in enumerate(table.rows(labels, places), 1):
        try:
            i = steps[row[0] if labels else str(number)]
            cells: Iterable[tuple[int, str, str]] = (
                ((workers[row[1]], header[2], row[2]),)
                if long
                else zip(codes, names, row[labels:], strict=True)
            )
            for j, name, text in cells:
                time = _seconds(text, name)
                if time:
                    if flagged:
                        cut = _flag(row[3], header[3])
                    step.append(i)
                    worker.append(j)
                    seconds.append(time)
                    censored.append(cut)
                    line.append(at)
        except ValueError as error:
            raise ValueError(f"{path}, {table.unit} {at}: {error}") from None
    if not steps:
        raise ValueError(f"{path} has a header and no rows")
    if not seconds:
        raise ValueError(f"{path} has no measured time: its cells are empty")
    step_names, worker_names = np.array(list(steps)), np.array(list(workers))
    steps.clear()
    step_of, worker_of = np.frombuffer(step, np.int32), np.frombuffer(worker, np.int32)
    cell = step_of.astype(np.int64) * len(worker_names) + worker_of
    ordered = np.sort(cell)
    if np.any(ordered[1:] == ordered[:-1]):
        rows = np.argsort(cell, kind="stable")
        rows, again = rows[:-1], rows[1:]
        same = np.flatnonzero(cell[rows] == cell[again])
        k = same[np.argmin(again[same])]
        twice = step_names[step_of[rows[k]]], worker_names[worker_of[rows[k]]]
        raise ValueError(
            f"{path}, {table.unit}s {line[rows[k]]} and {line[again[k]]}: step {twice[0]} has two times of "
            f"worker {twice[1]}"
        )
    order = _time_order(step_names)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    times, cuts = np.frombuffer(seconds), np.frombuffer(censored, bool)
    return Trace(step_names[order], worker_names, rank[step_of], worker_of, times, cuts)


def _time_order(names: np.ndarray) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        try:
            numbers = names.astype(dtype)
        except (ValueError, OverflowError):
            continue
        if np.isfinite(numbers).all():
            return np.argsort(numbers, kind="stable")
    return np.arange(len(names))


def _seconds(text: str, name: str) -> float:
    """A positive time, or 0 for an empty cell."""
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


def _flag(text: str, name: str) -> bool:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise ValueError(f"{name} must be one of {', '.join(_FLAGS)}, got {text[:40]!r}")
    return flag


def _num_fields(line: str, separator: str) -> int:
    with contextlib.suppress(csv.Error):
        return len(next(csv.reader([line], delimiter=separator)))
    return 0


def _size(file: Any) -> int:
    """Bytes of an open file; 0 of a pipe."""
    with contextlib.suppress(OSError):
        return os.fstat(file.fileno()).st_size if file.seekable() else 0
    return 0


@contextlib.contextmanager
def _reading_csv(path: str, line: Callable[[], int]) -> Iterator[None]:
    """Errors of the readers below, in words; `line` is the one that is read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file (UTF-8): {error.reason}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {line()}: not a CSV file: {error}") from None


def _csv(file: Any, path: str, compressed: bool, progress: Callable[[float], None]) -> _Table:
    content = gzip.GzipFile(fileobj=file) if compressed else file
    text = io.TextIOWrapper(content, "utf-8-sig", newline="")
    head, blank = "\n", -1

    def reading() -> contextlib.AbstractContextManager[None]:
        return _reading_csv(path, lambda: blank + reader.line_num)

    with reading():
        while head.isspace():
            head, blank = text.readline(_LONGEST_HEADER), blank + 1
    if not head:
        raise ValueError(f"{path} is empty: a trace has a header and rows of measured times")
    if len(head) == _LONGEST_HEADER or "\0" in head:
        raise ValueError(f"{path} is not a text file (UTF-8): its first line is no header")
    separator = max(",;\t|", key=lambda separator: _num_fields(head, separator))
    reader = csv.reader(
        itertools.chain([head], text), delimiter=separator, skipinitialspace=True, strict=True
    )
    with reading():
        header = [name.strip() for name in next(reader)]

    def rows(labels: int, places: Sequence[int]) -> Iterator[tuple[int, Sequence[str]]]:
        size, width = _size(file), len(header)
        pick: Callable[[list[str]], Sequence[str]] = operator.itemgetter(*places) if width > 1 else list
        with reading():
            for count, row in enumerate(reader, 1):
                if row:
                    if len(row) != width:
                        raise ValueError(
                            f"{path}, line {blank + reader.line_num}: {len(row)} fields, the header has "
                            f"{width} (separated by {separator!r}): is the line cut off, or has it another "
                            "separator or a decimal comma?"
                        )
                    yield blank + reader.line_num, pick(row)
                if size and count % 4096 == 0:
                    progress(min(file.tell() / size, 1.0))
        progress(1.0)

    return _Table("line", header, rows)


def _parquet(file: Any, path: str, progress: Callable[[float], None]) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow: {to_install('parquet')}") from error

    @contextlib.contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from None

    with reading():
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow

    def rows(labels: int, places: Sequence[int]) -> Iterator[tuple[int, Sequence[str]]]:
        for i, k in enumerate(places):
            kinds, expected = (_LABEL, "text or whole numbers") if i < labels else (_NUMBER, "numbers")
            if labels == 2 and i == 3:
                kinds, expected = f"bool|{_LABEL}", "booleans"
            kind = str(schema.field(k).type)
            if not re.fullmatch(kinds, re.sub(r"^dictionary<values=(\w+),.*", r"\1", kind)):
                raise ValueError(f"{path}: the column {schema.names[k]} holds {kind}, expected {expected}")
        row = 0
        with reading():
            for batch in table.iter_batches(_BATCH, columns=[schema.names[k] for k in places]):
                texts = []
                for k in places:
                    values = batch.column(schema.names[k])
                    if hasattr(values, "dictionary_decode"):
                        values = values.dictionary_decode()
                    if re.fullmatch("halffloat|float", str(values.type)):
                        values = values.cast("double")
                    texts.append(values.cast("string").fill_null("").to_pylist())
                yield from enumerate(zip(*texts, strict=True), row + 1)
                row += len(batch)
                progress(row / table.metadata.num_rows)

    return _Table("row", [name.strip() for name in schema.names], rows)
