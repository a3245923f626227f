r"""The slope of a mean of runtimes that jump, as those of work sharing do.

Where two workers become free at the same time, chunks change hands, and a draw's
runtime jumps. Its own derivative does not see the jump. The mean over draws has a slope
all the same: it moves as more draws jump. So each draw's times are moved at random,
forth and back, and the difference of its two runtimes tells of the slope in all times
at once (simultaneous perturbation, Spall 1992). Two things are exact in each draw: a
runtime scales with all times, and is as much later as all workers begin.

What comes out is the slope of the mean of times that are spread a little more. Moves
are a share of the spread that the times have, so where they have a density this hardly
matters. Of atoms it is the slope over such a move, not that of a single step of a
staircase.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._derivatives import without_derivative

# Times are moved by this share of the workers' mean deviation. A larger share has less
# noise and more bias: 0.1 and 0.3 are as good.
_SHARE = 0.2
# The least move, in shares of a time. Single precision resolves it.
_LEAST = 1e-3
# What is added to each time before that share is taken, in typical times: or else the
# slope in a time near 0 is all noise.
_ADDED = 0.3

# From starts and seconds, `[..., N]`, and a round trip to when each step ends, `[...]`,
# and more.
Steps = Callable[[Array, Array, Array], tuple[Array, Any]]


class _Slopes(NamedTuple):
    """Slopes of a step's end in its times, `[..., N]`, `[..., N]`, `[...]`."""

    starts: Array
    seconds: Array
    round_trip: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def with_mean_slope(
    steps: Steps, starts: Array, seconds: Array, round_trip: Array
) -> tuple[Array, Any]:
    """`steps` of these; their ends have slopes that are right on average over draws.

    Second derivatives, and those of all else that `steps` returns, are NaN.
    """
    return steps(starts, seconds, round_trip)


@with_mean_slope.defjvp
def _with_mean_slope_jvp(steps, primals, tangents):
    end, extras = with_mean_slope(steps, *primals)
    slopes = _slopes(steps, end, *primals)
    slopes = jax.tree.map(lambda a: a * _undifferentiable_one(primals), slopes)
    of_starts, of_seconds, of_round_trip = tangents
    slope = jnp.sum(slopes.starts * of_starts + slopes.seconds * of_seconds, axis=-1)
    unknown = jax.jvp(
        lambda *arguments: without_derivative(extras, arguments), primals, tangents
    )[1]
    return (end, extras), (slope + slopes.round_trip * of_round_trip, unknown)


def _slopes(
    steps: Steps, end: Array, starts: Array, seconds: Array, round_trip: Array
) -> _Slopes:
    """From two more runtimes of each draw."""
    workers = seconds.shape[-1]
    typical = jnp.mean(workers / jnp.sum(1 / seconds, axis=-1))
    mean = jnp.mean(seconds, axis=-1, keepdims=True)
    share = jnp.maximum(_SHARE * jnp.mean(jnp.abs(seconds - mean) / mean), _LEAST)
    apart = jnp.mean(jnp.abs(starts - jnp.mean(starts, axis=-1, keepdims=True)))
    size = seconds + _ADDED * typical
    draws = seconds.shape[:-1]
    signs = _balanced(3, seconds.shape, seconds.dtype)
    moves = (
        _SHARE * apart * signs[0],
        share * size * signs[1],
        share * (round_trip + typical) * jnp.where(signs[2, ..., 0] < 0, -1, 1),
    )
    point = starts, seconds, jnp.broadcast_to(round_trip, draws)
    forth, back = (
        tuple(
            jnp.maximum(a + way * move, 0) for a, move in zip(point, moves, strict=True)
        )
        for way in (1, -1)
    )
    forth_and_back = [jnp.stack(pair) for pair in zip(forth, back, strict=True)]
    ends = jax.vmap(lambda *arguments: steps(*arguments)[0])(*forth_and_back)
    later = ends[0] - ends[1]
    # A mean square of the signs below 1 makes up for their sum of 0.
    raw = _Slopes(
        starts=_ratio(later[..., None] * signs[0] ** 2, forth[0] - back[0]),
        seconds=_ratio(later[..., None] * signs[1] ** 2, forth[1] - back[1]),
        round_trip=_ratio(later, forth[2] - back[2]),
    )
    # As much later as all begin.
    of_starts = raw.starts + (1 - jnp.sum(raw.starts, axis=-1, keepdims=True)) / workers
    # Euler's identity: the runtime is homogeneous in all times.
    remainder = end - jnp.sum(of_starts * starts + raw.seconds * seconds, axis=-1)
    remainder = (remainder - raw.round_trip * round_trip)[..., None]
    weight = 1 / size
    of_seconds = raw.seconds + remainder * weight / jnp.sum(
        weight * seconds, axis=-1, keepdims=True
    )
    return _Slopes(of_starts, of_seconds, raw.round_trip)


def _undifferentiable_one(primals: tuple[Array, ...]) -> Array:
    """1, with NaN for a derivative.

    Loops within a program forget the rule of `without_derivative` in second
    derivatives.
    """
    return 1 + jnp.sqrt(sum(jnp.sum(0 * a) for a in primals))


def _balanced(count: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Half up, half down, in random order, `[count, ..., N]`; their sum is 0, their
    squares' N - 1.

    They are the same always, as signs that no draw knows.
    """
    workers = shape[-1]
    sign = np.where(np.arange(workers) < workers // 2, 1.0, -1.0)
    sign = sign - sign.mean()
    sign *= np.sqrt((workers - 1) / max(np.sum(sign**2), 1))
    # The barrier keeps the compiler from drawing them.
    data = jax.lax.optimization_barrier(jax.random.key_data(jax.random.key(0)))
    order = jax.random.uniform(jax.random.wrap_key_data(data), (count, *shape))
    return jnp.asarray(sign, dtype)[jnp.argsort(order, axis=-1)]


def _ratio(part: Array, whole: Array) -> Array:
    """Their ratio, 0 for what was not moved."""
    moved = whole != 0
    return jnp.where(moved, part / jnp.where(moved, whole, 1), 0)
