"""Machines that raise, nodes that end, endless paces, broken checkpoints."""

import contextlib
import dataclasses
import itertools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, InjectedDelay, Told, train_on_cluster
from bcgc_jax.cluster.engine import (
    _at_work_in,
    _check_answers,
    cause_of,
    reason_of,
    session,
)
from bcgc_jax.cluster.processes import Process, Processes
from bcgc_jax.cluster.worker import noted
from bcgc_jax.coding.gradients import coding_plan, split_unevenly
from bcgc_jax.coding.pace import Pace
from tests.cluster.training import COUNT, PROBLEM, SGD, case, exact, loss, trained
from tests.processes import descendants, gone
from tests.raising import raising
from tests.scripts import ROOT, python
from tests.signals import ctrl_c
from tests.waiting import comes_true

STORE: Any = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


class Raised(RuntimeError):
    """As Ray tells of what a task raised."""

    def __init__(self, text, cause=None):
        super().__init__(text)
        self.cause = cause


def test_a_reason_is_one_line_of_what_ray_says():
    for error, reason in (
        (
            Raised(
                "\x1b[36mray::A.f()\x1b[39m\n  OSError: x", OSError("disk full\nall")
            ),
            "OSError: disk full",
        ),
        (Raised("ray::A.f()", KeyError()), "KeyError"),
        (
            Raised("", RuntimeError("INTERNAL: Traceback:\n  File\nOSError: b\n")),
            "OSError: b",
        ),
        (
            Raised(
                "It\n\tpid: 7\nThe actor is dead because it was `x`. Some common "
                "causes: 1"
            ),
            "it was `x`",
        ),
        (
            Raised("because of an error, \x1b[36mA.f()\x1b[39m\nImportError: no 'b'"),
            "ImportError: no 'b'",
        ),
        (Raised(""), "Raised"),
    ):
        assert reason_of(error) == reason
        cause = cause_of(error)
        assert cause is error.cause or str(cause) == reason


def test_what_a_loss_raises_in_all_workers_is_told_when_all_have_answered():
    judged = []

    def check(errors):
        judged.append(list(errors))
        raise next(iter(errors.values()))

    ray = SimpleNamespace(wait=lambda refs, **_: (refs[:1], refs[1:]))
    ray.exceptions = SimpleNamespace(RayTaskError=Raised, RayError=Exception)
    processes: Any = SimpleNamespace(ray=ray, pause=0.0, check_raised=check)
    processes.starting = lambda: {"a": 0, "b": 1}
    processes.has_loaded = raising(Raised(""))
    with pytest.raises(Raised):
        Processes._wait_until_loaded(processes)
    assert judged == [[0, 1]]


def _raised_for(samples):
    """What one worker of many raises for some samples, as Ray tells of it."""
    error = ValueError("bad sample")
    error.add_note("JAX has removed frames.")
    with pytest.raises(ValueError, match="bad sample") as raised, noted(samples, 7):
        raise error
    return Raised("", pickle.loads(pickle.dumps(raised.value)))


def test_what_two_workers_raise_for_the_same_samples_is_the_loss():
    """Whoever raises alone may have a bad machine."""
    processes: Any = SimpleNamespace(_raised=set(), _raised_for={}, _all=[None] * 4)
    for worker, chunk in ((0, 3), (0, 3), (1, 4)):
        Processes.check_raised(
            processes, {worker: _raised_for(f"chunk {chunk} of subset 1")}
        )
    with pytest.raises(ValueError, match="bad sample") as raised:
        Processes.check_raised(processes, {2: _raised_for("chunk 3 of subset 1")})
    assert raised.value.__notes__[1:] == [
        "It was raised for chunk 3 of subset 1, in iteration 7."
    ]


def _processes(process, **fields):
    """The master's one worker, without Ray."""
    processes: Any = Processes.__new__(Processes)
    fields = {"_all": [process], "_can_hold": lambda count: True} | fields
    vars(processes).update(fields)
    return processes


