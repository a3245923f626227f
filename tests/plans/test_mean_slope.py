"""Slopes of means of jumping runtimes: closed forms, and what is exact in each draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.plans.mean_slope import with_mean_slope

pytestmark = pytest.mark.usefixtures("x64")

DRAWS = np.random.default_rng(0).exponential(size=(2**14, 2))


def _steps(starts, seconds, round_trip):
    """Whoever ends first decides: the end jumps from 3 T_0 to T_0 + T_1."""
    trips = 2 * round_trip
    ready = starts + seconds
    first = ready[..., 0] < ready[..., 1]
    end_of_first = starts[..., 0] + 3 * seconds[..., 0]
    end_of_second = jnp.mean(starts, axis=-1) + jnp.sum(seconds, axis=-1)
    return jnp.where(first, end_of_first, end_of_second) + trips, None


def _mean(rate, trip=0.0):
    seconds = jnp.asarray(DRAWS) / jnp.stack([rate, jnp.ones_like(rate)])
    ends, _ = with_mean_slope(
        _steps, jnp.zeros_like(seconds), seconds, jnp.asarray(trip)
    )
    return jnp.mean(ends)


SLOPE_ALONG = jax.jit(
    lambda point, way: jax.jvp(lambda *a: with_mean_slope(_steps, *a), point, way)
)
SLOPES = jax.jit(jax.vmap(jax.value_and_grad(_mean)))


def test_the_slope_of_the_mean_sees_the_jumps():
    """E τ = (2 λ + 1) / (λ + 1)² + 1 / λ for rates λ and 1.

    The worst of three is off by WORST of E τ.
    """
    rates = np.array([0.5, 1.0, 2.0])
    means = (2 * rates + 1) / (rates + 1) ** 2 + 1 / rates
    slopes = -2 * rates / (rates + 1) ** 3 - 1 / rates**2
    values, estimates = SLOPES(rates)
    np.testing.assert_allclose(values, means, rtol=0.02)
    assert np.all(abs(rates * (estimates - slopes)) < 0.03 * means)
    # A draw's own derivative is far from it.
    seconds = DRAWS / np.stack([rates, np.ones(3)], axis=1)[:, None]
    first = seconds[..., 0] < seconds[..., 1]
    draw_slopes = -np.mean(np.where(first, 3, 1) * seconds[..., 0], axis=1)
    assert np.all(abs(draw_slopes - rates * slopes) > 0.08 * means)


@jax.jit
def _slope_in_the_second(seconds):
    """Of the first draw's end in its second worker's time, without round trips."""

    def ends(seconds):
        return with_mean_slope(
            lambda starts, seconds, trip: _steps(starts, seconds, 0 * trip),
            *(jnp.zeros_like(seconds), seconds, jnp.zeros(())),
        )[0]

    way = jnp.zeros_like(seconds).at[0, 1].set(1.0)
    return jax.jvp(ends, (seconds,), (way,))[1][0]


@pytest.mark.parametrize(
    ("other_draws", "time", "near", "far"),
    [
        ((1.0, 1.0), 1.0, 1.2e-3, 2.5e-3),  # apart by 1.8e-3, 1.4 · 1e-3 (1 + 0.3)
        ((1.0, 1.0), 1e-3, 3e-4, 5e-4),  # 4.2e-4, 1.4 · 1e-3 (1e-3 + 0.3)
        ((0.5, 1.5), 1.0, 0.14, 0.22),  # 0.17, 1.4 · 0.2 · 0.5 (1 + 0.3 · 0.75)
    ],
    ids=["alike", "near 0", "spread"],
)
def test_moves_are_a_fifth_of_the_spread_or_a_thousandth_of_a_time(
    other_draws, time, near, far
):
    """A move sees the jump where the second worker is `near`, else its slope is 0."""
    slopes = []
    for gap in (near, far):
        seconds = np.tile(other_draws, (100, 1))
        seconds[0] = time, time + gap
        slopes.append(float(_slope_in_the_second(jnp.asarray(seconds))))
    assert abs(slopes[0]) > 0.1
    assert abs(slopes[1]) < 1e-6


def test_a_round_trip_has_a_slope_where_there_is_none():
    np.testing.assert_allclose(jax.jit(jax.grad(_mean, 1))(1.0, 0.0), 2, atol=0.1)


def test_a_scale_of_all_times_and_a_later_start_are_exact():
    rng = np.random.default_rng(1)
    times = tuple(
        map(jnp.asarray, (rng.exponential(size=(9, 3)), rng.exponential(size=(9, 3))))
    )
    point = (*times, jnp.asarray(0.2))
    ends = _steps(*point)[0]
    (_, _), (scaled, _) = SLOPE_ALONG(point, point)
    np.testing.assert_allclose(scaled, ends, rtol=1e-12)
    later = jnp.ones_like(times[0]), jnp.zeros_like(times[1]), jnp.zeros_like(point[2])
    (_, _), (moved, _) = SLOPE_ALONG(point, later)
    np.testing.assert_allclose(moved, 1, rtol=1e-12)


def test_equal_times_of_single_precision_have_the_slope_of_their_scale():
    def mean(value):
        seconds = jnp.full((50, 3), value, jnp.float32)
        return jnp.mean(
            with_mean_slope(_steps, 0 * seconds, seconds, jnp.float32(0))[0]
        )

    assert float(jax.jit(jax.grad(mean))(jnp.float32(0.3))) == pytest.approx(
        3, rel=1e-5
    )


@pytest.mark.slow
def test_ways_to_a_slope_agree():
    rates = jnp.array([0.5, 2.0])
    _, slopes = SLOPES(rates)
    np.testing.assert_allclose(jax.grad(_mean)(rates[0]), slopes[0], rtol=1e-9)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.jacfwd(_mean)))(rates), slopes, rtol=1e-9
    )


def test_second_derivatives_are_nan_also_within_a_loop():
    def looped(rate):
        return jnp.sum(jax.lax.map(_mean, jnp.stack([rate, 2 * rate])))

    assert np.isnan(jax.jit(jax.hessian(looped))(1.0))
