"""The expected time until all is there, and P(it is late), by any exact rule of completion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.distributions import Distribution
from bcgc_jax.distributions.atoms import mass_of
from bcgc_jax.exact import quadrature
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.exact.crossing import MANY
from bcgc_jax.exact.linear_algebra import dot
from bcgc_jax.exact.quadrature import Expectation, Quadrature, largest
from bcgc_jax.exact.windows import LEFT_OUT
from bcgc_jax.plans.completion import Exact
from bcgc_jax.plans.marks import images_of, peaks_of
from bcgc_jax.plans.worker import (
    AT_A_TIME,
    NUM_INNER,
    Load,
    Worker,
    delivered,
    hazard_of,
    late_hazard,
)

# Intervals of the trapezoid rule, a multiple of 4: two halvings give the error estimate.
NUM_NODES = 128
# The most tasks whose times show every knot: without them a slope of nested groups was off by its
# own size.
_FEW = 64


def expected_completion(
    worker: Worker, load: Load, rule: Exact, *, num_nodes: int = NUM_NODES
) -> Expectation:
    r"""E τ = ∫ P(τ > t) dt, in units of κ, for tasks of this `load`; differentiable.

    Exact sums where start-up and cycle time are both atomic; else the rules of `quadrature`. The
    error counts that of the probabilities: Σ weight Σ_k |∂P/∂h_k| (error of
    P(F_k > t)) / P(F_k > t).
    """
    if worker.stepwise:
        return with_rounding(load.work, _over_steps(worker, load, rule))
    worker = worker.with_fast_inverses()
    if not rule.by_task and load.work.size <= _FEW:
        worker = worker.with_knots()
    nodes = _nodes(worker, load, rule, num_nodes)
    inner = max(24, num_nodes // 2)
    hazard, unsure = _late_hazards(worker, load, nodes.times, inner)
    if worker.start.atomic or worker.cycle_time.atomic:  # without a quadrature over start-ups
        found = quadrature.integrate(nodes, rule.late(hazard))
        error = found.error
    else:
        late, pull_back = jax.vjp(rule.late, hazard)
        (slope,) = pull_back(jnp.ones_like(late))
        doubt = jnp.abs(slope) * unsure * jnp.exp(jnp.minimum(hazard, 700))
        found = quadrature.integrate(nodes, late)
        doubt = jnp.sum(jnp.where(unsure > 0, doubt, 0), axis=1)
        error = found.error + jnp.sum(nodes.weights[0] * doubt)
    laws = worker.cycle_time, worker.start
    found = Expectation(found.value, error)
    value, error = with_rounding(load.work, found, sum(law.rounding for law in laws))
    tolerated = rule.tolerated(load.work)
    finite = jnp.all(jnp.stack([law.has_mean(tolerated, rule.num_workers) for law in laws]))
    return Expectation(
        jnp.where(finite, value, jnp.inf), jax.lax.stop_gradient(jnp.where(finite, error, 0))
    )


def with_rounding(load: Array, found: Expectation, rounding: float = 0.0) -> Expectation:
    """The same with an error that counts rounding, and what the windows of many workers leave out.

    `rounding` is that of hazards, in eps. That of the triangular systems is 8 N eps at most: the
    worst of all distributions up to N = 50.
    """
    left_out = LEFT_OUT if load.size > MANY else 0.0
    share = (8 * load.size + rounding) * float(jnp.finfo(load.dtype).eps) + left_out
    return Expectation(found.value, found.error + share * found.value)


def exceedance(worker: Worker, load: Load, rule: Exact, t: Array) -> Array:
    """P(τ > t) for every entry of `t`."""
    hazard, _ = _late_hazards(worker.with_fast_inverses(), load, t.ravel(), NUM_INNER)
    return rule.late(hazard).reshape(t.shape)


def _late_hazards(worker: Worker, load: Load, t: Array, num_inner: int) -> tuple[Array, Array]:
    """`late_hazard` at many times, `[K]` to `[K, N]`, some at a time where memory is short."""
    size = load.work.size
    both = worker.start, worker.cycle_time
    parts = max([num_inner, *(law.breaks().size for law in both if law.atomic)])
    numbers = size * parts * (size if worker.overlap else 1)
    most = max(AT_A_TIME // numbers, 1)
    if t.size <= most:
        return late_hazard(worker, load, t[:, None], num_inner)
    # Chunks of nearly the same size: little is filled up.
    num_chunks = math.ceil(t.size / most)
    chunk = math.ceil(t.size / num_chunks)
    rows = jnp.pad(t, (0, -t.size % chunk), mode="edge").reshape(-1, chunk)
    at = jax.checkpoint(lambda row: late_hazard(worker, load, row[:, None], num_inner))
    found = jax.lax.map(at, rows)
    return tuple(a.reshape(-1, size)[: t.size] for a in found)  # type: ignore[return-value]


def _nodes(worker: Worker, load: Load, rule: Exact, num_nodes: int) -> Quadrature:
    """Along a line, or in panels between kinks; they move with the times at which P(τ > t)
    begins to fall."""
    still = jax.lax.stop_gradient((worker, load))
    choices, marks = rule.bounds(load.work)

    def hazard_at(t: Array) -> Array:
        return rule.bounding(late_hazard(*still, t[:, None], NUM_INNER // 4)[0])

    first = worker.infimum() + delivered(load, worker.cycle_time.infimum()[None], worker.overlap)
    first = first.astype(load.work.dtype)
    start = rule.first(first)
    plain = rule.by_task and worker.plain and load.sent is None
    if plain:  # no search: the times of these hazards, times the work
        times = worker.cycle_time.inverse_cumulative_hazard(marks).astype(load.work.dtype)
        peaks = jax.lax.stop_gradient(peaks_of(times, load.work))
        law = still[0].cycle_time
        kinks = None if law.smooth else images_of(law, still[1].work)
    else:
        peaks = _peaks(*still, rule, marks, jax.lax.stop_gradient(start))
        kinks = _kinks_of(*still)
    near = peaks[0] + 1e-6 * (peaks[2] - peaks[0])
    onsets = _onsets_of(worker, load, start, rule.rekindled)
    if not plain:  # What rounding sets apart from the start would make the next panel a wide one.
        onsets = jnp.where(onsets < near, start, onsets)
    onsets = jnp.sort(onsets)
    if rule.rekindled and worker.start.atomic:
        # Before the typical time all of it is smooth, but far wider than what is between the kinks.
        early = peaks[0] + (peaks[2] - peaks[0]) * np.array(
            [0.25, 0.5, 0.75, 0.9, 0.97], peaks.dtype
        )
        if kinks is None:
            # Most lie before the start; up to N = 1000 the rest is 2e-12 of the value.
            if load.kinds > 1:
                onsets = jnp.append(start, onsets[1:][-3 * load.kinds :])
            kinks = jax.lax.stop_gradient(onsets[1:]), None
        kinks = jnp.append(kinks[0], early), kinks[1]
    if kinks is None:
        found = quadrature.line_rule(quadrature.line(peaks, hazard_at, choices), num_nodes)
    else:
        images, last = kinks
        images = images if plain else jnp.where(images < near, peaks[0], images)
        between = quadrature.panels(peaks, images, last, hazard_at, choices)
        orders = (num_nodes // 12, num_nodes // 16, num_nodes // 24)
        # densities of start-ups and links may be powers; of very many panels each is small
        if not plain:
            few = between[1].size <= 4000
            orders = (num_nodes * 3 // 32, num_nodes // 16, num_nodes // 32) if few else (5, 3, 2)
        # With start-ups of a density all may be over soon behind a kink.
        steep = None if plain or worker.start.atomic else images
        found = quadrature.gauss_rules(between, orders, last is not None, not plain, steep)
    return quadrature.follow(found, onsets)


def _onsets_of(worker: Worker, load: Load, start: Array, turns: bool) -> Array:
    """The `start`, and where P(F_n > t) begins to fall after it, `[K]`, by `turns` for subsets."""
    law = worker.cycle_time
    starts = worker.atoms()[0] if worker.start.atomic else worker.infimum()[None]
    times = law.breaks() if law.atomic else law.infimum()[None]
    if starts.size * times.size == 1 and not turns:
        return start[None]
    found = starts[:, None, None] + delivered(load, times[:, None], worker.overlap)
    later = jnp.where(load.work > 0, found, start)[..., _marked(load)]
    later = later.ravel().astype(start.dtype)
    return jnp.append(start, jnp.where(later > start, later, start))


def _marked(load: Load) -> np.ndarray | slice:
    """The tasks at the images of whose kinks panels end."""
    size = load.work.size
    return quadrature.kinked_levels(size) if load.kinds == 1 else slice(None)


def _peaks(worker: Worker, load: Load, rule: Exact, marks: Array, start: Array) -> Array:
    """The `start`, when τ begins to be possible, and a low, a typical and a high time of it, `[4]`.

    Where the rule's bounding hazards are as in its `marks`, in the logarithm of the time from the
    start on.
    """
    dtype = load.work.dtype
    beyond = marks + np.log(2.0).astype(dtype)
    longest = worker.cycle_time.inverse_cumulative_hazard(beyond).astype(dtype)
    last = worker.start.inverse_cumulative_hazard(beyond).astype(dtype) / worker.unit
    scale = last[-1, 0] + jnp.max(delivered(load, longest[-1, :1], worker.overlap))
    highest = jnp.max(last + delivered(load, longest, worker.overlap), axis=-1, keepdims=True)
    room = highest - start
    furthest = quadrature.LONGEST[dtype.itemsize]

    def reached(log_share: Array) -> Array:
        hazard, _ = late_hazard(worker, load, start + room * jnp.exp(log_share), NUM_INNER // 4)
        return rule.bounding(hazard) >= marks

    nowhere = jnp.full_like(marks, -furthest)
    share, _ = bisect(reached, nowhere, jnp.zeros_like(marks), steps=20)
    found = start + jnp.where(share > -furthest, room * jnp.exp(share), 0)
    return quadrature.raised(jnp.max(found, axis=-1), scale)


def _kinks_of(worker: Worker, load: Load) -> tuple[Array, Array | None] | None:
    """Where P(F_n > t) may have kinks, and when all is delivered for sure; None if it is smooth."""
    dtype = load.work.dtype
    starts = worker.start
    law = worker.cycle_time
    one_start = starts.atomic and starts.breaks().size == 1
    # kinks within either distribution are smoothed by the other
    dense = not law.atomic and not starts.atomic
    overtaken = worker.overlap and load.sent is not None and not dense
    if law.smooth and ((one_start and not overtaken) or starts.smooth):
        return None

    def marks(law: Distribution) -> Array:
        if law.atomic:
            return law.breaks()
        times = jnp.append(law.infimum(), law.breaks())
        if not dense:
            return times
        return times[np.r_[0, -1]] if law.has_end else times[:1]

    start_marks = marks(starts)
    time_marks = marks(law)
    start_marks = (start_marks / worker.unit).astype(dtype)
    time_marks = time_marks.astype(dtype)
    if overtaken:
        time_marks = jnp.concatenate([_overtaking(load), time_marks])
    ready = delivered(load, time_marks[:, None], worker.overlap)
    images = (start_marks[:, None, None] + ready[:, _marked(load)]).ravel()
    last = start_marks[-1] + jnp.max(ready) if starts.has_end and law.has_end else None
    return images, last


def _overtaking(load: Load) -> Array:
    """The cycle time from which on work, not the link, decides when a level is delivered, `[N]`."""
    more = load.work[:, None] - load.work
    earlier = load.earlier & (more > 0)
    times = (load.began[:, None] - load.began) / jnp.where(earlier, more, 1)
    return largest(jnp.where(earlier, times, 0))


def _over_steps(worker: Worker, load: Load, rule: Exact) -> Expectation:
    """The exact sum of P(late), by the hazards, between the steps of all P(F_n ≤ t)."""
    dtype = load.work.dtype
    size = load.work.size
    starts, times, mass = (a.astype(dtype) for a in _steps(worker))
    used = (load.work > 0)[:, None]
    edges = jnp.where(
        used, (starts[:, None] + delivered(load, times[:, None], worker.overlap)).T, 0
    )
    # A stable order, and hazards by how many steps are past: ties then resolve as if a higher level
    # came later, and the slope is a true one there.
    gained = mass[jnp.argsort(edges, axis=1, stable=True)]
    early = jnp.cumsum(gained, axis=1)
    left = jnp.cumsum(gained[:, ::-1], axis=1)[:, ::-1]
    hazards = hazard_of(jnp.pad(early, [(0, 0), (1, 0)]), jnp.pad(left, [(0, 0), (0, 1)]))
    hazards = jnp.where(used, hazards, jnp.inf)
    order = jnp.argsort(edges.ravel(), stable=True)
    edges = edges.ravel()[order]
    gap = jnp.diff(edges)
    chunk = max(min(gap.size, 256), 1)
    short = -gap.size % chunk
    level = jnp.pad(order[:-1] // mass.size, (0, short)).reshape(-1, chunk)
    gap = jnp.pad(gap, (0, short)).reshape(-1, chunk)

    @jax.checkpoint
    def body(
        carry: tuple[Array, Array], piece: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        passed, total = carry
        level, gap = piece
        steps = passed + jnp.cumsum(jax.nn.one_hot(level, size, dtype=int), axis=0)
        late = rule.late(hazards[np.arange(size), jnp.minimum(steps, mass.size)])
        # An empty gap counts too: it has a slope. Between two infinite edges it is NaN.
        return (steps[-1], total + jnp.sum(jnp.where(gap >= 0, late * gap, 0))), None

    (_, total), _ = jax.lax.scan(body, (jnp.zeros(size, int), edges[0]), (level, gap))
    return Expectation(total, jnp.zeros_like(total))


def smoothed_exceedance(worker: Worker, load: Load, rule: Exact, t: Array, spread: Array) -> Array:
    """`exceedance` for one t; steps of a `stepwise` worker are spread by a factor e^±`spread`."""
    dtype = load.work.dtype
    used = load.work > 0
    starts, times, mass = (a.astype(dtype) for a in _steps(worker))
    ready = starts[:, None] + delivered(load, times[:, None], worker.overlap)
    slow = jax.nn.sigmoid((jnp.log(jnp.where(used, ready, 1)) - jnp.log(t)) / spread)
    survival = jnp.maximum(dot(mass, slow), jnp.finfo(dtype).tiny)
    return rule.late(jnp.where(used, -jnp.log(survival), jnp.inf))


def _steps(worker: Worker) -> tuple[Array, Array, Array]:
    """Start-ups in units of κ, cycle times and probabilities of all pairs of them, `[K]`."""
    if worker.pairs is not None:
        starts, times = worker.pairs.arrays()
        return starts / worker.unit, times, jnp.full(times.shape, 1 / times.size)
    starts, share = worker.atoms()
    atoms = worker.cycle_time.breaks()
    mass = mass_of(worker.cycle_time, atoms)
    both = jnp.meshgrid(starts, atoms, indexing="ij")
    return *map(jnp.ravel, both), (share[:, None] * mass).ravel()  # type: ignore[return-value]
