"""Workers slow for a while, behind pauses of all, on seeds that chose no constant."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy import signal, stats

from bcgc_jax.diagnosis.description import describe
from bcgc_jax.diagnosis.slow_workers import (
    levels,
    levels_drawn,
    ranks_of,
    scores_of,
    slow_in_all_steps,
)
from bcgc_jax.diagnosis.slowness import slowness_in
from tests.cli.steps import trace_of
from tests.problems import not_none, slow

SLOW = slice(70, 130)


class Stretch(NamedTuple):
    worker: int
    first: int
    last: int
    ratio: float


def slow_workers(times: np.ndarray) -> list[Stretch]:
    slowness = not_none(slowness_in(trace_of(times)))
    stretches = [
        Stretch(int(slow.worker), int(slow.first_step), int(slow.last_step), slow.ratio)
        for slow in slowness.slow_workers
    ]
    return sorted(stretches)


def _log(seed: int, ratio: float = 1.0, correlation: float = 0.0) -> np.ndarray:
    """Make 200 steps of 8 workers, 2 % of them 5 times as long; a worker is slow."""
    rng = np.random.default_rng(900_000 + seed)
    noise = rng.normal(0, 0.1, (200, 8))
    times = np.exp(signal.lfilter([1.0], [1.0, -correlation], noise, axis=0))
    times[SLOW, 3] *= ratio
    return times * np.where(rng.random(times.shape) < 0.02, 5.0, 1.0)


@pytest.mark.parametrize("ratio", [*slow(1.5), 1.2])
def test_a_slow_worker_is_found_behind_pauses(ratio):
    claims = [slow_workers(_log(seed, ratio)) for seed in range(40)]
    true_stretches = [
        stretch
        for stretches in claims
        for stretch in stretches
        if stretch.worker == 3 and stretch.first < 130 <= stretch.last + 15
    ]
    assert len(true_stretches) == 40
    assert sum(map(len, claims)) <= 41  # one in 80 is by chance
    ratios = np.array([stretch.ratio for stretch in true_stretches])
    ends = np.abs(
        [[stretch.first - 70, stretch.last - 129] for stretch in true_stretches]
    )
    assert np.abs(ratios / ratio - 1).max() < 0.09  # worst measured 0.074, 0.071
    # measured 4 and 12, 9 and 17
    assert np.quantile(ends, 0.9) <= 9
    assert ends.max() <= 18


@pytest.mark.slow
def test_none_is_claimed_where_all_are_alike():
    assert [seed for seed in range(60) if slow_workers(_log(seed))] == []
    # Nor, but for 2 %, where a worker's time depends on its last one.
    assert (
        sum(bool(slow_workers(_log(seed, correlation=0.5))) for seed in range(40)) <= 2
    )


def test_of_two_workers_the_slow_one_is_slow_by_its_whole_ratio():
    times = np.random.default_rng(3).gamma(400.0, 0.0025, (40, 2)) * [1.0, 1.5]
    # Measured: 1.5. Against the mean of both it was 1.2, and the other one fast.
    ((worker, first, last, ratio),) = slow_workers(times)
    assert (worker, first, last) == (1, 0, 39)
    assert ratio == pytest.approx(1.5, rel=0.03)


def test_levels_are_drawn_with_the_errors_of_their_means():
    """Two stretches of worker 1, of 16 and 9 steps, and none of worker 0."""
    rng = np.random.default_rng(4)
    steady = np.zeros((30, 2))
    steady[:16, 1] = 0.5
    steady[16:25, 1] = 0.2
    apart = rng.normal(0, 0.3, steady.shape)
    # Worker 0 has ranks as others: it stays as it is in all draws but 1 in 1 + 2 √30.
    scores = np.zeros(steady.shape)
    drawn = np.array([levels_drawn(steady, scores, apart, rng) for _ in range(2000)])
    moved = drawn[:, 0, 0] != 0
    assert moved.mean() == pytest.approx(1 / (1 + 2 * 30**0.5), abs=0.02)
    assert np.array_equal(drawn[~moved, :, 0], np.zeros((np.sum(~moved), 30)))
    assert np.array_equal(drawn[:, 25:, 1], np.zeros((2000, 5)))
    for stretch in (slice(16), slice(16, 25)):
        of_stretch = drawn[:, stretch, 1]
        assert np.ptp(of_stretch, axis=1).max() == 0
        error = apart[stretch, 1].std() / len(steady[stretch]) ** 0.5
        # measured 0.99 and 1.01
        assert of_stretch[:, 0].std() / error == pytest.approx(1, abs=0.05)
        assert of_stretch[:, 0].mean() == pytest.approx(
            steady[stretch][0, 1], abs=0.1 * error
        )


def _levels(seconds: np.ndarray) -> np.ndarray:
    return levels(scores_of(seconds), seconds.sum(axis=2))


def _seldom_slow(seed: int, shape: tuple[int, int, int], share: float) -> np.ndarray:
    """Make chunks of workers that are 1 to 4 times as slow in random steps."""
    rng = np.random.default_rng(910_000 + seed)
    slow = 1 + (rng.random(shape[:2]) < share) * rng.uniform(0, 3, shape[:2])
    return slow[:, :, None] * (1 + 0.05 * rng.random(shape))


@pytest.mark.parametrize(
    ("shape", "share"),
    [((30, 300, 4), 0.15), ((80, 32, 8), 0.15), ((200, 32, 8), 0.02)],
)
def test_few_steps_that_are_slow_at_random_are_no_slow_worker(shape, share):
    logs = [_seldom_slow(seed, shape, share) for seed in range(8)]
    claimed = [_levels(log).any() for log in logs]
    assert sum(claimed) <= 1  # measured 0; 4 and 8 where scores were taken for normal
    middle = len(logs[0]) // 2
    for log in logs:
        log[:middle, 7] *= 1.5
    hits = [_levels(log)[middle // 2, 7] > 0.2 for log in logs]
    assert all(hits)


@pytest.mark.parametrize(("workers", "slow"), [(4, {}), (5, {2: 2.0})])
def test_who_is_slow_in_all_of_four_steps_is_found_where_that_is_no_chance(
    workers, slow
):
    """Another one is the slowest of all, in all four, with a chance of W^-3.

    Of four workers that is 1.6 %, of five 0.8 %.
    """
    times = np.where(np.arange(workers) == 2, 2.0, np.ones((4, workers)))
    assert slow_in_all_steps(ranks_of(times), times) == pytest.approx(slow)


def test_a_worker_that_is_slow_in_four_steps_is_slow_in_these_alone():
    seconds = np.random.default_rng(6).lognormal(0, 0.1, (40, 8, 16))
    seconds[20:24, 3] *= 3
    assert np.flatnonzero(_levels(seconds)[:, 3]).tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("noise", "squares", "is_slow"),
    [
        # Above 2 ln(40 · 8) + 6 = 17.5 squares of its standard error.
        (1.0, 16.0, False),
        (1.0, 19.0, True),
        # Scores that hardly vary are taken to have half of the variance of ranks.
        (0.1, 15.0, False),
        (0.1, 20.0, True),
    ],
)
def test_a_mean_score_is_no_chance_above_so_many_squares_of_its_error(
    noise, squares, is_slow
):
    scores = np.random.default_rng(2).normal(0, 0.5, (40, 8))
    deviations = noise * (-1.0) ** np.arange(40)
    variance = max(np.mean(np.diff(deviations) ** 2) / 2, 0.5)
    scores[:, 0] = deviations + np.sqrt(squares * variance / 40)
    slow = levels(scores, np.exp(scores))
    assert (slow[:, 0].any(), slow[:, 1:].any()) == (is_slow, False)


@pytest.mark.parametrize("at_once", [4, 1000])
def test_the_ends_are_those_of_least_squares_over_all_stretches(monkeypatch, at_once):
    """Also where every few lengths are tried first, as in long logs."""
    monkeypatch.setattr("bcgc_jax.diagnosis.slow_workers._LENGTHS_AT_ONCE", at_once)
    times = _log(7, 1.4)[55:145]
    ranks = stats.rankdata(times, axis=1)[:, 3]
    squares = {
        (a, b): ranks[a:b].var() * (b - a)
        + np.r_[ranks[:a], ranks[b:]].var() * (90 - b + a)
        for a in range(90)
        for b in range(a + 4, min(a + 87, 91))
    }
    ((_, first, last, _),) = slow_workers(times)
    assert (first, last + 1) == min(squares, key=squares.__getitem__)


def test_nothing_but_ranks_within_a_step_counts():
    """Missing times, slow steps, full seconds and a slow worker do no harm."""
    times = _log(1, 1.5)
    steps = np.random.default_rng(0).pareto(1.0, (200, 1)) + 1
    assert [s[:3] for s in slow_workers(times * steps)] == [
        s[:3] for s in slow_workers(times)
    ]
    times[np.random.default_rng(1).random(times.shape) < 0.2] = np.nan
    times[:3] = times[5, 1:] = np.nan
    ((worker, first, last, _),) = slow_workers(times)
    assert worker == 3
    assert abs(first - 70) < 8
    assert abs(last - 129) < 8
    assert slow_workers(np.round(_log(2), 0) + 1) == []
    ((worker, first, last, ratio),) = slow_workers(
        _log(3) * np.where(np.arange(8) == 5, 1.3, 1)
    )
    assert (worker, first, last, round(ratio, 1)) == (5, 0, 199, 1.3)
    # In a few steps only who is slow in all of them is found.
    ((worker, first, last, _),) = slow_workers(_log(4, 1.5)[70:77])
    assert (worker, first, last) == (3, 0, 6)
    assert slow_workers(_log(4, 1.5)[67:74]) == []


def test_a_description_tells_it_with_the_names_of_the_trace():
    trace = trace_of(_log(0, 1.5))
    trace = trace._replace(worker_names=np.array([f"gpu{i}" for i in range(8)]))
    description = describe(trace, with_tail=False)
    (slow,) = not_none(description.slowness).slow_workers
    said = (
        f"Worker gpu3 was {slow.ratio:.3g} times as slow as the others in steps "
        f"{slow.first_step} to "
    )
    assert any(said in remark for remark in description.remarks())
    slowness = not_none(slowness_in(trace_of(_log(0) * np.linspace(1, 3, 8))))
    lost = [stretch.ratio for stretch in slowness.slow_workers]
    assert len(lost) > 3
    assert lost == sorted(lost, reverse=True)
    four = replace(slowness, slow_workers=slowness.slow_workers[:4])
    assert "There is 1 more of these." in " ".join(four.remarks())
