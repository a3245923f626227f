"""Regressions against NumPy's."""

import numpy as np
import pytest

from bcgc_jax.measured.start_up_moments import Estimate, lines, lines_of_cells

LOADS = np.array([100.0, 200.0, 400.0])


def _cells(seed, count, dependence, noise):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, count))
    z[1] = dependence * z[0] + np.sqrt(1 - dependence**2) * z[1]
    start, cycle = np.exp(0.5 + 0.5 * z[0]), 0.01 + 0.01 * np.exp(0.6 * z[1])
    seconds = start[:, None] + cycle[:, None] * LOADS + noise * rng.normal(size=(count, 3))
    cell = np.repeat(np.arange(count), 3)
    return start, cycle, lines_of_cells(seconds.ravel(), np.tile(LOADS, count), cell, cell // 10)


def test_the_line_of_each_cell_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    cell = rng.integers(40, size=150)
    load, seconds = rng.uniform(1, 9, 150), rng.uniform(1, 9, 150)
    found = lines_of_cells(seconds, load, cell, cell // 4)
    names = [c for c in np.unique(cell) if np.sum(cell == c) > 1]
    assert found.step.tolist() == [c // 4 for c in names]
    rest, spare, errors = 0.0, 0, np.zeros((2, 2))
    for k, c in enumerate(names):
        x, y = load[cell == c], seconds[cell == c]
        slope, start = np.polyfit(x, y, 1)
        assert (found.start_up[k], found.cycle[k]) == pytest.approx((start, slope), rel=1e-8)
        rest, spare = rest + np.sum((y - start - slope * x) ** 2), spare + x.size - 2
        design = np.stack([np.ones_like(x), x], axis=1)
        errors += np.linalg.inv(design.T @ design) / len(names)
    np.testing.assert_allclose(found.noise, rest / spare * errors, rtol=1e-8)


def test_cells_of_one_load_have_no_line():
    found = lines_of_cells(np.ones(3), np.array([1.0, 2.0, 2.0]), np.array([0, 1, 1]), np.zeros(3, int))
    assert found.start_up.size == 0


@pytest.mark.parametrize("dependence", [0.6, -0.5])
def test_dependence_is_found_through_the_noise(dependence):
    start, cycle, found = _cells(1, 2000, dependence, 0.05)
    np.testing.assert_allclose(found.covariance(), np.cov(start, cycle), rtol=0.1, atol=2e-4)
    np.testing.assert_allclose(np.cov(found.without_noise().T), found.covariance(), rtol=1e-6)
    means, covariance = found.means()
    assert np.all(np.abs(means - [start.mean(), cycle.mean()]) < 0.02 * means)
    assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_the_variance_of_three_loads_tells_that_of_the_start_up():
    rng = np.random.default_rng(3)
    load = np.tile(LOADS, 4000)
    z = rng.normal(size=(2, load.size))
    dependent = 2 + z[0] + load * (0.03 + 0.005 * (0.8 * z[0] + 0.6 * z[1]))
    independent = 2 + z[0] + load * (0.03 + 0.005 * z[1])
    step = np.arange(load.size) // 10
    for seconds in (dependent, independent):
        found = lines(seconds, load, step)
        assert np.all(np.abs(found.means - [2, 0.03]) < 3 * np.sqrt(np.diag(found.covariance)))
        told = found.variance
        assert abs(told.value - 1) < 3 * told.error < 0.6
    # Two loads: the line through the two means.
    two = load < 300
    found = lines(dependent[two], load[two], step[two])
    low, high = (dependent[load == y].mean() for y in (100, 200))
    assert found.means == pytest.approx([2 * low - high, (high - low) / 100])
    errors = [dependent[load == y].std() / np.sqrt(4000) for y in (100, 200)]
    expected = np.sqrt([(2 * errors[0]) ** 2 + errors[1] ** 2, sum(e**2 for e in errors) / 100**2])
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx(expected, rel=0.3)
    assert str(Estimate(2.0, 0.125)) == "2 ± 0.12"
