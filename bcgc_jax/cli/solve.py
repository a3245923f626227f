"""`bcgc solve`: plan the blocks, and compare with every known scheme."""

import functools
import time
from typing import Any, NamedTuple, TextIO

import click
import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cli import plot, solve_table, traces
from bcgc_jax.cli.answers import describe_problem, each_possible, save_plan, solution_row
from bcgc_jax.cli.arguments import number
from bcgc_jax.cli.commands import SolveOptions
from bcgc_jax.cli.compilation import padded
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.output import Row, print_answer, write_beside, write_figure
from bcgc_jax.distributions import Distribution, Heterogeneous, JointDistribution
from bcgc_jax.measured.advice import Advice
from bcgc_jax.measured.remedies import LIMIT
from bcgc_jax.measured.resampling import bootstrap_interval
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.words import counted
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.compare import chained_runtime, largest_setup
from bcgc_jax.solvers.limit import enough_subsets, runtime_limit
from bcgc_jax.solvers.methods import (
    BASELINES,
    PROPOSED,
    SHARED,
    Method,
    Optimal,
    Subgradient,
    is_limit,
    method_of,
)
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS, draw_problems
from bcgc_jax.solvers.solve import solve

_ROWS = (*PROPOSED, "nested", *SHARED, *BASELINES)
_PLANNED = ("converged", "step_limit", "infinite")


class Solved(NamedTuple):
    """A method's solution, as the command says it and as it is."""

    row: Row
    solution: Solution


def answer(question: SolveOptions) -> None:
    with jax.enable_x64(True):
        trace, *laws = traces.planned_for(question, *_law_of_workers(question))
        problem = _problem(question, trace, *laws)
        solved, shown = interruptible(lambda: _answer(question, problem, trace))
        advice = traces.advice_on(trace)
        rows = shown.rows
        if all(row["status"] == "invalid" for row in rows):
            raise ValueError(f"no runtime is known: {solve_table.OVERFLOW}")
        unit, name = traces.unit_of(trace, problem)

        def document() -> Row:
            described = _described(question, problem)
            answers = {"problem": described, "limit": shown.limit, "solutions": rows}
            if advice is not None:
                answers["microbatches"] = _microbatches(trace, advice)
            return answers

        def table() -> None:
            remarks = _remarks(question, trace, advice, solved, shown)
            solve_table.print_table(shown._replace(unit=(unit, name)), remarks)

        def draw() -> Any:
            schemes = []
            for row, solution in solved:
                runtime = solve_table.runtime_of(row) / unit
                schemes.append(plot.drawn(row["method"], runtime, solution.plan, row.get("saved")))
            if trace is None:
                return plot.plans(schemes)
            return plot.plans(schemes, name.partition(" (")[0])

        print_answer(question, rows, document, table)
        write_figure(question, draw)
        if question.out is not None:
            _write_plan(question, problem, solved)


def _write_plan(question: SolveOptions, problem: Problem, solved: list[Solved]) -> None:
    planned = [one for one in solved if one.row["status"] in _PLANNED]
    best = next((one for one in planned if not is_limit(one.row["method"])), None)
    if best is None:
        raise ValueError("--out: there is no plan to write, for no method found one")
    write = functools.partial(save_plan, best.solution, problem)
    write_beside(question, question.out, f"The plan of {best.row['method']}", write)


