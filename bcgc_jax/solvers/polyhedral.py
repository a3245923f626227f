r"""The least of a convex homogeneous f that is polyhedral, or whose Hessian is not known.

By cuts, for laws of atoms, links, and more. Every slope g_i met so far bounds f everywhere, f(z) ≥ g_i·z, and
so does every average of them: f(z) ≥ L min_n Σ_i λ_i g_in. The next point is one of the central path of

    minimise θ   over Σu = 1, u ≥ 0, θ ≥ g_i·u,

at a barrier μ that follows the gap (a primal-dual cutting plane method: Goffin, Haurie & Vial 1992, Gondzio
et al. 1996). The multipliers λ of Newton's step there give the bound. New cuts only raise θ, so the last
point stays feasible.

For whole steps as a linear program, by a primal-dual interior point method. With S equally likely rows T_s of
times, slowest first, f(x) = Σ_s max_n T_sn y_n(x) / S, so that its least is

    minimise Σ_s θ_s / S   over Σu = 1, u ≥ 0, θ_s ≥ T_sn y_n(u).

Newton's steps along its central path (Wright 1997) cost O(S N² + N³), for the θ_s are eliminated one by one,
and some twenty to ninety do, however many corners there are. Multipliers λ_sn ≥ 0 of sums Σ_n λ_sn = 1/S
bound f from below, f(z) ≥ Σ λ_sn T_sn y_n(z) ≥ min_n ∂/∂z_n: the certificate, whatever their rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import solve_positive
from bcgc_jax.solvers.newton import step_length

# The barrier, as a share of the gap that it would leave by itself. Of 0.02 to 2, 0.9 takes the fewest cuts
# for empirical laws (105 with 100 atoms at N = 20; 0.2 takes 287), and twice the fewest for two speeds.
_CENTRALITY = 0.9
# Newton's decrement at which a centre is good enough, and the most steps to it.
_CENTRED, _MAX_CENTRING = 0.3, 30
# The next barrier, as a share of the present products, is what the last step left of the way, within these
# ends, and no less than this share of the tolerance; the most steps: measured are 9 to 50, and 84 for 100
# rows of 256 workers.
_LEAST_CENTRING, _MOST_CENTRING, _ENOUGH, _MAX_STEPS = 0.1, 0.8, 0.3, 200


class PolyhedralResult(NamedTuple):
    """Best point of the unit simplex, its value, the best bound, and the number of cuts or steps."""

    share: Array
    value: Array
    lower_bound: Array
    num_steps: Array


class _Cuts(NamedTuple):
    num_cuts: Array
    cuts: Array
    share: Array
    best: Array
    best_value: Array
    lower: Array


def cutting_plane(
    evaluate: Callable[[Array], tuple[Array, Array]],
    start: Array,
    levels: Array,
    *,
    tolerance: Array,
    max_cuts: int,
) -> PolyhedralResult:
    """Minimise a convex homogeneous function over the unit simplex on `levels`, from its (value, slope).

    `start` must be positive on `levels`. Stops at a relative gap of `tolerance`; `max_cuts` is static.
    """
    dtype = start.dtype
    count = jnp.sum(levels).astype(dtype)

    unit, _ = evaluate(start)

    def step(state: _Cuts) -> _Cuts:
        value, slope = jax.tree.map(lambda a: a / unit, evaluate(state.share))
        cuts = state.cuts.at[state.num_cuts].set(jnp.where(levels, slope, 0))
        better = value < state.best_value
        best, best_value = jnp.where(better, state.share, state.best), jnp.minimum(value, state.best_value)
        used = jnp.arange(max_cuts) <= state.num_cuts
        # A cut's own bound, min_n g_n, starts the gap.
        lower = jnp.maximum(state.lower, jnp.min(jnp.where(levels, slope, jnp.inf)))
        gap = best_value - lower
        rows = state.num_cuts + 1 + count
        barrier = _CENTRALITY * jnp.maximum(gap, tolerance * best_value) / rows
        share, average = _centre(cuts, used, levels, state.share, barrier)
        bound = jnp.min(jnp.where(levels, average, jnp.inf))
        return _Cuts(state.num_cuts + 1, cuts, share, best, best_value, jnp.maximum(lower, bound))

    def go_on(state: _Cuts) -> Array:
        open_ = (state.num_cuts == 0) | (state.best_value - state.lower > tolerance * state.best_value)
        return (state.num_cuts < max_cuts) & open_

    nothing = jnp.zeros((), dtype)
    first = _Cuts(
        jnp.asarray(0),
        jnp.zeros((max_cuts, start.size), dtype),
        start,
        start,
        nothing + jnp.inf,
        nothing,
    )
    last = jax.lax.while_loop(go_on, step, first)
    return PolyhedralResult(last.best, unit * last.best_value, unit * last.lower, last.num_cuts)


def _centre(cuts: Array, used: Array, levels: Array, share: Array, barrier: Array) -> tuple[Array, Array]:
    """The point of the central path at `barrier`, from `share`, and the average of the cuts there.

    Newton's method on θ/μ - Σ log(θ - g_i·u) - Σ log u, Σu = 1, in the scaled u.
    """
    size, num_cuts = share.size, len(cuts)
    row = jnp.concatenate([-cuts, jnp.ones((num_cuts, 1), cuts.dtype)], axis=1)
    row = jnp.where(used[:, None], row, 0)

    def slack(u: Array, theta: Array) -> Array:
        left = row[:, size] * theta + row[:, :size] @ u
        return jnp.where(used, left, 1)

    def newton(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        u, theta, last_weight, _, i = carry
        s = slack(u, theta)
        safe = jnp.where(levels, u, 1)
        scale = jnp.append(safe, barrier)  # θ moves by multiples of μ
        # The step keeps Σu: what all entries of a row have in common would only be rounding.
        centred = jnp.concatenate([row[:, :size] - (row[:, :size] @ u)[:, None], row[:, size:]], axis=1)
        scaled = centred / s[:, None] * scale
        gradient = -jnp.sum(scaled, axis=0) + jnp.append(jnp.where(levels, -1, 0), 1)
        hessian = scaled.T @ scaled + jnp.diag(jnp.append(jnp.ones_like(u), 0))
        both = jnp.append(levels, True)
        hessian = jnp.where(both[:, None] & both[None, :], hessian, jnp.eye(size + 1, dtype=u.dtype))
        normal = jnp.append(jnp.where(levels, safe, 0), 0)
        move = _solve_across(hessian, jnp.where(both, -gradient, 0), normal)
        decrement = jnp.sqrt(jnp.maximum(move @ hessian @ move, 0))
        direction = jnp.where(both, move * scale, 0)
        # Self-concordance: this step stays inside.
        length = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
        # To first order, so that they meet the condition of the path exactly; positive for a decrement < 1.
        weight = jnp.where(used, (1 - scaled @ move) / s, 0)
        new = (u + length * direction[:-1], theta + length * direction[-1], weight, decrement)
        # Where rounding has spoilt the system, the last point and its weights stand: any average is a bound.
        inside = jnp.all(slack(*new[:2]) > 0) & jnp.all(~levels | (new[0] > 0))
        good = jnp.isfinite(decrement) & inside
        kept = (u, theta, last_weight, jnp.zeros_like(decrement))
        return (*(jnp.where(good, a, b) for a, b in zip(new, kept, strict=True)), i + 1)

    def go_on(carry: tuple[Array, ...]) -> Array:
        return (carry[3] > _CENTRED) & (carry[4] < _MAX_CENTRING)

    theta = jnp.max(jnp.where(used, cuts @ share, -jnp.inf)) + barrier
    far = jnp.asarray(jnp.inf, share.dtype)
    carry: tuple[Array, ...] = (share, theta, jnp.zeros_like(row[:, 0]), far, jnp.asarray(0))
    share, _, weight, _, _ = jax.lax.while_loop(go_on, newton, carry)
    share = jnp.where(levels, share, 0) / jnp.sum(jnp.where(levels, share, 0))
    # So what rounding makes negative may go.
    weight = jnp.maximum(weight, 0)
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(share.dtype).tiny)
    return share, weight @ cuts / total


def _solve_across(matrix: Array, right: Array, normal: Array) -> Array:
    """Newton's step that keeps the sum which `normal` is of."""
    step, back = solve_positive(matrix, jnp.stack([right, normal], axis=1)).T
    return step - (normal @ step) / (normal @ back) * back


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
) -> PolyhedralResult:
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
        products = jnp.sum(state.row * room) + jnp.sum(jnp.where(levels, state.bound * safe, 0))
        # No smaller than the tolerance asks for: rounding goes with its inverse.
        barrier = jnp.maximum(state.centring * products, _ENOUGH * tolerance) / (state.row.size + count)
        move = _direction(given, barrier)
        primal = jnp.minimum(step_length(room, move.room), step_length(safe, move.share))
        dual = jnp.minimum(step_length(state.row, move.row), step_length(state.bound, move.bound, levels))
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
        return kept._replace(steps=jnp.where(good, state.steps + 1, _MAX_STEPS))

    def go_on(state: _State) -> Array:
        return (state.steps < _MAX_STEPS) & (state.best_value - state.lower > tolerance * state.best_value)

    theta = jnp.max(times * (loads @ start), axis=1) * 1.1
    room = slack(start, theta)
    row = 1 / room
    row = row / (rows * jnp.sum(row, axis=1, keepdims=True))
    bound = jnp.where(levels, jnp.mean(row * room) / jnp.where(levels, start, 1), 0)
    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    first = _State(start, theta, row, bound, start, one + jnp.inf, zero, jnp.asarray(0), one / 2)
    last = jax.lax.while_loop(go_on, step, judged(first))
    return PolyhedralResult(last.best, unit * last.best_value, unit * last.lower, last.steps)


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


def _direction(at: _Point, barrier: Array) -> _Move:
    """Newton's step to products of the size of the barrier, with Σu as it is."""
    ratio, aim = at.row / at.room, barrier / at.room
    sums, left = jnp.sum(ratio, axis=1), jnp.sum(aim, axis=1) - 1 / len(at.times)
    slope = (jnp.sum(at.times * aim, axis=0) - (left / sums) @ (ratio * at.times)) @ at.loads
    right = jnp.where(at.levels, barrier - slope * at.share, 0)
    normal = jnp.where(at.levels, at.share, 0)
    share = jnp.where(at.levels, _solve_across(_matrix(at), right, normal) * at.share, 0)
    later = at.times * (at.loads @ share)
    theta = (left + jnp.sum(ratio * later, axis=1)) / sums
    room = theta[:, None] - later
    bound = jnp.where(at.levels, barrier / at.share - at.bound - at.bound / at.share * share, 0)
    return _Move(share, theta, room, aim - at.row - ratio * room, bound)
