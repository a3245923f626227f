"""Work sharing between a master and workers in one process, on a clock of its own."""

import functools
import heapq
import itertools
import threading
from typing import Any

import jax
import numpy as np
import pytest

from bcgc_jax.cluster.chunks import Begin, ChunkWorker, Place
from bcgc_jax.cluster.shared_round import SharedRound
from bcgc_jax.cluster.worker import Duty
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import split_unevenly
from bcgc_jax.handout.messages import Answer, Question
from bcgc_jax.plans.desk import chunk_sizes
from bcgc_jax.plans.handout import Handout
from bcgc_jax.plans.sharing import WorkSharing
from tests.cluster.test_cluster import loss, raveled
from tests.cluster.test_worker import case
from tests.plans.hand_outs import timed_step

N = 4


class World:
    """Worker w takes `seconds(w, chunk)` for a chunk; who is frozen never answers."""

    def __init__(self, workers, seconds, plan, sending=0.0):
        self.workers, self.seconds, self.plan, self.sending = workers, seconds, plan, sending
        self.busy = [0.0] * plan.num_workers
        self.roster, self.calls = None, itertools.count(1)
        self.frozen: set[int] = set()

    def step(self, params, killed=(), successors=(), frozen=(), iteration=1):
        """The gradient, and when it was there; `killed`, `frozen` are (time, worker)."""
        leaves, self.order, self.now = jax.tree.leaves(params), itertools.count(), 0.0
        self.events: list[Any] = []
        given = self.plan, params, next(self.calls), iteration, leaves, None
        self.round = SharedRound(*given, Place("", 0, b""), self.touch, self.roster)
        for worker in set(range(self.plan.num_workers)) - self.frozen:
            self.put(self.busy[worker], self.begin, worker)
        for what, when in ((self.kill, killed), (self.freeze, frozen), (self.join, successors)):
            for at, *more in when:
                self.put(at, what, *more)
        while (gradient := self.round.gradient()) is None:
            look = self.round.time_goes_on(self.now)
            if not self.events or look < self.events[0][0]:
                assert look < np.inf, "nothing moves"
                self.now = look
                continue
            self.now, _, what, more = heapq.heappop(self.events)
            what(*more)
            self.send(self.round.look(self.now))
        self.round.end()
        for _, worker, process in successors:
            if self.workers[worker] is None:  # it is there for the next step
                self.workers[worker], self.busy[worker] = process, 0.0
        self.roster = self.round.handout.roster
        self.busy = [max(end - self.now, 0.0) for end in self.busy]
        return gradient, self.now

    def put(self, at, what, *more):
        heapq.heappush(self.events, (at, next(self.order), what, more))

    def touch(self, first=lambda: None):
        first()

    def send(self, asks):
        for ask in asks:
            process = self.workers[ask.worker]
            if ask.method == "deliver":
                self.put(self.now + self.sending, self.hear, ask, process.deliver(*ask.given), process)
            else:
                process.open(*ask.given[:2])
                self.ask(ask, process, ask.given[0].question)

    def ask(self, ask, process, question):
        if self.workers[ask.worker] is process and ask.worker not in self.frozen:
            self.round.asked(list(question), functools.partial(self.tell, ask, process), self.now)

    def tell(self, ask, process, answer):
        """At once: the worker does what it is told, and asks again when that has taken its time."""
        if answer.over:
            return
        question, end = process.work(answer), self.now
        if answer.chunk is not None:
            self.busy[ask.worker] = end = self.now + self.seconds(ask.worker, answer.chunk)
        if answer.send is not None:
            end = self.now + self.sending
            self.put(end, self.hear, ask, process.sum(answer.send), process)
        self.put(end, self.ask, ask, process, question)

    def begin(self, worker):
        if self.workers[worker] is not None:
            self.send(self.round.begin(worker, self.now))

    def hear(self, ask, answer, process):
        if self.workers[ask.worker] is process and ask.worker not in self.frozen:
            self.send(self.round.heard(ask, answer, self.now))

    def kill(self, worker):
        self.workers[worker] = None
        self.send(self.round.lost(worker, self.now))

    def freeze(self, worker):
        self.frozen.add(worker)

    def join(self, worker, process):
        self.workers[worker], self.busy[worker] = process, self.now
        self.begin(worker)


