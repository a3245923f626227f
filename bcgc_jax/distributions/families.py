"""Families of continuous distributions: cumulative hazards, inverses and means."""

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    at_hand,
    pytree_dataclass,
    replace,
    static_field,
    working_dtype,
)
from bcgc_jax.distributions.base import (
    Distribution,
    Kinked,
    Smooth,
    excess_above,
    inverse_ranks,
)
from bcgc_jax.distributions.hazards import (
    average,
    begin_of,
    inverse_of,
    where_it_falls,
)
from bcgc_jax.distributions.special_functions import (
    gamma_hazard,
    inverse_gamma_hazard,
    inverse_normal_hazard,
    legendre,
    log_inverse_gamma_hazard,
    normal_hazard,
)

# Range of log a in the table of `_Tabulated`, and number of knots. In float64, samples
# of a lie in [1e-16/N, 745].
_TABULATED = math.log(1e-20), math.log(800.0), 513
# Largest |Λ(0)| of `FromHazard` that counts as a rounding error, in units of eps.
_ROUNDING = 64


@pytree_dataclass
class ShiftedExponential(Distribution):
    r"""The shifted exponential distribution, which the paper uses.

    P(T > t) = exp(-rate (t - shift)) for t ≥ shift.

    Args:
      rate: Rate, in 1/time; μ in the paper.
      shift: Smallest time; t₀ in the paper. Defaults to 0.

    Raises:
      ValueError: If `rate` ≤ 0 or `shift` < 0.

    >>> law = ShiftedExponential(rate=1e-3, shift=50.0)
    >>> float(law.mean())
    1050.0
    """

    rate: ArrayLike
    shift: ArrayLike = 0.0

    conditions = (("rate", "> 0"), ("shift", ">= 0"))
    begin = "shift"
    light_tail = True

    def cumulative_hazard(self, t):
        return self.rate * jnp.maximum(jnp.subtract(t, self.shift), 0)

    def inverse_cumulative_hazard(self, a):
        return self.shift + jnp.divide(a, self.rate)

    def mean(self):
        return jnp.asarray(self.shift + 1 / self.rate)

    def expected_order_statistics(self, num_workers, max_workers):
        # Eq. (11): shift + (H_N - H_n) / rate.
        inverse, _ = inverse_ranks(num_workers, max_workers, working_dtype(self))
        return self.shift + jax.lax.cumsum(inverse, reverse=True) / self.rate


@pytree_dataclass
class Exponential(ShiftedExponential):
    r"""The exponential distribution, P(T > t) = exp(-rate t) for t ≥ 0.

    Args:
      rate: Rate, in 1/time.

    Raises:
      ValueError: If `rate` ≤ 0.

    >>> float(Exponential(rate=4.0).mean())
    0.25
    """

    shift: ClassVar[float] = 0.0  # type: ignore[misc]

    conditions = (("rate", "> 0"),)  # type: ignore[assignment]

    def infimum(self):
        return jnp.zeros_like(jnp.asarray(self.rate))


class _Shifted(Distribution):
    """T = shift + X with X > 0; a subclass has the hazard of X and its inverse."""

    shift: ArrayLike
    _hazard: Callable[[Array], Array]
    _inverse_hazard: Callable[[Array], Array]

    begin = "shift"
    light_tail = True

    def cumulative_hazard(self, t):
        inside, excess = excess_above(t, self.shift)
        return jnp.where(inside, self._hazard(excess), 0)

    def inverse_cumulative_hazard(self, a):
        inside, a = excess_above(a, 0.0)
        return self.shift + jnp.where(inside, self._inverse_hazard(a), 0)


