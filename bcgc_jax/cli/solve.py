"""The subcommands of `bcgc`: read the question, call the library, print the answer."""

import csv
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bcgc_jax.cli.arguments import (
    SEED,
    Levels,
    Number,
    WorkersCycleTime,
    describe_law,
    finite,
    format_option,
    law_help,
    law_of_trace,
    law_of_workers,
    objective_option,
    read_unit_costs,
    schemes_option,
    trace_law_option,
    trace_options,
    workers_of_trace,
)
from bcgc_jax.cli.compilation import OFF, VARIABLE, Stopwatch, keep_programs, padded_workers
from bcgc_jax.cli.output import progress
from bcgc_jax.laws import Law, Rows, Unlike
from bcgc_jax.measured.resampling import bootstrap_interval
from bcgc_jax.measured.traces import load_trace
from bcgc_jax.problem import Problem, Solution, Status
from bcgc_jax.runtime import completion_probability
from bcgc_jax.solvers import runtime_limit, solve
from bcgc_jax.solvers.completion import STARTS
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS, draw_problems
from bcgc_jax.solvers.schemes import NUM_DRAWS, added_schemes
from bcgc_jax.solvers.solve import (
    BASELINES,
    FEW_UNITS,
    METHODS,
    PROPOSED,
    assess,
    check_finite_mean,
    is_baseline,
    level_mask,
    parse_method,
)
from bcgc_jax.solvers.units import partition_of_units

_TABLE_WIDTH = 100
# While one compiles the optimum, the other compiles what all methods share and goes on with the rest.
_THREADS = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bcgc-jax")
@click.option(
    "--compilation-cache",
    metavar=f"FOLDER|{OFF}",
    help="Where compiled programs are kept, so that the next call answers at once; by default "
    f"{VARIABLE}, or JAX_COMPILATION_CACHE_DIR, or a folder bcgc_jax in your cache folder.",
)
def cli(compilation_cache: str | None) -> None:
    """Block coordinate gradient coding: which redundancy should each block of a gradient get?"""
    keep_programs(compilation_cache)


