"""Integrate probabilities P(max > t) over t ≥ 0.

There are two kinds of quadrature. One is the trapezoid rule along a line
t = start + centre · exp(width · sinh v). The other is Gauss's rules in panels between
kinks. Each uses three rules of different fineness. The error of the finest rule is
extrapolated from their differences.
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

# Largest log time from the centre at which a bound is evaluated, by bytes of the dtype.
# Tails such as t^{-1.05} need it. Single precision has no larger range.
LONGEST = {8: 640.0, 4: 64.0}
# The same for panels, where a power law follows. Their weights need a part of the
# range.
_LONGEST_OF_PANELS = LONGEST | {4: 40.0}

# Number of shifted rules if there may be unknown kinks. Three wrong rules agree by
# accident more often than five.
_SHIFTED = 5


class Expectation(NamedTuple):
    """Hold the `value` of an expectation and a bound on its absolute `error`."""

    value: Array
    error: Array


class Quadrature(NamedTuple):
    """Approximate ∫₀^∞ P(max > t) dt by start + Σ_k weights_k P(max > times_k).

    Attributes:
      start: Time before which P(max > t) = 1.
      times: Nodes of all rules, `[K]`.
      weights: Weights of three rules, `[3, K]`. Along a line, the rules use all, every
        second and every fourth of the times. In panels, they are three of Gauss's
        rules. If there may be unknown kinks, `[1 + _SHIFTED, K]`: one rule with all
        times, and shifted rules that take turns in them.
      panels: Number of nodes per panel of each of Gauss's rules. Empty for a line.
      beyond: Bound on the integral after the last time, or on the error of the power
        law that replaces it.
    """

    start: Array
    times: Array
    weights: Array
    panels: tuple[int, ...] = ()
    beyond: ArrayLike = 0.0


class Line(NamedTuple):
    """Describe the line t = start + centre · exp(width · sinh v) for v from `low` to
    `high`.

    `beyond` bounds the integral of P(max > t) after the last time.
    """

    start: Array
    centre: Array
    width: Array
    low: Array
    high: Array
    beyond: Array


class Tail(NamedTuple):
    """Describe a power law P(max > start + s) ∝ s^-(1 + fall) for s ≥ `end`.

    Attributes:
      end: The s at which the tail begins.
      back: Length of the interval before the end, in log s, from which the power was
        estimated.
      fall: Exponent minus 1.
      open: Whether there is a tail. Otherwise, the probability is 0.
      doubt: Bound on the error of the integral over the tail.
    """

    end: Array
    back: Array
    fall: Array
    open: Array
    doubt: Array


class Panels(NamedTuple):
    """Describe panels for Gauss's rules: `start`, `left` ends, sizes, and the tail, if
    any.
    """

    start: Array
    left: Array
    size: Array
    tail: Tail | None


def largest(values: Array) -> Array:
    """Return the largest entry along the last axis, with the derivative of one of them.

    `jnp.max` compares the entries with the maximum. If XLA computes the entries again,
    none may be equal, which gives 0 / 0.
    """
    is_largest = np.arange(values.shape[-1]) == jnp.argmax(
        values, axis=-1, keepdims=True
    )
    return jnp.sum(jnp.where(is_largest, values, 0), axis=-1)


def line_rule(
    of_line: Line, num_nodes: int, *, maybe_kinked: bool = False
) -> Quadrature:
    """Make the trapezoid rule with `num_nodes` intervals in v, along a line.

    If P(max > t) is `maybe_kinked`, the rule has `_SHIFTED` times as many intervals. It
    is then the mean of `_SHIFTED` rules, which are shifted by one interval each.
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
    """Let the nodes of a rule move with the ascending `onsets`, `[K]`, in derivatives.

    At its onset, P(τ > t) may have a derivative that no rule resolves. If the nodes
    move with the onset, this derivative is not in the integral, which does not depend
    on the nodes. All nodes of a line move with the first onset, the start.
    """
    if not nodes.panels:
        onsets = onsets[:1]
    still = jax.lax.stop_gradient(onsets)
    moved = jnp.where(still < jnp.inf, onsets - still, 0)
    start = nodes.start + moved[0]
    times = nodes.times + moved[0]
    if onsets.size == 1:
        return nodes._replace(start=start, times=times)
    # Onsets that differ only by rounding move together, because there is no panel
    # between them.
    apart = jnp.diff(still) > 64 * jnp.finfo(still.dtype).eps * still[1:]
    group = jax.lax.cummax(jnp.append(0, jnp.where(apart, np.arange(1, still.size), 0)))
    still = still[group]
    increase = jnp.diff(moved[group])
    gap = jnp.diff(still)
    gap = jnp.where(gap > 0, gap, jnp.inf)[:, None]
    left = nodes.times - still[:-1, None]
    # Between two onsets, a node moves in proportion to its position. After the last
    # onset, nodes move with it.
    times = times + dot(increase, jnp.where(left < gap, jnp.maximum(left, 0) / gap, 1))
    pace = 1 + dot(increase, jnp.where((left > 0) & (left < gap), 1 / gap, 0))
    return nodes._replace(start=start, times=times, weights=nodes.weights * pace)


