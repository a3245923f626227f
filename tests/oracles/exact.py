"""Exact answers that share no code with the package: fractions, mpmath, brute force."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import mpmath as mp
import numpy as np


def exponential_order_statistic(
    rate: float, shift: float, num_workers: int, k: int
) -> float:
    """Eq. (11) of the paper: E T_(k) = shift + (H_N - H_{N-k}) / rate, by fractions."""
    harmonic = sum(Fraction(1, j) for j in range(num_workers - k + 1, num_workers + 1))
    return float(Fraction(shift) + harmonic / Fraction(rate))


def exponential_inverse_moment(
    rate: float, shift: float, num_workers: int, k: int
) -> float:
    r"""Eq. (8) of the paper: E 1/T_(k) of shifted exponentials, shift > 0.

    The density of T_(k) is k C(N,k) μ (1-e^{-μ(t-t0)})^{k-1} e^{-(N-k+1)μ(t-t0)}.
    Expand the power and use ∫_{t0}^∞ e^{-c(t-t0)} dt / t = e^{c t0} E₁(c t0), at more
    digits than the alternating sum loses.
    """
    with mp.workdps(30 + num_workers):
        rate = mp.mpf(rate)
        shift = mp.mpf(shift)
        exponents = [rate * (num_workers - k + 1 + i) * shift for i in range(k)]
        terms = [
            (-1) ** i * mp.binomial(k - 1, i) * mp.exp(c) * mp.e1(c)
            for i, c in enumerate(exponents)
        ]
        return float(k * mp.binomial(num_workers, k) * rate * mp.fsum(terms))


def power_moment(shape: float, num_workers: int, k: int, power: float) -> float:
    """E exp(power A_(k) / shape), A exponential: a ratio of gamma functions."""
    with mp.workdps(30):
        r = mp.mpf(power) / mp.mpf(shape)
        up = num_workers - k + 1
        if up <= r:
            return math.inf
        return float(mp.gammaprod([num_workers + 1, up - r], [up, num_workers + 1 - r]))


def log_logistic_moment(scale: float, shape: float, num_workers: int, k: int) -> float:
    """E T_(k) for P(T > t) = 1 / (1 + (t / scale)^shape).

    U_(k) / (1 - U_(k)) is a beta prime variable.
    """
    with mp.workdps(30):
        r = 1 / mp.mpf(shape)
        up = num_workers - k + 1
        if up <= r:
            return math.inf
        return float(mp.mpf(scale) * mp.gammaprod([k + r, up - r], [k, up]))


def atomic_order_statistic(
    atoms: Sequence[tuple[float, Fraction]],
    num_workers: int,
    k: int,
    function: Callable,
) -> float:
    """E g(T_(k)) of a law with ascending atoms, in fractions.

    P(T_(k) ≤ t) = P(Bin(N, F(t)) ≥ k).
    """
    total = 0.0
    below = Fraction(0)
    reached = Fraction(0)
    for atom, share in atoms:
        below += share
        ranks = range(k, num_workers + 1)
        now = sum(
            math.comb(num_workers, j) * below**j * (1 - below) ** (num_workers - j)
            for j in ranks
        )
        if now > reached:
            total += float(now - reached) * function(atom)
        reached = Fraction(now)
    return total


def crossing_probability(boundary: Sequence[Fraction]) -> Fraction:
    """P(for some k fewer than k of N uniform variables are ≤ boundary[k-1]).

    The boundary ascends. Counts of workers are carried from boundary to boundary;
    exact, and polynomial in the boundary.
    """
    size = len(boundary)
    alive = {0: Fraction(1)}
    before = Fraction(0)
    for k, b in enumerate(boundary, start=1):
        after: dict[int, Fraction] = {}
        for count, weight in alive.items():
            for arrivals in range(size - count + 1):
                if count + arrivals >= k:
                    ways = math.comb(size - count, arrivals) * (b - before) ** arrivals
                    after[count + arrivals] = (
                        after.get(count + arrivals, 0) + weight * ways
                    )
        alive, before = after, b
    return 1 - alive.get(size, Fraction(0))


def project_by_active_sets(values: np.ndarray, total: float) -> np.ndarray:
    """The nearest x ≥ 0 with Σ x = total: the best over all positive sets."""
    best = np.full(values.shape, np.nan)
    nearest = np.inf
    for size in range(1, values.size + 1):
        for chosen in itertools.combinations(range(values.size), size):
            x = np.zeros_like(values)
            index = list(chosen)
            x[index] = values[index] - (values[index].sum() - total) / size
            distance = float(((x - values) ** 2).sum())
            if (x >= 0).all() and distance < nearest:
                best, nearest = x, distance
    return best
