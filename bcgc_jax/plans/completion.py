r"""When the gradient is there: the three rules of completion, each with its exact probability.

Workers do their tasks in one order, so at any time a worker's state is how many it has finished, and these
numbers are independent. A rule needs only their hazards, h_k = -log P(task k is not finished by t).

- `AnyOf`: level n of the gradient is there with its (N-n)-th delivery, as gradient codes have it.
- `FirstHolder`: each of N subsets is there with the first worker that has done it; worker w does subsets w,
  w+1, …, w+D-1 of a circle, and P(r ≤ δ) of the number r that it has done is e^-h_(δ+1). Around the circle
  the number s of subsets ahead that are covered is a Markov chain: a worker makes it max(s, r) - 1, and a
  subset is missed where both are 0. A miss leaves the chain at 0, so with f_l = P(the first miss after one is
  l workers on), u_m = P(a miss m workers on) = Π_{δ<min(m,D)} P(r ≤ δ), and the arc of l workers between two
  misses around the circle's cut, P(τ > t) = Σ_l l f_l u_{N-l}: positive terms, where P(τ ≤ t) = tr(A^N) of
  the chain's matrix A loses a late τ to rounding.
- `OneOfEach`: each block is there with one worker of each group of its partition of the workers, which
  refines that of the next block. With C_v(k) = P(all is there in a group v of block j, and none of its
  workers has done block k), k > j, a worker's own being S_k = e^-h_k, C_v(k) = Π C_c(k) - Π C_c(j) over the
  groups c of block j-1 within v: in all of them nobody has done block k, but not block j by nobody at all.
  What is missing adds up in positive terms.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import is_traced, pytree_dataclass, static_field
from bcgc_jax.exact.crossing import crossing_probability
from bcgc_jax.exact.order_statistics import log_choices, typical_hazards
from bcgc_jax.exact.quadrature import largest
from bcgc_jax.plans.groups import Groups, Tree, tree_of


class Bounds(NamedTuple):
    """P(τ > t) ≤ Σ_j exp(choices_j - j g_j) from hazards g, `[..., J]`; j = 1 … J, `choices` `[J + 1]`.

    `marks`, `[4, J]`: hazards g before which no τ is possible, and at a low, a typical and a high one.
    """

    choices: Array
    marks: Array


class Completion:
    """A rule of completion.

    - `late(hazard)`: P(τ > t), `[...]`, from hazards `[..., K]` of tasks in order, inf for one that no worker
      waits for.
    - `first(times)`: when all may be there, from when each task may be finished, `[K]`, ascending.
    - `blocks(finish, block)`: when each block is there, `[..., B]`, from when each worker has done each task,
      `[..., K, N]`, and the block of each task, `[K]`. NumPy in, NumPy out; inf for never.
    - `bounding(hazard)`: the hazards g of its `bounds(work)`, `[..., J]`; `by_task`: those of the tasks.
    - `tolerated(work)`: how many workers may be late for ever, for tasks of this `work`, `[K]`, 0 before any.

    `rekindled` says that P(τ > t) has kinks where more tasks than those of the start become possible.
    """

    rekindled: ClassVar[bool] = False
    by_task: ClassVar[bool] = False
    exact_gradient: bool = True
    num_workers: Any
    late: Callable[..., Array]
    first: Callable[..., Array]
    blocks: Callable[..., Any]
    bounding: Callable[..., Array]
    tolerated: Callable[..., Array]

    def awaited(self, data: Any) -> Any:
        """How many messages of each task complete it, `[K]`, of tasks on this `data`; None if it varies."""
        return None

    def bounds(self, work: Array) -> Bounds:
        """For P(τ > t) ≤ N e^-g. 8, 0.7 and 0.02 subsets or groups missed on average mark the times of τ."""
        log_workers = jnp.log(jnp.asarray(self.num_workers, work.dtype))
        wanted = jnp.maximum(log_workers - np.log([8.0, 0.7, 0.02]).astype(work.dtype), 0.02)
        choices = jnp.stack([jnp.zeros_like(log_workers), log_workers])
        return Bounds(choices, jnp.concatenate([jnp.zeros_like(wanted[:1]), wanted])[:, None])


@pytree_dataclass
class AnyOf(Completion):
    """A task is there when any N - n workers have done it, n as it `survives`; N may be traced.

    By default task n survives n. Workers whose data are left out make the gradient inexact.
    """

    num_workers: ArrayLike
    survives: ArrayLike | None = None
    exact_gradient: bool = static_field(default=True)

    by_task = True

    def late(self, hazard: Array) -> Array:
        return crossing_probability(hazard, self.num_workers)

    def first(self, times: Array) -> Array:
        return largest(times)

    def blocks(self, finish: Any, block: np.ndarray | None = None) -> Any:
        """Each task is a block of its own."""
        task = np.arange(finish.shape[-2])
        last: Any = self.num_workers - 1 - (task if self.survives is None else self.survives)
        sort = np.sort if isinstance(finish, np.ndarray) else jnp.sort
        return sort(finish, axis=-1)[..., task, last]

    def awaited(self, data: Any) -> Any:
        xp = jnp if is_traced(self.num_workers) else np
        survives = data - 1 if self.survives is None else self.survives
        return xp.asarray(self.num_workers)[..., None] - xp.asarray(survives)

    def bounding(self, hazard: Array) -> Array:
        return hazard

    def bounds(self, work: Array) -> Bounds:
        typical = typical_hazards(work, self.num_workers)
        choices = log_choices(work, self.num_workers)
        # From P(max ≤ y_n q) ≤ P(T_(N-n) ≤ q) ≤ C(N, n) F(q)^{N-n} at the best n: nearly deterministic
        # distributions whose infimum is far below their typical times need it.
        below = jnp.asarray(self.num_workers, work.dtype) - np.arange(work.size, dtype=work.dtype)
        log_cdf = (np.log(jnp.finfo(work.dtype).eps / 8) - choices[:-1]) / jnp.maximum(below, 1)
        earliest = jnp.where(below > 0, -jnp.log1p(-jnp.exp(log_cdf)), 0)
        return Bounds(choices, jnp.concatenate([earliest[None], typical]))

    def tolerated(self, work: Array) -> Array:
        return jnp.argmax(work > 0)


@pytree_dataclass
class FirstHolder(Completion):
    """A task of worker w is subset w + `turn` of a circle, there with the first who has done it.

    `late` is of one block, whose turns are 0, 1, …, at most N. `num_workers` may be traced, up to the static
    `max_workers`, and is None until a problem says it. Workers store `stored` subsets.
    """

    num_workers: ArrayLike | None
    max_workers: int = static_field(default=0)
    turn: Array | None = None
    stored: int = static_field(default=0)

    rekindled = True

    def late(self, hazard: Array) -> Array:
        assert self.num_workers is not None
        return uncovered(jnp.exp(-hazard), self.num_workers, self.max_workers)

    def first(self, times: Array) -> Array:
        return times[0]

    def blocks(self, finish: Any, block: np.ndarray) -> Any:
        """With the last of its subsets."""
        return self.subsets(finish, block).max(axis=-1)

    def subsets(self, finish: Any, block: np.ndarray) -> Any:
        """When each subset of each block is there, `[..., B, N]`."""
        known, workers = isinstance(finish, np.ndarray), finish.shape[-1]
        xp, shape = np if known else jnp, (*finish.shape[:-2], int(block.max()) + 1, workers)
        assert self.turn is not None
        worker = (np.arange(workers) - np.asarray(self.turn)[:, None]) % workers
        own = xp.take_along_axis(finish, worker.reshape((1,) * (finish.ndim - 2) + worker.shape), axis=-1)
        if not known:
            return jnp.full(shape, jnp.inf, finish.dtype).at[..., block, :].min(own)
        soonest = np.full(shape, np.inf)
        for task, b in enumerate(block):
            np.minimum(soonest[..., b, :], own[..., task, :], out=soonest[..., b, :])
        return soonest

    def bounding(self, hazard: Array) -> Array:
        """D neighbours are all late: P(τ > t) ≤ N e^{-Σ h}."""
        return jnp.sum(hazard, axis=-1, keepdims=True)

    def tolerated(self, work: Array) -> Array:
        return jnp.asarray(work.size - 1)


@pytree_dataclass
class OneOfEach(Completion):
    """Task k is there when one worker of each of `groups[k]` has done it: partitions, each within the next.

    Workers of different `kinds` have loads of their own: hazards are then those of the first kind's tasks,
    of the second's, …, `[..., W K]`.
    """

    groups: Groups = static_field()
    kinds: tuple[int, ...] | None = static_field(default=None)

    def late(self, hazard: Array) -> Array:
        late = jnp.moveaxis(jnp.exp(-self._by_kind(hazard)), (-2, -1), (0, 1))
        # Of each type: something within is missing; nothing is, and nobody has done task k, of those to come.
        found: list[tuple[Any, Array]] = [(0.0, own[0]) for own in jnp.split(late, self.num_kinds)]
        *levels, all_of_them = self._tree.levels
        for level in levels:
            joined = [_joined(held, found) for held in level]
            parts = [(missing, *jnp.split(nobody, [1])) for missing, nobody in joined]
            found = [(missing + now, later - now) for missing, now, later in parts]
        return _joined(all_of_them[0], found)[0][0]

    def first(self, times: Array) -> Array:
        tree = self._tree
        own = jnp.moveaxis(self._by_kind(times)[..., tree.task], -2, -1)
        return largest(jnp.min(jnp.where(tree.members > 0, own, jnp.inf), axis=-1))

    def blocks(self, finish: Any, block: np.ndarray | None = None) -> Any:
        """Each task is a block of its own."""
        xp = np if isinstance(finish, np.ndarray) else jnp
        finish = xp.concatenate([finish, xp.full_like(finish[..., :1], np.inf)], axis=-1)
        found = []
        for task, groups in enumerate(self.groups):
            width = max(map(len, groups))  # beyond the members of a group nobody ever finishes
            members = np.array([(*group, *[-1] * (width - len(group))) for group in groups])
            found.append(finish[..., task, :][..., members].min(axis=-1).max(axis=-1))
        return xp.stack(found, axis=-1)

    def awaited(self, data: Any) -> Any:
        return np.array([len(groups) for groups in self.groups])

    def bounding(self, hazard: Array) -> Array:
        """P(τ > t) ≤ Σ e^-h over all groups, h the sum of their workers' hazards."""
        tree = self._tree
        own = jnp.moveaxis(self._by_kind(hazard)[..., tree.task], -2, -1)
        of_group = jnp.sum(jnp.where(tree.members > 0, tree.members * own, 0), axis=-1)
        log_share = np.log(tree.number) - np.log(self.num_workers)
        return jnp.min(of_group - log_share.astype(hazard.dtype), axis=-1, keepdims=True)

    def tolerated(self, work: Array) -> Array:
        used = jnp.any(self._by_kind(work) > 0, axis=-2)
        least = np.array([min(map(len, groups)) for groups in self.groups])
        return jnp.min(jnp.where(used, least, self.num_workers)) - 1

    @property
    def rekindled(self) -> bool:  # type: ignore[override]
        """Workers of unlike loads may first finish a task at unlike times."""
        return self.num_kinds > 1

    @property
    def num_workers(self) -> int:
        return sum(map(len, self.groups[0]))

    @property
    def kind_of(self) -> np.ndarray:
        """Of each worker."""
        return np.zeros(self.num_workers, int) if self.kinds is None else np.array(self.kinds)

    @property
    def num_kinds(self) -> int:
        return 1 + int(self.kind_of.max())

    @property
    def _tree(self) -> Tree:
        return tree_of(self.groups, self.kinds)

    def _by_kind(self, values: Array) -> Array:
        """`[..., W, K]`."""
        return values.reshape(*values.shape[:-1], self.num_kinds, len(self.groups))


