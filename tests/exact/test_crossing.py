"""Crossing probabilities against fractions, mpmath and each other."""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bcgc_jax.distributions.order import by_level
from bcgc_jax.exact.crossing import Crossing, crossing_probability, shares
from bcgc_jax.exact.windows import windowed_paths
from tests.oracles import exact as oracles


@pytest.mark.parametrize("size", [60, 1100])
def test_weights_of_many_workers_are_those_of_scipy(precision, size):
    m = np.array([0, 1, 2, 7, size // 3, size // 2, size])
    share = np.array([0.0, 1e-12, 0.013, 0.34, 0.52, 0.97, 1.0], precision)

    @jax.jit
    def weights(share):
        crossing = Crossing(shares(jnp.zeros(size, precision)), size)
        return crossing._weight(m[:, None], share[None]), crossing.powers

    weight, powers = (np.asarray(output, float) for output in weights(share))
    if powers:  # without the exponential, which cancels
        weight = weight * np.exp(-size * share.astype(float))
    expected = stats.poisson.pmf(m[:, None], size * share.astype(float))
    # In roundings, of which a power has as many as its exponent; worst measured 5.4,
    # without the exponential.
    rtol = 16 * size * np.finfo(precision).eps
    np.testing.assert_allclose(weight, np.asarray(expected), rtol=rtol, atol=1e-30)
    np.testing.assert_array_equal(weight[:3, 0], [1, 0, 0])


BOUNDARIES = [
    [Fraction(b) for b in row.split()]
    for row in (
        *(
            "3/10",
            "0",
            "1",
            "2/9 5/7",
            "0 5/7",
            "2/9 1",
            "3/7 3/7",
            "0 0",
            "1 1",
            "0 1",
        ),
        *("1/50 3/8 99/100", "3/8 3/8 8/9", "1/50 3/8 3/8", "5/8 5/8 5/8", "0 5/8 1"),
        *("1/11 1/3 2/3 7/8", "1/9 1/4 1/2 1/2 31/32", "1/9 1/4 1/2 4/7 5/7 31/32"),
        *("2/7 2/7 2/7 6/7 6/7 6/7", "0 0 2/7 2/7 1 1"),
    )
]
MAX_WORKERS = 6


def hazards(boundary, dtype) -> np.ndarray:
    """Λ at the thresholds, slowest first, for probabilities in ascending order."""
    below = np.array([float(b) for b in boundary], dtype)[::-1]
    with np.errstate(divide="ignore"):
        return -np.log1p(-below)


def padded_hazards(dtype) -> tuple[np.ndarray, np.ndarray]:
    """`[B, MAX_WORKERS]`, the last threshold repeated, and the numbers of workers."""
    rows = [hazards(b, dtype) for b in BOUNDARIES]
    padded = np.stack(
        [
            np.concatenate([row, np.full(MAX_WORKERS - row.size, row[-1])])
            for row in rows
        ]
    )
    return padded, np.array([row.size for row in rows])


value_and_slopes = jax.jit(jax.vmap(jax.value_and_grad(crossing_probability)))


@functools.cache
def crossing(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Value and slopes at every boundary, with a traced number of workers."""
    value, slopes = value_and_slopes(*padded_hazards(dtype))
    assert value.dtype == slopes.dtype == dtype
    return np.asarray(value, float), np.asarray(slopes, float)


def test_crossing_probability_is_that_of_exact_enumeration(precision):
    expected = [float(oracles.crossing_probability(b)) for b in BOUNDARIES]
    # worst measured 1.2e-6 and 1.4e-15
    atol = {"float32": 5e-6, "float64": 6e-15}[precision.name]
    np.testing.assert_allclose(crossing(precision)[0], expected, rtol=0, atol=atol)


def test_what_is_rarer_than_a_rounding_keeps_its_digits(x64):
    """Value and slopes, by fractions, where P(T > θ) and differences are below eps."""
    rows = [(44.0, 43.1, 42.3, 42.0, 41.0, 40.2), (60.3, 58.1, 58.0, 57.2, 39.0, 38.7)]
    late = np.resize(rows, (len(BOUNDARIES), MAX_WORKERS))
    value, slopes = value_and_slopes(late, np.full(len(late), MAX_WORKERS))
    for k, row in enumerate(rows):
        q = [Fraction(float(np.exp(-h))) for h in row]
        base = oracles.crossing_probability([1 - p for p in reversed(q)])
        np.testing.assert_allclose(value[k], float(base), rtol=1e-12)
        for n in range(MAX_WORKERS):
            step = q[n] / 10**20
            moved = [p - step * (m == n) for m, p in enumerate(q)]
            change = (
                oracles.crossing_probability([1 - p for p in reversed(moved)]) - base
            )
            np.testing.assert_allclose(
                slopes[k, n], float(change / step * q[n]), rtol=1e-10
            )


def test_what_lies_in_the_padding_and_an_infinite_hazard_have_no_slope(precision):
    _, slopes = crossing(precision)
    for boundary, slope in zip(BOUNDARIES, slopes, strict=True):
        np.testing.assert_array_equal(slope[len(boundary) :], 0)
    # Nor does it matter at all: here a lower threshold.
    hazard, num_workers = padded_hazards(precision)
    assert np.isinf(hazard).any()
    np.testing.assert_array_equal(slopes[np.isinf(hazard)], 0)
    hazard = np.where(np.arange(MAX_WORKERS) < num_workers[:, None], hazard, 0)
    without_padding = value_and_slopes(hazard, num_workers)[0]
    # worst measured 4 eps
    np.testing.assert_allclose(
        without_padding,
        crossing(precision)[0],
        rtol=0,
        atol=16 * np.finfo(precision).eps,
    )


def feasible_directions(boundary: list[Fraction]) -> list[np.ndarray]:
    """Directions that keep the boundary ascending and in [0, 1], and that span all of
    them.

    Of a group of ties the upper end may be raised, from any place in the group on, or,
    at 1, the lower end lowered. The probability is a polynomial there, so these
    differences tell all of its slopes.
    """
    directions = []
    for value, group in itertools.groupby(
        range(len(boundary)), key=boundary.__getitem__
    ):
        members = list(group)
        for i in range(len(members)):
            direction = np.zeros(len(boundary), int)
            direction[members[i:] if value < 1 else members[: i + 1]] = (
                1 if value < 1 else -1
            )
            directions.append(direction)
    return directions


def test_slopes_of_the_crossing_probability_are_differences_of_exact_enumeration(
    precision,
):
    _, slopes = crossing(precision)
    step = Fraction(1, 10**14)
    # worst measured 4e-6 and 6e-14
    atol = {"float32": 2e-5, "float64": 3e-13}[precision.name]
    for boundary, slope in zip(BOUNDARIES, slopes, strict=True):
        assert np.isfinite(slope).all()
        directions = feasible_directions(boundary)
        assert np.linalg.matrix_rank(np.array(directions)) == len(boundary)
        base = oracles.crossing_probability(boundary)
        for direction in directions:
            moved = [
                b + int(d) * step for b, d in zip(boundary, direction, strict=True)
            ]
            expected = (oracles.crossing_probability(moved) - base) / step
            # dΛ = db / (1 - b); from b = 1 no finite change of Λ leads away.
            if boundary[int(np.flatnonzero(direction)[0])] == 1:
                continue
            by_hazard = direction / np.array(
                [float(1 - b) if b < 1 else np.inf for b in boundary]
            )
            actual = slope[: len(boundary)][::-1] @ by_hazard
            np.testing.assert_allclose(actual, float(expected), rtol=0, atol=atol)


def _difference(boundary: list[Fraction], *levels: int) -> float:
    """Centred, of the polynomial, with a step at each of the levels."""
    step = Fraction(1, 10**20)
    change = Fraction(0)
    for signs in itertools.product((1, -1), repeat=len(levels)):
        moved = list(boundary)
        for sign, level in zip(signs, levels, strict=True):
            moved[level] += sign * step / 2
        change += math.prod(signs) * oracles.crossing_probability(moved)
    return float(change / step ** len(levels))


def test_second_slopes_are_differences_of_exact_enumeration(precision):
    hessians = jax.jit(jax.vmap(jax.hessian(crossing_probability)))(
        *padded_hazards(precision)
    )
    assert np.isfinite(hessians).all()
    for boundary, second in zip(BOUNDARIES, hessians, strict=True):
        size = len(boundary)
        ends = [Fraction(0), *boundary, Fraction(1)]
        if not all(low < high for low, high in itertools.pairwise(ends)):
            continue
        first = np.array([_difference(boundary, k) for k in range(size)])
        exact = np.array(
            [[_difference(boundary, j, k) for k in range(size)] for j in range(size)]
        )
        # db = (1 - b) dΛ.
        left = np.array([float(1 - b) for b in boundary])
        exact = exact * left * left[:, None] - np.diag(first * left)
        # worst measured 3e-6 and 3e-14
        atol = {"float32": 2e-5, "float64": 2e-13}[precision.name]
        np.testing.assert_allclose(
            second[:size, :size][::-1, ::-1], exact, rtol=0, atol=atol
        )


@pytest.mark.slow
def test_it_is_the_law_of_smirnovs_distance(precision):
    # P(some U_(k) > (k-1)/N + d) is P(D⁻ > d), and SciPy's `ksone` has the law of D⁺,
    # which is the same.
    upper = np.array([0.9, 0.3, 1e-2, 1e-4])
    late = jax.jit(crossing_probability, static_argnums=1)
    in_batches = jax.jit(
        lambda hazard, n: Crossing(shares(hazard), n, True).probability(),
        static_argnums=1,
    )
    # In single precision powers of more than 52 workers overflow without their
    # exponentials.
    single = jax.jit(
        lambda hazard, n: in_batches(hazard.astype(np.float32), n), static_argnums=1
    )
    # worst measured 4e-7 and 2.5e-14, of 60 workers 1.5e-6, of 401 1.1e-4 and 2e-13
    atol = {"float32": {52: 5e-7, 401: 2e-4}, "float64": {52: 5e-14, 401: 2e-12}}[
        precision.name
    ] | {60: 3e-6}
    for num_workers, ways in ((52, [late, in_batches]), (60, [single]), (401, [late])):
        boundary = (
            np.arange(num_workers) / num_workers
            + stats.ksone.isf(upper, num_workers)[:, None]
        )
        hazard = np.stack([hazards(row, precision) for row in np.minimum(boundary, 1)])
        for way in ways:
            np.testing.assert_allclose(
                way(hazard, num_workers), upper, rtol=0, atol=atol[num_workers]
            )


WORKERS = 401
LEVEL = np.arange(WORKERS)


def _hazards(kind: str) -> np.ndarray:
    """Λ at eight times for a plan near the best of a shifted exponential, `[8, N]`."""
    left = np.cumsum((1 / np.arange(1, WORKERS + 1))[::-1])[::-1]
    spread = np.sqrt(np.cumsum((1 / np.arange(1, WORKERS + 1) ** 2)[::-1])[::-1])
    load = 1 / (0.05 + left + 1.5 * spread)
    times = np.linspace(0.96, 1.1, 8)
    if kind == "late":
        times = np.array([1.3, 1.6, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0])
    # Few levels in use, and some that hardly ever fail between them.
    if kind in ("gaps", "slack"):
        kept = np.unique(
            np.r_[0, 1, 2, 5, 9, np.geomspace(10, WORKERS - 1, 12).astype(int)]
        )
        load = load[kept][np.searchsorted(kept, LEVEL, side="right") - 1]
    if kind == "slack":
        load = (
            np.where((LEVEL >= 130) & (LEVEL < 200), 0.8, 1)
            * np.where(LEVEL >= 20, 0.97, 1)
            * load
        )
        load = np.minimum.accumulate(load[::-1])[::-1]
    if kind == "single":
        load = np.where(LEVEL >= 200, load[200], 0)
    with np.errstate(divide="ignore"):
        return np.maximum(times[:, None] / load - 0.05, 0)


@jax.jit
def _by_renewals(hazard: jax.Array, workers: int) -> tuple[jax.Array, jax.Array]:
    crossing = Crossing(shares(hazard), workers)
    first = crossing.first_failures()
    paths = (
        jnp.maximum(first * crossing.successes(), 0) * crossing.above / crossing.total
    )
    return crossing.probability(first), crossing.unit * by_level(paths)


found_by_windows = jax.jit(windowed_paths)


# The last of fewer workers than levels.
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        *((kind, WORKERS) for kind in ("all", "gaps", "slack", "single", "late")),
        pytest.param("all", 301, marks=pytest.mark.slow),
    ],
)
def test_windows_give_what_the_renewals_give(precision, kind, workers):
    hazard = _hazards(kind)[:, np.minimum(LEVEL, workers - 1)]
    probability, slope = (
        np.asarray(a) for a in _by_renewals(hazard.astype(np.float64), workers)
    )
    windows = found_by_windows(hazard.astype(precision), workers)
    slope_by_windows = (
        workers * np.asarray(windows.arrive * windows.leave, float) * np.exp(-hazard)
    )
    # Worst measured 1.2e-11 relative, 1e-10 of the largest slope, and in float32 1e-4
    # and 2e-4.
    rtol = {"float32": 1e-3, "float64": 5e-9}[precision.name]
    tiny = 1e-30 if precision.name == "float32" else 1e-75
    np.testing.assert_allclose(windows.probability, probability, rtol=rtol, atol=tiny)
    used = slice(workers)
    np.testing.assert_allclose(
        slope_by_windows[:, used], slope[:, used], rtol=0, atol=rtol * slope.max()
    )


def test_a_level_that_nobody_can_reach_fails_surely(x64):
    hazard = _hazards("all")
    hazard[:, -1] = 0
    windows = found_by_windows(hazard, WORKERS)
    np.testing.assert_array_equal(windows.probability, 1)
    np.testing.assert_array_equal(windows.arrive, 0)
