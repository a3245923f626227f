"""`bcgc sweep`: a grid of problems over the number of workers and any other number."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.table import Column

from bcgc_jax.cli import output, plot, traces
from bcgc_jax.cli.answers import describe_law
from bcgc_jax.cli.arguments import LAWS, law_class, law_name, missing_parameters
from bcgc_jax.cli.commands import DELIVERY, SweepOptions, cycles_of_forward
from bcgc_jax.cli.exit import interruptible, say
from bcgc_jax.cli.progress import Progress
from bcgc_jax.distributions import Distribution
from bcgc_jax.measured.words import counted
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import LOOSE
from bcgc_jax.sweeps.cells import grid
from bcgc_jax.sweeps.files import parts_of, read_rows, write_sweep
from bcgc_jax.sweeps.run import Sweep

_GAP = "largest_relative_gap"
_PASSES = ("setup_cycles", "forward", "chain_cycles")
_BOUND = "bound of the optimum"  # in a table alone


def answer(question: SweepOptions) -> None:
    with suppress(RuntimeError):  # too late after the first computation, and no harm
        jax.config.update("jax_num_cpu_devices", _cores())
    with jax.enable_x64(True):
        axes, labels, problem = _axes(question)
        names = question.methods or ("deadline" if question.most_probable else "optimal",)
        tasks = list(question.asked(*names, round_trip=question.round_trip).values())
        given: dict[str, Any] = {"key": jax.random.key(question.seed), "labels": labels}
        sweep = Sweep(problem, grid(**axes), tasks, partitions=question.partitions, **given)
        if question.out is not None:
            path = Path(question.out)
            statuses = _to_file(sweep, question, path)
            output.write_figure(question, lambda: plot.of_rows(plot.read(path)))
        else:
            rows = interruptible(lambda: _collect(sweep))
            varied = [name for name, values in axes.items() if len(values) > 1]

            def table() -> None:
                _print_table([*_with_bounds(sweep, rows)], varied)

            output.print_answer(question, rows, lambda: rows, table)
            output.write_figure(question, lambda: plot.of_rows(rows))
            statuses = Counter(row["status"] for row in rows)
        _end(statuses)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _axes(
    question: SweepOptions,
) -> tuple[dict[str, np.ndarray], dict[str, str], Callable[..., Problem]]:
    """Return the axes of the grid by name, the labels, and the function that makes a problem."""
    workers = question.workers
    labels = {}
    parameters = {}
    fixed: dict[str, Any] = {"overlap": question.overlap}
    if (trace := traces.read(question)) is not None:
        asked: list[int | None] = [None] if workers is None else workers.tolist()
        workers = np.array([traces.workers_of(question, trace, one) for one in asked])
        most = int(workers.max())
        fixed["cycle_time"] = traces.law_for(question, trace, most)
        traces.check_size(Problem(fixed["cycle_time"], most, num_coordinates=1))
        labels["distribution"] = describe_law(fixed["cycle_time"])["distribution"]
    elif question.cycle_time is not None:
        labels["distribution"] = question.cycle_time[0]
        parameters = _parameters(*question.cycle_time, dict(question.axes))
    if workers is None:
        raise click.UsageError("give the numbers of workers with --workers")
    if isinstance(question.start_up, Distribution):
        fixed["start_up"] = question.start_up
        labels["start_up_distribution"] = _typed_law(question.start_up)
    if question.overlap:
        labels["overlap"] = "true"
    axes = {
        "num_workers": workers,
        "num_coordinates": question.coordinates,
        "num_samples": question.samples,
        "cycles": question.cycles,
        **parameters,
        **{name: getattr(question, name) for name in (*_PASSES, *DELIVERY) if name not in fixed},
        "deadline": question.deadline,
    }

    def problem(max_workers: int, **numbers: Any) -> Problem:
        if "forward" in numbers:
            sizes = (numbers.get(name) for name in ("num_coordinates", "cycles", "chain_cycles"))
            numbers["setup_cycles"] = cycles_of_forward(numbers.pop("forward"), *sizes)
        of_law = {name: numbers.pop(name) for name in parameters}
        if of_law:
            numbers["cycle_time"] = law_class(labels["distribution"])(**of_law)
        return Problem(max_workers=max_workers, **fixed, **numbers)

    return {name: values for name, values in axes.items() if values is not None}, labels, problem


def _typed_law(law: Distribution) -> str:
    """Write a distribution as it is typed: NAME:PARAMETER=VALUE,…"""
    given = ",".join(f"{name}={value:g}" for name, value in law.summary().items())
    return f"{law_name(type(law))}:{given}"


def _parameters(
    law: str, given: dict[str, float], axes: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return all parameters of a distribution, those of --cycle-time as axes of one number."""
    for name in axes:
        if name not in LAWS[law]:
            raise click.UsageError(
                f"--axis {name}: {law} has the parameters {', '.join(LAWS[law])}"
            )
        if name in given:
            raise click.UsageError(f"{name} is given twice: in --cycle-time and as an --axis")
    if missing := missing_parameters(law, {*given, *axes}):
        raise click.UsageError(f"{law} needs {', '.join(missing)}: in --cycle-time or as an --axis")
    return {name: np.array([value]) for name, value in given.items()} | axes


