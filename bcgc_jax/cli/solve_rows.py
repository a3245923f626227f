"""A row of `bcgc solve` from a solution: what its table, its JSON and its CSV say."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli.output import finite
from bcgc_jax.partitions import round_partition
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.plan import Needs, Plan
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import completion_probability, partition_of_units
from bcgc_jax.schedules import turns_of
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.baselines import alpha_of

Row = dict[str, Any]


def needs_of(solution: Solution) -> Row:
    """What a scheme that exists needs; null where that is not known."""
    needs = None if Status(int(solution.status)) is Status.INFEASIBLE else solution.needs
    if needs is None:
        return dict.fromkeys(Needs._fields)
    return {
        "stored_subsets": int(needs.stored_subsets),
        "sent": finite(needs.sent),
        "round_trips": int(needs.round_trips),
        "exact_gradient": bool(needs.exact_gradient),
    }


def schedule_of(schedule: Plan) -> Row:
    tasks = np.stack([turns_of(schedule), np.asarray(schedule.block)], axis=1)
    sizes = round_partition(schedule.sizes, round(float(np.sum(schedule.sizes))))
    return {"sizes": np.asarray(sizes).tolist(), "tasks": tasks.tolist()}


def row_of(problem: Problem, solution: Solution, seconds: float, deadline: float | None) -> Row:
    status = Status(int(solution.status))
    certified = float(solution.lower_bound) > 0  # 0 bounds any runtime, and says nothing
    row: Row = {
        "status": status.name.lower(),
        "expected_runtime": finite(solution.expected_runtime),
        "runtime_error": finite(solution.runtime_error),
        "lower_bound": finite(solution.lower_bound) if certified else None,
        "relative_gap": finite(solution.relative_gap) if certified else None,
        "kind": solution.kind,
        "partition": None,
        "partition_runtime": None,
        "schedule": None,
        **needs_of(solution),
        "seconds": round(seconds, 4),
    }
    plan = solution.plan
    if plan is not None and isinstance(plan.completion, FirstHolder) and status is not Status.INFEASIBLE:
        row["schedule"] = schedule_of(plan)
    if deadline is not None:
        row["completion_probability"] = None
    if solution.rounded is not None and status is not Status.INFEASIBLE:
        row["partition"] = np.asarray(solution.rounded)[: int(np.asarray(problem.num_workers))].tolist()
        row["partition_runtime"] = finite(solution.rounded_runtime)
        if deadline is not None:
            counts = partition_of_units(problem, solution.rounded)
            probability = completion_probability(problem, counts, jnp.asarray(deadline))
            row["completion_probability"] = finite(probability)
    if solution.method == "tandon_partial":
        row["alpha"] = finite(alpha_of(solution))
    if solution.levels is not None and problem.has_setup:
        row["levels"] = np.flatnonzero(solution.levels).tolist()
    return row
