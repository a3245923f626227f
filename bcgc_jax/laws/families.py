r"""Laws of the cycle time T of a worker, as pytrees.

A law is given by its cumulative hazard Λ(t) = -log P(T > t) and the inverse of it. With A an
Exp(1) variable, T = Λ⁻¹(A); the cdf is -expm1(-Λ), which keeps its digits in both tails and in
float32. Leaves may be batched or traced: `jit`, `vmap` and `grad` go through the parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, concrete, pytree_dataclass, static_field
from bcgc_jax.laws.special_functions import (
    gamma_hazard,
    inverse_gamma_hazard,
    inverse_normal_hazard,
    log_inverse_gamma_hazard,
    normal_hazard,
)

# Methods that are compiled, with their static arguments; and those that a subclass may inherit.
_COMPILED: dict[str, tuple[str, ...]] = {
    "cumulative_hazard": (),
    "inverse_cumulative_hazard": (),
    "mean": (),
    "infimum": (),
    "cdf": (),
    "survival": (),
    "log_density": (),
    "with_fast_inverse": (),
    "expected_order_statistics": ("max_workers",),
    "draw_rows": ("num_draws",),
    "sample": ("shape", "dtype"),
}
_DERIVED = {"cdf", "survival", "log_density", "sample"}


class Law:
    """What every law of the cycle time offers; times carry the unit of the law's parameters.

    A subclass is a `pytree_dataclass` with `cumulative_hazard`, `inverse_cumulative_hazard`,
    `mean` and `infimum`. For a law with no closed forms, see `FromHazard`. The methods of a subclass are
    compiled as a whole, once for each shape.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, static in _COMPILED.items():
            method = getattr(cls, name)
            if name in cls.__dict__ or (method is getattr(Law, name) and name in _DERIVED):
                setattr(cls, name, jax.jit(method, static_argnames=static))

    def cumulative_hazard(self, t: ArrayLike) -> Array:
        """Λ(t) = -log P(T > t), elementwise: 0 below the support, inf above it."""
        raise NotImplementedError

    def inverse_cumulative_hazard(self, a: ArrayLike) -> Array:
        """Λ⁻¹(a) = inf{t : Λ(t) ≥ a}, elementwise, for a ≥ 0; at a = 0 the infimum of T."""
        raise NotImplementedError

    def mean(self) -> Array:
        """E T; inf where it diverges."""
        raise NotImplementedError

    def infimum(self) -> Array:
        """ess inf T."""
        raise NotImplementedError

    def has_mean(self, level: ArrayLike, num_workers: ArrayLike) -> Array:
        """Whether E T_(N-level) is finite, where `mean` alone does not say it."""
        return jnp.isfinite(self.mean())

    def kinks(self) -> Array:
        """Times, shape `[K]`, other than the infimum, where Λ is not smooth (K is often 0)."""
        return jnp.zeros((0,))

    def ends(self) -> bool:
        """Whether the last of the kinks, if there are some, is the supremum of T."""
        return True

    def atomic(self) -> bool:
        """Whether T takes no value but the infimum and the kinks."""
        return False

    def expected_order_statistics(self, num_workers: ArrayLike, max_workers: int) -> Array | None:
        """E T_(N-n), slowest first, `[max_workers]`, in closed form; None where there is none."""
        return None

    def width(self) -> int | None:
        """N, of a law of all N times of an iteration (`joint_laws`); None where workers are alike."""
        return None

    def rows(self) -> Array | None:
        """All outcomes of an iteration, equally likely, slowest first, `[S, N]`; None where alike."""
        return None

    def draw_rows(self, key: Array, num_draws: int) -> Array | None:
        """Draws of an iteration's times, slowest first, `[num_draws, N]`; None where alike."""
        return None

    def cdf(self, t: ArrayLike) -> Array:
        """P(T ≤ t), with relative accuracy in the left tail."""
        return -jnp.expm1(-self.cumulative_hazard(t))

    def survival(self, t: ArrayLike) -> Array:
        """P(T > t), with relative accuracy in the right tail."""
        return jnp.exp(-self.cumulative_hazard(t))

    def log_density(self, t: ArrayLike) -> Array:
        """log of the density of T, elementwise; -inf where there is none. For laws without atoms."""
        t = jnp.asarray(t, float)
        hazard, rate = jax.jvp(self.cumulative_hazard, (t,), (jnp.ones_like(t),))
        possible = jnp.isfinite(hazard) & (rate > 0)
        return jnp.where(possible, jnp.log(jnp.where(possible, rate, 1)) - hazard, -jnp.inf)

    def with_fast_inverse(self) -> "Law":
        """The same law; where Λ⁻¹ is slow to run and to compile, it comes from a table instead."""
        return self

    def sample(self, key: Array, shape: tuple[int, ...] = (), dtype: Any = float) -> Array:
        """Independent cycle times of the given `shape`."""
        a = jax.random.exponential(key, shape, dtype)
        return self.with_fast_inverse().inverse_cumulative_hazard(a).astype(dtype)


