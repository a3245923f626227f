"""Schedules for a model's parameters: blocks as whole units, tasks around the circle, the model's pace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding.gradients import Piece, schedule_plan
from bcgc_jax.coding.training import training_scheme
from bcgc_jax.plans.schedules import Group, circle_plan, schedule_of, turns_of

KEY = jax.random.key(0)
PARAMS = [np.zeros((2, 3)), np.zeros(4), np.zeros(())]
GROUPS = [Group(1, 1), Group(3, 2)]
SCHEDULE, LAW = schedule_of(GROUPS, [2.4, 5.3, 3.3]), bcgc.ShiftedExponential(1.0, 0.3)


def test_blocks_are_whole_coordinates_from_the_last_leaf_on():
    plan = schedule_plan(SCHEDULE, PARAMS, 4)
    assert [block.pieces for block in plan.blocks] == [
        (Piece(2, 0, 1), Piece(1, 0, 2)),
        (Piece(1, 2, 4), Piece(0, 0, 3)),
        (Piece(0, 3, 6),),
    ]
    assert [block.level for block in plan.blocks] == [0, 2, 2]
    assert plan.order == ((0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2))
    assert [task.subsets for task in plan.tasks(3)] == [(3,), (3,), (3,), (0,), (0,), (1,), (1,)]
    assert plan.held(3) == (0, 1, 3)
    other = schedule_plan(SCHEDULE, PARAMS, 4, order=(0, 1, 2))
    assert other.blocks[0].pieces == (Piece(0, 0, 3),)


def test_blocks_are_whole_leaves_where_these_are_the_units():
    plan = schedule_plan(SCHEDULE, PARAMS, 4, units="leaves", mean=False)
    # The cuts, at 2.4 and 7.7, are nearest to the ends of the first and the second leaf, at 1 and 5.
    whole = [(Piece(leaf, 0, size),) for leaf, size in ((2, 1), (1, 4), (0, 6))]
    assert [block.pieces for block in plan.blocks] == whole
    assert plan.scaling == 1


def test_a_block_without_coordinates_and_tasks_met_before_are_left_out():
    schedule = schedule_of([Group(2, 1), Group(4, 1), Group(4, 1)], [0.2, 8.8, 2.0])
    plan = schedule_plan(schedule, PARAMS, 3)
    assert [(block.level, block.size) for block in plan.blocks] == [(2, 9), (2, 2)]
    assert plan.order == tuple((d, b) for b in (0, 1) for d in range(3))
    padded = circle_plan(schedule.sizes, jnp.append(turns_of(schedule), 0), jnp.append(schedule.block, -1), 4)
    assert schedule_plan(padded, PARAMS, 3).order == plan.order


def test_the_pace_is_that_of_the_schedule_in_the_model():
    start = bcgc.Weibull(9.0, 0.7)
    problem = bcgc.Problem(LAW, 4, 11, 20, cycles=2.0, setup_cycles=3.0, chain_cycles=0.5, start_up=start)
    schedule = schedule_of(GROUPS, [2.0, 5.0, 4.0])
    scheme = training_scheme(KEY, problem, schedule, PARAMS)
    # Setup and chain are 1.5, and 0.25 for each coordinate passed: 2, 7 - 2, 11 - 7; 11, 0; 7, 11 - 7.
    tasks = [2 + 1.5 + 0.5, 5 + 1.25, 4 + 1, 4 + 1.5 + 2.75, 5, 5 + 1.5 + 1.75, 4 + 1]
    np.testing.assert_allclose(scheme.load, 10 * np.cumsum(tasks), rtol=1e-6)
    rng = np.random.default_rng(0)
    times, starts = rng.exponential(size=(2, 4))
    order = schedule_plan(schedule, PARAMS, 4).order
    found = scheme.plan.completed(scheme.finish_times(starts, times))
    for block in range(3):
        done = {j: np.inf for j in range(4)}
        for (turn, own), load in zip(order, 10 * np.cumsum(tasks), strict=True):
            for w in range(4) if own == block else range(0):
                done[(w + turn) % 4] = min(done[(w + turn) % 4], starts[w] + times[w] * load)
        assert found[block] == pytest.approx(max(done.values()), rel=1e-6)
    assert scheme.start_up is start


def test_refusals():
    whole = schedule_of([Group(1, 1)], [11.0])
    nothing = circle_plan(jnp.array([5.0, 6.0]), jnp.array([0]), jnp.array([0]), 1)
    for words, schedule in {
        "blocks have 10 coordinates, the parameters have 11": schedule_of([Group(1, 1)], [10.0]),
        "sizes must be finite and >= 0": schedule_of([Group(1, 2)], [12.0, -1.0]),
        "block 1 of the schedule has coordinates, but no task": nothing,
    }.items():
        with pytest.raises(ValueError, match=words):
            schedule_plan(schedule, PARAMS, 3)
    with pytest.raises(ValueError, match="take num_coordinates=11"):
        training_scheme(KEY, bcgc.Problem(LAW, 3, 10), whole, PARAMS)
