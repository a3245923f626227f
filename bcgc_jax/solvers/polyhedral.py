r"""The least of a convex homogeneous f that is polyhedral, or whose Hessian is not
known.

By cutting planes, for empirical distributions, complete steps of a trace, links, and
more. Every slope g_i met so far bounds f everywhere, f(z) ≥ g_i·z, and so does every
average of the slopes: f(z) ≥ L min_n Σ_i λ_i g_in. The next point is one of the central
path of

    minimise θ   over Σu = 1, u ≥ 0, θ ≥ g_i·u,

at a barrier μ that follows the gap (a primal-dual cutting plane method: Goffin, Haurie
& Vial 1992, Gondzio et al. 1996). The multipliers λ of Newton's step there give the
bound. New cuts only raise θ, so the last point stays feasible.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import dot, solve_positive
from bcgc_jax.solvers.search import Optimum, status_of

# The most cuts, which are all kept: with measured times some three for each level, with
# complete steps of a trace two to six (91 for 200 steps of 20 workers, 324 for 100 of
# 150), with a smooth function 7.5. A cut takes a time that goes with this number.
_MAX_CUTS = 500


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
    met = last.best_value - last.lower <= tolerance * last.best_value
    return Optimum(
        point=last.best,
        value=unit * last.best_value,
        error=zero,
        bound=unit * last.lower,
        status=status_of(met),
        num_steps=last.num_cuts,
        aux=last.cuts,
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
