"""Measured cycle times: seconds of each step and worker, from CSV or JSON lines."""

import contextlib
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from bcgc_jax.traces import shared_logs
from bcgc_jax.traces.microbatches import Microbatches
from bcgc_jax.traces.tables import (
    ColumnError,
    Rows,
    Source,
    noted_hosts,
    read_tables,
    shared_hosts,
)
from bcgc_jax.traces.units import UNITS

LAYOUTS = ("auto", "long", "wide")
# Sums and squares of such numbers are finite.
_LEAST, _MOST = 1e-30, 1e30
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class Trace(NamedTuple):
    """R times of S steps and W workers: one of each cell, or with loads one of each
    load of a cell.

    Args:
      step_names: `[S]`, str, in the order of their numbers, or of first mention where
        one is no number.
      worker_names: `[W]`, str, sorted, numbers in them by value: "w2" before "w10".
      step, worker: `[R]`, int, places in the two.
      seconds: `[R]`, float64, positive; from the beginning of the iteration.
      censored: `[R]`, bool: the worker was cut off, its time is longer than that.
      load: `[R]`, float64, positive: the work done by then, in any unit; None where it
        is always the same.
      of_cycles: whether the seconds are those of a cycle, as `per_cycle` makes them,
        not of an iteration.
      microbatches: what the seconds are sums of, where each chunk was timed; else None.
      of_lengths: whether the seconds are what lengths alone are said to cost.
      collective: `[S]`, seconds of the collective itself, the least wait of a step's
        workers, NaN without times; None where the file has no waits.
      hosts: that of each worker, by number; None where the file does not say which
        workers share one.

    >>> names, twice = np.array(["a", "b"]), np.array([0, 0, 1])
    >>> trace = Trace(
    ...     names,
    ...     names,
    ...     twice,
    ...     np.array([0, 1, 0]),
    ...     np.array([3.0, 1.0, 2.0]),
    ...     twice > 0,
    ... )
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
    microbatches: Microbatches | None = None
    collective: np.ndarray | None = None
    of_lengths: bool = False
    hosts: tuple[int, ...] | None = None

    @property
    def num_workers(self) -> int:
        return len(self.worker_names)

    @property
    def num_steps(self) -> int:
        return len(self.step_names)

    @property
    def forward_ratio(self) -> float | None:
        """Time of forward passes over backward ones; None if not timed apart."""
        return None if self.microbatches is None else self.microbatches.forward_ratio

    @property
    def num_missing(self) -> int:
        """The number of the S·W cells that have no time, not even a censored one."""
        return self.num_steps * self.num_workers - np.unique(self.cell).size

    @property
    def cell(self) -> np.ndarray:
        """The step and the worker in one number, `[R]`, int."""
        return self.step.astype(np.int64) * self.num_workers + self.worker

    def largest_loads(self) -> "Trace":
        """Keep each cell's time of the largest load; all times, without loads."""
        if self.load is None:
            return self
        order = np.lexsort((self.load, self.cell))
        last = np.sort(order[np.append(np.diff(self.cell[order]) > 0, True)])
        columns = ("step", "worker", "seconds", "censored", "load")
        return self._replace(**{name: getattr(self, name)[last] for name in columns})

    def per_cycle(self) -> "Trace":
        """Return seconds over the largest load, as if all time grew with it."""
        if self.load is None:
            return self
        last = self.largest_loads()
        return last._replace(
            seconds=last.seconds / last.load, load=None, of_cycles=True
        )

    def table(self) -> np.ndarray:
        """Return the times as `[S, W]`, NaN where there is none or only a censored one.

        Raises ValueError where there are loads.
        """
        if self.load is not None:
            raise ValueError(
                "these are times of loads, no cycle times: take per_cycle()"
            )
        times = np.full((self.num_steps, self.num_workers), np.nan)
        times[self.step, self.worker] = np.where(self.censored, np.nan, self.seconds)
        return times

    def rows(self) -> np.ndarray:
        """Return the times of each step, `[S, W]`.

        Raises ValueError where one is missing or censored, and where there are loads.
        """
        times = self.table()
        missing = np.argwhere(np.isnan(times))
        if missing.size:
            step = self.step_names[missing[0, 0]]
            worker = self.worker_names[missing[0, 1]]
            raise ValueError(
                f"step {step} has no whole time of worker {worker}: a replay needs "
                "all. Leave out the steps in which a worker has none"
            )
        return times


