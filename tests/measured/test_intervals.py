"""Blocks of steps that are resampled; `tests/test_traces_study.py` tests their intervals."""

import tracemalloc

import numpy as np
import pytest
from scipy import signal

from bcgc_jax.measured.intervals import block_length, resample, resample_draws


def autoregressive(correlation, size, seed=0):
    return signal.lfilter([1.0], [1.0, -correlation], np.random.default_rng(seed).normal(size=size))


@pytest.mark.parametrize("correlation", [0.4, 0.8])
def test_blocks_are_as_long_as_those_of_an_autoregression_must_be(correlation):
    size = 4000  # R(k) ∝ ρ^k in the formula
    want = (6 * (correlation / (1 - correlation**2)) ** 2 * size) ** (1 / 3)
    found = [block_length(autoregressive(correlation, size, seed)) for seed in range(20)]
    # Measured: 0.99 and 1.01 times.
    assert np.median(found) == pytest.approx(want, rel=0.15)


def test_blocks_of_noise_are_short_and_those_of_a_walk_as_long_as_may_be():
    noise = np.random.default_rng(1).normal(size=900)
    assert block_length(noise) <= 6
    assert block_length(np.cumsum(noise)) == 90
    assert block_length(np.full(50, 3.0)) == block_length(np.zeros(4)) == 1


def test_resampling_takes_little_memory():
    series = np.random.default_rng(2).random((2000, 12))
    tracemalloc.start()
    drawn = resample(series, 1).drawn
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Measured: 65 MB; all at once 417 MB.
    assert peak < 150e6
    assert np.abs(drawn.std(axis=0) / (series.std(axis=0) / np.sqrt(2000)) - 1).max() < 0.06


def test_an_interval_has_in_it_what_draws_differ_by():
    """Rubin 1987: the variance of a mean over steps, and that between the means of draws."""
    rng = np.random.default_rng(0)
    series = rng.normal(0, 0.4, 40)[:, None] + rng.normal(5, 2, (40, 100))
    found = resample_draws(series[..., None], block=1).interval(lambda mean: mean[..., 0])
    variance = series.var(axis=1).mean() / 100 + series.mean(axis=1).var()
    assert found.value == pytest.approx(series.mean(), rel=1e-12)
    # measured 0.97; of the mean over draws 0.07
    assert (found.high - found.low) / (2 * 1.96 * variance**0.5) == pytest.approx(1, abs=0.1)
