"""Gradients of real processes that die, stop, are slow or fail, against the uncoded."""

import dataclasses
import os
import re
import signal
import subprocess
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cluster import Checkpoints, Cluster, InjectedDelay, Run, train_on_cluster
from bcgc_jax.cluster.planning import ClosedLoop, Told, scheme_for
from bcgc_jax.cluster.processes import WorkersLost
from bcgc_jax.coding import Training, schedule_plan, train
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import coding_plan, split_batch, split_unevenly
from bcgc_jax.coding.pace import Pace
from bcgc_jax.plans.plan import cyclic_plan
from bcgc_jax.plans.sharing import WorkSharing
from tests.cluster.training import (
    ADAM,
    COUNT,
    LAW,
    PROBLEM,
    SGD,
    N,
    assert_descended,
    assert_exact,
    case,
    exact,
    kill,
    loss,
    raveled,
    trained,
)
from tests.compilations import compilations
from tests.oracles.runtimes import delivered_runtime
from tests.problems import not_none
from tests.processes import gone, living
from tests.raising import raising
from tests.scripts import ROOT, python

pytestmark = pytest.mark.slow


def new_params(params, rng):
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def ending(finish):
    """The pace of workers that end their tasks at these times, `[tasks, N]`."""
    tasks, workers = np.shape(finish)
    return Pace(np.zeros(workers), np.ones(workers), finish, np.zeros(tasks))


@pytest.fixture(scope="module")
def cluster():
    with Cluster(N, patience=1.0) as running:
        yield running


def assigned(cluster, work):
    """Parameters and data, once workers have a schedule, or a code of these levels."""
    params, data = case()
    coded = isinstance(work, list)
    plan = (
        coding_plan(jax.random.key(1), params, work)
        if coded
        else schedule_plan(work, params, N)
    )
    cluster.assign(loss, plan, params, split_unevenly(data, N))
    return params, data


def happened(cluster, since):
    return [(fault.worker, fault.what) for fault in cluster.faults[since:]]


@pytest.fixture
def unreplaced(cluster):
    """The cluster, as long as it replaces nobody."""
    cluster.replace = False
    yield cluster
    cluster.replace = True
    cluster.resize(N)


def test_the_store_of_ray_holds_the_gradients_of_many_steps(cluster):
    """A full store stops all for 2 s. It had 100 MB: five steps of `busy`'s network."""
    assert cluster.ray.cluster_resources()["object_store_memory"] > 2**29


# Blocks at levels 0 and 2: the first needs every worker.
TWO_LEVELS = [COUNT - 24, 0, 24, 0]


def test_gradients_are_exact_whoever_is_late(cluster):
    params, data = assigned(cluster, TWO_LEVELS)
    rng = np.random.default_rng(0)
    for _ in range(20):
        params = new_params(params, rng)
        pace = Pace(
            np.zeros(N), rng.exponential(0.02, N), np.array([0.3, 1.0]), np.zeros(2)
        )
        result, finish = exact(cluster, params, data, pace), pace.ends()
        assert result.arrived.sum(axis=1).tolist() == [4, 2]
        assert result.seconds >= result.completed.max()
        assert np.all(
            result.completed >= np.array([finish[0].max(), np.sort(finish[1])[1]])
        )
        assert {(w.iteration, w.block) for w in result.work} == {
            (cluster.iteration, b) for b in (0, 1)
        }


def test_a_killed_worker_is_replaced_and_who_has_its_number_now_is_left_alone(cluster):
    params, data = assigned(cluster, TWO_LEVELS)
    before, since = cluster.pids, len(cluster.faults)
    late = Pace(np.array([0.0, 0.0, 2.0, 0.0]), np.zeros(N), np.ones(2), np.zeros(2))
    process = cluster[2]
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {process.pid}"])
    with killer, subprocess.Popen(["sleep", "60"]) as innocent:
        process.pid = innocent.pid
        result = exact(cluster, params, data, late)
        assert happened(cluster, since) == [(2, "died"), (2, "replaced")]
        assert innocent.poll() is None
        innocent.kill()
    assert np.flatnonzero(np.not_equal(before, cluster.pids)).tolist() == [2]
    assert result.seconds > 2.5  # its successor began anew
    assert gone([before[2]])  # not only forgotten


