"""Mixtures against mpmath at 40 digits, SciPy, draws, and finite differences."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bcgc_jax as bcgc
from tests.oracles import laws

HAZARDS = (1e-12, 1e-6, 1e-3, 0.1, 0.7, 1.9, 2.3, 2.5, 4.0, 9.7, 36.5, 79.0)
# In the first two, both parts are common. In the last, the slow part is very rare.
PARAMETERS = [
    (5.0, 2.3, 0.6, 0.9, 0.1, 1.0),
    (0.37, 40.0, 3.4, 3.0, 2.0, 0.0),
    (12.5, 700.0, 1.7, 1.0, 1e-4, 3.3),
]


def _hazard(p: Any, t: Any) -> Any:
    return laws.MIXTURE.build(*p).cumulative_hazard(t)


def _inverse(p: Any, a: Any) -> Any:
    return laws.MIXTURE.build(*p).inverse_cumulative_hazard(a)


@functools.partial(jax.jit, static_argnums=0)
def _values_and_slopes(function: Any, p: Any, x: Any) -> Any:
    return jax.vmap(jax.value_and_grad(function, argnums=(0, 1)), (None, 0))(p, x)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_hazard_inverse_and_slopes_are_those_of_mpmath(parameters, precision):
    # The worst values are off by 9e-7 and 4e-16, the worst slopes by 4e-7 and 3e-16.
    rtol, of_slopes = {"float32": (2e-6, 1e-6), "float64": (2e-15, 2e-15)}[
        precision.name
    ]
    case = laws.MIXTURE.case(*(precision.type(v) for v in parameters))
    p = [precision.type(v) for v in parameters]
    a = np.asarray(HAZARDS, precision)
    exact = [case.inverse(float(v)) for v in a]
    times, (of_p, of_a) = _values_and_slopes(_inverse, p, a)
    slopes = np.stack([*of_p, of_a], axis=-1)
    for i, time in enumerate(exact):
        assert float(times[i]) == pytest.approx(float(time), rel=rtol)
        expected = np.asarray(case.inverse_slopes(time), float)
        scale = np.abs(expected) + float(time) / np.abs([*parameters, a[i]]).clip(1e-3)
        # A time next to the infimum keeps few digits of what lies between them.
        lost = float(np.finfo(precision).eps) * float(
            time / max(time - case.infimum, 1e-30)
        )
        np.testing.assert_allclose(
            slopes[i] / scale, expected / scale, atol=of_slopes + min(lost, 1)
        )
    t = np.asarray([float(time) for time in exact], precision)
    hazards, (of_p, of_t) = _values_and_slopes(_hazard, p, t)
    slopes = np.stack([*of_p, of_t], axis=-1)
    for i, time in enumerate(t):
        hazard = case.hazard(float(time))
        if time - case.infimum < 1e-3 * time:
            continue  # of a time next to the shift only the rounding is left
        assert float(hazards[i]) == pytest.approx(float(hazard), rel=rtol)
        expected = np.asarray(case.hazard_slopes(float(time)), float)
        scale = np.abs(expected) + float(hazard) / np.abs([*parameters, time]).clip(
            1e-3
        )
        np.testing.assert_allclose(slopes[i] / scale, expected / scale, atol=of_slopes)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_the_mean_and_its_slopes_are_those_of_the_formula(parameters, x64):
    case = laws.MIXTURE.case(*parameters)
    value, slopes = jax.value_and_grad(lambda p: laws.MIXTURE.build(*p).mean())(
        list(parameters)
    )
    assert float(value) == pytest.approx(case.frozen.mean(), rel=1e-14)
    np.testing.assert_allclose(
        np.asarray(slopes),
        [float(v) for v in case.mean_slopes()],
        rtol=1e-12,
        atol=1e-9,
    )
    t = case.frozen.ppf([0.01, 0.3, 0.9, 0.99])
    law = case.law()
    np.testing.assert_allclose(law.log_density(t), case.frozen.logpdf(t), rtol=1e-9)


def _random(rng: np.random.Generator) -> tuple[bcgc.Mixture, laws.Mixed]:
    """Mix three distributions of different families, here and by SciPy."""
    shift, low = rng.uniform(0, 2), rng.uniform(0.1, 5)
    scale, rate = 10 ** rng.uniform(-1, 2), 10 ** rng.uniform(-2, 1)
    shape = rng.uniform(0.6, 4)
    heavy = rng.uniform(2.2, 4)  # with a variance
    pairs = [
        (bcgc.ShiftedExponential(rate, shift), stats.expon(shift, 1 / rate)),
        (bcgc.Weibull(scale, shape, shift), stats.weibull_min(shape, shift, scale)),
        (bcgc.Pareto(scale, heavy), stats.pareto(heavy, 0, scale)),
        (bcgc.Uniform(low, low + scale), stats.uniform(low, scale)),
        (
            bcgc.Lognormal(shift, shape / 4, low),
            stats.lognorm(shape / 4, low, np.exp(shift)),
        ),
    ]
    chosen = [pairs[i] for i in rng.choice(len(pairs), 3, replace=False)]
    weights = rng.dirichlet([1.0, 1.0, 1.0]) + 1e-3
    of_package, of_scipy = zip(*chosen, strict=True)
    return bcgc.Mixture(of_package, weights), laws.Mixed(of_scipy, weights)


def test_times_of_random_mixtures_are_those_of_scipy(x64):
    rng = np.random.default_rng(5)
    u = np.array([1e-6, 0.01, 0.2, 0.5, 0.9, 0.999])
    for _ in range(12):
        law, peer = _random(rng)
        t = law.inverse_cumulative_hazard(-np.log1p(-u))
        np.testing.assert_allclose(peer.cdf(t), u, rtol=1e-9)
        np.testing.assert_allclose(law.survival(t), peer.sf(t), rtol=1e-12)
        assert float(law.mean()) == pytest.approx(peer.mean(), rel=1e-12)
        assert float(law.infimum()) == peer.support()[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 20, 60])
def test_runtime_and_completion_are_those_of_draws_and_slopes_those_of_differences(
    workers, x64
):
    rng = np.random.default_rng(workers)
    law, peer = _random(rng)

    @jax.jit
    def runtime_of(law: bcgc.Mixture) -> jax.Array:
        problem = bcgc.Problem(law, workers, 20_000, max_workers=60)
        return bcgc.expected_runtime(problem, x)

    problem = bcgc.Problem(law, workers, 20_000, max_workers=60)
    solution = bcgc.solve(problem)
    assert float(solution.relative_gap) < 1e-3
    assert solution.problem is not None
    x = np.asarray(solution.partition)
    load = np.cumsum(np.arange(1, workers + 1) * x[:workers])
    scale = float(solution.problem.scale)
    tau = np.concatenate(
        [
            np.max(load * np.sort(peer.rvs((10**5, workers), rng))[:, ::-1], axis=1)
            for _ in range(10)
        ]
    )
    value, slopes = jax.value_and_grad(runtime_of)(law)
    assert abs(float(value) / scale - tau.mean()) < 4 * tau.std() / 1e3
    deadline = float(np.quantile(tau[:1000], 0.7))
    chance = bcgc.completion_probability(problem, x, deadline * scale)
    met = np.mean(tau <= deadline)
    assert abs(float(chance) - met) < 4 * np.sqrt(met * (1 - met)) / 1e3

    leaves, tree = jax.tree.flatten(law)
    numbers, unravel = jax.flatten_util.ravel_pytree(leaves)
    at_hand = jax.flatten_util.ravel_pytree(jax.tree.leaves(slopes))[0]
    for i, number in enumerate(np.asarray(numbers)):
        size = max(abs(number), 1e-2)
        ends = (numbers.at[i].add(sign * 1e-4 * size) for sign in (1, -1))
        above, below = (runtime_of(jax.tree.unflatten(tree, unravel(e))) for e in ends)
        difference = (above - below) / (2e-4 * size)
        allowed = 1e-3 * abs(difference) + 1e-6 * value / size
        assert abs(at_hand[i] - difference) <= allowed


def test_a_mixture_of_atoms_is_the_distribution_with_these_atoms(x64):
    fast, slow = (bcgc.distributions.Deterministic(v) for v in (1.0, 5.0))
    law = bcgc.Mixture([fast, slow], [3.0, 1.0])
    peer = bcgc.TwoSpeed(1.0, 5.0, 0.25)
    problems = [bcgc.Problem(d, 5, 2000) for d in (law, peer)]
    plans = [bcgc.solve(problem) for problem in problems]
    assert float(plans[0].expected_runtime) == pytest.approx(
        float(plans[1].expected_runtime), rel=1e-12
    )
    a = np.array([0.1, 0.28, 0.29, 3.0])
    np.testing.assert_array_equal(
        law.inverse_cumulative_hazard(a), peer.inverse_cumulative_hazard(a)
    )
    draws = law.sample(jax.random.key(0), (4000,))
    assert np.mean(np.asarray(draws) == 5.0) == pytest.approx(0.25, abs=0.03)


def test_an_infinite_hazard_is_reached_where_the_distribution_ends(precision):
    ends = [bcgc.Uniform(1.0, 2.0), bcgc.Uniform(5.0, 6.0)]
    infinite = np.asarray(np.inf, precision)
    law = bcgc.Mixture(ends, [1.0, 1.0])
    assert float(law.inverse_cumulative_hazard(infinite)) == 6.0
    law = bcgc.Mixture([ends[0], bcgc.Exponential(1.0)], [1.0, 1.0])
    assert float(law.inverse_cumulative_hazard(infinite)) == np.inf


def test_a_part_of_a_mixture_by_itself_is_that_part(precision):
    part = bcgc.Weibull(2.0, 0.7, 0.5)
    law = bcgc.Mixture([part, part], [1.0, 2.0])
    a = np.asarray([1e-6, 0.1, 1.0, 8.0], precision)
    np.testing.assert_allclose(
        law.inverse_cumulative_hazard(a), part.inverse_cumulative_hazard(a), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("distributions", "weights", "text"),
    [
        ([], [], "one number for each"),
        ([bcgc.Exponential(1.0)], [0.5, 0.5], "1 distributions and weights of shape"),
        ([bcgc.Exponential(1.0)] * 2, [0.5, 0.0], "weights must be finite and > 0"),
        ([bcgc.Exponential(1.0), 3.0], [0.5, 0.5], "of one worker's time, got 3.0"),
        (
            [bcgc.Exponential(1.0), bcgc.distributions.Deterministic(1.0)],
            [0.5, 0.5],
            "a narrow Uniform",
        ),
    ],
)
def test_what_is_no_mixture_is_refused(distributions, weights, text):
    with pytest.raises(ValueError, match=text):
        bcgc.Mixture(distributions, weights)


def test_weights_are_relative_and_traced_ones_may_be_wrong(x64):
    parts = [bcgc.Exponential(1.0), bcgc.Exponential(0.2)]
    means = [float(bcgc.Mixture(parts, w).mean()) for w in ([9, 1], [0.9, 0.1])]
    assert means[0] == pytest.approx(means[1], rel=1e-14)

    def runtime(weight: Any) -> Any:
        law = bcgc.Mixture(parts, jnp.stack([1.0, weight]))
        return bcgc.expected_runtime(bcgc.Problem(law, 3, 20_000), [1e4, 5e3, 5e3])

    values = jax.vmap(runtime)(jnp.array([0.5, -0.5]))
    assert np.isfinite(values[0])
    assert np.isnan(values[1])
