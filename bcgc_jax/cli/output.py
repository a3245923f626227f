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


def console(*, wrap: bool = True) -> Console:
    """Prints on stdout, as wide on every screen; without `wrap` lines are as long as they are."""
    return Console(width=_WIDTH, highlight=False, file=sys.stdout, soft_wrap=not wrap)


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
    """What a row is called in a table: its method, and the α that partial stragglers depend on."""
    alpha = row.get("alpha")
    return row["method"] if alpha is None else f"{row['method']} α {alpha:.3g}"


def print_table(shown: Table) -> None:
    """As wide as others, wider where a column of numbers would be lost; text that may be wrapped is."""
    width = _WIDTH
    if all(column.no_wrap for column in shown.columns):
        width = max(width, Console(width=100 * _WIDTH).measure(shown).maximum)
    Console(width=width, highlight=False, file=sys.stdout).print(shown)


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


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    file: TextIO | None = None,
    missing: str = "",
) -> None:
    """CSV, on stdout or to `file`; by default with every column that a row has, in order of mention."""
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file or sys.stdout, columns, restval=missing, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _field(value) for name, value in row.items()})


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


# What the library calls a thing, and what is typed for it.
_TYPED = {
    "num_workers": "--workers",
    "num_coordinates": "--coordinates",
    "num_samples": "--samples",
    "setup_cycles": "--setup-cycles",
    "start_up": "--start-up",
    "send_time": "--send-time",
    "chain_cycles": "--chain-cycles",
    "unit_costs": "--unit-costs",
    "batch_size": "--batch-size",
}


def _as_typed(text: str) -> str:
    """What the library says of its arguments, of the options that they came from."""
    text = re.sub(r'\bmethod="(.*?)"', r"--method \1", text)
    return re.sub(rf"(?<![\w./-])({'|'.join(_TYPED)})\b", lambda found: _TYPED[found[1]], text)


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
        except KeyboardInterrupt:
            raise click.Abort from None
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            raise click.UsageError(f"{named}{error.strerror or error}") from None
        except (ValueError, ImportError, SchemeError) as error:
            raise click.UsageError(_as_typed(str(error))) from None

    return told
