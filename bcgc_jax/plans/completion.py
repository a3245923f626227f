"""Define recovery conditions: the tasks that must be finished to know the gradient.

A recovery condition computes a worker's load after each task, the runtime for given
times, and the placement of the data. An `Exact` condition also has P(τ > t) in closed
form. Workers process their tasks in the same order. Therefore the state of a worker at
time t is the number of tasks it has finished, and these numbers are independent. The
probability depends only on the hazards h_k = -log P(task k is not finished by t).

- `AnyOf`: level n is complete at the (N - n)-th delivery, as with gradient codes.
- `FirstHolder`: each of N subsets is complete when one worker has finished it. Worker w
  processes subsets w, w+1, …, w+D-1 of a circle. Let r be the number of subsets that a
  worker has finished; P(r ≤ δ) = e^-h_(δ+1). Let s be the number of covered subsets
  ahead. Around the circle, s is a Markov chain. A worker changes s to max(s, r) - 1,
  and a subset is missed if s = r = 0. A miss resets the chain to 0. Let f_l = P(the
  first miss after a miss is l workers later). Let u_m = P(a miss m workers later) =
  Π_{δ<min(m,D)} P(r ≤ δ). Cut the circle at one point, and let l be the number of
  workers between the misses before and after the cut. Then P(τ > t) = Σ_l l f_l
  u_{N-l}. All terms are positive. In contrast, P(τ ≤ t) = tr(A^N), with the chain's
  transition matrix A, loses small P(τ > t) to rounding.
- `OneOfEach`: each block has a partition of the workers into groups, which refines the
  partition of the next block. A block is complete when one worker of each group has
  finished it. For a group v of block j and k > j, let

      C_v(k) = P(blocks 1 … j are complete in v, and no worker of v has done block k).

  A single worker has C_w(k) = S_k = e^-h_k. A group v of block j, which consists of
  groups c of block j-1, has

      C_v(k) = Π_{c in v} C_c(k) - Π_{c in v} C_c(j).

  The second product is the part of the first in which no worker of v has finished
  block j. At the root, P(τ ≤ t) = Π_c C_c with S = 1. The code adds up the complement
  in positive terms.
"""

import itertools
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    concrete,
    is_traced,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.balancing.placement import Storage, on_circle
from bcgc_jax.balancing.steps import Rule
from bcgc_jax.exact.crossing import crossing_probability
from bcgc_jax.exact.linear_algebra import einsum
from bcgc_jax.exact.order_statistics import log_choices, typical_hazards
from bcgc_jax.exact.quadrature import largest
from bcgc_jax.plans.circle import circle_runtime, soonest_of, uncovered
from bcgc_jax.plans.groups import NOBODY, Groups, Tree, tree_of
from bcgc_jax.plans.passes import Passes, passes_in_order
from bcgc_jax.plans.worker import Cost, Load, Tasks, delivered


