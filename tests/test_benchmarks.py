"""The peers of the benchmarks do the work they claim to do."""

import numpy as np
import pytest

from benchmarks import peers


def test_the_peers_projection_meets_the_optimality_conditions():
    rng = np.random.default_rng(0)
    values = 3 * rng.standard_normal(12)
    x = peers.project(values, 2.5)
    shift = values - x
    assert x.sum() == pytest.approx(2.5)
    assert x.min() >= 0
    assert shift[x > 0].max() - shift[x > 0].min() < 1e-12  # one multiplier on the support
    assert np.all(values[x == 0] <= shift[x > 0].min() + 1e-12)


def test_the_peers_subgradient_method_beats_its_start():
    rng = np.random.default_rng(1)
    load = np.cumsum(np.arange(1, 9) * np.full(8, 12.5))
    x = peers.paper_subgradient(rng, 8, 100.0, 150, 500)
    end = np.cumsum(np.arange(1, 9) * x)
    start_runtime = peers.mean_runtime(rng, load, 20_000, np.float64)
    assert peers.mean_runtime(rng, end, 20_000, np.float64) < 0.8 * start_runtime
