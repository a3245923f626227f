"""`backup` and `drop` lose samples: against harmonic numbers and NumPy's draws."""

import re

import jax
import numpy as np
import pytest
from scipy import integrate, optimize

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.balancing import remedies
from bcgc_jax.plans.stopped import Stopped
from tests.problems import not_none, slow

N = 6
START = 150.0
PROBLEM = bcgc.Problem(
    bcgc.ShiftedExponential(1.0, 0.5),
    N,
    200,
    3.0,
    2.0,
    start_up=START,
    setup_cycles=20.0,
)
WHOLE = 210.0  # M (b L + f) / N, cycles of a subset


@pytest.mark.parametrize("start", [*slow(0.0), START, 1e6])
def test_backup_leaves_out_as_many_as_make_a_used_sample_cheapest(x64, start):
    # E T_(N-B) = 1/2 + H_N - H_B.
    times = 0.5 + np.array(
        [sum(1 / j for j in range(spare + 1, N + 1)) for spare in range(N)]
    )
    step = start + WHOLE * times
    spare = int(np.argmin(step / (1 - np.arange(N) / N)))
    problem = replace(PROBLEM, start_up=start)
    solution = bcgc.solve(problem, "backup")
    with_spare = bcgc.solve(problem, f"backup:{spare}")
    assert float(solution.expected_runtime) == pytest.approx(step[spare], rel=1e-9)
    assert float(with_spare.expected_runtime) == float(solution.expected_runtime)
    needs = [1, 1 - spare / N, 0, float(spare == 0), spare / N]
    assert [float(a) for a in not_none(solution.needs)] == pytest.approx(needs)
    assert not_none(solution.plan).trainable == (spare == 0)


def test_backup_loses_no_samples_where_all_numbers_are_as_good():
    # E T_(N-B) = (N - B) / (N + 1).
    problem = bcgc.Problem(bcgc.Uniform(0.0, 1.0), 50, 100)
    assert float(not_none(bcgc.solve(problem, "backup").needs).lost) == 0


def _rule(solution: bcgc.Solution) -> Stopped:
    rule = not_none(solution.plan).completion
    assert isinstance(rule, Stopped)
    return rule


def _step(threshold, times, chunks):
    """Seconds of each step, and the used share of the samples, by plain counting."""
    ends = START + times[:, :, None] * WHOLE * np.arange(1, chunks + 1) / chunks
    in_time = ends <= threshold * (1 + 1e-12)
    return np.minimum(threshold, ends[:, :, -1].max(axis=1)), in_time.mean(axis=(1, 2))


def _whole_chunks(threshold, times, chunks):
    """As `_step`, but everyone ends the chunk that it has begun."""
    ends = START + times[:, :, None] * WHOLE * np.arange(chunks + 1) / chunks
    begun = ends[:, :, :-1] < threshold
    last = np.where(begun, ends[:, :, 1:], 0.0)
    return last.max(axis=(1, 2)), begun.mean(axis=(1, 2))


def test_who_ends_its_chunk_uses_more_and_takes_a_chunk_longer_at_most(x64):
    """The two differences that `Drop` names, by counting."""
    times = 0.5 + np.random.default_rng(2).exponential(1.0, (100_000, N))
    solution = bcgc.solve(PROBLEM, "drop")
    rule = _rule(solution)
    threshold = float(rule.threshold * PROBLEM.scale)
    (stopped, _), (ended, used) = (
        f(threshold, times, rule.chunks) for f in (_step, _whole_chunks)
    )
    clock = START + times[:, :, None] * WHOLE * np.arange(rule.chunks + 1) / rule.chunks
    for at_once, want in ((True, _step), (False, _whole_chunks)):
        seconds, used_chunks = remedies.stopped(
            threshold, clock[..., :-1], clock[..., 1:], at_once=at_once
        )
        want_seconds, share = want(threshold, times, rule.chunks)
        np.testing.assert_allclose(seconds, want_seconds, rtol=1e-12)
        np.testing.assert_allclose(used_chunks.mean(axis=(1, 2)), share, rtol=1e-12)
    all_done = START + WHOLE * times < threshold
    surplus = (1 - all_done.mean()) / rule.chunks
    expected = 1 - float(not_none(solution.needs).lost) + surplus
    assert abs(used.mean() - expected) < 4 * used.std() / np.sqrt(len(used))
    assert np.all(ended - stopped < times.max(axis=1) * WHOLE / rule.chunks + 1e-9)
    assert ended.mean() > float(solution.expected_runtime)


