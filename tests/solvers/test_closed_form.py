"""The closed forms of Theorems 2 and 3."""

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.closed_form import frequency_partition, partition_for_times, time_partition
from tests.oracles.laws import WEIBULL
from tests.oracles.programme import best_shares, level_times
from tests.oracles.runtimes import expected_order_statistic
from tests.problems import SIZE, padded


def _closed_form(times: list[float], total: float) -> np.ndarray:
    """Theorem 2 as printed, for ascending times t_1 … t_N."""
    n = len(times)
    x = [1 / times[-1]] + [(1 / times[n - i - 1] - 1 / times[n - i]) / (i + 1) for i in range(1, n)]
    return np.array(x) * total / sum(x)


def test_the_partition_for_given_times_solves_the_linear_programme(x64):
    times = np.array([9.0, 4.5, 4.0, 1.5, 0.7])  # slowest first
    problem = bcgc.Problem(bcgc.Uniform(0.5, 10.0), 5, 120, 3)
    found = np.asarray(jax.jit(partition_for_times)(problem, times))
    finish = level_times(times[None])
    value, shares = best_shares(finish)
    assert np.max(finish[0] @ found) == pytest.approx(120 * value, rel=1e-12)
    np.testing.assert_allclose(found, 120 * shares, rtol=1e-9)


def test_both_closed_forms_agree_with_independent_quadrature(x64):
    case = WEIBULL.at(2.0, 1.7, 0.3)
    problem = padded(case.law(), 7)
    times = [expected_order_statistic(case, 7, k) for k in range(1, 8)]
    rates = [1 / expected_order_statistic(case, 7, k, lambda t: 1 / t) for k in range(1, 8)]
    np.testing.assert_allclose(time_partition(problem)[:7], _closed_form(times, 20_000), rtol=1e-7)
    np.testing.assert_allclose(frequency_partition(problem)[:7], _closed_form(rates, 20_000), rtol=1e-7)


def test_a_time_of_zero_puts_everything_at_the_highest_level(x64):
    # E[1/T_(1)] of an exponential diverges.
    problem = padded(bcgc.ShiftedExponential(0.8), 4, 30)
    assert frequency_partition(problem).tolist() == [0, 0, 0, 30] + [0] * (SIZE - 4)


def test_an_infinite_time_leaves_its_level_empty(x64):
    # E T_(N) of a Pareto law of shape 0.8 is infinite, E T_(N-1) is not.
    found = np.asarray(time_partition(bcgc.Problem(bcgc.Pareto(1.3, 0.8), 5, 30)))
    assert found[0] == 0
    assert found[1] > 0
    assert found.sum() == pytest.approx(30)


def test_one_worker_gets_everything_uncoded():
    problem = bcgc.Problem(bcgc.Uniform(0.5, 1.5), 1, 12)
    assert time_partition(problem).tolist() == [12]
    assert frequency_partition(problem).tolist() == [12]
