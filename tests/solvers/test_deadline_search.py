"""Plans for a deadline under laws of heavy tails, against a global search over binomial probabilities."""

import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.runtime import Certificate
from bcgc_jax.solution import solution_of
from bcgc_jax.solvers.deadline import completion_partition
from tests.oracles import runtimes as oracles
from tests.oracles.laws import PARETO
from tests.problems import known, padded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "deadline"),
    [(0.5, 4.8), (0.5, 10.0), (0.3, 8.0), (0.8, 3.0), (1.0, 6.0), (1.1, 9.0), (1.5, 4.0)],
)
def test_the_plan_is_the_best_of_a_global_search_and_all_starts_lead_to_it(x64, shape, deadline):
    # M = N, L = b = 1: a load of 1 takes a worker T.
    case = PARETO.at(1.0, shape)
    result = completion_partition(bcgc.Problem(case.law(), 5, 1.0, 5.0), deadline)
    best = oracles.most_in_time(case, 5, deadline)
    assert int(result.status) == bcgc.Status.CONVERGED
    assert float(result.probability) >= best - 1e-8
    late = oracles.exceedance(case, oracles.load_of(np.asarray(result.partition)), np.array([deadline]))
    np.testing.assert_allclose(result.probability, 1 - late[0], rtol=1e-9)
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
