"""Costs and cycle times from work whose costs are known."""

import jax
import numpy as np
import pytest

from bcgc_jax.cluster import Work, calibrate, work_trace
from bcgc_jax.coding.gradients import coding_plan

N, M = 4, 120.0
SECONDS = 2e-7
SETUP = 40.0
MESSAGE = 3e-3


def work(plan, times, setup=SETUP, message=MESSAGE, skip=lambda k, w, b: False):
    """What workers of these cycle times, `[K, N]`, would report, counted subset by subset."""
    items = []
    for (k, w), t in np.ndenumerate(times):
        seen: set[int] = set()
        for task in plan.tasks(w):
            new = set(task.subsets) - seen
            seen |= new
            cycles = M / N * (len(task.subsets) * plan.blocks[task.block].size + len(new) * setup)
            if not skip(k, w, task.block):
                items.append(Work(k + 1, w, task.block, t * cycles + message, plan.subset_of(task)))
    return items


PARAMS = {"w": np.zeros(900, np.float32)}
CODED = coding_plan(jax.random.key(0), PARAMS, [400, 300, 0, 200])


def test_known_costs_are_found_and_so_is_every_cycle_time():
    plan, rng = CODED, np.random.default_rng(0)
    times = SECONDS * rng.lognormal(0, 0.3, (30, N))
    times *= SECONDS / np.median(times, axis=0)  # the medians follow the model without noise
    found = calibrate(work(plan, times), plan, M)
    assert found.setup_cycles == pytest.approx(SETUP, rel=1e-6)
    assert found.message_seconds == pytest.approx(MESSAGE, rel=1e-6)
    np.testing.assert_allclose(found.cycle_times, times, rtol=1e-6)
    assert not found.censored.any()


def test_blocks_that_were_not_taken_are_not_missed():
    plan = CODED
    rng = np.random.default_rng(1)
    times = np.full((20, N), SECONDS)
    late = rng.random((20, N)) < 0.3
    silent = np.zeros((20, N), bool)
    silent[3, 1] = True
    items = work(plan, times, skip=lambda k, w, b: silent[k, w] or (late[k, w] and b > 0))
    found = calibrate(items, plan, M)
    assert found.setup_cycles == pytest.approx(SETUP, rel=1e-6)
    assert np.argwhere(found.censored).tolist() == [[3, 1]]
    np.testing.assert_allclose(found.cycle_times[~silent], SECONDS, rtol=1e-6)
    # All that is known of the silent one: it was at its first block while others did all of theirs.
    level, size = plan.blocks[0].level, plan.blocks[0].size
    first = M / N * (level + 1) * (size + SETUP)
    done = np.zeros(N)
    for item in items:
        done[item.worker] += (item.seconds - MESSAGE) * (item.iteration == 4)
    assert found.cycle_times[3, 1] == pytest.approx(done.max() / first, rel=1e-6)


def test_noise_never_makes_a_cost_negative():
    plan, rng = CODED, np.random.default_rng(2)
    for _ in range(20):
        times = SECONDS * rng.lognormal(0, 0.5, (5, N))
        found = calibrate(work(plan, times, setup=0.0, message=0.0), plan, M)
        assert min(found.setup_cycles, found.message_seconds) >= 0
        assert found.cycle_times.min() > 0


def test_one_block_has_no_setup_to_tell_and_no_work_no_answer():
    plan = coding_plan(jax.random.key(0), PARAMS, [0, 900, 0, 0])
    times = np.full((3, N), SECONDS)
    found = calibrate(work(plan, times, setup=0.0, message=0.0), plan, M)
    assert found.setup_cycles == 0
    np.testing.assert_allclose(found.cycle_times, times, rtol=1e-9)
    costs = found._replace(setup_cycles=SETUP, message_seconds=MESSAGE)
    known = calibrate(work(plan, times), plan, M, costs=costs)
    np.testing.assert_allclose(known.cycle_times, times, rtol=1e-9)


def test_the_work_is_a_trace_of_loads():
    plan = CODED
    rng = np.random.default_rng(3)
    tasks = len(CODED.tasks(0))
    times = SECONDS * rng.lognormal(0, 0.3, (30, N))
    items = work(plan, times, skip=lambda k, w, b: (k, w, b) == (4, 2, 1))
    trace = work_trace(items, plan, M, setup_cycles=SETUP)
    assert trace.load is not None
    assert (trace.num_steps, trace.num_workers, trace.num_missing) == (30, N, 0)
    assert trace.step_names.tolist() == [str(k + 1) for k in range(30)]
    # After a task that did not come nothing is known.
    count = np.full(30 * N, tasks)
    count[4 * N + 2] = 1
    assert np.bincount(trace.cell).tolist() == count.tolist()
    # Every message costs as much: the k-th one k of them, whatever the load.
    sent = np.concatenate([np.arange(1, k + 1) for k in count])
    order = np.lexsort((trace.load, trace.cell))
    expected = times[trace.step, trace.worker] * trace.load
    np.testing.assert_allclose(trace.seconds[order], expected[order] + sent * MESSAGE, rtol=1e-9)


def test_work_of_another_plan_or_none_is_refused():
    for items, words in (
        ([], "no work was measured"),
        ([Work(0, 0, 3, 1.0)], "take that under one plan"),
    ):
        for call in (calibrate, work_trace):
            with pytest.raises(ValueError, match=words):
                call(items, CODED, M)