def load_trace(
    path: str | os.PathLike[str] | BinaryIO | Sequence[str | os.PathLike[str]],
    *,
    step: str = "step",
    worker: str = "worker",
    seconds: str = "seconds",
    censored: str | None = None,
    load: str | None = None,
    chunk: str | None = None,
    forward: str | None = None,
    wait: str | None = None,
    host: str | None = None,
    cost: tuple[float, float] | None = None,
    layout: str = "auto",
    unit: str = "s",
) -> Trace:
    r"""Read measured times from CSV or JSON lines, also gzipped; empty and null are not
    measured.

    Args:
      path: of a file, with commas, semicolons, tabs or |; or an open one of bytes, as
        `sys.stdin.buffer`; or several paths, of files with the same columns, such as
        one of each worker. Where these have no column of the worker it is the file's
        name.
      step, worker, seconds: the names of the columns; others are ignored in the long
        layout.
      censored: the column that says, by 0/1, false/true or no/yes, whether the worker
        was cut off.
      load: the column of the work done when the seconds were over, in any unit; by
        default `load`, where there is one. An empty column counts for none. A step and
        worker may then have several rows, one for each load.
      chunk, forward: the columns of a chunk's number and of its forward pass, see
        below.
      wait: the column of the seconds within `seconds` that the worker was in
        collectives, where it waits for others; by default `wait`, where there is one.
        An empty cell is 0. The trace has what is left, the worker's own seconds. All
        leave a collective together, so the least wait of a step is what the collective
        itself takes.
      host: the column of the worker's host, always the same; by default `host`, where
        there is one.
      cost: a and b, of a log of lengths alone, with the columns `chunk` and `load` and
        no seconds: a chunk of length L is taken to cost a L + b L².
      layout: "long", a row for each step and worker; "wide", a row for each step and a
        column named after each worker, the step column optional; "auto", wide only
        where there is neither a worker nor a seconds column and the columns are
        numbered alike, like w0, w1.
      unit: of the file's times: "s", "ms", "us" or "ns". Those of the trace are
        seconds.

    A file with a column `chunk` has a row for each chunk (microbatch) of a worker's
    step: its number there, its seconds, and perhaps `forward_seconds`, its forward
    pass's part of them; other names may be given. `load` is then its length, and
    `asking` the seconds of the question before it, which `dispatch.serve` writes. Of a
    shared step of such a log, with columns `subset` and `share`, these are the seconds
    that workers would have taken for their own chunks. The seconds of the trace are the
    sums, and `Trace.microbatches` has the parts. A worker's step that lacks some of
    them has no time.

    Raises ValueError, with the line, for what is no trace, such as two times of one
    cell and load, or times of a cell that fall while its load grows; OSError for a file
    that cannot be opened.

    >>> import io
    >>> trace = load_trace(io.BytesIO(b"step,w0,w1\n10,1.5,2.5\n9,,1.25\n"))
    >>> trace.step_names.tolist(), trace.worker_names.tolist(), trace.table().tolist()
    (['9', '10'], ['w0', 'w1'], [[nan, 1.25], [1.5, 2.5]])
    >>> file = io.BytesIO(b"step,worker,seconds,wait\n1,a,1,.125\n1,b,1,.5\n")
    >>> trace = load_trace(file)
    >>> trace.table().tolist(), trace.collective.tolist()
    ([[0.875, 0.5]], [0.125])
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    asked = {
        "step": step,
        "worker": worker,
        "seconds": seconds,
        "censored": censored,
        "load": load,
    }
    asked |= {"chunk": chunk, "forward": forward, "wait": wait, "host": host}
    columns = {column: name for column, name in asked.items() if name is not None}
    if len({*columns.values()}) < len(columns):
        raise ValueError(
            f"{', '.join(asked)} must be different columns, got {[*columns.values()]}"
        )
    paths = [path] if isinstance(path, str | os.PathLike) else path
    if not isinstance(paths, Sequence):
        stream = getattr(paths, "name", 0)
        # The name of a pipe is a number.
        name = stream if isinstance(stream, str) else "the stream"
        source = Source([name.replace("<stdin>", "standard input")], [])
        return _read([paths], source, columns, layout, UNITS[unit], cost)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(open(name, "rb")) for name in paths]
        source = Source([str(name) for name in paths], [])
        return _read(files, source, columns, layout, UNITS[unit], cost)


def _read(
    files: Sequence[BinaryIO],
    source: Source,
    names: dict[str, str],
    layout: str,
    unit: float,
    cost: tuple[float, float] | None,
) -> Trace:
    """Read open files as one log; `names` is what it calls each column.

    Columns of a default name need not be named. `unit` is of the times, in seconds.
    """
    rows = read_tables(files, source, names["worker"])
    _, header = next(rows)
    name = str(source)
    for column in ("load", "chunk", "wait", "host"):
        if column in header and column not in names.values():
            names.setdefault(column, column)
    if "chunk" in names and "forward_seconds" in header:
        names.setdefault("forward", "forward_seconds")
    if "chunk" in names and "asking" in header:
        names["asking"] = "asking"
    hosts: dict[str, str] = {}
    if {names["worker"], names.get("host")} <= {*header}:
        rows = noted_hosts(rows, source, header, names, hosts)
    if cost is None and "chunk" in names and {*shared_logs.COLUMNS} <= {*header}:
        rows = shared_logs.own_rows(rows, header, names)
    if cost is not None:
        _check_lengths(name, header, names)
        # Each length is read as if it were seconds, and then priced.
        names = {
            column: names[column] for column in ("step", "worker", "chunk", "load")
        }
        names["seconds"] = names["load"]
    elif _is_wide(name, header, names, layout):
        rows = _long_rows(rows, header, names["step"])
        header = [*names.values()]
    places = {column: header.index(of_file) for column, of_file in names.items()}
    trace = _trace_of(rows, source, places, names, unit)
    workers = trace.worker_names.tolist()
    trace = trace._replace(hosts=shared_hosts(workers, hosts, source))
    return trace if cost is None else _priced(trace, cost)


def _check_lengths(path: str, header: Sequence[str], names: dict[str, str]) -> None:
    """Raise ValueError for what is no log of lengths alone."""
    if names["seconds"] in header:
        raise ValueError(f"{path} has seconds: a cost is for a log of lengths alone")
    if not {"chunk", "load"} <= names.keys():
        raise ValueError(
            f"{path}: a log of lengths has the columns step, worker, chunk and load"
        )
    _check_columns(
        path, header, [names[name] for name in ("step", "worker", "chunk", "load")]
    )


def _priced(trace: Trace, cost: tuple[float, float]) -> Trace:
    """The trace with what lengths cost as its seconds, which are the lengths."""
    assert trace.microbatches is not None
    lengths = trace.microbatches.load
    assert lengths is not None
    seconds = cost[0] * lengths + cost[1] * lengths**2
    return trace._replace(
        seconds=seconds[trace.step, trace.worker].sum(axis=1),
        microbatches=Microbatches(seconds, load=seconds),
        of_lengths=True,
    )


def _is_wide(
    path: str, header: Sequence[str], columns: dict[str, str], layout: str
) -> bool:
    """Whether the layout is wide; ValueError where it lacks columns, or has others."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise ValueError(
            f"{path} has two columns {twice[0]!r}: rename one, or put a header first"
        )
    required_columns = list(columns.values())
    step, *names = required_columns
    workers = [name for name in header if name != step]
    # Neither must a long file with other names pass for a wide one, nor a row of
    # numbers for a header.
    with_header = step in header or not _is_number(workers[0])
    numbered = _alike(workers) and with_header and len(workers) > 1
    wide = layout == "wide" or (
        layout == "auto" and numbered and names == ["worker", "seconds"]
    )
    if wide:
        _check_wide(path, header, names, workers)
        # A step's column of another name must not pass for a worker.
        odd = len(header) > 2 and _alike(header[1:]) and not _alike(header)
        has_step = step != "step" or odd or header[0].lower().startswith("step")
        required_columns = [step] if has_step else []
    _check_columns(path, header, required_columns)
    return wide


