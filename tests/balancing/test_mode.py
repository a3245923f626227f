"""When sharing begins and ends, and what the rule loses against hindsight."""

import numpy as np
import pytest
from scipy import stats

from bcgc_jax.balancing.mode import Mode


def _decisions(pairs) -> list[bool]:
    mode = Mode()
    shared = []
    for own_seconds, shared_seconds in pairs:
        mode = mode.after(own_seconds, shared_seconds)
        shared.append(mode.is_shared)
    return shared


@pytest.mark.parametrize(
    ("pairs", "shared"),
    [
        ([(10, 8)] * 3, "FTT"),
        ([(10, 9.97)] * 3, "FFF"),  # within the margin
        ([(10, 8), (10, 10.5)] * 3, "FFTTTT"),
        # The old steps are forgotten.
        ([(10, 8)] * 50 + [(8, 8.4)] * 2, "F" + 49 * "T" + "TF"),
        ([(8, 8.4)] * 50 + [(16, 9)] * 2, 51 * "F" + "T"),
        # Four steps may be contradicted, and three may not.
        ([(10, 8)] * 4 + [(8, 8.4)] * 2, "FTTTTF"),
        ([(10, 8)] * 3 + [(8, 8.4)] * 2, "FTTTT"),
    ],
)
def test_it_decides_as_worked_out(pairs, shared):
    assert ["FT"[is_shared] for is_shared in _decisions(pairs)] == list(shared)


@pytest.mark.parametrize(("errors", "goes_on"), [(0.4, True), (0.6, False)])
def test_sharing_goes_on_until_it_loses_half_a_standard_error(errors, goes_on):
    apart = np.array([1.0, -1.0, 1.0, -1.0])
    saved = apart - errors * apart.std(ddof=1) / 2
    mode = Mode(True, tuple(saved[:3]), (10.0,) * 3).after(10.0, 10.0 - saved[3])
    assert mode.is_shared == goes_on


@pytest.mark.parametrize("statistic", [11.9, 12.1])
def test_steps_are_forgotten_above_twelve_standard_errors_of_student(statistic):
    """Four steps save 1 s of 10 s on average; the next two save less."""
    before = 1 + np.array([0.01, -0.01, 0.01, -0.01])
    newest = np.array([0.01, -0.01])
    error = 1 / stats.ttest_ind(before, newest).statistic
    margin = 0.05  # half a percent of a step
    mode = Mode(True, tuple(before), (10.0,) * 4)
    for saved in newest + 1 - margin - statistic * error:
        mode = mode.after(10.0, 10.0 - saved)
    assert len(mode.saved) == (2 if statistic > 12 else 6)


def _total_seconds(own_seconds: np.ndarray, shared_seconds: np.ndarray) -> float:
    """Of the steps of a training, each in the mode that those before have decided."""
    before = [False, *_decisions(zip(own_seconds, shared_seconds, strict=True))[:-1]]
    return float(np.where(before, shared_seconds, own_seconds).sum())


@pytest.mark.parametrize("slow", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("cost", [0.01, 0.1])
def test_regret_against_the_better_of_both_modes(slow, cost):
    """Own steps are five times as long in a share `slow`; in points of own steps.

    Of 30 draws of 500 steps means were 0.0 to 1.5, and the worst had 2.6, for rare
    slowness.
    """
    for seed in range(3):
        rng = np.random.default_rng(seed)
        long = rng.random(300) < slow
        own_seconds = np.where(long, 5.0, 1.0) * rng.uniform(1, 1.02, 300)
        shared_seconds = np.where(long, 1.6, 1.0) + cost
        best = min(own_seconds.sum(), shared_seconds.sum())
        assert (
            100
            * (_total_seconds(own_seconds, shared_seconds) - best)
            / own_seconds.sum()
            < 3.5
        )
