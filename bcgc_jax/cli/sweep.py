"""`bcgc sweep`: a grid of problems over the number of workers and any other number."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np

from bcgc_jax.cli import bounds, figures, output, traces
from bcgc_jax.cli.arguments import LAWS, law_class, missing_parameters
from bcgc_jax.cli.columns import (
    STATUSES,
    SUMMARY,
    SWEEP,
    flat,
    table_of,
    values,
    without_questions,
)
from bcgc_jax.cli.commands import DELIVERY, SweepOptions, cycles_of_forward
from bcgc_jax.cli.describe import describe_law
from bcgc_jax.cli.exit import interruptible, say
from bcgc_jax.cli.progress import Progress
from bcgc_jax.problem import Problem, Status
from bcgc_jax.sweeps import Sweep, grid, read_rows, write_sweep
from bcgc_jax.traces.units import counted

_PASSES = ("setup_cycles", "forward", "chain_cycles")


class Swept(NamedTuple):
    """A row of a sweep: all its `columns` as they are, and some of them by name.

    `bound`: what `bcgc solve` measures the cell's plans by, if it is for this one; else
    None. NaN and None are unknown.
    """

    columns: output.Row
    method: str
    status: str
    expected_runtime: float | None
    kind: str = "exact"
    bound_of: str | None = None
    lower_bound: float | None = None
    stored_subsets: float | None = None
    sent: float | None = None
    round_trips: float | None = None
    exact_gradient: bool | None = None
    lost: float | None = None
    saved: float | None = None
    completion_probability: float | None = None
    bound: float | None = None

    @property
    def runtime(self) -> float:
        if self.expected_runtime is None:
            return np.nan
        return self.expected_runtime

    @classmethod
    def of(cls, columns: output.Row) -> "Swept":
        return cls(
            columns, **{name: columns[name] for name in cls._fields if name in columns}
        )


class Summary(NamedTuple):
    """How a method came out: `counts` of cells by status, its mean `saved` share."""

    method: str
    cells: int
    counts: dict[str, int]
    largest_relative_gap: float | None
    saved: float | None
    with_savings: bool


def answer(question: SweepOptions) -> None:
    with suppress(RuntimeError):  # too late after the first computation, and no harm
        jax.config.update("jax_num_cpu_devices", _cores())
    with jax.enable_x64(True):
        axes, labels, problem = _axes(question)
        if question.figure is not None:
            figures.varied_numbers(axes)  # refuse it before anything is solved
        names = question.methods or (
            "deadline" if question.most_probable else "optimal",
        )
        tasks = list(question.asked(*names, round_trip=question.round_trip).values())
        sweep = Sweep(
            problem,
            grid(**axes),
            tasks,
            partitions=question.partitions,
            key=jax.random.key(question.seed),
            labels=labels,
        )
        if question.out is not None:
            path = Path(question.out)
            statuses = _to_file(sweep, question, path)
            output.write_figure(question, lambda: figures.of_sweep([*_read(path)]))
        else:
            rows = interruptible(lambda: _collect(sweep))
            varied = [name for name, values in axes.items() if len(values) > 1]

            def table() -> None:
                _print_table([*_with_bounds(sweep, rows)], varied)

            columns = [row.columns for row in rows]
            output.print_answer(question, columns, lambda: columns, table)
            output.write_figure(question, lambda: figures.of_sweep(columns))
            statuses = Counter(row.status for row in rows)
        _end(statuses)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _axes(
    question: SweepOptions,
) -> tuple[dict[str, np.ndarray], dict[str, str], Callable[..., Problem]]:
    """Return the grid's axes by name, the labels, and what makes a problem."""
    workers = question.workers
    labels = {}
    parameters = {}
    fixed: dict[str, Any] = {"overlap": question.overlap}
    if (trace := traces.read(question)) is not None:
        asked: list[int | None]
        if workers is None:
            asked = [None]
        else:
            asked = workers.tolist()
        workers = np.array(
            [traces.workers_of(question, trace, count) for count in asked]
        )
        most_workers = int(workers.max())
        fixed["cycle_time"] = traces.law_for(question, trace, most_workers)
        traces.check_size(Problem(fixed["cycle_time"], most_workers, num_coordinates=1))
        labels["distribution"] = describe_law(fixed["cycle_time"])["distribution"]
    elif question.cycle_time is not None:
        labels["distribution"] = question.cycle_time[0]
        parameters = _parameters(*question.cycle_time, dict(question.axes))
    if workers is None:
        raise click.UsageError("give the numbers of workers with --workers")
    if question.overlap:
        labels["overlap"] = "true"
    axes = {
        "num_workers": workers,
        "num_coordinates": question.coordinates,
        "num_samples": question.samples,
        "cycles": question.cycles,
        **parameters,
        **{
            name: getattr(question, name)
            for name in (*_PASSES, *DELIVERY)
            if name not in fixed
        },
        "deadline": question.deadline,
    }

    def problem(max_workers: int, **numbers: Any) -> Problem:
        if "forward" in numbers:
            sizes = (
                numbers.get(name)
                for name in ("num_coordinates", "cycles", "chain_cycles")
            )
            numbers["setup_cycles"] = cycles_of_forward(numbers.pop("forward"), *sizes)
        of_law = {name: numbers.pop(name) for name in parameters}
        if of_law:
            numbers["cycle_time"] = law_class(labels["distribution"])(**of_law)
        return Problem(max_workers=max_workers, **fixed, **numbers)

    return (
        {name: values for name, values in axes.items() if values is not None},
        labels,
        problem,
    )


