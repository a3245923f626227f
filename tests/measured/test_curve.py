"""The curve through many measured times, and how far its runtimes are from theirs."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import bcgc_jax as bcgc
from bcgc_jax.measured.curve import hazard_curve
from bcgc_jax.measured.standing_in import stand_in
from tests.problems import expected_max, known

LOAD = np.cumsum(np.array([5.0, 1.5, 0.6, 0.0, 0.9, 0.2, 0.1, 0.3]) * np.arange(1, 9))


def _times(kind: str, size: int = 1600) -> np.ndarray:
    rng = np.random.default_rng(3)
    match kind:
        case "gamma":
            return rng.gamma(2.5, 0.6, size) + 0.8
        case "slow":
            return np.where(rng.random(size) < 0.1, 3.0, 1.0) * rng.lognormal(0.0, 0.1, size)
        case _:
            return np.round(rng.gamma(2.5, 0.6, size) + 0.8, 2)


@pytest.mark.parametrize("kind", ["gamma", "slow", "coarse clock"])
def test_hazard_and_inverse_are_one_another_and_ascend(x64, kind):
    law = hazard_curve(_times(kind), 30)
    a = np.r_[0.0, np.geomspace(1e-9, 200, 500)]
    t = np.asarray(law.inverse_cumulative_hazard(a))
    assert np.all(np.diff(t) > 0)
    assert t[0] == float(law.infimum())
    np.testing.assert_allclose(law.cumulative_hazard(t), a, rtol=1e-9)  # worst 2e-12
    mean = integrate.trapezoid(t * np.exp(-a), a)
    assert float(law.mean()) == pytest.approx(mean, rel=1e-3)  # of the trapezoids; worst 2e-4


@pytest.mark.parametrize("kind", ["gamma", "coarse clock"])
def test_the_curve_is_near_its_times(x64, kind):
    times = _times(kind)
    law = hazard_curve(times, 30)
    assert float(law.mean()) == pytest.approx(times.mean(), rel=1e-3)  # worst 1e-4
    grid = np.quantile(times, np.linspace(0.02, 0.98, 25))
    below = np.searchsorted(np.sort(times), grid, side="right") / times.size
    np.testing.assert_allclose(law.cdf(grid), below, atol=0.02)  # worst 0.007


def test_what_makes_no_curve_is_refused_in_words(x64):
    with pytest.raises(ValueError, match="at least 40 times, got 39"):
        hazard_curve(_times("gamma", 39))
    with pytest.raises(ValueError, match="too few different values"):
        hazard_curve(np.repeat([1.0, 2.0, 3.0], 100))


def test_the_difference_is_that_from_the_exact_sum_over_atoms(x64):
    times = _times("slow", 800)
    found = stand_in(hazard_curve(times, 30), times, np.arange(800) // 8, jnp.asarray(LOAD), 8)
    # Each of the atoms in turn, without a rule: draws of all workers at once.
    exact = float(expected_max(bcgc.Empirical(times), jnp.asarray(LOAD), 8).value)
    assert abs(found.measured - exact) < 4 * found.rule_error + 1e-12
    assert found.rule_error < 0.1 * found.standard_error
    assert found.difference < found.uncertainty


def test_the_standard_error_is_that_of_resampled_steps(x64):
    rng = np.random.default_rng(8)
    times = _times("slow", 1600)
    steps = np.arange(1600) // 8
    found = stand_in(hazard_curve(times, 30), times, steps, jnp.asarray(LOAD), 8)
    # By NumPy: the mean of draws from each of 60 samples of whole steps, with common random ranks.
    ranks = rng.random((4000, 8))
    means = []
    for _ in range(60):
        chosen = rng.integers(200, size=200)
        sample = np.sort(times.reshape(200, 8)[chosen].ravel())
        draws = np.sort(sample[(ranks * sample.size).astype(int)], axis=1)[:, ::-1]
        means.append((draws * LOAD).max(axis=1).mean())
    # A standard deviation of 60 has an error of 9 %.
    assert found.standard_error == pytest.approx(np.std(means, ddof=1), rel=0.3)


@pytest.mark.slow
def test_the_optimum_of_many_workers_is_certified_by_a_finer_rule(x64):
    times = np.random.default_rng(5).gamma(4.0, 0.25, 25_600) + 1
    problem = bcgc.Problem(hazard_curve(times), 256, 1_000_000)
    solution = bcgc.solve(problem)
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.relative_gap) < 1.1e-7
    # The bound is told by a rule of other nodes, eight times as fine as the first; measured 2e-8.
    fine = bcgc.certificate(problem, known(solution.partition), num_nodes=2048)
    assert float(fine.relative_gap) < 2e-7
