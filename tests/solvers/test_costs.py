"""Setup, unequal and whole units, by brute force over level sets and partitions."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.plans.loads import load_of, partition_of_units
from bcgc_jax.plans.partitions import cost_of_units, round_to_units
from bcgc_jax.plans.runtime import certificate, expected_runtime
from bcgc_jax.solvers import newton, optimal
from bcgc_jax.solvers.closed_form import expected_times
from bcgc_jax.solvers.discrete import best_levels, improve_units
from bcgc_jax.solvers.optimal import _loads, optimal_partition
from bcgc_jax.solvers.optimum import _certificate_of
from bcgc_jax.solvers.search import Optimum
from tests.problems import not_none, padded

EXPONENTIAL = bcgc.ShiftedExponential(0.4, 0.9)
UNIFORM = bcgc.Uniform(0.4, 2.6)
PLAIN = padded(EXPONENTIAL, 6, 3_000, 7, 1.3)


def _runtime_by_events(counts, costs, setup, times, samples, cycles):
    """Workers compute unit after unit; one at level n is there when N - n ended it."""
    workers = len(times)
    spent = 0.0
    done = 0
    ready = 0.0
    seen = 0
    for level, count in enumerate(counts):
        if count == 0:
            continue
        spent += (level + 1 - seen) * setup  # the subsets that this level adds
        seen = level + 1
        for _ in range(count):
            spent += (level + 1) * cycles * costs[done]
            done += 1
            ready = max(ready, np.sort(times * spent)[workers - level - 1])
    return samples / workers * ready


def test_runtime_with_setup_and_unequal_units_is_that_of_the_events(x64):
    rng = np.random.default_rng(1)
    scale = dict[str, Any](num_samples=6.0, cycles=0.8)
    costs = rng.uniform(0.2, 3.0, 7)
    of_blocks = jax.jit(
        functools.partial(bcgc.block_runtime, setup_cycles=1.7, **scale)
    )
    of_units = jax.jit(
        functools.partial(bcgc.coordinate_runtime, unit_costs=costs, **scale)
    )
    for counts in ([3, 0, 2, 2], [0, 7, 0, 0], [1, 2, 3, 1], [0, 0, 3, 4]):
        partition = cost_of_units(jnp.array(counts), jnp.asarray(costs))
        for _ in range(20):
            times = rng.gamma(1.3, 2.0, 4)
            exact = _runtime_by_events(counts, costs, 1.7, times, 6.0, 0.8)
            np.testing.assert_allclose(of_blocks(partition, times), exact, rtol=1e-12)
            plain = of_units(np.repeat(np.arange(4), counts), times)
            exact = _runtime_by_events(counts, costs, 0.0, times, 6.0, 0.8)
            np.testing.assert_allclose(plain, exact, rtol=1e-12)


@pytest.mark.slow
def test_exact_expectation_and_probability_with_setup_are_those_of_draws(x64):
    problem = bcgc.Problem(EXPONENTIAL, 5, 12, 6.0, 0.8, setup_cycles=2.1)
    partition = jnp.array([4.0, 0.0, 5.0, 3.0, 0.0])
    draws = 0.9 + np.random.default_rng(2).exponential(2.5, (400_000, 5))
    times = np.asarray(
        bcgc.block_runtime(
            partition, draws, num_samples=6.0, cycles=0.8, setup_cycles=2.1
        )
    )
    error = times.std() / np.sqrt(times.size)
    assert (
        abs(certificate(problem, partition).expected_runtime - times.mean()) < 4 * error
    )
    estimate = bcgc.simulate_runtime(
        jax.random.key(3), problem, partition, 400_000, unit=None
    )
    assert abs(estimate.mean - times.mean()) < 6 * error
    deadline = np.quantile(times, 0.4)
    met = bcgc.completion_probability(problem, partition, deadline)
    assert abs(met - 0.4) < 4 * np.sqrt(0.24 / times.size)


def test_the_bound_for_the_only_level_in_use_is_its_runtime(x64):
    problem = bcgc.Problem(EXPONENTIAL, 5, 12, 6.0, 0.8, setup_cycles=2.1)
    bound = certificate(problem, jnp.array([0.0, 12.0, 0.0, 0.0, 0.0]))
    assert abs(bound.relative_gap) < 1e-12  # measured 2e-14
    shares = np.random.default_rng(7).dirichlet([1.0, 1.0], 12) * 12.0
    of_two = [
        certificate(problem, jnp.array([first, 0.0, 0.0, second, 0.0]))
        for first, second in shares
    ]
    runtimes, bounds = np.array([bound[::2] for bound in of_two]).T
    assert 0.5 * runtimes.min() < bounds.max() <= runtimes.min()


def test_a_search_counts_setup_chain_and_start_up_as_partitions_do(x64, monkeypatch):
    problem = bcgc.Problem(
        EXPONENTIAL, 5, 12, 6.0, 0.8, setup_cycles=2.1, chain_cycles=0.3
    )
    share = np.random.default_rng(8).dirichlet(np.ones(5))
    work = load_of(problem, jnp.asarray(12 * share)).work
    np.testing.assert_allclose(
        12 * _loads(problem, jnp.ones(5, bool)) @ share, work, rtol=1e-12
    )
    plain = Optimum(*np.arange(6.0))  # without the start-up
    monkeypatch.setattr(
        optimal,
        "optimal_partition",
        lambda *_, **asked: plain._replace(status=asked["least"]),
    )
    search = optimal_partition.__wrapped__  # type: ignore[attr-defined]
    late = search(replace(problem, start_up=700.0), True, least=709.0)
    assert (late.value, late.bound, late.status) == (
        plain.value + 700,
        plain.bound + 700,
        9,
    )


@pytest.mark.parametrize(
    ("steps", "status"), [(7, bcgc.Status.STEP_LIMIT), (6, bcgc.Status.PRECISION)]
)
def test_a_search_that_ended_before_its_limit_found_no_better_point(
    x64, monkeypatch, steps, status
):
    ended = (
        jnp.asarray(False),
        jnp.asarray(steps),
        jnp.ones(12) / 12,
        jnp.array([2.0, 0.5, 1.0]),
    )
    monkeypatch.setattr(newton, "loop", lambda *_, **__: ended)
    fresh = functools.partial(optimal_partition.__wrapped__, max_steps=7)  # type: ignore[attr-defined]
    result = jax.jit(fresh)(PLAIN, True)
    assert int(result.status) == status
    assert float(_certificate_of(result)[2]) == pytest.approx(
        float(result.bound - result.error)
    )


@pytest.mark.slow
def test_the_levels_in_use_are_the_best_of_all_sets_and_the_bound_holds(
    x64,
):
    workers, rng = 6, np.random.default_rng(4)
    masks = np.array(list(itertools.product([False, True], repeat=workers))[1:])
    solve_each = jax.jit(
        lambda p: jax.lax.map(lambda m: optimal_partition(p, m), masks, batch_size=16)
    )
    runtimes = jax.jit(jax.vmap(bcgc.expected_runtime, (None, 0)))
    sizes = set()
    # At a shift of 7.3 no start is the best set: the search has to go there.
    for setup, shift in (
        (3.0, 0.9),
        (80.0, 0.9),
        (200.0, 0.9),
        (500.0, 0.9),
        (2.0, 7.3),
    ):
        law = bcgc.ShiftedExponential(0.4, shift)
        problem = bcgc.Problem(law, workers, 700, 10.0, 1.6, setup_cycles=setup)
        levels = best_levels(
            problem, jnp.ones(workers, bool), expected_times(problem)
        ).point
        optima = solve_each(problem)
        optimum = jax.tree.map(
            lambda a, of=levels: a[np.all(masks == of, axis=1)][0], optima
        )
        assert optimum.value <= optima.value.min() * (1 + 1e-7)
        assert optimum.bound > optimum.value * (1 - 1e-6)
        points = rng.dirichlet(np.full(workers, 0.7), 500) * levels
        points *= 700 / points.sum(axis=1, keepdims=True)
        assert runtimes(problem, points).min() >= optimum.bound - optimum.error
        sizes.add(int(levels.sum()))
    assert len(sizes) > 1  # the setup decides how many levels are worth it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("units", "costs"),
    [
        (5, None),
        (1, None),
        (6, np.random.default_rng(5).uniform(0.2, 3.0, 6)),
        (6, [*5 * [0.01], 50.0]),
    ],
    ids=["equal", "one", "costs", "one unit of nearly all the cost"],
)
def test_few_units_are_placed_as_well_as_brute_force_places_them(x64, units, costs):
    problem = bcgc.Problem(EXPONENTIAL, 4, units, 10.0, 1.6, unit_costs=costs)
    placements = [
        c for c in itertools.product(range(units + 1), repeat=4) if sum(c) == units
    ]
    runtime = jax.vmap(
        lambda counts: expected_runtime(problem, partition_of_units(problem, counts))
    )
    values = runtime(jnp.asarray(placements))
    value = values[
        placements.index(tuple(not_none(bcgc.solve(problem).rounded).tolist()))
    ]
    np.testing.assert_allclose(value, values.min(), rtol=1e-12)


def test_two_units_move_together_where_one_alone_would_cost_more(x64):
    """Of workers of two speeds: by how many of them are slow."""
    chance = 0.3
    fast = 1.0
    slow = 5.0
    setup = 0.7
    problem = bcgc.Problem(
        bcgc.TwoSpeed(fast, slow, chance), 4, 3, 10.0, 1.6, setup_cycles=setup
    )
    mass = stats.binom.pmf(np.arange(5), 4, chance)

    def mean(counts):
        counts = np.array(counts)
        subsets, used = np.arange(1, 5), counts > 0
        load = np.cumsum(subsets * 1.6 * counts) + setup * np.maximum.accumulate(
            subsets * used
        )
        return mass @ (
            used * load * np.where(np.arange(4) < np.arange(5)[:, None], slow, fast)
        ).max(axis=1)

    best = min(
        (c for c in itertools.product(range(4), repeat=4) if sum(c) == 3), key=mean
    )
    placement = improve_units(problem, jnp.array([1.0, 0.0, 0.0, 2.0]), problem.exists)
    assert tuple(np.asarray(placement)) == best == (1, 0, 2, 0)


def test_rounding_to_units_cuts_at_the_nearest_end(x64):
    rng = np.random.default_rng(6)
    for _ in range(50):
        costs = rng.uniform(0.1, 2.0, 12)
        partition = rng.dirichlet(np.full(5, 0.6))
        partition *= costs.sum()
        counts = np.asarray(round_to_units(jnp.asarray(partition), jnp.asarray(costs)))
        assert counts.sum() == 12
        ends = np.r_[0, costs.cumsum()]
        cuts = ends[counts.cumsum()[:-1]]
        nearest = np.abs(ends[:, None] - partition.cumsum()[:-1]).min(axis=0)
        np.testing.assert_allclose(
            np.abs(cuts - partition.cumsum()[:-1]), nearest, atol=1e-12
        )


@pytest.mark.parametrize(
    ("extra", "method", "message"),
    [
        ({"setup_cycles": 1.0}, "subgradient", "setup_cycles"),
        ({"setup_cycles": 1.0}, "tandon_partial", "setup_cycles"),
        ({"unit_costs": np.ones(30)}, "ferdinand_full", "unit_costs"),
        *(
            ({"setup_cycles": cycles}, "time", "setup_cycles")
            for cycles in (-1.0, np.nan)
        ),
        ({"unit_costs": np.ones(29)}, "time", "one entry for each of the 30"),
        *(
            ({"unit_costs": costs}, "time", "unit_costs")
            for costs in (np.zeros(30), 2.0)
        ),
    ],
)
def test_costs_that_make_no_sense_or_that_a_method_does_not_know_are_refused(
    extra, method, message
):
    with pytest.raises(ValueError, match=message):
        bcgc.solve(bcgc.Problem(UNIFORM, 4, 30, **extra), method, key=jax.random.key(0))


LAW, WORKERS = bcgc.ShiftedExponential(1e-3, 50.0), 3
