"""The published values of the paper's Fig. 3 and Fig. 4, and the journal version's closed forms."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import bcgc_jax as bcgc
from experiments.journal import partition_of

_PUBLISHED = Path(__file__).parents[1] / "experiments/data"


def _rows(name: str) -> list[dict[str, str]]:
    with (_PUBLISHED / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _problem(workers, rate) -> bcgc.Problem:
    return bcgc.Problem(bcgc.ShiftedExponential(rate, 50.0), workers, 20_000, 50, max_workers=50)


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Workers, rates and expected runtimes of each scheme of Fig. 4."""
    by_scheme = defaultdict(list)
    for row in _rows("published_runtimes.csv"):
        workers, rate = (row["x"], 1e-3) if row["axis"] == "num_workers" else (20, row["x"])
        by_scheme[row["scheme"]].append((float(workers), float(rate), float(row["expected_runtime"])))
    return {scheme: tuple(np.array(rows).T) for scheme, rows in by_scheme.items()}


# How far levels of Fig. 3 may be off.
_LEVELS = {"time": 1, "frequency": 2}


@pytest.mark.parametrize("scheme", [*_LEVELS, "single_block", "ferdinand_full"])
def test_runtimes_of_fig_4_and_partitions_of_fig_3_are_reproduced(x64, published, scheme):
    *cells, known = published[scheme]
    assert known.size == 10
    cells = [(int(workers), float(rate)) for workers, rate in zip(*cells, strict=True)]
    solutions = [bcgc.solve(_problem(*cell), scheme) for cell in cells]
    runtimes = [solution.expected_runtime for solution in solutions]
    np.testing.assert_allclose(runtimes, known, rtol=0.025)  # worst measured 0.0096
    if scheme in _LEVELS:
        counts = np.asarray(solutions[cells.index((20, 1e-3))].rounded)[:20]
        expected = [int(row[scheme]) for row in _rows("published_partitions.csv")]
        np.testing.assert_allclose(counts, expected, rtol=0, atol=_LEVELS[scheme])
        assert counts.sum() == 20_000


def test_closed_forms_for_deadlines_have_one_risk_and_the_best_exponent(x64):
    law = bcgc.Weibull(3.0, 0.7, 0.5)
    problem, level = bcgc.Problem(law, 6, 100, 6, max_workers=7), np.arange(1, 7)
    x = np.asarray(partition_of("equal_risk", problem, 1.5e4))[:6]
    assert x.sum() == pytest.approx(100)
    late = np.exp(-np.asarray(law.cumulative_hazard(1.5e4 / np.cumsum(x * level))))
    risks = [math.comb(6, n) * late[n - 1] ** n for n in level]
    np.testing.assert_allclose(risks, risks[0], rtol=1e-6)

    def exponent(x):
        return np.min(level / np.cumsum(x * level, axis=-1), axis=-1)

    x = np.asarray(partition_of("large_deadline", problem, np.inf))
    others = 100 * np.random.default_rng(0).dirichlet(np.ones(6), 2000)
    assert x[6] == 0
    assert exponent(others).max() < exponent(x[:6])
    assert exponent(x[:6]) == pytest.approx(sum(1 / level) / 100, rel=1e-12)
