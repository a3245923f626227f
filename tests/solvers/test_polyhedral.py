"""The linear program of whole steps against SciPy's."""

import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from tests.oracles.programme import best_shares, level_times


@pytest.mark.parametrize(
    ("steps", "size"),
    [pytest.param(1, 4, marks=pytest.mark.smoke), pytest.param(40, 24, marks=pytest.mark.slow)],
)
def test_the_optimum_of_rows_is_scipys(x64, steps, size):
    times = np.random.default_rng(steps).lognormal(0.0, 0.8, (steps, size)) + 0.2
    problem = bcgc.Problem(bcgc.EmpiricalRows(jnp.asarray(times)), size, 1000, size)
    solution = bcgc.solve(problem)
    exact = 1000 * best_shares(level_times(times))[0]
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.lower_bound) <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-9) <= float(solution.expected_runtime) <= exact * (1 + 2e-6)


@pytest.mark.slow
def test_the_optimum_of_many_rows_is_certified(x64):
    times = np.random.default_rng(5).gamma(4.0, 0.25, (30, 256)) + 1
    solution = bcgc.solve(bcgc.Problem(bcgc.EmpiricalRows(jnp.asarray(times)), 256, 1_000_000))
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.relative_gap) < 2e-6
