"""Rows of text from CSV or JSON lines, also gzipped, and the hosts that they name."""

import bisect
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from bcgc_jax.balancing.storage import numbered
from bcgc_jax.traces.units import counted

# Each with its line; the first is the header.
Rows = Iterator[tuple[int, list[str]]]
_ENDS = re.compile(r"(\.(csv|tsv|jsonl?|trace|xplane|pb|gz))+$")
_NO_TEXT = (
    "is not a text file (UTF-8): write it as CSV, by pandas with to_csv('trace.csv', "
    "index=False)"
)


class ColumnError(ValueError):
    """A file does not have the columns that it was read by."""


class Source(NamedTuple):
    """The files of a log, read as one: the lines of each are counted on from the one
    before.

    Attributes:
      names: what a person calls each file.
      before: the lines that come before each.

    >>> files = Source(["a.csv", "b.csv"], [0, 10])
    >>> files.line(3), files.lines(3, 4), files.lines(3, 12)
    ('a.csv, line 3', 'a.csv, lines 3 and 4', 'a.csv, line 3 and b.csv, line 2')
    """

    names: list[str]
    before: list[int]

    def line(self, number: int) -> str:
        file, line = self._place(number)
        return f"{self.names[file]}, line {line}"

    def lines(self, first: int, second: int) -> str:
        file, line = self._place(first)
        last_file, last = self._place(second)
        if file == last_file:
            return f"{self.names[file]}, lines {line} and {last}"
        return f"{self.line(first)} and {self.line(second)}"

    def __str__(self) -> str:
        num_others = len(self.names) - 1
        if not num_others:
            return self.names[0]
        return f"{self.names[0]} and {counted(num_others, 'other file')}"

    def _place(self, number: int) -> tuple[int, int]:
        file = bisect.bisect_left(self.before, number) - 1
        return file, number - self.before[file]


def read_tables(files: Sequence[BinaryIO], source: Source, worker: str) -> Rows:
    """Yield the rows of files that are one log, as one; `source` learns where each
    begins.

    Where several have no column `worker`, that is the file's name.
    """
    header: list[str] = []
    first_columns: list[str] = []
    line = 0
    for file, name, short in zip(
        files, source.names, short_names(source.names), strict=True
    ):
        rows = read_table(file, name)
        source.before.append(line)
        row_line, own_columns = next(rows)
        if len(files) == 1 or worker in own_columns:
            name_cells = []
        else:
            name_cells = [short]
        columns = own_columns + [worker] * len(name_cells)
        if not header:
            header, first_columns = columns, own_columns
            yield row_line, header
        if set(columns) != set(header):
            raise ColumnError(
                f"{name} has the columns {', '.join(own_columns)}, and "
                f"{source.names[0]} has {', '.join(first_columns)}: files of one log "
                "have the same columns, in a header each"
            )
        order = [columns.index(column) for column in header]
        for row_line, row in rows:
            row = row + name_cells
            yield line + row_line, [row[place] for place in order]
        line += row_line


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells files apart: their names without endings, or with the folders where
    these do.

    >>> short_names(["log/worker-1.csv", "log/worker-2.csv.gz"])
    ['worker-1', 'worker-2']
    >>> short_names(["log/1/steps.csv", "log/2/steps.csv"])
    ['1/steps', '2/steps']
    """
    names = [_ENDS.sub("", os.path.basename(path)) for path in paths]
    if len(set(names)) == len(names):
        return names
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    below = [os.path.relpath(folder, os.path.commonpath(folders)) for folder in folders]
    return [f"{folder}/{name}" for folder, name in zip(below, names, strict=True)]


def read_table(file: BinaryIO, path: str) -> Rows:
    """Yield the header and the rows of an open file that a person calls `path`.

    The separator is found out.
    """
    buffer: Any = (
        file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
    )  # type: ignore[type-var]
    content = buffer
    if buffer.peek(2)[:2] == b"\x1f\x8b":
        content = gzip.GzipFile(fileobj=buffer)
    text = io.TextIOWrapper(content, "utf-8-sig", newline="")
    head = "\n"
    blank = -1
    longest = 2**20
    try:
        while head.isspace():
            head = text.readline(longest)
            blank = blank + 1
        if not head:
            raise ValueError(
                f"{path} is empty: a trace has a header and rows of measured times"
            )
        if len(head) == longest or "\0" in head:
            raise ValueError(f"{path} {_NO_TEXT}")
        if head.strip() == "{" or head.lstrip().startswith("["):
            what = "object over many lines, such as a plan"
            if head.strip() != "{":
                what = "array"
            raise ValueError(
                f"{path} is one JSON {what}: JSON lines have an object for each time, "
                "on a line of its own"
            )
        lines = itertools.chain([head], text)
        if head.lstrip().startswith("{"):
            yield from _read_objects(lines, blank, path)
        else:
            separator = max(",;\t|", key=re.sub('"[^"]*"', "", head).count)
            yield from _read_csv(lines, separator, blank, path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} {_NO_TEXT}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None


def _read_csv(lines: Iterable[str], separator: str, blank: int, path: str) -> Rows:
    """Yield the header and the rows of CSV, after so many blank lines."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        yield blank + reader.line_num, header
        for row in reader:
            line = blank + reader.line_num
            if row and len(row) != len(header):
                fields = counted(len(row), "field")
                raise ValueError(
                    f"{path}, line {line}: {fields}, the header has {len(header)} "
                    f"(separated by {separator!r}): is the line cut off, or has it "
                    "another separator or a decimal comma?"
                )
            if row:
                yield line, row
    except csv.Error as error:
        line = blank + reader.line_num
        raise ValueError(f"{path}, line {line}: not a CSV file: {error}") from None


