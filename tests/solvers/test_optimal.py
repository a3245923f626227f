"""The certified optimum, against another optimiser on another evaluation, and its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import bcgc_jax as bcgc
from bcgc_jax.solvers.optimal import solve_positive

LAWS = {
    "paper": bcgc.ShiftedExponential(1e-3, 50.0),
    "weibull": bcgc.Weibull(2.0, 3.0),
    "pareto": bcgc.Pareto(1.5, 1.2),
    "lognormal, nearly deterministic": bcgc.Lognormal(0.3, 0.1, 1.2),
    "uniform": bcgc.Uniform(1.1, 2.3),
}


def _sample_average_optimum(rng: np.random.Generator, times: np.ndarray) -> tuple[float, np.ndarray]:
    """min over the simplex of mean max_n T_(N-n) y_n for given draws, as a linear programme (HiGHS)."""
    draws, n = times.shape
    loads = np.tril(np.ones((n, n))) * np.arange(1, n + 1)
    rows = (times[:, :, None] * loads[None]).reshape(draws * n, n)
    bound = np.repeat(-np.eye(draws), n, axis=0)
    result = optimize.linprog(
        np.concatenate([np.zeros(n), np.full(draws, 1 / draws)]),
        A_ub=np.concatenate([rows, bound], axis=1),
        b_ub=np.zeros(draws * n),
        A_eq=np.concatenate([np.ones(n), np.zeros(draws)])[None],
        b_eq=[1.0],
    )
    return result.fun, result.x[:n]


@pytest.mark.parametrize("name", LAWS)
def test_the_gap_is_reached_and_no_random_partition_is_below_the_bound(x64, name):
    problem = bcgc.Problem(LAWS[name], 6, 3_000, 7, 1.3)
    solution = bcgc.solve(problem, "optimal")
    assert int(solution.status) == bcgc.Status.CONVERGED
    assert float(solution.relative_gap) < 1e-6  # worst measured 8e-8
    assert int(solution.num_steps) < 30
    rng = np.random.default_rng(5)
    shares = np.concatenate([rng.dirichlet(np.full(6, c), 200) for c in (0.1, 1.0, 10.0)])
    near = np.abs(np.asarray(solution.partition) * (1 + 0.02 * rng.standard_normal((200, 6))))
    points = np.concatenate([3_000 * shares, 3_000 * near / near.sum(1, keepdims=True), 3_000 * np.eye(6)])
    values = jax.jit(jax.vmap(bcgc.expected_runtime, (None, 0)))(problem, jnp.asarray(points))
    assert float(values.min()) >= float(solution.lower_bound)
    # 1e-7 for the optimality gap itself.
    assert float(values.min()) >= float(solution.expected_runtime) * (1 - 1e-7)


def test_the_optimum_agrees_with_a_linear_programme_over_numpy_draws(x64):
    rng = np.random.default_rng(11)
    times = -np.sort(-(0.4 + rng.exponential(1.7, (3_000, 5))), axis=1)
    problem = bcgc.Problem(bcgc.ShiftedExponential(1 / 1.7, 0.4), 5, 1, 5)
    value, share = _sample_average_optimum(rng, times)
    solution = bcgc.solve(problem, "optimal")
    runs = (times * np.cumsum(np.asarray(solution.partition) * np.arange(1, 6))).max(axis=1)
    error = runs.std() / np.sqrt(len(runs))
    # The sample optimum is below the true one by its own overfit, and within the sampling error.
    assert abs(value - float(solution.expected_runtime)) < 4 * error
    assert runs.mean() >= value * (1 - 1e-9)
    assert float(bcgc.expected_runtime(problem, share)) >= float(solution.lower_bound)
    # A minimum of the sample costs at most a little more under the law.
    excess = float(bcgc.expected_runtime(problem, share) / solution.expected_runtime) - 1
    assert excess < 0.01  # measured 4e-4


def test_a_padded_problem_and_a_batch_have_the_optimum_of_each_problem(x64):
    def solve(rate, n):
        problem = bcgc.Problem(bcgc.ShiftedExponential(rate, 0.3), n, 500, 3, max_workers=7)
        return bcgc.solve(problem, "optimal")

    rates, sizes = jnp.array([0.7, 2.0, 0.05]), jnp.array([7, 3, 5])
    batch = jax.jit(jax.vmap(solve))(rates, sizes)
    for i, n in enumerate(sizes.tolist()):
        alone = bcgc.solve(bcgc.Problem(bcgc.ShiftedExponential(float(rates[i]), 0.3), n, 500, 3), "optimal")
        np.testing.assert_allclose(batch.expected_runtime[i], alone.expected_runtime, rtol=1e-7)
        np.testing.assert_allclose(batch.partition[i, :n], alone.partition, atol=1e-6)  # worst measured 6e-14
        assert np.all(np.asarray(batch.partition[i, n:]) == 0)
        assert int(batch.rounded[i].sum()) == 500
        assert float(batch.relative_gap[i]) < 1e-6


def test_one_worker_and_one_coordinate_are_solved(x64):
    one = bcgc.solve(bcgc.Problem(bcgc.Weibull(2.0, 1.5, 0.1), 1, 40, 2), "optimal")
    assert one.rounded.tolist() == [40]
    single = bcgc.solve(bcgc.Problem(bcgc.Weibull(2.0, 1.5, 0.1), 4, 1, 2), "optimal")
    assert int(single.rounded.sum()) == 1
    assert float(single.relative_gap) < 1e-6


def test_the_slope_of_the_optimum_in_the_law_is_that_of_central_differences(x64):
    def best(rate):
        problem = bcgc.Problem(bcgc.ShiftedExponential(rate, 0.2), 5, 100, 3)
        return bcgc.solve(problem, "optimal", tolerance=1e-10).expected_runtime

    slope, step = float(jax.grad(best)(0.8)), 1e-4
    difference = float(best(0.8 + step) - best(0.8 - step)) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-6)  # measured 9e-9


def test_float32_reaches_the_float64_optimum():
    with jax.enable_x64(True):
        exact = float(bcgc.solve(bcgc.Problem(LAWS["paper"], 12, 2_000, 50), "optimal").expected_runtime)
    solution = bcgc.solve(bcgc.Problem(LAWS["paper"], 12, 2_000, 50), "optimal")
    assert solution.partition.dtype == jnp.float32
    assert float(solution.expected_runtime) == pytest.approx(exact, rel=1e-5)  # measured 2e-7
    assert float(solution.relative_gap) < 1e-5  # measured 2e-7


def test_a_law_of_atoms_is_refused_with_advice():
    problem = bcgc.Problem(bcgc.TwoSpeed(1.0, 4.0, 0.2), 4, 10)
    with pytest.raises(ValueError, match="subgradient"):
        bcgc.solve(problem, "optimal")


def test_the_elimination_solves_a_positive_definite_system(x64):
    rng = np.random.default_rng(2)
    factor = rng.standard_normal((9, 9))
    matrix, rhs = factor @ factor.T + 0.1 * np.eye(9), rng.standard_normal(9)
    found = solve_positive(jnp.asarray(matrix), jnp.asarray(rhs))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, rhs), rtol=1e-9)
