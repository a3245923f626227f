r"""When the gradient is there: the three rules of completion, each with its exact probability.

Workers do their tasks in one order, so at any time a worker's state is how many it has finished, and these
numbers are independent. All that a rule needs are their hazards, h_k = -log P(task k is not finished by t).

- `AnyOf`: level n of the gradient with its (N-n)-th delivery, as gradient codes have it.
- `FirstHolder`: each of N subsets with the first who has it; worker w does subsets w, w+1, …, w+D-1 of a
  circle. P(r ≤ δ) of the number r that it has done is e^-h_(δ+1), and subset j is done when some worker j-δ
  has r > δ. Around the circle the cover s that is carried over is a chain: after a worker that did r it is
  max(s, r) - 1, and a subset is missed where both are 0. The trace formula P(τ ≤ t) = tr(A^N) loses a late τ
  to rounding. A miss leaves the chain at 0, so with f_l = P(the first miss after one is l workers on),
  u_m = P(a miss m workers on) = Π_{δ<min(m,D)} P(r ≤ δ), and the arc of l workers between two misses around
  the circle's cut, in positive terms, P(τ > t) = Σ_l l f_l u_{N-l}. f_l is that of a chain of distributions:
  P(max(s, r) ≤ k) = P(s ≤ k) P(r ≤ k), less those with a miss.
- `OneOfEach`: each block with one worker of each group of its partition of the workers, which refines that of
  the next block. With C_v(k) = P(all is there in a group v of block j, and none of its workers has done
  block k), k > j, a worker's own being S_k = e^-h_k,

      C_v(k) = Π C_c(k) - Π C_c(j)   over the groups c of block j-1 within v,

  for in all of them nobody has done block k, but not block j by nobody at all. What is missing adds up in
  positive terms: that something is within, or that nobody has done block j.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import pytree_dataclass, static_field
from bcgc_jax.exact.crossing import crossing_probability
from bcgc_jax.exact.order_statistics import log_choices, typical_hazards
from bcgc_jax.exact.quadrature import largest

# Expected numbers of subsets or groups that are missed, which mark where all are there: low, typical, high.
_MISSED = 8.0, 0.7, 0.02
# Workers from which on powers of the chain's matrix cost less than its steps where D² is no more; nodes at a
# time.
_LONG, _ROWS = 1000, 32


class Bounds(NamedTuple):
    """P(τ > t) ≤ Σ_j exp(choices_j - j g_j) from hazards g, `[..., J]`; j = 1 … J, `choices` `[J + 1]`.

    `marks`, `[4, J]`: hazards g before which no τ is possible, and at a low, a typical and a high one.
    """

    choices: Array
    marks: Array


class Completion:
    """A rule; `hazard` is `[..., K]`, of tasks in order, inf for one that no worker waits for.

    `rekindled` says that P(τ > t) has kinks where more tasks than those of the start become possible;
    `by_task`, that its bounding hazards are those of the tasks.
    """

    rekindled: ClassVar[bool] = False
    exact_gradient: bool = True
    by_task: ClassVar[bool] = False
    num_workers: Any

    def late(self, hazard: Array) -> Array:
        """P(τ > t), `[...]`."""
        raise NotImplementedError

    def first(self, times: Array) -> Array:
        """When all may be there, from when each task may be finished, `[K]`, ascending."""
        raise NotImplementedError

    def blocks(self, finish: Any, block: np.ndarray) -> Any:
        """When each block is there, `[..., B]`, from when each worker has done each task, `[..., K, N]`.

        `block`, `[K]`, is that of each task, of which none is padding. NumPy in, NumPy out; inf for never.
        """
        raise NotImplementedError

    def bounding(self, hazard: Array) -> Array:
        """The hazards g of `Bounds`, `[..., J]`."""
        raise NotImplementedError

    def bounds(self, work: Array) -> Bounds:
        raise NotImplementedError

    def tolerated(self, work: Array) -> Array:
        """How many workers may be late for ever, for tasks of this `work`, `[K]`, 0 before any."""
        raise NotImplementedError


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
        """Each task is a block of its own.

        >>> AnyOf(3).blocks(np.array([[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]])).tolist()
        [4.0, 4.0]
        """
        task = np.arange(finish.shape[-2])
        last: Any = self.num_workers - 1 - (task if self.survives is None else self.survives)
        sort = np.sort if isinstance(finish, np.ndarray) else jnp.sort
        return sort(finish, axis=-1)[..., task, last]

    def bounding(self, hazard: Array) -> Array:
        return hazard

    def bounds(self, work: Array) -> Bounds:
        typical = typical_hazards(work, self.num_workers)
        choices = log_choices(work, self.num_workers)
        # From P(max ≤ y_n q) ≤ P(T_(N-n) ≤ q) ≤ C(N, n) F(q)^{N-n} at the best n: nearly deterministic laws
        # whose infimum is far below their typical times need it.
        below = jnp.asarray(self.num_workers, work.dtype) - np.arange(work.size, dtype=work.dtype)
        log_cdf = (np.log(jnp.finfo(work.dtype).eps / 8) - choices[:-1]) / jnp.maximum(below, 1)
        earliest = jnp.where(below > 0, -jnp.log1p(-jnp.exp(log_cdf)), 0)
        return Bounds(choices, jnp.concatenate([earliest[None], typical]))

    def tolerated(self, work: Array) -> Array:
        return jnp.argmax(work > 0)


@pytree_dataclass
class FirstHolder(Completion):
    """A task of worker w is subset w + `turn` of a circle, there with the first who has done it.

    `late` is of one block, whose turns are 0, 1, … `num_workers` may be traced, up to the static
    `max_workers`, and is None until a problem says it; there are at most as many turns. Workers store
    `stored` subsets.
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
        """With the last of its subsets.

        >>> rule = FirstHolder(2, turn=np.array([0, 1]))
        >>> rule.blocks(np.array([[1.0, 5.0], [2.0, 10.0]]), np.array([0, 0])).tolist()  # one does both
        [2.0]
        """
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

    def bounds(self, work: Array) -> Bounds:
        assert self.num_workers is not None
        return _bounds_of_one(jnp.asarray(self.num_workers, work.dtype))

    def tolerated(self, work: Array) -> Array:
        return jnp.asarray(work.size - 1)