class Completion(Rule, ABC):
    """Define a recovery condition for N workers with K tasks each, in one order.

    NumPy arrays give NumPy arrays, and JAX arrays give JAX arrays.

    Attributes:
      num_workers: N. None until `of_problem` sets it.
      groups: For each task, the groups of workers that compute the same gradient. Empty
        if there are no groups.
      by_level: Whether task n is the block at redundancy level n of the paper's scheme.
      interchangeable: Whether the runtime depends only on the sorted times.
      handed_out: Whether chunks are assigned during the step, so that tasks are not
        planned.
    """

    num_workers: Any
    groups: Groups = ()
    by_level: bool = False
    interchangeable: ClassVar[bool] = False
    handed_out: ClassVar[bool] = False

    @abstractmethod
    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute a worker's load after each task, from block sizes, `[B]`."""

    @abstractmethod
    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Compute when the last block is complete, `[...]`.

        `starts` and `times` are the start-up and cycle times of all workers, `[...,
        N]`. All times have the unit of `load`. `overlap` says whether workers send
        while they compute.
        """

    @abstractmethod
    def ended(
        self,
        subset: float,
        passes: Passes | None,
        block: np.ndarray,
        starts: Any,
        times: Any,
    ) -> np.ndarray:
        """Compute `runtimes` with NumPy, for known numbers and without padding.

        `subset` is the load of one data subset. `passes` are the passes of the tasks,
        and `block` the block of each task.
        """

    def passes(
        self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool
    ) -> Passes | None:
        """Return the passes that a worker cannot interrupt.

        The result is None if no worker is busy when a step ends.
        """
        return None

    @abstractmethod
    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        """Return the placement for tasks over `data` subsets, `[K]`; 0 for unused."""

    @abstractmethod
    def least_workers(self, data: np.ndarray) -> int:
        """Return the smallest possible number of workers; `data` as in `storage`."""

    def fits(self, size: Array, data: Array, num_workers: Array) -> Array | bool:
        """Whether N workers can process tasks of this size on `data` subsets, `[K]`."""
        return True

    def of_problem(self, num_workers: ArrayLike, max_workers: int) -> "Completion":
        """Return the condition for loads of `load` and N workers. N may be traced."""
        return self

    def awaited(self, data: Any) -> Any:
        """Return the number of messages that complete each task, `[K]`.

        The result is None if the number varies.
        """
        return None

    def lost(self, data: Any) -> Any:
        """Return the mean fraction of each task's samples that is lost, `[K]`.

        A sample is lost if no awaited worker stores it. Only conditions with an inexact
        gradient need this method. The result is None if the fraction is not known.
        """
        return None

    def listing(self, block: ArrayLike) -> dict[str, Any]:
        """List each worker's tasks for a file. Empty if block sizes determine them."""
        return {}

    def per_worker(self, values: np.ndarray) -> np.ndarray:
        """Expand values of kinds of workers to `[N, K]`, or `[1, K]` if i.i.d."""
        return values.reshape(1, -1)

    def columns(self, scale: Any) -> dict[str, Any]:
        """Return the columns of this condition. The unit of times is `scale`."""
        return {}

    def width(self, load: Load, overlap: bool) -> int:
        """Return how many numbers `runtimes` holds for each sample and worker."""
        return load.work.size ** (2 if overlap else 1)


class Bounds(NamedTuple):
    """Bound P(τ > t) by Σ_j exp(choices_j - j g_j) with J hazards g.

    Attributes:
      choices: `[J + 1]`.
      hazards: Values of g before which no τ is possible, and at a low, a typical and a
        high τ, `[4, J]`.
    """

    choices: Array
    hazards: Array


class Exact(Completion):
    """Define a recovery condition whose P(τ > t) follows from the hazards of the tasks.

    Attributes:
      rekindled: Whether P(τ > t) has kinks at times where further tasks become
        possible.
      by_task: Whether the hazards of `bounding` are the hazards of the tasks.
    """

    rekindled: ClassVar[bool] = False
    by_task: ClassVar[bool] = False

    @abstractmethod
    def blocks(self, finish: Any, block: np.ndarray) -> Any:
        """Compute when each block is complete, `[..., B]`; inf for never.

        `finish` says when each worker has finished each task, `[..., K, N]`, and
        `block` is the block of each task, `[K]`.
        """

    @abstractmethod
    def late(self, hazard: Array) -> Array:
        """Compute P(τ > t), `[...]`, from hazards, `[..., K]`; inf for unused tasks."""

    @abstractmethod
    def first(self, times: Array) -> Array:
        """Compute the earliest possible τ from the earliest ends of tasks, `[K]`."""

    @abstractmethod
    def bounding(self, hazard: Array) -> Array:
        """Compute the hazards g of `bounds`, `[..., J]`, from hazards of tasks."""

    @abstractmethod
    def tolerated(self, work: Array) -> Array:
        """Return how many workers may never finish; `work`, `[K]`, is 0 if unused."""

    def ended(
        self,
        subset: float,
        passes: Passes | None,
        block: np.ndarray,
        starts: Any,
        times: Any,
    ) -> np.ndarray:
        assert passes is not None
        return self.blocks(passes.finish(starts, times), block).max(axis=-1)

    def bounds(self, work: Array) -> Bounds:
        """Bound P(τ > t) by N e^-g.

        At a low, a typical and a high τ, the mean number of missed subsets or groups is
        8, 0.7 and 0.02.
        """
        log_workers = jnp.log(jnp.asarray(self.num_workers, work.dtype))
        hazards = jnp.maximum(
            log_workers - np.log([8.0, 0.7, 0.02]).astype(work.dtype), 0.02
        )
        choices = jnp.stack([jnp.zeros_like(log_workers), log_workers])
        return Bounds(
            choices, jnp.concatenate([jnp.zeros_like(hazards[:1]), hazards])[:, None]
        )


