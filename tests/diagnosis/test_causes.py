"""What slows the steps of a log: causes put in are found, Shapley values by hand."""

import itertools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import ArrayLike

from bcgc_jax.balancing.remedies import Dealt
from bcgc_jax.diagnosis.causes import (
    CAUSES,
    Parts,
    as_data,
    as_one_chunk,
    as_pauses,
    losses,
    model_of_chunks,
    model_of_steps,
    slow_together,
)
from bcgc_jax.diagnosis.pauses import beyond_usual, pauses_for_length, pauses_of_passes
from bcgc_jax.traces.microbatches import Microbatches
from tests.traces.logs import log_of


def mean_losses(draws: Sequence[Parts]) -> dict[str, float]:
    """What each cause adds to the loss, a mean over draws and steps."""
    losses_of_draws = [losses(parts) for parts in draws]
    return {
        cause: float(np.mean([added[cause] for added in losses_of_draws]))
        for cause in CAUSES
    }


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_that_was_put_in_is_found(cause, forward):
    for seed in range(8):
        true, log = log_of(cause, seed, forward)
        model = model_of_chunks(log).without_chance()
        np.testing.assert_allclose(model.parts.seconds, log.seconds, rtol=1e-12)
        added = mean_losses(model.draws)
        times = log.seconds.sum(axis=2)
        loss = np.mean(times.max(axis=1) - times.mean(axis=1))
        assert sum(added.values()) == pytest.approx(loss)
        want = mean_losses([true])
        name = cause
        if not forward and cause in ("data", "pauses"):
            # Seconds alone do not tell these two apart: all is data.
            assert added["pauses"] == 0
            name, want["data"] = "data", want["data"] + want["pauses"]
        assert max(CAUSES, key=added.__getitem__) == name
        if cause == "random":
            # Who was slow in many of 24 steps by chance may as well stay slow: some
            # draws have it.
            added[name] += added["steady"]
        # The worst of 64 logs: 0.040.
        assert abs(added[name] - want[name]) < 0.045 * loss, seed


@pytest.mark.parametrize("shape", [(40, 2, 8), (24, 8, 8), (30, 100, 4), (40, 6, 2)])
def test_workers_that_are_seldom_slow_are_not_taken_for_long_chunks(shape):
    """One worker in seven is up to five times as slow; all chunks are alike."""
    for seed in range(5 if shape[1] < 100 else 1):
        rng = np.random.default_rng(seed)
        slow = rng.random(shape[:2]) < 1 / 7
        random = np.where(slow, np.log(rng.uniform(1, 5, shape[:2])), 0)
        data = np.exp(rng.normal(0, 0.05, shape))
        true = Parts(np.zeros(shape[:2]), random, data, np.zeros(shape))
        want = mean_losses([true])
        estimate = mean_losses(model_of_chunks(Microbatches(true.seconds)).draws)
        # Measured: 0.024 at worst; 0.033 to 0.76 where all were shrunk alike.
        assert abs(estimate["data"] - want["data"]) < 0.03 * sum(want.values()), seed


def test_long_chunks_are_no_pauses_where_both_passes_take_longer():
    true, _ = log_of("data", 0)
    long = true._replace(
        data=np.where(
            true.data > np.quantile(true.data, 0.99), 6 * true.data, true.data
        )
    )
    of_passes = Microbatches(long.seconds, forward=0.32 * long.seconds)
    assert not model_of_chunks(of_passes).parts.pauses.any()
    # Their seconds alone may be pauses: a second model takes them for that.
    alone = model_of_chunks(Microbatches(long.seconds)).parts
    assert not alone.pauses.any()
    with_pauses = as_pauses(alone)
    assert with_pauses.pauses.any()
    np.testing.assert_allclose(with_pauses.seconds, long.seconds, rtol=1e-12)


def test_pauses_are_found_among_chunks_of_uneven_lengths():
    """By loads: the lengths are known."""
    for seed in range(4):
        true, _ = log_of("pauses", seed)
        lengths = np.exp(np.random.default_rng(seed).normal(0, 0.5, true.data.shape))
        true = true._replace(data=lengths * true.data, pauses=1.3 * true.pauses)
        want = mean_losses([true])
        log = Microbatches(true.seconds, load=lengths)
        estimate = mean_losses(model_of_chunks(log).without_chance().draws)
        error = abs(estimate["pauses"] - want["pauses"])
        assert error < 0.06 * sum(want.values()), seed
        even = mean_losses(model_of_chunks(Microbatches(true.data, load=lengths)).draws)
        assert even["pauses"] < 0.05 * sum(even.values()), seed


