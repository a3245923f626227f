r"""The cumulative hazards -log Q of normal and gamma variables, and their inverses.

Both are written with a Mills ratio M, the tail over the slope of its log density. With
u = z or log x,

    left of the middle     P = p M,   Λ = -log1p(-P),   Λ' = P / (Q M)
    right of it            Q = p M,   Λ = -log Q,       Λ' = 1 / M

with p the density in u. M is smooth and without cancellation, and so is log P or log Q
in the far tails; the slopes in closed form need no second evaluation. XLA compiles each
of these to a handful of loops, where `gammainc` and `gammaincc` take eighty.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _Tail(NamedTuple):
    """log P where `left`, else log Q, and the Mills ratio: P or Q over the density."""

    left: Array
    log: Array
    mills: Array

    @property
    def log_p(self) -> Array:
        """log P on the left; any number on the right."""
        return jnp.where(self.left, self.log, -1)

    def hazard(self) -> Array:
        return jnp.where(self.left, _minus_log1m(jnp.exp(self.log_p)), -self.log)

    def odds(self) -> Array:
        """P / Q on the left; 1 on the right."""
        return jnp.where(self.left, 1 / jnp.expm1(-self.log_p), 1)

    def slope(self) -> Array:
        """dΛ/du."""
        return self.odds() / self.mills

    def newton(self, log_hazard: Array) -> Array:
        """The step in u to the root of log Λ = `log_hazard`, also if P underflows."""
        p = jnp.exp(self.log_p)
        # -log(1 - p) / p, and its limit.
        ratio = jnp.where(
            p > jnp.finfo(p.dtype).tiny, _minus_log1m(p) / jnp.where(p > 0, p, 1), 1
        )
        log_value = jnp.where(
            self.left, self.log + jnp.log(ratio), jnp.log(jnp.abs(self.log))
        )
        scale = jnp.where(self.left, ratio * (1 - p), -self.log)
        return (log_hazard - log_value) * scale * self.mills


def _minus_log1m(p: Array) -> Array:
    """-log(1 - p). XLA's log1p is off by 1.4e-14 at -0.5, by an ulp above -0.3."""
    small = -jnp.log1p(-jnp.minimum(p, 0.25))
    large = -jnp.log(1 - jnp.where(p < 1, p, 0))
    return jnp.where(p < 0.25, small, large)


def log_early(hazard: Array) -> Array:
    """log P(T ≤ t) = log(1 - e^-Λ), accurate near 0: many workers multiply it."""
    tiny = jnp.finfo(hazard.dtype).tiny
    soon = jnp.log(jnp.maximum(-jnp.expm1(-hazard), tiny))
    late = -_minus_log1m(jnp.exp(-jnp.maximum(hazard, 0.7)))
    return jnp.where(hazard < 0.7, soon, late)