def _check_wide(
    path: str, header: Sequence[str], names: Sequence[str], workers: Sequence[str]
) -> None:
    """Raise ValueError for columns of the long layout, or names that no worker has."""
    if len(names) > 2 or set(names) <= set(header):
        too_many = ", ".join(names[2:] or names)
        raise ValueError(
            f"{path}: the wide layout has no place for {too_many}, use the long one"
        )
    for name in workers:
        if not name or (_is_number(name) and not name.isdigit()):
            raise ColumnError(
                f"{path}: the first line has {name!r} where the name of a worker "
                "should be: put a header before the first step, with a name for each "
                "column (pandas: index=False)"
            )


def _check_columns(
    path: str, header: Sequence[str], required_columns: Sequence[str]
) -> None:
    missing = [name for name in required_columns if name not in header]
    if not missing:
        return
    if missing == ["seconds"] and {"chunk", "load"} <= {*header}:
        raise ColumnError(
            f"{path} has no column seconds. If it has lengths alone, say what they "
            "cost: cost="
        )
    header_names = [name[:40] or "''" for name in header[:12]]
    if len(header) > 12:
        header_names.append("…")
    raise ColumnError(
        f"{path} has no column {', '.join(missing)}: it has {', '.join(header_names)}. "
        "A long trace has a row for each step and worker and the columns step, worker, "
        "seconds: give other names by step=, worker=, seconds=. A wide one has a row "
        "for each step and a column for each worker, named after it, beside the "
        'step\'s: ask for it by layout="wide"'
    )