def test_redundancy_covers_a_stopped_worker_until_it_is_replaced(cluster):
    params, data = assigned(cluster, [0, COUNT - 20, 20, 0])
    faults, covered = len(cluster.faults), 0
    os.kill(cluster.pids[0], signal.SIGSTOP)
    while len(cluster.faults) == faults:
        result = exact(cluster, params, data)
        covered += 1
        assert not result.arrived[:, 0].any()
    assert covered > 3  # iterations went on without it
    assert happened(cluster, faults) == [(0, "hung"), (0, "replaced")]
    exact(cluster, params, data)


def test_others_do_the_chunks_of_killed_and_stopped_workers_in_the_same_step(
    cluster,
):
    params, data = case(70)
    cluster.assign(
        loss, SharedPlan(WorkSharing(N, 2, 3)), params, split_unevenly(data, N)
    )
    # of a subset, in five chunks; alike, so that nobody is helped without a fault
    pace = Pace(np.zeros(N), np.ones(N), np.ones(1), np.zeros(1))
    for what in (signal.SIGKILL, signal.SIGSTOP):
        since, pid = len(cluster.faults), cluster.pids[2]
        with subprocess.Popen(["sh", "-c", f"sleep 0.35; kill -{what.name[3:]} {pid}"]):
            result = exact(cluster, params, data, pace)
        # What such a step takes, test_shared_round says.
        assert {work.worker for work in result.work if work.subset == 2} - {2}
        # Steps go on until its successor is there.
        while cluster.pids[2] in (None, pid):
            exact(cluster, params, data, pace)
        words = {signal.SIGKILL: "died", signal.SIGSTOP: "hung"}
        assert happened(cluster, since) == [(2, words[what]), (2, "replaced")]
        assert {work.worker for work in exact(cluster, params, data, pace).work} == {
            0,
            1,
            2,
            3,
        }


def test_a_worker_stopped_meanwhile_is_found_while_work_is_given_out(
    cluster, monkeypatch
):
    # as long again as a busy machine needs
    monkeypatch.setattr("bcgc_jax.cluster.processes._LOADING", 5.0)
    pid, since = cluster.pids[2], len(cluster.faults)
    os.kill(pid, signal.SIGSTOP)
    params, data = assigned(cluster, [0, COUNT - 20, 20, 0])
    assert happened(cluster, since) == [(2, "hung"), (2, "replaced")]
    assert gone([pid])
    exact(cluster, params, data)


def fatal(params, batch):
    """A loss that ends its process for some data, not at the zeros of a first trial."""

    def end(has_bias):
        if has_bias:
            os._exit(1)

    if batch["x"].shape[0] == 5:
        jax.debug.callback(end, jnp.any(params["b"] != 0))
    return loss(params, batch)


def failing(params, batch):
    """A loss with a mistake that shows only for some data."""
    if batch["x"].shape[0] == 5:
        raise KeyError("no such column")
    return loss(params, batch)


def test_a_worker_is_given_up_when_its_successor_ends_or_fails_too(
    cluster, monkeypatch
):
    monkeypatch.setattr("bcgc_jax.cluster.processes._ATTEMPTS", 1)
    params, data = case(17)  # a fifth sample for the first worker only
    zeros, parts = jax.tree.map(np.zeros_like, params), split_unevenly(data, N)
    plan = coding_plan(jax.random.key(1), params, [COUNT, 0, 0, 0])
    cluster.assign(fatal, plan, zeros, parts)
    before = len(cluster.faults)
    warned = r"worker 0 died .* is given up: 1 successors ended without"
    refused = r"worker 0 lost.*plan for the workers left"
    with (
        pytest.warns(UserWarning, match=warned),
        pytest.raises(WorkersLost, match=refused),
    ):
        cluster.gradient(params)
    assert happened(cluster, before) == [(0, "died"), (0, "replaced"), (0, "died")]
    assert all("process has died" in f.reason for f in cluster.faults[before::2])
    warned = "worker 0 failed .*no such column.* is given up: 1 successors ended"
    refused = r"worker 0 lost: .*\(KeyError: 'no such column'\)$"
    with (
        pytest.warns(UserWarning, match=warned),
        pytest.raises(WorkersLost, match=refused) as lost,
    ):
        cluster.assign(failing, plan, params, parts)
    assert isinstance(lost.value.__cause__, KeyError)
    cluster.assign(loss, plan, params, parts)  # and the cluster is as good as before
    exact(cluster, params, data)


