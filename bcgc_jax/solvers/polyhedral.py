r"""Cutting planes: minimise a convex homogeneous f without its Hessian.

The runtime f is polyhedral for empirical distributions and complete steps of a trace.
With links, among others, its Hessian has no formula. Every subgradient g_i so far
bounds f everywhere, f(z) ≥ g_i·z. So does every weighted average of them:
f(z) ≥ L min_n Σ_i λ_i g_in. The next point lies on the central path of

    minimise θ   over Σu = 1, u ≥ 0, θ ≥ g_i·u,

at a barrier μ proportional to the gap. This is a primal-dual cutting plane method
(Goffin, Haurie & Vial 1992, Gondzio et al. 1996). The multipliers λ of Newton's last
step give the bound. A new cut only increases θ, so the last point stays feasible.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.exact.linear_algebra import dot, solve_positive
from bcgc_jax.solvers.search import Optimum, status_of

# Maximum number of cuts, which are all kept. Measured times need about three cuts per
# level. Complete steps of a trace need two to six (91 for 200 steps of 20 workers, 324
# for 100 steps of 150), and smooth functions 7.5. The time per cut grows with this
# number.
_MAX_CUTS = 500


class Cuts(NamedTuple):
    """The cuts of a search.

    Attributes:
      points: Points at which the subgradients were computed, `[K, N]`.
      weights: Weights λ of the subgradients in the bound, `[K]`.
    """

    points: Array
    weights: Array


class _Search(NamedTuple):
    """The state of a search, with subgradients `slopes`, `[K, N]`.

    `share` is the next point, and `lower` the best lower bound.
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

    Args:
      evaluate: Function that returns the value and a subgradient at a point.
      start: First point, positive on `levels`, `[N]`.
      levels: Entries that may be positive, bool `[N]`.
      tolerance: Relative optimality gap at which the search ends.

    Returns:
      The `Optimum`. `num_steps` counts cuts, and `aux` is `Cuts`.
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
        # A single cut has the bound min_n g_n, which gives the first gap.
        lower = jnp.maximum(state.lower, least(slope))
        gap = jnp.maximum(best_value - lower, tolerance * best_value)
        rows = state.num_cuts + 1 + count
        used = jnp.arange(_MAX_CUTS) <= state.num_cuts
        # This barrier would leave nine tenths of the gap. Of 0.02 to 2, 0.9 needs the
        # fewest cuts for measured times: 105 with 100 atoms at N = 20, where 0.2 needs
        # 287. For two speeds, it needs twice the fewest.
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
    """The slacks ("rooms") rows @ z = θ - g_i·u of the cuts, with z = (u, θ).

    Attributes:
      rows: (-g_i, 1) for each cut, `[K, N + 1]`; 0 for a cut that is not `used`.
      used: Whether a cut exists, bool `[K]`.
      free: Entries of z that may change, u on the levels and θ, bool `[N + 1]`.
      of_share: Entries of z that are u on the levels, bool `[N + 1]`.
    """

    rows: Array
    used: Array
    free: Array
    of_share: Array

    def inside(self, z: Array) -> Array:
        """Check whether every slack and every share is positive."""
        return jnp.all(~self.used | (dot(self.rows, z) > 0)) & jnp.all(
            ~self.of_share | (z > 0)
        )


class _Centre(NamedTuple):
    """A point of Newton's method towards the central path.

    Attributes:
      z: The point (u, θ).
      weights: Weights of the cuts up to a factor, the inverse slacks, `[K]`.
      decrement: Length of the last step in the norm of the Hessian, which measures the
        distance from the path; infinite before the first step.
      steps: Number of steps so far.
    """

    z: Array
    weights: Array
    decrement: Array
    steps: Array


def _centre(
    slopes: Array, used: Array, levels: Array, share: Array, barrier: Array
) -> tuple[Array, Array]:
    """Find the point of the central path at the barrier μ, and the weights of its cuts.

    Over z = (u, θ) with Σu = 1, Newton's method minimises

        θ/μ - Σ_i log(θ - g_i·u) - Σ_n log u_n.

    It starts at the shares u, and at the θ with which the highest cut has a slack of μ.
    The derivative in θ is 1/μ - Σ_i 1/(θ - g_i·u) = 0. So the weights, whose sum is 1,
    are μ divided by the slacks.
    """
    rows = jnp.where(
        used[:, None], jnp.pad(-slopes, [(0, 0), (0, 1)], constant_values=1), 0
    )
    rooms = _Rooms(rows, used, jnp.append(levels, True), jnp.append(levels, False))

    def go_on(centre: _Centre) -> Array:
        # A decrement of 0.3 is close enough to the path for a bound.
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
    # Weights that are negative by rounding are set to 0.
    weights = jnp.maximum(last.weights, 0)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(share.dtype).tiny)
    return share / jnp.sum(share), weights / total


def _centring_step(rooms: _Rooms, barrier: Array, centre: _Centre) -> _Centre:
    """Take Newton's step Δz = scale · `move`, with scale u for u, and μ for θ.

    Let a_i be the rows, scaled and divided by their slacks. The step solves

        (Σ_i a_i a_iᵀ + I_u) move = Σ_i a_i + (1, …, 1, -1),

    and multiplies each slack by 1 + a_i·move.
    """
    z = centre.z
    eye = jnp.eye(z.size, dtype=z.dtype)
    room = jnp.where(rooms.used, dot(rooms.rows, z), 1)
    scale = jnp.where(rooms.of_share, z, 1).at[-1].set(barrier)
    # The step keeps Σu, so a constant in all entries of a row has no effect. It is
    # removed, because it would cause rounding errors.
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
    # By self-concordance, a step of this length stays inside.
    length = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
    moved = z + length * jnp.where(rooms.free, move * scale, 0)
    # These are the weights to first order. They satisfy the condition of the path
    # exactly, and are positive for a decrement < 1.
    weights = jnp.where(rooms.used, (1 - dot(scaled, move)) / room, 0)
    # If rounding makes the system useless, the last point and its weights are kept, and
    # the steps end. This is valid, because any average gives a bound.
    good = jnp.isfinite(decrement) & rooms.inside(moved)
    return _Centre(
        z=jnp.where(good, moved, z),
        weights=jnp.where(good, weights, centre.weights),
        decrement=jnp.where(good, decrement, 0 * decrement),
        steps=centre.steps + 1,
    )


def _solve_across(matrix: Array, descent: Array, normal: Array) -> Array:
    """Solve matrix · step = descent - ν normal with normal · step = 0."""
    step, back = solve_positive(matrix, jnp.stack([descent, normal], axis=1)).T
    return step - dot(normal, step) / dot(normal, back) * back
