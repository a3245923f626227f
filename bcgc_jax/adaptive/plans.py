r"""What workers do until the plan is changed, and what that takes in iterations whose cycle times are known.

Subsets may be of unequal size: worker w is the first to do subset w, a share p_w of the data. If it goes
through subsets one by one around the circle, it has done k of them at

    F_w(k) = S_w + T_w C_w(k),   C_w(k) = Σ_{i<k} N p_{w+i}.

S is the start-up, which no load changes. Loads are in units of 1/N of all work, and T is the time of that:
uncoded and with even shares a worker's iteration takes S + T. Plans of nested groups, and codes, have even
shares.
"""

import dataclasses
import functools

import numpy as np

from bcgc_jax.plans.passes import Passes, in_a_row
from bcgc_jax.plans.plan import Plan


@dataclasses.dataclass(frozen=True)
class WorkPlan:
    """A plan of which every worker has a subset of its own to begin with, of unequal size if need be.

    Attributes:
      name: of the rule that made it.
      shares: p, of the data in each subset, `[N]`, summing to 1; even for a code.
      plan: of N workers, its sizes summing to 1.
    """

    name: str
    shares: np.ndarray
    plan: Plan

    @property
    def num_workers(self) -> int:
        return len(self.shares)

    @functools.cached_property
    def loads(self) -> np.ndarray:
        """C at the end of each task that a worker has, `[N, K]`.

        >>> from bcgc_jax.plans.plan import cyclic_plan
        >>> WorkPlan("uneven", np.array([0.25, 0.75]), cyclic_plan(1.0, 2)).loads.tolist()
        [[0.5, 2.0], [1.5, 2.0]]
        """
        return np.cumsum(self._tasks, axis=1)

    @functools.cached_property
    def _tasks(self) -> np.ndarray:
        """The load of each task that a worker has, `[N, K]`."""
        assert self.plan.completion is not None
        sizes = np.asarray(self.plan.sizes, float)[np.asarray(self.plan.block)]
        data = self.plan.completion.data_by_worker(np.asarray(self.plan.data), self.shares)
        return np.broadcast_to(data * sizes, (self.num_workers, sizes.size))

    @functools.cached_property
    def _passes(self) -> np.ndarray:
        """The load of one subset in each task that a worker has, `[N, K]`."""
        assert self.plan.completion is not None
        return self._tasks / self.plan.completion.per_worker(np.asarray(self.plan.data))

    def runtimes(self, times: np.ndarray, start_ups: np.ndarray | float = 0.0) -> np.ndarray:
        """τ of iterations with these cycle times and start-ups, `[R, N]` each to `[R]`.

        >>> from bcgc_jax.plans.plan import partition_plan
        >>> coded = WorkPlan("coded", np.full(2, 0.5), partition_plan(np.array([0.5, 0.5]), 2))
        >>> coded.runtimes(np.array([[1.0, 4.0]]), 3.0), coded.messages(np.array([[1.0, 4.0]]))
        (array([5.]), 3.0)
        """
        assert self.plan.completion is not None
        starts = np.broadcast_to(start_ups, times.shape)[:, None]
        done = starts + times[:, None] * self.loads.T
        return self.plan.completion.blocks(done, np.asarray(self.plan.block)).max(axis=-1)

    def successive(self, times: np.ndarray, start_ups: np.ndarray | float = 0.0) -> np.ndarray:
        """τ of iterations one after the other, `[R]`: a worker ends a pass before it begins the next one.

        Both workers begin the other's half as the iteration ends, and are busy with it for as long again.

        >>> from bcgc_jax.plans.plan import cyclic_plan
        >>> twice = WorkPlan("twice", np.full(2, 0.5), cyclic_plan(1.0, 2))
        >>> twice.successive(np.ones((4, 2))).tolist()
        [1.0, 2.0, 2.0, 2.0]
        """

        def last(begin: np.ndarray, time: np.ndarray) -> np.ndarray:
            return self.runtimes(time[None], begin[None])[0]

        passes = Passes(self.loads.T, self._passes.T)
        return in_a_row(last, passes, np.broadcast_to(start_ups, times.shape), times)

    def messages(self, times: np.ndarray, start_ups: np.ndarray | float = 0.0) -> float:
        """How many tasks all workers together have done at the end of an iteration, the mean."""
        ends = self.runtimes(times, start_ups) * (1 + 1e-12)
        starts = np.broadcast_to(start_ups, times.shape)[..., None]
        done = starts + times[..., None] * self.loads <= ends[:, None, None]
        return float(np.sum(done)) / len(times)

    def moved(self, before: "WorkPlan | None") -> float:
        """The share of the data that some worker has to get that it had not before."""
        held = np.zeros((self.num_workers, 2)) if before is None else before._held()
        start, end = self._held().T
        new = end - start - np.maximum(np.minimum(end, held[:, 1]) - np.maximum(start, held[:, 0]), 0)
        return float(np.sum(new))

    def _held(self) -> np.ndarray:
        """From where to where on the circle of the data each worker's subsets lie, `[N, 2]`."""
        around = np.concatenate([[0.0], np.cumsum(np.tile(self.shares, 2))])
        storage = self.plan.storage(self.num_workers)
        arcs = [storage.arc_of(worker) for worker in range(self.num_workers)]
        return np.array([(around[first], around[first + count]) for first, count in arcs])
