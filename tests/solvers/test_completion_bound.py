"""The bound of the completion probability, against a global search that shares no code with it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import bcgc_jax as bcgc
from bcgc_jax.solvers.completion_bound import _Cut, _Limits, _suprema, completion_bound


def _in_time(shares, total, workers, deadline, scale, cdf):
    """P(τ̂ ≤ deadline) of shares `[..., N]`: workers are counted from the shortest threshold on."""
    load = total * np.cumsum(shares * np.arange(1, workers + 1), axis=-1)
    below = cdf(deadline / (scale * np.maximum(load, 1e-300)))[..., ::-1]
    state = np.zeros((*shares.shape[:-1], workers + 1))
    state[..., 0], last = 1.0, np.zeros(shares.shape[:-1])
    for least in range(1, workers + 1):
        now = below[..., least - 1]
        p = np.where(last < 1, (now - last) / np.where(last < 1, 1 - last, 1), 0)[..., None]
        moved = np.zeros_like(state)
        for count in range(workers + 1):
            more = np.arange(workers - count + 1)
            ways = np.array([math.comb(workers - count, int(m)) for m in more])
            moved[..., count:] += state[..., count, None] * ways * p**more * (1 - p) ** more[::-1]
        moved[..., :least] = 0
        state, last = moved, now
    return state[..., -1] + state[..., :-1].sum(axis=-1)


def _most(total, workers, deadline, scale, cdf):
    """By differential evolution over all shares."""

    def late(points):
        shares = np.exp(8 * (points.T - 1))
        return 1 - _in_time(shares / shares.sum(axis=1, keepdims=True), total, workers, deadline, scale, cdf)

    found = optimize.differential_evolution(
        late,
        [(0, 1)] * workers,
        rng=1,
        vectorized=True,
        updating="deferred",
        popsize=12,
        maxiter=250,
        tol=1e-10,
    )
    return 1 - found.fun


def _journal(workers):
    return bcgc.Problem(bcgc.ShiftedExponential(0.1, 1.0), workers, 40_000, 50)


_CASES = {
    "journal, N = 4": (_journal(4), 10**6.5, stats.expon(1, 10).cdf, 1e-4),
    "journal, N = 6": (_journal(6), 10**6.5, stats.expon(1, 10).cdf, 1e-4),
    "exponential": (bcgc.Problem(bcgc.Exponential(1.0), 5, 100), 30.0, stats.expon().cdf, 1e-3),
    "Weibull": (
        bcgc.Problem(bcgc.Weibull(1.0, 0.6, 0.2), 4, 100),
        60.0,
        stats.weibull_min(0.6, 0.2).cdf,
        1e-3,
    ),
    "Pareto": (bcgc.Problem(bcgc.Pareto(1.0, 0.9), 5, 100), 60.0, stats.pareto(0.9).cdf, 1e-3),
    "lognormal": (bcgc.Problem(bcgc.Lognormal(0.0, 1.0), 4, 100), 50.0, stats.lognorm(1.0).cdf, 1e-3),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "journal, N = 4" else pytest.mark.slow) for n in _CASES]
)
def test_a_global_search_ends_below_the_bound_and_at_the_plan_that_was_found(x64, name):
    problem, deadline, cdf, slack = _CASES[name]
    workers = problem.max_workers
    found = completion_bound(problem, deadline)
    best = _most(float(problem.total), workers, deadline, float(problem.scale), cdf)
    assert best == pytest.approx(found.reached, abs=1e-4)
    assert best <= found.upper_bound + 1e-9
    assert found.reached <= found.upper_bound < found.reached + slack


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
