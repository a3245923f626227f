"""Intervals of few steps, and of steps that depend on each other."""

import numpy as np
import pytest
from scipy import signal, stats

from bcgc_jax.traces.intervals import (
    dependence,
    enough_steps,
    interval_of,
    ratio_of_means,
    resample,
    resample_draws,
    stretch,
    widened,
)


def autoregressive(correlation, shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return signal.lfilter([1.0], [1.0, -correlation], noise, axis=0)


@pytest.mark.parametrize("steps", [5, 8, 20, 40, 100, 1000])
def test_percentiles_are_stretched_to_those_of_student(steps):
    want = stats.t.ppf(0.975, steps - 1) / 1.96 * np.sqrt(steps / (steps - 1))
    # Measured: 1.5 % at 5 steps, 0.4 % at 8, 0.02 % at 20: the expansion ends with 1 /
    # n².
    assert stretch(steps) == pytest.approx(want, rel=0.45 / steps**2 + 1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_dependence_is_that_of_an_autoregression(correlation):
    """The mean of S steps has 1 / S of a step's variance times (1 + ρ) / (1 - ρ)."""
    dependences = [
        dependence(autoregressive(correlation, 2000, seed)) for seed in range(20)
    ]
    want = (1 + correlation) / (1 - correlation)
    # Measured: 1.02, 1.87, 4.0.
    assert np.median(dependences) == pytest.approx(want, rel=0.05)
    assert dependence(np.ones(9)) == pytest.approx((1 + 1 / 9) / (1 - 1 / 9))


def test_steps_of_a_trend_are_worth_as_many_independent_ones_as_the_bounds_say():
    """One in 39, by a correlation of 0.95, and four at least."""
    trend = np.arange(1000.0)
    assert dependence(trend) == pytest.approx((1 + 0.95) / (1 - 0.95))
    student = stats.t.ppf(0.975, 3) / 1.96 * np.sqrt(4 / 3)
    ends = widened(0.0, np.array([-1.0, 1.0]), trend[:40])
    f = dependence(trend[:40])
    # The expansion is 3.7 % below Student's; of two steps it would be 1.7 times that.
    np.testing.assert_allclose(ends / np.sqrt(f), [-student, student], rtol=0.05)


@pytest.mark.parametrize(
    ("correlation", "steps"), [(0.0, 8), (0.0, 40), (0.4, 40), (0.6, 100)]
)
def test_intervals_of_means_hold_in_95_of_100_logs(correlation, steps):
    logs = autoregressive(correlation, (200 + steps, 400))[200:].T
    held = 0
    for log in logs:
        means = resample(log[:, None], count=400)[:, 0]
        interval = interval_of(float(log.mean()), means, log - log.mean())
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 400 <= 0.985


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("half", [0.02, 0.05])
def test_so_many_steps_as_are_said_to_be_enough_are(correlation, half):
    """The steps that 40 steps call for, drawn anew: their means deviate by half."""
    logs = 0.2 * autoregressive(correlation, (300, 300))[200:240].T
    enough = int(np.median([enough_steps(half, log) for log in logs]))
    other_series = 0.2 * autoregressive(correlation, (enough + 200, 1000), seed=9)[200:]
    # Measured: 0.96 to 1.07.
    assert 1.96 * other_series.mean(axis=0).std() / half == pytest.approx(1, abs=0.1)


def test_no_share_of_the_time_is_above_all_of_it():
    """Few steps that depend on each other hardly tell the mean; others are as before.

    Uncut ends were above 1 in 10 of these 20 logs.
    """
    cut = 0
    for seed in range(20):
        part, remainder = np.exp(autoregressive(0.9, (240, 2), seed)[200:]).T
        share = ratio_of_means(part, part + remainder)
        means = resample(np.stack([part, part + remainder], axis=1))
        influence = (part - share.value * (part + remainder)) / (
            part + remainder
        ).mean()
        uncut = interval_of(share.value, means[:, 0] / means[:, 1], influence)
        assert share == uncut._replace(high=min(uncut.high, 1.0))
        cut += share != uncut
    assert cut > 5


def test_all_series_are_resampled_in_the_same_steps():
    series = np.random.default_rng(5).lognormal(0, 1, (700, 3))
    rng = np.random.default_rng(7)
    drawn = [rng.integers(700, size=700) for _ in range(9)]
    want = [series[steps].mean(axis=0) for steps in drawn]
    np.testing.assert_array_equal(resample(series, 7, count=9), want)


def test_an_interval_has_in_it_what_draws_differ_by():
    """Rubin 1987: the variance of means over steps, and that between draws' means."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 0.4, 40)[:, None] + rng.normal(5, 2, (40, 100))
    means = resample_draws(draws[..., None])
    variance = draws.var(axis=1).mean() / 100 + draws.mean(axis=1).var()
    # Measured: 0.98; of the mean over draws alone 0.07.
    assert means.std() / variance**0.5 == pytest.approx(1, abs=0.05)


def test_a_ratio_of_means_has_the_error_of_the_delta_method():
    rng = np.random.default_rng(3)
    whole = rng.gamma(9.0, 1.0, 400)
    part = 0.3 * whole + rng.normal(0, 0.5, 400)
    ratio = ratio_of_means(part, whole)
    value = part.mean() / whole.mean()
    error = (part - value * whole).std() / whole.mean() / 20
    assert ratio.value == pytest.approx(value)
    assert (ratio.high - ratio.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