@cli.command(
    name="solve",
    short_help="Plan the blocks and compare with every known scheme.",
    epilog=f"""\b
Examples:
  bcgc solve --workers 20 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc solve --trace steps.csv --coordinates 1e6 --format json
  bcgc solve --trace steps.csv --keep-workers --coordinates 1e6
  bcgc solve --coordinates 1e6 --cycle-time 6*weibull:scale=1,concentration=2,shift=1 \\
             --cycle-time 2*shifted-exponential:rate=0.2,shift=2
  bcgc solve --workers 8 --coordinates 1e6 --cycle-time pareto:scale=1,shape=2.5 \\
             --method subgradient --method tandon:3 --deadline 2e6
  bcgc solve --workers 20 --coordinates 40000 --samples 50 --objective completion-probability \\
             --deadline 3.16e6 --cycle-time shifted-exponential:rate=0.1,shift=1
  bcgc solve --workers 12 --unit-costs layers.txt --setup-cycles 2e5 --levels 0,1,2,3,5,11 \\
             --cycle-time weibull:scale=1,concentration=0.8,shift=0.5

Laws: {law_help()}

Methods: {METHODS}""",
)
@click.option(
    "--workers",
    type=Number(1, include=True, whole=True),
    help="N; by default those of the trace, or of COUNT* laws.",
)
@click.option("--coordinates", type=Number(1, include=True, whole=True), help="L, the gradient's length.")
@click.option("--samples", type=Number(), default=1, show_default=True, help="M, samples over all workers.")
@click.option(
    "--cycles", type=Number(), default=1, show_default=True, help="b, CPU cycles per coordinate and sample."
)
@click.option(
    "--cycle-time",
    "cycle_times",
    type=WorkersCycleTime(),
    multiple=True,
    help="Law of a worker's cycle time, NAME:PARAMETER=VALUE,…; where workers are not alike, repeat it: one "
    "for each, COUNT*NAME:… for several.",
)
@click.option("--trace", type=click.Path(), help="CSV or Parquet of measured times: the law.")
@trace_law_option
@trace_options
@click.option(
    "--keep-workers", is_flag=True, help="Keep the steps of the trace whole: its workers are not alike."
)
@click.option("--method", "methods", multiple=True, help="Scheme to solve for; repeat it; all by default.")
@click.option("--deadline", type=Number(), help="Also print P(runtime ≤ deadline).")
@objective_option
@click.option("--levels", type=Levels(), help="Also the best plan of these levels alone, such as 0,3,7-9.")
@click.option(
    "--setup-cycles", type=Number(include=True), help="f, cycles per sample and subset before the first."
)
@click.option("--unit-costs", type=click.Path(), help="File, one cost a line: units in place of coordinates.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the subgradient method.")
@schemes_option
@format_option
def solve_command(
    workers: int | None,
    coordinates: int | None,
    samples: float,
    cycles: float,
    cycle_times: tuple[tuple[int | None, Law], ...],
    trace: str | None,
    trace_law: str,
    columns: dict[str, Any],
    keep_workers: bool,
    methods: tuple[str, ...],
    deadline: float | None,
    objective: str,
    levels: tuple[int, ...] | None,
    setup_cycles: float | None,
    unit_costs: str | None,
    seed: int,
    output: str,
) -> None:
    """Which redundancy should each block of coordinates get, how long does an iteration take, and how
    does that compare with every known scheme?

    Runtimes carry the unit of the cycle time. The runtime of a scheme is exact, not simulated; only for laws
    of workers that are not alike it is a mean of draws.
    """
    if bool(cycle_times) == (trace is not None):
        raise click.UsageError("give the law of the cycle time: either --cycle-time or --trace")
    if keep_workers and trace is None:
        raise click.UsageError("--keep-workers keeps those of a trace: give it with --trace")
    if (coordinates is None) == (unit_costs is None):
        raise click.UsageError("give the length of the gradient: either --coordinates or --unit-costs")
    completion = objective == "completion-probability"
    if completion and deadline is None:
        raise click.UsageError("--objective completion-probability needs a --deadline")
    with jax.enable_x64(True):
        reading = trace
        try:
            if trace is not None:
                measured = load_trace(trace, **columns)
                workers = workers or workers_of_trace(measured.num_workers, trace)
                cycle_time: Law = (
                    Rows(measured.rows()) if keep_workers else law_of_trace(measured, trace_law, workers)
                )
            else:
                cycle_time, workers = law_of_workers(cycle_times, workers)
            if workers is None:
                raise click.UsageError("give the number of workers with --workers")
            costs = None
            if unit_costs is not None:
                reading = unit_costs
                costs = read_unit_costs(unit_costs)
                coordinates = costs.size
            assert coordinates is not None
            problem = Problem(
                cycle_time,
                workers,
                coordinates,
                samples,
                cycles,
                # Searches over levels and over whole units take N² trials: padding would be felt.
                max_workers=workers
                if setup_cycles is not None or coordinates <= FEW_UNITS
                else padded_workers(workers, cycle_time),
                setup_cycles=setup_cycles,
                unit_costs=None if costs is None else jnp.asarray(costs),
            )
            if not completion:
                check_finite_mean(problem)
            asked = bool(methods)
            methods = methods or (*PROPOSED, *BASELINES, *added_schemes())
            for method in methods:
                parse_method(problem, method)  # refuse the last one before the first one takes time
            if levels is not None:
                level_mask(problem, levels)
            # Unlike workers: what is exact is so for the draws that `solve` judges by.
            alike = not isinstance(problem.cycle_time, Unlike)
            judged = problem if alike else draw_problems(jax.random.key(seed), problem)[1]
            rows = _solve_all(problem, judged, methods, seed, deadline, objective, levels, asked)
            limit = float(runtime_limit(judged))
            question = {
                "cycle_time": describe_law(problem.cycle_time),
                "num_workers": workers,
                "num_coordinates": coordinates,
                "num_samples": samples,
                "cycles": cycles,
            }
            optional = {
                "num_draws": None if alike else NUM_FRESH_DRAWS,
                "deadline": deadline,
                "objective": objective if completion else None,
                "levels": levels,
                "setup_cycles": setup_cycles,
                "unit_costs": None if costs is None else costs.tolist(),
            }
            question |= {name: value for name, value in optional.items() if value is not None}
        except OSError as error:
            raise click.UsageError(f"cannot read {reading}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise click.UsageError(f"cannot read {reading}: it is not a text file") from None
        except (ValueError, ImportError) as error:
            raise click.UsageError(str(error)) from None
    if output == "json":
        click.echo(json.dumps({"problem": question, "limit": finite(limit), "solutions": rows}, indent=2))
    elif output == "csv":
        _print_csv(rows)
    else:
        _print_table(rows, problem, limit, deadline)
        _print_law(rows, problem, seed)


def _solve_all(
    problem: Problem,
    judged: Problem,
    methods: tuple[str, ...],
    seed: int,
    deadline: float | None,
    objective: str,
    levels: tuple[int, ...] | None,
    asked: bool,
) -> list[dict[str, Any]]:
    """One row for each method, best first. Methods that nobody `asked` for may be impossible here."""
    tasks: list[tuple[str, str, dict[str, Any]]] = [(m, m, {}) for m in dict.fromkeys(methods)]
    if levels is not None:
        text = ",".join(map(str, levels))
        tasks.insert(0, (f"optimal, levels {text}", "optimal", {"levels": levels}))
    if objective == "completion-probability":
        extra = {"objective": objective, "deadline": deadline}
        tasks.insert(0, ("optimal, deadline", "optimal", extra))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Compiling lets go of the interpreter's lock: the methods' programs are compiled side by side.
    threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    tasks.sort(key=lambda one: one[1] == "subgradient")  # long, as the optimum is: not both at first
    with progress(*columns) as bar:
        task = bar.add_task("compiling", total=len(tasks))

        def told(compiling: bool) -> None:
            bar.update(task, description="compiling" if compiling else "solving")

        def solve_one(name: str, method: str, options: dict[str, Any]) -> dict[str, Any] | None:
            with jax.enable_x64(True):  # a setting of each thread
                try:
                    with watch.lap() as seconds:
                        solution = solve(problem, method, key=jax.random.key(seed), **options)
                        jax.block_until_ready(solution)
                except ValueError:
                    if asked or options:
                        raise
                    return None
                finally:
                    bar.advance(task)
                return {"method": name} | _row(judged, solution, seconds(), deadline)

        with Stopwatch(told) as watch:
            try:
                found = list(threads.map(solve_one, *zip(*tasks, strict=True)))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
    rows = [row for row in found if row is not None]
    if objective == "completion-probability":
        return sorted(rows, key=lambda row: -(row["completion_probability"] or 0))
    return sorted(rows, key=lambda row: row["partition_runtime"] or row["expected_runtime"] or np.inf)


def _row(problem: Problem, solution: Solution, seconds: float, deadline: float | None) -> dict[str, Any]:
    status = Status(int(solution.status))
    row: dict[str, Any] = {
        "status": status.name.lower(),
        "expected_runtime": finite(solution.expected_runtime),
        "runtime_error": finite(solution.runtime_error),
        "lower_bound": finite(solution.lower_bound),
        "relative_gap": finite(solution.relative_gap),
        "partition": None,
        "partition_runtime": None,
        "seconds": round(seconds, 4),
    }
    if deadline is not None:
        row["completion_probability"] = None
    if solution.rounded is not None and status is not Status.INFEASIBLE:
        counts = partition_of_units(problem, solution.rounded)
        row["partition"] = np.asarray(solution.rounded)[: int(np.asarray(problem.num_workers))].tolist()
        row["partition_runtime"] = finite(assess(problem, counts).expected_runtime)
        if deadline is not None:
            probability = completion_probability(problem, counts, jnp.asarray(deadline))
            row["completion_probability"] = finite(probability)
    if solution.start is not None:
        row["start"] = STARTS[int(solution.start)]
    if solution.levels is not None and problem.setup_cycles is not None:
        row["levels"] = np.flatnonzero(solution.levels).tolist()
    return row


def _print_csv(rows: list[dict[str, Any]]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})


