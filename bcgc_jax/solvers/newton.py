r"""Newton's method with an interior point for the least E max_n y_n T_(N-n), and the sums that it goes by.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`rule_in_pieces`), so
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

from bcgc_jax.distributions import Distribution
from bcgc_jax.exact.crossing import Crossing, shares
from bcgc_jax.exact.linear_algebra import LARGE, solve_positive
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.plans.marks import Marks, rule, slope_of_homogeneous, threshold_hazard
from bcgc_jax.solvers.batched_while import Lanes, loop

# Intervals of the first rule.
NUM_NODES = 32
# Entries of a matrix over levels and nodes at a time.
_CHUNK = 2**18
# From `LARGE` on the Hessian, O(N³) a node, is that of a coarse rule or of an earlier step, while value and
# slope, O(N²), are those of a fine one: it only says where to go. So many nodes at a time then.
_NODES_AT_A_TIME = 32
# A node with so little of the slope's sum is none of the Hessian's; all of them are below a thousandth.
_NO_SHARE = 1e-5
# An answer counts once a rule so many times as fine agrees; else that one goes on. Four times as fine, it
# also tells its own error; Gauss's rules for laws with kinks do not nest, and cannot.
_FINER, _FINER_WITH_KINKS, _FINEST = 4, 2, 64
# The largest gap, for many levels, that the optimum of a coarse rule may be left with.
_ROUGH = 1e-3
# Steps by a rule that is off by more find nothing but what it is off by: it is refined at once.
_BLIND = 1e-2
# In a batch of so many problems sums are made for batches: a sweep to N = 50, 24 problems at a time, takes
# 6.3 s of CPU in place of 10.6.
_MANY_LANES = 20
# Entries, in problems · N², that a batch works on at a time on a CPU.
_CACHED = 2**13
# A step keeps this share of the way to the boundary; Armijo's slope; backtracking. Customary values.
_TO_BOUNDARY, _SUFFICIENT, _BACKTRACK, _MAX_TRIES = 0.995, 1e-4, 0.4, 6
# What a round does: evaluate the start, make a Newton step, check the answer by a finer rule, nothing more.
_START, _STEP, _CHECK, _DONE = range(4)


class Sums(NamedTuple):
    """Of values, slopes and the upper half of the Hessian in the load, over the nodes so far.

    The values are those of the rule, of its every second and fourth node, and of what is left out, `[4]`; the
    slopes are those of the first, `[1, N]`, of many levels of the first three.
    """

    value: Array
    slope: Array
    upper: Array


class Expansion(NamedTuple):
    """Value, its error, slope and Hessian in x, or in the load; of many levels slopes by coarser rules."""

    value: Array
    error: Array
    slope: Array
    hessian: Array
    coarser: Array


class Shares(NamedTuple):
    """What a problem is on the unit simplex of the levels: load = loads @ x."""

    workers: Array
    levels: Array
    num_levels: Array
    loads: Array
    tolerance: Array


class Given(NamedTuple):
    """The same for Newton's method, which ends early where its bound reaches `least`."""

    law: Distribution
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


def search(
    given: Given, start: Array, finite_mean: Array, max_steps: int
) -> tuple[Array, Array, Array, Array]:
    """Whether the gap was met, the steps, each level's share, and its expected maximum, error and bound."""
    return loop(
        functools.partial(_go_on, max_steps=max_steps),
        _whole_round,
        lambda size: functools.partial(_one_piece, many=size >= _MANY_LANES),
        _answer,
        given,
        _Evaluating(_first(given, start, finite_mean), jnp.asarray(0), no_sums(start)),
        lanes=_lanes(start.size),
    )


def _first(given: Given, start: Array, finite_mean: Array) -> _Iterate:
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


def _go_on(given: Given, s: _Evaluating, *, max_steps: int) -> Array:
    del given
    at = _Counts(*s.iterate.counts)
    return (at.round != _DONE) & (at.refine <= _FINEST) & ((at.steps < max_steps) | (at.round != _STEP))


def _answer(_: Given, state: _Evaluating) -> tuple[Array, Array, Array, Array]:
    s = state.iterate
    count, at, x = _Counts(*s.counts), _Numbers(*s.numbers), s.path[0]
    total = jnp.sum(x)
    found = jnp.stack([at.value, at.error, at.least * total]) * (at.unit / total)
    return (count.round == _DONE) & (at.value > 0), count.steps, x / total, found


def _whole_round(given: Given, s: _Evaluating) -> _Evaluating:
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


def _one_piece(given: Given, s: _Evaluating, *, many: bool) -> _Evaluating:
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


def _trial(given: Given, s: _Iterate) -> Array:
    x, _, dx = s.path
    return jnp.where(given.levels, x + _Numbers(*s.numbers).length * dx, 0)