def gauss_rules(
    of_panels: Panels,
    orders: tuple[int, ...],
    ends: bool,
    powers: bool = False,
) -> Quadrature:
    """Make three of Gauss's rules, with `orders` nodes in each panel.

    With `powers`, densities may behave like excess^-0.3 at the left end. Nodes are then
    dense there, except in wide panels.
    """
    start, left, size, tail = of_panels
    rules = (np.concatenate(a) for a in zip(*map(legendre, orders), strict=True))
    shares, weights = (jnp.asarray(a, left.dtype) for a in rules)
    points = shares
    weight = weights
    if powers:
        # Nodes are at the cube of their position.
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
    """Compute centre · exp(width · sinh v) and its derivative in v."""
    up = jnp.exp(v)
    down = 1 / up
    half_width = of_line.width / 2
    excess = of_line.centre * jnp.exp(half_width * (up - down))
    return excess, excess * half_width * (up + down)


def integrate(nodes: Quadrature, late: Array) -> Expectation:
    """Compute start + Σ weight · late and its error from P(max > t) at the times,
    `[K]`.
    """
    term = jnp.where(late > 0, nodes.weights * jnp.where(late > 0, late, 0), 0)
    value, coarse, coarsest, *other_rules = jnp.sum(term, axis=1)
    if nodes.panels:
        fine, coarse, coarsest = jnp.sum(term.reshape(3, -1, sum(nodes.panels)), axis=2)
        # The error is estimated in each panel, because errors may cancel between
        # panels. The rules have n, 4 n / 5 and 2 n / 5 nodes. The factor 16 is for
        # splines through times decades apart, where rules converge like n^-0.6; 7 would
        # be enough.
        error = rule_error(fine, coarse, coarsest, safety=100.0, cap=16.0)
        return Expectation(nodes.start + value, jnp.sum(error) + nodes.beyond)
    if other_rules:
        error = spread_error(value, jnp.stack([coarse, coarsest, *other_rules]))
    else:
        error = rule_error(value, coarse, coarsest)
    # The omitted parts before the first and after the last time are as large as the
    # terms there.
    error = error + term[0, 0] + term[0, -1] + nodes.beyond
    return Expectation(nodes.start + value, error)


class _Layout(NamedTuple):
    """Describe where the mass of ∫ P(max > t) dt is, in u = log((t - start) / centre).

    With t = start + centre · e^u, the integral is centre ∫ e^u P(max > t) du. The mass
    at u is e^u P(max > t).

    Attributes:
      centre: Typical maximum, minus the start.
      heaviest: The u with the greatest mass, or 0 if the nodes around the centre
        resolve it.
      width: Width of the middle of the distribution.
      end: The u from which on the mass is negligible, or the largest u.
      mass_beyond: Integral from the largest u on, divided by the centre.
      last_reach: The three largest u at which the bound was evaluated.
      last_log_mass: Logarithm of the bound's mass at these u.
    """

    centre: Array
    heaviest: Array
    width: Array
    end: Array
    mass_beyond: Array
    last_reach: Array
    last_log_mass: Array


