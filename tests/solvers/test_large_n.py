"""The optimum of many workers against dense Newton steps, and another rule of integration."""

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers import large_n
from bcgc_jax.solvers.large_n import optimum_of_many
from bcgc_jax.solvers.optimal import optimal_partition
from tests.problems import padded

# Nearly all of it is compiling.
pytestmark = pytest.mark.slow

WORKERS = 401
LAW = bcgc.ShiftedExponential(1e-3, 50.0)


@pytest.fixture(scope="module")
def solved():
    with jax.enable_x64(True):
        problem = bcgc.Problem(LAW, num_workers=WORKERS, num_coordinates=20_000, num_samples=50.0)
        yield problem, bcgc.solve(problem, bcgc.Optimal(tolerance=1e-5))


def test_the_certificate_is_met_and_that_of_the_partition(solved):
    problem, solution = solved
    assert solution.status == bcgc.Status.CONVERGED
    assert 0 <= solution.relative_gap <= 1e-5
    known = bcgc.certificate(problem, solution.partition)
    # By another rule of integration; worst measured 1e-9 and 2e-7.
    np.testing.assert_allclose(known.expected_runtime, solution.expected_runtime, rtol=1e-8)
    np.testing.assert_allclose(known.lower_bound, solution.lower_bound, rtol=2e-6)


def test_dense_newton_steps_find_the_same(solved):
    problem, solution = solved
    dense = optimal_partition(problem, tolerance=1e-7)
    assert dense.lower_bound <= solution.expected_runtime * (1 + 1e-9)
    assert solution.lower_bound <= dense.value * (1 + 1e-9)
    np.testing.assert_allclose(solution.expected_runtime, dense.value, rtol=1e-7)


def test_a_law_whose_density_is_0_where_it_begins_needs_no_dense_steps(solved):
    _, other = solved
    with jax.enable_x64(True):
        problem = bcgc.Problem(bcgc.Weibull(1.0, 2.0), num_workers=WORKERS, num_coordinates=20_000)
        found = optimum_of_many(problem, tolerance=1e-6, max_steps=100)
        assert found.status == bcgc.Status.CONVERGED
        known = bcgc.certificate(problem, found.partition)
        assert known.relative_gap <= 2e-6  # worst measured 6.7e-7
        # Of the time that a plan made for another law takes.
        assert bcgc.expected_runtime(problem, np.asarray(other.partition)) > found.value


@pytest.mark.usefixtures("x64")
def test_a_known_problem_is_solved_within_a_jit_too(monkeypatch):
    problem = bcgc.Problem(LAW, 3, 20_000)
    value = float(bcgc.solve(padded(LAW, 3)).expected_runtime)
    monkeypatch.setattr(large_n, "MANY", 2)
    assert large_n.is_of_many(problem)
    within = jax.jit(lambda: bcgc.solve(problem).expected_runtime)()
    np.testing.assert_allclose(within, value, rtol=1e-9)