def test_batches_and_paces_are_drawn_for_each_step_and_the_same_after_a_resumption(
    cluster, tmp_path
):
    params, data = case(16)
    problem = bcgc.Problem(LAW, N, COUNT, N)

    def run(steps, folder=None):
        on = Run(cluster, InjectedDelay(LAW, 1e-4), folder)
        arguments = (
            jax.random.key(5),
            loss,
            Told(problem, "time"),
            on,
            params,
            data,
            SGD,
            steps,
        )
        return train_on_cluster(*arguments, batch_size=1)

    whole, first_half = run(6), run(3, tmp_path / "half")
    cluster.gradient(params)  # no step of a training
    second_half = run(6, tmp_path / "half")
    assert second_half.first_step == 3
    assert np.array_equal(
        whole.paced, np.concatenate([first_half.paced, second_half.paced])
    )
    assert len(set(whole.paced.tolist())) == 6
    # measured 1e-7
    np.testing.assert_allclose(
        raveled(second_half.params), raveled(whole.params), atol=3e-6
    )
    # what is drawn follows
    assert [w.iteration for w in whole.work][0 :: len(whole.work) - 1] == [0, 5]


def test_a_pace_is_that_of_the_problem_and_the_simulated_clock_has_the_same_steps(
    cluster,
):
    params, data = case(16)
    start, pace = bcgc.Weibull(9.0, 0.7), InjectedDelay(LAW, 2e-3)
    problem = bcgc.Problem(
        LAW, N, COUNT, 16, start_up=start, send_time=0.4, chain_cycles=0.1
    )
    training = trained(cluster, Told(problem, "time"), params, data, 3, pace=pace)
    x = np.asarray(bcgc.solve(problem, "time").rounded)
    key = jax.random.split(jax.random.key(5), 3)[1]
    pace = dataclasses.replace(pace, start_ups=start)
    drawn = [pace.draw(key, step, N) for step in range(3)]
    for step, (starts, times) in enumerate(drawn):
        expected = delivered_runtime(
            x, starts, times, 16, 1, send_time=0.4 * 2e-3, chain_cycles=0.1
        )
        assert training.paced[step] == pytest.approx(expected, rel=1e-5)
        assert training.seconds[step] > training.paced[step]
    starts, times = (np.array(rows) / 2e-3 for rows in zip(*drawn, strict=True))
    scheme = scheme_for(
        jax.random.key(5), Told(problem, "time"), range(N), params, None
    )
    simulation = train(
        key, loss, scheme, times, params, split_batch(data, N), SGD, 3, start_ups=starts
    )
    assert issubclass(type(simulation), Training)
    assert issubclass(type(training), Training)
    np.testing.assert_allclose(
        training.paced, 2e-3 * not_none(simulation.fresh), rtol=1e-5
    )
    np.testing.assert_allclose(
        raveled(training.params), raveled(simulation.params), atol=3e-6
    )


def test_without_replacement_the_workers_left_plan_anew(unreplaced):
    params, data = case()
    training = trained(
        unreplaced, Told(PROBLEM, "time"), params, data, 5, before_step=kill(1, 2)
    )
    assert unreplaced.num_workers == N - 1
    assert training.num_workers.tolist() == [4, 4, 3, 3, 3]


# Each worker its own subset, and all of them.
ALONE, WHOLE = (cyclic_plan(64.0, stored) for stored in (1, N))


def harmed(cluster, params, data, pace, sign):
    """A gradient that is exact, in the middle of which worker 0 gets a signal."""
    with subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -{sign} {cluster.pids[0]}"]):
        return exact(cluster, params, data, pace)


