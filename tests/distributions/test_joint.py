"""Laws of workers that are not alike, against plain NumPy over the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.solvers.baselines import tandon_partial_runtime
from tests.oracles import laws
from tests.problems import not_none

S, N, L, M, B = 37, 5, 90, 14.0, 1.3
# Slow and fast workers, and steps that are slow for all.
_RNG = np.random.default_rng(5)
TIMES = (
    _RNG.gamma(3.0, size=(S, N))
    * [0.4, 1.7, 0.6, 0.5, 2.3]
    * _RNG.lognormal(0, 0.5, (S, 1))
    + 0.2
)
SORTED = -np.sort(-TIMES, axis=1)
X = np.array([31.0, 0.0, 22.5, 16.5, 20.0])
SCALE = M * B / N


def _problem(law=None, **changed) -> bcgc.Problem:
    arguments = {
        "num_workers": N,
        "num_coordinates": L,
        "num_samples": M,
        "cycles": B,
        **changed,
    }
    return bcgc.Problem(bcgc.EmpiricalRows(TIMES) if law is None else law, **arguments)


def _runtimes(x, rows=SORTED) -> np.ndarray:
    load = np.cumsum(np.arange(1, N + 1) * x)
    return SCALE * (load * rows).max(axis=1)


UNLIKE = [
    laws.WEIBULL.case(2.6, 1.7, 0.3),
    laws.UNIFORM.case(0.6, 1.4),
    laws.EMPIRICAL.case(0.7, 2.6, 5.1),
    laws.WEIBULL.case(0.9, 0.8, 0.1),
    laws.UNIFORM.case(2.5, 3.7),
]
# By kind they are 0, 3, 1, 4, 2: an order that does not undo itself.


def test_rows_are_sorted_slowest_first_and_keep_their_order():
    law = bcgc.EmpiricalRows(TIMES)
    np.testing.assert_allclose(law.times, SORTED, rtol=1e-6)
    assert law.width() == N
    np.testing.assert_allclose(law.mean(), TIMES.mean(), rtol=1e-6)
    np.testing.assert_allclose(law.infimum(), TIMES.min(), rtol=1e-6)
    np.testing.assert_allclose(law.pooled().cdf(1.3), (TIMES <= 1.3).mean(), rtol=1e-5)
    np.testing.assert_allclose(law.pooled().times, np.sort(TIMES, axis=None), rtol=1e-6)


@pytest.mark.parametrize(
    "times", [[], [[]], [1.5, 2.0], [[1.5, -2.0]], [[1.5, np.nan]], [[1.5, np.inf]]]
)
def test_rows_of_no_shape_or_of_impossible_times_are_refused(times):
    with pytest.raises(ValueError, match=r"^`?times`? must "):
        bcgc.EmpiricalRows(times)


def test_everything_about_an_iteration_is_a_mean_over_rows(precision):
    rtol = 1e-10 if precision == np.float64 else 2e-5
    problem = _problem()
    runtimes = _runtimes(X)
    integral = bcgc.plans.integrate_runtime(problem, X)
    np.testing.assert_allclose(integral.value, runtimes.mean(), rtol=rtol)
    assert abs(integral.value - runtimes.mean()) <= integral.error
    deadlines = np.quantile(runtimes, [0.0, 0.31, 0.77, 1.0]) * (1 + 1e-5)
    expected = [(runtimes <= t).mean() for t in [*deadlines, 0.5 * runtimes.min()]]
    probability = bcgc.completion_probability(
        problem, X, np.append(deadlines, 0.5 * runtimes.min())
    )
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    times = bcgc.plans.expected_order_statistics(problem.cycle_time, N)
    np.testing.assert_allclose(times, SORTED.mean(axis=0), rtol=rtol)
    rates = bcgc.plans.expected_order_statistics(problem.cycle_time, N, jnp.reciprocal)
    np.testing.assert_allclose(rates, (1 / SORTED).mean(axis=0), rtol=rtol)
    # What comes right then is not late.
    late = iteration_of(problem).order_survival(jnp.asarray(SORTED[0], precision))
    np.testing.assert_allclose(late, (SORTED[0] < SORTED).mean(axis=0), rtol=1e-6)
    two = bcgc.Problem(bcgc.EmpiricalRows([[1.0, 2.0], [3.0, 4.0]]), 2, 1, 2)
    assert bcgc.completion_probability(two, np.array([1.0, 0.0]), 2.0) == 0.5
    limit = L * M * B * np.mean(1 / np.sum(1 / TIMES, axis=1))
    np.testing.assert_allclose(bcgc.solvers.runtime_limit(problem), limit, rtol=rtol)
    ratio = bcgc.solvers.straggler_ratio(problem.cycle_time)
    np.testing.assert_allclose(
        ratio, bcgc.solvers.straggler_ratio(bcgc.Empirical(TIMES)), rtol=rtol
    )


def test_slopes_are_those_of_the_mean_over_rows(x64):
    slope = jax.grad(bcgc.expected_runtime, 1)(_problem(), jnp.asarray(X))
    step = 1e-6
    for n in range(N):
        ahead = _runtimes(X + step * (np.arange(N) == n)).mean()
        # At x_1 = 0 only up.
        np.testing.assert_allclose(
            slope[n], (ahead - _runtimes(X).mean()) / step, rtol=1e-5, atol=1e-5
        )


def test_schemes_are_judged_row_by_row(x64):
    problem = _problem()
    alpha = 4.5
    s = np.arange(1, N)
    by_level = (
        (s + 1)
        / (s + alpha)
        * np.maximum(alpha * SORTED[:, 1:], SORTED[:, :1]).mean(axis=0)
    )
    value, level = tandon_partial_runtime(problem, alpha)
    np.testing.assert_allclose(value.value, SCALE * L * by_level.min(), rtol=1e-10)
    assert level == s[by_level.argmin()]
    single = bcgc.solve(problem, "single_block")
    costs = [_runtimes(L * (np.arange(N) == n)).mean() for n in range(N)]
    np.testing.assert_allclose(single.expected_runtime, min(costs), rtol=1e-10)
    assert not_none(single.partition)[np.argmin(costs)] == L
    inverse = {"time": 1 / SORTED.mean(axis=0), "frequency": (1 / SORTED).mean(axis=0)}
    for method, rates in inverse.items():
        share = np.diff(rates, prepend=0) / np.arange(1, N + 1)
        partition = not_none(bcgc.solve(problem, method).partition)
        np.testing.assert_allclose(partition, L * share / share.sum(), rtol=1e-9)


def test_simulated_rows_are_rows(x64):
    law = bcgc.EmpiricalRows(TIMES)
    key = jax.random.key(3)
    drawn = np.asarray(bcgc.sorted_cycle_times(key, law, N, 400))
    place = np.argmin(np.abs(drawn[:, None] - SORTED[None]).sum(axis=2), axis=1)
    np.testing.assert_allclose(drawn, SORTED[place], rtol=1e-12)
    assert len(np.unique(place)) == S
    estimate = bcgc.simulate_runtime(key, _problem(), X, 20_000, unit=None)
    assert abs(estimate.mean - _runtimes(X).mean()) < 4 * estimate.standard_error
    np.testing.assert_allclose(
        estimate.standard_error, _runtimes(X).std() / np.sqrt(20_000), rtol=0.05
    )
    assert law.sample(key, (2, 3, N)).shape == (2, 3, N)


def test_rows_go_under_vmap_and_a_traced_number_of_workers_must_be_theirs(x64):
    batch = jnp.asarray(np.stack([TIMES, 2.5 * TIMES]))

    def expected(times):
        return bcgc.expected_runtime(_problem(bcgc.EmpiricalRows(times)), X)

    values = jax.jit(jax.vmap(expected))(batch)
    np.testing.assert_allclose(
        values, _runtimes(X).mean() * np.array([1, 2.5]), rtol=1e-10
    )

    def of(workers):
        problem = _problem(num_workers=workers, max_workers=N)
        return bcgc.expected_runtime(problem, X), problem.valid

    values, valid = jax.jit(jax.vmap(of))(jnp.array([N, N - 1]))
    np.testing.assert_allclose(values[0], _runtimes(X).mean(), rtol=1e-10)
    assert np.isnan(values[1])
    assert valid.tolist() == [True, False]


def test_the_number_of_workers_must_be_that_of_the_law():
    for changed in (
        {"num_workers": 4},
        {"max_workers": 6},
        {"num_workers": np.array([5, 4])},
    ):
        with pytest.raises(
            ValueError,
            match=r"of 5 workers, but .* cannot be padded, so both must be 5",
        ):
            _problem(**changed)
    with pytest.raises(ValueError, match="distribution of 5 workers, but"):
        _problem(bcgc.Heterogeneous([bcgc.Uniform(1.0, 2.0)] * 5), num_workers=3)
    with pytest.raises(
        ValueError, match="distribution of 5 workers, but num_workers is 3"
    ):
        bcgc.plans.expected_order_statistics(bcgc.EmpiricalRows(TIMES), 3)
    with pytest.raises(ValueError, match="last axis of a sample must be the 5 workers"):
        bcgc.EmpiricalRows(TIMES).sample(jax.random.key(0), (3,))


def test_each_worker_is_drawn_from_its_own_law(precision):
    law = bcgc.Heterogeneous([case.law() for case in UNLIKE])
    key = jax.random.key(2)
    draws = np.asarray(jax.jit(lambda law: law.sample(key, (40_000, N)))(law))
    assert draws.dtype == precision
    for column, case in zip(draws.T, UNLIKE, strict=True):
        assert abs(column.mean() - case.frozen.mean()) < 4 * column.std() / 200
        # Just above the values of the law that has few: float32 rounds them.
        for t in 1.0001 * np.quantile(column, [0.1, 0.5, 0.9]):
            assert abs((column <= t).mean() - case.frozen.cdf(t)) < 4 * 0.5 / 200
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(N), atol=0.025)
    rows = np.asarray(
        bcgc.sorted_cycle_times(key, bcgc.Heterogeneous(law.distributions[1:3]), 2, 7)
    )
    assert ((rows[:, 1] > 0.6) & (rows[:, 1] < 1.4) & (rows[:, 0] >= rows[:, 1])).all()
    unequal = bcgc.Heterogeneous(
        [bcgc.Empirical([0.5, 1.5]), bcgc.Empirical([2.0, 3.0, 4.0])]
    )
    assert (np.asarray(unequal.draw_rows(key, 7)) > 1.9).tolist() == [[True, False]] * 7
    np.testing.assert_allclose(
        law.mean(), np.mean([case.frozen.mean() for case in UNLIKE]), rtol=1e-6
    )
    np.testing.assert_allclose(law.infimum(), 0.1, rtol=1e-6)


def test_unlike_workers_are_simulated(x64):
    cases = [
        laws.GAMMA.case(3.0, 2.0, 0.3),
        UNLIKE[1],
        laws.GAMMA.case(0.8, 0.4, 0.1),
        UNLIKE[2],
        UNLIKE[4],
    ]
    law = bcgc.Heterogeneous([case.law() for case in cases])
    rng = np.random.default_rng(8)
    size = 100_000
    times = np.stack([case.draw(rng, size) for case in cases], axis=1)
    expected = _runtimes(X, -np.sort(-times, axis=1))
    estimate = bcgc.simulate_runtime(
        jax.random.key(4), _problem(law), X, size, unit=None
    )
    error = np.hypot(expected.std() / np.sqrt(size), estimate.standard_error)
    assert abs(estimate.mean - expected.mean()) < 4 * error


@pytest.mark.parametrize("wrong", [[], [2.0, 3.0], [bcgc.EmpiricalRows(TIMES)]])
def test_what_is_no_law_of_a_worker_is_refused(wrong):
    with pytest.raises(ValueError, match="a distribution"):
        bcgc.Heterogeneous(wrong)


def test_what_is_exact_for_workers_alike_alone_says_what_to_do_instead():
    problem = _problem(bcgc.Heterogeneous([case.law() for case in UNLIKE]))
    for ask in (
        lambda: bcgc.expected_runtime(problem, X),
        lambda: bcgc.completion_probability(problem, X, 3.0),
        lambda: bcgc.certificate(problem, X),
        lambda: bcgc.solvers.runtime_limit(problem),
        lambda: bcgc.solvers.straggler_ratio(problem.cycle_time),
        lambda: bcgc.plans.expected_order_statistics(problem.cycle_time, N),
    ):
        with pytest.raises(
            ValueError,
            match=r"simulate_runtime .*EmpiricalRows\(distribution\.draw_rows",
        ):
            ask()