def _long_rows(rows: Rows, header: Sequence[str], step: str) -> Rows:
    """Yield step, worker and seconds of each cell; steps without a name are counted."""
    step_place = header.index(step) if step in header else None
    for number, (line, row) in enumerate(rows, 1):
        step_name = str(number)
        if step_place is not None:
            step_name = row[step_place]
        for k, worker in enumerate(header):
            if k != step_place:
                yield line, [step_name, worker, row[k]]


def _alike(names: Sequence[str]) -> bool:
    """Whether the names differ in their numbers only."""
    shapes = {re.sub(r"\d+", "0", name) for name in names}
    return len(shapes) == 1 and "0" in shapes.pop()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_of(label: str, numbers: dict[str, int], *, step: bool = False) -> int:
    """Number a label, without blanks around it, by first mention."""
    name = label.strip()
    if name not in numbers:
        _check_label(name, step)
    return numbers.setdefault(name, len(numbers))


def _check_label(name: str, step: bool) -> None:
    """Raise ValueError for what numbers nothing; steps may have numbers below 0."""
    if not name:
        raise ValueError("the label of a step, worker or chunk is empty")
    try:
        number = float(name)
    except ValueError:
        return
    if math.isnan(number) or not (step or 0 <= number < math.inf):
        raise ValueError(
            f"{name[:40]!r} is no label of a step, worker or chunk. Give a name, or a "
            "number: of workers and chunks from 0 on"
        )