def test_drop_stops_where_draws_of_numpy_say(x64):
    times = 0.5 + np.random.default_rng(1).exponential(1.0, (100_000, N))
    solution = bcgc.solve(PROBLEM, "drop")
    rule, needs = _rule(solution), not_none(solution.needs)
    threshold = float(rule.threshold * PROBLEM.scale)
    seconds, used = _step(threshold, times, rule.chunks)
    for value, draws in ((solution.expected_runtime, seconds), (1 - needs.lost, used)):
        # Worst: 1.3 standard errors.
        assert abs(draws.mean() - float(value)) < 4 * draws.std() / np.sqrt(len(draws))
    # No other threshold is better at which one of the workers is done, within what
    # draws are off by.
    assert not rule.at_limit
    least = seconds.mean() / used.mean()
    first = START + WHOLE * (0.5 - np.log1p(-1 / N))
    for candidate in np.linspace(first, START + WHOLE * 8, 40):
        seconds, used = _step(candidate, times[:20_000], rule.chunks)
        assert seconds.mean() / used.mean() > 0.995 * least
    assert not bool(needs.exact_gradient)


def _best_threshold(start):
    """The threshold of the cheapest used sample, and E min(θ, max T), by SciPy."""
    first = start + WHOLE / 2

    def ended(share, t):
        return -np.expm1(-np.maximum((t - start) / (WHOLE * share) - 0.5, 0))

    def seconds(threshold):
        late = integrate.quad(
            lambda t: 1 - ended(1, t) ** N, first, threshold, epsabs=0, epsrel=1e-13
        )
        return first + late[0]

    def cost(threshold):
        return seconds(threshold) / np.mean(ended(np.arange(1, 9) / 8, threshold))

    ends = (start + WHOLE * (0.5 - np.log1p(-1 / N)), start + 8 * WHOLE)
    best = optimize.minimize_scalar(
        cost, bounds=ends, method="bounded", options={"xatol": 1e-7}
    )
    return best.x, seconds


@pytest.mark.parametrize("start", [100.0, 150.0, 250.0])
def test_the_threshold_of_drop_is_known_to_its_finest_panels(x64, start):
    solution = bcgc.solve(replace(PROBLEM, start_up=start), "drop")
    threshold = float(_rule(solution).threshold * PROBLEM.scale)
    best, seconds = _best_threshold(start)
    # Worst measured 0.015, and errors of rounding alone.
    assert threshold == pytest.approx(best, abs=0.03)
    value = float(solution.expected_runtime)
    assert value == pytest.approx(seconds(threshold), rel=1e-12)
    assert float(solution.runtime_error) < 1e-14 * value


def test_drop_of_atoms_is_a_sum_over_them(x64):
    problem = bcgc.Problem(bcgc.TwoSpeed(1.0, 5.0, 0.1), N, 200, 3.0, 2.0)
    solution = bcgc.solve(problem, "drop")
    tried = {}
    for ended in range(1, 9):  # chunks of slow workers; fast ones have ended all, by 1
        stop = max(5 * ended / 8, 1.0)
        tried[stop] = (1 + (stop - 1) * (1 - 0.9**N)) / (0.9 + 0.1 * ended / 8)
    stop = min(tried, key=tried.__getitem__)
    rule, needs = _rule(solution), not_none(solution.needs)
    assert float(rule.threshold) == pytest.approx(200 * stop)
    value = solution.expected_runtime / (1 - needs.lost)
    assert float(value) == pytest.approx(200 * tried[stop], rel=1e-9)


@pytest.mark.parametrize("workers", [4, 10])
def test_at_the_lowest_threshold_one_worker_ends_all_on_average(x64, workers):
    """Of exponential times, and of no cost of a step: ever shorter ones are better."""
    problem = bcgc.Problem(bcgc.Exponential(1.0), workers, 200)
    rule = _rule(bcgc.solve(problem, "drop"))
    assert bool(rule.at_limit)
    whole = float(problem.pass_load)
    assert float(rule.threshold) == pytest.approx(
        -np.log1p(-1 / workers) * whole, rel=1e-12
    )

    def cost(threshold):
        """Of a used sample, in lengths of a subset."""
        used = np.mean(-np.expm1(-8 * threshold / np.arange(1, 9)))
        seconds = integrate.quad(
            lambda t: 1 - (-np.expm1(-t)) ** workers, 0, threshold, epsrel=1e-12
        )
        return seconds[0] / used

    costs = [cost(float(rule.threshold) / whole * share) for share in (1.2, 1, 0.8)]
    assert costs[0] > costs[1] > costs[2]


