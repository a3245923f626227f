"""Schedules on real processes: gradients against the plain one, through slow, killed, stopped, late ones."""

import os
import signal
import subprocess

import jax
import numpy as np
import pytest

from bcgc_jax.cluster import Cluster, InjectedDelay, Told, calibrate
from bcgc_jax.coding import schedule_plan
from bcgc_jax.coding.gradients import split_unevenly
from bcgc_jax.plans.schedules import Group, schedule_of
from tests.cluster.test_cluster import (
    ADAM,
    PROBLEM,
    N,
    assert_exact,
    case,
    exact,
    gone,
    happened,
    loss,
    trained,
)

pytestmark = pytest.mark.slow

# The first block needs every worker.
MIXED = schedule_of([Group(1, 1), Group(N, 2)], [20, 24, 20])
# Each block survives whoever is lost, as long as one is left.
WHOLE = schedule_of([Group(N, 2)], [44, 20])
# How many tasks a worker has.
TASKS = {"mixed": 1 + N * 2, "whole": N * 2}


@pytest.fixture(scope="module")
def cluster():
    with Cluster(N, patience=1.0) as running:
        yield running


def assigned(cluster, schedule):
    params, data = case()
    cluster.assign(loss, schedule, params, split_unevenly(data, N))
    return params, data


@pytest.fixture
def mixed(cluster):
    return assigned(cluster, MIXED)


@pytest.fixture
def whole(cluster):
    return assigned(cluster, WHOLE)


def harmed(cluster, params, data, finish, sign):
    """A gradient that is exact, in the middle of which worker 0 gets a signal."""
    with subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -{sign} {cluster.pids[0]}"]):
        return exact(cluster, params, data, finish)


def new_params(params, rng):
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def test_gradients_are_exact_whoever_is_late(cluster, mixed):
    (params, data), rng, plan = mixed, np.random.default_rng(0), cluster.plan
    tasks = {(w, task.block, task.subsets[0]) for w in range(N) for task in plan.tasks(w)}
    for _ in range(20):
        params = new_params(params, rng)
        finish = np.cumsum(np.ones((len(plan.order), N)), axis=0) * rng.exponential(0.01, N)
        found = exact(cluster, params, data, finish)
        assert found.arrived[0].all()
        assert found.seconds >= found.completed.max()
        # A block cannot be complete before the last of its subsets was to be done by the first who does it.
        assert np.all(found.completed >= plan.completed(finish))
        done = [(work.worker, work.block, work.subset) for work in found.work]
        assert len(set(done)) == len(done)
        assert set(done) <= tasks
        assert {work.iteration for work in found.work} == {cluster.iteration}


def test_gradients_are_exact_though_every_tenth_iteration_a_worker_is_killed(cluster):
    """In the middle of it, one after another; blocks on one, two and all subsets, as in multi-message."""
    schedule = schedule_of([Group(1, 1), Group(2, 2), Group(N, 3)], [9, 8, 8, 13, 13, 13])
    params, data = assigned(cluster, schedule)
    rng, tasks, since = np.random.default_rng(3), len(cluster.plan.order), len(cluster.faults)
    for step in range(20):
        params = new_params(params, rng)
        finish = np.cumsum(np.full((tasks, N), 0.03 / tasks), axis=0) * (1 + rng.exponential(1, N))
        victim = step // 10 if step % 10 == 5 else None
        if victim is not None:
            subprocess.Popen(["sh", "-c", f"sleep 0.01; kill -9 {cluster.pids[victim]}"])
        exact(cluster, params, data, finish)
    faults = happened(cluster, since)
    assert [w for w, what in faults if what == "died"] == [0, 1]


def test_what_a_stopped_worker_is_asked_for_is_asked_of_others_while_they_work_on(cluster):
    """Workers 0 and 1 have two subsets each, worker 3 has two when 0 is stopped, and 2 is slow."""
    params, data = assigned(cluster, schedule_of([Group(N, 8)], [8] * 8))
    finish = np.full((32, N), 30.0)
    finish[:16] = [0.0, 0.0, 30.0, 1.5]
    finish[16:, 1], finish[16:, 3] = 2 + 0.5 * np.arange(16), 2.25 + 0.5 * np.arange(16)
    since, pid = len(cluster.faults), cluster.pids[0]
    found = harmed(cluster, params, data, finish, "STOP")
    assert happened(cluster, since) == [(0, "hung"), (0, "replaced")]
    assert found.arrived.tolist() == [[False, True, False, True]] * 8
    assert found.seconds < 8  # and not only when nobody speaks any more
    assert gone([pid])


