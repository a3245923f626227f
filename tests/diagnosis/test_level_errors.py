"""Levels of workers that stay slow: no bias, and errors as from log to log."""

import numpy as np
import pytest

from bcgc_jax.diagnosis.slow_workers import Level, levels, levels_with_errors

NOBODY = np.zeros(6, bool)


def _logs(count: int, steps: int) -> np.ndarray:
    """Seconds of six workers that deviate by 45 %."""
    rng = np.random.default_rng(1)
    return rng.lognormal(0, 0.45, (count, steps, 6))


def _error(level: Level) -> float:
    return float(np.sqrt(np.mean(level.influence**2) / len(level.influence)))


def test_a_level_has_no_bias_and_the_error_that_it_has_from_log_to_log():
    steady = np.zeros((50, 6))
    steady[:, 2] = 1.0
    values, errors, compared_with_median = [], [], []
    for times in _logs(400, 50):
        times[:, 2] *= 1.5
        (level,) = levels_with_errors(steady, NOBODY, times)
        assert (level.worker, level.first, level.stop) == (2, 0, 50)
        assert level.influence.mean() == pytest.approx(0, abs=1e-12)
        values.append(level.value)
        errors.append(_error(level))
        # Of ranks that certainly show.
        scores = 10 * (np.arange(6) == 2) + np.zeros((50, 1))
        compared_with_median.append(levels(scores, times)[0, 2])
    # 0.004 is the error of a mean of 400.
    assert np.mean(values) == pytest.approx(np.log(1.5), abs=0.012)
    assert np.mean(compared_with_median) < np.log(1.5) - 0.03
    # Measured 0.95, with an error of 0.04 by the number of logs.
    assert np.mean(errors) / np.std(values) == pytest.approx(1, abs=0.12)


def test_a_level_varies_as_if_its_steps_were_resampled():
    (times,) = _logs(1, 200)
    stays = np.arange(6) == 4
    (level,) = levels_with_errors(np.zeros(times.shape), stays, times)
    assert (level.worker, level.first, level.stop) == (4, 0, 200)
    rng = np.random.default_rng(0)
    moved, expected = [], []
    for _ in range(200):
        steps = rng.integers(200, size=200)
        (resampled,) = levels_with_errors(np.zeros(times.shape), stays, times[steps])
        moved.append(resampled.value - level.value)
        expected.append(level.influence[steps].mean())
    assert np.corrcoef(moved, expected)[0, 1] > 0.98  # measured 0.999
    assert np.std(moved) / np.std(expected) == pytest.approx(1, abs=0.05)


def test_stretches_of_a_worker_have_levels_of_their_own_steps():
    """Worker 1 is twice as slow in 10 steps, and worker 3 is fast in 12 of 40."""
    times = np.full((40, 6), 3.0)
    steady = np.zeros(times.shape)
    times[5:15, 1] *= 2
    steady[5:15, 1] = 0.5
    times[28:, 3] /= 4
    steady[28:, 3] = -0.5
    slow, fast = levels_with_errors(steady, NOBODY, times)
    assert slow[:3] == (1, 5, 15)
    assert fast[:3] == (3, 28, 40)
    assert (slow.value, fast.value) == pytest.approx((np.log(2), -np.log(4)))
    assert slow.influence.shape == (10,)
    # Where no other worker is usual there is nothing to compare with.
    assert levels_with_errors(np.ones((40, 6)), NOBODY, times) == []