def test_gradients_are_exact_though_a_worker_is_killed_in_every_tenth_iteration(
    cluster,
):
    """In the middle of it, one after another."""
    params, data = assigned(cluster, WHOLE)
    rng = np.random.default_rng(3)
    plan = cluster.plan
    since = len(cluster.faults)
    tasks = {
        (w, task.block, task.subsets[0]) for w in range(N) for task in plan.tasks(w)
    }
    for step in range(20):
        params = new_params(params, rng)
        load = np.cumsum(np.full(N, 0.03 / N))
        pace = Pace(np.zeros(N), 1 + rng.exponential(1, N), load, np.zeros(N))
        if step % 10 == 5:
            subprocess.Popen(
                ["sh", "-c", f"sleep 0.01; kill -9 {cluster.pids[step // 10]}"]
            )
        result = exact(cluster, params, data, pace)
        # A block cannot be complete before the last of its subsets was to be done by
        # the first who does it.
        assert np.all(result.completed >= plan.completed(pace))
        done = [(work.worker, work.block, work.subset) for work in result.work]
        assert set(done) <= tasks
        assert len(set(done)) == len(done) or step % 10 >= 5  # a successor begins anew
        assert {subset for _, _, subset in done} == set(range(N))
        assert {work.iteration for work in result.work} == {cluster.iteration}
    faults = happened(cluster, since)
    assert [w for w, what in faults if what == "died"] == [0, 1]


def test_what_a_stopped_worker_is_asked_for_is_asked_of_others_while_they_work_on(
    cluster,
):
    """When 0 is stopped, workers 0, 1 and 3 have two subsets each, and 2 has none.

    Nobody comes to the end of its tasks: the step does not wait for that.
    """
    params, data = assigned(cluster, WHOLE)
    finish = np.full((N, N), np.inf)
    finish[:2] = [0.0, 0.0, np.inf, 1.5]
    finish[2, [1, 3]] = [2.25, 2.0]
    since, pid = len(cluster.faults), cluster.pids[0]
    result = harmed(cluster, params, data, ending(finish), "STOP")
    assert happened(cluster, since) == [(0, "hung"), (0, "replaced")]
    assert result.arrived.tolist() == [[False, True, False, True]]
    assert gone([pid])


@pytest.mark.parametrize(("sign", "what"), [("KILL", "died"), ("STOP", "hung")])
def test_a_worker_that_is_done_and_then_lost_is_noticed_when_it_is_asked(
    cluster, sign, what
):
    params, data = assigned(cluster, ALONE)
    finish = np.zeros((1, N))
    finish[0, 3] = 1.5
    since, pid = len(cluster.faults), cluster.pids[0]
    result = harmed(cluster, params, data, ending(finish), sign)
    assert happened(cluster, since) == [(0, what), (0, "replaced")]
    assert result.arrived[0].all()  # once its successor has done its own subset
    assert gone([pid])


def test_a_stopped_worker_is_covered_and_what_it_says_later_does_not_count(
    cluster, monkeypatch
):
    (params, data), rng = assigned(cluster, WHOLE), np.random.default_rng(1)
    monkeypatch.setattr(cluster, "patience", 60.0)
    since = len(cluster.faults)
    pid = cluster.pids[2]
    back = False
    os.kill(pid, signal.SIGSTOP)
    for _ in range(5):
        result = exact(cluster, params := new_params(params, rng), data)
        assert not result.arrived[:, 2].any()
    # It finds old iterations, and does them or is told not to.
    os.kill(pid, signal.SIGCONT)
    while not back:
        params = new_params(params, rng)
        result = exact(cluster, params, data, ending(np.full((N, N), 0.02)))
        back = any(work.worker == 2 for work in result.work)
    assert happened(cluster, since) == []


def test_a_slow_worker_is_left_alone_and_answers_while_it_is_slow(cluster):
    params, data = assigned(cluster, ALONE)
    since, finish = len(cluster.faults), np.zeros((1, N))
    finish[0, 1] = 2.5 * cluster.patience
    result = exact(cluster, params, data, ending(finish))
    assert happened(cluster, since) == []
    assert result.arrived[0].all()
    assert result.seconds > 2.5 * cluster.patience


