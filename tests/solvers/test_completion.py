"""Best P(completion) and its bound, against global searches and published values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import bcgc_jax as bcgc
from bcgc_jax.exact.order_statistics import order_survival
from bcgc_jax.plans.runtime import Certificate
from bcgc_jax.solution import solution_of
from bcgc_jax.solvers.deadline import (
    STARTS,
    chance_constrained,
    completion_partition,
)
from bcgc_jax.solvers.search import local_optimum
from tests.oracles import runtimes as oracles
from tests.oracles.laws import PARETO, SHIFTED_EXPONENTIAL, WEIBULL
from tests.oracles.programme import best_of_two_speeds
from tests.problems import not_none, padded


def _solve(problem, deadline):
    return bcgc.solve(problem, bcgc.Deadline(deadline))


def test_the_published_probability_is_beaten_and_every_start_ends_at_one_optimum(x64):
    # The journal version: L = 40000, M = 50, b = 1, rate 0.1, shift 1, deadline 10^6.5,
    # N = 10.
    workers = 10
    problem = padded(bcgc.ShiftedExponential(0.1, 1.0), workers, 40_000, 50)
    result = completion_partition(problem, 10**6.5)
    assert int(result.status) == bcgc.Status.CONVERGED
    assert float(result.value) > 0.628 + 0.05  # published 0.628, measured 0.7456
    assert result.aux.shape == (len(STARTS),)
    # worst measured 1e-9
    np.testing.assert_allclose(result.aux, result.value, rtol=1e-5)
    probability = bcgc.completion_probability(problem, result.point, 10**6.5)
    np.testing.assert_allclose(result.value, probability, rtol=1e-12)
    *other_values, single = not_none(completion_partition(problem, 6e5).aux)
    assert max(other_values) < 1e-300 < 4e-7 < single
    # By draws.
    load = oracles.load_of(np.asarray(result.point)[:workers])
    draws = oracles.slowest_first(
        SHIFTED_EXPONENTIAL.case(0.1, 1.0), np.random.default_rng(1), 200_000, workers
    )
    met = ((draws * load).max(axis=1) * 50 / workers <= 10**6.5).mean()
    assert abs(met - result.value) < 4 * np.sqrt(met * (1 - met) / 200_000)


def test_a_single_level_is_late_as_often_as_a_binomial_says(x64):
    workers = 5
    size = 7
    t = 1.3
    late = jax.jit(order_survival)(
        bcgc.Uniform(0.0, 1.0), workers, t / np.arange(1.0, size + 1)
    )
    for n in range(workers):
        slow = max(1 - t / (n + 1), 0)
        assert float(late[n]) == pytest.approx(
            stats.binom.sf(n, workers, slow), rel=1e-12
        )


@pytest.mark.slow
def test_no_random_partition_for_workers_of_two_speeds_meets_the_deadline_more_often(
    x64,
):
    speeds = 0.7, 3.2, 0.15
    problem = bcgc.Problem(bcgc.TwoSpeed(*speeds), 5, 300, 4)
    deadline = 0.9 * 300 * 4 / 5 * best_of_two_speeds(*speeds, 5)
    solution = _solve(problem, deadline)
    rng = np.random.default_rng(2)
    shares = np.concatenate(
        [rng.dirichlet(np.full(5, c), 400) for c in (0.2, 1.0, 5.0)]
    )
    near = np.asarray(solution.partition) * np.exp(0.03 * rng.standard_normal((400, 5)))
    points = 300 * np.concatenate([shares, near / near.sum(axis=1, keepdims=True)])
    probabilities = jax.jit(
        jax.vmap(lambda x: bcgc.completion_probability(problem, x, deadline))
    )(points)
    assert 0.05 < float(solution.completion_probability) < 1
    assert probabilities.max() <= float(solution.completion_probability) + 1e-9
    probability = bcgc.completion_probability(problem, solution.partition, deadline)
    np.testing.assert_allclose(solution.completion_probability, probability, rtol=1e-12)


def test_a_plan_for_measured_times_has_its_probability_under_these_times(x64):
    """All 4³ combinations of four times and three workers, counted in NumPy."""
    times = np.array([1.0, 1.3, 2.0, 5.0])
    deadline = 70.0
    solution = _solve(bcgc.Problem(bcgc.Empirical(times), 3, 100), deadline)
    x = np.asarray(solution.partition)
    drawn = np.sort(np.stack(np.meshgrid(*3 * [times]), -1).reshape(-1, 3), axis=1)
    # Level n is complete with the (N-n)-th fastest worker.
    load = np.cumsum(np.arange(1, 4) * x) / 3
    in_time = np.all((drawn[:, ::-1] * load <= deadline) | (x < 1e-9), axis=1)
    completion_probability = float(not_none(solution.completion_probability))
    assert completion_probability == pytest.approx(np.mean(in_time), abs=1e-12)
    # No partition on a grid of 1 % is in time more often than 17 of 32.
    assert completion_probability == pytest.approx(17 / 32, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (bcgc.Deadline, "the deadline is missing"),
        (lambda: bcgc.Optimal(max_steps=0), "max_steps must be"),
        (lambda: bcgc.Subgradient(batch_size=0), "batch_size must be"),
        (lambda: bcgc.Optimal(levels=[]), "levels"),
        (
            lambda: bcgc.Optimal(levels=[0, 4]),
            "`levels` must be integers from 0 to 3",
        ),
        (lambda: bcgc.Optimal(levels=[0.5]), "levels"),  # type: ignore[list-item]
    ],
)
def test_what_makes_no_sense_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        bcgc.solve(bcgc.Problem(bcgc.Uniform(0.4, 2.6), 4, 30), method())


@pytest.mark.slow
def test_the_probability_has_the_slopes_of_a_fixed_partition(x64):
    def problem(rate):
        return bcgc.Problem(
            bcgc.ShiftedExponential(rate, 50.0), 4, 5_000, 10.0, max_workers=4
        )

    def best(rate, deadline):
        return bcgc.solve(problem(rate), bcgc.Deadline(deadline)).completion_probability

    partition = bcgc.solve(problem(1e-3), bcgc.Deadline(1.5e7)).partition
    slopes = jax.jit(jax.grad(best, (0, 1)))(1e-3, 1.5e7)
    for argument, (slope, step) in enumerate(zip(slopes, (1e-7, 1e2), strict=True)):
        near: Any = [
            np.array([1e-3, 1.5e7]) + sign * step * np.eye(2)[argument]
            for sign in (1, -1)
        ]
        above, below = (
            bcgc.completion_probability(problem(r), not_none(partition), d)
            for r, d in near
        )
        assert float(slope) == pytest.approx(
            float((above - below) / (2 * step)), rel=1e-5
        )
    # Of another plan than the fastest: no slope is known without that of the plan.
    runtime = jax.grad(
        lambda t: bcgc.solve(problem(1e-3), bcgc.Deadline(t)).expected_runtime
    )
    assert np.isnan(jax.jit(runtime)(1.5e7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "deadline"),
    [
        (0.5, 4.8),
        (0.5, 10.0),
        (0.3, 8.0),
        (0.8, 3.0),
        (1.0, 6.0),
        (1.1, 9.0),
        (1.5, 4.0),
    ],
)
def test_the_plan_is_the_best_of_a_global_search_and_all_starts_lead_to_it(
    x64, shape, deadline
):
    # M = N, L = b = 1: a load of 1 takes a worker T.
    case = PARETO.case(1.0, shape)
    result = completion_partition(bcgc.Problem(case.law(), 5, 1.0, 5.0), deadline)
    best = oracles.most_in_time(case, 5, deadline)
    assert int(result.status) == bcgc.Status.CONVERGED
    assert float(result.value) >= best - 1e-8
    late = oracles.exceedance(
        case, oracles.load_of(np.asarray(result.point)), np.array([deadline])
    )
    np.testing.assert_allclose(result.value, 1 - late[0], rtol=1e-9)
    from_starts = np.asarray(result.aux)
    # where no plan beside it is ever in time, a search has no slope to go by
    in_time = from_starts > 1e-9
    assert in_time.sum() >= 5
    np.testing.assert_allclose(from_starts[in_time], best, rtol=1e-6)


def test_a_search_that_did_not_end_says_so_though_the_mean_is_infinite():
    problem = padded(bcgc.Pareto(1.0, 0.5), 5)
    infinite = Certificate(*map(jnp.asarray, (jnp.inf, 0, 0, 1.0)))

    @jax.jit
    def final_status(status: int) -> Any:
        return not_none(
            solution_of(
                problem, jnp.zeros(problem.max_workers), status, 1, True, infinite
            ).status
        )

    assert final_status(bcgc.Status.STEP_LIMIT) == bcgc.Status.STEP_LIMIT
    assert final_status(bcgc.Status.CONVERGED) == bcgc.Status.INFINITE


@pytest.mark.slow
def test_a_global_search_ends_at_the_plan_that_was_found(x64):
    case, deadline = WEIBULL.case(1.0, 0.6, 0.2), 60.0
    problem = bcgc.Problem(case.law(), 4, 100)
    best = oracles.most_in_time(case, 4, deadline * 4 / 100)
    optimum = completion_partition(problem, deadline)
    assert best == pytest.approx(float(optimum.value), abs=1e-4)


def _fastest(problem, deadline, least, starts):
    """Least E τ̂ by sequential quadratic programming, from several starts."""
    runtime = jax.jit(jax.value_and_grad(lambda x: bcgc.expected_runtime(problem, x)))
    in_time = jax.jit(
        jax.value_and_grad(lambda x: bcgc.completion_probability(problem, x, deadline))
    )
    total, size = float(problem.total), problem.max_workers
    unit = float(runtime(starts[0])[0])
    values = []
    all_of_it = optimize.LinearConstraint(np.ones(size), 1, 1)
    often = optimize.NonlinearConstraint(
        lambda s: float(in_time(s * total)[0]),
        least,
        1,
        jac=lambda s: np.asarray(in_time(s * total)[1]) * total,
    )
    for start in starts:
        result = optimize.minimize(
            lambda s: float(runtime(s * total)[0]) / unit,
            start / total,
            jac=lambda s: np.asarray(runtime(s * total)[1]) * total / unit,
            bounds=[(0, 1)] * size,
            constraints=[all_of_it, often],
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 300},
        )
        if float(in_time(result.x * total)[0]) > least - 1e-8:
            values.append(result.fun * unit)
    return min(values)


@pytest.mark.slow
def test_no_optimiser_finds_a_faster_plan_that_is_in_time_as_often(
    x64,
):
    deadline, workers = 300.0, 8
    problem = bcgc.Problem(bcgc.ShiftedExponential(0.1, 1.0), workers, 100)

    def solve(least: float) -> bcgc.Solution:
        return bcgc.solve(problem, bcgc.Deadline(deadline, min_completion=least))

    fast = bcgc.solve(problem)
    sure = bcgc.solve(problem, bcgc.Deadline(deadline))
    low = float(
        bcgc.completion_probability(problem, not_none(fast.partition), deadline)
    )
    high = float(not_none(sure.completion_probability))
    assert low < high - 1e-3
    rng = np.random.default_rng(0)
    ends = [np.asarray(s.partition) for s in (fast, sure)]
    starts = [*ends, np.mean(ends, axis=0), *(100 * rng.dirichlet(np.ones(workers), 3))]
    last = float(fast.expected_runtime)
    for share in (0.3, 0.8):
        least = low + share * (high - low)
        solution = solve(least)
        assert int(solution.status) == bcgc.Status.CONVERGED
        assert float(not_none(solution.completion_probability)) >= least - 1e-12
        theirs = _fastest(problem, deadline, least, starts)
        assert float(solution.expected_runtime) <= theirs * (1 + 1e-6)
        assert last < float(solution.expected_runtime) < float(sure.expected_runtime)
        assert float(solution.lower_bound) <= theirs
        last = float(solution.expected_runtime)

    free = solve(low - 1e-3)
    assert float(free.expected_runtime) == pytest.approx(
        float(fast.expected_runtime), rel=1e-6
    )
    assert float(free.relative_gap) < 1e-5
    np.testing.assert_allclose(
        not_none(solve(high - 1e-7).partition), not_none(sure.partition), atol=0.2
    )
    assert int(solve(high + 1e-4).status) == bcgc.Status.INFEASIBLE


def test_a_share_in_time_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="min_completion must be"):
        bcgc.Deadline(400.0, min_completion=1.0)
    problem = bcgc.Problem(bcgc.TwoSpeed(1.0, 2.0, 0.1), 4, 100)
    with pytest.raises(ValueError, match="a distribution without atoms"):
        bcgc.solve(problem, bcgc.Deadline(400.0, min_completion=0.5))


@pytest.mark.slow
def test_two_workers_have_the_fastest_of_all_shares_that_are_in_time(x64):
    """By the law of τ̂ = max(y_0 T_(2), y_1 T_(1)) on a grid; times are exponential."""
    share, t = np.linspace(0, 1, 501), np.linspace(1e-9, 40, 1001)[:, None]

    def late(t):
        slow, fast = (1 - np.exp(-t / np.maximum(y, 1e-12)) for y in (share, 2 - share))
        return 1 - slow**2 + (slow - fast) ** 2

    runtime = np.trapezoid(late(t), t, axis=0)
    in_time = 1 - late(3.0)
    least = 0.974
    fast, sure = (
        np.array([share[i], 1 - share[i]]) for i in (runtime.argmin(), in_time.argmax())
    )
    surest = local_optimum(jnp.asarray(sure), jnp.asarray(in_time.max()), True, 0)
    optimum = chance_constrained(
        bcgc.Problem(bcgc.Exponential(1.0), 2, 1.0, 2.0), 3.0, least, fast, surest
    )
    assert float(optimum.value) >= least - 1e-12
    best = share[np.where(in_time < least, np.inf, runtime).argmin()]
    np.testing.assert_allclose(optimum.point[0], best, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [20, 50])
def test_single_precision_meets_the_optimum_of_double_and_says_so(workers):
    """It went on for all 2000 steps: its slopes do not resolve the tolerance."""

    def best(double):
        with jax.enable_x64(double):
            problem = bcgc.Problem(
                bcgc.ShiftedExponential(1e-3, 50.0), workers, 20_000, 50
            )
            result = completion_partition(problem, 4e7 if workers == 50 else 6e7)
            return result, np.asarray(result.point, float)

    single, partition = best(False)
    optimum, _ = best(True)
    assert (int(single.status), int(optimum.status)) == (0, 0)
    assert int(single.num_steps) < 1000
    with jax.enable_x64(True):
        problem = bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), workers, 20_000, 50)
        exact = bcgc.completion_probability(
            problem, partition / partition.sum() * 20_000, 4e7 if workers == 50 else 6e7
        )
    # Worst measured 2.4e-6.
    assert float(exact) == pytest.approx(float(optimum.value), rel=1e-5)
