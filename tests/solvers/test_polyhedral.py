"""The linear program of whole steps against SciPy's."""

import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from tests.oracles.programme import best_shares, level_times


@pytest.mark.slow
def test_the_optimum_of_rows_is_scipys(x64):
    times = np.random.default_rng(40).lognormal(0.0, 0.8, (40, 24)) + 0.2
    solution = bcgc.solve(bcgc.Problem(bcgc.EmpiricalRows(jnp.asarray(times)), 24, 1000, 24))
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