def _read_objects(lines: Iterable[str], blank: int, path: str) -> Rows:
    """Yield rows of JSON lines: the first object's names, then values as in CSV."""
    header: list[str] = []
    for number, line in enumerate(lines, blank + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", "a number or a nesting is too long")
            why = f"not JSON: {what}: is the line cut off?"
            raise ValueError(f"{path}, line {number}: {why}") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: not an object, such as {{'step': …}}"
            )
        if not row:
            raise ValueError(
                f"{path}, line {number}: an object without names. Leave the line out"
            )
        if not header:
            header = list(row)
            yield number, header
        values = (row.get(name) for name in header)
        yield number, ["" if value is None else str(value) for value in values]


def noted_hosts(
    rows: Rows,
    source: Source,
    header: Sequence[str],
    names: dict[str, str],
    hosts: dict[str, str],
) -> Rows:
    """Pass the rows on, and note in `hosts` that of each worker; `names` are those of
    columns.

    Raises ValueError, with the line, for a worker that has two.
    """
    worker_at, host_at = header.index(names["worker"]), header.index(names["host"])
    for line, row in rows:
        worker, host = row[worker_at].strip(), row[host_at].strip()
        if host and hosts.setdefault(worker, host) != host:
            raise ValueError(
                f"{source.line(line)}: worker {worker} is on host {host}, and was on "
                f"{hosts[worker]} before: if it has moved, leave out the steps on one "
                "of them, or the column"
            )
        yield line, row


def shared_hosts(
    workers: Sequence[str], hosts: dict[str, str], source: Source
) -> tuple[int, ...] | None:
    """The hosts by number, in the order of the `workers`.

    None where that says nothing of who is slow together: all share one host, or nobody
    shares any.

    Raises ValueError where a worker has none, and another one has.

    >>> log = Source(["log.csv"], [0])
    >>> shared_hosts(["0", "1", "2"], {"0": "b", "1": "a", "2": "b"}, log)
    (0, 1, 0)
    >>> shared_hosts(["0", "1"], {"0": "a", "1": "a"}, log)
    """
    if not 1 < len({*hosts.values()}) < len(hosts):
        return None
    for worker in workers:
        if worker not in hosts:
            raise ValueError(
                f"{source}: worker {worker} has no host, others have: name it in one "
                "of its rows, or leave the column out"
            )
    return numbered([hosts[worker] for worker in workers])
