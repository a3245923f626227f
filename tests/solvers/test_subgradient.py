"""The stochastic subgradient method against the certified optimum and, where there is none, enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import bcgc_jax as bcgc
from bcgc_jax.solvers.subgradient import scale_by_accumulated_norm, subgradient_partition


@pytest.mark.parametrize(
    "law",
    [bcgc.ShiftedExponential(1e-3, 50.0), bcgc.Weibull(2.0, 3.0), bcgc.Pareto(1.3, 1.2)],
    ids=["paper", "weibull", "pareto"],
)
def test_it_ends_within_one_percent_of_the_lower_bound(x64, law):
    problem = bcgc.Problem(law, 8, 2_000, 5)
    bound = float(bcgc.solve(problem, "optimal").lower_bound)
    value = float(bcgc.solve(problem, "subgradient", key=jax.random.key(1)).expected_runtime)
    assert bound <= value < 1.01 * bound


def test_it_ends_within_one_percent_of_a_two_speed_optimum_found_by_a_linear_programme(x64):
    n, fast, slow, p = 6, 0.7, 3.2, 0.15
    counts = np.arange(n + 1)
    chance = np.array([float(np.prod([(n - i) / (i + 1) for i in range(k)])) for k in counts])
    chance = chance * p**counts * (1 - p) ** (n - counts)
    loads = np.tril(np.ones((n, n))) * np.arange(1, n + 1)
    rows, last = [], []
    for k in counts:  # the k slowest are slow
        times = np.where(np.arange(n) < k, slow, fast)
        rows.append(times[:, None] * loads)
        last.append(np.tile(-(counts == k).astype(float), (n, 1)))
    best = optimize.linprog(
        np.concatenate([np.zeros(n), chance]),
        A_ub=np.concatenate([np.concatenate(rows), np.concatenate(last)], axis=1),
        b_ub=np.zeros(n * (n + 1)),
        A_eq=[[1] * n + [0] * (n + 1)],
        b_eq=[1.0],
    )
    problem = bcgc.Problem(bcgc.TwoSpeed(fast, slow, p), n, 1, n)
    value = float(bcgc.solve(problem, "subgradient", key=jax.random.key(2)).expected_runtime)
    assert best.fun * (1 - 1e-9) <= value < 1.01 * best.fun


def test_the_record_says_what_happened_and_a_key_gives_one_answer(x64):
    problem = bcgc.Problem(bcgc.Uniform(0.6, 2.2), 5, 300, 3)
    settings = {"check_every": 40, "max_steps": 200, "batch_size": 64}
    first = subgradient_partition(problem, jax.random.key(3), **settings)
    again = subgradient_partition(problem, jax.random.key(3), **settings)
    np.testing.assert_array_equal(first.partition, again.partition)
    history = np.asarray(first.history)
    checks = int(first.num_steps) // 40
    assert history.shape == (6,)
    assert np.all(np.isfinite(history[: checks + 1]))
    assert np.all(np.isnan(history[checks + 1 :]))
    assert np.all(np.diff(history[: checks + 1]) <= 0)  # the best so far
    start = bcgc.expected_runtime(problem, bcgc.solve(problem, "time").partition)
    assert history[0] == pytest.approx(float(start), rel=1e-9)
    end = bcgc.expected_runtime(problem, first.partition)
    assert history[checks] == pytest.approx(float(end), rel=1e-9)
    if int(first.status) == bcgc.Status.CONVERGED:
        assert history[checks - 2] / history[checks] - 1 < 1.1e-4
    short = subgradient_partition(problem, jax.random.key(3), max_steps=40, check_every=40, batch_size=64)
    assert int(short.status) == bcgc.Status.STEP_LIMIT
    assert int(short.num_steps) == 40


def test_the_step_is_the_accumulated_norm_of_adagrad():
    optimiser = scale_by_accumulated_norm(0.7)
    state = optimiser.init(jnp.zeros(3))
    gradients = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, -4.0]])
    squares = 0.0
    for gradient in gradients:
        update, state = optimiser.update(jnp.asarray(gradient, jnp.float32), state)
        squares += np.sum(gradient**2)
        np.testing.assert_allclose(update, -0.7 * gradient / np.sqrt(squares), rtol=1e-6)
