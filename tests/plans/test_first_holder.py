"""Workers on a circle: exact values against enumeration, a trace formula and draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.circle import uncovered
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.evaluate import exceedance, expected_completion
from bcgc_jax.plans.plan import cyclic_plan
from bcgc_jax.plans.worker import Load, Worker
from tests.oracles import laws

pytestmark = pytest.mark.usefixtures("x64")

# One program for each number of subsets: N is padded.
SIZE = 24


def _worker(law, start_up=0.0):
    start = (
        start_up
        if isinstance(start_up, bcgc.distributions.Distribution)
        else jnp.asarray(start_up)
    )
    return Worker(law, start, jnp.asarray(1.0))


def _work(depth):
    return jnp.arange(1.0, depth + 1)


@jax.jit
def _expected(worker, work, workers):
    load = Load(work, jnp.zeros_like(work))
    return expected_completion(worker, load, FirstHolder(workers, SIZE), num_nodes=96)


@jax.jit
def _late(worker, work, workers, t):
    return exceedance(
        worker, Load(work, jnp.zeros_like(work)), FirstHolder(workers, SIZE), t
    )


_missed = jax.jit(uncovered, static_argnums=2)


def _tau(ready, depth):
    """When all is covered, one worker and subset by one; `ready` is `[K, N, D]`."""
    turned = [
        np.roll(ready[:, :, d], d, axis=1) for d in range(min(depth, ready.shape[1]))
    ]
    return np.min(turned, axis=0).max(axis=1)


@pytest.mark.parametrize(
    ("workers", "depth"), [(n, d) for n in range(1, 5) for d in range(1, n + 1)]
)
def test_a_missed_subset_is_as_probable_as_by_enumeration(workers, depth):
    p = np.random.default_rng(7 * workers + depth).dirichlet(np.ones(depth + 1))
    missed = sum(
        float(np.prod(p[list(done)]))
        for done in itertools.product(range(depth + 1), repeat=workers)
        if not all(
            any(done[(j - d) % workers] > d for d in range(depth))
            for j in range(workers)
        )
    )
    # Worst of all 1.2e-16.
    assert abs(float(_missed(np.cumsum(p)[:-1], workers, SIZE)) - missed) < 1e-15


@pytest.mark.parametrize("missing", [0.3, 1e-9])
@pytest.mark.parametrize(("workers", "size"), [(SIZE, SIZE), (1003, 1200)])
def test_workers_go_round_one_by_one(workers, size, missing):
    """All arcs between two misses, worker by worker, in extended precision."""
    depth = 4
    p = np.r_[
        missing, (1 - missing) * np.random.default_rng(1).dirichlet(np.ones(depth))
    ]
    p = p.astype(np.longdouble)
    until_miss = np.cumprod(np.cumsum(p)[:-1])
    chances = np.zeros(depth, np.longdouble)
    missed = np.longdouble(0)
    chances[0] = 1
    for length in range(1, workers + 1):
        left = workers - length
        next_miss = until_miss[min(left, depth) - 1] if left else np.longdouble(1)
        missed += length * chances[0] * p[0] * next_miss
        after = np.zeros(depth, np.longdouble)
        for s, r in itertools.product(range(depth), range(depth + 1)):
            if max(s, r) >= 1:
                after[max(s, r) - 1] += chances[s] * p[r]
        chances = after
    probability = float(_missed(np.cumsum(p)[:-1].astype(float), workers, size))
    assert probability == pytest.approx(float(missed), rel=1e-12)  # worst 2.8e-13


@pytest.mark.parametrize(
    ("depth", "value"),
    [(6, 7.24622e7), pytest.param(20, 5.46934e7, marks=pytest.mark.slow)],
)
def test_the_published_setting(depth, value):
    runtime = _expected(
        _worker(bcgc.ShiftedExponential(1e-3, 50.0)), 20_000 * _work(depth), 20
    )
    assert float(runtime.value) * 50 / 20 == pytest.approx(value, rel=1e-6)
    assert float(runtime.error) < 1e-6 * float(runtime.value)


LAWS = {
    "shifted exponential": lambda a, b: laws.SHIFTED_EXPONENTIAL.case(1 / a, b),
    "uniform": lambda a, b: laws.UNIFORM.case(b, a + b),
    "atoms": lambda a, b: laws.EMPIRICAL.case(a, 2 * b, 3 * (a + b)),
}


# One of each rule: smooth, with a kink, with atoms.
@pytest.mark.parametrize(
    ("name", "start_up", "depth"),
    [
        *(
            ("shifted exponential", False, 6),
            ("uniform", False, 3),
            ("atoms", False, 6),
        ),
        pytest.param("uniform", True, 3, marks=pytest.mark.slow),
    ],
)
def test_exact_values_are_those_of_draws(name, start_up, depth):
    draws = 50_000
    for seed in range(3):
        rng = np.random.default_rng([seed, list(LAWS).index(name), start_up])
        case = LAWS[name](*rng.uniform(0.2, 2, 2))
        workers = int(rng.integers(depth, SIZE + 1))
        mean = 10 ** rng.uniform(-1, 1)
        worker = _worker(case.law(), bcgc.Exponential(1 / mean) if start_up else 0.0)
        runtime = _expected(worker, _work(depth), workers)
        times = case.draw(rng, (draws, workers))
        begin = (
            rng.exponential(mean, times.shape) if start_up else np.zeros(times.shape)
        )
        tau = _tau(begin[..., None] + times[..., None] * np.arange(1, depth + 1), depth)
        room = 4 * tau.std() / np.sqrt(draws) + float(runtime.error)
        assert abs(float(runtime.value) - tau.mean()) < room
        t = (1 + 1e-9) * float(np.quantile(tau, 0.7))  # behind a step, not on it
        late = float(_late(worker, _work(depth), workers, jnp.asarray(t)))
        deviation = max(np.sqrt(late * (1 - late) / draws), 1 / draws)
        assert abs(late - np.mean(tau > t)) < 4.5 * deviation


def _missed_by_enumeration(workers, depth):
    """The states, of subsets done by each worker, in which a subset is missing."""
    states = np.array(list(itertools.product(range(depth + 1), repeat=workers)))
    done = [np.roll(states > d, d, axis=1) for d in range(depth)]
    return states[~np.any(done, axis=0).all(axis=1)]


@pytest.mark.slow
def test_two_start_ups_of_heavy_tails_against_all_states_and_double_exponential_rules():
    """A claimed error was once too small: Weibull times begin with a steep slope."""
    workers = 5
    depth = 2
    unit = 2e5
    starts = (1e6, 5e7)
    share = np.array([0.7, 0.3])
    missed = _missed_by_enumeration(workers, depth)
    x = np.arange(-6, 6, 1 / 32)
    e = np.pi / 2 * np.sinh(x)
    growth = np.pi / 2 * np.cosh(x)

    def late(t):
        laps = np.maximum(t - np.array(starts)[:, None, None], 0) / (
            unit * np.arange(1, depth + 1)[:, None]
        )
        early = np.tensordot(share, -np.expm1(-((laps / 1000) ** 0.7)), 1)
        at_least = np.concatenate([np.ones((1, t.size)), early, np.zeros((1, t.size))])
        return np.prod((at_least[:-1] - at_least[1:])[missed], axis=1).sum(axis=0)

    between = 1 / (1 + np.exp(-2 * e))
    gap = starts[1] - starts[0]
    first = late(starts[0] + gap * between) * gap * 2 * between * (1 - between) * growth
    after = 2000 * unit * np.exp(e)
    want = (
        starts[0]
        + (first.sum() + (late(starts[1] + after) * after * growth).sum()) / 32
    )
    law = bcgc.Weibull(1000.0, 0.7)
    start = bcgc.TwoSpeed(*starts, 0.3)
    problem = bcgc.Problem(law, workers, 20_000, 50, start_up=start)
    integral = bcgc.plans.integrate_runtime(problem, cyclic_plan(problem.total, depth))
    # 1e-14 and 1e-10 of it
    assert abs(float(integral.value) - want) <= float(integral.error) < 1e-9 * want


@pytest.mark.slow
def test_values_with_start_ups_are_those_of_draws_and_slopes_those_of_differences():
    @jax.jit
    @jax.value_and_grad
    def value_and_slopes(numbers):
        worker = _worker(
            bcgc.ShiftedExponential(numbers[0], 0.3), bcgc.Exponential(1 / numbers[1])
        )
        return _expected(worker, numbers[2:], 9).value

    point = jnp.array([0.7, 0.5, *_work(3)])
    value, slopes = value_and_slopes(point)
    rng = np.random.default_rng(0)
    ready = rng.exponential(0.5, (50_000, 9, 1)) + (
        0.3 + rng.exponential(1 / 0.7, (50_000, 9, 1))
    ) * _work(3)
    tau = _tau(np.asarray(ready), 3)
    assert abs(float(value) - tau.mean()) < 4 * tau.std() / np.sqrt(tau.size)
    for move in ([1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.3, 0.2, 0.5]):
        low, high = (
            float(value_and_slopes(point + step * jnp.array(move))[0])
            for step in (-1e-5, 1e-5)
        )
        assert float(slopes @ jnp.array(move)) == pytest.approx(
            (high - low) / 2e-5, rel=2e-6
        )


@pytest.mark.slow
def test_nodes_follow_the_start_of_laws_with_mass_there():
    """Slopes in a start-up and in a law's shift, the infimum, at which all mass is."""

    @jax.jit
    @jax.value_and_grad
    def value_and_slopes(numbers):
        return _expected(
            _worker(bcgc.Gamma(0.02, 1.0, numbers[0]), numbers[1]), _work(3), 7
        ).value

    _, slopes = value_and_slopes(jnp.array([1.0, 0.5]))
    assert float(slopes[1]) == pytest.approx(1, rel=1e-14)
    low, high = (
        float(value_and_slopes(jnp.array([shift, 0.5]))[0]) for shift in (0.999, 1.001)
    )
    assert float(slopes[0]) == pytest.approx((high - low) / 2e-3, rel=1e-5)


def test_an_infinite_mean_is_one_of_the_fastest_of_d():
    """The fastest of two of a Pareto law has a mean at shape 0.6, none at 0.4."""
    values = [
        float(_expected(_worker(bcgc.Pareto(1.0, shape)), _work(2), 5).value)
        for shape in (0.6, 0.4)
    ]
    assert np.isfinite(values[0])
    assert np.isinf(values[1])
