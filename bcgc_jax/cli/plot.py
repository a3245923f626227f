"""`bcgc plot`: a sweep's, a training's or a plan's file as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from bcgc_jax.cli import figures
from bcgc_jax.cli.commands import PlotOptions
from bcgc_jax.cli.output import Row, beside_the_answer
from bcgc_jax.solution import Solution
from bcgc_jax.sweeps.files import read_rows


def answer(question: PlotOptions) -> None:
    path = Path(question.file)
    if path.suffix == ".json":
        figure = figures.plans([figures.of_solution(Solution.load(path))])
    else:
        rows = _selected(read(path), question)
        if "iteration" in rows[0]:
            figure = figures.training(rows, question.value or "loss")
        else:
            figure = figures.of_rows(rows, question.value or "expected_runtime", question.x, question.y)
    out = question.out or str(path.with_suffix(".png"))
    with beside_the_answer(out):
        figure.savefig(out, dpi=200)
    click.echo(f"The picture: {out}")


def read(path: Path) -> list[Row]:
    """All rows of a table, numbers as numbers, None for what is empty."""
    rows = [{name: _number(value) for name, value in row.items()} for row in read_rows(path)]
    if not rows or "method" not in rows[0]:
        raise click.UsageError(
            f"{path} is no file of `bcgc sweep --out`, `bcgc train --curves` or `bcgc solve --out`"
        )
    return rows


def _number(value: Any) -> Any:
    """What stands in a CSV file, which has no types."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value else None
    except ValueError:
        return value


def _selected(rows: Sequence[Row], question: PlotOptions) -> list[Row]:
    """The rows of the methods, and of the numbers, that were asked for."""
    known = list(dict.fromkeys(row["method"] for row in rows))
    if unknown := set(question.methods).difference(known):
        raise click.UsageError(f"--method {unknown.pop()}: the file has {', '.join(known)}")
    chosen = [row for row in rows if row["method"] in (question.methods or known)]
    for name, number in question.where:
        if name not in rows[0]:
            raise click.UsageError(f"--where {name}: the file has the columns {', '.join(rows[0])}")
        figures.check_numbers(chosen, name)
        values = np.array([row[name] for row in chosen], float)
        near = values[np.argmin(np.abs(values - number))]
        if not np.isclose(near, number, rtol=1e-3):
            raise click.UsageError(f"--where {name}={number:g}: no such row; the nearest has {near:g}")
        chosen = [row for row, value in zip(chosen, values, strict=True) if value == near]
    return chosen