@pytree_dataclass
class Weibull(_Shifted):
    r"""The Weibull distribution with a shift.

    P(T > t) = exp(-((t - shift)/scale)^shape) for t ≥ shift.

    Args:
      scale: Scale, a time.
      shape: Shape, without a unit.
      shift: Smallest time. Defaults to 0.

    Raises:
      ValueError: If `scale` ≤ 0, `shape` ≤ 0 or `shift` < 0.

    >>> round(float(Weibull(scale=2.0, shape=1.0, shift=1.0).mean()), 4)
    3.0
    """

    scale: ArrayLike
    shape: ArrayLike
    shift: ArrayLike = 0.0

    conditions = (("scale", "> 0"), ("shape", "> 0"), ("shift", ">= 0"))

    def _hazard(self, excess):
        return (excess / self.scale) ** jnp.asarray(self.shape)

    def _inverse_hazard(self, a):
        return self.scale * a ** (1 / jnp.asarray(self.shape))

    def mean(self):
        return self.shift + self.scale * jnp.exp(
            special.gammaln(1 + 1 / jnp.asarray(self.shape))
        )


@pytree_dataclass
class Pareto(Distribution):
    r"""The Pareto distribution, P(T > t) = (scale/t)^shape for t ≥ scale.

    Args:
      scale: Smallest time.
      shape: Tail index, without a unit. The mean is infinite for `shape` ≤ 1.

    Raises:
      ValueError: If `scale` ≤ 0 or `shape` ≤ 0.

    >>> round(float(Pareto(scale=2.0, shape=3.0).mean()), 4)
    3.0
    """

    scale: ArrayLike
    shape: ArrayLike

    conditions = (("scale", "> 0"), ("shape", "> 0"))
    begin = "scale"

    def cumulative_hazard(self, t):
        # The excess is exact near the scale, so its log1p is more accurate than the log
        # of t / scale.
        return self.shape * jnp.log1p(
            jnp.maximum(jnp.subtract(t, self.scale), 0) / self.scale
        )

    def inverse_cumulative_hazard(self, a):
        return self.scale * jnp.exp(jnp.divide(a, self.shape))

    def mean(self):
        finite, margin = excess_above(self.shape, 1.0)
        return jnp.where(finite, self.scale * (1 + 1 / margin), jnp.inf)

    def has_mean(self, level, num_workers):
        # P(T_(N-n) > t) decreases like t^(-(n+1) shape).
        return jnp.multiply(jnp.minimum(level, num_workers - 1) + 1, self.shape) > 1

    def expected_order_statistics(self, num_workers, max_workers):
        # E exp(A_(N-n) / shape) = Π_{j=n+1}^{N} 1 / (1 - 1 / (j shape)).
        inverse, _ = inverse_ranks(num_workers, max_workers, working_dtype(self))
        share = inverse / self.shape
        finite = share < 1
        factor = jnp.where(finite, -jnp.log1p(-jnp.where(finite, share, 0)), jnp.inf)
        return self.scale * jnp.exp(jax.lax.cumsum(factor, reverse=True))


@pytree_dataclass
class Uniform(Distribution):
    r"""The uniform distribution on [low, high].

    Args:
      low: Smallest time.
      high: Largest time.

    Raises:
      ValueError: If 0 ≤ `low` < `high` does not hold.

    >>> float(Uniform(low=1.0, high=3.0).mean())
    2.0
    """

    low: ArrayLike
    high: ArrayLike

    conditions = (("low", ">= 0"), ("high", "> 0"))
    below = ("low", "high")
    begin = "low"
    light_tail = True

    def cumulative_hazard(self, t):
        # Near `high`, high - t is exact, so the log of the remaining share is accurate.
        # The lower half uses log1p of the other share, which is accurate near `low`.
        inside, left = excess_above(self.high, t)
        share = jnp.where(inside, left / jnp.subtract(self.high, self.low), 0.5)
        started, excess = excess_above(jnp.where(inside, t, self.low), self.low)
        used = jnp.where(started, excess / jnp.subtract(self.high, self.low), 0)
        near = -jnp.log1p(-jnp.minimum(used, 0.5))
        value = jnp.where(used < 0.5, near, -jnp.log(jnp.minimum(share, 1)))
        return jnp.where(inside, value, jnp.inf)

    def inverse_cumulative_hazard(self, a):
        return self.low - jnp.subtract(self.high, self.low) * jnp.expm1(-jnp.asarray(a))

    def log_density(self, t):
        inside = jnp.greater_equal(t, self.low) & jnp.less_equal(t, self.high)
        return jnp.where(inside, -jnp.log(jnp.subtract(self.high, self.low)), -jnp.inf)

    def mean(self):
        return jnp.asarray(jnp.add(self.low, self.high) / 2)

    def expected_order_statistics(self, num_workers, max_workers):
        _, rank = inverse_ranks(num_workers, max_workers, working_dtype(self))
        return self.low + jnp.subtract(self.high, self.low) * rank / (num_workers + 1.0)

    def pieces(self):
        return Kinked(jnp.asarray(self.high)[None], ends=True)


