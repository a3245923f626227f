r"""When N workers on a circle have covered all subsets: worker w does subsets w, w+1, …, w+D-1, one by one.

With r_w = the number that w has done by t, P(r ≤ δ) = P(F_{δ+1} > t), subset j is done when some worker
j-δ has r > δ. Around the circle the cover s that is carried over is a chain: after a worker that did r it is
max(s, r) - 1, and a subset is missed where both are 0 (design, section 3, *schedules*). The trace formula
P(τ ≤ t) = tr(A^N) loses a late τ to rounding. A miss leaves the chain at 0, so with f_l = P(the first miss
after one is l workers on), u_m = P(a miss m workers on) = Π_{δ<min(m,D)} P(r ≤ δ), and the arc of l workers
between two misses around the circle's cut, in positive terms,

    P(τ > t) = Σ_l l f_l u_{N-l}.

f_l is that of a chain of distributions: P(max(s, r) ≤ k) = P(s ≤ k) P(r ≤ k), less those with a miss.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.deliveries import Load, Worker, delivered, first_times, late_hazard
from bcgc_jax.expectation import with_rounding
from bcgc_jax.last_delivery import fast_inverses, kinks_of, late_hazards, nodes_of, onsets_of, over_steps
from bcgc_jax.laws import Law
from bcgc_jax.quadrature import Expectation, Quadrature, follow, integrate, kinked_levels

# Intervals of the rule, start-ups at each of the times.
_NUM_NODES, _INNER = 96, 64
# Halvings of a bracket, in the logarithm of the time that is left, and where it begins.
_HALVINGS, _LEAST = 40, 1e-12
# Expected numbers of missed subsets that mark where all are covered: low, typical, high.
_MISSED = 8.0, 0.7, 0.02
# Workers from which on powers of the chain's matrix cost less than its steps where D² is no more; nodes at a
# time.
_LONG, _ROWS = 1000, 32


def uncovered(late: Array, num_workers: ArrayLike, size: int) -> Array:
    """P(some subset is done by nobody), `[...]`, from P(r ≤ δ) for δ = 0…D-1, `[..., D]`.

    `num_workers` may be traced, up to the static `size`; D is at most that number.
    """
    depth, workers = late.shape[-1], jnp.asarray(num_workers, int)
    missed = jnp.concatenate([jnp.ones_like(late[..., :1]), jnp.cumprod(late, axis=-1)], axis=-1)
    if size < max(depth**2, _LONG):
        past = _Past(jnp.ones_like(late), jnp.zeros_like(late[..., 0]), jnp.zeros_like(workers))
        return _last_arcs(late, missed, workers, past, size)
    # Arcs up to N-D have one u: by doubling, and for nodes in turn, for a power of the chain is a matrix.
    rows = late.reshape(-1, depth)
    past = jax.lax.map(lambda row: _doubled(row, workers - depth, size), rows, batch_size=_ROWS)
    past = jax.tree.map(lambda a: a.reshape(late.shape[:-1] + a.shape[1:]), past)
    past = past._replace(miss=past.miss * missed[..., -1], workers=workers - depth)
    return _last_arcs(late, missed, workers, past, depth)


class _Past(NamedTuple):
    """After so many `workers` without a miss: P(that, and the cover is at most 0…D-1), `[..., D]`, and the
    sum Σ l f_l of the arcs before, `[...]`."""

    cover: Array
    miss: Array
    workers: Array


def _last_arcs(late: Array, missed: Array, workers: Array, past: _Past, count: int) -> Array:
    """Σ l f_l u_{N-l} over `count` arcs more than are past."""

    def step(cover: Array, _: None) -> tuple[Array, Array]:
        """One more worker, and the chance of the first miss."""
        reached = cover * late
        miss = reached[..., 0]
        reached = jnp.concatenate([reached[..., 1:], cover[..., -1:]], axis=-1)
        return jnp.maximum(reached - miss[..., None], 0), miss

    _, first_miss = jax.lax.scan(step, past.cover, None, length=count)
    length = past.workers + np.arange(1, count + 1)
    again = jnp.moveaxis(jnp.take(missed, jnp.clip(workers - length, 0, late.shape[-1]), axis=-1), -1, 0)
    weight = jnp.where(length <= workers, length, 0).astype(late.dtype)
    return past.miss + jnp.sum(weight.reshape(-1, *(1,) * (late.ndim - 1)) * first_miss * again, axis=0)


def _doubled(late: Array, count: Array, size: int) -> _Past:
    """The chain past `count` workers from a miss on, by powers of two of its matrix, in positive terms.

    `late`, `[D]`. From cover s to max(s, r) - 1, but for a miss; c and C are what the next L = 2^k workers
    add from each cover on: Σ f and Σ l f, and of twice as many c + P c and C + P (C + L c).
    """
    depth, dtype = late.size, late.dtype
    more = jnp.diff(late, append=1)  # P(r = 1…D)
    cover, reached = np.arange(depth)[:, None], np.arange(1, depth + 1)
    power = jnp.where(reached > cover, more, 0) + jnp.where(reached == cover, late[:, None], 0)
    missing = jnp.zeros(depth, dtype).at[0].set(late[0])
    later = jnp.zeros(depth, dtype)
    at, total, done = jnp.zeros(depth, dtype).at[0].set(1), jnp.zeros((), dtype), jnp.zeros_like(count)

    def double(k: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        power, missing, later, at, total, done = state
        length = jnp.left_shift(jnp.ones_like(count), k)
        used = (count & length) > 0
        total += jnp.where(used, (done + 1).astype(dtype) * (at @ missing) + at @ later, 0)
        at, done = jnp.where(used, at @ power, at), jnp.where(used, done + length, done)
        later, missing = later + power @ (later + length.astype(dtype) * missing), missing + power @ missing
        return power @ power, missing, later, at, total, done

    state = power, missing, later, at, total, done
    with jax.default_matmul_precision("highest"):
        *_, at, total, _ = jax.lax.fori_loop(0, size.bit_length(), double, state)
    return _Past(jnp.cumsum(at), total, count)


def expected_cover(
    worker: Worker,
    work: Array,
    num_workers: ArrayLike,
    size: int,
    num_nodes: int = _NUM_NODES,
) -> Expectation:
    """E of when all subsets are covered, in units of κ, for the `work` at the end of D subsets, `[D]`.

    Differentiable; exact for times and start-ups that are atoms. D must not be above N. inf exactly
    where E of the D-th fastest time is.
    """
    load, miss = Load(work, jnp.zeros_like(work)), _miss(num_workers, size)
    if worker.stepwise:
        return with_rounding(work, over_steps(worker, load, miss))
    worker = fast_inverses(worker)
    nodes = _quadrature(worker, load, num_workers, num_nodes)
    hazard, unsure = late_hazards(worker, load, nodes.times, _INNER)
    if isinstance(worker.start_up, Law):
        late, slope = jax.vjp(miss, hazard)
        doubt = jnp.abs(slope(jnp.ones_like(late))[0]) * unsure * jnp.exp(jnp.minimum(hazard, 700))
        doubt = jnp.sum(jnp.where(unsure > 0, doubt, 0), axis=1)
    else:
        late, doubt = miss(hazard), jnp.zeros(len(hazard), hazard.dtype)
    found = integrate(nodes, late)
    error = found.error + jnp.sum(nodes.weights[0] * doubt)
    laws = [law for law in (worker.cycle_time, worker.start_up) if isinstance(law, Law)]
    rounding = sum(law.rounding for law in laws)
    value, error = with_rounding(work, Expectation(found.value, error), rounding)
    # D neighbours that are slow together hold up a subset.
    finite = jnp.all(jnp.stack([law.has_mean(work.size - 1, num_workers) for law in laws]))
    return Expectation(jnp.where(finite, value, jnp.inf), jax.lax.stop_gradient(jnp.where(finite, error, 0)))


def late_cover(worker: Worker, work: Array, num_workers: ArrayLike, size: int, t: Array) -> Array:
    """P(not all subsets are covered by t), for every entry of `t`, in units of κ."""
    load = Load(work, jnp.zeros_like(work))
    hazard, _ = late_hazards(fast_inverses(worker), load, t.ravel(), _INNER)
    return _miss(num_workers, size)(hazard).reshape(t.shape)


def _miss(num_workers: ArrayLike, size: int) -> Callable[[Array], Array]:
    def of_hazard(hazard: Array) -> Array:
        return uncovered(jnp.exp(-hazard), num_workers, size)

    return of_hazard


def _quadrature(worker: Worker, load: Load, num_workers: ArrayLike, num_nodes: int) -> Quadrature:
    """Nodes for a P(τ > t) of at most N e^{-H}, H the sum of the hazards: neighbours that are all late."""
    dtype = load.work.dtype
    log_workers = jnp.log(jnp.asarray(num_workers, dtype))
    choices = jnp.stack([jnp.zeros_like(log_workers), log_workers])
    still, still_load = jax.lax.stop_gradient((worker, load))

    def all_late(t: Array) -> Array:
        hazard, _ = late_hazard(still, still_load, t[:, None], _INNER // 4)
        return jnp.sum(hazard, axis=-1, keepdims=True)

    one = jax.tree.map(lambda a: a[:1], still_load)
    firsts = first_times(worker, load)
    known = jax.lax.stop_gradient(firsts)
    wanted = jnp.maximum(log_workers - np.log(_MISSED).astype(dtype), 0.02)
    peaks = jnp.concatenate([known[:1], times_at(still, one, all_late, known[0], wanted)])
    kinks = kinks_of(still, still_load)
    if kinks is None and not isinstance(worker.start_up, Law):
        # Where a second subset becomes possible, at twice the infimum, P has a kink, and so on.
        kinks = known[kinked_levels(load.work.size)], None
    found = nodes_of(peaks, kinks, all_late, choices, num_nodes)
    return follow(found, onsets_of(worker, load, firsts[0], turns=True))


def times_at(
    worker: Worker, one: Load, all_late: Callable[[Array], Array], start: Array, wanted: Array
) -> Array:
    """Where the sum of the hazards is as `wanted`, `[3]`: not after one subset's own is."""
    dtype = wanted.dtype
    hazard = jnp.max(wanted) + np.log(2.0).astype(dtype)
    longest = worker.cycle_time.inverse_cumulative_hazard(hazard[None]).astype(dtype)
    last = delivered(one, longest, False)[0] + worker.infimum().astype(dtype)
    if isinstance(worker.start_up, Law):
        last += worker.start_up.inverse_cumulative_hazard(hazard).astype(dtype) / worker.unit
    room = jnp.maximum(last - start, jnp.finfo(dtype).tiny)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        early = all_late(start + room * jnp.exp(middle))[:, 0] < wanted
        return jnp.where(early, middle, ends[0]), jnp.where(early, ends[1], middle)

    ends = jnp.full_like(wanted, np.log(_LEAST)), jnp.zeros_like(wanted)
    return start + room * jnp.exp(jax.lax.fori_loop(0, _HALVINGS, halve, ends)[1])
