r"""What workers do until the plan is changed, and what that takes in iterations whose cycle times are known.

Subsets may be of unequal size: worker w is the first to do subset w, a share p_w of the data, so that with
the tasks of a schedule in its order it has done task k, on block b and subset w + δ, at

    F_w(k) = S_w + T_w C_w(k),   C_w(k) = Σ_{i≤k} N p_{w+δ_i} x_{b_i},   Σ x = 1.

S is the start-up, which no load changes. Loads are in units of 1/N of all work, and T is the time of that:
uncoded and with even shares a worker's iteration takes S + T. Coded plans have even shares, and level n ends
with the (N-n)-th worker that has done Σ_{i≤n} (i+1) x_i.
"""

import dataclasses
import functools

import numpy as np

from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.schedules import turns_of


@dataclasses.dataclass(frozen=True)
class WorkPlan:
    """A schedule on subsets of unequal size, or a coded partition.

    Attributes:
      name: of the rule that made it.
      shares: p, of the data in each subset, `[N]`, summing to 1.
      schedule: whose sizes sum to 1; None for a code.
      partition: x, of the coordinates at each level, `[N]`, summing to 1; None for a schedule.
    """

    name: str
    shares: np.ndarray
    schedule: Plan | None = None
    partition: np.ndarray | None = None

    @property
    def num_workers(self) -> int:
        return len(self.shares)

    @functools.cached_property
    def loads(self) -> np.ndarray:
        """C at the end of each task that a worker has, `[N, K]`.

        >>> from bcgc_jax.plans.schedules import Group, schedule_of
        >>> WorkPlan("uneven", np.array([0.25, 0.75]), schedule_of([Group(2, 1)], [1.0])).loads.tolist()
        [[0.5, 2.0], [1.5, 2.0]]
        """
        if self.schedule is None:
            assert self.partition is not None
            used = np.flatnonzero(self.partition)
            done = np.cumsum((used + 1) * self.partition[used])
            return np.broadcast_to(done, (self.num_workers, used.size))
        subset, block = np.asarray(turns_of(self.schedule)), np.asarray(self.schedule.block)
        of_worker = (np.arange(self.num_workers)[:, None] + subset) % self.num_workers
        sizes = np.asarray(self.schedule.sizes, float)
        return np.cumsum(self.num_workers * self.shares[of_worker] * sizes[block], axis=1)

    def runtimes(self, times: np.ndarray, start_ups: np.ndarray | float = 0.0) -> np.ndarray:
        """τ of iterations with these cycle times and start-ups, `[R, N]` each to `[R]`.

        >>> coded = WorkPlan("coded", np.full(2, 0.5), partition=np.array([0.5, 0.5]))
        >>> coded.runtimes(np.array([[1.0, 4.0]])), coded.runtimes(np.array([[1.0, 4.0]]), 3.0)
        (array([2.]), array([5.]))
        """
        loads = self.loads
        if self.schedule is None:
            assert self.partition is not None
            done = np.zeros(len(times))
            for level, load in zip(np.flatnonzero(self.partition), loads[0], strict=True):
                last = self.num_workers - 1 - level
                done = np.maximum(done, np.partition(start_ups + times * load, last, axis=1)[:, last])
            return done
        subset, block = np.asarray(turns_of(self.schedule)), np.asarray(self.schedule.block)
        place = np.arange(self.num_workers)
        soonest = np.full((len(self.schedule.sizes), *times.shape), np.inf)
        for turn, own, load in zip(subset, block, loads.T, strict=True):
            # Subset w + turn is done by worker w then.
            done = np.take(start_ups + times * load, (place - turn) % self.num_workers, axis=1)
            np.minimum(soonest[own], done, out=soonest[own])
        return np.max(soonest, axis=(0, 2))

    def finished(self, times: np.ndarray, until: float, start_ups: np.ndarray | float = 0.0) -> np.ndarray:
        """Of one iteration who has done a task by then, bool `[N]`: their cycle times can be told."""
        return start_ups + times * self.loads[:, 0] <= until * (1 + 1e-12)

    def messages(self, times: np.ndarray, start_ups: np.ndarray | float = 0.0) -> float:
        """How many tasks all workers together have done at the end of an iteration, the mean.

        >>> coded = WorkPlan("coded", np.full(2, 0.5), partition=np.array([0.5, 0.5]))
        >>> coded.messages(np.array([[1.0, 4.0]]))
        3.0
        """
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
        if self.schedule is None:
            assert self.partition is not None
            depth = int(np.flatnonzero(self.partition)[-1]) + 1
        else:
            depth = int(np.max(turns_of(self.schedule))) + 1
        around = np.concatenate([[0.0], np.cumsum(np.tile(self.shares, 2))])
        first = np.arange(self.num_workers)
        return np.stack([around[first], around[first + depth]], axis=1)