@pytree_dataclass
class Lognormal(_Shifted):
    r"""The lognormal distribution with a shift.

    T = shift + exp(location + scale Z), where Z is standard normal.

    Args:
      location: Mean of log(T - shift), the log of a time.
      scale: Standard deviation of log(T - shift), without a unit.
      shift: Infimum of the times. Defaults to 0.

    Raises:
      ValueError: If `scale` ≤ 0 or `shift` < 0.

    >>> round(float(Lognormal(location=0.0, scale=1.0).mean()), 4)
    1.6487
    """

    location: ArrayLike
    scale: ArrayLike
    shift: ArrayLike = 0.0

    conditions = (("location", ""), ("scale", "> 0"), ("shift", ">= 0"))

    def _hazard(self, excess):
        return normal_hazard((jnp.log(excess) - self.location) / self.scale)

    def _inverse_hazard(self, a):
        return jnp.exp(self.location + self.scale * inverse_normal_hazard(a))

    def log_density(self, t):
        inside, excess = excess_above(t, self.shift)
        z = (jnp.log(excess) - self.location) / self.scale
        constant = 0.5 * math.log(2 * math.pi)
        return jnp.where(
            inside, -0.5 * z * z - jnp.log(self.scale * excess) - constant, -jnp.inf
        )

    def mean(self):
        return self.shift + jnp.exp(self.location + jnp.square(self.scale) / 2)


@pytree_dataclass
class Gamma(_Shifted):
    r"""The gamma distribution with a shift.

    T = shift + G / rate, where G has the gamma distribution with the given shape.
    Newton's method on log Λ(log t) computes Λ⁻¹ to full precision. Samples use a table
    of Λ⁻¹.

    Args:
      shape: Shape, without a unit.
      rate: Rate, in 1/time.
      shift: Infimum of the times. Defaults to 0.

    Raises:
      ValueError: If `shape` ≤ 0, `rate` ≤ 0 or `shift` < 0.

    >>> float(Gamma(shape=4.0, rate=2.0, shift=1.0).mean())
    3.0
    """

    shape: ArrayLike
    rate: ArrayLike
    shift: ArrayLike = 0.0

    # The worst error of an expected runtime, for shapes from 0.003 on.
    rounding = 250.0
    conditions = (("shape", "> 0"), ("rate", "> 0"), ("shift", ">= 0"))

    def _hazard(self, excess):
        return gamma_hazard(
            jnp.asarray(self.shape, excess.dtype), jnp.multiply(self.rate, excess)
        )

    def _inverse_hazard(self, a):
        return inverse_gamma_hazard(jnp.asarray(self.shape, a.dtype), a) / self.rate

    def log_density(self, t):
        # Gradients of the default formula would need the hazard's derivative in the
        # shape, which takes a quadrature for each time.
        inside, excess = excess_above(t, self.shift)
        constant = self.shape * jnp.log(self.rate) - special.gammaln(self.shape)
        value = constant + (self.shape - 1) * jnp.log(excess) - self.rate * excess
        return jnp.where(inside, value, -jnp.inf)

    def mean(self):
        return jnp.asarray(self.shift + jnp.divide(self.shape, self.rate))

    def with_fast_inverse(self):
        # The table has T - shift, because subtracting the shift would round to 0 near
        # it.
        a = jnp.exp(jnp.linspace(*_TABULATED, dtype=working_dtype(self)))
        log_x, slope, _ = log_inverse_gamma_hazard(jnp.asarray(self.shape, a.dtype), a)
        return _Tabulated(self, self.infimum(), log_x - jnp.log(self.rate), slope)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Check whether `count` arguments can be passed; True without a signature."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        pass
    return True


