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

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import dot, solve_positive
from bcgc_jax.solvers.newton import step_length
from bcgc_jax.solvers.search import Optimum, choose, status_of

# The most cuts, which are all kept: with measured times some three for each level, with
# a smooth function 7.5. A cut takes a time that goes with this number.
_MAX_CUTS = 500
# The most of Newton's steps of a row program: with up to ninety, only rounding asks for
# more.
_MAX_STEPS = 200


class Cuts(NamedTuple):
    """Points of cuts, `[K, N]`, and the weights of their slopes in the bound, `[K]`."""

    points: Array
    weights: Array


class _Search(NamedTuple):
    """The slopes so far, `[K, N]`, their cuts, and the next point, `share`."""

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


class _Rooms(NamedTuple):
    """What z = (u, θ) must leave positive: the rooms rows @ z = θ - g_i·u, and u.

    Attributes:
      rows: (-g_i, 1) of each cut, `[K, N + 1]`, and 0 of a cut not yet `used`.
      used: the cuts that there are, bool, `[K]`.
      free: the entries of z that may move, bool, `[N + 1]`: u on the levels, and θ.
      of_share: u on the levels, bool, `[N + 1]`.
    """

    rows: Array
    used: Array
    free: Array
    of_share: Array

    def inside(self, z: Array) -> Array:
        """Whether every cut and every share has room."""
        return jnp.all(~self.used | (dot(self.rows, z) > 0)) & jnp.all(
            ~self.of_share | (z > 0)
        )


class _Centre(NamedTuple):
    """A point of Newton's method towards the central path.

    Attributes:
      z: (u, θ).
      weights: of the cuts, `[K]`, up to a factor: 1 over their rooms.
      decrement: the length of the last step in the norm of the Hessian, which says how
        far from the path the point was; infinite before the first step.
      steps: so far.
    """

    z: Array
    weights: Array
    decrement: Array
    steps: Array


def _centre(
    slopes: Array, used: Array, levels: Array, share: Array, barrier: Array
) -> tuple[Array, Array]:
    """The point of the central path at the barrier μ, and the weights of its cuts.

    It minimises, over z = (u, θ) with Σu = 1,

        θ/μ - Σ_i log(θ - g_i·u) - Σ_n log u_n,

    by Newton's method from the shares u with the θ that leaves the highest cut a room
    of μ. In θ its slope is 1/μ - Σ_i 1/(θ - g_i·u) = 0: the weights, of sum 1, are μ
    over the rooms.
    """
    rows = jnp.where(
        used[:, None], jnp.pad(-slopes, [(0, 0), (0, 1)], constant_values=1), 0
    )
    rooms = _Rooms(rows, used, jnp.append(levels, True), jnp.append(levels, False))

    def go_on(centre: _Centre) -> Array:
        # A bound needs no better centre than a decrement of 0.3.
        return (centre.decrement > 0.3) & (centre.steps < 30)

    theta = jnp.max(jnp.where(used, dot(slopes, share), -jnp.inf)) + barrier
    first = _Centre(
        z=jnp.append(share, theta),
        weights=0 * rows[:, 0],
        decrement=jnp.inf + 0 * theta,
        steps=jnp.asarray(0),
    )
    step = functools.partial(_centring_step, rooms, barrier)
    last = jax.lax.while_loop(go_on, step, first)
    share = jnp.where(levels, last.z[:-1], 0)
    # So what rounding makes negative may go.
    weights = jnp.maximum(last.weights, 0)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(share.dtype).tiny)
    return share / jnp.sum(share), weights / total


