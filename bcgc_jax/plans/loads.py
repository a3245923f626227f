"""Compute a worker's load from a problem and a partition or plan.

A known partition is checked. It must have one entry per level, no negative entry, zeros
from level N on, and the sum `problem.total` up to 0.1 %. This tolerance allows numbers
that were typed by hand. If x is traced, its sum is not checked, because E τ̂ is
homogeneous in x. Traced numbers that are out of range give NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import Numbers, check, check_shape, is_traced, working_dtype
from bcgc_jax.plans.completion import Completion, Exact
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.partitions import cost_of_units, cumulative_load, finish_load
from bcgc_jax.plans.passes import Passes
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.worker import Cost, Load
from bcgc_jax.problem import Problem

# Relative tolerance for the sum of a known partition.
_SUM_SLACK = 1e-3
# Relative tolerance for 0. Optimisers leave entries of -1e-9 of the total. Differences
# of sums in single precision leave -1e-6.
_ZERO = 1e-5


def problem_tasks(
    problem: Problem, plan: Numbers | Plan
) -> tuple[Load, Completion, Array]:
    """Return the load, the recovery condition and the scale κ of a plan or partition.

    The scale is NaN if traced numbers are out of range or do not fit the workers.
    """
    slack = _ZERO * problem.total.astype(problem.dtype)
    if not isinstance(plan, Plan):
        x = as_partition(problem, plan)
        possible = jnp.all((x >= -slack) & (problem.exists | (x <= slack)))
        scale = jnp.where(possible, problem.scale, jnp.nan).astype(x.dtype)
        return load_of(problem, x), iteration_of(problem).any_of, scale
    if plan.completion is None:
        raise ValueError(
            "this plan does not list the tasks of each worker, so its runtime cannot "
            "be evaluated. Use solution.expected_runtime."
        )
    sizes = jnp.asarray(plan.sizes)
    of_tasks = sizes[jnp.asarray(plan.block)]
    workers = jnp.asarray(problem.num_workers)
    possible = jnp.all(sizes >= -slack)
    possible &= plan.completion.fits(of_tasks, jnp.asarray(plan.data), workers)
    scale = jnp.where(possible, problem.scale, jnp.nan)
    return load_of_plan(problem, plan), _rule_of(problem, plan), scale


def exact_tasks(problem: Problem, plan: Numbers | Plan) -> tuple[Load, Exact, Array]:
    """Return the same. Raise ValueError if the condition has no exact probability."""
    load, rule, scale = problem_tasks(problem, plan)
    if not isinstance(rule, Exact):
        raise ValueError(
            f"plans with the recovery condition {type(rule).__name__} have no exact "
            "runtime, because their work is decided during the step. Use "
            "simulate_runtime."
        )
    return load, rule, scale


def load_of(problem: Problem, x: Array) -> Load:
    """Compute a worker's load up to each level, in cycles of a coordinate."""
    if problem.bare:  # compiles faster
        return Load(cumulative_load(x), sent_load(problem, x))
    setup, chain = (a.astype(x.dtype) for a in (problem.setup_load, problem.chain_load))
    return Load(finish_load(x, _paid(problem, x), setup, chain), sent_load(problem, x))


def load_of_plan(problem: Problem, plan: Plan) -> Load:
    """Compute the load after each task, by kinds of workers."""
    assert plan.completion is not None
    load = plan.completion.load(jnp.asarray(plan.sizes), plan.tasks, _cost_of(problem))
    return jax.tree.map(lambda a: a.astype(problem.dtype), load)


def passes_of(problem: Problem, partition: Numbers | Plan) -> Passes | None:
    """Return a worker's passes, in units of κ.

    The result is None if no worker is busy when a step ends.
    """
    plan = partition
    if not isinstance(plan, Plan):
        xp = jnp if is_traced((problem, partition)) else np
        plan = partition_plan(xp.asarray(partition, problem.dtype), problem.num_workers)
    rule = _rule_of(problem, plan)
    return rule.passes(plan.sizes, plan.tasks, _cost_of(problem), bool(problem.overlap))


def _rule_of(problem: Problem, plan: Plan) -> Completion:
    """Return the plan's recovery condition for the problem's workers."""
    assert plan.completion is not None
    return plan.completion.of_problem(problem.num_workers, problem.max_workers)


