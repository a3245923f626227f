r"""Newton's method with an interior point for the least E max_n y_n T_(N-n), and the sums that it goes by.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_rule_in_pieces`):
five to fifteen of Newton's steps do. They end by the certificate, 1 - Σx min_n g_n / f. Batches go by `loop`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from bcgc_jax.distributions import Distribution
from bcgc_jax.exact.crossing import Crossing, shares
from bcgc_jax.exact.linear_algebra import LARGE, dot, solve_positive
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.plans.marks import Marks, peaks_of, rule, slope_of_homogeneous, threshold_hazard
from bcgc_jax.solvers.spectral import SUFFICIENT

# Intervals of the first rule, and entries of a matrix over levels and nodes at a time.
NUM_NODES, _CHUNK = 32, 2**18
# From `LARGE` on the Hessian, O(N³) a node, is that of a coarse rule or of an earlier step: it only says
# where to go. Value and slope, O(N²), are those of a fine rule, with so many nodes at a time. Nodes at which
# hardly any level may be the last are left out of the Hessian: those that add less than such a share of the
# value to load · slope, which is the value. At N = 1000 15 of 64 count.
_NODES_AT_A_TIME, _NO_SHARE = 32, 1e-5
# An answer counts once a rule so many times as fine agrees; else that one goes on. Four times as fine, it
# also tells its own error; Gauss's rules between kinks do not nest, and cannot.
_FINER, _FINER_WITH_KINKS, FINEST = 4, 2, 64
# The largest gap, for many levels, that the optimum of a coarse rule may be left with. A rule that is off by
# more than the second is refined at once: steps by it find nothing but its error.
_ROUGH, _BLIND = 1e-3, 1e-2
# In a batch of so many problems sums are made for batches: a sweep to N = 50, 24 problems at a time, takes
# 6.3 s of CPU in place of 10.6. Entries, in problems · N², that a batch works on at a time on a CPU.
_MANY_LANES, _CACHED = 20, 2**13
_BACKTRACK, _MAX_TRIES = 0.4, 6
# What a round does: evaluate the start, make a Newton step, check the answer by a finer rule, nothing more.
_START, _STEP, _CHECK, _DONE = range(4)


class Workers(NamedTuple):
    """What F(y) = E max_n y_n T_(N-n) goes by, beside the load y."""

    law: Distribution
    marks: Marks
    num_workers: ArrayLike


class Sums(NamedTuple):
    """Of values, slopes and the upper half of the Hessian in the load, over the nodes so far.

    The values are those of the rule, of its every second and fourth node, and of what is left out, `[4]`; the
    slopes are those of the first, `[1, N]`, of many levels of the first three.
    """

    value: Array
    slope: Array
    upper: Array


class Given(NamedTuple):
    """The problem on the unit simplex of the `levels`: load = loads @ x.

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

    def among(self, values: Array, others: ArrayLike = 0) -> Array:
        """The values on the levels, and something else on the others."""
        return jnp.where(self.levels, values, others)


class _Iterate(NamedTuple):
    """Newton's method, before an evaluation of f at x + length · dx.

    What the round does, Newton steps so far, fineness of the rule, how often this step was tried; x,
    multipliers z, dx, length, barrier μ; at x: f / f₀, its error, the best least slope so far; the slope
    along the step; f₀; the next piece of the nodes, and the sums before it.
    """

    round: Array
    steps: Array
    refine: Array
    tries: Array
    x: Array
    z: Array
    dx: Array
    length: Array
    barrier: Array
    value: Array
    error: Array
    least: Array
    descent: Array
    unit: Array
    piece: Array
    sums: Sums


