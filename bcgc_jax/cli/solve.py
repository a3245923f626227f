"""`bcgc solve`: plan the blocks, and compare with every known scheme."""

import functools
from typing import Any

import jax

from bcgc_jax.cli import figures, traces
from bcgc_jax.cli.columns import SOLUTION, flat, values
from bcgc_jax.cli.commands import SolveOptions
from bcgc_jax.cli.compilation import save_plan
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.output import Row, print_answer, write_beside, write_figure
from bcgc_jax.cli.solve_problem import described_problem, problem_of
from bcgc_jax.cli.solve_remarks import remarks
from bcgc_jax.cli.solve_rows import SolveAnswer
from bcgc_jax.cli.solve_schemes import compared
from bcgc_jax.cli.solve_table import OVERFLOW, print_table
from bcgc_jax.solvers.methods import is_limit

_PLANNED = ("converged", "step_limit", "infinite")


def answer(question: SolveOptions) -> None:
    with jax.enable_x64(True):
        trace, problem = problem_of(question)
        solve_answer = interruptible(lambda: compared(question, problem, trace))
        advice = traces.advice_on(trace)
        if all(row.status == "invalid" for row in solve_answer.rows):
            raise ValueError(f"no runtime is known: {OVERFLOW}")
        unit, name = traces.unit_of(trace, problem)

        def document() -> Row:
            described = described_problem(question, problem)
            solutions = [values(SOLUTION, row) for row in solve_answer.rows]
            answers = {
                "problem": described,
                "limit": solve_answer.limit,
                "solutions": solutions,
            }
            if advice is not None:
                answers["microbatches"] = traces.microbatches_of(trace, advice)
            return answers

        def table() -> None:
            said = remarks(question, trace, advice, solve_answer)
            print_table(solve_answer._replace(unit=(unit, name)), said)

        def draw() -> Any:
            schemes = [
                figures.drawn(
                    row.method, row.runtime / unit, row.solution.plan, row.saved
                )
                for row in solve_answer.rows
            ]
            if trace is None:
                return figures.plans(schemes)
            return figures.plans(schemes, name.partition(" (")[0])

        rows = [flat(SOLUTION, row) for row in solve_answer.rows]
        print_answer(question, rows, document, table)
        write_figure(question, draw)
        if question.out is not None:
            _write_plan(question, solve_answer)


def _write_plan(question: SolveOptions, solve_answer: SolveAnswer) -> None:
    planned = [row for row in solve_answer.rows if row.status in _PLANNED]
    best = next((row for row in planned if not is_limit(row.method)), None)
    if best is None:
        raise ValueError("--out: there is no plan to write, for no method found one")
    write = functools.partial(save_plan, best.solution, solve_answer.problem)
    write_beside(question, question.out, f"The plan of {best.method}", write)