def _worker(duty, worker, cut):
    return ChunkWorker(duty, worker, {chunk: cut[chunk] for chunk in duty.plan.held(worker)})


def _world(seconds, samples=140, chunks=8, sending=0.0):
    plan = SharedPlan(WorkSharing(N, 2, chunks))
    params, data, _ = case(samples)
    cut, weights = plan.cut(split_unevenly(data, N))
    duty = Duty(loss, plan, params, weights, None, 0, False)

    def process(worker):
        return _worker(duty, worker, cut)

    return World([process(w) for w in range(N)], seconds, plan, sending), process, params, data


def _assert_exact(gradient, params, data):
    """To float32: measured 9e-7 of the largest entry."""
    want, found = raveled(jax.grad(loss)(params, data)), raveled(gradient)
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


def test_steps_are_plain_gradients_and_take_as_long_as_the_chunks_handed_out_one_by_one():
    """With times that vary and pauses, so that chunks are copied: the clock is `timed_step`'s, to 1e-12."""
    rng, drawn = np.random.default_rng(3), dict[Any, float]()
    world, _, params, data = _world(lambda worker, chunk: drawn[worker, chunk], chunks=3)
    sizes, storage = world.plan.sizes, world.plan.storage
    chunks = [(j, c) for j in range(N) for c in range(len(sizes))]
    late, roster, copied = np.zeros(N), None, 0
    for step in range(12):
        pace = rng.exponential(size=(N, 1)) + 0.05
        seconds = pace * np.tile(sizes, N) * rng.uniform(0.9, 1.1, (N, len(chunks)))
        seconds += 60.0 * (rng.random(seconds.shape) < 0.04)
        drawn = {(w, chunk): seconds[w, k] for w in range(N) for k, chunk in enumerate(chunks)}
        handout = Handout(step, storage, [sizes] * N, before=roster)
        end, busy = timed_step(handout, late.tolist(), seconds)
        late, roster = busy - end, handout.roster
        gradient, took = world.step(params)
        _assert_exact(gradient, params, data)
        assert took == pytest.approx(end, rel=1e-12)
        np.testing.assert_allclose(world.busy, late, rtol=1e-9, atol=1e-9)
        assert world.roster.overdue == roster.overdue
        copied += len(world.round.work) > len(chunks)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert copied


def _even(worker, chunk):
    return chunk_sizes(8)[chunk[1]] * (1 + 0.01 * worker + 0.001 * chunk[1])


def test_one_vector_of_each_worker_is_all_that_is_sent():
    world, _, params, _ = _world(_even)
    sent = {worker: 0 for worker in range(N)}

    def counted(worker, send):
        def count(*given):
            sent[worker] += 1
            return send(*given)

        return count

    for number, worker in enumerate(world.workers):
        worker.deliver, worker.sum = counted(number, worker.deliver), counted(number, worker.sum)
    world.step(params)
    assert set(sent.values()) == {1}


def _usual():
    """What the second of two undisturbed steps takes."""
    world, _, params, _ = _world(_even, sending=0.1)
    return [world.step(params)[1] for _ in range(2)][1]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95, 1.0])
def test_a_killed_worker_costs_a_part_of_a_step(share):
    """Also where its chunks are all in its sum. Its successor is there one chunk later, or next time."""
    world, process, params, data = _world(_even, sending=0.1)
    world.step(params)
    usual = _usual()
    at = share * usual - 0.05
    gradient, took = world.step(params, killed=[(at, 1)], successors=[(at + 1.0, 1, process(1))])
    _assert_exact(gradient, params, data)
    assert took < 1.32 * usual  # measured: 1.307
    gradient, took = world.step(params)
    _assert_exact(gradient, params, data)
    assert took < 1.01 * usual


