"""The linear program of whole steps against SciPy's."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import bcgc_jax as bcgc


def _by_scipy(times: np.ndarray) -> float:
    """The least mean of max_n T_n y_n over the unit simplex, by HiGHS."""
    ordered = -np.sort(-times, axis=1)
    steps, size = ordered.shape
    loads = np.tri(size) * np.arange(1, size + 1)
    rows = (ordered[:, :, None] * loads[None]).reshape(-1, size)
    above = np.repeat(np.eye(steps), size, axis=0)
    found = optimize.linprog(
        np.r_[np.zeros(size), np.full(steps, 1 / steps)],
        A_ub=np.hstack([rows, -above]),
        b_ub=np.zeros(len(rows)),
        A_eq=np.r_[np.ones(size), np.zeros(steps)][None],
        b_eq=[1.0],
        bounds=[(0, None)] * (size + steps),
    )
    return float(found.fun)


@pytest.mark.smoke
@pytest.mark.parametrize(("steps", "size"), [(1, 4), (7, 4), pytest.param(40, 24, marks=pytest.mark.slow)])
def test_the_optimum_of_rows_is_scipys(x64, steps, size):
    times = np.random.default_rng(steps).lognormal(0.0, 0.8, (steps, size)) + 0.2
    problem = bcgc.Problem(bcgc.Rows(jnp.asarray(times)), size, 1000, size)
    solution = bcgc.solve(problem)
    exact = 1000 * _by_scipy(times)
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.lower_bound) <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-9) <= float(solution.expected_runtime) <= exact * (1 + 2e-6)


@pytest.mark.slow
def test_the_optimum_of_many_rows_is_certified(x64):
    times = np.random.default_rng(5).gamma(4.0, 0.25, (30, 256)) + 1
    solution = bcgc.solve(bcgc.Problem(bcgc.Rows(jnp.asarray(times)), 256, 1_000_000))
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.relative_gap) < 2e-6
