"""Schedules by draws against a simulation worker by worker, and the schemes of `solve` made of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.plans import circle, schedules
from bcgc_jax.plans.runtime import draw_runtimes
from bcgc_jax.solvers.schedules import _starts, search_sizes
from tests.oracles.schedules import simulated
from tests.problems import known, padded, slow

PAPER = bcgc.ShiftedExponential(1e-3, 50.0)

pytestmark = pytest.mark.usefixtures("x64")

_cycles = jax.jit(schedules.cycles_of)
_runtimes, _sent = jax.jit(circle.schedule_runtime), jax.jit(schedules.sent_of)


@pytest.mark.parametrize("groups", [[(1, 1), (2, 2), (4, 3)], *slow([(2, 1), (1, 2), (4, 1)])])
@pytest.mark.parametrize(("setup", "chain"), [(0.0, 0.0), (3.0, 0.2)])
def test_it_is_what_workers_do_one_by_one(groups, setup, chain):
    rng = np.random.default_rng(len(groups))
    groups = [schedules.Group(*group) for group in groups]
    schedule = schedules.schedule_of(groups, rng.uniform(1, 5, sum(group.num_blocks for group in groups)))
    times, starts = rng.exponential(size=(40, 5)), rng.exponential(size=(40, 5))
    cycles = _cycles(schedule, setup, chain)
    # Workers that do not count change nothing.
    padded = [np.pad(a, ((0, 0), (0, 3)), constant_values=7.0) for a in (times, starts)]
    found, sent = _runtimes(cycles, *padded, 5), _sent(schedule, cycles, times, starts, 5)
    wanted = [simulated(schedule, t, s, setup, chain) for t, s in zip(times, starts, strict=True)]
    np.testing.assert_allclose(found, [tau for tau, _ in wanted], rtol=1e-12)
    np.testing.assert_allclose(sent, [share for _, share in wanted], rtol=1e-12)


def test_the_slope_in_the_sizes_is_that_of_differences():
    subset, block = (
        jnp.asarray(a) for a in schedules.tasks_of([schedules.Group(1, 1), schedules.Group(3, 2)])
    )
    times = jnp.asarray(np.random.default_rng(0).exponential(size=(500, 6)))

    @jax.jit
    @jax.value_and_grad
    def mean(sizes):
        schedule = schedules.circle_plan(sizes, subset, block, 3)
        return jnp.mean(circle.schedule_runtime(schedules.cycles_of(schedule, 2.0, 0.3), times))

    at, move = jnp.array([2.0, 3.0, 4.0]), jnp.array([0.3, -0.5, 0.2])
    difference = mean(at + 1e-6 * move)[0] - mean(at - 1e-6 * move)[0]
    assert float(mean(at)[1] @ move) == pytest.approx(float(difference) / 2e-6, rel=1e-6)


def test_draws_of_rows_come_in_any_order():
    rows = jnp.asarray(np.random.default_rng(0).exponential(size=(3, 4)))
    problem = bcgc.Problem(bcgc.EmpiricalRows(rows), 4, 100)
    _, times = schedules.draw_circle(jax.random.key(0), problem, 400)
    order = {tuple(np.argsort(row)) for row in np.asarray(times)}
    assert len(order) == 24
    found, given = (np.unique(np.sort(each, axis=1), axis=0) for each in (times, rows))
    np.testing.assert_allclose(found, given)
    # So a schedule's mean is that over all orders, in the problem's own unit: M b / N is 1 / 2 here.
    solution = bcgc.solve(replace(problem, num_samples=2.0), "alternating:2:2", key=jax.random.key(0))
    orders = [order for row in np.asarray(rows) for order in itertools.permutations(row)]
    exact = np.mean([simulated(solution.plan, order, np.zeros(4))[0] for order in orders]) / 2
    assert abs(float(solution.expected_runtime) - exact) < 4 * float(solution.runtime_error)


def test_backup_workers_are_an_order_statistic():
    problem = bcgc.Problem(PAPER, 9, 500, 9, setup_cycles=20.0, start_up=3e4)
    solution = bcgc.solve(problem, "backup:2")
    assert not bool(known(solution.needs).exact_gradient)
    time = float(bcgc.plans.expected_order_statistics(PAPER, 9)[2])
    assert float(solution.expected_runtime) == pytest.approx(3e4 + time * 520, rel=1e-9)


def test_searches_begin_with_blocks_on_as_many_subsets_as_the_block_before_or_more():
    for subsets, blocks, shares in zip(*_starts(6), strict=True):
        tasks = list(zip(blocks[blocks >= 0].tolist(), subsets[blocks >= 0].tolist(), strict=True))
        depth = np.bincount([block for block, _ in tasks])
        assert sorted(tasks) == [(b, j) for b, count in enumerate(depth) for j in range(count)]
        assert (sorted(depth), depth[-1], sum(shares > 0)) == (depth.tolist(), 6, depth.size)
        assert sum(shares) == pytest.approx(1)


@pytest.mark.slow
def test_the_search_is_never_above_its_starts():
    """By the same draws; cyclic and alternating schedules are among the starts."""
    problem = bcgc.Problem(bcgc.Weibull(4.1, 1.04, 0.98), 6, 600)
    found = bcgc.solve(problem, "multi_message", key=jax.random.key(2))
    value, error, schedule = float(found.expected_runtime), float(found.runtime_error), known(found.plan)
    assert (found.kind, float(jnp.sum(schedule.sizes))) == ("confidence", pytest.approx(600))
    # The answer is that of its schedule, by draws of its own.
    draws = draw_runtimes(jax.random.key(9), problem, schedule, 40_000)
    assert abs(float(jnp.mean(draws)) - value) < 4 * np.hypot(error, float(jnp.std(draws)) / 200)
    for blocks in (1, 10):
        start = schedules.schedule_of([schedules.Group(6, blocks)], np.full(blocks, 600 / blocks))
        less = draw_runtimes(jax.random.key(9), problem, start, 40_000) - draws
        assert float(jnp.mean(less)) > -3 * float(jnp.std(less)) / 200


def test_a_block_of_no_size_keeps_it_in_a_search():
    problem = bcgc.Problem(bcgc.Weibull(1.0, 0.8, 0.3), 6, 600)
    start = schedules.schedule_of([schedules.Group(1, 1), schedules.Group(3, 2)], [200, 0, 400])
    sizes = np.asarray(search_sizes(jax.random.key(2), problem, start, 3, 32))
    assert sizes[1] == 0
    assert sizes.min(where=sizes != 0, initial=600) > 100
    assert sizes.sum() == pytest.approx(600)


def test_what_schemes_need():
    problem = padded(PAPER, 5)
    other, cyclic = bcgc.solve(problem, "tandon:2"), bcgc.solve(problem, "cyclic:3")
    assert [float(a) for a in known(other.needs)] == [3, 0.6, 0, 1]
    assert [int(a) for a in known(cyclic.needs)][::2] == [3, 1]
    mean, error, *_ = bcgc.simulate_runtime(jax.random.key(0), problem, known(cyclic.plan), 20_000, unit=None)
    assert float(mean) == pytest.approx(float(cyclic.expected_runtime), abs=4 * float(error))
    assert bcgc.solve(problem, "limit").needs is None


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("cyclic:7", "a number of stored subsets from 1 to 5"),
        ("backup:5", "a number of spare workers from 0 to 4"),
        ("alternating:2:0", "takes a number of stored subsets"),
        ("multi_message:9", "from 1 to 5"),
        ("multi_message", "draws cycle times: pass key"),
    ],
)
def test_what_does_not_exist_is_refused(method, words):
    with pytest.raises(ValueError, match=words):
        bcgc.solve(bcgc.Problem(PAPER, 5, 100), method)


@pytest.mark.slow
def test_a_batch_over_workers_is_the_loop():
    def value(workers):
        return bcgc.solve(bcgc.Problem(PAPER, workers, 100, max_workers=6), "cyclic:3").expected_runtime

    batch = jax.vmap(value)(jnp.array([2, 3, 6]))
    assert np.isnan(float(batch[0]))
    for found, workers in zip(batch[1:], (3, 6), strict=True):
        assert float(found) == pytest.approx(float(value(workers)), rel=1e-12)
