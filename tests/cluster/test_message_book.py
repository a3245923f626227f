"""An iteration without processes: sums by NumPy, questions by brute force."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.cluster.master import _Iteration
from bcgc_jax.cluster.message_book import Decoder, MessageBook, Request, offers_of
from bcgc_jax.cluster.processes import WorkersLost
from bcgc_jax.cluster.rounds import Ask, CodedRound
from bcgc_jax.cluster.worker import Message
from bcgc_jax.coding.codes import gradient_code
from bcgc_jax.coding.gradients import (
    Block,
    CodingPlan,
    Task,
    coding_plan,
    group_plan,
    schedule_plan,
)
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.plan import Plan, cyclic_plan
from tests.compilations import compilations
from tests.problems import not_none

N = 4


def plan_and_params(
    seed: int, counts: Sequence[int] = (6, 9, 7, 0)
) -> tuple[CodingPlan, dict[str, np.ndarray]]:
    params = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float32)}
    plan = coding_plan(jax.random.key(seed), params, np.array(counts))
    return jax.tree.map(np.asarray, plan), params


def sent(plan: CodingPlan, gradients: np.ndarray) -> list[np.ndarray]:
    """The messages of all workers for each block, from the gradients of the subsets."""
    parts = np.split(
        gradients, np.cumsum([block.size for block in plan.blocks])[:-1], axis=1
    )
    encoded = [
        np.asarray(code.encoding) @ part
        for code, part in zip(plan.codes, parts, strict=True)
    ]
    return [
        x.astype("f8" if code.wide else "f4")
        for code, x in zip(plan.codes, encoded, strict=True)
    ]


def assert_alike(gradient: Any, params: Any) -> None:
    shapes = [
        {name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()}
        for tree in (gradient, params)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.smoke
def test_the_mean_gradient_comes_back_from_as_many_messages_as_are_needed(
    x64: None,
) -> None:
    rng = np.random.default_rng(0)
    plan, params = plan_and_params(1)
    decoder = Decoder(plan, params)
    assert decoder.needed.tolist() == [4, 3, 2]
    gradients = rng.normal(size=(N, 22)).astype(np.float32)
    parts = []
    for block, values in enumerate(sent(plan, gradients)):
        arrived = rng.permutation(N)[: decoder.needed[block]]
        messages = {int(worker): values[worker] for worker in arrived}
        with compilations() as compiled:
            pieces = decoder.gradients(block, messages)
        assert compiled == []
        assert pieces is not None
        parts.append(pieces)
        if block == 0:  # not all that hold a subset which others do not
            assert (
                decoder.gradients(block, {w: m for w, m in messages.items() if w})
                is None
            )
    gradient = decoder.gradient(parts)
    # The last leaf comes first.
    want = gradients.mean(axis=0)
    assert_alike(gradient, params)
    np.testing.assert_allclose(gradient["b"], want[:7], atol=1e-6)
    np.testing.assert_allclose(gradient["a"].ravel(), want[7:], atol=1e-6)


def test_no_plan_has_programs_of_its_own_which_the_master_would_keep() -> None:
    Decoder(*plan_and_params(3))
    second_plan, params = plan_and_params(2, (3, 10, 9, 0))
    messages = sent(second_plan, np.ones((N, 22), np.float32))
    with compilations() as compiled:
        decoder = Decoder(second_plan, params)
        blocks = [decoder.gradients(b, dict(enumerate(messages[b]))) for b in range(3)]
        decoder.gradient([not_none(block) for block in blocks])
    assert compiled == []


def test_sums_over_all_subsets_are_divided_into_the_parameters_own_dtypes() -> None:
    params: dict[str, Any] = {
        "a": jnp.zeros((3, 5), jnp.bfloat16),
        "b": np.zeros(7, np.float32),
    }
    plan = schedule_plan(cyclic_plan(22.0, N), params, N)
    decoder, rng = Decoder(plan, params), np.random.default_rng(0)
    total = rng.normal(size=22).astype(np.float32)
    with compilations() as compiled:
        gradient = decoder.gradient([not_none(decoder.gradients(0, {0: total}))])
    assert compiled == []
    assert_alike(gradient, params)
    np.testing.assert_array_equal(gradient["b"], total[:7] / 4)
    # Half a unit in the last of bfloat16's eight bits: measured 3e-3 of 4e-3.
    narrow = np.asarray(gradient["a"], float).ravel()
    np.testing.assert_allclose(narrow, total[7:] / 4, rtol=2.0**-8)


def scheduled(stored: int, workers: int) -> CodingPlan:
    """Of so many subsets, one by one."""
    return CodingPlan(
        (gradient_code(jax.random.key(0), workers, 0),),
        (Block(stored - 1, ()),),
        True,
        stored,
    )


def nested() -> CodingPlan:
    """One block with everyone's message, one with one message of each half."""
    halves = OneOfEach((((0,), (1,), (2,), (3,)), ((0, 1), (2, 3))), (0,) * N)
    sizes: Any = np.array([4.0, 6.0])
    plan = Plan(sizes, np.arange(2), np.array([1, 2]), np.ones(2), halves)
    return jax.tree.map(np.asarray, group_plan(plan, np.zeros(10, np.float32), N))


