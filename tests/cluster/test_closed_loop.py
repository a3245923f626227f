"""Training that is told no law, or makes its data on the workers: exact, with plans that follow them."""

import itertools
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.adaptive import WorkPlan
from bcgc_jax.adaptive.rules import Window, rules
from bcgc_jax.cluster import ClosedLoop, Cluster, InjectedDelay, Step, Told, planning, train_on_cluster
from bcgc_jax.cluster.engine import Bench, Made
from bcgc_jax.cluster.master import ClusterGradient
from bcgc_jax.cluster.planning import Loop, loads_of, plan_of, times_of
from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.gradients import split_by, split_unevenly
from bcgc_jax.plans.plan import partition_plan
from tests.cluster.test_cluster import (
    ADAM,
    COUNT,
    LAW,
    SGD,
    N,
    assert_descended,
    case,
    exact,
    kill,
    loss,
    trained,
)

# Worker 3 is the slowest.
TIMES = np.random.default_rng(0).exponential(1.0, (20, N)) + np.array([0.5, 0.5, 1.0, 2.0])


def loop_of(first=0, num_steps=100, cluster=None):
    given: Any = cluster or SimpleNamespace(size=N), loss, *case(), None, jax.random.key(0), num_steps
    more: Any = {"first": first}
    return Loop(ClosedLoop(), *given, **more)


def _window(times):
    return Window(times, 3, jax.random.key(0))


def test_loads_and_cycle_times_are_those_of_the_work_plan():
    """Of uneven subsets, from the records of workers of known speeds, one of whom has done nothing."""
    params, _ = case()
    given = rules()["cyclic"](_window(TIMES))
    plan = plan_of(given, params, jax.random.key(0), {})
    loads = loads_of(plan, given.shares)
    np.testing.assert_allclose(loads, given.loads.T, atol=0.04)  # whole coordinates: worst 0.02
    done, work = TIMES[0] * loads, []
    for w, k in itertools.product(range(N - 1), range(2)):
        task, end = plan.tasks(w)[k], 0.4 + done[k, w]
        work.append(Work(1, w, task.block, 0.1, task.subsets[0], end, end + 0.1 * (w + 1) + 0.01 * k))
    found = ClusterGradient(None, 7.0, np.zeros(1), np.zeros((1, N), bool), tuple(work), np.zeros(N, bool))
    seen, starts, known = times_of(found, plan, loads, 0.4)
    assert known.tolist() == [True, True, True, False]
    np.testing.assert_allclose(seen[:3], TIMES[0, :3], rtol=1e-12)
    # A worker begins a tenth of a second later than the one before, and 0.4 s on purpose.
    np.testing.assert_allclose(starts, [0.5, 0.6, 0.7, 0.0], rtol=1e-12)
    assert seen[3] == pytest.approx(7.0 / loads[0, 3])
    # Who is busy with the iteration before has no start-up for that, and is not slow because nothing came.
    late = [item._replace(heard=item.heard + 0.3, overrun=0.3) for item in work]
    found = found._replace(work=tuple(late), busy=np.arange(N) == 3)
    seen, starts, known = times_of(found, plan, loads, 0.4)
    np.testing.assert_allclose(starts, [0.5, 0.6, 0.7, 0.0], rtol=1e-12)
    assert (seen[3], known[3]) == (1e-9, False)


def test_subsets_have_the_samples_of_their_shares():
    shares = np.array([0.5, 0.05, 0.25, 0.2])
    parts = split_by({"x": np.arange(40)}, shares)
    assert np.concatenate([part["x"] for part in parts]).tolist() == list(range(40))
    assert np.abs([len(part["x"]) - 40 * p for part, p in zip(parts, shares, strict=True)]).max() <= 1
    even = split_by(np.arange(10), np.full(4, 0.25))
    assert [p.tolist() for p in even] == [p.tolist() for p in split_unevenly(np.arange(10), 4)]
    with pytest.raises(ValueError, match="too small for 4 workers"):
        split_by(np.arange(3), shares)


