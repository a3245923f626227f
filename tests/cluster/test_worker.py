"""A worker without a cluster, against the simulation and plain gradients."""

import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax._pytree import replace
from bcgc_jax.cluster.worker import Duty, WorkerProcess
from bcgc_jax.coding import gradients as simulation
from bcgc_jax.coding.gradients import (
    CodingPlan,
    coding_plan,
    group_plan,
    schedule_plan,
    split_unevenly,
)
from bcgc_jax.coding.pace import Pace
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.plan import Plan, cyclic_plan
from tests.cluster.training import decoded, loss, raveled
from tests.compilations import compilations

# Each worker compiles some programs for each of its blocks.
N = 3

gradient = jax.jit(jax.grad(loss))


def case(samples=12, dtype=np.float32):
    rng, shapes = np.random.default_rng(7), {"a": (3, 5), "b": (5,), "c": (5,)}
    params = {
        name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }
    batch = {
        "x": rng.normal(size=(samples, 3)).astype(dtype),
        "y": rng.normal(size=samples).astype(dtype),
    }
    plan = jax.tree.map(np.asarray, coding_plan(jax.random.key(0), params, [9, 10, 6]))
    return params, batch, plan


def workers(params, plan, subsets, weights=None, batch_size=None, x64=False):
    duty = Duty(
        loss,
        plan,
        params,
        np.ones(N) if weights is None else weights,
        batch_size,
        11,
        x64,
    )
    return [
        WorkerProcess(duty, w, {j: subsets[j] for j in plan.held(w)}) for w in range(N)
    ]


def assert_decoded(plan, group, params, want, call=1, iteration=1):
    """What the workers send, decoded, is the gradient. Measured: 2e-15."""
    messages = [
        list(worker.compute(call, iteration, jax.tree.leaves(params)))
        for worker in group
    ]
    np.testing.assert_allclose(decoded(plan, messages, params), want, atol=1e-14)


@pytest.mark.smoke
def test_messages_are_those_of_the_simulation():
    """Though passes go over chunks, of 2, 1 and 1 samples."""
    params, batch, plan = case()
    plan = replace(plan, chunks=3)
    subsets = simulation.split_batch(batch, N)
    parts = [jax.tree.map(lambda x, j=j: x[j], subsets) for j in range(N)]
    leaves = jax.tree.leaves(params)

    @jax.jit
    def encoded(params, subsets):
        gradients = simulation.subset_gradients(loss, plan, params, subsets)[1]
        return simulation.encode_gradients(plan, gradients)

    simulated = jax.tree.map(np.asarray, encoded(params, subsets))
    for w, worker in enumerate(workers(params, plan, parts)):
        messages = list(worker.compute(1, 1, leaves))
        assert [m.task.block for m in messages] == list(range(len(plan.blocks)))
        for m in messages:
            want = np.concatenate([piece[w] for piece in simulated[m.task.block]])
            assert m.values.dtype == want.dtype
            assert m.seconds > 0
            # Measured: 3e-7; gradients one by one against a batch of them. Of float64
            # are the sums below.
            np.testing.assert_allclose(m.values, want, atol=20 * 2.0**-23)


def test_blocks_of_a_share_of_the_samples_add_up(x64):
    """Also where some subsets' share is empty; chunks are single samples."""
    params, batch, _ = case(5, dtype=np.float64)
    count = sum(np.size(leaf) for leaf in params.values())
    uncoded, coded = (
        coding_plan(jax.random.key(0), params, counts)
        for counts in ([count, 0, 0], [0, 0, count])
    )
    first_block = uncoded.blocks[0]._replace(share=(0.0, 2 / 3))
    second_block = coded.blocks[0]._replace(share=(2 / 3, 1.0))
    plan = jax.tree.map(
        np.asarray,
        CodingPlan(
            uncoded.codes + coded.codes, (first_block, second_block), True, chunks=9
        ),
    )
    parts = split_unevenly(batch, N)
    sizes = np.array([len(part["y"]) for part in parts])
    group = workers(params, plan, parts, sizes / sizes.mean(), x64=True)
    assert_decoded(plan, group, params, raveled(gradient(params, batch)))


