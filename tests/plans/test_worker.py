"""Delivery of the last block: by enumeration, NumPy's draws, and what else is known."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.distributions import EmpiricalPairs
from experiments import start_ups
from experiments.start_ups import SIZE
from tests.oracles.laws import SHIFTED_EXPONENTIAL
from tests.oracles.runtimes import delivered_runtime, expected_max, load_of

X = np.array([30.0, 0.0, 50.0, 20.0, 0.0])
STARTS = {
    "weibull": bcgc.Weibull(120.0, 0.8),
    "two-point": bcgc.TwoSpeed(10.0, 300.0, 0.3),
    "uniform": bcgc.Uniform(20.0, 200.0),
}
TIMES = {
    "shifted exponential": bcgc.ShiftedExponential(0.7, 1.0),
    "atoms": bcgc.TwoSpeed(0.8, 4.0, 0.4),
    "uniform": bcgc.Uniform(0.5, 3.0),
}

pytestmark = pytest.mark.usefixtures("x64")


def _problem(time: Any, workers: int = 5, **options: Any) -> bcgc.Problem:
    return bcgc.Problem(time, workers, 100, num_samples=3.0, **options)


def _last(
    problem: bcgc.Problem, x: np.ndarray, starts: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """τ̂ for start-ups and times, `[D, N]`."""
    names = ("setup_cycles", "chain_cycles", "send_time")
    costs: Any = {
        name: float(np.asarray(getattr(problem, name) or 0.0)) for name in names
    }
    pairs = zip(starts, times, strict=True)
    costs["overlap"] = problem.overlap
    return np.array(
        [delivered_runtime(x[: len(t)], s, t, 3.0, 1.0, **costs) for s, t in pairs]
    )


def _enumerated(
    problem: bcgc.Problem, pairs: list[tuple[float, float, float]], x: np.ndarray
) -> tuple:
    """Runtimes and chances of all combinations of workers' (start-up, time, chance)."""
    workers = int(np.asarray(problem.num_workers))
    combinations = list(itertools.product(pairs, repeat=workers))
    starts, times = (
        np.array([[p[i] for p in combination] for combination in combinations])
        for i in (0, 1)
    )
    mass = np.array(
        [math.prod(p[2] for p in combination) for combination in combinations]
    )
    return _last(problem, x, starts, times), mass


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dependent", [False, True])
def test_atoms_are_summed_as_all_combinations_are(
    dependent: bool, overlap: bool
) -> None:
    x = np.array([30.0, 50.0, 20.0])
    options = {
        "send_time": 0.9,
        "overlap": overlap,
        "setup_cycles": 4.0,
        "chain_cycles": 0.1,
    }
    if dependent:
        starts = [10.0, 250.0, 40.0, 90.0]
        times = [2.5, 0.7, 1.1, 0.9]
        problem = _problem(EmpiricalPairs(starts, times), 3, **options)
        pairs = [(s, t, 0.25) for s, t in zip(starts, times, strict=True)]
    else:
        problem = _problem(
            bcgc.TwoSpeed(0.8, 3.0, 0.4), 3, start_up=STARTS["two-point"], **options
        )
        pairs = [
            (s, t, p * q)
            for s, p in ((10.0, 0.7), (300.0, 0.3))
            for t, q in ((0.8, 0.6), (3.0, 0.4))
        ]
    runtimes, mass = _enumerated(problem, pairs, x)
    value, error = bcgc.plans.integrate_runtime(problem, x)
    assert float(value) == pytest.approx(runtimes @ mass, rel=1e-13)
    assert error < 1e-10 * value
    # Between two of the runtimes, where P does not step.
    ordered = np.unique(runtimes.round(6))
    deadlines = (ordered[1:] + ordered[:-1]) / 2
    probabilities = bcgc.completion_probability(problem, x, deadlines)
    assert np.allclose(
        probabilities, [(runtimes <= t) @ mass for t in deadlines], atol=1e-13
    )


