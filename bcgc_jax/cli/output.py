"""What a command says: tables, JSON, CSV, and the names of files beside them."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from bcgc_jax.cli.commands import AdviseOptions, Files

# The version of what `--format json` prints (output.schema.json): higher where a field
# changes its meaning or goes, not where one is added.
VERSION = 3
_WIDTH = 100

Row = dict[str, Any]
# A column of a table: its head, and what it says of a row. One whose head is a string
# holds numbers.
Shown = tuple[str | Column, Callable[[Any], str]]


def console(width: int = _WIDTH) -> Console:
    """Prints on stdout, as wide on every screen: the text does not depend on it."""
    return Console(width=width, highlight=False, markup=False, file=sys.stdout)


def print_lines(*lines: str) -> None:
    console().print(*lines, sep="\n")


def print_rows(
    rows: Iterable[Any], columns: Sequence[Shown], title: str | None = None
) -> None:
    """Print a table with a line for each row, as wide as all others.

    Numbers are on the right and never cut. So a table without text to wrap may be
    wider.
    """
    # A column of rich keeps the cells of its table, so each table has its copy.
    heads = [
        Column(head, justify="right", no_wrap=True)
        if isinstance(head, str)
        else head.copy()
        for head, _ in columns
    ]
    table = Table(
        *heads,
        box=None,
        pad_edge=False,
        header_style="bold",
        title=title,
        title_justify="left",
    )
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    width = _WIDTH
    if all(column.no_wrap for column in table.columns):
        width = max(width, console(100 * _WIDTH).measure(table).maximum)
    console(width).print(table)


def names(head: str) -> Column:
    """A column of names, cut where long and never broken: the numbers come first."""
    return Column(head, no_wrap=True, max_width=22)


def scheme_label(row: Any) -> str:
    """Return what a table calls a row: its method, α where it has one, "(inexact)"."""
    label = str(row.method)
    if getattr(row, "alpha", None) is not None:
        label += f" α {row.alpha:.3g}"
    return label + " (inexact)" * (row.exact_gradient is False)


def for_used(runtime: float, lost: float | None) -> float:
    """What as many samples take as a step has, where some of a step's are lost."""
    if lost and lost > 0:
        return runtime / (1 - lost)
    return runtime


def number(value: float | None, form: str = ".4g", unknown: str = "–") -> str:
    if value is None or not math.isfinite(value):
        return unknown
    return format(value, form)


def saved_in_words(share: float | None) -> str:
    """Print the saved share of the uncoded time, or how many times as long it takes."""
    if share is None or not math.isfinite(share):
        return "–"
    if share > -9:
        return f"{100 * share:.1f} %"
    return f"× {1 - share:.3g}"


def print_answer(
    question: Files | AdviseOptions,
    rows: Sequence[Row],
    document: Callable[[], Any],
    printed: Callable[[], None],
    columns: Sequence[str] = (),
) -> None:
    """Print the rows as CSV, the `document` as JSON, or what is `printed` for a person.

    CSV has these `columns` even where there is no row.
    """
    if question.output == "csv":
        write_rows(rows, columns)
    elif question.output == "json":
        click.echo(json_of(document()))
    else:
        printed()


def finite(value: Any) -> float | None:
    """A plain number; None, JSON's null, where it is infinite or unknown."""
    number = float(value)
    if math.isfinite(number):
        return number
    return None


def json_of(document: Row | Sequence[Row]) -> str:
    """An object with its fields' version first; rows alone have no place for one."""
    if isinstance(document, dict):
        return json.dumps(_plain({"version": VERSION, **document}), indent=2)
    return json.dumps(_plain(document), indent=1)


def _plain(value: Any) -> Any:
    """Return it as JSON has it: null for what is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if isinstance(value, float):
        return finite(value)
    return value


def write_rows(rows: Iterable[Row], columns: Sequence[str] = ()) -> None:
    """CSV, on stdout: these columns, and every other one that a row has."""
    rows = list(rows)
    names = list(dict.fromkeys((*columns, *(name for row in rows for name in row))))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: _field(value) for name, value in row.items()} for row in rows
    )


def _field(value: Any) -> Any:
    """Numbers with blanks between; nothing for an unknown one; else JSON."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if not isinstance(value, Mapping):
        return _plain(value)
    if any(isinstance(part, list | tuple) for part in value.values()):
        return json.dumps(value)
    return " ".join(f"{name}={number(value[name], '.6g', '')}" for name in value)


def write_beside(
    question: Any, path: str | None, what: str, write: Callable[[str], Any]
) -> None:
    """Let `write` a file that was asked for.

    The answer is printed by then, and what fails is one line.
    """
    if path is None:
        return
    try:
        write(path)
    except Exception as error:  # of a disk, or of a library that draws
        raise click.ClickException(f"cannot write {path}: {_reason(error)}") from None
    if getattr(question, "output", "table") == "table":
        click.echo(f"\n{what}: {path}")


def _reason(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def write_picture(question: Any, path: str | None, draw: Callable[[], Any]) -> None:
    write_beside(
        question, path, "The picture", lambda path: draw().savefig(path, dpi=200)
    )


def write_figure(question: Files | AdviseOptions, draw: Callable[[], Any]) -> None:
    write_picture(question, question.figure, draw)
