"""The share of lost samples, by enumeration of all sets of missing workers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.balancing.storage import Storage
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.plan import Plan, needs_of
from bcgc_jax.solution import solution_of_value
from bcgc_jax.solvers.method import Method
from tests.problems import not_none, padded

pytestmark = pytest.mark.usefixtures("x64")


def _plan(rule: Any, data: Any, sizes: Any = 10.0, share: Any = 1.0) -> Plan:
    data = np.atleast_1d(data)
    return Plan(
        sizes=jnp.broadcast_to(jnp.asarray(sizes, float), data.shape),
        block=np.arange(data.size),
        data=data,
        share=np.broadcast_to(np.asarray(share, float), data.shape),
        completion=rule,
    )


def _any_of(workers: Any, missing: Any) -> AnyOf:
    return AnyOf(workers, np.atleast_1d(missing), exact_gradient=False)


def _lost(workers: int, holders: list[set[int]], missing: int) -> float:
    """The mean share of parts, of which all `holders` are missing, over all sets."""
    sets = list(map(set, itertools.combinations(range(workers), missing)))
    return float(np.mean([[part <= gone for part in holders] for gone in sets]))


def _circle(workers: int, stored: int) -> list[set[int]]:
    return [{(j - k) % workers for k in range(stored)} for j in range(workers)]


@pytest.mark.parametrize(
    ("workers", "stored", "missing"),
    [(12, 2, 4), (12, 1, 4), (7, 3, 5), (7, 3, 2), (5, 2, 5), (5, 1, 0), (3, 3, 3)],
)
def test_a_sample_is_lost_if_all_its_holders_are_missing(workers, stored, missing):
    lost = _lost(workers, _circle(workers, stored), missing)
    needs = not_none(needs_of(_plan(_any_of(workers, missing), stored), None, workers))
    assert float(needs.lost) == pytest.approx(lost, rel=1e-12)
    assert bool(needs.exact_gradient) == (lost == 0 and stored == 1)
    traced = jax.jit(
        lambda n: not_none(needs_of(_plan(_any_of(n, missing), stored), None, n)).lost
    )
    assert float(traced(workers)) == pytest.approx(lost, rel=1e-12)


def test_tasks_count_by_their_coordinates_and_samples():
    data, missing = np.array([1, 3, 2, 2]), np.array([2, 4, 0, 3])
    sizes, share = np.array([5.0, 20.0, 7.0, 0.0]), np.array([1.0, 0.5, 1.0, 1.0])
    by_task = [_lost(6, _circle(6, d), s) for d, s in zip(data, missing, strict=True)]
    plan = _plan(_any_of(6, missing), data, sizes, share)
    lost = float(not_none(needs_of(plan, None, 6)).lost)
    assert lost == pytest.approx(np.average(by_task, weights=sizes * share), rel=1e-12)


# Five workers store two subsets each. Subset 0 has four holders, subset 4 has one.
_STORED = [(0, 1), (0, 1), (0, 2), (0, 3), (3, 4)]


class _Uneven(AnyOf):
    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        return Storage.of_subsets(_STORED)


@pytest.mark.parametrize("missing", range(6))
def test_subsets_may_have_different_numbers_of_holders(missing):
    holders = [{w for w, kept in enumerate(_STORED) if j in kept} for j in range(5)]
    rule = _Uneven(5, np.array([missing]), exact_gradient=False)
    lost = float(not_none(needs_of(_plan(rule, 2), None, 5)).lost)
    assert lost == pytest.approx(_lost(5, holders, missing), rel=1e-12)
    # The layout of a traced number of workers is not known.
    traced = _Uneven(jnp.array([5, 5]), np.array([missing]), exact_gradient=False)
    assert needs_of(_plan(traced, 2), None, np.array([5, 5])) is None


class _Approximate(Method):
    """Each sample is on two workers, and four may be missing."""

    name = "approximate"
    is_partition = False

    def plan(self, problem: bcgc.Problem, key: Any) -> bcgc.Solution:
        plan = _plan(_any_of(problem.num_workers, 4), 2, problem.total)
        runtime = bcgc.plans.integrate_runtime(problem, plan)
        solution = solution_of_value(problem, runtime)
        return replace(solution, plan=plan)


def test_a_table_says_what_an_approximate_code_loses():
    problem = padded(bcgc.ShiftedExponential(1e-3, 50.0), 12)
    solution = bcgc.solve(problem, _Approximate())
    assert float(not_none(solution.needs).lost) == pytest.approx(6 / 66, rel=1e-12)
    assert "loses 9.09 % of the samples" in repr(solution)