def _above(t: ArrayLike, start: ArrayLike) -> tuple[Array, Array]:
    """(t > start, t - start or 1): the second is safe to raise, divide and take the log of.

    The inner guard is needed beside the outer `where`: a NaN slope in the branch not taken would
    still poison the gradient.
    """
    excess = jnp.subtract(t, start)
    inside = excess > 0
    return inside, jnp.where(inside, excess, 1)


@pytree_dataclass
class ShiftedExponential(Law):
    r"""P(T > t) = exp(-rate (t - shift)) for t ≥ shift (the law of the paper, its μ and t₀).

    `rate` is one over a time, `shift` a time. Raises ValueError for rate ≤ 0 or shift < 0.

    >>> law = ShiftedExponential(rate=1e-3, shift=50.0)
    >>> float(law.mean())
    1050.0
    """

    rate: ArrayLike
    shift: ArrayLike = 0.0

    def __post_init__(self) -> None:
        check("rate", self.rate, "> 0")
        check("shift", self.shift, ">= 0")

    def cumulative_hazard(self, t):
        return self.rate * jnp.maximum(jnp.subtract(t, self.shift), 0)

    def inverse_cumulative_hazard(self, a):
        return self.shift + jnp.divide(a, self.rate)

    def mean(self):
        return jnp.asarray(self.shift + 1 / self.rate)

    def infimum(self):
        return jnp.asarray(self.shift)

    def expected_order_statistics(self, num_workers, max_workers):
        # Eq. (11): shift + (H_N - H_n) / rate.
        inverse, _ = _inverse_ranks(num_workers, max_workers)
        return self.shift + _suffix_sum(inverse) / self.rate


@pytree_dataclass
class Weibull(Law):
    r"""P(T > t) = exp(-((t - shift)/scale)^concentration) for t ≥ shift.

    `scale` and `shift` are times. Raises ValueError for scale or concentration ≤ 0, shift < 0.

    >>> round(float(Weibull(scale=2.0, concentration=1.0, shift=1.0).mean()), 4)
    3.0
    """

    scale: ArrayLike
    concentration: ArrayLike
    shift: ArrayLike = 0.0

    def __post_init__(self) -> None:
        check("scale", self.scale, "> 0")
        check("concentration", self.concentration, "> 0")
        check("shift", self.shift, ">= 0")

    def cumulative_hazard(self, t):
        inside, excess = _above(t, self.shift)
        return jnp.where(inside, (excess / self.scale) ** jnp.asarray(self.concentration), 0)

    def inverse_cumulative_hazard(self, a):
        inside, a = _above(a, 0.0)
        return self.shift + jnp.where(inside, self.scale * a ** (1 / jnp.asarray(self.concentration)), 0)

    def mean(self):
        return self.shift + self.scale * jnp.exp(special.gammaln(1 + 1 / jnp.asarray(self.concentration)))

    def infimum(self):
        return jnp.asarray(self.shift)