def test_all_holders_of_a_subset_draw_the_same_samples(x64):
    """And compute them in two chunks, of 2 and 1."""
    params, batch, plan = case(15, np.float64)
    plan, parts = replace(plan, chunks=2), split_unevenly(batch, N)
    group = workers(params, plan, parts, batch_size=3, x64=True)
    for iteration in (1, 2):
        # As the workers are told to draw; the test is that the decoded sum is of these
        # samples.
        rows = [
            np.random.default_rng([11, iteration, j]).permutation(5)[:3]
            for j in range(N)
        ]
        drawn = [
            jax.tree.map(lambda x, r=r: x[r], part)
            for part, r in zip(parts, rows, strict=True)
        ]
        want = np.mean([raveled(gradient(params, part)) for part in drawn], axis=0)
        assert_decoded(plan, group, params, want, 7, iteration)


def test_chunks_of_a_loss_that_is_a_sum_count_alike(x64):
    params, batch, _ = case(15, np.float64)
    count = sum(leaf.size for leaf in params.values())
    plan = coding_plan(jax.random.key(0), params, [0, count, 0], mean=False)
    plan = jax.tree.map(np.asarray, replace(plan, chunks=2))  # of 3 and 2 samples

    def total(params, batch):
        return len(batch["y"]) * loss(params, batch)

    parts = dict(enumerate(split_unevenly(batch, N)))
    group = [
        WorkerProcess(Duty(total, plan, params, np.ones(N), None, 11, True), w, parts)
        for w in range(N)
    ]
    # 15 times as large: measured 7e-15.
    messages = [list(worker.compute(1, 1, jax.tree.leaves(params))) for worker in group]
    want = 15 * raveled(gradient(params, batch))
    np.testing.assert_allclose(decoded(plan, messages, params), want, atol=3e-14)


def test_all_workers_compile_the_same_programs():
    params, batch, plan = case()
    group = workers(params, plan, split_unevenly(batch, N))
    for worker in group:
        worker.warm_up()
    cuts = [cut for worker in group for cut in worker._stages.values()]
    assert len(cuts) == N  # all subsets are of the same shape
    for block in range(len(plan.blocks)):
        for programs in zip(*(cut.due(block, block) for cut in cuts), strict=True):
            assert (
                len(
                    {
                        p.run.lower(*(v.aval for v in p.takes)).as_text()
                        for p in programs
                    }
                )
                == 1
            )
    leaves = [np.zeros_like(params[name]) for name in params]
    count = len(plan.codes[1].subsets[0])
    pieces = [[leaves[piece.leaf] for piece in plan.blocks[1].pieces]] * count
    arguments = [(1, worker._rows[1], np.ones(count), pieces) for worker in group]
    assert (
        len(
            {
                worker._encode.lower(*g).as_text()
                for worker, g in zip(group, arguments, strict=True)
            }
        )
        == 1
    )
    # Their codes differ.
    assert len({tuple(worker._rows[1].tolist()) for worker in group}) == N


def test_a_worker_that_is_dropped_takes_its_programs_with_it():
    """Not with the next full collection, which may be many plans later."""
    params, batch, plan = case()
    worker = workers(params, plan, split_unevenly(batch, N))[0]
    worker.warm_up()
    references = [weakref.ref(worker), *map(weakref.ref, worker._stages.values())]
    gc.disable()
    try:
        del worker
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_a_worker_stops_between_blocks_and_wakes_where_it_is_never_done():
    params, batch, plan = case()
    worker = workers(params, plan, split_unevenly(batch, N))[1]
    leaves = jax.tree.leaves(params)
    worker.warm_up()
    messages = worker.compute(3, 0, leaves)
    next(messages)
    worker.stop(2)  # of an old iteration: no matter
    next(messages)
    worker.stop(3)
    assert list(messages) == []
    assert list(worker.compute(3, 0, leaves)) == []  # late: nothing to do any more
    paced = worker.compute(4, 0, leaves, never_after_the_first())
    next(paced)
    threading.Timer(0.2, worker.stop, [4]).start()
    assert list(paced) == []


def never_after_the_first():
    """A pace: no time for the first of three tasks, and no end of the second."""
    return Pace(0.0, 1e30, np.array([0.0, 1.0, 2.0]), np.zeros(3))


