r"""The optimal partition: Newton's method with an interior point, on the exact expected runtime.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_second_order`), so
each step is Newton's, and five to fifteen of them do. The stopping rule is the certificate,
1 - Σx min_n g_n / f.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.crossing import Crossing
from bcgc_jax.distributions import Law
from bcgc_jax.expectation import (
    Expectation,
    expected_max,
    rule,
    rule_error,
    slope_of_homogeneous,
    threshold_hazard,
    typical_hazards,
    with_rounding,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.closed_form import share_for_times
from bcgc_jax.solvers.cutting_plane import cutting_plane
from bcgc_jax.solvers.lanes import loop
from bcgc_jax.solvers.linear import solve_positive

# Intervals of the first rule. An answer counts once a finer rule agrees; else that one goes on. Four times as
# fine, it also tells its own error; Gauss's rules for laws with kinks do not nest, and cannot.
_NUM_NODES, _FINER, _FINER_WITH_KINKS, _FINEST = 32, 4, 2, 64
# What the path's normal equations resolve in float64 and in float32; the room for cuts.
_POLYHEDRAL, _POLYHEDRAL_SINGLE, _MAX_CUTS = 1e-6, 3e-4, 500
# Entries of a matrix over levels and nodes at a time.
_CHUNK = 2**18
# Entries, in problems · N², that a batch works on at a time on a CPU.
_CACHED = 2**13
# A step keeps this share of the way to the boundary; Armijo's slope; backtracking. Customary values.
_TO_BOUNDARY, _SUFFICIENT, _BACKTRACK, _MAX_TRIES = 0.995, 1e-4, 0.4, 6


class OptimalResult(NamedTuple):
    """Partition, `[max_workers]`, its expected runtime and a bound on that of the best one.

    `error` is that of both, as far as the rule knows it: 0 for laws with kinks and atoms. `num_steps` counts
    Newton steps, for laws of atoms cuts.
    """

    partition: Array
    value: Array
    error: Array
    lower_bound: Array
    status: Array
    num_steps: Array


# What a round does: evaluate the start, make a Newton step, check the answer by a finer rule, nothing more.
_START, _STEP, _CHECK, _DONE = range(4)


class _Sums(NamedTuple):
    """Of values, slope and the upper half of the Hessian in the load, over the nodes so far.

    The values are those of the rule, of its every second and fourth node, and of the ends alone, `[4]`.
    """

    value: Array
    slope: Array
    upper: Array


class _Expansion(NamedTuple):
    """Value, its error, slope and Hessian in x, or in the load."""

    value: Array
    error: Array
    slope: Array
    hessian: Array


class _Given(NamedTuple):
    """What a problem is for Newton's method; load = loads @ x on the unit simplex."""

    law: Law
    workers: Array
    levels: Array
    loads: Array
    tolerance: Array


class _Iterate(NamedTuple):
    """Newton's method, before an evaluation of f at x + length · dx.

    What the round does, Newton steps so far, fineness of the rule; point, multipliers z, direction, its
    length and how often it was tried; barrier μ; at x: f / f₀, its error, the least slope, f / f₀ - log Σx,
    Σ log x, slope along dx; f₀.
    """

    round: Array
    steps: Array
    refine: Array
    x: Array
    z: Array
    dx: Array
    length: Array
    tries: Array
    barrier: Array
    value: Array
    error: Array
    least: Array
    objective: Array
    logs: Array
    descent: Array
    unit: Array


class _Evaluating(NamedTuple):
    """An iterate in a batch, whose evaluation is at `piece` of the nodes, with the sums before it."""

    iterate: _Iterate
    piece: Array
    sums: _Sums