@pytree_dataclass
class Pareto(Law):
    r"""P(T > t) = (scale/t)^shape for t ≥ scale; the mean is infinite for shape ≤ 1.

    `scale` is a time. Raises ValueError for scale or shape ≤ 0.

    >>> round(float(Pareto(scale=2.0, shape=3.0).mean()), 4)
    3.0
    """

    scale: ArrayLike
    shape: ArrayLike

    def __post_init__(self) -> None:
        check("scale", self.scale, "> 0")
        check("shape", self.shape, "> 0")

    def cumulative_hazard(self, t):
        # log1p of the excess, not log of t / scale: the excess is exact near the scale.
        return self.shape * jnp.log1p(jnp.maximum(jnp.subtract(t, self.scale), 0) / self.scale)

    def inverse_cumulative_hazard(self, a):
        return self.scale * jnp.exp(jnp.divide(a, self.shape))

    def mean(self):
        finite, margin = _above(self.shape, 1.0)
        return jnp.where(finite, self.scale * (1 + 1 / margin), jnp.inf)

    def infimum(self):
        return jnp.asarray(self.scale)

    def has_mean(self, level, num_workers):
        # P(T_(N-n) > t) falls like t^(-(n+1) shape).
        return jnp.multiply(jnp.minimum(level, num_workers - 1) + 1, self.shape) > 1

    def expected_order_statistics(self, num_workers, max_workers):
        # E exp(A_(N-n) / shape) = Π_{j=n+1}^{N} 1 / (1 - 1 / (j shape)), a product of N - n means.
        inverse, _ = _inverse_ranks(num_workers, max_workers)
        share = inverse / self.shape
        finite = share < 1
        factor = jnp.where(finite, -jnp.log1p(-jnp.where(finite, share, 0)), jnp.inf)
        return self.scale * jnp.exp(_suffix_sum(factor))


@pytree_dataclass
class Uniform(Law):
    r"""T uniform on [low, high]. Raises ValueError unless 0 ≤ low < high.

    >>> float(Uniform(low=1.0, high=3.0).mean())
    2.0
    """

    low: ArrayLike
    high: ArrayLike

    def __post_init__(self) -> None:
        check("low", self.low, ">= 0")
        check("high", self.high, "> 0")
        _check_order("low", self.low, "high", self.high)

    def cumulative_hazard(self, t):
        # log of the remaining share, not log1p of the used one: (high - t) is exact near high.
        inside, left = _above(self.high, t)
        share = jnp.where(inside, left / jnp.subtract(self.high, self.low), 0.5)
        started, excess = _above(jnp.where(inside, t, self.low), self.low)
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

    def infimum(self):
        return jnp.asarray(self.low)

    def expected_order_statistics(self, num_workers, max_workers):
        _, rank = _inverse_ranks(num_workers, max_workers)
        return self.low + jnp.subtract(self.high, self.low) * rank / (num_workers + 1.0)

    def kinks(self):
        return jnp.asarray(self.high)[None]


@pytree_dataclass
class TwoSpeed(Law):
    r"""T = slow with the given `probability`, else fast.

    `fast` and `slow` are times; slow may be infinite, the full straggler, and then the mean is
    infinite. Raises ValueError unless 0 < fast < slow and 0 ≤ probability ≤ 1.

    >>> float(TwoSpeed(fast=1.0, slow=5.0, probability=0.25).mean())
    2.0
    """

    fast: ArrayLike
    slow: ArrayLike
    probability: ArrayLike

    def __post_init__(self) -> None:
        check("fast", self.fast, "> 0")
        check("slow", self.slow, "> 0", finite=False)
        check("probability", self.probability, ">= 0")
        check("probability", self.probability, "<= 1")
        _check_order("fast", self.fast, "slow", self.slow)

    def cumulative_hazard(self, t):
        possible, probability = _above(self.probability, 0.0)
        slow_hazard = jnp.where(possible, -jnp.log(probability), jnp.inf)
        return jnp.where(jnp.less(t, self.fast), 0, jnp.where(jnp.less(t, self.slow), slow_hazard, jnp.inf))

    def inverse_cumulative_hazard(self, a):
        # With a margin of a few ulp, so that Λ⁻¹(Λ(fast)) = fast survives the two roundings.
        left = jnp.exp(-jnp.asarray(a))
        margin = 1 - 8 * jnp.finfo(left.dtype).eps
        return jnp.where(left >= jnp.multiply(self.probability, margin), self.fast, self.slow)

    def mean(self):
        possible = (jnp.asarray(self.probability) > 0) | jnp.isfinite(self.slow)
        slow = jnp.where(possible, self.slow, self.fast)  # 0 · inf would be NaN
        return (1 - jnp.asarray(self.probability)) * self.fast + self.probability * slow

    def infimum(self):
        # With probability 1 the fast speed is never seen, but stays a valid lower bound.
        return jnp.asarray(self.fast)

    def kinks(self):
        return jnp.asarray(self.slow)[None]

    def atomic(self):
        return True


