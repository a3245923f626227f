"""Laws of two speeds and of measured times, counted."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from tests.oracles.laws import DETERMINISTIC, EMPIRICAL, TWO_SPEED
from tests.tolerances import few_ulp

# One time


@pytest.mark.parametrize("value", [2.5, 1e-30])
def test_one_time_is_counted(value, precision):
    case = DETERMINISTIC.at(value)
    law, near = case.law(), few_ulp(precision)
    t = np.asarray([0.0, 0.9 * value, 1.1 * value], precision)
    np.testing.assert_array_equal(law.cumulative_hazard(t), [0, 0, np.inf])
    np.testing.assert_array_equal(law.cdf(t), case.frozen.cdf(t))
    np.testing.assert_array_equal(law.survival(law.infimum()), 0)  # P(T > value)
    np.testing.assert_allclose([law.mean(), law.infimum()], [case.frozen.mean(), case.infimum], rtol=near)
    np.testing.assert_allclose(
        law.inverse_cumulative_hazard(np.array([0.0, 0.3, 80.0])), 3 * [value], rtol=near
    )
    np.testing.assert_allclose(law.sample(jax.random.key(0), (2,)), 2 * [value], rtol=near)
    assert isinstance(law.pieces(), bcgc.distributions.Atomic)
    assert bcgc.solvers.straggler_ratio(law) == 1


# Two speeds


@pytest.mark.parametrize("parameters", [(1.3, 5.7, 0.27), (0.02, math.inf, 0.041)])
def test_two_speeds_are_counted(parameters, precision):
    case = TWO_SPEED.at(*parameters)
    law = case.law()
    fast, slow, probability = parameters
    t = np.asarray([0.0, 0.6 * fast, fast, 1.01 * fast, min(slow, 1e30), 1e31], precision)
    share = case.frozen.sf([0.0, 0.6 * fast, fast, 1.01 * fast, min(slow, 1e30), 1e31])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(law.cumulative_hazard(t), -np.log(share), rtol=few_ulp(precision))
    np.testing.assert_allclose(law.survival(t), share, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.mean(), case.frozen.mean(), rtol=few_ulp(precision))
    np.testing.assert_allclose(law.infimum(), case.infimum, rtol=few_ulp(precision))
    pieces = law.pieces()
    assert isinstance(pieces, bcgc.distributions.Atomic)
    np.testing.assert_allclose(pieces.times, [case.infimum, *case.kinks], rtol=few_ulp(precision))
    a = -math.log(probability) * np.asarray([0.0, 0.4, 0.999, 1.001, 3.0])
    np.testing.assert_allclose(
        law.inverse_cumulative_hazard(a), [fast] * 3 + [slow] * 2, rtol=few_ulp(precision)
    )


def test_two_speeds_inverse_undoes_the_hazard_at_every_probability(precision):
    # Without a margin two roundings turn one probability in ten around.
    probability = np.linspace(0.001, 0.999, 997, dtype=precision)
    law = bcgc.TwoSpeed(jnp.full(997, 1.3), jnp.full(997, 5.7), probability)
    np.testing.assert_array_equal(law.inverse_cumulative_hazard(law.cumulative_hazard(law.fast)), law.fast)
    np.testing.assert_array_equal(law.inverse_cumulative_hazard(law.cumulative_hazard(law.slow)), law.slow)


def test_two_speeds_that_never_or_always_slow_down(precision):
    never, always = bcgc.TwoSpeed(1.3, math.inf, 0.0), bcgc.TwoSpeed(1.3, 5.7, 1.0)
    np.testing.assert_allclose([never.mean(), always.mean()], [1.3, 5.7], rtol=few_ulp(precision))
    np.testing.assert_array_equal(never.cumulative_hazard(jnp.array([1.2, 1.4, 1e9])), [0, np.inf, np.inf])
    np.testing.assert_array_equal(always.cumulative_hazard(jnp.array([1.2, 1.4, 9.0])), [0, 0, np.inf])
    a = jnp.array([1e-3, 0.7, 80.0])
    np.testing.assert_allclose(never.inverse_cumulative_hazard(a), 1.3, rtol=few_ulp(precision))
    np.testing.assert_allclose(always.inverse_cumulative_hazard(a), 5.7, rtol=few_ulp(precision))


@pytest.mark.parametrize("probability", [0.0, 0.27, 1.0])
def test_two_speeds_have_the_slopes_of_their_formulas(probability, precision):
    law = bcgc.TwoSpeed(1.3, 5.7, probability)
    mean = jax.grad(lambda law: law.mean())(law)
    np.testing.assert_allclose(
        jax.tree.leaves(mean), [1 - probability, probability, 5.7 - 1.3], rtol=few_ulp(precision)
    )
    hazard = jax.grad(lambda law: law.cumulative_hazard(2.4))(law)
    expected = -1 / probability if probability > 0 else 0
    np.testing.assert_allclose(jax.tree.leaves(hazard), [0, 0, expected], rtol=few_ulp(precision))
    for a, slopes in ((0.2 * -math.log(probability or 0.5), [1, 0, 0]), (60.0, [0, 1, 0])):
        if 0 < probability < 1:
            inverse = jax.grad(lambda law, a=a: law.inverse_cumulative_hazard(a))(law)
            np.testing.assert_array_equal(jax.tree.leaves(inverse), slopes)


# Measured times

TIMES = [7.5, 0.4, 3.25, 3.25, 1200.0, 0.4, 3.25, 19.0]


def test_empirical_law_counts_its_times(precision):
    times = np.asarray(TIMES, precision)
    case = EMPIRICAL.at(*times)
    law = case.law()
    t = np.unique(np.concatenate([times, times * 1.01, times * 0.99, [-3.0, 0.0, 1e6]])).astype(precision)
    share = case.frozen.sf(t)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(law.cumulative_hazard(t), -np.log(share), rtol=few_ulp(precision))
    np.testing.assert_allclose(law.cdf(t), 1 - share, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.survival(t), share, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.mean(), case.frozen.mean(), rtol=few_ulp(precision))
    assert law.infimum() == case.infimum
    pieces = law.pieces()
    assert isinstance(pieces, bcgc.distributions.Atomic)
    np.testing.assert_array_equal(pieces.times, np.sort(times))


def test_empirical_inverse_is_the_order_statistic_of_the_rank(precision):
    ascending = np.sort(np.asarray(TIMES, precision))
    # Λ⁻¹(a) = inf{t : Λ(t) ≥ a}, by a search of the definition, with hazards that avoid the steps.
    share = (np.arange(8)[:, None] + np.asarray([0.02, 0.5, 0.98])).ravel() / 8
    expected = [next(t for t in ascending if np.mean(ascending <= t) >= s) for s in share]
    law = bcgc.Empirical(TIMES)
    np.testing.assert_array_equal(law.inverse_cumulative_hazard(-np.log1p(-share)), expected)
    np.testing.assert_array_equal(
        law.inverse_cumulative_hazard(jnp.array([0.0, 700.0, np.inf])), ascending[[0, -1, -1]]
    )


@pytest.mark.parametrize("size", [1, 1001])
def test_empirical_inverse_undoes_the_hazard_at_every_time(size, precision):
    times = np.unique(np.random.default_rng(size).gamma(0.7, 3.0, size).astype(precision))
    law = bcgc.Empirical(times)
    there_and_back = jax.jit(lambda law, t: law.inverse_cumulative_hazard(law.cumulative_hazard(t)))
    np.testing.assert_array_equal(there_and_back(law, times), times)


def test_empirical_law_sorts_what_it_is_given_also_under_a_trace(precision):
    unsorted = np.asarray(TIMES, precision).reshape(2, 4)
    expected = [0.0, 2 / 8, 5 / 8, 6 / 8, 1.0]
    t = np.asarray([0.3, 0.4, 3.3, 8.0, 1e5], precision)
    nested: Any = unsorted.tolist()
    for law in (bcgc.Empirical(unsorted), bcgc.Empirical(jnp.asarray(unsorted)), bcgc.Empirical(nested)):
        np.testing.assert_allclose(law.cdf(t), expected, rtol=few_ulp(precision))
    np.testing.assert_allclose(
        jax.jit(lambda times: bcgc.Empirical(times).cdf(t))(unsorted), expected, rtol=few_ulp(precision)
    )
    batch = jax.vmap(bcgc.Empirical)(jnp.asarray(unsorted))
    np.testing.assert_allclose(
        jax.vmap(lambda law: law.cdf(3.3))(batch), [3 / 4, 2 / 4], rtol=few_ulp(precision)
    )


def test_empirical_law_has_slopes_in_its_times(precision):
    law = bcgc.Empirical(TIMES)
    mean = jax.grad(lambda law: law.mean())(law)
    np.testing.assert_allclose(mean.times, 1 / 8, rtol=few_ulp(precision))
    quantile = jax.grad(lambda law: law.inverse_cumulative_hazard(-math.log1p(-0.7)))(law)
    np.testing.assert_array_equal(quantile.times, np.eye(8)[5])  # rank ⌈0.7 · 8⌉ = 6


def test_empirical_law_of_integers_has_floating_times(precision):
    for times in ([3, 1, 2], np.array([3, 1, 2]), jnp.array([3, 1, 2])):
        law = bcgc.Empirical(times)
        assert jnp.asarray(law.times).dtype == precision
        assert law.mean() == 2
