"""Define nested groups of workers for `OneOfEach`, and the types of these groups.

Groups are static and computed once, with NumPy. A `Tree` of their types consists of
arrays. Therefore one program serves several numbers of workers, which may also be
traced.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bcgc_jax._pytree import is_traced

# For each level, from the finest to the coarsest: the groups, as tuples of workers.
Groups = tuple[tuple[tuple[int, ...], ...], ...]


@functools.cache
def halving(num_workers: int) -> Groups:
    """Halve the workers repeatedly, and return the groups, the smallest first.

    >>> [[len(group) for group in level] for level in halving(5)]
    [[1, 1, 1, 1, 1], [1, 1, 1, 2], [2, 3], [5]]
    """
    levels: list[tuple[tuple[int, ...], ...]] = [(tuple(range(num_workers)),)]
    while any(len(group) > 1 for group in levels[-1]):
        cut = [
            (group[: len(group) // 2], group[len(group) // 2 :]) for group in levels[-1]
        ]
        levels.append(tuple(half for halves in cut for half in halves if half))
    return tuple(levels[::-1])


def check_groups(groups: Groups, num_workers: int) -> None:
    """Raise ValueError unless each level is a partition that refines the next level."""
    for level, next_level in zip(
        groups, (*groups[1:], (range(num_workers),)), strict=True
    ):
        if sorted(worker for group in level for worker in group) != list(
            range(num_workers)
        ):
            raise ValueError(
                f"each level must contain the workers 0 to {num_workers - 1} once, got "
                f"{level}"
            )
        if not all(
            any(set(group) <= set(next_group) for next_group in next_level)
            for group in level
        ):
            raise ValueError(
                "each group must be inside a group of the next level, got "
                f"{level} and {next_level}"
            )


@functools.cache
def kinds_by_size(groups: Groups) -> tuple[tuple[int, ...], np.ndarray]:
    """Return each worker's kind, and the sizes of the groups of each kind, `[W, K]`.

    Workers of one kind are in groups of equal sizes.
    """
    sizes = np.zeros((sum(map(len, groups[0])), len(groups)), int)
    for k, level in enumerate(groups):
        for group in level:
            sizes[list(group), k] = len(group)
    of_kind, kinds = np.unique(sizes, axis=0, return_inverse=True)
    return tuple(kinds.ravel().tolist()), of_kind


class Tree(NamedTuple):
    """Describe nested groups by types: groups of a type contain the same inner types.

    Attributes:
      num_workers: N.
      held: For each level, the inner types that a group of each type contains, `[P,
        C]`, with `NOBODY` for padding. Below the first level are the kinds of workers.
        The level above the last one is a single group of all workers. If no group
        contains more than one inner group, types are the same as below.
      members: Number of workers of each kind in each type of all levels, `[J, W]`.
      number: Number of groups of each type, `[J]`; 0 for padding.
    """

    num_workers: Any
    held: tuple[Any, ...]
    members: Any
    number: Any

    @property
    def level(self) -> np.ndarray:
        """Level of each type, `[J]`."""
        return np.repeat(
            np.arange(len(self.held) - 1), [held.shape[-2] for held in self.held[:-1]]
        )

    @property
    def num_groups(self) -> Any:
        """Number of groups at each level, `[K]`."""
        return self.number @ (self.level[:, None] == np.arange(len(self.held) - 1))

    @property
    def of_one_kind(self) -> "Tree":
        """The same groups, of workers of a single kind."""
        first, *coarser_levels = self.held
        held = first * (first == NOBODY), *coarser_levels
        return self._replace(
            held=held, members=self.members.sum(axis=-1, keepdims=True, dtype=np.int32)
        )


# Marks padding.
NOBODY = -1


def _tree_of(
    num_workers: Any, held: Sequence[Any], number: Sequence[Any], kinds: int
) -> Tree:
    xp = jnp if is_traced(number) else np
    of_level = np.eye(kinds, dtype=np.int32)
    members = []
    for types in held[:-1]:
        counts = (types[..., None] == np.arange(len(of_level))).sum(
            axis=1, dtype=np.int32
        )
        of_level = counts @ of_level
        members.append(of_level)
    # With this dtype, the program does not depend on whether JAX has 64 bits enabled.
    number = xp.concatenate(number).astype(np.int32)
    return Tree(num_workers, tuple(held), xp.concatenate(members), number)


@functools.cache
def tree_of(groups: Groups, kinds: tuple[int, ...] | None) -> Tree:
    """Compute the tree of groups. `kinds` defaults to a single kind of workers."""
    workers = sorted(worker for group in groups[0] for worker in group)
    if kinds is None:
        kind_of = dict.fromkeys(workers, 0)
    else:
        kind_of = dict(enumerate(kinds))
    below = dict(kind_of)
    held = []
    number = []
    for level in (*groups, (tuple(workers),)):
        # Inner groups are identified by their first worker.
        group_types = [
            tuple(sorted(below[w] for w in group if w in below)) for group in level
        ]
        types = sorted(set(group_types))
        below = {
            min(group): types.index(group_type)
            for group, group_type in zip(level, group_types, strict=True)
        }
        width = 2 ** (max(map(len, types)) - 1).bit_length()
        full = [(*inner, *[NOBODY] * (width - len(inner))) for inner in types]
        held.append(np.array(full, np.int32))
        number.append(np.bincount([*below.values()]).astype(np.int32))
    return _tree_of(len(workers), held, number[:-1], max(kind_of.values()) + 1)


def halves(num_workers: ArrayLike, max_workers: int) -> tuple[Tree, Any]:
    """Compute the tree of `halving`, and group sizes by kind, `[W, K]`.

    The number of workers may be traced. Shapes are the same for all numbers up to
    `max_workers`, so several of the finest levels may consist of single workers. A kind
    without workers has sizes 0.

    A type is a sequence of group sizes, starting with all workers. The larger half
    takes the place of its parent. The smaller half, if its size differs, comes after
    all larger halves. One of two consecutive sizes is even. Therefore a level has at
    most as many types as the two levels before it.
    """
    xp = jnp if is_traced(num_workers) else np
    size = xp.asarray(num_workers, np.int32)[None]
    path = size[:, None]
    number = xp.ones_like(size)
    numbers = [number]
    held = [np.zeros((1, 1), np.int32)]
    added = 1
    depth = (max_workers - 1).bit_length()
    for level in range(depth):
        width = len(size)
        smaller = size // 2
        unlike = (size % 2 > 0) & (smaller > 0)
        place = np.arange(width)
        smaller_place = xp.where(unlike, width + xp.cumsum(unlike) - 1, place)
        smaller_place = xp.where(smaller > 0, smaller_place, NOBODY)
        held.append(xp.stack([place, smaller_place], 1).astype(np.int32))
        # At the last level, groups have at most two workers, so no type is added.
        new = xp.argsort(~unlike, stable=True)[: 0 if level == depth - 1 else added]
        added = width
        alike = (smaller > 0) & ~unlike
        number = xp.append(number * (1 + alike), (number * unlike)[new])
        size = xp.append(size - smaller, (smaller * unlike)[new])
        path = xp.concatenate([path, path[new] * unlike[new, None]])
        path = xp.concatenate([path, size[:, None]], axis=1)
        numbers.append(number)
    kinds = len(size)
    held.append(np.arange(kinds, dtype=np.int32)[:, None])
    return _tree_of(num_workers, held[::-1], numbers[::-1], kinds), path[:, ::-1]
