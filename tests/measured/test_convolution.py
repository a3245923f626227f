"""The density and the survival of S + T y against SciPy's quadrature of its own densities."""

import itertools

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from bcgc_jax.measured.convolution import FAMILIES, LEVELS, Part, log_density_of_sum, log_survival_of_sum

# Of each family one that is wide and one that is narrow: parameters, infimum, and the same in SciPy.
LAWS = [
    ("exponential", (0.5, 0.0), 0.0, stats.expon(0, 2.0)),
    ("weibull", (2.0, 1.7), 0.5, stats.weibull_min(1.7, 0.5, 2.0)),
    ("weibull", (0.1, 0.8), 0.0, stats.weibull_min(0.8, 0.0, 0.1)),
    ("gamma", (2.5, 1.25), 0.3, stats.gamma(2.5, 0.3, 0.8)),
    ("gamma", (90.0, 60.0), 0.0, stats.gamma(90.0, 0.0, 1 / 60)),
    ("lognormal", (0.4, 0.6), 0.0, stats.lognorm(0.6, 0.0, np.exp(0.4))),
    ("pareto", (0.0, 2.5), 1.2, stats.pareto(2.5, 0.0, 1.2)),
]
LOAD = 3.0


def _part(name, parameters, infimum, law):
    quantiles = law.ppf(LEVELS) - infimum
    return Part(np.array(list(FAMILIES).index(name)), np.array(parameters), np.array(infimum), quantiles)


def _by_quadrature(start, cycle, t):
    """f(t) and P(S + 3 T > t), cut where either law has its mass."""
    s, c = start[-1], cycle[-1]
    low, high = start[2], t - LOAD * cycle[2]
    levels = np.array([1e-9, 1e-6, 1e-3, 0.02, 0.2, 0.5, 0.8, 0.98, 0.999])
    cuts = np.concatenate([[low, high], s.ppf(levels), t - LOAD * c.ppf(levels)])
    cuts = np.unique(np.clip(cuts, low, high))

    def whole(f):
        return sum(
            integrate.quad(f, a, b, epsabs=0, epsrel=1e-5, limit=50)[0] for a, b in itertools.pairwise(cuts)
        )

    def both(x):
        value = s.pdf(x) * c.pdf((t - x) / LOAD) / LOAD
        return value if np.isfinite(value) else 0.0  # at the very end of the interval

    density = whole(both)
    return density, s.sf(high) + whole(lambda x: s.pdf(x) * c.sf((t - x) / LOAD))


@jax.jit
def _both(start_up, cycle, load, room):
    return log_density_of_sum(start_up, cycle, load, room), log_survival_of_sum(start_up, cycle, load, room)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning", "ignore:divide by zero")
@pytest.mark.parametrize("first", range(len(LAWS)))
def test_the_sum_of_all_pairs_of_families(first):
    start = LAWS[first]
    with jax.enable_x64(True):
        for cycle in LAWS:
            t = start[-1].ppf([0.2, 0.99]) + LOAD * cycle[-1].ppf([0.3, 0.97])
            room = t - start[2] - LOAD * cycle[2]
            found = _both(_part(*start), _part(*cycle), np.full(2, LOAD), room)
            expected = np.array([_by_quadrature(start, cycle, x) for x in t]).T
            # Worst 4e-4, where both densities are infinite at their infimum.
            np.testing.assert_allclose(np.exp(found), expected, rtol=1e-3)


def test_without_room_there_is_no_density_and_all_is_later():
    part = _part(*LAWS[3])
    with jax.enable_x64(True):
        density, later = _both(part, part, np.full(3, LOAD), np.array([-1.0, 0.0, 1e-9]))
    assert np.asarray(density)[:2].tolist() == [-np.inf, -np.inf]
    np.testing.assert_allclose(later, [0, 0, 0], atol=1e-12)
    assert np.isfinite(density[2])


def test_slopes_are_those_of_differences():
    load, room = np.array([1.0, 2.0, 4.0]), np.array([0.7, 3.0, 9.0])

    def value(numbers):
        start = Part(np.array(1), numbers[:2], numbers[2], np.ones(LEVELS.size))
        cycle = Part(np.array(2), numbers[3:5], numbers[5], np.ones(LEVELS.size))
        return log_density_of_sum(start, cycle, load, room - numbers[2] - load * numbers[5]).sum()

    with jax.enable_x64(True):
        numbers = np.array([2.0, 1.7, 0.05, 2.5, 1.25, 0.02])
        slope = jax.jit(jax.grad(value))(numbers)
        plain = jax.jit(value)
        moves = 1e-5 * np.eye(6)
        expected = [(plain(numbers + m) - plain(numbers - m)) / 2e-5 for m in moves]
    # What the parts of the rule would add if they moved is the error of the integral: worst 5e-6.
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
