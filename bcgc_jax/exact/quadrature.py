r"""Rules of integration over the time t ≥ 0 for probabilities P(max > t) that fall from
1 to 0.

Two kinds, which compare three rules and extrapolate their differences to the error of
the finest: trapezoids along a line, t = start + centre · exp(width · sinh v), and the
rules of Gauss in panels between kinks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions.special_functions import legendre
from bcgc_jax.exact.linear_algebra import dot

# How far from the centre a bound is looked at, in log time, for tails like t^{-1.05};
# single precision, of 4 bytes, has no room for more.
LONGEST = {8: 640.0, 4: 64.0}
# The same for panels, which a power law follows: its weights need room too.
_LONGEST_OF_PANELS = LONGEST | {4: 40.0}

# Rules that take turns in the nodes if there may be kinks that nobody named. Three
# rules agree by chance and are wrong more often than five.
_SHIFTED = 5


class Expectation(NamedTuple):
    """`value` of an expectation and the estimated absolute `error` of its rule."""

    value: Array
    error: Array


class Quadrature(NamedTuple):
    """∫₀^∞ P(max > t) dt ≈ start + Σ_k weights_k P(max > times_k), by three rules.

    The `times`, `[K]`, are the same for all three. `weights`, `[3, K]`, are those of
    all, of every second and of every fourth of the times; or of three of Gauss's rules
    in each panel, of as many nodes as `panels` says. `beyond` bounds what is left out
    after the last of the times, or what a power law in its place is off by. If P may
    have kinks that nobody named, `weights`, `[1 + _SHIFTED, K]`, are those of all times
    and of rules that take turns in them.
    """

    start: Array
    times: Array
    weights: Array
    panels: tuple[int, ...] = ()
    beyond: ArrayLike = 0.0


class Line(NamedTuple):
    """t = start + centre · exp(width · sinh v) for v from `low` to `high`.

    `beyond` bounds the integral of P(max > t) after the last time.
    """

    start: Array
    centre: Array
    width: Array
    low: Array
    high: Array
    beyond: Array


class Tail(NamedTuple):
    """P(max > start + s) ∝ s^-(1 + fall) for s from `end` on; nothing there if it is
    not `open`.

    `back` is how far before the end, in log s, the power has been looked at; `doubt`
    what the integral beyond the end may be off by.
    """

    end: Array
    back: Array
    fall: Array
    open: Array
    doubt: Array


class Panels(NamedTuple):
    """Panels for Gauss's rules from `start` on: `left` ends, sizes, maybe a `tail`."""

    start: Array
    left: Array
    size: Array
    tail: Tail | None


def largest(values: Array) -> Array:
    """The largest along the last axis, with the slope of one of them.

    `jnp.max` looks for those equal to it, and where XLA computes them anew there may be
    none: 0 / 0.
    """
    is_largest = np.arange(values.shape[-1]) == jnp.argmax(
        values, axis=-1, keepdims=True
    )
    return jnp.sum(jnp.where(is_largest, values, 0), axis=-1)


def line_rule(
    of_line: Line, num_nodes: int, *, maybe_kinked: bool = False
) -> Quadrature:
    """The trapezoid rule of `num_nodes` intervals in v, from `line`.

    If P(max > t) is `maybe_kinked`, the rule has `_SHIFTED` times as many intervals,
    and is the mean of as many rules, each a little further on.
    """
    start = of_line.start
    length = of_line.high - of_line.low
    finer = _SHIFTED if maybe_kinked else 1
    node = np.arange(finer * num_nodes + 1)
    if maybe_kinked:
        rules = [node >= 0, *(node % finer == k for k in range(finer))]
        steps = [1] + [finer] * finer
    else:
        steps = [1, 2, 4]
        rules = [node % step == 0 for step in steps]
    v = of_line.low + length * np.linspace(0.0, 1.0, node.size).astype(start.dtype)
    excess, slope = on_line(of_line, v)
    weight = slope * (length / node[-1])
    share = np.stack([rule * step for rule, step in zip(rules, steps, strict=True)])
    return Quadrature(
        start,
        start + excess,
        weight * share.astype(start.dtype),
        beyond=of_line.beyond,
    )