class Clock:
    """In place of `time`: it goes on in sleep alone, calls `happens` at `moment`."""

    def __init__(self, moment, happens):
        self.now = 0.0
        self.moment = moment
        self.happens = happens

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        end = self.now + seconds
        if self.now <= self.moment < end:
            self.now = self.moment
            self.happens()
        self.now = end


def test_slowness_on_purpose_goes_on_to_the_end_of_a_chunk_and_makes_the_next_call_late(
    monkeypatch,
):
    """The second block, two chunks of two subsets, takes 2 s, so a chunk 0.5."""
    params, batch, plan = case()
    plan = replace(plan, chunks=2)
    worker = workers(params, plan, split_unevenly(batch, N))[1]
    leaves = jax.tree.leaves(params)
    worker.warm_up()
    clock = Clock(1.6, lambda: worker.stop(1))
    monkeypatch.setattr("bcgc_jax.cluster.worker.time", clock)
    pace = Pace(0.25, 1.0, np.array([1.0, 3.0, 60.0]), np.zeros(3))
    (first,) = worker.compute(1, 0, leaves, pace)
    assert (first.done, first.seconds, clock.now) == (1.25, 0.0, 1.75)
    first, *messages = worker.compute(2, 0, leaves)
    assert first.overrun == pytest.approx(0.15)
    assert {message.overrun for message in messages} == {first.overrun}
    assert [message.overrun for message in worker.compute(3, 0, leaves)] == [0.0] * len(
        plan.blocks
    )


@pytest.mark.parametrize("overlap", [False, True])
def test_a_link_sends_after_computing_or_beside_it_and_then_keeps_nobody_from_stopping(
    overlap,
):
    params, batch, plan = case()
    worker = workers(params, plan, split_unevenly(batch, N))[1]
    leaves = jax.tree.leaves(params)
    worker.warm_up()
    pace = Pace(
        0.05, 0.1, np.array([1.0, 2.0, 2.0]), np.array([0.04, 0.34, 99.0]), overlap
    )
    begin = time.perf_counter()
    said = worker.compute(1, 0, leaves, pace)
    # Computed at 0.15 and 0.25; or the second one at 0.29, after the first was sent.
    assert next(said).done >= 0.19
    assert next(said).done >= (0.55 if overlap else 0.59)
    if overlap:  # else the last one is sent until it is
        threading.Timer(0.1, worker.stop, [1]).start()
        assert list(said) == []
        assert time.perf_counter() - begin < 60


def test_no_chunk_is_begun_after_stop():
    """The loss counts its passes, six in a task, and in the first of them says stop."""
    params, batch, _ = case()
    count = sum(leaf.size for leaf in params.values())
    plan = jax.tree.map(
        np.asarray, coding_plan(jax.random.key(0), params, [0, 0, count])
    )
    plan = replace(plan, chunks=2)
    began, parts = [], split_unevenly(batch, N)

    def counting(params, batch):
        def begin(x):
            began.append(1)
            if worker is not None:
                worker.stop(1)
            return x

        x = jax.pure_callback(
            begin, jax.ShapeDtypeStruct((), batch["y"].dtype), batch["y"][0]
        )
        return loss(params, batch) * jax.lax.stop_gradient(1 + 0 * x)

    worker: WorkerProcess | None = None
    process = WorkerProcess(
        Duty(counting, plan, params, np.ones(N), None, 11, False),
        0,
        dict(enumerate(parts)),
    )
    process.warm_up()
    assert len(began) == 2 * N
    worker = process
    assert list(process.compute(1, 0, jax.tree.leaves(params))) == []
    assert len(began) == 2 * N + 1


def scheduled(params):
    """All coordinates, on all three subsets of each worker."""
    return schedule_plan(cyclic_plan(25.0, 3), params, N)