def test_sums_and_batches(cluster):
    """A loss is a sum, and all who store a subset draw the same samples."""
    params, data = case(16)

    def total(params, batch):
        return len(batch["y"]) * loss(params, batch)

    plan = schedule_plan(WHOLE, params, N, mean=False)
    cluster.assign(total, plan, params, split_unevenly(data, N), batch_size=2, seed=3)
    for iteration in (1, 2):
        rows = [
            4 * j + np.random.default_rng([3, iteration, j]).permutation(4)[:2]
            for j in range(N)
        ]
        batch = jax.tree.map(lambda x, r=rows: x[np.concatenate(r)], data)
        result = cluster.gradient(params, iteration=iteration)
        assert_exact(jax.tree.map(lambda x: x / 8, result.gradient), params, batch)


def left_plan(problem, left, method, batch_size=None):
    """For those who are left of the workers of a problem."""
    return scheme_for(
        jax.random.key(0), Told(problem, method), left, case()[0], batch_size
    )


def assert_optimal(plan, law):
    """As the solver has it for so many workers."""
    best = bcgc.solve(bcgc.Problem(law, plan.num_workers, COUNT, 18))
    sizes = {block.level: block.size for block in plan.blocks}
    assert [sizes.get(n, 0) for n in range(plan.num_workers)] == np.asarray(
        best.rounded
    ).tolist()


def test_the_plan_for_the_workers_left_is_that_of_their_own_laws():
    laws = [bcgc.Uniform(1.0, high) for high in (2.0, 3.0, 40.0, 5.0)]
    problem = bcgc.Problem(bcgc.Heterogeneous(laws), N, COUNT, 18)
    scheme = left_plan(problem, [0, 1, 3], "uncoded")
    without = bcgc.Problem(
        bcgc.Heterogeneous([laws[0], laws[1], laws[3]]), 3, COUNT, 18
    )
    # Each sends the whole gradient of a third of the samples.
    np.testing.assert_allclose(scheme.load, [float(without.scale) * COUNT])
    assert scheme.plan.num_workers == 3
    batch = left_plan(
        dataclasses.replace(problem, num_samples=8), [0, 1, 3], "uncoded", 2
    )
    # two samples of each subset, whoever is left
    np.testing.assert_allclose(batch.load, [2 * COUNT])
    assert left_plan(PROBLEM, [0, 1, 3], WHOLE).plan.turns == 3


def test_planning_for_fewer_workers_compiles_no_solver_again():
    left_plan(PROBLEM, range(N), "optimal")
    with compilations() as programs:
        solution = left_plan(PROBLEM, [0, 2], "optimal")
        left_plan(dataclasses.replace(PROBLEM, num_samples=8), [0, 1, 3], "optimal", 2)
    assert not [
        name
        for name in programs
        if name in ("jit(optimum)", "jit(improve_units)", "jit(_pace)")
    ]
    assert_optimal(solution.plan, LAW)


def test_a_plan_for_the_workers_left_is_found_whatever_the_scheme_and_the_law():
    with pytest.warns(
        UserWarning, match='"tandon:3" is no scheme for the workers left'
    ):
        assert_optimal(left_plan(PROBLEM, [0, 2], "tandon:3").plan, LAW)
    rows = bcgc.EmpiricalRows(np.random.default_rng(0).uniform(1, 2, (5, 3)))
    with pytest.warns(UserWarning, match="planned as if independent"):
        left = left_plan(bcgc.Problem(rows, 3, COUNT, 18), [0, 2], "uncoded")
    assert left.plan.num_workers == 2


