"""Start-up and cycle time apart: known ones found, dependence kept, others refused."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.measured import Trace, fit_start_up
from bcgc_jax.measured.start_up import (
    Estimate,
    line,
    lines_of_cells,
    one_load,
    with_covariance,
)
from tests.problems import not_none

LOADS = np.array([100.0, 200.0, 400.0])
WORKERS = 6


def _trace(seconds, load, cell=None):
    step, worker = np.divmod(np.arange(seconds.size) if cell is None else cell, WORKERS)
    names = np.arange(step.max() + 1).astype(str), np.arange(WORKERS).astype(str)
    return Trace(*names, step, worker, seconds, np.zeros(seconds.size, bool), load)


def _one_load(seed, size=480, loads=LOADS):
    """Gamma start-ups of mean 2, shifted exponential cycle times of mean 0.02."""
    rng, load = (
        np.random.default_rng(seed),
        loads[np.arange(size) // WORKERS % loads.size],
    )
    return _trace(
        rng.gamma(4.0, 0.5, size) + load * (0.01 + rng.exponential(0.01, size)), load
    )


def _pairs(seed, size, dependence):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, size))
    z[1] = dependence * z[0] + np.sqrt(1 - dependence**2) * z[1]
    return rng, np.exp(0.5 + 0.5 * z[0]), 0.01 + 0.01 * np.exp(0.6 * z[1])


def _blocks(seed, steps, dependence):
    size = steps * WORKERS
    rng, start, cycle = _pairs(seed, size, dependence)
    seconds = (
        start[:, None] + cycle[:, None] * LOADS + 0.02 * rng.normal(size=(size, 3))
    )
    seconds = np.maximum.accumulate(seconds, axis=1).ravel()
    return (
        _trace(seconds, np.tile(LOADS, size), np.repeat(np.arange(size), 3)),
        start,
        cycle,
    )


def test_known_means_are_found_within_their_errors_and_said_in_words():
    fit = fit_start_up(_one_load(0))
    share = fit.share(200)
    assert abs(share.value - 2 / 6) < 3 * share.error
    # To first order, as estimates with these errors scatter.
    start, cycle = (
        np.random.default_rng(0)
        .multivariate_normal(fit.means, fit.covariance, 200_000)
        .T
    )
    assert share.error == pytest.approx(np.std(start / (start + 200 * cycle)), rel=0.02)
    assert abs(fit.mean_start_up.value - 2) < 3 * fit.mean_start_up.error < 1.5
    assert abs(fit.mean_cycle_time.value - 0.02) < 3 * fit.mean_cycle_time.error < 0.006
    assert (fit.loads, fit.num_times) == ((100.0, 231.25, 400.0), 480)
    remarks = " ".join(fit.remarks())
    assert "of the time does not grow with the load at a load of 100" in remarks
    assert "With one load in each iteration" in remarks
    # the jackknife leaves out two steps of 80 in turn
    trace, group = _one_load(0), np.arange(480) // 12
    rows = np.stack([trace.seconds, not_none(trace.load), trace.step])
    left = [line(*rows[:, group != g])[0] for g in range(40)]
    np.testing.assert_allclose(
        line(*rows)[1], 39 * np.cov(left, rowvar=False, ddof=0), rtol=1e-9
    )
    # A start-up that varies is left out: 2 / load and more is in the cycle time.
    assert not fit.separable
    assert float(fit.per_cycle.mean()) == pytest.approx(
        np.mean(trace.seconds / not_none(trace.load)), rel=0.01
    )


def test_loads_are_one_that_differ_by_less_than_a_hundredth():
    seconds = np.random.default_rng(0).gamma(4.0, 0.5, 480)
    for largest, is_one in ((1.008, True), (1.012, False)):
        load = np.where(np.arange(480) < 240, 100.0, 100.0 * largest)
        assert one_load(_trace(seconds, load)) == is_one


def test_a_start_up_that_varies_little_is_planned_for_as_constant():
    rng, load = np.random.default_rng(0), LOADS[np.arange(480) // WORKERS % LOADS.size]
    start = 2 + 0.1 * rng.random(480)
    fit = fit_start_up(_trace(start + load * (0.01 + rng.gamma(4.0, 0.001, 480)), load))
    assert fit.separable
    assert isinstance(fit.apart["start_up"], bcgc.distributions.Deterministic)
    # Measured 1.2 %.
    assert float(fit.apart["cycle_time"].mean()) == pytest.approx(0.014, rel=0.02)
    assert "it varies little, so plans take it as constant" in " ".join(fit.remarks())


def test_several_loads_in_an_iteration_keep_what_s_and_t_have_to_do_with_each_other():
    trace, start, cycle = _blocks(0, 40, 0.6)
    fit = fit_start_up(trace)
    np.testing.assert_allclose(not_none(fit.pairs)[:, 0], start, atol=0.1)
    np.testing.assert_allclose(not_none(fit.pairs)[:, 1], cycle, atol=4e-4)
    assert fit.separable
    assert isinstance(fit.apart["cycle_time"], bcgc.distributions.EmpiricalPairs)
    assert "start_up" not in fit.apart
    assert fit.start_up_variance.value == pytest.approx(np.var(start, ddof=1), rel=0.05)
    assert (
        abs(fit.mean_start_up.value - np.exp(0.625)) < 3 * fit.mean_start_up.error < 0.3
    )
    assert "are kept as pairs" in " ".join(fit.remarks())
    # A worker of one load in a step says nothing of the two.
    rows = np.setdiff1d(np.arange(trace.seconds.size), [0, 2])
    columns = {
        name: getattr(trace, name)[rows]
        for name in ("step", "worker", "seconds", "censored", "load")
    }
    fit = fit_start_up(trace._replace(**columns))
    assert (fit.num_times, fit.num_left_out) == (239, 1)


def test_a_few_times_are_atoms():
    fit = fit_start_up(_one_load(0, 15))
    assert np.size(fit.per_cycle.breaks()) == 15


@pytest.mark.parametrize("value", [2.0, 0.0])
def test_a_start_up_that_is_always_the_same_and_none_are_pairs_too(value):
    trace, _, cycle = _blocks(1, 40, 0.0)
    fit = fit_start_up(
        trace._replace(seconds=np.tile(LOADS, 240) * np.repeat(cycle, 3) + value)
    )
    np.testing.assert_allclose(not_none(fit.pairs)[:, 0], value, atol=1e-6)
    np.testing.assert_allclose(not_none(fit.pairs)[:, 1], cycle, rtol=1e-6)
    assert fit.mean_start_up.value == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"load": None},
            "cannot be told from that of the work: time at least two loads",
        ),
        ({"load": np.linspace(100, 100.5, 60)}, "cannot be told from that of the work"),
        (
            {"load": np.r_[0.0, _one_load(0, 59).load]},
            "load must be finite and > 0, got 0",
        ),
        (
            {"seconds": np.r_[np.nan, np.ones(59)]},
            "seconds must be finite and > 0, got nan",
        ),
        (
            {"censored": np.arange(60) > 8},
            "at least 10 times that are not cut off, got 9",
        ),
        (
            {"seconds": 2 + 0.5 * _one_load(0, 60).load},
            r"all times are 2 \+ 0.5 · load: nothing is random",
        ),
        (
            {"seconds": _one_load(0, 60).seconds[::-1] / _one_load(0, 60).load},
            "do not grow with the load",
        ),
    ],
)
def test_what_cannot_tell_them_apart_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_start_up(_one_load(0, 60)._replace(**change))


def test_the_line_of_each_cell_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    cell = rng.integers(40, size=150)
    load, seconds = rng.uniform(1, 9, 150), rng.uniform(1, 9, 150)
    pairs, cells, noise = lines_of_cells(seconds, load, cell)
    names = [c for c in np.unique(cell) if np.sum(cell == c) > 1]
    assert cells.tolist() == names
    squares, spare, errors = 0.0, 0, np.zeros((2, 2))
    for k, c in enumerate(names):
        x, y = load[cell == c], seconds[cell == c]
        slope, start = np.polyfit(x, y, 1)
        assert pairs[k] == pytest.approx((start, slope), rel=1e-8)
        squares += np.sum((y - start - slope * x) ** 2)
        spare += x.size - 2
        design = np.stack([np.ones_like(x), x], axis=1)
        errors += np.linalg.inv(design.T @ design) / len(names)
    np.testing.assert_allclose(noise, squares / spare * errors, rtol=1e-8)
    # Cells of one load have none.
    pairs, _, _ = lines_of_cells(
        np.ones(3), np.array([1.0, 2.0, 2.0]), np.array([0, 1, 1])
    )
    assert len(pairs) == 0


@pytest.mark.parametrize("dependence", [0.6, -0.5])
def test_dependence_is_found_through_the_noise(dependence):
    rng, start, cycle = _pairs(1, 2000, dependence)
    seconds = (
        start[:, None] + cycle[:, None] * LOADS + 0.05 * rng.normal(size=(2000, 3))
    )
    cell = np.repeat(np.arange(2000), 3)
    pairs, _, noise = lines_of_cells(seconds.ravel(), np.tile(LOADS, 2000), cell)
    covariance = np.cov(pairs.T) - noise
    np.testing.assert_allclose(covariance, np.cov(start, cycle), rtol=0.1, atol=2e-4)
    new_pairs = with_covariance(pairs, covariance)
    np.testing.assert_allclose(np.cov(new_pairs.T), covariance, rtol=1e-6)
    np.testing.assert_allclose(
        new_pairs.mean(axis=0), [start.mean(), cycle.mean()], rtol=0.02
    )
    never = np.array([[1.0, 2.0], [1.0, 4.0]])  # a start-up that does not vary
    np.testing.assert_allclose(
        with_covariance(never, np.diag([0.0, 2.0])), never, atol=1e-9
    )


def test_the_variance_of_three_loads_tells_that_of_the_start_up():
    rng = np.random.default_rng(3)
    load = np.tile(LOADS, 4000)
    z = rng.normal(size=(2, load.size))
    independent, dependent = (
        2 + z[0] + load * (0.03 + 0.005 * x) for x in (z[1], 0.8 * z[0] + 0.6 * z[1])
    )
    step = np.arange(load.size) // 10
    for seconds in (dependent, independent):
        means, covariance, variance = line(seconds, load, step)
        assert np.all(np.abs(means - [2, 0.03]) < 3 * np.sqrt(np.diag(covariance)))
        assert abs(variance.value - 1) < 3 * variance.error < 0.6
    # Two loads: the line through the two means.
    two = load < 300
    means, covariance, _ = line(dependent[two], load[two], step[two])
    low, high = (dependent[load == y].mean() for y in (100, 200))
    assert means == pytest.approx([2 * low - high, (high - low) / 100])
    errors = [dependent[load == y].std() / np.sqrt(4000) for y in (100, 200)]
    expected = np.sqrt(
        [(2 * errors[0]) ** 2 + errors[1] ** 2, sum(e**2 for e in errors) / 100**2]
    )
    assert np.sqrt(np.diag(covariance)) == pytest.approx(expected, rel=0.3)
    assert str(Estimate(2.0, 0.125)) == "2 ± 0.12"