def test_the_runtime_of_drop_has_no_derivative(x64):
    """It needs that of the threshold: at a fixed quantile it was off by 74 %."""

    def runtime(rate):
        law = bcgc.ShiftedExponential(rate, 0.5)
        return bcgc.solve(replace(PROBLEM, cycle_time=law), "drop").expected_runtime

    value, slope = jax.value_and_grad(runtime)(1.0)
    assert float(value) == pytest.approx(float(runtime(1.0)), rel=1e-12)
    assert np.isnan(slope)


def test_a_threshold_at_which_a_fifth_of_the_atoms_has_ended_is_possible():
    """In float32, where rounding makes 19.99999 % of them."""
    rng = np.random.default_rng(5)
    workers = 5
    count = np.arange(1, 11)
    alone = np.diff((count / 10) ** workers, prepend=0)  # of the slowest worker's time
    for _ in range(3):
        # The first two are much faster: it is best to wait for these only.
        atoms = np.sort(np.round(rng.uniform(1, 1.2, 10), 3)) * np.where(
            count <= 2, 1, 20
        )
        stops = np.unique(np.outer(atoms, np.arange(1, 9) / 8))
        stops = stops[stops >= atoms[1]]
        ends = np.outer(atoms, np.arange(1, 9) / 8).ravel()
        used = np.mean(ends <= stops[:, None] * (1 + 1e-12), axis=1)
        least = np.min(np.minimum(stops[:, None], atoms) @ alone / used)
        problem = bcgc.Problem(bcgc.Empirical(atoms), workers, 100, float(workers))
        solution = bcgc.solve(problem, "drop")
        value = solution.expected_runtime / (1 - not_none(solution.needs).lost)
        # Worst measured 1.4e-6.
        assert float(value) == pytest.approx(100 * least, rel=1e-5)


def test_drop_is_refused_where_no_distribution_function_says_it(x64):
    unlike = bcgc.Heterogeneous([bcgc.Exponential(1.0), bcgc.Exponential(2.0)])
    with pytest.raises(
        ValueError, match='"drop" is for independent workers that are alike'
    ):
        bcgc.solve(bcgc.Problem(unlike, 2, 100), "drop")
    plan = not_none(bcgc.solve(PROBLEM, "drop").plan)
    with pytest.raises(ValueError, match="Use simulate_runtime"):
        bcgc.expected_runtime(PROBLEM, plan)
    assert not plan.trainable


def test_what_loses_samples_is_compared_by_a_used_sample(x64, tmp_path):
    uncoded, backup, drop = (
        bcgc.solve(PROBLEM, method) for method in ("uncoded", "backup:1", "drop")
    )
    comparison = bcgc.solvers.Comparison([uncoded, backup, drop], None, uncoded)
    used = {
        name: float(solution.expected_runtime)
        / (1 - float(not_none(solution.needs).lost))
        for name, solution in comparison.items()
    }
    assert list(comparison) == sorted(used, key=used.__getitem__)
    assert backup.bound_of == drop.bound_of == ""
    assert f"{used['drop']:.6g} for as many used" in repr(drop)
    drop.save(tmp_path / "plan.json")
    from_file = bcgc.Solution.load(tmp_path / "plan.json")
    assert _rule(from_file).threshold == _rule(drop).threshold
    assert float(not_none(from_file.needs).lost) == float(not_none(drop.needs).lost)


@pytest.mark.slow
def test_what_takes_longer_in_a_row_is_said_of_a_used_sample_too():
    """Steps of `backup:2` in a row take as much longer; two of N workers are lost."""
    problem = replace(PROBLEM, start_up=0.0)
    text = str(bcgc.compare(problem, ["backup:2"]))
    value, times = re.findall(r"backup:2 (\S+) \(×(\S+)\)", " ".join(text.split()))[0]
    step = float(bcgc.solve(problem, "backup:2").expected_runtime)
    assert float(value) == pytest.approx(float(times) * step / (1 - 2 / N), rel=0.01)
