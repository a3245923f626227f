"""Order statistics against NumPy's sort, mpmath, closed forms, and exact fractions."""

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import bcgc_jax as bcgc
from bcgc_jax.exact.order_statistics import simulate_max, threefry
from tests.oracles import exact as oracles
from tests.oracles import laws


def test_threefry_is_bit_for_bit_the_cipher_of_jax():
    rng = np.random.default_rng(23)
    for _ in range(3):
        key = rng.integers(0, 2**32, 2, dtype=np.uint32)
        x0, x1 = rng.integers(0, 2**32, (2, 4096), dtype=np.uint32)
        reference = jax.extend.random.threefry_2x32(
            jnp.asarray(key), jnp.concatenate([x0, x1])
        )
        result = jax.jit(threefry)(jnp.asarray(key), x0, x1)
        np.testing.assert_array_equal(jnp.concatenate(result), reference)


WEIBULL = laws.WEIBULL.case(2.3, 0.6, 0.9)
TWO_SPEED = laws.TWO_SPEED.case(1.3, math.inf, 0.27)


def _sorted(num_workers: int, seed: int) -> np.ndarray:
    """Draws of SciPy's sampler, slowest first by NumPy's sort."""
    times = WEIBULL.frozen.rvs(
        (30_000, num_workers), random_state=np.random.default_rng(seed)
    )
    return -np.sort(-times, axis=1)


def check_same_joint_law(draws: np.ndarray, reference: np.ndarray) -> None:
    """Columns by Kolmogorov and Smirnov, pairs by the covariance of the logarithms."""
    for column, expected in zip(draws.T, reference.T, strict=True):
        assert scipy.stats.ks_2samp(column, expected).pvalue > 1e-3
    covariance, expected = (
        np.atleast_2d(np.cov(np.log(t), rowvar=False)) for t in (draws, reference)
    )
    variance = np.diag(expected)
    # The deviation of a sample covariance of normal variables; log T is not far from
    # them.
    deviation = np.sqrt(
        (np.outer(variance, variance) + expected**2)
        * (1 / len(draws) + 1 / len(reference))
    )
    assert np.abs((covariance - expected) / deviation).max() < 4.5


def test_sorted_draws_with_a_traced_number_of_workers_are_padded_with_the_infimum(
    precision,
):
    law = WEIBULL.law()
    num_workers = np.array([1, 3, 6, 8])

    @jax.jit
    @jax.vmap
    def draw(key, n):
        return bcgc.sorted_cycle_times(key, law, n, 5_000, max_workers=8)

    times = np.asarray(draw(jax.random.split(jax.random.key(37), 4), num_workers))
    assert times.shape == (4, 5_000, 8)
    assert times.dtype == precision
    for n, draws in zip(num_workers, times, strict=True):
        assert (draws[:, :-1] >= draws[:, 1:]).all()
        np.testing.assert_array_equal(draws[:, n:], precision.type(WEIBULL.infimum))
        check_same_joint_law(draws[:, :n].astype(float), _sorted(n, seed=n))


def test_traced_number_of_workers_asks_for_its_bound():
    law = bcgc.Pareto(2.3, 1.7)
    draw = functools.partial(
        bcgc.sorted_cycle_times, jax.random.key(1), law, num_draws=5
    )
    for asked in (draw, functools.partial(bcgc.plans.expected_order_statistics, law)):
        with pytest.raises(
            ValueError,
            match=r"num_workers is traced, .* Pass a static max_workers that",
        ):
            jax.jit(lambda n, asked=asked: asked(num_workers=n))(3)


LOAD = np.array([3.1, 4.0, 4.0, 9.7, 16.5])


# Beyond the workers the load repeats, and a level without load does not count.
@pytest.mark.parametrize("load", [LOAD, np.array([0.0, 3.1, 7.0, 7.0, 7.0])])
def test_simulated_maximum_is_that_of_the_sorted_draws_of_the_same_key(load, precision):
    law, load, workers = WEIBULL.law(), load.astype(precision), 5 if load[0] else 3

    @jax.jit
    def maximum_and_draws(key, load, workers):
        draws = bcgc.sorted_cycle_times(key, law, workers, 3_000, max_workers=5)
        return simulate_max(key, law, load, workers, 3_000), draws

    largest, draws = maximum_and_draws(jax.random.key(53), load, workers)
    assert largest.dtype == precision
    expected = (np.asarray(draws, float) * load)[:, :workers].max(axis=1)
    # worst measured 0.5 eps
    np.testing.assert_allclose(largest, expected, rtol=4 * np.finfo(precision).eps)
    # Of some only: float32 has few numbers for so many draws.
    draws_of_another_key = maximum_and_draws(jax.random.key(54), load, workers)[1]
    assert not np.isin(
        draws[:400, :workers], draws_of_another_key[:400, :workers]
    ).any()