@functools.cache
def legendre(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's rule on [0, 1], to full relative accuracy near 0.

    NumPy's loses two digits there (5e-14 for ∫ e^{-37 s}, against 2e-16): its nodes are
    1 - O(order^-2).
    """
    s = (1 - np.polynomial.legendre.leggauss(order)[0][::-1]) / 2
    for _ in range(3):
        value = np.ones(order)
        step = np.zeros(order)
        for k in range(order):  # P_{k+1} - P_k from P_k - P_{k-1}, at 1 - 2 s
            before = value
            step = (k * step - 2 * s * (2 * k + 1) * value) / (k + 1)
            value = value + step
        slope = order * (before - (1 - 2 * s) * value) / (4 * s * (1 - s))
        s = s + value / slope / 2
    weight = 4 * s * (1 - s) / (order * before) ** 2
    upper = np.arange(order) >= order - order // 2
    return np.where(upper, 1 - s[::-1], s), np.where(upper, weight[::-1], weight)


def double_exponential(num: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on [0, 1], `[num + 1]`, and weights of three nested rules, `[3, …]`."""
    end = 3.2  # beyond it weights are below the rounding of the sum
    v = np.linspace(-end, end, num + 1)
    share = 1 / (1 + np.exp(-np.pi * np.sinh(v)))
    weight = (
        np.pi * np.cosh(v) * share / (1 + np.exp(np.pi * np.sinh(v))) * (2 * end / num)
    )
    node = np.arange(num + 1)
    weights = np.stack([weight * (node % k == 0) * k for k in (1, 2, 4)])
    return share.astype(dtype), weights.astype(dtype)


@functools.cache
def _mills_polynomial(degree: int) -> np.ndarray:
    """Coefficients, highest first, of (z + 1.25) M(z) in (z - 4) / (z + 4), for z ≥ 0.

    The map is that of Shepherd and Laframboise (1981). Degree 22: 1.5e-15; degree 10:
    4e-8.
    """
    share = np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    z = 4 * (1 + share) / (1 - share)
    # M(z) = ∫₀^∞ exp(-z v - v²/2) dv, cut where the exponent is -42.
    end = 84 / (z + np.sqrt(z * z + 84))
    s, weight = legendre(60)
    v = end[:, None] * s
    mills = end * (np.exp(-v * (z[:, None] + v / 2)) @ weight)
    series = np.polynomial.chebyshev.chebfit(share, (z + 1.25) * mills, degree)
    return np.polynomial.chebyshev.cheb2poly(series)[::-1]


def _mills(z: Array) -> Array:
    """P(Z > z) / φ(z) for z ≥ 0."""
    z = jnp.minimum(z, 1e-3 * jnp.sqrt(jnp.finfo(z.dtype).max))
    share = (z - 4) / (z + 4)
    value = jnp.zeros_like(z)
    degree = 10
    if z.dtype == jnp.float64:
        degree = 22
    for c in _mills_polynomial(degree).tolist():
        value = value * share + c
    return value / (z + 1.25)


def _normal_tail(z: Array) -> _Tail:
    mills = _mills(jnp.abs(z))
    return _Tail(z < 0, -0.5 * z * z - _HALF_LOG_2PI + jnp.log(mills), mills)


@jax.custom_jvp
def normal_hazard(z: Array) -> Array:
    """-log P(Z > z), Z standard normal, to a few ulp of it in both tails."""
    return _normal_tail(z).hazard()


normal_hazard.defjvps(lambda tangent, _, z: _normal_tail(z).slope() * tangent)


def _rough_normal(a: Array) -> tuple[Array, Array, Array]:
    """(right, b, z): z ≥ 0 with -log P(Z > z) ≈ b, to 4.5e-4; the z of a is z if
    `right`, else -z.

    Hastings' formula, Abramowitz and Stegun 26.2.23.
    """
    right = a > math.log(2)
    b = jnp.where(right, a, -jnp.log(-jnp.expm1(-jnp.minimum(a, 1))))
    t = jnp.sqrt(2 * b)
    above = 2.515517 + t * (0.802853 + t * 0.010328)
    below = 1 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    return right, b, t - above / below


@jax.custom_jvp
def inverse_normal_hazard(a: Array) -> Array:
    """The z with -log P(Z > z) = a, for a > 0."""
    right, b, z = _rough_normal(jnp.minimum(a, 1e-9 * jnp.finfo(a.dtype).max))
    # Halley's method: Λ' = 1 / M, Λ'' = Λ' (Λ' - z). The errors are 4.5e-4, 1e-10,
    # 1e-16.
    for _ in range(2):
        z = jnp.maximum(z, 0)
        mills = _mills(z)
        step = (0.5 * z * z + _HALF_LOG_2PI - jnp.log(mills) - b) * mills
        z = z - step / (1 - 0.5 * step * (1 / mills - z))
    return jnp.where(right, z, -z)


inverse_normal_hazard.defjvps(lambda tangent, z, _: tangent / _normal_tail(z).slope())


def _gamma_tail(
    shape: Array, constant: Array, x: Array, log_x: Array | None = None
) -> tuple[_Tail, Array]:
    r"""The tail in u = log x, and the slope of its log in the shape.

    XLA leaves out what nobody asks for. M = ∫₀^∞ exp(±b v - x (e^{±v} - 1)) dv, with b
    = shape: on the right +, on the left -, where one step of the recurrence in the
    shape, M(b) = (1 + x M(b+1)) / b, spares the slow decay of small shapes. Gauss and
    Legendre's rule up to where the exponent is -37 has all the digits of float64 with
    30 nodes. `constant` is `_stirling(shape)`; `log_x` is asked where x underflows.
    """
    double = x.dtype == jnp.float64
    nodes, weights = legendre(30 if double else 14)
    cut = 17.5
    if double:
        cut = 37.0
    # Near the median; 0.1 for small shapes, whose Q is 1 - P to the left of it (worst
    # 1e-14 at shape 0.02).
    left = x < jnp.maximum(shape - 0.7, 0.1)
    b = jnp.where(left, shape + 1, shape)
    gap = jnp.where(left, b - x, x - b)
    # The end of the range: on the left from e^{-v} - 1 + v ≥ v² / (2 + v); on the right
    # by Newton from above.
    short = (cut - 2 * gap + jnp.sqrt((cut - 2 * gap) ** 2 + 8 * b * cut)) / (2 * b)
    end = jnp.minimum(
        (jnp.sqrt(gap * gap + 2 * x * cut) - gap) / x, jnp.log1p(2 * cut / x) + 1
    )
    for _ in range(3):
        grown = jnp.expm1(end)
        end = end - (x * grown - b * end - cut) / (x * grown + gap)
    end = jax.lax.stop_gradient(jnp.where(left, -short, end))
    v = end[..., None] * jnp.asarray(nodes, x.dtype)
    exponent = b[..., None] * v - x[..., None] * (jnp.exp(v) - 1)
    value = jnp.asarray(weights, x.dtype) * jnp.exp(exponent)
    integral = jnp.abs(end) * jnp.sum(value, axis=-1)
    lower = 1 + x * integral
    mills = jnp.where(left, lower / shape, integral)
    # x^shape e^-x / Γ(shape) without the cancellation at large shapes.
    excess = (x - shape) / shape
    near = jnp.abs(excess) < 0.25
    log_ratio = jnp.where(
        near, jnp.log1p(jnp.where(near, excess, 0)), jnp.log(x / shape)
    )
    if log_x is not None:
        log_ratio = jnp.where(
            x > 1e3 * jnp.finfo(x.dtype).tiny, log_ratio, log_x - jnp.log(shape)
        )
    log_tail = shape * log_ratio - (x - shape) - constant + jnp.log(mills)
    first = jnp.abs(end) * jnp.sum(v * value, axis=-1)
    drift = jnp.where(left, x * first / lower - 1 / shape, first / integral)
    # ψ(shape) - log shape
    _, constant_slope = jax.jvp(_stirling, (shape,), (jnp.ones_like(shape),))
    return _Tail(left, log_tail, mills), log_ratio - constant_slope + drift


@jax.jit  # traced once for all who ask
def _stirling(shape: Array) -> Array:
    """log Γ(shape) - shape log shape + shape, by Stirling's series."""
    large = shape > 10
    raised = jnp.where(large, shape, shape + 10)
    product = jnp.where(large, 1, shape)
    for k in range(1, 10):
        product = product * jnp.where(large, 1, shape + k)
    # Bernoulli's numbers; the next term is below 3e-17.
    inverse = 1 / raised
    series = jnp.zeros_like(shape)
    for c in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * inverse * inverse + c
    series = series * inverse + _HALF_LOG_2PI
    log_raised = jnp.log(raised)
    below = raised * (log_raised - 1) - shape * (jnp.log(shape) - 1) - jnp.log(product)
    return series - 0.5 * log_raised + jnp.where(large, 0, below)


def _in_range(x: Array) -> Array:
    """x within the numbers whose quotients and squares do not overflow."""
    return jnp.clip(x, jnp.finfo(x.dtype).tiny, jnp.sqrt(jnp.finfo(x.dtype).max))


def _along(tangents: tuple, *slopes: Array) -> Array:
    """Σ slope · tangent over the tangents that are not known to be zero."""
    return sum(
        s * t
        for s, t in zip(slopes, tangents, strict=True)
        if type(t) is not SymbolicZero
    )


@jax.custom_jvp
def gamma_hazard(shape: Array, x: Array) -> Array:
    """-log Q(shape, x), Q the regularised upper incomplete gamma function, for x > 0;
    of one dtype.

    Relative error up to 1.3e-13 for shapes 0.02 to 500, all of it the rounding of the
    logarithm of P in the left tail, 1e-14 elsewhere.
    """
    tail, _ = _gamma_tail(shape, _stirling(shape), _in_range(x))
    return jnp.where(x < jnp.inf, tail.hazard(), jnp.inf)


def _gamma_hazard_jvp(primals, tangents):
    shape, x = primals
    safe = _in_range(x)
    tail, slope = _gamma_tail(shape, _stirling(shape), safe)
    in_shape = jnp.where(tail.left, 1, -1) * tail.odds() * slope
    hazard = jnp.where(x < jnp.inf, tail.hazard(), jnp.inf)
    return hazard, _along(tangents, in_shape, tail.slope() / safe)


gamma_hazard.defjvp(_gamma_hazard_jvp, symbolic_zeros=True)


def log_inverse_gamma_hazard(shape: Array, a: Array) -> tuple[Array, Array, Array]:
    """log x, where -log Q(shape, x) = a > 0, and its slopes in log a and in the shape.

    x itself may underflow. Slopes are by implicit differentiation.
    """
    constant = _stirling(shape)
    log_x = _log_inverse(shape, constant, a)
    tail, slope = _gamma_tail(shape, constant, _in_range(jnp.exp(log_x)), log_x)
    return (
        log_x,
        a * tail.mills / tail.odds(),
        jnp.where(tail.left, -1, 1) * tail.mills * slope,
    )


def _log_inverse(shape: Array, constant: Array, a: Array) -> Array:
    log_a = jnp.log(a)
    # Left: P ≈ x^shape / Γ(shape + 1). Right: Wilson and Hilferty's cube of a normal,
    # or e^{-x} / Γ(shape).
    rise = constant + shape * jnp.log(shape) - shape
    left = (jnp.log(-jnp.expm1(-a)) + rise + jnp.log(shape)) / shape
    right, _, z = _rough_normal(a)
    cube = 1 - 1 / (9 * shape) + jnp.where(right, z, -z) / (3 * jnp.sqrt(shape))
    far = jnp.maximum(left, jnp.log(jnp.maximum(a - jnp.abs(rise), 0.1)))
    middle = jnp.log(shape) + 3 * jnp.log(jnp.maximum(cube, 0.3))
    start = jnp.where(cube > 0.3, middle, jnp.where(a > 3, far, left))
    reach = 3 + 0.1 / shape

    def newton(_, u):
        tail, _ = _gamma_tail(shape, constant, _in_range(jnp.exp(u)), u)
        return u + jnp.clip(tail.newton(log_a), -reach, reach)

    # The slowest of shapes 0.005 to 10,000 and all hazards has its last digit after 5
    # steps.
    return jax.lax.fori_loop(0, 6, newton, start)


@jax.custom_jvp
def inverse_gamma_hazard(shape: Array, a: Array) -> Array:
    """The x with -log Q(shape, x) = a, for a > 0; of one dtype."""
    return jnp.exp(_log_inverse(shape, _stirling(shape), a))


def _inverse_gamma_hazard_jvp(primals, tangents):
    log_x, in_log_a, in_shape = log_inverse_gamma_hazard(*primals)
    x = jnp.exp(log_x)
    return x, _along(tangents, x * in_shape, x * in_log_a / primals[1])


inverse_gamma_hazard.defjvp(_inverse_gamma_hazard_jvp, symbolic_zeros=True)


def f_quantile(share: float, above: float, below: float) -> float:
    """A quantile of the F distribution with `above` and `below` degrees of freedom, by
    NumPy.

    With 1 and ν degrees it is that of t². It is below / above tan² of an angle with the
    density sin^(above-1) cos^(below-1).
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    middle = (angle[1:] + angle[:-1]) / 2
    density = (above - 1) * np.log(np.sin(middle)) + (below - 1) * np.log(
        np.cos(middle)
    )
    total = np.insert(np.cumsum(np.exp(density - density.max())), 0, 0)
    return float(
        below / above * np.tan(np.interp(share * total[-1], total, angle)) ** 2
    )