@pytest.mark.parametrize(
    ("pid", "attempts", "patient", "hung"),
    [(None, 0, 100, 150), (7, 0, 25, 40), (7, 1, 12, 20)],
    ids=["starts", "compiles", "succeeds one that took 5 s"],
)
def test_a_process_that_is_not_ready_has_time_to_answer(pid, attempts, patient, hung):
    """Two minutes to start, half a minute to compile; not thrice as long as others."""
    for waited in (patient, hung):
        process = SimpleNamespace(
            pid=pid,
            attempts=attempts,
            starting="a reference",
            asked="a question",
            asked_at=time.monotonic() - waited,
            has_answered=lambda: False,
        )
        processes = _processes(process, patience=1.0, _started_in=5.0)
        assert ("no answer" in processes.silence(0)) == (waited == hung)


@pytest.mark.parametrize(
    ("back", "short"), [(8.0, ""), (15.0, "0 free CPUs of 1 needed")]
)
def test_cpus_of_workers_that_have_ended_may_come_back_in_seconds(
    back, short, monkeypatch
):
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr("bcgc_jax.cluster.processes.time", clock)
    ray = SimpleNamespace(available_resources=lambda: {"CPU": float(now >= back)})
    assert _processes(None, ray=ray, _needs={"CPU": 1.0})._shortage(1) == short


def test_a_worker_that_is_two_calls_behind_gets_nothing_until_the_first_has_ended():
    ray = SimpleNamespace(wait=lambda references, **_: ([], references))
    for unfinished, awaited in ((["a"], None), (["a", "b"], "a")):
        assert Process(ray, None, "here", unfinished=unfinished).awaited() == awaited


def test_a_worker_is_given_up_after_three_successors_without_an_iteration():
    begun_anew = []
    process: Any = SimpleNamespace(pid=7, node="here", end=lambda: None)
    process.has_answered = lambda: True
    fields: Any = {"replace": True, "iteration": 0, "faults": [], "_missing": 0}
    fields |= {"_shortage": lambda count: "", "_started_in": 5.0}
    fields |= {"_spawn": lambda *arguments: begun_anew.append(arguments)}
    process.attempts = 2
    _processes(process, **fields).lose(0, "died", "it was killed")
    assert begun_anew == [(0, 3, "here")]
    process.attempts = 3
    with pytest.warns(UserWarning, match="worker 0 died .* is given up: 3 successors"):
        _processes(process, **fields).lose(0, "died", "it was killed")
    assert len(begun_anew) == 1


def test_rays_processes_are_told_from_others_by_their_program_and_the_folder(tmp_path):
    agent, pipe = "/any/ray/agent.py", subprocess.PIPE
    with contextlib.ExitStack() as stack:
        for words in (
            [agent, tmp_path.parent],
            [tmp_path / "ray/log"],
            [agent, tmp_path],
        ):
            started = subprocess.Popen(
                ["sh", "-c", "echo; read line", *words], stdin=pipe, stdout=pipe
            )
            process: Any = stack.enter_context(started)
            # A program that has not begun yet has no command to be seen.
            process.stdout.read(1)
        assert _at_work_in(str(tmp_path)) == [process.pid]


@pytest.fixture(scope="module")
def nodes():
    """Two nodes, with room for three workers on the first and two on the second."""
    from ray.cluster_utils import Cluster as Nodes

    before = signal.getsignal(signal.SIGTERM)
    with session(None, 1, 0):
        pass  # a Ray of one's own starts after it, in the environment that it leaves
    all_nodes = Nodes(
        initialize_head=True,
        head_node_args=STORE | {"num_cpus": 3, "include_dashboard": False},
    )
    yield all_nodes, all_nodes.add_node(**STORE)
    all_nodes.shutdown()
    signal.signal(signal.SIGTERM, before)  # each node sets its own answer, for good