@pytest.mark.parametrize(
    ("share", "frozen"), [(0.01, 1), (0.4, 1), (0.7, 1), (1.0, 0), (1.0, 1), (1.0, 2), (1.0, 3)]
)
def test_a_frozen_worker_costs_a_part_of_a_step_and_takes_part_again(share, frozen):
    """It keeps what it has done, or freezes when it is asked for its sum: that is done anew by others."""
    world, _, params, data = _world(_even, sending=0.1)
    world.step(params)
    usual = _usual()
    gradient, took = world.step(params, frozen=[(share * usual - 0.05, frozen)])
    _assert_exact(gradient, params, data)
    assert took < 1.95 * usual  # measured: 1.932, and 1.454 if it freezes earlier
    gradient, took = world.step(params)
    _assert_exact(gradient, params, data)
    assert took < 1.34 * usual  # three do the work of four
    assert not any(work.worker == frozen for work in world.round.work)
    world.frozen.clear()
    world.busy[frozen] = 2.5
    gradient, took = world.step(params)
    _assert_exact(gradient, params, data)
    assert any(work.worker == frozen for work in world.round.work)


def test_too_many_lost_are_told():
    world, _, params, _ = _world(_even)
    world.step(params)
    assert world.round.short(range(N)) == ""
    for worker in (0, 1, 2):
        world.round.handout.join(worker)
    begun = SharedRound(world.plan, params, 9, 1, [], None, Place("", 0, b""), world.touch)
    for worker in (0, 1):
        begun.lost(worker, 0.0)
    assert begun.short({0, 1}) == ""
    assert "nobody else stores" in begun.short(set())


def test_samples_of_a_batch_are_those_of_each_chunk_whoever_draws_them():
    plan = SharedPlan(WorkSharing(N, 2, 3), False)
    params, data, _ = case(120)
    cut, weights = plan.cut(split_unevenly(data, N))
    duty = Duty(_summed, plan, params, weights, 12, 0, False)
    world = World([_worker(duty, w, cut) for w in range(N)], _even, plan)
    first, _ = world.step(params, iteration=3)
    world.seconds = lambda worker, chunk: 1.0 + (worker == 2)
    second, _ = world.step(params, iteration=3)
    other, _ = world.step(params, iteration=4)
    for one, same, new in zip(*map(jax.tree.leaves, (first, second, other)), strict=True):
        np.testing.assert_allclose(one, same, atol=2e-6 * np.abs(one).max())
        assert not np.allclose(one, new)


def _summed(params, batch):
    return loss(params, batch) * len(batch["y"])


def test_a_loss_that_is_a_sum_has_the_sum_of_all_chunks():
    plan = SharedPlan(WorkSharing(N, 2, 3), False)
    params, data, _ = case(70)
    cut, weights = plan.cut(split_unevenly(data, N))
    duty = Duty(_summed, plan, params, weights, None, 0, False)
    found, _ = World([_worker(duty, w, cut) for w in range(N)], _even, plan).step(params)
    _assert_exact(jax.tree.map(lambda x: x / 70, found), params, data)


def test_a_worker_sends_a_sum_when_it_has_as_many_chunks_as_it_was_asked_for():
    """Another thread may ask before the last gradient is added; nobody asks for a sum of an earlier step."""
    world, _, params, _ = _world(_even)
    worker, leaves = world.workers[0], jax.tree.leaves(params)
    one, two = world.plan.held(0)[:2]
    first = Question(3, 0, 0)
    worker.open(Begin(first, 1), leaves)
    done = worker.work(Answer(ticket=1, chunk=one))
    assert done[:4] == (3, 0, 0, 1)
    assert worker.work(Answer(2, (2,), ticket=3, chunk=two)).ticket == 3
    assert worker.deliver(3, 2, 1).label == {one}
    assert worker.deliver(2, 2, 1) is None
    later = threading.Timer(0.05, worker.work, [Answer(2, (2,))])
    later.start()
    assert worker.deliver(3, 2, 2).label == {one, two}
    later.join()
    assert worker.work(Answer(None, (4,))) == first  # the sum does not stand any more
    with pytest.raises(KeyError):
        worker.sum(2)
