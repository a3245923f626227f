"""The hazards of the normal and the gamma law far beyond where the laws are tested, against mpmath."""

import jax
import mpmath as mp
import numpy as np
import pytest

from bcgc_jax.distributions import special_functions

SHAPES = [0.02, 0.11, 0.6, 1.0, 3.3, 9.9, 47.0, 500.0]
# Of the shape: the middle and both of its sides, then absolute: the far tails.
FACTORS = [0.05, 0.4, 0.77, 0.97, 1.0, 1.04, 1.3, 2.9]
TIMES = [1e-290, 1e-35, 1e-9, 0.099, 0.11, 4.0, 80.0, 1000.0]


def exact_gamma_hazard(shape: float, x: float) -> mp.mpf:
    with mp.workdps(40):
        if x < shape:
            return -mp.log1p(-mp.gammainc(shape, 0, x, regularized=True))
        return -mp.log(mp.gammainc(shape, x, mp.inf, regularized=True))


def gamma_points(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, list[mp.mpf]]:
    """Shapes, times and exact hazards, where all are normal numbers of `dtype`."""
    limit = 1e3 * float(np.finfo(dtype).tiny)
    grid = [(dtype.type(s), dtype.type(x)) for s in SHAPES for x in [s * f for f in FACTORS] + TIMES]
    points = [(s, x, exact_gamma_hazard(float(s), float(x))) for s, x in grid if x > limit]
    shape, x, hazard = zip(*[p for p in points if p[2] > limit], strict=True)
    return np.asarray(shape), np.asarray(x), list(hazard)


def relative(actual: np.ndarray, expected: list[mp.mpf]) -> np.ndarray:
    return np.asarray([abs(float((mp.mpf(float(v)) - e) / e)) for v, e in zip(actual, expected, strict=True)])


def test_gamma_hazard_is_exact_in_both_tails_for_all_shapes(precision):
    shape, x, expected = gamma_points(precision)
    assert len(expected) > 90
    hazard = jax.jit(special_functions.gamma_hazard)(shape, x)
    assert hazard.dtype == precision
    # Worst measured 7e-14, the rounding of log P = -600, and 1.1e-5, of the shape 500.
    rtol = {"float32": 4e-5, "float64": 2e-13}[precision.name]
    assert relative(hazard, expected).max() < rtol


def test_inverse_gamma_hazard_is_exact_in_both_tails_for_all_shapes(precision):
    shape, x, expected = gamma_points(precision)
    a = np.asarray([float(v) for v in expected], precision)
    log_x, slope, _ = jax.jit(special_functions.log_inverse_gamma_hazard)(shape, a)
    log_x, slope = np.asarray(log_x), np.asarray(slope)
    # The rounding of a, times the slope, is no error of the inverse.
    error = np.abs(log_x - np.log(np.float64(x))) / (1 + slope + np.abs(log_x))
    # Worst measured 5e-15, of the shape 0.02 where Q is 1 - P, and 2.7e-6.
    assert error.max() < {"float32": 1e-5, "float64": 1e-14}[precision.name]


@pytest.mark.parametrize("shape", [0.02, 47.0])
def test_log_inverse_gamma_hazard_goes_on_where_the_time_underflows(shape, x64):
    # P ≈ x^shape / Γ(shape + 1): for a shape of 0.02 and a = 1e-20 the time is e^-2300.
    a = np.asarray([1e-280, 1e-120, 1e-20])
    log_x, slope, _ = jax.jit(special_functions.log_inverse_gamma_hazard)(shape, a)
    expected = [(mp.log(v) + mp.loggamma(shape + 1)) / shape for v in a]
    if shape == 47.0:  # the next terms of the series are not nothing
        expected = [
            mp.findroot(lambda u, v=v: mp.log(exact_gamma_hazard(47.0, mp.exp(u)) / v), -7.0) for v in a
        ]
    np.testing.assert_allclose(log_x, np.asarray(expected, float), rtol=1e-14)
    if shape < 1:
        np.testing.assert_allclose(slope, 1 / shape, rtol=5e-13)  # worst measured 1.7e-13


def test_normal_hazard_and_its_inverse_are_exact_in_both_tails(precision):
    low, high = {"float32": (-12.0, 12.5), "float64": (-36.0, 300.0)}[precision.name]
    z = np.asarray([low, -5.1, -1.7, -0.4, -1e-3, 0.0, 1e-3, 0.4, 1.7, 5.1, 11.0, high], precision)
    with mp.workdps(60):
        at = [mp.mpf(float(v)) for v in z]
        expected = [-mp.log(mp.ncdf(-v)) if v > 0 else -mp.log1p(-mp.ncdf(v)) for v in at]
        rate = [mp.npdf(v) / mp.ncdf(-v) for v in at]
    hazard, slope = jax.jit(jax.vmap(jax.value_and_grad(special_functions.normal_hazard)))(z)
    # Worst measured 4.5e-14, the rounding of log P = -650, and 2.0e-6.
    rtol = {"float32": 6e-6, "float64": 1.5e-13}[precision.name]
    assert relative(hazard, expected).max() < rtol
    assert relative(slope, rate).max() < rtol
    a = np.asarray([float(v) for v in expected], precision)
    back = jax.jit(special_functions.inverse_normal_hazard)(a)
    np.testing.assert_allclose(back, z, rtol=rtol, atol=rtol)


def test_rule_of_gauss_and_legendre_is_exact_near_zero():
    for order in (14, 30, 60):
        nodes, weights = special_functions.legendre(order)
        for power in (0, 1, 7, 2 * order - 1):
            np.testing.assert_allclose(weights @ nodes**power, 1 / (power + 1), rtol=4e-15)
        # NumPy's own is off by 1e-14 to 1e-13 where the integrand decays.
        np.testing.assert_allclose(weights @ np.exp(-10 * nodes), -np.expm1(-10) / 10, rtol=4e-15)
