"""Plans for a deadline under laws of heavy tails, against a global search over binomial probabilities."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import differential_evolution

import bcgc_jax as bcgc
from bcgc_jax.plans.runtime import Certificate
from bcgc_jax.solution import solution_of
from bcgc_jax.solvers.deadline import completion_partition
from tests.problems import known, padded


def completion(shares, times_below, deadline):
    """P(at least N - n workers are below deadline / y_n, for all n), by counting those below each in turn."""
    size = shares.size
    load = np.cumsum(np.arange(1, size + 1) * shares)
    below = [times_below(deadline / y) if y > 0 else 1.0 for y in load]
    count, before = np.zeros(size + 1), 0.0  # P(so many are below the threshold), the lowest one first
    count[0] = 1.0
    for n in reversed(range(size)):
        share = (below[n] - before) / (1 - before) if before < 1 else 0.0
        after = np.zeros(size + 1)
        for c in range(size + 1):
            for d in range(size - c + 1):
                after[c + d] += count[c] * math.comb(size - c, d) * share**d * (1 - share) ** (size - c - d)
        after[: size - n] = 0
        count, before = after, below[n]
    return count.sum()


def best_of_all(size, times_below, deadline):
    def late(weights):
        return 1 - completion(weights / weights.sum(), times_below, deadline)

    # A small weight is one of 0: of heavy tails that is where optima are.
    found = differential_evolution(
        lambda w: late(np.where(w < 1e-3, 0, w) + 1e-300), [(0, 1)] * size, seed=0, tol=1e-10, popsize=12
    )
    return 1 - found.fun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "deadline"),
    [(0.5, 4.8), (0.5, 10.0), (0.3, 8.0), (0.8, 3.0), (1.0, 6.0), (1.1, 9.0), (1.5, 4.0)],
)
def test_the_plan_is_the_best_of_a_global_search_and_all_starts_lead_to_it(x64, shape, deadline):
    # M = N, L = b = 1: a load of 1 takes a worker T. P(T ≤ t) = 1 - t^-shape from t = 1 on.
    result = completion_partition(bcgc.Problem(bcgc.Pareto(1.0, shape), 5, 1.0, 5.0), deadline)
    best = best_of_all(5, lambda t: 1 - t**-shape if t > 1 else 0.0, deadline)
    assert int(result.status) == bcgc.Status.CONVERGED
    assert float(result.probability) >= best - 1e-8
    shares = np.asarray(result.partition, float)
    counted = completion(shares, lambda t: 1 - t**-shape if t > 1 else 0.0, deadline)
    np.testing.assert_allclose(result.probability, counted, rtol=1e-9)
    from_starts = np.asarray(result.probabilities)
    in_time = from_starts > 1e-9  # where no plan beside it is ever in time, a search has no slope to go by
    assert in_time.sum() >= 5
    np.testing.assert_allclose(from_starts[in_time], best, rtol=1e-6)


def test_a_search_that_did_not_end_says_so_though_the_mean_is_infinite():
    problem, infinite = padded(bcgc.Pareto(1.0, 0.5), 5), Certificate(*map(jnp.asarray, (jnp.inf, 0, 0, 1.0)))

    def told(status: bcgc.Status) -> int:
        partition = jnp.zeros(problem.max_workers)
        return int(known(solution_of(problem, partition, int(status), 1, True, infinite).status))

    assert told(bcgc.Status.STEP_LIMIT) == bcgc.Status.STEP_LIMIT
    assert told(bcgc.Status.CONVERGED) == bcgc.Status.INFINITE
