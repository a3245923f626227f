"""`bcgc solve`: plan the blocks, and compare with every known scheme."""

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Column

from bcgc_jax._pytree import replace
from bcgc_jax.cli.arguments import (
    AT_MOST,
    NO_DEADLINE,
    OBJECTIVES,
    SEED,
    WORKERS,
    Levels,
    Number,
    WorkersCycleTime,
    describe_law,
    format_option,
    law_help,
    law_of_workers,
    objective_option,
    read_unit_costs,
    schemes_option,
)
from bcgc_jax.cli.compilation import Stopwatch, padded_workers
from bcgc_jax.cli.estimates import announce, cost_of_all
from bcgc_jax.cli.output import (
    access,
    console,
    finite,
    names,
    one_line_errors,
    table,
    write_json,
    write_rows,
)
from bcgc_jax.cli.traces import TraceFile, need_one_law, trace_options
from bcgc_jax.cli.waiting import progress
from bcgc_jax.laws import JointLaw, Law, Rows, Unlike
from bcgc_jax.measured.resampling import bootstrap_interval
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import completion_probability, partition_of_units
from bcgc_jax.solution import Solution
from bcgc_jax.solvers import runtime_limit, solve
from bcgc_jax.solvers.completion import STARTS
from bcgc_jax.solvers.methods import (
    BASELINES,
    LIMIT,
    METHODS,
    PROPOSED,
    Deadline,
    Method,
    Optimal,
    Subgradient,
    check_method,
    is_baseline,
    method_of,
)
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS, draw_problems
from bcgc_jax.solvers.schemes import NUM_DRAWS, Scheme
from bcgc_jax.solvers.solve import FEW_UNITS, check_finite_mean

# While one compiles the optimum, the other compiles what all methods share and goes on with the rest.
_THREADS = 2

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """What `bcgc solve` was asked: its options."""

    workers: int | None
    coordinates: int | None
    samples: float
    cycles: float
    cycle_times: tuple[tuple[int | None, Law], ...]
    trace: TraceFile | None
    methods: tuple[str, ...]
    deadline: float | None
    objective: str
    levels: tuple[int, ...] | None
    setup_cycles: float | None
    unit_costs: str | None
    seed: int
    schemes: list[Scheme]
    output: str

    def __post_init__(self) -> None:
        need_one_law(self.cycle_times, self.trace)
        if (self.coordinates is None) == (self.unit_costs is None):
            raise click.UsageError("give the length of the gradient: either --coordinates or --unit-costs")
        if self.for_deadline and self.deadline is None:
            raise click.UsageError(NO_DEADLINE)

    @property
    def for_deadline(self) -> bool:
        return self.objective == OBJECTIVES[1] or "deadline" in self.methods

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    def tasks(self) -> dict[str, Method | Scheme]:
        """What is solved, by the names of the rows."""
        found: dict[str, Method | Scheme] = {}
        if self.for_deadline:
            found["deadline"] = Deadline(self.deadline)
        if self.levels is not None:
            found[f"optimal, levels {','.join(map(str, self.levels))}"] = Optimal(levels=self.levels)
        own = [scheme.name for scheme in self.schemes]
        for name in self.methods or (*PROPOSED, *BASELINES, *own):
            method = method_of(name, self.schemes)
            found.setdefault(method.name, method)
        return found


class Answer(NamedTuple):
    """A row for each method, best first; the limit of any scheme; where workers are the rows of a trace, an
    interval of the best plan's runtime.
    """

    rows: list[Row]
    limit: float
    interval: tuple[float, float] | None


