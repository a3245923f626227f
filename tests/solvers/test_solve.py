"""The entry point: what it refuses, what it returns, and jit, vmap and grad of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from tests.oracles import runtimes as oracles
from tests.oracles.laws import CASES
from tests.problems import SIZE, not_none, padded, slow

pytestmark = pytest.mark.usefixtures("x64")

N = 6
L = 90
M = 14.0
B = 1.3
NAME = "shifted_exponential"
CASE = CASES[NAME]
CLOSED = (
    *("time", "frequency", "uncoded", "single_block"),
    *("tandon:3", "ferdinand_full", "ferdinand_half", "ferdinand:40"),
)


def _problem(num_workers: Any = N) -> bcgc.Problem:
    return padded(CASE.law(), num_workers, L, M, B)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("uncodd", r'unknown method "uncodd" \(did you mean "uncoded"\?\)'),
        ("xyz", r'unknown method "xyz"; known: .*time.*tandon_partial.*tandon:NUMBER'),
        ("uncoded:3", r'unknown method "uncoded:3"'),
        ("tandon", r'"tandon" takes a redundancy level from 0 to 5, as in "tandon:1"'),
        *((f"tandon:{level}", r"from 0 to 5") for level in (6, -1, 2.5)),
        ("ferdinand:0", r'"ferdinand" takes a number of layers from 1 to 90'),
        *((f"ferdinand:{layers}", r"from 1 to 90") for layers in (91, "many")),
        ("subgradient", r"Pass key=jax\.random\.key\(seed\)"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_advice(method, message):
    with pytest.raises(ValueError, match=message):
        bcgc.solve(_problem(), method)


def test_a_level_must_exist_in_every_problem_of_a_batch():
    with pytest.raises(ValueError, match="from 0 to 2"):
        bcgc.solve(_problem(num_workers=np.array([6, 3])), "tandon:3")


@pytest.mark.parametrize(
    "law", [bcgc.Pareto(2.0, 0.9), bcgc.TwoSpeed(1.5, np.inf, 0.2)]
)
def test_a_law_known_to_have_an_infinite_mean_is_refused_with_advice(law):
    refused = rf"mean of {type(law).__name__} is infinite.*Deadline"
    for method in ("time", "uncoded", "tandon_partial"):
        with pytest.raises(ValueError, match=refused):
            bcgc.solve(bcgc.Problem(law, N, L), method)


@pytest.mark.parametrize("method", ["uncoded", *slow("tandon_partial")])
def test_an_infinite_mean_that_shows_only_in_traced_values_is_a_status(method):
    shapes = np.array([0.9, 1.4])
    solutions = jax.jit(
        jax.vmap(lambda a: bcgc.solve(bcgc.Problem(bcgc.Pareto(2.0, a), 5, L), method))
    )(shapes)
    assert solutions.status.tolist() == [bcgc.Status.INFINITE, bcgc.Status.CONVERGED]
    assert np.isinf(solutions.expected_runtime).tolist() == [True, False]
    assert (solutions.lower_bound[0], solutions.relative_gap[0]) == (0, 1)


@pytest.mark.parametrize("method", CLOSED)
def test_a_solution_is_whole_evaluated_and_certified(method):
    problem = _problem()
    solution = bcgc.solve(problem, method)
    partition = np.asarray(solution.partition)
    rounded = np.asarray(solution.rounded)
    assert not np.any([partition[N:], rounded[N:]])
    partition = partition[:N]
    np.testing.assert_allclose(partition.sum(), L, rtol=1e-12)
    assert partition.min() >= 0
    assert rounded.sum() == L
    assert np.abs(rounded[:N] - partition).max() < 1
    exact = M * B / N * oracles.expected_max(CASE, oracles.load_of(partition))
    # Worst measured 1e-11.
    np.testing.assert_allclose(solution.expected_runtime, exact, rtol=1e-8)
    assert abs(solution.expected_runtime - exact) <= solution.runtime_error
    _, best = oracles.optimal_share(NAME, N)
    best = M * B * L / N * best
    assert 0 <= solution.lower_bound <= best * (1 + 1e-9)
    # The baselines have few levels, and little is known from the slopes there.
    assert solution.lower_bound > 0.5 * best or method not in ("time", "frequency")
    np.testing.assert_allclose(
        solution.relative_gap, 1 - solution.lower_bound / exact, rtol=1e-6
    )
    assert (int(solution.status), int(solution.num_steps)) == (bcgc.Status.CONVERGED, 0)
    assert (solution.method, solution.history) == (method, None)


def test_single_levels_are_where_they_say():
    levels = {
        "uncoded": 0,
        "tandon:0": 0,
        "tandon:3": 3,
        "tandon:5": 5,
        "ferdinand_full": 5,
    }
    for method, level in levels.items():
        partition = bcgc.solve(_problem(), method).partition
        np.testing.assert_allclose(
            not_none(partition), L * np.eye(SIZE)[level], rtol=1e-12
        )
    half, layers = (
        bcgc.solve(_problem(), method).partition
        for method in ("ferdinand_half", "ferdinand:45")
    )
    np.testing.assert_array_equal(not_none(half), not_none(layers))


def test_a_batch_over_workers_and_rates_is_the_loop():
    def solve(workers, rate):
        return bcgc.solve(
            padded(bcgc.ShiftedExponential(rate, 50.0), workers, L, M, B), "time"
        )

    workers, rates = jnp.array([9, 4, 6]), jnp.array([1e-3, 0.2, 8e-3])
    batch = jax.jit(jax.vmap(solve))(workers, rates)
    for i, n in enumerate(workers.tolist()):
        single = solve(n, float(rates[i]))
        for name in (
            "expected_runtime",
            "status",
            "partition",
            "lower_bound",
            "rounded",
        ):
            rtol = 1e-7 if name == "lower_bound" else 1e-9
            np.testing.assert_allclose(
                getattr(batch, name)[i], getattr(single, name), rtol=rtol
            )


def test_the_runtime_of_a_solution_has_a_slope_in_the_law():
    def numbers(rate):
        solution = bcgc.solve(
            padded(bcgc.ShiftedExponential(rate, 50.0), N, L, M, B), "uncoded"
        )
        return (
            solution.expected_runtime,
            solution.lower_bound,
            solution.runtime_error,
        ), solution.expected_runtime

    # E T_(N) = shift + H_N / rate.
    harmonic = sum(1 / j for j in range(1, N + 1))
    slopes = jax.jit(jax.jacrev(numbers, has_aux=True))
    for rate in (1e-3, 0.02):
        (slope, *unknown), value = slopes(rate)
        assert np.isnan(unknown).all()
        np.testing.assert_allclose(
            value, M * B * L / N * (50 + harmonic / rate), rtol=1e-9
        )
        np.testing.assert_allclose(
            slope, -M * B * L / N * harmonic / rate**2, rtol=1e-7
        )


def test_the_status_says_what_came_of_it():
    # 17 layers: their levels would have to sum to 17 · 6 - 90 = 12, at least 1 each.
    sparse = bcgc.solve(_problem(), "ferdinand:17")
    assert int(sparse.status) == bcgc.Status.INFEASIBLE
    assert np.isnan([sparse.expected_runtime, sparse.relative_gap]).all()
    never = bcgc.solve(
        _problem(), bcgc.Subgradient(tolerance=-1.0), key=jax.random.key(0)
    )
    assert (int(never.status), int(never.num_steps)) == (bcgc.Status.STEP_LIMIT, 2000)
    assert not_none(never.history).size == 21
    assert not_none(never.rounded).sum() == L
    np.testing.assert_allclose(
        not_none(never.history)[-1], never.expected_runtime, rtol=1e-5
    )


@pytest.mark.slow
def test_one_worker_alone_has_no_partial_stragglers():
    alone, four = (bcgc.solve(_problem(n), "tandon_partial") for n in (1, 4))
    assert [int(solution.status) for solution in (alone, four)] == [
        bcgc.Status.INFEASIBLE,
        bcgc.Status.CONVERGED,
    ]
    assert np.isnan([alone.expected_runtime, four.expected_runtime]).tolist() == [
        True,
        False,
    ]
    assert alone.partition is None
