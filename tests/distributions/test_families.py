"""The laws against mpmath at 40 digits, scipy.stats, and counting."""

import dataclasses
import doctest
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax.distributions.hazards import average
from tests.oracles import laws
from tests.tolerances import few_ulp

# Of the points where the laws are asked; those above 80 in float64 only.
HAZARDS = (
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
    79,
    210,
    460,
    690,
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A kind of law, sets of parameters for it, and tolerances.

    The tolerances are those of Λ, of Λ⁻¹, and of the slopes of both.
    """

    family: laws.Family
    parameters: list[tuple]
    float32: tuple[float, float, float, float]
    float64: tuple[float, float, float, float]
    highest: float = math.inf
    """Hazards above it are left out: there Λ⁻¹ is the end of the support to all digits.
    """


LAWS = {
    "ShiftedExponential": Asked(
        laws.SHIFTED_EXPONENTIAL,
        [(1.3e-3, 50.0), (0.37, 0.0), (12.5, 3.3)],
        (2e-7, 3e-7, 2e-7, 2e-7),  # worst measured 5e-8, 6e-8, 2e-8, 4e-8
        (1e-15, 1e-15, 1e-15, 1e-15),  # 1.1e-16, 1.1e-16, 4e-17, 1.1e-16
    ),
    "Weibull": Asked(
        laws.WEIBULL,
        [(2.3, 0.6, 0.0), (1040.0, 3.4, 50.0), (0.07, 1.7, 0.9)],
        (6e-7, 2e-6, 6e-7, 2e-6),  # worst measured 1.4e-7, 7e-7, 1.6e-7, 7e-7
        (3e-15, 2e-15, 2e-15, 2e-15),  # 7e-16, 3e-16, 5e-16, 4e-16
    ),
    "Pareto": Asked(
        laws.PARETO,
        [(2.3, 2.6), (700.0, 3.7), (0.04, 25.0)],
        (4e-7, 2e-6, 4e-7, 2e-6),  # worst measured 1.2e-7, 4e-7, 1.0e-7, 3e-7
        (1e-15, 1e-13, 1e-15, 1e-13),  # 2e-16, 2.2e-14, 2e-16, 2.2e-14
    ),
    "Uniform": Asked(
        laws.UNIFORM,
        [(1.7, 3.1), (0.0, 0.02), (50.0, 1050.0)],
        (6e-7, 4e-7, 4e-7, 4e-7),  # worst measured 1.7e-7, 9e-8, 1.2e-7, 1.0e-7
        (1e-15, 1e-15, 1e-15, 1e-15),  # 2e-16, 2e-16, 2e-16, 3e-16
        highest=30.0,
    ),
    "Lognormal": Asked(
        laws.LOGNORMAL,
        [(-0.7, 0.45, 0.0), (6.2, 1.6, 50.0), (1.3, 0.08, 2.5)],
        (3e-5, 3e-6, 3e-5, 3e-5),  # worst measured 6e-6, 7e-7, 6e-6, 5e-6
        (1e-10, 1e-9, 1e-8, 1e-8),  # 1.7e-11, 2.8e-10, 3.6e-9, 3.6e-9
    ),
    "Gamma": Asked(
        laws.GAMMA,
        [(0.3, 2.1, 0.0), (2.6, 0.013, 50.0), (137.0, 6.4, 3.3), (0.021, 0.8, 0.0)],
        (5e-4, 1e-4, 6e-4, 1e-4),  # worst measured 1.3e-4, 3e-5, 1.6e-4, 2.5e-5
        (1e-12, 3e-13, 1e-12, 3e-13),  # 2.5e-13, 5e-14, 3e-13, 8e-14
    ),
    "FromHazard": Asked(
        laws.LOG_LOGISTIC,
        [(2.3, 2.4, 0.0), (1040.0, 7.7, 50.0), (0.07, 3.1, 0.9)],
        (6e-7, 3e-6, 6e-7, 1e-5),  # worst measured 1.5e-7, 8e-7, 2e-7, 3e-6
        (3e-15, 3e-14, 3e-15, 2e-13),  # 9e-16, 6e-15, 8e-16, 4e-14
    ),
}
every_law = pytest.mark.parametrize("name", LAWS)


def batched_law(name: str, dtype: np.dtype) -> Any:
    columns = zip(*LAWS[name].parameters, strict=True)
    return LAWS[name].family.build(*(jnp.asarray(column, dtype) for column in columns))


@functools.cache
def points(
    name: str, dtype: np.dtype
) -> tuple[list[laws.Case], np.ndarray, np.ndarray, np.ndarray]:
    """The laws rounded to `dtype`, the hazards, and Λ⁻¹ there, exact and in `dtype`."""
    asked = LAWS[name]
    cases = [asked.family.case(*(dtype.type(v) for v in p)) for p in asked.parameters]
    a = np.asarray(
        [v for v in HAZARDS if v <= asked.highest and (v < 80 or dtype == np.float64)],
        dtype,
    )
    exact = np.asarray([[case.inverse(float(v)) for v in a] for case in cases])
    return cases, a, exact, exact.astype(dtype)


@jax.jit
def _values_and_slopes(law: Any, a: Array, t: Array) -> dict[str, Any]:
    """Λ at `t`, around the infimum and at infinity; Λ⁻¹ at `a` and at 0; slopes."""

    def all_of_law(law, a, t):
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

    return jax.vmap(all_of_law)(law, a, t)


@functools.cache
def evaluate(name: str, dtype: np.dtype) -> dict[str, Any]:
    """All about a law at its points, by one function: gamma's compiles for 10 s."""
    _, a, _, t = points(name, dtype)
    law = batched_law(name, dtype)
    k = a.size
    raw = jax.device_get(_values_and_slopes(law, np.broadcast_to(a, t.shape), t))
    results = {name: raw[name][:, :k] for name in ("cdf", "survival")}
    results |= {"infimum": raw["infimum"], "mean": raw["mean"][0]}
    results["mean slopes"] = jax.tree.leaves(raw["mean"][1])
    parts = slice(k), slice(k, k + 3), slice(k + 3, k + 5)
    for name, places in (
        (
            "hazard",
            {"": parts[0], " below": parts[1], " above": parts[2], " at infinity": -1},
        ),
        ("inverse", {"": parts[0], " at zero": -1}),
    ):
        for where, place in places.items():
            results[name + where] = raw[name][0][:, place]
            results[f"{name} slopes{where}"] = [
                s[:, place] for s in jax.tree.leaves(raw[name][1])
            ]
    return results


def exact(values: np.ndarray) -> np.ndarray:
    """As mpmath numbers, so that differences from an oracle are not rounded."""
    return np.vectorize(lambda v: mp.mpf(float(v)), otypes=[object])(values)


def errors(
    actual: np.ndarray, expected: np.ndarray, scale: np.ndarray | None = None
) -> np.ndarray:
    """|actual - expected| / scale, by default |expected|; 0 where both are 0."""
    scale = np.abs(expected) if scale is None else scale
    gap = np.abs(exact(actual) - expected)
    return np.where(gap == 0, 0, gap / np.where(scale == 0, 1, scale)).astype(float)


def representable(name: str, dtype: np.dtype) -> np.ndarray:
    """Where T - infimum is a normal number, with a margin; only gamma goes below."""
    cases, _, t, _ = points(name, dtype)
    start = exact(np.asarray([[case.infimum] for case in cases]))
    return np.asarray(t - start > 1e3 * float(np.finfo(dtype).tiny), bool)


@functools.cache
def exact_hazards(name: str, dtype: np.dtype) -> np.ndarray:
    cases, _, _, t = points(name, dtype)
    return np.asarray(
        [
            [case.hazard(float(v)) for v in row]
            for case, row in zip(cases, t, strict=True)
        ]
    )


@every_law
def test_hazard_and_inverse_are_those_of_mpmath_and_each_tail_keeps_its_digits(
    name, precision
):
    result = evaluate(name, precision)
    _, _, time, _ = points(name, precision)
    hazard = exact_hazards(name, precision)
    mask = representable(name, precision)
    assert result["hazard"].dtype == result["inverse"].dtype == precision
    assert mask.mean() > 0.8
    at_hazard, at_inverse, *_ = getattr(LAWS[name], precision.name)
    assert errors(result["hazard"], hazard)[mask].max() < at_hazard
    assert errors(result["inverse"], time)[mask].max() < at_inverse
    cdf = np.vectorize(lambda h: -mp.expm1(-h), otypes=[object])(hazard)
    survival = np.vectorize(lambda h: mp.exp(-h), otypes=[object])(hazard)
    rtol = at_hazard + 2 * np.finfo(precision).eps
    assert errors(result["cdf"], cdf)[mask].max() < rtol
    # The absolute error of Λ is the relative one of exp(-Λ).
    assert (
        errors(result["survival"], survival, survival * (1 + hazard))[mask].max() < rtol
    )


@every_law
def test_mean_and_ends_are_those_of_scipy_and_the_mean_has_the_slopes_of_its_formula(
    name, precision
):
    result = evaluate(name, precision)
    # Worst measured 2.8e-7, 2.6e-16; of slopes 1.7e-6, 5e-15.
    rtol, of_slopes = {"float32": (1e-6, 6e-6), "float64": (2e-15, 2e-14)}[
        precision.name
    ]
    for i, case in enumerate(points(name, precision)[0]):
        np.testing.assert_allclose(result["mean"][i], case.frozen.mean(), rtol=rtol)
        slopes = [float(slope) for slope in case.mean_slopes()]
        np.testing.assert_allclose(
            [slope[i] for slope in result["mean slopes"]], slopes, rtol=of_slopes
        )
        assert result["infimum"][i] == result["inverse at zero"][i] == case.infimum
        assert case.law().has_end == (case.frozen.support()[1] < np.inf)


@every_law
def test_the_density_is_that_of_scipy(name, x64):
    case = LAWS[name].family.case(*LAWS[name].parameters[1])
    t = case.frozen.ppf([0.01, 0.3, 0.9])
    np.testing.assert_allclose(
        case.law().log_density(t), case.frozen.logpdf(t), rtol=1e-9
    )


@every_law
def test_slopes_of_the_hazard_and_of_its_inverse_are_those_of_mpmath(name, precision):
    result = evaluate(name, precision)
    cases, a, exact_t, t = points(name, precision)
    hazard = exact_hazards(name, precision)
    worst = np.zeros(2)
    for i, k in zip(
        *np.nonzero(representable(name, precision) & (hazard > 0)), strict=True
    ):
        case = cases[i]
        time = float(t[i, k])
        excess = exact_t[i, k] - mp.mpf(cases[i].infimum)
        forward = "hazard slopes", time, hazard[i, k], case.hazard_slopes(time)
        back = "inverse slopes", float(a[k]), excess, case.inverse_slopes(exact_t[i, k])
        for j, (which, argument, value, expected) in enumerate((forward, back)):
            slopes = np.asarray(expected)
            # A slope may vanish on the way: then against that of a power, value /
            # parameter.
            sizes = np.asarray(
                [
                    abs(v) or float(case.family.typical(case.exact))
                    for v in (*case.parameters, argument)
                ]
            )
            scale = np.abs(slopes) + value / sizes
            actual = np.asarray([s[i, k] for s in result[which]])
            worst[j] = max(worst[j], errors(actual, slopes, scale).max())
    assert np.all(worst < getattr(LAWS[name], precision.name)[2:])


@every_law
def test_at_the_ends_of_the_support_slopes_are_finite_and_the_hazard_is_0_or_infinite(
    name, precision
):
    result = evaluate(name, precision)
    np.testing.assert_array_equal(result["hazard below"], 0)
    for slope in result["hazard slopes below"]:
        np.testing.assert_array_equal(slope[:, 1:], 0)
    for kind in (
        "hazard slopes below",
        "hazard slopes above",
        "inverse slopes at zero",
    ):
        assert np.isfinite(result[kind]).all()
    np.testing.assert_array_equal(result["hazard at infinity"], np.inf)


@pytest.mark.parametrize("name", ["Weibull", "FromHazard", "Gamma"])
def test_parameters_broadcast_against_times(name, x64):
    dtype = np.dtype("float64")
    result = evaluate(name, dtype)
    cases, a, _, t = points(name, dtype)
    k = np.arange(a.size)
    i = k % (len(cases) - 1)
    law = jax.tree.map(lambda leaf: leaf[i], batched_law(name, dtype))
    mask = representable(name, dtype)[i, k]
    hazard = law.cumulative_hazard(t[i, k])
    # worst 1.1e-14
    np.testing.assert_allclose(hazard[mask], result["hazard"][i, k][mask], rtol=1e-13)


def test_gamma_draws_survive_a_shift_that_swallows_the_small_ones():
    shift = 1.1e4
    law = bcgc.Gamma(0.47, 1.3, shift)
    plain = bcgc.Gamma(0.47, 1.3)
    draws, excess = (
        np.asarray(law.sample(jax.random.key(3), (10_000,), np.float32))
        for law in (law, plain)
    )
    assert np.max(np.abs(draws - (np.float32(shift) + excess))) <= np.spacing(
        np.float32(shift)
    )


def test_an_exponential_law_is_a_shifted_one_that_begins_at_0(precision):
    law: Any = bcgc.Exponential(0.37)
    shifted = bcgc.ShiftedExponential(0.37, 0.0)
    assert law.infimum() == law.shift == 0
    assert law.infimum().dtype == precision
    np.testing.assert_array_equal(
        law.cumulative_hazard(2.5), shifted.cumulative_hazard(2.5)
    )


@pytest.mark.parametrize("shape", [0.37, 1.0])
def test_mean_of_a_pareto_law_is_infinite_up_to_shape_one(shape, precision):
    assert bcgc.Pareto(2.3, shape).mean() == np.inf
    # That of the first of five is finite: the minimum has the shape 5 · 0.3. Of three
    # no level's is.
    assert [
        bool(bcgc.Pareto(2.3, 0.3).has_mean(level, n)) for level, n in ((4, 5), (9, 3))
    ] == [
        True,
        False,
    ]
    finite = bcgc.Pareto(2.3, shape + 0.75).mean()
    np.testing.assert_allclose(
        finite, 2.3 * (shape + 0.75) / (shape - 0.25), rtol=few_ulp(precision)
    )


@pytest.mark.parametrize("shape", [0.95, 1.0, 1.005, 1.07, 2.9])
def test_mean_of_a_law_from_its_hazard_is_finite_up_to_a_heavy_tail(shape, precision):
    # Of the shape 1.005 13 %, in float32 65 %, lie beyond the range of numbers.
    case = laws.LOG_LOGISTIC.case(2.3, shape, 0.9)
    expected = float(case.family.mean(case.exact)) if shape > 1 else np.inf
    rtol = {"float32": 1e-4, "float64": 1e-12}[precision.name]
    np.testing.assert_allclose(case.law().mean(), expected, rtol=rtol)


def _two_shifts(shifts, t):
    """Of a mixture: 0.7 of a shifted exponential of rate 1, 0.3 of one of rate 1/2."""
    first, second = (jnp.maximum(t - shift, 0) for shift in shifts)
    return -jnp.log(0.7 * jnp.exp(-first) + 0.3 * jnp.exp(-second / 2))


def _with_kink(second: Any) -> bcgc.FromHazard:
    """The second begins at a kink, 4; here there is no inverse either."""
    return bcgc.FromHazard(
        _two_shifts, parameters=(1.0, second), kinks=lambda shifts: shifts[1]
    )


def test_a_law_from_its_hazard_alone_has_its_mean_its_times_and_their_slopes(x64):
    @jax.jit
    def mean_time_and_infimum(second):
        law = _with_kink(second)
        return law.mean(), law.inverse_cumulative_hazard(1.7), law.infimum()

    (mean, time, begin), slopes = jax.jvp(mean_time_and_infimum, (4.0,), (1.0,))

    def excess(t):
        return 0.7 * np.exp(1 - t) + 0.3 * np.exp(-max(t - 4, 0) / 2) - np.exp(-1.7)

    assert (float(mean), float(slopes[0])) == pytest.approx(
        (0.7 * 2 + 0.3 * 6, 0.3), rel=1e-12
    )
    assert float(time) == pytest.approx(
        scipy.optimize.brentq(excess, 1, 9, xtol=1e-14), rel=1e-12
    )
    assert (float(begin), float(slopes[2])) == (1.0, 0.0)


@pytest.mark.slow
def test_the_slope_of_a_runtime_is_that_of_differences_at_all_levels(x64):
    """The slope in the second shift was off by 2 % when panels ended only at the kinks
    of the first twelve levels and of a few others.
    """
    x = np.full(30, 100.0)

    @jax.jit
    def runtime_of(shift):
        return bcgc.expected_runtime(bcgc.Problem(_with_kink(shift), 30, 3000), x)

    difference = (runtime_of(4.004) - runtime_of(3.996)) / 0.008
    assert float(jax.grad(runtime_of)(4.0)) == pytest.approx(
        difference.item(), rel=1e-5
    )


@pytest.mark.slow
def test_a_runtime_is_exact_across_a_kink_that_has_a_name(x64):
    """Without it the value is off by 3e-5, the slope in the second shift by 0.2 %."""
    first = np.eye(3)[0]

    @jax.jit
    @jax.value_and_grad
    def expected(shift):
        return bcgc.expected_runtime(bcgc.Problem(_with_kink(shift), 3, 1, 3), first)

    runtime, slope = expected(4.0)

    def late(t):
        """P(max of three > t), and its slope in the second shift."""
        after = np.exp(-np.maximum(t - 4, 0) / 2)
        survival = 0.7 * np.exp(1 - t) + 0.3 * after
        return 1 - (1 - survival) ** 3, 3 * (1 - survival) ** 2 * np.where(
            t > 4, 0.15 * after, 0
        )

    def whole(i):
        ends = (1, 4), (4, 30), (30, 90)
        return sum(
            scipy.integrate.quad(lambda t: late(t)[i], *interval, epsrel=1e-12)[0]
            for interval in ends
        )

    # Measured 9e-16 and 1.3e-15.
    assert float(runtime) == pytest.approx(1 + whole(0), rel=1e-10)
    assert float(slope) == pytest.approx(whole(1), rel=1e-8)


def test_hazard_of_the_uniform_law_is_infinite_with_zero_slopes_from_its_upper_end(
    precision,
):
    law = bcgc.Uniform(*(jnp.asarray(v, precision) for v in (1.7, 3.1)))
    t = jnp.asarray([law.high, 3.7, np.inf])
    hazard = jax.value_and_grad(lambda law, t: law.cumulative_hazard(t), argnums=(0, 1))
    value, slopes = jax.jit(jax.vmap(hazard, (None, 0)))(law, t)
    np.testing.assert_array_equal(value, np.inf)
    np.testing.assert_array_equal(law.cdf(t), 1)
    np.testing.assert_array_equal(law.survival(t), 0)
    np.testing.assert_array_equal(jax.tree.leaves(slopes), np.zeros((3, 3)))
    latest = law.inverse_cumulative_hazard(jnp.array([80.0, 700.0, np.inf]))
    np.testing.assert_allclose(
        [*latest, *law.breaks()], [3.1] * 4, rtol=few_ulp(precision)
    )


def test_hazard_of_the_uniform_law_keeps_its_digits_next_to_its_upper_end(precision):
    p = (precision.type(1.7), precision.type(3.1))
    left = np.asarray([1, 2, 5, 1000, 10**5], precision)
    t = p[1] - left * np.spacing(p[1])
    expected = [float(laws.UNIFORM.case(*p).hazard(float(v))) for v in t]
    np.testing.assert_allclose(
        bcgc.Uniform(*p).cumulative_hazard(t), expected, rtol=few_ulp(precision)
    )


def test_parameters_of_a_hazard_go_by_name():
    """In second place they were called, deep inside, as if they were the inverse."""
    with pytest.raises(
        TypeError, match=r"inverse_hazard` .* \(parameters, a\), got 3.0. Pass"
    ):
        bcgc.FromHazard(lambda p, t: p * t, 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hazard` of FromHazard must be a function"):
        bcgc.FromHazard(None, parameters=3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^`hazard` .* of \(parameters, t\), got"):
        bcgc.FromHazard(lambda t: t)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("hazard", "value"),
    [
        (lambda p, t: 1 - jnp.exp(-t / p), "1"),  # P(T ≤ t)
        (lambda p, t: jnp.exp(-t / p), "0"),  # P(T > t)
        (lambda p, t: -t / p, r"-1.7e\+38"),  # its logarithm
    ],
)
def test_a_hazard_that_does_not_rise_is_no_heavy_tail(hazard, value):
    inverse = None
    if value == "0":  # with an inverse the mean is finite
        inverse = lambda p, a: -p * jnp.log(a)  # noqa: E731
    with pytest.raises(
        ValueError, match=rf"must increase from 0 .* it is {value}. Check"
    ):
        bcgc.FromHazard(hazard, inverse, parameters=2.0)


_WAVES: dict[str, Callable[[Any, Any], Any]] = {
    "slow": lambda p, t: t + p * jnp.sin(t),
    "fast": lambda p, t: t + 0.05 * p * jnp.sin(100 * t),
    "late": lambda p, t: jnp.maximum(t - 1e5, 0) + p * jnp.sin(jnp.maximum(t - 1e5, 0)),
    "step": lambda p, t: jnp.where(t > 3, t - p, t),
    "long": lambda p, t: jnp.log1p(t) * (1 + 0.5 * p * jnp.sin(jnp.log1p(t))),
}


@pytest.mark.parametrize("name", _WAVES)
def test_a_hazard_that_falls_is_refused(precision, name):
    """Of one distribution, and of the second in a batch of numbers."""
    hazard = _WAVES[name]
    batch: Any = np.array([0.0, 2.0])
    for parameters in (2.0, batch):
        with pytest.raises(
            ValueError, match=r"must never decrease, but at t = .* it is"
        ):
            bcgc.FromHazard(hazard, parameters=parameters)
    bcgc.FromHazard(hazard, parameters=np.array([0.0, 0.0]))
    # What is traced cannot be checked.
    jax.jit(lambda p: bcgc.FromHazard(hazard, parameters=p).cumulative_hazard(1.0))(2.0)


def test_a_hazard_that_begins_above_zero_is_refused():
    with pytest.raises(ValueError, match=r"must be 0 at t = 0, .* but it is 0\.105"):
        bcgc.FromHazard(lambda p, t: t - jnp.log(p), parameters=0.9)


def test_batches_of_arrays_are_not_taken_for_one_distribution(x64):
    """Each has a rate and a negative power of the time; `p[0]` is that of one only."""

    def hazard(p, t):
        return p[0] * t ** -p[1]

    powers = np.array([[0.5, -2.0], [2.0, -3.0]])
    batch = bcgc.FromHazard(hazard, parameters=powers)
    hazards = jax.vmap(lambda law: law.cumulative_hazard(2.0))(batch)
    np.testing.assert_allclose(hazards, [2.0, 16.0], rtol=1e-12)


@pytest.mark.slow
def test_the_rounding_of_a_mixture_at_its_first_time_spoils_no_slope(precision):
    """Of 500 mixtures 130 had an infimum of 0 and slopes that are NaN in float64."""

    def mixture(p, t):
        excess = jnp.maximum(t - p["first"], 0.0)
        often = jnp.log(p["often"]) - excess / p["fast"]
        return -jnp.logaddexp(often, jnp.log(1 - p["often"]) - excess / p["slow"])

    rng = np.random.default_rng(0)
    shares = {"first": (0.5, 2), "often": (0.5, 0.99), "fast": (0.1, 0.5)}
    numbers = {
        name: rng.uniform(*ends, 500).astype(precision)
        for name, ends in (shares | {"slow": (1, 4)}).items()
    }

    @jax.jit
    @jax.vmap
    def mean_and_infimum(p):
        def mean(p):
            law = bcgc.FromHazard(mixture, parameters=p)
            return law.mean(), law.infimum()

        return jax.value_and_grad(mean, has_aux=True)(p)

    (mean, first), slopes = mean_and_infimum(numbers)
    often, fast, slow = (numbers[name] for name in ("often", "fast", "slow"))
    exact = numbers["first"] + often * fast + (1 - often) * slow
    np.testing.assert_allclose(first, numbers["first"], rtol=few_ulp(precision))
    # Worst measured 4e-7, of the quadrature.
    np.testing.assert_allclose(mean, exact, rtol=2e-6)
    np.testing.assert_allclose(slopes["first"], 1, rtol=1e-5)
    # Worst measured 0.003.
    np.testing.assert_allclose(slopes["often"], fast - slow, atol=0.01)


def test_a_heavy_tail_and_a_last_time_are_hazards():
    """P(T > t) = t^-1/20 has no mean; beyond the last time of a uniform Λ is NaN."""
    heavy = bcgc.FromHazard(
        lambda p, t: p * jnp.log(jnp.maximum(t, 1)), parameters=0.05
    )
    assert np.isinf(heavy.mean())
    bcgc.FromHazard(lambda p, t: -jnp.log1p(-t / p), parameters=2.0)


def test_the_slopes_of_the_example_are_those_of_its_mean_in_float32():
    """E T = first + often fast + (1 - often) slow, by code of `help(FromHazard)`."""
    examples = doctest.DocTestFinder().find(bcgc.FromHazard, "FromHazard")[0].examples
    names: dict[str, Any] = {"FromHazard": bcgc.FromHazard, "jax": jax, "jnp": jnp}
    for example in examples:
        if example.source.startswith(("def mixture", "mixed =", "slopes =")):
            exec(example.source, names)
    first, often, fast, slow = (
        names["mixed"][name] for name in ("first", "often", "fast", "slow")
    )
    law = bcgc.FromHazard(names["mixture"], parameters=names["mixed"])
    assert law.mean().dtype == jnp.float32
    assert float(law.mean()) == pytest.approx(
        first + often * fast + (1 - often) * slow, rel=1e-5
    )
    exact = {"first": 1.0, "often": fast - slow, "fast": often, "slow": 1 - often}
    for name, slope in names["slopes"].items():
        # worst measured 3e-7
        assert float(slope) == pytest.approx(exact[name], rel=1e-5)


def _mean_survivals(size: int) -> tuple[Array, Array]:
    """Means of e^-Λ(T_(k)), and the exact ones."""
    rank = jnp.array([1.0, 5.0, size // 3, size // 2, size - size // 6, size])
    above = size + 1 - rank

    @jax.jit
    def means(rank: Array, above: Array) -> Array:
        return average(lambda a: jnp.exp(-a), rank, above, jnp.zeros(0))

    return means(rank, above), above / (size + 1)


def test_means_of_uniform_order_statistics_are_ratios_of_ranks(x64):
    for size in (10_000, 131_072):
        means, exact = _mean_survivals(size)
        # Worst measured 2e-15; with panels half as wide next to the middle 9e-13, with
        # the last edge five deviations away 5e-7.
        np.testing.assert_allclose(means, exact, rtol=1e-14)


def test_means_in_single_precision_count_the_mass_beyond_the_last_edge():
    for size in (10_000, 131_072):
        # Worst measured 3e-6. With the last edge 80/m away means were 10 % off.
        np.testing.assert_allclose(*_mean_survivals(size), rtol=1e-5)
