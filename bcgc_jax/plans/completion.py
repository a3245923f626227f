r"""When the gradient is there: the rules of completion.

A rule answers for itself: what a worker has spent after each task, when all is there
for times that are known, who stores what. An `Exact` one also has P(τ > t) in closed
form. Workers do their tasks in one order, so at any time a worker's state is how many
it has finished, and these numbers are independent. The probability needs only their
hazards, h_k = -log P(task k is not finished by t).

- `AnyOf`: level n of the gradient is there with its (N-n)-th delivery, as gradient
  codes have it.
- `FirstHolder`: each of N subsets is there with the first worker that has done it;
  worker w does subsets w, w+1, …, w+D-1 of a circle, and P(r ≤ δ) of the number r that
  it has done is e^-h_(δ+1). Around the circle the number s of subsets ahead that are
  covered is a Markov chain: a worker makes it max(s, r) - 1, and a subset is missed
  where both are 0. A miss leaves the chain at 0, so with f_l = P(the first miss after
  one is l workers on), u_m = P(a miss m workers on) = Π_{δ<min(m,D)} P(r ≤ δ), and the
  arc of l workers between two misses around the circle's cut, P(τ > t) = Σ_l l f_l
  u_{N-l}: positive terms, where P(τ ≤ t) = tr(A^N) of the chain's matrix A loses a late
  τ to rounding.
- `OneOfEach`: each block is there with one worker of each group of its partition of the
  workers, which refines that of the next block. For a group v of block j and k > j let

      C_v(k) = P(all blocks up to j are in v, and none of its workers has done block k).

  One worker alone has C_w(k) = S_k = e^-h_k, and a group v of block j, of the groups c
  of block j-1,

      C_v(k) = Π_{c in v} C_c(k) - Π_{c in v} C_c(j):

  the second product is the case that nobody in v has done block j. At the root nobody
  is asked for a further block: P(τ ≤ t) = Π_c C_c, with S = 1 there. What is missing
  adds up in positive terms.
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
    """A rule of completion, of N workers that do K tasks each, in one order.

    Arrays of NumPy give arrays of NumPy, those of JAX arrays of JAX.

    Attributes:
      num_workers: N; None until a problem says it.
      groups: of each task the groups of workers that compute the same; empty where
        there are none.
      by_level: whether task n is the block at redundancy level n of the paper's scheme.
      interchangeable: whether any worker does as well as another, so that sorted times
        are enough.
      handed_out: whether a step itself decides who does which chunk, so that no task is
        planned.
    """

    num_workers: Any
    groups: Groups = ()
    by_level: bool = False
    interchangeable: ClassVar[bool] = False
    handed_out: ClassVar[bool] = False

    @abstractmethod
    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """What a worker has spent after each task, for blocks of these sizes, `[B]`."""

    @abstractmethod
    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """When the last block is there, `[...]`, from start-ups and cycle times,
        `[..., N]`.

        Those are of all workers. In the unit of `times` and `load`. `overlap`: whether
        sending overlaps computing.
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
        """The same by NumPy, of numbers that are known and workers that all exist.

        `subset` is the load of one; `passes` are those of `passes`, of tasks of each
        `block`.
        """

    def passes(
        self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool
    ) -> Passes | None:
        """What a worker ends once it has begun it, for what `load` is given.

        None where everyone is free when a step ends.
        """
        return None

    @abstractmethod
    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        """Who stores what for tasks on so many subsets, `[K]`; 0 for no task."""

    @abstractmethod
    def least_workers(self, data: np.ndarray) -> int:
        """With fewer workers there is no such plan; `data` as for `storage`."""

    def fits(self, size: Array, data: Array, num_workers: Array) -> Array | bool:
        """Whether workers can do tasks of this size on these subsets, `[K]`."""
        return True

    def of_problem(self, num_workers: ArrayLike, max_workers: int) -> "Completion":
        """The rule for a load of `load` and so many workers, which may be traced."""
        return self

    def awaited(self, data: Any) -> Any:
        """The messages that complete each task, `[K]`; None if the number varies."""
        return None

    def lost(self, data: Any) -> Any:
        """The mean share of each task's samples that no awaited worker stores, `[K]`.

        It is for rules with an inexact gradient. None if it is not known.
        """
        return None

    def listing(self, block: ArrayLike) -> dict[str, Any]:
        """Who does what, for a file; empty if the blocks' sizes say it."""
        return {}

    def per_worker(self, values: np.ndarray) -> np.ndarray:
        """Each worker's values, `[N, K]`, from those of kinds; `[1, K]` if alike."""
        return values.reshape(1, -1)

    def columns(self, scale: Any) -> dict[str, Any]:
        """What this rule alone has to say, with times in a unit of `scale`."""
        return {}

    def width(self, load: Load, overlap: bool) -> int:
        """Numbers that `runtimes` holds for each draw and worker."""
        return load.work.size ** (2 if overlap else 1)


