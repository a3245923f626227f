r"""The exact expectation of max_n y_n T_(N-n), as an integral of a crossing probability.

E max = ∫₀^∞ P(max > t) dt, and P(max > t) is one forward substitution (`crossing_probability`). Three rules,
chosen by the law, all differentiable in the load y and in the law's parameters:

- smooth laws: t = start + centre · exp(width · sinh v) and the trapezoid rule in v, which converges
  geometrically whatever happens at the two ends (a power at the infimum, a heavy tail). The range is
  that of the law: it starts where the maximum begins to be late, and ends where its tail is nothing;
- laws with kinks: Gauss–Legendre panels between the images of the kinks;
- atomic laws: P is constant between the images of the atoms, so the sum over them is exact.

The first two compare three rules, and extrapolate their differences to the error of the finest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.crossing import MANY, crossing_probability, crossing_slopes
from bcgc_jax.laws import Atomic, Kinked, Law, Smooth
from bcgc_jax.order_statistics import log_choices, typical_hazards
from bcgc_jax.quadrature import (
    Expectation,
    Quadrature,
    gauss_rules,
    in_panel,
    integrate,
    kinked_levels,
    legendre,
    line,
    line_rule,
    on_line,
    panels,
    raised,
)
from bcgc_jax.windows import LEFT_OUT

# Intervals of the trapezoid rule, a multiple of 4: two halvings give the error estimate.
NUM_NODES = 128
# Rounding of the triangular systems, in units of eps N, worst of all laws up to N = 50.
_ROUNDING = 8.0
# Levels of partial stragglers at a time; a binomial law counts so many deviations and so much more to either
# side of its mean, all but 1e-18 of it.
_BATCH, _DEVIATIONS, _MARGIN = 32, 9.0, 20


def expected_max(
    law: Law,
    load: Array,
    num_workers: ArrayLike,
    *,
    num_nodes: int = NUM_NODES,
    written_out: bool = False,
) -> Expectation:
    r"""E max_n load_n T_(N-n) for an ascending `load` of shape `[max_workers]`.

    Costs O(num_nodes · N²), for atomic laws O(K N³) with K atoms. Padded levels repeat the last load.
    The expectation is inf exactly where E T_(N-n) is, n the first level with a load. `written_out` is that of
    `crossing_probability`.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> result = jax.jit(expected_max)(ShiftedExponential(rate=1.0), jnp.array([1.0, 1.0, 1.0]), 3)
    >>> round(float(result.value), 5)  # E T_(3) = 1/3 + 1/2 + 1
    1.83333
    """
    law = law.with_fast_inverse()  # for the nodes, which may lie anywhere
    pieces = law.pieces()
    if isinstance(pieces, Atomic):
        found = _over_atoms(law, pieces.times, load, num_workers)
    else:
        known = marks(law, load, num_workers)
        nodes = quadrature(law, known, load, num_nodes)
        hazard = _hazard_at(law, load, nodes.times, known.largest)
        late = crossing_probability(hazard, num_workers, written_out=written_out)
        found = integrate(nodes, late)
    return _finite_and_rounded(law, load, num_workers, found)


def expected_max_and_slope(
    law: Law,
    load: Array,
    num_workers: ArrayLike,
    *,
    num_nodes: int = NUM_NODES,
    written_out: bool = False,
) -> tuple[Expectation, Array]:
    r"""`expected_max` and its slope in the load, `[max_workers]`, of which one evaluation gives both.

    ∂F/∂y_n = -∫ ∂P/∂Λ_n t Λ'(t/y_n) / y_n² dt, and as F is homogeneous, Σ_n y_n ∂F/∂y_n = F gives the slope
    in the last load, whose integrand may be infinite at the infimum. Only the value can be differentiated.
    """
    if isinstance(law.pieces(), Atomic):

        def value_of(load: Array) -> tuple[Array, Expectation]:
            found = expected_max(law, load, num_workers, num_nodes=num_nodes, written_out=written_out)
            return found.value, found

        slope, found = jax.grad(value_of, has_aux=True)(load)
        return found, slope
    law = law.with_fast_inverse()
    known = marks(law, load, num_workers)
    nodes = quadrature(law, known, load, num_nodes)
    hazard, rate = threshold_hazard(law, load, nodes.times, known.largest)
    late, slope = crossing_slopes(hazard, num_workers, written_out)
    found = integrate(nodes, late)
    weight = nodes.weights[0][:, None]
    slope = -jnp.sum(jnp.where(slope < 0, weight * jnp.where(slope < 0, slope * rate, 0), 0), axis=0)
    found = _finite_and_rounded(law, load, num_workers, found)
    return found, jax.lax.stop_gradient(slope_of_homogeneous(found.value, slope, load, num_workers))


def slope_of_homogeneous(value: Array, slope: Array, load: Array, num_workers: ArrayLike) -> Array:
    """`slope` with that in the last load from the others: Σ_n load_n slope_n = value."""
    last = np.arange(load.size) == jnp.asarray(num_workers) - 1
    others = jnp.where(last, 0, slope)
    return jnp.where(last, (value - jnp.sum(others * load)) / load[-1], others)


def _finite_and_rounded(law: Law, load: Array, num_workers: ArrayLike, found: Expectation) -> Expectation:
    """inf where the expectation of the first load's time is, and an error that counts rounding."""
    value, error = with_rounding(load, found, law.rounding)
    finite = law.has_mean(jnp.argmax(load > 0), num_workers)
    return Expectation(jnp.where(finite, value, jnp.inf), jnp.where(finite, error, 0))


