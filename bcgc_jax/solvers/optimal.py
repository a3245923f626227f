r"""The optimal partition: Newton's method with an interior point, on the exact expected runtime.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_second_order`), so
each step is Newton's, and five to fifteen of them do. The stopping rule is the certificate,
1 - Σx min_n g_n / f.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Law
from bcgc_jax.expectation import expected_max, rule, threshold_hazard
from bcgc_jax.order_statistics import Crossing
from bcgc_jax.partitions import finish_load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.closed_form import time_partition
from bcgc_jax.solvers.cutting_plane import cutting_plane
from bcgc_jax.solvers.linear import solve_positive

# Intervals of the first rule. An answer counts once a rule twice as fine agrees; else that one goes on.
_NUM_NODES, _FINEST = 32, 32
# What the path's normal equations resolve in float64 and in float32; the room for cuts.
_POLYHEDRAL, _POLYHEDRAL_SINGLE, _MAX_CUTS = 1e-6, 3e-4, 500
# Entries of a matrix over levels and nodes at a time.
_CHUNK = 2**18
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


class _Iterate(NamedTuple):
    """What the next round does, Newton steps so far, fineness of the rule, point, multipliers, barrier μ."""

    round: Array
    steps: Array
    refine: Array
    x: Array
    z: Array
    barrier: Array
    f: _Expansion
    unit: Array


def optimal_partition(
    problem: Problem, levels: ArrayLike = True, *, tolerance: ArrayLike = 1e-7, max_steps: int = 60
) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts from x^(t), moved inside. `max_steps` is static. `levels`, bool `[max_workers]`, are those that
    may be used, and for which setup cycles are paid. They enter as a load that is linear in x, as Σx = L:
    (n+1) f/b = (n+1) f/(b L) Σx. For laws of atoms f is polyhedral, and cutting planes take the place of
    Newton's method, down to a gap of 1e-6.

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

    def expand(x: Array, unit: Array, refine: Array) -> _Expansion:
        value, slope, hessian = _second_order(law, loads @ x, workers, refine)
        return _Expansion(value / unit, loads.T @ slope / unit, loads.T @ hessian @ loads / unit)

    def bound(x: Array, f: _Expansion) -> Array:
        return jnp.min(inside(f.slope, jnp.inf)) * jnp.sum(x)

    def merit(x: Array, f: _Expansion, barrier: Array) -> Array:
        return f.value - jnp.log(jnp.sum(x)) - barrier * jnp.sum(jnp.log(inside(x, 1)))

    def step_length(u: Array, du: Array) -> Array:
        fastest = jnp.max(inside(-du / inside(u, 1)))
        return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)

    def next_round(carry: _Iterate) -> _Iterate:
        # Rounds that only evaluate are steps of length 0, so that `expand` is compiled once.
        rounds, steps, refine, x, z, barrier, f, unit = carry
        still = rounds != _STEP
        total, safe = jnp.sum(x), inside(x, 1)
        slope = inside(f.slope - 1 / total - barrier / safe)
        hessian = f.hessian + 1 / total**2 + jnp.diag(z / safe)
        both = levels[:, None] & levels[None, :]
        scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], jnp.eye(level.size, dtype=dtype))
        dx = inside(solve_positive(scaled, -slope * safe) * safe)
        dx = jnp.where(still, 0, dx)
        dz = inside(barrier / safe - z - z / safe * dx)
        start = merit(x, f, barrier)
        descent = _SUFFICIENT * jnp.sum(slope * dx)
        rounding = 64 * jnp.finfo(dtype).eps

        def too_long(trial):
            length, new, f_new, tries = trial
            good = still | (merit(new, f_new, barrier) <= start + length * descent + rounding)
            return (tries == 0) | ((tries < _MAX_TRIES) & ~good)

        def shorten(trial):
            length, _, _, tries = trial
            length = jnp.where(tries == 0, length, _BACKTRACK * length)
            new = inside(x + length * dx)
            return length, new, expand(new, unit, refine), tries + 1

        length = step_length(x, dx)
        _, x, f, tries = jax.lax.while_loop(too_long, shorten, (length, x, f, 0))
        z = jnp.where(still, z, inside(jnp.maximum(z + step_length(z, dz) * dz, 1e-4 * barrier / safe)))
        # Superlinear once the products x z are small, linear before; none after a step that was cut.
        product = jnp.sum(x * z) / count
        smaller = jnp.maximum(jnp.minimum(0.1 * product, 5 * product**1.5), 0.05 * tolerance / count)
        barrier = jnp.where((tries <= 2) & ~still, jnp.minimum(barrier, smaller), barrier)
        # f₀ is the value at the start, known after the first round.
        found = jnp.where(rounds == _START, f.value, 1)
        f = jax.tree.map(lambda a: a / found, f)
        # All that steps by this rule can do: its bound is met, or a merit that does not fall contradicts
        # its slope. The certificate is then that of the next rule.
        met = bound(x, f) >= (1 - tolerance) * f.value
        ended = jnp.where(met & (rounds == _CHECK), _DONE, _CHECK)
        after = jnp.where(met | (tries >= _MAX_TRIES), ended, _STEP)
        refine = jnp.where(after == _CHECK, 2 * refine, refine)
        return _Iterate(after, steps + (rounds == _STEP), refine, x, z, barrier, f, unit * found)

    finite = jnp.isfinite(law.mean())  # else no step helps

    def go_on(carry: _Iterate) -> Array:
        return (
            finite
            & (carry.round != _DONE)
            & (carry.refine <= _FINEST)
            & ((carry.steps < max_steps) | (carry.round != _STEP))
        )

    x = start
    barrier = 1e-2 / count
    one = jnp.ones((), dtype)
    unknown = _Expansion(one, jnp.zeros_like(x), jnp.eye(level.size, dtype=dtype))
    zero = jnp.asarray(0)
    first = _Iterate(zero + _START, zero, zero + 1, x, inside(barrier / inside(x, 1)), barrier, unknown, one)
    last = jax.lax.while_loop(go_on, next_round, first)
    status = jnp.where(last.round == _DONE, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    total = jnp.sum(last.x)
    value = unit_runtime * last.f.value * last.unit / total
    return OptimalResult(last.x / total * problem.total, value, jnp.zeros_like(value), status, last.steps)


def _second_order(law: Law, load: Array, num_workers: ArrayLike, refine: Array) -> tuple[Array, Array, Array]:
    r"""Value, slope and Hessian in the load y of F(y) = E max_n y_n T_(N-n), `refine` times as fine.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal, and Σ_k y_k ∂F/∂y_k = F
    the slope in the last load, whose integrand may be infinite at the infimum (Weibull, concentration < 1).
    """
    start, size, nodes = rule(law, load, num_workers, _NUM_NODES)
    # As many nodes at a time as fit a few MB.
    chunk = max(1, min(size, _CHUNK // load.size**2))

    def add(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, weight = nodes(i * chunk + jnp.arange(chunk), refine)
        hazard, rate = threshold_hazard(law, load, t)
        crossing = Crossing(hazard, num_workers)
        density = jnp.moveaxis(jnp.exp(-hazard) * rate, -1, 0)[::-1]  # c, on the axes of `Crossing`
        first, success, following = crossing.renewals()
        value = jnp.sum(weight * crossing.probability(first))
        arrive = weight * first * density * crossing.unit / crossing.total
        leave = success * density
        slope = jnp.sum(arrive * success, axis=-1)
        hessian = -crossing.unit * jnp.sum(arrive[:, None] * following * leave[None], axis=-1)
        return jax.tree.map(jnp.add, sums, (value, slope, hessian))

    zero = jnp.zeros((load.size, load.size), load.dtype)
    rounds = (size * refine + chunk - 1) // chunk
    value, slope, upper = jax.lax.fori_loop(0, rounds, add, (start, zero[0], zero))
    hessian = jnp.minimum(upper + upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    last = jnp.arange(load.size) == jnp.asarray(num_workers) - 1
    slope = jnp.where(last, 0, slope[::-1])
    slope = jnp.where(last, (value - jnp.sum(slope * load)) / load[-1], slope)
    return value, slope, hessian + jnp.diag(diagonal)