def _tasks(question: SolveOptions, problem: Problem) -> dict[str, Method]:
    names = question.methods
    if not names:
        names = ("deadline", *_ROWS) if question.for_deadline else _ROWS
    # Fewer for many workers: of 256 a quarter, in a quarter of the time, ends 0.03 % higher.
    draws = min(Subgradient.batch_size, max(2**15 // problem.max_workers, 64))
    options: dict[str, Any] = {"round_trip": question.round_trip, "batch_size": draws}
    if question.for_deadline:
        options |= {"deadline": question.deadline, "min_completion": question.min_completion}
    asked = question.asked(*names, **options)
    if question.levels is None:
        return asked
    typed, levels = question.levels
    return {f"optimal, levels {typed}": Optimal(levels=levels), **asked}


def _microbatches(trace: Trace | None, advice: Advice) -> Row:
    rows = [*traces.sharing_rows(advice), advice.row(LIMIT)]
    return {
        "forward_ratio": traces.measured_forward(trace),
        "num_steps": advice.num_steps,
        "step": advice.step,
        "causes": advice.causes,
        "rows": [row._asdict() for row in rows],
    }


def _remarks(
    question: SolveOptions,
    trace: Trace | None,
    advice: Advice | None,
    solved: list[Solved],
    answer: solve_table.SolveAnswer,
) -> list[str]:
    """What is to be said of the trace that the problem was made from."""
    if trace is None:
        return []
    said = [
        *traces.which_law(answer.problem.cycle_time, trace),
        *traces.forward_in_words(question, trace),
        *traces.remarks(question, trace),
    ]
    if advice is not None:
        said.append(traces.sharing_in_words(advice))
        if advice.of_data:
            return said
    if answer.problem.plain and not question.unit_costs and not question.keep_workers:
        exact = [one for one in solved if one.row["exact_gradient"] is not False]
        coded = [one for one in exact if one.row["partition"]]
        schedules = [one for one in exact if one.row["schedule"]]
        # Of chunks `advice` has replayed it.
        shared = [one for one in exact if one.row["bound_of"] == "storage" and advice is None]
        for row, solution in [*shared, *schedules[:1], *coded[:1]]:
            plan = solution.plan
            promised = solve_table.runtime_of(row)
            if row["partition"]:
                plan = partition_plan(np.array(row["partition"], float), len(row["partition"]))
            assert plan is not None
            said += traces.in_its_steps(trace, answer.problem, row["method"], plan, promised)
    return said


def _problem(
    question: SolveOptions, trace: Trace | None, law: Distribution | JointDistribution, workers: int
) -> Problem:
    coordinates = question.coordinates
    costs = None
    if question.unit_costs is not None:
        costs = jnp.array(_read_unit_costs(question.unit_costs))
        coordinates = len(costs)
    assert coordinates is not None
    total = coordinates if costs is None else float(costs.sum())
    passes = question.passes(total, question.cycles, traces.measured_forward(trace))
    more = {**passes, "unit_costs": costs, **question.delivery()}
    return padded(Problem(law, workers, coordinates, question.samples, question.cycles, **more))


def _read_unit_costs(file: TextIO) -> list[float]:
    try:
        costs = [number().read(word) for word in file.read().split()]
    except ValueError as error:
        raise ValueError(f"{file.name}: a unit's cost {error}") from None
    if not costs:
        raise ValueError(f"{file.name} holds no unit costs: one positive number a line is expected")
    return costs


def _law_of_workers(question: SolveOptions) -> tuple[Any, int | None]:
    """Return what all --cycle-time mean together, and for how many workers.

    Several are those of workers that are not alike.
    """
    if not question.cycle_time:
        return None, question.workers
    (count, law), *others = question.cycle_time
    if count is None and not others:
        return law, question.workers
    counts = [count or 1 for count, _ in question.cycle_time]
    total = sum(counts)
    if question.workers not in (None, total):
        raise click.UsageError(
            f"--cycle-time is for {counted(total, 'worker')}, but --workers is {question.workers}"
        )
    if not others:
        return law, total
    laws = [law for count, law in question.cycle_time for _ in range(count or 1)]
    return Heterogeneous(laws), total


def _described(question: SolveOptions, problem: Problem) -> Row:
    """The problem and the goal; what was not asked for is not there."""
    goal = {
        "num_draws": None if iteration_of(problem).exact else NUM_FRESH_DRAWS,
        "deadline": question.deadline,
        "min_completion": question.min_completion,
        "objective": question.objective if question.most_probable else None,
        "levels": None if question.levels is None else question.levels[1],
    }
    asked = {name: value for name, value in goal.items() if value is not None}
    return describe_problem(problem) | asked


def _answer(
    question: SolveOptions, problem: Problem, trace: Trace | None
) -> tuple[list[Solved], solve_table.SolveAnswer]:
    """Solve by the methods that were asked for, best first, and collect what there is to say."""
    if not question.for_deadline:
        iteration_of(problem).check_finite_means()
    tasks = _tasks(question, problem)
    # What is asked for may not be impossible here: refuse the last one before the first one takes
    # time.
    required = {name for name in tasks if question.methods or name not in _ROWS}
    for name, method in tasks.items():
        if name in required:
            method.check(problem)
    # Heterogeneous workers: what is exact is so for the draws that `solve` judges by.
    judged = problem
    if not iteration_of(problem).exact:
        _, judged = draw_problems(jax.random.key(question.seed), problem)
    traces.check_size(judged)
    # What a scheme saves is of the uncoded one's time; a person reads how the best baseline
    # compares too.
    besides = BASELINES if question.output == "table" else ["uncoded"]
    every = tasks | {name: method_of(name) for name in besides if name not in tasks}
    solved = _solve_all(question, problem, judged, every, required, trace)
    uncoded = next((one.row for one in solved if one.row["method"] == "uncoded"), None)
    for row, _ in solved:
        row["saved"] = solve_table.share_saved(row, uncoded)
    asked = [one for one in solved if one.row["method"] in tasks]
    for row, solution in asked:
        if (chained := chained_runtime(solution, solve_table.step_of(row), problem)) is not None:
            row["chained_runtime"], row["chained_error"] = map(float, chained)
    rows = [one.row for one in asked]
    answer = solve_table.SolveAnswer(problem, rows, float(runtime_limit(judged)), question.deadline)
    if question.output == "table":
        baselines = [one.row for one in solved if every[one.row["method"]].baseline]
        answer = _for_a_person(question, judged, answer, baselines, trace)
    return asked, answer


def _for_a_person(
    question: SolveOptions,
    judged: Problem,
    answer: solve_table.SolveAnswer,
    baselines: list[Row],
    trace: Trace | None,
) -> solve_table.SolveAnswer:
    """Add what the table says besides; the best baseline asks nobody and loses no samples."""
    silent = [row for row in baselines if not row["round_trips"]]
    baseline = solve_table.fastest([row for row in silent if row["exact_gradient"] is not False])
    # Where no baseline is possible, as for an infinite mean, a single block is not either.
    setup = None if baseline is None else _largest_setup(judged, answer.rows)
    enough = None
    shared = any(row["bound_of"] == "storage" for row in answer.rows)
    stays_slow = shared and traces.stays_slow(trace)
    if shared and not stays_slow and iteration_of(answer.problem).alike:
        enough = enough_subsets(judged)
    interval = _interval(question, answer.problem, answer.rows)
    answer = answer._replace(stays_slow=stays_slow, enough=enough)
    return answer._replace(baseline=baseline, interval=interval, setup=setup)


def _interval(
    question: SolveOptions, problem: Problem, rows: list[Row]
) -> tuple[float, float] | None:
    """What the steps of a trace leave open of the best plan."""
    if iteration_of(problem).rows is None or rows[0]["partition"] is None:
        return None
    counts = partition_of_units(problem, jnp.asarray(rows[0]["partition"]))
    low, high = bootstrap_interval(jax.random.key(question.seed), problem, counts)
    return float(low), float(high)


def _largest_setup(problem: Problem, rows: list[Row]) -> float | None:
    """Return `largest_setup` of the fastest plan, where it is without setup and this is quick."""
    best = solve_table.fastest_plan(rows)
    # A single block pays for start-ups, sending and setup too. Ten more expectations of a second
    # are felt.
    if best is None or not problem.bare or iteration_of(problem).evaluation_cost() > 1e8:
        return None
    counts = np.pad(best["partition"], (0, problem.max_workers - len(best["partition"])))
    return largest_setup(problem, partition_of_units(problem, jnp.asarray(counts)))


def _solve_all(
    question: SolveOptions,
    problem: Problem,
    judged: Problem,
    tasks: dict[str, Method],
    required: set[str],
    trace: Trace | None,
) -> list[Solved]:
    """Solve by all methods, best first; those that are not `required` may be impossible here."""

    def work(name: str, method: Method) -> Solved:
        begun = time.perf_counter()
        solution = solve(problem, method, key=jax.random.key(question.seed))
        jax.block_until_ready(solution)
        taken = time.perf_counter() - begun
        solution = traces.placed(trace, problem, replace(solution, problem=judged))
        row = {"method": name} | solution_row(judged, solution, taken, question.deadline)
        return Solved(row, solution)

    def place(one: Solved) -> tuple[float, float]:
        """Put those that are in time often enough first, by runtime, then others by how often."""
        chance = 0.0
        least = 0.0
        if question.for_deadline:
            chance = one.row["completion_probability"] or 0.0
            # In whole numbers the plan that is just often enough in time may be so by less.
            least = 2.0 if question.min_completion is None else question.min_completion - 1e-5
        return (-2.0, solve_table.runtime_of(one.row)) if chance >= least else (-chance, 0.0)

    return sorted(each_possible(tasks, required, "solving", work), key=place)