def _joined(held: Sequence[tuple[int, int]], found: Sequence[tuple[Any, Array]]) -> tuple[Any, Any]:
    """Both probabilities of a group that holds so many of these types.

    1 - Π (1 - p) by p + q (1 - p), whose terms are positive and slopes finite; of equal ones by doubling.
    """
    missing: Any = 0.0
    nobody: Any = 1.0
    for kind, count in held:
        lost, none = found[kind]
        nobody = nobody * none**count
        while count:
            if count % 2:
                missing = missing + lost * (1 - missing)
            lost, count = lost * (2 - lost), count // 2
    return missing, nobody


def uncovered(late: Array, num_workers: ArrayLike, size: int) -> Array:
    """P(some subset is done by nobody), `[...]`, from P(r ≤ δ) for δ = 0…D-1 < N ≤ `size`, `[..., D]`."""
    workers = jnp.asarray(num_workers, int)
    missed = jnp.concatenate([jnp.ones_like(late[..., :1]), jnp.cumprod(late, axis=-1)], axis=-1)

    def step(cover: Array, _: None) -> tuple[Array, Array]:
        """P(no miss yet, and the cover is at most 0…D-1) after one more worker; P(the first miss is now)."""
        reached = cover * late
        miss = reached[..., 0]
        reached = jnp.concatenate([reached[..., 1:], cover[..., -1:]], axis=-1)
        return jnp.maximum(reached - miss[..., None], 0), miss

    _, first_miss = jax.lax.scan(step, jnp.ones_like(late), None, length=size)
    length = np.arange(1, size + 1)
    again = jnp.moveaxis(jnp.take(missed, jnp.clip(workers - length, 0, late.shape[-1]), axis=-1), -1, 0)
    weight = jnp.where(length <= workers, length, 0).astype(late.dtype)
    return jnp.sum(weight.reshape(-1, *(1,) * (late.ndim - 1)) * first_miss * again, axis=0)
