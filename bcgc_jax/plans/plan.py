"""`Plan`: what workers do, task after task, when it is enough, and its needs."""

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
    """What a scheme needs of workers and network.

    Attributes:
      stored_subsets: of the data, by each worker.
      sent: coordinates that a worker sends and the master waits for, on average, in L.
      round_trips: questions of the master within an iteration.
      exact_gradient: whether what it gets is the gradient of all data.
      lost: share of a step's samples that are not in the gradient.
    """

    stored_subsets: Array
    sent: Array
    round_trips: Array
    exact_gradient: Array
    lost: Array | float = 0.0


@pytree_dataclass
class Plan:
    """What each worker does; every array gains the leading axes of a batch.

    Attributes:
      sizes: coordinates, or their cost, of each block, `[B]`, those next to the output
        first.
      block: int, `[K]`: the block that task k computes; beyond the last task -1.
      data, share: `[K]`: how many subsets of the data it goes over, each 1/N, and the
        share of their samples.
      completion: when the gradient is there; None where nobody plans who does what.
      known_needs: what it needs, where that takes draws.
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
        """Who stores what, of a plan whose numbers are known."""
        assert self.completion is not None
        data = np.asarray(self.data)
        used = np.asarray(self.sizes)[np.asarray(self.block)] > 0
        most_subsets = data
        if data.ndim > 1:
            most_subsets = data.max(axis=0)
        return self.completion.storage(np.where(used, most_subsets, 0), num_workers)

    @property
    def trainable(self) -> bool:
        """Whether it says who does what, and gives the gradient of all data."""
        return self.completion is not None and self.completion.exact_gradient

    @property
    def is_partition(self) -> bool:
        """Whether block n is at redundancy level n."""
        return self.completion is not None and self.completion.by_level


def partition_plan(partition: Any, num_workers: ArrayLike) -> Plan:
    """The paper's: x_n coordinates on n + 1 subsets, done by any N - n workers."""
    level = np.arange(partition.shape[-1])
    return Plan(
        sizes=partition,
        block=level,
        data=level + 1,
        share=np.ones(level.size, partition.dtype),
        completion=AnyOf(num_workers),
    )


def cyclic_plan(total: Any, stored: int) -> Plan:
    """All `total` coordinates on `stored` subsets, one by one around the circle.

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
    """What a plan needs; of one in which nobody is asked. `counts` are whole units."""
    rule = plan.completion
    # Some ten operations: not worth as many compilations where the numbers are known.
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
    if data.ndim > share.ndim:  # of unlike workers
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
        # Sums over several subsets may overlap, although no sample is lost.
        exact = (lost <= 0) & (stored <= 1)
    return Requirements(stored, sent, xp.zeros_like(stored), exact, lost)
