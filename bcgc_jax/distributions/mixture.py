r"""A mixture of distributions: P(T > t) = Σ_i p_i P(T_i > t), p_i = w_i / Σ_j w_j."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import pytree_dataclass
from bcgc_jax.distributions.base import (
    Atomic,
    Distribution,
    Kinked,
    Smooth,
    as_floats,
    excess_above,
)

# A hundred random mixtures took 40 steps in the median and at most 90, each for 40
# quantiles between 1e-12 and 1 - 1e-12. With fewer steps a time would be less exact.
_MOST_STEPS = 200


@pytree_dataclass
class Mixture(Distribution):
    r"""A worker's time follows `distributions[i]` with probability
    `weights[i]` / Σ `weights`.

    P(T > t) = Σ_i p_i P(T_i > t) with p_i = w_i / Σ_j w_j. It is the usual model of
    workers that are mostly fast and sometimes slow.

    Args:
      distributions: of one worker's time, either all with a density, or all of finitely
        many times. A distribution may occur in it more than once.
      weights: positive numbers, `[K]`, one for each distribution. They are divided by
        their sum.

    Λ⁻¹ has no formula. It is found by Chandrupatla's method, to full precision.

    Raises:
      ValueError: If there is no distribution, if one is not a distribution of a single
        worker, if the number of weights differs, if a weight is not positive, or if
        only some of the distributions have a density.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> fast, slow = ShiftedExponential(5.0, 1.0), ShiftedExponential(0.5, 1.0)
    >>> law = Mixture([fast, slow], weights=[0.9, 0.1])
    >>> round(float(law.mean()), 6)
    1.38
    """

    distributions: Sequence[Distribution]
    weights: ArrayLike | Sequence[float]

    conditions = (("weights", "> 0"),)
    ranks = (("weights", 1),)

    def __post_init__(self) -> None:
        members = tuple(self.distributions)
        object.__setattr__(self, "distributions", members)
        for member in members:
            if not isinstance(member, Distribution):
                raise ValueError(
                    "distributions of Mixture must each be the distribution of one "
                    f"worker's time, got {member!r}"
                )
        (weights,) = as_floats(self.weights)
        if not members or np.shape(weights)[-1:] != (len(members),):
            raise ValueError(
                "weights of Mixture must be one number for each distribution, got "
                f"{len(members)} distributions and weights of shape "
                f"{np.shape(weights)}"
            )
        object.__setattr__(self, "weights", weights)
        super().__post_init__()
        if len({member.atomic for member in members}) > 1:
            raise ValueError(
                "distributions of Mixture must all have a density, or none of them: "
                "take a narrow Uniform distribution in place of a single time"
            )

    def valid(self):
        members = [member.valid() for member in self.distributions]
        return super().valid() & jnp.all(jnp.stack(members))

    def check_single(self):
        for member in self.distributions:
            member.check_single()
        if np.ndim(self.weights) != 1:
            super().check_single()

    @property
    def light_tail(self) -> bool:  # type: ignore[override]
        return all(member.light_tail for member in self.distributions)

    @property
    def rounding(self) -> float:  # type: ignore[override]
        return max(member.rounding for member in self.distributions)

    def _probabilities(self) -> Array:
        weights = jnp.asarray(self.weights)
        return weights / jnp.sum(weights)

    def cumulative_hazard(self, t):
        return _mixed_hazard(
            self._probabilities(),
            jnp.stack([member.cumulative_hazard(t) for member in self.distributions]),
        )

    def inverse_cumulative_hazard(self, a):
        if self.atomic:
            return self._atom_at(a)
        begin = jax.lax.stop_gradient(self.infimum()).astype(a.dtype)
        still = jax.lax.stop_gradient(self)
        inside, positive = excess_above(jax.lax.stop_gradient(a), 0.0)
        low, high = still._bracket(positive)
        least = jnp.finfo(a.dtype).tiny

        def miss(x: Array) -> Array:
            # In logarithms Λ is nearly a line, at both ends of the support.
            hazard = still.cumulative_hazard(begin + jnp.exp(x))
            return jnp.log(jnp.maximum(hazard, least)) - jnp.log(positive)

        ends = (jnp.log(jnp.maximum(end - begin, least)) for end in (low, high))
        time = jnp.clip(begin + jnp.exp(_root(miss, *ends)), low, high)
        return jnp.where(inside, _with_slopes(self, time, a), self.infimum())

    def _atom_at(self, a: Array) -> Array:
        """The least of finitely many times whose hazard is at least `a`."""
        times = self.breaks()
        hazards = self.cumulative_hazard(times)
        # With a margin of a few ulp, so that Λ⁻¹(Λ(t)) = t survives two roundings.
        margin = 1 - 16 * jnp.finfo(hazards.dtype).eps
        place = jnp.searchsorted(hazards, a * margin, side="left")
        return times[jnp.minimum(place, times.size - 1)]

    def _bracket(self, a: Array) -> tuple[Array, Array]:
        """Two times between which Λ⁻¹(a) lies.

        P(T > t) is a mean of P(T_i > t), and at least each p_i P(T_i > t); the same
        holds for P(T ≤ t).
        """
        lows, highs = [], []
        for p, member in zip(self._probabilities(), self.distributions, strict=True):
            late = a + jnp.log(p)
            early = -jnp.expm1(-a) / p
            bounded = early < 1
            early = -jnp.log1p(-jnp.where(bounded, early, 0))
            hazards = jnp.stack([a, jnp.maximum(late, 0), early])
            alike, least, upper = member.inverse_cumulative_hazard(hazards)
            lows.append([alike, jnp.where(late > 0, least, -jnp.inf)])
            highs.append([alike, jnp.where(bounded, upper, jnp.inf)])
        of_all, of_each = jnp.swapaxes(jnp.asarray(lows), 0, 1)
        low = jnp.maximum(of_all.min(0), of_each.max(0))
        of_all, of_each = jnp.swapaxes(jnp.asarray(highs), 0, 1)
        return low, jnp.maximum(low, jnp.minimum(of_all.max(0), of_each.min(0)))

    def mean(self):
        means = jnp.stack([jnp.asarray(m.mean()) for m in self.distributions])
        return jnp.sum(self._probabilities() * means)

    def infimum(self):
        begins = [jnp.asarray(member.infimum()) for member in self.distributions]
        return jnp.min(jnp.stack(begins))

    def has_mean(self, level, num_workers):
        return jnp.all(
            jnp.stack([m.has_mean(level, num_workers) for m in self.distributions]), 0
        )

    def pieces(self):
        pieces = [member.pieces() for member in self.distributions]
        if any(isinstance(p, Smooth) and not p.certain for p in pieces):
            return Smooth(certain=False)
        times = [jnp.asarray(p.times) for p in pieces if isinstance(p, Kinked | Atomic)]
        if isinstance(pieces[0], Atomic):
            return Atomic(jnp.sort(jnp.concatenate(times)))
        begins = [jnp.asarray(member.infimum())[None] for member in self.distributions]
        ends = all(isinstance(p, Kinked) and p.ends for p in pieces)
        jumps = len(self.distributions) > 1
        return Kinked(jnp.sort(jnp.concatenate(begins + times)), ends, jumps)

    def with_knots(self):
        members = [member.with_knots() for member in self.distributions]
        return Mixture(members, self.weights)

    def summary(self):
        return {
            "distribution": "mixture",
            "distributions": len(self.distributions),
            "mean": self.mean(),
        }


def _mixed_hazard(probabilities: Array, hazards: Array) -> Array:
    """-log Σ_i p_i exp(-Λ_i) along the first axis, exact where it is small or large."""
    p = probabilities.reshape(-1, *[1] * (hazards.ndim - 1)).astype(hazards.dtype)
    early = jnp.sum(p * -jnp.expm1(-hazards), axis=0)
    least = jax.lax.stop_gradient(jnp.min(hazards, axis=0))
    finite = jnp.isfinite(least)
    least = jnp.where(finite, least, 0)
    late = jnp.sum(p * jnp.exp(least - hazards), axis=0)
    late = jnp.where(finite, late, 1)
    is_early = early < 0.5
    near = -jnp.log1p(-jnp.where(is_early, early, 0))
    far = jnp.where(finite, least - jnp.log(late), jnp.inf)
    return jnp.where(is_early, near, far)


@jax.custom_jvp
def _with_slopes(law: Mixture, t: Array, a: Array) -> Array:
    """The time `t` with Λ(t) = a, whose slopes are those of Λ⁻¹."""
    return t


@_with_slopes.defjvp
def _slopes(primals: Any, tangents: Any) -> tuple[Array, Array]:
    law, t, a = primals
    of_law, _, of_a = tangents
    t = _with_slopes(law, t, a)  # with slopes itself, for second derivatives
    _, change = jax.jvp(lambda law: law.cumulative_hazard(t), (law,), (of_law,))
    _, slope = jax.jvp(law.cumulative_hazard, (t,), (jnp.ones_like(t),))
    falls = slope > 0
    of_t = jnp.where(falls, (of_a - change) / jnp.where(falls, slope, 1), 0)
    return t, of_t


class _Search(NamedTuple):
    """Chandrupatla's state: an end, the other end, and the point before, `[...]`."""

    step: Array
    a: Array
    b: Array
    c: Array
    of_a: Array
    of_b: Array
    of_c: Array
    share: Array
    done: Array