def test_measured_steps_with_one_start_up_and_a_link() -> None:
    times = np.random.default_rng(0).gamma(2.0, 1.0, (40, 5))
    for overlap in (False, True):
        problem = _problem(
            bcgc.EmpiricalRows(times), start_up=70.0, send_time=0.8, overlap=overlap
        )
        runtimes = _last(problem, X, np.full_like(times, 70.0), times)
        assert float(bcgc.expected_runtime(problem, X)) == pytest.approx(
            runtimes.mean(), rel=1e-13
        )
        probability = bcgc.completion_probability(
            problem, X, float(np.median(runtimes)) + 1e-9
        )
        assert float(probability) == pytest.approx(0.5, abs=1e-12)  # of 40 rows


# Partitions of 2, 4 and 6 workers, padded.
BATCH = np.array(
    [
        [50, 50, 0, 0, 0, 0, 0, 0],
        [25, 25, 25, 25, 0, 0, 0, 0],
        [40, 20, 10, 10, 10, 10, 0, 0],
    ]
)
SIZES = np.array([2, 4, 6])


def _values(*columns: Any) -> np.ndarray:
    """With start-ups of a density, by a program of the random problems."""
    law = bcgc.ShiftedExponential(np.float64(0.7), np.float64(1.0))
    runtimes = []
    for workers, scale, send, x in zip(*columns, strict=True):
        options: Any = {
            "max_workers": SIZE,
            "start_up": bcgc.Weibull(float(scale), 0.8),
            "overlap": True,
        }
        options |= {"send_time": float(send), "setup_cycles": 0.0, "chain_cycles": 0.0}
        problem = bcgc.Problem(law, int(workers), 100, **options)
        runtimes.append(start_ups._exact(problem, jnp.asarray(x, float), 1.0)[0])
    return np.array(runtimes)


@pytest.mark.slow
def test_one_worker_takes_the_means_of_start_up_work_and_link() -> None:
    problem = _problem(TIMES["atoms"], 1, start_up=STARTS["uniform"], send_time=0.9)
    value, error = bcgc.plans.integrate_runtime(problem, np.array([100.0]))
    assert float(value) == pytest.approx(
        110 + 300 * (0.6 * 0.8 + 0.4 * 4.0) + 90, rel=1e-6
    )
    assert float(error) < 1e-4 * float(value)
    scale, send = np.array([[30.0, 60.0, 120.0], [0.9, 0.0, 0.5]])
    runtimes = _values(
        np.ones(3, int), scale, send, np.tile(100 * np.eye(SIZE)[0], (3, 1))
    )
    np.testing.assert_allclose(
        runtimes, scale * math.gamma(2.25) + 100 * (1 + 1 / 0.7) + 100 * send, rtol=1e-6
    )


@pytest.mark.slow
def test_start_ups_that_vanish_leave_what_was_there() -> None:
    law = SHIFTED_EXPONENTIAL.case(0.7, 1.0)
    without = np.array(
        [
            expected_max(law, load_of(x[:n])) / n
            for n, x in zip(SIZES, BATCH, strict=True)
        ]
    )
    for scale in (1e-2, 1e-6, 1e-10):
        runtimes = _values(SIZES, np.full(3, scale), np.zeros(3), BATCH.astype(float))
        assert np.all(np.abs(runtimes - without) < 10 * scale + 1e-11 * without)


@pytest.mark.slow
def test_float32_is_as_float64() -> None:
    numbers = SIZES, np.array([30.0, 60.0, 120.0]), np.full(3, 0.7), BATCH.astype(float)
    exact = _values(*numbers)
    with jax.enable_x64(False):
        single = _values(*numbers)
    assert single.dtype == np.float32
    assert np.allclose(single, exact, rtol=2e-5, atol=0)


# Start-ups of a density or of two times; shifted exponential, Weibull, atoms.
_OTHERS = ((0, 1), (0, 2), (2, 0), (2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "count", "draws"), [(((0, 0),), 12, 100_000), (_OTHERS, 32, 300_000)]
)
def test_random_problems_are_as_numpys_draws(kinds, count, draws, monkeypatch):
    def cases(rng, count):
        return (start_ups._case(rng, *kinds[k % len(kinds)]) for k in range(count))

    monkeypatch.setattr(start_ups, "cases", cases)
    rows = start_ups.compute_values(3, count, draws)
    z = np.array([[row.runtime_z, row.probability_z] for row in rows])
    assert np.abs(z).max() < 4
    # Of a normal law two thirds are; a binomial count of so many problems may fall 3
    # deviations short.
    assert np.mean(np.abs(z) < 1) > 0.683 - 3 * math.sqrt(0.683 * 0.317 / z.size)


