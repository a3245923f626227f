"""`bcgc solve`: plan the blocks, and compare with every known scheme."""

import functools
import time
from typing import Any, TextIO

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

# What a method found, as the command says it and as it is.
Found = tuple[Row, Solution]


def answer(question: SolveOptions) -> None:
    with jax.enable_x64(True):
        trace, *laws = traces.planned_for(question, *_law_of_workers(question))
        problem = _problem(question, trace, *laws)
        everything, found = interruptible(lambda: _answer(question, problem, trace))
        advice = traces.advice_on(trace)
        rows = found.rows
        if all(row["status"] == "invalid" for row in rows):
            raise ValueError(f"no runtime is known: {solve_table.OVERFLOW}")
        unit, name = traces.unit_of(trace, problem)

        def document() -> Row:
            answers = {
                "problem": _described(question, problem),
                "limit": found.limit,
                "solutions": rows,
            }
            return (
                answers
                if advice is None
                else answers | {"microbatches": _microbatches(trace, advice)}
            )

        def table() -> None:
            solve_table.print_table(
                found._replace(unit=(unit, name)),
                _remarks(question, trace, advice, everything, found),
            )

        def draw() -> Any:
            shown = [
                (row["method"], solve_table.runtime_of(row) / unit, one.plan, row.get("saved"))
                for row, one in everything
            ]
            units = [] if trace is None else [name.partition(" (")[0]]
            return plot.plans([plot.drawn(*one) for one in shown], *units)

        print_answer(question, rows, document, table)
        write_figure(question, draw)
        plans = [
            one
            for one in everything
            if one[0]["status"] in _PLANNED and not is_limit(one[0]["method"])
        ]
        if question.out is not None and not plans:
            raise ValueError("--out: there is no plan to write, for no method found one")
        for row, solution in plans[:1]:
            said = f"The plan of {row['method']}"
            write_beside(
                question, question.out, said, functools.partial(save_plan, solution, problem)
            )


def _tasks(question: SolveOptions, problem: Problem) -> dict[str, Method]:
    names = question.methods or (*["deadline"] * question.for_deadline, *_ROWS)
    # Fewer for many workers: of 256 a quarter, in a quarter of the time, ends 0.03 % higher.
    draws = min(Subgradient.batch_size, max(2**15 // problem.max_workers, 64))
    options: dict[str, Any] = {"round_trip": question.round_trip, "batch_size": draws}
    if question.for_deadline:
        options |= {"deadline": question.deadline, "min_completion": question.min_completion}
    found = question.asked(*names, **options)
    if question.levels is None:
        return found
    typed, levels = question.levels
    return {f"optimal, levels {typed}": Optimal(levels=levels), **found}


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
    everything: list[Found],
    answer: solve_table.SolveAnswer,
) -> list[str]:
    """What is to be said of the trace that the problem was made from."""
    if trace is None:
        return []
    said = [
        *traces.which_law(answer.problem.cycle_time, trace),
        *traces.forward_in_words(question, trace),
        *traces.remarks(question, trace),
        *([] if advice is None else [traces.sharing_in_words(advice)]),
    ]
    if advice is not None and advice.of_data:
        return said
    if answer.problem.plain and not question.unit_costs and not question.keep_workers:
        whole = [one for one in everything if one[0]["exact_gradient"] is not False]
        coded, schedules = (
            [one for one in whole if one[0][kind]] for kind in ("partition", "schedule")
        )
        # Of chunks `advice` has replayed it.
        handed_out = [one for one in whole if one[0]["bound_of"] == "storage" and advice is None]
        for row, solution in [*handed_out, *schedules[:1], *coded[:1]]:
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
            f"--cycle-time is for {total} workers, but --workers is {question.workers}"
        )
    if not others:
        return law, total
    laws = zip(counts, question.cycle_time, strict=True)
    return Heterogeneous([law for count, (_, law) in laws for _ in range(count)]), total


def _described(question: SolveOptions, problem: Problem) -> Row:
    """The problem and the goal; what was not asked for is not there."""
    goal = {
        "num_draws": None if iteration_of(problem).exact else NUM_FRESH_DRAWS,
        "deadline": question.deadline,
        "min_completion": question.min_completion,
        "objective": question.objective if question.most_probable else None,
        "levels": None if question.levels is None else question.levels[1],
    }
    return describe_problem(problem) | {
        name: value for name, value in goal.items() if value is not None
    }


def _answer(
    question: SolveOptions, problem: Problem, trace: Trace | None
) -> tuple[list[Found], solve_table.SolveAnswer]:
    """What the methods that were asked for found, best first, and what there is to say."""
    if not question.for_deadline:
        iteration_of(problem).check_finite_means()
    tasks = _tasks(question, problem)
    # What is asked for may not be impossible here: refuse the last one before the first one takes
    # time.
    required = {*tasks}.difference(() if question.methods else _ROWS)
    for name in [name for name in tasks if name in required]:
        tasks[name].check(problem)
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
    uncoded = [row for row, _ in solved if row["method"] == "uncoded"]
    for row, _ in solved:
        row["saved"] = solve_table.share_saved(row, *uncoded)
    found = [one for one in solved if one[0]["method"] in tasks]
    for row, solution in found:
        if (chained := chained_runtime(solution, solve_table.step_of(row), problem)) is not None:
            row["chained_runtime"], row["chained_error"] = map(float, chained)
    rows = [row for row, _ in found]
    limit = float(runtime_limit(judged))
    answer = solve_table.SolveAnswer(problem, rows, limit, question.deadline)
    if question.output == "table":
        # One that asks its workers nothing, and gives the whole gradient.
        silent = [
            row
            for row, _ in solved
            if not row["round_trips"] and row["exact_gradient"] is not False
        ]
        baseline = solve_table.fastest([row for row in silent if every[row["method"]].baseline])
        # Where no baseline is possible, as for an infinite mean, a single block is not either.
        setup = None if baseline is None else _largest_setup(judged, rows)
        interval = _interval(question, problem, rows)
        enough = None
        if iteration_of(problem).exact and any(row["bound_of"] == "storage" for row in rows):
            enough = enough_subsets(judged)
        answer = answer._replace(baseline=baseline, interval=interval, setup=setup, enough=enough)
    return found, answer


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
) -> list[Found]:
    """Solve by all methods, best first; those that are not `required` may be impossible here."""

    def work(name: str, method: Method) -> Found:
        begun = time.perf_counter()
        solution = solve(problem, method, key=jax.random.key(question.seed))
        jax.block_until_ready(solution)
        taken = time.perf_counter() - begun
        solution = traces.placed(trace, problem, replace(solution, problem=judged))
        return {"method": name} | solution_row(judged, solution, taken, question.deadline), solution

    def place(one: Found) -> tuple[float, float]:
        """Put those that are in time often enough first, by runtime, then others by how often."""
        chance = 0.0
        least = 0.0
        if question.for_deadline:
            chance = one[0]["completion_probability"] or 0.0
            # In whole numbers the plan that is just often enough in time may be so by less.
            least = 2.0 if question.min_completion is None else question.min_completion - 1e-5
        return (-2.0, solve_table.runtime_of(one[0])) if chance >= least else (-chance, 0.0)

    return sorted(each_possible(tasks, required, "solving", work), key=place)
