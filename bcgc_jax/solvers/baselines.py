r"""The schemes that block coordinate coding is compared with, each as its authors define it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.expectation import NUM_NODES, Expectation, integrate, marks, quadrature
from bcgc_jax.laws import Law
from bcgc_jax.laws.atoms import atoms_of
from bcgc_jax.order_statistics import all_rows, expected_order_statistics
from bcgc_jax.problem import Problem

# Levels of partial stragglers at a time.
_BATCH = 32


def single_level_partition(problem: Problem, level: ArrayLike) -> Array:
    """All coordinates at one redundancy `level`: gradient coding of Tandon et al. 2017; 0 is uncoded."""
    here = jnp.arange(problem.max_workers) == level
    return jnp.where(here, problem.total, 0)


def single_block_partition(problem: Problem) -> Array:
    r"""The best single level, argmin_s (s+1) E T_(N-s)."""
    times = expected_order_statistics(
        problem.cycle_time, problem.num_workers, max_workers=problem.max_workers
    )
    cost = jnp.where(problem.exists, jnp.arange(1, problem.max_workers + 1) * times, jnp.inf)
    return single_level_partition(problem, jnp.argmin(cost))


def ferdinand_partition(problem: Problem, num_layers: ArrayLike) -> tuple[Array, Array]:
    r"""Hierarchical coded computation with r layers (Ferdinand & Draper 2018): partition, feasible.

    maximise u subject to u ≤ (s_j+1)/j, j = 1…r, Σ_j s_j = rN - L, 1 ≤ s_j ≤ N-1 ascending; each layer
    holds L/r coordinates at level round(s_j). Layer r caps u at N/r; with few layers the sum caps it lower,
    where Σ max(1, uj - 1) uses it up. Every s with s_j ≥ uj - 1 and the right sum reaches u. Of these many
    optima this takes the one with the most equal levels (least Σ s_j²): s_j = max(c, uj - 1), with c from
    the sum. With r = L every s_j is N-1.
    """
    dtype = problem.dtype
    workers = jnp.asarray(problem.num_workers, dtype)
    layers = jnp.asarray(num_layers, dtype)
    target = layers * workers - problem.total

    def level_sum(c: Array, slope: Array) -> Array:
        flat = jnp.floor(jnp.clip((c + 1) / slope, 0, layers))
        rising = slope * (layers * (layers + 1) - flat * (flat + 1)) / 2 - (layers - flat)
        return c * flat + rising

    def bisect(total_at: Callable[[Array], Array], low: Array, high: Array) -> Array:
        """The least value from which on `total_at` reaches the target."""

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            short = total_at(middle) < target
            return jnp.where(short, middle, ends[0]), jnp.where(short, ends[1], middle)

        # 80 halvings exhaust float64.
        return jax.lax.fori_loop(0, 80, halve, (low, high))[1]

    one = jnp.ones((), dtype)
    cap = workers / layers
    slope = bisect(lambda u: level_sum(one, u), jnp.zeros((), dtype), cap)
    slope = jnp.where(level_sum(one, cap) <= target, cap, slope)
    c = bisect(lambda c: level_sum(c, slope), one, workers - 1)
    feasible = (layers >= 1) & (workers > 1) & (target >= layers) & (target <= layers * (workers - 1))
    level = jnp.arange(problem.max_workers, dtype=dtype)
    # Layers with s_j ≥ n - 1/2: all if the flat part is there, else those on the rising part. A half goes
    # up, also where the last bisection step misses it.
    reached = jnp.ceil((level + 0.5) / slope) - 1  # layers on the rising part below n - 1/2
    at_least = jnp.where(c >= level - 0.5 - 1e-6, layers, layers - jnp.clip(reached, 0, layers))
    count = jnp.where(problem.exists, at_least, 0)
    count = count - jnp.concatenate([count[1:], jnp.zeros(1, dtype)])
    return jnp.where(feasible, count * problem.total / layers, 0), feasible


@jax.jit
def straggler_ratio(law: Law) -> Array:
    r"""E[T | T > median] / E[T | T ≤ median], the α of partial stragglers in Tandon et al. 2017.

    (1 + ln 2)/(1 - ln 2) = 5.52 for an exponential. An atom at the median counts in both halves.
    """
    if law.atomic():
        atoms, mass = atoms_of(law)
        share = jnp.diff(jnp.clip(jnp.cumsum(mass), 0, 0.5), prepend=0.0)
        low = jnp.sum(jnp.where(share > 0, atoms * jnp.where(share > 0, share, 1), 0))
        return (law.mean() - low) / low
    # ∫ Λ⁻¹(-log(1-u)) over either half, u = 1/2 ± e^{-w}: both ends are exponentially resolved.
    w, weight = _half_line()
    low = jnp.sum(weight * law.inverse_cumulative_hazard(-jnp.log1p(-0.5 * jnp.exp(-w))))
    slow = law.inverse_cumulative_hazard(w + jnp.log(2.0))
    high = jnp.sum(weight * jnp.where(weight > 0, slow, 0))  # a heavy tail overflows where the weight is 0
    return jnp.where(jnp.isfinite(law.mean()), high, jnp.inf) / low


def _half_line() -> tuple[Array, Array]:
    """Nodes and weights for ∫₀^∞ f(w) e^{-w} dw with w = exp(v - e^{-v})."""
    panels, low, high = 400, -4.0, 6.0
    v = jnp.linspace(low, high, panels + 1)
    w = jnp.exp(v - jnp.exp(-v))
    return w, jnp.exp(-w) * w * (1 + jnp.exp(-v)) * ((high - low) / panels)


@jax.jit
def tandon_partial_runtime(problem: Problem, alpha: ArrayLike | None = None) -> tuple[Expectation, Array]:
    r"""Partial stragglers (Tandon et al. 2017): expected runtime at the best s, and that s.

    τ(s) = (M b L / N) (s+1)/(s+α) max{α T_(N-s), T_(N)}, s = 1…N-1: an uncoded part and a part coded at
    level s. `alpha` is the law's `straggler_ratio` by default; the paper's figures use 6.
    """
    law, workers = problem.cycle_time, problem.num_workers
    alpha = jnp.asarray(straggler_ratio(law) if alpha is None else alpha, problem.dtype)
    if problem.max_workers == 1:
        nothing = jnp.asarray(jnp.inf, problem.dtype)
        return Expectation(nothing, jnp.zeros_like(nothing)), jnp.asarray(0)
    s = np.arange(1, problem.max_workers)
    rows = all_rows(law, workers, problem.max_workers)
    if rows is None:
        law = law.with_fast_inverse()
        # Whole batches: a rest would be compiled once more.
        batch = min(s.size, _BATCH)
        levels = np.resize(s, (-(-s.size // batch), batch))
        at = jax.vmap(
            lambda s: _partial_stragglers(law, alpha, s, workers, problem.max_workers, problem.dtype)
        )
        result = jax.tree.map(lambda a: a.ravel()[: s.size], jax.lax.map(at, jnp.asarray(levels)))
        weight = (s + 1) / (s + alpha)
        result = Expectation(weight * result.value, weight * result.error)
    else:
        mean = jnp.mean(jnp.maximum(alpha * rows, rows[:, :1]), axis=0)[1:].astype(problem.dtype)
        result = Expectation(jnp.asarray((s + 1) / (s + alpha) * mean), jnp.zeros_like(mean))
    value = jnp.where(s < workers, result.value, jnp.inf)
    best = jnp.argmin(value)
    unit = problem.scale * problem.total
    # T_(N) is waited for at every s.
    value = jnp.where(jnp.isfinite(law.mean()), value[best], jnp.inf)
    return Expectation(unit * value, unit * result.error[best]), best + 1


def _partial_stragglers(
    law: Law, alpha: Array, s: Array, num_workers: ArrayLike, size: int, dtype: Any
) -> Expectation:
    """E max(α T_(N-s), T_(N))."""
    workers, m = jnp.asarray(num_workers), np.arange(size + 1)
    load = jnp.where(np.arange(size) < s, 1, alpha).astype(dtype)
    known = marks(law, load, workers)
    nodes = quadrature(law, known, load, NUM_NODES)
    # 1 - F(t)^N P(at most s of N are above t/α | all are below t), without the cancellation.
    whole, part = law.cumulative_hazard(nodes.times), law.cumulative_hazard(nodes.times / alpha)
    late = jnp.clip((jnp.exp(-part) - jnp.exp(-whole)) / -jnp.expm1(-whole), 0, 1)
    late = jnp.where(whole > 0, late, 1)[:, None]
    log_all = workers * jnp.log(-jnp.expm1(-whole))
    tiny = jnp.finfo(dtype).tiny
    log_late, log_early = jnp.log(jnp.maximum(late, tiny)), jnp.log(jnp.maximum(1 - late, tiny))
    log_term = known.log_choices + m * log_late + jnp.maximum(workers - m, 0) * log_early
    more = jnp.sum(jnp.where(m > s, jnp.exp(log_term), 0), axis=1)
    return integrate(nodes, -jnp.expm1(log_all) + jnp.exp(log_all) * more)


@jax.jit
def runtime_limit(problem: Problem) -> Array:
    r"""E[M b L / Σ_n 1/T_n]: perfectly divisible work of which every cycle counts; no scheme beats it.

    E[1/S] = ∫₀^∞ (E e^{-u/T})^N du, S = Σ 1/T_n: two nested trapezoid rules; over `Rows` a plain mean.
    """
    law, workers = problem.cycle_time, problem.num_workers
    unit = problem.total * problem.num_samples * problem.cycles
    rows = all_rows(law, workers, problem.max_workers)
    if rows is not None:
        return unit * jnp.mean(1 / jnp.sum(1 / rows, axis=1))
    if law.atomic():
        times, mass = atoms_of(law)
    else:
        z = jnp.linspace(-36.0, 36.0, 769) if problem.dtype == jnp.float64 else jnp.linspace(-16.0, 60.0, 769)
        mass = jax.nn.softmax(-jax.nn.softplus(z) - jax.nn.softplus(-z))  # density of logit U
        times = law.inverse_cumulative_hazard(jax.nn.softplus(z))
    speed = jnp.where(jnp.isinf(times), 0, 1 / times)
    median = law.inverse_cumulative_hazard(jnp.log(2.0))
    typical = jnp.where(jnp.isinf(median), law.infimum(), median)
    pace = jnp.sum(mass * jnp.minimum(speed, 1e3 / typical))
    panels, low, high = 520, -40.0, 12.0
    u = jnp.exp(jnp.linspace(low, high, panels + 1)) / (pace * workers)
    term = u * jnp.exp(workers * jnp.log(jnp.exp(-u[:, None] * speed) @ mass))
    # Beyond the far end a power of u is left for a heavy tail, a geometric series here. Where that does
    # not decay, the mean is infinite, or the gradient is never finished with positive probability.
    ratio = term[-1] / jnp.where(term[-2] > 0, term[-2], 1)
    decays = ratio < 1 - 1e-4
    rest = jnp.where(decays, term[-1] * ratio / (1 - jnp.where(decays, ratio, 0)), jnp.inf)
    integral = (jnp.sum(term) + rest) * ((high - low) / panels)
    return unit * integral
