"""A row of `bcgc solve` from a solution: what its table, its JSON and its CSV say."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli.output import Row, finite
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.partitions import round_partition
from bcgc_jax.plans.plan import Needs, Plan
from bcgc_jax.plans.runtime import completion_probability, partition_of_units
from bcgc_jax.plans.schedules import turns_of
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.baselines import alpha_of
from bcgc_jax.solvers.methods import Method, Sharing


def with_round_trip(method: Method, round_trip: float) -> Method:
    """`method`; one that asks for chunks does so in `round_trip`."""
    return replace(method, round_trip=round_trip) if isinstance(method, Sharing) else method


def row_of(problem: Problem, solution: Solution, seconds: float, deadline: float | None) -> Row:
    status = Status(int(solution.status))
    exists = status is not Status.INFEASIBLE
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
        "schedule": _schedule(solution.plan) if exists and solution.plan is not None else None,
        **_needs(solution.needs if exists else None),
        "seconds": round(seconds, 4),
    }
    if deadline is not None:
        row["completion_probability"] = None
    if solution.rounded is not None and exists:
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


def _needs(needs: Needs | None) -> Row:
    """Null where they are not known."""
    if needs is None:
        return dict.fromkeys(Needs._fields)
    return {
        "stored_subsets": int(needs.stored_subsets),
        "sent": finite(needs.sent),
        "round_trips": int(needs.round_trips),
        "exact_gradient": bool(needs.exact_gradient),
    }


def _schedule(plan: Plan) -> Row | None:
    """Of a plan without a code."""
    if not isinstance(plan.completion, FirstHolder):
        return None
    tasks = np.stack([turns_of(plan), np.asarray(plan.block)], axis=1)
    sizes = round_partition(plan.sizes, round(float(np.sum(plan.sizes))))
    return {"sizes": np.asarray(sizes).tolist(), "tasks": tasks.tolist()}
