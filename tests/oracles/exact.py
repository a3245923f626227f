r"""Answers that share no code with the package: mpmath at 40 digits, exact fractions, brute force.

Nothing here imports the package or JAX. A law is its survival function and its density in mpmath, with
the parameters in the order of the package's fields; everything else about it (Λ, Λ⁻¹, slopes, order
statistics) is derived here by root finding, numerical differentiation and quadrature.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np

DIGITS = 40


def _with_digits(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with mp.workdps(DIGITS):
            return function(*args, **kwargs)

    return wrapped


def _exact(p: Sequence) -> list:
    return [v if isinstance(v, mp.mpf) else mp.mpf(float(v)) for v in p]


def _root(f: Callable, low, high, tolerance):
    """Where an increasing f is 0: the last two points' secant, or the middle where it leaves the bracket."""
    last, here = low, high
    f_last, f_here = f(low), f(high)
    while abs(f_here) > tolerance and high - low > tolerance:
        step = f_here - f_last
        secant = here - f_here * (here - last) / step if step else low
        last, f_last = here, f_here
        here = secant if low < secant < high else (low + high) / 2
        f_here = f(here)
        low, high = (low, here) if f_here > 0 else (here, high)
    return here


# Laws: `p` is the list of parameters.


@dataclass(frozen=True)
class LawOracle:
    """P(T > t) and the density between `infimum` and `end`; `typical` is a scale of T - infimum."""

    survival: Callable[[Sequence, Any], Any]
    density: Callable[[Sequence, Any], Any]
    infimum: Callable[[Sequence], Any]
    mean: Callable[[Sequence], Any]
    typical: Callable[[Sequence], Any]
    end: Callable[[Sequence], Any] = lambda p: mp.inf

    @_with_digits
    def hazard(self, p: Sequence, t):
        """Λ(t), by the logarithm of the survival function."""
        p, t = _exact(p), mp.mpf(t)
        if t <= self.infimum(p):
            return mp.mpf(0)
        if t >= self.end(p):
            return mp.inf
        return -mp.log(self.survival(p, t))

    @_with_digits
    def inverse(self, p: Sequence, a):
        """Λ⁻¹(a), as the root of log Λ(t) - log a in log(t - infimum), or the logit where t ends."""
        p, a = _exact(p), mp.mpf(a)
        start, end = self.infimum(p), self.end(p)
        if a == 0:
            return start

        def time(w):
            return start + (mp.exp(w) if end == mp.inf else (end - start) / (1 + mp.exp(-w)))

        def f(w):
            return mp.log(-mp.log(self.survival(p, time(w))) / a)

        low = high = mp.log(self.typical(p)) if end == mp.inf else mp.mpf(0)
        value, step = f(low), mp.mpf(1) / 2
        if value == 0:
            return time(low)
        if value > 0:
            while value > 0:
                high, low, step = low, low - step, 3 * step
                value = f(low)
        else:
            while value < 0:
                low, high, step = high, high + step, 3 * step
                value = f(high)
        return time(_root(f, low, high, mp.mpf(10) ** -22))

    def hazard_slopes(self, p: Sequence, t) -> list:
        """∂Λ(t)/∂pᵢ for every parameter, and ∂Λ/∂t last, by central differences."""
        with mp.workdps(3 * DIGITS // 2):
            point = [*_exact(p), mp.mpf(t)]

            def ends(q):
                return self.infimum(q[:-1]), self.end(q[:-1])

            start, end = ends(point)
            distance = min(point[-1] - start, end - point[-1])
            slopes = []
            for i, v in enumerate(point):

                def moved(h, i=i):
                    return [*point[:i], point[i] + h, *point[i + 1 :]]

                h = (abs(v) or mp.mpf(1)) * mp.mpf(10) ** -10
                if i == len(p) or ends(moved(h)) != (start, end):
                    # Λ is smooth on a scale set by the distance to the ends of the support.
                    h = min(distance * mp.mpf(10) ** -10, h)
                low, high = (-mp.log(self.survival(q[:-1], q[-1])) for q in (moved(-h), moved(h)))
                slopes.append((high - low) / (2 * h))
            return slopes

    def inverse_slopes(self, p: Sequence, t) -> list:
        """∂Λ⁻¹(a)/∂pᵢ for every parameter, and ∂Λ⁻¹/∂a last, at a = Λ(t), as an implicit function."""
        *drift, slope = self.hazard_slopes(p, t)
        return [*(-d / slope for d in drift), 1 / slope]

    def expected_order_statistic(
        self, p: Sequence, num_workers: int, k: int, function: Callable = lambda t: t
    ):
        """E g(T_(k)) of `num_workers`, by quadrature in log(t - infimum) against its density."""
        with mp.workdps(22):
            p = _exact(p)
            start, end = self.infimum(p), self.end(p)
            log_constant = mp.log(k) + mp.log(mp.binomial(num_workers, k))

            def integrand(w):
                excess = mp.exp(w)
                t = start + excess
                s = self.survival(p, t) if t < end else mp.mpf(0)
                if s <= 0 or s >= 1:
                    return mp.mpf(0)
                log_order = log_constant + (k - 1) * mp.log1p(-s) + (num_workers - k) * mp.log(s)
                return mp.exp(log_order) * self.density(p, t) * excess * function(t)

            # Rényi: the mean and the deviation of Λ(T_(k)) say where the density lives.
            ranks = range(num_workers - k + 1, num_workers + 1)
            centre = mp.fsum(mp.mpf(1) / j for j in ranks)
            deviation = mp.sqrt(mp.fsum(mp.mpf(1) / j**2 for j in ranks))
            hazards = [centre + s * deviation for s in (-6, -3, -1, 0, 1, 3, 6, 12, 25)]
            hazards = [centre * mp.mpf(10) ** -e for e in (12, 6, 3, 1)] + [
                a for a in hazards if a > centre / 9
            ]
            breaks = [mp.log(self.inverse(p, a) - start) for a in hazards]
            last = mp.log(end - start) if mp.isfinite(end) else breaks[-1] + 60
            return mp.quad(integrand, [breaks[0] - 60, *(b for b in breaks if b < last), last])


def _lognormal_z(p, t):
    return (mp.log(t - p[2]) - p[0]) / p[1]


SHIFTED_EXPONENTIAL = LawOracle(
    survival=lambda p, t: mp.exp(-p[0] * (t - p[1])),
    density=lambda p, t: p[0] * mp.exp(-p[0] * (t - p[1])),
    infimum=lambda p: p[1],
    mean=lambda p: p[1] + 1 / p[0],
    typical=lambda p: 1 / p[0],
)
WEIBULL = LawOracle(
    survival=lambda p, t: mp.exp(-(((t - p[2]) / p[0]) ** p[1])),
    density=lambda p, t: (
        p[1] / p[0] * ((t - p[2]) / p[0]) ** (p[1] - 1) * mp.exp(-(((t - p[2]) / p[0]) ** p[1]))
    ),
    infimum=lambda p: p[2],
    mean=lambda p: p[2] + p[0] * mp.gamma(1 + 1 / p[1]),
    typical=lambda p: p[0],
)
PARETO = LawOracle(
    survival=lambda p, t: (p[0] / t) ** p[1],
    density=lambda p, t: p[1] / t * (p[0] / t) ** p[1],
    infimum=lambda p: p[0],
    mean=lambda p: p[0] * p[1] / (p[1] - 1) if p[1] > 1 else mp.inf,
    typical=lambda p: p[0],
)
UNIFORM = LawOracle(
    survival=lambda p, t: (p[1] - t) / (p[1] - p[0]),
    density=lambda p, t: 1 / (p[1] - p[0]),
    infimum=lambda p: p[0],
    mean=lambda p: (p[0] + p[1]) / 2,
    typical=lambda p: (p[1] - p[0]) / 2,
    end=lambda p: p[1],
)
LOGNORMAL = LawOracle(
    survival=lambda p, t: mp.erfc(_lognormal_z(p, t) / mp.sqrt(2)) / 2,
    density=lambda p, t: mp.npdf(_lognormal_z(p, t)) / (p[1] * (t - p[2])),
    infimum=lambda p: p[2],
    mean=lambda p: p[2] + mp.exp(p[0] + p[1] ** 2 / 2),
    typical=lambda p: mp.exp(p[0]),
)
GAMMA = LawOracle(
    survival=lambda p, t: mp.gammainc(p[0], p[1] * (t - p[2]), regularized=True),
    density=lambda p, t: (
        p[1] * (p[1] * (t - p[2])) ** (p[0] - 1) * mp.exp(-p[1] * (t - p[2])) / mp.gamma(p[0])
    ),
    infimum=lambda p: p[2],
    mean=lambda p: p[2] + p[0] / p[1],
    typical=lambda p: p[0] / p[1],
)
# P(T > t) = 1 / (1 + ((t - shift) / scale)^shape), with parameters (scale, shape, shift).
LOG_LOGISTIC = LawOracle(
    survival=lambda p, t: 1 / (1 + ((t - p[2]) / p[0]) ** p[1]),
    density=lambda p, t: (
        p[1] / p[0] * ((t - p[2]) / p[0]) ** (p[1] - 1) / (1 + ((t - p[2]) / p[0]) ** p[1]) ** 2
    ),
    infimum=lambda p: p[2],
    mean=lambda p: p[2] + p[0] * (mp.pi / p[1]) / mp.sin(mp.pi / p[1]) if p[1] > 1 else mp.inf,
    typical=lambda p: p[0],
)


# Order statistics


def exponential_order_statistic(rate: float, shift: float, num_workers: int, k: int) -> float:
    """Eq. (11) of the paper: E T_(k) = shift + (H_N - H_{N-k}) / rate, summed as fractions."""
    harmonic = sum(Fraction(1, j) for j in range(num_workers - k + 1, num_workers + 1))
    return float(Fraction(shift) + harmonic / Fraction(rate))


def exponential_inverse_moment(rate: float, shift: float, num_workers: int, k: int) -> float:
    r"""Eq. (8) of the paper: E 1/T_(k) of shifted exponentials, shift > 0.

    The density of T_(k) is k C(N,k) μ (1-e^{-μ(t-t0)})^{k-1} e^{-(N-k+1)μ(t-t0)}. Expand the power and use
    ∫_{t0}^∞ e^{-c(t-t0)} dt / t = e^{c t0} E₁(c t0), at more digits than the alternating sum loses.
    """
    with mp.workdps(30 + num_workers):
        rate, shift = mp.mpf(rate), mp.mpf(shift)
        terms = []
        for i in range(k):
            c = rate * (num_workers - k + 1 + i)
            terms.append((-1) ** i * mp.binomial(k - 1, i) * mp.exp(c * shift) * mp.e1(c * shift))
        return float(k * mp.binomial(num_workers, k) * rate * mp.fsum(terms))


def atomic_order_statistic(
    atoms: Sequence[float], shares: Sequence[Fraction], num_workers: int, k: int, function: Callable
) -> float:
    """E g(T_(k)) of a law with ascending atoms, from P(T_(k) ≤ t) = P(Bin(N, F(t)) ≥ k) as fractions."""
    total, below, reached = 0.0, Fraction(0), Fraction(0)
    for atom, share in zip(atoms, shares, strict=True):
        below += share
        now = sum(
            (
                math.comb(num_workers, j) * below**j * (1 - below) ** (num_workers - j)
                for j in range(k, num_workers + 1)
            ),
            start=Fraction(0),
        )
        if now > reached:
            total += float(now - reached) * function(atom)
        reached = now
    return total


def crossing_probability(boundary: Sequence[Fraction]) -> Fraction:
    """P(for some k fewer than k of N uniform variables are ≤ boundary[k-1]), for an ascending boundary.

    Counts of workers are carried from boundary to boundary; exact, and polynomial in the boundary.
    """
    size = len(boundary)
    alive = {0: Fraction(1)}
    before = Fraction(0)
    for k, b in enumerate(boundary, start=1):
        after: dict[int, Fraction] = {}
        for count, weight in alive.items():
            for more in range(size - count + 1):
                if count + more >= k:
                    ways = math.comb(size - count, more) * (b - before) ** more
                    after[count + more] = after.get(count + more, Fraction(0)) + weight * ways
        alive, before = after, b
    return 1 - alive.get(size, Fraction(0))


def crossing_probability_by_cells(boundary: Sequence[Fraction]) -> Fraction:
    """The same by going through every assignment of workers to the cells between the boundaries."""
    edges = [Fraction(0), *boundary, Fraction(1)]
    crossed = Fraction(0)
    for cells in itertools.product(range(len(boundary) + 1), repeat=len(boundary)):
        if any(sum(c < k for c in cells) < k for k in range(1, len(boundary) + 1)):
            crossed += math.prod(edges[c + 1] - edges[c] for c in cells)
    return crossed


def crossing_probability_float(boundary: np.ndarray) -> float:
    """The same with positive terms in floating point, for many workers: binomial weights of the counts."""
    size = boundary.size
    log_factorial = np.cumsum(np.log(np.arange(1, size + 1)))
    log_factorial = np.concatenate([[0.0], log_factorial])
    # Poisson weights conditioned on their total at the end are binomial ones.
    alive = np.zeros(size + 1)
    alive[0] = 1.0
    before = 0.0
    for k, b in enumerate(boundary, start=1):
        gap = size * (b - before)
        m = np.arange(size + 1)
        with np.errstate(divide="ignore"):
            step = np.exp(np.where(m > 0, m * np.log(gap), 0) - gap - log_factorial) if gap > 0 else m == 0
        alive = np.convolve(alive, step)[: size + 1]
        alive[:k] = 0.0
        before = b
    rest = size * (1 - before)
    last = alive[size] * math.exp(-rest)
    return 1 - last / math.exp(size * math.log(size) - size - log_factorial[size])


# Partitions


def project_by_active_sets(values: np.ndarray, total: float) -> np.ndarray:
    """The nearest x ≥ 0 with Σ x = total: the best feasible one over every set of positive entries."""
    best, nearest = np.full(values.shape, np.nan), np.inf
    for size in range(1, values.size + 1):
        for chosen in itertools.combinations(range(values.size), size):
            x = np.zeros_like(values)
            index = list(chosen)
            x[index] = values[index] - (values[index].sum() - total) / size
            distance = float(((x - values) ** 2).sum())
            if (x >= 0).all() and distance < nearest:
                best, nearest = x, distance
    return best
