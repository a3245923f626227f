"""The fastest plan that ends in time often enough, against SciPy's optimisers and the ends of the curve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import bcgc_jax as bcgc
from bcgc_jax.solvers import deadline
from bcgc_jax.solvers.deadline import CompletionResult, chance_constrained
from tests.problems import known, padded


def _fastest(problem, deadline, least, starts):
    """Least E τ̂ by sequential quadratic programming, from several starts."""
    runtime = jax.jit(jax.value_and_grad(lambda x: bcgc.expected_runtime(problem, x)))
    in_time = jax.jit(jax.value_and_grad(lambda x: bcgc.completion_probability(problem, x, deadline)))
    total, size = float(problem.total), problem.max_workers
    unit = float(runtime(starts[0])[0])
    values = []
    all_of_it = optimize.LinearConstraint(np.ones(size), 1, 1)
    often = optimize.NonlinearConstraint(
        lambda s: float(in_time(s * total)[0]),
        least,
        1,
        jac=lambda s: np.asarray(in_time(s * total)[1]) * total,
    )
    for start in starts:
        found = optimize.minimize(
            lambda s: float(runtime(s * total)[0]) / unit,
            start / total,
            jac=lambda s: np.asarray(runtime(s * total)[1]) * total / unit,
            bounds=[(0, 1)] * size,
            constraints=[all_of_it, often],
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 300},
        )
        if float(in_time(found.x * total)[0]) > least - 1e-8:
            values.append(found.fun * unit)
    return min(values)


@pytest.mark.slow
def test_no_optimiser_finds_a_faster_plan_that_is_in_time_as_often_and_the_ends_are_the_two_optima(x64):
    deadline, workers = 300.0, 8
    problem = bcgc.Problem(bcgc.ShiftedExponential(0.1, 1.0), workers, 100)

    def solve(least: float) -> bcgc.Solution:
        return bcgc.solve(problem, bcgc.Deadline(deadline, min_completion=least))

    fast, sure = bcgc.solve(problem), bcgc.solve(problem, bcgc.Deadline(deadline))
    low = float(bcgc.completion_probability(problem, known(fast.partition), deadline))
    high = float(known(sure.completion_probability))
    assert low < high - 1e-3
    rng = np.random.default_rng(0)
    ends = [np.asarray(s.partition) for s in (fast, sure)]
    starts = [*ends, np.mean(ends, axis=0), *(100 * rng.dirichlet(np.ones(workers), 3))]
    last = float(fast.expected_runtime)
    for share in (0.3, 0.8):
        least = low + share * (high - low)
        found = solve(least)
        assert int(found.status) == bcgc.Status.CONVERGED
        assert float(known(found.completion_probability)) >= least - 1e-12
        theirs = _fastest(problem, deadline, least, starts)
        assert float(found.expected_runtime) <= theirs * (1 + 1e-6)
        assert last < float(found.expected_runtime) < float(sure.expected_runtime)
        assert float(found.lower_bound) <= theirs
        last = float(found.expected_runtime)

    free = solve(low - 1e-3)
    assert float(free.expected_runtime) == pytest.approx(float(fast.expected_runtime), rel=1e-6)
    assert float(free.relative_gap) < 1e-5
    np.testing.assert_allclose(known(solve(high - 1e-7).partition), known(sure.partition), atol=0.2)
    assert int(solve(high + 1e-4).status) == bcgc.Status.INFEASIBLE


def test_a_share_in_time_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="min_completion must be"):
        bcgc.Deadline(400.0, min_completion=1.0)
    problem = bcgc.Problem(bcgc.TwoSpeed(1.0, 2.0, 0.1), 4, 100)
    with pytest.raises(ValueError, match="without atoms"):
        bcgc.solve(problem, bcgc.Deadline(400.0, min_completion=0.5))


def test_no_plan_is_faster_than_one_that_need_not_be_in_time(x64, monkeypatch):
    problem = padded(bcgc.ShiftedExponential(1e-3, 50.0), 3)
    fastest, uncoded = bcgc.solve(problem), known(bcgc.solve(problem, "uncoded").partition)
    found = CompletionResult(uncoded, *(jnp.asarray(a) for a in (0.9, 0.9, 0, 0)))
    answers = {"completion_partition": found, "chance_constrained": found, "optimum": fastest}
    for name, answer in answers.items():
        monkeypatch.setattr(deadline, name, lambda *args, answer=answer, **options: answer)
    solution = bcgc.Deadline(1e8, min_completion=0.8).plan(problem, None)
    assert float(solution.lower_bound) == pytest.approx(float(fastest.lower_bound), rel=1e-9)
    assert float(solution.lower_bound) < float(fastest.expected_runtime) < float(solution.expected_runtime)


def test_two_workers_have_the_fastest_of_all_shares_that_are_in_time(x64):
    """τ̂ = max(y_0 T_(2), y_1 T_(1)) of exponential times, by its distribution at every share of a grid."""
    share, t = np.linspace(0, 1, 501), np.linspace(1e-9, 40, 1001)[:, None]

    def late(t):
        slow, fast = (1 - np.exp(-t / np.maximum(y, 1e-12)) for y in (share, 2 - share))
        return 1 - slow**2 + (slow - fast) ** 2

    runtime, in_time, least = np.trapezoid(late(t), t, axis=0), 1 - late(3.0), 0.974
    fast, sure = (np.array([share[i], 1 - share[i]]) for i in (runtime.argmin(), in_time.argmax()))
    surest = CompletionResult(*(jnp.asarray(a) for a in (sure, in_time.max(), 0.0, 0, 0)))
    found = chance_constrained(bcgc.Problem(bcgc.Exponential(1.0), 2, 1.0, 2.0), 3.0, least, fast, surest)
    assert float(found.probability) >= least - 1e-12
    best = share[np.where(in_time < least, np.inf, runtime).argmin()]
    np.testing.assert_allclose(found.partition[0], best, atol=2e-3)
