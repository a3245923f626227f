"""Training that tries uncoded steps and work sharing, or makes its data on workers."""

import functools
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cluster import (
    ClosedLoop,
    Cluster,
    InjectedDelay,
    Run,
    Step,
    Told,
    planning,
    train_on_cluster,
)
from bcgc_jax.cluster.engine import Bench, Made, _made_chunks
from bcgc_jax.cluster.planning import Loop
from bcgc_jax.cluster.rounds import Work
from bcgc_jax.cluster.worker import Duty
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import assign, split_unevenly
from bcgc_jax.handout.judge import Judge
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.steps.mode import Mode
from experiments import cluster as study
from experiments.digits import digits_problem
from tests.cluster.training import (
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


class Workers(SimpleNamespace):
    """A cluster that is ready for everything at once, and notes what it is given."""

    def __init__(self):
        super().__init__(
            size=N, num_workers=N, lost=(), faults=[], assignment=None, prepared=[]
        )
        self.compiled_in = 0.0

    def prepare(self, loss, plan, params, parts, **_):
        self.prepared.append(plan)
        duty = SimpleNamespace(plan=plan)
        return SimpleNamespace(number=len(self.prepared), duty=duty, ready=0, kept=())

    def does(self, work):
        return work is self.assignment

    def returning(self):
        return 0

    def is_ready(self, work):
        work.ready = N
        return True

    def take_up(self, work):
        self.assignment = work

    def gradient(self, params, finish, iteration):
        return SimpleNamespace(work=())


def _loop(samples=640, batch_size=None, source=None, num_steps=100):
    workers: Any = Workers()
    params, data = case(samples)
    arguments: Any = (
        loss,
        params,
        source or data,
        batch_size,
        jax.random.key(0),
        num_steps,
    )
    loop = Loop(ClosedLoop(), workers, *arguments)
    loop.begin(0)
    return loop, workers


def _tried(subset, message, **options):
    """The work sharing that would be prepared after an uncoded step of such times."""
    loop, _ = _loop(**options)
    loop.work.append(
        tuple(Work(0, w, 0, subset, None, subset, subset + message) for w in range(N))
    )
    return loop._sharing_rule()


@pytest.mark.parametrize(
    ("subset", "message", "samples", "batch_size", "chunks"),
    [
        (1.0, 0.01, 640, None, 8),
        (1.0, 0.2, 640, None, 4),
        (1.0, 9.0, 640, None, 2),
        (1.0, 0.01, 7 * N, None, 4),
        (1.0, 0.01, 640, 15, 4),
        (1.0, 0.01, 640, 31, 8),
    ],
)
def test_chunks_are_worth_a_hand_out_and_have_samples(
    subset, message, samples, batch_size, chunks
):
    rule = _tried(subset, message, samples=samples, batch_size=batch_size)
    assert (rule.num_workers, rule.max_subsets, rule.chunks) == (N, 2, chunks)


def _run(loop, steps):
    """So many steps; whether each was shared."""
    shared = []
    for step in steps:
        result = loop.gradient(loop.params, step)
        shared.append(loop.scheme.method != "uncoded")
        loop.hear(result)
    return shared


def test_nothing_is_shared_where_chunks_would_have_no_samples():
    for loop in (_loop(samples=N)[0], _loop(batch_size=2)[0]):
        assert not any(_run(loop, range(5)))
        assert loop._judge is None


class Steps:
    """Workers of these paces (s a subset) in either scheme, by a clock of their own."""

    def __init__(self, workers, monkeypatch, paces, shared_takes=0.0):
        self.workers, self.paces, self.shared_takes = workers, paces, shared_takes
        self.now = 0.0
        workers.gradient = self.gradient
        monkeypatch.setattr(
            planning, "time", SimpleNamespace(perf_counter=lambda: self.now)
        )
        at_once = functools.partial(Judge, run=lambda work: work())
        monkeypatch.setattr(planning, "Judge", at_once)

    def gradient(self, params, finish, iteration):
        paces = self.paces(iteration)
        plan = self.workers.assignment.duty.plan
        if not isinstance(plan, SharedPlan):
            self.now += max(paces) + 0.01
            work = [
                Work(iteration, w, 0, t, None, t, t + 0.01) for w, t in enumerate(paces)
            ]
            return SimpleNamespace(work=tuple(work))
        self.now += self.shared_takes
        work = [
            Work(iteration, w, c, paces[w] / 8 * size / 4, w, 0.1, 0.2)
            for w in range(N)
            for c, size in enumerate(plan.sizes)
        ]
        return SimpleNamespace(work=tuple(work))


def test_steps_are_shared_as_long_as_that_saves_time_and_what_is_prepared_is_kept(
    monkeypatch,
):
    """In the middle of the training sharing takes longer than uncoded steps."""
    loop, workers = _loop(num_steps=400)
    steps = Steps(
        workers, monkeypatch, lambda step: (1.0, 0.3, 0.3, 0.3), shared_takes=0.6
    )
    shared = _run(loop, range(200))
    assert shared.index(True) == 3  # the first one is not judged, two are
    assert all(shared[3:])
    steps.shared_takes = 1.2
    shared += _run(loop, range(200, 400))
    assert len(workers.prepared) == 2
    assert 202 <= 200 + shared[200:].index(False) <= 206
    assert not any(shared[206:])
    changed = np.flatnonzero(np.diff(np.array(shared, int))) + 1
    assert [decision.step for decision in loop.decisions] == changed.tolist()
    first, last = loop.decisions
    assert (first.before, first.after) == ("uncoded", "sharing:2:8")
    assert (last.before, last.after) == ("sharing:2:8", "uncoded")
    assert first.reason.startswith(
        "share the work, with two subsets stored (sharing:2): it saves"
    )
    assert last.reason.startswith("nothing here pays: sharing:2 saves -")
    assert last.uncoded < last.sharing


@pytest.mark.parametrize(
    ("paces", "compiled_in", "prepared", "reason"),
    [
        ((0.1, 0.1, 0.1, 0.1), 0.0, 1, ""),
        ((0.1, 0.1, 0.1, 0.2), 3.0, 1, "s in all, and compiling takes 9 s"),
        ((0.1, 0.1, 0.1, 0.2), 0.7, 2, "share the work"),
    ],
)
def test_sharing_is_prepared_where_it_saves_more_than_compiling_takes(
    monkeypatch, paces, compiled_in, prepared, reason
):
    loop, workers = _loop(num_steps=100)
    workers.compiled_in = compiled_in
    Steps(workers, monkeypatch, lambda step: paces, shared_takes=0.12)
    _run(loop, range(8))
    assert len(workers.prepared) == prepared
    assert len(loop.decisions) == bool(reason)
    assert all(reason in decision.reason for decision in loop.decisions)


def test_a_question_is_taken_for_a_tenth_of_a_message_before_any_was_asked(monkeypatch):
    """Alike workers lose 1 of 10 ms with each but one, which own steps have too."""
    loop, workers = _loop()
    Steps(workers, monkeypatch, lambda step: (1.0,) * N)
    _run(loop, range(18))
    questions = len(loop._place.sizes)
    saved = np.array(loop._judge.mode.saved)
    np.testing.assert_allclose(saved, -1e-3 * (questions - 1), rtol=1e-6)


def test_what_a_step_takes_beside_its_workers_is_that_of_recent_uncoded_steps(
    monkeypatch,
):
    """Twelve take a second, and then ten a tenth."""
    loop, _ = _loop()
    judge = SimpleNamespace(add=lambda step: None)
    monkeypatch.setattr(planning, "Judge", lambda *_, **__: judge)
    took_shared: list[float] = []
    monkeypatch.setattr(
        planning, "shared_step", lambda work, place, took: took_shared.append(took)
    )
    work = tuple(Work(0, w, 0, 1.0, None, 1.0, 1.01) for w in range(N))
    loop.work.append(work)
    for beside in [1.0] * 12 + [0.1] * 10:
        loop._took = 1.0 + beside
        loop._observe(work)
    loop.scheme = SimpleNamespace(work=SimpleNamespace(handed_out=True))
    loop._took = 5.0
    loop._observe(work)
    assert took_shared == [pytest.approx(4.9)]


def test_a_step_with_a_fault_is_left_out_and_other_workers_begin_anew(monkeypatch):
    loop, workers = _loop()
    Steps(workers, monkeypatch, lambda step: (0.1, 0.1, 0.1, 0.2))
    _run(loop, range(2))
    assert len(loop._judge._waiting) == 1
    result = loop.gradient(loop.params, 2)
    workers.faults.append("died")
    loop.hear(result)
    assert len(loop._judge._waiting) == 1
    workers.lost, workers.num_workers = (1,), N - 1

    def replaced(work):
        workers.lost, workers.assignment = (), work

    workers.take_up = replaced
    loop.gradient(loop.params, 3)
    assert [plan.num_workers for plan in workers.prepared] == [N, N - 1]
    assert loop._judge is None


def test_steps_of_processes_are_predicted_as_they_end_with_the_sums(monkeypatch):
    asked: list[Any] = []

    def solved(problem, method, **_):
        asked.append(method)
        return SimpleNamespace(rounded_runtime=2.0)

    nothing = SimpleNamespace(
        clock=np.ones(1), metrics={"loss": [1.0], "accuracy": [0.5]}
    )
    monkeypatch.setattr(bcgc, "solve", solved)
    monkeypatch.setattr(
        study, "train_on_cluster", lambda *arguments, **options: nothing
    )
    run: Any = Run(None, InjectedDelay(LAW, 3.0))  # type: ignore[arg-type]
    problem = digits_problem(LAW, N, "softmax")
    row, _ = study.train_on_processes(jax.random.key(0), run, problem, "sharing:2", 1)
    assert [method.ends for method in asked] == ["sums"]
    assert (row.method, row.expected_runtime) == ("sharing:2", 6.0)


def test_a_worker_makes_each_subset_once_and_forgets_what_no_plan_needs():
    asked = []

    def source(number, count):
        asked.append((number, count))
        return {"x": np.full(3, number)}

    bench = Bench(fetched=str.upper)
    subsets, later_subsets = (
        [Made(source, 0, j, 4) for j in range(4)] for _ in range(2)
    )
    arrays = bench.subsets({1: subsets[1], 2: subsets[2]})
    assert [arrays[j]["x"].tolist() for j in (1, 2)] == [[1, 1, 1], [2, 2, 2]]
    bench.subsets({2: later_subsets[2], 3: later_subsets[3]})
    assert asked == [(1, 4), (2, 4), (3, 4)]
    bench.subsets({1: later_subsets[1]})
    assert asked[3:] == [(1, 4)]
    other_source = Made(lambda number, count: {"x": np.zeros(1)}, 1, 1, 4)
    assert bench.subsets({1: other_source})[1]["x"].tolist() == [0]
    assert bench.subsets({0: "a reference"}) == {0: "A REFERENCE"}


@pytest.mark.parametrize("mean", [True, False])
def test_of_subsets_that_are_made_a_worker_keeps_the_chunks_that_it_stores(mean):
    """Samples and their weights are those of the same subsets cut by the master."""
    plan = SharedPlan(WorkSharing(N, 2, 3), mean)
    params, data = case(4 * 23)
    asked = []
    subsets = split_unevenly(data, N)

    def source(number, count):
        asked.append(number)
        return subsets[number]

    cut, weights = plan.cut(subsets)
    duty = Duty(loss, plan, params, np.zeros(0), None, 0, False)
    held = {chunk: Made(source, 0, chunk[0], N) for chunk in plan.held(1)}
    weighted_duty, samples_of, counts = _made_chunks(duty, held)
    assert (asked, counts) == ([0, 1, 2, 3], {23})
    np.testing.assert_allclose(weighted_duty.weights, weights, rtol=1e-15)
    assert samples_of.keys() == held.keys()
    for chunk, samples in samples_of.items():
        assert samples["x"].base is None  # the whole subset is not kept with it
        np.testing.assert_array_equal(samples["x"], cut[chunk]["x"])


@pytest.mark.parametrize(
    "returned", [None, {}, {"x": 3.0}, {"x": np.ones(3), "y": np.ones(2)}]
)
def test_a_function_that_makes_no_samples_is_told(returned):
    with pytest.raises(
        ValueError,
        match=r"returned no arrays of samples for subset 2 of 4, but (None|\{)",
    ):
        Made(lambda number, count: returned, 0, 2, 4).make()


@pytest.fixture
def tried(monkeypatch):
    """Sharing is compiled also in short trainings, of which that is a large part."""
    monkeypatch.setattr(Loop, "_consider_sharing", Loop._prepare_sharing)


@pytest.fixture
def in_turn(monkeypatch):
    """Three steps that are judged, then three that are shared, whatever they take."""

    class Turns(Judge):
        seen = 0

        def add(self, step):
            self.seen += 1
            self.mode = Mode(self.seen // 3 % 2 == 1, saved=(0.1,), own_seconds=(1.0,))

    monkeypatch.setattr(planning, "Judge", Turns)
    monkeypatch.setattr(Loop, "_consider_sharing", Loop._prepare_sharing)


@pytest.fixture(scope="module")
def cluster():
    with Cluster(N) as running:
        yield running


@pytest.mark.slow
def test_it_shares_the_work_of_slow_workers_and_trains_as_plain_descent_does(
    cluster, tried
):
    """Worker 3 takes five times as long, later worker 0 does. Worker 1 is killed."""
    params, data = case(40)
    slow = np.ones((60, N))
    slow[:30, 3], slow[30:, 0] = 5, 5
    pace = InjectedDelay(
        slow * np.random.default_rng(2).uniform(0.95, 1.05, slow.shape), 0.1
    )
    steps: list[Step] = []
    options: Any = {
        "pace": pace,
        "before_step": kill(1, 25),
        "after_step": steps.append,
    }
    training = trained(cluster, ClosedLoop(), params, data, 60, ADAM, **options)
    # Records have the name of the scheme that ran.
    first = training.decisions[0]
    assert [step.scheme for step in steps[: first.step]] == ["uncoded"] * first.step
    assert (first.before, first.after[:9]) == ("uncoded", "sharing:2")
    assert first.step < 25
    shared = np.array([step.scheme != "uncoded" for step in steps])
    assert shared[30:].mean() > 0.6
    # Uncoded 0.5 s an iteration; if nothing were lost 4 / 3.2 · 0.1 = 0.125 s.
    assert np.median(training.paced[shared]) < 0.2


def sleeping(params, batch):
    """The loss, in a pass that nobody can interrupt and that sleeps for each sample."""

    def sleep(x):
        time.sleep(0.012 * x.size)
        return x

    y = jax.pure_callback(
        sleep, jax.ShapeDtypeStruct(batch["y"].shape, batch["y"].dtype), batch["y"]
    )
    return loss(params, batch | {"y": y})


@pytest.mark.slow
def test_equal_workers_that_cannot_be_interrupted_compute_each_chunk_once(
    cluster, monkeypatch
):
    """By a code with two subsets they computed all twice."""
    params, data = case(40)
    gradient, computed = cluster.gradient, []

    def noted(*arguments, **options):
        result = gradient(*arguments, **options)
        done = [(work.subset, work.block) for work in result.work]
        computed.append(len(done) / len(set(done)))
        return result

    monkeypatch.setattr(cluster, "gradient", noted)
    plans = Told(bcgc.Problem(LAW, N, COUNT, 40), "sharing:2:8")
    train_on_cluster(jax.random.key(0), sleeping, plans, cluster, params, data, SGD, 15)
    assert len(computed) == 15
    assert 1 <= np.median(computed) < 1.25


@pytest.mark.slow
@pytest.mark.parametrize("plans", [Told(bcgc.Problem(LAW, N, COUNT, 18)), ClosedLoop()])
def test_other_work_that_a_callback_gives_the_cluster_changes_no_step(cluster, plans):
    params, data = case()

    def assign_other_work(step, running):
        if step == 2:
            running.assign(
                lambda p, b: 9 * loss(p, b),
                running.plan,
                params,
                split_unevenly(data, N),
            )

    trained(cluster, plans, params, data, 5, before_step=assign_other_work)


@pytest.mark.slow
def test_whoever_is_lost_or_joins_a_closed_loop_has_a_part_in_both_schemes(
    cluster, tmp_path, in_turn
):
    """A killed worker is not replaced until the cluster is whole again."""
    params, data = case(40)

    def change(step, running):
        running.replace = step >= 20
        if step == 10:
            os.kill(running.pids[1], signal.SIGKILL)
        if step == 20:
            running.resize(N)

    run = Run(cluster, checkpoints=tmp_path / "state", before_step=change)
    arguments = ClosedLoop(), run, params, data, SGD
    training = train_on_cluster(jax.random.key(5), sleeping, *arguments, 32)
    assert training.num_workers.tolist() == [N] * 10 + [N - 1] * 10 + [N] * 12
    assert {decision.after[:9] for decision in training.decisions} == {
        "uncoded",
        "sharing:2",
    }
    training = train_on_cluster(jax.random.key(5), sleeping, *arguments, 36)
    assert (training.first_step, len(training.seconds)) == (32, 4)
    assert_descended(training.params, params, data, SGD, 36)


@pytest.mark.slow
def test_workers_compile_the_next_plan_beside_their_work(cluster):
    """Workers go on with their plan, and then take the other one. One is killed."""
    params, data = case(41)
    whole = partition_plan(np.array([COUNT, 0.0, 0.0, 0.0]), N)
    uncoded = assign(jax.random.key(0), whole, params, N)
    parts = split_unevenly(data, N)
    cluster.assign(loss, uncoded, params, parts)
    then = cluster.prepare(loss, SharedPlan(WorkSharing(N, 2, 2)), params, parts)
    for _ in range(1000):
        assert cluster.plan.blocks == uncoded.blocks
        exact(cluster, params, data)
        if cluster.is_ready(then):
            break
    else:
        pytest.fail("they are not ready after 1000 iterations")
    os.kill(cluster.pids[2], signal.SIGKILL)
    cluster.take_up(then)
    assert isinstance(cluster.plan, SharedPlan)
    result = exact(cluster, params, data)
    assert {item.subset for item in result.work} == set(range(N))
    cluster.take_up(then)  # the same again: nothing is compiled
    exact(cluster, params, data)


@pytest.mark.slow
def test_data_is_made_where_it_is_and_gradients_are_those_of_all_of_it(
    cluster, tmp_path, in_turn
):
    params, data = case(40)
    np.savez(tmp_path / "data.npz", **data)
    place = str(tmp_path)

    def source(number, count):
        with open(os.path.join(place, f"{os.getpid()}-{number}-{count}"), "a") as file:
            file.write("made\n")
        whole = np.load(os.path.join(place, "data.npz"))
        return {
            name: np.array_split(whole[name], count)[number] for name in whole.files
        }

    problem, arguments = bcgc.Problem(LAW, N, COUNT, 40), (cluster, params, source)
    plans = Told(problem, "tandon:1")
    training = train_on_cluster(jax.random.key(5), loss, plans, *arguments, ADAM, 8)
    assert_descended(training.params, params, data, ADAM, 8)
    files = [name.split("-") for name in os.listdir(tmp_path) if "-" in name]
    held = {(int(pid), int(number)) for pid, number, _ in files}
    pids = cluster.pids
    assert held == {(pids[w], j) for w in range(N) for j in (w, (w + 1) % N)}
    assert str(os.getpid()) not in {pid for pid, *_ in files}
    # A plan of fewer subsets makes nothing anew.
    cluster.assign(loss, cluster.plan, params, source)
    texts = [path.read_text() for path in tmp_path.glob("*-*")]
    assert texts == ["made\n"] * len(texts)
    exact(cluster, params, data)
    odd, plan = case(41)[1], cluster.plan
    uneven = lambda j, n: {k: np.array_split(x, n)[j] for k, x in odd.items()}  # noqa: E731
    with pytest.raises(
        ValueError, match=r"one size.*there are some of 10 and 11 samples"
    ):
        cluster.assign(loss, plan, params, uneven)
    with pytest.raises(ValueError, match="call assign first"):
        cluster.gradient(params)
    with pytest.raises(
        ValueError, match=r"batch_size samples at least; there are some of 10 samples"
    ):
        cluster.assign(loss, plan, params, source, batch_size=11)
    shared = SharedPlan(WorkSharing(N, 2, 2))
    with pytest.raises(
        ValueError, match=r"one size.*there are some of 10 and 11 samples"
    ):
        cluster.assign(loss, shared, params, uneven)
    cluster.assign(loss, shared, params, source)
    exact(cluster, params, data)
    training = train_on_cluster(
        jax.random.key(5), loss, ClosedLoop(), *arguments, ADAM, 30
    )
    assert_descended(training.params, params, data, ADAM, 30)
    assert any(decision.after != "uncoded" for decision in training.decisions)
