"""Closed forms of Theorems 2 and 3 against independent answers and published ones."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.baselines import single_block_partition
from bcgc_jax.solvers.closed_form import (
    expected_times,
    frequency_partition,
    partition_for_times,
    time_partition,
)
from experiments.journal import partition_of
from tests.oracles.laws import SHIFTED_EXPONENTIAL
from tests.oracles.programme import best_shares, level_times
from tests.oracles.runtimes import expected_order_statistic
from tests.problems import SIZE, padded
from tests.studies import rows_of


def _closed_form(times: list[float], total: float) -> np.ndarray:
    """Theorem 2 as printed, for ascending times t_1 … t_N."""
    n = len(times)
    x = [1 / times[-1]] + [
        (1 / times[n - i - 1] - 1 / times[n - i]) / (i + 1) for i in range(1, n)
    ]
    return np.array(x) * total / sum(x)


def test_the_partition_for_given_times_solves_the_linear_programme(x64):
    times = np.array([9.0, 4.5, 4.0, 1.5, 0.7])  # slowest first
    problem = bcgc.Problem(bcgc.Uniform(0.5, 10.0), 5, 120, 3)
    partition = np.asarray(jax.jit(partition_for_times)(problem, times))
    finish = level_times(times[None])
    value, shares = best_shares(finish)
    assert np.max(finish[0] @ partition) == pytest.approx(120 * value, rel=1e-12)
    np.testing.assert_allclose(partition, 120 * shares, rtol=1e-9)


def test_both_closed_forms_agree_with_independent_quadrature(x64):
    case = SHIFTED_EXPONENTIAL.case(0.6, 0.3)
    problem = padded(case.law(), 7)
    times = [expected_order_statistic(case, 7, k) for k in range(1, 8)]
    rates = [
        1 / expected_order_statistic(case, 7, k, lambda t: 1 / t) for k in range(1, 8)
    ]
    np.testing.assert_allclose(
        time_partition(problem)[:7], _closed_form(times, 20_000), rtol=1e-7
    )
    np.testing.assert_allclose(
        frequency_partition(problem)[:7], _closed_form(rates, 20_000), rtol=1e-7
    )


def test_schemes_by_expected_times_share_the_program_for_them(x64):
    problem = padded(SHIFTED_EXPONENTIAL.case(0.6, 0.3).law(), 6)
    program: Any = expected_times
    before = program._cache_size()
    time_partition(problem)
    single_block_partition(problem)
    assert program._cache_size() <= before + 1


def test_a_time_of_zero_puts_everything_at_the_highest_level(x64):
    # E[1/T_(1)] of an exponential diverges.
    problem = padded(bcgc.ShiftedExponential(0.8), 4, 30)
    assert frequency_partition(problem).tolist() == [0, 0, 0, 30] + [0] * (SIZE - 4)


def test_an_infinite_time_leaves_its_level_empty(x64):
    # E T_(N) of a Pareto law of shape 0.8 is infinite, E T_(N-1) is not.
    partition = np.asarray(time_partition(bcgc.Problem(bcgc.Pareto(1.3, 0.8), 5, 30)))
    assert partition[0] == 0
    assert partition[1] > 0
    assert partition.sum() == pytest.approx(30)


def test_one_worker_gets_everything_uncoded(x64):
    problem = padded(bcgc.ShiftedExponential(0.8, 0.5), 1, 12)
    for partition in (time_partition(problem), frequency_partition(problem)):
        np.testing.assert_allclose(partition, 12 * np.eye(SIZE)[0], rtol=1e-15)


_PUBLISHED = Path(__file__).parents[2] / "experiments/data"


def _problem(workers, rate) -> bcgc.Problem:
    return bcgc.Problem(
        bcgc.ShiftedExponential(rate, 50.0), workers, 20_000, 50, max_workers=50
    )


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Workers, rates and expected runtimes of each scheme of Fig. 4."""
    by_scheme = defaultdict(list)
    for row in rows_of(_PUBLISHED / "published_runtimes.csv"):
        workers, rate = (
            (row["x"], 1e-3) if row["axis"] == "num_workers" else (20, row["x"])
        )
        by_scheme[row["scheme"]].append(
            (float(workers), float(rate), float(row["expected_runtime"]))
        )
    return {scheme: tuple(np.array(rows).T) for scheme, rows in by_scheme.items()}


# How far levels of Fig. 3 may be off.
_LEVELS = {"time": 1, "frequency": 2}


@pytest.mark.parametrize("scheme", [*_LEVELS, "single_block", "ferdinand_full"])
def test_runtimes_of_fig_4_and_partitions_of_fig_3_are_reproduced(
    x64, published, scheme
):
    *cells, expected = published[scheme]
    assert expected.size == 10
    cells = [(int(workers), float(rate)) for workers, rate in zip(*cells, strict=True)]
    solutions = [bcgc.solve(_problem(*cell), scheme) for cell in cells]
    runtimes = [solution.expected_runtime for solution in solutions]
    np.testing.assert_allclose(runtimes, expected, rtol=0.025)  # worst measured 0.0096
    if scheme in _LEVELS:
        counts = np.asarray(solutions[cells.index((20, 1e-3))].rounded)[:20]
        expected_counts = [
            int(row[scheme]) for row in rows_of(_PUBLISHED / "published_partitions.csv")
        ]
        np.testing.assert_allclose(
            counts, expected_counts, rtol=0, atol=_LEVELS[scheme]
        )
        assert counts.sum() == 20_000


def test_closed_forms_for_deadlines_have_one_risk_and_the_best_exponent(x64):
    law = bcgc.Weibull(3.0, 0.7, 0.5)
    problem = bcgc.Problem(law, 6, 100, 6, max_workers=7)
    level = np.arange(1, 7)
    x = np.asarray(partition_of("equal_risk", problem, 1.5e4))[:6]
    assert x.sum() == pytest.approx(100)
    late = np.exp(-np.asarray(law.cumulative_hazard(1.5e4 / np.cumsum(x * level))))
    risks = [math.comb(6, n) * late[n - 1] ** n for n in level]
    np.testing.assert_allclose(risks, risks[0], rtol=1e-6)

    def exponent(x):
        return np.min(level / np.cumsum(x * level, axis=-1), axis=-1)

    x = np.asarray(partition_of("large_deadline", problem, np.inf))
    random_partitions = 100 * np.random.default_rng(0).dirichlet(np.ones(6), 2000)
    assert x[6] == 0
    assert exponent(random_partitions).max() < exponent(x[:6])
    assert exponent(x[:6]) == pytest.approx(sum(1 / level) / 100, rel=1e-12)
