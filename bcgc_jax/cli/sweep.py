"""`bcgc sweep`: a grid of problems over the number of workers and any other number, to a file or a table."""

import csv
import functools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bcgc_jax.cli.arguments import (
    SEED,
    Axis,
    NamedAxis,
    Number,
    OpenCycleTime,
    finite,
    format_option,
    law_help,
    law_name,
    law_of_trace,
    missing_parameters,
    objective_option,
    schemes_option,
    trace_law_option,
    trace_options,
    workers_of_trace,
)
from bcgc_jax.cli.output import progress
from bcgc_jax.laws import Law
from bcgc_jax.measured.traces import load_trace
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.solve import METHODS, OBJECTIVES
from bcgc_jax.sweep_files import read_rows, write_sweep
from bcgc_jax.sweeps import Sweep, grid

_WHOLE, _POSITIVE = Axis(Number(1, include=True, whole=True)), Axis(Number())


@click.command(
    name="sweep",
    short_help="Solve a grid of problems over the number of workers and any other number.",
    epilog=f"""\b
Examples:
  bcgc sweep --workers 2:50 --coordinates 20000 --samples 50 --cycle-time shifted-exponential:shift=50 \\
             --axis rate=1e-4:1e-1:33:log --method optimal --method single_block --out sweep.parquet
  bcgc sweep --workers 4,8,16 --coordinates 1e6 --cycle-time weibull:scale=1,shift=0.1 \\
             --axis concentration=0.5,1,2
  bcgc sweep --workers 10 --coordinates 40000 --cycle-time shifted-exponential:rate=0.1,shift=1 \\
             --deadline 1e6:8e6:29 --objective completion-probability --format csv
  bcgc sweep … --out sweep.csv --resume       goes on where it was cut off

An axis: 3, or 1,2,5, or LOW:HIGH:COUNT in equal steps, LOW:HIGH:COUNT:log in equal ratios; of whole
numbers also LOW:HIGH, all of them.

Several processes share the work and write one file, each started with the same command and
  --coordinator HOST:PORT --processes K --process 0 … K-1

Laws: {law_help()}

Methods: {METHODS}""",
)
@click.option("--workers", type=_WHOLE, help="N: an axis; by default the workers of the trace.")
@click.option("--coordinates", type=_WHOLE, required=True, help="L, the gradient's length: an axis.")
@click.option("--samples", type=_POSITIVE, default=1, show_default=True, help="M, over all workers: an axis.")
@click.option("--cycles", type=_POSITIVE, default=1, show_default=True, help="b, CPU cycles: an axis.")
@click.option("--setup-cycles", type=Axis(Number(include=True)), help="f, before the first: an axis.")
@click.option(
    "--cycle-time", type=OpenCycleTime(), help="Law, NAME:PARAMETER=VALUE,…; an --axis may give more."
)
@click.option("--trace", type=click.Path(), help="CSV or Parquet of measured times: the law.")
@trace_law_option
@trace_options
@click.option(
    "--axis", "axes", type=NamedAxis(), multiple=True, help="A parameter of the law: an axis; repeat it."
)
@click.option("--deadline", type=_POSITIVE, help="Also P(runtime ≤ deadline): an axis.")
@objective_option
@click.option(
    "--method", "methods", multiple=True, help="Scheme to solve for; repeat it; optimal by default."
)
@click.option(
    "--tolerance", type=Number(), default=1e-7, show_default=True, help="Relative gap of `optimal`."
)
@click.option("--partitions", is_flag=True, help="Also give the partitions, rounded.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of methods that draw.")
@click.option("--out", type=click.Path(), help="Write to FILE.csv or FILE.parquet, chunk by chunk.")
@click.option("--resume", is_flag=True, help="Go on with --out where an earlier call was cut off.")
@click.option("--coordinator", help="HOST:PORT of the first of several processes.")
@click.option("--processes", type=Number(1, include=True, whole=True), help="How many there are.")
@click.option("--process", type=Number(0, include=True, whole=True), help="Which one this is, from 0 on.")
@schemes_option
@format_option
def sweep_command(
    workers: np.ndarray | None,
    coordinates: np.ndarray,
    samples: np.ndarray,
    cycles: np.ndarray,
    setup_cycles: np.ndarray | None,
    cycle_time: tuple[type[Law], dict[str, float]] | None,
    trace: str | None,
    trace_law: str,
    columns: dict[str, Any],
    axes: tuple[tuple[str, np.ndarray], ...],
    deadline: np.ndarray | None,
    objective: str,
    methods: tuple[str, ...],
    tolerance: float,
    partitions: bool,
    seed: int,
    out: str | None,
    resume: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    output: str,
) -> None:
    """Solve all combinations of the axes, each with its certificate.

    Without --out the rows are printed; with it they go to the file as they come, and a summary is printed.
    A cell that cannot be solved has its status and stops no other.
    """
    if (cycle_time is None) == (trace is None):
        raise click.UsageError("give the law of the cycle time: either --cycle-time or --trace")
    if resume and out is None:
        raise click.UsageError("--resume goes on with a file: give it with --out")
    several = (coordinator, processes, process)
    if any(x is not None for x in several):
        if any(x is None for x in several) or out is None:
            raise click.UsageError("several processes need --coordinator, --processes, --process and --out")
        assert processes is not None
        assert process is not None
        if not re.fullmatch(r".+:\d+", str(coordinator)):
            raise click.UsageError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
        if process >= processes:
            raise click.UsageError(f"--process must be below --processes, {processes}, got {process}")
    _use_all_cores()
    with jax.enable_x64(True):
        try:
            if coordinator is not None:
                assert processes is not None
                assert process is not None
                _join_processes(coordinator, processes, process)
            law, parameters = None, dict(axes)
            if len(parameters) < len(axes):
                raise click.UsageError("a parameter has two axes: give each --axis once")
            if trace is not None:
                measured = load_trace(trace, **columns)
                if workers is None:
                    workers = np.array([workers_of_trace(measured.num_workers, trace)])
                law = law_of_trace(measured, trace_law, int(workers.max()))
                if axes:
                    raise click.UsageError("the law of a --trace has no parameters: drop --axis")
            else:
                assert cycle_time is not None
                parameters = _parameters(cycle_time, parameters)
            if workers is None:
                raise click.UsageError("give the numbers of workers with --workers")
            numbers = {"num_workers": workers, "num_coordinates": coordinates}
            optional = {"setup_cycles": setup_cycles, "deadline": deadline}
            numbers |= {"num_samples": samples, "cycles": cycles, **parameters}
            numbers |= {name: values for name, values in optional.items() if values is not None}
            plan = Sweep(
                functools.partial(_problem, cycle_time[0] if cycle_time else law, tuple(parameters)),
                grid(**numbers),
                methods or ("optimal",),
                options={} if objective == OBJECTIVES[1] else {"optimal": {"tolerance": tolerance}},
                objective=objective,
                key=jax.random.key(seed),
                partitions=partitions,
            )
            start = time.perf_counter()
            if out is not None:
                with _progress() as report, _quiet_stdout(coordinator is not None):
                    path = write_sweep(plan, out, resume=resume, progress=report)
                if jax.process_index() == 0:
                    _print_summary(plan, path, time.perf_counter() - start, output)
                return
            with _progress() as report:
                rows = _collect(plan, report)
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            raise click.UsageError(f"{named}{error.strerror or error}") from None
        except (ValueError, ImportError) as error:
            raise click.UsageError(str(error)) from None
    _print_rows(rows, [name for name, values in numbers.items() if len(values) > 1], output)


