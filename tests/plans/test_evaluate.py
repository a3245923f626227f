"""The exact expected runtime against a recursion with positive terms only."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax.plans.evaluate import NUM_NODES, with_rounding
from tests.oracles import runtimes as oracles
from tests.oracles.laws import CASES, EMPIRICAL, PARETO, Case
from tests.problems import slow

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 50
# Smooth, of a heavy tail, with a kink; with atoms.
CONTINUOUS = ("weibull_07", "pareto_12", "uniform")
ATOMIC = ("two_speed", "empirical")
NAMES = CONTINUOUS + ATOMIC
# κ = M b / N is not 1, and no two of its parts are equal.
SAMPLES, CYCLES = 3.0, 0.7

# Relative error of value and slope in float64; the slope's is relative to the largest
# slope. Laws with a kink or with atoms are summed piece by piece.
# Worst measured 1.3e-9, 4e-15, 6e-14.
VALUE_ERROR = {"line": 1e-8, "panels": 1e-11, "atoms": 1e-12}
# Worst measured 1.2e-8, 6e-12, 7e-12.
SLOPE_ERROR = {"line": 1e-7, "panels": 1e-10, "atoms": 1e-10}


def _rule(name: str) -> str:
    return "atoms" if name in ATOMIC else "panels" if name == "uniform" else "line"


@functools.partial(jax.jit, static_argnames="num_nodes")
def _value(
    law: Any, x: Array, workers: Any, *, num_nodes: int = NUM_NODES
) -> bcgc.plans.Expectation:
    problem = bcgc.Problem(law, workers, 1000, SAMPLES, CYCLES, max_workers=x.size)
    return bcgc.plans.integrate_runtime(problem, x, num_nodes=num_nodes)


@jax.jit
def _everything(law: Any, x: Array, workers: Any) -> Any:
    """((value, error), (slope in the law's parameters, slope in x)), compiled once."""
    return jax.value_and_grad(
        lambda law, x: tuple(_value(law, x, workers)), (0, 1), has_aux=True
    )(law, x)


def _padded(x: Any, size: int = SIZE) -> Array:
    return jnp.asarray(np.pad(np.asarray(x, float), (0, size - len(x))))


def _scale(workers: int) -> float:
    return SAMPLES * CYCLES / workers


def _exact(case: Case, rows: Any) -> np.ndarray:
    """Expected runtimes of partitions `rows`, by the recursion."""
    loads = np.array([oracles.load_of(row) for row in rows])
    return _scale(loads.shape[1]) * oracles.expected_maxima(case, loads)


def _partitions(
    rng: np.random.Generator, workers: int, count: int, total: float = 100.0
) -> np.ndarray:
    """Even ones, uneven ones, and ones with empty levels."""
    rows = np.concatenate(
        [rng.dirichlet(np.full(workers, c), count) for c in (0.2, 1.0, 5.0)]
    )
    rows[rows < 0.02 / workers] = 0
    return total * rows / rows.sum(1, keepdims=True)


def _central(
    f: Callable[[np.ndarray], np.ndarray], point: np.ndarray, h: np.ndarray
) -> np.ndarray:
    """Fourth-order central differences; `f` maps rows to values."""
    steps = np.array([-2.0, -1, 1, 2])[:, None, None] * np.diag(h)
    values = f((point + steps).reshape(-1, point.size)).reshape(4, point.size)
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


@pytest.mark.parametrize(
    "name", [*slow("uniform", "two_speed", "weibull_07", "pareto_12"), "empirical"]
)
def test_twenty_and_fifty_workers_are_the_recursion(name):
    """The slopes too: of a homogeneous function they add up to it."""
    case = CASES[name]
    rng = np.random.default_rng(2)
    for workers, kept in ((20, 2), (50, 1)):
        partitions = _partitions(rng, workers, 1)[-kept - 1 : -1]
        for partition, exact in zip(partitions, _exact(case, partitions), strict=True):
            (value, _), (_, slope) = _everything(
                case.law(), _padded(partition), workers
            )
            np.testing.assert_allclose(value, exact, rtol=VALUE_ERROR[_rule(name)])
            np.testing.assert_allclose(
                slope[:workers] @ partition, exact, rtol=SLOPE_ERROR[_rule(name)]
            )


@pytest.mark.parametrize(
    "name", [*slow("weibull_07", "two_speed"), "pareto_12", "uniform", "empirical"]
)
def test_the_reported_error_bounds_the_true_error_closely(name):
    case = CASES[name]
    rng = np.random.default_rng(3)
    law = case.law()
    for workers in (1, 2, 5, 12):
        partitions = _partitions(rng, workers, 3)
        for partition, exact in zip(partitions, _exact(case, partitions), strict=True):
            (value, error), _ = _everything(law, _padded(partition), workers)
            # The oracle's own error is below 1e-14. Worst measured share of the bound:
            # 0.75.
            assert abs(value - exact) <= error + 1e-14 * exact
            assert error < 1e-5 * value  # worst measured 4e-7


def test_a_tail_like_that_of_a_power_of_105_hundredths_is_seen_to_its_end():
    """A millionth of the mean is of times beyond e^276, 1e-14 beyond e^640."""
    exact = _scale(4) * 100 * np.prod(1 / (1 - 1 / (1.05 * np.arange(1, 5))))
    (value, _), _ = _everything(bcgc.Pareto(1.0, 1.05), _padded([100.0, 0, 0, 0]), 4)
    assert abs(value / exact - 1) < VALUE_ERROR["line"]


def test_the_reported_error_bounds_what_a_tail_has_beyond_the_last_node():
    """E T_(N) = Π_j 1 / (1 - 1 / (j shape)) is mostly of times beyond e^640."""
    for shape in (1.003, 1.006):
        exact = _scale(4) * 100 * np.prod(1 / (1 - 1 / (shape * np.arange(1, 5))))
        (value, error), _ = _everything(
            bcgc.Pareto(1.0, shape), _padded([100.0, 0, 0, 0]), 4
        )
        assert 1e-3 * exact < abs(value - exact) <= error < exact


def test_what_windows_leave_out_of_more_than_400_workers_is_a_part_of_the_error():
    """Of eight distributions 2.3e-10 at most; systems of 300 workers round to 5e-13."""
    exact = bcgc.plans.Expectation(jnp.asarray(1.0), jnp.asarray(0.0))
    systems, windows = (
        float(with_rounding(jnp.ones(workers), exact).error) for workers in (300, 500)
    )
    assert systems < 1e-12
    assert 3 * 2.3e-10 < windows < 6 * 2.3e-10


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_in_the_interior_is_that_of_central_differences(name):
    case = CASES[name]
    workers = 8
    rng = np.random.default_rng(6)
    partition = 100 * rng.dirichlet(np.full(workers, 1.0))
    _, (_, slope) = _everything(case.law(), _padded(partition), workers)
    exact = _central(lambda rows: _exact(case, rows), partition, 1e-3 * partition)
    np.testing.assert_allclose(
        slope[:workers], exact, atol=SLOPE_ERROR[_rule(name)] * exact.max(), rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS)
def test_second_slopes_are_second_differences_of_the_recursion(name):
    case = CASES[name]
    rng = np.random.default_rng(8)
    hessian = jax.jit(
        jax.hessian(lambda law, x, workers: _value(law, x, workers).value, 1)
    )
    for workers in (5, 20):
        partition = 100 * rng.dirichlet(np.full(workers, 3.0))
        second_slopes = hessian(case.law(), _padded(partition, 20), workers)
        second_slopes = second_slopes[:workers, :workers]
        moves = partition * rng.uniform(-1, 1, (6, workers))
        rows = partition + 2e-3 * np.array([-2.0, -1, 0, 1, 2])[:, None, None] * moves
        values = _exact(case, rows.reshape(-1, workers)).reshape(5, -1)
        exact = np.array([-1.0, 16, -30, 16, -1]) @ values / (12 * 2e-3**2)
        np.testing.assert_allclose(
            np.einsum("mi,ij,mj->m", moves, second_slopes, moves), exact, rtol=1e-5
        )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_slope_at_an_empty_level_is_that_of_one_sided_differences(name):
    case = CASES[name]
    workers = 8
    partition = np.array([20.0, 0, 0, 35, 0, 0, 45, 0])
    _, (_, slope) = _everything(case.law(), _padded(partition), workers)
    h = 2e-3
    for level in (1, 2, 4, 5, 7):
        rows = partition + h * np.arange(5)[:, None] * np.eye(workers)[level]
        exact = np.array([-25.0, 48, -36, 16, -3]) @ _exact(case, rows) / (12 * h)
        atol = SLOPE_ERROR[_rule(name)] * float(slope.max())
        np.testing.assert_allclose(slope[level], exact, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ATOMIC)
def test_the_slope_of_a_law_with_atoms_is_a_subgradient_where_levels_and_values_tie(
    name,
):
    case = CASES[name]
    workers = 6
    rng = np.random.default_rng(7)
    candidates = np.concatenate([_partitions(rng, workers, 60), 100 * np.eye(workers)])
    candidate_values = _exact(case, candidates)
    ties = [*(100 * np.eye(workers)), np.array([30.0, 0, 0, 50, 0, 20])]
    for partition in ties:
        (value, _), (_, slope) = _everything(case.law(), _padded(partition), workers)
        slope = np.asarray(slope)[:workers]
        assert np.all(
            candidate_values >= value + (candidates - partition) @ slope - 1e-12 * value
        )
        # Work never pays: a negative slope would be a legal subgradient, and a
        # worthless certificate.
        assert slope.min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_in_the_laws_parameters_is_that_of_central_differences(name):
    case = CASES[name]
    rng = np.random.default_rng(9)
    partition = 100 * rng.dirichlet(np.full(6, 1.0))
    point = np.array(case.parameters)
    if name == "empirical":
        # Ties apart: there is no slope at a tie.
        point = np.array([1.25, 2.0, 3.5, 5.0, 9.0])
    moved = point > 0  # a shift of 0 has no room below

    def at_parameters(rows: np.ndarray) -> np.ndarray:
        full = np.tile(point, (len(rows), 1))
        full[:, moved] = rows
        return np.array(
            [_exact(case.family.case(*row), [partition])[0] for row in full]
        )

    exact = _central(at_parameters, point[moved], 1e-3 * point[moved])
    _, (law_slope, _) = _everything(
        case.family.case(*point).law(), _padded(partition), 6
    )
    slope = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(law_slope)])[
        moved
    ]
    np.testing.assert_allclose(slope, exact, rtol=SLOPE_ERROR[_rule(name)])


