"""A distribution given by points of its inverse cumulative hazard."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import pytree_dataclass, static_field, working_dtype
from bcgc_jax.distributions.base import Distribution, Kinked, Smooth
from bcgc_jax.distributions.special_functions import legendre

# In scales of the tail, where it is cut for integration.
_TAIL_PIECES = 2.0 ** np.arange(-1, 6)


@pytree_dataclass
class HazardSpline(Distribution):
    r"""Λ⁻¹ through (`hazards`, `times`), `[K]`, with `slopes` dΛ⁻¹/da; above, a generalised Pareto tail.

    Beyond the last knot u, P(T > u + z | T > u) = (1 + ξ z/σ)^{-1/ξ} with σ the last slope and ξ ≥ 0 the
    `tail_index`; ξ = 0 is exponential. Knots ascend strictly, the first hazard is 0. Times and slopes carry
    the unit of time. Rules of integration go by the knots unless they are `hidden`, as they may be for many
    workers: panels between all knots would take long, and the maximum of many times shows no knot. Built by
    `smooth_empirical`.
    """

    hazards: Array
    times: Array
    slopes: Array
    tail_index: ArrayLike = 0.0
    hidden: bool = static_field(default=False)

    ranks = (("hazards", 1), ("times", 1), ("slopes", 1))

    def cumulative_hazard(self, t):
        (low, high), (t0, t1), (d0, d1) = self._piece(jnp.asarray(t), self.times)
        step, rise = high - low, t1 - t0
        # Shares of the piece, not times: fourth powers of short ones are 0 in float32.
        y, d0, d1 = jnp.clip((t - t0) / rise, 0, 1), d0 * step / rise, d1 * step / rise
        # θ of the way through the piece: a quadratic equation, by the root that does not cancel.
        a = 1 - d0 + y * (d0 + d1 - 2)
        b = d0 - y * (d0 + d1 - 2)
        c = -y
        root = jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0))
        inside = low + step * 2 * c / (-b - root)
        beyond = jnp.maximum(t - self.times[-1], 0) / self.slopes[-1]
        tail = self.hazards[-1] + self._bent(jnp.log1p, beyond)
        return jnp.where(jnp.greater(t, self.times[-1]), tail, inside)

    def inverse_cumulative_hazard(self, a):
        (low, high), (t0, t1), (d0, d1) = self._piece(jnp.asarray(a), self.hazards)
        step, rise = high - low, t1 - t0
        share = jnp.clip((a - low) / step, 0, 1)
        mean, cross = rise / step, share * (1 - share)
        inside = t0 + rise * (mean * share**2 + d0 * cross) / (mean + (d0 + d1 - 2 * mean) * cross)
        beyond = jnp.maximum(a - self.hazards[-1], 0)
        tail = self.times[-1] + self.slopes[-1] * self._bent(jnp.expm1, beyond)
        return jnp.where(jnp.greater(a, self.hazards[-1]), tail, inside)

    def _bent(self, curve: Callable[[Array], Array], z: Array) -> Array:
        """`curve`(ξ z) / ξ, which is z for ξ = 0."""
        index = jnp.asarray(self.tail_index, z.dtype)
        return jnp.where(index > 0, curve(index * z) / jnp.where(index > 0, index, 1), z)

    def _piece(self, value: Array, knots: Array) -> tuple[tuple[Array, Array], ...]:
        """The ends, in hazard, time and slope, of the piece that each value lies in."""
        i = jnp.clip(jnp.searchsorted(knots, value, side="right") - 1, 0, knots.size - 2)
        return tuple((x[i], x[i + 1]) for x in (self.hazards, self.times, self.slopes))

    def mean(self):
        points, weights = np.array(legendre(16), working_dtype(self))
        step = jnp.diff(self.hazards)[:, None]
        a = self.hazards[:-1, None] + step * points
        body = jnp.sum(self.inverse_cumulative_hazard(a) * jnp.exp(-a) * step * weights)
        finite = jnp.less(self.tail_index, 1)
        excess = self.slopes[-1] / jnp.where(finite, 1 - self.tail_index, 1)
        tail = jnp.exp(-self.hazards[-1]) * (self.times[-1] + excess)
        return jnp.where(finite, body + tail, jnp.inf)

    def infimum(self):
        return self.times[0]

    def summary(self):
        size, mean = jnp.size(self.times), self.mean()
        return {"law": "smooth", "knots": size, "mean": mean, "tail_index": self.tail_index}

    def pieces(self):
        if self.hidden:
            return Smooth()
        # Once differentiable only; and the tail may be of another scale than all that is before.
        tail = self.times[-1] + self.slopes[-1] * _TAIL_PIECES.astype(self.times.dtype)
        return Kinked(jnp.concatenate([self.times[1:], tail]), ends=False)
