"""Over any transport a step is whole: in memory, and over one that is written here."""

import json
import math
import queue
import threading
import time
from typing import Any

import pytest

from bcgc_jax.balancing.dispatch import StepFailed, join, serve
from bcgc_jax.balancing.dispatch.transport import Memory
from tests.balancing.dispatch.loops import WORKERS, Loops, whole
from tests.waiting import comes_true


class Queues:
    """A transport of one's own: a thread takes JSON from a queue for each line."""

    def __init__(self):
        self.asked: queue.Queue[Any] = queue.Queue()

    def listen(self, answers):
        return Post(self.asked, answers)

    def connect(self, address):
        return Letters(self.asked)


class Post:
    address = ("queues", 0)

    def __init__(self, asked, answers):
        self.asked, self.answers = asked, answers
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        wait = 0.0
        while True:
            try:
                what = self.asked.get(timeout=wait)
                if what is None:
                    return
                what(self.answers)
            except queue.Empty:
                pass
            wait = min(self.answers.look(), 60.0)

    def close(self):
        self.asked.put(None)
        self.thread.join()


class Letters:
    def __init__(self, asked):
        self.asked = asked
        self.answered: queue.Queue[str] = queue.Queue()
        self.reply = lambda answer: self.answered.put(json.dumps(answer))

    def ask(self, message):
        data = json.dumps(message)
        self.asked.put(lambda answers: answers.asked(json.loads(data), self.reply))
        return json.loads(self.answered.get(timeout=20.0))

    def send(self, message):
        data = json.dumps(message)
        self.asked.put(lambda answers: answers.asked(json.loads(data), self.reply))

    def close(self):
        self.asked.put(lambda answers: answers.left(self.reply))


@pytest.fixture(params=[Memory, Queues])
def transport(request):
    return request.param()


@pytest.fixture
def coordinator(transport):
    with serve(
        WORKERS, 2, 3, timeout=0.3, transport=transport, adapt=False
    ) as coordinator:
        yield coordinator


def _run(coordinator, step, ranks=range(WORKERS)):
    loops = Loops(coordinator, lambda rank: 0.002 * (rank == 1))
    return loops.run(ranks, step), loops.failed


def test_every_sample_is_in_one_sum(coordinator):
    assert [_run(coordinator, step) for step in (0, 1)] == [
        (whole(0), []),
        (whole(1), []),
    ]


def test_who_leaves_and_who_is_silent_makes_the_step_fail_for_all(coordinator):
    """Nobody asks when the timeout ends: a look was due."""
    silent = join(coordinator.address, 0, transport=coordinator.transport)
    chunks = silent.step(0)
    next(chunks)
    _, failed = _run(coordinator, 0, ranks=(1, 2))
    assert [why for _, why in failed] == [
        "worker 0 is lost, because it was silent for 0.3 s. "
        "Step 0 has failed and must be repeated"
    ] * 2
    with pytest.raises(StepFailed, match="silent"):  # it was, and comes back
        next(chunks)
    leaves = join(coordinator.address, 1, transport=coordinator.transport)
    chunks = silent.step(1)
    next(chunks)
    left = leaves.step(1)
    next(left)
    leaves.close()
    with pytest.raises(StepFailed, match="worker 1 is lost"):
        next(chunks)
    silent.close()
    assert _run(coordinator, 0) == (whole(0), [])


@pytest.fixture
def memory():
    return Memory()


def test_in_memory_a_coordinator_that_ends_ends_whoever_waits_and_asks(memory):
    with pytest.raises(ConnectionRefusedError, match="memory:0"):
        join(("memory", 0), 0, wait=0.0, transport=memory)
    with serve(2, 1, 1, transport=memory, adapt=False) as coordinator:
        shares = [
            join(coordinator.address, rank, transport=memory) for rank in range(2)
        ]
        errors = []

        def waits():
            with pytest.raises(ConnectionError) as raised:
                list(shares[0].step(0))
            errors.append(raised.value)

        waiting = threading.Thread(target=waits)
        waiting.start()
        chunks = shares[1].step(0)
        next(chunks)
        with pytest.raises(OSError, match="listens in this memory already"):
            serve(2, transport=memory)
    waiting.join(10.0)
    assert len(errors) == 1
    with pytest.raises(ConnectionError, match="ended"):
        next(chunks)
    # Another may follow.
    with serve(2, 1, 1, transport=memory, adapt=False) as coordinator:
        assert join(coordinator.address, 0, transport=memory).num_workers == 2


def test_in_memory_it_is_looked_when_it_is_due_though_nobody_asks(memory):
    class Counts:
        def __init__(self):
            self.looked = []

        def asked(self, message, reply):
            reply(message)

        def left(self, reply):
            pass

        def look(self):
            self.looked.append(time.monotonic())
            return 0.02 if len(self.looked) < 3 else math.inf

    answers = Counts()
    listening = memory.listen(answers)
    assert memory.connect(listening.address).ask([1]) == [1]
    assert comes_true(lambda: len(answers.looked) >= 3)
    first, *_, last = answers.looked
    assert 0.04 <= last - first < 5.0
    listening.close()
