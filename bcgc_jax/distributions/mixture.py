r"""A mixture of distributions: P(T > t) = Σ_i p_i P(T_i > t), p_i = w_i / Σ_j w_j."""

from collections.abc import Sequence

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
from bcgc_jax.distributions.hazards import inverse_of


@pytree_dataclass
class Mixture(Distribution):
    r"""Mix several distributions of one worker's time.

    P(T > t) = Σ_i p_i P(T_i > t) with p_i = w_i / Σ_j w_j. A mixture is the usual model
    of workers that are mostly fast and sometimes slow.

    Args:
      distributions: the distributions T_1, …, T_K of one worker's time. Either all of
        them have a density, or all of them take finitely many values.
      weights: positive numbers, `[K]`, one for each distribution. They are divided by
        their sum.

    The inverse Λ⁻¹ of the hazard has no formula. It is found by bisection, which
    evaluates the hazard 64 times for each value, or 32 times in float32.

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
        inside, positive = excess_above(a, 0.0)
        time = inverse_of(self.cumulative_hazard, positive)
        return jnp.where(inside, time, self.infimum())

    def _atom_at(self, a: Array) -> Array:
        """The least of finitely many times whose hazard is at least `a`."""
        times = self.breaks()
        hazards = self.cumulative_hazard(times)
        # With a margin of a few ulp, so that Λ⁻¹(Λ(t)) = t survives two roundings.
        margin = 1 - 16 * jnp.finfo(hazards.dtype).eps
        place = jnp.searchsorted(hazards, a * margin, side="left")
        return times[jnp.minimum(place, times.size - 1)]

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