def _cost_of(problem: Problem) -> Cost:
    """Return a worker's costs in addition to the cycles of coordinates."""
    if problem.bare:
        setup, chain = (None, None)
    else:
        setup, chain = (problem.setup_load, problem.chain_load)
    return Cost(setup, chain, _sent_cost(problem), problem.max_workers)


def sent_load(problem: Problem, sizes: Array) -> Array | None:
    """Compute c X_n / κ, in cycle times, or None if sending takes no time."""
    cost = _sent_cost(problem)
    if cost is None:
        return None
    return cost * jnp.cumsum(sizes)


def _sent_cost(problem: Problem) -> Array | None:
    """Return c / κ for a coordinate."""
    if problem.send_time is None:
        return None
    return problem.send_load / problem.scale


def levels_of_bound(problem: Problem, x: Array) -> Array:
    """Return the levels to which a `certificate` applies, `[max_workers]`."""
    return problem.exists & _paid(problem, x)


def _paid(problem: Problem, x: Array) -> Array:
    """Return the levels in use, or all levels if levels have no cost of their own.

    In the second case, derivatives at 0 also exist.
    """
    return (x > 0) | (problem.setup_load + problem.chain_load <= 0)


def partition_of_units(problem: Problem, counts: Array) -> Array:
    """Compute the partition from integer `counts` of units at each level."""
    if problem.unit_costs is None:
        return counts.astype(problem.dtype)
    return cost_of_units(counts, jnp.asarray(problem.unit_costs, problem.dtype))


def as_partition(problem: Problem, partition: Numbers) -> Array:
    """Convert a partition to the common dtype of `problem` and `partition`."""
    problem.check_single()
    x = jnp.asarray(partition, working_dtype(problem, partition))
    advice = "pass one entry for each level, and use jax.vmap for a batch"
    check_shape("partition", x, (problem.max_workers,), advice)
    return x


def check_partition(problem: Problem, partition: Numbers | Plan) -> None:
    """Raise ValueError if a known partition or plan does not fit the problem."""
    workers = problem.num_workers
    count = problem.num_coordinates
    costs = problem.unit_costs
    if is_traced((partition, workers, count, costs)):
        return
    whole = np.asarray(count if costs is None else np.sum(costs, axis=-1))  # type: ignore[arg-type]
    if np.ndim(workers) or whole.ndim:
        return
    workers = int(np.asarray(workers))
    total = float(whole)
    if isinstance(partition, Plan):
        return _check_plan(partition, workers, total)
    x = np.asarray(partition)
    if x.shape != (problem.max_workers,):
        return
    rounding = _ZERO * total
    summed = np.nan
    if x.dtype.kind == "f":
        summed = x.sum()
    if not np.isfinite(summed):  # slower than all other checks
        check("partition", x, "")
        summed = x.sum()
    if x.min() < -rounding:
        raise ValueError(
            "partition must be >= 0, because it counts coordinates at each level, got "
            f"{x.min()}"
        )
    if x[workers:].max(initial=0) > rounding:
        raise ValueError(
            f"partition must be 0 from level {workers} on, because {workers} workers "
            f"have only lower levels, got {x}"
        )
    if not abs(summed - total) <= _SUM_SLACK * total:
        what = "the sum of unit_costs"
        if costs is None:
            what = "num_coordinates"
        raise ValueError(
            f"partition must sum to {total:g}, {what}, got {summed:g}. Multiply "
            "fractions by problem.total, and numbers of units by their costs."
        )


def _check_plan(plan: Plan, workers: int, total: float) -> None:
    sizes = np.asarray(plan.sizes)
    rule = plan.completion
    if sizes.ndim != 1:
        return
    block = np.asarray(plan.block)
    share = np.ones(sizes.size)
    # Fraction of the samples that each block uses.
    share[block[block >= 0]] = np.asarray(plan.share)[block >= 0]
    summed = np.sum(sizes * share)
    subsets = 0
    if rule is not None:
        subsets = rule.least_workers(np.where(sizes[block] > 0, plan.data, 0))
    if subsets > workers or not abs(summed - total) <= _SUM_SLACK * total:
        raise ValueError(
            f"the plan is for {summed:g} coordinates on up to {subsets} subsets of the "
            f"data, but the problem has {total:g} and {workers} subsets, one for each "
            "worker. Use a plan for this problem."
        )
