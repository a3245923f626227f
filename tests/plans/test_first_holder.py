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
from bcgc_jax.plans.worker import Load, Worker
from tests.oracles import laws

pytestmark = pytest.mark.usefixtures("x64")

# One program for each number of subsets: N is padded.
SIZE = 24


def _worker(law, start_up=0.0):
    return Worker(law, jnp.asarray(start_up))


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
        worker = _worker(case.law(), mean if start_up else 0.0)
        runtime = _expected(worker, _work(depth), workers)
        times = case.draw(rng, (draws, workers))
        begin = np.full(times.shape, mean if start_up else 0.0)
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