@pytree_dataclass
class AnyOf(Exact):
    """Define that a task is complete when any N - n workers have finished it.

    N may be traced. Workers store what `on_circle` says, unless a subclass overrides
    `storage`.

    Attributes:
      num_workers: N.
      survives: Straggler tolerance n of each task, `[K]`. Defaults to 0, …, K - 1.
      exact_gradient: Whether the gradient is exact. If not, a task may tolerate more
        stragglers than a code can. A sample is then lost if all workers that store it
        are missing.
    """

    num_workers: ArrayLike
    survives: ArrayLike | None = None
    exact_gradient: bool = static_field(default=True)

    by_task = interchangeable = True
    bound_of = "levels"

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute each level's load: at the last task with at most this tolerance."""
        load = in_order(sizes, tasks, cost)
        data = jnp.asarray(tasks.data)
        if self.survives is None:
            survives = data - 1
        else:
            survives = jnp.asarray(self.survives)
        within_level = survives <= np.arange(cost.num_levels)[:, None]
        task = jnp.max(jnp.where(within_level, np.arange(data.size), -1), axis=1)
        return jax.tree.map(lambda a: jnp.where(task >= 0, a[task], 0), load)

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Compute the runtimes. Workers from `num_workers` on are padding."""
        ready = starts[..., None] + delivered(load, times[..., None], overlap)
        exists = np.arange(times.shape[-1]) < jnp.asarray(self.num_workers)
        ready = jnp.where(exists[:, None], ready, jnp.inf)
        block_times = self.blocks(jnp.swapaxes(ready, -1, -2))
        return jnp.max(jnp.where((load.work > 0) & exists, block_times, 0), axis=-1)

    def passes(self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
        return passes_in_order(sizes, tasks, cost, overlap)

    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        return on_circle(num_workers, self.least_workers(data))

    def least_workers(self, data: np.ndarray) -> int:
        return int(np.max(data, initial=0))

    def fits(self, size: Array, data: Array, num_workers: Array) -> Array | bool:
        return jnp.all((size <= 0) | (data <= num_workers))

    def of_problem(self, num_workers: ArrayLike, max_workers: int) -> "AnyOf":
        return AnyOf(num_workers)

    @property
    def by_level(self) -> bool:  # type: ignore[override]
        return self.survives is None

    def late(self, hazard: Array) -> Array:
        return crossing_probability(hazard, self.num_workers)

    def first(self, times: Array) -> Array:
        return largest(times)

    def blocks(self, finish: Any, block: np.ndarray | None = None) -> Any:
        """Compute when each task, which is its own block, is complete."""
        task = np.arange(finish.shape[-2])
        last: Any = (
            self.num_workers - 1 - (task if self.survives is None else self.survives)
        )
        sort = np.sort if isinstance(finish, np.ndarray) else jnp.sort
        return sort(finish, axis=-1)[..., task, last]

    def awaited(self, data: Any) -> Any:
        xp = jnp if is_traced(self.num_workers) else np
        survives = data - 1 if self.survives is None else self.survives
        return xp.asarray(self.num_workers)[..., None] - xp.asarray(survives)

    def lost(self, data: Any) -> Any:
        """Compute the lost fraction for i.i.d. workers: any s workers may be missing.

        All d workers that store a part of the samples are missing with probability
        C(N-d, s-d) / C(N, s). The fraction is the mean over all parts. The result is
        None if `data` are traced, or if the number of workers is not known and a
        subclass defines `storage`.
        """
        holders = None if is_traced(data) else self._holders(np.asarray(data))
        if holders is None:
            return None
        xp = jnp if is_traced(self) else np
        workers = xp.asarray(self.num_workers)[..., None]
        missing = (workers - self.awaited(data))[..., None]
        share = xp.ones(())
        for i in range(holders.max(initial=0)):
            one_more = xp.maximum(missing - i, 0) / xp.maximum(
                workers[..., None] - i, 1
            )
            share = share * xp.where(i < holders, one_more, 1)
        return xp.mean(share, axis=-1)

    def _holders(self, data: np.ndarray) -> np.ndarray | None:
        """Return how many workers store each part of each task's samples, `[K, P]`."""
        if type(self).storage is AnyOf.storage:
            return data[:, None]
        workers = concrete(self.num_workers)
        if workers is None or np.ndim(workers):
            return None
        of_task = np.diag(data)
        storages = [self.storage(task, int(workers)) for task in of_task]
        return np.array(
            [
                [len(holders) for subset in storage.holders for holders in subset]
                for storage in storages
            ]
        )

    def bounding(self, hazard: Array) -> Array:
        return hazard

    def bounds(self, work: Array) -> Bounds:
        typical = typical_hazards(work, self.num_workers)
        choices = log_choices(work, self.num_workers)
        # P(max ≤ y_n q) ≤ P(T_(N-n) ≤ q) ≤ C(N, n) F(q)^{N-n} for the best n. Nearly
        # deterministic distributions need this bound if their infimum is far below
        # their typical times.
        below = jnp.asarray(self.num_workers, work.dtype) - np.arange(
            work.size, dtype=work.dtype
        )
        log_cdf = (np.log(jnp.finfo(work.dtype).eps / 8) - choices[:-1]) / jnp.maximum(
            below, 1
        )
        earliest = jnp.where(below > 0, -jnp.log1p(-jnp.exp(log_cdf)), 0)
        return Bounds(choices, jnp.concatenate([earliest[None], typical]))

    def tolerated(self, work: Array) -> Array:
        return jnp.argmax(work > 0)


