"""The search over sets of levels asks for no empty set, and for a full answer only where it may gain."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers import discrete
from bcgc_jax.solvers.optimal import OptimalResult, optimal_partition

LAW, WORKERS = bcgc.ShiftedExponential(1e-3, 50.0), 3


def test_sets_that_cannot_be_better_are_not_solved_in_full(monkeypatch):
    """On a table of values in place of optima, which notes what it is asked for."""
    # Of levels as binary digits; {1, 2} is best.
    table = np.array([np.inf, 5.0, 4.0, 2.0, 3.0, 6.0, 1.5, 2.5])
    asked: list[tuple[int, float]] = []

    def optimum(problem: bcgc.Problem, levels: Any, *, tolerance: float, least: Any) -> OptimalResult:
        number = jnp.sum(jnp.where(levels, 2 ** jnp.arange(WORKERS), 0))
        jax.debug.callback(lambda *one: asked.append((int(one[0]), float(one[1]))), number, least)
        value = jnp.asarray(table, problem.dtype)[number]
        return OptimalResult(levels, value, value, value, number, number)

    monkeypatch.setattr(discrete, "optimal_partition", optimum)
    problem = bcgc.Problem(LAW, WORKERS, 20_000, setup_cycles=1e4)
    levels, rounds = discrete.best_levels.__wrapped__(problem, jnp.ones(WORKERS, bool))  # type: ignore[attr-defined]
    jax.effects_barrier()
    assert levels.tolist() == [False, True, True]
    assert 0 not in {number for number, _ in asked}
    assert sum(np.isinf(least) for _, least in asked) == 3  # what the starts are worth
    assert all(least <= table[1:].max() for _, least in asked if np.isfinite(least))
    # At most nine neighbours of three levels.
    assert sum(least > 0 for _, least in asked) <= 3 + 9 * int(rounds)


@pytest.mark.slow
def test_an_optimum_that_is_slower_than_asked_for_ends_early_with_a_bound_that_holds(x64):
    problem = bcgc.Problem(LAW, WORKERS, 20_000, setup_cycles=1e3)
    levels = [np.array(one) for one in itertools.product([False, True], repeat=WORKERS) if sum(one) > 1]
    ended = 0
    for mask in levels:
        whole = optimal_partition(problem, mask)
        for share in (0.0, 0.9, 0.999):
            early = optimal_partition(problem, mask, least=share * float(whole.value))
            assert share * whole.value <= early.lower_bound <= whole.value * (1 + 1e-9)
            assert early.value >= whole.value * (1 - 1e-6)
            ended += int(early.num_steps < whole.num_steps)
        slower = optimal_partition(problem, mask, least=1.01 * float(whole.value))
        np.testing.assert_array_equal(slower.partition, whole.partition)  # never reached: as without
    assert ended >= 2 * len(levels)