def _centring_step(rooms: _Rooms, barrier: Array, centre: _Centre) -> _Centre:
    """Newton's step Δz = scale · `move`, with a scale of u for u and of μ for θ.

    With a_i the rows, scaled and over their rooms, it solves

        (Σ_i a_i a_iᵀ + I_u) move = Σ_i a_i + (1, …, 1, -1),

    and each room becomes 1 + a_i·move times as large.
    """
    z = centre.z
    eye = jnp.eye(z.size, dtype=z.dtype)
    room = jnp.where(rooms.used, dot(rooms.rows, z), 1)
    scale = jnp.where(rooms.of_share, z, 1).at[-1].set(barrier)
    # The step keeps Σu: what all entries of a row have in common would only be
    # rounding.
    centred = rooms.rows.at[:, :-1].add(-dot(rooms.rows[:, :-1], z[:-1])[:, None])
    scaled = centred / room[:, None] * scale
    descent = jnp.sum(scaled, axis=0) + jnp.where(rooms.of_share, 1, -1)
    hessian = dot(scaled.T, scaled) + jnp.where(rooms.of_share, eye, 0)
    hessian = jnp.where(rooms.free[:, None] & rooms.free, hessian, eye)
    move = _solve_across(
        hessian,
        jnp.where(rooms.free, descent, 0),
        jnp.where(rooms.of_share, scale, 0),
    )
    decrement = jnp.sqrt(jnp.maximum(dot(move, hessian, move), 0))
    # Self-concordance: this step stays inside.
    length = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
    moved = z + length * jnp.where(rooms.free, move * scale, 0)
    # The weights are those to first order: they meet the condition of the path
    # exactly, and are positive for a decrement < 1.
    weights = jnp.where(rooms.used, (1 - dot(scaled, move)) / room, 0)
    # Where rounding has spoilt the system, the last point and its weights stand, and no
    # step follows: any average is a bound.
    good = jnp.isfinite(decrement) & rooms.inside(moved)
    return _Centre(
        z=jnp.where(good, moved, z),
        weights=jnp.where(good, weights, centre.weights),
        decrement=jnp.where(good, decrement, 0 * decrement),
        steps=centre.steps + 1,
    )


def _solve_across(matrix: Array, descent: Array, normal: Array) -> Array:
    """The step with matrix · step = descent - ν normal, and normal · step = 0."""
    step, back = solve_positive(matrix, jnp.stack([descent, normal], axis=1)).T
    return step - dot(normal, step) / dot(normal, back) * back


class _State(NamedTuple):
    """A point of the interior point method for `row_program`, and the best so far.

    Attributes:
      share: u, `[N]`.
      theta: θ, `[S]`.
      multipliers: λ of θ_s ≥ T_sn y_n, `[S, N]`.
      share_multipliers: w of u ≥ 0, `[N]`.
      best, best_value: the shares of the least value, and that.
      lower: the best bound.
      steps: so far; at their limit where rounding lets none help.
      centring: what the next barrier leaves of the products λ r and w u.
    """

    share: Array
    theta: Array
    multipliers: Array
    share_multipliers: Array
    best: Array
    best_value: Array
    lower: Array
    steps: Array
    centring: Array


