"""Runtimes of a draw in Python, Theorem 1 by brute force, deadlines, certificates."""

import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.marks import marks_of, search_rule
from bcgc_jax.plans.simulation import simulate_completion
from tests.oracles import runtimes as oracles
from tests.oracles.laws import CASES
from tests.oracles.programme import best_of_two_speeds

pytestmark = pytest.mark.usefixtures("x64")

SAMPLES, CYCLES = 6.0, 0.7
PARTITION = np.array([20.0, 0.0, 15.0, 30.0, 5.0, 30.0])


def _draws(rng: np.random.Generator, count: int, workers: int) -> np.ndarray:
    """Unsorted cycle times, with ties."""
    return np.round(rng.gamma(1.5, 2.0, (count, workers)), 1) + 0.1


def _problem(name: str, workers: int) -> bcgc.Problem:
    return bcgc.Problem(CASES[name].law(), workers, 100, SAMPLES, CYCLES)


def _equation_5(x, times, samples: float, cycles: float) -> float:
    return oracles.delivered_runtime(x, np.zeros(len(times)), times, samples, cycles)


@pytest.mark.parametrize(
    "law", [bcgc.Uniform(1.0, 2.5), bcgc.ShiftedExponential(0.4, 1.0)]
)
def test_nodes_beyond_a_search_rule_have_no_weight(law):
    @jax.jit
    def weights(load):
        rule = search_rule(law, marks_of(law, load, 3), load, 32)
        return rule.nodes(jnp.arange(3 * rule.size), 2)[1].reshape(3, -1)

    first, second, beyond = weights(jnp.array([2.0, 3.0, 5.0]))
    assert np.all(beyond == 0)
    assert np.sum(first) + np.sum(second) > 0


def test_runtimes_of_draws_are_equations_2_and_5(precision):
    """In any order of the levels, of schemes and draws in all pairs."""
    rng = np.random.default_rng(1)
    for workers in (1, 5):
        x = rng.dirichlet(np.full(workers, 0.7), 6) * 40
        x[x < 1] = 0
        times = _draws(rng, 5, workers)
        levels = rng.integers(0, workers, (6, 11))
        for function, schemes, loop in (
            (bcgc.block_runtime, x, _equation_5),
            (bcgc.coordinate_runtime, levels, oracles.coordinate_runtime),
        ):
            expected = [[loop(a, t, SAMPLES, CYCLES) for t in times] for a in schemes]
            runtimes = jax.jit(function)(
                schemes[:, None], times, num_samples=SAMPLES, cycles=CYCLES
            )
            assert runtimes.dtype == precision
            # Worst measured 4e-16, 2e-7.
            np.testing.assert_allclose(
                runtimes, expected, rtol=10 * np.finfo(precision).eps
            )


@pytest.mark.parametrize("overlap", [False, True])
def test_block_runtime_waits_for_workers_that_start_up_and_send(precision, overlap):
    rng = np.random.default_rng(7)
    times = _draws(rng, 6, 5)
    starts = rng.weibull(0.7, (6, 5)) * 30
    starts[2] = 0
    times[3, 1], starts[4, 2] = np.inf, np.inf  # one never computes, one never starts
    x = rng.dirichlet(np.full(5, 0.7), 6) * 40
    x[x < 1] = 0
    x[3:5, 0] = 0
    options: dict[str, Any] = {
        "setup_cycles": 1.3,
        "chain_cycles": 0.4,
        "send_time": 0.9,
        "overlap": overlap,
    }
    workers = list(zip(starts, times, strict=True))
    loop = [
        [
            oracles.delivered_runtime(a, s, t, SAMPLES, CYCLES, **options)
            for s, t in workers
        ]
        for a in x
    ]
    options |= {"num_samples": SAMPLES, "cycles": CYCLES}
    runtimes = bcgc.block_runtime(x[:, None], times, start_ups=starts, **options)
    assert runtimes.dtype == precision
    # Worst measured 2e-16, 1e-7.
    np.testing.assert_allclose(runtimes, loop, rtol=10 * np.finfo(precision).eps)
    options["send_time"] = 0.0
    three_times = times[:3]
    plain = bcgc.block_runtime(x[:3], three_times, **options)
    runtimes = bcgc.block_runtime(x[:3], three_times, start_ups=7.5, **options)
    np.testing.assert_allclose(runtimes, plain + 7.5, rtol=10 * np.finfo(precision).eps)


def test_levels_in_ascending_order_lose_nothing_and_are_partitions():
    """Lemma 1 and Theorem 1, by brute force over every s."""
    workers, coordinates = 3, 5
    times = _draws(np.random.default_rng(3), 6, workers)
    all_levels = np.array(list(itertools.product(range(workers), repeat=coordinates)))
    runtime = np.asarray(bcgc.coordinate_runtime(all_levels[:, None], times))
    in_order = np.asarray(
        bcgc.coordinate_runtime(np.sort(all_levels, axis=1)[:, None], times)
    )
    assert np.all(in_order <= runtime * (1 + 1e-14))
    assert np.any(in_order < 0.9 * runtime)
    partitions = np.array(
        [np.bincount(levels, minlength=workers) for levels in all_levels]
    )
    assert len(np.unique(partitions, axis=0)) == math.comb(
        workers + coordinates - 1, coordinates
    )
    np.testing.assert_allclose(
        bcgc.block_runtime(partitions[:, None], times), in_order, rtol=1e-14
    )