@pytest.fixture(scope="module")
def spread(nodes):
    with Cluster(4, address=nodes[0].address, patience=2.0) as running:
        yield running
    _check_answers(nodes[0].address)  # what was joined is left running


def full_disk(node):
    """The loss, with one machine or all that raise something when they compile."""

    def no_disk(params, batch):
        import ray

        if node in (None, ray.get_runtime_context().get_node_id()):
            raise OSError("no space left on device")
        return loss(params, batch)

    return no_disk


@pytest.mark.slow
def test_a_machine_that_raises_loses_its_workers_and_a_loss_that_raises_is_told(
    spread, nodes
):
    cluster, (_, second) = spread, nodes
    params, data = case()
    plan = coding_plan(jax.random.key(0), params, [COUNT, 0, 0])
    cluster.assign(full_disk(second.node_id), plan, params, split_unevenly(data, 3))
    # There is room for all three on the first node, and successors go there.
    assert {f.what for f in cluster.faults} == {"failed", "replaced"}
    assert {f.reason for f in cluster.faults if f.what == "failed"} == {
        "OSError: no space left on device"
    }
    assert len(cluster.faults) <= 4
    exact(cluster, params, data)
    faults = len(cluster.faults)
    with pytest.raises(OSError, match="no space left") as raised:
        cluster.assign(full_disk(None), plan, params, split_unevenly(data, 3))
    assert str(raised.value) == "no space left on device"
    assert "no_disk" in str(raised.value.__cause__)  # where it was raised
    assert len(cluster.faults) == faults  # no process was ended for it
    cluster.assign(loss, plan, params, split_unevenly(data, 3))
    exact(cluster, params, data)


def sour(params, batch):
    """A loss that raises for one sample, where its program runs."""

    def check(y):
        if np.any(y == 77):
            raise ValueError("a sample of 77")
        return y

    shape = jax.ShapeDtypeStruct(batch["y"].shape, batch["y"].dtype)
    return loss(params, batch | {"y": jax.pure_callback(check, shape, batch["y"])})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "samples"),
    [("sharing:2:4", "chunk 1 of subset 3"), ("cyclic:2", "subset 3")],
)
def test_what_a_loss_raises_for_one_sample_is_told_at_once(spread, method, samples):
    """Each of the two workers that have it was replaced three times before."""
    params, data = case(160)
    data["y"][135] = 77
    plans = Told(dataclasses.replace(PROBLEM, num_samples=160), method)
    faults = len(spread.faults)
    with pytest.raises(Exception, match="a sample of 77") as raised:
        train_on_cluster(jax.random.key(0), sour, plans, spread, params, data, SGD, 3)
    assert raised.value.__notes__[-1].startswith(
        f"It was raised for {samples}, in iteration"
    )
    assert len(spread.faults) <= faults + 2  # the first one failed, and is replaced


@pytest.mark.slow
def test_a_node_ends_and_another_joins_in_the_middle_of_a_training(spread, nodes):
    cluster, (all_nodes, second) = spread, nodes
    params, data = case()
    faults = len(cluster.faults)
    places = []

    def change(step, running):
        processes = [running[w] for w in range(running.num_workers)]
        places.append({process.node for process in processes})
        if step == 2:
            all_nodes.remove_node(second, allow_graceful=False)
            assert gone([p.pid for p in processes if p.node == second.node_id])
        if step == 5:
            all_nodes.add_node(**STORE)
        # Until the new node is there, but not for ever.
        time.sleep(0.1 if 5 < step < 150 and running.num_workers == 3 else 0)

    with pytest.warns(UserWarning, match=r"worker \d .* is given up: ") as warned:
        training = trained(
            cluster,
            Told(PROBLEM, "nested"),
            params,
            data,
            200,
            atol=2e-5,
            before_step=change,
        )
    # One of those on the second node has room on the first.
    assert [int(n) for n, _ in itertools.groupby(training.num_workers)] == [4, 3, 4]
    assert [len(places[step]) for step in (0, 5, -1)] == [2, 1, 2]
    assert any("no room" in str(warning.message) for warning in warned)
    assert not any("left out" in str(warning.message) for warning in warned)
    # Both died; a successor that was sent to the node, before Ray knew of its end, has
    # never started.
    lost = [f for f in cluster.faults[faults:] if f.what != "replaced"]
    assert [f.what for f in lost].count("died") >= 2
    assert len(lost) <= 4
    assert [f for f in lost if not f.reason] == []
    # Nobody waits for what cannot come: measured 14 s, a process that starts and a new
    # plan included.
    assert training.seconds.max() < 60
    cluster.resize(3)
    with pytest.raises(ValueError, match="call assign first"):
        cluster.gradient(params)