def _decide(given: Given, s: _Iterate, f: Expansion) -> _Iterate:
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


def _least_slope(given: Given, f: Expansion) -> tuple[Array, Array]:
    """min_n ∂f/∂x_n, and its error by coarser rules, where there are some."""
    least = jnp.min(jnp.where(given.levels, f.slope, jnp.inf))
    if not len(f.coarser):
        return least, jnp.zeros_like(least)
    coarse, coarsest = jnp.min(jnp.where(given.levels, f.coarser, jnp.inf), axis=1)
    return least, rule_error(least, coarse, coarsest)


def _verdict(
    given: Given, count: _Counts, at: _Numbers, total: Array, at_x: Array, more: Array, bound: Array
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


def step_length(u: Array, du: Array, levels: ArrayLike = True) -> Array:
    """The share of a step that keeps u positive."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)


def _multipliers(given: Given, s: _Iterate, x: Array) -> tuple[Array, Array]:
    """z after the step to x, and the next barrier."""
    count, at, (before, z, dx) = _Counts(*s.counts), _Numbers(*s.numbers), s.path
    stepped = count.round == _STEP
    safe = jnp.where(given.levels, before, 1)
    dz = jnp.where(given.levels, at.barrier / safe - z - z / safe * dx, 0)
    moved = jnp.maximum(z + step_length(z, dz, given.levels) * dz, 1e-4 * at.barrier / safe)
    z = jnp.where(stepped & given.levels, moved, z)
    # Superlinear once the products x z are small, linear before; none after a step that was cut.
    product = jnp.sum(x * z) / given.num_levels
    smaller = jnp.maximum(
        jnp.minimum(0.1 * product, 5 * product * jnp.sqrt(product)), 0.05 * given.tolerance / given.num_levels
    )
    barrier = jnp.where((count.tries < 2) & stepped, jnp.minimum(at.barrier, smaller), at.barrier)
    return z, barrier


def _direction(
    given: Given, x: Array, z: Array, barrier: Array, slope: Array, hessian: Array
) -> tuple[Array, Array, Array]:
    """Newton's step from x, the slope along it, and the length that keeps x positive."""
    safe, total = jnp.where(given.levels, x, 1), jnp.sum(x)
    slope = jnp.where(given.levels, slope - 1 / total - barrier / safe, 0)
    both = given.levels[:, None] & given.levels[None, :]
    hessian = hessian + 1 / total**2 + jnp.where(np.eye(x.size, dtype=bool), z / safe, 0)
    scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], np.eye(x.size, dtype=x.dtype))
    dx = jnp.where(given.levels, solve_positive(scaled, -slope * safe) * safe, 0)
    return dx, jnp.sum(slope * dx), step_length(x, dx, given.levels)


def _in_shares(loads: Array, f: Expansion) -> Expansion:
    """Of f in x, from that of F in the load."""
    slopes = jnp.concatenate([f.slope[None], f.coarser]).T
    both = loads.T @ jnp.concatenate([f.hessian @ loads, slopes], axis=1)
    size = loads.shape[1]
    return Expansion(f.value, f.error, both[:, size], both[:, :size], both[:, size + 1 :].T)


def no_sums(load: Array) -> Sums:
    zero = jnp.zeros((load.size, load.size), load.dtype)
    rules = 3 if load.size > LARGE else 1
    return Sums(jnp.zeros(4, load.dtype), jnp.zeros((rules, load.size), load.dtype), zero)


def sums_over_nodes(
    law: Distribution, known: Marks, load: Array, num_workers: ArrayLike, refine: Array
) -> tuple[Array, Sums]:
    """The start of the rule that is `refine` times as fine, and the sums over its nodes."""
    start, count, add = rule_in_pieces(law, known, load, num_workers, refine, False)
    return start, jax.lax.fori_loop(0, count, add, no_sums(load))


def sums_of_many(
    law: Distribution,
    known: Marks,
    load: Array,
    num_workers: ArrayLike,
    refine: Array,
    last: Sums,
    fresh: Array,
) -> tuple[Array, Sums]:
    """The same for many levels: the Hessian is of a coarse rule, or of the `last` sums unless `fresh`."""
    coarse = first_fineness(load.size)
    start, count, add = rule_in_pieces(law, known, load, num_workers, refine, False, with_hessian=False)
    sums = jax.lax.fori_loop(0, count, add, no_sums(load))
    upper = jax.lax.cond(
        (refine == coarse) | fresh,
        lambda: _upper_of_many(law, known, load, num_workers, coarse),
        lambda: last.upper,
    )
    return start, sums._replace(upper=upper)


