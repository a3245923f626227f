"""The baselines against their definitions, evaluated in NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import bcgc_jax as bcgc
from bcgc_jax.solvers.baselines import ferdinand_partition, tandon_partial_runtime

N, L, M, B = 6, 90, 14, 1.3
SCALE = M * B * L / N


def _sorted_draws(quantile, draws=400_000, n=N) -> np.ndarray:
    """Slowest first."""
    return -np.sort(-quantile(np.random.default_rng(4).random((draws, n))), axis=1)


def _weibull(u):
    return 0.4 + 1.6 * (-np.log1p(-u)) ** (1 / 0.9)


WEIBULL = bcgc.Weibull(1.6, 0.9, 0.4)


def test_single_block_is_the_best_level_and_the_others_are_worse(x64):
    problem = bcgc.Problem(WEIBULL, N, L, M, B)
    draws = SCALE * np.arange(1, N + 1) * _sorted_draws(_weibull)
    means, errors = draws.mean(axis=0), draws.std(axis=0) / np.sqrt(len(draws))
    for level in range(N):
        found = float(bcgc.solve(problem, f"tandon:{level}").expected_runtime)
        assert abs(found - means[level]) < 4 * errors[level]
    best = bcgc.solve(problem, "single_block")
    assert best.rounded[int(np.argmin(means))] == L
    uncoded = bcgc.solve(problem, "uncoded")
    assert uncoded.rounded.tolist() == [L, 0, 0, 0, 0, 0]
    assert abs(float(uncoded.expected_runtime) - means[0]) < 4 * errors[0]


@pytest.mark.parametrize(
    ("law", "quantile"),
    [
        (WEIBULL, _weibull),
        (bcgc.Uniform(0.6, 2.9), lambda u: 0.6 + 2.3 * u),
        (bcgc.TwoSpeed(0.8, 3.1, 0.3), lambda u: np.where(u < 0.7, 0.8, 3.1)),
    ],
)
def test_tandon_partial_is_the_minimum_over_s_of_its_runtime(x64, law, quantile):
    problem = bcgc.Problem(law, N, L, M, B)
    sample = quantile(np.random.default_rng(5).random(2_000_000))
    order = np.sort(sample)
    ratio = order[1_000_000:].mean() / order[:1_000_000].mean()
    alpha = float(bcgc.straggler_ratio(law))
    assert alpha == pytest.approx(ratio, rel=5e-3)  # sampling error of the mean: 1e-3
    times = _sorted_draws(quantile)
    means, errors = [], []
    for s in range(1, N):
        runtime = SCALE * (s + 1) / (s + alpha) * np.maximum(alpha * times[:, s], times[:, 0])
        means.append(runtime.mean())
        errors.append(runtime.std() / np.sqrt(len(runtime)))
    solution = bcgc.solve(problem, "tandon_partial")
    best = int(np.argmin(means))
    assert abs(float(solution.expected_runtime) - means[best]) < 4 * errors[best]
    assert solution.partition is None
    (fixed, _), level = tandon_partial_runtime(problem, 6.0)
    means = [
        (SCALE * (s + 1) / (s + 6.0) * np.maximum(6.0 * times[:, s], times[:, 0])).mean() for s in range(1, N)
    ]
    assert abs(float(fixed) - min(means)) < 0.01 * min(means)
    assert means[int(level) - 1] < 1.005 * min(means)


@pytest.mark.parametrize("layers", [90, 45, 40, 30, 27])
def test_ferdinand_layers_are_the_least_squares_optimum_of_the_programme(x64, layers):
    partition, feasible = ferdinand_partition(bcgc.Problem(WEIBULL, N, L, M, B), layers)
    assert bool(feasible)
    j = np.arange(1, layers + 1)
    # max u s.t. u ≤ (s_j+1)/j, Σ s = rN - L, 1 ≤ s_j ≤ N-1, ascending.
    programme = optimize.linprog(
        [-1] + [0] * layers,
        A_ub=np.block(
            [
                [np.ones((layers, 1)), -np.diag(1 / j)],
                [np.zeros((layers - 1, 1)), np.eye(layers)[:-1] - np.eye(layers)[1:]],
            ]
        ),
        b_ub=np.concatenate([1 / j, np.zeros(layers - 1)]),
        A_eq=[[0] + [1] * layers],
        b_eq=[layers * N - L],
        bounds=[(0, None)] + [(1, N - 1)] * layers,
    )
    u = -programme.fun
    # Of all s with this u, the one with the least Σ s²: bounds from below only, so water filling.
    low = np.maximum(1, u * j - 1)
    level = optimize.brentq(lambda c: np.maximum(c, low).sum() - (layers * N - L), 0, N - 1 + 1e-9)
    s = np.maximum(level, low)
    assert np.all(np.diff(s) >= -1e-9)
    counts = np.bincount(np.floor(s + 0.5 - 1e-9).astype(int), minlength=N) * L / layers
    half = np.bincount(np.floor(s + 0.5 + 1e-9).astype(int), minlength=N) * L / layers
    found = np.asarray(partition)
    # A level at exactly n + 1/2 may be rounded either way.
    assert np.allclose(found, counts) or np.allclose(found, half)
    assert found.sum() == pytest.approx(L)


def test_ferdinand_with_a_layer_for_each_coordinate_is_full_replication(x64):
    for workers in (2, 5, 11):
        problem = bcgc.Problem(WEIBULL, workers, 1_000, max_workers=12)
        solution = bcgc.solve(problem, "ferdinand_full")
        assert solution.rounded[workers - 1] == 1_000


def test_ferdinand_says_where_it_does_not_exist():
    # Two workers: the mean level would be N - 2 = 0, below the least level 1.
    solution = bcgc.solve(bcgc.Problem(WEIBULL, 2, 100), "ferdinand_half")
    assert int(solution.status) == bcgc.Status.INFEASIBLE
    assert np.isnan(float(solution.expected_runtime))


@pytest.mark.parametrize(
    ("law", "quantile"),
    [
        (WEIBULL, _weibull),
        (bcgc.ShiftedExponential(1e-3, 50.0), lambda u: 50 - 1e3 * np.log1p(-u)),
        (bcgc.Pareto(1.4, 1.3), lambda u: 1.4 * (1 - u) ** (-1 / 1.3)),
        (bcgc.TwoSpeed(0.8, 3.1, 0.3), lambda u: np.where(u < 0.7, 0.8, 3.1)),
        (bcgc.ShiftedExponential(0.5), lambda u: -2 * np.log1p(-u)),
    ],
)
def test_the_limit_is_the_mean_of_perfectly_shared_work(x64, law, quantile):
    draws = M * B * L / (1 / quantile(np.random.default_rng(6).random((400_000, N)))).sum(axis=1)
    limit = float(bcgc.runtime_limit(bcgc.Problem(law, N, L, M, B)))
    assert abs(limit - draws.mean()) < 4 * draws.std() / np.sqrt(len(draws))


def test_the_limit_of_one_worker_is_its_mean_time_and_no_scheme_is_below_it(x64):
    one = bcgc.Problem(WEIBULL, 1, 10, 3)
    assert float(bcgc.runtime_limit(one)) == pytest.approx(30 * float(WEIBULL.mean()), rel=1e-6)
    problem = bcgc.Problem(WEIBULL, N, L, M, B)
    limit = float(bcgc.runtime_limit(problem))
    for method in ("time", "frequency", "single_block", "tandon_partial", "uncoded", "ferdinand_full"):
        assert float(bcgc.solve(problem, method).expected_runtime) > limit
    assert jnp.isfinite(limit)
