"""Compute the expected runtime, and P(τ > t), for any exact recovery condition."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.distributions.atoms import mass_of
from bcgc_jax.exact import quadrature
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.exact.crossing import MANY
from bcgc_jax.exact.linear_algebra import dot
from bcgc_jax.exact.quadrature import Expectation, Quadrature, largest
from bcgc_jax.exact.windows import LEFT_OUT
from bcgc_jax.plans.completion import Bounds, Exact
from bcgc_jax.plans.marks import images_of, peaks_of
from bcgc_jax.plans.worker import (
    AT_A_TIME,
    Load,
    Worker,
    delivered,
    hazard_of,
    late_hazard,
)

# Intervals of the trapezoid rule. The error estimate halves their number twice, so it
# must be a multiple of 4.
NUM_NODES = 128
# Maximum number of tasks for which panels end at all knots of a distribution. Without
# knots, a derivative for nested groups had an error of its own size. With more tasks,
# there would be too many panels.
_FEW = 64

# The times of kinks, `[K]`, and the time when all tasks are surely delivered, or None.
_Kinks = tuple[Array, Array | None]


def expected_completion(
    worker: Worker, load: Load, rule: Exact, *, num_nodes: int = NUM_NODES
) -> Expectation:
    """Compute E τ = ∫ P(τ > t) dt, in units of κ, for tasks of this `load`.

    The result is differentiable. For a discrete cycle time it is an exact sum,
    otherwise a rule of `quadrature`.
    """
    law = worker.cycle_time
    if law.atomic:
        return with_rounding(load.work, _over_steps(worker, load, rule))
    worker = worker.with_fast_inverses()
    if not rule.by_task and load.work.size <= _FEW:
        worker = worker.with_knots()
    nodes = _nodes(worker, load, rule, num_nodes)
    hazard = _late_hazards(worker, load, nodes.times)
    integral = quadrature.integrate(nodes, rule.late(hazard))
    value, error = with_rounding(load.work, integral, law.rounding)
    finite = law.has_mean(rule.tolerated(load.work), rule.num_workers)
    value = jnp.where(finite, value, jnp.inf)
    return Expectation(value, jax.lax.stop_gradient(jnp.where(finite, error, 0)))


def with_rounding(
    load: Array, exact: Expectation, rounding: float = 0.0
) -> Expectation:
    """Add to the error: rounding, and the probability that windows leave out.

    `rounding` is the error of hazards, in eps. For all distributions up to N = 50, the
    triangular systems had an error of at most 8 N eps.
    """
    left_out = 0.0
    if load.size > MANY:
        left_out = LEFT_OUT
    share = (8 * load.size + rounding) * float(jnp.finfo(load.dtype).eps) + left_out
    return Expectation(exact.value, exact.error + share * exact.value)


def exceedance(worker: Worker, load: Load, rule: Exact, t: Array) -> Array:
    """Compute P(τ > t) for every entry of `t`."""
    hazard = _late_hazards(worker.with_fast_inverses(), load, t.ravel())
    return rule.late(hazard).reshape(t.shape)


def _late_hazards(worker: Worker, load: Load, t: Array) -> Array:
    """Compute `late_hazard` at many times, `[K]` to `[K, N]`, in batches."""
    size = load.work.size
    numbers = size * (size if worker.overlap else 1)
    largest_chunk = max(AT_A_TIME // numbers, 1)
    if t.size <= largest_chunk:
        return late_hazard(worker, load, t[:, None])
    # Batches of nearly equal size need little padding.
    num_chunks = math.ceil(t.size / largest_chunk)
    chunk = math.ceil(t.size / num_chunks)
    rows = jnp.pad(t, (0, -t.size % chunk), mode="edge").reshape(-1, chunk)
    hazards_of_row = jax.checkpoint(lambda row: late_hazard(worker, load, row[:, None]))
    return jax.lax.map(hazards_of_row, rows).reshape(-1, size)[: t.size]


def _nodes(worker: Worker, load: Load, rule: Exact, num_nodes: int) -> Quadrature:
    """Make a quadrature rule whose nodes follow the decrease of P(τ > t)."""
    still = jax.lax.stop_gradient((worker, load))
    first = worker.start + delivered(
        load, worker.cycle_time.infimum()[None], worker.overlap
    )
    start = rule.first(first.astype(load.work.dtype))
    bounds = rule.bounds(load.work)
    if rule.by_task and worker.plain and load.sent is None:
        nodes = _nodes_by_work(*still, rule, bounds, num_nodes)
        return quadrature.follow(nodes, start[None])
    peaks = _peaks(*still, rule, bounds.hazards, jax.lax.stop_gradient(start))
    near = peaks[0] + 1e-6 * (peaks[2] - peaks[0])
    # Kinds of workers with different loads may first finish a task at different times.
    rekindled = rule.rekindled or load.kinds > 1
    # Onsets that differ from the start only by rounding would make the next panel too
    # wide.
    onsets = _onsets_of(worker, load, start, rekindled)
    onsets = jnp.sort(jnp.where(onsets < near, start, onsets))
    kinks = _kinks_of(*still)
    if rekindled:
        if kinks is None and load.kinds > 1:
            # Most onsets are before the start. Up to N = 1000, the omitted ones change
            # the value by at most 2e-12 of it.
            onsets = jnp.append(start, onsets[1:][-3 * load.kinds :])
        kinks = _early_too(kinks, jax.lax.stop_gradient(onsets[1:]), peaks)
    if kinks is not None:
        images, last = kinks
        kinks = jnp.where(images < near, peaks[0], images), last
    nodes = _nodes_by_search(*still, rule, bounds.choices, peaks, kinks, num_nodes)
    return quadrature.follow(nodes, onsets)


def _nodes_by_work(
    worker: Worker, load: Load, rule: Exact, bounds: Bounds, num_nodes: int
) -> Quadrature:
    """Make a rule for workers whose time is cycle time × work."""
    law = worker.cycle_time
    times = law.inverse_cumulative_hazard(bounds.hazards).astype(load.work.dtype)
    peaks = peaks_of(times, load.work)
    hazard_at = _bounding(worker, load, rule)
    if law.smooth:
        return quadrature.line_rule(
            quadrature.line(peaks, hazard_at, bounds.choices),
            num_nodes,
            maybe_kinked=law.maybe_kinked,
        )
    images, last = images_of(law, load.work)
    panels = quadrature.panels(peaks, images, last, hazard_at, bounds.choices)
    orders = (num_nodes // 12, num_nodes // 16, num_nodes // 24)
    return quadrature.gauss_rules(panels, orders, last is not None)


def _nodes_by_search(
    worker: Worker,
    load: Load,
    rule: Exact,
    choices: Array,
    peaks: Array,
    kinks: _Kinks | None,
    num_nodes: int,
) -> Quadrature:
    """Make a rule along a line, or in panels between kinks."""
    hazard_at = _bounding(worker, load, rule)
    if kinks is None:
        return quadrature.line_rule(
            quadrature.line(peaks, hazard_at, choices),
            num_nodes,
            maybe_kinked=worker.cycle_time.maybe_kinked,
        )
    images, last = kinks
    panels = quadrature.panels(peaks, images, last, hazard_at, choices)
    # With a sending time, densities may behave like powers. Very many panels are small,
    # so few nodes are enough.
    orders = 5, 3, 2
    if panels.left.size <= 4000:
        orders = num_nodes * 3 // 32, num_nodes // 16, num_nodes // 32
    return quadrature.gauss_rules(panels, orders, last is not None, powers=True)


def _bounding(worker: Worker, load: Load, rule: Exact) -> Callable[[Array], Array]:
    """Return a function that computes the hazards of the bounds, `[T]` to `[T, J]`."""

    def hazard_at(t: Array) -> Array:
        return rule.bounding(late_hazard(worker, load, t[:, None]))

    return hazard_at


def _early_too(kinks: _Kinks | None, onsets: Array, peaks: Array) -> _Kinks:
    """Add times before the typical τ to the kinks, or to the onsets.

    Before the typical time, P(τ > t) is smooth, but over a much wider range than
    between kinks.
    """
    if kinks is None:
        images, last = (onsets, None)
    else:
        images, last = kinks
    shares = np.array([0.25, 0.5, 0.75, 0.9, 0.97], peaks.dtype)
    return jnp.append(images, peaks[0] + (peaks[2] - peaks[0]) * shares), last


def _onsets_of(worker: Worker, load: Load, start: Array, turns: bool) -> Array:
    """Return `start`, and the times from which P(F_n > t) decreases, `[K]`.

    `turns` says whether tasks become possible one after another.
    """
    law = worker.cycle_time
    if law.atomic:
        times = law.breaks()
    else:
        times = law.infimum()[None]
    if times.size == 1 and not turns:
        return start[None]
    first = worker.start + delivered(load, times[:, None], worker.overlap)
    later = jnp.where(load.work > 0, first, start)[..., _marked(load, law.jumps)]
    later = later.ravel().astype(start.dtype)
    return jnp.append(start, jnp.where(later > start, later, start))


def _marked(load: Load, jumps: bool) -> np.ndarray | slice:
    """Return the tasks at whose kinks panels end."""
    size = load.work.size
    if load.kinds == 1:
        return quadrature.kinked_levels(size, jumps)
    return slice(None)


def _peaks(
    worker: Worker, load: Load, rule: Exact, hazards: Array, start: Array
) -> Array:
    """Find the `start`, and a low, a typical and a high τ, `[4]`.

    At these times, the bounding hazards of the recovery condition are equal to
    `hazards`. The search is in the logarithm of the time since the start.
    """
    dtype = load.work.dtype
    beyond = hazards + np.log(2.0).astype(dtype)
    longest = worker.cycle_time.inverse_cumulative_hazard(beyond).astype(dtype)
    last = worker.start.astype(dtype)
    scale = last + jnp.max(delivered(load, longest[-1, :1], worker.overlap))
    highest = jnp.max(
        last + delivered(load, longest, worker.overlap), axis=-1, keepdims=True
    )
    room = highest - start
    furthest = quadrature.LONGEST[dtype.itemsize]

    def reached(log_share: Array) -> Array:
        hazard = late_hazard(worker, load, start + room * jnp.exp(log_share))
        return rule.bounding(hazard) >= hazards

    nowhere = jnp.full_like(hazards, -furthest)
    share, _ = bisect(reached, nowhere, jnp.zeros_like(hazards), steps=20)
    times = start + jnp.where(share > -furthest, room * jnp.exp(share), 0)
    return quadrature.raised(jnp.max(times, axis=-1), scale)


def _kinks_of(worker: Worker, load: Load) -> _Kinks | None:
    """Return the kinks of P(F_n > t), and when all is delivered, or None."""
    dtype = load.work.dtype
    law = worker.cycle_time
    overtaken = worker.overlap and load.sent is not None
    if law.smooth and not overtaken:
        return None
    time_kinks = law.breaks().astype(dtype)
    if not law.atomic:
        time_kinks = jnp.append(law.infimum().astype(dtype), time_kinks)
    if overtaken:
        time_kinks = jnp.concatenate([_overtaking(load), time_kinks])
    ready = delivered(load, time_kinks[:, None], worker.overlap)
    start = worker.start.astype(dtype)
    images = (start + ready[:, _marked(load, law.jumps)]).ravel()
    last = None
    if law.has_end:
        last = start + jnp.max(ready)
    return images, last


def _overtaking(load: Load) -> Array:
    """Return the cycle time above which work limits a delivery, `[N]`."""
    extra_work = load.work[:, None] - load.work
    earlier = load.earlier & (extra_work > 0)
    times = (load.began[:, None] - load.began) / jnp.where(earlier, extra_work, 1)
    return largest(jnp.where(earlier, times, 0))


def _over_steps(worker: Worker, load: Load, rule: Exact) -> Expectation:
    """Sum P(τ > t) exactly between the steps of all P(F_n ≤ t)."""
    dtype = load.work.dtype
    size = load.work.size
    start, times, mass = (a.astype(dtype) for a in steps(worker))
    used = (load.work > 0)[:, None]
    ready = start + delivered(load, times[:, None], worker.overlap)
    edges = jnp.where(used, ready.T, 0)
    # Hazards depend on the number of passed steps, in a stable order. Ties are then
    # resolved as if a higher level came later, which gives a valid derivative.
    gained = mass[jnp.argsort(edges, axis=1, stable=True)]
    early = jnp.cumsum(gained, axis=1)
    left = jax.lax.cumsum(gained, axis=1, reverse=True)
    hazards = hazard_of(
        jnp.pad(early, [(0, 0), (1, 0)]), jnp.pad(left, [(0, 0), (0, 1)])
    )
    hazards = jnp.where(used, hazards, jnp.inf)
    order = jnp.argsort(edges.ravel(), stable=True)
    edges = edges.ravel()[order]
    gap = jnp.diff(edges)
    chunk = max(min(gap.size, 256), 1)
    short = -gap.size % chunk
    level = jnp.pad(order[:-1] // mass.size, (0, short)).reshape(-1, chunk)
    gap = jnp.pad(gap, (0, short)).reshape(-1, chunk)

    @jax.checkpoint
    def add(
        so_far: tuple[Array, Array], piece: tuple[Array, Array]
    ) -> tuple[Any, None]:
        passed, total = so_far
        level, gap = piece
        steps = passed + jnp.cumsum(jax.nn.one_hot(level, size, dtype=int), axis=0)
        late = rule.late(hazards[np.arange(size), jnp.minimum(steps, mass.size)])
        # An empty gap still has a derivative. A gap between two infinite edges is NaN.
        return (steps[-1], total + jnp.sum(jnp.where(gap >= 0, late * gap, 0))), None

    (_, total), _ = jax.lax.scan(add, (jnp.zeros(size, int), edges[0]), (level, gap))
    return Expectation(total, jnp.zeros_like(total))


def smoothed_exceedance(
    worker: Worker, load: Load, rule: Exact, t: Array, spread: Array
) -> Array:
    """Compute `exceedance` at one t, with atoms spread by factors e^±`spread`."""
    dtype = load.work.dtype
    used = load.work > 0
    start, times, mass = (a.astype(dtype) for a in steps(worker))
    ready = start + delivered(load, times[:, None], worker.overlap)
    slow = jax.nn.sigmoid((jnp.log(jnp.where(used, ready, 1)) - jnp.log(t)) / spread)
    survival = jnp.maximum(dot(mass, slow), jnp.finfo(dtype).tiny)
    return rule.late(jnp.where(used, -jnp.log(survival), jnp.inf))


def steps(worker: Worker) -> tuple[Array, Array, Array]:
    """Return the start-up (in κ), the cycle times and their probabilities, `[K]`."""
    times = worker.cycle_time.breaks()
    return worker.start, times, mass_of(worker.cycle_time, times)