def _root(function: Any, low: Array, high: Array) -> Array:
    """A root between `low` and `high` of a function that rises, elementwise.

    Chandrupatla (1997) takes inverse quadratic interpolation where it is safe, and
    halves the interval elsewhere.
    """
    eps = jnp.finfo(low.dtype).eps

    def is_wider(state: _Search) -> Array:
        return (state.step < _MOST_STEPS) & ~jnp.all(state.done)

    def look(s: _Search) -> _Search:
        x = s.a + s.share * (s.b - s.a)
        of_x = function(x)
        one_sign = (of_x > 0) == (s.of_a > 0)
        c = jnp.where(one_sign, s.a, s.b)
        of_c = jnp.where(one_sign, s.of_a, s.of_b)
        b = jnp.where(one_sign, s.b, s.a)
        of_b = jnp.where(one_sign, s.of_b, s.of_a)
        nearest = jnp.where(jnp.abs(of_x) < jnp.abs(of_b), x, b)
        width = jnp.abs(b - x)
        least = eps * (jnp.abs(nearest) + 1) / jnp.where(width > 0, width, 1)
        done = s.done | (least > 0.5) | (of_x == 0) | (width == 0)
        share = jnp.clip(_interpolated(x, b, c, of_x, of_b, of_c), least, 1 - least)
        new = _Search(s.step + 1, x, b, c, of_x, of_b, of_c, share, done)
        # What is found stays, or a step of the others would move it.
        kept = jax.tree.map(lambda x, y: jnp.where(s.done, x, y), s[1:], new[1:])
        return _Search(new.step, *kept)

    half = jnp.full_like(low, 0.5)
    of_low, of_high = function(low), function(high)
    # A root at an end of the bracket may be outside of it by a rounding.
    is_low, is_high = of_low >= 0, of_high <= 0
    low, high = jnp.where(is_high, high, low), jnp.where(is_low, low, high)
    of_low, of_high = (
        jnp.where(is_high, of_high, of_low),
        jnp.where(is_low, of_low, of_high),
    )
    first = _Search(
        jnp.asarray(0), low, high, low, of_low, of_high, of_low, half, low >= high
    )
    last = jax.lax.while_loop(is_wider, look, first)
    return jnp.where(jnp.abs(last.of_a) < jnp.abs(last.of_b), last.a, last.b)


def _interpolated(
    a: Array, b: Array, c: Array, of_a: Array, of_b: Array, of_c: Array
) -> Array:
    """The share of the way from a to b where the parabola through the points is 0."""

    def ratio(x: Array, y: Array) -> Array:
        return x / jnp.where(y == 0, 1, y)

    xi = ratio(a - b, c - b)
    phi = ratio(of_a - of_b, of_c - of_b)
    safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    share = ratio(of_a, of_b - of_a) * ratio(of_c, of_b - of_c) + ratio(
        c - a, b - a
    ) * ratio(of_a, of_c - of_a) * ratio(of_b, of_c - of_b)
    return jnp.where(safe, share, 0.5)