class _RowProgram(NamedTuple):
    """minimise Σ_s θ_s / S over Σu = 1, u ≥ 0 on `levels`, with rooms r_sn ≥ 0.

    r_sn = θ_s - T_sn y_n(u), y = loads @ u. The central path has, at a barrier μ,

        λ_sn r_sn = μ,   w_n u_n = μ,   Σ_n λ_sn = 1/S,
        Σ_sn λ_sn T_sn ∂y_n/∂u = w + ν.
    """

    times: Array
    loads: Array
    levels: Array
    tolerance: Array

    def ends(self, share: Array) -> Array:
        """The time at which each row ends, `[S]`."""
        return jnp.max(self.times * dot(self.loads, share), axis=1)

    def rooms(self, share: Array, theta: Array) -> Array:
        """r, `[S, N]`; linear, so that of a step it is the step of the rooms."""
        return theta[:, None] - self.times * dot(self.loads, share)

    def weights(self, state: _State) -> Array:
        """The multipliers with each row's sum 1/S, which rounding leaves to them."""
        sums = jnp.sum(state.multipliers, axis=1, keepdims=True)
        return state.multipliers / (len(self.times) * sums)

    def first(self, start: Array) -> _State:
        """The state at `start`, with each θ a tenth above the end of its row."""
        theta = self.ends(start) * 1.1
        room = self.rooms(start, theta)
        sums = jnp.sum(1 / room, axis=1, keepdims=True)
        multipliers = 1 / (room * len(self.times) * sums)
        unity = jnp.ones((), start.dtype)
        share_multipliers = jnp.mean(multipliers * room) / jnp.where(
            self.levels, start, 1
        )
        return _State(
            share=start,
            theta=theta,
            multipliers=multipliers,
            share_multipliers=jnp.where(self.levels, share_multipliers, 0),
            best=start,
            best_value=unity + jnp.inf,
            lower=0 * unity,
            steps=jnp.asarray(0),
            centring=unity / 2,
        )

    def judged(self, state: _State) -> _State:
        """The state with the value of its point and the bound of its multipliers."""
        value = jnp.mean(self.ends(state.share))
        slope = dot(jnp.sum(self.weights(state) * self.times, axis=0), self.loads)
        lower = jnp.min(jnp.where(self.levels, slope, jnp.inf))
        return state._replace(
            best=jnp.where(value < state.best_value, state.share, state.best),
            best_value=jnp.minimum(value, state.best_value),
            lower=jnp.where(lower > state.lower, lower, state.lower),
        )

    def go_on(self, state: _State) -> Array:
        wide = state.best_value - state.lower > self.tolerance * state.best_value
        return (state.steps < _MAX_STEPS) & wide

    def step(self, state: _State) -> _State:
        """The state after Newton's step, cut so that everything stays positive."""
        room = self.rooms(state.share, state.theta)
        safe = jnp.where(self.levels, state.share, 1)
        barrier = self._barrier(state, room, safe)
        move, of_room = _direction(self, state, room, barrier)
        primal = jnp.minimum(step_length(room, of_room), step_length(safe, move.share))
        of_shares = step_length(
            state.share_multipliers, move.share_multipliers, self.levels
        )
        of_rows = step_length(state.multipliers, move.multipliers)
        dual = jnp.minimum(of_rows, of_shares)
        share = jnp.where(self.levels, state.share + primal * move.share, 0)
        # Rounding moves the sum: θ goes with it, or the room would not be what the step
        # has left.
        total = jnp.sum(share)
        share = share / total
        # Rounding may leave a corner no room: θ follows.
        tight = self.ends(share) * (1 + 4 * jnp.finfo(share.dtype).eps)
        new = state._replace(
            share=share,
            theta=jnp.maximum((state.theta + primal * move.theta) / total, tight),
            multipliers=state.multipliers + dual * move.multipliers,
            share_multipliers=state.share_multipliers + dual * move.share_multipliers,
            # The next barrier leaves of the products what this step left of the way.
            centring=jnp.clip(1 - jnp.minimum(primal, dual), 0.1, 0.8),
            steps=state.steps + 1,
        )
        good = jnp.all(jnp.isfinite(new.share)) & jnp.all(new.multipliers > 0)
        ended = state._replace(steps=jnp.full_like(state.steps, _MAX_STEPS))
        return choose(good, self.judged(new), ended)

    def _barrier(self, state: _State, room: Array, safe: Array) -> Array:
        """The next μ: a share of the mean of the products λ r and w u."""
        products = jnp.sum(state.multipliers * room) + jnp.sum(
            jnp.where(self.levels, state.share_multipliers * safe, 0)
        )
        count = jnp.sum(self.levels).astype(room.dtype)
        # No smaller than the tolerance asks for: rounding goes with its inverse.
        return jnp.maximum(state.centring * products, 0.3 * self.tolerance) / (
            state.multipliers.size + count
        )


