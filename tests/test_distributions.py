"""The laws against mpmath at 40 digits, scipy.stats, and counting."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from jax import Array

import bcgc_jax as bcgc
from tests.oracles import exact as oracles

HAZARDS = [
    1e-12,
    1e-9,
    1e-6,
    1e-4,
    0.013,
    0.19,
    0.55,
    0.69,
    0.71,
    1.3,
    3.1,
    9.7,
    36.5,
    79.0,
    210.0,
    460.0,
    690.0,
]
"""Of the points where the laws are asked; those above 80 in float64 only."""


def log_logistic_hazard(p, t):
    return jnp.log1p(((t - p[2]) / p[0]) ** p[1])


def log_logistic_inverse(p, a):
    return p[2] + p[0] * jnp.expm1(a) ** (1 / p[1])


def log_logistic(scale, shape, shift):
    return bcgc.FromHazard(log_logistic_hazard, log_logistic_inverse, parameters=(scale, shape, shift))


@dataclasses.dataclass(frozen=True)
class Case:
    """A law, three sets of parameters for it, and two independent answers.

    `rtol` maps a dtype to the tolerances of (Λ, Λ⁻¹, slopes of Λ, slopes of Λ⁻¹).
    """

    build: Callable
    parameters: list[tuple]
    oracle: oracles.LawOracle
    frozen: Callable
    rtol: dict[str, tuple[float, float, float, float]]
    highest: float = math.inf
    """Hazards above it are left out: there Λ⁻¹ is the end of the support to all digits."""


CASES = {
    "ShiftedExponential": Case(
        bcgc.ShiftedExponential,
        [(1.3e-3, 50.0), (0.37, 0.0), (12.5, 3.3)],
        oracles.SHIFTED_EXPONENTIAL,
        lambda rate, shift: scipy.stats.expon(shift, 1 / rate),
        {
            "float32": (2e-7, 3e-7, 2e-7, 2e-7),  # worst measured 5e-8, 6e-8, 2e-8, 4e-8
            "float64": (1e-15, 1e-15, 1e-15, 1e-15),  # 1.1e-16, 1.1e-16, 4e-17, 1.1e-16
        },
    ),
    "Weibull": Case(
        bcgc.Weibull,
        [(2.3, 0.6, 0.0), (1040.0, 3.4, 50.0), (0.07, 1.7, 0.9)],
        oracles.WEIBULL,
        lambda scale, concentration, shift: scipy.stats.weibull_min(concentration, shift, scale),
        {
            "float32": (6e-7, 2e-6, 6e-7, 2e-6),  # worst measured 1.4e-7, 7e-7, 1.6e-7, 7e-7
            "float64": (3e-15, 2e-15, 2e-15, 2e-15),  # 7e-16, 3e-16, 5e-16, 4e-16
        },
    ),
    "Pareto": Case(
        bcgc.Pareto,
        [(2.3, 2.6), (700.0, 3.7), (0.04, 25.0)],
        oracles.PARETO,
        lambda scale, shape: scipy.stats.pareto(shape, 0, scale),
        {
            "float32": (4e-7, 2e-6, 4e-7, 2e-6),  # worst measured 1.2e-7, 4e-7, 1.0e-7, 3e-7
            "float64": (1e-15, 1e-13, 1e-15, 1e-13),  # 2e-16, 2.2e-14, 2e-16, 2.2e-14
        },
    ),
    "Uniform": Case(
        bcgc.Uniform,
        [(1.7, 3.1), (0.0, 0.02), (50.0, 1050.0)],
        oracles.UNIFORM,
        lambda low, high: scipy.stats.uniform(low, high - low),
        {
            "float32": (6e-7, 4e-7, 4e-7, 4e-7),  # worst measured 1.7e-7, 9e-8, 1.2e-7, 1.0e-7
            "float64": (1e-15, 1e-15, 1e-15, 1e-15),  # 2e-16, 2e-16, 2e-16, 3e-16
        },
        highest=30.0,
    ),
    # In float64 the error is that of log_ndtr, whose asymptotic series starts at z = 20 (Λ = 204).
    "Lognormal": Case(
        bcgc.Lognormal,
        [(-0.7, 0.45, 0.0), (6.2, 1.6, 50.0), (1.3, 0.08, 2.5)],
        oracles.LOGNORMAL,
        lambda location, scale, shift: scipy.stats.lognorm(scale, shift, math.exp(location)),
        {
            "float32": (3e-5, 3e-6, 3e-5, 3e-5),  # worst measured 6e-6, 7e-7, 6e-6, 5e-6
            "float64": (1e-10, 1e-9, 1e-8, 1e-8),  # 1.7e-11, 2.8e-10, 3.6e-9, 3.6e-9
        },
    ),
    # In float32 the error is that of gammainc, which loses digits in proportion to the shape.
    "Gamma": Case(
        bcgc.Gamma,
        [(0.3, 2.1, 0.0), (2.6, 0.013, 50.0), (137.0, 6.4, 3.3), (0.021, 0.8, 0.0)],
        oracles.GAMMA,
        lambda shape, rate, shift: scipy.stats.gamma(shape, shift, 1 / rate),
        {
            "float32": (5e-4, 1e-4, 6e-4, 1e-4),  # worst measured 1.3e-4, 3e-5, 1.6e-4, 2.5e-5
            "float64": (1e-12, 3e-13, 1e-12, 3e-13),  # 2.5e-13, 5e-14, 3e-13, 8e-14
        },
    ),
    "FromHazard": Case(
        log_logistic,
        [(2.3, 2.4, 0.0), (1040.0, 7.7, 50.0), (0.07, 3.1, 0.9)],
        oracles.LOG_LOGISTIC,
        lambda scale, shape, shift: scipy.stats.fisk(shape, shift, scale),
        {
            "float32": (6e-7, 3e-6, 6e-7, 1e-5),  # worst measured 1.5e-7, 8e-7, 2e-7, 3e-6
            "float64": (3e-15, 3e-14, 3e-15, 2e-13),  # 9e-16, 6e-15, 8e-16, 4e-14
        },
    ),
}
every_law = pytest.mark.parametrize("name", list(CASES))


def batched_law(name: str, dtype: np.dtype) -> Any:
    columns = zip(*CASES[name].parameters, strict=True)
    return CASES[name].build(*(jnp.asarray(column, dtype) for column in columns))


@functools.cache
def points(name: str, dtype: np.dtype) -> tuple[list[tuple], np.ndarray, np.ndarray, np.ndarray]:
    """The parameters as they round to `dtype`, the hazards, Λ⁻¹ there (exact), and the same as `dtype`."""
    case = CASES[name]
    parameters = [tuple(float(dtype.type(v)) for v in p) for p in case.parameters]
    a = np.asarray([v for v in HAZARDS if v <= case.highest and (v < 80 or dtype == np.float64)], dtype)
    exact = np.asarray([[case.oracle.inverse(p, float(v)) for v in a] for p in parameters])
    return parameters, a, exact, exact.astype(dtype)


@jax.jit
def _values_and_slopes(law: Any, a: Array, t: Array) -> dict[str, Any]:
    """Λ at `t`, below and just above the support and at infinity; Λ⁻¹ at `a` and at 0; slopes of both."""

    def at(law, a, t):
        start = law.infimum()
        below = jnp.stack([start, 0.7 * start - 0.1, jnp.full_like(start, -3.3)])
        above = jnp.stack([jnp.nextafter(start, jnp.inf), start * (1 + 1e-5) + 1e-30])
        t = jnp.concatenate([t, below, above, jnp.full_like(t, jnp.inf, shape=1)])
        a = jnp.concatenate([a, jnp.zeros_like(a, shape=1)])
        hazard, inverse = (
            jax.vmap(jax.value_and_grad(f, argnums=(0, 1)), (None, 0))
            for f in (type(law).cumulative_hazard, type(law).inverse_cumulative_hazard)
        )
        return {
            "hazard": hazard(law, t),
            "inverse": inverse(law, a),
            "cdf": law.cdf(t),
            "survival": law.survival(t),
            "mean": jax.value_and_grad(type(law).mean)(law),
            "infimum": start,
        }

    return jax.vmap(at)(law, a, t)


@functools.cache
def evaluate(name: str, dtype: np.dtype) -> dict[str, Any]:
    """Everything about a law at its points, from one compiled function (gamma's takes 10 s to compile)."""
    _, a, _, t = points(name, dtype)
    law, k = batched_law(name, dtype), a.size
    raw = jax.device_get(_values_and_slopes(law, np.broadcast_to(a, t.shape), t))
    again = jax.device_get(_values_and_slopes(law, raw["hazard"][0][:, :k], t))
    hazard_slopes, inverse_slopes = (jax.tree.leaves(raw[f][1]) for f in ("hazard", "inverse"))
    return {
        "hazard": raw["hazard"][0][:, :k],
        "hazard below": raw["hazard"][0][:, k : k + 3],
        "hazard at infinity": raw["hazard"][0][:, -1],
        "hazard slopes": [s[:, :k] for s in hazard_slopes],
        "slopes below": [s[:, k : k + 3] for s in hazard_slopes],
        "slopes above": [s[:, k + 3 : k + 5] for s in hazard_slopes],
        "inverse": raw["inverse"][0][:, :k],
        "inverse at zero": raw["inverse"][0][:, -1],
        "inverse slopes": [s[:, :k] for s in inverse_slopes],
        "slopes at zero": [s[:, -1] for s in inverse_slopes],
        "round trip": again["inverse"][0][:, :k],
        "cdf": raw["cdf"][:, :k],
        "survival": raw["survival"][:, :k],
        "mean": raw["mean"][0],
        "mean slopes": jax.tree.leaves(raw["mean"][1]),
        "infimum": raw["infimum"],
    }


def exact(values: np.ndarray) -> np.ndarray:
    """As mpmath numbers, so that differences from an oracle are not rounded."""
    return np.vectorize(lambda v: mp.mpf(float(v)), otypes=[object])(values)


def errors(actual: np.ndarray, expected: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """|actual - expected| / scale, relative to |expected| by default; 0 where both are 0."""
    scale = np.abs(expected) if scale is None else scale
    gap = np.abs(exact(actual) - expected)
    return np.where(gap == 0, 0, gap / np.where(scale == 0, 1, scale)).astype(float)


def few_ulp(dtype: np.dtype) -> float:
    """For values that are a handful of operations away from exact ones; the worst measured is 2 ulp."""
    return 8 * float(np.finfo(dtype).eps)


def representable(name: str, dtype: np.dtype) -> np.ndarray:
    """Where T - infimum is no smaller than a normal number (with a margin); only gamma goes below."""
    parameters, _, t, _ = points(name, dtype)
    start = np.asarray([[CASES[name].oracle.infimum(list(exact(np.asarray(p))))] for p in parameters])
    return np.asarray(t - start > 1e3 * float(np.finfo(dtype).tiny), bool)


def exact_hazards(name: str, dtype: np.dtype) -> np.ndarray:
    parameters, _, _, t = points(name, dtype)
    hazard = CASES[name].oracle.hazard
    return np.asarray([[hazard(p, float(v)) for v in row] for p, row in zip(parameters, t, strict=True)])


# Values


@every_law
def test_hazard_is_minus_the_log_of_the_survival_function(name, precision):
    result, expected = evaluate(name, precision), exact_hazards(name, precision)
    assert result["hazard"].dtype == precision
    mask = representable(name, precision)
    assert mask.mean() > 0.8
    error = errors(result["hazard"], expected)[mask]
    assert error.max() < CASES[name].rtol[precision.name][0]


@every_law
def test_inverse_hazard_is_the_root_of_the_hazard(name, precision):
    result, (_, _, expected, _) = evaluate(name, precision), points(name, precision)
    assert result["inverse"].dtype == precision
    mask = representable(name, precision)
    error = errors(result["inverse"], expected)[mask]
    assert error.max() < CASES[name].rtol[precision.name][1]


@every_law
def test_cdf_keeps_its_digits_in_the_left_tail_and_survival_in_the_right(name, precision):
    result, hazard = evaluate(name, precision), exact_hazards(name, precision)
    mask = representable(name, precision)
    cdf = np.vectorize(lambda h: -mp.expm1(-h), otypes=[object])(hazard)
    survival = np.vectorize(lambda h: mp.exp(-h), otypes=[object])(hazard)
    rtol = CASES[name].rtol[precision.name][0] + 2 * np.finfo(precision).eps
    assert errors(result["cdf"], cdf)[mask].max() < rtol
    # The absolute error of Λ is the relative one of exp(-Λ).
    relative = errors(result["survival"], survival, survival * (1 + hazard))
    assert relative[mask].max() < rtol


@every_law
def test_inverse_undoes_the_hazard(name, precision):
    _, _, _, t = points(name, precision)
    mask = representable(name, precision)
    error = np.abs(evaluate(name, precision)["round trip"] - t)[mask] / t[mask]
    assert error.max() < 2 * CASES[name].rtol[precision.name][1]


@every_law
def test_mean_and_infimum_are_those_of_scipy(name, precision):
    result = evaluate(name, precision)
    for i, p in enumerate(points(name, precision)[0]):
        law = CASES[name].frozen(*p)
        rtol = {"float32": 1e-6, "float64": 2e-15}[precision.name]  # worst measured 2.8e-7, 2.6e-16
        np.testing.assert_allclose(result["mean"][i], law.mean(), rtol=rtol)
        assert result["infimum"][i] == law.support()[0]
        assert result["inverse at zero"][i] == result["infimum"][i]


@every_law
def test_mean_has_the_slopes_of_its_formula(name, precision):
    result = evaluate(name, precision)["mean slopes"]
    for i, p in enumerate(points(name, precision)[0]):
        for j, slope in enumerate(result):

            def mean(v, p=p, j=j):
                return CASES[name].oracle.mean([*exact(np.asarray(p[:j])), v, *exact(np.asarray(p[j + 1 :]))])

            with mp.workdps(oracles.DIGITS):
                expected = float(mp.diff(mean, p[j]))
            rtol = {"float32": 6e-6, "float64": 2e-14}[precision.name]  # worst measured 1.7e-6, 5e-15
            np.testing.assert_allclose(slope[i], expected, rtol=rtol)


# Slopes


@every_law
def test_slopes_of_the_hazard_are_those_of_mpmath(name, precision):
    case, result = CASES[name], evaluate(name, precision)["hazard slopes"]
    parameters, _, _, t = points(name, precision)
    mask, hazard = representable(name, precision), exact_hazards(name, precision)
    worst = 0.0
    for i, k in zip(*np.nonzero(mask & (hazard > 0)), strict=True):
        p, time = parameters[i], float(t[i, k])
        slopes = np.asarray(case.oracle.hazard_slopes(p, time))
        # A slope may vanish on the way: then against that of a power, Λ / parameter.
        typical = float(case.oracle.typical(exact(np.asarray(p))))
        scale = np.abs(slopes) + hazard[i, k] / np.asarray([abs(v) or typical for v in (*p, time)])
        worst = max(worst, errors(np.asarray([s[i, k] for s in result]), slopes, scale).max())
    assert worst < case.rtol[precision.name][2]


@every_law
def test_slopes_of_the_inverse_hazard_are_those_of_mpmath(name, precision):
    case, result = CASES[name], evaluate(name, precision)["inverse slopes"]
    parameters, a, t, _ = points(name, precision)
    worst = 0.0
    for i, k in zip(*np.nonzero(representable(name, precision)), strict=True):
        p = parameters[i]
        slopes = np.asarray(case.oracle.inverse_slopes(p, t[i, k]))
        typical = float(case.oracle.typical(exact(np.asarray(p))))
        excess = t[i, k] - case.oracle.infimum(exact(np.asarray(p)))
        scale = np.abs(slopes) + excess / np.asarray([abs(v) or typical for v in (*p, float(a[k]))])
        worst = max(worst, errors(np.asarray([s[i, k] for s in result]), slopes, scale).max())
    assert worst < case.rtol[precision.name][3]


@every_law
def test_below_the_support_the_hazard_and_its_slopes_are_zero(name, precision):
    result = evaluate(name, precision)
    np.testing.assert_array_equal(result["hazard below"], 0)
    for slope in result["slopes below"]:
        np.testing.assert_array_equal(slope[:, 1:], 0)


@every_law
def test_slopes_at_the_edge_of_the_support_are_finite(name, precision):
    result = evaluate(name, precision)
    for kind in ("slopes below", "slopes above", "slopes at zero"):
        for slope in result[kind]:
            assert np.isfinite(slope).all()


@every_law
def test_hazard_is_infinite_at_infinity(name, precision):
    np.testing.assert_array_equal(evaluate(name, precision)["hazard at infinity"], np.inf)


# The same under every transformation


@pytest.mark.parametrize("name", [name for name in CASES if name != "Gamma"])  # gamma's would take 10 s
def test_compiled_batches_equal_eager_calls_one_law_at_a_time(name, x64):
    dtype = np.dtype("float64")
    result, (parameters, a, _, t) = evaluate(name, dtype), points(name, dtype)
    for i, p in enumerate(parameters):
        law, mask = CASES[name].build(*p), representable(name, dtype)[i]
        hazard, inverse = law.cumulative_hazard(t[i]), law.inverse_cumulative_hazard(a)
        # worst measured 1.7e-16 and 2.8e-14
        np.testing.assert_allclose(hazard[mask], result["hazard"][i, mask], rtol=1e-13)
        np.testing.assert_allclose(inverse[mask], result["inverse"][i, mask], rtol=1e-13)


@every_law
def test_parameters_broadcast_against_times(name, x64):
    dtype = np.dtype("float64")
    result, (parameters, a, _, t) = evaluate(name, dtype), points(name, dtype)
    k = np.arange(a.size)
    i = k % (len(parameters) - 1)
    law = jax.tree.map(lambda leaf: leaf[i], batched_law(name, dtype))
    mask = representable(name, dtype)[i, k]
    # worst measured 1.1e-14 and 1.4e-14
    hazard = law.cumulative_hazard(t[i, k])
    np.testing.assert_allclose(hazard[mask], result["hazard"][i, k][mask], rtol=1e-13)
    if name != "Gamma":  # it would take seconds
        inverse = law.inverse_cumulative_hazard(a)
        np.testing.assert_allclose(inverse[mask], result["inverse"][i, k][mask], rtol=1e-13)


# Draws


@pytest.mark.parametrize("name", [name for name in CASES if name != "Gamma"])
def test_draws_follow_the_law(name):
    p = CASES[name].parameters[-1]
    law = CASES[name].build(*p)
    draws = jax.jit(lambda key: law.sample(key, (100, 200)))(jax.random.key(17))
    _check_draws(draws, CASES[name].frozen(*p), np.dtype("float32"))


def _check_draws(draws: Any, law: Any, dtype: np.dtype) -> None:
    assert draws.dtype == dtype
    draws = np.asarray(draws, float).ravel()
    assert scipy.stats.kstest(draws, law.cdf).pvalue > 1e-3
    deviation = (draws.mean() - law.mean()) / (law.std() / math.sqrt(draws.size))
    assert abs(deviation) < 3.5


def test_gamma_table_follows_the_inverse_hazard_from_its_lowest_to_its_highest_draw(precision):
    parameters, a, expected, _ = points("Gamma", precision)
    mask = representable("Gamma", precision)
    tabulate = jax.jit(lambda law: law.with_fast_inverse())
    use = jax.jit(lambda table, a, key: (table.inverse_cumulative_hazard(a), table.sample(key, (100, 200))))
    for i in range(3):
        p = parameters[i]
        sampler = tabulate(bcgc.Gamma(*(jnp.asarray(v, precision) for v in p)))
        table, draws = use(sampler, np.append(a, 0).astype(precision), jax.random.key(17))
        # The table holds logarithms of up to 100 and more: 100 eps in float32, worst measured 1.01e-5.
        rtol = {"float32": 2e-5, "float64": 3e-7}[precision.name]
        assert errors(table[:-1], expected[i])[mask[i]].max() < rtol
        assert table[-1] == precision.type(p[2])
        _check_draws(draws, CASES["Gamma"].frozen(*p), precision)


@pytest.mark.parametrize("shift", [53.0, 1.1e4])
def test_gamma_draws_survive_a_shift_that_swallows_the_small_ones(shift):
    law, plain = bcgc.Gamma(0.47, 1.3, shift), bcgc.Gamma(0.47, 1.3)
    draws, excess = (np.asarray(law.sample(jax.random.key(3), (10_000,), np.float32)) for law in (law, plain))
    assert np.max(np.abs(draws - (np.float32(shift) + excess))) <= np.spacing(np.float32(shift))


@every_law
def test_draws_keep_the_dtype_and_the_shape_that_were_asked_for(name, x64):
    p = CASES[name].parameters[1]
    draws = jax.eval_shape(
        lambda key: CASES[name].build(*p).sample(key, (3, 5), np.float32), jax.random.key(2)
    )
    assert (draws.shape, draws.dtype) == ((3, 5), np.float32)


# Infinite means

compiled_mean = jax.jit(lambda law: law.mean())


@pytest.mark.parametrize("shape", [0.37, 0.93, 1.0])
def test_mean_of_a_pareto_law_is_infinite_up_to_shape_one(shape, precision):
    assert bcgc.Pareto(2.3, shape).mean() == np.inf
    finite = bcgc.Pareto(2.3, shape + 0.75).mean()
    np.testing.assert_allclose(finite, 2.3 * (shape + 0.75) / (shape - 0.25), rtol=few_ulp(precision))


@pytest.mark.parametrize("shape", [0.41, 0.95, 1.0])
def test_mean_of_a_law_from_its_hazard_is_infinite_where_the_tail_is_too_heavy(shape, precision):
    assert compiled_mean(log_logistic(2.3, shape, 0.9)) == np.inf


@pytest.mark.parametrize("shape", [1.07, 1.3, 2.9])
def test_mean_of_a_law_from_its_hazard_is_finite_up_to_a_heavy_tail(shape, precision):
    expected = float(oracles.LOG_LOGISTIC.mean([2.3, shape, 0.9]))
    # Worst measured 3.4e-3, as in float32 the integral ends where e^{-a} underflows, and 2.7e-12.
    rtol = {"float32": 1e-2, "float64": 1e-11}[precision.name]
    np.testing.assert_allclose(compiled_mean(log_logistic(2.3, shape, 0.9)), expected, rtol=rtol)


# The uniform law's upper end


def test_hazard_of_the_uniform_law_is_infinite_with_zero_slopes_from_its_upper_end(precision):
    law = bcgc.Uniform(*(jnp.asarray(v, precision) for v in (1.7, 3.1)))
    t = jnp.asarray([law.high, 3.7, np.inf])
    hazard = jax.value_and_grad(lambda law, t: law.cumulative_hazard(t), argnums=(0, 1))
    value, slopes = jax.jit(jax.vmap(hazard, (None, 0)))(law, t)
    np.testing.assert_array_equal(value, np.inf)
    np.testing.assert_array_equal(law.cdf(t), 1)
    np.testing.assert_array_equal(law.survival(t), 0)
    np.testing.assert_array_equal(jax.tree.leaves(slopes), np.zeros((3, 3)))


def test_inverse_hazard_of_the_uniform_law_ends_at_its_upper_end(precision):
    law = bcgc.Uniform(1.7, 3.1)
    np.testing.assert_allclose(
        law.inverse_cumulative_hazard(jnp.array([80.0, 700.0, np.inf])), 3.1, rtol=few_ulp(precision)
    )
    np.testing.assert_allclose(law.kinks(), [3.1], rtol=few_ulp(precision))


def test_hazard_of_the_uniform_law_keeps_its_digits_next_to_its_upper_end(precision):
    p = (precision.type(1.7), precision.type(3.1))
    left = np.asarray([1, 2, 5, 1000, 10**5], precision)
    t = p[1] - left * np.spacing(p[1])
    expected = [float(oracles.UNIFORM.hazard(p, float(v))) for v in t]
    np.testing.assert_allclose(bcgc.Uniform(*p).cumulative_hazard(t), expected, rtol=few_ulp(precision))


# Two speeds


def two_speed_hazard(fast: float, slow: float, probability: float, t: float) -> float:
    """By the definition."""
    above = (probability if slow > t else 0) + (1 - probability if fast > t else 0)
    return -math.log(above) if above > 0 else math.inf


@pytest.mark.parametrize("parameters", [(1.3, 5.7, 0.27), (0.02, math.inf, 0.041), (50.0, 51.0, 0.93)])
def test_two_speeds_are_counted(parameters, precision):
    law = bcgc.TwoSpeed(*parameters)
    fast, slow, probability = parameters
    t = np.asarray([0.0, 0.6 * fast, fast, 1.01 * fast, min(slow, 1e30), 1e31], precision)
    expected = [two_speed_hazard(*parameters, float(v)) for v in np.float64(t)]
    if precision == np.float32:  # the atoms themselves are rounded
        expected[2], expected[4] = (
            two_speed_hazard(*parameters, fast),
            two_speed_hazard(*parameters, min(slow, 1e30)),
        )
    np.testing.assert_allclose(law.cumulative_hazard(t), expected, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.survival(t), np.exp(-np.asarray(expected)), rtol=few_ulp(precision))
    mean = (1 - probability) * fast + probability * slow
    np.testing.assert_allclose(law.mean(), mean, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.infimum(), fast, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.kinks(), [slow], rtol=few_ulp(precision))
    assert law.atomic()
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


def test_two_speeds_are_drawn_as_often_as_they_should(precision):
    draws = np.asarray(bcgc.TwoSpeed(1.3, math.inf, 0.27).sample(jax.random.key(3), (20_000,)))
    np.testing.assert_allclose(np.unique(draws), [1.3, np.inf], rtol=few_ulp(precision))
    assert scipy.stats.binomtest(int(np.isinf(draws).sum()), draws.size, 0.27).pvalue > 1e-3


# Measured times

TIMES = [7.5, 0.4, 3.25, 3.25, 1200.0, 0.4, 3.25, 19.0]


def test_empirical_law_counts_its_times(precision):
    law = bcgc.Empirical(TIMES)
    times = np.asarray(TIMES, precision)
    t = np.unique(np.concatenate([times, times * 1.01, times * 0.99, [-3.0, 0.0, 1e6]])).astype(precision)
    share = np.asarray([np.mean(times > v) for v in t])
    hazard = np.where(share > 0, -np.log(np.where(share > 0, share, 1)), np.inf)
    np.testing.assert_allclose(law.cumulative_hazard(t), hazard, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.cdf(t), 1 - share, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.survival(t), share, rtol=few_ulp(precision))
    np.testing.assert_allclose(law.mean(), np.mean(TIMES), rtol=few_ulp(precision))
    assert law.infimum() == times.min()
    np.testing.assert_array_equal(np.append(law.infimum(), law.kinks()), np.sort(times))
    assert law.atomic()


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


@pytest.mark.parametrize("size", [1, 64, 1001])
def test_empirical_inverse_undoes_the_hazard_at_every_time(size, precision):
    times = np.unique(np.random.default_rng(size).gamma(0.7, 3.0, size).astype(precision))
    law = bcgc.Empirical(times)
    there_and_back = jax.jit(lambda law, t: law.inverse_cumulative_hazard(law.cumulative_hazard(t)))
    np.testing.assert_array_equal(there_and_back(law, times), times)


def test_empirical_law_sorts_what_it_is_given_also_under_a_trace(precision):
    unsorted = np.asarray(TIMES, precision).reshape(2, 4)
    expected = [0.0, 2 / 8, 5 / 8, 6 / 8, 1.0]
    t = np.asarray([0.3, 0.4, 3.3, 8.0, 1e5], precision)
    for law in (
        bcgc.Empirical(unsorted),
        bcgc.Empirical(jnp.asarray(unsorted)),
        bcgc.Empirical(unsorted.tolist()),
    ):
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


def test_empirical_draws_are_as_frequent_as_the_times(precision):
    draws = np.asarray(bcgc.Empirical(TIMES).sample(jax.random.key(5), (20_000,)))
    values, counts = np.unique(draws, return_counts=True)
    expected_values, multiplicity = np.unique(np.asarray(TIMES, precision), return_counts=True)
    np.testing.assert_array_equal(values, expected_values)
    assert scipy.stats.chisquare(counts, multiplicity / 8 * draws.size).pvalue > 1e-3


def test_empirical_law_of_integers_has_floating_times(precision):
    for times in ([3, 1, 2], np.array([3, 1, 2]), jnp.array([3, 1, 2])):
        law = bcgc.Empirical(times)
        assert law.times.dtype == precision
        assert law.mean() == 2


# A law of one's own


def test_slopes_through_a_hazard_of_ones_own_reach_its_parameters(precision):
    # (a / p)^½ has an infinite slope at a = 0, where the infimum is asked for.
    def law(p):
        return bcgc.FromHazard(lambda p, t: p * t**2, lambda p, a: (a / p) ** 0.5, parameters=p)

    def values(p):
        return jnp.stack(
            [
                law(p).cumulative_hazard(0.7),
                law(p).mean(),
                law(p).infimum(),
                law(p).inverse_cumulative_hazard(0.0),
            ]
        )

    slopes = jax.jit(jax.jacobian(values))(3.3)
    expected = [0.49, -math.sqrt(math.pi) / 4 * 3.3**-1.5, 0, 0]
    np.testing.assert_allclose(slopes, expected, rtol=few_ulp(precision), atol=few_ulp(precision) / 10)


def test_base_class_asks_for_what_a_law_must_offer():
    law = bcgc.Law()
    for call in (
        law.mean,
        law.infimum,
        lambda: law.cumulative_hazard(2.3),
        lambda: law.sample(jax.random.key(1)),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert law.kinks().shape == (0,)
    assert not law.atomic()
    assert law.expected_order_statistics(3, 5) is None
    assert law.with_fast_inverse() is law
