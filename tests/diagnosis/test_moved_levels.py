"""Other levels of the same seconds, and what they add to the causes."""

import numpy as np
import pytest

from bcgc_jax.diagnosis.causes import CAUSES, Parts, losses
from bcgc_jax.diagnosis.log_model import losses_with_errors, slopes, with_levels
from bcgc_jax.diagnosis.slow_workers import Level

STEPS = 12


def _parts() -> Parts:
    rng = np.random.default_rng(0)
    shape = STEPS, 5, 3
    pace = rng.normal(0, 0.4, shape[:2])
    steady = np.zeros(shape[:2])
    steady[:, 2] = 0.4
    pauses = np.where(rng.random(shape) < 0.1, rng.exponential(1, shape), 0)
    return Parts(
        steady,
        pace - pace.mean(axis=1, keepdims=True),
        rng.lognormal(0, 0.4, shape),
        pauses,
    )


def _level(value: float, influence: np.ndarray) -> Level:
    return Level(2, 0, STEPS, value, influence)


@pytest.mark.parametrize("of_random", [1.0, 0.7, 0.0])
def test_other_levels_are_parts_of_the_same_seconds(of_random):
    parts = _parts()
    moved = with_levels(parts, [_level(0.7, np.zeros(STEPS))], of_random)
    np.testing.assert_allclose(moved.seconds, parts.seconds, rtol=1e-12)
    assert (moved.steady[:, 2] == 0.7).all()
    np.testing.assert_allclose(moved.random.mean(axis=1), 0, atol=1e-12)
    # The level is higher by 0.3, and 4/5 of that by more than the mean worker's.
    np.testing.assert_allclose(
        moved.random[:, 2], parts.random[:, 2] - of_random * 0.24, atol=1e-12
    )


@pytest.mark.parametrize("lock_step", [False, True])
@pytest.mark.parametrize("of_random", [1.0, 0.7, 0.0])
def test_slopes_are_differences_of_losses_by_little_other_levels(of_random, lock_step):
    parts = _parts()
    by_level = slopes(parts, of_random, lock_step=lock_step)
    higher, lower = (
        losses(
            with_levels(parts, [_level(0.4 + change, np.zeros(STEPS))], of_random),
            lock_step=lock_step,
        )
        for change in (1e-6, -1e-6)
    )
    for cause in CAUSES:
        difference = (higher[cause] - lower[cause]) / 2e-6
        np.testing.assert_allclose(by_level[cause][:, 2], difference, atol=1e-7)


def test_what_a_step_adds_to_a_level_is_added_to_the_causes_of_this_step():
    parts = _parts()
    influence = np.random.default_rng(1).normal(size=STEPS)
    influence -= influence.mean()
    plain = losses(parts)
    added = losses_with_errors(parts, [_level(0.4, influence)], 0.7)
    # Where the mean level is higher by 1e-6 times this, so are the mean losses.
    moved = losses(with_levels(parts, [_level(0.4 + 1e-6, influence)], 0.7))
    for cause in CAUSES:
        slope = (moved[cause] - plain[cause]).mean() / 1e-6
        np.testing.assert_allclose(
            added[cause], plain[cause] + slope * influence, atol=1e-6
        )
    # No seconds are lost or found.
    np.testing.assert_allclose(sum(added.values()), sum(plain.values()))