# And the share of lost workers that have a successor.
CASES = {
    "whole": (lambda: scheduled(3, 3), 0.5),
    "pairs": (lambda: scheduled(2, 5), 0.5),
    "pairs, all replaced": (lambda: scheduled(2, 5), 1.0),
    "coded": (lambda: plan_and_params(1)[0], 0.5),
    "nested": (nested, 0.5),
}


def book_of(plan: CodingPlan) -> MessageBook:
    """What is summed, or decoded, are the names of workers."""
    message_counts, offers = plan.rule.awaited(None), offers_of(plan)
    decoder: Any = SimpleNamespace(plan=plan, needed=message_counts, offers=offers)
    names = range(plan.num_workers)
    decoder.gradients = lambda _, messages: (
        [w in messages for w in names] if plan.coded else messages[0].tolist()
    )
    return MessageBook(decoder)


class World:
    """Workers that work, answer and die by chance, and what the master has of them.

    Each event is one of: the next task of somebody, an answer (whether or not who gave
    it was lost since), a loss. A lost worker has a successor, or none; one of the
    `hung` does nothing more until it is lost.
    """

    def __init__(
        self, plan: CodingPlan, rng: np.random.Generator, deaths: int, replaced: float
    ) -> None:
        self.plan = plan
        self.rng = rng
        self.deaths = deaths
        self.replaced = replaced
        self.book, self.needed = book_of(plan), plan.rule.awaited(None)
        workers, blocks = plan.num_workers, len(plan.blocks)
        self.alive = np.ones(workers, bool)
        self.hung = np.zeros(workers, bool)
        self.life = np.zeros(workers, int)  # of how many processes this is the last
        self.done = [0] * workers
        self.had: list[set[int]] = [set() for _ in range(blocks)]
        self.complete = np.zeros(blocks, bool)
        self.unasked = np.zeros(blocks, int)
        self.open: set[Request] = set()
        self.sent: list[tuple[int, Request]] = []  # by which process

    def terms(self, worker: int, block: int, subsets: Sequence[int]) -> set[int]:
        """Subsets; of a code workers, or the first ones of their groups."""
        if not self.plan.coded:
            return set(subsets)
        groups = self.plan.groups[block] if self.plan.groups else [(worker,)]
        return {min(group) for group in groups if worker in group}

    def claimed_terms(self, block: int) -> set[int]:
        return self.had[block].union(
            *(self.terms(*q) for q in self.open if q.block == block)
        )

    def requests(self, requests: list[Request]) -> None:
        """Of those who have done it, nothing twice, and no more than is needed."""
        for request in requests:
            w, block, subsets = request
            assert self.alive[w]
            done = [
                t.subsets
                for t in self.plan.tasks(w)[: self.done[w]]
                if t.block == block
            ]
            assert set(subsets) <= {j for task_subsets in done for j in task_subsets}
            assert not self.terms(*request) & self.claimed_terms(block)
            self.open.add(request)
            assert (
                len(self.claimed_terms(block))
                <= self.needed[block] + self.unasked[block]
            )
            assert not self.complete[block]
            self.sent.append((int(self.life[w]), request))

    def events(self) -> list[tuple[str, int]]:
        tasks = len(self.plan.tasks(0))
        moving = np.flatnonzero(self.alive & ~self.hung).tolist()
        events = [("task", w) for w in moving if self.done[w] < tasks]
        events += [
            ("answer", k)
            for k, (life, q) in enumerate(self.sent)
            if self._may_answer(life, q)
        ]
        if self.deaths:
            events += [("lose", w) for w in np.flatnonzero(self.alive).tolist()]
            events += [("hang", w) for w in moving]
        elif not events:  # silence: those who hang are found
            events += [
                ("lose", w) for w in np.flatnonzero(self.alive & self.hung).tolist()
            ]
        return events

    def _may_answer(self, life: int, request: Request) -> bool:
        """What was lost before is on its way perhaps; who hangs sends nothing."""
        w = request.worker
        return life < self.life[w] or not self.alive[w] or not self.hung[w]

    def step(self) -> bool:
        """One event; False if there is none."""
        events = self.events()
        if not events:
            return False
        # Deaths anywhere on the way, not most of them at its beginning.
        weights = np.array(
            [0.1 if what in ("lose", "hang") else 1.0 for what, _ in events]
        )
        what, which = events[self.rng.choice(len(events), p=weights / weights.sum())]
        getattr(self, what)(which)
        return True

    def task(self, w: int) -> None:
        task = self.plan.tasks(w)[self.done[w]]
        self.done[w] += 1
        self.requests(self.book.report(Request(w, *task)))

    def answer(self, k: int) -> None:
        """A lost worker's counts if its successor is asked; of a code, if nobody is."""
        request = self.sent.pop(k)[1]
        _, block, subsets = request
        new = self.plan.coded and not self.terms(*request) & self.claimed_terms(block)
        counts = not self.complete[block] and (request in self.open or new)
        values = np.isin(np.arange(self.plan.num_workers), subsets).astype(int)
        values.setflags(write=False)  # as those from Ray's store
        assert self.book.take(request, values) == counts
        self.open.discard(request)
        if counts:
            self.unasked[block] += new
            assert not self.had[block] & self.terms(*request)
            self.had[block] |= self.terms(*request)
            part: Any = self.book.gradients(block)
            self.complete[block] = len(self.had[block]) >= self.needed[block]
            assert (part is not None) == self.complete[block]
            assert part is None or sum(part) == self.needed[block]

    def hang(self, w: int) -> None:
        self.hung[w] = True
        self.deaths -= 1

    def lose(self, w: int) -> None:
        self.deaths = max(self.deaths - 1, 0)
        self.hung[w] = False
        self.alive[w] = self.rng.random() < self.replaced
        self.life[w] += 1
        self.done[w] = 0
        self.open = {request for request in self.open if request.worker != w}
        self.requests(self.book.lose(w))

    def possible(self) -> np.ndarray:
        """By the definition: enough terms have been had, or have somebody left."""
        terms = [set(had) for had in self.had]
        for w in np.flatnonzero(self.alive).tolist():
            for task in self.plan.tasks(w):
                terms[task.block] |= self.terms(w, *task)
        return np.array([*map(len, terms)]) >= self.needed