@pytree_dataclass
class Lognormal(Law):
    r"""T = shift + exp(location + scale Z), Z standard normal.

    `location` is the log of a time, `scale` a plain number. Raises ValueError for scale ≤ 0,
    shift < 0.

    >>> round(float(Lognormal(location=0.0, scale=1.0).mean()), 4)
    1.6487
    """

    location: ArrayLike
    scale: ArrayLike
    shift: ArrayLike = 0.0

    def __post_init__(self) -> None:
        check("location", self.location, "")
        check("scale", self.scale, "> 0")
        check("shift", self.shift, ">= 0")

    def cumulative_hazard(self, t):
        inside, excess = _above(t, self.shift)
        z = (jnp.log(excess) - self.location) / self.scale
        return jnp.where(inside, normal_hazard(z), 0)

    def inverse_cumulative_hazard(self, a):
        inside, a = _above(a, 0.0)
        excess = jnp.exp(self.location + self.scale * inverse_normal_hazard(a))
        return self.shift + jnp.where(inside, excess, 0)

    def log_density(self, t):
        inside, excess = _above(t, self.shift)
        z = (jnp.log(excess) - self.location) / self.scale
        constant = 0.5 * math.log(2 * math.pi)
        return jnp.where(inside, -0.5 * z * z - jnp.log(self.scale * excess) - constant, -jnp.inf)

    def mean(self):
        return self.shift + jnp.exp(self.location + jnp.square(self.scale) / 2)

    def infimum(self):
        return jnp.asarray(self.shift)


@pytree_dataclass
class Gamma(Law):
    r"""T = shift + G / rate, G gamma distributed with the given `shape`.

    `rate` is one over a time, `shift` a time. Λ⁻¹ is found by Newton's method on log Λ(log t), to
    full precision; draws use a table of it. Raises ValueError for shape or rate ≤ 0, shift < 0.

    >>> float(Gamma(shape=4.0, rate=2.0, shift=1.0).mean())
    3.0
    """

    shape: ArrayLike
    rate: ArrayLike
    shift: ArrayLike = 0.0

    def __post_init__(self) -> None:
        check("shape", self.shape, "> 0")
        check("rate", self.rate, "> 0")
        check("shift", self.shift, ">= 0")

    def cumulative_hazard(self, t):
        inside, excess = _above(t, self.shift)
        return jnp.where(inside, gamma_hazard(self.shape, self.rate * excess), 0)

    def inverse_cumulative_hazard(self, a):
        inside, a = _above(a, 0.0)
        return self.shift + jnp.where(inside, inverse_gamma_hazard(self.shape, a) / self.rate, 0)

    def log_density(self, t):
        # The hazard's slope in the shape would be a series for each time.
        inside, excess = _above(t, self.shift)
        constant = self.shape * jnp.log(self.rate) - special.gammaln(self.shape)
        value = constant + (self.shape - 1) * jnp.log(excess) - self.rate * excess
        return jnp.where(inside, value, -jnp.inf)

    def mean(self):
        return jnp.asarray(self.shift + jnp.divide(self.shape, self.rate))

    def infimum(self):
        return jnp.asarray(self.shift)

    def with_fast_inverse(self):
        # Of T - shift: a difference would round to 0 near the shift.
        a = jnp.exp(_Tabulated.log_hazards())
        log_x, slope = log_inverse_gamma_hazard(self.shape, a)
        return _Tabulated(self, self.infimum(), log_x - jnp.log(self.rate), slope)


