r"""From a plan to a model's parameters: who computes which blocks of the gradient on which data subsets.

A schedule has no code: the master has a block when each subset's gradient of it is finished by somebody.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.coding.codes import gradient_code, repetition_code
from bcgc_jax.coding.gradients import Block, CodingPlan, Piece, PyTree, coding_plan, cut, unit_sizes
from bcgc_jax.plans import plan as plans
from bcgc_jax.plans.completion import AnyOf, OneOfEach
from bcgc_jax.plans.partitions import round_partition, round_to_units
from bcgc_jax.plans.schedules import turns_of

# A plan whose sizes sum to the coordinates but for float32's rounding is that of the parameters.
_ROUNDING = 1e-4


def schedule_plan(
    schedule: plans.Plan,
    params: PyTree,
    num_workers: int,
    *,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
    mean: bool = True,
) -> CodingPlan:
    r"""Cut the gradient of `params` into the blocks of a schedule, as whole units, for N workers on a circle.

    The schedule's sizes sum to the coordinates of the parameters. Blocks that get no unit are left out, and
    with fewer workers than subsets tasks that the worker has done before. Options are as in `coding_plan`.

    Raises ValueError where the schedule is not one of these parameters, or has a block without any task.

    >>> from bcgc_jax.plans.schedules import Group, schedule_of
    >>> alternating = schedule_of([Group(2, 2)], [4.2, 4.8])
    >>> plan = schedule_plan(alternating, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, num_workers=3)
    >>> [(block.level, block.size) for block in plan.blocks]
    [(1, 4), (1, 5)]
    >>> [(task.block, task.subsets) for task in plan.tasks(2)]
    [(0, (2,)), (1, (2,)), (1, (0,)), (0, (0,))]
    """
    pieces = _cut_blocks(schedule, params, units, order)
    place = {b: k for k, b in enumerate(pieces)}
    turns, numbers = (np.asarray(a).tolist() for a in (turns_of(schedule), schedule.block))
    listed = [(d % num_workers, place[b]) for d, b in zip(turns, numbers, strict=True) if b in place]
    tasks = tuple(dict.fromkeys(listed))
    depths = np.bincount([block for _, block in tasks], minlength=len(pieces))
    if not depths.all():
        raise ValueError(
            f"block {list(pieces)[np.argmin(depths)]} of the schedule has coordinates, but no task"
        )
    blocks = tuple(Block(int(d) - 1, own) for d, own in zip(depths, pieces.values(), strict=True))
    code = gradient_code(jax.random.key(0), num_workers, 0)  # of which nothing is random
    return CodingPlan((code,) * len(blocks), blocks, mean, tasks)


def _cut_blocks(
    plan: plans.Plan, params: PyTree, units: str = "coordinates", order: Sequence[int] | None = None
) -> dict[int, tuple[Piece, ...]]:
    """The pieces of the parameters in each block of a plan, by its number; blocks without a unit left out."""
    counts = _whole_units(plan.sizes, unit_sizes(params, units, order))
    return {b: own for b, own in enumerate(cut(params, counts, units, order)) if own}


def group_plan(
    plan: plans.Plan, params: PyTree, num_workers: int, *, mean: bool = True, **cutting: Any
) -> CodingPlan:
    r"""Cut the gradient of `params` into the blocks of a plan of nested groups, as whole units.

    A group has the data subsets of its members. Groups of unequal sizes that share the data equally have as
    many subsets each; ValueError where these are no whole numbers. Options are as in `coding_plan`.
    """
    rule = plan.completion
    if not isinstance(rule, OneOfEach) or rule.num_workers != num_workers:
        raise ValueError(f"the plan is not one of nested groups of {num_workers} workers")
    pieces = _cut_blocks(plan, params, **cutting)
    groups = tuple(rule.groups[k] for k in pieces)
    codes = []
    for level in groups:
        data = [list(group) for group in level]
        if rule.kinds is None and len({len(group) for group in level}) > 1:
            each, left = divmod(num_workers, len(level))
            if left:
                raise ValueError(
                    f"{len(level)} groups cannot share {num_workers} subsets of the data equally: take "
                    'data="by_size"'
                )
            data = [list(range(k * each, (k + 1) * each)) for k in range(len(level))]
        codes.append(repetition_code(level, data))
    blocks = tuple(Block(code.level, own) for code, own in zip(codes, pieces.values(), strict=True))
    return CodingPlan(tuple(codes), blocks, mean, groups=groups)


def _whole_units(sizes: Any, costs: np.ndarray) -> np.ndarray:
    """How many of the units, in their order, each block has, `[B]`."""
    sizes = np.asarray(sizes)
    if not np.all(sizes >= 0):
        raise ValueError(f"sizes of a plan's blocks must be >= 0, got {sizes}")
    total = float(np.sum(sizes, dtype=float))
    if not abs(total - costs.sum()) <= _ROUNDING * costs.sum():
        raise ValueError(
            f"the plan's blocks have {total:.6g} coordinates, the parameters have {costs.sum()}: make it "
            "for a Problem with as many coordinates"
        )
    if np.all(costs == 1):
        return np.asarray(round_partition(sizes, costs.size))  # type: ignore[arg-type]
    return np.asarray(round_to_units(jnp.asarray(sizes, float), jnp.asarray(costs, float)))


def assign(
    key: Array,
    plan: plans.Plan,
    params: PyTree,
    num_workers: int,
    *,
    rounded: ArrayLike | None = None,
    construction: str | None = None,
    **options: Any,
) -> CodingPlan:
    """What workers do under a plan for a model's parameters, on the simulated clock and as processes.

    Args:
      key, construction: of the codes; a schedule has none.
      rounded: whole units of each block; by default its size is rounded.
      options: `units`, `order` and `mean`, as in `coding_plan`.
    """
    if not isinstance(plan.completion, AnyOf):
        without = group_plan if isinstance(plan.completion, OneOfEach) else schedule_plan
        return without(plan, params, num_workers, **options)
    costs = unit_sizes(params, options.get("units", "coordinates"), options.get("order"))
    data, share = np.asarray(plan.data), np.asarray(plan.share)

    def make(counts: np.ndarray) -> CodingPlan:
        return coding_plan(key, params, counts, construction=construction, **options)

    if np.all(share == 1):
        counts = np.zeros(max(num_workers, data.max()), int)
        counts[data - 1] = _whole_units(plan.sizes, costs) if rounded is None else rounded
        return make(counts[:num_workers])
    # Each task is a block of all coordinates, on its share of the samples.
    ends = [0.0, *np.cumsum(share).tolist()]
    ends[-1] = 1.0  # not a rounding less
    parts = [make(costs.size * (own - 1 == np.arange(num_workers))) for own in data]
    blocks = tuple(
        one.blocks[0]._replace(share=part) for one, part in zip(parts, itertools.pairwise(ends), strict=True)
    )
    return CodingPlan(tuple(one.codes[0] for one in parts), blocks, parts[0].mean)
