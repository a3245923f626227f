"""What plans take, against workers that do one task after the other, and the package's own runtimes."""

import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.adaptive.plans import WorkPlan, levels_plan
from bcgc_jax.plans.schedules import Group, cycles_of, schedule_of, schedule_runtime, turns_of

GROUPS = [Group(1, 1), Group(2, 2), Group(4, 3)]
SIZES = np.array([0.2, 0.1, 0.15, 0.3, 0.15, 0.1])


def _one_by_one(plan, times, starts=(0.0,) * 5):
    """Each worker goes through its tasks; the block's subset is there when somebody has done it."""
    workers = plan.num_workers
    subset, block = np.asarray(turns_of(plan.plan)), np.asarray(plan.plan.block)
    sizes = np.asarray(plan.plan.sizes)
    done: dict[tuple[int, int], float] = {}
    for w in range(workers):
        now = starts[w]
        for turn, b in zip(subset, block, strict=True):
            j = (w + int(turn)) % workers
            now += times[w] * workers * plan.shares[j] * sizes[b]
            done[j, int(b)] = min(done.get((j, int(b)), np.inf), now)
    assert len(done) == workers * len(sizes)
    return max(done.values())


def test_uneven_subsets_are_what_workers_do_one_by_one():
    rng = np.random.default_rng(0)
    plan = WorkPlan("a", rng.dirichlet(np.ones(5)), schedule_of(GROUPS, SIZES))
    times = rng.exponential(1.0, (30, 5))
    expected = [_one_by_one(plan, row) for row in times]
    np.testing.assert_allclose(plan.runtimes(times), expected, rtol=1e-6)  # sizes are float32


def test_even_subsets_are_the_schedules_own_runtime():
    times = np.random.default_rng(1).exponential(1.0, (30, 5))
    schedule = schedule_of(GROUPS, jnp.asarray(SIZES))
    plan = WorkPlan("a", np.full(5, 0.2), schedule)
    np.testing.assert_allclose(
        plan.runtimes(times), schedule_runtime(cycles_of(schedule), jnp.asarray(times)), rtol=1e-5
    )


def test_a_code_is_the_packages_block_runtime():
    times = np.random.default_rng(2).exponential(1.0, (30, 4))
    partition = np.array([0.4, 0.0, 0.1, 0.5])
    found = WorkPlan("coded", np.full(4, 0.25), levels_plan(partition)).runtimes(times)
    np.testing.assert_allclose(found, bcgc.block_runtime(100 * partition, times, cycles=4 / 100), rtol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        # Workers 0, 1, 2 hold thirds, then each the next one too.
        (Group(1, 1), Group(2, 1), 1.0),
        (Group(2, 1), Group(1, 1), 0.0),
        (Group(2, 1), Group(2, 1), 0.0),
    ],
)
def test_what_is_held_already_is_not_sent_again(before, after, moved):
    plans = [WorkPlan("a", np.full(3, 1 / 3), schedule_of([group], [1.0])) for group in (before, after)]
    assert plans[1].moved(plans[0]) == pytest.approx(moved, abs=1e-12)
    assert plans[1].moved(None) == pytest.approx(after.depth, abs=1e-12)


def test_shares_that_shift_a_little_move_a_little():
    """Worker 0 has a tenth more from 0.5 on, and so worker 1 has nothing new."""
    before, after = (
        WorkPlan("a", np.array([share, 1 - share]), schedule_of([Group(1, 1)], [1.0])) for share in (0.5, 0.6)
    )
    assert after.moved(before) == pytest.approx(0.1)


def test_who_has_done_a_task_by_then():
    plan = WorkPlan("a", np.array([0.5, 0.25, 0.25]), schedule_of([Group(1, 1)], [1.0]))
    assert plan.finished(np.array([2.0, 4.0, 4.1]), 3.0).tolist() == [True, True, False]


def test_a_level_waits_for_those_who_began_late():
    """Start-ups of a code and of a schedule, one worker after the other."""
    rng = np.random.default_rng(3)
    times, starts = rng.exponential(1.0, (40, 4)), rng.exponential(0.7, (40, 4))
    coded = WorkPlan("coded", np.full(4, 0.25), levels_plan(np.array([0.3, 0.0, 0.5, 0.2])))
    for row, start, found in zip(times, starts, coded.runtimes(times, starts), strict=True):
        ends = [(3, 0.3), (1, 0.3 + 3 * 0.5), (0, 0.3 + 3 * 0.5 + 4 * 0.2)]
        assert found == pytest.approx(max(sorted(start + row * load)[place] for place, load in ends))
    plan = WorkPlan("scheduled", np.array([0.1, 0.4, 0.3, 0.2]), schedule_of(GROUPS, SIZES))
    for row, start, found in zip(times, starts, plan.runtimes(times, starts), strict=True):
        assert found == pytest.approx(_one_by_one(plan, row, start))
