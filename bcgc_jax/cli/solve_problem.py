"""The problem that `bcgc solve` was asked."""

from typing import Any, TextIO

import click
import jax.numpy as jnp

from bcgc_jax.cli import traces
from bcgc_jax.cli.arguments import number
from bcgc_jax.cli.commands import SolveOptions
from bcgc_jax.cli.compilation import padded
from bcgc_jax.cli.describe import describe_problem
from bcgc_jax.cli.output import Row
from bcgc_jax.distributions import Distribution, Heterogeneous, JointDistribution
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted


def problem_of(question: SolveOptions) -> tuple[Trace | None, Problem]:
    """Return the trace, if there is one, and the problem."""
    trace, law, workers = traces.planned_for(question, *_law_of_workers(question))
    return trace, _problem(question, trace, law, workers)


def _problem(
    question: SolveOptions,
    trace: Trace | None,
    law: Distribution | JointDistribution,
    workers: int,
) -> Problem:
    coordinates = question.coordinates
    costs = None
    if question.unit_costs is not None:
        costs = jnp.array(_read_unit_costs(question.unit_costs))
        coordinates = len(costs)
    assert coordinates is not None
    total = coordinates if costs is None else float(costs.sum())
    passes = question.passes(total, question.cycles, traces.measured_forward(trace))
    options = {**passes, "unit_costs": costs, **question.delivery()}
    return padded(
        Problem(law, workers, coordinates, question.samples, question.cycles, **options)
    )


def _read_unit_costs(file: TextIO) -> list[float]:
    try:
        costs = [number().read(word) for word in file.read().split()]
    except ValueError as error:
        raise ValueError(f"{file.name}: a unit's cost {error}") from None
    if not costs:
        raise ValueError(
            f"{file.name} holds no unit costs: one positive number a line is expected"
        )
    return costs


def _law_of_workers(question: SolveOptions) -> tuple[Any, int | None]:
    """Return what all --cycle-time mean together, and for how many workers.

    Several are those of workers that are not alike.
    """
    if not question.cycle_time:
        return None, question.workers
    (count, law), *other_laws = question.cycle_time
    if count is None and not other_laws:
        return law, question.workers
    counts = [count or 1 for count, _ in question.cycle_time]
    total = sum(counts)
    if question.workers not in (None, total):
        raise click.UsageError(
            f"--cycle-time is for {counted(total, 'worker')}, but --workers is "
            f"{question.workers}"
        )
    if not other_laws:
        return law, total
    laws = [law for count, law in question.cycle_time for _ in range(count or 1)]
    return Heterogeneous(laws), total


def described_problem(question: SolveOptions, problem: Problem) -> Row:
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
