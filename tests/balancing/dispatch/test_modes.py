"""Own and shared steps: sums are whole in both, whoever comes and goes."""

import os
import random
import threading
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bcgc_jax.balancing.chunk_lengths import UNITS
from bcgc_jax.balancing.dispatch import StepFailed, join, serve
from bcgc_jax.balancing.dispatch.client import ask
from bcgc_jax.balancing.dispatch.coordinator import Coordinator
from bcgc_jax.balancing.dispatch.judge import DoneStep, Judge
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import Begin, Done, Join, Leave, OwnDone
from bcgc_jax.balancing.dispatch.transport import Memory
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.traces import load_trace
from tests.balancing.dispatch.clocked import Fickle, Training

WORKERS, CHUNKS = 3, 2
PLACE = Placement(WORKERS, 2, CHUNKS)
# Events of the model checker; `HANDOUT_EVENTS=100000` for when the protocol has
# changed.
EVENTS = int(os.environ.get("HANDOUT_EVENTS", 6_000))


# One worker after the other.


@pytest.fixture
def coordinator():
    options: Any = {"transport": Memory(), "timeout": 0.2}
    with serve(WORKERS, 2, CHUNKS, **options) as coordinator:
        yield coordinator


@pytest.fixture
def shares(coordinator):
    where, transport = coordinator.address, coordinator.transport
    return [join(where, rank, transport=transport) for rank in range(WORKERS)]


def _beside(share, step, outcomes):
    """A step in a thread; `outcomes` has each worker's chunks, or what it raised."""

    def run():
        try:
            outcomes.append(list(share.step(step)))
        except (StepFailed, ValueError) as error:
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_in_a_step_that_is_not_shared_each_worker_does_its_own_whole_chunks(shares):
    outcomes: list = []
    for thread in [_beside(share, 7, outcomes) for share in shares]:
        thread.join(10.0)
    assert sorted(outcomes) == [
        [(7, rank, 0, 0.0, 0.5), (7, rank, 1, 0.5, 1.0)] for rank in range(WORKERS)
    ]
    assert not any(share.shares for share in shares)


def test_nobody_is_asked_before_all_own_chunks_are_done(
    coordinator, shares, monkeypatch
):
    asked = []

    def answer(message, reply):
        asked.append(message)
        reply(_over())

    monkeypatch.setattr(coordinator, "asked", answer)
    chunks = shares[0].step(3)
    for _ in range(CHUNKS):
        next(chunks)
        assert not asked
    assert next(chunks, None) is None
    ((word, step, since, seconds, loads),) = asked
    assert (word, step, loads, len(seconds)) == ("own", 3, None, CHUNKS)
    assert since > 0


def _over():
    return [None, None, True, None, "", "", False, []]


def test_a_worker_that_goes_fails_the_step_for_who_rests_and_for_who_computes(
    monkeypatch,
):
    memory = Memory()
    coordinator = serve(WORKERS, 2, CHUNKS, transport=memory)
    shares = [
        join(coordinator.address, rank, transport=memory) for rank in range(WORKERS)
    ]
    heard = threading.Event()
    asked = coordinator.asked

    def noted(*question):
        asked(*question)
        heard.set()

    monkeypatch.setattr(coordinator, "asked", noted)
    outcomes: list = []
    resting = _beside(shares[0], 4, outcomes)
    computing = shares[1].step(4)
    next(computing)
    assert heard.wait(10.0)
    shares[2].close()
    resting.join(10.0)
    why = "worker 2 is lost, because its connection was closed. Step 4 has failed"
    assert [str(error).startswith(why) for error in outcomes] == [True]
    with pytest.raises(StepFailed, match=why):
        list(computing)
    coordinator.close()


def test_who_never_ends_its_own_chunks_is_silent_after_the_timeout(
    shares,
):
    outcomes: list = []
    chunks = shares[2].step(0)
    next(chunks)
    began = time.monotonic()
    for thread in [_beside(share, 0, outcomes) for share in shares[:2]]:
        thread.join(10.0)
    assert time.monotonic() - began > 0.19
    assert [str(error) for error in outcomes] == [
        "worker 2 is lost, because it was silent for 0.2 s. "
        "Step 0 has failed and must be repeated"
    ] * 2


def test_wrong_loads_are_refused_before_anything_is_computed(shares):
    with pytest.raises(
        ValueError, match="worker 1, step 0: loads must be 4 positive numbers"
    ):
        next(shares[1].step(0, [1.0]))


