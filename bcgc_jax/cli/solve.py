"""`bcgc solve`: plan the blocks, and compare with every known scheme."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cli.arguments import (
    NO_DEADLINE,
    ranges,
    refuse_round_trip_of_none,
    refuse_without_effect,
    with_round_trip,
)
from bcgc_jax.cli.compilation import Stopwatch, padded_workers
from bcgc_jax.cli.deliveries import Delivery
from bcgc_jax.cli.destinations import check_file
from bcgc_jax.cli.estimates import announce, cost_of_all
from bcgc_jax.cli.law_output import describe_delivery, describe_law
from bcgc_jax.cli.names import MOST_WORKERS, OBJECTIVES
from bcgc_jax.cli.output import (
    access,
    beside_the_answer,
    finite,
    one_line_errors,
    write_json,
    write_rows,
)
from bcgc_jax.cli.plans import save_plan
from bcgc_jax.cli.solve_rows import row_of
from bcgc_jax.cli.solve_table import OVERFLOW, Answer, fastest_plan, print_answer, runtime_of
from bcgc_jax.cli.trace_law import which_law
from bcgc_jax.cli.traces import TraceFile, cycles_of_a_step, late, need_one_law
from bcgc_jax.cli.waiting import Parts, progress
from bcgc_jax.laws import JointLaw, Law, Rows, Unlike
from bcgc_jax.measured.resampling import bootstrap_interval
from bcgc_jax.measured.traces import Trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import partition_of_units
from bcgc_jax.solution import Solution
from bcgc_jax.solvers import runtime_limit
from bcgc_jax.solvers.forward_pass import largest_setup
from bcgc_jax.solvers.method import check_finite_mean
from bcgc_jax.solvers.methods import (
    BASELINES,
    LIMIT,
    PROPOSED,
    Deadline,
    Method,
    Optimal,
    Subgradient,
    method_of,
)
from bcgc_jax.solvers.optimum import FEW_UNITS
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS, draw_problems
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve

# Methods side by side, where they take some seconds together: one that compiles has all cores already.
_THREADS, _SECONDS = 2, 5.0
# Times that a step of the subgradient method draws, and its fewest iterations.
_DRAWN, _FEWEST_DRAWS = 2**17, 64
# Operations of one expectation under measured times up to which ten more are not felt.
_CHEAP = 1e8

_INVALID = Status.INVALID.name.lower()
_PLANNED = [status.name.lower() for status in (Status.CONVERGED, Status.STEP_LIMIT, Status.INFINITE)]

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
    min_completion: float | None
    objective: str
    levels: tuple[int, ...] | None
    setup_cycles: float | None
    delivery: Delivery
    unit_costs: str | None
    round_trip: float
    seed: int
    schemes: list[Scheme]
    out: str | None
    output: str

    def __post_init__(self) -> None:
        need_one_law(self.cycle_times, self.trace)
        refuse_round_trip_of_none(self.methods)
        self.delivery.refuse_unlike(self.cycle_times, self.trace is not None and self.trace.keep_workers)
        if (self.coordinates is None) == (self.unit_costs is None):
            raise click.UsageError("give the length of the gradient: either --coordinates or --unit-costs")
        if self.for_deadline and self.deadline is None:
            raise click.UsageError(NO_DEADLINE)
        if self.methods and not {scheme.name for scheme in self.schemes} & {*self.methods}:
            refuse_without_effect("unless a --method is one of these", "schemes")
        if self.out is not None:
            check_file("--out", self.out)

    @property
    def for_deadline(self) -> bool:
        return (
            self.objective == OBJECTIVES[1] or "deadline" in self.methods or self.min_completion is not None
        )

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    def tasks(self) -> dict[str, Method | Scheme]:
        """What is solved, by the names of the rows."""
        found: dict[str, Method | Scheme] = {}
        if self.for_deadline:
            found["deadline"] = Deadline(self.deadline, min_completion=self.min_completion)
        if self.levels is not None:
            found[f"optimal, levels {ranges(self.levels)}"] = Optimal(levels=self.levels)
        own = [scheme.name for scheme in self.schemes]
        for name in self.methods or (*PROPOSED, *BASELINES, *own):
            method = with_round_trip(method_of(name, self.schemes), self.round_trip)
            found.setdefault(method.name, method)
        return found

    def compared_with(self) -> dict[str, Method | Scheme]:
        """The other baselines, where a person reads how the best of them compares."""
        if self.output != "table":
            return {}
        known = [method_of(name) for name in BASELINES] + [s for s in self.schemes if s.baseline]
        asked = self.tasks()
        return {method.name: method for method in known if method.name not in asked}


class Found(NamedTuple):
    """What a method found, as the command says it and as it is."""

    row: Row
    solution: Solution


@one_line_errors
def answer(**options: Any) -> None:
    """Of the options of the command."""
    question = Question(**options)
    with jax.enable_x64(True):
        trace = None if question.trace is None else question.trace.read()
        problem = _problem(question, trace)
        found, answer = _answer(question, problem)
        if all(row["status"] == _INVALID for row in answer.rows):
            raise ValueError(f"no runtime is known: {OVERFLOW}")
        if question.output == "json":
            described = _described(question, problem)
            write_json({"problem": described, "limit": finite(answer.limit), "solutions": answer.rows})
        elif question.output == "csv":
            write_rows(answer.rows)
        else:
            unit = "the cycle time's unit" if question.trace is None else "seconds"
            own = [scheme.name for scheme in question.schemes]
            remarks = _of_trace(question, trace, problem, answer)
            print_answer(answer, problem, deadline=question.deadline, unit=unit, own=own, remarks=remarks)
        if question.out is not None:
            best = next(
                (one for one in found if one.row["status"] in _PLANNED and one.row["method"] != LIMIT), None
            )
            if best is None:
                raise ValueError("--out: there is no plan to write, for no method found one")
            with beside_the_answer(question.out):
                save_plan(best.solution, _count(problem.num_workers), question.out)
            if question.output == "table":
                click.echo(f"\nThe plan of {best.row['method']}: {question.out}")


def _of_trace(question: Question, trace: Trace | None, problem: Problem, answer: Answer) -> list[str]:
    """What is to be said of the trace that the problem was made from."""
    if question.trace is None or trace is None:
        return []
    plan = fastest_plan(answer.rows)
    plain = problem.plain and not (problem.has_setup or question.unit_costs)
    return [
        *(which_law(problem.cycle_time, trace, None if plan is None else plan["partition"]) if plain else ()),
        *([] if trace.of_cycles else [cycles_of_a_step(problem)]),
        *question.trace.remarks(trace),
        *(
            late(trace, problem, plan)
            if plan is not None and plain and not question.trace.keep_workers
            else ()
        ),
    ]


def _problem(question: Question, trace: Trace | None) -> Problem:
    workers, coordinates, costs = question.workers, question.coordinates, None
    if question.trace is not None:
        assert trace is not None
        workers = question.trace.num_workers(trace, workers)
        law = question.trace.law(trace, workers)
    else:
        law, workers = _law_of_workers(question.cycle_times, workers)
    if workers is None:
        raise click.UsageError("give the number of workers with --workers")
    if question.unit_costs is not None:
        with access(question.unit_costs):
            costs = _read_unit_costs(question.unit_costs)
        coordinates = costs.size
    assert coordinates is not None
    problem = Problem(
        law,
        workers,
        coordinates,
        question.samples,
        question.cycles,
        setup_cycles=question.setup_cycles,
        unit_costs=None if costs is None else jnp.asarray(costs),
        **question.delivery.keywords(),
    )
    # Searches over levels, over whole units and from many starts take N² trials: padding would be felt.
    if problem.has_setup or not problem.plain or coordinates <= FEW_UNITS:
        return problem
    return replace(problem, max_workers=padded_workers(workers, law, own_schemes=bool(question.schemes)))


def _read_unit_costs(path: str) -> np.ndarray:
    """Positive numbers, one a line; ValueError with the line that is none."""
    costs = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text:
                continue
            try:
                cost = float(text)
            except ValueError:
                cost = math.nan
            if not (math.isfinite(cost) and cost > 0):
                raise ValueError(
                    f"{path}, line {number}: a unit's cost must be a number above 0, got {text!r}"
                )
            costs.append(cost)
    if not costs:
        raise ValueError(f"{path} holds no unit costs: one positive number a line is expected")
    return np.array(costs)


def _law_of_workers(
    given: Sequence[tuple[int | None, Law]], workers: int | None
) -> tuple[Law | JointLaw, int | None]:
    """What `WorkersCycleTime`s mean together, and for how many workers: several are those of unlike ones."""
    if given[0][0] is None and len(given) == 1:
        return given[0][1], workers
    counts = [count or 1 for count, _ in given]
    total = sum(counts)
    if total > MOST_WORKERS:
        raise click.UsageError(f"there may be at most {MOST_WORKERS:,} workers, not {total:,}")
    if workers not in (None, total):
        raise click.UsageError(f"--cycle-time is given for {total} workers, but --workers is {workers}")
    if len(given) == 1:
        return given[0][1], total
    return Unlike([law for count, (_, law) in zip(counts, given, strict=True) for _ in range(count)]), total


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
        "min_completion": question.min_completion,
        "objective": question.objective if question.objective == OBJECTIVES[1] else None,
        "levels": question.levels,
        "setup_cycles": question.setup_cycles,
        **describe_delivery(question.delivery),
        "unit_costs": None if costs is None else np.asarray(costs).tolist(),
    }
    return described | {name: value for name, value in optional.items() if value is not None}


def _count(value: Any) -> int:
    return int(np.asarray(value))


def _answer(question: Question, problem: Problem) -> tuple[list[Found], Answer]:
    if not question.for_deadline:
        check_finite_mean(problem)
    tasks, others = question.tasks(), question.compared_with()
    tasks = {name: _affordable(method, problem) for name, method in tasks.items()}
    for name, method in tasks.items():  # refuse the last one before the first one takes time
        if question.methods or "," in name:
            method.check(problem)
    # Unlike workers: what is exact is so for the draws that `solve` judges by.
    alike = not isinstance(problem.cycle_time, Unlike)
    judged = problem if alike else draw_problems(question.key, problem)[1]
    _try_schemes(question, judged)
    _announce(question, problem, {**tasks, **others})
    everything = _solve_all(question, problem, judged, tasks, others)
    found = [one for one in everything if one.row["method"] in tasks]
    rows = [one.row for one in found]
    if question.output != "table":
        return found, Answer(rows, float(runtime_limit(judged)))
    baselines = {name for name, method in (tasks | others).items() if method.baseline}
    known = [row for row, _ in everything if row["method"] in baselines and np.isfinite(runtime_of(row))]
    interval = _interval(question, problem, rows)
    answer = Answer(rows, float(runtime_limit(judged)), known, interval, _largest_setup(judged, rows))
    return found, answer


def _affordable(method: Method | Scheme, problem: Problem) -> Method | Scheme:
    """With fewer draws a step where each is of many workers: a minute's work at most for up to a thousand."""
    if not isinstance(method, Subgradient):
        return method
    return replace(
        method, batch_size=min(method.batch_size, max(_DRAWN // problem.max_workers, _FEWEST_DRAWS))
    )


def _announce(question: Question, problem: Problem, tasks: Mapping[str, Method | Scheme]) -> None:
    """That it takes long, where it does, and what is quicker."""
    cost, dearest = cost_of_all(problem, tasks.values())
    quicker = ["fewer --workers" if len(question.methods) == 1 else "some --method alone"]
    if question.trace is not None and not question.trace.keep_workers:
        # Whole steps have no law of start-ups, and beside one atoms take the longest.
        quicker.append("--trace-law smooth" if isinstance(problem.start_up, Law) else "--keep-workers")
    announce(cost, f"most of it for {dearest}; quicker: {', '.join(quicker)}")


def _try_schemes(question: Question, problem: Problem) -> None:
    """A scheme of the user's own that fails does so before all others are solved."""
    for scheme in set(question.schemes) & set(question.tasks().values()):
        read = scheme.partition if scheme.is_partition else lambda p: scheme.expectation(p, question.key)  # noqa: B023
        jax.eval_shape(read, problem)


def _interval(question: Question, problem: Problem, rows: list[Row]) -> tuple[float, float] | None:
    """What the steps of a trace leave open of the best plan."""
    if not isinstance(problem.cycle_time, Rows) or rows[0]["partition"] is None:
        return None
    counts = partition_of_units(problem, jnp.asarray(rows[0]["partition"]))
    low, high = bootstrap_interval(question.key, problem, counts)
    return float(low), float(high)


def _largest_setup(problem: Problem, rows: list[Row]) -> float | None:
    """Of the fastest plan, where it was made without setup and the answer takes no time."""
    best = fastest_plan(rows)
    if problem.has_setup or not problem.plain or best is None:  # a single block pays for these too
        return None
    if problem.iteration.evaluation_cost() > _CHEAP:
        return None
    counts = np.zeros(problem.max_workers, int)
    counts[: len(best["partition"])] = best["partition"]
    return largest_setup(problem, partition_of_units(problem, jnp.asarray(counts)))


def _solve_all(
    question: Question,
    problem: Problem,
    judged: Problem,
    asked: Mapping[str, Method | Scheme],
    others: Mapping[str, Method | Scheme],
) -> list[Found]:
    """All methods, best first. Those that nobody asked for may be impossible here."""
    # Long, as the optimum is: not both at first.
    tasks = sorted({**asked, **others}.items(), key=lambda one: isinstance(one[1], Subgradient))
    long = cost_of_all(problem, (method for _, method in tasks))[0].seconds > _SECONDS
    threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1) if long else 1)
    with progress() as bar, Parts(bar, len(tasks)) as parts:

        def solve_one(name: str, method: Method | Scheme) -> Found | None:
            with jax.enable_x64(True):  # a setting of each thread
                try:
                    with parts.part(name), watch.lap() as taken:
                        solution = solve(problem, method, key=question.key)
                        jax.block_until_ready(solution)
                except ValueError:
                    named = question.methods or name == "deadline" or "," in name
                    if name in asked and (named or method in question.schemes):
                        raise
                    return None
                # What is exact for unlike workers is so for the draws that it is judged by.
                solution = replace(solution, problem=judged)
                row = {"method": name} | row_of(judged, solution, taken(), question.deadline)
                return Found(row, solution)

        with Stopwatch(parts.compiling) as watch:
            try:
                found = list(threads.map(solve_one, *zip(*tasks, strict=True)))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
    known = [one for one in found if one is not None]
    if question.for_deadline:
        # Those that are in time often enough, but for whole numbers, are told apart by runtime.
        least = 2.0 if question.min_completion is None else question.min_completion - 1e-5

        def place(one: Found) -> tuple[float, float]:
            chance = one.row["completion_probability"] or 0.0
            return (-2.0, runtime_of(one.row)) if chance >= least else (-chance, 0.0)

        return sorted(known, key=place)
    return sorted(known, key=lambda one: runtime_of(one.row))
