"""Subsets around a circle, for a model's parameters: tasks, and the model's pace."""

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding.gradients import Piece, schedule_plan
from bcgc_jax.coding.training import training_scheme
from bcgc_jax.plans.plan import cyclic_plan

KEY = jax.random.key(0)
PARAMS = [np.zeros((2, 3)), np.zeros(4), np.zeros(())]
LAW = bcgc.ShiftedExponential(1.0, 0.3)


def test_a_worker_goes_through_its_subsets_from_the_last_leaf_on():
    plan = schedule_plan(cyclic_plan(11.0, 3), PARAMS, 4)
    assert [block.pieces for block in plan.blocks] == [
        (Piece(2, 0, 1), Piece(1, 0, 4), Piece(0, 0, 6))
    ]
    assert [block.level for block in plan.blocks] == [2]
    assert [task.subsets for task in plan.tasks(3)] == [(3,), (0,), (1,)]
    assert plan.held(3) == (0, 1, 3)
    from_first_leaf = schedule_plan(
        cyclic_plan(11.0, 3), PARAMS, 4, order=(0, 1, 2), mean=False
    )
    assert from_first_leaf.blocks[0].pieces[0] == Piece(0, 0, 6)
    assert from_first_leaf.scaling == 1
    # No worker does a subset twice.
    assert [
        task.subsets for task in schedule_plan(cyclic_plan(11.0, 3), PARAMS, 2).tasks(1)
    ] == [
        (1,),
        (0,),
    ]


def test_the_pace_is_that_of_whole_passes_of_the_model():
    start = 9.0
    problem = bcgc.Problem(
        LAW, 4, 11, 20, cycles=2.0, setup_cycles=3.0, chain_cycles=0.5, start_up=start
    )
    plan = cyclic_plan(11.0, 3)
    scheme = training_scheme(KEY, problem, plan, PARAMS)
    # Setup and chain are 1.5, and 0.25 for each coordinate.
    load = 10 * (11 * 1.25 + 1.5) * np.arange(1, 4)
    np.testing.assert_allclose(scheme.load, load, rtol=1e-6)
    times, starts = np.random.default_rng(0).exponential(size=(2, 4))
    _, end = scheme.messages(starts, times)
    done = [
        min(starts[w - k] + times[w - k] * load[k] for k in range(3)) for w in range(4)
    ]
    assert float(end) == pytest.approx(max(done), rel=1e-6)
    assert scheme.start_up == start


def test_refusals():
    for words, size in {
        "blocks have 10 coordinates, but the parameters have 11": 10.0,
        "sizes must be finite and >= 0": -1.0,
    }.items():
        with pytest.raises(ValueError, match=words):
            schedule_plan(cyclic_plan(size, 1), PARAMS, 3)
    with pytest.raises(ValueError, match="take num_coordinates=11"):
        training_scheme(KEY, bcgc.Problem(LAW, 3, 10), cyclic_plan(11.0, 1), PARAMS)
