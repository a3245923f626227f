r"""The one table of laws: each of the package's, with what SciPy and mpmath say of it.

Of the package only the constructors are used, in `Case.law`; every answer is SciPy's,
mpmath's at 40 digits, or counted. In mpmath a law is its survival function and its
mean; everything else about it (Λ, Λ⁻¹, slopes) is derived here by root finding and
numerical differentiation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import mpmath as mp
import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

import bcgc_jax as bcgc

DIGITS = 40


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of law: `build` is the package's, `frozen` SciPy's, or `Atoms`.

    Both take the package's parameters. The others, of laws that are asked in mpmath,
    take these there, `p`, in the order of the package's fields. P(T > t) holds between
    `infimum` and `end`; `typical` is a scale of T - infimum.
    """

    build: Callable[..., bcgc.distributions.Distribution]
    frozen: Callable[..., Any]
    survival: Callable[[Sequence, Any], Any] = lambda p, t: mp.nan
    mean: Callable[[Sequence], Any] = lambda p: mp.nan
    typical: Callable[[Sequence], Any] = lambda p: mp.nan
    infimum: Callable[[Sequence], Any] = lambda p: p[-1]  # a shift
    end: Callable[[Sequence], Any] = lambda p: mp.inf

    def case(self, *parameters: float) -> "Case":
        return Case(self, tuple(float(v) for v in parameters))


