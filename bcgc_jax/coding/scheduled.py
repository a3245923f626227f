r"""The tasks of a schedule for a model's parameters: blocks of the gradient on subset after subset, no code.

The master has a block when each subset's gradient of it is finished by somebody, and takes their plain sums.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import pytree_dataclass, static_field
from bcgc_jax.coding.gradients import (
    Block,
    CodingPlan,
    Plan,
    PyTree,
    Task,
    complete_order,
    cut,
    plain_plan,
    unit_sizes,
)
from bcgc_jax.plans import plan as plans
from bcgc_jax.plans.partitions import cost_of_units, round_partition, round_to_units
from bcgc_jax.plans.schedules import turns_of

# A schedule whose sizes sum to the coordinates but for float32's rounding is that of the parameters.
_ROUNDING = 1e-4


@pytree_dataclass
class SchedulePlan(Plan):
    """The blocks of a gradient, and the order in which each worker computes them on its subsets.

    `order` are pairs (δ, block): worker w of the `circle` of N computes the block on subset w + δ mod N. A
    block on d subsets of each worker is at level d - 1: it survives so many stragglers, whoever they are.
    """

    blocks: tuple[Block, ...] = static_field()
    order: tuple[tuple[int, int], ...] = static_field()
    circle: int = static_field()
    mean: bool = static_field()

    @property
    def num_workers(self) -> int:
        return self.circle

    def tasks(self, worker: int) -> tuple[Task, ...]:
        return tuple(Task(block, ((worker + turn) % self.circle,)) for turn, block in self.order)

    def completed(self, finish: np.ndarray) -> np.ndarray:
        """When the last of its subsets is finished by the first who does so a block is.

        >>> plan = SchedulePlan(blocks=(Block(1, ()),), order=((0, 0), (1, 0)), circle=2, mean=True)
        >>> plan.completed(np.array([[1.0, 5.0], [2.0, 10.0]])).tolist()  # the fast one does both
        [2.0]
        """
        return np.max(self.ready(finish), axis=1)

    def messages(self) -> CodingPlan:
        return plain_plan(self.blocks, self.circle, self.mean)

    def ready(self, finish: Any) -> Any:
        """When each subset of each block is finished by the first who does so; NumPy in, NumPy out."""
        turn, block = np.array(self.order).T
        worker = (np.arange(self.circle) - turn[:, None]) % self.circle
        shape = len(self.blocks), self.circle
        if isinstance(finish, np.ndarray):
            done = np.full(shape, np.inf)
            np.minimum.at(done, block, np.take_along_axis(finish, worker, axis=1))
            return done
        own = jnp.take_along_axis(finish, worker, axis=1)
        return jnp.full(shape, jnp.inf, finish.dtype).at[block].min(own)


def schedule_plan(
    schedule: plans.Plan,
    params: PyTree,
    num_workers: int,
    *,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
    mean: bool = True,
) -> SchedulePlan:
    r"""Cut the gradient of `params` into the blocks of a schedule, as whole units, for N workers on a circle.

    Args:
      schedule: its sizes sum to the coordinates of the parameters; blocks that get no unit are left out. With
        fewer workers than it stores subsets, so are tasks on a subset that the worker has met before.
      params: any pytree of arrays; only shapes count.
      units, order, mean: as in `coding_plan`.

    Raises ValueError where the schedule is not one of these parameters, or has a block without any task.

    >>> from bcgc_jax.plans.schedules import Group, schedule_of
    >>> alternating = schedule_of([Group(2, 2)], [4.2, 4.8])
    >>> plan = schedule_plan(alternating, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, num_workers=3)
    >>> [(block.level, block.size) for block in plan.blocks]
    [(1, 4), (1, 5)]
    >>> [(task.block, task.subsets) for task in plan.tasks(2)]
    [(0, (2,)), (1, (2,)), (1, (0,)), (0, (0,))]
    """
    sizes = _whole_units(schedule, params, units, order)
    used = np.flatnonzero(sizes)
    place = {int(b): k for k, b in enumerate(used)}
    turns, numbers = (np.asarray(a).tolist() for a in (turns_of(schedule), schedule.block))
    listed = [(d % num_workers, place[b]) for d, b in zip(turns, numbers, strict=True) if b in place]
    tasks = tuple(dict.fromkeys(listed))
    depths = np.bincount([block for _, block in tasks], minlength=used.size)
    if not depths.all():
        raise ValueError(f"block {used[np.argmin(depths)]} of the schedule has coordinates, but no task")
    leaves = [int(np.size(leaf)) for leaf in jax.tree.leaves(params)]
    pieces = cut(complete_order(order, len(leaves)), leaves, np.cumsum(sizes[used]).tolist())
    blocks = tuple(Block(int(d) - 1, own) for d, own in zip(depths, pieces, strict=True))
    return SchedulePlan(blocks, tasks, num_workers, mean)


def _whole_units(schedule: plans.Plan, params: PyTree, units: str, order: Sequence[int] | None) -> np.ndarray:
    """Coordinates of each block, `[B]`, after each got whole units."""
    costs, sizes = unit_sizes(params, units, order), jnp.asarray(schedule.sizes, float)
    if not np.all(np.asarray(sizes) >= 0):
        raise ValueError(f"sizes of a schedule's blocks must be >= 0, got {np.asarray(sizes)}")
    total = float(np.sum(np.asarray(sizes, float)))
    if not abs(total - costs.sum()) <= _ROUNDING * costs.sum():
        raise ValueError(
            f"the schedule's blocks have {total:.6g} coordinates, the parameters have {costs.sum()}: make it "
            "for a Problem with as many coordinates"
        )
    if units == "coordinates":
        return np.asarray(round_partition(sizes, costs.size))
    counts = round_to_units(sizes, jnp.asarray(costs, sizes.dtype))
    return np.asarray(cost_of_units(counts, jnp.asarray(costs)))