def follow(nodes: Quadrature, onsets: Array) -> Quadrature:
    """The same rule, whose nodes move with the ascending `onsets`, `[K]`, to a
    derivative.

    Where P(late) begins to fall it may have a slope that no rule sees all of; if the
    nodes move too, it is not in the integral, which does not depend on them. Those of a
    line all move with the first, the start.
    """
    if not nodes.panels:
        onsets = onsets[:1]
    still = jax.lax.stop_gradient(onsets)
    moved = jnp.where(still < jnp.inf, onsets - still, 0)
    start = nodes.start + moved[0]
    times = nodes.times + moved[0]
    if onsets.size == 1:
        return nodes._replace(start=start, times=times)
    # No panel lies between those that only rounding sets apart: they move as one.
    apart = jnp.diff(still) > 64 * jnp.finfo(still.dtype).eps * still[1:]
    group = jax.lax.cummax(jnp.append(0, jnp.where(apart, np.arange(1, still.size), 0)))
    still = still[group]
    increase = jnp.diff(moved[group])
    gap = jnp.diff(still)
    gap = jnp.where(gap > 0, gap, jnp.inf)[:, None]
    left = nodes.times - still[:-1, None]
    # Between two onsets as far along as the node is on its way, and all with the last
    # after it.
    times = times + dot(increase, jnp.where(left < gap, jnp.maximum(left, 0) / gap, 1))
    pace = 1 + dot(increase, jnp.where((left > 0) & (left < gap), 1 / gap, 0))
    return nodes._replace(start=start, times=times, weights=nodes.weights * pace)


def gauss_rules(
    of_panels: Panels,
    orders: tuple[int, ...],
    ends: bool,
    powers: bool = False,
) -> Quadrature:
    """Three of Gauss's rules in the panels of `panels`, of so many nodes each.

    With `powers`, densities may be like excess^-0.3 at the left end: nodes are dense
    there, but in wide panels.
    """
    start, left, size, tail = of_panels
    rules = (np.concatenate(a) for a in zip(*map(legendre, orders), strict=True))
    shares, weights = (jnp.asarray(a, left.dtype) for a in rules)
    points = shares
    weight = weights
    if powers:
        # By the cube of the share of the way.
        dense = ~_is_wide(ends, start, left, size)[:, None]
        weight = jnp.where(dense, 3 * points**2 * weight, weight)
        points = jnp.where(dense, points**3, points)
    t, slope = in_panel(ends, start, left[:, None], size[:, None], points)
    weight = slope * weight
    if tail is not None:
        later, slope = in_tail(start, tail, shares)
        t = jnp.concatenate([t, later[None]])
        weight = jnp.concatenate([weight, (slope * weights)[None]])
    is_of_rule = np.repeat(np.eye(3), orders, axis=1)[:, None].astype(start.dtype)
    beyond = 0.0 if tail is None else tail.doubt
    return Quadrature(
        start=start,
        times=t.ravel(),
        weights=(weight * is_of_rule).reshape(3, -1),
        panels=orders,
        beyond=beyond,
    )


def on_line(of_line: Line, v: Array) -> tuple[Array, Array]:
    """centre · exp(width · sinh v) and its slope in v."""
    up = jnp.exp(v)
    down = 1 / up
    half_width = of_line.width / 2
    excess = of_line.centre * jnp.exp(half_width * (up - down))
    return excess, excess * half_width * (up + down)


def integrate(nodes: Quadrature, late: Array) -> Expectation:
    """start + Σ weight · late, and its error, from P(late) at the times, `[K]`."""
    term = jnp.where(late > 0, nodes.weights * jnp.where(late > 0, late, 0), 0)
    value, coarse, coarsest, *other_rules = jnp.sum(term, axis=1)
    if nodes.panels:
        fine, coarse, coarsest = jnp.sum(term.reshape(3, -1, sum(nodes.panels)), axis=2)
        # In each panel, for what two rules are off by may cancel between panels. For n,
        # 4 n / 5 and 2 n / 5 nodes; 16 for splines through times decades apart, which
        # converge like n^-0.6: 7 would do.
        error = rule_error(fine, coarse, coarsest, safety=100.0, cap=16.0)
        return Expectation(nodes.start + value, jnp.sum(error) + nodes.beyond)
    if other_rules:
        error = spread_error(value, jnp.stack([coarse, coarsest, *other_rules]))
    else:
        error = rule_error(value, coarse, coarsest)
    # What is left out before the first and after the last time is of the size of the
    # term there.
    error = error + term[0, 0] + term[0, -1] + nodes.beyond
    return Expectation(nodes.start + value, error)


