"""Workers around a circle, one by one; schemes without a code that need no search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.plans import circle, draws
from bcgc_jax.plans.loads import load_of_plan
from bcgc_jax.plans.plan import cyclic_plan
from tests.oracles.circle import simulated
from tests.problems import not_none, padded

PAPER = bcgc.ShiftedExponential(1e-3, 50.0)

pytestmark = pytest.mark.usefixtures("x64")

_runtimes = jax.jit(circle.circle_runtime)
_sent = jax.jit(circle.sent_on_circle)


@pytest.mark.parametrize("stored", [1, 3, 5])
@pytest.mark.parametrize(("setup", "chain"), [(None, None), (3.0, 0.2)])
def test_it_is_what_workers_do_one_by_one(stored, setup, chain):
    rng = np.random.default_rng(stored)
    plan = cyclic_plan(4.0, stored)
    times = rng.exponential(size=(40, 5))
    starts = rng.exponential(size=(40, 5))
    problem = bcgc.Problem(PAPER, 5, 4, setup_cycles=setup, chain_cycles=chain)
    work = load_of_plan(problem, plan).work
    # Workers that do not count change nothing.
    extra = [np.pad(a, ((0, 0), (0, 3)), constant_values=0.1) for a in (times, starts)]
    runtimes = _runtimes(work, *extra, 5)
    sent = _sent(work, *extra, 5)
    reference = [
        simulated(plan, t, s, setup or 0, chain or 0)
        for t, s in zip(times, starts, strict=True)
    ]
    np.testing.assert_allclose(runtimes, [tau for tau, _ in reference], rtol=1e-12)
    np.testing.assert_allclose(sent, [share for _, share in reference], rtol=1e-12)


@pytest.mark.slow
def test_draws_of_rows_come_in_any_order():
    rows = jnp.asarray(np.random.default_rng(0).exponential(size=(3, 4)))
    problem = bcgc.Problem(bcgc.EmpiricalRows(rows), 4, 100)
    _, times = draws.draw_workers(jax.random.key(0), problem, 400)
    order = {tuple(np.argsort(row)) for row in np.asarray(times)}
    assert len(order) == 24
    drawn_rows, law_rows = (
        np.unique(np.sort(table, axis=1), axis=0) for table in (times, rows)
    )
    np.testing.assert_allclose(drawn_rows, law_rows)
    # So the mean is that over all orders, in the problem's own unit: M b / N is 1 / 2
    # here.
    solution = bcgc.solve(
        replace(problem, num_samples=2.0), "cyclic:2", key=jax.random.key(0)
    )
    orders = [
        order for row in np.asarray(rows) for order in itertools.permutations(row)
    ]
    exact = (
        np.mean([simulated(solution.plan, order, np.zeros(4))[0] for order in orders])
        / 2
    )
    assert abs(float(solution.expected_runtime) - exact) < 4 * float(
        solution.runtime_error
    )


@pytest.mark.slow
def test_what_schemes_need():
    problem = padded(PAPER, 5)
    tandon = bcgc.solve(problem, "tandon:2")
    cyclic = bcgc.solve(problem, "cyclic:3")
    assert [float(a) for a in not_none(tandon.needs)] == [3, 0.6, 0, 1, 0]
    assert [int(a) for a in not_none(cyclic.needs)][::2] == [3, 1, 0]
    mean, error, *_ = bcgc.simulate_runtime(
        jax.random.key(0), problem, not_none(cyclic.plan), 20_000, unit=None
    )
    assert float(mean) == pytest.approx(
        float(cyclic.expected_runtime), abs=4 * float(error)
    )
    assert bcgc.solve(problem, "limit").needs is None


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("cyclic:7", "a number of stored subsets from 1 to 5"),
        ("backup:5", "a number of spare workers from 0 to 4"),
        ("alternating:2:4", r'no method "alternating" any more: take "sharing:D"'),
        ("multi_message", r'no method "multi_message" any more: take "sharing:D"'),
    ],
)
def test_what_does_not_exist_is_refused(method, words):
    with pytest.raises(ValueError, match=words):
        bcgc.solve(bcgc.Problem(PAPER, 5, 100), method)


@pytest.mark.slow
def test_a_batch_over_workers_is_the_loop():
    def value(workers):
        return bcgc.solve(
            bcgc.Problem(PAPER, workers, 100, max_workers=6), "cyclic:3"
        ).expected_runtime

    batch = jax.jit(jax.vmap(value))(jnp.array([2, 3, 6]))
    assert np.isnan(float(batch[0]))
    for runtime, workers in zip(batch[1:], (3, 6), strict=True):
        assert float(runtime) == pytest.approx(float(value(workers)), rel=1e-12)
