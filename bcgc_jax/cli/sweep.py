"""`bcgc sweep`: a grid of problems over the number of workers and any other number, to a file or a table."""

import functools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.table import Column

from bcgc_jax.cli.arguments import law_class
from bcgc_jax.cli.deliveries import START_UP
from bcgc_jax.cli.ending import begin, interruptible, leave, say
from bcgc_jax.cli.estimates import Cost, announce, cost_of_all
from bcgc_jax.cli.law_output import describe_law
from bcgc_jax.cli.output import (
    console,
    finite,
    names,
    one_line_errors,
    print_table,
    table,
    write_json,
    write_rows,
)
from bcgc_jax.cli.solve_rows import with_round_trip
from bcgc_jax.cli.sweep_cells import all_parameters, problem_of_cell, refuse_no_law
from bcgc_jax.cli.sweep_command import Question
from bcgc_jax.cli.waiting import Report, cells
from bcgc_jax.laws import JointLaw, Law
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.methods import Method, Optimal, method_of
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.sweep_files import parts_of, read_rows, write_sweep
from bcgc_jax.sweeps import Sweep, grid

Row = dict[str, Any]

_GAP = "largest_relative_gap"
_PATIENCE = 60  # seconds that processes wait for each other


def _tasks(question: Question) -> list[Method | Scheme]:
    """What every cell is solved by."""
    own = [scheme.name for scheme in question.schemes]
    names = question.methods or (*(() if question.for_deadline else ("optimal",)), *own)
    asked = ("deadline", *names) if question.for_deadline else names
    found = {method.name: method for method in (method_of(name, question.schemes) for name in asked)}
    return [
        Optimal(question.tolerance)
        if isinstance(method, Optimal)
        else with_round_trip(method, question.round_trip)
        for method in found.values()
    ]


@one_line_errors
def answer(question: Question) -> None:
    """Of the command."""
    _use_all_cores()
    with jax.enable_x64(True):
        _join_processes(question)
        axes, law, problem = _axes(question)
        sweep = Sweep(
            problem,
            grid(**axes),
            _tasks(question),
            key=jax.random.key(question.seed),
            partitions=question.partitions,
            labels={"law": law, **question.delivery.labels()},
        )
        _announce(sweep)
        if question.out is None:
            with cells("solving") as report:
                rows = interruptible(lambda: _collect(sweep, report))
            _print_rows(rows, [name for name, values in axes.items() if len(values) > 1], question.output)
            _end(Counter(row["status"] for row in rows))
            return
        start = time.perf_counter()
        with (
            _resumable(question.out),
            cells("solving") as report,
            _quiet_stdout(question.coordinator is not None),
        ):
            path = interruptible(lambda: _written(sweep, question, report))
        if jax.process_index() == 0:
            lines = _summary(sweep, path)
            _print_summary(lines, path, len(sweep.cells), time.perf_counter() - start, question.output)
            _end(Counter({status.name.lower(): _of_all(lines, status) for status in Status}))


def _axes(question: Question) -> tuple[dict[str, np.ndarray], str, Callable[..., Problem]]:
    """The numbers of the grid by their names, the name of the law, and the problem that a cell of them is."""
    workers, start = question.workers, question.delivery.law
    parameters = {name: a for name, a in question.axes if not name.startswith(START_UP)}
    of_start = {name: a for name, a in question.axes if name.startswith(START_UP)}
    if start is not None:
        of_start = all_parameters(start, of_start, "--start-up", START_UP)
        refuse_no_law(law_class(start[0]), {name.removeprefix(START_UP): a for name, a in of_start.items()})
    elif of_start:
        raise click.UsageError(f"--axis {next(iter(of_start))} needs a --start-up LAW")
    law: Law | JointLaw | type[Law]
    if question.trace is not None:
        trace = question.trace.read()
        asked: list[int | None] = [None] if workers is None else workers.tolist()
        workers = np.array([question.trace.num_workers(trace, one) for one in asked])
        law = question.trace.law(trace, int(workers.max()))
        name = describe_law(law)["law"]
    else:
        assert question.cycle_time is not None
        parameters = all_parameters(question.cycle_time, parameters, "--cycle-time")
        name = question.cycle_time[0]
        law = law_class(name)
        refuse_no_law(law, parameters)
    if workers is None:
        raise click.UsageError("give the numbers of workers with --workers")
    axes = {
        "num_workers": workers,
        "num_coordinates": question.coordinates,
        "num_samples": question.samples,
        "cycles": question.cycles,
        **parameters,
        **of_start,
        **question.delivery.axes(),
    }
    optional = {"setup_cycles": question.setup_cycles, "deadline": question.deadline}
    axes |= {name: values for name, values in optional.items() if values is not None}
    starting = None if start is None else law_class(start[0])
    made = functools.partial(problem_of_cell, law, tuple(parameters), starting, question.delivery.overlap)
    return axes, name, made


def _written(sweep: Sweep, question: Question, report: Report) -> Path:
    assert question.out is not None
    return write_sweep(sweep, question.out, resume=question.resume, progress=report)


@contextmanager
def _resumable(out: str | None) -> Iterator[None]:
    """An interruption says how to go on, where something is left to go on with."""
    try:
        yield
    except KeyboardInterrupt:
        kept = out is not None and parts_of(Path(out)).exists()
        raise click.Abort(*["what is solved is kept; go on with --resume"] * kept) from None


