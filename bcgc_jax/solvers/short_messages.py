r"""The least expected runtime with blocks whose messages are shorter than they: fewer bytes for more work.

Of code p (`message_codes`) a block is computed on d_p subsets by each worker, survives s_p stragglers, and
1/m_p of its length is sent; whole blocks are m = 1, d = s + 1, the paper's. For shares x_p ≥ 0, Σ x_p = L,

    minimise f(x) = E max_n T_(N-n) κ y_n,  y_n = Σ_{s_p ≤ n} d_p x_p,  subject to Σ x_p / m_p ≤ β L.

Blocks are done in ascending order of s_p: let one that stands right before one of smaller s change places
with it, and the latter ends earlier, the former when the latter did, with a T_(N-s) that is no larger, so
that nothing is lost whatever T (Lemma 1 of the paper). So blocks of one tolerance are one level, and f is the
paper's in the work of the levels, which is linear in x: f is convex and homogeneous. With g its slope
anywhere, for every price λ ≥ 0 and every z within the limit,

    f(z) ≥ g·z ≥ g·z + λ (Σ z_p / m_p - β L) ≥ L (min_p (g_p + λ / m_p) - λ β):

the certificate of `runtime.certificate` with one multiplier for the bytes, λ what a coordinate less to send
would cost. A link's `send_time` is work of another kind, c Σ_{s_p ≤ n} x_p / m_p, and changes none of this,
but that where sending overlaps computing the order is only the one that is kept.

That f waits for any N - s of N workers. By fractional repetition m of each group, or m/q of each class, will
do, which is never later (`grouped_runtime`): the value is an upper bound of the runtime with such codes, and
exact for messages of full length; the lower bound is for plans by that value.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import Numbers, check, concrete, replace
from bcgc_jax.deliveries import Load
from bcgc_jax.message_codes import MessageCodes, message_codes
from bcgc_jax.problem import Problem, Status
from bcgc_jax.quadrature import Expectation
from bcgc_jax.runtime import lower_bound_of
from bcgc_jax.solvers.cutting_plane import Limit, cutting_plane
from bcgc_jax.solvers.optimal import least_gap
from bcgc_jax.solvers.solve import check_finite_mean

# Intervals of the rule that the answer is judged by, finer than that of the cuts; the room for cuts.
_JUDGING_NODES, _MAX_CUTS = 192, 500
# What the path's normal equations resolve in float32.
_SINGLE = 3e-4
# Within it of the shortest message, a limit leaves but the codes that have it.
_NO_ROOM = 1e-6
# Of the way from the shortest messages to the limit, where the search begins.
_INSIDE = 0.5


class ShortMessages(NamedTuple):
    """Shares of the codes, and what is known of them; `[K]` more in front for K limits.

    `partition`, `[P]`: coordinates by code, in the order in which they are computed; `expected_runtime`, its
    error, no plan's value is below `lower_bound`; `sent`: what a worker sends that finishes all, in shares of
    L; `price`: λ, by which the runtime falls for each coordinate more; `status`, a `Status`; `num_cuts`.
    """

    partition: Array
    expected_runtime: Array
    runtime_error: Array
    lower_bound: Array
    relative_gap: Array
    sent: Array
    price: Array
    status: Array
    num_cuts: Array


def short_messages(
    problem: Problem,
    limit: Numbers = 1.0,
    codes: MessageCodes | None = None,
    *,
    tolerance: ArrayLike = 1e-6,
) -> ShortMessages:
    r"""argmin E τ over blocks of all `codes`, Σ x_p / m_p ≤ `limit` · L, to a proven gap of `tolerance`.

    Args:
      problem: without setup, chain and random start-ups; `num_workers` known, that of the `codes`.
      limit: β, of what a worker may send, in shares of L; traced, `[K]` for a curve, one after the other by
        one program. From 1 on there is none; below the shortest message the plan is INFEASIBLE.
      codes: by default `message_codes(N)`.
      tolerance: not below 1e-6 for laws of atoms, and in float32 not below 3e-4.

    Ye & Abbe 2018 in the paper's scheme. Raises ValueError for what it cannot plan.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> found = short_messages(problem, [1.0, 0.5], tolerance=1e-3)
    >>> found.sent.round(2).tolist(), bool(found.expected_runtime[0] < found.expected_runtime[1])
    ([1.0, 0.5], True)
    """
    check_plannable(problem)
    limits, tolerance = checked(problem, limit, tolerance)
    if codes is None:
        codes = message_codes(int(np.asarray(problem.num_workers)))
    columns = tuple(jnp.asarray(a, problem.dtype) for a in (codes.tolerance, 1 / codes.parts, codes.work))
    return _search(problem, limits, columns, tolerance)


def checked(problem: Problem, limit: Numbers, tolerance: ArrayLike) -> tuple[Array, Array]:
    """Limits and tolerance, where they make sense; else ValueError."""
    check("tolerance", tolerance, "> 0")
    check("limit", limit, "> 0")
    limits = jnp.asarray(limit, problem.dtype)
    if limits.ndim > 1:
        raise ValueError(f"limit must be one number or a row of them, got shape {limits.shape}")
    return limits, jnp.asarray(tolerance, problem.dtype)


def check_plannable(problem: Problem) -> None:
    """ValueError for problems that short messages are not planned for."""
    problem.check_single()
    if concrete(problem.num_workers) is None:
        raise ValueError(
            "short messages need num_workers to be known before tracing: its divisors are the codes"
        )
    if problem.has_setup:
        raise ValueError("short messages are planned without setup_cycles and chain_cycles")
    if not problem.convex or not problem.iteration.exact:
        raise ValueError(
            "short messages are planned where the expected runtime is convex and exact: with a constant "
            "start_up, workers that are alike, or Rows"
        )
    check_finite_mean(problem)


@jax.jit
def _search(problem: Problem, limits: Array, columns: tuple[Array, ...], tolerance: Array) -> ShortMessages:
    def one(limit: Array) -> ShortMessages:
        return _one_limit(problem, limit, columns, tolerance)

    return jax.lax.map(one, limits) if limits.ndim else one(limits)


def _one_limit(problem: Problem, limit: Array, columns: tuple[Array, ...], tolerance: Array) -> ShortMessages:
    evaluate = functools.partial(_evaluate, replace(problem, start_up=None), columns)
    _, length, work = columns
    return within_limit(problem, evaluate, limit, length, work, tolerance)


def within_limit(
    problem: Problem,
    evaluate: Callable[..., tuple[Expectation, Array]],
    limit: Array,
    length: Array,
    work: Array,
    tolerance: Array,
) -> ShortMessages:
    """The best shares of codes with messages of this `length` and so much `work`, `[P]` each.

    `evaluate` gives, without start-ups and in the unit κ L, the expected runtime of shares and its slope, by
    a rule of `num_nodes` intervals.
    """
    cheapest = jnp.min(length)
    feasible = limit >= cheapest * (1 - _NO_ROOM)
    tight = limit <= cheapest * (1 + _NO_ROOM)
    # With no room inside there is no path to follow: only the shortest messages are left, without a limit.
    usable = jnp.where(tight, length <= cheapest, True)
    free = tight | (limit >= jnp.max(length))
    most = jnp.where(free, 2 * jnp.max(length), limit)
    single = 0.0 if length.dtype == jnp.float64 else _SINGLE
    tolerance = jnp.maximum(tolerance, max(least_gap(problem), single))

    def value_and_slope(share: Array) -> tuple[Array, Array]:
        expected, slope = evaluate(share)
        return expected.value, slope

    found = cutting_plane(
        value_and_slope,
        _start(length, work, usable, most),
        usable,
        tolerance=tolerance,
        max_cuts=_MAX_CUTS,
        limit=Limit(length, most),
    )
    judged, _ = evaluate(found.share, num_nodes=_JUDGING_NODES)
    start = jnp.asarray(0.0 if problem.start_up is None else problem.start_up, length.dtype)
    unit = problem.scale * problem.total
    value, error = start + unit * judged.value, unit * judged.error
    lower = lower_bound_of(start + unit * found.lower_bound - error, value)
    met = found.value - found.lower_bound <= tolerance * found.value
    status = jnp.where(met, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    good = feasible & problem.valid
    status = jnp.where(good, status, jnp.where(feasible, int(Status.INVALID), int(Status.INFEASIBLE)))
    price = jnp.where(free, jnp.where(tight, jnp.nan, 0), problem.scale * found.price)
    gap, sent = 1 - lower / value, jnp.sum(length * found.share)
    answer = ShortMessages(
        found.share * problem.total, value, error, lower, gap, sent, price, status, found.num_cuts
    )
    return jax.tree.map(lambda a: jnp.where(good, a, jnp.nan) if a.dtype == sent.dtype else a, answer)


def _start(length: Array, work: Array, usable: Array, most: Array) -> Array:
    """Positive shares within the limit, less of what takes more work."""
    share = jnp.where(usable, 1 / work**2, 0)
    share = share / jnp.sum(share)
    sent = length @ share
    shortest = jnp.where(usable & (length <= jnp.min(length)), 1.0, 0.0)
    shortest = shortest / jnp.sum(shortest)
    least = length @ shortest
    part = jnp.minimum(1, _INSIDE * (most - least) / jnp.maximum(sent - least, jnp.finfo(sent.dtype).tiny))
    return part * share + (1 - part) * shortest


def _evaluate(
    problem: Problem, columns: tuple[Array, ...], share: Array, **options: Any
) -> tuple[Expectation, Array]:
    """Of the shares, in the unit κ L: the expected runtime, and its slope."""
    tolerance, length, work = columns
    reached = np.arange(problem.max_workers)[:, None] >= tolerance

    def load_of(share: Array) -> Any:
        done = jnp.where(reached, work, 0) @ share
        if not problem.delivers:
            return done
        # In coordinates, as the link takes them.
        sent = problem.send_load / problem.scale * (jnp.where(reached, length, 0) @ share)
        return Load(problem.total * done, problem.total * sent)

    load, pull_back = jax.vjp(load_of, share)
    found, slope = problem.delivery.expected_max_and_slope(load, **options)
    unit = problem.total if problem.delivers else jnp.ones_like(work[0])
    return Expectation(found.value / unit, found.error / unit), pull_back(slope)[0] / unit


def grouped_runtime(
    problem: Problem,
    codes: MessageCodes,
    partition: ArrayLike,
    cycle_times: ArrayLike,
    *,
    repeated: bool = False,
) -> Array:
    r"""τ of drawn `cycle_times`, `[..., N]`, when as many messages have come as the codes need; `[...]`.

    Of a whole block, m = 1, those of any N - s workers, or where these are `repeated` in groups too one of
    each; of a shorter one r - s of each class of r neighbours. A constant start-up and the link count, each
    block being sent once it is computed.

    >>> from bcgc_jax.laws import Uniform
    >>> problem = Problem(Uniform(1.0, 5.0), num_workers=4, num_coordinates=10, num_samples=4.0)
    >>> codes, x = message_codes(4), np.zeros(8)
    >>> x[1] = 10  # each two neighbours send a half each, of two subsets
    >>> float(grouped_runtime(problem, codes, x, [1.0, 2.0, 3.0, 4.0]))
    80.0
    """
    check_plannable(problem)
    # Hashable, for the sizes of groups are shapes.
    size = np.where((codes.parts > 1) | repeated, codes.stored // codes.classes, problem.num_workers)
    columns = (codes.tolerance, codes.parts, codes.work, size)
    shapes = tuple(zip(*(column.tolist() for column in columns), strict=True))
    return _grouped(problem, jnp.asarray(partition), jnp.asarray(cycle_times), shapes)


@functools.partial(jax.jit, static_argnums=3)
def _grouped(problem: Problem, x: Array, times: Array, codes: tuple[tuple[int, int, int, int], ...]) -> Array:
    done = jnp.zeros((), x.dtype)
    ready = last = jnp.zeros_like(times)
    start = 0.0 if problem.start_up is None else jnp.asarray(problem.start_up)
    latest = jnp.zeros(times.shape[:-1], times.dtype)
    sent = jnp.zeros((), x.dtype)
    for amount, (tolerance, parts, work, size) in zip(x, codes, strict=True):
        done = done + work * amount
        sending = problem.send_load * amount / parts
        sent = sent + sending
        computed = problem.scale * done * times
        ready = jnp.maximum(ready, computed) + sending if problem.overlap else computed + sent
        last = jnp.sort(ready.reshape(*times.shape[:-1], -1, size), axis=-1)[..., size - 1 - tolerance]
        latest = jnp.where(amount > 0, jnp.maximum(latest, jnp.max(last, axis=-1)), latest)
    return start + latest
