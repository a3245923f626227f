"""`bcgc sweep`: a grid of problems over the number of workers and any other number, to a file or a table."""

import functools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.table import Column

from bcgc_jax.cli import figures, output, plot
from bcgc_jax.cli.answers import describe_law
from bcgc_jax.cli.arguments import law_class, missing_parameters
from bcgc_jax.cli.commands import START_UP, SweepOptions
from bcgc_jax.cli.exit import interruptible, leave, say
from bcgc_jax.cli.names import LAWS, OBJECTIVES
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.traces import law_for, read, workers_of
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.methods import Method
from bcgc_jax.sweeps.cells import grid
from bcgc_jax.sweeps.files import parts_of, read_rows, write_sweep
from bcgc_jax.sweeps.run import Sweep

_GAP = "largest_relative_gap"
_PATIENCE = 60  # seconds that processes wait for each other


def _tasks(question: SweepOptions) -> list[Method]:
    best = "deadline" if question.objective == OBJECTIVES[1] else "optimal"
    names = question.methods or (best, *(one.name for one in question.schemes))
    asked = question.asked(*names, round_trip=question.round_trip)
    if "optimal" in asked:
        asked |= question.asked("optimal", tolerance=question.tolerance)
    return list(asked.values())


def answer(question: SweepOptions) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(RuntimeError):  # too late after the first computation, and no harm
        jax.config.update("jax_num_cpu_devices", cores)
    with jax.enable_x64(True):
        _join_processes(question)
        axes, labels, problem = _axes(question)
        key = jax.random.key(question.seed)
        sweep = Sweep(
            problem, grid(**axes), _tasks(question), key=key, partitions=question.partitions, labels=labels
        )
        if question.out is not None:
            return _to_file(sweep, question, Path(question.out))
        rows = interruptible(lambda: _collect(sweep))
        varied = [name for name, values in axes.items() if len(values) > 1]
        output.print_answer(question.output, rows, rows, lambda: _print_table(rows, varied))
        _draw(question, rows)
        _end(Counter(row["status"] for row in rows))


def _draw(question: SweepOptions, rows: list[output.Row]) -> None:
    if question.figure is not None:
        output.write_figure(lambda: figures.of_rows(rows), question.figure, told=question.output == "table")


def _to_file(sweep: Sweep, question: SweepOptions, path: Path) -> None:
    """Chunk by chunk, and a summary; an interruption says how to go on, where there is something to."""
    start = time.perf_counter()
    try:
        with Progress("solving") as bar, _quiet_stdout():
            path = interruptible(lambda: write_sweep(sweep, path, resume=question.resume, progress=bar.reach))
    except KeyboardInterrupt:
        hint = ["what is solved is kept; go on with --resume"]
        raise click.Abort(*hint * parts_of(path).exists()) from None
    if jax.process_index() != 0:
        return
    (lines, statuses), seconds = _summary(sweep, path), time.perf_counter() - start
    document = {"file": str(path), "seconds": round(seconds, 2), "methods": lines}
    output.print_answer(question.output, lines, document, lambda: _print_summary(lines))
    if question.figure is not None:
        _draw(question, plot.read(path))
    if question.output == "table":
        click.echo(f"\n{path}: {len(sweep.cells):,} cells, {seconds:.1f} s, compilation included.")
    _end(statuses)


def _axes(question: SweepOptions) -> tuple[dict[str, np.ndarray], dict[str, str], Callable[..., Problem]]:
    """The numbers of the grid by their names, what is no number, and the problem that a cell of them is."""
    workers, start = question.workers, question.start_up_law
    of_start = {name: a for name, a in question.axes if name.startswith(START_UP)}
    parameters = {name: a for name, a in question.axes if name not in of_start}
    if start is not None:
        of_start = all_parameters(start, of_start, "--start-up", START_UP)
    elif of_start:
        raise click.UsageError(f"--axis {next(iter(of_start))} needs a --start-up LAW")
    law: Distribution | JointDistribution | type[Distribution]
    if (trace := read(question.trace)) is not None:
        asked: list[int | None] = [None] if workers is None else workers.tolist()
        workers = np.array([workers_of(question.trace, trace, one) for one in asked])
        law = law_for(question.trace, trace, int(workers.max()))
        name = describe_law(law)["law"]
    else:
        assert question.cycle_time is not None
        parameters = all_parameters(question.cycle_time, parameters, "--cycle-time")
        name, law = question.cycle_time[0], law_class(question.cycle_time[0])
    if workers is None:
        raise click.UsageError("give the numbers of workers with --workers")
    axes = {
        "num_workers": workers,
        "num_coordinates": question.coordinates,
        "num_samples": question.samples,
        "cycles": question.cycles,
        **parameters,
        **of_start,
        "setup_cycles": question.setup_cycles,
        "start_up": question.start_up if isinstance(question.start_up, np.ndarray) else None,
        "send_time": question.send_time,
        "chain_cycles": question.chain_cycles,
        "deadline": question.deadline,
    }
    starting = None if start is None else law_class(start[0])
    made = functools.partial(problem_of_cell, law, tuple(parameters), starting, question.overlap)
    labels = {"law": name} | ({} if start is None else {"start_up_law": start[0]})
    labels |= {"overlap": "true"} if question.overlap else {}
    return {name: values for name, values in axes.items() if values is not None}, labels, made