class Bounds(NamedTuple):
    """P(τ > t) ≤ Σ_j exp(choices_j - j g_j) from hazards g, `[..., J]`, for j = 1 … J.

    `choices` is `[J + 1]`. `hazards`, `[4, J]`: those g before which no τ is possible,
    and at a low, a typical and a high one.
    """

    choices: Array
    hazards: Array


class Exact(Completion):
    """A rule whose P(τ > t) is known from the hazards of the tasks.

    Attributes:
      rekindled: whether P(τ > t) has kinks where more tasks than those of the start
        become possible.
      by_task: whether the hazards of `bounding` are those of the tasks.
    """

    rekindled: ClassVar[bool] = False
    by_task: ClassVar[bool] = False

    @abstractmethod
    def blocks(self, finish: Any, block: np.ndarray) -> Any:
        """When each block is there, `[..., B]`, inf for never.

        From when each worker has done each task, `[..., K, N]`, and the block of each
        task, `[K]`.
        """

    @abstractmethod
    def late(self, hazard: Array) -> Array:
        """P(τ > t), `[...]`, from hazards, `[..., K]`; inf for a task of nobody."""

    @abstractmethod
    def first(self, times: Array) -> Array:
        """When all may be there, from the earliest ends of tasks, `[K]`, ascending."""

    @abstractmethod
    def bounding(self, hazard: Array) -> Array:
        """The hazards g of `bounds`, `[..., J]`, from those of the tasks."""

    @abstractmethod
    def tolerated(self, work: Array) -> Array:
        """How many workers may be late for ever, by `work`, `[K]`; 0 before any."""

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
        """P(τ > t) ≤ N e^-g.

        At a low, a typical and a high τ 8, 0.7 and 0.02 subsets or groups are missed on
        average.
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
    """A task is there when any N - n workers have done it, n as it `survives`; N may be
    traced.

    By default task n survives n. With `exact_gradient=False` a task may survive more
    workers than a code can. Samples of which all holders are missing are then lost.
    Workers store what `on_circle` says, unless a subclass has its own `storage`.
    """

    num_workers: ArrayLike
    survives: ArrayLike | None = None
    exact_gradient: bool = static_field(default=True)

    by_task = interchangeable = True
    bound_of = "levels"

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """At each level: of the last task which survives no more."""
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
        """Workers from their number on do not count."""
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
        """Each task is a block of its own."""
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
        """For workers that are independent and alike: any s of them may be missing.

        Of a part of the samples with d holders all are missing with the probability
        C(N-d, s-d) / C(N, s). The share is the mean over all parts. None if `data` are
        traced, or if the `storage` is not known because the number of workers is not.
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
        """How many workers store each part of each task's samples, `[K, P]`."""
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
        # From P(max ≤ y_n q) ≤ P(T_(N-n) ≤ q) ≤ C(N, n) F(q)^{N-n} at the best n:
        # nearly deterministic distributions whose infimum is far below their typical
        # times need it.
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
    """Task k of worker w is subset w + k of a circle; it is there with the first who
    has done it.

    There is one block. `num_workers` may be traced, up to the static `max_workers`, and
    is None until a problem says it.
    """

    num_workers: ArrayLike | None
    max_workers: int = static_field(default=0)

    rekindled = True

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Each subset costs a setup and a chain of its own."""
        size = jnp.asarray(sizes)[jnp.asarray(tasks.block)]
        if cost.setup is not None and cost.chain is not None:
            size = size + cost.setup + cost.chain * size
        return Load(jnp.cumsum(size))

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Sending takes no time, and workers from their number on do not count."""
        return circle_runtime(load.work, times, starts, self.num_workers)

    def width(self, load: Load, overlap: bool) -> int:
        return 1

    def passes(self, sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
        """Each task is one."""
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
        """With the last of the subsets."""
        return soonest_of(finish).max(axis=-1, keepdims=True)

    def bounding(self, hazard: Array) -> Array:
        """D neighbours are all late: P(τ > t) ≤ N e^{-Σ h}."""
        return jnp.sum(hazard, axis=-1, keepdims=True)

    def tolerated(self, work: Array) -> Array:
        return jnp.asarray(work.size - 1)


@pytree_dataclass
class OneOfEach(Exact):
    """Task k is there when one worker of each group of `groups[k]` has done it.

    Each partition is within the next.

    Workers of different `kinds` have loads of their own: hazards are then those of the
    first kind's tasks, of the second's, …, `[..., W K]`. Probabilities need the types
    of groups alone: a `tree` is enough for them, and one program serves several of
    them.
    """

    groups: Groups = static_field(default=())
    kinds: tuple[int, ...] | None = static_field(default=None)
    tree: Tree | None = None

    bound_of = "groups"

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Of the tasks of the first kind of workers, of the second, …"""
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
        """The subsets of each group: its workers' own, or equal numbers of them."""
        if self.kinds is not None or len(set(map(len, level))) == 1:
            return level
        if self.num_workers % len(level):
            raise ValueError(
                f"{len(level)} groups cannot share {self.num_workers} subsets of the "
                "data equally: "
                'take data="by_size"'
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
        # Two probabilities of each type of group: a task within is missing; none is,
        # but nobody has done task k, of those to come.
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
        """Each task is a block of its own."""
        xp = np if isinstance(finish, np.ndarray) else jnp
        finish = xp.concatenate(
            [finish, xp.full_like(finish[..., :1], np.inf)], axis=-1
        )
        complete = []
        for task, groups in enumerate(self.known_groups):
            # Beyond the members of a group nobody ever finishes.
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
        """P(τ > t) ≤ Σ e^-h over all groups, h the sum of their workers' hazards."""
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
        """The same; ValueError where there is a tree alone."""
        if not self.groups:
            raise ValueError(
                "the number of workers was traced, so this plan does not say who is in "
                "which group: solve again with a number that is known"
            )
        return self.groups

    @property
    def kind_of(self) -> np.ndarray:
        """Of each worker."""
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
        """Values of each kind's tasks, from `[..., W K]` to `[W, K, ...]`."""
        by_task = values.reshape(*values.shape[:-1], -1, self.num_tasks)
        return jnp.moveaxis(by_task, (-2, -1), (0, 1))


def in_order(sizes: Array, tasks: Tasks, cost: Cost) -> Load:
    """Load of tasks, a block each, with all data of the task before, `[..., K]`."""
    data = jnp.asarray(tasks.data)
    size = jnp.asarray(sizes)[jnp.asarray(tasks.block)]
    work = jnp.cumsum(data * size * tasks.share, axis=-1)
    if cost.setup is not None and cost.chain is not None:
        met = jax.lax.cummax(jnp.where(size > 0, data, 0), axis=data.ndim - 1)
        work = work + met * (cost.setup + cost.chain * jnp.cumsum(size))
    return Load(work, None if cost.sent is None else cost.sent * jnp.cumsum(size))


def _joined(p_missing: Array, p_undone: Array, held: Any) -> tuple[Array, Array]:
    """Both probabilities of `late` for groups, from the groups within, which `held`
    lists.

    1 - Π (1 - p) by p + q (1 - p), whose terms are positive and slopes finite. What is
    held comes by a product with zeros and ones: indices, and their slopes, are compiled
    four times as long.
    """
    p_within = jnp.concatenate([p_missing[:, None], p_undone], axis=1)
    if held.shape[1] == 1:  # those within, of one kind or one by one
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