@pytest.mark.parametrize("adapt", [True, False])
def test_a_message_of_the_other_mode_ends_the_line(adapt):
    memory = Memory()
    with serve(WORKERS, 2, CHUNKS, transport=memory, adapt=adapt) as coordinator:
        line = memory.connect(coordinator.address)
        ask(line, Join(0))
        with pytest.raises(ConnectionError, match="told whether this step is shared"):
            ask(line, Begin(0) if adapt else OwnDone(0, 0.0, [1.0] * CHUNKS))


def test_own_chunks_of_another_number_are_nonsense():
    memory = Memory()
    with serve(WORKERS, 2, CHUNKS, transport=memory) as coordinator:
        line = memory.connect(coordinator.address)
        ask(line, Join(0))
        with pytest.raises(ConnectionError, match="2 own chunks"):
            ask(line, OwnDone(0, 0.0, [1.0]))


@pytest.mark.parametrize(("since", "warns"), [(7.8, False), (13.0, True)])
def test_chunks_that_are_too_short_for_a_step_are_said_once(since, warns):
    """A device computes in the background, and the all-reduce waits for it.

    Chunks take 2.5 or 1.5 % of a step. In the first four a program may be compiled.
    """
    training = Training(PLACE)
    with training.coordinator, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(8):
            for rank in range(WORKERS):
                question = OwnDone(step, since, [0.1] * CHUNKS)
                training.loops.asked(Join(rank), question, training.replies[rank], 0.0)
            training.loops.time_goes_on(0.0)
    assert len(said) == warns
    for warning in said:
        assert "1.5 % of step 4" in str(warning.message)
        assert "wait for it before the next chunk" in str(warning.message)


# A training by a clock of its own.


def test_a_training_begins_to_share_when_a_worker_is_slow_and_ends_when_none_is(
    tmp_path,
):
    """Worker 0 is four times as slow in steps 20 to 59; two of these and one more are
    not shared.

    Steps in which somebody computes a size for the first time are not judged.
    """
    paces = np.full((120, WORKERS), 0.02) * np.random.default_rng(0).lognormal(
        0, 0.01, (120, 1)
    )
    paces[20:60, 0] *= 4
    record = tmp_path / "chunks.csv"
    training = Training(PLACE, record)
    training.run(paces)
    first = training.shares.index(True)
    assert 22 <= first <= 37
    assert all(training.shares[first:60])
    last = 60 + training.shares[60:].index(False)
    assert last <= 70
    assert not any(training.shares[last:])
    trace = load_trace(record)  # of both modes
    slower = trace.table()[:, 0] / trace.table()[:, 1:].mean(axis=1)
    np.testing.assert_allclose(slower, paces[:, 0] / paces[:, 1], rtol=0.02)


@pytest.mark.parametrize("slow", [0.0, 1 / 7])
def test_equal_workers_share_nothing_and_others_soon(slow):
    rng = np.random.default_rng(1)
    paces = 0.02 * np.where(rng.random((60, WORKERS)) < slow, 5.0, 1.0)
    training = Training(PLACE)
    training.run(paces)
    assert training.is_whole
    shares = training.shares
    assert np.mean(shares) == 0 if not slow else np.mean(shares) > 0.8


# The model checker: all events, in any order.


class World:
    """A coordinator and its processes, which may be killed, or replaced and live on.

    In some steps one worker is absent, and all others know.
    """

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.step = 0
        self.present: list[int] | None = None  # in the step of now; None: all
        self.judge = Fickle()
        judge: Any = self.judge
        self.loops = Loops(PLACE, 1.0, None, judge, shares=False)
        self.coordinator = Coordinator(Memory(), self.loops, lambda: self.now)
        self.processes: list[Process] = []
        self.over: list[Process] = []
        self.completed: Counter[str] = Counter()

    def join(self, rank: int) -> None:
        self.processes.append(Process(self, rank))

    def look(self) -> None:
        self.coordinator.look()
        self.check()

    def check(self) -> None:
        """Once a step is over, all are told, and its sums have all data once."""
        over, self.over = self.over, []
        if not over:
            return
        assert sorted(process.rank for process in over) == (
            self.present or [*range(WORKERS)]
        )
        assert {process.step for process in over} == {self.step}
        total = sum((process.sum for process in over), Counter())
        units = CHUNKS * UNITS
        assert total == Counter((j, u) for j in range(WORKERS) for u in range(units))
        kind = "absent" if self.present else "shared" if over[0].shares else "own"
        self.completed[kind] += 1
        self.judge.mode.is_shared = self.rng.random() < 0.5
        self.step += 1
        self.present = None
        if self.rng.random() < 0.3:
            absent = self.rng.randrange(WORKERS)
            self.present = [rank for rank in range(WORKERS) if rank != absent]
        for process in self.processes:
            if not process.is_dead:
                process.step = self.step
                process.begin()

    def event(self, faults: float) -> None:
        alive = [process for process in self.processes if not process.is_dead]
        kind = self.rng.random()
        if kind < faults / 2 and alive:
            self.rng.choice(alive).die()
        elif kind < faults:
            self.join(self.rng.randrange(WORKERS))
        elif kind < 1.1 * faults:
            for process in alive:
                if process.is_computing and self.rng.random() < 0.3:
                    process.leave()
        elif kind < 1.2 * faults:
            self.now += 1.5  # who is silent is lost
        else:
            absent = set(range(WORKERS)) - {process.rank for process in alive}
            if absent and self.rng.random() < 0.3:
                self.join(absent.pop())
            elif computing := [process for process in alive if process.is_computing]:
                self.rng.choice(computing).go_on()
        self.now += 0.01
        self.look()