@pytest.mark.parametrize(("sign", "what"), [("KILL", "died"), ("STOP", "hung")])
def test_a_worker_that_is_done_and_then_lost_is_noticed_when_it_is_asked(cluster, mixed, sign, what):
    params, data = mixed
    finish = np.zeros((TASKS["mixed"], N))
    finish[0, 3] = 1.5  # its own subset of the first block, which nobody else has
    finish[1:, 3] = 60.0
    since, pid = len(cluster.faults), cluster.pids[0]
    found = harmed(cluster, params, data, finish, sign)
    assert happened(cluster, since) == [(0, what), (0, "replaced")]
    assert found.seconds < 55  # once its successor has its own subset of the first block
    assert found.arrived[0].all()
    assert gone([pid])


def test_a_stopped_worker_is_covered_and_what_it_says_later_does_not_count(cluster, whole):
    (params, data), rng = whole, np.random.default_rng(1)
    patience, cluster.patience = cluster.patience, 60.0
    try:
        since, pid = len(cluster.faults), cluster.pids[2]
        os.kill(pid, signal.SIGSTOP)
        for _ in range(5):
            found = exact(cluster, params := new_params(params, rng), data)
            assert not found.arrived[:, 2].any()
        os.kill(pid, signal.SIGCONT)  # it finds old iterations, and does them or is told not to
        back = False
        while not back:
            params = new_params(params, rng)
            found = exact(cluster, params, data, np.full((TASKS["whole"], N), 0.02))
            back = any(work.worker == 2 for work in found.work)
        assert happened(cluster, since) == []
    finally:
        cluster.patience = patience


def test_a_slow_worker_is_left_alone_and_answers_while_it_is_slow(cluster, mixed):
    params, data = mixed
    since, finish = len(cluster.faults), np.zeros((TASKS["mixed"], N))
    finish[1:, :2] = 60.0  # they wait as if they computed
    finish[0, 1] = 2.5 * cluster.patience
    found = exact(cluster, params, data, finish)
    assert happened(cluster, since) == []
    assert found.arrived[0].all()
    assert 2.5 * cluster.patience < found.seconds < 30


def test_without_replacement_the_others_go_on(cluster, whole):
    params, data = whole
    cluster.replace = False
    try:
        os.kill(cluster.pids[1], signal.SIGKILL)
        for _ in range(3):
            found = exact(cluster, params, data, np.full((TASKS["whole"], N), 0.3))
            assert not found.arrived[:, 1].any()
        assert cluster.lost == (1,)
    finally:
        cluster.replace = True
        cluster.resize(N)


def test_training_is_plain_gradient_descent_whoever_is_lost(cluster):
    params, data = case()
    pace = InjectedDelay(PROBLEM.cycle_time, 1e-4)

    def harm(step, running):
        if step == 4:
            os.kill(running.pids[0], signal.SIGKILL)

    found = trained(cluster, Told(PROBLEM, MIXED), params, data, 12, ADAM, before_step=harm, pace=pace)
    faults = [(f.iteration, f.worker, f.what) for f in found.faults]
    assert faults == [(4, 0, "died"), (4, 0, "replaced")]
    assert np.all(found.seconds >= found.paced)
    assert len({round(float(paced), 9) for paced in found.paced}) == 12
    assert calibrate(found.work, cluster.plan, len(data["y"])).cycle_times.shape == (12, N)


def test_sums_and_batches_and_leaves_as_units(cluster):
    """A loss that is a sum, whole leaves, and samples drawn anew: the same for all who hold a subset."""
    params, data = case(16)

    def total(params, batch):
        return len(batch["y"]) * loss(params, batch)

    plan = schedule_plan(schedule_of([Group(N, 2)], [20, 44]), params, N, units="leaves", mean=False)
    assert [block.size for block in plan.blocks] == [16, 48]
    cluster.assign(total, plan, params, split_unevenly(data, N), batch_size=2, seed=3)
    for iteration in (1, 2):
        rows = [4 * j + np.random.default_rng([3, iteration, j]).permutation(4)[:2] for j in range(N)]
        some = jax.tree.map(lambda x, r=rows: x[np.concatenate(r)], data)
        found = cluster.gradient(params, iteration=iteration)
        assert_exact(jax.tree.map(lambda x: x / 8, found.gradient), params, some)