def _use_all_cores() -> None:
    """One device for each core, before the first computation; afterwards it is too late, and no harm."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        return


def _join_processes(coordinator: str, processes: int, process: int) -> None:
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.UsageError(f"the processes at {coordinator} did not meet: {reason}") from None


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


def _parameters(
    cycle_time: tuple[type[Law], dict[str, float]], axes: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All parameters of the law, those of --cycle-time as axes of one number."""
    law, given = cycle_time
    known = list(law.__dataclass_fields__)  # type: ignore[attr-defined]
    for name in axes:
        if name not in known:
            raise click.UsageError(f"--axis {name}: {law_name(law)} has the parameters {', '.join(known)}")
        if name in given:
            raise click.UsageError(f"{name} is given twice: in --cycle-time and as an --axis")
    missing = missing_parameters(law, {*given, *axes})
    if missing:
        raise click.UsageError(f"{law_name(law)} needs {', '.join(missing)}: in --cycle-time or as an --axis")
    return {**{name: np.array([value]) for name, value in given.items()}, **axes}


def _problem(law: Any, parameters: tuple[str, ...], max_workers: int, **numbers: Any) -> Problem:
    cycle_time = law if isinstance(law, Law) else law(**{name: numbers.pop(name) for name in parameters})
    return Problem(cycle_time, max_workers=max_workers, **numbers)