_probability = jax.jit(bcgc.completion_probability)


@functools.partial(jax.jit, static_argnames="num_draws")
def _simulate(keys, problem, partition, num_draws):
    return jax.vmap(
        lambda key: bcgc.simulate_runtime(key, problem, partition, num_draws, unit=None)
    )(keys)


@pytest.mark.parametrize("name", ["weibull_07", "two_speed"])
def test_simulation_is_within_its_error_of_the_exact_value(name):
    estimate = _simulate(
        jax.random.split(jax.random.key(4), 4), _problem(name, 6), PARTITION, 20_000
    )
    load = oracles.load_of(PARTITION)
    exact = SAMPLES * CYCLES / 6 * oracles.expected_max(CASES[name], load)
    assert np.all(
        np.abs(np.asarray(estimate.mean) - exact)
        < 4 * np.asarray(estimate.standard_error)
    )
    sorted_draws = oracles.slowest_first(
        CASES[name], np.random.default_rng(4), 50_000, 6
    )
    expected = (
        SAMPLES * CYCLES / 6 * (sorted_draws * load).max(1).std() / math.sqrt(20_000)
    )
    np.testing.assert_allclose(estimate.standard_error, expected, rtol=0.15)


@pytest.mark.parametrize("name", ["weibull_07", "uniform", "two_speed"])
def test_the_completion_probability_is_that_of_the_recursion(name):
    rng = np.random.default_rng(9)
    workers = 20
    case = CASES[name]
    problem = _problem(name, workers)
    scale = SAMPLES * CYCLES / workers
    partitions = 100 * rng.dirichlet(np.full(workers, 0.5), 2)
    partitions[0, :3] = 0
    for partition in partitions:
        load = oracles.load_of(partition)
        draws = scale * (oracles.slowest_first(case, rng, 20_000, workers) * load).max(
            1
        )
        # Midway between draws, so that no deadline is an atom of the law.
        spread = np.unique(
            np.round(
                np.quantile(draws, [0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]), 9
            )
        )
        # Nine in all, for one program.
        later = 1.5 * spread[-1] * np.arange(1, 10 - spread.size)
        deadlines = np.concatenate([1.0001 * spread, later])
        actual = np.asarray(_probability(problem, partition, deadlines))
        late = oracles.exceedance(case, load, deadlines / scale)
        # Worst measured 2e-14.
        np.testing.assert_allclose(actual, 1 - late, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["shifted_exponential", "two_speed"])
def test_the_completion_probability_runs_from_0_to_1(name, precision):
    earliest = (
        SAMPLES * CYCLES / 6 * oracles.load_of(PARTITION)[-1] * CASES[name].infimum
    )
    deadlines = np.array([0.0, 0.999 * earliest, 1e12, np.inf])
    actual = _probability(_problem(name, 6), PARTITION, deadlines)
    assert actual.dtype == precision
    # worst measured 5
    np.testing.assert_allclose(actual, [0, 0, 1, 1], atol=30 * np.finfo(precision).eps)
    assert np.all((actual >= 0) & (actual <= 1))


def test_a_deadline_met_exactly_counts():
    # Scale 1; loads 2, 4, 4, 4: the runtime is 6 if all are fast, 15 with one slow
    # worker, else 30.
    problem = bcgc.Problem(bcgc.TwoSpeed(1.5, 7.5, 0.25), 4, 3, num_samples=4.0)
    actual = _probability(
        problem, jnp.array([2.0, 1.0, 0.0, 0.0]), jnp.array([[5.99, 6.0], [15.0, 30.0]])
    )
    fast = 0.75**4
    np.testing.assert_allclose(
        actual, [[0, fast], [fast + 4 * 0.25 * 0.75**3, 1]], atol=1e-14
    )


@pytest.mark.parametrize("rows", [False, True])
def test_a_deadline_met_exactly_counts_whatever_rounding_says(precision, rows):
    # As above, in fractions: no runtime is a binary number.
    fast, slow, load = Fraction(3, 10), Fraction(13, 10), Fraction(29, 10)
    count = [Fraction(81, 256), Fraction(189, 256), Fraction(1)]
    law: Any = bcgc.TwoSpeed(float(fast), float(slow), 0.25)
    if rows:
        steps = [[fast] * 4, [slow, fast, fast, fast], [slow] * 4]
        law = bcgc.EmpiricalRows(np.array(steps, float))
        count = [Fraction(1, 3), Fraction(2, 3), Fraction(1)]
    partition = jnp.array([float(load), float(3 - load), 0.0, 0.0])
    whole = load + 2 * (3 - load)
    for samples in range(1, 11):
        problem = bcgc.Problem(law, 4, 3, num_samples=samples)
        ends = [fast * whole, max(slow * load, fast * whole), slow * whole]
        deadlines = [float(end * samples / 4) for end in ends]
        actual = _probability(problem, partition, jnp.array([[0.0, *deadlines]]))
        np.testing.assert_allclose(actual[0, 1:], np.array(count, float), atol=1e-6)
        drawn = simulate_completion(
            jax.random.key(0), problem, partition, deadlines[2], 100
        )
        assert drawn.mean == 1