def _announce(sweep: Sweep) -> None:
    """That it takes long, where it does: the first cell of a size stands for all of them."""
    total = Cost()
    for group in sweep.groups:
        cell = {name: values[0] for name, values in sweep.cells.take(group.take(0, 1)).items()}
        cell = {name: value for name, value in cell.items() if name != "deadline"}
        try:
            problem = sweep.problem(
                max_workers=group.max_workers, **cell | {"num_workers": group.max_workers}
            )
        except ValueError:  # a cell that makes no sense
            continue
        one, _ = cost_of_all(problem, sweep.methods.values())
        share = group.size / sweep.mesh.size / jax.process_count()
        total = total.after(Cost(one.seconds * share, one.bytes))
    announce(total, "quicker: fewer cells or --workers")


def _use_all_cores() -> None:
    """One device for each core, before the first computation; afterwards it is too late, and no harm."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        return


def _join_processes(question: Question) -> None:
    """Of several processes, meet the others."""
    if question.coordinator is None:
        return
    where = (question.coordinator, question.processes, question.process)
    say(f"waiting up to {_PATIENCE} s for all {question.processes} processes at {question.coordinator}")
    # Where jaxlib's own time is up it aborts the process, stack and all.
    longer = 10 * _PATIENCE
    try:
        begin(lambda: jax.distributed.initialize(*where, initialization_timeout=longer)).result(_PATIENCE)
    except TimeoutError:
        say(
            f"bcgc: the processes at {question.coordinator} did not meet within {_PATIENCE} s: is each "
            "started, with the same --coordinator and --processes?"
        )
        leave(2)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.UsageError(f"the processes at {question.coordinator} did not meet: {reason}") from None


@contextmanager
def _quiet_stdout(several: bool) -> Iterator[None]:
    """With several processes, what the library that connects them writes to stdout goes to stderr."""
    if not several:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _collect(sweep: Sweep, report: Report) -> list[Row]:
    rows: list[Row] = []
    total, done = len(sweep.cells), 0
    report(0, total)
    for chunk in sweep.chunks():
        found = sweep.solve(chunk)
        rows += [
            dict(zip(found, row, strict=True))
            for row in zip(*(values.tolist() for values in found.values()), strict=True)
        ]
        done += len(chunk.cells)
        report(done, total)
    return rows


def _print_rows(rows: list[Row], axes: list[str], output: str) -> None:
    if output == "json":
        plain = [{k: finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write_json(plain)
        return
    if output == "csv":
        write_rows(rows)
        return
    chance = ["P(runtime ≤\ndeadline)"] * ("completion_probability" in rows[0])
    scheduled = any(row["round_trips"] > 0 or row["exact_gradient"] is False for row in rows)
    needs = ["subsets\nstored", "sent\nin L", "round\ntrips"] if scheduled else []
    heads: tuple[str | Column, ...] = (
        *axes,
        names("scheme"),
        "expected\nruntime",
        "relative\ngap ≤",
        *chance,
        *needs,
        Column("status", no_wrap=True),
    )
    shown = table(*heads)
    for row in rows:
        cells = [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in axes]
        inexact = " (inexact)" if row["exact_gradient"] is False else ""
        cells += [row["method"] + inexact, _number(row["expected_runtime"], ".4g")]
        cells += [_number(row["relative_gap"], ".1e")]  # a scheme that is no partition has no certificate
        cells += [_number(row["completion_probability"], ".4f")] if chance else []
        if scheduled:
            digits = (("stored_subsets", ".0f"), ("sent", ".2f"), ("round_trips", ".0f"))
            cells += [_number(row[name], form) for name, form in digits]
        shown.add_row(*cells, row["status"])
    print_table(shown)


def _number(value: float, digits: str) -> str:
    return format(value, digits) if math.isfinite(value) else "–"


def _end(statuses: Counter[str]) -> None:
    """Say how many rows are no answer; status 1 where none is one."""
    invalid, infeasible = (statuses[status.name.lower()] for status in (Status.INVALID, Status.INFEASIBLE))
    if invalid:
        click.echo(
            f"bcgc: {invalid} of {statuses.total()} rows are invalid: their numbers make no problem, or are "
            "too large or small for float64",
            err=True,
        )
    if invalid + infeasible == statuses.total():
        raise click.exceptions.Exit(1)


def _of_all(lines: list[Row], status: Status) -> int:
    return sum(line.get(status.name.lower(), 0) for line in lines)


def _print_summary(lines: list[Row], path: Path, cells: int, seconds: float, output: str) -> None:
    if output == "json":
        write_json({"file": str(path), "seconds": round(seconds, 2), "methods": lines})
        return
    if output == "csv":
        write_rows(lines, missing="0")
        return
    counts = [name for name in dict.fromkeys(name for line in lines for name in line) if name != _GAP]
    shown = table(Column("scheme"), *counts[1:], "largest gap")
    for line in lines:
        figures = [str(line.get(name, 0)) for name in counts]
        shown.add_row(*figures, "–" if line[_GAP] is None else f"{line[_GAP]:.1e}")
    screen = console(wrap=False)
    print_table(shown)
    screen.print(f"\n{path}: {cells:,} cells, {seconds:.1f} s, compilation included.")


def _summary(sweep: Sweep, path: Path) -> list[Row]:
    """How each method came out, from the file itself."""
    statuses: dict[str, Counter[str]] = {method: Counter() for method in sweep.methods}
    gaps: dict[str, float | None] = dict.fromkeys(sweep.methods)
    for row in read_rows(path, ("method", "status", "relative_gap")):
        statuses[row["method"]][row["status"]] += 1
        gap = float(row["relative_gap"] or "nan")
        if row["status"] == "converged" and not math.isnan(gap):
            gaps[row["method"]] = max(gaps[row["method"]] or 0.0, gap)
    return [
        {"method": method, "cells": len(sweep.cells), **statuses[method], _GAP: gaps[method]}
        for method in sweep.methods
    ]
