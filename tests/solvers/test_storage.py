"""The optimum for each number of stored subsets, against `solve`, SciPy's linear program and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.storage import storage_curve
from tests.compilations import compilations
from tests.oracles.programme import best_shares, level_times
from tests.problems import padded

pytestmark = pytest.mark.usefixtures("x64")


def _paper(workers):
    return bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), workers, 20_000, 50.0, 1.0)


@pytest.mark.slow
def test_the_last_point_is_the_papers_and_the_first_has_no_redundancy():
    curve = storage_curve(_paper(20))
    solution = bcgc.solve(_paper(20))
    assert float(curve.expected_runtime[-1]) == pytest.approx(float(solution.expected_runtime), rel=1e-12)
    assert float(curve.expected_runtime[-1]) == pytest.approx(7.0494e7, rel=1e-4)
    slowest = 50 + 1000 * np.sum(1 / np.arange(1, 21))
    assert float(curve.expected_runtime[0]) == pytest.approx(50 / 20 * 20_000 * slowest, rel=1e-9)
    np.testing.assert_allclose(curve.partition.sum(axis=1), 20_000)
    assert np.all(np.triu(curve.partition, 1) == 0)
    assert np.all(np.asarray(curve.relative_gap) < 1e-7)
    assert np.all(np.asarray(curve.status) == bcgc.Status.CONVERGED)
    assert np.all(np.diff(curve.expected_runtime) < 0)
    awaited = curve.partition @ (1 - np.arange(20) / 20) / 20_000
    np.testing.assert_allclose(curve.awaited, awaited, rtol=1e-12)
    assert float(curve.awaited[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"setup_cycles": 200.0}, marks=pytest.mark.slow),
        pytest.param({"start_up": 3e6, "send_time": 100.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_each_point_is_that_of_solve(changes):
    problem = bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), 4, 20_000, 50.0, 1.0, **changes)
    curve = storage_curve(problem)
    for stored in range(1, 5):
        solution = bcgc.solve(problem, bcgc.Optimal(levels=range(stored)))
        assert float(curve.expected_runtime[stored - 1]) == pytest.approx(
            float(solution.expected_runtime), rel=1e-9
        )
        assert float(curve.lower_bound[stored - 1]) == pytest.approx(float(solution.lower_bound), rel=1e-6)


def _by_scipy(times, stored):
    """The least mean of max_n T_n y_n over the levels below `stored`."""
    most = [None if n < stored else 0 for n in range(times.shape[1])]
    return best_shares(level_times(times), most=most)[0]


def test_each_point_of_measured_rows_is_scipys():
    times = np.random.default_rng(1).gamma(1.0, 1.0, (30, 5)) + 0.1
    curve = storage_curve(bcgc.Problem(bcgc.Rows(jnp.asarray(times)), 5, 1000, 5.0))
    exact = 1000 * np.array([_by_scipy(times, stored) for stored in range(1, 6)])
    assert np.all(np.asarray(curve.lower_bound) <= exact * (1 + 1e-9))
    assert np.all(exact * (1 - 1e-9) <= np.asarray(curve.expected_runtime))
    np.testing.assert_allclose(curve.expected_runtime, exact, rtol=2e-6)


@pytest.mark.slow
def test_padding_repeats_the_last_point():
    curve = storage_curve(padded(bcgc.ShiftedExponential(1e-3, 50.0), 4))
    alone = storage_curve(bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), 4, 20_000))
    assert curve.stored_subsets.tolist() == [1, 2, 3, *[4] * 9]
    np.testing.assert_allclose(curve.expected_runtime[:4], alone.expected_runtime, rtol=2e-7)
    np.testing.assert_allclose(curve.expected_runtime[4:], alone.expected_runtime[-1], rtol=2e-7)
    np.testing.assert_allclose(curve.awaited[:4], alone.awaited, rtol=1e-3)


@pytest.mark.slow
def test_a_batch_is_its_members_and_other_numbers_compile_nothing():
    def curve(rate):
        return storage_curve(bcgc.Problem(bcgc.ShiftedExponential(rate, 1.0), 4, 20_000))

    rates = jnp.array([0.3, 1.0])
    many = jax.jit(jax.vmap(curve))(rates)
    one = curve(rates[0])
    with compilations() as found:
        other = curve(rates[1])
    assert not found
    np.testing.assert_allclose(many.expected_runtime[0], one.expected_runtime, rtol=2e-7)
    np.testing.assert_allclose(many.expected_runtime[1], other.expected_runtime, rtol=2e-7)


def test_what_has_no_exact_answer_is_refused():
    unlike = bcgc.Unlike([bcgc.Uniform(1.0, 2.0), bcgc.Uniform(2.0, 3.0)])
    with pytest.raises(ValueError, match="exact"):
        storage_curve(bcgc.Problem(unlike, 2, 10))
    with pytest.raises(ValueError, match="mean of Pareto is infinite"):
        storage_curve(bcgc.Problem(bcgc.Pareto(1.0, 0.9), 2, 10))
    with pytest.raises(TypeError, match="must be a Problem"):
        storage_curve(3)  # type: ignore[arg-type]