@pytree_dataclass
class FromHazard(Distribution):
    r"""A distribution of your own, defined by its cumulative hazard.

    The hazard is Λ(t) = -log P(T > t). Pass all arguments except `hazard` by name. The
    functions must be elementwise and static. Pass the same function objects again to
    avoid a new compilation. The mean is ∫ Λ⁻¹(a) e^{-a} da by quadrature, with a power
    law beyond the range of floating-point numbers. If the integrand does not decay, the
    mean is inf.

    Args:
      hazard: Function (parameters, t) that returns Λ(t). If Λ(0) is not 0 because of
        rounding, the rounding error is subtracted.
      inverse_hazard: Function (parameters, a) that returns Λ⁻¹(a). By default, Λ is
        inverted by bisection, with 64 evaluations per time, or 32 in float32. Then Λ
        may be 0, negative or NaN at times before the first one.
      parameters: Any pytree. It can be traced and differentiated.
      kinks: Function (parameters) that returns the times at which the derivative of Λ
        jumps, `[K]`. If there are such times and `kinks` is not given, runtimes have a
        larger error, which their error estimate includes.

    Raises:
      TypeError: If an argument is not a function with these parameters, for example
        because it was not passed by name.
      ValueError: If Λ is not 0 at t = 0, does not increase without bound, or decreases.
        Λ is checked at 20,000 times, so small or short decreases are not detected.
        Traced parameters and batches of arrays cannot be checked.

    >>> law = FromHazard(
    ...     lambda p, t: p * t**2, lambda p, a: (a / p) ** 0.5, parameters=3.0
    ... )
    >>> round(float(law.mean()), 5)  # (π/12)^½
    0.51166

    This hazard mixes two exponential distributions. `Mixture` needs no function for it:

    >>> def mixture(p, t):
    ...     excess = jnp.maximum(t - p["first"], 0.0)
    ...     often = jnp.log(p["often"]) - excess / p["fast"]
    ...     return -jnp.logaddexp(often, jnp.log(1 - p["often"]) - excess / p["slow"])
    >>> mixed = {"first": 1.0, "often": 0.9, "fast": 0.2, "slow": 2.0}
    >>> slopes = jax.grad(lambda p: FromHazard(mixture, parameters=p).mean())(mixed)
    >>> {name: round(float(slope), 4) for name, slope in slopes.items()}
    {'fast': 0.9, 'first': 1.0, 'often': -1.8, 'slow': 0.1}
    """

    hazard: Callable[[Any, Array], Array] = static_field()
    inverse_hazard: Callable[[Any, Array], Array] | None = static_field(default=None)
    parameters: Any = ()
    kinks: Callable[[Any], ArrayLike] | None = static_field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments = {"hazard": "parameters, t", "inverse_hazard": "parameters, a"}
        for name, of in (arguments | {"kinks": "parameters"}).items():
            value = getattr(self, name)
            if value is None and name != "hazard":
                continue
            if callable(value) and _takes(value, of.count(",") + 1):
                continue
            raise TypeError(
                f"`{name}` of FromHazard must be a function of ({of}), got {value!r}. "
                "Pass all arguments except the hazard by name, for example "
                "FromHazard(hazard, parameters=3.0)."
            )
        if at_hand(self.parameters):
            self._check_rise()

    def _check_rise(self) -> None:
        """Raise ValueError if a known Λ is not a cumulative hazard.

        A batch of arrays is not checked, because the function is defined for the
        parameters of a single distribution.
        """
        dtype = working_dtype(self)
        rank = max(map(np.ndim, jax.tree.leaves(self.parameters)), default=0)
        try:
            shape = jax.eval_shape(self._hazard, jnp.zeros((), dtype)).shape
        except (TypeError, ValueError, IndexError):
            if rank:
                return
            raise
        if shape and rank > 1:
            return
        what = "Λ(parameters, t) = -log P(T > t) of FromHazard must"
        largest = jnp.finfo(dtype).max
        value = np.min(self._hazard(jnp.asarray(largest, dtype)))
        if value <= 1:  # NaN is allowed, beyond a supremum
            raise ValueError(
                f"{what} increase from 0 without bound, but at t = {largest:.1e}, the "
                f"largest number, it is {value:.3g}. Check that your function does not "
                "return P(T ≤ t), P(T > t) or -Λ."
            )
        start = 0.0
        if self.inverse_hazard is not None:
            start = float(np.max(self._inverse(jnp.zeros((), dtype))))
        elif (at_zero := np.max(self._hazard(jnp.zeros((), dtype)))) > 0:
            raise ValueError(
                f"{what} be 0 at t = 0, because P(T > 0) = 1, but it is {at_zero:.3g}. "
                "Subtract its value at the first time."
            )
        falls = where_it_falls(self._hazard, start, dtype)
        if falls is not None:
            times = " and ".join(f"{float(t):.6g}" for t in falls)
            values = " and ".join(
                f"{np.min(self._hazard(jnp.asarray(t, dtype))):.4g}" for t in falls
            )
            raise ValueError(
                f"{what} never decrease, but at t = {times} it is {values}. Pass the "
                "integral of the hazard rate, which is nonnegative."
            )

    def cumulative_hazard(self, t):
        t = jnp.asarray(t)
        start = jax.lax.stop_gradient(self.infimum()).astype(t.dtype)
        inside = t > start
        # The user's Λ is evaluated only above the infimum. For times below it, the
        # function gets a safe point instead.
        safe = jnp.where(inside, t, start + jnp.maximum(jnp.abs(start), 1))
        return jnp.where(inside, self._hazard(safe), 0)

    def inverse_cumulative_hazard(self, a):
        inside, safe = excess_above(a, 0.0)
        value = self._inverse(safe)
        return jnp.where(inside, value, self.infimum().astype(value.dtype))

    def _hazard(self, t: Array) -> Array:
        """Compute Λ, and subtract its value at 0 if this is only a rounding error."""
        value = jnp.asarray(self.hazard(self.parameters, t))
        if self.inverse_hazard is not None:
            return value
        still = jax.lax.stop_gradient(self.parameters)
        at_zero = self.hazard(still, jnp.zeros((), value.dtype))
        is_rounding = jnp.abs(at_zero) <= _ROUNDING * jnp.finfo(value.dtype).eps
        return value - jnp.where(is_rounding, at_zero, 0)

    def _inverse(self, a: Array) -> Array:
        if self.inverse_hazard is None:
            return inverse_of(self._hazard, a)
        return jnp.asarray(self.inverse_hazard(self.parameters, a))

    def mean(self):
        rank = jnp.ones(1, working_dtype(self))
        kinks = self.cumulative_hazard(self.breaks())
        return average(self.inverse_cumulative_hazard, rank, rank, kinks)[0]

    def infimum(self):
        # The value is Λ⁻¹(0), but the derivatives are taken just above 0, because a
        # power of a may have no derivative at 0.
        dtype = working_dtype(self)
        near = self._inverse(jnp.asarray(jnp.finfo(dtype).eps ** 2, dtype))
        if self.inverse_hazard is None:
            value = begin_of(self._hazard, dtype)
        else:
            value = self._inverse(jnp.zeros((), dtype))
        return near + jax.lax.stop_gradient(value - near)

    def pieces(self):
        if self.kinks is None:
            return Smooth(certain=False)
        times = jnp.asarray(self.kinks(self.parameters), working_dtype(self))
        return Kinked(jnp.sort(jnp.atleast_1d(times)), ends=False, jumps=True)