@pytest.mark.parametrize("case", CASES)
def test_every_piece_counts_once_whoever_dies(case):
    (make, replaced), rng = CASES[case], np.random.default_rng(3)
    plan, ends = make(), {True: 0, False: 0}
    for trial in range(36):
        world = World(
            plan, rng, deaths=trial % (plan.num_workers + 2), replaced=replaced
        )
        while world.step():
            possible = world.book.possible(world.alive)
            assert (
                possible[~world.complete].tolist()
                == world.possible()[~world.complete].tolist()
            )
        # It stands still only with all that can be had: each block whose terms the
        # survivors hold.
        assert world.complete.tolist() == world.possible().tolist()
        ends[bool(world.complete.all())] += 1
    assert ends[True]
    assert replaced < 1 or not ends[False]


def test_where_a_code_amplifies_too_much_one_message_more_is_asked_for():
    book: Any = book_of(plan_and_params(1)[0])
    part = book.decoder.gradients
    book.decoder.gradients = lambda block, messages: None
    asked = [q for w in (2, 0, 3, 1) for q in book.report(Request(w, 1, ()))]
    assert [q.worker for q in asked] == [2, 0, 3]
    assert [book.take(q, np.zeros(1)) for q in asked] == [True] * 3
    assert book.gradients(1) is None
    book.decoder.gradients = part
    (request,) = book.due(1)
    assert (request.worker, book.take(request, np.zeros(1)), book.gradients(1)) == (
        1,
        True,
        [1, 1, 1, 1],
    )
    assert not book.take(request, np.zeros(1))


