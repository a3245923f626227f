"""Work sharing as a method: its mean against plain Python, its bound against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import UNITS
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.simulation import simulate_completion
from bcgc_jax.solvers import sharing
from bcgc_jax.solvers.limit import (
    Limit,
    drawn_workers,
    enough_subsets,
    mean_bound,
    number_of_draws,
    runtime_limit,
)
from experiments.event_loop import driven
from tests.problems import not_none

pytestmark = pytest.mark.usefixtures("x64")

PROBLEM = bcgc.Problem(
    bcgc.ShiftedExponential(1e-3, 50.0),
    5,
    20,
    5,
    2,
    setup_cycles=6.0,
    start_up=1e4,
)
METHOD = bcgc.Sharing(2, 3, round_trip=500.0)
# A pass of a subset: M / N = 1 sample, 20 coordinates of 2 cycles, and 6 before.
PASS = 46.0


@pytest.fixture(scope="module")
def solution():
    with jax.enable_x64(True):
        return bcgc.solve(replace(PROBLEM, send_time=10.0), METHOD)


def _drawn(count):
    rng = np.random.default_rng(1)
    return rng.exponential(1e4, (count, 5)), PASS * (
        50 + rng.exponential(1e3, (count, 5))
    )


def test_the_mean_is_that_of_steps_chunk_by_chunk(solution):
    """With passes, start-ups, a question before each chunk, and a vector at the end."""
    rule = not_none(solution.plan).completion
    starts, times = _drawn(2000)
    seconds = rule.in_lockstep(times, starts)
    mean, error = np.mean(seconds) + 200, np.std(seconds) / 2000**0.5
    error = np.hypot(error, float(solution.runtime_error))
    assert abs(float(solution.expected_runtime) - mean) < 4 * error
    assert float(solution.runtime_error) < 0.01 * mean
    in_time = simulate_completion(
        jax.random.key(3), replace(PROBLEM, send_time=10.0), solution.plan, mean, 4000
    )
    share = np.mean(seconds + 200 <= mean)
    assert abs(float(in_time.mean) - share) < 4 * np.hypot(
        float(in_time.standard_error), 0.5 / 2000**0.5
    )


@pytest.mark.slow
def test_the_bound_is_that_of_every_set_of_slowest_workers(solution):
    """Two subsets each: k of five workers alone have 5 C(k, 2) / C(5, 2) of them."""
    starts, times = _drawn(1500)
    ends = []
    for s, t in zip(starts, times, strict=True):
        slowest = np.argsort(-t)
        low, high = np.zeros(4), np.full(4, 1e9)
        for _ in range(60):  # when so many have done so much
            middle = (low + high) / 2
            rate = np.clip(middle[:, None] - s[slowest], 0, None) / t[slowest]
            done = (
                np.cumsum(rate, axis=1)[np.arange(4), np.arange(1, 5)]
                >= np.array([1, 3, 6, 10]) / 2
            )
            low = np.where(done, low, middle)
            high = np.where(done, middle, high)
        ends.append(high.max())
    mean, error = np.mean(ends), np.std(ends) / 1500**0.5
    limit = bcgc.solve(PROBLEM, "limit:2")
    error = np.hypot(error, float(limit.runtime_error))
    assert abs(float(limit.expected_runtime) - mean) < 4 * error
    # The confidence limit of the solution is that mean less two standard errors.
    assert float(solution.lower_bound) == pytest.approx(
        float(limit.expected_runtime), rel=0.02
    )
    assert solution.bound_of == "storage"
    # Errors are those of 4,096 draws, beside a bound of 65,536.
    assert float(limit.runtime_error) == pytest.approx(np.std(ends) / 256, rel=0.15)
    seconds = solution.plan.completion.in_lockstep(times, starts)
    share = np.cov(seconds, ends)[0, 1] / np.var(ends)
    residual = np.std(seconds - share * np.array(ends)) / 64
    assert float(solution.runtime_error) == pytest.approx(
        np.hypot(residual, share * np.std(ends) / 256), rel=0.15
    )


def test_more_than_32_workers_have_fewer_draws_but_some():
    """As many times of workers in all as 32 have; a mean is known to a 16th."""
    assert [number_of_draws(3200, workers) for workers in (24, 40)] == [3200, 2560]
    assert 15 < number_of_draws(3200, 1600) ** 0.5 < 17


def test_who_would_wait_for_draws_of_thousands_of_workers_is_told():
    law = bcgc.Exponential(1.0)
    bcgc.Sharing(2).check(bcgc.Problem(law, 2000, 20))
    with pytest.raises(ValueError, match="at most 2,048 workers, got 2,100"):
        bcgc.Sharing(2).check(bcgc.Problem(law, 2100, 20))


@pytest.mark.parametrize(("fall", "chunks"), [(0.015, 64), (0.007, 1)])
def test_chunks_are_doubled_up_to_64_while_that_saves_one_per_cent(
    monkeypatch, fall, chunks
):
    def runtimes(problem, rule, drawn):
        return np.array([(1 - fall) ** np.log2(rule.chunks)])

    monkeypatch.setattr(sharing, "_runtimes", runtimes)
    drawn = np.zeros((9, 5)), np.ones((9, 5))
    assert bcgc.Sharing(2, None)._best_chunks(PROBLEM, drawn) == chunks


def test_the_limit_is_that_of_all_data_where_all_are_stored():
    plain = replace(PROBLEM, start_up=None)
    solution = bcgc.solve(plain, "limit:5")
    error = float(solution.runtime_error / solution.expected_runtime)
    assert abs(float(solution.expected_runtime / runtime_limit(plain)) - 1) < 4 * error
    drawn = drawn_workers(jax.random.key(0), plain)
    limits = [float(mean_bound(plain, drawn, stored).value) for stored in range(1, 6)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == pytest.approx(
        float(bcgc.expected_runtime(plain, [20, 0, 0, 0, 0])), rel=0.01
    )
    enough = next(d for d, limit in enumerate(limits, 1) if limit <= 1.05 * limits[-1])
    assert enough_subsets(plain) == enough


def test_no_limit_is_above_a_scheme_that_knows_who_is_slow():
    """Two of six workers are 100 times as slow: 40 passes, where 1.5 are enough."""
    rng = np.random.default_rng(0)
    times = np.array([100.0, 100, 1, 1, 1, 1]) * rng.uniform(0.9, 1.1, (200, 6))
    problem = bcgc.Problem(bcgc.EmpiricalRows(times), 6, 20, 6)
    # The four fast workers store 1.5 of the six subsets each, and do them.
    informed = np.mean(np.max(1.5 * 20 * times[:, 2:], axis=1))
    limit = bcgc.solve(problem, "limit:2")
    shared = bcgc.solve(problem, "sharing:2")
    assert float(limit.expected_runtime) <= informed
    assert float(shared.lower_bound) <= informed
    # and it is the mean of perfectly divisible work, but for the draws
    divided = np.mean(6 * 20 / np.sum(1 / times, axis=1))
    error = 4 * float(limit.runtime_error)
    assert float(limit.expected_runtime) == pytest.approx(divided, abs=error)


def test_one_worker_takes_its_mean_time_and_the_questions():
    alone = replace(PROBLEM, num_workers=1)
    solution = bcgc.solve(
        alone, bcgc.Sharing(1, 3, equal_chunks=True, round_trip=500.0)
    )
    mean = 1e4 + 5 * PASS * (50 + 1e3)
    assert float(solution.expected_runtime) == pytest.approx(mean + 3 * 500, rel=1e-12)
    assert float(solution.lower_bound) == pytest.approx(mean, rel=1e-12)
    assert float(solution.runtime_error) < 1e-9 * mean


def test_limits_of_a_batch_and_their_slopes():
    """A runtime is linear in all times: rate and shift together are a scale."""

    def limit(scale):
        law = bcgc.ShiftedExponential(1e-3 / scale, 50.0 * scale)
        return bcgc.solve(
            bcgc.Problem(law, 5, 20, 5, 2, setup_cycles=6.0), "limit:2"
        ).expected_runtime

    scales = jnp.array([1.0, 2.0])
    limits, slopes = jax.jit(jax.vmap(jax.value_and_grad(limit)))(scales)
    np.testing.assert_allclose(limits, float(limits[0]) * scales, rtol=1e-9)
    np.testing.assert_allclose(slopes, limits[0], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [2, 3])
def test_the_derivative_of_a_mean_of_draws_that_jump_is_nan(stored):
    """Also under `jit` and `vmap`, and in a loop. The value stays."""

    def runtime(rate):
        problem = bcgc.Problem(bcgc.ShiftedExponential(rate, 200.0), 3, 20, 3)
        return bcgc.solve(problem, bcgc.Sharing(stored, 2)).expected_runtime

    value, slope = jax.value_and_grad(runtime)(1e-3)
    assert float(value) == pytest.approx(float(runtime(1e-3)), rel=1e-9)
    rates = jnp.array([1e-3, 2e-3])
    slopes = [slope, jax.jit(jax.grad(runtime))(1e-3)]
    slopes += [
        jax.vmap(jax.grad(runtime))(rates),
        jax.lax.map(jax.grad(runtime), rates),
    ]
    assert all(np.isnan(s).all() for s in slopes)


@pytest.mark.parametrize("stored", [2, 5])
def test_draws_that_are_known_are_computed_step_by_step_by_numpy(stored):
    """Half of the steps have many ties, and half begin late."""
    # Four chunks, for ties that are exact.
    rule = WorkSharing(num_workers=5, max_subsets=stored, chunks=4, round_trip=0.25)
    rng = np.random.default_rng(stored)
    times = rng.exponential(size=(40, 5)) + 0.05
    times[:20] = rng.integers(1, 4, (20, 5))
    starts = rng.exponential(0.5, times.shape) * (np.arange(40) % 2)[:, None]
    ends = rule.in_lockstep(times, starts)
    seconds = times[:, :, None] * np.tile(rule.sizes, 5) / (4 * UNITS)
    want = []
    for step, begins in zip(seconds, starts, strict=True):
        ledger = Ledger(rule.stored, [rule.sizes] * 5)
        want.append(driven(ledger, step, begins, asking=Asking(0.25)).time)
    np.testing.assert_allclose(ends, want, rtol=1e-12)
    if stored < 5:
        padded = rule.in_shared_program(times, starts, max_workers=8)
        np.testing.assert_allclose(padded, want, rtol=1e-12)


@pytest.mark.slow
def test_fewer_chunks_where_questions_take_long(monkeypatch):
    """A pass takes 48,300 on average; with no questions more chunks are faster."""
    monkeypatch.setattr("bcgc_jax.solvers.sharing._MOST_CHUNKS", 8)
    plain = replace(PROBLEM, start_up=None)
    needs = [
        not_none(bcgc.solve(plain, bcgc.Sharing(2, None, True, round_trip=trip)).needs)
        for trip in (0.0, 5e4)
    ]
    assert int(needs[0].round_trips) == 8 > int(needs[1].round_trips)


def test_unlike_workers_are_bounded_by_the_limit_of_all_data():
    law = bcgc.Heterogeneous(
        [bcgc.ShiftedExponential(1e-3, 50.0)] * 4
        + [bcgc.ShiftedExponential(1e-4, 500.0)]
    )
    limits = [
        float(
            bcgc.solve(
                replace(PROBLEM, cycle_time=law, start_up=None), Limit(d)
            ).expected_runtime
        )
        for d in (2, 5)
    ]
    assert limits[0] == limits[1]


def test_a_plan_is_read_as_it_was_saved(solution, tmp_path):
    read = not_none(bcgc.Solution.load(solution.save(tmp_path / "plan.json")).plan)
    assert vars(read.completion) == vars(solution.plan.completion)
    runtime = bcgc.simulate_runtime(
        jax.random.key(0), replace(PROBLEM, send_time=10.0), read, 64
    )
    assert runtime == bcgc.simulate_runtime(
        jax.random.key(0), replace(PROBLEM, send_time=10.0), solution.plan, 64
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "sharing:7",
            "cannot store 7 subsets, because there are 5 .*second, for example "
            '"sharing:2:7"',
        ),
        ("sharing:0", 'is the number of subsets that a worker stores, or "all"'),
        ("sharing:2:3:4", "does not have the form"),
        ("limit:6", "a number of subsets that each worker stores from 1 to 5"),
        ("limit:all", 'as in "limit:1"'),
    ],
)
def test_names_that_are_none(name, words):
    with pytest.raises(ValueError, match=words):
        bcgc.solve(PROBLEM, name)


def test_names_of_methods():
    names = [
        "sharing",
        "sharing:all",
        "sharing:3:16",
        "sharing:2:8",
        "sharing:2:best",
        "limit",
        "limit:3",
    ]
    canonical_names = [bcgc.solvers.methods.method_of(name).name for name in names]
    assert canonical_names == [
        "sharing:2",
        "sharing:all",
        "sharing:3:16",
        "sharing:2",
        "sharing:2:best",
        "limit",
        "limit:3",
    ]


def test_a_traced_number_of_workers_is_refused():
    def solve(workers):
        return bcgc.solve(
            bcgc.Problem(bcgc.Uniform(1, 2), workers, 9, max_workers=3), "sharing"
        ).status

    with pytest.raises(ValueError, match="needs to know the number of workers"):
        jax.vmap(solve)(jnp.array([2, 3]))


@pytest.mark.slow
def test_whole_subsets_are_a_worse_place_for_help(solution):
    """All chunks of a subset are stored by the same two: only neighbours help."""
    whole = bcgc.solve(
        replace(PROBLEM, send_time=10.0), replace(METHOD, whole_subsets=True)
    )
    ratio = float(whole.expected_runtime / solution.expected_runtime)
    assert ratio > 1.02
    holders = not_none(whole.plan).storage(5).holders
    assert all(len(set(subset)) == 1 for subset in holders)
