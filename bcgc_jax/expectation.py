r"""The exact expectation of max_n y_n T_(N-n), as an integral of a crossing probability.

E max = ∫₀^∞ P(max > t) dt, and P(max > t) is one forward substitution (`crossing_probability`). Three rules,
chosen by the law, all differentiable in the load y and in the law's parameters:

- smooth laws: t = start + centre · exp(width · sinh v) and the trapezoid rule in v, which converges
  geometrically whatever happens at the two ends (a power at the infimum, a heavy tail);
- laws with kinks: Gauss–Legendre panels between the images of the kinks;
- atomic laws: P is constant between the images of the atoms, so the sum over them is exact.

The first two compare three rules, and extrapolate their differences to the error of the finest.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Law
from bcgc_jax.order_statistics import crossing_probability

# Intervals of the trapezoid rule, a multiple of 4: two halvings give the error estimate.
NUM_NODES = 128
# Rounding of the triangular systems, in units of eps N, worst of all laws up to N = 50.
_ROUNDING = 8.0
# A kink of Λ at level n is one of order n+1 in P, so the first levels are enough.
_KINKED_LEVELS = 8


class Expectation(NamedTuple):
    """`value` of an expectation and an estimate of the absolute `error` of its quadrature."""

    value: Array
    error: Array


def expected_max(law: Law, load: Array, num_workers: ArrayLike, *, num_nodes: int = NUM_NODES) -> Expectation:
    r"""E max_n load_n T_(N-n) for an ascending `load` of shape `[max_workers]`.

    Costs O(num_nodes · N²), for atomic laws O(K N³) with K atoms. Padded levels repeat the last load.
    The expectation is inf exactly where E T_(N-n) is, n the first level with a load.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> result = expected_max(ShiftedExponential(rate=1.0), jnp.array([1.0, 1.0]), 2)
    >>> round(float(result.value), 5)  # E T_(2) = 1/2 + 1
    1.5
    """
    if law.atomic():
        value, error = _over_atoms(law, load, num_workers)
    else:

        def exceed(t):
            return exceedance(law, load, num_workers, t)

        spread = _spread(law, load, num_workers)
        value, error = integrate_tail(law, exceed, load, spread, num_nodes=num_nodes)
    means = law.expected_order_statistics(num_workers, load.size)
    first = law.mean() if means is None else means[jnp.argmax(load > 0)]
    rounding = _ROUNDING * load.size * jnp.finfo(load.dtype).eps * value
    return Expectation(jnp.where(jnp.isfinite(first), value, jnp.inf), error + rounding)


def exceedance(law: Law, load: Array, num_workers: ArrayLike, t: Array) -> Array:
    """P(max_n load_n T_(N-n) > t) for every entry of `t`."""
    threshold, reachable = _thresholds(law, load, t)
    hazard = jnp.where(reachable, law.cumulative_hazard(threshold), jnp.inf)
    return crossing_probability(hazard, num_workers)


def threshold_hazard(law: Law, load: Array, t: Array) -> tuple[Array, Array]:
    """Λ(t / load_n) and minus its slope in load_n, both `[..., N]`."""
    threshold, reachable = _thresholds(law, load, t)
    hazard, slope = jax.jvp(law.cumulative_hazard, (threshold,), (threshold / jnp.where(load > 0, load, 1),))
    return jnp.where(reachable, hazard, jnp.inf), jnp.where(reachable, slope, 0)


def _thresholds(law: Law, load: Array, t: Array) -> tuple[Array, Array]:
    """t / load_n and whether T can exceed it; where not, some time at which Λ is harmless."""
    used = load > 0  # no worker can delay a level without a load
    # Beyond it P(T > t) underflows, and Λ may overflow: its slope, inf, times 0 would be NaN.
    largest = jax.lax.stop_gradient(law.inverse_cumulative_hazard(-1.2 * jnp.log(jnp.finfo(t.dtype).tiny)))
    threshold = t[..., None] / jnp.where(used, load, 1)
    reachable = used & ~(threshold > largest)
    return jnp.where(reachable, threshold, law.infimum().astype(t.dtype)), reachable


def integrate_tail(
    law: Law,
    exceed: Callable[[Array], Array],
    factors: Array,
    spread: Sequence[Array],
    *,
    num_nodes: int = NUM_NODES,
) -> Expectation:
    """∫₀^∞ exceed(t) dt, where `exceed` depends on t through Λ(t / f), f in the ascending `factors`.

    `spread` holds a low, a middle and a high typical value of the variable that exceeds t.
    """
    start = factors[-1] * law.infimum().astype(factors.dtype)
    if law.kinks().size:
        left, size = _panels(law, factors, start, spread)
        # Between the atoms of an atomic law `exceed` is constant.
        orders = (2, 1, 1) if law.atomic() else (num_nodes // 4, num_nodes // 8, num_nodes // 16)
        rules = [jnp.vdot(weight, exceed(t)) for t, weight in (_gauss(left, size, k) for k in orders)]
        return Expectation(start + rules[0], _rule_error(rules[0], rules[1], rules[2]))
    t, weight = _line(start, spread, num_nodes)
    probability = exceed(t)
    term = jnp.where(probability > 0, weight * jnp.where(probability > 0, probability, 0), 0)
    fine, coarse, coarsest = jnp.sum(term), 2 * jnp.sum(term[::2]), 4 * jnp.sum(term[::4])
    # What is left out at either end is of the size of the last term there.
    return Expectation(start + fine, _rule_error(fine, coarse, coarsest) + term[0] + term[-1])


def load_nodes(law: Law, load: Array, num_workers: ArrayLike, num_nodes: int) -> tuple[Array, Array, Array]:
    """(start, t, weight): E max_n load_n T_(N-n) = start + Σ weight · P(max > t), for laws without atoms."""
    start = load[-1] * law.infimum().astype(load.dtype)
    spread = _spread(law, load, num_workers)
    if law.kinks().size:
        return start, *_gauss(*_panels(law, load, start, spread), num_nodes // 4)
    return start, *_line(start, spread, num_nodes)


def _spread(law: Law, load: Array, num_workers: ArrayLike) -> list[Array]:
    return [_typical(law, load, num_workers, sigmas) for sigmas in (-1.0, 0.0, 1.0)]


def _typical(law: Law, load: Array, num_workers: ArrayLike, sigmas: float) -> Array:
    """max_n load_n Λ⁻¹(E A + sigmas · std A): where the maximum lies, give or take."""
    j = jnp.arange(1, load.size + 1, dtype=load.dtype)
    inverse = jnp.where(j <= num_workers, 1 / j, 0)
    mean = jnp.cumsum(inverse[::-1])[::-1]
    deviation = jnp.sqrt(jnp.cumsum(inverse[::-1] ** 2)[::-1])
    hazard = jnp.maximum(mean + sigmas * deviation, 0.1 * mean)
    return jnp.max(jnp.where(load > 0, load * law.inverse_cumulative_hazard(hazard), 0))


def _line(start: Array, spread: Sequence[Array], num_nodes: int) -> tuple[Array, Array]:
    """Nodes and weights of the double exponential rule above `start`."""
    # The nodes need not follow the load: the integral does not depend on them.
    typical = jax.lax.stop_gradient(jnp.stack(list(spread)) - start)
    lower, centre, upper = jnp.maximum(typical, 1e3 * jnp.finfo(start.dtype).tiny)
    width = jnp.clip(jnp.log(upper / lower) / 2, 0.05, 2.0)
    # In log t. The left end, e^-reach, is what is left out there; the right end is for heavy tails.
    reach = 640.0 if start.dtype == jnp.float64 else 64.0
    end = jnp.arcsinh(reach / width)
    v = end * jnp.linspace(-1.0, 1.0, num_nodes + 1, dtype=start.dtype)
    excess = centre * jnp.exp(width * jnp.sinh(v))
    return start + excess, excess * width * jnp.cosh(v) * (2 * end / num_nodes)


def _panels(law: Law, factors: Array, start: Array, spread: Sequence[Array]) -> tuple[Array, Array]:
    """Left ends and sizes of panels between the images of the kinks and around the typical values."""
    kinks = law.kinks().astype(factors.dtype)
    kinked = factors[: min(_KINKED_LEVELS, factors.size)]
    last = factors[-1] * kinks[-1]
    typical = jax.lax.stop_gradient(jnp.stack(list(spread)))
    wider = typical[1] + 2 * (typical - typical[1])
    breaks = jnp.concatenate([(kinked[:, None] * kinks).ravel(), wider, typical, last[None]])
    edges = jnp.concatenate([start[None], jnp.sort(jnp.clip(breaks, start, last))])
    return edges[:-1], jnp.diff(edges)


def _gauss(left: Array, size: Array, order: int) -> tuple[Array, Array]:
    """Nodes and weights of Gauss and Legendre's rule in each panel, all in one row."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    t = left[:, None] + size[:, None] * jnp.asarray((nodes + 1) / 2, left.dtype)
    return t.ravel(), (size[:, None] * jnp.asarray(weights / 2, left.dtype)).ravel()


