"""What a command says: tables, JSON, CSV, and errors of one line."""

import csv
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Column, Table

from bcgc_jax.solvers.schemes import SchemeError

# Of the objects that `--format json` prints (output.schema.json): the next one where a field changes its
# meaning or goes, not where one is added.
VERSION = 2
_WIDTH = 100
_NAME_WIDTH = 22


def console() -> Console:
    """Prints on stdout, as wide on every screen."""
    return Console(width=_WIDTH, highlight=False, file=sys.stdout)


def table(*columns: str | Column, title: str | None = None) -> Table:
    """Columns by their heads; those that are strings hold numbers: on the right, and never cut."""
    heads = [
        Column(head, justify="right", no_wrap=True) if isinstance(head, str) else head for head in columns
    ]
    return Table(*heads, box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")


def names(head: str) -> Column:
    """A column of names, which are not broken; a long one is cut, for the numbers come first."""
    return Column(head, no_wrap=True, max_width=_NAME_WIDTH)


def row_label(row: Mapping[str, Any]) -> str:
    """What a row is called in a table: its method, the α of partial stragglers, and what it leaves out."""
    alpha, inexact = row.get("alpha"), row.get("exact_gradient") is False
    return row["method"] + ("" if alpha is None else f" α {alpha:.3g}") + " (inexact)" * inexact


def print_table(shown: Table) -> None:
    """As wide as others, wider where a column of numbers would be lost; text that may be wrapped is."""
    width = _WIDTH
    if all(column.no_wrap for column in shown.columns):
        width = max(width, Console(width=100 * _WIDTH).measure(shown).maximum)
    Console(width=width, highlight=False, file=sys.stdout).print(shown)


Row = dict[str, Any]
# A column of a table: its head, and what it says of a row.
Shown = tuple[str | Column, Callable[[Row], str]]


def print_rows(rows: Iterable[Row], columns: Sequence[Shown]) -> None:
    """A table with a line for each row."""
    shown = table(*(head for head, _ in columns))
    for row in rows:
        shown.add_row(*(cell(row) for _, cell in columns))
    print_table(shown)


def figure(name: str, form: str = ".4g", unknown: str = "–") -> Callable[[Row], str]:
    """A number of a row, where it is known."""

    def cell(row: Row) -> str:
        value = row.get(name)
        return unknown if value is None or not math.isfinite(value) else format(value, form)

    return cell


def scheme_column() -> Shown:
    """The first column of most tables."""
    return names("scheme"), row_label


def needs_columns(rows: Iterable[Row]) -> list[Shown]:
    """What schemes need, where one of them asks its workers or gives less than the gradient."""
    if not any((row["round_trips"] or 0) > 0 or row["exact_gradient"] is False for row in rows):
        return []
    return [
        ("subsets\nstored", figure("stored_subsets", ".0f")),
        ("sent\nin L", figure("sent", ".2f")),
        ("round\ntrips", figure("round_trips", ".0f")),
    ]


def print_answer(output: str, rows: Sequence[Row], document: Any, printed: Callable[[], None]) -> None:
    """As `--format` asks: CSV of the rows, JSON of the `document`, or what is `printed` for a person."""
    if output == "csv":
        write_rows(rows)
    elif output == "json":
        write_json(document)
    else:
        printed()


def finite(value: Any) -> float | None:
    """A plain number; None, JSON's null, where it is infinite or unknown."""
    number = float(value)
    return number if math.isfinite(number) else None


def write_json(answer: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """An object with the version of its fields before them; rows alone have no place for one."""
    if isinstance(answer, Mapping):
        click.echo(json.dumps({"version": VERSION, **answer}, indent=2, allow_nan=False))
    else:
        click.echo(json.dumps(answer, indent=1, allow_nan=False))


def write_rows(rows: Iterable[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """CSV, on stdout or to `file`, with every column that a row has, in order of mention."""
    rows = list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file or sys.stdout, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _field(value) for name, value in row.items()} for row in rows)


def _field(value: Any) -> Any:
    """Several numbers with blanks between; nothing where one is infinite or unknown."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={'' if x is None else format(x, '.6g')}" for name, x in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return finite(value) if isinstance(value, float) else value


@contextmanager
def access(path: str, verb: str = "read") -> Iterator[None]:
    """Says which file could not be read, or written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot {verb} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"cannot {verb} {path}: it is not a text file") from None


# What the library calls a thing, and `--workers`, `--setup-cycles` and so on stand for.
_TYPED = re.compile(
    r"(?<![\w./-])(?:num_(workers|coordinates|samples)|"
    r"(setup_cycles|start_up|send_time|chain_cycles|unit_costs|batch_size))\b"
)


def _as_typed(text: str) -> str:
    """What the library says of its arguments, of the options that they came from."""
    text = re.sub(r'\bmethod="(.*?)"', r"--method \1", text)
    return _TYPED.sub(lambda found: f"--{(found[1] or found[2]).replace('_', '-')}", text)


@contextmanager
def beside_the_answer(path: str) -> Iterator[None]:
    """What is written to `path` once the answer is printed: what fails is one line, and the answer stands."""
    try:
        yield
    except Exception as error:  # of a disk, or of a library that draws
        why = error.strerror if isinstance(error, OSError) else None
        why = why or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise click.ClickException(f"cannot write {path}: {why}") from None


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What is wrong with the input, or with its files, is told in one line and ends with status 2."""

    @functools.wraps(command)
    def told(*args: Any, **given: Any) -> None:
        try:
            command(*args, **given)
        except BrokenPipeError:  # the reader has enough: no error
            raise
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            raise click.UsageError(f"{named}{error.strerror or error}") from None
        except (ValueError, ImportError, SchemeError) as error:
            raise click.UsageError(_as_typed(str(error))) from None

    return told
