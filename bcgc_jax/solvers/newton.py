r"""Newton's method with an interior point for the least E max_n y_n T_(N-n).

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the
minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier:
slopes g, multipliers z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed
form (`expected_maximum`): five to fifteen of Newton's steps do. They end by the
certificate, 1 - Σx min_n g_n / f. Batches go by `lanes`.
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

# From `LARGE` levels on the Hessian, O(N³) a node, is that of a coarse rule or of an
# earlier step: it only says where to go. Value and slope, O(N²), are those of a fine
# rule.
#
# An answer counts once a finer rule agrees; else that one goes on. The rule of the
# answer is the coarsest of those that tell the finer one's error.
_FINER = NESTED[-1]
# Gauss's rules between kinks do not nest, and tell none. Four times as fine changes
# values of four problems by 1e-12 at most, in 0.8 to 1.6 times the time.
_FINER_WITH_KINKS = 2
# The finest rule, in the first one's fineness. With 16 and 32 the status of 51 problems
# with kinks was the same, and values 2e-7 off at most.
FINEST = 64
# The largest gap, for many levels, that the optimum of a coarse rule may be left with:
# the finer one goes on from there.
_ROUGH = 1e-3
# A rule that is off by more is refined at once: steps by it find nothing but its error.
_BLIND = 1e-2
# In a batch of so many problems sums are made for batches: a sweep to N = 50, 24
# problems at a time, takes 6.3 s of CPU in place of 10.6.
_MANY_LANES = 20
# Entries, in problems · N², that a batch works on at a time on a CPU.
_CACHED = 2**13
# What follows decides how many steps there are; the gap is certified. A step that does
# not lower the merit is made so much shorter,
_BACKTRACK = 0.4
# and is given up after so many tries.
_MAX_TRIES = 6
# A step that leaves more than this of the gap has hardly helped.
_MOST = 0.3
# What a round does.
_START = 0  # evaluates the start
_STEP = 1  # makes a step of Newton's
_CHECK = 2  # checks the answer by a finer rule
_DONE = 3  # nothing more


class SimplexProblem(NamedTuple):
    """The problem over the unit simplex on the `levels`: load = loads @ x.

    The search ends at a gap of `tolerance`, and early where its bound reaches `least`.
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
        """The values on the levels, and another one elsewhere."""
        return jnp.where(self.levels, values, elsewhere)


class _Iterate(NamedTuple):
    """Newton's method, before an evaluation of f at x + length · dx."""

    round: Array  # what it does
    steps: Array  # of Newton's, so far
    refine: Array  # the fineness of the rule
    tries: Array  # of this step
    x: Array
    z: Array  # multipliers
    dx: Array
    length: Array
    barrier: Array  # μ
    value: Array  # f / f₀ at x
    error: Array  # of that
    least: Array  # the best least slope so far
    descent: Array  # the slope of the merit along dx
    unit: Array  # f₀
    gap: Array  # by the slopes at x alone
    stalled: Array  # whether the step to x left most of the gap
    piece: Array  # of the nodes, the next one
    sums: Sums  # over the pieces before


