r"""The density of S + T y, a start-up time S and a load y of cycles that take T each, S and T independent.

    f(t) = ∫ f_S(s) f_T((t - s)/y)/y ds,    s from inf S to t - y inf T.

In x = (s - inf S) / d, d = t - inf S - y inf T the room that there is, the interval is cut at quantiles of S
and, seen from its other end, at those of y T, and each part gets a Gauss–Legendre rule: whichever of the two
is the narrower one, parts of its width lie where it is. All terms are positive. The parts do not move with
the parameters under differentiation, for the integral does not depend on them; the room does.

Which family a law is of may be traced: one program serves all pairs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special

from bcgc_jax.laws import Exponential, Gamma, Law, Lognormal, Pareto, Weibull

# From parameters `[2]` and the infimum: the law of T - infimum; of T itself for Pareto's, whose scale it is.
FAMILIES: dict[str, Callable[[Any, Any], Law]] = {
    "exponential": lambda p, start: Exponential(p[0]),
    "weibull": lambda p, start: Weibull(p[0], p[1]),
    "gamma": lambda p, start: Gamma(p[0], p[1]),
    "lognormal": lambda p, start: Lognormal(p[0], p[1]),
    "pareto": lambda p, start: Pareto(start, p[1]),
}

# Levels of the quantiles, shares of the room, and nodes of a part. 1,800 densities of all pairs of families,
# narrow and wide, were within 2.6e-3, half of them within 2e-7; worst where densities begin at infinity.
LEVELS = np.array([1e-6, 1e-4, 3e-3, 0.03, 0.12, 0.3, 0.55, 0.8, 0.94, 0.99, 0.999, 1 - 1e-5])
_SHARES = np.array([0.01, 0.08, 0.25, 0.5, 0.75, 0.92, 0.99])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)


class Part(NamedTuple):
    """A law: its place in `FAMILIES`, two parameters, `[2]`, its infimum, and where its mass lies, `[Q]`.

    All may be traced. The last are quantiles of T - infimum at `LEVELS`, roughly; they are taken from the
    outside, for those of a gamma law would take longer to compile than all the rest.
    """

    family: Array | np.ndarray
    parameters: Array | np.ndarray
    infimum: Array | np.ndarray
    quantiles: Array | np.ndarray

    def hazard(self, x: Array) -> Array:
        """Of T - infimum."""

        def branch(name: str) -> Callable[[Array], Array]:
            law = FAMILIES[name](self.parameters, self.infimum)
            origin = self.infimum if name == "pareto" else 0.0
            return lambda x: law.cumulative_hazard(x + origin)

        return jax.lax.switch(self.family, [branch(name) for name in FAMILIES], x)

    def log_density(self, x: Array, log_x: Array) -> Array:
        """Of T - infimum at x > 0.

        One formula, of which each family uses a part: a + b log x - r x - w (x/c)^k - h (log x - m)² -
        p log(1 + x/q). A choice of branches would be slower by far.
        """
        a, b, r, w, k, log_c, h, m, p, q = jax.lax.switch(
            self.family, list(_COEFFICIENTS), self.parameters, self.infimum
        )
        power = w * jnp.exp(k * (log_x - log_c))
        return a + b * log_x - r * x - power - h * (log_x - m) ** 2 - p * jnp.log1p(x / q)


def _exponential(p: Array, start: Array) -> Array:
    rate = p[0]
    return _coefficients(a=jnp.log(rate), r=rate)


def _weibull(p: Array, start: Array) -> Array:
    scale, k = p
    return _coefficients(a=jnp.log(k) - k * jnp.log(scale), b=k - 1, w=1, k=k, log_c=jnp.log(scale))


def _gamma(p: Array, start: Array) -> Array:
    shape, rate = p
    return _coefficients(a=shape * jnp.log(rate) - special.gammaln(shape), b=shape - 1, r=rate)


def _lognormal(p: Array, start: Array) -> Array:
    location, scale = p
    constant = -jnp.log(scale) - 0.5 * math.log(2 * math.pi)
    return _coefficients(a=constant, b=-1, h=0.5 / scale**2, m=location)


def _pareto(p: Array, start: Array) -> Array:
    shape = p[1]
    return _coefficients(a=jnp.log(shape / start), p=shape + 1, q=start)


def _coefficients(**given: Array | float) -> Array:
    unused = {"a": 0, "b": 0, "r": 0, "w": 0, "k": 1, "log_c": 0, "h": 0, "m": 0, "p": 0, "q": 1}
    return jnp.stack([jnp.asarray(value, float) for value in (unused | given).values()])


_COEFFICIENTS = (_exponential, _weibull, _gamma, _lognormal, _pareto)


def log_density_of_sum(
    start_up: Part, cycle: Part, load: Array | np.ndarray, room: Array | np.ndarray
) -> Array:
    """log f at inf S + y inf T + room, `[K]`, for loads y, `[K]`; -inf where there is no room."""
    x, rest, width = _rule(start_up, cycle, load, room)
    inside = jnp.where(room > 0, room, 1)
    s, log_s = inside[:, None] * x, jnp.log(inside)[:, None] + jnp.log(x)
    per_cycle = inside / load
    t, log_t = per_cycle[:, None] * rest, jnp.log(per_cycle)[:, None] + jnp.log(rest)
    terms = start_up.log_density(s, log_s) + cycle.log_density(t, log_t)
    total = jax.nn.logsumexp(terms, b=width, axis=1) + jnp.log(per_cycle)
    return jnp.where(room > 0, total, -jnp.inf)


def log_survival_of_sum(
    start_up: Part, cycle: Part, load: Array | np.ndarray, room: Array | np.ndarray
) -> Array:
    """log P(S + T y > t) at t = inf S + y inf T + room, `[K]`; 0 where there is no room."""
    x, rest, width = _rule(start_up, cycle, load, room)
    inside = jnp.where(room > 0, room, 1)
    s, log_s = inside[:, None] * x, jnp.log(inside)[:, None] + jnp.log(x)
    terms = start_up.log_density(s, log_s) - cycle.hazard((inside / load)[:, None] * rest)
    both = jax.nn.logsumexp(terms, b=width, axis=1) + jnp.log(inside)
    alone = -start_up.hazard(inside)  # S itself is longer
    return jnp.where(room > 0, jnp.minimum(jnp.logaddexp(both, alone), 0), 0)


def _rule(
    start_up: Part, cycle: Part, load: Array | np.ndarray, room: Array | np.ndarray
) -> tuple[Array, Array, Array]:
    """Nodes x, 1 - x and weights on (0, 1), each `[K, J]`."""
    start_up, cycle, load, room = jax.lax.stop_gradient((start_up, cycle, load, room))
    room = jnp.where(room > 0, room, 1)[:, None]
    rise = start_up.quantiles / room
    fall = 1 - load[:, None] * cycle.quantiles / room
    shares = jnp.broadcast_to(_SHARES, (len(room), _SHARES.size))
    cuts = jnp.sort(jnp.clip(jnp.concatenate([rise, fall, shares], axis=1), 0, 1), axis=1)
    low = jnp.pad(cuts, ((0, 0), (1, 0)))[..., None]
    high = jnp.pad(cuts, ((0, 0), (0, 1)), constant_values=1)[..., None]
    x = (high + low) / 2 + (high - low) / 2 * _NODES
    width = jnp.broadcast_to((high - low) / 2 * _WEIGHTS, x.shape)
    x, width = (v.reshape(len(room), -1) for v in (x, width))
    # Parts without width may lie on an end, where a density may be infinite.
    middle = jnp.where(width > 0, x, 0.5)
    tiny = jnp.finfo(x.dtype).eps / 4
    return jnp.maximum(middle, tiny), jnp.maximum(1 - middle, tiny), width
