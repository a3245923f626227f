"""Optima where the expected runtime is polyhedral, against linear programming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.optimum import _by_pieces
from bcgc_jax.solvers.polyhedral import cutting_plane
from tests.oracles.programme import best_of_two_speeds, best_shares, level_times
from tests.problems import not_none, padded


@pytest.mark.slow
def test_the_slope_of_an_optimum_where_pieces_meet_is_that_of_a_linear_programme(x64):
    """In a speed and its probability; and in a power of rows, with start-ups."""

    @jax.jit
    @jax.value_and_grad
    def two_speeds(numbers):
        problem = bcgc.Problem(bcgc.TwoSpeed(1.0, *numbers), 5, 1_000, 5.0)
        return bcgc.solve(problem).expected_runtime

    def exact(numbers):
        speed, probability = numbers.tolist()
        return 1_000 * best_of_two_speeds(1.0, speed, probability, 5)

    for point in (np.array([5.0, 0.3]), np.array([3.0, 0.3]), np.array([8.3, 0.12])):
        value, slopes = two_speeds(point)
        assert value == pytest.approx(exact(point), rel=1e-6)
        for move, slope in zip(1e-4 * np.eye(2), slopes, strict=True):
            below, middle, above = (exact(point + s * move) for s in (-1, 0, 1))
            # where pieces meet they differ
            low, high = np.sort([middle - below, above - middle]) / 1e-4
            # Worst measured 1.1e-4, of multipliers that leave a gap of 1e-6; at a fixed
            # plan 4e-2.
            assert low - 3e-4 * abs(low) <= slope <= high + 3e-4 * abs(high)

    times = np.random.default_rng(7).lognormal(0.0, 0.8, (40, 5))

    @jax.jit
    @jax.grad
    def rows(power):
        law = bcgc.EmpiricalRows(jnp.asarray(times) ** power)
        return bcgc.solve(
            bcgc.Problem(law, 5, 1_000, 5.0, start_up=300 * power)
        ).expected_runtime

    above, below = (
        1_000 * best_shares(level_times(times**p))[0] for p in (1 + 1e-5, 1 - 1e-5)
    )
    assert float(rows(1.0)) == pytest.approx(300 + (above - below) / 2e-5, rel=1e-4)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("fast", "slow", "times"), [(0.7, 3.2, 4), (1.0, 9.0, 1), (1.1, 1.6, 12)]
)
def test_the_optimum_of_two_speeds_is_that_of_a_linear_programme(
    x64, fast, slow, times
):
    """Of 25 measured times, so many of them slow: as many atoms as above."""
    law = bcgc.Empirical([fast] * (25 - times) + [slow] * times)
    for workers in (4, 11):
        solution = bcgc.solve(padded(law, workers, 6_000, 5))
        exact = 30_000 / workers * best_of_two_speeds(fast, slow, times / 25, workers)
        assert int(solution.status) == bcgc.Status.CONVERGED
        assert solution.lower_bound <= exact * (1 + 1e-10)
        assert exact * (1 - 1e-10) <= solution.expected_runtime <= exact * (1 + 1e-6)


@pytest.mark.slow
def test_workers_that_are_never_slow_need_no_redundancy(x64):
    solution = bcgc.solve(padded(bcgc.distributions.Deterministic(2.5), 6, 6_000, 5))
    exact = 5 / 6 * 6_000 * 2.5  # Theorem 2: all at level 0
    assert exact * (1 - 1e-12) <= solution.expected_runtime <= exact * (1 + 2e-6)
    assert solution.lower_bound <= exact
    assert not_none(solution.rounded)[0] == 6_000


@pytest.mark.slow
def test_single_precision_stays_inside_where_rounding_spoils_the_path():
    problem = bcgc.Problem(bcgc.TwoSpeed(0.7, 3.2, 0.15), 50, 20_000)
    solution = bcgc.solve(problem)
    assert float(not_none(solution.partition).min()) >= 0
    exact = 20_000 / 50 * best_of_two_speeds(0.7, 3.2, 0.15, 50)
    assert solution.lower_bound <= exact <= solution.expected_runtime * (1 + 1e-5)
    assert solution.expected_runtime < 1.001 * exact


def test_cuts_find_the_least_norm_of_forty_shares(x64):
    """The root of Σu²: 300 cuts to a gap of a millionth."""
    size = 40

    def norm(share):
        return jnp.sqrt(jnp.sum(share**2))

    @jax.jit
    def least(start):
        evaluate = jax.value_and_grad(norm)
        tolerance = jnp.asarray(1e-6)
        return cutting_plane(evaluate, start, jnp.ones(size, bool), tolerance)

    optimum = least(np.arange(1.0, size + 1) / np.sum(np.arange(1.0, size + 1)))
    assert int(optimum.status) == bcgc.Status.CONVERGED
    exact = size**-0.5
    assert float(optimum.bound) <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= float(optimum.value) <= exact * (1 + 1e-6)


@pytest.mark.slow
def test_pieces_of_an_optimum_have_slopes_in_the_partition_alike_at_all_levels(x64):
    """Times that are all unlike need thirty cuts at five levels."""
    times = np.random.default_rng(1).lognormal(0.0, 0.8, 25)
    problem = bcgc.Problem(bcgc.Empirical(times), 5, 1_000, 5.0)
    optimum = optimal_partition(problem, True)

    @jax.jit
    @jax.grad
    def slopes(partition):
        # The total is kept: only a move from one level to another counts.
        return _by_pieces(problem, (partition, optimum.aux))

    slope = np.asarray(slopes(optimum.point)) / float(optimum.value) * 1_000
    used = np.asarray(optimum.point) > 1e-3
    # Measured 5e-7, of a gap of 1e-6; 7e-6 with half as many cuts.
    assert np.ptp(slope[used]) < 2e-6
