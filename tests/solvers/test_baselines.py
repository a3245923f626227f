"""The baselines against their definitions, evaluated in NumPy and SciPy."""

import heapq
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.solvers.baselines import (
    _TwoMessages,
    ferdinand_partition,
    tandon_partial_runtime,
)
from tests.oracles import runtimes as oracles
from tests.oracles.laws import CASES, SHIFTED_EXPONENTIAL, TWO_SPEED, WEIBULL, Case
from tests.problems import SIZE, not_none, padded, slow

N = 6
L = 90
M = 14.0
B = 1.3
SCALE = M * B * L / N
CASE, TWO = SHIFTED_EXPONENTIAL.case(0.7, 0.4), TWO_SPEED.case(0.8, 3.1, 0.3)
LAW = CASE.law()


def _sorted_draws(case: Case) -> np.ndarray:
    return oracles.slowest_first(case, np.random.default_rng(4), 400_000, N)


@pytest.mark.slow
def test_single_block_is_the_best_level(x64):
    draws = SCALE * np.arange(1, N + 1) * _sorted_draws(CASE)
    means, errors = draws.mean(axis=0), draws.std(axis=0) / np.sqrt(len(draws))
    level = int(np.argmin(means))
    best = bcgc.solve(padded(LAW, N, L, M, B), "single_block")
    assert not_none(best.rounded)[level] == L
    assert abs(float(best.expected_runtime) - means[level]) < 4 * errors[level]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [CASE, *slow(TWO)], ids=["ShiftedExponential", "TwoSpeed"]
)
def test_tandon_partial_is_the_minimum_over_s_of_its_runtime(x64, case):
    law = case.law()
    problem = padded(law, N, L, M, B)
    sample = np.sort(case.frozen.ppf(np.random.default_rng(5).random(400_000)))
    ratio = sample[200_000:].mean() / sample[:200_000].mean()
    default = bcgc.solvers.straggler_ratio(law)
    # Sampling error of the mean: 2e-3.
    assert float(default) == pytest.approx(ratio, rel=1e-2)
    times = _sorted_draws(case)
    for alpha in (default, jnp.full_like(default, 6.0)):
        (value, _), level = tandon_partial_runtime(problem, alpha)
        a, s = float(alpha), np.arange(1, N)
        runtimes = (
            SCALE * (s + 1) / (s + a) * np.maximum(a * times[:, 1:], times[:, :1])
        )
        means = runtimes.mean(axis=0)
        errors = runtimes.std(axis=0) / np.sqrt(len(times))
        best = int(np.argmin(means))
        assert abs(float(value) - means[best]) < 4 * errors[best]
        assert means[int(level) - 1] < 1.005 * means[best]
    if case is CASE:
        solution = bcgc.solve(problem, "tandon_partial")
        by_default, _ = tandon_partial_runtime(problem, default)
        np.testing.assert_allclose(
            solution.expected_runtime, by_default.value, rtol=1e-12
        )
        assert solution.partition is None


def test_all_first_messages_and_some_second_ones_are_late_as_often_as_a_binomial_says(
    x64,
):
    hazard = np.array(
        [
            [0.3, 0.2, 0.1, 0.05, 0.02, 0.01],
            [2, 1.5, 1, 0.6, 0.3, 0.1],
            [5, 4, 3, 2, 1, 0.5],
        ]
    )
    for level in (1, 3, N - 1):
        no_first, no_second = np.exp(-hazard[:, 0]), np.exp(-hazard[:, level])
        on_time = (1 - no_first) ** N * stats.binom.cdf(
            level, N, (no_second - no_first) / (1 - no_first)
        )
        late = jax.jit(_TwoMessages(N, level=level).late)(hazard)
        np.testing.assert_allclose(late, 1 - on_time, rtol=1e-12)


