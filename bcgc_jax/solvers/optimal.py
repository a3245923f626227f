r"""The optimal partition: Newton's method with an interior point, on the exact expected runtime.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_second_order`), so
each step is Newton's, and five to fifteen of them do. The stopping rule is the certificate,
1 - Σx min_n g_n / f.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.distributions import Law
from bcgc_jax.exact.crossing import MANY_PROBLEMS
from bcgc_jax.exact.linear_algebra import solve_positive
from bcgc_jax.exact.quadrature import Expectation, rule_error
from bcgc_jax.plans.evaluate import with_rounding
from bcgc_jax.plans.iterations import Independent, Sampled, iteration_of
from bcgc_jax.plans.marks import Marks, marks
from bcgc_jax.plans.runtime import sent_load
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.cutting_plane import cutting_plane
from bcgc_jax.solvers.lanes import Lanes, loop
from bcgc_jax.solvers.row_program import row_program
from bcgc_jax.solvers.second_order import (
    LARGE,
    NUM_NODES,
    Expansion,
    Sums,
    derivatives,
    first_fineness,
    no_sums,
    rule_in_pieces,
    sums_of_many,
    sums_over_nodes,
)

# An answer counts once a rule so many times as fine agrees; else that one goes on. Four times as fine, it
# also tells its own error; Gauss's rules for laws with kinks do not nest, and cannot.
_FINER, _FINER_WITH_KINKS, _FINEST = 4, 2, 64
# The largest gap, for many levels, that the optimum of a coarse rule may be left with.
_ROUGH = 1e-3
# Steps by a rule that is off by more find nothing but what it is off by: it is refined at once.
_BLIND = 1e-2
# What the path's normal equations resolve in float64 and in float32; the room for cuts.
_POLYHEDRAL, _POLYHEDRAL_SINGLE, _MAX_CUTS = 1e-6, 3e-4, 500
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


class _Shares(NamedTuple):
    """What a problem is on the unit simplex of the levels: load = loads @ x."""

    workers: Array
    levels: Array
    num_levels: Array
    loads: Array
    tolerance: Array


class _Given(NamedTuple):
    """The same for Newton's method, which ends early where its bound reaches `least`."""

    law: Law
    marks: Marks
    workers: Array
    levels: Array
    num_levels: Array
    loads: Array
    tolerance: Array
    least: Array


class _Counts(NamedTuple):
    """What the round does, Newton steps so far, fineness of the rule, how often this step was tried."""

    round: Array
    steps: Array
    refine: Array
    tries: Array


class _Numbers(NamedTuple):
    """Length of the step, barrier μ; at x: f / f₀, its error, the best least slope so far, f / f₀ - log Σx,
    Σ log x; the slope along the step; f₀."""

    length: Array
    barrier: Array
    value: Array
    error: Array
    least: Array
    objective: Array
    logs: Array
    descent: Array
    unit: Array


class _Iterate(NamedTuple):
    """Newton's method, before an evaluation of f at x + length · dx.

    `_Counts`, `_Numbers`, and x, multipliers z and dx, each in one array: each array is one more to compile.
    """

    counts: Array
    numbers: Array
    path: Array


class _Evaluating(NamedTuple):
    """An iterate in a batch, whose evaluation is at `piece` of the nodes, with the sums before it."""

    iterate: _Iterate
    piece: Array
    sums: Sums


