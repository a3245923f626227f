r"""A local minimum of a function of a few shares that has steps or is flat: no slope is
asked for.

A pattern search (Torczon 1997) from many points at once. A round tries moves of a share
from one level to another, and of the work at the end of one level to that of another,
by 1, 1/2, 1/4, … of what is possible. The best points go on to the next round. Of
points with one value only one does: they lie on one step.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.solvers.search import Optimum, local_optimum

# Points at the start.
_POINTS = 1024
# The best points, which a round keeps. With 24 P of one of four problems of measured
# times is 0.009 lower; with 96 that of another is 4e-4 higher, and rounds take twice as
# long.
_KEPT = 48
# How often a move is halved.
_HALVINGS = 16
# Values that are computed together, for memory.
_TOGETHER = 256
# A smaller share is 0: a level that is hardly there may cost as much as one that is.
_LEAST = 1e-6


# Points, their values, the rounds so far, and whether the last one was better.
_State = tuple[Array, Array, Array, Array]


def pattern_search(
    function: Callable[[Array], Array],
    start: Array,
    directions: ArrayLike,
    *,
    max_steps: int,
) -> Optimum:
    """A local minimum of `function` over shares u ≥ 0, Σu = 1, `[K]`; never above that
    at `start`.

    `directions`, `[D, K]`, are those of `moves`.
    """
    directions = jnp.asarray(directions, start.dtype)
    halves = 0.5 ** np.arange(_HALVINGS, dtype=start.dtype)

    def moved(points: Array) -> Array:
        shrinks = directions < 0
        room = points[:, None] / jnp.where(shrinks, -directions, 1)
        longest = jnp.min(jnp.where(shrinks, room, jnp.inf), axis=-1)
        step = longest[..., None] * directions
        tried = points[:, None, None] + halves[:, None] * step[:, :, None]
        return _shares(tried).reshape(-1, start.size)

    first = jnp.concatenate([start[None], _points(start.size).astype(start.dtype)])
    begin = _best(first, values_at(function, first), _KEPT)
    return best_by_moves(function, *begin, moved, max_steps=max_steps)


def best_by_moves(
    function: Callable[[Array], Array],
    points: Array,
    values: Array,
    moved: Callable[[Array], Array],
    *,
    max_steps: int,
) -> Optimum:
    """The best of `points`, `[P, K]`, and of all that are `moved` from the P best in
    each round.

    `values` are those at the points, `[P]`; inf where they are to be asked for among
    the moved. CONVERGED: no move is better from any of the points kept.
    """

    def round_(state: _State) -> _State:
        points, values, steps, _ = state
        moved_points = moved(points)
        all_values = jnp.concatenate([values, values_at(function, moved_points)])
        best, least = _best(
            jnp.concatenate([points, moved_points]), all_values, values.size
        )
        return best, least, steps + 1, jnp.any(least < values)

    def go_on(state: _State) -> Array:
        *_, steps, better = state
        return better & (steps < max_steps)

    begin = points, values, jnp.asarray(0), jnp.asarray(True)
    points, values, steps, better = jax.lax.while_loop(go_on, round_, begin)
    return local_optimum(points[0], values[0], ~better, steps)


def values_at(function: Callable[[Array], Array], points: Array) -> Array:
    """The function at each of the points."""
    # Filled up: the rest of the last part would be compiled once more.
    filled = jnp.pad(points, [(0, -len(points) % _TOGETHER), (0, 0)], mode="edge")
    return jax.lax.map(function, filled, batch_size=_TOGETHER)[: len(points)]


def _best(points: Array, values: Array, kept: int) -> tuple[Array, Array]:
    """The best points in ascending order, with their values, one for each value."""
    order = jnp.argsort(values)
    values = values[order]
    repeated = jnp.append(False, values[1:] == values[:-1])
    values, chosen = jax.lax.top_k(-jnp.where(repeated, jnp.inf, values), kept)
    return points[order[chosen]], -values


def without_least(
    function: Callable[[Array], Array], point: Array, largest: ArrayLike
) -> Array:
    """The point without small shares that no value above `largest` needs, `[K]`."""
    alone = np.eye(point.size, dtype=bool)
    values = jax.lax.map(function, jnp.where(alone, 0, point) / (1 - point)[:, None])
    kept = (point > _LEAST) | (values > largest)
    point = jnp.where(kept, point, 0)
    return point / jnp.sum(point)


def _shares(points: Array) -> Array:
    points = jnp.where(points > _LEAST, points, 0)
    return points / jnp.sum(points, axis=-1, keepdims=True)


def moves(work: np.ndarray) -> np.ndarray:
    """The directions of a search, `[D, K]`; `work` is in a unit of levels' shares."""
    size = len(work)
    share = np.eye(size)
    # What more a level gets the next one loses, so that the work at the end of the one
    # alone rises.
    end = (share - np.eye(size, k=1)) / work
    total = np.sum(end, axis=1, keepdims=True)
    end = end / np.where(total > 0, total, 1)
    source, target = np.nonzero(share == 0)
    return np.concatenate([share[target] - share[source], end[target] - end[source]])


@functools.cache
def _points(size: int) -> np.ndarray:
    """Each level alone, and draws of shares, `[_POINTS - 1, size]`."""
    rng = np.random.default_rng(0)
    shape = (4 * _POINTS, size)
    draws = rng.exponential(size=shape) * (rng.random(shape) < 0.7)
    points = np.concatenate([np.eye(size), draws[np.any(draws > 0, axis=1)]])[
        : _POINTS - 1
    ]
    return points / points.sum(axis=1, keepdims=True)