def _print_table(rows: list[dict[str, Any]], problem: Problem, limit: float, deadline: float | None) -> None:
    def runtime(row: dict[str, Any]) -> float:
        return row["partition_runtime"] or row["expected_runtime"] or np.inf

    # Certificates for all levels bound the same optimum, so the best of them serves all. With setup cycles
    # each is for the levels in use: the best plan's serves, and says how far below it these could get.
    free = [row for row in rows if "levels" not in row["method"]]
    bound = max((row["lower_bound"] or 0 for row in free), default=0)
    if problem.setup_cycles is not None:
        bound = min(rows, key=runtime)["lower_bound"] or 0
    known = [row for row in rows if is_baseline(row["method"])]
    best = min(map(runtime, known), default=np.inf)
    top = int(np.asarray(problem.num_workers)) - 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scheme", no_wrap=True)
    table.add_column("expected\nruntime", justify="right")
    table.add_column("against best\nbaseline", justify="right")
    table.add_column("above\noptimum ≤", justify="right")
    if deadline is not None:
        table.add_column(f"P(runtime ≤\n{deadline:.4g})", justify="right")
    table.add_column(f"share of coordinates\nat level 0…{top}", no_wrap=True, min_width=24)
    table.add_column("seconds", justify="right")
    for row in rows:
        value = runtime(row)
        cells = [row["method"], f"{value:.4g}" if np.isfinite(value) else row["status"]]
        if np.isfinite(value):
            cells += [f"{100 * (value / best - 1):+.1f} %" if np.isfinite(best) else "–"]
            above = 100 * (value / bound - 1) if bound > 0 else np.inf
            cells += [f"{above:.2g} %" if above < 10 else f"{above:.0f} %" if above < 1000 else "–"]
        else:
            cells += ["–", "–"]
        if deadline is not None:
            probability = row["completion_probability"]
            cells += ["–" if probability is None else f"{probability:.4f}"]
        cells += [_draw(row["partition"]), f"{row['seconds']:.2f}"]
        table.add_row(*cells)
    console = Console(width=_TABLE_WIDTH, highlight=False, file=sys.stdout)
    console.print(table)
    if np.isfinite(limit):
        bound = f"No scheme of any kind can be faster than {limit:.4g}: all work divisible, every cycle used."
    else:
        bound = "The expected runtime is infinite under every scheme, even with all work divisible."
    console.print(f"\n{bound}")
    for row in rows:
        if "start" in row:
            console.print(f"{row['method']}: the best of {len(STARTS)} starts was from {row['start']}.")
    for row in rows:
        if row["method"] in added_schemes() and row["partition"] is None and np.isfinite(runtime(row)):
            error = 100 * row["runtime_error"] / runtime(row)
            console.print(f"{row['method']}: a mean of {NUM_DRAWS} draws, standard error {error:.1g} %.")
    if problem.setup_cycles is not None:
        levels = ", ".join(map(str, rows[0]["levels"]))
        console.print(f"{rows[0]['method']} uses the levels {levels}; its bound is for these.")
    fastest = min(rows, key=runtime)
    uncoded = next((row for row in rows if row["method"] == "uncoded"), None)
    if uncoded is not None and fastest is not uncoded and np.isfinite(runtime(uncoded)):
        saved = 100 * (1 - runtime(fastest) / runtime(uncoded))
        console.print(f"{fastest['method']} takes {saved:.1f} % less time than the uncoded scheme.")