def with_rounding(load: Array, found: Expectation, rounding: float = 0.0) -> Expectation:
    """An error that counts the `rounding` of hazards, that of triangular systems, what windows leave out."""
    left_out = LEFT_OUT if load.size > MANY else 0.0
    share = (_ROUNDING * load.size + rounding) * float(jnp.finfo(load.dtype).eps) + left_out
    return Expectation(found.value, found.error + share * found.value)


def exceedance(law: Law, load: Array, num_workers: ArrayLike, t: Array) -> Array:
    """P(max_n load_n T_(N-n) > t) for every entry of `t`."""
    largest = jax.lax.stop_gradient(law.inverse_cumulative_hazard(_unreached(load)))
    return crossing_probability(_hazard_at(law, load, t, largest), num_workers)


def expected_larger(
    law: Law, alpha: Array, levels: Array, num_workers: ArrayLike, size: int, dtype: Any
) -> Expectation:
    """E max(α T_(N-s), T_(N)) for the `levels` s, α ≥ 1: O(√N) a node, where `expected_max` takes O(N²)."""
    law = law.with_fast_inverse()
    # Whole batches: a rest would be compiled once more.
    count = levels.shape[0]
    batch = min(count, _BATCH)
    levels = jnp.resize(jnp.asarray(levels), (-(-count // batch), batch))
    at = jax.vmap(lambda s: _expected_larger(law, alpha, s, num_workers, size, dtype))
    return jax.tree.map(lambda a: a.ravel()[:count], jax.lax.map(at, levels))


def _expected_larger(
    law: Law, alpha: Array, s: Array, num_workers: ArrayLike, size: int, dtype: Any
) -> Expectation:
    """E max(α T_(N-s), T_(N))."""
    workers = jnp.asarray(num_workers)
    load = jnp.where(np.arange(size) < s, 1, alpha).astype(dtype)
    known = marks(law, load, workers)
    nodes = quadrature(law, known, load, NUM_NODES)
    # 1 - F(t)^N P(at most s of N are above t/α | all are below t), without the cancellation.
    whole, part = law.cumulative_hazard(nodes.times), law.cumulative_hazard(nodes.times / alpha)
    late = jnp.clip((jnp.exp(-part) - jnp.exp(-whole)) / -jnp.expm1(-whole), 0, 1)
    late = jnp.where(whole > 0, late, 1)[:, None]
    width = min(size + 1, int(_DEVIATIONS * size**0.5) + 2 * _MARGIN)
    middle = jnp.floor(workers * late - width / 2).astype(int)
    m = jnp.clip(middle, 0, size + 1 - width) + np.arange(width)
    log_all = workers * jnp.log(-jnp.expm1(-whole))
    tiny = jnp.finfo(dtype).tiny
    log_late, log_early = jnp.log(jnp.maximum(late, tiny)), jnp.log(jnp.maximum(1 - late, tiny))
    log_term = known.log_choices[m] + m * log_late + jnp.maximum(workers - m, 0) * log_early
    more = jnp.sum(jnp.where(m > s, jnp.exp(log_term), 0), axis=1)
    return integrate(nodes, -jnp.expm1(log_all) + jnp.exp(log_all) * more)


class Marks(NamedTuple):
    """What every rule for a law and N workers goes by, whatever the load; from one inversion of Λ.

    `times`, `[4, max_workers]`: one before which T_(N-n) lies with no probability to speak of, then
    Λ⁻¹(E A_(N-n) + σ std A_(N-n)), σ = -1, 0, 1. Beyond `largest` P(T > t) underflows. log C(N, n) for
    n = 0 … max_workers.
    """

    times: Array
    largest: Array
    log_choices: Array


def marks(law: Law, load: Array, num_workers: ArrayLike) -> Marks:
    """Of N workers, for loads of this shape; constants to a derivative."""
    marked, choices = marked_hazards(load, num_workers)
    hazard = jnp.append(marked.ravel(), _unreached(load))
    times = law.inverse_cumulative_hazard(hazard).astype(load.dtype)
    return jax.lax.stop_gradient(Marks(times[:-1].reshape(4, -1), times[-1], choices))


def marked_hazards(load: Array, num_workers: ArrayLike) -> tuple[Array, Array]:
    """Λ at the `times` of `Marks`, `[4, max_workers]`, and its `log_choices`."""
    typical = typical_hazards(load, num_workers)
    choices = log_choices(load, num_workers)
    # From P(max ≤ y_n q) ≤ P(T_(N-n) ≤ q) ≤ C(N, n) F(q)^{N-n} at the best n: nearly deterministic laws whose
    # infimum is far below their typical times need it.
    below = jnp.asarray(num_workers, load.dtype) - np.arange(load.size, dtype=load.dtype)
    log_cdf = (np.log(jnp.finfo(load.dtype).eps / 8) - choices[:-1]) / jnp.maximum(below, 1)
    earliest = jnp.where(below > 0, -jnp.log1p(-jnp.exp(log_cdf)), 0)
    return jnp.concatenate([earliest[None], typical]), choices


def _unreached(load: Array) -> Array:
    """A hazard at which P(T > t) underflows, and beyond which Λ may overflow."""
    return jnp.asarray(-1.2 * np.log(jnp.finfo(load.dtype).tiny), load.dtype)


def _hazard_at(law: Law, load: Array, t: Array, largest: Array) -> Array:
    """Λ(t / load_n), `[..., N]`."""
    threshold, reachable = _thresholds(law, load, t, largest)
    return jnp.where(reachable, law.cumulative_hazard(threshold), jnp.inf)


def threshold_hazard(law: Law, load: Array, t: Array, largest: Array) -> tuple[Array, Array]:
    """Λ(t / load_n) and minus its slope in load_n, both `[..., N]`; `largest` is that of `Marks`."""
    threshold, reachable = _thresholds(law, load, t, largest)
    hazard, slope = jax.jvp(law.cumulative_hazard, (threshold,), (threshold / jnp.where(load > 0, load, 1),))
    return jnp.where(reachable, hazard, jnp.inf), jnp.where(reachable, slope, 0)


def _thresholds(law: Law, load: Array, t: Array, largest: Array) -> tuple[Array, Array]:
    """t / load_n and whether T can exceed it; where not, some time at which Λ is harmless."""
    used = load > 0  # no worker can delay a level without a load
    threshold = t[..., None] / jnp.where(used, load, 1)
    # Beyond the largest the slope of Λ, inf, times 0 would be NaN.
    reachable = used & ~(threshold > largest)
    return jnp.where(reachable, threshold, law.infimum().astype(t.dtype)), reachable


def quadrature(law: Law, known: Marks, load: Array, num_nodes: int) -> Quadrature:
    """The rule of `num_nodes` intervals, and coarser ones."""
    pieces = law.pieces()
    if not isinstance(pieces, Smooth):
        # Between the atoms of an atomic law the probability is constant.
        orders = (num_nodes // 12, num_nodes // 16, num_nodes // 24)
        if isinstance(pieces, Atomic):
            pieces, orders = Kinked(pieces.times[1:], ends=True), (2, 1, 1)
        return gauss_rules(_panels(law, pieces, known, load), orders, pieces.ends)
    nodes = line_rule(_line(law, known, load), num_nodes)
    # The integral does not depend on the nodes, its slope at the infimum does: there that of P in the last
    # load may be infinite. Nodes that move with this load, start + excess = load · τ, see none of it.
    infimum, last = law.infimum().astype(load.dtype), load[-1]
    start, t = (last * (infimum + jax.lax.stop_gradient(t / last - infimum)) for t in nodes[:2])
    return nodes._replace(start=start, times=t, weights=last * jax.lax.stop_gradient(nodes.weights / last))


class Rule(NamedTuple):
    """E max_n load_n T_(N-n) = start + Σ weight · P(max > t), for laws without atoms.

    `nodes(index, refine)` gives (t, weight) for index = 0 … size · refine - 1; `size` is static, `refine` and
    `index` may be traced, and a larger `refine` gives a finer rule. Beyond the last index weights are 0.
    `beyond` bounds what no rule reaches.
    """

    start: Array
    beyond: Array
    size: int
    nodes: Callable[[Array, ArrayLike], tuple[Array, Array]]


def rule(law: Law, known: Marks, load: Array, num_nodes: int) -> Rule:
    """The rule of `num_nodes` intervals, or with a number of nodes in each panel to match."""
    pieces = law.pieces()
    assert not isinstance(pieces, Atomic)
    if isinstance(pieces, Kinked):
        start, left, size_of = _panels(law, pieces, known, load)
        order = num_nodes // 8
        points, weights = (jnp.asarray(a, load.dtype) for a in legendre(order))

        def in_panels(index: Array, refine: ArrayLike) -> tuple[Array, Array]:
            part, node = index // order, index % order
            panel = part // refine
            inside = panel < left.size
            panel = jnp.where(inside, panel, 0)
            share = (part % refine + points[node]) / refine
            t, slope = in_panel(pieces.ends, start, left[panel], size_of[panel], share)
            return t, jnp.where(inside, slope / refine * weights[node], 0)

        return Rule(start, jnp.zeros_like(start), left.size * order, in_panels)
    line = _line(law, known, load)

    def along(index: Array, refine: ArrayLike) -> tuple[Array, Array]:
        start, centre, width, low, high, _ = line
        # Half a step from either end, where there is nothing to add: a node more would spoil the size.
        step = (high - low) / (num_nodes * refine)
        inside = index < num_nodes * refine
        excess, slope = on_line(centre, width, low + step * (jnp.where(inside, index, 0) + 0.5))
        return start + excess, jnp.where(inside, slope * step, 0)

    return Rule(line[0], line[5], num_nodes, along)


def _peaks(known: Marks, load: Array) -> Array:
    """max_n load_n times_n, `[4]`: where the maximum begins to be possible, and where it lies."""
    peaks = jnp.max(jnp.where(load > 0, load * known.times, 0), axis=-1)
    return raised(peaks, load[-1] * known.times[-1, 0])


def _line(law: Law, known: Marks, load: Array) -> Array:
    # The nodes need not follow the load: the integral does not depend on them.
    law, load = jax.lax.stop_gradient((law, load))
    return line(_peaks(known, load), lambda t: _hazard_at(law, load, t, known.largest), known.log_choices)


def _panels(law: Law, pieces: Kinked, known: Marks, load: Array) -> tuple[Array, Array, Array]:
    """Start, left ends and sizes of panels between the images of the kinks and around the typical values."""
    kinks = pieces.times.astype(load.dtype)
    peaks = jax.lax.stop_gradient(_peaks(known, load))
    images = (load[kinked_levels(load.size)][:, None] * kinks).ravel()
    last = load[-1] * kinks[-1] if pieces.ends else None
    return panels(peaks, images, last, lambda t: _hazard_at(law, load, t, known.largest), known.log_choices)


def _over_atoms(law: Law, atoms: Array, load: Array, num_workers: ArrayLike) -> Expectation:
    atoms = atoms.astype(load.dtype)
    edges = jnp.where((load > 0)[:, None], load[:, None] * atoms, 0).ravel()
    # A stable order and states by count, not by comparing times: ties then resolve as if a higher
    # level came later, and the derivative is a true subgradient there.
    order = jnp.argsort(edges, stable=True)
    edges = edges[order]
    gap = jnp.diff(edges)
    state = jnp.concatenate([jnp.zeros(1, load.dtype), law.cumulative_hazard(atoms).astype(load.dtype)])
    chunk = max(min(gap.size, 256), 1)
    short = -gap.size % chunk
    level = jnp.pad(order[:-1] // atoms.size, (0, short)).reshape(-1, chunk)
    gap = jnp.pad(gap, (0, short)).reshape(-1, chunk)

    @jax.checkpoint
    def body(carry, piece):
        passed, total = carry
        new_level, gap = piece
        steps = passed + jnp.cumsum(jax.nn.one_hot(new_level, load.size, dtype=int), axis=0)
        probability = crossing_probability(state[jnp.minimum(steps, atoms.size)], num_workers)
        # An empty gap counts too: it has a slope. Between two infinite edges it is NaN.
        term = jnp.where(gap >= 0, probability * gap, 0)
        return (steps[-1], total + jnp.sum(term)), None

    (_, total), _ = jax.lax.scan(body, (jnp.zeros(load.size, int), edges[0]), (level, gap))
    return Expectation(total, jnp.zeros_like(total))
