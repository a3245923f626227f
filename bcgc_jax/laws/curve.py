"""A smooth law given by a curve of log T against the logarithm of its hazard."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import pytree_dataclass, working_dtype
from bcgc_jax.laws.base import Law, Smooth

# Newton's steps from the chord of a piece: the last of them moves no digit, worst of 1000 traces.
_STEPS = 6


@pytree_dataclass
class HazardCurve(Law):
    r"""T = start + exp z(log A), A ~ Exp(1), with z a polynomial between neighbouring `knots`, linear beyond.

    On piece i z is Σ_k coefficients_ik y^k, y the share of the way from knots_i to knots_{i+1};
    `coefficients` is `[K - 1, 6]` for `knots` `[K]`, which ascend. z ascends, and is four times
    differentiable where the pieces are those of a quintic spline, so that rules for smooth laws converge
    fast at all knots together. T - `start` is a power of the hazard below the first knot, and above the last.
    Built by `hazard_curve`.
    """

    start: Array
    knots: Array
    coefficients: Array

    ranks = (("start", 0), ("knots", 1), ("coefficients", 2))

    def cumulative_hazard(self, t):
        inside = jnp.greater(t, self.start)
        z = jnp.log(jnp.where(inside, t - self.start, 1))
        edges = jnp.append(self.coefficients[:, 0], jnp.sum(self.coefficients[-1]))
        i = self._piece(edges, z)
        low, high = edges[i], edges[i + 1]
        within = jnp.clip(z, low, high)

        def closer(_: int, y: Array) -> Array:
            value, slope = self._at(i, y)
            return jnp.clip(y + (within - value) / jnp.where(slope > 0, slope, 1), 0, 1)

        y = jax.lax.fori_loop(0, _STEPS, closer, (within - low) / (high - low))
        y = jax.lax.stop_gradient(y)
        value, slope = self._at(i, y)
        y = y + (within - value) / slope  # the slope of the inverse, whatever the steps before
        first, last = self._slopes_at_the_ends()
        log_hazard = self.knots[i] + (self.knots[i + 1] - self.knots[i]) * y
        log_hazard += jnp.minimum(z - edges[0], 0) / first + jnp.maximum(z - edges[-1], 0) / last
        return jnp.where(inside, jnp.exp(log_hazard), 0)

    def inverse_cumulative_hazard(self, a):
        positive = a > 0
        v = jnp.log(jnp.where(positive, a, 1))
        i = self._piece(self.knots, v)
        low, high = self.knots[i], self.knots[i + 1]
        z, _ = self._at(i, jnp.clip((v - low) / (high - low), 0, 1))
        first, last = self._slopes_at_the_ends()
        z += first * jnp.minimum(v - self.knots[0], 0) + last * jnp.maximum(v - self.knots[-1], 0)
        return self.start + jnp.where(positive, jnp.exp(z), 0)

    @staticmethod
    def _piece(edges: Array, value: Array) -> Array:
        return jnp.clip(jnp.searchsorted(edges, value, side="right") - 1, 0, edges.size - 2)

    def _at(self, i: Array, y: Array) -> tuple[Array, Array]:
        """z and its slope in y at a share y of piece i, by Horner's rule."""
        rows = self.coefficients[i]
        value, slope = rows[..., -1], jnp.zeros_like(y)
        for k in range(rows.shape[-1] - 2, -1, -1):
            slope = slope * y + value
            value = value * y + rows[..., k]
        return value, slope

    def _slopes_at_the_ends(self) -> tuple[Array, Array]:
        step, rows = jnp.diff(self.knots), self.coefficients
        powers = np.arange(rows.shape[-1]).astype(rows.dtype)
        return rows[0, 1] / step[0], jnp.sum(powers * rows[-1]) / step[-1]

    def mean(self):
        points, weights = np.array(np.polynomial.legendre.leggauss(16), working_dtype(self))
        edges = jnp.concatenate([jnp.zeros(1, self.knots.dtype), jnp.exp(self.knots)])
        step = jnp.diff(edges)[:, None]
        a = edges[:-1, None] + step * (points + 1) / 2
        return jnp.sum(self.inverse_cumulative_hazard(a) * jnp.exp(-a) * step * weights / 2)

    def infimum(self):
        return jnp.asarray(self.start)

    def pieces(self):
        return Smooth()