@contextmanager
def _progress() -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} cells"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with progress(*columns) as bar:
        task = bar.add_task("solving", total=0, speed="")
        first: list[tuple[float, int]] = []

        def report(done: int, total: int) -> None:
            first.append((time.perf_counter(), done)) if not first else None
            (began, before), now = first[0], time.perf_counter()
            speed = f"{(done - before) / (now - began):.3g} cells/s" if done > before else ""
            bar.update(task, completed=done, total=total, speed=speed)

        yield report


def _collect(plan: Sweep, progress: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    total, done = len(plan.cells), 0
    progress(0, total)
    for chunk in plan.chunks():
        table = plan.solve(chunk)
        rows += [
            dict(zip(table, row, strict=True))
            for row in zip(*(values.tolist() for values in table.values()), strict=True)
        ]
        done += len(chunk.cells)
        progress(done, total)
    return rows


def _plain(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value


def _print_rows(rows: list[dict[str, Any]], axes: list[str], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([{k: _plain(v) for k, v in row.items()} for row in rows], indent=1))
        return
    if output == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: " ".join(map(str, v)) if isinstance(v, list) else _plain(v) for k, v in row.items()}
            )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in axes:
        table.add_column(name, justify="right")
    table.add_column("scheme", no_wrap=True)
    for name in ("expected\nruntime", "relative\ngap ≤"):
        table.add_column(name, justify="right")
    if "completion_probability" in rows[0]:
        table.add_column("P(runtime ≤\ndeadline)", justify="right")
    table.add_column("status")
    for row in rows:
        value = row["expected_runtime"]
        cells = [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in axes]
        cells += [row["method"], f"{value:.4g}" if math.isfinite(value) else "–"]
        # A scheme that is no partition has no certificate.
        cells += [f"{row['relative_gap']:.1e}" if 0 <= row["relative_gap"] < 1 else "–"]
        if "completion_probability" in row:
            known = math.isfinite(row["completion_probability"])
            cells += [f"{row['completion_probability']:.4f}" if known else "–"]
        table.add_row(*cells, row["status"])
    Console(width=100, highlight=False, file=sys.stdout).print(table)


def _print_summary(plan: Sweep, path: Path, seconds: float, output: str) -> None:
    """How each method came out, from the file itself."""
    statuses: dict[str, Counter[str]] = {method: Counter() for method in plan.methods}
    gaps = dict.fromkeys(plan.methods, 0.0)
    for row in read_rows(path, ("method", "status", "relative_gap")):
        statuses[row["method"]][row["status"]] += 1
        if row["status"] == "converged":
            gap = float(row["relative_gap"] or "nan")
            gaps[row["method"]] = max(gaps[row["method"]], 0.0 if math.isnan(gap) else gap)
    lines: list[dict[str, Any]] = [
        {"method": method, "cells": len(plan.cells), **statuses[method], "largest_relative_gap": gaps[method]}
        for method in plan.methods
    ]
    if output == "json":
        click.echo(json.dumps({"file": str(path), "seconds": round(seconds, 2), "methods": lines}, indent=2))
        return
    names = list(dict.fromkeys(name for line in lines for name in line))
    if output == "csv":
        writer = csv.DictWriter(sys.stdout, names, restval="0", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = {"method": "scheme", "largest_relative_gap": "largest gap"}
    names = [name for name in names if name != "largest_relative_gap"] + ["largest_relative_gap"]
    for name in names:
        table.add_column(shown.get(name, name), justify="left" if name == "method" else "right")
    for line in lines:
        gap = line["largest_relative_gap"]
        cells = [str(line.get(name, 0)) for name in names[:-1]]
        table.add_row(*cells, f"{gap:.1e}" if gap < 1 else "–")
    console = Console(width=100, highlight=False, file=sys.stdout, soft_wrap=True)
    console.print(table)
    console.print(f"\n{path}: {len(plan.cells):,} cells, {seconds:.1f} s, compilation included.")
