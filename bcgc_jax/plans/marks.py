r"""A rule for E max_n y_n T_(N-n) whose fineness may be traced, for searches in y."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Distribution
from bcgc_jax.distributions.special_functions import legendre
from bcgc_jax.exact import quadrature
from bcgc_jax.exact.quadrature import Line, Panels, kinked_levels
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.worker import unreached


class Marks(NamedTuple):
    """What every rule for a distribution and N workers goes by, whatever the load.

    `times`, `[4, max_workers]`: one before which T_(N-n) hardly ever lies, then Λ⁻¹(E
    A_(N-n) + σ std A_(N-n)), σ = -1, 0, 1. Beyond `largest` P(T > t) underflows. log
    C(N, n) for n = 0 … max_workers.
    """

    times: Array
    largest: Array
    log_choices: Array


def marks_of(law: Distribution, load: Array, num_workers: ArrayLike) -> Marks:
    """Of N workers, for loads of this shape; constants to a derivative."""
    choices, hazards = AnyOf(num_workers).bounds(load)
    hazard = jnp.append(hazards.ravel(), unreached(load.dtype))
    times = law.inverse_cumulative_hazard(hazard).astype(load.dtype)
    return jax.lax.stop_gradient(Marks(times[:-1].reshape(4, -1), times[-1], choices))


def peaks_of(times: Array, load: Array) -> Array:
    """max_n load_n times_n, `[4]`: its first possible value, and where it lies."""
    peaks = jnp.max(jnp.where(load > 0, load * times, 0), axis=-1)
    return quadrature.raised(peaks, load[-1] * times[-1, 0])


def threshold_hazard(
    law: Distribution, load: Array, t: Array, largest: Array
) -> tuple[Array, Array]:
    """Λ(t / load_n) and minus its slope in load_n, `[..., N]`, to `Marks.largest`."""
    used = load > 0  # no worker can delay a level without a load
    threshold = t[..., None] / jnp.where(used, load, 1)
    # Beyond the largest the slope of Λ, inf, times 0 would be NaN.
    reachable = used & ~(threshold > largest)
    threshold = jnp.where(reachable, threshold, law.infimum().astype(t.dtype))
    along = threshold / jnp.where(used, load, 1)
    hazard, slope = jax.jvp(law.cumulative_hazard, (threshold,), (along,))
    return jnp.where(reachable, hazard, jnp.inf), jnp.where(reachable, slope, 0)


class SearchRule(NamedTuple):
    """E max_n load_n T_(N-n) = start + Σ weight · P(max > t), for distributions without
    atoms.

    `nodes(index, refine)` gives (t, weight) for index = 0 … size · refine - 1, and
    weights of 0 beyond; only `size` is static. A larger `refine` gives a finer rule;
    `beyond` bounds what none reaches.
    """

    start: Array
    beyond: Array
    size: int
    nodes: Callable[[Array, ArrayLike], tuple[Array, Array]]


def search_rule(
    law: Distribution, marks: Marks, load: Array, num_nodes: int
) -> SearchRule:
    """The rule of `num_nodes` intervals, or with as many nodes in its panels."""
    assert not law.atomic
    # The nodes need not follow the load: the integral does not depend on them.
    law, marks, load = jax.lax.stop_gradient((law, marks, load))
    peaks = peaks_of(marks.times, load)

    def hazard_at(t: Array) -> Array:
        return threshold_hazard(law, load, t, marks.largest)[0]

    if law.smooth:
        return _along(quadrature.line(peaks, hazard_at, marks.log_choices), num_nodes)
    images, last = images_of(law, load)
    between = quadrature.panels(peaks, images, last, hazard_at, marks.log_choices)
    return _between(between, law.has_end, order=num_nodes // 8)


def _along(of_line: Line, num_nodes: int) -> SearchRule:
    """Trapezoids along a line."""

    def nodes(index: Array, refine: ArrayLike) -> tuple[Array, Array]:
        # Half a step from either end, where there is nothing to add: a node more would
        # spoil the size.
        step = (of_line.high - of_line.low) / (num_nodes * refine)
        inside = index < num_nodes * refine
        v = of_line.low + step * (jnp.where(inside, index, 0) + 0.5)
        excess, slope = quadrature.on_line(of_line, v)
        return of_line.start + excess, jnp.where(inside, slope * step, 0)

    return SearchRule(of_line.start, of_line.beyond, num_nodes, nodes)


def _between(kinks: Panels, ends: bool, order: int) -> SearchRule:
    """Gauss's rule of this order in each panel between kinks, and in the tail."""
    start, left, sizes, tail = kinks
    count = left.size + (tail is not None)
    points, weights = (jnp.asarray(a, start.dtype) for a in legendre(order))

    def nodes(index: Array, refine: ArrayLike) -> tuple[Array, Array]:
        part = index // order
        node = index % order
        panel = part // refine
        share = (part % refine + points[node]) / refine
        inner_panel = jnp.where(panel < left.size, panel, 0)
        t, slope = quadrature.in_panel(
            ends, start, left[inner_panel], sizes[inner_panel], share
        )
        if tail is not None:
            later, slope_later = quadrature.in_tail(start, tail, share)
            t = jnp.where(panel < left.size, t, later)
            slope = jnp.where(panel < left.size, slope, slope_later)
        return t, jnp.where(panel < count, slope / refine * weights[node], 0)

    return SearchRule(start, jnp.zeros_like(start), count * order, nodes)


def images_of(law: Distribution, load: Array) -> tuple[Array, Array | None]:
    """Of the kinks at some levels, and when all are there for sure."""
    kinks = law.breaks().astype(load.dtype)
    images = (load[kinked_levels(load.size, law.jumps)][:, None] * kinks).ravel()
    return images, load[-1] * kinks[-1] if law.has_end else None


def homogeneous_slope(
    value: Array, slope: Array, load: Array, num_workers: ArrayLike
) -> Array:
    """`slope`, the last one from the others: Σ_n load_n slope_n = value."""
    last = np.arange(load.size) == jnp.asarray(num_workers) - 1
    other_slopes = jnp.where(last, 0, slope)
    return jnp.where(
        last, (value - jnp.sum(other_slopes * load)) / load[-1], other_slopes
    )