@pytree_dataclass
class Empirical(Law):
    r"""The law of measured cycle times: each of the `times`, shape `[K]`, with probability 1/K.

    Built from any array of times, sorted on the way in. Raises ValueError when there is none or
    one that is not finite and positive.

    >>> law = Empirical([3.0, 1.0, 2.0, 2.0])
    >>> float(law.mean()), float(law.cdf(2.0))
    (2.0, 0.75)
    """

    times: ArrayLike | Sequence[float]

    def __post_init__(self) -> None:
        if np.size(self.times) == 0:
            raise ValueError("times is empty: an empirical law needs at least one measured time")
        check("times", self.times, "> 0")
        times = self.times if isinstance(self.times, jax.Array) else np.asarray(self.times, float)
        times = jnp.asarray(times, jnp.result_type(times, float))
        object.__setattr__(self, "times", jnp.sort(jnp.ravel(times)))

    def cumulative_hazard(self, t):
        times = jnp.asarray(self.times)
        t = jnp.asarray(t)
        count = jnp.searchsorted(times, t, side="right", method="sort" if t.size > 64 else "scan")
        # Counts alone would give float32. log1p in the lower half, or the first times lose their digits.
        count = count.astype(jnp.result_type(times, float))
        left = times.size - count
        lower = -jnp.log1p(-jnp.minimum(count / times.size, 0.5))
        upper = -jnp.log(jnp.maximum(left, 1) / times.size)
        return jnp.where(left > 0, jnp.where(count < left, lower, upper), jnp.inf)

    def inverse_cumulative_hazard(self, a):
        times = jnp.asarray(self.times)
        a = jnp.asarray(a)
        # Rounded up with a margin of a few ulp, so that Λ⁻¹(Λ(tᵢ)) = tᵢ survives the two roundings.
        share = -jnp.expm1(-a) * times.size
        rank = jnp.ceil(share * (1 - 8 * jnp.finfo(share.dtype).eps)) - 1
        return times[jnp.clip(rank, 0, times.size - 1).astype(int)]

    def mean(self):
        return jnp.mean(jnp.asarray(self.times))

    def infimum(self):
        return jnp.asarray(self.times)[0]

    def kinks(self):
        return jnp.asarray(self.times)[1:]

    def atomic(self):
        return True


