r"""The optimal partition for whole steps: a linear program, by a primal-dual interior point method.

With S equally likely rows T_s of times, slowest first, f(x) = Σ_s max_n T_sn y_n(x) / S, so that its least is

    minimise Σ_s θ_s / S   over Σu = 1, u ≥ 0, θ_s ≥ T_sn y_n(u).

Newton's steps along its central path (Wright 1997) cost O(S N² + N³), for the θ_s are eliminated one by one,
and some twenty to ninety do, however many corners there are. Multipliers λ_sn ≥ 0 of sums Σ_n λ_sn = 1/S
bound f from below, f(z) ≥ Σ λ_sn T_sn y_n(z) ≥ min_n ∂/∂z_n: the certificate, whatever their rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import solve_positive
from bcgc_jax.solvers.cutting_plane import CuttingPlaneResult

# Steps keep this share of the way to the boundary; the next barrier, as a share of the present products, is
# what the last step left of the way, within these ends, and no less than this share of the tolerance; the
# most steps: measured are 9 to 50, and 84 for 100 rows of 256 workers.
_TO_BOUNDARY, _LEAST_CENTRING, _MOST_CENTRING, _ENOUGH, MAX_STEPS = 0.995, 0.1, 0.8, 0.3, 200


class _State(NamedTuple):
    """u, θ, multipliers of the rows and of u ≥ 0; the best point and bound; steps; centring."""

    share: Array
    theta: Array
    row: Array
    bound: Array
    best: Array
    best_value: Array
    lower: Array
    steps: Array
    centring: Array


def row_program(
    times: Array, loads: Array, start: Array, levels: Array, tolerance: Array
) -> CuttingPlaneResult:
    """The least mean of max_n times_sn (loads @ u)_n over the unit simplex on `levels`; `times` `[S, N]`.

    `start` must be positive on `levels`. Stops at a relative gap of `tolerance`, or once steps help no more.
    """
    dtype, count = start.dtype, jnp.sum(levels).astype(start.dtype)
    rows = len(times)
    times = times.astype(dtype)
    unit = jnp.mean(jnp.max(times * (loads @ start), axis=1))
    times = times / unit

    def slack(share: Array, theta: Array) -> Array:
        return theta[:, None] - times * (loads @ share)

    def judged(state: _State) -> _State:
        """With the value of its point and the bound of its multipliers."""
        value = jnp.mean(jnp.max(times * (loads @ state.share), axis=1))
        weight = state.row / (rows * jnp.sum(state.row, axis=1, keepdims=True))
        slope = jnp.sum(weight * times, axis=0) @ loads
        lower = jnp.min(jnp.where(levels, slope, jnp.inf))
        better = value < state.best_value
        return state._replace(
            best=jnp.where(better, state.share, state.best),
            best_value=jnp.minimum(value, state.best_value),
            lower=jnp.where(lower > state.lower, lower, state.lower),
        )

    def step(state: _State) -> _State:
        room, safe = slack(state.share, state.theta), jnp.where(levels, state.share, 1)
        given = _Point(times, loads, levels, safe, room, state.row, state.bound)
        matrix, products = _matrix(given), _products(given, room, state.row, safe, state.bound)
        # No smaller than the tolerance asks for: rounding goes with its inverse.
        barrier = jnp.maximum(state.centring * products, _ENOUGH * tolerance) / (state.row.size + count)
        move = _direction(given, matrix, jnp.full_like(room, barrier), jnp.full_like(safe, barrier))
        primal, dual = _lengths(given, move)
        share = jnp.where(levels, state.share + primal * move.share, 0)
        # Rounding moves the sum: θ goes with it, or the room would not be what the step has left.
        total = jnp.sum(share)
        share = share / total
        # Rounding may leave a corner no room: θ follows.
        tight = jnp.max(times * (loads @ share), axis=1) * (1 + 4 * jnp.finfo(dtype).eps)
        new = state._replace(
            share=share,
            theta=jnp.maximum((state.theta + primal * move.theta) / total, tight),
            row=state.row + dual * move.row,
            bound=state.bound + dual * move.bound,
            centring=jnp.clip(1 - jnp.minimum(primal, dual), _LEAST_CENTRING, _MOST_CENTRING),
        )
        good = jnp.all(jnp.isfinite(new.share)) & jnp.all(new.row > 0)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), judged(new), state)
        return kept._replace(steps=jnp.where(good, state.steps + 1, MAX_STEPS))

    def go_on(state: _State) -> Array:
        return (state.steps < MAX_STEPS) & (state.best_value - state.lower > tolerance * state.best_value)

    theta = jnp.max(times * (loads @ start), axis=1) * 1.1
    room = slack(start, theta)
    row = 1 / room
    row = row / (rows * jnp.sum(row, axis=1, keepdims=True))
    bound = jnp.where(levels, jnp.mean(row * room) / jnp.where(levels, start, 1), 0)
    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    first = _State(start, theta, row, bound, start, one + jnp.inf, zero, jnp.asarray(0), one / 2)
    last = jax.lax.while_loop(go_on, step, judged(first))
    return CuttingPlaneResult(last.best, unit * last.best_value, unit * last.lower, last.steps)


class _Point(NamedTuple):
    """What a step goes by."""

    times: Array
    loads: Array
    levels: Array
    share: Array
    room: Array
    row: Array
    bound: Array


class _Move(NamedTuple):
    """Of u, θ, the room below it, and the multipliers."""

    share: Array
    theta: Array
    room: Array
    row: Array
    bound: Array


def _matrix(at: _Point) -> Array:
    """Of Newton's system for u, in shares of u, on the levels alone; the θ_s are eliminated.

    With D the multipliers over the room, each row adds ΣD times the covariance of the vectors T_n e_n under
    the weights D / ΣD. Nearly all weight is in one of them in the end: they are taken from that one, for
    differences of large sums would be left with nothing else.
    """
    ratio = at.row / at.room
    main = jax.nn.one_hot(jnp.argmax(ratio, axis=1), at.share.size, dtype=ratio.dtype)
    others = ratio * (1 - main)
    total, rest = jnp.sum(ratio, axis=1), jnp.sum(others, axis=1)
    main = main * at.times
    steep = others * at.times
    diagonal = jnp.sum(steep * at.times + rest[:, None] * main**2, axis=0)
    cross = steep.T @ main
    mean = (steep - rest[:, None] * main) / jnp.sqrt(total)[:, None]
    of_load = jnp.diag(diagonal) - cross - cross.T - mean.T @ mean
    scaled = (at.loads.T @ of_load @ at.loads) * at.share[:, None] * at.share[None, :]
    eye = jnp.eye(at.share.size, dtype=bool)
    both = at.levels[:, None] & at.levels[None, :]
    # Along u itself f is linear, and Σu fixed: what is added there changes no step, and much of the rounding.
    scaled = scaled + at.share[:, None] * at.share[None, :]
    return jnp.where(both, scaled + jnp.where(eye, at.bound * at.share, 0), eye)


def _direction(at: _Point, matrix: Array, of_rows: Array, of_share: Array) -> _Move:
    """Newton's step to products of these sizes, with Σu as it is."""
    ratio, aim = at.row / at.room, of_rows / at.room
    sums, left = jnp.sum(ratio, axis=1), jnp.sum(aim, axis=1) - 1 / len(at.times)
    slope = (jnp.sum(at.times * aim, axis=0) - (left / sums) @ (ratio * at.times)) @ at.loads
    right = jnp.where(at.levels, of_share - slope * at.share, 0)
    normal = jnp.where(at.levels, at.share, 0)
    solved = solve_positive(matrix, jnp.stack([right, normal], axis=1))
    multiplier = (normal @ solved[:, 0]) / (normal @ solved[:, 1])
    share = jnp.where(at.levels, (solved[:, 0] - multiplier * solved[:, 1]) * at.share, 0)
    later = at.times * (at.loads @ share)
    theta = (left + jnp.sum(ratio * later, axis=1)) / sums
    room = theta[:, None] - later
    bound = jnp.where(at.levels, of_share / at.share - at.bound - at.bound / at.share * share, 0)
    return _Move(share, theta, room, aim - at.row - ratio * room, bound)


def _products(at: _Point, room: Array, row: Array, share: Array, bound: Array) -> Array:
    return jnp.sum(row * room) + jnp.sum(jnp.where(at.levels, bound * share, 0))


def _lengths(at: _Point, move: _Move) -> tuple[Array, Array]:
    """Of the step of u and θ, and of that of the multipliers."""
    primal = jnp.minimum(_length(at.room, move.room), _length(at.share, move.share))
    dual = jnp.minimum(_length(at.row, move.row), _length(jnp.where(at.levels, at.bound, 1), move.bound))
    return primal, dual


def _length(value: Array, move: Array) -> Array:
    """The share of a move that keeps positive values so."""
    fastest = jnp.max(-move / value)
    return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)
