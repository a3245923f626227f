"""The table of laws against itself: NumPy, SciPy and mpmath must say the same, or neither is a reference."""

import mpmath as mp
import numpy as np
import pytest
from scipy import stats

from tests.oracles import runtimes
from tests.oracles.laws import CASES, CONTINUOUS, LOG_LOGISTIC

EVERY = {name: CASES[name] for name in CONTINUOUS} | {"log_logistic": LOG_LOGISTIC.at(2.3, 2.4, 0.9)}


@pytest.mark.parametrize("name", EVERY)
def test_scipy_and_mpmath_agree(name):
    case = EVERY[name]
    for u in (1e-3, 0.2, 0.5, 0.9, 0.999):
        t = float(case.frozen.ppf(u))
        np.testing.assert_allclose(float(case.survival(t)), case.frozen.sf(t), rtol=1e-12)
        np.testing.assert_allclose(1 - float(case.survival(t)), case.frozen.cdf(t), rtol=1e-12)
        np.testing.assert_allclose(
            float(case.family.density(case.exact, mp.mpf(t))), case.frozen.pdf(t), rtol=1e-12
        )
        np.testing.assert_allclose(float(case.inverse(case.hazard(t))), t, rtol=1e-12)
        np.testing.assert_allclose(case.frozen.isf(case.frozen.sf(t)), t, rtol=1e-12)
    assert case.infimum == float(case.family.infimum(case.exact))
    # SciPy integrates the mean of a law that it does not have; worst measured 9e-12.
    np.testing.assert_allclose(float(case.family.mean(case.exact)), case.frozen.mean(), rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "from_hazard"])
def test_draws_of_numpy_follow_the_law_of_scipy(name):
    draws = CASES[name].draw(np.random.default_rng(1), 20_000)
    assert stats.kstest(draws, CASES[name].frozen.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["weibull_07", "pareto_3", "uniform"])
def test_both_quadratures_of_order_statistics_agree(name):
    for function in (lambda t: t, lambda t: 1 / t):
        exact = float(CASES[name].expected_order_statistic(6, 2, function))
        found = runtimes.expected_order_statistic(CASES[name], 6, 2, function)
        np.testing.assert_allclose(found, exact, rtol=1e-12)