def test_simulated_maximum_ignores_infinite_times_at_levels_without_load(precision):
    law = TWO_SPEED.law()
    load = jnp.asarray([0.0, 0.0, 2.1, 2.9], precision)
    draw = jax.jit(lambda key: simulate_max(key, law, load, 4, 20_000))
    largest = np.asarray(draw(jax.random.key(67)))
    # Of 4 workers two may be lost; the last level then ends at 2.9 · 1.3.
    np.testing.assert_allclose(np.unique(largest), [2.9 * 1.3, np.inf], rtol=1e-6)
    lost = scipy.stats.binom(4, 0.27).sf(2)
    assert (
        scipy.stats.binomtest(int(np.isinf(largest).sum()), largest.size, lost).pvalue
        > 1e-3
    )


def test_slopes_of_the_simulated_maximum_are_the_cycle_times_where_it_lies(precision):
    key = jax.random.key(71)
    params = WEIBULL.parameters

    @jax.jit
    def slopes(params, load):
        def mean(params, load):
            return simulate_max(key, bcgc.Weibull(*params), load, 5, 2_000).mean()

        draws = bcgc.sorted_cycle_times(key, bcgc.Weibull(*params), 5, 2_000)
        return jax.grad(mean, argnums=(0, 1))(params, load), draws

    (by_params, by_load), draws = slopes(params, LOAD.astype(precision))
    draws = np.asarray(draws, float)
    where = (draws * LOAD).argmax(axis=1)
    # Of the two equal loads only that of the slower time counts.
    np.testing.assert_array_equal(np.unique(where), [0, 1, 3, 4])
    rows = np.arange(2_000)
    expected = np.bincount(where, draws[rows, where], minlength=5) / 2_000
    rtol = 8 * np.finfo(precision).eps  # worst measured 2 eps
    np.testing.assert_allclose(by_load, expected, rtol=rtol)
    # max = load (shift + scale a^{1/shape}), a = ((T - shift) / scale)^shape.
    excess = (draws[rows, where] - float(precision.type(0.9))) / 2.3
    load = LOAD[where]
    np.testing.assert_allclose(by_params[0], np.mean(load * excess), rtol=rtol)
    by_shape = -np.mean(load * 2.3 * scipy.special.xlogy(excess, excess)) / 0.6
    np.testing.assert_allclose(by_params[1], by_shape, rtol=rtol)
    np.testing.assert_allclose(by_params[2], np.mean(load), rtol=rtol)


SIZES = (1, 7, 1000)


@functools.partial(jax.jit, static_argnames="largest")
def _compiled(law, num_workers, largest):
    def means(n):
        expected = functools.partial(
            bcgc.plans.expected_order_statistics, law, n, max_workers=largest
        )
        return [expected(), expected(function=reciprocal)]

    return jnp.stack(jax.vmap(means)(num_workers))


def expectations(law, num_workers, largest=SIZES[-1]) -> np.ndarray:
    """E T_(k), E 1/T_(k), `[2, len(num_workers), largest]`: a program a kind of law."""
    law = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), law)
    sizes = np.resize(num_workers, len(SIZES))
    return np.asarray(_compiled(law, sizes, largest))[:, : len(num_workers)]


def reciprocal(t):
    return 1 / t


