"""Define `Plan`: each worker's tasks, the recovery condition, and requirements."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import is_traced, pytree_dataclass, replace
from bcgc_jax.balancing.placement import Storage
from bcgc_jax.plans.completion import AnyOf, Completion, FirstHolder
from bcgc_jax.plans.worker import Tasks


class Requirements(NamedTuple):
    """List what a scheme needs of workers and network.

    Attributes:
      stored_subsets: Storage per worker, in data subsets.
      sent: Communication load: mean number of coordinates per worker for which the
        master waits, relative to L.
      round_trips: Number of round trips between a worker and the master or coordinator
        in a step.
      exact_gradient: Whether the master obtains the gradient over all data.
      lost: Fraction of a step's samples that are missing in the gradient.
    """

    stored_subsets: Array
    sent: Array
    round_trips: Array
    exact_gradient: Array
    lost: Array | float = 0.0


@pytree_dataclass
class Plan:
    """Describe what each worker computes, and when the gradient can be recovered.

    In a batch, every array has the batch axes in front.

    Attributes:
      sizes: Number of coordinates in each block, or their cost, `[B]`. The block next
        to the output is first.
      block: Block that task k computes, integers, `[K]`; -1 after the last task.
      data: Number of data subsets over which task k goes, `[K]`. Each subset has 1/N of
        the data.
      share: Fraction of the subsets' samples that task k uses, `[K]`.
      completion: The recovery condition. None if the plan does not assign tasks to
        workers.
      known_needs: The plan's requirements, if they had to be estimated from samples.
    """

    sizes: Array
    block: ArrayLike
    data: ArrayLike
    share: ArrayLike
    completion: Completion | None
    known_needs: Requirements | None = None

    def with_sizes(self, sizes: Array) -> "Plan":
        return replace(self, sizes=sizes)

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.block, self.data, self.share)

    def storage(self, num_workers: int) -> Storage:
        """Return the placement of the data subsets. All numbers must be known."""
        assert self.completion is not None
        data = np.asarray(self.data)
        used = np.asarray(self.sizes)[np.asarray(self.block)] > 0
        most_subsets = data
        if data.ndim > 1:
            most_subsets = data.max(axis=0)
        return self.completion.storage(np.where(used, most_subsets, 0), num_workers)

    @property
    def trainable(self) -> bool:
        """Whether the plan assigns tasks and yields the gradient over all data."""
        return self.completion is not None and self.completion.exact_gradient

    @property
    def is_partition(self) -> bool:
        """Whether block n is at redundancy level n."""
        return self.completion is not None and self.completion.by_level


def partition_plan(partition: Any, num_workers: ArrayLike) -> Plan:
    """Make the paper's plan of a partition.

    The x_n coordinates of level n are computed on n + 1 subsets, and recovered from any
    N - n workers.
    """
    level = np.arange(partition.shape[-1])
    return Plan(
        sizes=partition,
        block=level,
        data=level + 1,
        share=np.ones(level.size, partition.dtype),
        completion=AnyOf(num_workers),
    )


def cyclic_plan(total: Any, stored: int) -> Plan:
    """Plan all `total` coordinates on `stored` subsets, one after another.

    >>> plan = cyclic_plan(5.0, stored=2)
    >>> plan.sizes.tolist(), plan.block.tolist(), plan.storage(3).chunks()[2]
    ([5.0], [0, 0], ((2, 0), (0, 0)))
    """
    sizes = jnp.asarray(total)[None]
    ones = np.ones(stored, int)
    return Plan(
        sizes=sizes,
        block=0 * ones,
        data=ones,
        share=ones.astype(sizes.dtype),
        completion=FirstHolder(None),
    )


def needs_of(
    plan: Plan, counts: Array | None, num_workers: ArrayLike
) -> Requirements | None:
    """Return the requirements of a plan, or None if they are not known.

    `counts` are the integer coordinates or units of the blocks.
    """
    rule = plan.completion
    # Without tracing, NumPy avoids the compilation of about ten small operations.
    xp = jnp if is_traced((plan, counts, num_workers)) else np
    if plan.known_needs is not None or rule is None:
        return plan.known_needs
    awaited = rule.awaited(xp.asarray(plan.data))
    if awaited is None:
        return None
    size = xp.asarray(plan.sizes) if counts is None else xp.asarray(counts)
    size = xp.take_along_axis(size, xp.asarray(plan.block), axis=-1)
    data = xp.asarray(plan.data)
    share = xp.asarray(plan.share)
    if data.ndim > share.ndim:  # one row per kind of workers
        data = xp.max(data, axis=-2)
    used = (size > 0) & (share > 0)
    stored = xp.max(xp.where(used, data, 0), axis=-1).astype(int)
    workers = xp.asarray(num_workers)[..., None]
    waited = xp.where(used, size * awaited / workers, 0)
    sent = (xp.sum(waited, axis=-1) / xp.sum(size * share, axis=-1)).astype(share.dtype)
    lost = xp.zeros_like(sent)
    exact = xp.ones_like(sent, bool)
    if not rule.exact_gradient:
        lost_by_task = rule.lost(plan.data)
        if lost_by_task is None:
            return None
        part = xp.where(used, size * share, 0)
        lost = xp.sum(part * lost_by_task, axis=-1) / xp.sum(part, axis=-1)
        lost = lost.astype(share.dtype)
        # If workers send sums over several subsets, sums may overlap although no sample
        # is lost.
        exact = (lost <= 0) & (stored <= 1)
    return Requirements(stored, sent, xp.zeros_like(stored), exact, lost)