class _Columns(NamedTuple):
    """The rows with a time, `[R]`, in numbers, and the names by first mention."""

    steps: list[str]
    workers: list[str]
    chunks: list[str]
    step: np.ndarray
    worker: np.ndarray
    chunk: np.ndarray
    seconds: np.ndarray
    forward: np.ndarray
    censored: np.ndarray
    load: np.ndarray
    asking: np.ndarray
    wait: np.ndarray
    line: np.ndarray


def _read_columns(
    rows: Rows, source: Source, index_of: dict[str, int], names: dict[str, str]
) -> _Columns:
    """Read long rows; `index_of` a column is its place, `names` what the file calls it.

    Seconds are a worker's own: without the wait.
    """
    # Arrays: lists of numbers would take five times their memory.
    step = array("i")
    worker = array("i")
    chunk = array("i")
    line_of = array("q")
    seconds = array("d")
    forward = array("d")
    censored = array("b")
    load = array("d")
    asking = array("d")
    wait = array("d")
    steps = dict[str, int]()
    workers = dict[str, int]()
    chunks = dict[str, int]()
    cut = index_of.get("censored")
    work = index_of.get("load")
    part = index_of.get("chunk")
    passed = index_of.get("forward")
    asked = index_of.get("asking")
    waited = index_of.get("wait")
    for line, row in rows:
        try:
            i = _number_of(row[index_of["step"]], steps, step=True)
            j = _number_of(row[index_of["worker"]], workers)
            if not (time := _positive(row[index_of["seconds"]], names["seconds"])):
                continue
            wait_there = (
                0.0 if waited is None else _wait(row[waited], names["wait"], time)
            )
            time -= wait_there
            done = 0.0 if work is None else _positive(row[work], names["load"])
            chunk.append(0 if part is None else _number_of(row[part], chunks))
            forward.append(math.nan if passed is None else _forward(row[passed], time))
            step.append(i)
            worker.append(j)
            seconds.append(time)
            censored.append(cut is not None and _flag(row[cut], names["censored"]))
            load.append(done or math.nan)
            asking.append(0.0 if asked is None else _positive(row[asked], "asking"))
            wait.append(wait_there)
            line_of.append(line)
        except ValueError as error:
            worker_name = row[index_of["worker"]]
            raise ValueError(
                f"{source.line(line)}: {error} (worker {worker_name})"
            ) from None
    if not seconds:
        raise ValueError(
            f"{source} has no measured time: there are no rows, or empty ones"
        )
    unknown = np.flatnonzero(np.isnan(np.frombuffer(load)))
    if work is not None and 0 < unknown.size < len(load):
        first = unknown[0]
        name = list(workers)[worker[first]]
        raise ValueError(
            f"{source.line(line_of[first])}: {names['load']} is empty, and the time is "
            "not: how much was done by then? Give it in all rows, or in none (worker "
            f"{name})"
        )
    return _Columns(
        steps=list(steps),
        workers=list(workers),
        chunks=list(chunks),
        step=np.frombuffer(step, np.int32),
        worker=np.frombuffer(worker, np.int32),
        chunk=np.frombuffer(chunk, np.int32),
        seconds=np.frombuffer(seconds),
        forward=np.frombuffer(forward),
        censored=np.frombuffer(censored, bool),
        load=np.frombuffer(load),
        asking=np.frombuffer(asking),
        wait=np.frombuffer(wait),
        line=np.frombuffer(line_of, np.int64),
    )