def test_whoever_of_a_group_is_first_not_a_bit_is_different():
    plan = nested()
    decoder = Decoder(plan, np.zeros(10, np.float32))
    gradients = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
    sums = np.repeat(gradients.reshape(2, 2, -1).sum(axis=1), 2, axis=0)
    gradients_of_firsts = [
        not_none(decoder.gradients(1, {w: sums[w] for w in two}))[0]
        for two in ((0, 3), (2, 1))
    ]
    np.testing.assert_allclose(
        gradients_of_firsts[0], gradients.mean(axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(gradients_of_firsts[0], gradients_of_firsts[1])


def test_a_block_is_asked_for_as_soon_as_it_is_covered_and_not_before():
    rng, plan = np.random.default_rng(0), scheduled(3, 4)
    for _ in range(30):
        world = World(plan, rng, deaths=0, replaced=0.0)
        covered = np.zeros((1, 4), bool)
        while any(event[0] == "task" for event in world.events()):
            w = int(
                rng.choice([event[1] for event in world.events() if event[0] == "task"])
            )
            task, full = plan.tasks(w)[world.done[w]], covered.all(axis=1)
            covered[task.block, task.subsets[0]] = True
            before = len(world.sent)
            world.task(w)
            now = {request.block for _, request in world.sent[before:]}
            assert now == set(np.flatnonzero(covered.all(axis=1) & ~full).tolist())
        assert sorted(j for _, q in world.sent for j in q.subsets) == [0, 1, 2, 3]


def test_who_has_most_is_asked_and_nobody_twice():
    book = book_of(scheduled(3, 3))
    reports = (0, 0), (1, 1), (0, 1), (1, 2), (2, 2)
    asked = [[q[::2] for q in book.report(Request(w, 0, (j,)))] for w, j in reports]
    assert asked == [[], [], [], [(0, (0, 1)), (1, (2,))], []]


class Crew(list):
    """As `Processes`: workers that note what they are asked for."""

    def __init__(self, answers: dict[Any, np.ndarray]) -> None:
        self.asked: list[tuple[int, int]] = []
        super().__init__(self._process(worker) for worker in range(N))
        self.num_workers = N
        self.ray = SimpleNamespace(get=answers.get)
        self.lost = ()
        self.why = ""
        self.error = None

    def _process(self, worker: int) -> Any:
        def deliver(call: int, block: int, subsets: tuple[int, ...]) -> Any:
            self.asked.append((worker, block))
            return worker, block

        return SimpleNamespace(
            call=lambda method, arguments: {"deliver": deliver}[method](*arguments)
        )

    def lose(self, worker: int, *_: Any) -> None:
        self[worker] = None


@pytest.fixture
def case() -> Any:
    """An iteration that asks for its second block: three messages are enough."""
    plan, params = plan_and_params(1)
    gradients = np.random.default_rng(0).normal(size=(N, 22)).astype(np.float32)
    messages = sent(plan, gradients)
    group: Any = Crew({(worker, 1): messages[1][worker] for worker in range(N)})
    coded = CodedRound(Decoder(plan, params), 1, 0, [], None)
    iteration = _Iteration(coded, group, 1, time.monotonic())

    def announce(*workers: int) -> None:
        for worker in workers:
            iteration._send(
                coded.heard(
                    Ask(worker, "compute", ()),
                    Message(Task(1, (worker,)), 0.0, None),
                    0.0,
                )
            )

    def answer(*workers: int) -> None:
        for worker in workers:
            iteration.waiting[worker, 1][1]((worker, 1), worker)

    def check(arrived: list[bool]) -> None:
        assert coded.arrived[1].tolist() == arrived
        gradient = np.concatenate([np.ravel(piece) for piece in coded._parts[1]])
        # Measured 6e-8.
        np.testing.assert_allclose(gradient, gradients.mean(axis=0)[6:15], atol=1e-6)

    acts = {"announce": announce, "answer": answer, "check": check, "sent": messages}
    return SimpleNamespace(group=group, iteration=iteration, **acts)


def test_what_a_lost_worker_was_asked_for_is_asked_of_another(case):
    case.announce(2, 0, 3, 1)
    case.answer(2)
    case.iteration._lose(0, "died", "")
    assert case.group.asked == [(2, 1), (0, 1), (3, 1), (1, 1)]
    assert (0, 1) not in case.iteration.waiting
    case.answer(1, 3)
    case.check([False, True, True, True])
    # Of the first block everyone's is needed, and none is here.
    case.iteration._lose(2, "died", "")
    with pytest.raises(WorkersLost, match="a block at level 0 survives no more than 0"):
        case.iteration._check()


def test_small_messages_come_unasked(case):
    for block, workers in ((0, (3, 1, 0, 2)), (2, (3, 1))):
        for worker in workers:
            message = Message(Task(block, (worker,)), 0.0, case.sent[block][worker])
            assert (
                case.iteration.round.heard(Ask(worker, "compute", ()), message, 0.0)
                == []
            )
    assert case.group.asked == []
    assert np.isfinite(case.iteration.round.completed).tolist() == [True, False, True]
    case.announce(0, 1, 2)
    case.answer(0, 1, 2)
    case.check([True, True, True, False])
    case.group[:] = N * [None]  # nobody has more to say
    result = case.iteration.run()
    assert (
        result.completed.max()
        <= result.seconds
        <= time.monotonic() - case.iteration.begin
    )