# With 24 and 20 the sum keeps u below N / r; with 2 it does that where no level is 1.
@pytest.mark.parametrize(
    ("layers", "total"), [*((r, L) for r in (90, 40, 27, 24, 20)), (2, 6)]
)
def test_ferdinand_layers_are_the_least_squares_optimum_of_the_programme(
    x64, layers, total
):
    partition = ferdinand_partition(padded(LAW, N, total, M, B), layers)
    j = np.arange(1, layers + 1)
    ascending = np.eye(layers)[:-1] - np.eye(layers)[1:]
    # max u s.t. u ≤ (s_j+1)/j, Σ s = rN - L, 1 ≤ s_j ≤ N-1, ascending.
    programme = optimize.linprog(
        [-1] + [0] * layers,
        A_ub=np.block(
            [
                [np.ones((layers, 1)), -np.diag(1 / j)],
                [np.zeros((layers - 1, 1)), ascending],
            ]
        ),
        b_ub=np.concatenate([1 / j, np.zeros(layers - 1)]),
        A_eq=[[0] + [1] * layers],
        b_eq=[layers * N - total],
        bounds=[(0, None)] + [(1, N - 1)] * layers,
    )
    # Of all s with this u, the one with the least Σ s²: bounds from below only, so
    # water filling.
    low, target = np.maximum(1, -programme.fun * j - 1), layers * N - total
    level = (
        optimize.brentq(lambda c: np.maximum(c, low).sum() - target, 0, N)
        if low.sum() < target
        else 0
    )
    s = np.maximum(level, low)
    # A level at exactly n + 1/2 may be rounded either way.
    rounded = [np.floor(s + 0.5 + nudge).astype(int) for nudge in (-1e-9, 1e-9)]
    assert any(
        np.allclose(partition, np.bincount(n, minlength=SIZE) * total / layers)
        for n in rounded
    )
    assert partition.sum() == pytest.approx(total)


@pytest.mark.parametrize("layers", [10, 17, 18, 90, 91])
def test_ferdinand_exists_where_its_programme_does(layers):
    # Σ s = rN - L with 1 ≤ s_j ≤ N-1: HiGHS says whether there is an s.
    programme = optimize.linprog(
        np.zeros(layers),
        A_eq=np.ones((1, layers)),
        b_eq=[layers * N - L],
        bounds=[(1, N - 1)] * layers,
    )
    partition = ferdinand_partition(padded(LAW, N, L, M, B), layers)
    assert bool(jnp.isfinite(partition).all()) == (programme.status == 0)


@pytest.mark.parametrize("name", ["weibull_07", "pareto_12", "uniform"])
def test_the_straggler_ratio_is_that_of_adaptive_quadrature(precision, name):
    case = CASES[name]

    def slow(w):
        return np.exp(-w) * float(case.frozen.isf(np.exp(-w)))

    ends = [np.log(2), 2, 5, 10, 30, 100, 300, 600]
    high = sum(
        integrate.quad(slow, a, b, epsrel=1e-10)[0] for a, b in itertools.pairwise(ends)
    )
    fast = [
        integrate.quad(case.frozen.ppf, a, b, epsrel=1e-10)[0]
        for a, b in ((0, 1e-3), (1e-3, 0.5))
    ]
    # Worst measured 1e-11, 7e-7.
    rtol = 1e-9 if precision == np.float64 else 5e-6
    np.testing.assert_allclose(
        bcgc.solvers.straggler_ratio(case.law()), high / sum(fast), rtol=rtol
    )


def test_the_straggler_ratio_is_the_papers_and_an_infinite_mean_has_none(
    x64,
):
    ratio = bcgc.solvers.straggler_ratio(bcgc.ShiftedExponential(0.4))
    np.testing.assert_allclose(ratio, (1 + np.log(2)) / (1 - np.log(2)), rtol=1e-12)
    assert bcgc.solvers.straggler_ratio(bcgc.Pareto(2.0, 0.9)) == np.inf
    assert bcgc.solvers.straggler_ratio(bcgc.TwoSpeed(1.5, np.inf, 0.2)) == np.inf


@pytest.mark.parametrize(
    "case",
    [WEIBULL.case(1.6, 0.9, 0.4), TWO, SHIFTED_EXPONENTIAL.case(0.5, 0.0)],
    ids=["Weibull", "TwoSpeed", "Exponential"],
)
def test_the_limit_is_the_mean_of_perfectly_shared_work(x64, case):
    times = case.frozen.ppf(np.random.default_rng(6).random((400_000, N)))
    draws = M * B * L / (1 / times).sum(axis=1)
    limit = float(bcgc.solvers.runtime_limit(padded(case.law(), N, L, M, B)))
    assert abs(limit - draws.mean()) < 4 * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize("name", ["weibull_07", "pareto_3", "empirical"])
