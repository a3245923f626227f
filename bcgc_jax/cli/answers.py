"""Answers as plain values: laws and what is asked beside them, rows of solutions, and plans in files."""

from collections.abc import Callable
from typing import Any

import click
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cli.arguments import law_name
from bcgc_jax.cli.commands import Delivery
from bcgc_jax.cli.output import Row, beside_the_answer, finite
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.plans.completion import FirstHolder, OneOfEach
from bcgc_jax.plans.plan import Plan, Requirements, partition_plan
from bcgc_jax.plans.runtime import completion_probability, partition_of_units
from bcgc_jax.plans.schedules import turns_of
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, whole_numbers
from bcgc_jax.solvers.baselines import alpha_of

# What a scheme needs, in JSON's own values.
_KINDS: tuple[Callable[[Any], Any], ...] = (int, finite, int, bool)


def num_workers(problem: Problem) -> int:
    return int(np.asarray(problem.num_workers))


def describe_law(law: Distribution | JointDistribution) -> Any:
    """The law as plain JSON values, null where a number is infinite; for unlike workers a list."""
    if laws := law.members():
        return [describe_law(one) for one in laws]
    known = law.summary()
    plain = {name: a if isinstance(a, str | int) else finite(a) for name, a in known.items()}
    return {"law": law_name(type(law)), **plain}


def describe_delivery(asked: Delivery) -> dict[str, Any]:
    """Start-up, link and chain of one problem; what was not asked for is not there."""
    given = asked.keywords()
    return given | {"start_up": describe_law(given["start_up"])} if asked.random else given


def solution_row(problem: Problem, solution: Solution, seconds: float, deadline: float | None) -> Row:
    """What the table, the JSON and the CSV of `bcgc solve` say of a solution."""
    status = Status(int(solution.status))
    exists = status is not Status.INFEASIBLE
    certified = float(solution.lower_bound) > 0  # 0 bounds any runtime, and says nothing
    needs: list[Any] = [None for _ in _KINDS]
    if exists and solution.needs is not None:
        needs = [kind(value) for kind, value in zip(_KINDS, solution.needs, strict=True)]
    row: Row = {
        "status": status.name.lower(),
        "expected_runtime": finite(solution.expected_runtime),
        "runtime_error": finite(solution.runtime_error),
        "lower_bound": finite(solution.lower_bound) if certified else None,
        "relative_gap": finite(solution.relative_gap) if certified else None,
        "kind": solution.kind,
        "partition": None,
        "partition_runtime": None,
        "schedule": _schedule(problem, solution.plan) if exists and solution.plan is not None else None,
        **dict(zip(Requirements._fields, needs, strict=True)),
        "seconds": round(seconds, 4),
    }
    nested = solution.plan is not None and isinstance(solution.plan.completion, OneOfEach)
    judged: Any = solution.plan if nested and exists else None
    if solution.rounded is not None and exists:
        row["partition"] = np.asarray(solution.rounded)[: num_workers(problem)].tolist()
        row["partition_runtime"] = finite(solution.rounded_runtime)
        judged = partition_of_units(problem, solution.rounded)
    if deadline is not None:
        chance = None if judged is None else completion_probability(problem, judged, jnp.asarray(deadline))
        row["completion_probability"] = None if chance is None else finite(chance)
    if solution.method == "tandon_partial":
        row["alpha"] = finite(alpha_of(solution))
    if solution.levels is not None and problem.has_setup:
        row["levels"] = np.flatnonzero(solution.levels).tolist()
    return row


def _schedule(problem: Problem, plan: Plan) -> Row | None:
    rule = plan.completion
    if not isinstance(rule, FirstHolder | OneOfEach):
        return None
    known = {"sizes": np.asarray(whole_numbers(problem, plan.sizes)).tolist()}
    if isinstance(rule, OneOfEach):
        return known | {"groups": rule.groups}
    return known | {"tasks": np.stack([turns_of(plan), np.asarray(plan.block)], axis=1).tolist()}


def write_plan(solution: Solution, path: str, said: str) -> None:
    """Once the answer is printed; `said` of the file, if anything."""
    with beside_the_answer(path):
        save_plan(solution, path)
    if said:
        click.echo(f"\n{said}: {path}")


def save_plan(solution: Solution, path: str) -> None:
    """Write what `Solution.load` reads, without the levels that the problem was padded to."""
    assert solution.problem is not None
    size, plan = num_workers(solution.problem), solution.plan
    if solution.partition is not None:
        plan = partition_plan(solution.partition[:size], size)
    rounded, levels = (None if a is None else a[:size] for a in (solution.rounded, solution.levels))
    value = solution.rounded_runtime
    replace(solution, plan=plan, rounded=rounded, levels=levels, rounded_value=value).save(path)