def test_refusals(cluster, monkeypatch):
    monkeypatch.setattr("bcgc_jax.cluster.processes._FREEING", 0.1)
    params, data = case()
    plan = coding_plan(jax.random.key(0), params, [COUNT, 0, 0, 0])
    problem = bcgc.Problem(PROBLEM.cycle_time, 3, COUNT)
    # Others may have lost some.
    cpus = 100 - sum(process is not None for process in cluster._all)
    arguments, parts = (cluster, params, data, SGD, 1), split_unevenly(data, N)
    refused: dict[str, Callable[[], object]] = {
        "4 subsets": lambda: cluster.assign(
            loss, plan, params, split_unevenly(data, 3)
        ),
        "batch_size must be from 1 to 4": lambda: cluster.assign(
            loss, plan, params, parts, batch_size=5
        ),
        "3 workers, the cluster 4": lambda: train_on_cluster(
            jax.random.key(0), loss, Told(problem), *arguments
        ),
        "max_stored must be a whole number from 1": lambda: ClosedLoop(0),
        "patience": lambda: Cluster(2, patience=0),
        f"free CPUs of {cpus} needed: take fewer workers": lambda: cluster.resize(100),
        r"0 free GPUs of 0\.5 needed": lambda: Cluster(2, num_gpus=0.25),
        "at least one worker": lambda: cluster.resize(0),
        r"shape \[steps, 4\]": lambda: InjectedDelay(np.ones((5, 3))).draw(
            jax.random.key(0), 0, N
        ),
    }
    for words, call in refused.items():
        with pytest.raises(ValueError, match=words):
            call()
    begun, broken = list[int](), raising(RuntimeError("no test data"))
    run = Run(cluster, before_step=lambda step, _: begun.append(step))
    with pytest.raises(RuntimeError, match="no test data"):
        train_on_cluster(
            jax.random.key(0),
            loss,
            Told(PROBLEM),
            run,
            *arguments[1:4],
            9,
            evaluate=broken,
        )
    assert begun == [0, 1, 2]
    with pytest.raises(
        ConnectionError, match=r"connected to a Ray cluster already.*ray.shutdown"
    ):
        Cluster(2, address="127.0.0.1:1")


_KILLED = """
import os, pathlib, signal, jax
import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, Run, Told, train_on_cluster
from tests.cluster.training import ADAM, COUNT, LAW, case, loss
from tests.processes import descendants
from tests.waiting import comes_true
folder = pathlib.Path({folder!r})
params, data = case()
problem = bcgc.Problem(LAW, 2, COUNT, len(data["y"]))

def end(step, cluster):
    if step == 5:
        assert comes_true(lambda: any(folder.glob("steps-*.npz")), 120.0)
        print(*cluster.pids, flush=True)
        print(*descendants(os.getpid()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

with Cluster(2) as cluster:
    run = Run(cluster, checkpoints=folder, before_step=end)
    plan = Told(problem, "sharing:2:2")
    train_on_cluster(jax.random.key(5), loss, plan, run, params, data, ADAM, 9)
"""


def test_a_killed_master_leaves_no_process_and_its_successor_goes_on(
    tmp_path,
):
    done = python(_KILLED.format(folder=str(tmp_path / "state")), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers, killed = (
        [int(pid) for pid in line.split()] for line in done.stdout.splitlines()
    )
    assert len(set(workers) & set(killed)) == 2
    # Two agents of Ray's own look for its server for a minute before they end.
    assert gone(killed, but="Agent")
    for pid in living(killed):
        os.kill(pid, signal.SIGKILL)
    params, data = case()
    with Checkpoints(tmp_path / "state") as checkpoints:
        checkpoint = checkpoints.last((params, ADAM.init(params)))
    assert checkpoint is not None
    steps, (later, _) = checkpoint
    assert 1 <= steps <= 5  # the last ones may not have been on disk yet
    assert_descended(later, params, data, ADAM, steps)


def test_without_ray_everything_else_works_and_the_error_says_what_to_install():
    script = (
        "import sys; sys.modules['ray'] = None; from bcgc_jax.cluster import Cluster; "
        "print('imported')"
    )
    done = python(f"{script}; Cluster(2)", cwd=ROOT)
    assert done.stdout == "imported\n"
    assert re.search(
        r"^ImportError: .*pip install '\.\[cluster\]'", done.stderr, re.MULTILINE
    )
