"""Programs that several methods share answer as those of one method do."""

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.solvers.schemes import RULES, SCHEMES
from tests.problems import known, padded

RATE, SHIFT, TOTAL = 1e-3, 50.0, 20_000


def _for_times(slowest_first):
    """Theorem 2: every level finishes at the same moment, load ∝ 1 / t."""
    share = np.diff(1 / slowest_first, prepend=0) / np.arange(1, slowest_first.size + 1)
    return TOTAL * share / share.sum()


@pytest.mark.usefixtures("x64")
def test_each_rule_has_its_own_partition():
    problem = padded(bcgc.ShiftedExponential(RATE, SHIFT), 3, TOTAL)
    mean = SHIFT + np.array([11 / 6, 5 / 6, 1 / 3]) / RATE  # of T_(3), T_(2), T_(1)
    best = np.argmin(np.arange(1, 4) * mean)
    expected = {
        "time": _for_times(mean),
        "uncoded": [TOTAL, 0, 0],
        "single_block": TOTAL * np.eye(3)[best],
        "ferdinand_full": [0, 0, TOTAL],  # layers of one coordinate: every level is N - 1
    }
    found = {rule.name: bcgc.solve(problem, rule) for rule in RULES}
    assert all(solution.method == name for name, solution in found.items())
    for name, partition in expected.items():
        np.testing.assert_allclose(
            np.asarray(found[name].partition)[:3], partition, rtol=1e-9, atol=1e-9, err_msg=name
        )
    assert found.keys() - expected.keys() == {"frequency", "ferdinand_half"}
    partitions = {
        tuple(np.asarray(found[name].partition).round(6)) for name in found.keys() - {"single_block"}
    }
    assert len(partitions) == len(found) - 1
    assert SCHEMES["limit"] not in RULES


@pytest.mark.usefixtures("x64")
def test_partial_stragglers_take_as_long_as_a_partition_does():
    problem = padded(bcgc.ShiftedExponential(RATE, SHIFT), 3, TOTAL)
    alone, shared = (
        jax.jit(lambda p: bcgc.solve(p, "tandon_partial"))(problem),
        bcgc.solve(problem, "tandon_partial"),
    )
    np.testing.assert_allclose(shared.expected_runtime, alone.expected_runtime, rtol=1e-9)
    np.testing.assert_allclose(known(shared.plan).share, known(alone.plan).share, rtol=1e-12)
    assert (shared.method, int(shared.status)) == (alone.method, int(alone.status))


def test_what_a_method_cannot_do_is_refused_as_solve_refuses_it():
    problem = bcgc.Problem(bcgc.ShiftedExponential(RATE, SHIFT), 3, TOTAL, setup_cycles=1.0)
    with pytest.raises(ValueError, match="knows no setup_cycles"):
        bcgc.solve(problem, bcgc.TandonPartial())
    layers = bcgc.Problem(bcgc.ShiftedExponential(RATE, SHIFT), 3, 2, unit_costs=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="knows no unit_costs"):
        bcgc.solve(layers, method_of("ferdinand_full"))
