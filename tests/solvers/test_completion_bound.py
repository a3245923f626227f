"""The bound of the completion probability, against a global search that shares no code with it."""

import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.completion_bound import _Cut, _Limits, _suprema, completion_bound
from tests.oracles import runtimes as oracles
from tests.oracles.laws import WEIBULL


@pytest.mark.slow
def test_a_global_search_ends_below_the_bound_and_at_the_plan_that_was_found(x64):
    case, workers, total, deadline = WEIBULL.at(1.0, 0.6, 0.2), 4, 100, 60.0
    found = completion_bound(bcgc.Problem(case.law(), workers, total), deadline)
    best = oracles.most_in_time(case, workers, deadline * workers / total)
    assert best == pytest.approx(found.reached, abs=1e-4)
    assert best <= found.upper_bound + 1e-9
    assert found.reached <= found.upper_bound < found.reached + 1e-3


def test_the_suprema_of_a_cut_are_just_above_those_of_a_grid(x64):
    """For exponential times, of which P(T ≤ 1/r) = 1 - e^{-1/r}."""
    low, high = np.array([0.1, 0.5]), np.array([3.0, 5.0])
    fall, slopes = np.array([[-1.0, -3.0], [-0.1, -1.0]]), np.array([[0.3, 0.02], [1.0, 2.0]])
    r = np.linspace(low, high, 1001)[:, None]
    exact = (fall * -np.log(-np.expm1(-1 / r)) + slopes * r).max(axis=0).sum(axis=1)
    limits = _Limits(jnp.asarray(low), jnp.asarray(high))
    cut = _Cut(jnp.zeros(2), jnp.asarray(fall), jnp.asarray(slopes), jnp.zeros((2, 2)))
    found = _suprema(bcgc.Exponential(1.0), limits, cut)
    assert np.all((exact <= found) & (found < exact + 1e-3))