@pytree_dataclass
class OneOfEach(Completion):
    """Task k is there when one worker of each of `groups[k]` has done it: partitions, each within the next.

    >>> halves = OneOfEach(nested_groups((1, 2), 4))
    >>> halves.groups[1]
    ((0, 1), (2, 3))
    """

    groups: tuple[tuple[tuple[int, ...], ...], ...] = static_field()

    def late(self, hazard: Array) -> Array:
        missing: list[Any] = [jnp.zeros_like(hazard[..., 0])]
        nobody = [jnp.exp(-hazard)]
        *levels, roots = _kinds_of(self.groups)
        for kinds in levels:
            found = [_joined(within, missing, nobody) for within in kinds]
            missing = [lost + none[..., 0] for lost, none in found]
            nobody = [none[..., 1:] - none[..., :1] for _, none in found]
        return _joined(roots[0], missing, nobody)[0]

    def first(self, times: Array) -> Array:
        return largest(times)

    def blocks(self, finish: Any, block: np.ndarray | None = None) -> Any:
        """Each task is a block of its own.

        >>> OneOfEach(nested_groups((1, 2), 2)).blocks(np.array([[1.0, 5.0], [2.0, 10.0]])).tolist()
        [5.0, 2.0]
        """
        xp = np if isinstance(finish, np.ndarray) else jnp
        soonest = [
            xp.stack([finish[..., task, list(group)].min(axis=-1) for group in groups], axis=-1)
            for task, groups in enumerate(self.groups)
        ]
        return xp.stack([times.max(axis=-1) for times in soonest], axis=-1)

    def bounding(self, hazard: Array) -> Array:
        """P(τ > t) ≤ Σ_k m_k e^{-g_k h_k} for m_k groups of at least g_k."""
        count = np.array([len(groups) for groups in self.groups], hazard.dtype)
        least = np.array([min(map(len, groups)) for groups in self.groups], hazard.dtype)
        log_share = np.log(count) - np.log(self.num_workers)
        return jnp.min(least * hazard - log_share.astype(hazard.dtype), axis=-1, keepdims=True)

    def bounds(self, work: Array) -> Bounds:
        return _bounds_of_one(jnp.asarray(self.num_workers, work.dtype))

    def tolerated(self, work: Array) -> Array:
        least = jnp.asarray([min(map(len, groups)) for groups in self.groups])
        return jnp.min(jnp.where(work > 0, least, self.num_workers)) - 1

    @property
    def num_workers(self) -> int:
        return sum(map(len, self.groups[0]))


def _bounds_of_one(num_workers: Array) -> Bounds:
    """For P(τ > t) ≤ N e^-g."""
    log_workers = jnp.log(num_workers)
    wanted = jnp.maximum(log_workers - np.log(_MISSED).astype(log_workers.dtype), 0.02)
    choices = jnp.stack([jnp.zeros_like(log_workers), log_workers])
    return Bounds(choices, jnp.concatenate([jnp.zeros_like(wanted[:1]), wanted])[:, None])


