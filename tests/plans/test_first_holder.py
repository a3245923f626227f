"""Subsets covered by workers on a circle: exact values against enumeration, the trace formula and draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.completion import FirstHolder, uncovered
from bcgc_jax.plans.evaluate import exceedance, expected_completion
from bcgc_jax.plans.worker import Load, Worker

pytestmark = pytest.mark.usefixtures("x64")

# One program for each number of subsets: N is padded.
SIZE = 24


def _worker(law, start_up=0.0):
    start = start_up if isinstance(start_up, bcgc.distributions.Law) else jnp.asarray(start_up)
    return Worker(law, start, jnp.asarray(1.0))


def _work(depth):
    return jnp.arange(1.0, depth + 1)


@jax.jit
def _expected(worker, work, workers):
    load = Load(work, jnp.zeros_like(work))
    return expected_completion(worker, load, FirstHolder(workers, SIZE), num_nodes=96)


@jax.jit
def _late(worker, work, workers, t):
    return exceedance(worker, Load(work, jnp.zeros_like(work)), FirstHolder(workers, SIZE), t)


def _tau(ready, depth):
    """When all is covered, worker by worker and subset by subset; `ready` is `[K, N, D]`."""
    workers = ready.shape[1]
    each = [
        np.min([ready[:, (j - d) % workers, d] for d in range(min(depth, workers))], axis=0)
        for j in range(workers)
    ]
    return np.max(each, axis=0)


@pytest.mark.parametrize(("workers", "depth"), [(n, d) for n in range(1, 5) for d in range(1, n + 1)])
def test_a_missed_subset_is_as_probable_as_by_enumeration(workers, depth):
    p = np.random.default_rng(7 * workers + depth).dirichlet(np.ones(depth + 1))
    missed = sum(
        float(np.prod(p[list(done)]))
        for done in itertools.product(range(depth + 1), repeat=workers)
        if not all(any(done[(j - d) % workers] > d for d in range(depth)) for j in range(workers))
    )
    late = jnp.asarray(np.cumsum(p)[:-1])
    # Worst of all 1.2e-16.
    assert abs(float(uncovered(late, workers, SIZE)) - missed) < 1e-15


@pytest.mark.parametrize("missing", [0.3, 1e-4, 1e-9])
@pytest.mark.parametrize(("workers", "size"), [(11, SIZE), (SIZE, SIZE), (1003, 1200)])
def test_workers_go_round_one_by_one_and_many_by_powers_of_two(workers, size, missing):
    """Against all arcs between two misses, one worker after the other, in extended precision."""
    depth = 4
    p = np.r_[missing, (1 - missing) * np.random.default_rng(1).dirichlet(np.ones(depth))]
    p = p.astype(np.longdouble)
    until_miss = np.cumprod(np.cumsum(p)[:-1])
    at, missed = np.zeros(depth, np.longdouble), np.longdouble(0)
    at[0] = 1
    for length in range(1, workers + 1):
        left = workers - length
        again = until_miss[min(left, depth) - 1] if left else np.longdouble(1)
        missed += length * at[0] * p[0] * again
        after = np.zeros(depth, np.longdouble)
        for s, r in itertools.product(range(depth), range(depth + 1)):
            if max(s, r) >= 1:
                after[max(s, r) - 1] += at[s] * p[r]
        at = after
    late = jnp.asarray(np.cumsum(p)[:-1].astype(float))
    found = float(uncovered(late, workers, size))
    assert found == pytest.approx(float(missed), rel=1e-12)  # worst 2.8e-13


def test_a_late_cover_keeps_its_digits():
    """Three neighbours that have each done nothing, then at most one, then two: the leading terms."""
    late = jnp.array([1e-8, 2e-8, 3e-8])
    alone = 1e-8 * 2e-8 * 3e-8
    assert float(uncovered(late, 9, SIZE)) == pytest.approx(9 * alone, rel=1e-6)


def test_the_published_setting():
    """design.md, section 3: N = 20, L = 20,000, 50 samples."""
    law = bcgc.ShiftedExponential(1e-3, 50.0)
    for depth, value in ((20, 5.46934e7), (6, 7.24622e7)):
        found = _expected(_worker(law), 20_000 * _work(depth), 20)
        assert float(found.value) * 50 / 20 == pytest.approx(value, rel=1e-6)
        assert float(found.error) < 1e-6 * float(found.value)


LAWS = {
    "shifted exponential": (
        lambda a, b: bcgc.ShiftedExponential(1 / a, b),
        lambda rng, s, a, b: b + a * rng.exponential(size=s),
    ),
    "weibull": (lambda a, b: bcgc.Weibull(a, 0.6 + b), lambda rng, s, a, b: a * rng.weibull(0.6 + b, s)),
    "uniform": (lambda a, b: bcgc.Uniform(b, a + b), lambda rng, s, a, b: rng.uniform(b, a + b, s)),
    "atoms": (
        lambda a, b: bcgc.Empirical([a, 2 * b, 3 * (a + b)]),
        lambda rng, s, a, b: rng.choice([a, 2 * b, 3 * (a + b)], s),
    ),
}


def _against_draws(name, start_up, seeds, draws):
    """How many standard errors the exact values are off, and whether each is near enough."""
    make, draw = LAWS[name]
    off = []
    for seed in seeds:
        rng = np.random.default_rng([seed, list(LAWS).index(name), start_up])
        a, b = rng.uniform(0.2, 2, 2)
        depth = int(rng.integers(1, 7))
        workers = int(rng.integers(depth, SIZE + 1))
        mean = 10 ** rng.uniform(-1, 1)
        start = bcgc.Exponential(1 / mean) if start_up else 0.0
        found = _expected(_worker(make(a, b), start), _work(depth), workers)
        parts = []
        for _ in range(draws // 10_000):
            times = draw(rng, (10_000, workers), a, b)
            begin = rng.exponential(mean, times.shape) if start_up else np.zeros(times.shape)
            parts.append(_tau(begin[..., None] + times[..., None] * np.arange(1, depth + 1), depth))
        tau = np.concatenate(parts)
        spread = tau.std() / np.sqrt(draws)
        off.append((float(found.value) - tau.mean()) / np.hypot(spread, float(found.error)))
        t = (1 + 1e-9) * float(np.quantile(tau, 0.7))  # behind a step, not on it
        late = float(_late(_worker(make(a, b), start), _work(depth), workers, jnp.asarray(t)))
        share = np.mean(tau > t)
        assert abs(late - share) < 4.5 * max(np.sqrt(late * (1 - late) / draws), 1 / draws)
    return np.abs(off)


# One of each rule with and without start-ups: smooth, with a kink, with atoms.
@pytest.mark.parametrize(
    ("name", "start_up"), [("shifted exponential", False), ("uniform", True), ("atoms", False)]
)
def test_exact_values_are_those_of_draws(name, start_up):
    assert np.all(_against_draws(name, start_up, range(3), 20_000) < 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_exact_values_are_those_of_a_million_draws(name):
    """40 problems in all; 200, with 25 seeds, take ten minutes."""
    off = np.concatenate([_against_draws(name, start, range(5), 1_000_000) for start in (False, True)])
    assert off.max() < 4.5
    assert np.mean(off**2) < 2.96  # of ten squares of normal numbers in 999 of 1000


def test_slopes_are_those_of_differences():
    def value(rate, mean, work):
        worker = _worker(bcgc.ShiftedExponential(rate, 0.3), bcgc.Exponential(1 / mean))
        return _expected(worker, work, 9).value

    at = (jnp.asarray(0.7), jnp.asarray(0.5), _work(3))
    slopes = jax.grad(value, argnums=(0, 1, 2))(*at)
    for i, step in ((0, 1e-5), (1, 1e-5)):
        low, high = ([a + s * step if j == i else a for j, a in enumerate(at)] for s in (-1, 1))
        assert float(slopes[i]) == pytest.approx(float(value(*high) - value(*low)) / 2e-5, rel=2e-6)
    move = jnp.array([0.3, 0.2, 0.5])
    low, high = (value(at[0], at[1], at[2] + s * 1e-5 * move) for s in (-1, 1))
    assert float(slopes[2] @ move) == pytest.approx(float(high - low) / 2e-5, rel=2e-6)


def test_nodes_follow_the_start_of_laws_with_mass_there():
    """Slopes in a start-up and, of a shifted law, in its shift: all loads times it when all mass is there."""
    found = jax.grad(lambda n: _expected(_worker(bcgc.Gamma(0.02, 1.0, n[0]), n[1]), _work(3), 7).value)
    slopes = found(jnp.array([1.0, 0.5]))
    assert float(slopes[1]) == pytest.approx(1, rel=1e-14)
    step = jnp.array([1e-3, 0.0])
    shifts = [
        _expected(_worker(bcgc.Gamma(0.02, 1.0, n[0]), n[1]), _work(3), 7).value
        for n in (jnp.array([1.0, 0.5]) - step, jnp.array([1.0, 0.5]) + step)
    ]
    assert float(slopes[0]) == pytest.approx(float(shifts[1] - shifts[0]) / 2e-3, rel=1e-5)


def test_an_infinite_mean_is_one_of_the_fastest_of_d():
    """D workers must be slow together: Pareto of shape 0.6 has a mean with two, not with one."""
    law = bcgc.Pareto(1.0, 0.6)
    assert np.isinf(float(_expected(_worker(law), _work(1), 5).value))
    assert np.isfinite(float(_expected(_worker(law), _work(2), 5).value))