def ranks(num_workers: int) -> list[int]:
    """The fastest, the slowest, and some in between."""
    return sorted(
        {1, 2, (num_workers + 1) // 2, num_workers - 1, num_workers}
        - {0, num_workers + 1}
    )


def check_expectations(
    law, power, reference, rtol, sizes=SIZES, largest=SIZES[-1]
) -> None:
    """E T^power, for 1 or -1, at every size and every rank of `ranks`; the padding."""
    rows = expectations(law, sizes, largest)[0 if power == 1 else 1]
    infimum = np.asarray(law.infimum() if power == 1 else reciprocal(law.infimum()))
    for row, n in zip(rows, sizes, strict=True):
        expected = [reference(n, k) for k in ranks(n)]
        np.testing.assert_allclose(row[[n - k for k in ranks(n)]], expected, rtol=rtol)
        np.testing.assert_allclose(row[n:], infimum, rtol=np.finfo(rows.dtype).eps)


def log_logistic(scale, shape):
    return laws.LOG_LOGISTIC.build(scale, shape, 0.0)


# The law, parameters that are exact in both precisions, and what E T_(k) of n is, or
# its reciprocal's: the harmonic series, eq. (8), an interval divided evenly, ratios of
# gamma functions.
CLOSED_FORMS: dict[str, tuple[Callable, tuple[float, ...], Callable]] = {
    "exponential": (
        bcgc.ShiftedExponential,
        (0.375, 2.5),
        oracles.exponential_order_statistic,
    ),
    "exponential, 1/T": (
        bcgc.ShiftedExponential,
        (2.0**-10, 50.0),
        oracles.exponential_inverse_moment,
    ),
    "near 0, 1/T": (
        bcgc.ShiftedExponential,
        (2.0**-10, 0.0625),
        oracles.exponential_inverse_moment,
    ),
    "uniform": (
        bcgc.Uniform,
        (1.75, 3.125),
        lambda low, high, n, k: low + (high - low) * k / (n + 1),
    ),
    "pareto": (
        bcgc.Pareto,
        (2.25, 1.75),
        lambda scale, c, n, k: scale * oracles.power_moment(c, n, k, 1),
    ),
    "pareto, 1/T": (
        bcgc.Pareto,
        (2.25, 1.75),
        lambda a, c, n, k: oracles.power_moment(c, n, k, -1) / a,
    ),
    "log-logistic": (log_logistic, (2.25, 1.25), oracles.log_logistic_moment),
    "log-logistic, some infinite": (
        log_logistic,
        (2.25, 0.75),
        oracles.log_logistic_moment,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_moments_of_order_statistics_are_the_closed_forms(name, precision):
    make, parameters, reference = CLOSED_FORMS[name]
    law = make(*parameters)
    power = -1 if name.endswith("1/T") else 1
    # Of eq. (8) the sum takes long. Worst measured 4e-7 and 3e-16; 1.5e-7 and 3e-15;
    # 7e-7 and 7e-16; of log-logistic times 2.1e-6 in single precision, at rank 500 of
    # 1000.
    sizes = (1, 7, 50) if reference is oracles.exponential_inverse_moment else SIZES
    tight = name.startswith("log")
    rtol = {"float32": 3e-6 if tight else 2e-6, "float64": 4e-15 if tight else 1e-14}[
        precision.name
    ]
    assert expectations(law, sizes).dtype == precision
    check_expectations(
        law, power, functools.partial(reference, *parameters), rtol, sizes
    )


def test_mean_reciprocals_are_infinite_exactly_where_too_much_lies_next_to_zero(
    precision,
):
    # P(T_(k) ≤ t) ~ t^{c k}: E 1/T_(k) is finite for c k > 1.
    law_of_power = {1.0: bcgc.ShiftedExponential(0.37)} | {
        c: bcgc.Weibull(2.3, c) for c in (0.6, 0.3, 3.4)
    }
    for power, law in law_of_power.items():
        result = expectations(law, (6,))[1, 0, 5::-1]
        np.testing.assert_array_equal(np.isinf(result), power * np.arange(1, 7) <= 1)
        assert (np.diff(result[np.isfinite(result)]) < 0).all()


# The last of a worker that may never answer: every mean is infinite, and no mean
# reciprocal.
ATOMIC = {
    "two speeds": laws.TWO_SPEED.case(1.25, 5.75, 0.28125),
    "empirical": laws.EMPIRICAL.case(7.5, 0.375, 3.25, 3.25, 19.0),
    "lost": laws.TWO_SPEED.case(1.25, math.inf, 0.28125),
}


@pytest.mark.parametrize("case", ATOMIC.values(), ids=ATOMIC)
@pytest.mark.parametrize("power", [1, -1])
def test_expectations_of_atomic_laws_are_binomial_sums(case, power, x64):
    atoms = [
        (value, Fraction(share).limit_denominator(100)) for value, share in case.atoms
    ]

    def reference(n: int, k: int) -> float:
        return oracles.atomic_order_statistic(atoms, n, k, lambda t: t**power)

    # all of 50 are hardly ever lost
    sizes = (1, 6, 50) if math.isfinite(case.kinks[-1]) else (1, 6)
    # Worst measured 7e-15.
    check_expectations(case.law(), power, reference, 4e-14, sizes, 50)


def test_slopes_of_expectations_are_those_of_the_closed_form(precision):
    def mean(p):
        return bcgc.plans.expected_order_statistics(log_logistic(*p), 50)

    point = (2.25, 2.375)
    slopes = jax.jit(jax.jacobian(mean))(
        tuple(jnp.asarray(v, precision) for v in point)
    )
    # worst measured 1.4e-7 and 3e-16
    rtol = {"float32": 1e-6, "float64": 2e-15}[precision.name]
    for k in ranks(50):
        value = oracles.log_logistic_moment(*point, 50, k)
        np.testing.assert_allclose(slopes[0][50 - k], value / 2.25, rtol=rtol)
        r = 1 / 2.375  # of the gamma functions of k + r and 51 - k - r
        change = scipy.special.digamma(51 - k - r) - scipy.special.digamma(k + r)
        expected = value * change * r**2
        np.testing.assert_allclose(
            slopes[1][50 - k], expected, rtol=rtol, atol=rtol * value
        )