def _rule_error(fine: Array, coarse: Array, coarsest: Array) -> Array:
    """A bound on the error of `fine`, from the differences e₁, e₂ of three rules, each of half the step.

    They extrapolate to e₁²/e₂, times 30 for safety. Where e₁ is small by chance, the second difference
    says how far that may be trusted: e₂² / 10, relative to the value. Both constants are our own: the true
    error came to at most 0.2 of the bound with 128 intervals, 0.7 with 64; 32 are too few for a bound.
    """
    last, previous = jnp.abs(fine - coarse), jnp.abs(coarse - coarsest)
    ratio = last / jnp.where(previous > last, previous, jnp.where(last > 0, last, 1))
    doubt = previous * (previous / jnp.where(fine > 0, fine, 1)) / 10
    return jnp.maximum(last * jnp.minimum(30 * ratio, 1), doubt)


def _over_atoms(law: Law, load: Array, num_workers: ArrayLike) -> Expectation:
    atoms = jnp.concatenate([law.infimum()[None], law.kinks()]).astype(load.dtype)
    edges = jnp.where((load > 0)[:, None], load[:, None] * atoms, 0).ravel()
    # A stable order and states by count, not by comparing times: ties then resolve as if a higher
    # level came later, and the derivative is a true subgradient there.
    order = jnp.argsort(edges, stable=True)
    edges = edges[order]
    gap = jnp.diff(edges)
    state = jnp.concatenate([jnp.zeros(1, load.dtype), law.cumulative_hazard(atoms).astype(load.dtype)])
    chunk = min(gap.size, 256)
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