@pytree_dataclass
class _Tabulated(_Shifted):
    """Λ⁻¹ by cubic Hermite interpolation of log(t - shift) over log a."""

    law: Distribution
    shift: Array
    log_t: Array
    slope: Array

    rounding = Gamma.rounding

    def cumulative_hazard(self, t):
        return self.law.cumulative_hazard(t)

    def _inverse_hazard(self, a):
        low, high, size = _TABULATED
        step = (high - low) / (size - 1)
        place = jnp.clip((jnp.log(a) - low) / step, 0, size - 1)
        i = jnp.clip(place.astype(int), 0, size - 2)
        u = place - i
        f0 = self.log_t[i]
        f1 = self.log_t[i + 1]
        d0 = self.slope[i] * step
        d1 = self.slope[i + 1] * step
        square = 3 * (f1 - f0) - 2 * d0 - d1
        cube = 2 * (f0 - f1) + d0 + d1
        return jnp.exp(f0 + u * (d0 + u * (square + u * cube)))

    def mean(self):
        return self.law.mean()


@pytree_dataclass
class HazardSpline(Distribution):
    r"""A smooth distribution: Λ⁻¹ is a spline with a generalised Pareto tail.

    Beyond the last knot u, P(T > u + z | T > u) = (1 + ξ z/σ)^{-1/ξ}, where σ is the
    last slope. `smooth_empirical` fits such a distribution to measured times.

    Args:
      hazards: Hazards at the knots, strictly ascending from 0, `[K]`.
      times: Times at the knots, strictly ascending, `[K]`.
      slopes: Derivatives dΛ⁻¹/da at the knots, in units of time, `[K]`.
      tail_index: Tail index ξ ≥ 0. Defaults to 0, an exponential tail.
      hidden: Whether quadrature rules ignore the knots. Defaults to False. With many
        levels, panels between all knots would be slow, and the maximum of many times
        does not show the knots.
    """

    hazards: Array
    times: Array
    slopes: Array
    tail_index: ArrayLike = 0.0
    hidden: bool = static_field(default=False)

    ranks = (("hazards", 1), ("times", 1), ("slopes", 1))

    def cumulative_hazard(self, t):
        (low, high), (t0, t1), (d0, d1) = self._piece(jnp.asarray(t), self.times)
        step = high - low
        rise = t1 - t0
        # y is relative to the piece, because in float32 the fourth power of a short
        # time would be 0.
        y = jnp.clip((t - t0) / rise, 0, 1)
        d0 = d0 * step / rise
        d1 = d1 * step / rise
        # The position within the piece solves a quadratic equation. This formula for
        # its root has no cancellation.
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
        step = high - low
        rise = t1 - t0
        share = jnp.clip((a - low) / step, 0, 1)
        mean = rise / step
        cross = share * (1 - share)
        inside = t0 + rise * (mean * share**2 + d0 * cross) / (
            mean + (d0 + d1 - 2 * mean) * cross
        )
        return jnp.where(
            jnp.greater(a, self.hazards[-1]), self.inverse_beyond(a), inside
        )

    def inverse_beyond(self, a):
        beyond = jnp.maximum(a - self.hazards[-1], 0)
        return self.times[-1] + self.slopes[-1] * self._bent(jnp.expm1, beyond)

    def _bent(self, curve: Callable[[Array], Array], z: Array) -> Array:
        """Return `curve`(ξ z) / ξ, which is z for ξ = 0."""
        index = jnp.asarray(self.tail_index, z.dtype)
        return jnp.where(
            index > 0, curve(index * z) / jnp.where(index > 0, index, 1), z
        )

    def _piece(self, value: Array, knots: Array) -> tuple[tuple[Array, Array], ...]:
        """Return hazards, times and slopes at both ends of each value's piece."""
        i = jnp.searchsorted(knots[1:-1], value, side="right", method="scan_unrolled")
        ends = (self.hazards, self.times, self.slopes)
        # Each row of a table is read once. Without the barrier, XLA would read the row
        # again in each kernel that needs a part of it.
        pieces = jnp.stack([part for x in ends for part in (x[:-1], x[1:])], axis=1)
        rows = jax.lax.optimization_barrier(pieces.at[i].get(mode="clip"))
        low, high, t0, t1, d0, d1 = jnp.moveaxis(rows, -1, 0)
        return (low, high), (t0, t1), (d0, d1)

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
        return {
            "distribution": "smooth",
            "knots": jnp.size(self.times),
            "mean": self.mean(),
            "tail_index": self.tail_index,
        }

    def with_knots(self):
        return replace(self, hidden=False)

    def pieces(self):
        if self.hidden:
            return Smooth()
        # The spline has only one continuous derivative, so every knot is a kink. The
        # scale σ of the tail may differ, so the tail is split at σ/2, σ, …, 32 σ.
        tail = self.times[-1] + self.slopes[-1] * (2.0 ** np.arange(-1, 6)).astype(
            self.times.dtype
        )
        return Kinked(jnp.concatenate([self.times[1:], tail]), ends=False)
