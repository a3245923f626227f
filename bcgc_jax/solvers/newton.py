r"""An interior point method for the minimum of f(x) = E max_n y_n T_(N-n).

f is convex and homogeneous, so the constraint Σx = L is not needed. The minimum over
x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. A primal-dual barrier keeps x ≥ 0: with
multipliers z, Newton's method solves ∇h = z and x z = μ for μ → 0. The Hessian of f has
a closed form (`expected_maximum`), and five to fifteen steps are enough. They end by
the certificate, the gap 1 - Σx min_n ∂f/∂x_n / f. Batches run in `lanes`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.exact.linear_algebra import LARGE, dot, solve_positive
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.problem import Status
from bcgc_jax.solvers.descent import SUFFICIENT
from bcgc_jax.solvers.expected_maximum import (
    NESTED,
    NUM_NODES,
    Sums,
    Workers,
    first_derivatives,
    first_fineness,
    no_sums,
    rule_in_pieces,
    second_derivatives,
    sums_over_nodes,
)
from bcgc_jax.solvers.lanes import loop
from bcgc_jax.solvers.search import Optimum

# From `LARGE` levels on, the Hessian is from a coarse rule or from an earlier step,
# because it takes O(N³) per node and affects only the direction. Value and gradient
# take O(N²), and are from a fine rule.
#
# A result counts when a finer rule confirms it. Otherwise the search continues with the
# finer rule. It is finer by the largest stride of the nested rules. So the rule of the
# result is one of the rules that estimate the error.
_FINER = NESTED[-1]
# Gauss rules between kinks are not nested, so they give no error. With a factor of 4,
# values of four problems change by at most 1e-12, in 0.8 to 1.6 times the time.
_FINER_WITH_KINKS = 2
# Largest refinement. With 16 and 32, the status of 51 problems with kinks was the same,
# and values differed by at most 2e-7.
FINEST = 64
# Largest gap at which the search for the optimum of a coarse rule may end, with many
# levels. The search with the finer rule continues from there.
_ROUGH = 1e-3
# Relative error above which a rule is refined at once, because steps would only follow
# its error.
_BLIND = 1e-2
# Batch size from which sums are computed for whole batches. Then a sweep to N = 50 with
# 24 problems at a time takes 6.3 s of CPU time instead of 10.6 s.
_MANY_LANES = 20
# Number of entries, problems · N², that a batch works on at a time on a CPU.
_CACHED = 2**13
# The next three constants affect only the number of steps, because the gap is
# certified. Factor by which a step is shortened if it does not decrease the merit.
_BACKTRACK = 0.4
# Number of tries after which a step is given up.
_MAX_TRIES = 6
# Fraction of the gap that a step must not leave; otherwise the search has stalled.
_MOST = 0.3
# Kinds of rounds.
_START = 0  # evaluate the start
_STEP = 1  # take a Newton step
_CHECK = 2  # check the result by a finer rule
_DONE = 3  # do nothing


class SimplexProblem(NamedTuple):
    """A problem over the unit simplex on the `levels`, with load = loads @ x.

    The search ends at a gap of `tolerance`, or early if its bound reaches `least`.
    """

    workers: Workers
    levels: Array
    loads: Array
    tolerance: Array
    least: Array

    @property
    def num_levels(self) -> Array:
        return jnp.sum(self.levels).astype(self.loads.dtype)

    def among(self, values: Array, elsewhere: ArrayLike = 0) -> Array:
        """Return the values on the levels, and `elsewhere` on all others."""
        return jnp.where(self.levels, values, elsewhere)


class _Iterate(NamedTuple):
    """The state of the search before an evaluation of f at x + length · dx."""

    round: Array  # kind of the next round
    steps: Array  # Newton steps so far
    refine: Array  # refinement of the rule
    tries: Array  # tries of this step so far
    x: Array
    z: Array  # multipliers
    dx: Array
    length: Array
    barrier: Array  # μ
    value: Array  # f / f₀ at x
    error: Array  # error of `value`
    least: Array  # largest min_n ∂f/∂x_n / f₀ of the points so far
    descent: Array  # derivative of the merit along dx
    unit: Array  # f₀
    gap: Array  # gap by the gradient at x only
    stalled: Array  # whether the step to x left most of the gap
    piece: Array  # next piece of the nodes
    sums: Sums  # sums over the previous pieces


def search(
    problem: SimplexProblem,
    start: Array,
    finite_mean: Array,
    max_steps: int,
    unit: Array,
) -> Optimum:
    """Minimise f over the simplex from `start`; values are multiplied by `unit`."""

    def go_on(_: SimplexProblem, s: _Iterate) -> Array:
        may_step = (s.steps < max_steps) | (s.round != _STEP)
        return (s.round != _DONE) & (s.refine <= FINEST) & may_step

    def step(size: int) -> Callable[[SimplexProblem, _Iterate], _Iterate]:
        return functools.partial(_one_piece, batched=size >= _MANY_LANES)

    # The number of lanes is limited by a CPU's cache, or by 4 GB of an accelerator for
    # six arrays over levels² and nodes.
    room = 2**32 // (6 * 8 * NUM_NODES)
    entries = start.size**2
    on_cpu = min(max(_CACHED // entries, 1), 32)
    elsewhere = min(max(room // entries, 1), 2**13)
    first = _first(problem, start, finite_mean)
    done, steps, x, numbers = loop(
        go_on, step, _answer, problem, first, lanes=(on_cpu, elsewhere)
    )
    missed = jnp.where(steps < max_steps, int(Status.PRECISION), int(Status.STEP_LIMIT))
    status = jnp.where(done, int(Status.CONVERGED), missed)
    value, error, bound = unit * numbers
    return Optimum(x, value, error, bound, status, steps)


def _first(problem: SimplexProblem, start: Array, finite_mean: Array) -> _Iterate:
    """Return the state before the evaluation of `start`."""
    barrier = 1e-2 / problem.num_levels
    zero = jnp.zeros_like(barrier)
    unity = jnp.ones_like(barrier)
    zero_count = jnp.asarray(0)
    return _Iterate(
        # If the mean is infinite, no step helps.
        round=jnp.where(finite_mean, _START, _DONE),
        steps=zero_count,
        refine=jnp.asarray(first_fineness(start.size)),
        tries=zero_count,
        x=start,
        z=problem.among(barrier / problem.among(start, 1)),
        dx=0 * start,
        length=unity,
        barrier=barrier,
        value=unity,
        error=zero,
        least=zero,
        descent=zero,
        unit=unity,
        gap=unity,
        stalled=jnp.asarray(False),
        piece=zero_count,
        sums=no_sums(start),
    )


def _answer(_: SimplexProblem, s: _Iterate) -> tuple[Array, Array, Array, Array]:
    """Return whether the gap was met, the steps, x, and (value, error, bound)."""
    total = jnp.sum(s.x)
    numbers = jnp.stack([s.value, s.error, s.least * total]) * (s.unit / total)
    return (s.round == _DONE) & (s.value > 0), s.steps, s.x / total, numbers


def _one_piece(problem: SimplexProblem, s: _Iterate, *, batched: bool) -> _Iterate:
    """Add a piece of the nodes; after the last piece, decide on the next evaluation.

    With many levels, all nodes are one piece. Each lane of a batch adds as many pieces
    as it needs, so a finer rule does not delay other lanes.
    """
    workers = problem.workers
    load = dot(problem.loads, _trial(problem, s))
    if load.size > LARGE and workers.law.smooth:
        start, sums = sums_over_nodes(workers, load, s.refine, with_hessian=False)
        # An earlier Hessian is reused unless steps are shortened or stall.
        coarse = jnp.asarray(first_fineness(load.size))
        by_coarse_rule = (s.refine == first_fineness(load.size)) | (s.round == _CHECK)
        fresh = by_coarse_rule | (s.length < 1) | s.stalled

        def upper_here() -> Array:
            return sums_over_nodes(workers, load, coarse)[1].upper

        def upper() -> Array:
            return jax.lax.cond(fresh, upper_here, lambda: s.sums.upper)

        return _decide(problem, s, load, start, sums, upper)
    start, count, add = rule_in_pieces(workers, load, s.refine, batched=batched)
    sums = add(s.piece, s.sums)

    def onward() -> _Iterate:
        decided = _decide(problem, s, load, start, sums, lambda: sums.upper)
        return decided._replace(piece=jnp.zeros_like(s.piece), sums=no_sums(load))

    waiting = s._replace(piece=s.piece + 1, sums=sums)
    return jax.lax.cond(s.piece + 1 >= count, onward, lambda: waiting)


def _trial(problem: SimplexProblem, s: _Iterate) -> Array:
    return problem.among(s.x + s.length * s.dx)


def _decide(
    problem: SimplexProblem,
    s: _Iterate,
    load: Array,
    start: Array,
    sums: Sums,
    upper: Callable[[], Array],
) -> _Iterate:
    """Decide on the next evaluation after f at x + length · dx was evaluated by `sums`.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled
    once. The `upper` half of the Hessian, which is most of the work, is computed only
    when a step begins.
    """
    x = _trial(problem, s)
    value, error, slopes = first_derivatives(
        problem.workers, problem.loads, load, start, sums
    )
    stepped = s.round == _STEP
    # f₀ is the value at the start, known after the first round.
    unit = jnp.where(s.round == _START, value, s.unit)
    value = value / unit
    error = error / unit
    slopes = slopes / unit
    total = jnp.sum(x)
    least, *coarser = jnp.min(problem.among(slopes, jnp.inf), axis=1)
    gap = 1 - least * total / value
    if coarser:
        doubt = rule_error(least, *coarser)
    else:
        doubt = jnp.zeros_like(least)
    # The caller subtracts the error of the value from the bound. So only the part of
    # the bound's own error that exceeds it is subtracted here.
    off = error / total
    off_before = s.error / jnp.sum(s.x)
    unsure = jnp.maximum(doubt, off)
    bound = least - unsure
    # Every point gives a lower bound on f. If f nearly has kinks, the bound of an
    # earlier point may be better.
    bound = jnp.maximum(bound, jnp.where(stepped, s.least - off_before, -jnp.inf))
    at_x = s._replace(x=x, value=value, error=error, least=bound + off, unit=unit)
    after, retry = _verdict(problem, s, at_x, least, bound, unsure)

    def shorter() -> _Iterate:
        return s._replace(
            tries=s.tries + 1, length=_BACKTRACK * s.length, least=bound + off_before
        )

    def onward() -> _Iterate:
        z, barrier = _multipliers(problem, s, x)
        finer = _FINER_WITH_KINKS
        if problem.workers.law.smooth:
            finer = _FINER

        def direction() -> tuple[Array, ...]:
            half = upper()
            hessian = second_derivatives(problem.loads, load, half) / unit
            return *_direction(problem, x, z, barrier, slopes[0], hessian), half

        still = (0 * x, 0 * total, 1 + 0 * total, s.sums.upper)
        dx, descent, length, half = jax.lax.cond(
            after == _STEP, direction, lambda: still
        )
        return at_x._replace(
            round=after,
            steps=s.steps + stepped,
            refine=jnp.where(after == _CHECK, finer * s.refine, s.refine),
            tries=jnp.zeros_like(s.tries),
            z=z,
            dx=dx,
            length=length,
            barrier=barrier,
            descent=descent,
            gap=gap,
            stalled=stepped & (gap > _MOST * s.gap),
            sums=s.sums._replace(upper=half),
        )

    return jax.lax.cond(retry, shorter, onward)


def _verdict(
    problem: SimplexProblem,
    s: _Iterate,
    at_x: _Iterate,
    least: Array,
    bound: Array,
    unsure: Array,
) -> tuple[Array, Array]:
    """Return the kind of the next round, and whether to retry with a shorter step.

    `least` is the smallest derivative at x, and `unsure` its error. `bound` is the
    largest of such derivatives so far, minus its error.
    """
    value = at_x.value
    total = jnp.sum(at_x.x)
    stepped = s.round == _STEP
    enough = problem.tolerance
    # The optimum of a rule is searched only to the error of its derivatives.
    if problem.levels.size > LARGE and problem.workers.law.smooth:
        enough = jnp.maximum(enough, jnp.minimum(unsure * total / value, _ROUGH))
    met = least * total >= (1 - enough) * value
    if problem.workers.law.smooth:  # the gap includes its error
        certified = bound * total >= (1 - problem.tolerance) * value
        sure = (s.refine > first_fineness(problem.levels.size)) & certified
    else:  # without an error, a finer rule must confirm the gap
        sure = met & (s.round == _CHECK)
    sure |= bound * at_x.unit >= problem.least
    # Steps by this rule end if its gap is met, or if the merit does not decrease
    # although its derivative is negative. The next rule gives the certificate.
    ended = met | sure | (s.tries + 1 >= _MAX_TRIES)
    blind = ~stepped & (at_x.error > _BLIND * value) & (_FINER * s.refine <= FINEST)
    after = jnp.where(ended | blind, jnp.where(sure, _DONE, _CHECK), _STEP)

    def merit(iterate: _Iterate) -> Array:
        logs = jnp.sum(jnp.log(problem.among(iterate.x, 1)))
        return iterate.value - jnp.log(jnp.sum(iterate.x)) - s.barrier * logs

    highest = (
        merit(s) + s.length * SUFFICIENT * s.descent + 64 * jnp.finfo(value.dtype).eps
    )
    # Within the error of a coarse rule, the merit may increase towards the optimum, so
    # a step that has ended is not retried.
    return after, stepped & ~ended & ~(merit(at_x) <= highest)


def step_length(
    u: Array | np.ndarray, du: Array | np.ndarray, levels: ArrayLike = True
) -> Array:
    """Return a step length ≤ 1 that goes at most 99.5 % of the way to u = 0."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return 0.995 / jnp.maximum(fastest, 0.995)