def test_the_slope_of_the_completion_probability_is_that_of_central_differences():
    partition = np.array([20.0, 4.0, 15.0, 30.0, 5.0])
    workers = 5
    deadline = 350.0
    case = CASES["weibull_3"]
    problem = _problem("weibull_3", 5)
    slope = jax.jit(jax.grad(bcgc.completion_probability, 1))(
        problem, partition, deadline
    )
    h = 1e-3 * partition
    steps = np.concatenate([partition + np.diag(h), partition - np.diag(h)])
    loads = np.array([oracles.load_of(row) for row in steps])
    t = np.full(2 * workers, deadline / (SAMPLES * CYCLES / workers))
    late = oracles.exceedance(case, loads, t)
    exact = -(late[:workers] - late[workers:]) / (2 * h)
    assert 0.05 < late[0] < 0.95
    np.testing.assert_allclose(slope, exact, rtol=1e-4)


def test_second_slopes_of_the_completion_probability_are_those_of_a_power():
    """Of P(T ≤ t)^N, in the rate and in t."""

    def probability(rate, deadline, law=bcgc.ShiftedExponential):
        return bcgc.completion_probability(
            bcgc.Problem(law(rate, 0.3), 4, 3), np.array([3.0, 0, 0, 0]), deadline
        )

    rate, t = 0.8, 2.1
    hessian = jax.jit(jax.hessian(probability, argnums=(0, 1)))(rate, t)
    excess = t / 0.75 - 0.3
    late = np.exp(-rate * (t / 0.75 - 0.3))
    slope = np.array([excess, rate / 0.75]) * late
    second = (
        np.array(
            [[-(excess**2), (1 - rate * excess) / 0.75], [0, -((rate / 0.75) ** 2)]]
        )
        * late
    )
    second[1, 0] = second[0, 1]
    exact = 12 * (1 - late) ** 2 * np.outer(slope, slope) + 4 * (1 - late) ** 3 * second
    np.testing.assert_allclose(hessian, exact, rtol=1e-12)


@pytest.mark.slow
def test_single_precision_keeps_both_tails_of_the_completion_probability():
    with jax.enable_x64(False):
        name = "shifted_exponential"
        deadlines = np.array([2e4, 5e4, 1e5, 3e5])
        late = oracles.exceedance(
            CASES[name], oracles.load_of(PARTITION), deadlines * 6 / (SAMPLES * CYCLES)
        )
        actual = _probability(_problem(name, 6), PARTITION, deadlines)
        assert actual.dtype == jnp.float32
        # Worst measured 3e-7.
        np.testing.assert_allclose(actual, 1 - late, atol=5e-6, rtol=0)


@jax.jit
def _certify(law, partition, workers):
    partition = jnp.pad(partition, (0, 12 - partition.size))
    problem = bcgc.Problem(law, workers, 100, SAMPLES, CYCLES, max_workers=12)
    return bcgc.certificate(problem, partition)


@pytest.mark.parametrize("name", ["shifted_exponential", "two_speed"])
def test_no_lower_bound_is_above_the_optimum_found_elsewhere(name):
    case = CASES[name]
    workers = 8
    rng = np.random.default_rng(10)
    if case.atoms:
        fast, slow, probability = case.parameters
        best = best_of_two_speeds(fast, slow, probability, workers)
    else:
        _, best = oracles.optimal_share(name, workers)
    best *= 100 * SAMPLES * CYCLES / workers
    bounds = []
    for share in np.concatenate([np.eye(workers), rng.dirichlet(np.ones(workers), 8)]):
        value, _, lower, gap = _certify(case.law(), jnp.asarray(100 * share), workers)
        assert 0 <= lower <= best * (1 + 1e-9)
        np.testing.assert_allclose(gap, 1 - lower / value, rtol=1e-12)
        bounds.append(float(lower))
    assert max(bounds) > 0.5 * best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gap"), [("shifted_exponential", 1e-4), ("pareto_12", 1e-2)]
)
def test_the_certificate_closes_at_an_optimum_found_elsewhere(name, gap):
    case = CASES[name]
    workers = 8
    share, value = oracles.optimal_share(name, workers)
    result = _certify(case.law(), jnp.asarray(100 * share), workers)
    np.testing.assert_allclose(
        result.expected_runtime, 100 * SAMPLES * CYCLES / workers * value, rtol=1e-8
    )
    # Worst measured 1e-5, and 5e-3 where the optimum has an empty level (differences
    # see no slope there).
    assert 0 <= result.relative_gap < gap