def test_tied_times_share_one_slope():
    case = CASES["empirical"]
    partition = [3.0, 0.0, 2.0, 6.0]

    def runtimes(shift: np.ndarray) -> np.ndarray:
        laws = [EMPIRICAL.case(2.0 + s[0], 1.25, 3.5, 2.0 + s[0], 9.0) for s in shift]
        return np.array([_exact(law, [partition])[0] for law in laws])

    _, (law_slope, _) = _everything(case.law(), _padded(partition), 4)
    exact = _central(runtimes, np.zeros(1), np.array([1e-3]))
    np.testing.assert_allclose(
        law_slope.times[1] + law_slope.times[2], exact[0], rtol=1e-9
    )
    # All of it stands at one of the two; the other's is 0 to rounding (measured -8e-16,
    # of slopes up to 10).
    assert np.min(law_slope.times) >= -1e-14


def test_the_expectation_is_infinite_where_the_slowest_order_statistic_in_use_is():
    case = PARETO.case(2.0, 0.9)
    law = case.law()
    assert np.isinf(_everything(law, _padded([1.0, 2.0, 3.0]), 3)[0][0])
    # Level 0 is empty: E T_(2) of three is finite, for 2 · 0.9 > 1.
    for partition in ([0.0, 2.0, 3.0], [0.0, 5.0, 0.0, 1.0, 0.0, 7.0]):
        (value, _), (_, slope) = _everything(law, _padded(partition), len(partition))
        # Worst measured 1e-15.
        np.testing.assert_allclose(value, _exact(case, [partition])[0], rtol=1e-10)
        assert np.all(np.isfinite(slope[: len(partition)]))
    # Shape 0.4: only from level 2 on, for 3 · 0.4 > 1.
    law = bcgc.Pareto(scale=2.0, shape=0.4)
    values = [_everything(law, _padded([0.0, x, 3.0]), 3)[0][0] for x in (2.0, 0.0)]
    expected = [np.inf, _scale(3) * 9 * 2.0 * 6]  # E T_(1) = 2 / (1 - 1/1.2)
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_a_slow_worker_that_never_comes_makes_the_expectation_infinite():
    law = bcgc.TwoSpeed(fast=1.5, slow=np.inf, probability=0.2)
    # In the second one with all of three slow, probability 0.008, nothing ever arrives.
    for partition in ([3.0, 2.0, 1.0], [0.0, 0.0, 1.0]):
        assert np.isinf(_everything(law, _padded(partition), 3)[0][0])