def search(
    problem: SimplexProblem,
    start: Array,
    finite_mean: Array,
    max_steps: int,
    unit: Array,
) -> Optimum:
    """The shares of least f, from `start`, and its value in a `unit`."""

    def go_on(_: SimplexProblem, s: _Iterate) -> Array:
        may_step = (s.steps < max_steps) | (s.round != _STEP)
        return (s.round != _DONE) & (s.refine <= FINEST) & may_step

    def step(size: int) -> Callable[[SimplexProblem, _Iterate], _Iterate]:
        return functools.partial(_one_piece, batched=size >= _MANY_LANES)

    # As many as fit into a CPU's cache; into 4 GB of an accelerator, with six arrays
    # over levels² and nodes.
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
    """Before the evaluation of the start."""
    barrier = 1e-2 / problem.num_levels
    zero = jnp.zeros_like(barrier)
    unity = jnp.ones_like(barrier)
    zero_count = jnp.asarray(0)
    return _Iterate(
        # No step helps an infinite mean.
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
    """Whether the gap was met, the steps, the shares, and (value, error, bound)."""
    total = jnp.sum(s.x)
    numbers = jnp.stack([s.value, s.error, s.least * total]) * (s.unit / total)
    return (s.round == _DONE) & (s.value > 0), s.steps, s.x / total, numbers


def _one_piece(problem: SimplexProblem, s: _Iterate, *, batched: bool) -> _Iterate:
    """Evaluate at one piece of the nodes, and go on from there once it was the last.

    Of many levels all nodes are one piece. Each lane of a batch does as many pieces as
    it needs: a finer rule holds up no other.
    """
    workers = problem.workers
    load = dot(problem.loads, _trial(problem, s))
    if load.size > LARGE and workers.law.smooth:
        start, sums = sums_over_nodes(workers, load, s.refine, with_hessian=False)
        # Where steps have to be cut or leave most of the gap, the Hessian is none of
        # here.
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
    """The next evaluation, after that of f at x + length · dx, by the sums over its
    nodes.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled
    once. The `upper` half of the Hessian, most of the work, is asked for where a step
    begins.
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
    # The bound is to have the error of the value, and what its own is beyond it.
    off = error / total
    off_before = s.error / jnp.sum(s.x)
    unsure = jnp.maximum(doubt, off)
    bound = least - unsure
    # Each point bounds f from below, and where f nearly has kinks the last one does not
    # do so best.
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
    """What the next round does, and whether it rather is this step again, shorter.

    `least` is the least slope at x, with an error of `unsure`; `bound` the best one so
    far, less its error.
    """
    value = at_x.value
    total = jnp.sum(at_x.x)
    stepped = s.round == _STEP
    enough = problem.tolerance
    # Beyond the error of its slopes, the optimum of a rule is not looked for.
    if problem.levels.size > LARGE and problem.workers.law.smooth:
        enough = jnp.maximum(enough, jnp.minimum(unsure * total / value, _ROUGH))
    met = least * total >= (1 - enough) * value
    if problem.workers.law.smooth:  # the gap with its error
        certified = bound * total >= (1 - problem.tolerance) * value
        sure = (s.refine > first_fineness(problem.levels.size)) & certified
    else:  # a rule that only confirms another
        sure = met & (s.round == _CHECK)
    sure |= bound * at_x.unit >= problem.least
    # All that steps by this rule can do: its bound is met, or a merit that does not
    # fall contradicts its slope. The certificate is then that of the next rule.
    ended = met | sure | (s.tries + 1 >= _MAX_TRIES)
    blind = ~stepped & (at_x.error > _BLIND * value) & (_FINER * s.refine <= FINEST)
    after = jnp.where(ended | blind, jnp.where(sure, _DONE, _CHECK), _STEP)

    def merit(iterate: _Iterate) -> Array:
        logs = jnp.sum(jnp.log(problem.among(iterate.x, 1)))
        return iterate.value - jnp.log(jnp.sum(iterate.x)) - s.barrier * logs

    highest = (
        merit(s) + s.length * SUFFICIENT * s.descent + 64 * jnp.finfo(value.dtype).eps
    )
    # Below the error of a coarse rule the merit may rise on the way to its very
    # optimum.
    return after, stepped & ~ended & ~(merit(at_x) <= highest)


def step_length(
    u: Array | np.ndarray, du: Array | np.ndarray, levels: ArrayLike = True
) -> Array:
    """The share of a step that keeps u > 0: 99.5 % of the way to the boundary, or 1."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return 0.995 / jnp.maximum(fastest, 0.995)


def _multipliers(problem: SimplexProblem, s: _Iterate, x: Array) -> tuple[Array, Array]:
    """z after the step to x, and the next barrier."""
    stepped = s.round == _STEP
    safe = problem.among(s.x, 1)
    dz = problem.among(s.barrier / safe - s.z - s.z / safe * s.dx)
    moved = jnp.maximum(
        s.z + step_length(s.z, dz, problem.levels) * dz, 1e-4 * s.barrier / safe
    )
    z = jnp.where(stepped & problem.levels, moved, s.z)
    product = jnp.sum(x * z) / problem.num_levels
    least = 0.05 * problem.tolerance / problem.num_levels
    whole = (s.tries < 2) & stepped  # after a step that was cut the barrier stays
    return z, jnp.where(whole, next_barrier(s.barrier, product, least), s.barrier)


def next_barrier(
    barrier: ArrayLike, product: Array | np.floating, least: ArrayLike
) -> Array:
    """Superlinear once the products x z are small, linear before."""
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
    """Newton's step from x, the slope along it, and a length that keeps x > 0."""
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