def all_parameters(
    typed: tuple[str, dict[str, float]], axes: dict[str, np.ndarray], option: str, prefix: str = ""
) -> dict[str, np.ndarray]:
    """All parameters of a law, those of its `option` as axes of one number; named with the `prefix`."""
    law, given = typed
    known = [prefix + name for name in LAWS[law]]
    for name in axes:
        if name not in known:
            raise click.UsageError(f"--axis {name}: {law} has the parameters {', '.join(known)}")
        if name.removeprefix(prefix) in given:
            raise click.UsageError(f"{name} is given twice: in {option} and as an --axis")
    missing = missing_parameters(law, {*given, *(name.removeprefix(prefix) for name in axes)})
    if missing:
        raise click.UsageError(f"{law} needs {', '.join(missing)}: in {option} or as an --axis")
    return {prefix + name: np.array([value]) for name, value in given.items()} | axes


def problem_of_cell(
    law: Any,
    parameters: tuple[str, ...],
    start_up: type[Distribution] | None,
    overlap: bool,
    max_workers: int,
    **numbers: Any,
) -> Problem:
    if parameters:
        law = law(**{name: numbers.pop(name) for name in parameters})
    if start_up is not None:
        given = [name for name in numbers if name.startswith(START_UP)]
        numbers["start_up"] = start_up(**{name.removeprefix(START_UP): numbers.pop(name) for name in given})
    return Problem(law, max_workers=max_workers, overlap=overlap, **numbers)


def _join_processes(question: SweepOptions) -> None:
    if question.coordinator is None:
        return
    where = (question.coordinator, question.processes, question.process)
    all_of_them = f"all {question.processes} processes at {question.coordinator}"
    say(f"waiting up to {_PATIENCE} s for {all_of_them}")
    # Where jaxlib's own time is up it aborts the process, stack and all: it has longer.
    initialize = functools.partial(jax.distributed.initialize, initialization_timeout=10 * _PATIENCE)
    try:
        interruptible(lambda: initialize(*where), _PATIENCE)
    except TimeoutError:
        reason = f"not within {_PATIENCE} s: is each started, with the same --coordinator and --processes?"
        say(f"bcgc: {all_of_them} did not meet, {reason}")
        leave(2)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.UsageError(f"{all_of_them} did not meet: {reason}") from None


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """What the library that connects several processes writes to stdout goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _collect(sweep: Sweep) -> list[output.Row]:
    rows: list[output.Row] = []
    with Progress("solving") as bar:
        for chunk in sweep.chunks():
            found = {name: values.tolist() for name, values in sweep.solve(chunk).items()}
            rows += [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
            bar.reach(len(rows), len(sweep.cells) * len(sweep.methods))
    return rows


def _print_table(rows: list[output.Row], axes: list[str]) -> None:
    def typed(name: str) -> output.Shown:
        return name, lambda row: f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])

    chance = "P(runtime ≤\ndeadline)", output.figure("completion_probability", ".4f")
    columns = [
        *map(typed, axes),
        output.scheme_column(),
        ("expected\nruntime", output.figure("expected_runtime")),
        ("above\noptimum ≤", lambda row: output.above_bound(row["expected_runtime"], row["lower_bound"])),
        *([chance] if "completion_probability" in rows[0] else []),
        *output.needs_columns(rows),
        (Column("status", no_wrap=True), lambda row: row["status"]),
    ]
    output.print_rows(rows, columns)


def _end(statuses: Counter[str]) -> None:
    """Say how many rows are no problem; status 1 where one is none, or where no row is an answer."""
    invalid, infeasible = (statuses[status.name.lower()] for status in (Status.INVALID, Status.INFEASIBLE))
    if invalid:
        say(
            f"bcgc: {invalid} of {statuses.total()} rows are invalid: their numbers make no problem, or are "
            "too large or small for float64"
        )
    if invalid or infeasible == statuses.total():
        raise click.exceptions.Exit(1)


def _print_summary(lines: list[output.Row]) -> None:
    def counted(name: str) -> output.Shown:
        return name, lambda line: str(line[name])

    counts = [counted(name) for name in lines[0] if name not in ("method", _GAP)]
    gap = "largest gap", output.figure(_GAP, ".1e")
    output.print_rows(lines, [output.scheme_column(), *counts, gap])


def _summary(sweep: Sweep, path: Path) -> tuple[list[output.Row], Counter[str]]:
    """How each method came out, and how all did, from the file itself."""
    statuses = {method: Counter[str]() for method in sweep.methods}
    gaps: dict[str, list[float]] = {method: [] for method in sweep.methods}
    for row in read_rows(path, ("method", "status", "relative_gap")):
        statuses[row["method"]][row["status"]] += 1
        gap = float(row["relative_gap"] or "nan")
        if row["status"] == "converged" and not math.isnan(gap):
            gaps[row["method"]].append(gap)
    total = sum(statuses.values(), Counter[str]())
    lines = [
        {"method": method, "cells": len(sweep.cells)}
        | {status: found[status] for status in total}
        | {_GAP: max(gaps[method], default=None)}
        for method, found in statuses.items()
    ]
    return lines, total