def test_pauses_are_found_in_two_chunks_and_in_rounded_times():
    rng = np.random.default_rng(5)
    for shape in ((40, 16, 2), (40, 16, 8)):
        usual = np.full(shape, 50.0)
        if shape[2] == 2:
            usual *= np.exp(rng.normal(0, 0.1, shape))
        pauses = np.where(rng.random(shape) < 0.005, 200.0, 0.0)
        estimate = pauses_for_length(usual + pauses)
        # Of two chunks none was found, nor of times of which most are equal.
        np.testing.assert_array_equal(estimate > 0, pauses > 0)
        np.testing.assert_allclose(estimate, pauses, atol=0.7 * 50)


def test_a_chunk_is_long_that_takes_three_times_the_median_of_its_worker():
    seconds = np.ones((1, 1, 9))
    seconds[0, 0, :2] = 2.8, 3.2
    np.testing.assert_allclose(beyond_usual(seconds)[0, 0, :3], [0, 2.2, 0])


def _pauses(deviation: float, logarithms: ArrayLike) -> np.ndarray:
    """Which of 2,000 chunks of normal logarithms have paused, if these are the longest.

    Those come last.
    """
    ranks = (np.arange(2000) + 0.5) / 2000
    logs = np.array([*map(NormalDist(0, deviation).inv_cdf, ranks)])
    logs[2000 - np.size(logarithms) :] = logarithms
    return pauses_for_length(np.exp(logs)[None, None])[0, 0] > 0


@pytest.mark.parametrize(
    ("deviation", "logarithm", "count"),
    [
        # It takes 1.8 times its worker's median, or more.
        (0.05, 0.5, 0),
        (0.05, 0.7, 1),
        # One of 2,000 is 4.89 deviations above it by chance in one log of a thousand.
        (0.3, 0.3 * 4.83, 0),
        (0.3, 0.3 * 4.94, 1),
    ],
)
def test_a_chunk_has_paused_that_is_longer_than_any_is_by_chance(
    deviation, logarithm, count
):
    assert np.count_nonzero(_pauses(deviation, [logarithm])) == count


@pytest.mark.parametrize(
    ("long", "at_least", "at_most"),
    [
        # Ten or more of a kind are told from lengths, and up to three in a hundred.
        (8, 0, 0),
        (12, 11, 12),
        (50, 47, 50),
        (100, 50, 60),
    ],
)
def test_chunks_have_paused_that_are_more_than_lengths_explain(long, at_least, at_most):
    paused = _pauses(0.3, np.linspace(1.19, 1.21, long))
    assert at_least <= np.count_nonzero(paused) <= at_most
    assert np.count_nonzero(paused[: 2000 - long]) == 0


def _pauses_of_passes(shift: float, wide: float) -> bool:
    """Whether a chunk has paused whose forward pass takes e^shift times as long.

    Those of others deviate by `wide`, in logarithms. It is four times as long as they.
    """
    ratio = wide / 1.4826 * np.linspace(-2, 2, 25)
    ratio[-1] = shift
    length = np.ones(25)
    length[-1] = 4.0
    forward = length * np.exp(ratio)
    paused = pauses_of_passes((forward + length)[None, None], forward[None, None]) > 0
    assert not paused[0, 0, :-1].any()
    return bool(paused[0, 0, -1])


@pytest.mark.parametrize(
    ("shift", "wide", "paused"),
    [
        # 0.3 where passes hardly deviate, else six deviations.
        (0.25, 0.0, False),
        (0.4, 0.0, True),
        (0.55, 0.1, False),
        (0.7, 0.1, True),
    ],
)
def test_a_pass_has_paused_that_the_other_one_does_not_explain(shift, wide, paused):
    assert _pauses_of_passes(shift, wide) == paused


def test_long_chunks_have_ratios_of_passes_of_their_own():
    """The 25 longest of 75 are six times as long, and more of it is forward."""
    long = np.arange(75) >= 50
    backward = np.where(long, 6.0, 1.0)
    forward = backward * np.exp(0.4 * long)
    seconds = (forward + backward).reshape(1, 1, 75)
    assert not pauses_of_passes(seconds, forward.reshape(1, 1, 75)).any()