def _collect(sweep: Sweep) -> list[output.Row]:
    rows: list[output.Row] = []
    with Progress("solving") as bar:
        for chunk in sweep.chunks():
            columns = {name: values.tolist() for name, values in sweep.solve(chunk).items()}
            for row in zip(*columns.values(), strict=True):
                rows.append(dict(zip(columns, row, strict=True)))
            bar.reach(len(rows), len(sweep.cells) * len(sweep.methods))
    return rows


def _print_table(rows: list[output.Row], axes: list[str]) -> None:
    def typed(name: str) -> output.Shown:
        def cell(row: output.Row) -> str:
            value = row[name]
            return f"{value:.4g}" if isinstance(value, float) else str(value)

        return name, cell

    def runtime(row: output.Row) -> str:
        value = output.for_used(row["expected_runtime"], row)
        return f"{value:.4g}" if np.isfinite(value) else "–"

    def above(row: output.Row) -> str:
        return output.above_bound(row["expected_runtime"], row[_BOUND])

    chance = "P(runtime ≤\ndeadline)", output.figure("completion_probability", ".4f")
    columns: list[output.Shown] = [*map(typed, axes), output.scheme_column()]
    columns.append(("expected\nruntime", runtime))
    if "saved" in rows[0]:
        columns.append(("saved", output.saved))
    columns.append(("above\noptimum ≤", above))
    if "completion_probability" in rows[0]:
        columns.append(chance)
    columns += output.needs_columns(rows)
    columns.append((Column("status", no_wrap=True), lambda row: row["status"]))
    output.print_rows(rows, columns)


def _with_bounds(sweep: Sweep, rows: Iterable[output.Row]) -> Iterator[output.Row]:
    """Add the bound of a cell's optimum to its rows; else their own if not loose, or None."""
    # its methods after each other
    for cell in zip(*[iter(rows)] * len(sweep.methods), strict=True):
        bounds = {row["method"]: float(row["lower_bound"] or np.nan) for row in cell}
        for row in cell:
            partition = sweep.methods[row["method"]].is_partition
            bound = bounds[row["method"]]
            if partition and "optimal" in bounds:
                bound = bounds["optimal"]
            elif partition and not bound >= (1 - LOOSE) * float(row["expected_runtime"] or np.nan):
                bound = np.nan
            yield row | {_BOUND: output.finite(bound)}


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
        if parts_of(path).exists():
            raise click.Abort("what is solved is kept; go on with --resume") from None
        raise click.Abort from None
    lines, statuses = _summary(sweep, path)
    seconds = time.perf_counter() - start

    def document() -> output.Row:
        return {"file": str(path), "seconds": round(seconds, 2), "methods": lines}

    def table() -> None:
        counts = [name for name in lines[0] if name not in ("method", "saved", _GAP)]
        columns = [output.scheme_column(), *((name, output.figure(name, "d")) for name in counts)]
        if "saved" in lines[0]:
            columns.append(("saved\non average", output.saved))
        output.print_rows(lines, [*columns, ("largest gap", output.figure(_GAP, ".1e"))])
        cells = counted(len(sweep.cells), "cell")
        click.echo(f"\n{path}: {cells}, {seconds:.1f} s, compilation included.")

    output.print_answer(question, lines, document, table)
    return statuses


def _summary(sweep: Sweep, path: Path) -> tuple[list[output.Row], Counter[str]]:
    """Read from the file how each method came out and what it saved, and the statuses of all."""
    gaps: dict[str, float] = {}
    saved: dict[str, list[float]] = {}
    counts = Counter[tuple[str, str]]()
    statuses = Counter[str]()
    for row in _with_bounds(sweep, read_rows(path)):
        method = row["method"]
        status = row["status"]
        bound = row[_BOUND]
        counts[method, status] += 1
        statuses[status] += 1
        if status == "converged" and bound:
            gaps[method] = max(1 - bound / float(row["expected_runtime"]), gaps.get(method, 0.0))
        if status == "converged" and row.get("saved"):
            saved.setdefault(method, []).append(float(row["saved"]))
    lines = []
    for method in sweep.methods:
        line: output.Row = {"method": method, "cells": len(sweep.cells)}
        line |= {status: counts[method, status] for status in statuses}
        line[_GAP] = gaps.get(method)
        if saved:
            line["saved"] = float(np.mean(saved[method])) if method in saved else None
        lines.append(line)
    return lines, statuses


def _end(statuses: Counter[str]) -> None:
    """Say how many rows are no problem; status 1 if one is none, or if no row is an answer."""
    invalid = statuses[Status.INVALID.name.lower()]
    infeasible = statuses[Status.INFEASIBLE.name.lower()]
    if invalid:
        why = "their numbers make no problem, or are too large or small for float64"
        are = "is" if invalid == 1 else "are"
        say(f"bcgc: {invalid} of {counted(statuses.total(), 'row')} {are} invalid: {why}")
    if invalid or infeasible == statuses.total():
        raise click.exceptions.Exit(1)
