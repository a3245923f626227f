"""The schemes of `bcgc solve`, one after the other, and the best first."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from bcgc_jax._pytree import replace
from bcgc_jax.balancing.scheme_names import BASELINES, PROPOSED, SHARED
from bcgc_jax.cli import traces
from bcgc_jax.cli.commands import SolveOptions
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.solve_remarks import for_a_person
from bcgc_jax.cli.solve_rows import SolveAnswer, Solved, share_saved, solved_of
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.compare import chained_runtime
from bcgc_jax.solvers.limit import runtime_limit
from bcgc_jax.solvers.method import Method
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.solvers.optimum import Optimal
from bcgc_jax.solvers.sample_average import draw_problems
from bcgc_jax.solvers.solve import solve
from bcgc_jax.solvers.subgradient import Subgradient
from bcgc_jax.traces.trace import Trace

_ROWS = (*PROPOSED, "nested", *SHARED, *BASELINES)


def compared(
    question: SolveOptions, problem: Problem, trace: Trace | None
) -> SolveAnswer:
    """Solve by the methods that were asked for, best first, and collect remarks."""
    if not question.for_deadline:
        iteration_of(problem).check_finite_means()
    tasks = _tasks(question, problem)
    # What is asked for may not be impossible here: refuse the last one before the first
    # one takes time.
    required = {name for name in tasks if question.methods or name not in _ROWS}
    for name, method in tasks.items():
        if name in required:
            method.check(problem)
    # Heterogeneous workers: what is exact is so for the draws that `solve` judges by.
    judged = problem
    if not iteration_of(problem).exact:
        _, judged = draw_problems(jax.random.key(question.seed), problem)
    traces.check_size(judged)
    # What a scheme saves is of the uncoded one's time; a person reads how the best
    # baseline compares too.
    besides = BASELINES if question.output == "table" else ["uncoded"]
    methods = tasks | {name: method_of(name) for name in besides if name not in tasks}
    solved = _solve_all(question, problem, judged, methods, required)
    uncoded = next((row for row in solved if row.method == "uncoded"), None)
    solved = [row._replace(saved=share_saved(row, uncoded)) for row in solved]
    rows = [_chained(problem, row) for row in solved if row.method in tasks]
    answer = SolveAnswer(problem, rows, float(runtime_limit(judged)), question.deadline)
    if question.output == "table":
        baselines = [row for row in solved if methods[row.method].baseline]
        answer = for_a_person(question, judged, answer, baselines, trace)
    return answer


def _chained(problem: Problem, row: Solved) -> Solved:
    """Add what it takes one step after the other."""
    chained = chained_runtime(row.solution, row.step, problem)
    if chained is None:
        return row
    value, error = map(float, chained)
    return row._replace(chained_runtime=value, chained_error=error)


def _tasks(question: SolveOptions, problem: Problem) -> dict[str, Method]:
    names = question.methods
    if not names:
        names = _ROWS
        if question.for_deadline:
            names = ("deadline", *_ROWS)
    # Fewer for many workers: of 256 a quarter, in a quarter of the time, ends 0.03 %
    # higher.
    draws = min(Subgradient.batch_size, max(2**15 // problem.max_workers, 64))
    options: dict[str, Any] = {"round_trip": question.round_trip, "batch_size": draws}
    if question.for_deadline:
        options |= {
            "deadline": question.deadline,
            "min_completion": question.min_completion,
        }
    asked = question.asked(*names, **options)
    if question.levels is None:
        return asked
    typed, levels = question.levels
    return {f"optimal, levels {typed}": Optimal(levels=levels), **asked}


def _solve_all(
    question: SolveOptions,
    problem: Problem,
    judged: Problem,
    tasks: dict[str, Method],
    required: set[str],
) -> list[Solved]:
    """Solve by all methods, best first; only `required` ones must be possible."""

    def work(name: str, method: Method) -> Solved:
        begun = time.perf_counter()
        solution = solve(problem, method, key=jax.random.key(question.seed))
        jax.block_until_ready(solution)
        seconds = time.perf_counter() - begun
        solution = replace(solution, problem=judged)
        return solved_of(name, judged, solution, seconds, question.deadline)

    def place(row: Solved) -> tuple[float, float]:
        """Rank rows in time often enough by runtime, then the others by chance."""
        chance = 0.0
        least = 0.0
        if question.for_deadline:
            chance = row.completion_probability or 0.0
            # In whole numbers the plan that is just often enough in time may be so by
            # less.
            least = 2.0
            if question.min_completion is not None:
                least = question.min_completion - 1e-5
        if chance >= least:
            return (-2.0, row.runtime)
        return (-chance, 0.0)

    return sorted(_each_possible(tasks, required, work), key=place)


def _each_possible(
    methods: Mapping[str, Method],
    required: Collection[str],
    work: Callable[[str, Method], Solved],
) -> list[Solved]:
    """Return what `work` makes of each method that is possible here.

    ValueError ends it where a method is `required`, or none is possible.
    """
    results = []
    with Progress(total=len(methods)) as bar:
        for number, (name, method) in enumerate(methods.items(), 1):
            bar.begin(f"solving {name}")
            try:
                results.append(work(name, method))
            except ValueError:
                none_is_possible = number == len(methods) and not results
                if name in required or none_is_possible:
                    raise
    return results
