"""The optimum of many workers against dense Newton steps and another quadrature."""

import math

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers import large_n
from bcgc_jax.solvers.large_n import optimum_of_many
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.smooth_model import laplacian_of_levels
from bcgc_jax.traces import smooth_empirical
from tests.problems import padded

pytestmark = pytest.mark.usefixtures("x64")

LAW = bcgc.ShiftedExponential(1e-3, 50.0)


def test_levels_fail_after_each_other_as_a_straight_boundary_is_crossed():
    """Failures j levels apart have Borel's probability, e^-r r^(j-1) / j!."""
    size, rate = 7, 0.9
    below = rate * np.arange(size, 0, -1) / size
    rows = [
        np.stack([row])
        for row in (-np.log1p(-below), np.ones(size), np.ones(size), np.zeros(size))
    ]
    laplacian_of = jax.jit(laplacian_of_levels, static_argnums=1)
    laplacian = laplacian_of(np.arange(size), size, *rows)
    lag = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    borel = [
        0.0,
        *(
            math.exp(-rate * j) * (rate * j) ** (j - 1) / math.factorial(j)
            for j in range(1, size)
        ),
    ]
    np.testing.assert_allclose(
        laplacian,
        np.diag(np.array(borel)[lag].sum(axis=1)) - np.array(borel)[lag],
        rtol=1e-12,
    )


@pytest.mark.slow
def test_the_published_optimum_of_fewer_workers_is_found():
    """Fifty are few for its splines, which certify 98 %: this compiles the least."""
    problem = bcgc.Problem(LAW, 50, 20_000, 50.0)
    solution, short = (
        optimum_of_many(problem, tolerance=1e-5, max_steps=max_steps)
        for max_steps in (100, 2)
    )
    np.testing.assert_allclose(solution.value, 3.997e7, rtol=2e-4)
    assert 0.97 * solution.value < solution.bound < 3.9971e7  # measured 3.917e7
    assert solution.status == bcgc.Status.PRECISION
    assert solution.num_steps < 30  # measured 17
    assert (short.status, short.num_steps) == (bcgc.Status.STEP_LIMIT, 2)


@pytest.mark.study
@pytest.mark.slow
def test_the_optimum_of_ten_thousand_is_certified():
    solution = optimum_of_many(
        bcgc.Problem(LAW, 10_000, 20_000, 50.0), tolerance=1e-3, max_steps=30
    )
    assert solution.status == bcgc.Status.CONVERGED
    assert solution.bound > 0.999 * solution.value


@pytest.mark.slow
def test_a_known_problem_is_solved_within_a_jit_too(monkeypatch):
    problem = bcgc.Problem(LAW, 3, 20_000)
    value = float(bcgc.solve(padded(LAW, 3)).expected_runtime)
    monkeypatch.setattr(large_n, "MANY", 2)
    assert large_n.is_of_many(problem)
    traced = jax.jit(lambda: bcgc.solve(problem).expected_runtime)()
    np.testing.assert_allclose(traced, value, rtol=1e-9)


@pytest.mark.slow
def test_the_optimum_for_times_nearly_alike_but_for_rare_slow_ones_is_certified():
    rng = np.random.default_rng(0)
    times = 1.5 + rng.gamma(4, 0.08, (100, 160))
    slow = rng.random(times.shape) < 0.003
    times[slow] *= rng.uniform(2, 15, slow.sum())
    law = smooth_empirical(times, large_n=True)
    problem = bcgc.Problem(law, 160, 1_000_000)
    optimum = optimal_partition(problem, True)
    value = float(optimum.value)
    assert 1 - (float(optimum.bound) - float(optimum.error)) / value < 1e-4
    assert int(optimum.num_steps) < 60
    # By draws: T = Λ⁻¹(A), the slowest first.
    drawn = np.asarray(
        law.inverse_cumulative_hazard(rng.exponential(size=(20_000, 160)))
    )
    load = np.cumsum(np.arange(1, 161) * np.asarray(optimum.point)) / 160
    runtimes = (-np.sort(-drawn, axis=1) * load).max(axis=1)
    assert abs(runtimes.mean() - value) < 4 * runtimes.std() / np.sqrt(runtimes.size)