class _Layout(NamedTuple):
    """Where the mass of ∫ P(max > t) dt lies, in u = log((t - start) / centre).

    With t = start + centre · e^u it is centre ∫ e^u P(max > t) du: the mass at u is
    e^u P(max > t).

    Attributes:
      heaviest: the u of the greatest mass, or 0 if the nodes about the centre see it.
      width: of the middle of the distribution.
      end: the u from which on there is nothing left, or the longest.
      mass_beyond: the integral from the longest u on, over the centre.
      last_reach: the last three u at which the bound was looked at.
      last_log_mass: the log of the bound's mass at these.
    """

    centre: Array
    heaviest: Array
    width: Array
    end: Array
    mass_beyond: Array
    last_reach: Array
    last_log_mass: Array


class _Looks(NamedTuple):
    """What the looks at a bound so far have told.

    Attributes:
      number: of the looks.
      log_mass: the log of the bound's mass at the reaches of the first look.
      heaviest: the u of the greatest mass.
    """

    number: Array
    log_mass: Array
    heaviest: Array


def _layout(
    peaks: Array,
    hazard_at: Callable[[Array], Array],
    choices: Array,
    longest: dict[int, float] = LONGEST,
) -> _Layout:
    """The layout by P(max > t) ≤ Σ_n C(N, n+1) P(level n is late)^{n+1}.

    `hazard_at` some times has Λ of all levels.
    """
    start = peaks[0]
    finfo = jnp.finfo(peaks.dtype)
    # An excess over the start far below the rounding of the start is none.
    least = jnp.maximum(1e-3 * finfo.eps * start, 1e3 * finfo.tiny)
    low, centre, high = jnp.maximum(peaks[1:] - start, least)
    width = jnp.clip(jnp.log(high / low) / 2, 0.05, 4.0)
    factor = 1.35  # from one reach to the next
    longest_reach = longest[peaks.dtype.itemsize]
    reaches = np.append(0.0, longest_reach * factor ** np.arange(-22.0, 1.0))
    reaches = reaches.astype(peaks.dtype)

    def log_mass_at(u: Array) -> Array:
        """The log of the mass at u, with the greatest term of the bound for its sum."""
        order = np.arange(1, choices.size, dtype=peaks.dtype)  # n + 1
        log_late = choices[1:] - order * hazard_at(start + centre * jnp.exp(u))
        return u + jnp.minimum(jnp.max(log_late, axis=-1), 0)

    looks = _look(log_mass_at, reaches, factor)
    log_mass = looks.log_mass
    far = looks.heaviest > 2 * width  # up to there the rule's nodes are dense enough
    end, mass_beyond = _end_of(reaches, log_mass)
    return _Layout(
        centre=centre,
        heaviest=jnp.where(far, looks.heaviest, 0),
        width=jnp.where(far, jnp.maximum(width, 1), width),
        end=end,
        mass_beyond=mass_beyond,
        last_reach=jnp.asarray(reaches[-3:]),
        last_log_mass=log_mass[-3:],
    )