def _parameters(
    law: str, constants: dict[str, float], axes: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return all parameters of a distribution, constants as axes of one number."""
    for name in axes:
        if name not in LAWS[law]:
            raise click.UsageError(
                f"--axis {name}: {law} has the parameters {', '.join(LAWS[law])}"
            )
        if name in constants:
            raise click.UsageError(
                f"{name} is given twice: in --cycle-time and as an --axis"
            )
    if missing := missing_parameters(law, {*constants, *axes}):
        raise click.UsageError(
            f"{law} needs {', '.join(missing)}: in --cycle-time or as an --axis"
        )
    return {name: np.array([value]) for name, value in constants.items()} | axes


def _collect(sweep: Sweep) -> list[Swept]:
    rows: list[Swept] = []
    with Progress("solving") as bar:
        for chunk in sweep.chunks:
            columns = {
                name: values.tolist() for name, values in sweep.solve(chunk).items()
            }
            for row in zip(*columns.values(), strict=True):
                rows.append(Swept.of(dict(zip(columns, row, strict=True))))
            bar.reach(len(rows), sweep.num_cells * len(sweep.methods))
    return rows


def _print_table(rows: list[Swept], axes: list[str]) -> None:
    def typed(name: str) -> output.Shown:
        def cell(row: Swept) -> str:
            value = row.columns[name]
            if isinstance(value, float):
                return f"{value:.4g}"
            return str(value)

        return name, cell

    def runtime(row: Swept) -> str:
        return output.number(output.for_used(row.runtime, row.lost))

    def above(row: Swept) -> str:
        return bounds.above_optimum(row, row.bound)

    # They are paid for levels in use, and the bound is for these.
    with_passes = any(row.columns.get(name) for row in rows for name in _PASSES)
    columns = table_of(
        SWEEP,
        rows,
        *(
            "method",
            "expected_runtime",
            "saved",
            "lower_bound",
            "completion_probability",
        ),
        *("stored_subsets", "sent", "round_trips"),
        expected_runtime=[("expected\nruntime", runtime)],
        lower_bound=[(bounds.bound_head(all_levels=not with_passes), above)],
        **without_questions(rows),
    )
    output.print_rows(rows, [*map(typed, axes), *columns])


def _with_bounds(sweep: Sweep, rows: Iterable[Swept]) -> Iterator[Swept]:
    """Add the best bound of a cell's plans to those that it is for."""
    # its methods after each other
    for cell in zip(*[iter(rows)] * len(sweep.methods), strict=True):
        # They are paid for levels in use, and the bound is for these.
        with_passes = any(cell[0].columns.get(name) for name in _PASSES)
        known_rows = [
            row._replace(lower_bound=output.finite(row.lower_bound or 0))
            for row in cell
            if np.isfinite(row.runtime)
        ]
        bound = bounds.best_bound(known_rows, all_levels=not with_passes)
        for row in cell:
            bounded = bound if row.bound_of == "levels" else np.nan
            yield row._replace(bound=output.finite(bounded))


def _to_file(sweep: Sweep, question: SweepOptions, path: Path) -> Counter[str]:
    """Write the file chunk by chunk, and print a summary.

    An interruption says how to go on, where something is solved.
    """
    start = time.perf_counter()
    try:
        with Progress("solving") as bar:
            options: dict[str, Any] = {"resume": question.resume, "progress": bar.reach}
            interruptible(lambda: write_sweep(sweep, path, **options))
    except KeyboardInterrupt:
        if path.exists():
            raise click.Abort("what is solved is kept; go on with --resume") from None
        raise click.Abort from None
    lines, statuses = _summary(sweep, path)
    seconds = time.perf_counter() - start

    def document() -> output.Row:
        methods = [values(SUMMARY, line) for line in lines]
        return {"file": str(path), "seconds": round(seconds, 2), "methods": methods}

    def table() -> None:
        order = ("method", "cells", *STATUSES, "saved", "largest_relative_gap")
        output.print_rows(lines, table_of(SUMMARY, lines, *order))
        cells = counted(sweep.num_cells, "cell")
        click.echo(f"\n{path}: {cells}, {seconds:.1f} s, compilation included.")

    output.print_answer(
        question, [flat(SUMMARY, line) for line in lines], document, table
    )
    return statuses


def _read(path: Path) -> Iterator[output.Row]:
    """Read the rows of a sweep's file, numbers as numbers, None for what is empty."""
    for row in read_rows(path):
        yield {name: _number(value) for name, value in row.items()}


def _number(field: str) -> float | str | None:
    try:
        return float(field) if field else None
    except ValueError:
        return field


def _summary(sweep: Sweep, path: Path) -> tuple[list[Summary], Counter[str]]:
    """Read each method's outcome and saving from the file, and all rows' statuses."""
    gaps: dict[str, float] = {}
    saved: dict[str, list[float]] = {}
    counts = Counter[tuple[str, str]]()
    statuses = Counter[str]()
    for row in _with_bounds(sweep, map(Swept.of, _read(path))):
        counts[row.method, row.status] += 1
        statuses[row.status] += 1
        if row.status != "converged":
            continue
        if row.bound:
            gaps[row.method] = max(
                1 - row.bound / row.runtime, gaps.get(row.method, 0.0)
            )
        if row.saved is not None:
            saved.setdefault(row.method, []).append(row.saved)
    lines = []
    for method in sweep.methods:
        of_status = {status: counts[method, status] for status in statuses}
        mean = None
        if method in saved:
            mean = float(np.mean(saved[method]))
        numbers = (sweep.num_cells, of_status, gaps.get(method), mean)
        lines.append(Summary(method, *numbers, with_savings=bool(saved)))
    return lines, statuses


def _end(statuses: Counter[str]) -> None:
    """Say how many rows are no problem; status 1 for any, or if no row is an answer."""
    invalid = statuses[Status.INVALID.name.lower()]
    infeasible = statuses[Status.INFEASIBLE.name.lower()]
    if invalid:
        why = "their numbers make no problem, or are too large or small for float64"
        are = "are"
        if invalid == 1:
            are = "is"
        say(
            f"bcgc: {invalid} of {counted(statuses.total(), 'row')} {are} invalid: "
            f"{why}"
        )
    if invalid or infeasible == statuses.total():
        raise click.exceptions.Exit(1)
