r"""The optimal partition: Newton's method with an interior point, on the exact expected runtime.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_second_order`), so
each step is Newton's, and five to fifteen of them do. The stopping rule is the certificate,
1 - Σx min_n g_n / f.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.crossing import Crossing
from bcgc_jax.distributions import Law
from bcgc_jax.expectation import expected_max, rule, threshold_hazard
from bcgc_jax.partitions import finish_load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.closed_form import time_partition
from bcgc_jax.solvers.cutting_plane import cutting_plane
from bcgc_jax.solvers.lanes import loop
from bcgc_jax.solvers.linear import solve_positive

# Intervals of the first rule. An answer counts once a rule twice as fine agrees; else that one goes on.
_NUM_NODES, _FINEST = 32, 32
# What the path's normal equations resolve in float64 and in float32; the room for cuts.
_POLYHEDRAL, _POLYHEDRAL_SINGLE, _MAX_CUTS = 1e-6, 3e-4, 500
# Entries of a matrix over levels and nodes at a time.
_CHUNK = 2**18
# Entries, in problems · N², that a batch works on at a time on a CPU.
_CACHED = 2**13
# A step keeps this share of the way to the boundary; Armijo's slope; backtracking. Customary values.
_TO_BOUNDARY, _SUFFICIENT, _BACKTRACK, _MAX_TRIES = 0.995, 1e-4, 0.4, 6


class OptimalResult(NamedTuple):
    """Partition, `[max_workers]`, its expected runtime and, for laws of atoms, a bound on the best one.

    `num_steps` counts Newton steps, for laws of atoms cuts.
    """

    partition: Array
    value: Array
    lower_bound: Array
    status: Array
    num_steps: Array


# What a round does: evaluate the start, make a Newton step, check the answer by a finer rule, nothing more.
_START, _STEP, _CHECK, _DONE = range(4)


class _Expansion(NamedTuple):
    """Value, slope and Hessian of f / f₀ in x."""

    value: Array
    slope: Array
    hessian: Array


class _Sums(NamedTuple):
    """Of value, slope and the upper half of the Hessian in the load, over the nodes so far."""

    value: Array
    slope: Array
    upper: Array


class _Given(NamedTuple):
    """What a problem is for Newton's method; load = loads @ x on the unit simplex."""

    law: Law
    workers: Array
    levels: Array
    loads: Array
    tolerance: Array

    def inside(self, values: Array, padding: ArrayLike = 0) -> Array:
        return jnp.where(self.levels, values, padding)


class _Iterate(NamedTuple):
    """Newton's method, between two nodes of an evaluation at x + length · dx.

    What the round does, Newton steps so far, fineness of the rule, the next piece of its nodes and the sums
    before it; point, multipliers z, direction, its length and how often it was tried; barrier μ, f at x, f₀.
    """

    round: Array
    steps: Array
    refine: Array
    piece: Array
    sums: _Sums
    x: Array
    z: Array
    dx: Array
    length: Array
    tries: Array
    barrier: Array
    f: _Expansion
    unit: Array