class _Looks(NamedTuple):
    """Hold the results of evaluating a bound so far.

    Attributes:
      number: Number of evaluations.
      log_mass: Logarithm of the bound's mass at the points of the first evaluation.
      heaviest: The u with the greatest mass.
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
    """Compute the layout from P(max > t) ≤ Σ_n C(N, n+1) P(level n is late)^{n+1}.

    `hazard_at` computes Λ of all levels at some times.
    """
    start = peaks[0]
    finfo = jnp.finfo(peaks.dtype)
    # An excess far below the rounding of the start counts as 0.
    least = jnp.maximum(1e-3 * finfo.eps * start, 1e3 * finfo.tiny)
    low, centre, high = jnp.maximum(peaks[1:] - start, least)
    width = jnp.clip(jnp.log(high / low) / 2, 0.05, 4.0)
    factor = 1.35  # ratio of consecutive points
    longest_reach = longest[peaks.dtype.itemsize]
    reaches = np.append(0.0, longest_reach * factor ** np.arange(-22.0, 1.0))
    reaches = reaches.astype(peaks.dtype)

    def log_mass_at(u: Array) -> Array:
        """Compute the log of the mass at u. The greatest term of the bound replaces its
        sum.
        """
        order = np.arange(1, choices.size, dtype=peaks.dtype)  # n + 1
        log_late = choices[1:] - order * hazard_at(start + centre * jnp.exp(u))
        return u + jnp.minimum(jnp.max(log_late, axis=-1), 0)

    looks = _look(log_mass_at, reaches, factor)
    log_mass = looks.log_mass
    far = looks.heaviest > 2 * width  # before, the rule's nodes are dense enough
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
    """Evaluate the mass at all points, then close to the greatest mass.

    One loop does both, so that hazards are compiled once. If the greatest mass is at u
    ≤ 20, the first evaluation is precise enough, and does not change if a load changes
    slightly.
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
    """Return the point after which the mass is negligible, and the integral beyond.

    If mass remains at the largest point, it continues as a power law, e^(-fall u). Its
    integral is the mass divided by `fall`, or infinite if it does not decrease.
    """
    open_ = log_mass > np.log(jnp.finfo(log_mass.dtype).eps / 8)
    following = np.append(reaches[1:], reaches[-1])
    end = jnp.max(jnp.where(open_, following, reaches[1]))
    fall = (log_mass[-2] - log_mass[-1]) / (reaches[-1] - reaches[-2])
    of_power = jnp.exp(log_mass[-1]) / jnp.where(fall > 0, fall, 1)
    return end, jnp.where(open_[-1], jnp.where(fall > 0, of_power, jnp.inf), 0)