@functools.partial(jax.jit, static_argnames="max_steps")
def optimal_partition(
    problem: Problem,
    levels: ArrayLike = True,
    *,
    tolerance: ArrayLike = 1e-7,
    max_steps: int = 60,
    least: ArrayLike = jnp.inf,
) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts where every level takes about equally long, moved inside. `max_steps` is static. `levels`, bool
    `[max_workers]`, are those that may be used, and for which setup cycles are paid. They enter as a load
    that is linear in x, as Σx = L: (n+1) f/b = (n+1) f/(b L) Σx. For laws of atoms or rows f is polyhedral,
    and cutting planes take the place of Newton's method, down to a gap of 1e-6. Newton's method ends, and is
    content with what it has, once no partition can be faster than `least`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100)
    >>> result = optimal_partition(problem, np.array([True, False, True]), tolerance=1e-3)
    >>> int(result.status), round(float(result.partition.sum()), 3), float(result.partition[1])
    (0, 100.0, 0.0)
    """
    levels = problem.exists & jnp.asarray(levels)
    tolerance = jnp.asarray(tolerance, problem.dtype)
    iteration = iteration_of(problem)
    if problem.start_up is not None:  # the same for all, and for every partition
        alike = replace(problem, start_up=None)
        start = jnp.asarray(problem.start_up, problem.dtype)
        options = {"tolerance": tolerance, "max_steps": max_steps}
        found = optimal_partition(alike, levels, least=least - start, **options)
        return found._replace(value=found.value + start, lower_bound=found.lower_bound + start)
    if iteration.polyhedral or not problem.plain:
        return _by_cuts(problem, levels, tolerance)
    assert isinstance(iteration, Independent)
    law = iteration.law.with_fast_inverse()
    known = marks(law, jnp.ones(levels.size, problem.dtype), jnp.asarray(problem.num_workers))
    unit = problem.scale * problem.total
    least = jnp.asarray(least, problem.dtype) / unit
    given = _Given(law, known, *_in_unit_shares(problem, levels, tolerance), least)
    start = _start(given, known.times[2])
    finite = jnp.isfinite(given.law.mean())
    first = _Evaluating(_first(given, start, finite), jnp.asarray(0), no_sums(start))
    done, steps, x, numbers = loop(
        functools.partial(_go_on, max_steps=max_steps),
        _whole_round,
        lambda size: functools.partial(_one_piece, many=size >= MANY_PROBLEMS),
        lambda _, s: _answer(s.iterate),
        given,
        first,
        lanes=_lanes(start.size),
    )
    missed = jnp.where(steps < max_steps, int(Status.PRECISION), int(Status.STEP_LIMIT))
    status = jnp.where(done, int(Status.CONVERGED), missed)
    value, error, bound = unit * numbers
    value, error = with_rounding(x, Expectation(value, error))
    value, error = jnp.where(finite, value, jnp.inf), jnp.where(finite, error, 0)
    return OptimalResult(x * problem.total, value, error, bound, status, steps)


def _by_cuts(problem: Problem, levels: Array, tolerance: Array) -> OptimalResult:
    """The least of an f that is polyhedral, or whose Hessian is not known, by cutting planes."""
    iteration = iteration_of(problem)
    share = _in_unit_shares(problem, levels, tolerance)
    start = _start(share, iteration.typical_times((0.0,))[0].astype(problem.dtype))
    total, unit = problem.total, problem.scale * problem.total

    def value_of(u: Array) -> Array:
        # In coordinates, as the link takes them.
        load = Load(total * (share.loads @ u), sent_load(problem, total * jnp.where(levels, u, 0)))
        return iteration.expected_max(load).value / total

    def evaluate(u: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(value_of)(u)

    tolerance = jnp.maximum(share.tolerance, least_gap(problem))
    if isinstance(iteration, Sampled) and problem.plain:
        found = row_program(iteration.times, share.loads, start, levels, tolerance)
    else:
        found = cutting_plane(evaluate, start, levels, tolerance=tolerance, max_cuts=_MAX_CUTS)
    met = found.value - found.lower_bound <= tolerance * found.value
    return OptimalResult(
        found.share * total,
        unit * found.value,
        0 * found.value,
        unit * found.lower_bound,
        jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT)),
        found.num_cuts,
    )


def least_gap(problem: Problem) -> float:
    """The smallest gap that is looked for in the working precision."""
    if iteration_of(problem).polyhedral:
        return _POLYHEDRAL if problem.dtype == jnp.float64 else _POLYHEDRAL_SINGLE
    return _least_gap(problem.max_workers, problem.dtype)


def _least_gap(size: int, dtype: Any) -> float:
    return (64 + 8 * size) * float(jnp.finfo(dtype).eps)


def _in_unit_shares(problem: Problem, levels: Array, tolerance: Array) -> _Shares:
    dtype, size = problem.dtype, levels.size
    level = np.arange(size)
    # Steps beyond the working precision only wander.
    tolerance = jnp.maximum(tolerance, _least_gap(size, dtype))
    loads = np.tri(size) * jnp.where(levels, level + 1, 0)
    if (
        problem.has_setup
    ):  # the highest level in use pays setup, and the chain so far, for each of its subsets
        highest = jax.lax.cummax(jnp.where(levels, level + 1, 0))[:, None]
        loads = loads + highest * (problem.setup_load / problem.total)
        loads = loads + highest * problem.chain_load * jnp.where(levels, np.tri(size), 0)
    count = jnp.sum(levels).astype(dtype)
    return _Shares(jnp.asarray(problem.num_workers), levels, count, jnp.asarray(loads, dtype), tolerance)


def _start(given: "_Given | _Shares", times: Array) -> Array:
    """The closed form for the typical `times` of the levels (Theorem 2, without its limits), moved inside."""
    dtype, levels = times.dtype, given.levels
    share = jnp.diff(1 / times, prepend=np.zeros(1, dtype)) / np.arange(1, times.size + 1).astype(dtype)
    share = jnp.where(levels & (share > 0) & (share < jnp.inf), share, 0)
    inside = jnp.where(levels, 1 / given.num_levels, 0)
    if times.size > LARGE:  # equal shares of the highest levels would be most of the load
        inside = jnp.where(levels, 1 / np.arange(1, times.size + 1).astype(dtype) ** 2, 0)
        inside = inside / jnp.sum(inside)
    start = 0.9 * share / jnp.maximum(jnp.sum(share), jnp.finfo(dtype).tiny) + 0.1 * inside
    start = jnp.where(levels, start, 0)
    return start / jnp.sum(start)


def _first(given: _Given, start: Array, finite_mean: Array) -> _Iterate:
    """Before the evaluation of the start."""
    barrier = 1e-2 / given.num_levels
    z = jnp.where(given.levels, barrier / jnp.where(given.levels, start, 1), 0)
    zero, one = jnp.zeros_like(barrier), jnp.ones_like(barrier)
    numbers = _Numbers(one, barrier, one, zero, zero, one, one, descent=zero, unit=one)
    # No step helps an infinite mean.
    counts = _Counts(
        jnp.where(finite_mean, _START, _DONE), *map(jnp.asarray, (0, first_fineness(start.size), 0))
    )
    return _Iterate(jnp.stack(counts), jnp.stack(numbers), jnp.stack([start, z, 0 * start]))


def _lanes(size: int) -> Lanes:
    """As many as a CPU's cache holds, on an accelerator as 4 GB of its memory."""
    # Six arrays over levels, levels and nodes.
    room = 2**32 // (6 * 8 * NUM_NODES)
    return Lanes(min(max(_CACHED // size**2, 1), 32), min(max(room // size**2, 1), 2**13))


def _go_on(given: _Given, s: _Evaluating, *, max_steps: int) -> Array:
    del given
    return _going(s.iterate, max_steps)


def _going(s: _Iterate, max_steps: int) -> Array:
    at = _Counts(*s.counts)
    return (at.round != _DONE) & (at.refine <= _FINEST) & ((at.steps < max_steps) | (at.round != _STEP))


def _answer(s: _Iterate) -> tuple[Array, Array, Array, Array]:
    """Whether the gap was met, the steps, each level's share, and its expected maximum, error and bound."""
    count, at, x = _Counts(*s.counts), _Numbers(*s.numbers), s.path[0]
    total = jnp.sum(x)
    found = jnp.stack([at.value, at.error, at.least * total]) * (at.unit / total)
    return (count.round == _DONE) & (at.value > 0), count.steps, x / total, found


def _whole_round(given: _Given, s: _Evaluating) -> _Evaluating:
    """Evaluate at all nodes, and go on from there."""
    load = given.loads @ _trial(given, s.iterate)
    refine = _Counts(*s.iterate.counts).refine
    if load.size > LARGE and given.law.smooth:
        # Where steps have to be cut, the Hessian is none of here.
        fresh = (_Counts(*s.iterate.counts).round == _CHECK) | (_Numbers(*s.iterate.numbers).length < 1)
        start, sums = sums_of_many(given.law, given.marks, load, given.workers, refine, s.sums, fresh)
    else:
        start, sums = sums_over_nodes(given.law, given.marks, load, given.workers, refine)
    f = derivatives(given.law, start, load, given.workers, sums)
    return s._replace(iterate=_decide(given, s.iterate, _in_shares(given.loads, f)), sums=sums)


def _one_piece(given: _Given, s: _Evaluating, *, many: bool) -> _Evaluating:
    """Evaluate at one piece of the nodes, and go on from there once it was the last.

    Each lane of a batch does as many pieces as it needs: a finer rule holds up no other.
    """
    load = given.loads @ _trial(given, s.iterate)
    refine = _Counts(*s.iterate.counts).refine
    start, count, add = rule_in_pieces(given.law, given.marks, load, given.workers, refine, many)
    sums = add(s.piece, s.sums)
    f = derivatives(given.law, start, load, given.workers, sums)
    decided = _decide(given, s.iterate, _in_shares(given.loads, f))
    moved_on = _Evaluating(decided, jnp.zeros_like(s.piece), jax.tree.map(jnp.zeros_like, sums))
    waiting = _Evaluating(s.iterate, s.piece + 1, sums)
    last = s.piece + 1 >= count
    return jax.tree.map(lambda a, b: jnp.where(last, a, b), moved_on, waiting)


def _trial(given: _Given, s: _Iterate) -> Array:
    x, _, dx = s.path
    return jnp.where(given.levels, x + _Numbers(*s.numbers).length * dx, 0)


def _decide(given: _Given, s: _Iterate, f: Expansion) -> _Iterate:
    """The next evaluation, after that of f at x + length · dx.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled once.
    """
    count, at, x = _Counts(*s.counts), _Numbers(*s.numbers), _trial(given, s)
    # f₀ is the value at the start, known after the first round.
    unit = jnp.where(count.round == _START, f.value, at.unit)
    least, doubt = _least_slope(given, f)
    total, logs = jnp.sum(jnp.stack([x, jnp.log(jnp.where(given.levels, x, 1))]), axis=1)
    objective = f.value / unit - jnp.log(total)
    # The bound is to have the error of the value, and what its own is beyond it.
    more = jnp.maximum(doubt - f.error / total, 0)
    at_x = jnp.stack([f.value / unit, f.error / unit, (least - more) / unit, objective, logs, unit])
    # Each point bounds f from below, and where f nearly has kinks the last one does not do so best.
    off, off_before = at_x[1] / total, at.error / jnp.sum(s.path[0])
    bound = jnp.maximum(at_x[2] - off, jnp.where(count.round == _STEP, at.least - off_before, -jnp.inf))
    after, again = _verdict(given, count, at, total, at_x, more / unit, bound)
    at_x = at_x.at[2].set(bound + off)

    def shorter() -> _Iterate:
        cut, one_more = np.ones(len(_Numbers._fields)), np.zeros(len(_Counts._fields), int)
        cut[_Numbers._fields.index("length")] = _BACKTRACK
        one_more[_Counts._fields.index("tries")] = 1
        found = _Numbers(*(s.numbers * cut.astype(x.dtype)))._replace(least=bound + off_before)
        return _Iterate(s.counts + one_more, jnp.stack(found), s.path)

    def onward() -> _Iterate:
        count, (value, error, least, objective, logs, unit) = _Counts(*s.counts), at_x
        z, barrier = _multipliers(given, s, x)
        dx, descent, length = _direction(given, x, z, barrier, f.slope / unit, f.hessian / unit)
        step = after == _STEP
        finer = _FINER_WITH_KINKS if not given.law.smooth else _FINER
        refine = jnp.where(after == _CHECK, finer * count.refine, count.refine)
        counts = _Counts(after, count.steps + (count.round == _STEP), refine, jnp.zeros_like(refine))
        length, descent = jnp.where(step, length, 1), jnp.where(step, descent, 0)
        numbers = _Numbers(length, barrier, value, error, least, objective, logs, descent, unit)
        return _Iterate(jnp.stack(counts), jnp.stack(numbers), jnp.stack([x, z, jnp.where(step, dx, 0)]))

    return jax.lax.cond(again, shorter, onward)


def _least_slope(given: _Given, f: Expansion) -> tuple[Array, Array]:
    """min_n ∂f/∂x_n, and its error by coarser rules, where there are some."""
    least = jnp.min(jnp.where(given.levels, f.slope, jnp.inf))
    if not len(f.coarser):
        return least, jnp.zeros_like(least)
    coarse, coarsest = jnp.min(jnp.where(given.levels, f.coarser, jnp.inf), axis=1)
    return least, rule_error(least, coarse, coarsest)


def _verdict(
    given: _Given, count: _Counts, at: _Numbers, total: Array, at_x: Array, more: Array, bound: Array
) -> tuple[Array, Array]:
    """What the next round does, and whether it rather is this step again, shorter.

    `more` has been taken off the least slope for its error; nothing where there are few levels. `bound` is
    the best one so far, less its error.
    """
    value, error, least, objective, logs, unit = at_x
    enough = given.tolerance
    if given.levels.size > LARGE:  # beyond its own error, a rule's optimum is not looked for
        enough = jnp.maximum(enough, jnp.minimum(error / value, _ROUGH))
    met = (least + more) * total >= (1 - enough) * value
    if not given.law.smooth:  # a rule that only confirms another
        sure = met & (count.round == _CHECK)
    else:  # the gap with its error
        sure = (count.refine > first_fineness(given.levels.size)) & (
            bound * total >= (1 - given.tolerance) * value
        )
    # All that steps by this rule can do: its bound is met, or a merit that does not fall contradicts
    # its slope. The certificate is then that of the next rule.
    tries = count.tries + 1
    sure |= bound * unit >= given.least
    ended = met | sure | (tries >= _MAX_TRIES)
    blind = (count.round != _STEP) & (error > _BLIND * value) & (_FINER * count.refine <= _FINEST)
    after = jnp.where(ended | blind, jnp.where(sure, _DONE, _CHECK), _STEP)
    rounding = 64 * jnp.finfo(value.dtype).eps
    highest = at.objective - at.barrier * at.logs + at.length * _SUFFICIENT * at.descent + rounding
    falls = objective - at.barrier * logs <= highest
    # Below the error of a coarse rule the merit may rise on the way to its very optimum.
    return after, (count.round == _STEP) & ~ended & ~falls


def _step_length(levels: Array, u: Array, du: Array) -> Array:
    """The share of a step that keeps u positive."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)


def _multipliers(given: _Given, s: _Iterate, x: Array) -> tuple[Array, Array]:
    """z after the step to x, and the next barrier."""
    count, at, (before, z, dx) = _Counts(*s.counts), _Numbers(*s.numbers), s.path
    stepped = count.round == _STEP
    safe = jnp.where(given.levels, before, 1)
    dz = jnp.where(given.levels, at.barrier / safe - z - z / safe * dx, 0)
    moved = jnp.maximum(z + _step_length(given.levels, z, dz) * dz, 1e-4 * at.barrier / safe)
    z = jnp.where(stepped & given.levels, moved, z)
    # Superlinear once the products x z are small, linear before; none after a step that was cut.
    product = jnp.sum(x * z) / given.num_levels
    smaller = jnp.maximum(
        jnp.minimum(0.1 * product, 5 * product * jnp.sqrt(product)), 0.05 * given.tolerance / given.num_levels
    )
    barrier = jnp.where((count.tries < 2) & stepped, jnp.minimum(at.barrier, smaller), at.barrier)
    return z, barrier


def _direction(
    given: _Given, x: Array, z: Array, barrier: Array, slope: Array, hessian: Array
) -> tuple[Array, Array, Array]:
    """Newton's step from x, the slope along it, and the length that keeps x positive."""
    safe, total = jnp.where(given.levels, x, 1), jnp.sum(x)
    slope = jnp.where(given.levels, slope - 1 / total - barrier / safe, 0)
    both = given.levels[:, None] & given.levels[None, :]
    hessian = hessian + 1 / total**2 + jnp.where(np.eye(x.size, dtype=bool), z / safe, 0)
    scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], np.eye(x.size, dtype=x.dtype))
    dx = jnp.where(given.levels, solve_positive(scaled, -slope * safe) * safe, 0)
    return dx, jnp.sum(slope * dx), _step_length(given.levels, x, dx)


def _in_shares(loads: Array, f: Expansion) -> Expansion:
    """Of f in x, from that of F in the load."""
    slopes = jnp.concatenate([f.slope[None], f.coarser]).T
    both = loads.T @ jnp.concatenate([f.hessian @ loads, slopes], axis=1)
    size = loads.shape[1]
    return Expansion(f.value, f.error, both[:, size], both[:, :size], both[:, size + 1 :].T)
