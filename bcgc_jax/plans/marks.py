"""Integrate E max_n y_n T_(N-n) for searches in y. The fineness may be traced."""

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
    """Hold numbers that the quadrature rules for a distribution and N workers share.

    Attributes:
      times: Four times per level, `[4, max_workers]`. T_(N-n) is hardly ever shorter
        than the first. The others are Λ⁻¹(E A_(N-n) + σ std A_(N-n)) for σ = -1, 0, 1.
      largest: Time beyond which P(T > t) underflows.
      log_choices: log C(N, n) for n = 0, …, max_workers.
    """

    times: Array
    largest: Array
    log_choices: Array


def marks_of(law: Distribution, load: Array, num_workers: ArrayLike) -> Marks:
    """Compute the `Marks` of N workers, without derivatives."""
    choices, hazards = AnyOf(num_workers).bounds(load)
    hazard = jnp.append(hazards.ravel(), unreached(load.dtype))
    times = law.inverse_cumulative_hazard(hazard).astype(load.dtype)
    return jax.lax.stop_gradient(Marks(times[:-1].reshape(4, -1), times[-1], choices))


def peaks_of(times: Array, load: Array) -> Array:
    """Compute max_n load_n times_n, `[4]`: the first and three typical values."""
    peaks = jnp.max(jnp.where(load > 0, load * times, 0), axis=-1)
    return quadrature.raised(peaks, load[-1] * times[-1, 0])


def threshold_hazard(
    law: Distribution, load: Array, t: Array, largest: Array
) -> tuple[Array, Array]:
    """Compute Λ(t / load_n) and minus its derivative in load_n, `[..., N]` each."""
    used = load > 0  # a level without a load is complete at once
    threshold = t[..., None] / jnp.where(used, load, 1)
    # Beyond the largest time, the derivative of Λ, inf, times 0 would be NaN.
    reachable = used & ~(threshold > largest)
    threshold = jnp.where(reachable, threshold, law.infimum().astype(t.dtype))
    along = threshold / jnp.where(used, load, 1)
    hazard, slope = jax.jvp(law.cumulative_hazard, (threshold,), (along,))
    return jnp.where(reachable, hazard, jnp.inf), jnp.where(reachable, slope, 0)


class SearchRule(NamedTuple):
    """Approximate E max_n load_n T_(N-n) by start + Σ weight · P(max > t).

    The distribution must not have atoms.

    Attributes:
      start: The first possible value of the maximum.
      beyond: Bound on the part of the integral that no node reaches.
      size: Number of nodes for `refine` = 1. Static.
      nodes: Function of (index, refine) that returns (t, weight) for index = 0, …, size
        · refine - 1. Beyond, weights are 0. A larger `refine` gives a finer rule.
    """

    start: Array
    beyond: Array
    size: int
    nodes: Callable[[Array, ArrayLike], tuple[Array, Array]]


def search_rule(
    law: Distribution, marks: Marks, load: Array, num_nodes: int
) -> SearchRule:
    """Make the rule with `num_nodes` intervals, or with nodes in panels."""
    assert not law.atomic
    # The nodes need no derivatives, because the integral does not depend on them.
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
    """Make a trapezoid rule along a line."""

    def nodes(index: Array, refine: ArrayLike) -> tuple[Array, Array]:
        # Nodes are half a step away from both ends, where the integrand vanishes. An
        # additional node would change the number of nodes.
        step = (of_line.high - of_line.low) / (num_nodes * refine)
        inside = index < num_nodes * refine
        v = of_line.low + step * (jnp.where(inside, index, 0) + 0.5)
        excess, slope = quadrature.on_line(of_line, v)
        return of_line.start + excess, jnp.where(inside, slope * step, 0)

    return SearchRule(of_line.start, of_line.beyond, num_nodes, nodes)


def _between(kinks: Panels, ends: bool, order: int) -> SearchRule:
    """Make a Gauss rule of this order in each panel between kinks and in the tail."""
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
    """Return times of kinks, and when all levels are complete, or None."""
    kinks = law.breaks().astype(load.dtype)
    images = (load[kinked_levels(load.size, law.jumps)][:, None] * kinks).ravel()
    return images, load[-1] * kinks[-1] if law.has_end else None


def homogeneous_slope(
    value: Array, slope: Array, load: Array, num_workers: ArrayLike
) -> Array:
    """Replace the last entry of the gradient by Σ_n load_n slope_n = value."""
    last = np.arange(load.size) == jnp.asarray(num_workers) - 1
    other_slopes = jnp.where(last, 0, slope)
    return jnp.where(
        last, (value - jnp.sum(other_slopes * load)) / load[-1], other_slopes
    )
