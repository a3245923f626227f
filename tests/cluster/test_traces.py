"""A trace of work whose costs are known."""

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cluster import Work, work_trace
from bcgc_jax.coding.gradients import coding_plan

N, M = 4, 120.0
SECONDS = 2e-7
SETUP = 40.0
MESSAGE = 3e-3


def work(plan, times, setup=SETUP, message=MESSAGE, skip=lambda k, w, b: False):
    """Reports of workers of these cycle times, `[K, N]`, counted subset by subset."""
    items = []
    for (k, w), t in np.ndenumerate(times):
        seen: set[int] = set()
        for task in plan.tasks(w):
            new = set(task.subsets) - seen
            seen |= new
            cycles = (
                M
                / N
                * (len(task.subsets) * plan.blocks[task.block].size + len(new) * setup)
            )
            if not skip(k, w, task.block):
                items.append(
                    Work(
                        k + 1, w, task.block, t * cycles + message, plan.subset_of(task)
                    )
                )
    return items


PARAMS = {"w": np.zeros(900, np.float32)}
CODED = coding_plan(jax.random.key(0), PARAMS, [400, 300, 0, 200])


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
    np.testing.assert_allclose(
        trace.seconds[order], expected[order] + sent * MESSAGE, rtol=1e-9
    )


def test_work_of_another_plan_or_none_is_refused():
    for items, words in (
        ([], "no work was measured"),
        ([Work(0, 0, 3, 1.0)], "take that under one plan"),
    ):
        with pytest.raises(ValueError, match=words):
            work_trace(items, CODED, M)


def test_advice_is_given_on_the_work_of_processes():
    times = SECONDS * np.random.default_rng(4).gamma(4.0, 0.25, (40, N))
    times[:, 1] *= 2
    plan = coding_plan(jax.random.key(0), PARAMS, [900, 0, 0, 0])
    advice = bcgc.advise(work_trace(work(plan, times), plan, M))
    seconds = times * M / N * (900 + SETUP) + MESSAGE
    assert advice.step == pytest.approx(seconds.max(axis=1).mean())
    assert [slow.worker for slow in advice.look_at] == ["1"]
