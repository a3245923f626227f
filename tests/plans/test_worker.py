"""When the last block is delivered: against enumeration, NumPy's draws, and what is known without."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.distributions import JointLaw, Pairs
from experiments import start_ups
from experiments.start_ups import SIZE
from tests.oracles.runtimes import delivered_runtime

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


def _problem(time: bcgc.distributions.Law | JointLaw, workers: int = 5, **more: object) -> bcgc.Problem:
    return bcgc.Problem(time, workers, 100, num_samples=3.0, **more)  # type: ignore[arg-type]


def _last(problem: bcgc.Problem, x: np.ndarray, starts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """τ̂ for start-ups and times, `[D, N]`."""
    names = ("setup_cycles", "chain_cycles", "send_time")
    given: Any = {name: float(np.asarray(getattr(problem, name) or 0.0)) for name in names}
    each = zip(starts, times, strict=True)
    given["overlap"] = problem.overlap
    return np.array([delivered_runtime(x[: len(t)], s, t, 3.0, 1.0, **given) for s, t in each])


def _enumerated(problem: bcgc.Problem, pairs: list[tuple[float, float, float]], x: np.ndarray) -> tuple:
    """Every combination of the workers' (start-up, time, probability): runtimes and probabilities."""
    workers = int(np.asarray(problem.num_workers))
    found = list(itertools.product(pairs, repeat=workers))
    starts, times = (np.array([[p[i] for p in one] for one in found]) for i in (0, 1))
    mass = np.array([math.prod(p[2] for p in one) for one in found])
    return _last(problem, x, starts, times), mass


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dependent", [False, True])
def test_atoms_are_summed_as_all_combinations_are(dependent: bool, overlap: bool) -> None:
    x = np.array([30.0, 50.0, 20.0])
    more = {"send_time": 0.9, "overlap": overlap, "setup_cycles": 4.0, "chain_cycles": 0.1}
    if dependent:
        starts, times = [10.0, 250.0, 40.0, 90.0], [2.5, 0.7, 1.1, 0.9]
        problem = _problem(Pairs(starts, times), 3, **more)
        pairs = [(s, t, 0.25) for s, t in zip(starts, times, strict=True)]
    else:
        problem = _problem(bcgc.TwoSpeed(0.8, 3.0, 0.4), 3, start_up=STARTS["two-point"], **more)
        pairs = [(s, t, p * q) for s, p in ((10.0, 0.7), (300.0, 0.3)) for t, q in ((0.8, 0.6), (3.0, 0.4))]
    runtimes, mass = _enumerated(problem, pairs, x)
    value, error = bcgc.plans.integrate_runtime(problem, x)
    assert float(value) == pytest.approx(runtimes @ mass, rel=1e-13)
    assert error < 1e-10 * value
    # Between two of the runtimes, where P does not step.
    ordered = np.unique(runtimes.round(6))
    deadlines = (ordered[1:] + ordered[:-1]) / 2
    found = bcgc.completion_probability(problem, x, deadlines)
    assert np.allclose(found, [(runtimes <= t) @ mass for t in deadlines], atol=1e-13)


def test_measured_steps_with_one_start_up_and_a_link() -> None:
    times = np.random.default_rng(0).gamma(2.0, 1.0, (40, 5))
    for overlap in (False, True):
        problem = _problem(bcgc.Rows(times), start_up=70.0, send_time=0.8, overlap=overlap)
        runtimes = _last(problem, X, np.full_like(times, 70.0), times)
        assert float(bcgc.expected_runtime(problem, X)) == pytest.approx(runtimes.mean(), rel=1e-13)
        late = np.mean(runtimes <= np.median(runtimes))
        found = bcgc.completion_probability(problem, X, float(np.median(runtimes)) + 1e-9)
        assert float(found) == pytest.approx(late, abs=1e-12)


@pytest.mark.parametrize(
    "time", ["shifted exponential", *(pytest.param(t, marks=pytest.mark.slow) for t in ("atoms", "uniform"))]
)
def test_without_a_start_up_link_and_chain_all_is_as_it_was(time: str) -> None:
    """Worst relative difference measured: 6e-15, of quadratures with other nodes."""
    plain = _problem(TIMES[time], setup_cycles=0.0)
    nothing = replace(plain, start_up=0.0, send_time=0.0, chain_cycles=0.0)
    for function in (bcgc.expected_runtime, lambda p, x: bcgc.completion_probability(p, x, 400.0)):
        assert float(function(nothing, X)) == pytest.approx(float(function(plain, X)), rel=1e-12)
    slopes = [jax.grad(bcgc.expected_runtime, 1)(problem, jnp.asarray(X)) for problem in (plain, nothing)]
    used = X > 0
    assert np.allclose(slopes[0][used], slopes[1][used], rtol=1e-7)


def test_a_start_up_that_vanishes_leaves_what_was_there() -> None:
    plain = _problem(TIMES["shifted exponential"])
    value = float(bcgc.expected_runtime(plain, X))
    for scale in (1e-2, 1e-6, 1e-10):
        short = replace(plain, start_up=bcgc.Weibull(scale, 0.8))
        assert abs(float(bcgc.expected_runtime(short, X)) - value) < 10 * scale + 1e-11 * value