def test_a_coded_plan_is_one_of_as_many_units():
    params, _ = case()
    given = WorkPlan("coded", np.full(N, 0.25), partition_plan(np.array([0.5, 0.0, 0.3, 0.2]), N))
    plan = plan_of(given, params, jax.random.key(0), {})
    sizes = [block.size for block in plan.blocks]
    assert sum(sizes) == COUNT
    np.testing.assert_allclose(np.array(sizes) / COUNT, [0.5, 0.3, 0.2], atol=1 / COUNT)


def test_loads_are_shares_of_all_data_and_a_link_is_in_seconds_of_the_pace():
    fixed: Any = {"size": N, "num_workers": N, "lost": (), "given": None, "assign": lambda *_, **__: None}
    cluster: Any = SimpleNamespace(**fixed, prepare=lambda *_, **__: None)
    made, loop = rules()["cyclic"](_window(TIMES)), loop_of(cluster=cluster)
    loads = loop._put(made, SimpleNamespace(known=[])).loads  # type: ignore[arg-type]
    np.testing.assert_allclose(loads, made.loads.T, atol=0.2)  # whole samples, of 18: worst 0.05
    loop.close()
    told, pace = Told(bcgc.Problem(LAW, N, COUNT, 18, send_time=0.5), "uncoded"), InjectedDelay(LAW, 1e-4)
    given: Any = cluster, loss, *case(), None, jax.random.key(0), 5, pace
    course = planning.Course(told, *given)
    course.begin(0)
    np.testing.assert_allclose(course.scheme.sent, [1e-4 * 0.5 * COUNT], rtol=1e-6)


def test_a_round_has_the_steps_that_those_before_it_left(monkeypatch):
    ahead = []

    def planner(count, num_steps, **_):
        ahead.append(num_steps)
        return SimpleNamespace(step=4, decisions=(), plan=None)

    monkeypatch.setattr(planning, "Planner", planner)
    monkeypatch.setattr(Loop, "_put", lambda *_: None)
    loop = loop_of(10, 30)
    loop.members = list(range(N))
    for _ in range(3):
        loop._round = loop._new_round()
    loop.close()
    assert ahead == [20, 16, 12]


def test_a_worker_makes_each_subset_once_and_forgets_what_no_plan_needs():
    asked = []

    def source(number, count):
        asked.append((number, count))
        return {"x": np.full(3, number)}

    bench = Bench(fetched=str.upper)
    subsets, again = ([Made(source, 0, j, 4) for j in range(4)] for _ in range(2))
    found = bench.subsets({1: subsets[1], 2: subsets[2]})
    assert [found[j]["x"].tolist() for j in (1, 2)] == [[1, 1, 1], [2, 2, 2]]
    bench.subsets({2: again[2], 3: again[3]})
    assert asked == [(1, 4), (2, 4), (3, 4)]
    bench.subsets({1: again[1]})
    assert asked[3:] == [(1, 4)]
    other = Made(lambda number, count: {"x": np.zeros(1)}, 1, 1, 4)
    assert bench.subsets({1: other})[1]["x"].tolist() == [0]
    assert bench.subsets({0: "a reference"}) == {0: "A REFERENCE"}


@pytest.mark.parametrize("made", [None, {}, {"x": 3.0}, {"x": np.ones(3), "y": np.ones(2)}])
def test_a_function_that_makes_no_samples_is_told(made):
    with pytest.raises(ValueError, match=r"returned no arrays of samples for subset 2 of 4, but (None|\{)"):
        Made(lambda number, count: made, 0, 2, 4).make()