def test_sums_that_are_asked_for_are_plain_gradients(precision):
    params, batch, _ = case(13, precision)
    plan, parts = scheduled(params), split_unevenly(batch, N)
    weights = np.array([len(part["y"]) for part in parts]) * N / 13
    leaves = jax.tree.leaves(params)
    first = np.cumsum([0, *(leaf.size for leaf in leaves)])  # coordinate of each leaf
    for w, worker in enumerate(
        workers(params, plan, parts, weights, x64=precision == np.float64)
    ):
        said = list(worker.compute(5, 0, leaves))
        assert [m.task for m in said] == list(plan.tasks(w))
        assert [m.task for m in said if m.values is not None or m.seconds <= 0] == []
        gradients = [weights[j] * raveled(gradient(params, parts[j])) for j in range(N)]
        for subsets in ([w], [0], [2, 1], [1, 2, 0]):
            want = np.sum([gradients[j] for j in subsets], axis=0)
            pieces = plan.blocks[0].pieces
            want = np.concatenate(
                [want[first[leaf] + a : first[leaf] + b] for leaf, a, b in pieces]
            )
            vector = worker.deliver(5, 0, subsets)
            assert vector.dtype == precision
            # Measured: 5e-7 and 9e-16.
            np.testing.assert_allclose(vector, want, atol=20 * np.finfo(precision).eps)
        assert worker.deliver(4, 0, [w]) is None  # of another call


def test_a_group_s_sum_is_the_same_to_the_bit_whoever_computes_it():
    """Whichever block a worker begins a subset with: codes magnify differences."""
    params, batch, _ = case(15)
    groups = tuple((w,) for w in range(N)), ((0, 1), (2,)), ((0, 1, 2),)
    sizes, data = np.array([9.0, 10.0, 6.0]), np.array([[1, 2, 3], [1, 1, 3]])
    nested = Plan(
        jnp.asarray(sizes), np.arange(3), data, np.ones(3), OneOfEach(groups, (0, 0, 1))
    )
    plan = group_plan(nested, params, N)
    sent = [
        list(w.compute(1, 0, jax.tree.leaves(params)))
        for w in workers(params, plan, split_unevenly(batch, N))
    ]
    for block, group in ((1, (0, 1)), (2, (0, 1, 2))):
        first_sum, *sums = (sent[w][block].values for w in group)
        for next_sum in sums:
            np.testing.assert_array_equal(next_sum, first_sum)


def test_nothing_is_compiled_after_the_warm_up():
    params, batch, plan = case(13)  # subsets of two shapes, and chunks too
    for variant in (replace(plan, chunks=2), scheduled(params)):
        worker = workers(params, variant, split_unevenly(batch, N))[0]
        worker.warm_up()
        with compilations() as compiled:
            assert len(list(worker.compute(1, 0, jax.tree.leaves(params)))) == len(
                variant.tasks(0)
            )
        assert compiled == []


def test_what_is_done_can_be_had_while_the_rest_is_computed_and_until_the_next_call():
    params, batch, _ = case()
    plan = scheduled(params)
    worker = workers(params, plan, split_unevenly(batch, N))[1]
    leaves = jax.tree.leaves(params)
    worker.warm_up()
    said = worker.compute(1, 0, leaves, never_after_the_first())
    next(said)
    first = worker.deliver(1, 0, [1])
    thread = threading.Thread(target=list, args=(said,))
    thread.start()
    np.testing.assert_array_equal(worker.deliver(1, 0, [1]), first)
    worker.stop(1)
    thread.join()
    np.testing.assert_array_equal(worker.deliver(1, 0, [1]), first)  # a sum is a copy
    assert len(list(worker.compute(2, 0, [2 * leaf for leaf in leaves]))) == 3
    assert worker.deliver(1, 0, [1]) is None
    assert np.abs(worker.deliver(2, 0, [1]) - first).max() > 1e-3


def test_large_messages_are_kept_until_asked_for_but_not_where_everyones_are_needed(
    monkeypatch,
):
    params, batch, plan = case()
    parts, leaves = split_unevenly(batch, N), jax.tree.leaves(params)
    worker = workers(params, plan, parts)[1]
    sent = [message.values for message in worker.compute(1, 0, leaves)]
    # Ten coordinates of float32.
    monkeypatch.setattr("bcgc_jax.cluster.worker._MUCH", 4 * 10)
    said = list(worker.compute(2, 0, leaves))
    # a code that needs them sends float64
    assert [values.nbytes for values in sent] == [36, 80, 24]
    assert [message.values is None for message in said] == [False, True, False]
    block, subsets = said[1].task
    np.testing.assert_array_equal(worker.deliver(2, block, subsets), sent[block])
    assert worker.deliver(1, block, subsets) is None