def nested_groups(sizes: Sequence[int], num_workers: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Neighbours in groups of each of the sizes, which divide the next one and the last of N."""
    return tuple(
        tuple(tuple(range(first, first + size)) for first in range(0, num_workers, size)) for size in sizes
    )


@functools.cache
def _kinds_of(groups: tuple) -> list[list[dict[int, int]]]:
    """Of each task the kinds of its groups: how many groups of each kind of the task before they hold.

    Workers are of kind 0; at last the groups of the last task, held by one.
    """
    kind_of = {worker: 0 for group in groups[0] for worker in group}
    found = []
    for level in (*groups, (tuple(kind_of),)):
        kinds: dict[tuple[tuple[int, int], ...], int] = {}
        before, kind_of = kind_of, {}
        for group in level:
            held: dict[int, int] = {}
            for member in sorted(set(group) & before.keys()):  # of each group within, its first worker
                held[before[member]] = held.get(before[member], 0) + 1
            kind_of[min(group)] = kinds.setdefault(tuple(sorted(held.items())), len(kinds))
        found.append([dict(kind) for kind in kinds])
    return found


def _joined(within: dict[int, int], missing: Sequence[Array], nobody: Sequence[Array]) -> tuple[Array, Array]:
    """P(something within is missing), and P(nothing is, and nobody has done task k), for tasks to come."""
    lost, none = jnp.zeros_like(missing[0]), jnp.ones_like(nobody[0])
    for kind, count in within.items():
        none = none * nobody[kind] ** count
        lost = lost + (1 - lost) * _any_of(missing[kind], count)
    return lost, none


def _any_of(chance: Array, count: int) -> Array:
    """1 - (1 - p)^count, as p Σ_{i<count} (1 - p)^i, whose terms are positive and slopes finite."""
    rest = jnp.maximum(1 - chance, 0)
    return chance * jnp.sum(rest[..., None] ** np.arange(count), axis=-1)


def uncovered(late: Array, num_workers: ArrayLike, size: int) -> Array:
    """P(some subset is done by nobody), `[...]`, from P(r ≤ δ) for δ = 0…D-1, `[..., D]`.

    `num_workers` may be traced, up to the static `size`; D is at most that number.
    """
    depth, workers = late.shape[-1], jnp.asarray(num_workers, int)
    missed = jnp.concatenate([jnp.ones_like(late[..., :1]), jnp.cumprod(late, axis=-1)], axis=-1)
    if size < max(depth**2, _LONG):
        past = _Past(jnp.ones_like(late), jnp.zeros_like(late[..., 0]), jnp.zeros_like(workers))
        return _last_arcs(late, missed, workers, past, size)
    # Arcs up to N-D have one u: by doubling, and for nodes in turn, for a power of the chain is a matrix.
    rows = late.reshape(-1, depth)
    past = jax.lax.map(lambda row: _doubled(row, workers - depth, size), rows, batch_size=_ROWS)
    past = jax.tree.map(lambda a: a.reshape(late.shape[:-1] + a.shape[1:]), past)
    past = past._replace(miss=past.miss * missed[..., -1], workers=workers - depth)
    return _last_arcs(late, missed, workers, past, depth)


class _Past(NamedTuple):
    """After so many `workers` without a miss: P(that, and the cover is at most 0…D-1), `[..., D]`, and the
    sum Σ l f_l of the arcs before, `[...]`."""

    cover: Array
    miss: Array
    workers: Array


def _last_arcs(late: Array, missed: Array, workers: Array, past: _Past, count: int) -> Array:
    """Σ l f_l u_{N-l} over `count` arcs more than are past."""

    def step(cover: Array, _: None) -> tuple[Array, Array]:
        """One more worker, and the chance of the first miss."""
        reached = cover * late
        miss = reached[..., 0]
        reached = jnp.concatenate([reached[..., 1:], cover[..., -1:]], axis=-1)
        return jnp.maximum(reached - miss[..., None], 0), miss

    _, first_miss = jax.lax.scan(step, past.cover, None, length=count)
    length = past.workers + np.arange(1, count + 1)
    again = jnp.moveaxis(jnp.take(missed, jnp.clip(workers - length, 0, late.shape[-1]), axis=-1), -1, 0)
    weight = jnp.where(length <= workers, length, 0).astype(late.dtype)
    return past.miss + jnp.sum(weight.reshape(-1, *(1,) * (late.ndim - 1)) * first_miss * again, axis=0)


def _doubled(late: Array, count: Array, size: int) -> _Past:
    """The chain past `count` workers from a miss on, by powers of two of its matrix, in positive terms.

    `late`, `[D]`. From cover s to max(s, r) - 1, but for a miss; c and C are what the next L = 2^k workers
    add from each cover on: Σ f and Σ l f, and of twice as many c + P c and C + P (C + L c).
    """
    depth, dtype = late.size, late.dtype
    more = jnp.diff(late, append=1)  # P(r = 1…D)
    cover, reached = np.arange(depth)[:, None], np.arange(1, depth + 1)
    power = jnp.where(reached > cover, more, 0) + jnp.where(reached == cover, late[:, None], 0)
    missing = jnp.zeros(depth, dtype).at[0].set(late[0])
    later = jnp.zeros(depth, dtype)
    at, total, done = jnp.zeros(depth, dtype).at[0].set(1), jnp.zeros((), dtype), jnp.zeros_like(count)

    def double(k: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        power, missing, later, at, total, done = state
        length = jnp.left_shift(jnp.ones_like(count), k)
        used = (count & length) > 0
        total += jnp.where(used, (done + 1).astype(dtype) * (at @ missing) + at @ later, 0)
        at, done = jnp.where(used, at @ power, at), jnp.where(used, done + length, done)
        later, missing = later + power @ (later + length.astype(dtype) * missing), missing + power @ missing
        return power @ power, missing, later, at, total, done

    state = power, missing, later, at, total, done
    with jax.default_matmul_precision("highest"):
        *_, at, total, _ = jax.lax.fori_loop(0, size.bit_length(), double, state)
    return _Past(jnp.cumsum(at), total, count)