def test_the_end_waits_for_no_plan_that_is_being_made_and_begins_no_other():
    begun, going_on = threading.Event(), threading.Event()
    loop = loop_of()
    made: list[str] = []

    def slow(window):
        begun.set()
        made.append("first")
        going_on.wait(60)

    unless: Any = planning._unless
    loop._thread.submit(lambda: [unless(loop._closed, rule, None) for rule in (slow, made.append)])
    begun.wait()
    begin = time.monotonic()
    loop.close()
    assert time.monotonic() - begin < 5
    going_on.set()
    loop._thread.shutdown()
    assert made == ["first"]


@pytest.fixture(scope="module")
def cluster():
    with Cluster(N) as running:
        yield running


@pytest.mark.slow
def test_plans_from_measured_times_give_the_exact_gradient(cluster):
    params, data = case(41)
    given = rules()["nested"](_window(TIMES))  # the others are those of the next tests
    plan = plan_of(given, params, jax.random.key(0), {})
    cluster.assign(loss, plan, params, split_by(data, given.shares))
    exact(cluster, params, data)


@pytest.mark.slow
def test_it_finds_out_who_is_slow_and_trains_as_plain_descent_does(cluster):
    """Worker 3 takes five times as long, and in the middle worker 0 in its place; another is killed."""
    params, data = case(40)
    slow = np.ones((80, N))
    slow[:40, 3], slow[40:, 0] = 5, 5
    pace = InjectedDelay(slow * np.random.default_rng(2).uniform(0.95, 1.05, slow.shape), 0.15)
    told: list[Step] = []
    given: Any = {"pace": pace, "before_step": kill(1, 30), "after_step": told.append}
    found = trained(cluster, ClosedLoop(), params, data, 80, ADAM, **given)
    # Records have the name of the plan that ran.
    first = found.decisions[0]
    assert [step.scheme for step in told[: first.step]] == ["uncoded"] * first.step
    # Uncoded ones now and then are to see who is never done, and whether the plan pays: they may be the last.
    chosen = [step.scheme for step in told if step.scheme != "uncoded"]
    assert chosen[-1] in {decision.after for decision in found.decisions}
    assert first.before == "uncoded"
    assert found.decisions[0].step < 40
    # Uncoded 0.75 s an iteration; with shares by speed 4 / 3.2 · 0.15 = 0.19 s.
    for steps in (slice(30, 40), slice(70, 80)):
        paced = found.paced[steps][[step.scheme != "uncoded" for step in told[steps]]]
        assert paced.size
        assert np.median(paced) < 0.4


def sleeping(params, batch):
    """The loss, with a pass that takes time in proportion to its samples, and that nobody can interrupt."""

    def sleep(x):
        time.sleep(0.012 * x.size)
        return x

    y = jax.pure_callback(sleep, jax.ShapeDtypeStruct(batch["y"].shape, batch["y"].dtype), batch["y"])
    return loss(params, batch | {"y": y})


@pytest.mark.slow
def test_equal_workers_that_cannot_be_interrupted_take_no_longer_than_without_redundancy(cluster):
    """With two subsets each they took twice as long; measured 1.01 times as long, beside a load of 14."""
    params, data = case(40)
    given, seconds = (cluster, params, data, SGD, 30), []
    for plans in (Told(bcgc.Problem(LAW, N, COUNT, 40), "uncoded"), ClosedLoop()):
        seconds.append(train_on_cluster(jax.random.key(0), sleeping, plans, *given).seconds)
    assert np.median(seconds[1]) < 1.25 * np.median(seconds[0])


@pytest.mark.slow
@pytest.mark.parametrize("plans", [Told(bcgc.Problem(LAW, N, COUNT, 18)), ClosedLoop()])
def test_other_work_that_a_callback_gives_the_cluster_changes_no_step(cluster, plans):
    params, data = case()

    def other(step, running):
        if step == 2:
            running.assign(lambda p, b: 9 * loss(p, b), running.plan, params, split_unevenly(data, N))

    trained(cluster, plans, params, data, 5, before_step=other)