def _tail_of(layout: _Layout) -> Tail:
    """Compute the tail beyond the largest point, which belongs to the lowest level in
    use.
    """
    late = layout.last_log_mass[-1]
    fall_before, fall_after = -jnp.diff(layout.last_log_mass) / jnp.diff(
        layout.last_reach
    )
    back = layout.last_reach[2] - layout.last_reach[0]
    fall = (layout.last_log_mass[0] - late) / back
    open_ = layout.mass_beyond > 0
    falling = fall > 0
    safe = jnp.where(falling, fall, 1)
    # The exponent may still change. For example, ∫ u^-2 du is then twice the
    # extrapolated value.
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
    """Return times before the end, and weights that integrate over the tail.

    The weights are exact for the power law with two or more nodes, and so is their
    derivative in the exponent. Let p ∝ s^-(1 + fall) and s = end · e^(-back x). To
    first order, ∫ p(s) e^(-(1 + fall) back x) (A + B x) dx = p(end) / fall.
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
    """Choose the line along which nearly all of the integral of P(max > t) is.

    `peaks`, `[4]`, are the earliest possible maximum, and a low, a typical and a high
    one. The centre is the typical maximum. If few workers are late at all, its mean may
    be far beyond, and the centre is moved.
    """
    layout = _layout(peaks, hazard_at, choices)
    # These ends are in log t. At the left end, e^-reach is omitted. A moved centre may
    # be too far right by a third, because the points of the bound are that far apart.
    left = layout.heaviest / 3 - np.log(jnp.finfo(peaks.dtype).eps / 8).astype(
        peaks.dtype
    )
    ends = jnp.stack([left, layout.end - layout.heaviest]) / layout.width
    # arsinh, for arguments that are not small.
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
    """Raise the `peaks` to a minimum distance from the start, given the `scale`."""
    start = peaks[0]
    nearest = np.exp(-LONGEST[peaks.dtype.itemsize] / 2).astype(peaks.dtype)
    least = start + jnp.where(np.arange(4) > 0, nearest * (scale - start), 0)
    return jnp.maximum(peaks, least)


def kinked_levels(size: int, jumps: bool = False) -> np.ndarray:
    """Choose the levels at whose kinks panels end: the first 12, then fewer and fewer.

    Where the distribution begins, Λ has a kink, which has order n+1 in P at level n. If
    the density `jumps` elsewhere, the kinks of all levels have order 1. Then panels end
    at the kinks of the first 100 levels.
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
    """Make panels from the `peaks`, the times of kinks, `[K]`, and a `last` time, if
    any.
    """
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
    # Breaks that differ from the start only by rounding would make the next panel too
    # wide.
    breaks = jnp.where(
        breaks - start <= 8 * jnp.finfo(dtype).eps * start, start, breaks
    )
    edges = jnp.concatenate([start[None], jnp.sort(jnp.clip(breaks, start, last))])
    return Panels(start, edges[:-1], jnp.diff(edges), tail)


def _tail_ends(heaviest: Array, end: Array) -> Array:
    """Return the ends of 20 panels in log time, from the centre on.

    They have equal lengths within a unit, and increasing lengths afterwards, as the end
    may be e^640 away. If most of the mean is far from the centre, some of the panels
    are before it.
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
    """Whether a panel is longer than its distance to the start, if nothing `ends`."""
    return (left > start) & (size > left - start) & (not ends)


def in_panel(
    ends: bool, start: Array, left: Array, size: Array, share: Array
) -> tuple[Array, Array]:
    """Return the time at a fraction of a panel, and its derivative.

    Wide panels are logarithmic.
    """
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
    """Bound the error of `fine` from three rules, each with half the step of the next.

    Their differences e₁ and e₂ extrapolate to e₁² / e₂. The bound is this times
    `safety`, at most `cap` · e₁. If e₁ is accidentally small, the bound is e₂² / (10
    `fine`). The constants are our choice. With 40 intervals, errors were at most 0.2 of
    the bound.
    """
    last = jnp.abs(fine - coarse)
    previous = jnp.abs(coarse - coarsest)
    ratio = last / jnp.where(previous > last, previous, jnp.where(last > 0, last, 1))
    doubt = previous * (previous / jnp.where(fine > 0, fine, 1)) / 10
    return jnp.maximum(last * jnp.minimum(safety * ratio, cap), doubt)


def spread_error(value: Array, rules: Array) -> Array:
    """Bound the error of the mean `value` of shifted trapezoid `rules`, `[R]`.

    For a smooth function, all rules are equally accurate. A kink at position θ of its
    interval makes an error of B(θ) times the jump of the derivative, with the second
    Bernoulli polynomial B. The mean of B over the five positions is B(5 θ) / 25. This
    is at most 1/24 of the largest difference from the mean.

    Errors of several kinks may cancel in a difference. Of a million sums of 20 with
    random jumps, six were above the bound, by a factor of at most 2. For 720 runtimes
    of hazards with two kinks, the largest error was 0.17 of the bound
    (`tests/plans/test_unnamed_kinks.py`).
    """
    return jnp.max(jnp.abs(rules - value))
