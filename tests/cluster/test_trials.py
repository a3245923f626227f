"""What the closed loop's choice loses and saves on drawn times, against who knows the draws."""

import numpy as np
import pytest

from bcgc_jax.cluster.trials import Trials


def _trained(uncoded, sharing):
    """What the steps of a training take, and which of them share, for these times of either."""
    trials, shared = Trials(len(uncoded)), np.zeros(len(uncoded), bool)
    for k, pair in enumerate(zip(uncoded, sharing, strict=True)):
        shared[k] = trials.sharing
        trials.observe(pair[trials.sharing], trials.sharing)
    return np.where(shared, sharing, uncoded), shared


def _equal(rng, more, noise, steps=200):
    """Times of equal workers, uncoded and by sharing, which takes so many times as long."""
    return [by * (1 + noise * np.abs(rng.normal(size=steps))) for by in (1.0, more)]


def _slow(rng, more, steps=200):
    """One in seven of four workers is five times as slow; sharing takes what they take together."""
    times = np.where(rng.random((steps, 4)) < 1 / 7, 5.0, 1.0) * rng.uniform(1, 1.02, (steps, 4))
    return times.max(axis=1), more * (4 / np.sum(1 / times, axis=1) + 1 / 32)


@pytest.mark.parametrize("more", [1.0, 1.05, 1.1, 1.3, 2.0])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_equal_workers_lose_at_most_three_percent_in_200_steps(more, noise):
    """In each of 60 draws; the worst lost 2.5 %, where sharing takes 1.1 times as long."""
    for seed in range(60):
        uncoded, sharing = _equal(np.random.default_rng(seed), more, noise)
        assert _trained(uncoded, sharing)[0].sum() < 1.03 * uncoded.sum()


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_steps_that_are_slow_for_all_workers_alike_mislead_nobody(spread):
    """Of such times a mean of eight says little: the worst of 60 draws lost 2.7 %."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        of_all = rng.lognormal(0, spread, 200)
        uncoded, sharing = of_all * np.array(_equal(rng, 1.05, 0.01))
        assert _trained(uncoded, sharing)[0].sum() < 1.03 * uncoded.sum()


@pytest.mark.parametrize("more", [1.03, 1.2])
def test_slow_workers_are_shared_for(more):
    """On average 81 and 84 % of what sharing in every step saves are saved, and 50 % at least."""
    saved = []
    for seed in range(60):
        uncoded, sharing = _slow(np.random.default_rng(seed), more)
        taken, _ = _trained(uncoded, sharing)
        saved.append((uncoded.sum() - taken.sum()) / (uncoded.sum() - sharing.sum()))
    assert np.mean(saved) > 0.78
    assert min(saved) > 0.45


@pytest.mark.parametrize("slow_first", [True, False])
@pytest.mark.parametrize("more", [1.03, 1.1, 1.3])
def test_it_goes_there_and_back_when_workers_become_slow_or_equal(slow_first, more):
    """It saves 75 to 87 % on average of what one who knows in advance saves, and 53 % at least."""
    saved, last = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        halves = [_slow(rng, more, 300), _equal(rng, more, 0.01, 300)]
        halves = halves if slow_first else halves[::-1]
        uncoded, sharing = map(np.concatenate, zip(*halves, strict=True))
        taken, shared = _trained(uncoded, sharing)
        best = sum(min(one.sum() for one in half) for half in halves)
        saved.append((uncoded.sum() - taken.sum()) / (uncoded.sum() - best))
        last.append(shared[450:].mean())
    assert np.mean(saved) > 0.72
    assert min(saved) > 0.5
    if slow_first:
        assert max(last) < 0.15  # measured 0.11
    else:
        assert min(last) > 0.6  # measured 0.67


@pytest.mark.parametrize(("sharing", "steps"), [(4.0, [4]), (2.0, [4, 5]), (1.21, [4, 5, 6, 7])])
def test_a_trial_that_is_clearly_slower_is_ended_after_a_step_or_two(sharing, steps):
    _, shared = _trained(np.ones(200), np.full(200, sharing))
    assert np.flatnonzero(shared[:50]).tolist() == steps


def test_a_change_that_takes_long_ends_no_trial_that_saves_time():
    """The first step of sharing takes twice as long as an uncoded one, the others take less."""
    sharing = np.full(200, 0.8)
    sharing[4] = 2.0
    _, shared = _trained(np.ones(200), sharing)
    assert shared[4:8].all()
    assert shared.mean() > 0.8


def test_steps_beside_which_workers_compile_say_nothing():
    """They are uncoded ones, and longer, though sharing is wanted by then."""
    trials = Trials(200)
    for _ in range(4):
        trials.observe(1.0, False)
    for _ in range(3):
        assert trials.sharing
        trials.observe(2.0, False)
    for _ in range(4):
        assert trials.sharing
        trials.observe(1.01, True)
    assert not trials.sharing
    assert trials.means == pytest.approx((1.0, 1.01))


def test_sharing_is_taken_as_soon_as_uncoded_steps_are_clearly_slower_than_it_was():
    """It has lost 1 % of 100 steps with equal workers. Five steps of other workers are enough."""
    _, shared = _trained(np.r_[np.ones(60), np.full(100, 3.0)], np.full(160, 1.5))
    assert np.flatnonzero(shared)[:3].tolist() == [4, 5, 65]