def _trace_of(
    rows: Rows,
    source: Source,
    index_of: dict[str, int],
    names: dict[str, str],
    unit: float,
) -> Trace:
    """Make a trace of long rows, as `_read_columns` reads them."""
    if "censored" in index_of and "chunk" in index_of:
        instead = "leave their steps out"
        raise ValueError(
            f"{source}: chunks that were cut off are not supported: {instead}"
        )
    columns = _read_columns(rows, source, index_of, names)
    columns = columns._replace(
        seconds=unit * columns.seconds, forward=unit * columns.forward
    )
    step_names = np.array(columns.steps)
    order = _time_order(step_names)
    workers = sorted(columns.workers, key=_with_numbers)
    place = np.array([workers.index(name) for name in columns.workers], np.int32)
    load = None
    if not np.isnan(columns.load).all():
        load = columns.load
    trace = Trace(
        step_names=step_names[order],
        worker_names=np.array(workers),
        step=np.argsort(order).astype(np.int32)[columns.step],
        worker=place[columns.worker],
        seconds=columns.seconds,
        censored=columns.censored,
        load=load,
    )
    if "wait" in index_of:
        # Several loads of a cell count from its beginning, chunks do not.
        added = np.add if "chunk" in index_of else np.maximum
        trace = trace._replace(
            collective=unit * _least_wait(trace, columns.wait, added)
        )
    if "chunk" in index_of:
        number = _numbers_of_chunks(trace, source, columns)
        forward = columns.forward if "forward" in index_of else None
        asking = columns.asking[columns.asking > 0]
        question = unit * float(np.median(asking)) if asking.size else None
        return _summed(trace, number, forward, question)
    _check_cells(trace, source, columns.line)
    return trace


def _least_wait(trace: Trace, wait: np.ndarray, added: np.ufunc) -> np.ndarray:
    """The least wait of a step's workers, `[S]`; `wait` is that of each row, `[R]`."""
    waits = np.full(trace.num_steps * trace.num_workers, np.nan)
    waits[trace.cell] = 0.0
    added.at(waits, trace.cell, wait)
    return np.fmin.reduce(waits.reshape(trace.num_steps, trace.num_workers), axis=1)


def _numbers_of_chunks(trace: Trace, source: Source, columns: _Columns) -> np.ndarray:
    """Number the chunk of each row, `[R]`.

    Raises ValueError where a worker's step has two of a number, or no step has all of
    all workers.
    """
    names = np.array(columns.chunks)
    order = _time_order(names)
    number = np.argsort(order)[columns.chunk]
    key = trace.cell * names.size + number
    rows = np.argsort(key, kind="stable")
    twice = np.flatnonzero(np.diff(key[rows]) == 0)
    if twice.size:
        a, b = rows[twice[0] : twice[0] + 2]
        step = trace.step_names[trace.step[a]]
        worker = trace.worker_names[trace.worker[a]]
        raise ValueError(
            f"{source.lines(columns.line[a], columns.line[b])}: step {step} has two "
            f"times of chunk {names[columns.chunk[a]]} of worker {worker}: leave out "
            "what the log has twice, or give each chunk of a worker's step a number of "
            "its own"
        )
    cells = np.unique(trace.cell)
    whole = (
        np.bincount(trace.cell, minlength=trace.num_steps * trace.num_workers)
        == names.size
    )
    if whole.reshape(trace.num_steps, trace.num_workers).all(axis=1).any():
        return number
    all_of_them = np.add.outer(cells * names.size, np.arange(names.size)).ravel()
    absent = np.setdiff1d(all_of_them, key)
    if absent.size:
        cell, which = divmod(int(absent[0]), names.size)
        i, j = divmod(cell, trace.num_workers)
        raise ValueError(
            f"{source}: no step has all chunks of all workers. Step "
            f"{trace.step_names[i]} has no time of chunk {names[order][which]} of "
            f"worker {trace.worker_names[j]}. If workers have unequal numbers of "
            "chunks, give one row for each step and worker, with the sum of the "
            "seconds, and leave the column chunk out"
        )
    return number