def _multipliers(problem: SimplexProblem, s: _Iterate, x: Array) -> tuple[Array, Array]:
    """Return the multipliers after the step to x, and the next barrier."""
    stepped = s.round == _STEP
    safe = problem.among(s.x, 1)
    dz = problem.among(s.barrier / safe - s.z - s.z / safe * s.dx)
    moved = jnp.maximum(
        s.z + step_length(s.z, dz, problem.levels) * dz, 1e-4 * s.barrier / safe
    )
    z = jnp.where(stepped & problem.levels, moved, s.z)
    product = jnp.sum(x * z) / problem.num_levels
    least = 0.05 * problem.tolerance / problem.num_levels
    whole = (s.tries < 2) & stepped  # a shortened step keeps the barrier
    return z, jnp.where(whole, next_barrier(s.barrier, product, least), s.barrier)


def next_barrier(
    barrier: ArrayLike, product: Array | np.floating, least: ArrayLike
) -> Array:
    """Decrease the barrier, superlinearly if the products x z are small."""
    smaller = jnp.minimum(0.1 * product, 5 * product * jnp.sqrt(product))
    return jnp.minimum(barrier, jnp.maximum(smaller, least))


def _direction(
    problem: SimplexProblem,
    x: Array,
    z: Array,
    barrier: Array,
    slope: Array,
    hessian: Array,
) -> tuple[Array, Array, Array]:
    """Return Newton's step, the merit's derivative along it, and a step length."""
    safe = problem.among(x, 1)
    total = jnp.sum(x)
    eye = np.eye(x.size, dtype=bool)
    slope = problem.among(slope - 1 / total - barrier / safe)
    hessian = hessian + 1 / total**2 + jnp.where(eye, z / safe, 0)
    scaled = jnp.where(
        problem.levels[:, None] & problem.levels, hessian * safe[:, None] * safe, eye
    )
    dx = problem.among(solve_positive(scaled, -slope * safe) * safe)
    return dx, jnp.sum(slope * dx), step_length(x, dx, problem.levels)