class Process:
    def __init__(self, world: World, rank: int):
        self.world, self.rank = world, rank
        self.step = world.step
        self.is_dead = self.is_computing = False
        self.reply = lambda data: self.hear(data)
        self.shares: bool | None = None
        self.say(Join(rank))
        if not self.is_dead:
            self.begin()

    def say(self, question) -> None:
        self.is_computing = False
        loops = self.world.loops
        if isinstance(question, Join):
            self.hear(loops.joined(question, self.reply, self.world.now))
        else:
            loops.asked(Join(self.rank), question, self.reply, self.world.now)

    def hear(self, answer) -> None:
        if answer.refused:  # another process has its place
            self.is_dead = True
        elif answer.failed:
            self.is_retrying = True
            self.is_computing = True
        elif answer.over:
            self.next_shares = answer.shares
            self.world.over.append(self)
        elif answer.seat is not None:
            self.next_shares = answer.shares
        else:
            self.ticket, self.chunk = answer.ticket, answer.chunk
            self.is_computing = True

    def begin(self) -> None:
        self.sum: Counter = Counter()
        self.number = 0
        self.is_retrying = False
        present = self.world.present
        self.shares = self.next_shares or present is not None
        self.is_computing = present is None or self.rank in present
        self.ticket = None

    def go_on(self) -> None:
        """End a chunk, if it is at one, and ask for the next."""
        if self.is_retrying:
            self.begin()
        elif self.shares:
            if self.ticket is None:
                self.say(Begin(self.step, None, self.world.present))
                return
            subset, number = self.chunk
            edges = np.cumsum([0, *PLACE.sizes]).tolist()
            self.add(subset, range(edges[number], edges[number + 1]))
            self.say(Done(self.ticket, 0.01))
        elif self.number < CHUNKS:
            self.add(self.rank, range(UNITS * self.number, UNITS * (self.number + 1)))
            self.number += 1
        else:
            self.say(OwnDone(self.step, 0.0, [0.01] * CHUNKS))

    def add(self, subset: int, units) -> None:
        self.sum.update((subset, unit) for unit in units)

    def leave(self) -> None:
        """Its loop has raised, and begins the step again."""
        question = Leave(self.step)
        self.world.loops.asked(Join(self.rank), question, self.reply, self.world.now)
        self.begin()

    def die(self) -> None:
        self.is_dead = True
        self.world.loops.left(Join(self.rank), self.reply, self.world.now)


@pytest.mark.parametrize("faults", [0.0, 0.02, 0.1])
def test_no_event_makes_a_sum_wrong_and_when_faults_end_steps_go_on(faults):
    world = World(seed=int(100 * faults))
    with world.coordinator:
        for _ in range(EVENTS // 3):
            world.event(faults)
        before = world.completed.copy()
        for _ in range(2000):
            world.event(0.0)
    assert min(before[kind] for kind in ("own", "shared", "absent")) > 2
    after = world.completed - before
    assert min(after[kind] for kind in ("own", "shared", "absent")) > 10


def test_a_judge_replays_beside_and_observes_later_what_came_meanwhile():
    work: list = []
    judge = Judge(PLACE, run=work.append)
    attempts = 5
    for _ in range(attempts):
        judge.add(_step())
    assert len(work) == 1
    work.pop()()
    assert len(judge.mode.saved) == 2
    judge.add(_step())
    work.pop()()
    assert len(judge.mode.saved) == attempts + 1


def _step():
    who = np.repeat(np.arange(WORKERS), CHUNKS)
    return DoneStep(False, who, np.where(who == 0, 0.5, 0.1), np.zeros(WORKERS))
