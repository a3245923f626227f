"""What plans take, against workers that do one task after the other."""

import numpy as np
import pytest

from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.plans.schedules import Group, schedule_of, turns_of

GROUPS = [Group(1, 1), Group(2, 2), Group(4, 3)]
SIZES = np.array([0.2, 0.1, 0.15, 0.3, 0.15, 0.1])


def _one_by_one(plan, times, starts):
    """Each worker goes through its tasks; the block's subset is there when somebody has done it."""
    workers, sizes = plan.num_workers, np.asarray(plan.plan.sizes)
    subset, block = np.asarray(turns_of(plan.plan)), np.asarray(plan.plan.block)
    done: dict[tuple[int, int], float] = {}
    for w, now in enumerate(starts):
        for turn, b in zip(subset, block, strict=True):
            j = (w + int(turn)) % workers
            now += times[w] * workers * plan.shares[j] * sizes[b]
            done[j, int(b)] = min(done.get((j, int(b)), np.inf), now)
    assert len(done) == workers * len(sizes)
    return max(done.values())


@pytest.mark.parametrize("late", [False, True])
def test_runtimes_are_those_of_workers_one_after_the_other(late):
    """Of a code and of a schedule of uneven subsets, with start-ups and without."""
    rng = np.random.default_rng(3)
    times, starts = rng.exponential(1.0, (40, 4)), late * rng.exponential(0.7, (40, 4))
    given = (times, starts) if late else (times,)
    coded = WorkPlan("coded", np.full(4, 0.25), partition_plan(np.array([0.3, 0.0, 0.5, 0.2]), 4))
    for row, start, found in zip(times, starts, coded.runtimes(*given), strict=True):
        ends = [(3, 0.3), (1, 0.3 + 3 * 0.5), (0, 0.3 + 3 * 0.5 + 4 * 0.2)]
        assert found == pytest.approx(max(sorted(start + row * load)[place] for place, load in ends))
    plan = WorkPlan("scheduled", np.array([0.1, 0.4, 0.3, 0.2]), schedule_of(GROUPS, SIZES))
    for row, start, found in zip(times, starts, plan.runtimes(*given), strict=True):
        assert found == pytest.approx(_one_by_one(plan, row, start))


# Workers 0, 1, 2 hold thirds, then each the next one too.
@pytest.mark.parametrize(
    ("before", "after", "moved"), [(Group(1, 1), Group(2, 1), 1.0), (Group(2, 1), Group(1, 1), 0.0)]
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