def _look(
    log_mass_at: Callable[[Array], Array], reaches: np.ndarray, factor: float
) -> _Looks:
    """Look at the mass everywhere, then less than a factor from where it is greatest.

    In one loop, so that hazards are compiled once. Nearer by than u = 20 the first look
    is as good, and steady while a load changes a little.
    """
    dtype = reaches.dtype
    near = np.linspace(1 / factor, factor, reaches.size // 2)
    close = np.tile(near, 2).astype(dtype)

    def look(looks: _Looks) -> _Looks:
        first = looks.number == 0
        u = jnp.where(first, reaches, close * looks.heaviest)
        log_mass = log_mass_at(u)
        return _Looks(
            number=looks.number + 1,
            log_mass=jnp.where(first, log_mass, looks.log_mass),
            heaviest=u[jnp.argmax(log_mass)],
        )

    def go_on(looks: _Looks) -> Array:
        return (looks.number == 0) | ((looks.number == 1) & (looks.heaviest > 20))

    unseen = _Looks(
        number=jnp.asarray(0),
        log_mass=jnp.zeros(reaches.size, dtype),
        heaviest=jnp.zeros((), dtype),
    )
    return jax.lax.while_loop(go_on, look, unseen)


def _end_of(reaches: np.ndarray, log_mass: Array) -> tuple[Array, Array]:
    """The reach from which on nothing is left, or the longest, and what lies beyond.

    If mass is left at the longest, it goes on as a power law, e^(-fall u), whose
    integral is the mass over the fall; infinite where it does not fall.
    """
    open_ = log_mass > np.log(jnp.finfo(log_mass.dtype).eps / 8)
    following = np.append(reaches[1:], reaches[-1])
    end = jnp.max(jnp.where(open_, following, reaches[1]))
    fall = (log_mass[-2] - log_mass[-1]) / (reaches[-1] - reaches[-2])
    of_power = jnp.exp(log_mass[-1]) / jnp.where(fall > 0, fall, 1)
    return end, jnp.where(open_[-1], jnp.where(fall > 0, of_power, jnp.inf), 0)


def _tail_of(layout: _Layout) -> Tail:
    """The tail beyond the longest reach, of the lowest level in use alone."""
    late = layout.last_log_mass[-1]
    fall_before, fall_after = -jnp.diff(layout.last_log_mass) / jnp.diff(
        layout.last_reach
    )
    back = layout.last_reach[2] - layout.last_reach[0]
    fall = (layout.last_log_mass[0] - late) / back
    open_ = layout.mass_beyond > 0
    falling = fall > 0
    safe = jnp.where(falling, fall, 1)
    # A power law of which the exponent still changes: ∫ u^-2 du, say, is twice as much
    # as one expects.
    change = 4 * jnp.abs(fall_after - fall_before) / (back / 2 * safe**2)
    doubt = jnp.where(falling, layout.centre * jnp.exp(late) / safe * change, jnp.inf)
    end = layout.centre * jnp.exp(layout.last_reach[2])
    return Tail(
        end=end,
        back=back,
        fall=safe,
        open=open_ & falling,
        doubt=jnp.where(open_, doubt, 0),
    )


def in_tail(start: Array, tail: Tail, share: Array) -> tuple[Array, Array]:
    """Times before the end, and the slopes by which two nodes and more integrate beyond
    it.

    They are right for the power, and so is the sum's derivative in the exponent: with
    p ∝ s^-(1 + fall) and s = end · e^(-back x), ∫ p(s) e^(-(1 + fall) back x) (A + B x)
    dx = p(end) / fall, to the first order.
    """
    change = -12 / (tail.back * tail.fall**2) - 6 / tail.fall  # B
    level = 1 / tail.fall - change / 2  # A
    gone = jnp.exp(-tail.back * share)
    slope = (
        tail.end
        * gone
        * jnp.exp(-tail.fall * tail.back * share)
        * (level + change * share)
    )
    return start + tail.end * gone, jnp.where(tail.open, slope, 0)


def line(peaks: Array, hazard_at: Callable[[Array], Array], choices: Array) -> Line:
    """The line along which nearly all of the integral of P(max > t) is.

    `peaks`, `[4]`, are where the maximum begins to be possible, and a low, a typical
    and a high one. The centre is the typical maximum, unless its mean lies far beyond
    it, as where few workers are late at all.
    """
    layout = _layout(peaks, hazard_at, choices)
    # In log t. e^-reach is what is left out at the left end; where the centre moved, it
    # may lie too far by a third, for the bound was looked at in such steps.
    left = layout.heaviest / 3 - np.log(jnp.finfo(peaks.dtype).eps / 8).astype(
        peaks.dtype
    )
    ends = jnp.stack([left, layout.end - layout.heaviest]) / layout.width
    # The inverse of sinh, of what is not small.
    left, right = jnp.log(ends + jnp.sqrt(ends**2 + 1))
    centre = layout.centre * jnp.exp(layout.heaviest)
    return Line(
        start=peaks[0],
        centre=centre,
        width=layout.width,
        low=-left,
        high=right,
        beyond=layout.centre * layout.mass_beyond,
    )


def raised(peaks: Array, scale: Array) -> Array:
    """The `peaks`, none nearer to the start than the `scale` of times allows."""
    start = peaks[0]
    nearest = np.exp(-LONGEST[peaks.dtype.itemsize] / 2).astype(peaks.dtype)
    least = start + jnp.where(np.arange(4) > 0, nearest * (scale - start), 0)
    return jnp.maximum(peaks, least)


def kinked_levels(size: int, jumps: bool = False) -> np.ndarray:
    """The levels at the images of whose kinks panels end: of the first 12, then of ever
    fewer.

    A kink of Λ where the distribution begins is one of order n+1 in P at level n. If
    the density `jumps` elsewhere, then the kinks of all levels are of order 1, and
    panels end at those of the first 100.
    """
    first = min(100 if jumps else 12, size)
    return np.unique(np.r_[:first, np.geomspace(first, size, 12).astype(int) - 1])


def panels(
    peaks: Array,
    images: Array,
    last: Array | None,
    hazard_at: Callable[[Array], Array],
    choices: Array,
) -> Panels:
    """Panels by the `peaks`, the kinks' `images`, `[K]`, and a `last` time, if any."""
    start, low, middle, high = peaks
    dtype = peaks.dtype
    beyond = jnp.zeros(0, dtype)
    spread = np.array([0, 0.5, 1, 2, 4, 8, 16, 32], dtype)
    tail = None
    if last is None:
        layout = _layout(peaks, hazard_at, choices, _LONGEST_OF_PANELS)
        tail = jax.lax.stop_gradient(_tail_of(layout))
        beyond = jax.lax.stop_gradient(
            start + layout.centre * jnp.exp(_tail_ends(layout.heaviest, layout.end))
        )
        last = beyond[-1]
        spread = spread[:5]
    around = middle + jnp.concatenate(
        [(low - middle) * spread[1:5], (high - middle) * spread]
    )
    breaks = jnp.concatenate([images, around, beyond, last[None]])
    # What only rounding sets apart from the start would make the next panel a wide one.
    breaks = jnp.where(
        breaks - start <= 8 * jnp.finfo(dtype).eps * start, start, breaks
    )
    edges = jnp.concatenate([start[None], jnp.sort(jnp.clip(breaks, start, last))])
    return Panels(start, edges[:-1], jnp.diff(edges), tail)


def _tail_ends(heaviest: Array, end: Array) -> Array:
    """Ends of 20 panels in log time, from the centre on: alike within a unit, then ever
    longer.

    If most of the mean lies far from the centre, a part of the panels comes before it.
    The end may be e^640 away.
    """
    share = np.linspace(0.0, 1.0, 20).astype(end.dtype)
    part = 0.4
    before = share[share < part] / part
    after = (share[share >= part] - part) / (1 - part)
    far = jnp.concatenate(
        [heaviest * before, heaviest + jnp.sinh(after * jnp.arcsinh(end - heaviest))]
    )
    return jnp.where(heaviest > 0, far, jnp.sinh(share * jnp.arcsinh(end)))


def _is_wide(ends: bool, start: Array, left: Array, size: Array) -> Array:
    """Whether a panel without an end is longer than its way from the start."""
    return (left > start) & (size > left - start) & (not ends)


def in_panel(
    ends: bool, start: Array, left: Array, size: Array, share: Array
) -> tuple[Array, Array]:
    """The time at a share of a panel, and its slope; logarithmic in wide ones."""
    t = left + size * share
    slope = jnp.broadcast_to(size, jnp.broadcast_shapes(size.shape, share.shape))
    if ends:
        return t, slope
    wide = _is_wide(ends, start, left, size)
    away = left - start
    rate = jnp.log1p(size / jnp.where(wide, away, 1))
    grown = away * jnp.exp(jnp.where(wide, rate, 0) * share)
    return jnp.where(wide, start + grown, t), jnp.where(wide, grown * rate, slope)


def rule_error(
    fine: Array, coarse: Array, coarsest: Array, safety: float = 30.0, cap: float = 1.0
) -> Array:
    """A bound on the error of `fine`, from three rules, each with half the step of the
    next.

    Their differences e₁, e₂ extrapolate to e₁²/e₂, times `safety`, at most `cap` e₁.
    Where e₁ is small by chance, e₂² / 10, relative to `fine`, is the bound. The
    constants are our own: with 40 intervals errors came to at most 0.2 of it.
    """
    last = jnp.abs(fine - coarse)
    previous = jnp.abs(coarse - coarsest)
    ratio = last / jnp.where(previous > last, previous, jnp.where(last > 0, last, 1))
    doubt = previous * (previous / jnp.where(fine > 0, fine, 1)) / 10
    return jnp.maximum(last * jnp.minimum(safety * ratio, cap), doubt)


def spread_error(value: Array, rules: Array) -> Array:
    """A bound on the error of the mean `value` of shifted trapezoid `rules`, `[R]`.

    All are equally right for a smooth function. A kink makes an error of B(θ), the
    second Bernoulli polynomial, times the jump of the slope, where θ is the place of
    the kink within its interval. The mean of B over the five places is B(5 θ) / 25, and
    at most 1/24 of the largest difference from it. Errors of several
    kinks may cancel in a difference: of a million sums of 20 with random jumps six were
    above the bound, by a factor of 2 at most. Of 720 runtimes of hazards with two kinks
    the largest error was 0.17 of it (`tests/plans/test_unnamed_kinks.py`).
    """
    return jnp.max(jnp.abs(rules - value))