def test_shapley_values_are_means_over_all_orders():
    rng = np.random.default_rng(0)
    parts = Parts(
        rng.normal(0, 0.3, (3, 4)),
        rng.normal(0, 0.3, (3, 4)),
        rng.gamma(2.0, 1.0, (3, 4, 2)),
        rng.random((3, 4, 2)),
    )

    def loss_with(causes):
        slowest = []
        for t in range(3):
            mean = sum(parts.data[t].sum(axis=1)) / 4
            times = [
                np.exp(
                    parts.steady[t, w] * ("steady" in causes)
                    + parts.random[t, w] * ("random" in causes)
                )
                * (sum(parts.data[t, w]) if "data" in causes else mean)
                + (sum(parts.pauses[t, w]) if "pauses" in causes else 0)
                for w in range(4)
            ]
            slowest.append(max(times) - sum(times) / 4)
        return np.array(slowest)

    want = dict.fromkeys(CAUSES, 0.0)
    orders = list(itertools.permutations(CAUSES))
    for order in orders:
        for k, cause in enumerate(order):
            want[cause] = want[cause] + (
                loss_with(order[: k + 1]) - loss_with(order[:k])
            ) / len(orders)
    shapley_values = losses(parts)
    for cause in CAUSES:
        np.testing.assert_allclose(
            shapley_values[cause], want[cause], rtol=1e-12, atol=1e-14
        )


def test_a_log_without_chunks_tells_steady_workers_from_the_rest():
    rng = np.random.default_rng(1)
    times = rng.gamma(25.0, 0.04, (40, 8))
    times[10:, 3] *= 1.6
    parts = model_of_steps(times, 4).parts
    for model in (parts, as_data(parts), as_one_chunk(parts)):
        np.testing.assert_allclose(model.seconds.sum(axis=2), times, rtol=1e-12)
        np.testing.assert_array_equal(model.steady, parts.steady)
    assert np.flatnonzero(parts.steady.any(axis=0)).tolist() == [3]
    assert parts.steady[20, 3] == pytest.approx(np.log(1.6), abs=0.02)  # measured 0.008
    assert np.ptp(parts.data, axis=(1, 2)).max() < 1e-12
    # One chunk alone is long, and only of workers that are slower than the median one.
    long = as_one_chunk(parts).data
    assert (np.ptp(np.delete(long, 2, axis=2), axis=2) < 1e-12).all()
    assert ((long[:, :, 2] - long[:, :, 0] > 1e-12).sum(axis=1) == 4).all()


def test_steps_that_are_slow_as_a_whole_are_no_loss_of_single_workers():
    rng = np.random.default_rng(2)
    times = rng.gamma(100.0, 0.01, (400, 8))
    # Measured 0.003; the worst of 200 seeds 0.006.
    assert abs(slow_together(times).mean()) < 0.006
    times[::10] *= 2
    assert slow_together(times).mean() == pytest.approx(0.1, abs=0.01)


def test_with_loads_what_lengths_do_not_explain_is_the_workers():
    """Known lengths, and workers slow in single steps, against brute force."""
    rng = np.random.default_rng(4)
    load = rng.choice([2.0, 4.0, 8.0], (400, 4, 4), p=[0.5, 0.3, 0.2])
    pace = rng.choice([1.0, 3.0], (400, 4), p=[0.75, 0.25])
    seconds = load * pace[:, :, None] * np.exp(0.01 * rng.standard_normal(load.shape))
    model = model_of_chunks(Microbatches(seconds, load=load))
    parts = model.parts
    np.testing.assert_allclose(parts.seconds, seconds)
    work, usual = load.sum(axis=2), np.exp(np.log(pace).mean(axis=1, keepdims=True))
    even = work.mean(axis=1, keepdims=True)
    lost = [
        np.mean(t.max(axis=1) - t.mean(axis=1))
        for t in (work * usual, even * pace, work * pace)
    ]
    by_data = (lost[0] + lost[2] - lost[1]) / 2 / lost[2]
    estimate = mean_losses(model.draws)
    # Off by 0.0093, dealing by 0.0055; without the lengths by 0.052 and 0.091.
    assert estimate["data"] / sum(estimate.values()) == pytest.approx(by_data, abs=0.01)
    dealt = np.zeros((400, 4))
    for step, lengths in enumerate(load.reshape(400, -1)):
        for length in np.sort(lengths)[::-1]:
            dealt[step, dealt[step].argmin()] += length
    true = np.mean((dealt * pace).max(axis=1)) / np.mean((work * pace).max(axis=1))
    replayed = (
        Dealt().replay(parts.steps(load)).seconds.mean()
        / parts.times().max(axis=1).mean()
    )
    assert replayed == pytest.approx(true, abs=0.01)