@pytree_dataclass
class FirstHolder(Exact):
    """Define that a subset is complete when one worker that stores it has finished it.

    Task k of worker w is subset w + k of a circle. There is one block.

    Attributes:
      num_workers: N, which may be traced. None until `of_problem` sets it.
      max_workers: Static upper bound on N.
    """

    num_workers: ArrayLike | None
    max_workers: int = static_field(default=0)

    rekindled = True

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute the load. Each subset has its own setup and chain."""
        size = jnp.asarray(sizes)[jnp.asarray(tasks.block)]
        if cost.setup is not None and cost.chain is not None:
            size = size + cost.setup + cost.chain * size
        return Load(jnp.cumsum(size))

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Compute the runtimes. Sending is free, and workers from N on are padding."""
        return circle_runtime(load.work, times, starts, self.num_workers)

    def width(self, load: Load, overlap: bool) -> int:
        return 1

    def passes(self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
        """Return the passes: each task is one pass."""
        xp = jnp if is_traced((self, sizes, tasks, cost)) else np
        end = xp.asarray(self.load(jnp.asarray(sizes), tasks, cost).work)
        return Passes(end[:, None], xp.diff(end, prepend=0)[:, None])

    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        return on_circle(num_workers, data.size)

    def least_workers(self, data: np.ndarray) -> int:
        return data.size

    def of_problem(self, num_workers: ArrayLike, max_workers: int) -> "FirstHolder":
        return replace(self, num_workers=num_workers, max_workers=max_workers)

    def listing(self, block: ArrayLike) -> dict[str, Any]:
        return {"tasks": [[turn, 0] for turn in range(np.size(block))]}

    def late(self, hazard: Array) -> Array:
        assert self.num_workers is not None
        return uncovered(jnp.exp(-hazard), self.num_workers, self.max_workers)

    def first(self, times: Array) -> Array:
        return times[0]

    def blocks(self, finish: Any, block: np.ndarray) -> Any:
        """Compute when the last subset is complete."""
        return soonest_of(finish).max(axis=-1, keepdims=True)

    def bounding(self, hazard: Array) -> Array:
        """Sum the hazards: D neighbours must all be late, so P(τ > t) ≤ N e^{-Σ h}."""
        return jnp.sum(hazard, axis=-1, keepdims=True)

    def tolerated(self, work: Array) -> Array:
        return jnp.asarray(work.size - 1)


@pytree_dataclass
class OneOfEach(Exact):
    """Define that a task is complete when one worker of each group has finished it.

    Each partition of the workers refines the next one. Probabilities depend only on the
    types of groups, so a `tree` is sufficient for them. One program then serves several
    trees.

    Attributes:
      groups: The groups of each task.
      kinds: Kind of each worker. Each kind has its own load, and hazards are
        concatenated by kind, `[..., W K]`. None if all workers have the same load.
      tree: The types of the groups. Defaults to the tree of `groups`.
    """

    groups: Groups = static_field(default=())
    kinds: tuple[int, ...] | None = static_field(default=None)
    tree: Tree | None = None

    bound_of = "groups"

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute the loads of all kinds of workers, concatenated."""
        load = in_order(sizes, tasks, cost)
        kinds = load.work.size // self.num_tasks
        sent = jax.tree.map(lambda a: jnp.tile(a, kinds), load.sent)
        return Load(load.work.ravel(), sent, kinds)

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        ready = starts[..., None] + delivered(load, times[..., None], overlap)
        of_kind = ready.reshape(*times.shape, load.kinds, -1)
        ready = of_kind[..., np.arange(times.shape[-1]), self.kind_of, :]
        used = jnp.any(load.work.reshape(load.kinds, -1) > 0, axis=0)
        return jnp.max(
            jnp.where(used, self.blocks(jnp.swapaxes(ready, -1, -2)), 0), axis=-1
        )

    def passes(self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
        passes = passes_in_order(sizes, tasks, cost, overlap)
        if self.num_kinds == 1:
            return passes
        kind = self.kind_of
        return replace(passes, end=passes.end[:, kind], length=passes.length[:, kind])

    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        stored: list[set[int]] = [set() for _ in range(num_workers)]
        for level in itertools.compress(self.known_groups, data):
            for group, subsets in zip(level, self.data_of(level), strict=True):
                for worker in group:
                    stored[worker].update(subsets)
        return Storage.of_subsets(stored)

    def data_of(
        self, level: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[int, ...], ...]:
        """Return each group's subsets: its workers' subsets, or an equal number."""
        if self.kinds is not None or len(set(map(len, level))) == 1:
            return level
        if self.num_workers % len(level):
            raise ValueError(
                f"{len(level)} groups cannot share {self.num_workers} subsets of the "
                'data equally. Use data="by_size".'
            )
        return tuple(
            map(tuple, np.arange(self.num_workers).reshape(len(level), -1).tolist())
        )

    def least_workers(self, data: np.ndarray) -> int:
        return self.num_workers

    def fits(self, size: Array, data: Array, num_workers: Array) -> Array | bool:
        return num_workers == self.num_workers

    def listing(self, block: ArrayLike) -> dict[str, Any]:
        return {"groups": self.groups}

    def per_worker(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.num_kinds, -1)[self.kind_of]

    def late(self, hazard: Array) -> Array:
        # For each type of group: the probability that an inner task is incomplete, and,
        # for each later task k, the probability that none is incomplete but no worker
        # has finished task k.
        p_undone = jnp.exp(-self._by_kind(hazard))
        p_missing = jnp.zeros_like(p_undone[:, 0])
        *levels, all_of_them = self._tree.held
        for held in levels:
            p_missing, p_undone = _joined(p_missing, p_undone, held)
            p_missing = p_missing + p_undone[:, 0]
            p_undone = p_undone[:, 1:] - p_undone[:, :1]
        return _joined(p_missing, p_undone, all_of_them)[0][0]

    def first(self, times: Array) -> Array:
        tree = self._tree
        member_times = jnp.where(
            tree.members > 0, self._by_kind(times)[:, tree.level].T, jnp.inf
        )
        return largest(jnp.where(tree.number > 0, jnp.min(member_times, axis=-1), 0))

    def blocks(self, finish: Any, block: np.ndarray | None = None) -> Any:
        """Compute when each task, which is its own block, is complete."""
        xp = np if isinstance(finish, np.ndarray) else jnp
        finish = xp.concatenate(
            [finish, xp.full_like(finish[..., :1], np.inf)], axis=-1
        )
        complete = []
        for task, groups in enumerate(self.known_groups):
            # Padding members of a group never finish.
            width = max(map(len, groups))
            members = np.array(
                [(*group, *[-1] * (width - len(group))) for group in groups]
            )
            complete.append(
                finish[..., task, :][..., members].min(axis=-1).max(axis=-1)
            )
        return xp.stack(complete, axis=-1)

    def awaited(self, data: Any) -> Any:
        return self._tree.num_groups

    def bounding(self, hazard: Array) -> Array:
        """Bound P(τ > t) by Σ e^-h over all groups; h sums their workers' hazards."""
        tree = self._tree
        member_hazards = jnp.moveaxis(
            self._by_kind(hazard)[:, tree.level], (0, 1), (-1, -2)
        )
        of_group = jnp.sum(
            jnp.where(tree.members > 0, tree.members * member_hazards, 0), axis=-1
        )
        log_share = jnp.log(tree.number) - jnp.log(tree.num_workers)
        return jnp.min(
            of_group - log_share.astype(hazard.dtype), axis=-1, keepdims=True
        )

    def tolerated(self, work: Array) -> Array:
        tree = self._tree
        used = jnp.any(self._by_kind(work) > 0, axis=0)[tree.level] & (tree.number > 0)
        size = jnp.sum(tree.members, axis=-1)
        return jnp.min(jnp.where(used, size, tree.num_workers)) - 1

    @property
    def num_tasks(self) -> int:
        return len(self._tree.held) - 1

    @property
    def num_workers(self) -> Any:
        return self._tree.num_workers

    @property
    def known_groups(self) -> Groups:
        """The groups. Raise ValueError if only a tree is known."""
        if not self.groups:
            raise ValueError(
                "the number of workers was traced, so this plan does not list the "
                "workers of each group. Solve again with a known number."
            )
        return self.groups

    @property
    def kind_of(self) -> np.ndarray:
        """Kind of each worker."""
        if self.kinds is None:
            return np.zeros(sum(map(len, self.known_groups[0])), int)
        return np.array(self.kinds)

    @property
    def num_kinds(self) -> int:
        return 1 + int(self.kind_of.max())

    @property
    def _tree(self) -> Tree:
        if self.tree is None:
            return tree_of(self.groups, self.kinds)
        return self.tree

    def _by_kind(self, values: Array) -> Array:
        """Reshape values of all kinds' tasks from `[..., W K]` to `[W, K, ...]`."""
        by_task = values.reshape(*values.shape[:-1], -1, self.num_tasks)
        return jnp.moveaxis(by_task, (-2, -1), (0, 1))


def in_order(sizes: Array, tasks: Tasks, cost: Cost) -> Load:
    """Compute the load after each task, `[..., K]`.

    Each task is a block, and its data include the data of the task before.
    """
    data = jnp.asarray(tasks.data)
    size = jnp.asarray(sizes)[jnp.asarray(tasks.block)]
    work = jnp.cumsum(data * size * tasks.share, axis=-1)
    if cost.setup is not None and cost.chain is not None:
        met = jax.lax.cummax(jnp.where(size > 0, data, 0), axis=data.ndim - 1)
        work = work + met * (cost.setup + cost.chain * jnp.cumsum(size))
    return Load(work, None if cost.sent is None else cost.sent * jnp.cumsum(size))


def _joined(p_missing: Array, p_undone: Array, held: Any) -> tuple[Array, Array]:
    """Compute both probabilities of `late` for groups from their inner groups.

    1 - Π (1 - p) is computed as p + q (1 - p), whose terms are positive and derivatives
    finite. The inner groups are selected by products with zeros and ones, because
    indexing and its derivative take four times as long to compile.
    """
    p_within = jnp.concatenate([p_missing[:, None], p_undone], axis=1)
    if held.shape[1] == 1:  # single workers, or one inner group each
        p_within = jnp.broadcast_to(p_within, (len(held), *p_within.shape[1:]))
        return p_within[:, 0], p_within[:, 1:]
    places = (held[..., None] == np.arange(len(p_within))).astype(p_within.dtype)
    p_within = einsum("pcq,qk...->pck...", places, p_within)
    empty = jnp.expand_dims(held == NOBODY, (*range(2, p_within.ndim),))
    p_missing = p_within[:, :, 0]
    p_undone = p_within[:, :, 1:] + empty.astype(p_within.dtype)
    while p_missing.shape[1] > 1:
        p, q = jnp.split(p_missing, 2, axis=1)
        p_missing = p + q * (1 - p)
        first_half, second_half = jnp.split(p_undone, 2, axis=1)
        p_undone = first_half * second_half
    return p_missing[:, 0], p_undone[:, 0]
