r"""From a problem and a partition, or a plan, to the load of a worker: what every
runtime is of.

A known partition is checked: one entry for each level, none negative, none beyond N,
and a sum of `problem.total` to a part in a thousand, which leaves room for numbers
typed by hand. Where x is traced the sum is free: E τ̂ is homogeneous in x. Traced
numbers that make no problem, or negative entries, give NaN.
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

# How far the sum of a known partition may be from the total, in shares of it.
_SUM_SLACK = 1e-3
# What counts as 0, in shares of the total: optimisers leave entries of -1e-9 behind,
# and differences of sums in single precision some of -1e-6.
_ZERO = 1e-5


def problem_tasks(
    problem: Problem, plan: Numbers | Plan
) -> tuple[Load, Completion, Array]:
    """The load and the rule of a plan or a partition, and the time of a cycle.

    The time is NaN for traced numbers that are no problem and no partition or plan of
    these workers.
    """
    slack = _ZERO * problem.total.astype(problem.dtype)
    if not isinstance(plan, Plan):
        x = as_partition(problem, plan)
        possible = jnp.all((x >= -slack) & (problem.exists | (x <= slack)))
        scale = jnp.where(possible, problem.scale, jnp.nan).astype(x.dtype)
        return load_of(problem, x), iteration_of(problem).any_of, scale
    if plan.completion is None:
        raise ValueError(
            "this plan does not say who does what: its runtime is that of its solution"
        )
    sizes = jnp.asarray(plan.sizes)
    of_tasks = sizes[jnp.asarray(plan.block)]
    workers = jnp.asarray(problem.num_workers)
    possible = jnp.all(sizes >= -slack)
    possible &= plan.completion.fits(of_tasks, jnp.asarray(plan.data), workers)
    scale = jnp.where(possible, problem.scale, jnp.nan)
    return load_of_plan(problem, plan), _rule_of(problem, plan), scale


def exact_tasks(problem: Problem, plan: Numbers | Plan) -> tuple[Load, Exact, Array]:
    """The same for a rule with an exact probability; ValueError for another one."""
    load, rule, scale = problem_tasks(problem, plan)
    if not isinstance(rule, Exact):
        raise ValueError(
            f"no exact runtime is known of a plan by the rule {type(rule).__name__}, "
            "under which a step decides what is computed: take simulate_runtime"
        )
    return load, rule, scale


def load_of(problem: Problem, x: Array) -> Load:
    """What a worker has spent when each level is done, in cycles of a coordinate."""
    if problem.bare:  # less to compile
        return Load(cumulative_load(x), sent_load(problem, x))
    setup, chain = (a.astype(x.dtype) for a in (problem.setup_load, problem.chain_load))
    return Load(finish_load(x, _paid(problem, x), setup, chain), sent_load(problem, x))


def load_of_plan(problem: Problem, plan: Plan) -> Load:
    """What a worker has spent after each task, by kinds of workers."""
    assert plan.completion is not None
    load = plan.completion.load(jnp.asarray(plan.sizes), plan.tasks, _cost_of(problem))
    return jax.tree.map(lambda a: a.astype(problem.dtype), load)


def passes_of(problem: Problem, partition: Numbers | Plan) -> Passes | None:
    """A worker's passes, in units of κ; None if nobody is busy when a step ends."""
    plan = partition
    if not isinstance(plan, Plan):
        xp = jnp if is_traced((problem, partition)) else np
        plan = partition_plan(xp.asarray(partition, problem.dtype), problem.num_workers)
    rule = _rule_of(problem, plan)
    return rule.passes(plan.sizes, plan.tasks, _cost_of(problem), bool(problem.overlap))


def _rule_of(problem: Problem, plan: Plan) -> Completion:
    """The plan's rule, of the problem's workers."""
    assert plan.completion is not None
    return plan.completion.of_problem(problem.num_workers, problem.max_workers)


def _cost_of(problem: Problem) -> Cost:
    """What a worker spends besides the cycles of coordinates."""
    if problem.bare:
        setup, chain = (None, None)
    else:
        setup, chain = (problem.setup_load, problem.chain_load)
    return Cost(setup, chain, _sent_cost(problem), problem.max_workers)


def sent_load(problem: Problem, sizes: Array) -> Array | None:
    """c X_n / κ, in cycle times, of tasks of these sizes; None without a link."""
    cost = _sent_cost(problem)
    if cost is None:
        return None
    return cost * jnp.cumsum(sizes)


def _sent_cost(problem: Problem) -> Array | None:
    """c / κ, for a coordinate."""
    if problem.send_time is None:
        return None
    return problem.send_load / problem.scale


def levels_of_bound(problem: Problem, x: Array) -> Array:
    """The levels that the bound of `certificate` allows, `[max_workers]`."""
    return problem.exists & _paid(problem, x)


def _paid(problem: Problem, x: Array) -> Array:
    """The levels in use, if each costs something; else all: slopes at 0 exist too."""
    return (x > 0) | (problem.setup_load + problem.chain_load <= 0)


def partition_of_units(problem: Problem, counts: Array) -> Array:
    """The partition that `counts` units at each level are."""
    if problem.unit_costs is None:
        return counts.astype(problem.dtype)
    return cost_of_units(counts, jnp.asarray(problem.unit_costs, problem.dtype))


def as_partition(problem: Problem, partition: Numbers) -> Array:
    """x in the dtype of problem and partition."""
    problem.check_single()
    x = jnp.asarray(partition, working_dtype(problem, partition))
    advice = "an entry for each level, and jax.vmap for a batch"
    check_shape("partition", x, (problem.max_workers,), advice)
    return x


def check_partition(problem: Problem, partition: Numbers | Plan) -> None:
    """Raise ValueError for known numbers that are no partition, once shapes fit."""
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
    if not np.isfinite(summed):  # this takes longer than all else here
        check("partition", x, "")
        summed = x.sum()
    if x.min() < -rounding:
        raise ValueError(
            "partition must be >= 0, for it says how much is at each level, got "
            f"{x.min()}"
        )
    if x[workers:].max(initial=0) > rounding:
        raise ValueError(
            f"partition must be 0 from level {workers} on, which {workers} workers "
            f"lack: {x}"
        )
    if not abs(summed - total) <= _SUM_SLACK * total:
        what = "the sum of unit_costs"
        if costs is None:
            what = "num_coordinates"
        raise ValueError(
            f"partition must sum to {total:g}, {what}, got {summed:g}: multiply shares "
            "by problem.total, whole units by their costs"
        )


def _check_plan(plan: Plan, workers: int, total: float) -> None:
    sizes = np.asarray(plan.sizes)
    rule = plan.completion
    if sizes.ndim != 1:
        return
    block = np.asarray(plan.block)
    share = np.ones(sizes.size)
    # The share of a block's samples.
    share[block[block >= 0]] = np.asarray(plan.share)[block >= 0]
    summed = np.sum(sizes * share)
    subsets = 0
    if rule is not None:
        subsets = rule.least_workers(np.where(sizes[block] > 0, plan.data, 0))
    if subsets > workers or not abs(summed - total) <= _SUM_SLACK * total:
        raise ValueError(
            f"the plan is for {summed:g} coordinates on up to {subsets} subsets of the "
            f"data, the problem has {total:g} and {workers} subsets, one for each "
            "worker: take a plan for this problem"
        )
