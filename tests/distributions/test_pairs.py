"""Pairs of a start-up and a cycle time: draws come together, and alone the cycle time is an empirical law."""

import jax
import numpy as np

import bcgc_jax as bcgc

STARTS, TIMES = [3.0, 0.0, 7.0, 7.0], [2.5, 1.5, 0.5, 1.5]
LAW = bcgc.distributions.EmpiricalPairs(STARTS, TIMES)


def test_draws_are_pairs_each_as_often(x64):
    starts, times = LAW.sample_pairs(jax.random.key(3), (200, 100), np.float64)
    found, counts = np.unique(np.stack([starts, times]).reshape(2, -1), axis=1, return_counts=True)
    assert {tuple(pair) for pair in found.T.tolist()} == set(zip(STARTS, TIMES, strict=True))
    # Four standard deviations of a count.
    assert np.all(np.abs(counts - 5000) < 4 * np.sqrt(20_000 * 0.25 * 0.75))


def test_alone_the_cycle_time_is_one_of_its_own(precision):
    law = bcgc.distributions.EmpiricalPairs(STARTS, TIMES)
    t = np.array([0.4, 0.5, 1.4, 1.5, 2.4, 2.5, 9.0], precision)
    share = np.array([0, 1, 1, 3, 3, 4, 4]) / 4
    np.testing.assert_allclose(law.cdf(t), share, atol=4 * np.finfo(precision).eps)
    assert float(law.mean()) == 1.5
    assert float(law.infimum()) == 0.5
    assert law.pieces().times.tolist() == [0.5, 1.5, 1.5, 2.5]
    hazard = -np.log1p(-np.array([0.1, 0.3, 0.7, 0.8], precision))
    assert law.inverse_cumulative_hazard(hazard).tolist() == [0.5, 1.5, 1.5, 2.5]