def _close_to_draws(rows: list[start_ups.Value]) -> None:
    z = np.array([[row.runtime_z, row.probability_z] for row in rows])
    assert np.abs(z).max() < 4
    # Of a normal law two thirds are; a binomial count of so many problems may fall 3 deviations short.
    least = 0.683 - 3 * math.sqrt(0.683 * 0.317 / z.size)
    assert np.mean(np.abs(z) < 1) > least


def test_random_problems_are_as_numpys_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        start_ups, "cases", lambda rng, count: (start_ups._case(rng, k % 2, 0) for k in range(count))
    )
    _close_to_draws(start_ups.compute_values(3, 12, 100_000))


@pytest.mark.slow
def test_random_problems_of_all_families_are_as_numpys_draws() -> None:
    _close_to_draws(start_ups.compute_values(0, 45, 300_000))


@functools.partial(jax.jit, static_argnames="num_nodes")
def _integrated(problem: bcgc.Problem, x: jax.Array, num_nodes: int) -> tuple:
    return bcgc.plans.integrate_runtime(problem, x, num_nodes=num_nodes)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("start", "time"), [*(("uniform", time) for time in TIMES), ("weibull", "uniform")])
def test_the_reported_error_bounds_the_difference_to_a_finer_rule(
    start: str, time: str, overlap: bool
) -> None:
    """Of laws that test_mass_at_infimum does not hold against an oracle together."""
    problem = _problem(TIMES[time], start_up=STARTS[start], send_time=0.7, overlap=overlap)
    value, error = _integrated(problem, jnp.asarray(X), 128)
    finer, left = _integrated(problem, jnp.asarray(X), 768)
    assert abs(float(value - finer)) <= float(error + left)
    assert float(error) < 1e-4 * float(value)


@pytest.mark.parametrize(
    ("start", "time"),
    [
        ("weibull", "shifted exponential"),
        pytest.param("two-point", "shifted exponential", marks=pytest.mark.slow),
        pytest.param("weibull", "atoms", marks=pytest.mark.slow),
    ],
)
def test_slopes_are_those_of_differences(start: str, time: str) -> None:
    problem = _problem(TIMES[time], start_up=STARTS[start], send_time=0.7)
    _check_slopes(lambda x: bcgc.expected_runtime(problem, x), jnp.asarray(X), 2e-5)


@pytest.mark.slow
def test_slopes_in_the_parameters_are_those_of_differences() -> None:
    """Of the start-up's law, the cycle time's and the link."""

    def value(parameters: jax.Array) -> jax.Array:
        scale, rate, send = parameters
        problem = _problem(
            bcgc.ShiftedExponential(rate, 1.0), start_up=bcgc.Weibull(scale, 0.8), send_time=send
        )
        return bcgc.expected_runtime(problem, jnp.asarray(X))

    _check_slopes(value, jnp.array([120.0, 0.7, 0.7]), 2e-5)


def _check_slopes(value: Callable[[jax.Array], jax.Array], at: jax.Array, tolerance: float) -> None:
    """Central differences of values exact to 1e-9 or so, the step a 1e-3 of each number."""
    slope = jax.grad(value)(at)
    for i in np.flatnonzero(np.asarray(at)):
        step = jnp.zeros_like(at).at[i].set(1e-3 * at[i])
        difference = (value(at + step) - value(at - step)) / (2 * step[i])
        assert float(slope[i]) == pytest.approx(float(difference), rel=tolerance * 10, abs=tolerance)


def test_a_batch_is_as_a_loop_and_float32_as_float64() -> None:
    x = np.zeros((3, SIZE))
    x[0, :2], x[1, :4], x[2, :6] = 50, 25, [40, 20, 10, 10, 10, 10]

    def value(workers: jax.Array, start: jax.Array, x: jax.Array) -> jax.Array:
        problem = bcgc.Problem(
            TIMES["shifted exponential"], workers, 100, max_workers=SIZE, start_up=bcgc.Weibull(start, 0.8)
        )
        return bcgc.expected_runtime(problem, x)

    workers, scales = jnp.array([2, 4, 6]), jnp.array([30.0, 60.0, 120.0])
    together = jax.jit(jax.vmap(value))(workers, scales, jnp.asarray(x))
    one_by_one = [value(*one) for one in zip(workers, scales, jnp.asarray(x), strict=True)]
    assert np.allclose(together, np.stack(one_by_one), rtol=1e-12)
    with jax.enable_x64(False):
        single = value(jnp.asarray(6), jnp.asarray(120.0), jnp.asarray(x[2]))
        assert single.dtype == np.float32
        assert float(single) == pytest.approx(float(together[2]), rel=2e-5)


def test_draws_of_a_problem_have_its_expected_runtime() -> None:
    x = np.zeros(SIZE)
    x[:5] = X
    for more in ({"start_up": STARTS["weibull"]}, {"start_up": 50.0}):
        problem = bcgc.Problem(TIMES["shifted exponential"], 5, 100, max_workers=SIZE, send_time=0.5, **more)
        found = bcgc.simulate_runtime(jax.random.key(0), problem, x, 40_000)
        assert abs(found.mean - bcgc.expected_runtime(problem, x)) < 4 * found.standard_error
