"""Which large messages the master asks for, without any process: workers do what the tests say."""

import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from bcgc_jax.cluster.master import _Iteration
from bcgc_jax.cluster.processes import WorkersLost
from bcgc_jax.cluster.rules import Decoder, Question, Rule
from bcgc_jax.coding.gradients import coding_plan

N, SIZE = 4, 10


class Group(list):
    """As `Processes`: workers that note what they are asked for."""

    def __init__(self, plan: Any) -> None:
        self.asked: list[tuple[int, int]] = []
        super().__init__(self._process(w) for w in range(N))
        self.given, self.iteration = SimpleNamespace(duty=SimpleNamespace(plan=plan)), 0
        self.answers: dict[Any, np.ndarray] = {}
        self.ray = SimpleNamespace(get=self.answers.get, exceptions=SimpleNamespace(RayError=OSError))
        self.lost, self.why, self.error = (), "", None

    def _process(self, worker: int) -> Any:
        def deliver(call: int, block: int, subsets: tuple[int, ...]) -> Any:
            self.asked.append((worker, block))
            return worker, block

        actor = SimpleNamespace(deliver=SimpleNamespace(remote=deliver))
        return SimpleNamespace(actor=actor, speaks=lambda: None)

    def lose(self, worker: int, *_: Any) -> None:
        self[worker] = None


@pytest.fixture
def case():
    params = np.zeros(SIZE, np.float32)
    plan = jax.tree.map(np.asarray, coding_plan(jax.random.key(0), params, [4, 6, 0, 0]))
    group: Any = Group(plan)
    collection = _Iteration(Rule(Decoder(plan, params)), group, params, None, 1)
    gradients = np.random.default_rng(0).normal(size=(N, SIZE)).astype(np.float32)
    ends = [(0, 4), (4, SIZE)]
    sent = [
        (np.asarray(code.encoding) @ gradients[:, a:b]).astype(np.float64 if code.wide else np.float32)
        for code, (a, b) in zip(plan.codes, ends, strict=True)
    ]

    group.answers.update({(worker, 1): sent[1][worker] for worker in range(N)})

    def announce(worker: int) -> None:
        collection._ask(collection.rule.report(Question(worker, 1, plan.codes[1].subsets[worker])))

    def answer(worker: int) -> None:
        _, take = collection.waiting[worker, 1]
        take((worker, 1), worker)

    acts = {"announce": announce, "answer": answer, "want": gradients.mean(axis=0)[4:], "sent": sent}
    return SimpleNamespace(group=group, collection=collection, **acts)


def test_what_a_lost_worker_was_asked_for_is_asked_of_another(case):
    for worker in (2, 0, 3, 1):
        case.announce(worker)
    case.answer(2)
    case.collection._lose(0, "died", "")
    assert case.group.asked[3:] == [(1, 1)]
    assert (0, 1) not in case.collection.waiting
    for worker in (1, 3):
        case.answer(worker)
    assert case.collection.arrived[1].tolist() == [False, True, True, True]
    np.testing.assert_allclose(case.collection.parts[1][0], case.want, atol=1e-6)


def test_those_who_have_announced_count_as_coming(case):
    collection = case.collection
    for worker in (1, 2, 3):
        case.announce(worker)
    assert collection.rule.possible(np.zeros(N, bool) | (np.arange(N) > 0)).tolist() == [False, True]
    for worker in (1, 2):
        collection._lose(worker, "died", "")
    assert collection.rule.possible(np.array([False, False, False, True])).tolist() == [False, False]
    with pytest.raises(WorkersLost, match="a block at level 0 survives no more than 0"):
        collection._check()


def test_small_messages_come_unasked(case):
    for worker in (3, 1, 0, 2):
        case.collection._count(Question(worker, 0, (worker,)), case.sent[0][worker])
    assert case.group.asked == []
    assert np.isfinite(case.collection.completed[0])
    for tell in (case.announce, case.answer):
        for worker in (0, 1, 2):
            tell(worker)
    case.group[:] = N * [None]  # nobody has more to say
    found = case.collection.run()
    assert found.completed.max() <= found.seconds <= time.monotonic() - case.collection.begin