@pytest.mark.slow
def test_a_worker_that_never_answers_is_covered_or_refused_whatever_the_patience(
    spread, monkeypatch
):
    params, data = case()
    plan = coding_plan(jax.random.key(0), params, [0, COUNT, 0])
    spread.assign(loss, plan, params, split_unevenly(data, 3))
    monkeypatch.setattr(spread, "patience", np.inf)

    def pace(*begins):
        return Pace(np.array(begins), np.ones(3), np.zeros(1), np.zeros(1))

    for late in (np.inf, 1e300, 1e10):
        result = exact(spread, params, data, pace(0.0, late, 0.1))
        assert result.arrived[0].tolist() == [True, False, True]
    for slow, message in (
        (pace(0.0, np.inf, np.inf), "would not end"),
        (pace(0.0, np.nan, 0.0), "begin .* 0 or more"),
        (
            pace(0.0, 0.0, 0.0)._replace(unit=np.array([0.0, -1.0, 0.0])),
            "unit .* 0 or more",
        ),
        (pace(0.0, 0.0), r"shape \(3,\)"),
        (pace(0.0, 0.0, 0.0)._replace(load=np.ones(2)), r"shape \(1,\) or \(1, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            spread.gradient(params, slow)
    problem = bcgc.Problem(PROBLEM.cycle_time, 3, COUNT, len(data["y"]))
    times, plans = np.ones((3, 3)), Told(problem, "tandon:1")
    times[1, 2] = np.inf
    training = trained(spread, plans, params, data, 3, pace=InjectedDelay(times, 1e-4))
    assert np.all(np.isfinite(training.paced))
    silent = InjectedDelay(np.where(times == 1, np.inf, 1), 1e-4)
    with pytest.raises(ValueError, match="would not end"):
        trained(spread, plans, params, data, 3, pace=silent)


@pytest.fixture
def place():
    """A folder with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield folder


def begun(script: str, place: str, **options: Any) -> Any:
    """A process that has its temporary files there."""
    command = [sys.executable, "-c", script.format(place=place)]
    options |= {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": ROOT,
    }
    return subprocess.Popen(command, env=os.environ | {"TMPDIR": place}, **options)


_LEFT = """
import os, stat, jax
from bcgc_jax.cluster import Cluster
from bcgc_jax.coding.gradients import coding_plan
from tests.cluster.training import COUNT, assert_exact, case, loss
def settings():
    own = {{"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}}
    return {{name: os.environ[name] for name in os.environ.keys() - own}}
before, (params, data) = settings(), case()
given = loss, coding_plan(jax.random.key(0), params, [COUNT]), params, [data]
with Cluster(1) as second:
    with Cluster(1) as first:
        import ray
        its = ray._private.worker._global_node.temp_dir
        folders = os.scandir({place!r})
        mine = [folder for folder in folders if its.startswith(folder.path)]
        print(*(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in mine))
        first.assign(*given)
    second.assign(*given)
    assert_exact(second.gradient(params).gradient, params, data)
    try:
        first.gradient(params)
    except ValueError as error:
        print(error)
print(ray.is_initialized(), os.listdir({place!r}), settings() == before, flush=True)
with Cluster(1) as third:
    third.assign(*given)
    print("ready", *third.pids, flush=True)
    while True:
        third.gradient(params)
"""


@pytest.mark.slow
def test_a_cluster_leaves_others_their_ray_and_nothing_behind_also_after_sigterm(place):
    running = begun(_LEFT, place)
    try:
        lines = [running.stdout.readline().strip() for _ in range(4)]
        pids = descendants(running.pid)
        running.terminate()
        _, err = running.communicate()
    finally:
        running.kill()
    assert (lines[0], lines[2]) == ("True", "False [] True")
    assert lines[1].startswith("the cluster is closed")
    assert {int(pid) for pid in lines[3].split()[1:]} <= set(pids)
    assert (running.returncode, err) == (128 + signal.SIGTERM, "")
    assert gone(pids)
    assert os.listdir(place) == []


_COLLECTING = """
import gc, threading, time
from bcgc_jax.cluster import Cluster
def free():
    while kept:
        cycle = [kept.pop()]
        cycle.append(cycle)  # a reference that only the collector frees
        time.sleep(2e-4)
thread = threading.Thread(target=free)
with Cluster(1) as cluster:
    kept = [cluster.ray.put(0) for _ in range(5000)]
    gc.set_threshold(1, 1000, 1000)
    thread.start()
thread.join()
print("ended in order")
"""


@pytest.mark.slow
def test_another_thread_may_collect_garbage_while_ray_ends(place):
    """Ray silently ends a process that frees a reference during `ray.shutdown`."""
    with begun(_COLLECTING, place) as running:
        out, err = running.communicate(timeout=120)
    assert (running.returncode, out, err) == (0, "ended in order\n", "")


_INTERRUPTED = """
from bcgc_jax.cluster import Cluster
with Cluster(2):
    print("started", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_processes_start_leaves_none(place, number):
    with ctrl_c():
        running = begun(_INTERRUPTED, place, start_new_session=True)
    seen: set[int] = set()
    try:
        while len(seen) < 2 and running.poll() is None:  # Ray's server is one
            seen |= set(descendants(running.pid))
        # As a terminal does with Ctrl-C; Ray answers SIGTERM itself while it starts.
        (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)

        def ended():
            seen.update(descendants(running.pid))
            return running.poll() is not None

        assert comes_true(ended, 300.0)
        out, err = running.communicate()
    finally:
        running.kill()
    status = -number if number == signal.SIGINT else 128 + number
    assert (running.returncode, out) == (status, ""), err
    assert len(seen) >= 2
    assert gone(seen)
    assert os.listdir(place) == []


_JOINS = """
import os, jax
from ray.cluster_utils import Cluster as Nodes
from bcgc_jax.cluster import Cluster
from bcgc_jax.coding.gradients import coding_plan
from tests.cluster.training import COUNT, case, exact, loss
from tests.scripts import python
store = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
nodes = Nodes(True, head_node_args=store | {"include_dashboard": False})
params, data = case()
with Cluster(1, address=nodes.address) as cluster:
    plan = coding_plan(jax.random.key(0), params, [COUNT])
    cluster.assign(loss, plan, params, [data])
    exact(cluster, params, data)
print("joined")
script = f"from bcgc_jax.cluster import Cluster; Cluster(1, address={nodes.address!r})"
# Else Ray asks twenty times, for as many seconds.
without = {"RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"}
print(python(script, env=os.environ | without).stderr)
nodes.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_is_joined_with_it_and_not_without():
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 32 * "b"}
    done = python(_JOINS, env=os.environ | variables, cwd=ROOT)
    # Ray may print before it that the worker has ended.
    before, joined, refused = done.stdout.partition("joined\n")
    assert joined, before + done.stderr
    assert "set RAY_AUTH_MODE=token" in refused
