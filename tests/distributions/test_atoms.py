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

TIMES = [7.5, 0.4, 3.25, 3.25, 1200.0, 0.4, 3.25, 19.0]
CASES = [
    *(DETERMINISTIC.case(2.5), DETERMINISTIC.case(1e-30), EMPIRICAL.case(*TIMES)),
    *(TWO_SPEED.case(1.3, 5.7, 0.27), TWO_SPEED.case(0.02, math.inf, 0.041)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.parameters[:3]))
def test_few_times_are_counted(case, precision):
    law = case.law()
    near = few_ulp(precision)
    values, mass = (np.array(column) for column in zip(*case.atoms, strict=True))
    finite = np.minimum(values, 1e30)
    t = np.unique(np.concatenate([[0.0], 0.99 * finite, finite, 1.01 * finite]))
    share = case.frozen.sf(t)
    t = t.astype(precision)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(law.cumulative_hazard(t), -np.log(share), rtol=near)
    np.testing.assert_allclose(law.cdf(t), 1 - share, rtol=near)
    np.testing.assert_allclose(law.survival(t), share, rtol=near)
    np.testing.assert_allclose(
        [law.mean(), law.infimum()], [case.frozen.mean(), values[0]], rtol=near
    )
    assert isinstance(law.pieces(), bcgc.distributions.Atomic)
    np.testing.assert_allclose(law.pieces().times, values, rtol=near)
    # Λ⁻¹(a) = inf{t : Λ(t) ≥ a}, at the ends and at hazards that avoid the steps.
    share = (np.cumsum(mass) - mass)[:, None] + mass[:, None] * [0.02, 0.5, 0.98]
    a = -np.log1p(-share.ravel())
    expected = np.repeat(values, 3)
    times = law.inverse_cumulative_hazard(np.r_[0, a, 80.0, np.inf].astype(precision))
    np.testing.assert_allclose(
        times, [values[0], *expected, values[-1], values[-1]], rtol=near
    )


def test_two_speeds_inverse_undoes_the_hazard_at_every_probability(precision):
    # Without a margin two roundings turn one probability in ten around.
    probability = np.linspace(0.001, 0.999, 997, dtype=precision)
    law = bcgc.TwoSpeed(jnp.full(997, 1.3), jnp.full(997, 5.7), probability)
    np.testing.assert_array_equal(
        law.inverse_cumulative_hazard(law.cumulative_hazard(law.fast)), law.fast
    )
    np.testing.assert_array_equal(
        law.inverse_cumulative_hazard(law.cumulative_hazard(law.slow)), law.slow
    )


def test_two_speeds_that_never_or_always_slow_down(precision):
    never = bcgc.TwoSpeed(1.3, math.inf, 0.0)
    always = bcgc.TwoSpeed(1.3, 5.7, 1.0)
    np.testing.assert_allclose(
        [never.mean(), always.mean()], [1.3, 5.7], rtol=few_ulp(precision)
    )
    np.testing.assert_array_equal(
        never.cumulative_hazard(jnp.array([1.2, 1.4, 1e9])), [0, np.inf, np.inf]
    )
    np.testing.assert_array_equal(
        always.cumulative_hazard(jnp.array([1.2, 1.4, 9.0])), [0, 0, np.inf]
    )
    a = jnp.array([1e-3, 0.7, 80.0])
    np.testing.assert_allclose(
        never.inverse_cumulative_hazard(a), 1.3, rtol=few_ulp(precision)
    )
    np.testing.assert_allclose(
        always.inverse_cumulative_hazard(a), 5.7, rtol=few_ulp(precision)
    )


@pytest.mark.parametrize("probability", [0.0, 0.27, 1.0])
def test_two_speeds_have_the_slopes_of_their_formulas(probability, precision):
    law = bcgc.TwoSpeed(1.3, 5.7, probability)
    near = few_ulp(precision)
    mean = jax.grad(lambda law: law.mean())(law)
    np.testing.assert_allclose(
        jax.tree.leaves(mean), [1 - probability, probability, 5.7 - 1.3], rtol=near
    )
    hazard = jax.grad(lambda law: law.cumulative_hazard(2.4))(law)
    expected = -1 / probability if probability > 0 else 0
    np.testing.assert_allclose(jax.tree.leaves(hazard), [0, 0, expected], rtol=near)
    for a, slopes in (
        (0.2 * -math.log(probability or 0.5), [1, 0, 0]),
        (60.0, [0, 1, 0]),
    ):
        if 0 < probability < 1:
            inverse = jax.grad(lambda law, a=a: law.inverse_cumulative_hazard(a))(law)
            np.testing.assert_array_equal(jax.tree.leaves(inverse), slopes)


@pytest.mark.parametrize("size", [1, 1001])
def test_empirical_inverse_undoes_the_hazard_at_every_time(size, precision):
    times = np.unique(
        np.random.default_rng(size).gamma(0.7, 3.0, size).astype(precision)
    )
    law = bcgc.Empirical(times)
    there_and_back = jax.jit(
        lambda law, t: law.inverse_cumulative_hazard(law.cumulative_hazard(t))
    )
    np.testing.assert_array_equal(there_and_back(law, times), times)


def test_empirical_law_sorts_what_it_is_given_also_under_a_trace(precision):
    unsorted = np.asarray(TIMES, precision).reshape(2, 4)
    near = few_ulp(precision)
    expected = [0.0, 2 / 8, 5 / 8, 6 / 8, 1.0]
    t = np.asarray([0.3, 0.4, 3.3, 8.0, 1e5], precision)
    nested: Any = unsorted.tolist()
    for law in (
        bcgc.Empirical(unsorted),
        bcgc.Empirical(jnp.asarray(unsorted)),
        bcgc.Empirical(nested),
    ):
        np.testing.assert_allclose(law.cdf(t), expected, rtol=near)
    traced = jax.jit(lambda times: bcgc.Empirical(times).cdf(t))(unsorted)
    np.testing.assert_allclose(traced, expected, rtol=near)
    batch = jax.vmap(lambda times: bcgc.Empirical(times).cdf(3.3))(
        jnp.asarray(unsorted)
    )
    np.testing.assert_allclose(batch, [3 / 4, 2 / 4], rtol=near)


def test_empirical_law_has_slopes_in_its_times(precision):
    law = bcgc.Empirical(TIMES)
    mean = jax.grad(lambda law: law.mean())(law)
    np.testing.assert_allclose(mean.times, 1 / 8, rtol=few_ulp(precision))
    quantile = jax.grad(lambda law: law.inverse_cumulative_hazard(-math.log1p(-0.7)))(
        law
    )
    np.testing.assert_array_equal(quantile.times, np.eye(8)[5])  # rank ⌈0.7 · 8⌉ = 6


def test_empirical_law_of_integers_has_floating_times(precision):
    for times in ([3, 1, 2], np.array([3, 1, 2]), jnp.array([3, 1, 2])):
        law = bcgc.Empirical(times)
        assert jnp.asarray(law.times).dtype == precision
        assert law.mean() == 2
