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
from tests.oracles.runtimes import delivered_runtime

X = np.array([30.0, 0.0, 50.0, 20.0, 0.0])
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
def test_atoms_are_summed_as_all_combinations_are(overlap: bool) -> None:
    x = np.array([30.0, 50.0, 20.0])
    options = {
        "send_time": 0.9,
        "overlap": overlap,
        "setup_cycles": 4.0,
        "chain_cycles": 0.1,
    }
    times = [2.5, 0.7, 1.1, 0.9]
    problem = _problem(bcgc.Empirical(times), 3, start_up=90.0, **options)
    pairs = [(90.0, t, 0.25) for t in times]
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
    problem = _problem(TIMES[time], start_up=50.0, send_time=0.7, overlap=overlap)
    value, error = _integrated(problem, jnp.asarray(X), 128)
    finer, left = _integrated(problem, jnp.asarray(X), 768)
    assert abs(float(value - finer)) <= float(error + left)
    assert float(error) < 1e-4 * float(value)


@pytest.mark.slow
def test_slopes_are_those_of_differences() -> None:
    """Slopes in the partition, start-up, rate and link, of values exact to 1e-9."""

    @jax.jit
    @jax.value_and_grad
    def value_and_slope(numbers: jax.Array) -> jax.Array:
        start, rate, send = numbers[5:]
        law = bcgc.ShiftedExponential(rate, 1.0)
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


def test_draws_of_a_problem_are_as_numpys() -> None:
    rng = np.random.default_rng(0)
    draws = 40_000
    times = 1.0 + rng.exponential(1 / 0.7, (draws, 5))
    problem = _problem(
        TIMES["shifted exponential"],
        setup_cycles=2.0,
        chain_cycles=0.1,
        send_time=0.5,
        start_up=50.0,
    )
    expected = _last(problem, X, np.full_like(times, 50.0), times)
    simulation = bcgc.simulate_runtime(
        jax.random.key(0), problem, jnp.asarray(X), draws, unit=None
    )
    error = np.hypot(simulation.standard_error, expected.std() / np.sqrt(draws))
    assert abs(simulation.mean - expected.mean()) < 4 * error