def _print_law(rows: list[dict[str, Any]], problem: Problem, seed: int) -> None:
    """What stands for the expectation, where workers are not alike."""
    law = problem.cycle_time
    console = Console(width=_TABLE_WIDTH, highlight=False, file=sys.stdout)
    if isinstance(law, Unlike):
        known = [row for row in rows if row["expected_runtime"] and row["runtime_error"] is not None]
        error = 100 * max((row["runtime_error"] / row["expected_runtime"] for row in known), default=np.nan)
        console.print(
            f"Means of {NUM_FRESH_DRAWS} draws, standard error up to {error:.1g} %; "
            "the optimum's bound has 97.5 % confidence."
        )
    if not isinstance(law, Rows):
        return
    console.print(
        f"Means over the trace's {len(law.rows())} steps; plans made for these fit the next ones less well."
    )
    best = rows[0]
    if best["partition"] is not None:
        with jax.enable_x64(True):
            x = partition_of_units(problem, jnp.asarray(best["partition"]))
            low, high = bootstrap_interval(jax.random.key(seed), problem, x)
        console.print(
            f"{best['method']}: {low:.4g} to {high:.4g} with 95 % confidence, blocks of steps resampled."
        )


def _draw(counts: list[int] | None, width: int = 24) -> str:
    """A bar for each level, or for each group of levels where there are more than `width`."""
    if counts is None:
        return "no partition"
    groups = np.array_split(np.asarray(counts, float), min(width, len(counts)))
    share = np.array([g.sum() for g in groups]) / max(sum(counts), 1)
    # The square root keeps the small blocks visible; an empty group is a dot.
    bars = " ▁▂▃▄▅▆▇█"
    return "".join("·" if s == 0 else bars[max(1, round(8 * float(np.sqrt(s))))] for s in share)
