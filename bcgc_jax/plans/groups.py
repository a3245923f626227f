"""Groups of workers, each partition within the next, for `OneOfEach`, and who is alike.

All of this is static: it follows from the number of workers alone, and is worked out once, by
NumPy.
"""

import collections
import functools
from typing import NamedTuple

import numpy as np

# Of each level, from the finest to the coarsest, the groups; of each group its workers.
Groups = tuple[tuple[tuple[int, ...], ...], ...]


@functools.cache
def halving(num_workers: int) -> Groups:
    """All workers, halves of them, halves of these, until each is alone: from singles to all.

    >>> [[len(group) for group in level] for level in halving(5)]
    [[1, 1, 1, 1, 1], [1, 1, 1, 2], [2, 3], [5]]
    """
    levels: list[tuple[tuple[int, ...], ...]] = [(tuple(range(num_workers)),)]
    while any(len(group) > 1 for group in levels[-1]):
        cut = [(group[: len(group) // 2], group[len(group) // 2 :]) for group in levels[-1]]
        levels.append(tuple(half for halves in cut for half in halves if half))
    return tuple(levels[::-1])


def check_groups(groups: Groups, num_workers: int) -> None:
    """ValueError unless each level has each worker once, in groups within the next level's."""
    for level, next_level in zip(groups, (*groups[1:], (range(num_workers),)), strict=True):
        if sorted(worker for group in level for worker in group) != list(range(num_workers)):
            raise ValueError(
                f"each level must have the workers 0 to {num_workers - 1}, got {level}"
            )
        if not all(any(set(group) <= set(other) for other in next_level) for group in level):
            raise ValueError(
                f"groups must lie within those of the next level, got {level} and {next_level}"
            )


@functools.cache
def kinds_by_size(groups: Groups) -> tuple[tuple[int, ...], np.ndarray]:
    """The kind of each worker, alike in groups of the same sizes, and these sizes, `[W, K]`."""
    sizes = np.zeros((sum(map(len, groups[0])), len(groups)), int)
    for k, level in enumerate(groups):
        for group in level:
            sizes[list(group), k] = len(group)
    found, kinds = np.unique(sizes, axis=0, return_inverse=True)
    return tuple(kinds.ravel().tolist()), found


class Tree(NamedTuple):
    """Groups by their types: groups of one type hold as many of each type of the level below.

    Attributes:
      levels: of each level and type the types of the level below that a group holds, and how many
        of each; below the first level are the kinds of workers, and the last is of one type, all of
        the workers.
      task, members, number: of each type of all levels its level, `[J]`, its workers of each kind,
        `[J, W]`, and how many groups there are of it, `[J]`.
    """

    levels: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    task: np.ndarray
    members: np.ndarray
    number: np.ndarray


@functools.cache
def tree_of(groups: Groups, kinds: tuple[int, ...] | None) -> Tree:
    """Of workers of these kinds; all alike by default."""
    workers = sorted(worker for group in groups[0] for worker in group)
    kind_of = dict.fromkeys(workers, 0) if kinds is None else dict(enumerate(kinds))
    below = dict(kind_of)
    num_kinds = max(kind_of.values()) + 1
    levels = []
    of_types = []
    for k, level in enumerate((*groups, (tuple(workers),))):
        types: dict[tuple[tuple[int, int], ...], int] = {}
        before = below
        below = {}
        for group in level:  # of each group within, its first worker
            held = collections.Counter(before[worker] for worker in group if worker in before)
            below[min(group)] = kind = types.setdefault(tuple(sorted(held.items())), len(types))
            if k < len(groups):
                members = np.bincount([kind_of[worker] for worker in group], minlength=num_kinds)
                of_types.append((k, kind, *members))
        levels.append(tuple(types))
    found, number = np.unique(np.array(of_types), axis=0, return_counts=True)
    # Of 32 bits: an index of 64 is lowered wrong where they are not enabled.
    return Tree(tuple(levels), found[:, 0].astype(np.int32), found[:, 2:], number)