def _summed(
    trace: Trace, chunk: np.ndarray, forward: np.ndarray | None, asking: float | None
) -> Trace:
    """Add up chunks: `trace` has a row for each, and `chunk` their numbers.

    A worker's step of which some are missing, as where a log breaks off, has no time.
    """
    shape = (trace.num_steps, trace.num_workers, int(chunk.max()) + 1)
    timed = np.zeros(shape, bool)
    timed[trace.step, trace.worker, chunk] = True
    whole = timed.all(axis=2)

    def table(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        cells = np.full(shape, np.nan)
        cells[trace.step, trace.worker, chunk] = values
        return cells

    seconds = table(trace.seconds)
    assert seconds is not None
    step, worker = np.nonzero(whole)
    return Trace(
        step_names=trace.step_names,
        worker_names=trace.worker_names,
        step=step.astype(np.int32),
        worker=worker.astype(np.int32),
        seconds=seconds[step, worker].sum(axis=1),
        censored=np.zeros(step.size, bool),
        microbatches=Microbatches(
            seconds, forward=table(forward), load=table(trace.load), asking=asking
        ),
        collective=trace.collective,
    )


def _check_cells(trace: Trace, source: Source, lines: np.ndarray) -> None:
    """Raise ValueError for two rows of a cell that cannot both be."""
    load = np.zeros(trace.seconds.size) if trace.load is None else trace.load
    rows = np.lexsort((load, trace.cell))
    cell_change, load_change, time_change = (
        np.diff(column[rows]) for column in (trace.cell, load, trace.seconds)
    )
    wrong = np.flatnonzero(
        (cell_change == 0) & ((load_change == 0) | (time_change < 0))
    )
    if not wrong.size:
        return
    # The first to be noticed.
    a, b = min((sorted(rows[i : i + 2]) for i in wrong), key=max)
    step = trace.step_names[trace.step[a]]
    worker = trace.worker_names[trace.worker[a]]
    why = " that do not grow with the load, or are of one load"
    if trace.load is None:
        why = (
            ": leave out what the log has twice, or number the chunks of a worker's "
            "step in a column chunk"
        )
    raise ValueError(
        f"{source.lines(lines[a], lines[b])}: step {step} has two times of worker "
        f"{worker}{why}"
    )


def _positive(text: str, name: str) -> float:
    """A positive number, or 0 for an empty cell."""
    if not text.strip():
        return 0.0
    if _is_number(text) and "_" not in text and (value := float(text)) > 0:
        if _LEAST <= value <= _MOST:
            return value
        raise ValueError(
            f"{name} must be from {_LEAST:g} to {_MOST:g}, got {text[:40]!r}: leave "
            "the cell empty where nothing was measured"
        )
    raise ValueError(
        f"{name} must be a positive number, got {text[:40]!r}: leave the cell empty "
        "where nothing was measured, and write a decimal comma as a point"
    )


def _wait(text: str, name: str, seconds: float) -> float:
    """Read a wait; ValueError where it is no part of the row's `seconds`."""
    if not text.strip():
        return 0.0
    if _is_number(text) and "_" not in text and 0 <= (wait := float(text)) < seconds:
        return wait
    raise ValueError(
        f"{name} must be a part of seconds, from 0 to less than {seconds:g}, got "
        f"{text[:40]!r}: seconds are from the end of one collective to the end of the "
        "next, wait is the time in it"
    )


def _forward(text: str, seconds: float) -> float:
    """Read a forward pass; ValueError where it is no part of the chunk's `seconds`."""
    if 0 < (forward := _positive(text, "forward_seconds")) < seconds:
        return forward
    raise ValueError(
        "forward_seconds must be a part of seconds, which are of both passes, got "
        f"{text!r} of {seconds:g}: give it for all chunks, or leave the column out"
    )


def _time_order(names: np.ndarray) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        with contextlib.suppress(ValueError, OverflowError):
            if np.isfinite(numbers := names.astype(dtype)).all():
                return np.argsort(numbers, kind="stable")
    return np.arange(len(names))


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """A key by which names are sorted: text, and numbers by their value."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _flag(text: str, name: str) -> bool:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise ValueError(
            f"{name} must be one of {', '.join(_FLAGS)}, got {text[:40]!r}"
        )
    return flag
