r"""Pattern search: minimise a function of a few shares without derivatives.

The function may be a step function (Torczon 1997). The search runs from many points. A
round tries to move some share from one level to another, or some of the work up to the
end of a level. Each move is tried at 1, 1/2, 1/4, … of its largest length. The best
points continue in the next round. Of several points with the same value only one
continues, because they probably lie on the same step.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.solvers.search import Optimum, local_optimum

# Number of points at the start.
_POINTS = 1024
# Number of points that a round keeps. Of four problems of measured times, one has a P
# that is 0.009 lower with 24 points. With 96 points, another P is 4e-4 higher, and
# rounds take twice as long.
_KEPT = 48
# Number of lengths at which a move is tried.
_HALVINGS = 16
# Number of values that are computed together, which bounds memory.
_TOGETHER = 256
# Smaller shares are set to 0, because a level with a tiny share can still have a cost.
_LEAST = 1e-6


# Points, their values, the rounds so far, and whether the last round improved a value.
_State = tuple[Array, Array, Array, Array]


def pattern_search(
    function: Callable[[Array], Array],
    start: Array,
    directions: ArrayLike,
    *,
    max_steps: int,
) -> Optimum:
    """Minimise `function` locally over shares u ≥ 0, Σu = 1, `[K]`.

    The result is never worse than `start`. `directions`, `[D, K]`, are from `moves`.
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
    """Improve points by moves, and keep the best P of them in each round.

    It has CONVERGED when no move improves any of the points kept.

    Args:
      function: Function to minimise.
      points: First points, `[P, K]`.
      values: Values at the points, `[P]`. A value may be inf if `moved` returns the
        point again.
      moved: Function that returns all moved points.
      max_steps: Maximum number of rounds.
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
    """Evaluate the function at each point."""
    # The points are padded, because an incomplete batch would be compiled separately.
    filled = jnp.pad(points, [(0, -len(points) % _TOGETHER), (0, 0)], mode="edge")
    return jax.lax.map(function, filled, batch_size=_TOGETHER)[: len(points)]


def _best(points: Array, values: Array, kept: int) -> tuple[Array, Array]:
    """Return the best points and their values, ascending, with one point per value."""
    order = jnp.argsort(values)
    values = values[order]
    repeated = jnp.append(False, values[1:] == values[:-1])
    values, chosen = jax.lax.top_k(-jnp.where(repeated, jnp.inf, values), kept)
    return points[order[chosen]], -values


def without_least(
    function: Callable[[Array], Array], point: Array, largest: ArrayLike
) -> Array:
    """Remove small shares if the value without them is at most `largest`."""
    alone = np.eye(point.size, dtype=bool)
    values = jax.lax.map(function, jnp.where(alone, 0, point) / (1 - point)[:, None])
    kept = (point > _LEAST) | (values > largest)
    point = jnp.where(kept, point, 0)
    return point / jnp.sum(point)


def _shares(points: Array) -> Array:
    points = jnp.where(points > _LEAST, points, 0)
    return points / jnp.sum(points, axis=-1, keepdims=True)


def moves(work: np.ndarray) -> np.ndarray:
    """Return the directions of a search, `[D, K]`; `work` is per share of a level."""
    size = len(work)
    share = np.eye(size)
    # A level gains as much work as the next level loses, so that only the work at the
    # end of this level increases.
    end = (share - np.eye(size, k=1)) / work
    total = np.sum(end, axis=1, keepdims=True)
    end = end / np.where(total > 0, total, 1)
    source, target = np.nonzero(share == 0)
    return np.concatenate([share[target] - share[source], end[target] - end[source]])


@functools.cache
def _points(size: int) -> np.ndarray:
    """Return single levels and random shares, `[_POINTS - 1, size]`."""
    rng = np.random.default_rng(0)
    shape = (4 * _POINTS, size)
    draws = rng.exponential(size=shape) * (rng.random(shape) < 0.7)
    points = np.concatenate([np.eye(size), draws[np.any(draws > 0, axis=1)]])[
        : _POINTS - 1
    ]
    return points / points.sum(axis=1, keepdims=True)