def test_the_limit_of_two_workers_is_a_double_integral(precision, name):
    # E 1 / (1/T_1 + 1/T_2), by Gauss–Legendre in logit of both, or over both atoms.
    case = CASES[name]
    if case.atoms:
        times, mass = (np.array(part) for part in zip(*case.atoms, strict=True))
    else:
        nodes, weights = np.polynomial.legendre.leggauss(400)
        z = 45 * nodes
        below, above = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
        mass = 45 * weights * below * above
        times = np.where(z < 0, case.frozen.ppf(below), case.frozen.isf(above))
    exact = mass @ (1 / (1 / times[:, None] + 1 / times)) @ mass
    limit = bcgc.solvers.runtime_limit(padded(case.law(), 2, L, M, B))
    # Worst measured 6e-14, 3e-7.
    np.testing.assert_allclose(
        limit, M * B * L * exact, rtol=1e-9 if precision == np.float64 else 1e-5
    )


def test_the_limit_of_a_heavy_tail_is_finite_exactly_where_it_should_be(x64):
    # One worker: the mean, 2 a / (a - 1). Two: P(T > t)² has a tail of 2 a, finite for
    # a > 1/2.
    def limit(shape, workers):
        return bcgc.solvers.runtime_limit(padded(bcgc.Pareto(2.0, shape), workers, 10))

    for shape in (1.2, 1.05):  # worst measured 2e-9
        np.testing.assert_allclose(limit(shape, 1), 20 * shape / (shape - 1), rtol=1e-7)
    assert limit(0.9, 1) == np.inf
    draws = 20 / np.sum(
        np.random.default_rng(7).random((1_000_000, 2)) ** (1 / 0.9), axis=1
    )
    two = limit(0.9, 2)
    # No second moment, so no standard error.
    assert abs(two - draws.mean()) < 0.01 * draws.mean()
    # All of three workers stop with probability 0.008.
    never = bcgc.TwoSpeed(1.5, np.inf, 0.2)
    assert bcgc.solvers.runtime_limit(padded(never, 3, 10)) == np.inf
    late = bcgc.Problem(bcgc.Pareto(2.0, 3.0), 2, 10, start_up=7.0)
    assert float(bcgc.solvers.runtime_limit(late)) == pytest.approx(
        float(limit(3.0, 2)) + 7
    )


def test_the_limit_makes_both_passes_of_a_sample_once(x64):
    """Samples are handed out one by one, to the worker that would end first."""
    times = np.random.default_rng(12).gamma(3.0, 0.5, (6, 4)) + 0.2
    num_coordinates = 8
    num_samples = 4000
    cycles = 2.0
    forward = 9.0
    chain = 0.75
    start = 5.0
    of_a_sample = forward + sum(cycles + chain for _ in range(num_coordinates))
    last, one_more = [], []
    for row in times * of_a_sample:
        ends = [(start + time, time) for time in row]
        heapq.heapify(ends)
        for _ in range(num_samples - 1):
            end, time = ends[0]
            heapq.heapreplace(ends, (end + time, time))
        last.append(ends[0][0])
        one_more.append(max(row))
    law = bcgc.EmpiricalRows(times)
    costs: Any = {"setup_cycles": forward, "chain_cycles": chain}
    problem = bcgc.Problem(
        law, 4, num_coordinates, num_samples, cycles, start_up=start, **costs
    )
    limit = float(bcgc.solve(problem, "limit").expected_runtime)
    # By less than what one more sample takes.
    assert limit <= np.mean(last) <= limit + np.mean(one_more)
    # Workers that are alike need no scheme.
    alike = replace(problem, cycle_time=bcgc.EmpiricalRows(np.full((6, 4), 3.0)))
    uncoded = start + 3.0 * num_samples / 4 * of_a_sample
    assert float(bcgc.solve(alike, "limit").expected_runtime) == pytest.approx(
        uncoded, rel=1e-12
    )