def _upper_of_many(
    law: Distribution, known: Marks, load: Array, num_workers: ArrayLike, refine: int
) -> Array:
    """The Hessian's sum over the nodes at which levels may be the last: of 64 some 15, at N = 1000."""
    *_, nodes = rule(law, known, load, NUM_NODES)
    index = np.arange(NUM_NODES * refine)

    def share(index: Array) -> Array:
        t, weight = nodes(index, refine)
        crossing, density = _crossing(law, known, load, num_workers, t, False)
        paths = crossing.first_failures() * crossing.successes() * density
        return weight * jnp.sum(paths, axis=0) / crossing.total

    shares = jax.lax.map(share, index.reshape(-1, _NODES_AT_A_TIME)).ravel()
    chunk = _nodes_at_a_time(load.size, NUM_NODES)
    shares = jnp.pad(shares, (0, -index.size % chunk)).reshape(-1, chunk)
    counts = jnp.any(shares > _NO_SHARE * jnp.sum(shares), axis=1)
    _, _, add = rule_in_pieces(law, known, load, num_workers, jnp.asarray(refine), False)

    def add_piece(piece: Array, sums: Sums) -> Sums:
        return jax.lax.cond(counts[piece], add, lambda _, sums: sums, piece, sums)

    return jax.lax.fori_loop(0, counts.size, add_piece, no_sums(load)).upper


def _nodes_at_a_time(num_levels: int, size: int) -> int:
    """Of a Hessian: as many as fit a few MB."""
    return max(1, min(size, _CHUNK // num_levels**2))


def _crossing(
    law: Distribution, known: Marks, load: Array, num_workers: ArrayLike, t: Array, batched: bool
) -> tuple[Crossing, Array]:
    """The crossing at times t, and c on its axes."""
    hazard, rate = threshold_hazard(law, load, t, known.largest)
    crossing = Crossing(shares(hazard), num_workers, batched)
    return crossing, crossing.above * jnp.moveaxis(rate, -1, 0)[::-1]


def first_fineness(size: int) -> int:
    """Of the first rule: what a level adds to the runtime is in a range of times that goes with 1/√N."""
    return 1 if size <= LARGE else max(1, round((size / 256) ** 0.5))


def rule_in_pieces(
    law: Distribution,
    known: Marks,
    load: Array,
    num_workers: ArrayLike,
    refine: Array,
    batched: bool,
    *,
    with_hessian: bool = True,
) -> tuple[Array, Array, Callable[[Array, Sums], Sums]]:
    r"""The rule for F(y) = E max_n y_n T_(N-n), `refine` times as fine: its start, its pieces, their sums.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    """
    start, beyond, size, nodes = rule(law, known, load, NUM_NODES)
    chunk = _nodes_at_a_time(load.size, size) if with_hessian else min(size, _NODES_AT_A_TIME)

    def add(piece: Array, sums: Sums) -> Sums:
        index = piece * chunk + jnp.arange(chunk)
        t, weight = nodes(index, refine)
        crossing, density = _crossing(law, known, load, num_workers, t, batched)
        if with_hessian:
            first, success, following = crossing.renewals()
        else:
            first, success = crossing.first_failures(), crossing.successes()
        ends = (index == 0) | (index == size * refine - 1)
        rules = jnp.stack([1 + 0 * index, 2 * (index % 2 == 0), 4 * (index % 4 == 0), ends])
        value = jnp.sum(rules * weight * crossing.probability(first), axis=1)
        value = value + jnp.where(piece == 0, beyond, 0) * np.array([0, 0, 0, 1], load.dtype)
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        leaving = arrive * success
        slope = rules[:3] @ leaving.T if load.size > LARGE else jnp.sum(leaving, axis=-1)
        found = Sums(sums.value + value, sums.slope + slope, sums.upper)
        if not with_hessian:
            return found
        upper = -crossing.unit * jnp.sum(arrive[:, None] * following * leave[None], axis=-1)
        return found._replace(upper=sums.upper + upper)

    return start, jax.lax.div(size * refine + chunk - 1, jnp.asarray(chunk, refine.dtype)), add


def derivatives(
    law: Distribution, start: Array, load: Array, num_workers: ArrayLike, sums: Sums
) -> Expansion:
    r"""Value, error, slope and Hessian of F in y from the sums over all nodes.

    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    fine, coarse, coarsest, left_out = sums.value
    value, error = start + fine, rule_error(fine, coarse, coarsest) + left_out
    if not law.smooth:  # Gauss's rules do not nest
        error = jnp.zeros_like(error)
    hessian = jnp.minimum(sums.upper + sums.upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    hessian = hessian + jnp.where(np.eye(load.size, dtype=bool), diagonal, 0)
    values = (start + sums.value)[: len(sums.slope)]
    slope, *coarser = (
        slope_of_homogeneous(value, sum_[::-1], load, num_workers)
        for value, sum_ in zip(values, sums.slope, strict=True)
    )
    return Expansion(value, error, slope, hessian, jnp.asarray(coarser, load.dtype).reshape(-1, load.size))
