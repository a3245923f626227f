"""The optimum by repetition in nested groups: against draws, a linear program, and the paper's scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.repetition import group_sizes, nested_repetition
from tests.compilations import compilations
from tests.oracles.programme import best_shares

pytestmark = pytest.mark.usefixtures("x64")

PAPER = bcgc.ShiftedExponential(1e-3, 50.0)
SIZES = (1, 2, 4)


def _problem(law, workers=4, **changes):
    return bcgc.Problem(law, workers, 1000, float(workers), 1.0, **changes)


def _slowest(times):
    """Q of draws, `[S, K]`: the largest over neighbours of so many of the least in each."""
    least = [times.reshape(len(times), -1, size).min(axis=2) for size in SIZES]
    return np.stack([times.max(axis=1) for times in least], axis=1)


def test_the_optimum_is_that_of_a_linear_program_over_all_outcomes():
    """Four workers of two speeds: 16 outcomes, each with its probability."""
    chance, fast, slow = 0.3, 1.0, 7.0
    outcomes = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T
    mass = np.prod(np.where(outcomes, chance, 1 - chance), axis=1)
    factor = _slowest(np.where(outcomes, slow, fast))
    exact, _ = best_shares(factor[:, :, None] * (np.tri(3) * SIZES), mass)
    found = nested_repetition(_problem(bcgc.TwoSpeed(fast, slow, chance)), SIZES)
    assert int(found.status) == bcgc.Status.CONVERGED
    assert float(found.lower_bound) <= 1000 * exact * (1 + 1e-9)
    assert 1000 * exact * (1 - 1e-9) <= float(found.expected_runtime) <= 1000 * exact * (1 + 1.1e-6)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"send_time": 900.0, "start_up": 5000.0}], ids=str
)
def test_the_value_is_that_of_draws_and_no_random_plan_is_below_the_bound(changes):
    rng = np.random.default_rng(4)
    factor = _slowest(50 + 1000 * rng.exponential(size=(20_000, 4)))

    def values(x):
        last = np.max(factor * np.cumsum(SIZES * x) + changes.get("send_time", 0) * np.cumsum(x), axis=1)
        return changes.get("start_up", 0) + last

    found = nested_repetition(_problem(PAPER, **changes), SIZES)
    drawn = values(np.asarray(found.partition))
    assert abs(drawn.mean() - float(found.expected_runtime)) < 4 * drawn.std() / np.sqrt(drawn.size)
    for x in 1000 * rng.dirichlet(np.full(3, 0.5), 200):
        more = values(x) - drawn
        assert more.mean() > -4 * more.std() / np.sqrt(more.size) - 1e-6 * drawn.mean()


@pytest.mark.slow
def test_the_published_setting():
    """15 % below the certified optimum that waits for any N - s; half of the storage is as good as that."""
    problem = bcgc.Problem(PAPER, 20, 20_000, 50.0, 1.0)
    paper = float(bcgc.solve(problem).lower_bound)
    values = {}
    for stored, sizes in ((10, (1, 5, 10)), (20, (1, 5, 10, 20))):
        plan = nested_repetition(problem, sizes)
        assert float(plan.relative_gap) < 1.1e-6
        values[stored] = float(plan.expected_runtime)
    assert values[20] < 0.85 * paper
    assert values[10] < 1.01 * paper


def test_sizes_are_all_the_rows_of_divisors():
    assert group_sizes(20) == [(1, 2, 4, 20), (1, 2, 10, 20), (1, 5, 10, 20)]
    assert group_sizes(1) == [(1,)]
    assert group_sizes(7) == [(1, 7)]


def test_other_numbers_compile_nothing():
    nested_repetition(_problem(bcgc.ShiftedExponential(1.0, 0.5)), SIZES)
    with compilations() as found:
        nested_repetition(_problem(bcgc.ShiftedExponential(2.0, 0.1)), SIZES, tolerance=1e-5)
    assert not found


@pytest.mark.slow
def test_single_precision_is_certified_to_what_it_resolves():
    with jax.enable_x64(False):
        single = nested_repetition(_problem(PAPER), SIZES, tolerance=1e-3)
        assert single.expected_runtime.dtype == np.float32
        assert int(single.status) == bcgc.Status.CONVERGED
    double = nested_repetition(_problem(PAPER), SIZES)
    assert float(single.expected_runtime) == pytest.approx(float(double.expected_runtime), rel=2e-3)


@pytest.mark.parametrize("sizes", [(), (2, 3), (1, 8), (2, 2), (4, 2)])
def test_sizes_that_are_not_nested_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must ascend"):
        nested_repetition(_problem(PAPER), sizes)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (_problem(PAPER, setup_cycles=1.0), "without setup_cycles"),
        (_problem(PAPER, start_up=bcgc.Exponential(1.0)), "constant start_up"),
        (_problem(bcgc.Unlike([PAPER] * 4)), "not for Rows or Unlike"),
        (_problem(bcgc.Rows(jnp.ones((3, 4)))), "not for Rows or Unlike"),
        (_problem(bcgc.Pareto(1.0, 0.9)), "infinite"),
    ],
)
def test_what_cannot_be_planned_is_refused(problem, message):
    with pytest.raises(ValueError, match=message):
        nested_repetition(problem, SIZES)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="tolerance must be"):
        nested_repetition(_problem(PAPER), SIZES, tolerance=0.0)
    with pytest.raises(ValueError, match="known before tracing"):
        jax.jit(lambda n: nested_repetition(bcgc.Problem(PAPER, n, 10, max_workers=4), SIZES))(3)


def test_a_density_that_is_infinite_where_it_begins_spoils_no_slope():
    found = nested_repetition(_problem(bcgc.Weibull(0.9, 0.35, 1.4)), SIZES)
    assert int(found.status) == bcgc.Status.CONVERGED
    assert float(found.relative_gap) < 1.1e-6
