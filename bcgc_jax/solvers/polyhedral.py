r"""The least of a convex homogeneous f that is polyhedral, or whose Hessian is not
known.

By cuts, for atoms, links, and more. Every slope g_i met so far bounds f everywhere,
f(z) ≥ g_i·z, and so does every average of them: f(z) ≥ L min_n Σ_i λ_i g_in. The next
point is one of the central path of

    minimise θ   over Σu = 1, u ≥ 0, θ ≥ g_i·u,

at a barrier μ that follows the gap (a primal-dual cutting plane method: Goffin, Haurie
& Vial 1992, Gondzio et al. 1996). The multipliers λ of Newton's step there give the
bound. New cuts only raise θ, so the last point stays feasible.

For whole steps as a linear program, by a primal-dual interior point method. With S
equally likely rows T_s of times, slowest first, f(x) = Σ_s max_n T_sn y_n(x) / S, so
that its least is

    minimise Σ_s θ_s / S   over Σu = 1, u ≥ 0, θ_s ≥ T_sn y_n(u).

Newton's steps along its central path (Wright 1997) cost O(S N² + N³), as the θ_s are
eliminated one by one, and some twenty to ninety do. Multipliers λ_sn ≥ 0 of sums Σ_n
λ_sn = 1/S bound f from below, f(z) ≥ Σ λ_sn T_sn y_n(z) ≥ min_n ∂/∂z_n: the
certificate, whatever their rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import dot, solve_positive
from bcgc_jax.solvers.newton import step_length
from bcgc_jax.solvers.search import Optimum, choose, status_of

_MAX_CUTS = 500
_MAX_STEPS = 200


class Cuts(NamedTuple):
    """Points of cuts, `[K, N]`, and weights of their slopes in the mean that bounds f,
    `[K]`.
    """

    points: Array
    weights: Array


class _Search(NamedTuple):
    """The slopes met so far, `[K, N]`, their points and weights, and the next point,
    `share`.
    """

    num_cuts: Array
    slopes: Array
    cuts: Cuts
    share: Array
    best: Array
    best_value: Array
    lower: Array


def cutting_plane(
    evaluate: Callable[[Array], tuple[Array, Array]],
    start: Array,
    levels: Array,
    tolerance: Array,
) -> Optimum:
    """Minimise a convex homogeneous function over the unit simplex on `levels`.

    `evaluate` gives its value and slope. `start` must be positive on `levels`. Stops at
    a relative gap of `tolerance`. Steps are cuts, and `aux` of the optimum is `Cuts`.
    """
    dtype = start.dtype
    count = jnp.sum(levels).astype(start.dtype)
    unit, _ = evaluate(start)

    def least(slope: Array) -> Array:
        return jnp.min(jnp.where(levels, slope, jnp.inf))

    def step(state: _Search) -> _Search:
        value, slope = jax.tree.map(lambda a: a / unit, evaluate(state.share))
        slopes = state.slopes.at[state.num_cuts].set(jnp.where(levels, slope, 0))
        better = value < state.best_value
        best = jnp.where(better, state.share, state.best)
        best_value = jnp.minimum(value, state.best_value)
        # A cut's own bound, min_n g_n, starts the gap.
        lower = jnp.maximum(state.lower, least(slope))
        gap = jnp.maximum(best_value - lower, tolerance * best_value)
        rows = state.num_cuts + 1 + count
        used = jnp.arange(_MAX_CUTS) <= state.num_cuts
        # The barrier that would leave nine tenths of the gap: of 0.02 to 2 this takes
        # the fewest cuts for measured times (105 with 100 atoms at N = 20; 0.2 takes
        # 287), and twice the fewest for two speeds.
        share, weights = _centre(slopes, used, levels, state.share, 0.9 * gap / rows)
        bound = least(dot(weights, slopes))
        weights = jnp.where(bound > state.lower, weights, state.cuts.weights)
        points = state.cuts.points.at[state.num_cuts].set(state.share)
        return _Search(
            num_cuts=state.num_cuts + 1,
            slopes=slopes,
            cuts=Cuts(points, weights),
            share=share,
            best=best,
            best_value=best_value,
            lower=jnp.maximum(lower, bound),
        )

    def go_on(state: _Search) -> Array:
        wide = state.best_value - state.lower > tolerance * state.best_value
        return (state.num_cuts < _MAX_CUTS) & ((state.num_cuts == 0) | wide)

    no_slopes = jnp.zeros((_MAX_CUTS, start.size), dtype)
    zero = jnp.zeros((), dtype)
    first = _Search(
        num_cuts=jnp.asarray(0),
        slopes=no_slopes,
        cuts=Cuts(no_slopes, no_slopes[:, 0]),
        share=start,
        best=start,
        best_value=zero + jnp.inf,
        lower=zero,
    )
    last = jax.lax.while_loop(go_on, step, first)
    numbers = unit * last.best_value, unit * last.lower
    return _certified(last.best, *numbers, tolerance, last.num_cuts, last.cuts)


def _certified(
    point: Array,
    value: Array,
    bound: Array,
    tolerance: Array,
    steps: Array,
    aux: Cuts | Array,
) -> Optimum:
    met = value - bound <= tolerance * value
    return Optimum(
        point, value, jnp.zeros_like(value), bound, status_of(met), steps, aux
    )


class _Centre(NamedTuple):
    """z = (u, θ) and the weights of the cuts there; how far from the path, and the
    steps so far.
    """

    z: Array
    weight: Array
    decrement: Array
    steps: Array


def _centre(
    slopes: Array, used: Array, levels: Array, share: Array, barrier: Array
) -> tuple[Array, Array]:
    """The point of the central path at `barrier`, from `share`, and the weights of the
    cuts there.

    Newton's method on θ/μ - Σ log(θ - g_i·u) - Σ log u, Σu = 1, in z = (u, θ), scaled
    by u and by μ.
    """
    row = jnp.where(
        used[:, None], jnp.pad(-slopes, [(0, 0), (0, 1)], constant_values=1), 0
    )
    free = jnp.append(levels, True)
    of_share = jnp.append(levels, False)
    eye = jnp.eye(free.size, dtype=share.dtype)

    def newton(centre: _Centre) -> _Centre:
        z = centre.z
        room = jnp.where(used, dot(row, z), 1)
        scale = jnp.where(of_share, z, 1).at[-1].set(barrier)
        # The step keeps Σu: what all entries of a row have in common would only be
        # rounding.
        centred = row.at[:, :-1].add(-dot(row[:, :-1], z[:-1])[:, None])
        scaled = centred / room[:, None] * scale
        right = jnp.sum(scaled, axis=0) + jnp.where(of_share, 1, -1)
        hessian = dot(scaled.T, scaled) + jnp.where(of_share, eye, 0)
        hessian = jnp.where(free[:, None] & free, hessian, eye)
        move = _solve_across(
            hessian, jnp.where(free, right, 0), jnp.where(of_share, scale, 0)
        )
        decrement = jnp.sqrt(jnp.maximum(dot(move, hessian, move), 0))
        # Self-concordance: this step stays inside.
        length = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
        moved = z + length * jnp.where(free, move * scale, 0)
        # The weights are those to first order: they meet the condition of the path
        # exactly, and are positive for a decrement < 1.
        weight = jnp.where(used, (1 - dot(scaled, move)) / room, 0)
        # Where rounding has spoilt the system, the last point and its weights stand:
        # any average is a bound.
        inside = jnp.all(~used | (dot(row, moved) > 0)) & jnp.all(
            ~of_share | (moved > 0)
        )
        good = jnp.isfinite(decrement) & inside
        return _Centre(
            z=jnp.where(good, moved, z),
            weight=jnp.where(good, weight, centre.weight),
            decrement=jnp.where(good, decrement, 0 * decrement),
            steps=centre.steps + 1,
        )

    def go_on(centre: _Centre) -> Array:
        # A bound needs no better centre than a decrement of 0.3.
        return (centre.decrement > 0.3) & (centre.steps < 30)

    theta = jnp.max(jnp.where(used, dot(slopes, share), -jnp.inf)) + barrier
    first = _Centre(
        z=jnp.append(share, theta),
        weight=0 * row[:, 0],
        decrement=jnp.inf + 0 * theta,
        steps=jnp.asarray(0),
    )
    last = jax.lax.while_loop(go_on, newton, first)
    share = jnp.where(levels, last.z[:-1], 0)
    # So what rounding makes negative may go.
    weight = jnp.maximum(last.weight, 0)
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(share.dtype).tiny)
    return share / jnp.sum(share), weight / total


def _solve_across(matrix: Array, right: Array, normal: Array) -> Array:
    """Newton's step that keeps the sum which `normal` is of."""
    step, back = solve_positive(matrix, jnp.stack([right, normal], axis=1)).T
    return step - dot(normal, step) / dot(normal, back) * back