@functools.partial(jax.jit, static_argnames=("max_steps", "written_out"))
def optimal_partition(
    problem: Problem,
    levels: ArrayLike = True,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
    written_out: bool = False,
) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts where every level takes about equally long, moved inside. `max_steps` is static. `levels`, bool
    `[max_workers]`, are those that may be used, and for which setup cycles are paid. They enter as a load
    that is linear in x, as Σx = L: (n+1) f/b = (n+1) f/(b L) Σx. For laws of atoms or rows f is polyhedral,
    and cutting planes take the place of Newton's method, down to a gap of 1e-6. `written_out` (static) is
    that of `crossing_probability`, for batches.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> result = optimal_partition(problem, tolerance=1e-3)
    >>> int(result.status), round(float(result.partition.sum()), 3)
    (0, 100.0)
    """
    facts = _facts(problem)
    levels = problem.exists & jnp.asarray(levels)
    tolerance = jnp.asarray(tolerance, problem.dtype)
    given, start = _prepare(facts, levels, jnp.asarray(problem.num_workers), tolerance)
    if given.law.atomic():

        def evaluate(share: Array) -> tuple[Array, Array]:
            return jax.value_and_grad(
                lambda u: expected_max(given.law, given.loads @ u, given.workers).value
            )(share)

        resolved = _POLYHEDRAL if problem.dtype == jnp.float64 else _POLYHEDRAL_SINGLE
        tolerance = jnp.maximum(given.tolerance, resolved)
        found = cutting_plane(evaluate, start, given.levels, tolerance=tolerance, max_cuts=_MAX_CUTS)
        met = found.value - found.lower_bound <= tolerance * found.value
        return OptimalResult(
            found.share * facts.total,
            facts.unit * found.value,
            0 * found.value,
            facts.unit * found.lower_bound,
            jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT)),
            found.num_cuts,
        )
    zero = jnp.zeros((start.size, start.size), start.dtype)
    first = _Evaluating(
        _first(given.levels, start, facts.finite),
        jnp.asarray(0),
        _Sums(jnp.zeros(4, start.dtype), zero[0], zero),
    )
    done, steps, x, value, error, least = loop(
        functools.partial(_go_on, max_steps=max_steps),
        _whole_round,
        functools.partial(_one_piece, written_out=written_out),
        lambda _, s: _answer(s.iterate),
        given,
        first,
        lanes=_num_lanes(start.size),
    )
    status = jnp.where(done, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    value, error = with_rounding(x, Expectation(facts.unit * value, facts.unit * error))
    value = jnp.where(facts.finite, value, jnp.inf)
    return OptimalResult(x * facts.total, value, error, facts.unit * least, status, steps)


class _Facts(NamedTuple):
    """Of a problem: its law, ready to be evaluated, the typical times of the levels, whether the mean is
    finite, Σx, the setup in coordinates, and M b Σx / N."""

    law: Law
    times: Array
    finite: Array
    total: Array
    setup: Array
    unit: Array


def _facts(problem: Problem) -> _Facts:
    law, dtype = problem.cycle_time.with_fast_inverse(), problem.dtype
    if law.rows() is None:
        hazard = typical_hazards(jnp.ones(problem.max_workers, dtype), problem.num_workers)[1]
        times = law.inverse_cumulative_hazard(hazard).astype(dtype)
    else:
        times = jnp.ones(problem.max_workers, dtype)
    total = problem.total
    finite = jnp.isfinite(law.mean())
    return _Facts(law, times, finite, total, problem.setup_load, problem.scale * total)


def _prepare(facts: _Facts, levels: Array, num_workers: Array, tolerance: Array) -> tuple[_Given, Array]:
    """What Newton's method or the cutting planes work with, and where on the unit simplex they start.

    The start is the closed form for the typical times of the levels (Theorem 2), moved inside.
    """
    dtype, size = facts.times.dtype, levels.size
    count = jnp.sum(levels).astype(dtype)
    # Steps beyond the working precision only wander.
    tolerance = jnp.maximum(tolerance, (64 + 8 * size) * jnp.finfo(dtype).eps)
    # load = loads @ x on the unit simplex, of which the highest level in use pays setup for each subset.
    paid = jnp.where(levels, np.arange(1, size + 1), 0)
    highest = jnp.max(jnp.where(np.tri(size, dtype=bool), paid, 0), axis=1)
    loads = np.tri(size) * paid + (facts.setup / facts.total * highest)[:, None]
    start = share_for_times(facts.times, jnp.arange(size) < num_workers, num_workers)
    start = jnp.where(levels, start / jnp.sum(start), 0)
    start = 0.9 * start / jnp.maximum(jnp.sum(start), 1e-3) + 0.1 / count
    start = jnp.where(levels, start, 0).astype(dtype)
    given = _Given(facts.law, num_workers, levels, jnp.asarray(loads, dtype), tolerance)
    return given, start / jnp.sum(start)


def _first(levels: Array, start: Array, finite_mean: Array) -> _Iterate:
    """Before the evaluation of the start."""
    barrier = (1e-2 / jnp.sum(levels)).astype(start.dtype)
    one, zero = jnp.ones((), start.dtype), jnp.asarray(0)
    return _Iterate(
        round=zero + jnp.where(finite_mean, _START, _DONE),  # no step helps an infinite mean
        steps=zero,
        refine=zero + 1,
        x=start,
        z=jnp.where(levels, barrier / jnp.where(levels, start, 1), 0),
        dx=0 * start,
        length=one,
        tries=zero,
        barrier=barrier,
        value=one,
        error=0 * one,
        least=0 * one,
        objective=one,
        logs=one,
        descent=0 * one,
        unit=one,
    )


def _num_lanes(size: int) -> int:
    """Problems at a time: as many as a CPU's cache holds, on an accelerator as 4 GB of its memory."""
    if jax.default_backend() == "cpu":
        return min(max(_CACHED // size**2, 1), 32)
    # Six arrays over levels, levels and nodes.
    return min(max(2**32 // (6 * 8 * _NUM_NODES * size**2), 1), 2**13)


def _go_on(given: _Given, s: _Evaluating, *, max_steps: int) -> Array:
    del given
    return _going(s.iterate, max_steps)


def _going(s: _Iterate, max_steps: int) -> Array:
    return (s.round != _DONE) & (s.refine <= _FINEST) & ((s.steps < max_steps) | (s.round != _STEP))


def _answer(s: _Iterate) -> tuple[Array, ...]:
    """Whether the gap was met, the steps, the share of each level, its expected maximum, error and bound."""
    total = s.x.sum()
    value, error, least = s.unit / total * jnp.stack([s.value, s.error, s.least * total])
    return (s.round == _DONE) & (s.value > 0), s.steps, s.x / total, value, error, least


def _whole_round(given: _Given, s: _Evaluating) -> _Evaluating:
    """Evaluate at all nodes, and go on from there."""
    load = given.loads @ _trial(given, s.iterate)
    start, sums = _sums_over_nodes(given.law, load, given.workers, s.iterate.refine)
    f = _derivatives(given.law, start, load, given.workers, sums)
    return s._replace(iterate=_decide(given, s.iterate, _expansion(given.loads, s.iterate.unit, f)))


def _one_piece(given: _Given, s: _Evaluating, *, written_out: bool) -> _Evaluating:
    """Evaluate at one piece of the nodes, and go on from there once it was the last.

    Each lane of a batch does as many pieces as it needs: a finer rule holds up no other.
    """
    load = given.loads @ _trial(given, s.iterate)
    start, pieces, add = _pieces(given.law, load, given.workers, s.iterate.refine, written_out)
    sums = add(s.piece, s.sums)
    f = _derivatives(given.law, start, load, given.workers, sums)
    decided = _decide(given, s.iterate, _expansion(given.loads, s.iterate.unit, f))
    moved_on = _Evaluating(decided, jnp.zeros_like(s.piece), jax.tree.map(jnp.zeros_like, sums))
    waiting = _Evaluating(s.iterate, s.piece + 1, sums)
    last = s.piece + 1 >= pieces
    return jax.tree.map(lambda a, b: jnp.where(last, a, b), moved_on, waiting)


def _trial(given: _Given, s: _Iterate) -> Array:
    return jnp.where(given.levels, s.x + s.length * s.dx, 0)


def _decide(given: _Given, s: _Iterate, f: _Expansion) -> _Iterate:
    """The next evaluation, after that of f / f₀ at x + length · dx.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled once.
    """
    still = s.round != _STEP
    x, tries = _trial(given, s), s.tries + 1
    total = jnp.sum(x)
    objective, logs = f.value - jnp.log(total), jnp.sum(jnp.log(jnp.where(given.levels, x, 1)))
    least = jnp.min(jnp.where(given.levels, f.slope, jnp.inf))
    met = least * total >= (1 - given.tolerance) * f.value
    if given.law.kinks().size:  # a rule that only confirms another
        finer, sure = _FINER_WITH_KINKS, met & (s.round == _CHECK)
    else:  # the gap with its error
        finer = _FINER
        sure = (s.refine > 1) & (least * total - f.error >= (1 - given.tolerance) * f.value)
    rounding = 64 * jnp.finfo(s.x.dtype).eps
    highest = s.objective - s.barrier * s.logs + s.length * _SUFFICIENT * s.descent + rounding
    falls = objective - s.barrier * logs <= highest
    # Below the error of a coarse rule the merit may rise on the way to its very optimum.
    good = still | met | falls

    def shorter() -> _Iterate:
        return s._replace(length=_BACKTRACK * s.length, tries=tries)

    def onward() -> _Iterate:
        # All that steps by this rule can do: its bound is met, or a merit that does not fall contradicts
        # its slope. The certificate is then that of the next rule.
        ended = jnp.where(sure, _DONE, _CHECK)
        after = jnp.where(met | (tries >= _MAX_TRIES), ended, _STEP)
        # f₀ is the value at the start, known after the first round.
        found = jnp.where(s.round == _START, f.value, 1)
        z, barrier = _multipliers(given, s, x, still)
        dx, descent, length = _direction(given, x, z, barrier, _Expansion(*(a / found for a in f)))
        step = after == _STEP
        return _Iterate(
            round=after,
            steps=s.steps + (s.round == _STEP),
            refine=jnp.where(after == _CHECK, finer * s.refine, s.refine),
            x=x,
            z=z,
            dx=jnp.where(step, dx, 0),
            length=jnp.where(step, length, 1),
            tries=jnp.zeros_like(tries),
            barrier=barrier,
            value=f.value / found,
            error=f.error / found,
            least=least / found,
            objective=objective + (1 / found - 1) * f.value,
            logs=logs,
            descent=jnp.where(step, descent, 0),
            unit=s.unit * found,
        )

    return jax.lax.cond(~good & (tries < _MAX_TRIES), shorter, onward)


def _step_length(levels: Array, u: Array, du: Array) -> Array:
    """The share of a step that keeps u positive."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)


def _multipliers(given: _Given, s: _Iterate, x: Array, still: Array) -> tuple[Array, Array]:
    """z after the step to x, and the next barrier."""
    safe = jnp.where(given.levels, s.x, 1)
    dz = jnp.where(given.levels, s.barrier / safe - s.z - s.z / safe * s.dx, 0)
    moved = jnp.maximum(s.z + _step_length(given.levels, s.z, dz) * dz, 1e-4 * s.barrier / safe)
    z = jnp.where(still, s.z, jnp.where(given.levels, moved, 0))
    # Superlinear once the products x z are small, linear before; none after a step that was cut.
    count = jnp.sum(given.levels)
    product = jnp.sum(x * z) / count
    smaller = jnp.maximum(jnp.minimum(0.1 * product, 5 * product**1.5), 0.05 * given.tolerance / count)
    barrier = jnp.where((s.tries < 2) & ~still, jnp.minimum(s.barrier, smaller), s.barrier)
    return z, barrier


def _direction(
    given: _Given, x: Array, z: Array, barrier: Array, f: _Expansion
) -> tuple[Array, Array, Array]:
    """Newton's step from x, the slope along it, and the length that keeps x positive."""
    safe, total = jnp.where(given.levels, x, 1), jnp.sum(x)
    slope = jnp.where(given.levels, f.slope - 1 / total - barrier / safe, 0)
    both = given.levels[:, None] & given.levels[None, :]
    hessian = f.hessian + 1 / total**2 + jnp.diag(z / safe)
    scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], jnp.eye(x.size, dtype=x.dtype))
    dx = jnp.where(given.levels, solve_positive(scaled, -slope * safe) * safe, 0)
    return dx, jnp.sum(slope * dx), _step_length(given.levels, x, dx)


def _expansion(loads: Array, unit: Array, f: _Expansion) -> _Expansion:
    """Of f / f₀ in x, from that of F in the load."""
    slope, hessian = loads.T @ f.slope, loads.T @ f.hessian @ loads
    return _Expansion(f.value / unit, f.error / unit, slope / unit, hessian / unit)


def _sums_over_nodes(law: Law, load: Array, num_workers: ArrayLike, refine: Array) -> tuple[Array, _Sums]:
    """The start of the rule that is `refine` times as fine, and the sums over its nodes."""
    start, pieces, add = _pieces(law, load, num_workers, refine, False)
    zero = jnp.zeros((load.size, load.size), load.dtype)
    return start, jax.lax.fori_loop(0, pieces, add, _Sums(jnp.zeros(4, load.dtype), zero[0], zero))


def _pieces(
    law: Law, load: Array, num_workers: ArrayLike, refine: Array, written_out: bool
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
        index = piece * chunk + jnp.arange(chunk)
        t, weight = nodes(index, refine)
        hazard, rate = threshold_hazard(law, load, t)
        crossing = Crossing(hazard, num_workers, written_out)
        density = jnp.moveaxis(jnp.exp(-hazard) * rate, -1, 0)[::-1]  # c, on the axes of `Crossing`
        first, success, following = crossing.renewals()
        ends = (index == 0) | (index == size * refine - 1)
        rules = jnp.stack([1 + 0 * index, 2 * (index % 2 == 0), 4 * (index % 4 == 0), ends])
        value = jnp.sum(rules * weight * crossing.probability(first), axis=1)
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        slope = jnp.sum(arrive * success, axis=-1)
        upper = -crossing.unit * jnp.sum(arrive[:, None] * following * leave[None], axis=-1)
        return _Sums(sums.value + value, sums.slope + slope, sums.upper + upper)

    return start, (size * refine + chunk - 1) // chunk, add


def _derivatives(law: Law, start: Array, load: Array, num_workers: ArrayLike, sums: _Sums) -> _Expansion:
    r"""Value, error, slope and Hessian of F in y from the sums over all nodes.

    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    fine, coarse, coarsest, ends = sums.value
    value, error = start + fine, rule_error(fine, coarse, coarsest) + ends
    if law.kinks().size:  # Gauss's rules do not nest
        error = jnp.zeros_like(error)
    hessian = jnp.minimum(sums.upper + sums.upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    slope = slope_of_homogeneous(value, sums.slope[::-1], load, num_workers)
    return _Expansion(value, error, slope, hessian + jnp.diag(diagonal))