def search(
    given: Given, start: Array, finite_mean: Array, max_steps: int
) -> tuple[Array, Array, Array, Array]:
    """Whether the gap was met, the steps, each level's share, and its expected maximum, error and bound."""

    def go_on(_: Given, s: _Iterate) -> Array:
        return (s.round != _DONE) & (s.refine <= FINEST) & ((s.steps < max_steps) | (s.round != _STEP))

    def step(size: int) -> Callable[[Given, _Iterate], _Iterate]:
        return functools.partial(_one_piece, batched=size >= _MANY_LANES)

    # As many as a CPU's cache holds; as 4 GB of an accelerator, with six arrays over levels² and nodes.
    room, size = 2**32 // (6 * 8 * NUM_NODES), start.size
    lanes = min(max(_CACHED // size**2, 1), 32), min(max(room // size**2, 1), 2**13)
    return loop(go_on, step, _answer, given, _first(given, start, finite_mean), lanes=lanes)


def _first(given: Given, start: Array, finite_mean: Array) -> _Iterate:
    """Before the evaluation of the start."""
    barrier = 1e-2 / given.num_levels
    z = given.among(barrier / given.among(start, 1))
    zero, one, none = jnp.zeros_like(barrier), jnp.ones_like(barrier), jnp.asarray(0)
    # No step helps an infinite mean.
    first = jnp.where(finite_mean, _START, _DONE)
    counts = first, none, jnp.asarray(first_fineness(start.size)), none
    numbers = one, barrier, one, zero, zero, zero, one
    return _Iterate(*counts, start, z, 0 * start, *numbers, none, _no_sums(start))


def _answer(_: Given, s: _Iterate) -> tuple[Array, Array, Array, Array]:
    total = jnp.sum(s.x)
    found = jnp.stack([s.value, s.error, s.least * total]) * (s.unit / total)
    return (s.round == _DONE) & (s.value > 0), s.steps, s.x / total, found


def _one_piece(given: Given, s: _Iterate, *, batched: bool) -> _Iterate:
    """Evaluate at one piece of the nodes, of many levels at all, and go on from there once it was the last.

    Each lane of a batch does as many pieces as it needs: a finer rule holds up no other.
    """
    workers, load = given.workers, dot(given.loads, _trial(given, s))
    if load.size > LARGE and workers.law.smooth:
        start, sums = sums_over_nodes(workers, load, s.refine, with_hessian=False)
        # Where steps have to be cut, the Hessian is none of here.
        fresh = (s.refine == first_fineness(load.size)) | (s.round == _CHECK) | (s.length < 1)
        coarse = jnp.asarray(first_fineness(load.size))
        upper = jax.lax.cond(
            fresh, lambda: sums_over_nodes(workers, load, coarse)[1].upper, lambda: s.sums.upper
        )
        found = derivatives(workers, given.loads, load, start, sums._replace(upper=upper))
        return _decide(given, s, *found)._replace(sums=s.sums._replace(upper=upper))
    start, count, add = _rule_in_pieces(workers, load, s.refine, batched=batched)
    sums = add(s.piece, s.sums)

    def onward() -> _Iterate:
        decided = _decide(given, s, *derivatives(workers, given.loads, load, start, sums))
        return decided._replace(piece=jnp.zeros_like(s.piece), sums=_no_sums(load))

    waiting = s._replace(piece=s.piece + 1, sums=sums)
    return jax.lax.cond(s.piece + 1 >= count, onward, lambda: waiting)


def _trial(given: Given, s: _Iterate) -> Array:
    return given.among(s.x + s.length * s.dx)


def _decide(given: Given, s: _Iterate, value: Array, error: Array, slopes: Array, hessian: Array) -> _Iterate:
    """The next evaluation, after that of f at x + length · dx.

    Rounds that only evaluate are steps of length 0, so that the evaluation is compiled once.
    """
    x, stepped = _trial(given, s), s.round == _STEP
    # f₀ is the value at the start, known after the first round.
    unit = jnp.where(s.round == _START, value, s.unit)
    value, error, slopes, total = value / unit, error / unit, slopes / unit, jnp.sum(x)
    least, *coarser = jnp.min(given.among(slopes, jnp.inf), axis=1)
    doubt = rule_error(least, *coarser) if coarser else jnp.zeros_like(least)
    # The bound is to have the error of the value, and what its own is beyond it.
    off, off_before = error / total, s.error / jnp.sum(s.x)
    bound = least - jnp.maximum(doubt, off)
    # Each point bounds f from below, and where f nearly has kinks the last one does not do so best.
    bound = jnp.maximum(bound, jnp.where(stepped, s.least - off_before, -jnp.inf))
    at_x = s._replace(x=x, value=value, error=error, least=bound + off, unit=unit)
    after, again = _verdict(given, s, at_x, least, bound)

    def shorter() -> _Iterate:
        return s._replace(tries=s.tries + 1, length=_BACKTRACK * s.length, least=bound + off_before)

    def onward() -> _Iterate:
        z, barrier = _multipliers(given, s, x)
        dx, descent, length = _direction(given, x, z, barrier, slopes[0], hessian / unit)
        finer = _FINER if given.workers.law.smooth else _FINER_WITH_KINKS
        step = after == _STEP
        return at_x._replace(
            round=after,
            steps=s.steps + stepped,
            refine=jnp.where(after == _CHECK, finer * s.refine, s.refine),
            tries=jnp.zeros_like(s.tries),
            z=z,
            dx=jnp.where(step, dx, 0),
            length=jnp.where(step, length, 1),
            barrier=barrier,
            descent=jnp.where(step, descent, 0),
        )

    return jax.lax.cond(again, shorter, onward)


def _verdict(given: Given, s: _Iterate, at_x: _Iterate, least: Array, bound: Array) -> tuple[Array, Array]:
    """What the next round does, and whether it rather is this step again, shorter.

    `least` is the least slope at x; `bound` the best one so far, less its error.
    """
    value, total, stepped = at_x.value, jnp.sum(at_x.x), s.round == _STEP
    enough = given.tolerance
    if given.levels.size > LARGE:  # beyond its own error, a rule's optimum is not looked for
        enough = jnp.maximum(enough, jnp.minimum(at_x.error / value, _ROUGH))
    met = least * total >= (1 - enough) * value
    if given.workers.law.smooth:  # the gap with its error
        certified = bound * total >= (1 - given.tolerance) * value
        sure = (s.refine > first_fineness(given.levels.size)) & certified
    else:  # a rule that only confirms another
        sure = met & (s.round == _CHECK)
    sure |= bound * at_x.unit >= given.least
    # All that steps by this rule can do: its bound is met, or a merit that does not fall contradicts
    # its slope. The certificate is then that of the next rule.
    ended = met | sure | (s.tries + 1 >= _MAX_TRIES)
    blind = ~stepped & (at_x.error > _BLIND * value) & (_FINER * s.refine <= FINEST)
    after = jnp.where(ended | blind, jnp.where(sure, _DONE, _CHECK), _STEP)

    def merit(at: _Iterate) -> Array:
        logs = jnp.sum(jnp.log(given.among(at.x, 1)))
        return at.value - jnp.log(jnp.sum(at.x)) - s.barrier * logs

    highest = merit(s) + s.length * SUFFICIENT * s.descent + 64 * jnp.finfo(value.dtype).eps
    # Below the error of a coarse rule the merit may rise on the way to its very optimum.
    return after, stepped & ~ended & ~(merit(at_x) <= highest)


def step_length(u: Array | np.ndarray, du: Array | np.ndarray, levels: ArrayLike = True) -> Array:
    """The share of a step that keeps u positive: at most 99.5 % of the way to the boundary, as customary."""
    fastest = jnp.max(jnp.where(levels, -du / jnp.where(levels, u, 1), 0))
    return 0.995 / jnp.maximum(fastest, 0.995)


def _multipliers(given: Given, s: _Iterate, x: Array) -> tuple[Array, Array]:
    """z after the step to x, and the next barrier."""
    stepped, safe = s.round == _STEP, given.among(s.x, 1)
    dz = given.among(s.barrier / safe - s.z - s.z / safe * s.dx)
    moved = jnp.maximum(s.z + step_length(s.z, dz, given.levels) * dz, 1e-4 * s.barrier / safe)
    z = jnp.where(stepped & given.levels, moved, s.z)
    # None after a step that was cut.
    product, least = jnp.sum(x * z) / given.num_levels, 0.05 * given.tolerance / given.num_levels
    return z, jnp.where((s.tries < 2) & stepped, next_barrier(s.barrier, product, least), s.barrier)


def next_barrier(barrier: ArrayLike, product: Array | np.floating, least: ArrayLike) -> Array:
    """Superlinear once the products x z are small, linear before."""
    smaller = jnp.minimum(0.1 * product, 5 * product * jnp.sqrt(product))
    return jnp.minimum(barrier, jnp.maximum(smaller, least))


def _direction(
    given: Given, x: Array, z: Array, barrier: Array, slope: Array, hessian: Array
) -> tuple[Array, Array, Array]:
    """Newton's step from x, the slope along it, and the length that keeps x positive."""
    safe, total, eye = given.among(x, 1), jnp.sum(x), np.eye(x.size, dtype=bool)
    slope = given.among(slope - 1 / total - barrier / safe)
    hessian = hessian + 1 / total**2 + jnp.where(eye, z / safe, 0)
    scaled = jnp.where(given.levels[:, None] & given.levels, hessian * safe[:, None] * safe, eye)
    dx = given.among(solve_positive(scaled, -slope * safe) * safe)
    return dx, jnp.sum(slope * dx), step_length(x, dx, given.levels)


def _no_sums(load: Array) -> Sums:
    zero = jnp.zeros((load.size, load.size), load.dtype)
    rules = 3 if load.size > LARGE else 1
    return Sums(jnp.zeros(4, load.dtype), jnp.zeros((rules, load.size), load.dtype), zero)


def sums_over_nodes(
    workers: Workers, load: Array, refine: Array, *, with_hessian: bool = True
) -> tuple[Array, Sums]:
    """The start of the rule that is `refine` times as fine, and the sums over its nodes."""
    start, count, add = _rule_in_pieces(workers, load, refine, with_hessian=with_hessian)
    return start, jax.lax.fori_loop(0, count, add, _no_sums(load))


def first_fineness(size: int) -> int:
    """Of the first rule: what a level adds to the runtime is in a range of times that goes with 1/√N."""
    return 1 if size <= LARGE else max(1, round((size / 256) ** 0.5))


def nested_rules(index: Array, count: Array) -> Array:
    """The weights of nodes in the rule, in that of every second and fourth one, at both ends, `[4, K]`."""
    ends = (index == 0) | (index == count - 1)
    return jnp.stack([1 + 0 * index, 2 * (index % 2 == 0), 4 * (index % 4 == 0), ends])


def _rule_in_pieces(
    workers: Workers, load: Array, refine: Array, *, batched: bool = False, with_hessian: bool = True
) -> tuple[Array, Array, Callable[[Array, Sums], Sums]]:
    r"""The rule for F(y) = E max_n y_n T_(N-n), `refine` times as fine: its start, its pieces, their sums.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    """
    start, beyond, size, nodes = rule(workers.law, workers.marks, load, NUM_NODES)
    many = load.size > LARGE
    chunk = max(1, min(size, _CHUNK // load.size**2)) if with_hessian else min(size, _NODES_AT_A_TIME)

    def add(piece: Array, sums: Sums) -> Sums:
        index = piece * chunk + jnp.arange(chunk)
        t, weight = nodes(index, refine)
        hazard, rate = threshold_hazard(workers.law, load, t, workers.marks.largest)
        crossing = Crossing(shares(hazard), workers.num_workers, batched)
        density = crossing.above * jnp.moveaxis(rate, -1, 0)[::-1]
        following = None
        if with_hessian and not many:
            first, success, following = crossing.renewals()
        else:
            first, success = crossing.first_failures(), crossing.successes()
        rules = nested_rules(index, size * refine)
        value = jnp.sum(rules * weight * crossing.probability(first), axis=1)
        value = value + jnp.where(piece == 0, beyond, 0) * np.array([0, 0, 0, 1], load.dtype)
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        leaving = arrive * success
        slope = dot(rules[:3], leaving.T) if many else jnp.sum(leaving, axis=-1)

        def upper() -> Array:
            between = crossing.renewals()[2] if following is None else following
            both = jnp.sum(arrive[:, None] * between * leave[None], axis=-1)
            return sums.upper - crossing.unit * both

        found = Sums(sums.value + value, sums.slope + slope, sums.upper)
        if not with_hessian:
            return found
        if not many:
            return found._replace(upper=upper())
        part = jnp.sum(dot(load[::-1], leaving)) / peaks_of(workers.marks.times, load)[2]
        return found._replace(upper=jax.lax.cond(part > _NO_SHARE, upper, lambda: sums.upper))

    return start, jax.lax.div(size * refine + chunk - 1, jnp.asarray(chunk, refine.dtype)), add


def derivatives(
    workers: Workers, loads: Array, load: Array, start: Array, sums: Sums
) -> tuple[Array, Array, Array, Array]:
    r"""Value, error, slopes and Hessian in x of F(y), y = loads @ x, from the sums over all nodes.

    Slopes are `[1, N]`, of many levels by three rules, `[3, N]`. F is homogeneous of degree 1, so
    Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    fine, coarse, coarsest, left_out = sums.value
    value, error = start + fine, rule_error(fine, coarse, coarsest) + left_out
    if not workers.law.smooth:  # Gauss's rules do not nest
        error = jnp.zeros_like(error)
    hessian = jnp.minimum(sums.upper + sums.upper.T, 0)[::-1, ::-1]
    diagonal = -dot(hessian, load) / jnp.where(load > 0, load, 1)
    hessian = hessian + jnp.where(np.eye(load.size, dtype=bool), diagonal, 0)
    slopes = [
        slope_of_homogeneous(value, slope[::-1], load, workers.num_workers)
        for value, slope in zip(start + sums.value, sums.slope, strict=False)
    ]
    size = loads.shape[1]
    both = dot(loads.T, jnp.concatenate([dot(hessian, loads), jnp.stack(slopes, axis=1)], axis=1))
    return value, error, both[:, size:].T, both[:, :size]


def loop(
    go_on: Callable[[Any, Any], Array],
    step_of: Callable[[int], Callable[[Any, Any], Any]],
    answer: Callable[[Any, Any], Any],
    constants: Any,
    state: Any,
    *,
    lanes: tuple[int, int],
) -> Any:
    """`answer` of the state after steps for as long as `go_on`: `jax.lax.while_loop`, but for `jax.vmap`.

    All three are functions of constants and state, and of traced values only by these. A `while_loop` under
    `vmap` runs all problems as long as the slowest of them. Here `lanes` of them run at a time, on a CPU and
    elsewhere, and a lane whose problem is done takes up the next one. Of so many problems the step is
    `step_of` their number.
    """
    step = step_of(1)

    @jax.custom_batching.custom_vmap
    def run(constants: Any, state: Any) -> Any:
        last = jax.lax.while_loop(lambda s: go_on(constants, s), lambda s: step(constants, s), state)
        return answer(constants, last)

    @run.def_vmap
    def run_many(size: int, batched: Any, constants: Any, state: Any) -> tuple[Any, Any]:
        def each(a: ArrayLike, is_batched: bool) -> Array:
            return jnp.asarray(a) if is_batched else jnp.broadcast_to(a, (size, *jnp.shape(a)))

        cells = jax.tree.map(each, (constants, state), tuple(batched))
        functions = go_on, step_of(size), answer
        on_cpu, elsewhere = (functools.partial(_run_lanes, functions, size, min(n, size)) for n in lanes)
        # Known where it is compiled, not where it is traced: programs are exported for other platforms.
        few = size <= min(lanes)
        answers = on_cpu(*cells) if few else jax.lax.platform_dependent(*cells, cpu=on_cpu, default=elsewhere)
        return answers, jax.tree.map(lambda _: True, answers)

    return run(constants, state)


def _run_lanes(
    functions: tuple[Callable[..., Any], ...], size: int, lanes: int, constants: Any, state: Any
) -> Any:
    """The answers of all cells, `constants` and `state` with a leading axis of `size`."""
    go_on, step, answer = functions
    # A state is a row of numbers: with an array for each field there is a tenth more to compile.
    _, fields = ravel_pytree(jax.tree.map(lambda a: a[0], state))
    state = jax.vmap(lambda s: ravel_pytree(s)[0])(state)

    def answered(constants: Any, row: Array) -> Any:
        return answer(constants, fields(row))

    def take(index: Array) -> tuple[Any, Any]:
        return jax.tree.map(lambda a: a.at[index].get(mode="clip"), (constants, state))

    def one(constants: Any, row: Array) -> tuple[Array, Array]:
        # A cell that needs no step takes none.
        state = fields(row)
        row = jnp.where(go_on(constants, state), ravel_pytree(step(constants, state))[0], row)
        return row, go_on(constants, fields(row))

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        at, following, (constants, state), answers = carry
        state, open_ = jax.vmap(one)(constants, state)
        done = (at < size) & ~open_
        new = (at, following, (constants, state), answers)
        return jax.lax.cond(jnp.any(done), refill, lambda _, *same: same, done, *new)

    def refill(done: Array, at: Array, following: Array, running: Any, answers: Any) -> tuple[Any, ...]:
        found = jax.vmap(answered)(*running)
        place = jnp.where(done, at, size)
        answers = jax.tree.map(lambda a, b: a.at[place].set(b, mode="drop"), answers, found)
        at = jnp.where(done, jnp.minimum(following + jnp.cumsum(done) - 1, size), at)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return at, following + jnp.sum(done), jax.tree.map(choose, take(at), running), answers

    at, running = jnp.arange(lanes), jax.tree.map(lambda a: a[:lanes], (constants, state))
    shapes = jax.eval_shape(jax.vmap(answered), *running)
    answers = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), shapes)
    carry = at, jnp.asarray(lanes), running, answers
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < size), advance, carry)[3]
