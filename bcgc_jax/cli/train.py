"""`bcgc train`: schemes side by side on the handwritten digits, on a simulated or a real clock."""

import contextlib
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bcgc_jax.cli.arguments import (
    SEED,
    CycleTime,
    Number,
    describe_law,
    finite,
    format_option,
    law_help,
    schemes_option,
    trace_options,
)
from bcgc_jax.cli.output import progress
from bcgc_jax.coding.digits import MODELS, DigitsRun, digits_problem, expected_of, train_on_digits
from bcgc_jax.coding.gradients import UNITS
from bcgc_jax.measured.traces import load_trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.schemes import added_schemes
from bcgc_jax.solvers.solve import check_finite_mean, parse_method, solve

ENGINES = ("simulated", "ray")
METHODS = ("uncoded", "single_block", "tandon_partial", "time", "frequency", "optimal")


@click.command(
    name="train",
    short_help="Train on handwritten digits: loss against simulated time, scheme against scheme.",
    epilog=f"""\b
Examples:
  bcgc train --workers 20 --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc train --workers 10 --model perceptron --method optimal --method uncoded \\
             --cycle-time pareto:scale=1,shape=2.5 --curves curves.csv
  bcgc train --trace steps.csv --units layers --setup-cycles 500 --format json
  bcgc train --engine ray --workers 8 --steps 50 --cycle-time shifted-exponential:rate=1e-3,shift=50

Laws: {law_help()}""",
)
@click.option(
    "--workers", type=Number(1, include=True, whole=True), help="N; with --trace that of the trace."
)
@click.option("--cycle-time", type=CycleTime(), help="Law of a worker's cycle time, NAME:PARAMETER=VALUE,…")
@click.option("--trace", type=click.Path(), help="CSV or Parquet of measured times, replayed step by step.")
@trace_options
@click.option("--model", type=click.Choice(list(MODELS)), default="softmax", show_default=True)
@click.option("--method", "methods", multiple=True, help="Scheme of `solve` to train with; repeat it.")
@click.option(
    "--units",
    type=click.Choice(UNITS),
    default=UNITS[0],
    show_default=True,
    help="What a block is made of.",
)
@click.option(
    "--cycles", type=Number(), default=1, show_default=True, help="b, cycles per coordinate, sample."
)
@click.option("--setup-cycles", type=Number(include=True), help="f, cycles per sample and subset at first.")
@click.option("--steps", type=Number(1, include=True, whole=True), default=200, show_default=True)
@click.option("--seeds", type=Number(1, include=True, whole=True), help="Runs of each scheme; 8, with ray 1.")
@click.option("--learning-rate", type=Number(), default=0.5, show_default=True)
@click.option(
    "--batch-size", type=Number(1, include=True, whole=True), help="Samples of each subset per step; all."
)
@click.option("--target", type=Number(), default=0.9, show_default=True, help="Test accuracy to be reached.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the seeds.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ENGINES[0],
    show_default=True,
    help="A simulated clock, or worker processes and the wall clock.",
)
@click.option(
    "--pace",
    type=Number(include=True),
    default=0.2,
    show_default=True,
    help="With ray: seconds that the fastest scheme's expected iteration takes, its workers slowed on "
    "purpose; 0 for workers as they are.",
)
@click.option("--address", help="With ray: a running cluster to join; by default one on this machine.")
@click.option("--curves", type=click.Path(), help="Also write every iteration to this CSV file.")
@schemes_option
@format_option
def train_command(
    workers: int | None,
    cycle_time: Any,
    trace: str | None,
    columns: dict[str, Any],
    model: str,
    methods: tuple[str, ...],
    units: str,
    cycles: float,
    setup_cycles: float | None,
    steps: int,
    seeds: int | None,
    learning_rate: float,
    batch_size: int | None,
    target: float,
    seed: int,
    engine: str,
    pace: float,
    address: str | None,
    curves: str | None,
    output: str,
) -> None:
    """Train a model on handwritten digits with N workers, under several schemes.

    All schemes take the same steps; what differs is the time they take: on a simulated clock, in the unit of
    the cycle time, or with --engine ray on N processes, in seconds.
    """
    if (cycle_time is None) == (trace is None):
        raise click.UsageError("give the law of the cycle time: either --cycle-time or --trace")
    if target > 1:
        raise click.UsageError("--target is an accuracy, from 0 to 1")
    if curves is not None and not Path(curves).absolute().parent.is_dir():
        raise click.UsageError(f"--curves: there is no folder {Path(curves).absolute().parent}")
    asked, seeds = bool(methods), seeds or (8 if engine == ENGINES[0] else 1)
    try:
        rows = None
        if trace is not None:
            try:
                measured = load_trace(trace, **columns)
            except OSError as error:
                raise click.UsageError(f"cannot read {trace}: {error.strerror}") from None
            rows, cycle_time = measured.rows(), measured.law()
            if workers not in (None, measured.num_workers):
                raise click.UsageError(f"the trace has {measured.num_workers} workers, not {workers}")
            workers = measured.num_workers
            if workers < 2:
                raise click.UsageError(f"{trace} has one worker only: coding needs the times of at least two")
        if workers is None:
            raise click.UsageError("give the number of workers with --workers")
        with jax.enable_x64(True):
            problem = digits_problem(
                cycle_time,
                workers,
                model,
                units=units,
                batch_size=batch_size,
                cycles=cycles,
                setup_cycles=setup_cycles,
            )
            check_finite_mean(problem)
        for method in methods:
            parse_method(problem, method)
        options: dict[str, Any] = {
            "units": units,
            "num_steps": steps,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        }
        names = methods or (*METHODS, *added_schemes())
        if engine == ENGINES[0]:
            options |= {"cycle_times": rows, "num_seeds": seeds}
            runs = _train_all(problem, model, names, seed, asked, options)
        else:
            times = cycle_time if rows is None else rows
            runs = _train_all_on_cluster(
                *(problem, model, names, seed, asked, options),
                num_seeds=seeds,
                cycle_times=times,
                pace=pace,
                address=address,
            )
    except (ValueError, ImportError) as error:
        raise click.UsageError(str(error)) from None
    except (OSError, RuntimeError) as error:
        if engine == ENGINES[0]:
            raise
        if address is not None and isinstance(error, ConnectionError):
            raise click.UsageError(f"--address: {error}") from None
        # Ray could not be started, or no worker is left.
        raise click.ClickException(f"the worker processes failed: {' '.join(str(error).split())}") from None
    summary = [_summary(run, target) for run in runs]
    if curves is not None:
        try:
            _write_curves(curves, runs)
        except OSError as error:
            raise click.UsageError(f"cannot write {curves}: {error.strerror}") from None
    if output == "json":
        question = {
            "model": model,
            "num_workers": workers,
            "cycle_time": describe_law(cycle_time),
            "num_coordinates": int(np.asarray(problem.num_coordinates)),
            "num_samples": int(np.asarray(problem.num_samples)),
            "target": target,
        }
        click.echo(json.dumps({"problem": question, "runs": summary}, indent=2))
    elif output == "csv":
        writer = csv.DictWriter(sys.stdout, list(summary[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(summary)
    else:
        _print_table(summary, target, seeds, real=engine != ENGINES[0])


def _training_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return progress(*columns)


def _train_all_on_cluster(
    problem: Problem,
    model: str,
    methods: Sequence[str],
    seed: int,
    asked: bool,
    options: dict[str, Any],
    *,
    num_seeds: int,
    cycle_times: Any,
    pace: float,
    address: str | None,
) -> list[DigitsRun]:
    """As `_train_all`, on processes: all schemes use the same ones, in turn."""
    from bcgc_jax.cluster import Cluster, Pace
    from bcgc_jax.cluster.digits import train_digits_on_cluster

    with jax.enable_x64(True):
        solutions = {}
        for method in methods:
            try:
                solution = solve(problem, method, key=jax.random.key(seed))
                if solution.status == Status.INFEASIBLE or (
                    solution.partition is None and method != "tandon_partial"
                ):
                    raise ValueError(f'"{method}" is no scheme that {model} can be trained with here')
            except ValueError:
                if asked:
                    raise
                continue
            solutions[method] = expected_of(problem, solution)
    if not solutions:
        raise ValueError("no scheme is possible for this problem")
    slowness = Pace(cycle_times, pace / min(solutions.values())) if pace else None
    workers = int(np.asarray(problem.num_workers))
    runs = []
    # What Ray prints goes to the screen, not into a table or a file.
    with (
        contextlib.redirect_stdout(sys.stderr),
        _training_progress() as bar,
        jax.enable_x64(True),  # for the plan; the model is float32
    ):
        task = bar.add_task(f"starting {workers} processes", total=len(solutions) * num_seeds)
        with Cluster(workers, address=address) as cluster:
            for method in solutions:
                found = []
                for key in jax.random.split(jax.random.key(seed), num_seeds):
                    bar.update(task, description=f"training with {method}")
                    arguments = (key, cluster, problem, model, method)
                    found.append(train_digits_on_cluster(*arguments, pace=slowness, **options).run)
                    bar.advance(task)
                rows = (np.concatenate([getattr(f, n) for f in found]) for n in ("clock", "loss", "accuracy"))
                runs.append(DigitsRun(method, found[0].expected_runtime, *rows))
    return sorted(runs, key=lambda run: solutions[run.method])


def _train_all(
    problem: Problem, model: str, methods: Sequence[str], seed: int, asked: bool, options: dict[str, Any]
) -> list[DigitsRun]:
    """One run for each method, shortest iteration first. Methods nobody `asked` for may be impossible."""
    runs, refused = [], ValueError("no scheme was asked for")
    with _training_progress() as bar:
        task = bar.add_task("training", total=len(methods))
        for method in methods:
            bar.update(task, description=f"training with {method}")
            try:
                with jax.enable_x64(True):  # for the plan and the clock; the model is float32
                    runs.append(train_on_digits(jax.random.key(seed), problem, model, method, **options))
            except ValueError as error:
                if asked:
                    raise
                refused = error
            bar.advance(task)
    if not runs:
        raise refused
    return sorted(runs, key=lambda run: run.expected_runtime)


def _summary(run: DigitsRun, target: float) -> dict[str, Any]:
    steps = run.clock.shape[1]
    time = run.time_to(target)
    return {
        "method": run.method,
        "expected_runtime": finite(run.expected_runtime),
        "mean_runtime": finite(run.clock[:, -1].mean() / steps),
        "time_to_target": finite(np.median(time)),
        "time_to_target_low": finite(time.min()),
        "time_to_target_high": finite(time.max()),
        "loss": finite(run.loss[:, -1].mean()),
        "accuracy": finite(run.accuracy[:, -1].mean()),
    }


def _write_curves(path: str, runs: Sequence[DigitsRun]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seed", "iteration", "time", "loss", "accuracy"])
        for run in runs:
            for seed in range(len(run.clock)):
                columns = (run.clock[seed], run.loss[seed], run.accuracy[seed])
                for step, values in enumerate(zip(*columns, strict=True), 1):
                    writer.writerow([run.method, seed, step, *(f"{v:.8g}" for v in values)])


def _print_table(rows: Sequence[dict[str, Any]], target: float, seeds: int, *, real: bool) -> None:
    def number(name: str, value: float | None) -> str:
        if value is not None:
            return f"{value:.4g}"
        # Of workers as they are, nothing is expected.
        return "–" if name == "expected_runtime" else "never"

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scheme", no_wrap=True)
    unit, clock = ("(s)", "measured") if real else ("runtime", "simulated")
    names = (f"expected\n{unit}", f"{clock}\n{unit}", f"time to {100 * target:g} %\naccuracy")
    for name in (*names, "earliest\nseed", "latest\nseed", "loss at\nthe end", "accuracy at\nthe end"):
        table.add_column(name, justify="right")
    shown = (
        "expected_runtime",
        "mean_runtime",
        "time_to_target",
        "time_to_target_low",
        "time_to_target_high",
    )
    for row in rows:
        ends = ["–" if row[k] is None else f"{row[k]:.4f}" for k in ("loss", "accuracy")]
        table.add_row(row["method"], *(number(k, row[k]) for k in shown), *ends)
    console = Console(width=100, highlight=False, file=sys.stdout)
    console.print(table)
    of = f"the median of {seeds} seeds" if seeds > 1 else "of one run"
    console.print(f"\nTime to the target: {of}; all steps alike, only the clocks differ.")
    if real:
        console.print("Measured: mean seconds of an iteration, the messages and the computation included.")
    times = {row["method"]: row["time_to_target"] for row in rows}
    fastest = min(times, key=lambda m: times[m] or np.inf)
    if times.get("uncoded") and fastest != "uncoded":
        saved = 100 * (1 - times[fastest] / times["uncoded"])
        console.print(f"{fastest} takes {saved:.1f} % less time to the target than the uncoded scheme.")