@pytree_dataclass
class FromHazard(Law):
    r"""A law of your own: Λ(parameters, t) and its inverse Λ⁻¹(parameters, a), both elementwise.

    The two functions are static (pass the same objects again to avoid a new compilation);
    `parameters` is any pytree, traced and differentiated like the fields of the other laws. The mean
    is ∫ Λ⁻¹(a) e^{-a} da by quadrature; where the integrand does not decay, it is inf.

    >>> law = FromHazard(lambda p, t: p * t**2, lambda p, a: (a / p) ** 0.5, parameters=3.0)
    >>> round(float(law.mean()), 5)  # (π/12)^½
    0.51166
    """

    hazard: Callable[[Any, Array], Array] = static_field()
    inverse_hazard: Callable[[Any, Array], Array] = static_field()
    parameters: Any = ()

    def cumulative_hazard(self, t):
        t = jnp.asarray(t)
        start = jax.lax.stop_gradient(self.infimum()).astype(jnp.result_type(t, float))
        inside = t > start
        # Above the support's start the user's Λ is asked; below it, only at a point it knows.
        safe = jnp.where(inside, t, start + jnp.maximum(jnp.abs(start), 1))
        return jnp.where(inside, self.hazard(self.parameters, safe), 0)

    def inverse_cumulative_hazard(self, a):
        inside, safe = _above(a, 0.0)
        value = jnp.asarray(self.inverse_hazard(self.parameters, safe))
        return jnp.where(inside, value, self.infimum().astype(value.dtype))

    def mean(self):
        # a = exp(v - e^{-v}): exponential decay at both ends, so the trapezoid rule is spectral.
        low, high, panels = -4.2, 6.0, 400
        v = jnp.linspace(low, high, panels + 1)
        a = jnp.exp(v - jnp.exp(-v))
        weight = jnp.exp(-a)
        # Where the weight is 0, T may overflow.
        integrand = self.inverse_cumulative_hazard(jnp.where(weight > 0, a, 0)) * weight
        largest = 0.9 * -math.log(jnp.finfo(a.dtype).tiny)
        tail = jnp.log(self.inverse_cumulative_hazard(jnp.array([largest / 2, largest])))
        growth = (tail[1] - tail[0]) / (largest / 2)  # of log T per unit of hazard; 1 is the limit
        total = jnp.sum(integrand * a * (1 + jnp.exp(-v))) * ((high - low) / panels)
        return jnp.where(growth < 1, total, jnp.inf)

    def infimum(self):
        # The value of Λ⁻¹ at 0 with the slopes just above it: a power of a has none at 0.
        dtype = jnp.result_type(float)
        near = jnp.asarray(
            self.inverse_hazard(self.parameters, jnp.asarray(jnp.finfo(dtype).eps ** 2, dtype))
        )
        value = jnp.asarray(self.inverse_hazard(self.parameters, jnp.zeros((), dtype)))
        return near + jax.lax.stop_gradient(value - near)


@pytree_dataclass
class _Tabulated(Law):
    """A law with Λ⁻¹ from a cubic Hermite table of log(t - infimum) against log a, exact in slope."""

    law: Law
    start: Array
    log_t: Array
    slope: Array

    # Draws of a in float64 lie in [1e-16/N, 745]; below the table the power law goes on.
    _low, _high, _size = math.log(1e-20), math.log(800.0), 513

    @classmethod
    def log_hazards(cls) -> Array:
        return jnp.linspace(cls._low, cls._high, cls._size)

    def inverse_cumulative_hazard(self, a):
        step = (self._high - self._low) / (self._size - 1)
        a = jnp.asarray(a)
        inside, safe = _above(a, 0.0)
        place = jnp.clip((jnp.log(safe) - self._low) / step, 0, self._size - 1)
        i = jnp.clip(place.astype(int), 0, self._size - 2)
        u = place - i
        f0, f1, d0, d1 = self.log_t[i], self.log_t[i + 1], self.slope[i] * step, self.slope[i + 1] * step
        value = f0 + u * (d0 + u * (3 * (f1 - f0) - 2 * d0 - d1 + u * (2 * (f0 - f1) + d0 + d1)))
        return self.start + jnp.where(inside, jnp.exp(value), 0)

    def cumulative_hazard(self, t):
        return self.law.cumulative_hazard(t)

    def mean(self):
        return self.law.mean()

    def infimum(self):
        return self.start


def _inverse_ranks(num_workers: ArrayLike, max_workers: int) -> tuple[Array, Array]:
    """1/j for j = n+1, and the rank N - n from the fastest; both 0 for padded levels n ≥ N."""
    j = jnp.arange(1, max_workers + 1, dtype=float)
    exists = j <= num_workers
    return jnp.where(exists, 1 / j, 0), jnp.where(exists, num_workers - j + 1, 0)


def _suffix_sum(terms: Array) -> Array:
    return jnp.cumsum(terms[::-1])[::-1]


def _check_order(low_name: str, low: Any, high_name: str, high: Any) -> None:
    low_value, high_value = concrete(low), concrete(high)
    if low_value is not None and high_value is not None and np.any(low_value >= high_value):
        raise ValueError(f"{low_name} must be below {high_name}, got {low} and {high}")