def row_program(
    times: Array, loads: Array, start: Array, levels: Array, tolerance: Array
) -> Optimum:
    """The least mean over s of max_n times_sn (loads @ u)_n over the unit simplex on
    `levels`.

    `times` is `[S, N]`. Stops at a relative gap of `tolerance`, or once steps help no
    more. `aux` has the multipliers, `[S, N]`, of each row's sum 1/S.
    """
    times = times.astype(start.dtype)
    unit = jnp.mean(jnp.max(times * dot(loads, start), axis=1))
    program = _RowProgram(times / unit, loads, levels, tolerance)
    first = program.judged(program.first(start))
    last = jax.lax.while_loop(program.go_on, program.step, first)
    numbers = unit * last.best_value, unit * last.lower
    weights = program.weights(last)
    return _certified(last.best, *numbers, tolerance, last.steps, weights)


def _direction(
    program: _RowProgram, state: _State, room: Array, barrier: Array
) -> tuple[_State, Array]:
    """Newton's step to products of the barrier's size, as a state, and the rooms' Δr.

    With D = λ / r, the rooms' steps are Δr = Δθ - T Δy, and

        Δλ = μ/r - λ - D Δr,   Δw = μ/u - w - w Δu / u,
        Δθ_s Σ_n D_sn = Σ_n D_sn T_sn Δy_n + Σ_n μ/r_sn - 1/S,

    which leaves a system for Δu alone, solved in shares of u, with ΣΔu = 0.
    """
    times, loads, levels, _ = program
    safe = jnp.where(levels, state.share, 1)
    ratio = state.multipliers / room
    target = barrier / room
    sums = jnp.sum(ratio, axis=1)
    excess = jnp.sum(target, axis=1) - 1 / len(times)
    load_hessian = _load_hessian(times, ratio, sums)
    # Along u itself f is linear, and Σu fixed: what is added there changes no step, and
    # much of the rounding.
    hessian = (dot(loads.T, load_hessian, loads) + 1) * safe[:, None] * safe
    eye = jnp.eye(safe.size, dtype=bool)
    hessian = jnp.where(
        levels[:, None] & levels,
        hessian + jnp.where(eye, state.share_multipliers * safe, 0),
        eye,
    )
    slope = dot(
        jnp.sum(times * target, axis=0) - dot(excess / sums, ratio * times), loads
    )
    descent = jnp.where(levels, barrier - slope * safe, 0)
    normal = jnp.where(levels, safe, 0)
    share = jnp.where(levels, _solve_across(hessian, descent, normal) * safe, 0)
    theta = (excess + jnp.sum(ratio * (times * dot(loads, share)), axis=1)) / sums
    of_room = program.rooms(share, theta)
    share_multipliers = (
        barrier / safe
        - state.share_multipliers
        - state.share_multipliers / safe * share
    )
    step = state._replace(
        share=share,
        theta=theta,
        multipliers=target - state.multipliers - ratio * of_room,
        share_multipliers=jnp.where(levels, share_multipliers, 0),
    )
    return step, of_room


def _load_hessian(times: Array, ratio: Array, sums: Array) -> Array:
    """The Hessian in y with the θ_s eliminated, `[N, N]`.

    Each row adds ΣD times the covariance of the vectors T_n e_n with the weights
    D / ΣD. Nearly all weight is on one of them in the end: covariances are taken from
    that one, v = T_k e_k, for differences of large sums would be left with nothing
    else. With a = Σ_{n≠k} D_n (T_n e_n - v), a row adds

        Σ_{n≠k} D_n (T_n e_n - v)(T_n e_n - v)ᵀ - a aᵀ / ΣD.
    """
    heaviest = jax.nn.one_hot(
        jnp.argmax(ratio, axis=1), times.shape[1], dtype=ratio.dtype
    )
    light = ratio * (1 - heaviest)
    light_sum = jnp.sum(light, axis=1)
    heaviest = heaviest * times
    light_times = light * times
    cross = dot(light_times.T, heaviest)
    mean = (light_times - light_sum[:, None] * heaviest) / jnp.sqrt(sums)[:, None]
    squares = light_times * times + light_sum[:, None] * heaviest**2
    return jnp.diag(jnp.sum(squares, axis=0)) - cross - cross.T - dot(mean.T, mean)