def optimal_partition(
    problem: Problem, levels: ArrayLike = True, *, tolerance: ArrayLike = 1e-7, max_steps: int = 60
) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts from x^(t), moved inside. `max_steps` is static. `levels`, bool `[max_workers]`, are those that
    may be used, and for which setup cycles are paid. They enter as a load that is linear in x, as Σx = L:
    (n+1) f/b = (n+1) f/(b L) Σx. For laws of atoms or rows f is polyhedral, and cutting planes take the
    place of Newton's method, down to a gap of 1e-6.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> result = optimal_partition(problem, tolerance=1e-3)
    >>> int(result.status), round(float(result.partition.sum()), 3)
    (0, 100.0)
    """
    law = problem.cycle_time.with_fast_inverse()
    problem = dataclasses.replace(problem, cycle_time=law)
    workers = problem.num_workers
    levels = problem.exists & jnp.asarray(levels)
    dtype = problem.dtype
    level = jnp.arange(problem.max_workers)
    count = jnp.sum(levels).astype(dtype)
    # Steps beyond the working precision only wander.
    tolerance = jnp.maximum(tolerance, (64 + 8 * level.size) * jnp.finfo(dtype).eps)
    # load = loads @ x on the unit simplex
    setup = problem.setup_load / problem.total
    loads = jax.vmap(lambda share: finish_load(share, levels, setup), out_axes=1)(
        jnp.eye(level.size, dtype=dtype)
    )

    unit_runtime = problem.scale * problem.total

    def inside(values: Array, padding: ArrayLike = 0) -> Array:
        return jnp.where(levels, values, padding)

    start = inside(time_partition(problem) / problem.total)
    start = inside(0.9 * start / jnp.maximum(jnp.sum(start), 1e-3) + 0.1 / count)
    start = start / jnp.sum(start)

    if law.atomic():

        def evaluate(share: Array) -> tuple[Array, Array]:
            return jax.value_and_grad(lambda u: expected_max(law, loads @ u, workers).value)(share)

        resolved = _POLYHEDRAL if dtype == jnp.float64 else _POLYHEDRAL_SINGLE
        tolerance = jnp.maximum(tolerance, resolved)
        found = cutting_plane(evaluate, start, levels, tolerance=tolerance, max_cuts=_MAX_CUTS)
        met = found.value - found.lower_bound <= tolerance * found.value
        return OptimalResult(
            found.share * problem.total,
            unit_runtime * found.value,
            unit_runtime * found.lower_bound,
            jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT)),
            found.num_cuts,
        )

    given = _Given(law, jnp.asarray(workers), levels, loads, jnp.asarray(tolerance, dtype))
    barrier = 1e-2 / count
    one, zero = jnp.ones((), dtype), jnp.asarray(0)
    square = jnp.zeros((level.size, level.size), dtype)
    first = _Iterate(
        round=zero + jnp.where(jnp.isfinite(law.mean()), _START, _DONE),  # no step helps an infinite mean
        steps=zero,
        refine=zero + 1,
        piece=zero,
        sums=_Sums(0 * one, square[0], square),
        x=start,
        z=inside(barrier / inside(start, 1)),
        dx=square[0],
        length=one,
        tries=zero,
        barrier=barrier,
        f=_Expansion(one, square[0], jnp.eye(level.size, dtype=dtype)),
        unit=one,
    )
    done, steps, x, value = loop(
        functools.partial(_go_on, max_steps=max_steps),
        _whole_round,
        _one_piece,
        _answer,
        given,
        first,
        lanes=_num_lanes(level.size),
    )
    status = jnp.where(done, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    return OptimalResult(x * problem.total, unit_runtime * value, 0 * value, status, steps)


def _num_lanes(size: int) -> int:
    """Problems at a time: as many as a CPU's cache holds, on an accelerator as 4 GB of its memory."""
    if jax.default_backend() == "cpu":
        return min(max(_CACHED // size**2, 1), 32)
    # Six arrays over levels, levels and nodes.
    return min(max(2**32 // (6 * 8 * _NUM_NODES * size**2), 1), 2**13)


def _go_on(given: _Given, s: _Iterate, *, max_steps: int) -> Array:
    del given
    return (s.round != _DONE) & (s.refine <= _FINEST) & ((s.steps < max_steps) | (s.round != _STEP))


def _answer(given: _Given, s: _Iterate) -> tuple[Array, Array, Array, Array]:
    """Whether the gap was met, the steps, the share of each level and its expected maximum."""
    del given
    total = jnp.sum(s.x)
    return (s.round == _DONE) & (s.f.value > 0), s.steps, s.x / total, s.f.value * s.unit / total


def _whole_round(given: _Given, s: _Iterate) -> _Iterate:
    """Evaluate at all nodes, and go on from there."""
    found = _second_order(given.law, given.loads @ _trial(given, s), given.workers, s.refine)
    return _decide(given, s, _expansion(given, s, *found))


def _one_piece(given: _Given, s: _Iterate) -> _Iterate:
    """Evaluate at one piece of the nodes, and go on from there once it was the last.

    Each lane of a batch does as many pieces as it needs: a finer rule holds up no other.
    """
    load = given.loads @ _trial(given, s)
    start, pieces, add = _pieces(given.law, load, given.workers, s.refine)
    sums = add(s.piece, s.sums)
    decided = _decide(given, s, _expansion(given, s, *_derivatives(start, load, given.workers, sums)))
    last = s.piece + 1 >= pieces
    waiting = s._replace(piece=s.piece + 1, sums=sums)
    return jax.tree.map(lambda a, b: jnp.where(last, a, b), decided, waiting)


def _trial(given: _Given, s: _Iterate) -> Array:
    return given.inside(s.x + s.length * s.dx)


def _decide(given: _Given, s: _Iterate, f: _Expansion) -> _Iterate:
    """The next evaluation, after that of f at x + length · dx.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled once.
    """
    inside, dtype = given.inside, s.x.dtype
    count = jnp.sum(given.levels).astype(dtype)
    both = given.levels[:, None] & given.levels[None, :]

    def slope(x: Array, f: _Expansion, barrier: Array) -> Array:
        return inside(f.slope - 1 / jnp.sum(x) - barrier / inside(x, 1))

    def merit(x: Array, f: _Expansion, barrier: Array) -> Array:
        return f.value - jnp.log(jnp.sum(x)) - barrier * jnp.sum(jnp.log(inside(x, 1)))

    def step_length(u: Array, du: Array) -> Array:
        fastest = jnp.max(inside(-du / inside(u, 1)))
        return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)

    still = s.round != _STEP
    x, tries = _trial(given, s), s.tries + 1
    descent = s.length * _SUFFICIENT * jnp.sum(slope(s.x, s.f, s.barrier) * s.dx)
    rounding = 64 * jnp.finfo(dtype).eps
    met = jnp.min(inside(f.slope, jnp.inf)) * jnp.sum(x) >= (1 - given.tolerance) * f.value
    falls = merit(x, f, s.barrier) <= merit(s.x, s.f, s.barrier) + descent + rounding
    # Below the error of a coarse rule the merit may rise on the way to its very optimum.
    good = still | met | falls
    shorter = s._replace(length=_BACKTRACK * s.length, tries=tries)

    safe = inside(s.x, 1)
    dz = inside(s.barrier / safe - s.z - s.z / safe * s.dx)
    moved = jnp.maximum(s.z + step_length(s.z, dz) * dz, 1e-4 * s.barrier / safe)
    z = jnp.where(still, s.z, inside(moved))
    # Superlinear once the products x z are small, linear before; none after a step that was cut.
    product = jnp.sum(x * z) / count
    smaller = jnp.maximum(jnp.minimum(0.1 * product, 5 * product**1.5), 0.05 * given.tolerance / count)
    barrier = jnp.where((tries <= 2) & ~still, jnp.minimum(s.barrier, smaller), s.barrier)
    # f₀ is the value at the start, known after the first round.
    found = jnp.where(s.round == _START, f.value, 1)
    f = jax.tree.map(lambda a: a / found, f)
    # All that steps by this rule can do: its bound is met, or a merit that does not fall contradicts
    # its slope. The certificate is then that of the next rule.
    ended = jnp.where(met & (s.round == _CHECK), _DONE, _CHECK)
    after = jnp.where(met | (tries >= _MAX_TRIES), ended, _STEP)

    safe = inside(x, 1)
    hessian = f.hessian + 1 / jnp.sum(x) ** 2 + jnp.diag(z / safe)
    scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], jnp.eye(x.size, dtype=dtype))
    dx = inside(solve_positive(scaled, -slope(x, f, barrier) * safe) * safe)
    dx = jnp.where(after == _STEP, dx, 0)
    moved_on = _Iterate(
        round=after,
        steps=s.steps + (s.round == _STEP),
        refine=jnp.where(after == _CHECK, 2 * s.refine, s.refine),
        piece=jnp.zeros_like(s.piece),
        sums=jax.tree.map(jnp.zeros_like, s.sums),
        x=x,
        z=z,
        dx=dx,
        length=step_length(x, dx),
        tries=jnp.zeros_like(tries),
        barrier=barrier,
        f=f,
        unit=s.unit * found,
    )
    shorter = shorter._replace(piece=moved_on.piece, sums=moved_on.sums)
    retry = ~good & (tries < _MAX_TRIES)
    return jax.tree.map(lambda a, b: jnp.where(retry, a, b), shorter, moved_on)


def _expansion(given: _Given, s: _Iterate, value: Array, slope: Array, hessian: Array) -> _Expansion:
    """Of f / f₀ in x, from that of F in the load."""
    loads = given.loads
    return _Expansion(value / s.unit, loads.T @ slope / s.unit, loads.T @ hessian @ loads / s.unit)


def _second_order(law: Law, load: Array, num_workers: ArrayLike, refine: Array) -> tuple[Array, Array, Array]:
    """Value, slope and Hessian in the load y of F(y) = E max_n y_n T_(N-n), `refine` times as fine."""
    start, pieces, add = _pieces(law, load, num_workers, refine)
    zero = jnp.zeros((load.size, load.size), load.dtype)
    sums = jax.lax.fori_loop(0, pieces, add, _Sums(zero[0, 0], zero[0], zero))
    return _derivatives(start, load, num_workers, sums)


def _pieces(
    law: Law, load: Array, num_workers: ArrayLike, refine: Array
) -> tuple[Array, Array, Callable[[Array, _Sums], _Sums]]:
    r"""The rule for F(y) = E max_n y_n T_(N-n), `refine` times as fine: its start, its pieces, their sums.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    """
    start, size, nodes = rule(law, load, num_workers, _NUM_NODES)
    # As many nodes at a time as fit a few MB.
    chunk = max(1, min(size, _CHUNK // load.size**2))

    def add(piece: Array, sums: _Sums) -> _Sums:
        t, weight = nodes(piece * chunk + jnp.arange(chunk), refine)
        hazard, rate = threshold_hazard(law, load, t)
        crossing = Crossing(hazard, num_workers)
        density = jnp.moveaxis(jnp.exp(-hazard) * rate, -1, 0)[::-1]  # c, on the axes of `Crossing`
        first, success, following = crossing.renewals()
        value = jnp.sum(weight * crossing.probability(first))
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        slope = jnp.sum(arrive * success, axis=-1)
        upper = -crossing.unit * jnp.sum(arrive[:, None] * following * leave[None], axis=-1)
        return _Sums(sums.value + value, sums.slope + slope, sums.upper + upper)

    return start, (size * refine + chunk - 1) // chunk, add


def _derivatives(
    start: Array, load: Array, num_workers: ArrayLike, sums: _Sums
) -> tuple[Array, Array, Array]:
    r"""Value, slope and Hessian of F in y from the sums over all nodes.

    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal, and Σ_k y_k ∂F/∂y_k = F
    the slope in the last load, whose integrand may be infinite at the infimum (Weibull, concentration < 1).
    """
    value = start + sums.value
    hessian = jnp.minimum(sums.upper + sums.upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    last = jnp.arange(load.size) == jnp.asarray(num_workers) - 1
    slope = jnp.where(last, 0, sums.slope[::-1])
    slope = jnp.where(last, (value - jnp.sum(slope * load)) / load[-1], slope)
    return value, slope, hessian + jnp.diag(diagonal)