@click.command(
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
    type=WORKERS,
    help=f"N, {AT_MOST}; by default those of the trace, or of COUNT* laws.",
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
@trace_options(": the law.")
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
@one_line_errors
def solve_command(**options: Any) -> None:
    """Which redundancy should each block of coordinates get, how long does an iteration take, and how
    does that compare with every known scheme?

    Runtimes carry the unit of the cycle time. The runtime of a scheme is exact, not simulated; only for laws
    of workers that are not alike it is a mean of draws.
    """
    question = Question(**options)
    with jax.enable_x64(True):
        problem = _problem(question)
        answer = _answer(question, problem)
        if question.output == "json":
            described = _described(question, problem)
            write_json({"problem": described, "limit": finite(answer.limit), "solutions": answer.rows})
    if question.output == "csv":
        write_rows(answer.rows)
    elif question.output == "table":
        _print(question, problem, answer)


def _problem(question: Question) -> Problem:
    workers, coordinates, costs = question.workers, question.coordinates, None
    if question.trace is not None:
        trace = question.trace.read()
        workers = question.trace.num_workers(trace, workers)
        law = question.trace.law(trace, workers)
    else:
        law, workers = law_of_workers(question.cycle_times, workers)
    if workers is None:
        raise click.UsageError("give the number of workers with --workers")
    if question.unit_costs is not None:
        with access(question.unit_costs):
            costs = read_unit_costs(question.unit_costs)
        coordinates = costs.size
    assert coordinates is not None
    # Searches over levels and over whole units take N² trials: padding would be felt.
    searched = question.setup_cycles is not None or coordinates <= FEW_UNITS
    return Problem(
        law,
        workers,
        coordinates,
        question.samples,
        question.cycles,
        max_workers=workers if searched else padded_workers(workers, law, own_schemes=bool(question.schemes)),
        setup_cycles=question.setup_cycles,
        unit_costs=None if costs is None else jnp.asarray(costs),
    )


def _described(question: Question, problem: Problem) -> dict[str, Any]:
    """The problem in JSON's own values; what was not asked for is not there."""
    described = {
        "cycle_time": describe_law(problem.cycle_time),
        "num_workers": _count(problem.num_workers),
        "num_coordinates": _count(problem.num_coordinates),
        "num_samples": question.samples,
        "cycles": question.cycles,
    }
    costs = problem.unit_costs
    optional = {
        "num_draws": NUM_FRESH_DRAWS if isinstance(problem.cycle_time, Unlike) else None,
        "deadline": question.deadline,
        "objective": question.objective if question.for_deadline else None,
        "levels": question.levels,
        "setup_cycles": question.setup_cycles,
        "unit_costs": None if costs is None else np.asarray(costs).tolist(),
    }
    return described | {name: value for name, value in optional.items() if value is not None}


def _count(value: Any) -> int:
    return int(np.asarray(value))


def _answer(question: Question, problem: Problem) -> Answer:
    if not question.for_deadline:
        check_finite_mean(problem)
    tasks = question.tasks()
    for name, method in tasks.items():  # refuse the last one before the first one takes time
        if question.methods or "," in name:
            check_method(problem, method)
    # Unlike workers: what is exact is so for the draws that `solve` judges by.
    alike = not isinstance(problem.cycle_time, Unlike)
    judged = problem if alike else draw_problems(question.key, problem)[1]
    _try_schemes(question, judged)
    _announce(question, problem, tasks)
    rows = _solve_all(question, problem, judged, tasks)
    return Answer(rows, float(runtime_limit(judged)), _interval(question, problem, rows))


def _announce(question: Question, problem: Problem, tasks: Mapping[str, Method | Scheme]) -> None:
    """How long it will take, and what is quicker, where that is long."""
    cost, dearest = cost_of_all(problem, tasks.values())
    quicker = [f"most of it for {dearest}; quicker: some --method alone"] * (len(tasks) > 1)
    if question.trace is not None and not question.trace.keep_workers:
        quicker += ["--keep-workers"] if quicker else ["quicker: --keep-workers"]
    announce(cost, ", ".join(quicker))


def _try_schemes(question: Question, problem: Problem) -> None:
    """A scheme of the user's own that fails does so before all others are solved."""
    for scheme in set(question.schemes) & set(question.tasks().values()):
        read = scheme.partition if scheme.is_partition else lambda p: scheme.expectation(p, question.key)  # noqa: B023
        jax.eval_shape(read, problem)


def _interval(question: Question, problem: Problem, rows: list[Row]) -> tuple[float, float] | None:
    """What the steps of a trace leave open of the best plan, where a person reads it."""
    if question.output != "table" or not isinstance(problem.cycle_time, Rows):
        return None
    best = rows[0]
    if best["partition"] is None:
        return None
    counts = partition_of_units(problem, jnp.asarray(best["partition"]))
    low, high = bootstrap_interval(question.key, problem, counts)
    return float(low), float(high)


def _solve_all(
    question: Question, problem: Problem, judged: Problem, asked: Mapping[str, Method | Scheme]
) -> list[Row]:
    """One row for each method, best first. Methods that nobody asked for may be impossible here."""
    # Compiling lets go of the interpreter's lock: the methods' programs are compiled side by side.
    threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    # Long, as the optimum is: not both at first.
    tasks = sorted(asked.items(), key=lambda one: isinstance(one[1], Subgradient))
    with progress() as bar:
        task = bar.add_task("compiling", total=len(tasks))

        def told(compiling: bool) -> None:
            bar.update(task, description="compiling" if compiling else "solving")

        def solve_one(name: str, method: Method | Scheme) -> Row | None:
            with jax.enable_x64(True):  # a setting of each thread
                try:
                    with watch.lap() as seconds:
                        solution = solve(problem, method, key=question.key)
                        jax.block_until_ready(solution)
                except ValueError:
                    asked = question.methods or name == "deadline" or "," in name
                    if asked or method in question.schemes:
                        raise
                    return None
                finally:
                    bar.advance(task)
                # What is exact for unlike workers is so for the draws that it is judged by.
                solution = replace(solution, problem=judged)
                return {"method": name} | _row(judged, solution, seconds(), question.deadline)

        with Stopwatch(told) as watch:
            try:
                found = list(threads.map(solve_one, *zip(*tasks, strict=True)))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
    rows = [row for row in found if row is not None]
    if question.for_deadline:
        return sorted(rows, key=lambda row: -(row["completion_probability"] or 0))
    return sorted(rows, key=_runtime)


def _runtime(row: Row) -> float:
    """Of the whole numbers, where there are some."""
    return row["partition_runtime"] or row["expected_runtime"] or np.inf


def _row(problem: Problem, solution: Solution, seconds: float, deadline: float | None) -> Row:
    status = Status(int(solution.status))
    row: Row = {
        "status": status.name.lower(),
        "expected_runtime": finite(solution.expected_runtime),
        "runtime_error": finite(solution.runtime_error),
        "lower_bound": finite(solution.lower_bound),
        "relative_gap": finite(solution.relative_gap),
        "kind": solution.kind,
        "partition": None,
        "partition_runtime": None,
        "seconds": round(seconds, 4),
    }
    if deadline is not None:
        row["completion_probability"] = None
    if solution.rounded is not None and status is not Status.INFEASIBLE:
        counts = partition_of_units(problem, solution.rounded)
        row["partition"] = np.asarray(solution.rounded)[: _count(problem.num_workers)].tolist()
        row["partition_runtime"] = finite(solution.rounded_runtime)
        if deadline is not None:
            probability = completion_probability(problem, counts, jnp.asarray(deadline))
            row["completion_probability"] = finite(probability)
    if solution.start is not None:
        row["start"] = STARTS[int(solution.start)]
    if solution.levels is not None and problem.setup_cycles is not None:
        row["levels"] = np.flatnonzero(solution.levels).tolist()
    return row


def _print(question: Question, problem: Problem, answer: Answer) -> None:
    rows, screen = answer.rows, console()
    _print_rows(screen, rows, problem, question)
    if np.isfinite(answer.limit):
        limit = f"faster than {answer.limit:.4g}: all work divisible, every cycle used."
        screen.print(f"\nNo scheme of any kind can be {limit}")
    else:
        screen.print("\nThe expected runtime is infinite under every scheme, even with all work divisible.")
    _print_remarks(screen, rows, problem, [scheme.name for scheme in question.schemes])
    schemes = [row for row in rows if row["method"] != LIMIT]
    fastest = min(schemes, key=_runtime, default=None)
    uncoded = next((row for row in rows if row["method"] == "uncoded"), None)
    if fastest and uncoded and fastest is not uncoded and np.isfinite(_runtime(uncoded)):
        saved = 100 * (1 - _runtime(fastest) / _runtime(uncoded))
        if saved >= 0.05:
            screen.print(f"{fastest['method']} takes {saved:.1f} % less time than the uncoded scheme.")
    _print_law(screen, answer, problem.cycle_time)


def _print_rows(screen: Console, rows: list[Row], problem: Problem, question: Question) -> None:
    deadline = question.deadline
    bound = _best_bound(rows, problem)
    baselines = [name for name, method in question.tasks().items() if is_baseline(method)]
    best = min((_runtime(row) for row in rows if row["method"] in baselines), default=np.inf)
    chance = [] if deadline is None else [f"P(runtime ≤\n{deadline:.4g})"]
    share = f"share of coordinates\nat level 0…{_count(problem.num_workers) - 1}"
    shown = table(
        names("scheme"),
        "expected\nruntime",
        "against best\nbaseline",
        "above\noptimum ≤",
        *chance,
        Column(share, no_wrap=True, min_width=24),
        "seconds",
    )
    for row in rows:
        plan = _draw(row["partition"])
        shown.add_row(
            row["method"], *_compared(row, best, bound), *_chance(row), plan, f"{row['seconds']:.2f}"
        )
    screen.print(shown)


def _best_bound(rows: list[Row], problem: Problem) -> float:
    """Certificates for all levels bound the same optimum, so the best of them serves all. With setup cycles
    each is for the levels in use: the best plan's serves, and says how far below it these could get.
    """
    if problem.setup_cycles is not None:
        return min(rows, key=_runtime)["lower_bound"] or 0
    return max((row["lower_bound"] or 0 for row in rows if "levels" not in row["method"]), default=0)


def _compared(row: Row, best: float, bound: float) -> list[str]:
    """Its runtime, against that of the best baseline, and above the bound of the optimum."""
    value = _runtime(row)
    if not np.isfinite(value):
        return [row["status"], "–", "–"]
    if row["method"] == LIMIT:  # no scheme
        return [f"{value:.4g}", "–", "–"]
    above = 100 * (value / bound - 1) if bound > 0 else np.inf
    return [
        f"{value:.4g}",
        f"{100 * (value / best - 1):+.1f} %" if np.isfinite(best) else "–",
        f"{above:.2g} %" if above < 10 else f"{above:.0f} %" if above < 1000 else "–",
    ]


def _chance(row: Row) -> list[str]:
    if "completion_probability" not in row:
        return []
    probability = row["completion_probability"]
    return ["–" if probability is None else f"{probability:.4f}"]


def _print_remarks(screen: Console, rows: list[Row], problem: Problem, own: list[str]) -> None:
    """Where single figures come from."""
    for row in rows:
        if "start" in row:
            screen.print(f"{row['method']}: the best of {len(STARTS)} starts was from {row['start']}.")
    for row in rows:
        if row["method"] in own and row["partition"] is None and np.isfinite(_runtime(row)):
            error = 100 * row["runtime_error"] / _runtime(row)
            screen.print(f"{row['method']}: a mean of {NUM_DRAWS} draws, standard error {error:.1g} %.")
    planned = next((row for row in rows if "levels" in row), None)
    if planned is not None:
        levels = ", ".join(map(str, planned["levels"]))
        screen.print(f"{planned['method']} uses the levels {levels}; its bound is for these.")


def _print_law(screen: Console, answer: Answer, law: Law | JointLaw) -> None:
    """What stands for the expectation, where workers are not alike."""
    if isinstance(law, Unlike):
        known = [row for row in answer.rows if row["expected_runtime"] and row["runtime_error"] is not None]
        error = 100 * max((row["runtime_error"] / row["expected_runtime"] for row in known), default=np.nan)
        screen.print(
            f"Means of {NUM_FRESH_DRAWS} draws, standard error up to {error:.1g} %; "
            "the optimum's bound has 97.5 % confidence."
        )
    if isinstance(law, Rows):
        steps = np.asarray(law.times).shape[0]
        screen.print(
            f"Means over the trace's {steps} steps; plans made for these fit the next ones less well."
        )
    if answer.interval is not None:
        low, high = answer.interval
        screen.print(
            f"{answer.rows[0]['method']}: {low:.4g} to {high:.4g} with 95 % confidence, blocks of steps "
            "resampled."
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