@dataclasses.dataclass(frozen=True)
class Case:
    """A law with its parameters."""

    family: Family
    parameters: tuple[float, ...]

    def law(self) -> bcgc.distributions.Distribution:
        """The package's."""
        return self.family.build(*self.parameters)

    @functools.cached_property
    def frozen(self) -> Any:
        """SciPy's."""
        return self.family.frozen(*self.parameters)

    @property
    def exact(self) -> list:
        return [mp.mpf(v) for v in self.parameters]

    @functools.cached_property
    def infimum(self) -> float:
        return float(self.frozen.support()[0])

    @functools.cached_property
    def atoms(self) -> tuple[tuple[float, float], ...]:
        """Values and their probabilities; empty for a law with a density."""
        return self.frozen.atoms if isinstance(self.frozen, Atoms) else ()

    @functools.cached_property
    def kinks(self) -> tuple[float, ...]:
        """The times above the infimum where the survival function is not smooth."""
        if self.atoms:
            return tuple(value for value, _ in self.atoms[1:])
        end = float(self.family.end(self.exact))
        return (end,) if math.isfinite(end) else ()

    def draw(self, rng: np.random.Generator, shape: Any) -> np.ndarray:
        return self.frozen.rvs(shape, random_state=rng)

    def survival(self, t):
        """P(T > t) of a law with a density, anywhere, in the working precision."""
        p = self.exact
        if t <= self.family.infimum(p):
            return mp.mpf(1)
        return self.family.survival(p, t) if t < self.family.end(p) else mp.mpf(0)

    @mp.workdps(DIGITS)
    def hazard(self, t):
        """Λ(t), by the logarithm of the survival function."""
        survival = self.survival(mp.mpf(t))
        return -mp.log(survival) if survival else mp.inf

    @mp.workdps(DIGITS)
    def inverse(self, a):
        """Λ⁻¹(a): log Λ(t) = log a solved in log(t - infimum), or a logit if t ends."""
        p = self.exact
        a = mp.mpf(a)
        start = self.family.infimum(p)
        end = self.family.end(p)
        if a == 0:
            return start

        def time(w):
            return start + (
                mp.exp(w) if end == mp.inf else (end - start) / (1 + mp.exp(-w))
            )

        def f(w):  # where all but 1e-50 is later, P(T > t) is 1, or more
            return mp.log(
                (abs(mp.log(self.family.survival(p, time(w)))) or mp.mpf(10) ** -DIGITS)
                / a
            )

        low = high = mp.log(self.family.typical(p)) if end == mp.inf else mp.mpf(0)
        step = mp.mpf(1) / 2
        while f(low) > 0:
            low, high, step = low - step, low, 3 * step
        while f(high) < 0:
            low = high
            high = high + step
            step = 3 * step
        options = {
            "solver": "illinois",
            "tol": mp.mpf(10) ** -24,
            "maxsteps": 300,
            "verify": False,
        }
        return time(low if low == high else mp.findroot(f, (low, high), **options))

    @mp.workdps(3 * DIGITS // 2)
    def hazard_slopes(self, t) -> list:
        """∂Λ(t)/∂pᵢ for every parameter, and ∂Λ/∂t last, by central differences."""
        point = [*self.exact, mp.mpf(t)]
        slopes = []

        def ends(q):
            return self.family.infimum(q[:-1]), self.family.end(q[:-1])

        start, end = ends(point)
        for i, v in enumerate(point):

            def moved(h, i=i):
                return [*point[:i], point[i] + h, *point[i + 1 :]]

            h = (abs(v) or mp.mpf(1)) * mp.mpf(10) ** -10
            if i == len(self.parameters) or ends(moved(h)) != (start, end):
                # Λ is smooth on a scale set by the distance to the ends of the support.
                h = min(min(point[-1] - start, end - point[-1]) * mp.mpf(10) ** -10, h)
            low, high = (
                -mp.log(self.family.survival(q[:-1], q[-1]))
                for q in (moved(-h), moved(h))
            )
            slopes.append((high - low) / (2 * h))
        return slopes

    def inverse_slopes(self, t) -> list:
        """∂Λ⁻¹(a)/∂pᵢ of all parameters, then ∂Λ⁻¹/∂a, at a = Λ(t), implicitly."""
        *drift, slope = self.hazard_slopes(t)
        return [*(-d / slope for d in drift), 1 / slope]

    @mp.workdps(DIGITS)
    def mean_slopes(self) -> list:
        """∂E T/∂pᵢ for every parameter, by differences of the formula."""
        p = self.exact
        return [
            mp.diff(lambda v, i=i: self.family.mean([*p[:i], v, *p[i + 1 :]]), p[i])
            for i in range(len(p))
        ]


class Atoms:
    """Values with probabilities, with the methods of SciPy's laws."""

    def __init__(self, values: Any, mass: Any) -> None:
        order = np.argsort(values)
        self.values = np.asarray(values, float)[order]
        self.mass = np.asarray(mass, float)[order]
        self.atoms = tuple(zip(self.values.tolist(), self.mass.tolist(), strict=True))

    def sf(self, t: ArrayLike) -> np.ndarray:
        return (self.values > np.asarray(t, float)[..., None]) @ self.mass

    def cdf(self, t: ArrayLike) -> np.ndarray:
        return (self.values <= np.asarray(t, float)[..., None]) @ self.mass

    def ppf(self, u: ArrayLike) -> np.ndarray:
        place = np.searchsorted(np.cumsum(self.mass), np.asarray(u))
        return self.values[np.minimum(place, self.values.size - 1)]

    def rvs(self, size: Any, random_state: np.random.Generator) -> np.ndarray:
        return random_state.choice(self.values, size, p=self.mass)

    def mean(self) -> float:
        return float(self.mass @ self.values)

    def support(self) -> tuple[float, float]:
        return float(self.values[0]), float(self.values[-1])


class Mixed:
    """A mixture of SciPy's distributions, with the methods of these."""

    def __init__(self, parts: Sequence[Any], weights: Any) -> None:
        self.parts = parts
        self.p = np.asarray(weights, float) / np.sum(weights)

    def _mean_of(self, values: Sequence[Any]) -> Any:
        return sum(p * value for p, value in zip(self.p, values, strict=True))

    def sf(self, t: ArrayLike) -> Any:
        return self._mean_of([part.sf(t) for part in self.parts])

    def cdf(self, t: ArrayLike) -> Any:
        return self._mean_of([part.cdf(t) for part in self.parts])

    def logpdf(self, t: ArrayLike) -> Any:
        return np.log(self._mean_of([part.pdf(t) for part in self.parts]))

    def mean(self) -> float:
        return float(self._mean_of([part.mean() for part in self.parts]))

    def support(self) -> tuple[float, float]:
        lows, highs = zip(*(part.support() for part in self.parts), strict=True)
        return float(min(lows)), float(max(highs))

    def ppf(self, u: ArrayLike) -> np.ndarray:
        def time(share: float) -> float:
            low, high = (
                extreme(part.ppf(share) for part in self.parts)
                for extreme in (min, max)
            )
            if low == high:
                return float(low)
            return float(optimize.brentq(lambda t: self.cdf(t) - share, low, high))

        return np.vectorize(time)(u)

    def rvs(self, size: Any, random_state: np.random.Generator) -> np.ndarray:
        which = random_state.choice(len(self.parts), size, p=self.p)
        draws = [part.rvs(size, random_state=random_state) for part in self.parts]
        return np.choose(which, draws)


def _log_logistic_hazard(p, t):
    return jnp.log1p(((t - p[2]) / p[0]) ** p[1])


def _inverse_log_logistic_hazard(p, a):
    return p[2] + p[0] * jnp.expm1(a) ** (1 / p[1])


def _lognormal_z(p, t):
    return (mp.log(t - p[2]) - p[0]) / p[1]


SHIFTED_EXPONENTIAL = Family(
    build=bcgc.ShiftedExponential,
    frozen=lambda rate, shift: stats.expon(shift, 1 / rate),
    survival=lambda p, t: mp.exp(-p[0] * (t - p[1])),
    mean=lambda p: p[1] + 1 / p[0],
    typical=lambda p: 1 / p[0],
)
EXPONENTIAL = Family(
    build=bcgc.Exponential, frozen=lambda rate: stats.expon(0, 1 / rate)
)
WEIBULL = Family(
    build=bcgc.Weibull,
    frozen=lambda scale, shape, shift: stats.weibull_min(shape, shift, scale),
    survival=lambda p, t: mp.exp(-(((t - p[2]) / p[0]) ** p[1])),
    mean=lambda p: p[2] + p[0] * mp.gamma(1 + 1 / p[1]),
    typical=lambda p: p[0],
)
PARETO = Family(
    build=bcgc.Pareto,
    frozen=lambda scale, shape: stats.pareto(shape, 0, scale),
    survival=lambda p, t: (p[0] / t) ** p[1],
    infimum=lambda p: p[0],
    mean=lambda p: p[0] * p[1] / (p[1] - 1) if p[1] > 1 else mp.inf,
    typical=lambda p: p[0],
)
UNIFORM = Family(
    build=bcgc.Uniform,
    frozen=lambda low, high: stats.uniform(low, high - low),
    survival=lambda p, t: (p[1] - t) / (p[1] - p[0]),
    infimum=lambda p: p[0],
    mean=lambda p: (p[0] + p[1]) / 2,
    typical=lambda p: (p[1] - p[0]) / 2,
    end=lambda p: p[1],
)
LOGNORMAL = Family(
    build=bcgc.Lognormal,
    frozen=lambda location, scale, shift: stats.lognorm(
        scale, shift, math.exp(location)
    ),
    survival=lambda p, t: mp.erfc(_lognormal_z(p, t) / mp.sqrt(2)) / 2,
    mean=lambda p: p[2] + mp.exp(p[0] + p[1] ** 2 / 2),
    typical=lambda p: mp.exp(p[0]),
)
GAMMA = Family(
    build=bcgc.Gamma,
    frozen=lambda shape, rate, shift: stats.gamma(shape, shift, 1 / rate),
    survival=lambda p, t: mp.gammainc(p[0], p[1] * (t - p[2]), regularized=True),
    mean=lambda p: p[2] + p[0] / p[1],
    typical=lambda p: p[0] / p[1],
)
# P(T > t) = 1 / (1 + ((t - shift) / scale)^shape), with parameters (scale, shape,
# shift).
LOG_LOGISTIC = Family(
    build=lambda *p: bcgc.FromHazard(
        _log_logistic_hazard, _inverse_log_logistic_hazard, p
    ),
    frozen=lambda scale, shape, shift: stats.fisk(shape, shift, scale),
    survival=lambda p, t: 1 / (1 + ((t - p[2]) / p[0]) ** p[1]),
    mean=lambda p: (
        p[2] + p[0] * (mp.pi / p[1]) / mp.sin(mp.pi / p[1]) if p[1] > 1 else mp.inf
    ),
    typical=lambda p: p[0],
)
# Parameters are (rate, scale, shape, weight, weight, shift); both begin at the shift.
MIXTURE = Family(
    build=lambda rate, scale, shape, often, seldom, shift: bcgc.Mixture(
        [bcgc.ShiftedExponential(rate, shift), bcgc.Weibull(scale, shape, shift)],
        jnp.stack(jnp.broadcast_arrays(often, seldom), axis=-1),
    ),
    frozen=lambda rate, scale, shape, often, seldom, shift: Mixed(
        [stats.expon(shift, 1 / rate), stats.weibull_min(shape, shift, scale)],
        [often, seldom],
    ),
    survival=lambda p, t: (
        (
            p[3] * mp.exp(-p[0] * (t - p[5]))
            + p[4] * mp.exp(-(((t - p[5]) / p[1]) ** p[2]))
        )
        / (p[3] + p[4])
    ),
    mean=lambda p: (
        p[5] + (p[3] / p[0] + p[4] * p[1] * mp.gamma(1 + 1 / p[2])) / (p[3] + p[4])
    ),
    typical=lambda p: 1 / p[0],
)
DETERMINISTIC = Family(
    build=bcgc.distributions.Deterministic, frozen=lambda value: Atoms([value], [1.0])
)
TWO_SPEED = Family(
    build=bcgc.TwoSpeed,
    frozen=lambda fast, slow, probability: Atoms(
        [fast, slow], [1 - probability, probability]
    ),
)
EMPIRICAL = Family(
    build=lambda *times: bcgc.Empirical(times),
    frozen=lambda *times: Atoms(times, [1 / len(times)] * len(times)),
)

CASES = {
    "shifted_exponential": SHIFTED_EXPONENTIAL.case(1e-3, 50.0),
    "weibull_3": WEIBULL.case(3.0, 3.0, 0.0),
    "weibull_07": WEIBULL.case(2.0, 0.7, 0.5),
    "pareto_12": PARETO.case(2.0, 1.2),
    "pareto_3": PARETO.case(0.5, 3.0),
    "uniform": UNIFORM.case(1.5, 4.0),
    "two_speed": TWO_SPEED.case(1.5, 7.5, 0.2),
    "empirical": EMPIRICAL.case(2.0, 1.25, 3.5, 2.0, 9.0),
}
"""Those of the tests of runtimes and solvers, of which each kind is a program."""
