"""The optimum for a trace of times that are nearly alike, but for rare slow ones: f nearly has kinks."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.measured import smooth_empirical
from bcgc_jax.solvers.optimal import optimal_partition

WORKERS = 160  # many: the Hessian is that of coarse rules


@pytest.mark.slow
def test_the_optimum_is_certified_to_a_per_cent_in_few_steps(x64):
    rng = np.random.default_rng(0)
    times = 1.5 + rng.gamma(4, 0.08, (100, WORKERS))
    slow = rng.random(times.shape) < 0.003
    times[slow] *= rng.uniform(2, 15, slow.sum())
    law = smooth_empirical(times, large_n=True)
    problem = bcgc.Problem(law, WORKERS, 1_000_000)
    found = optimal_partition(problem)
    value = float(found.value)
    assert float(found.lower_bound) - float(found.error) > 0.985 * value  # measured 0.9917
    assert int(found.num_steps) < 40  # measured 20
    # By draws: T = Λ⁻¹(A), the slowest first.
    drawn = np.asarray(law.inverse_cumulative_hazard(rng.exponential(size=(20_000, WORKERS))))
    load = np.cumsum(np.arange(1, WORKERS + 1) * np.asarray(found.partition)) / WORKERS
    runtimes = (-np.sort(-drawn, axis=1) * load).max(axis=1)
    assert abs(runtimes.mean() - value) < 4 * runtimes.std() / np.sqrt(runtimes.size)
