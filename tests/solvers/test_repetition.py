"""The optimum by repetition in nested groups: against draws, a linear program, and the paper's scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.repetition import group_sizes, repeated_codes, repeated_messages
from bcgc_jax.solvers.short_messages import grouped_runtime
from tests.compilations import compilations
from tests.oracles.programme import best_shares

pytestmark = pytest.mark.usefixtures("x64")

PAPER = bcgc.ShiftedExponential(1e-3, 50.0)


def _problem(law, workers=4, **changes):
    return bcgc.Problem(law, workers, 1000, float(workers), 1.0, **changes)


def _slowest(times, size):
    """Q of draws: the largest over neighbours of so many of the least in each."""
    return times.reshape(len(times), -1, size).min(axis=2).max(axis=1)


@pytest.mark.parametrize(("limit", "sharded"), [(1.0, False), (0.6, False), (0.6, True)])
def test_the_optimum_is_that_of_a_linear_program_over_all_outcomes(limit, sharded):
    """Four workers of two speeds: 16 outcomes, each with its probability."""
    chance, fast, slow = 0.3, 1.0, 7.0
    law, sizes = bcgc.TwoSpeed(fast, slow, chance), (1, 2, 4)
    outcomes = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T
    mass = np.prod(np.where(outcomes, chance, 1 - chance), axis=1)
    times = np.where(outcomes, slow, fast)
    found = repeated_messages(_problem(law), sizes, limit, sharded=sharded)
    # Class size, parts.
    codes = np.array([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
    work = codes[:, 0] * (1 if sharded else codes[:, 1])
    factor = np.stack([_slowest(times, size) for size in codes[:, 0]], axis=1)
    finish = factor[:, :, None] * (np.tri(6) * work)
    exact, _ = best_shares(finish, mass, limited=(1 / codes[:, 1], limit))
    assert int(found.status) == bcgc.Status.CONVERGED
    assert float(found.lower_bound) <= 1000 * exact * (1 + 1e-9)
    assert 1000 * exact * (1 - 1e-9) <= float(found.expected_runtime) <= 1000 * exact * (1 + 1.1e-6)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"send_time": 900.0, "start_up": 5000.0}], ids=str
)
def test_the_value_is_that_of_draws_and_no_random_plan_is_below_the_bound(changes):
    rng = np.random.default_rng(4)
    times = 50 + 1000 * rng.exponential(size=(20_000, 4))
    problem, codes = _problem(PAPER, **changes), repeated_codes(4, (1, 2, 4))
    limits = np.array([1.0, 0.5])
    found = repeated_messages(problem, (1, 2, 4), limits)

    @jax.jit
    def values(x):
        return grouped_runtime(problem, codes, x, times, repeated=True)

    plans = rng.dirichlet(np.full(6, 0.3), 500)
    for i, limit in enumerate(limits):
        drawn = np.asarray(values(found.partition[i]))
        assert abs(drawn.mean() - float(found.expected_runtime[i])) < 4 * drawn.std() / np.sqrt(drawn.size)
        for x in 1000 * plans[plans @ (1 / codes.parts) <= limit][:100]:
            more = np.asarray(values(x)) - drawn
            assert more.mean() > -4 * more.std() / np.sqrt(more.size) - 1e-6 * drawn.mean()


@pytest.mark.slow
def test_the_published_setting():
    """15 % below the certified optimum that waits for any N - s; half of the storage is as good as that."""
    problem = bcgc.Problem(PAPER, 20, 20_000, 50.0, 1.0)
    paper = float(bcgc.solve(problem).lower_bound)
    values = {}
    for stored, sizes in ((10, (1, 5, 10)), (20, (1, 5, 10, 20))):
        plan = repeated_messages(problem, sizes)
        assert float(plan.relative_gap) < 1.1e-6
        values[stored] = float(plan.expected_runtime)
    assert values[20] < 0.85 * paper
    assert values[10] < 1.01 * paper


def test_fewer_bytes_cost_less_where_workers_compute_only_what_they_send():
    problem = bcgc.Problem(PAPER, 20, 20_000, 50.0, 1.0)
    limits = np.array([1.0, 0.6, 0.3])
    whole = repeated_messages(problem, (1, 5, 10, 20), limits)
    part = repeated_messages(problem, (1, 5, 10, 20), limits, sharded=True)
    assert float(part.expected_runtime[0]) == pytest.approx(float(whole.expected_runtime[0]), rel=2e-6)
    assert float(part.expected_runtime[1]) == pytest.approx(float(part.expected_runtime[0]), rel=2e-6)
    assert np.all(np.asarray(part.expected_runtime[1:]) < np.asarray(whole.lower_bound[1:]))


def test_sizes_are_all_the_rows_of_divisors():
    assert group_sizes(20) == [(1, 2, 4, 20), (1, 2, 10, 20), (1, 5, 10, 20)]
    assert group_sizes(1) == [(1,)]
    assert group_sizes(7) == [(1, 7)]
    codes = repeated_codes(20, (1, 2, 4))
    assert codes.stored.max() == 4
    assert np.all(codes.stored == (codes.tolerance + 1) * codes.parts)


def test_other_numbers_compile_nothing():
    repeated_messages(_problem(bcgc.ShiftedExponential(1.0, 0.5)), (1, 2), 0.9)
    with compilations() as found:
        repeated_messages(_problem(bcgc.ShiftedExponential(2.0, 0.1)), (1, 2), 0.7)
    assert not found


@pytest.mark.parametrize("sizes", [(), (2, 3), (1, 8), (2, 2), (4, 2)])
def test_sizes_that_are_not_nested_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must ascend"):
        repeated_messages(_problem(PAPER), sizes)


def test_workers_that_are_not_independent_are_refused():
    with pytest.raises(ValueError, match="not for Rows"):
        repeated_messages(_problem(bcgc.Rows(jnp.ones((3, 4)))), (1, 2))


def test_a_density_that_is_infinite_where_it_begins_spoils_no_slope():
    found = repeated_messages(_problem(bcgc.Weibull(0.9, 0.35, 1.4)), (1, 2, 4))
    assert int(found.status) == bcgc.Status.CONVERGED
    assert float(found.relative_gap) < 1.1e-6
