"""The optimum in single precision, and the parts that it is made of, by programs compiled as everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.exact.linear_algebra import solve_positive, solve_unit_upper
from bcgc_jax.plans.marks import marks
from bcgc_jax.solvers.newton import Workers, derivatives, sums_over_nodes
from tests.oracles.laws import CASES
from tests.oracles.programme import best_of_two_speeds
from tests.problems import expected_max, known, padded, slow

LAW = bcgc.ShiftedExponential(1e-3, 50.0)


@pytest.mark.slow
def test_float32_reaches_the_float64_optimum():
    with jax.enable_x64(True):
        exact = float(bcgc.solve(padded(LAW, 12, 2_000, 50)).expected_runtime)
    solution = bcgc.solve(padded(LAW, 12, 2_000, 50))
    assert known(solution.partition).dtype == jnp.float32
    assert float(solution.expected_runtime) == pytest.approx(exact, rel=1e-5)  # measured 2e-7
    assert 0 < float(solution.relative_gap) < 1e-4  # measured 1.2e-5: the allowance for rounding


@pytest.mark.parametrize("name", ["pareto_12", *slow("uniform")])
def test_slopes_and_hessian_are_differences_of_the_exact_expectation(x64, name):
    law, workers = CASES[name].law(), 6

    @jax.jit
    def expansion(load, refine):
        given = Workers(law, marks(law, load, workers), workers)
        start, sums = sums_over_nodes(given, load, refine)
        value, error, (slope,), hessian = derivatives(given, jnp.eye(workers), load, start, sums)
        exact, gradient = jax.value_and_grad(lambda y: expected_max(law, y, workers).value)(load)
        return value, error, slope, hessian, exact, gradient

    load = np.cumsum(np.array([3.0, 0.4, 0.7, 0.2, 1.1, 0.6]) * np.arange(1, 7))
    value, error, slope, hessian, exact, gradient = expansion(load, 4)
    np.testing.assert_allclose(value, exact, rtol=1e-11)
    np.testing.assert_allclose(slope, gradient, rtol=1e-9)
    if name == "pareto_12":  # nodes that nest: a coarse rule whose error shows is told by itself
        value, error, *_ = expansion(load, 1)
        assert 1e-10 * exact < abs(value - exact) < error < 1e-5 * exact  # measured 4e-10 and 1e-6
    for k, move in enumerate(np.diag(1e-4 * load)):
        above, below = (expansion(load + m, 4)[-1] for m in (move, -move))
        # Of the central difference; worst measured 2e-6 of the largest entry.
        atol = 1e-5 * np.abs(hessian).max()
        np.testing.assert_allclose(hessian[k], (above - below) / (2 * move[k]), atol=atol)


@pytest.mark.slow
def test_single_precision_stays_inside_where_rounding_spoils_the_path():
    problem = bcgc.Problem(bcgc.TwoSpeed(0.7, 3.2, 0.15), 50, 20_000)
    solution = bcgc.solve(problem)
    assert float(known(solution.partition).min()) >= 0
    exact = 20_000 / 50 * best_of_two_speeds(0.7, 3.2, 0.15, 50)
    assert solution.lower_bound <= exact <= solution.expected_runtime * (1 + 1e-5)
    assert solution.expected_runtime < 1.001 * exact


def test_the_elimination_solves_a_positive_definite_system(x64):
    rng = np.random.default_rng(2)
    for size in (9, 70):
        factor = rng.standard_normal((size, size))
        matrix, rhs = factor @ factor.T + 0.1 * np.eye(size), rng.standard_normal((size, 2))
        found = jax.jit(solve_positive)(matrix, rhs)
        np.testing.assert_allclose(found, np.linalg.solve(matrix, rhs), rtol=1e-7)


@pytest.mark.parametrize(("batched", "size"), [(False, 33), (False, 170), (True, 33), (True, 170)])
def test_the_forward_substitution_solves_the_triangular_system(x64, batched, size):
    rng = np.random.default_rng(4)
    strict = np.triu(rng.random((3, size, size)) / size, 1)
    rows = np.concatenate([np.triu(rng.standard_normal((3, size, size)), 1), np.ones((3, 1, size))], axis=1)
    to_front = [np.moveaxis(a, 0, -1) for a in (rows, strict)]
    found = np.moveaxis(np.asarray(jax.jit(solve_unit_upper, static_argnums=2)(*to_front, batched)), -1, 0)
    np.testing.assert_allclose(found @ (np.eye(size) + strict), rows, atol=1e-13)
