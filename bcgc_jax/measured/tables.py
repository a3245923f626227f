"""Tables of text, CSV or Parquet: the columns that there are, and rows of some of them one after another."""

import contextlib
import csv
import gzip
import io
import itertools
import operator
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bcgc_jax._extras import to_install

_GZIP = b"\x1f\x8b"
_LONGEST_HEADER, _BATCH = 1 << 20, 1 << 16
# What columns may hold: the types of Parquet as Arrow writes them, and how an error calls them.
_LABEL, _NUMBER = r"(large_)?string|u?int\d+", r"u?int\d+|halffloat|float|double|null"
_KINDS = {
    "label": (_LABEL, "text or whole numbers"),
    "number": (_NUMBER, "numbers"),
    "load": (_NUMBER, "numbers"),
    "flag": (f"bool|{_LABEL}", "booleans"),
}


class Table(NamedTuple):
    """An open file; `rows(places, kinds)` gives each row's number, in the unit, and its texts there."""

    unit: str
    header: Sequence[str]
    rows: Callable[[Sequence[int], Sequence[str]], Iterator[tuple[int, Sequence[str]]]]


def open_table(file: io.BufferedReader, path: str, progress: Callable[[float], None]) -> Table:
    """The table in an open file that a person calls `path`."""
    begin = file.peek(4)[:4]
    if begin == b"PAR1" or Path(path).suffix.lower() in (".parquet", ".pq"):
        if not file.seekable():
            raise ValueError(f"{path} is Parquet, which is read from its end: give the path of a file")
        return _parquet(file, path, progress)
    return _csv(file, path, begin[:2] == _GZIP, progress)


def opened(file: Any) -> tuple[str, io.BufferedReader]:
    """What a person calls an open file, and the file with a `peek`."""
    name = getattr(file, "name", "")
    known = name.replace("<stdin>", "standard input") if isinstance(name, str) else ""
    return known or "the stream", file if hasattr(file, "peek") else io.BufferedReader(file)


def _num_fields(line: str, separator: str) -> int:
    with contextlib.suppress(csv.Error):
        return len(next(csv.reader([line], delimiter=separator)))
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


def _csv(file: Any, path: str, compressed: bool, progress: Callable[[float], None]) -> Table:
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
    lines = itertools.chain([head], text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    with reading():
        header = [name.strip() for name in next(reader)]

    def rows(places: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
        size, width = 0, len(header)  # of a pipe, or a file in memory
        with contextlib.suppress(OSError):
            size = os.fstat(file.fileno()).st_size if file.seekable() else 0
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

    return Table("line", header, rows)


def _parquet(file: Any, path: str, progress: Callable[[float], None]) -> Table:
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

    def rows(places: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
        for k, expected in zip(places, kinds, strict=True):
            types, what = _KINDS[expected]
            kind = str(schema.field(k).type)
            if not re.fullmatch(types, re.sub(r"^dictionary<values=(\w+),.*", r"\1", kind)):
                raise ValueError(f"{path}: the column {schema.names[k]} holds {kind}, expected {what}")
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

    return Table("row", [name.strip() for name in schema.names], rows)
