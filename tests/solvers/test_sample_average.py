"""Unlike workers: optima against linear programs, limits against what they limit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.distributions.special_functions import f_quantile
from bcgc_jax.solvers.closed_form import frequency_partition
from bcgc_jax.solvers.sample_average import draw_problems, judge
from bcgc_jax.traces import resampling
from bcgc_jax.traces.intervals import dependence
from bcgc_jax.traces.resampling import bootstrap_interval
from tests.oracles.programme import best_shares, level_times
from tests.oracles.runtimes import delivered_runtime
from tests.problems import not_none

S = 60
N = 4
L = 2500
M = 14.0
B = 1.3
SCALE = M * B / N
_RNG = np.random.default_rng(11)
TIMES = _RNG.gamma(2.0, size=(S, N)) * [0.5, 2.1, 0.7, 1.4] + [0.3, 0.6, 0.2, 0.4]
SORTED = -np.sort(-TIMES, axis=1)

pytestmark = pytest.mark.usefixtures("x64")


def _problem(law, **changed) -> bcgc.Problem:
    arguments = {
        "num_workers": N,
        "num_coordinates": L,
        "num_samples": M,
        "cycles": B,
        **changed,
    }
    return bcgc.Problem(
        bcgc.Heterogeneous(law) if isinstance(law, list) else law, **arguments
    )


def _best_of_rows(rows: np.ndarray, levels=range(N), setup: float = 0.0) -> float:
    """min mean_s θ_s over θ_s ≥ T_sn y_n, n in `levels`, which all pay for set-up."""
    levels = list(levels)
    finish = level_times(rows)[:, levels][:, :, levels]
    later = setup / L * rows[:, levels] * (np.array(levels) + 1)
    return SCALE * L * best_shares(finish, later=later)[0]


def _runtimes(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return SCALE * (np.cumsum(np.arange(1, N + 1) * x) * rows).max(axis=1)


@pytest.mark.smoke
def test_the_optimum_of_rows_is_that_of_the_linear_programme():
    solution = bcgc.solve(_problem(bcgc.EmpiricalRows(TIMES)))
    best = _best_of_rows(SORTED)
    assert solution.lower_bound <= best * (1 + 1e-12)
    assert best * (1 - 1e-12) <= solution.expected_runtime <= best * (1 + 1e-6)
    mean = _runtimes(np.asarray(solution.partition), SORTED).mean()
    np.testing.assert_allclose(solution.expected_runtime, mean, rtol=1e-12)
    assert solution.relative_gap <= 2e-6
    restricted = bcgc.solve(
        _problem(bcgc.EmpiricalRows(TIMES)), bcgc.Optimal(levels=(0, 2))
    )
    best_of_two = _best_of_rows(SORTED, (0, 2))
    np.testing.assert_allclose(restricted.expected_runtime, best_of_two, rtol=2e-6)
    problem = _problem(bcgc.EmpiricalRows(TIMES))
    stochastic = bcgc.solve(problem, "subgradient", key=jax.random.key(1))
    assert best < stochastic.expected_runtime < 1.005 * best


@pytest.mark.slow
def test_setup_is_paid_for_the_levels_in_use():
    solution = bcgc.solve(_problem(bcgc.EmpiricalRows(TIMES), setup_cycles=130.0 * B))
    sets = [c for k in range(1, N + 1) for c in itertools.combinations(range(N), k)]
    best = min(_best_of_rows(SORTED, levels, 130.0) for levels in sets)
    np.testing.assert_allclose(solution.expected_runtime, best, rtol=2e-5)


def test_few_units_are_searched_one_by_one():
    problem = _problem(bcgc.EmpiricalRows(TIMES), num_coordinates=7)
    counts = [c for c in itertools.product(range(8), repeat=N) if sum(c) == 7]
    best = min(_runtimes(np.array(c), SORTED).mean() for c in counts)
    runtime = _runtimes(np.asarray(bcgc.solve(problem).rounded), SORTED).mean()
    assert best * (1 - 1e-12) <= runtime <= best * 1.01


@pytest.mark.slow
def test_a_deadline_is_met_by_as_many_rows_as_can_be_found():
    problem = _problem(bcgc.EmpiricalRows(TIMES))
    optimal = bcgc.solve(problem)
    deadline = 0.8 * float(optimal.expected_runtime)
    solution = bcgc.solve(problem, bcgc.Deadline(deadline))
    met = (_runtimes(np.asarray(solution.partition), SORTED) <= deadline).mean()
    np.testing.assert_allclose(
        not_none(solution.completion_probability), met, atol=1e-12
    )
    shares = np.random.default_rng(0).dirichlet(np.full(N, 0.6), 5000)
    best = max((_runtimes(L * share, SORTED) <= deadline).mean() for share in shares)
    assert met >= best - 1.01 / S


# Of three atoms, so that all outcomes of two slow workers and two fast ones can be
# written down.
ATOMS = 2 * [(0.95, 1.6, 3.3)] + 2 * [(0.45, 1.15, 2.85)]
LAWS = [bcgc.Empirical(atoms) for atoms in ATOMS]
OUTCOMES = -np.sort(-np.array(list(itertools.product(*ATOMS))), axis=1)


@pytest.fixture(scope="module")
def optimum() -> float:
    return _best_of_rows(OUTCOMES)


@pytest.mark.slow
def test_limits_hold_as_often_as_they_say(optimum):
    """960 of 1,000 limits of 97.5 % hold; of 95 % with 8 % chance, of 94 % 0.4 %."""
    problem, levels = _problem(bcgc.Heterogeneous(LAWS)), np.ones(N, bool)

    @jax.jit
    @jax.vmap
    def judged(key):
        plan, fresh = draw_problems(key, problem, num_draws=64)
        partition = frequency_partition(plan)
        return partition, judge(fresh, partition, levels)

    partition, judgement = jax.device_get(
        judged(jax.random.split(jax.random.key(0), 1000))
    )
    assert np.sum(judgement.lower_bound <= optimum) >= 960
    exact = np.mean([_runtimes(x, OUTCOMES) for x in partition], axis=1)
    error = (judgement.expected_runtime - exact) / judgement.runtime_error
    assert abs(np.mean(error)) < 4 / np.sqrt(1000)
    assert 0.9 < np.std(error) < 1.1
    assert exact.min() >= optimum * (1 - 1e-9)
    gap = 1 - judgement.lower_bound / judgement.expected_runtime
    np.testing.assert_allclose(judgement.relative_gap, gap, rtol=1e-9)


def test_the_limit_is_the_least_mean_of_subgradients_less_its_error():
    x = np.array([900.0, 700.0, 500.0, 400.0])
    judgement = judge(
        _problem(bcgc.EmpiricalRows(TIMES)), x, np.array([True, False, True, True])
    )
    finish = np.cumsum(np.arange(1, N + 1) * x) * SORTED
    last = finish.argmax(axis=1)
    up_to_last = np.arange(N) <= last[:, None]
    slope = np.arange(1, N + 1) * up_to_last * SORTED[np.arange(S), last][:, None]
    bound = SCALE * L * slope[:, [0, 2, 3]]
    limits = bound.mean(axis=0) - stats.norm.isf(0.025) * bound.std(
        axis=0, ddof=1
    ) / np.sqrt(S)
    np.testing.assert_allclose(judgement.lower_bound, limits.min(), rtol=1e-12)
    mean = SCALE * finish.max(axis=1).mean()
    np.testing.assert_allclose(judgement.expected_runtime, mean, rtol=1e-12)


@pytest.mark.slow
def test_a_plan_for_slow_and_fast_workers_is_near_the_optimum(optimum):
    solution = bcgc.solve(_problem(LAWS), key=jax.random.key(7))
    assert _runtimes(np.asarray(solution.partition), OUTCOMES).mean() < 1.002 * optimum
    assert 0 < solution.relative_gap < 0.02
    assert not_none(solution.rounded).sum() == L
    # Judged by 65,536 draws.
    deviation = _runtimes(np.asarray(solution.partition), OUTCOMES).std()
    assert float(solution.runtime_error) == pytest.approx(deviation / 256, rel=0.05)


def _two_groups(rng, size: int) -> np.ndarray:
    slow = rng.weibull(1.3, (size, 2)) * 2.7 + 1.9
    fast = rng.exponential(1 / 3.2, (size, N - 2)) + 0.35
    return -np.sort(-np.concatenate([slow, fast], axis=1), axis=1)


TWO_GROUPS = [bcgc.Weibull(2.7, 1.3, 1.9)] * 2 + [
    bcgc.ShiftedExponential(3.2, 0.35)
] * 2
# As many draws as there are measured rows: programs for these serve here, too.
FRESH = 16 * S


@pytest.mark.slow
def test_every_method_is_judged_by_the_same_draws():
    problem, key = _problem(TWO_GROUPS), jax.random.key(5)
    law = draw_problems(key, problem, num_draws=S)[1].cycle_time
    assert isinstance(law, bcgc.EmpiricalRows)
    fresh = np.asarray(law.times)
    assert fresh.shape == (FRESH, N)
    for method in ("time", "uncoded", "tandon:2"):
        solution = bcgc.solve(problem, method, key=key, num_draws=S)
        runtimes = _runtimes(np.asarray(solution.partition), fresh)
        np.testing.assert_allclose(
            solution.expected_runtime, runtimes.mean(), rtol=1e-12
        )
        error = runtimes.std(ddof=1) / np.sqrt(FRESH)
        np.testing.assert_allclose(solution.runtime_error, error, rtol=1e-9)
        rounded = _runtimes(np.asarray(solution.rounded), fresh).mean()
        np.testing.assert_allclose(solution.rounded_runtime, rounded, rtol=1e-12)
        assert solution.kind == "confidence"
        if method == "time":
            # a loose bound has other words
            near = replace(solution, lower_bound=0.9 * solution.expected_runtime)
            assert "with 97.5 % confidence" in repr(near)
    limit = bcgc.solve(problem, "limit", key=key, num_draws=S)
    limits = L * M * B / np.sum(1 / fresh, axis=1)
    np.testing.assert_allclose(limit.expected_runtime, limits.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        limit.runtime_error, limits.std() / np.sqrt(FRESH), rtol=0.8
    )
    partial = bcgc.solve(problem, bcgc.TandonPartial(alpha=6.5), key=key, num_draws=S)
    s = np.arange(1, N)
    costs = (s + 1) / (s + 6.5) * np.maximum(6.5 * fresh[:, 1:], fresh[:, :1])
    used = (N - np.arange(N)) / N
    backup = bcgc.solve(problem, "backup", key=key, num_draws=S)
    spare = int(np.argmin(fresh.mean(axis=0) / used))
    planned = (
        (partial, costs[:, np.argmin(costs.mean(axis=0))]),
        (backup, fresh[:, spare]),
    )
    for solution, times in planned:  # five parts would prefer another level
        runtimes = SCALE * L * times
        np.testing.assert_allclose(
            solution.expected_runtime, runtimes.mean(), rtol=1e-12
        )
        parts = runtimes.reshape(16, S).mean(axis=1)
        error = parts.std(ddof=1) / 4
        np.testing.assert_allclose(solution.runtime_error, error, rtol=1e-9)
    infeasible = bcgc.solve(problem, "ferdinand:7", key=key, num_draws=S)
    assert infeasible.status == bcgc.Status.INFEASIBLE
    assert np.isnan(infeasible.expected_runtime)


@pytest.mark.slow
def test_a_deadline_and_an_added_scheme_work_for_unlike_workers():
    problem, key = _problem(TWO_GROUPS), jax.random.key(5)
    deadline = 2.2e4
    solution = bcgc.solve(problem, bcgc.Deadline(deadline), key=key, num_draws=S)
    rows = _two_groups(np.random.default_rng(4), 50_000)
    probability = (_runtimes(np.asarray(solution.partition), rows) <= deadline).mean()
    assert 0.1 < probability < 0.95
    error = np.sqrt(probability * (1 - probability) / FRESH)
    assert abs(solution.completion_probability - probability) < 4 * error
    scheme = bcgc.Scheme(
        "slowest", lambda problem, times: times[..., 0], gives="runtime"
    )
    slowest = bcgc.solve(problem, scheme, key=key, num_draws=S)
    error = rows[:, 0].std() / np.sqrt(50_000)
    assert abs(slowest.expected_runtime - rows[:, 0].mean()) < 5 * error


def test_what_cannot_be_done_for_unlike_workers_is_refused_with_advice():
    problem, key = _problem(TWO_GROUPS), jax.random.key(0)
    with pytest.raises(ValueError, match=r"Pass key=jax\.random\.key\(seed\)"):
        bcgc.solve(problem, "time")
    with pytest.raises(ValueError, match="num_draws must be"):
        bcgc.solve(problem, "time", key=key, num_draws=1)
    with pytest.raises(ValueError, match="mean of Pareto is infinite"):
        bcgc.solve(_problem([*TWO_GROUPS[:3], bcgc.Pareto(1.5, 0.9)]), "time", key=key)


def test_quantiles_of_students_t_and_the_f_distribution():
    degrees = [
        (1, 1),
        (1, 15),
        (1, 99),
        (2, 5),
        (40, 3),
        (7, 1000),
        (1e4, 9),
        (2e5, 1e6),
    ]
    for above, below in degrees:
        exact = stats.f.ppf(0.975, above, below)
        assert f_quantile(0.975, above, below) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("start", [None, 70_000.0])
def test_the_interval_of_independent_rows_is_that_of_student(start):
    """Student's interval of the mean, as much wider as `dependence` says."""
    x = np.array([900.0, 700.0, 0.0, 900.0])
    send = None if start is None else 12.0
    problem = _problem(bcgc.EmpiricalRows(TIMES), start_up=start, send_time=send)
    interval = bootstrap_interval(jax.random.key(0), problem, x)
    runtimes = _runtimes(x, SORTED)
    if start is not None:
        runtimes = np.array(
            [delivered_runtime(x, [start] * N, t, M, B, send_time=12.0) for t in TIMES]
        )
    np.testing.assert_allclose(resampling._runtimes(problem, x), runtimes, rtol=1e-5)
    mean, error = runtimes.mean(), stats.sem(runtimes)
    student = stats.t(S - 1).ppf(0.975) * error * dependence(runtimes - mean) ** 0.5
    np.testing.assert_allclose(
        (np.array(interval) - mean) / student, [-1, 1], atol=0.15
    )


def test_steps_that_are_like_the_next_ones_say_less():
    rng = np.random.default_rng(1)
    drift = signal.lfilter([0.3], [1.0, -0.9], rng.normal(size=400))
    x = np.full(N, L / N)
    widths = []
    for level in (drift, rng.permutation(drift)):
        rows = np.exp(level)[:, None] * (0.5 + rng.random((400, N)))
        problem = _problem(bcgc.EmpiricalRows(rows))
        low, high = bootstrap_interval(jax.random.key(3), problem, x)
        assert low < bcgc.expected_runtime(problem, x) < high
        widths.append(high - low)
    # A mean of the drift has (1 + 0.9) / (1 - 0.9) = 19 times the variance of
    # independent steps.
    assert 2 < widths[0] / widths[1] < 5


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="must be EmpiricalRows"):
        bootstrap_interval(jax.random.key(0), _problem(LAWS[0]), jnp.full(N, L / N))
