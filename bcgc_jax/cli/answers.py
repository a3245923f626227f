"""Answers as plain values: distributions, problems, rows of solutions, and plans in files."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cli.arguments import law_name
from bcgc_jax.cli.output import Row, finite
from bcgc_jax.cli.progress import Progress
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.plan import Plan, Requirements, partition_plan
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.plans.simulation import RuntimeEstimate, simulate_completion
from bcgc_jax.plans.stopped import Stopped
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, whole_numbers
from bcgc_jax.solvers.baselines import alpha_of
from bcgc_jax.solvers.methods import Method

T = TypeVar("T")
# Of a completion probability that is a share of draws: a standard error of at most 0.01.
_DRAWS = 2**12


def num_workers(problem: Problem) -> int:
    return int(np.asarray(problem.num_workers))


def status_name(solution: Solution) -> str:
    return Status(int(solution.status)).name.lower()


def describe_law(law: Distribution | JointDistribution) -> Any:
    """Describe a distribution in JSON's own values, null where a number is infinite.

    Workers that are not alike have a list of them.
    """
    if laws := law.members():
        return [describe_law(one) for one in laws]
    numbers = law.summary()
    plain = {name: a if isinstance(a, str | int) else finite(a) for name, a in numbers.items()}
    return {"distribution": law_name(type(law)), **plain}


def describe_problem(problem: Problem) -> Row:
    """Its numbers and distributions in JSON's own values; what was not asked for is not there."""
    described = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    del described["max_workers"]
    described["overlap"] = problem.overlap or None
    return {
        name: describe_law(value) if hasattr(value, "summary") else np.asarray(value).tolist()
        for name, value in described.items()
        if value is not None
    }


def each_possible(
    methods: Mapping[str, Method],
    required: Collection[str],
    doing: str,
    work: Callable[[str, Method], T],
) -> list[T]:
    """Return what `work` makes of each method that is possible here.

    ValueError ends it where a method is `required`, or none is possible.
    """
    results = []
    with Progress(total=len(methods)) as bar:
        for number, (name, method) in enumerate(methods.items(), 1):
            bar.begin(f"{doing} {name}")
            try:
                results.append(work(name, method))
            except ValueError:
                none_is_possible = number == len(methods) and not results
                if name in required or none_is_possible:
                    raise
    return results


def solution_row(
    problem: Problem, solution: Solution, seconds: float, deadline: float | None
) -> Row:
    """What the table, the JSON and the CSV of `bcgc solve` say of a solution."""
    exists = int(solution.status) != Status.INFEASIBLE
    plan = solution.plan if exists else None
    needs = solution.needs if exists else None
    certified = float(solution.lower_bound) > 0  # 0 bounds any runtime, and says nothing
    row: Row = {
        "status": status_name(solution),
        "expected_runtime": finite(solution.expected_runtime),
        "runtime_error": finite(solution.runtime_error),
        "lower_bound": finite(solution.lower_bound) if certified else None,
        "relative_gap": finite(solution.relative_gap) if certified else None,
        "chained_runtime": None,  # of rows that are shown
        "chained_error": None,
        "saved": None,  # what another row decides
        "kind": solution.kind,
        "bound_of": solution.bound_of or None,
        "partition": None,
        "partition_runtime": None,
        "schedule": None if plan is None else _schedule(problem, plan),
        **_plain_needs(needs),
        "seconds": round(seconds, 4),
    }
    rule = None if plan is None else plan.completion
    judged: Any = plan if rule is not None and (rule.groups or rule.bound_of == "storage") else None
    if solution.rounded is not None and exists:
        row["partition"] = np.asarray(solution.rounded)[: num_workers(problem)].tolist()
        row["partition_runtime"] = finite(solution.rounded_runtime)
        judged = partition_of_units(problem, solution.rounded)
    if deadline is not None:
        chance = None if judged is None else _chance(problem, judged, deadline)
        row["completion_probability"] = None if chance is None else finite(chance.mean)
        row["completion_error"] = None if chance is None else finite(chance.standard_error)
    if solution.method == "tandon_partial":
        row["alpha"] = finite(alpha_of(solution))
    if isinstance(rule, Stopped):
        row["threshold"] = finite(rule.threshold * problem.scale)
    if solution.levels is not None and problem.has_setup:
        row["levels"] = np.flatnonzero(solution.levels).tolist()
    return row


def _plain_needs(needs: Requirements | None) -> Row:
    if needs is None:
        return dict.fromkeys(Requirements._fields)
    return {name: np.asarray(value).item() for name, value in needs._asdict().items()}


def _chance(problem: Problem, judged: Any, deadline: float) -> RuntimeEstimate:
    """P(τ ≤ deadline), by draws where there is no exact one."""
    at = jnp.asarray(deadline)
    try:
        return RuntimeEstimate(completion_probability(problem, judged, at), jnp.zeros(()))
    except ValueError:
        return simulate_completion(jax.random.key(0), problem, judged, at, _DRAWS)


def _schedule(problem: Problem, plan: Plan) -> Row | None:
    listing = {} if plan.completion is None else plan.completion.listing(plan.block)
    if not listing:
        return None
    return {"sizes": np.asarray(whole_numbers(problem, plan.sizes)).tolist(), **listing}


def save_plan(solution: Solution, problem: Problem | None, path: str) -> None:
    """Write a solution for `Solution.load`, without the levels that padding has added.

    `problem` is what was asked, for a file that says so.
    """
    assert solution.problem is not None
    size = num_workers(solution.problem)
    plan = solution.plan
    if solution.partition is not None:
        plan = partition_plan(solution.partition[:size], size)
    rounded, levels = (None if a is None else a[:size] for a in (solution.rounded, solution.levels))
    short = replace(solution, plan=plan, rounded=rounded, levels=levels, problem=problem)
    replace(short, rounded_value=solution.rounded_runtime).save(path)