@pytest.mark.slow
def test_workers_compile_the_next_plan_beside_their_work(cluster):
    """They go on with the one they have, and then take the other, also one who was killed meanwhile."""
    params, data = case(41)
    plans = [rules()[name](_window(np.ones((8, N)))) for name in ("uncoded", "cyclic")]
    work = [plan_of(given, params, jax.random.key(0), {}) for given in plans]
    parts = split_unevenly(data, N)
    cluster.assign(loss, work[0], params, parts)
    then = cluster.prepare(loss, work[1], params, parts)
    for _ in range(1000):
        assert cluster.plan.blocks == work[0].blocks
        exact(cluster, params, data)
        if cluster.is_ready(then):
            break
    else:
        pytest.fail("they are not ready after 1000 iterations")
    os.kill(cluster.pids[2], signal.SIGKILL)
    cluster.take_up(then)
    assert cluster.plan.blocks == work[1].blocks
    found = exact(cluster, params, data)
    assert {item.subset for item in found.work} == set(range(N))
    cluster.take_up(then)  # the same again: nothing is compiled
    exact(cluster, params, data)


@pytest.mark.slow
def test_data_is_made_where_it_is_and_gradients_are_those_of_all_of_it(cluster, tmp_path):
    params, data = case(40)
    np.savez(tmp_path / "data.npz", **data)
    place = str(tmp_path)

    def source(number, count):
        with open(os.path.join(place, f"{os.getpid()}-{number}-{count}"), "a") as file:
            file.write("made\n")
        whole = np.load(os.path.join(place, "data.npz"))
        return {name: np.array_split(whole[name], count)[number] for name in whole.files}

    problem, given = bcgc.Problem(LAW, N, COUNT, 40), (cluster, params, source)
    told = Told(problem, "tandon:1")
    found = train_on_cluster(jax.random.key(5), loss, told, *given, ADAM, 8)
    assert_descended(found.params, params, data, ADAM, 8)
    made = [name.split("-") for name in os.listdir(tmp_path) if "-" in name]
    held, pids = {(int(pid), int(number)) for pid, number, _ in made}, cluster.pids
    assert held == {(pids[w], j) for w in range(N) for j in (w, (w + 1) % N)}
    assert str(os.getpid()) not in {pid for pid, *_ in made}
    # A plan of fewer subsets makes nothing anew.
    cluster.assign(loss, cluster.plan, params, source)
    assert all((tmp_path / name).read_text() == "made\n" for name in os.listdir(tmp_path) if "-" in name)
    exact(cluster, params, data)
    odd, plan = case(41)[1], cluster.plan
    uneven = lambda j, n: {k: np.array_split(x, n)[j] for k, x in odd.items()}  # noqa: E731
    with pytest.raises(ValueError, match=r"one size.*there are some of 10 and 11 samples"):
        cluster.assign(loss, plan, params, uneven)
    with pytest.raises(ValueError, match="call assign first"):
        cluster.gradient(params)
    with pytest.raises(ValueError, match=r"batch_size samples at least; there are some of 10 samples"):
        cluster.assign(loss, plan, params, source, batch_size=11)
    found = train_on_cluster(jax.random.key(5), loss, ClosedLoop(), *given, ADAM, 8)
    assert_descended(found.params, params, data, ADAM, 8)


@pytest.mark.slow
def test_those_left_do_not_wait_for_what_is_planned_for_others(cluster):
    params, data = case()
    going_on = threading.Event()
    loop = loop_of(cluster=cluster)
    schemes = []
    for count in (N, N - 1):
        loop.members = list(range(count))
        schemes.append(loop.give_work())
        loop._planning.append(loop._thread.submit(going_on.wait))  # type: ignore[arg-type]
    going_on.set()
    loop.close()
    assert [scheme.plan.num_workers for scheme in schemes] == [N, N - 1]
    exact(cluster, params, data)