@functools.partial(jax.jit, static_argnames="num_nodes")
def _integrated(problem: bcgc.Problem, x: jax.Array, num_nodes: int) -> tuple:
    return bcgc.plans.integrate_runtime(problem, x, num_nodes=num_nodes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("time", "overlap"), [(name, name != "shifted exponential") for name in TIMES]
)
def test_the_reported_error_bounds_the_difference_to_a_finer_rule(
    time: str, overlap: bool
) -> None:
    """Of laws that test_mass_at_infimum does not hold against an oracle together."""
    problem = _problem(
        TIMES[time], start_up=STARTS["uniform"], send_time=0.7, overlap=overlap
    )
    value, error = _integrated(problem, jnp.asarray(X), 128)
    finer, left = _integrated(problem, jnp.asarray(X), 768)
    assert abs(float(value - finer)) <= float(error + left)
    assert float(error) < 1e-4 * float(value)


@pytest.mark.slow
def test_slopes_are_those_of_differences() -> None:
    """Slopes in the partition, both laws and the link, of values exact to 1e-9."""

    @jax.jit
    @jax.value_and_grad
    def value_and_slope(numbers: jax.Array) -> jax.Array:
        scale, rate, send = numbers[5:]
        law = bcgc.ShiftedExponential(rate, 1.0)
        start = bcgc.Weibull(scale, 0.8)
        return bcgc.expected_runtime(
            _problem(law, start_up=start, send_time=send), numbers[:5]
        )

    point = jnp.array([*X, 120.0, 0.7, 0.7])
    _, slope = value_and_slope(point)
    for i in np.flatnonzero(point):
        step = jnp.zeros_like(point).at[i].set(1e-3 * point[i])
        difference = (
            value_and_slope(point + step)[0] - value_and_slope(point - step)[0]
        ) / (2 * step[i])
        assert float(slope[i]) == pytest.approx(float(difference), rel=2e-4, abs=2e-5)


@pytest.mark.slow
def test_slopes_behind_each_kink_are_those_of_differences() -> None:
    """Of two start-ups, behind each of which many are done at once."""
    problem = bcgc.Problem(
        bcgc.Gamma(0.3, 1.0, 0.2), 3, 6, 3.0, start_up=bcgc.TwoSpeed(0.1, 2.0, 0.3)
    )
    value_and_slope = jax.jit(
        jax.value_and_grad(lambda x: bcgc.expected_runtime(problem, x))
    )
    x = np.array([2.0, 1.0, 3.0])
    slope = np.asarray(value_and_slope(x)[1])
    for i, step in enumerate(1e-5 * np.eye(3)):
        difference = (
            value_and_slope(x + step)[0] - value_and_slope(x - step)[0]
        ) / 2e-5
        # Worst measured 1.1e-6.
        assert slope[i] == pytest.approx(float(difference), rel=1e-5)


def test_draws_of_a_problem_are_as_numpys() -> None:
    rng = np.random.default_rng(0)
    draws = 40_000
    x = np.pad(X, (0, SIZE - X.size))
    times = 1.0 + rng.exponential(1 / 0.7, (draws, 5))
    for start_up, starts in (
        (STARTS["weibull"], 120.0 * rng.weibull(0.8, (draws, 5))),
        (50.0, np.full((draws, 5), 50.0)),
    ):
        costs: Any = {
            "setup_cycles": 2.0,
            "chain_cycles": 0.1,
            "send_time": 0.5,
            "start_up": start_up,
        }
        problem = bcgc.Problem(
            TIMES["shifted exponential"], 5, 100, max_workers=SIZE, **costs
        )
        expected = start_ups.runtimes(start_ups.Case(problem, x, None), starts, times)
        simulation = bcgc.simulate_runtime(
            jax.random.key(0), problem, x, draws, unit=None
        )
        error = np.hypot(simulation.standard_error, expected.std() / np.sqrt(draws))
        assert abs(simulation.mean - expected.mean()) < 4 * error