class _State(NamedTuple):
    """u, θ, the multipliers of the rows and of u ≥ 0, and the best point and bound so
    far.
    """

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
) -> Optimum:
    """The least mean over s of max_n times_sn (loads @ u)_n over the unit simplex on
    `levels`.

    `times` is `[S, N]`. Stops at a relative gap of `tolerance`, or once steps help no
    more. `aux` has the multipliers, `[S, N]`, of each row's sum 1/S.
    """
    dtype = start.dtype
    rows = len(times)
    count = jnp.sum(levels).astype(start.dtype)
    times = times.astype(dtype)
    unit = jnp.mean(jnp.max(times * dot(loads, start), axis=1))
    times = times / unit

    def finish(share: Array) -> Array:
        """The time at which each row ends, `[S]`."""
        return jnp.max(times * dot(loads, share), axis=1)

    def weights(state: _State) -> Array:
        return state.row / (rows * jnp.sum(state.row, axis=1, keepdims=True))

    def judged(state: _State) -> _State:
        """The state with the value of its point and the bound of its multipliers."""
        value = jnp.mean(finish(state.share))
        slope = dot(jnp.sum(weights(state) * times, axis=0), loads)
        lower = jnp.min(jnp.where(levels, slope, jnp.inf))
        return state._replace(
            best=jnp.where(value < state.best_value, state.share, state.best),
            best_value=jnp.minimum(value, state.best_value),
            lower=jnp.where(lower > state.lower, lower, state.lower),
        )

    def step(state: _State) -> _State:
        room = _room(times, loads, state.share, state.theta)
        safe = jnp.where(levels, state.share, 1)
        products = jnp.sum(state.row * room) + jnp.sum(
            jnp.where(levels, state.bound * safe, 0)
        )
        # No smaller than the tolerance asks for: rounding goes with its inverse.
        barrier = jnp.maximum(state.centring * products, 0.3 * tolerance) / (
            state.row.size + count
        )
        move, of_room = _direction(times, loads, levels, state, room, barrier)
        primal = jnp.minimum(step_length(room, of_room), step_length(safe, move.share))
        of_bound = step_length(state.bound, move.bound, levels)
        dual = jnp.minimum(step_length(state.row, move.row), of_bound)
        share = jnp.where(levels, state.share + primal * move.share, 0)
        # Rounding moves the sum: θ goes with it, or the room would not be what the step
        # has left.
        total = jnp.sum(share)
        share = share / total
        # Rounding may leave a corner no room: θ follows.
        tight = finish(share) * (1 + 4 * jnp.finfo(dtype).eps)
        new = state._replace(
            share=share,
            theta=jnp.maximum((state.theta + primal * move.theta) / total, tight),
            row=state.row + dual * move.row,
            bound=state.bound + dual * move.bound,
            # The next barrier leaves of the products what this step left of the way.
            centring=jnp.clip(1 - jnp.minimum(primal, dual), 0.1, 0.8),
            steps=state.steps + 1,
        )
        good = jnp.all(jnp.isfinite(new.share)) & jnp.all(new.row > 0)
        ended = state._replace(steps=jnp.full_like(state.steps, _MAX_STEPS))
        return choose(good, judged(new), ended)

    def go_on(state: _State) -> Array:
        wide = state.best_value - state.lower > tolerance * state.best_value
        return (state.steps < _MAX_STEPS) & wide

    first = _first(times, loads, start, levels, finish(start) * 1.1)
    last = jax.lax.while_loop(go_on, step, judged(first))
    numbers = unit * last.best_value, unit * last.lower
    return _certified(last.best, *numbers, tolerance, last.steps, weights(last))


def _first(
    times: Array, loads: Array, start: Array, levels: Array, theta: Array
) -> _State:
    """The state at `start`, where each row ends before θ."""
    room = _room(times, loads, start, theta)
    row = 1 / (room * len(times) * jnp.sum(1 / room, axis=1, keepdims=True))
    unity = jnp.ones((), start.dtype)
    return _State(
        share=start,
        theta=theta,
        row=row,
        bound=jnp.where(levels, jnp.mean(row * room) / jnp.where(levels, start, 1), 0),
        best=start,
        best_value=unity + jnp.inf,
        lower=0 * unity,
        steps=jnp.asarray(0),
        centring=unity / 2,
    )


def _room(times: Array, loads: Array, share: Array, theta: Array) -> Array:
    return theta[:, None] - times * dot(loads, share)


def _direction(
    times: Array,
    loads: Array,
    levels: Array,
    state: _State,
    room: Array,
    barrier: Array,
) -> tuple[_State, Array]:
    """Newton's step to products of the size of the barrier, and that of the room below
    θ.

    Σu stays as it is. In shares of u; the θ_s are eliminated. With D, the multipliers
    over the room, each row adds ΣD times the covariance of the vectors T_n e_n under
    the weights D / ΣD.
    """
    safe = jnp.where(levels, state.share, 1)
    ratio = state.row / room
    aim = barrier / room
    sums = jnp.sum(ratio, axis=1)
    left = jnp.sum(aim, axis=1) - 1 / len(times)
    # Nearly all weight is in one vector in the end: covariances are taken from that
    # one, for differences of large sums would be left with nothing else.
    main = jax.nn.one_hot(jnp.argmax(ratio, axis=1), safe.size, dtype=ratio.dtype)
    side = ratio * (1 - main)
    side_sum = jnp.sum(side, axis=1)
    main = main * times
    steep = side * times
    cross = dot(steep.T, main)
    mean = (steep - side_sum[:, None] * main) / jnp.sqrt(sums)[:, None]
    of_load = jnp.diag(jnp.sum(steep * times + side_sum[:, None] * main**2, axis=0))
    of_load = of_load - cross - cross.T - dot(mean.T, mean)
    # Along u itself f is linear, and Σu fixed: what is added there changes no step, and
    # much of the rounding.
    matrix = (dot(loads.T, of_load, loads) + 1) * safe[:, None] * safe
    eye = jnp.eye(safe.size, dtype=bool)
    matrix = jnp.where(
        levels[:, None] & levels, matrix + jnp.where(eye, state.bound * safe, 0), eye
    )
    slope = dot(jnp.sum(times * aim, axis=0) - dot(left / sums, ratio * times), loads)
    right = jnp.where(levels, barrier - slope * safe, 0)
    normal = jnp.where(levels, safe, 0)
    share = jnp.where(levels, _solve_across(matrix, right, normal) * safe, 0)
    theta = (left + jnp.sum(ratio * (times * dot(loads, share)), axis=1)) / sums
    of_room = _room(times, loads, share, theta)
    bound = jnp.where(
        levels, barrier / safe - state.bound - state.bound / safe * share, 0
    )
    row = aim - state.row - ratio * of_room
    return state._replace(share=share, theta=theta, row=row, bound=bound), of_room
