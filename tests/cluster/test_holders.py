"""The master's bookkeeping without processes, by brute force over orders of reports, deaths and answers."""

import jax
import numpy as np
import pytest

from bcgc_jax.cluster.holders import Holders, Question
from bcgc_jax.coding.codes import gradient_code
from bcgc_jax.coding.gradients import Block, CodingPlan
from bcgc_jax.plans.schedules import Group, tasks_of

# Depth of each group and its blocks, and the workers: some with all subsets, some with one only. The share of
# lost workers that have a successor.
CASES = [
    ([(3, 2)], 3, 0.5),
    ([(1, 1), (2, 1), (4, 3)], 4, 0.5),
    ([(1, 1), (2, 1), (4, 3)], 4, 1.0),
    ([(2, 2), (3, 1)], 5, 0.5),
]


def plan_of(groups: list[tuple[int, int]], workers: int) -> CodingPlan:
    subset, block = tasks_of([Group(*group) for group in groups])
    order = tuple(zip(subset.tolist(), block.tolist(), strict=True))
    blocks = tuple(Block(sum(b == k for _, b in order) - 1, ()) for k in range(max(block) + 1))
    codes = (gradient_code(jax.random.key(0), workers, 0),) * len(blocks)
    return CodingPlan(codes, blocks, True, order)


class World:
    """Workers that do their tasks, answer and die as it pleases `rng`, and what the master has of them.

    Each event is one of: the next task of somebody, an answer (whether or not who gave it was lost since), a
    loss. A lost worker has a successor, or none; one of the `hung` does nothing more until it is lost.
    """

    def __init__(self, plan: CodingPlan, rng: np.random.Generator, deaths: int, replaced: float) -> None:
        self.plan, self.rng, self.deaths, self.replaced = plan, rng, deaths, replaced
        self.holders = Holders(plan)
        workers, blocks = plan.num_workers, len(plan.blocks)
        self.alive = np.ones(workers, bool)
        self.hung = np.zeros(workers, bool)
        self.life = np.zeros(workers, int)  # of how many processes this is the last
        self.done = [0] * workers
        self.sums = np.zeros((blocks, workers), int)
        self.sent: list[tuple[int, Question]] = []  # by which process
        self.asked: dict[tuple[int, int], tuple[int, int]] = {}  # of block and subset: worker, process

    def questions(self, found: list[Question]) -> None:
        for question in found:
            w = question.worker
            assert self.alive[w]
            has = {(t.block, t.subsets[0]) for t in self.plan.tasks(w)[: self.done[w]]}
            for subset in question.subsets:
                assert (question.block, subset) in has
                before = self.asked.get((question.block, subset))
                # Nobody was asked, or who was is no more.
                assert before is None or before[1] < self.life[before[0]] or not self.alive[before[0]]
                self.asked[question.block, subset] = (w, int(self.life[w]))
            self.sent.append((int(self.life[w]), question))

    def events(self) -> list[tuple[str, int]]:
        tasks, moving = len(self.plan.order), np.flatnonzero(self.alive & ~self.hung).tolist()
        found = [("task", w) for w in moving if self.done[w] < tasks]
        found += [("answer", k) for k, (life, q) in enumerate(self.sent) if self._may_answer(life, q)]
        if self.deaths:
            found += [("lose", w) for w in np.flatnonzero(self.alive).tolist()]
            found += [("hang", w) for w in moving]
        elif not found:  # silence: those who hang are found
            found += [("lose", w) for w in np.flatnonzero(self.alive & self.hung).tolist()]
        return found

    def _may_answer(self, life: int, question: Question) -> bool:
        """What was lost before is on its way perhaps; who hangs sends nothing."""
        w = question.worker
        return life < self.life[w] or not self.alive[w] or not self.hung[w]

    def step(self) -> bool:
        """One event; False if there is none."""
        events = self.events()
        if not events:
            return False
        # Deaths anywhere on the way, not most of them at its beginning.
        weights = np.array([0.1 if what in ("lose", "hang") else 1.0 for what, _ in events])
        what, which = events[self.rng.choice(len(events), p=weights / weights.sum())]
        getattr(self, what)(which)
        return True

    def task(self, w: int) -> None:
        task = self.plan.tasks(w)[self.done[w]]
        self.done[w] += 1
        self.questions(self.holders.report(w, task.block, task.subsets))

    def answer(self, k: int) -> None:
        life, question = self.sent.pop(k)
        w = question.worker
        lost, found = life < self.life[w] or not self.alive[w], self.holders.answer(question.number)
        assert found == (None if lost else question)
        if found is not None:
            self.sums[question.block, list(question.subsets)] += 1
            assert self.sums.max() == 1
            assert self.holders.is_done(question.block) == self.sums[question.block].all()

    def hang(self, w: int) -> None:
        self.hung[w] = True
        self.deaths -= 1

    def lose(self, w: int) -> None:
        self.deaths = max(self.deaths - 1, 0)
        self.hung[w] = False
        self.alive[w] = self.rng.random() < self.replaced
        self.life[w] += 1
        self.done[w] = 0
        self.questions(self.holders.lose(w))

    def possible(self) -> np.ndarray:
        """By the definition: each subset of a block has been had, is asked for, or has somebody left."""
        blocks = range(len(self.plan.blocks))
        tasks = [t for w in np.flatnonzero(self.alive).tolist() for t in self.plan.tasks(w)]
        left = [{t.subsets[0] for t in tasks if t.block == b} for b in blocks]
        had = [set(np.flatnonzero(self.sums[b]).tolist()) for b in blocks]
        return np.array([len(left[b] | had[b]) == self.plan.num_workers for b in blocks])


@pytest.mark.parametrize(("groups", "workers", "replaced"), CASES)
def test_every_subset_counts_once_whoever_dies(groups, workers, replaced):
    plan, rng = plan_of(groups, workers), np.random.default_rng(workers)
    ends = {True: 0, False: 0}
    for trial in range(36):
        world = World(plan, rng, deaths=trial % (workers + 2), replaced=replaced)
        while world.step():
            assert world.holders.possible(world.alive).tolist() == world.possible().tolist()
        # It stands still only with all that can be had: each block whose subsets the survivors hold.
        done = np.array([world.holders.is_done(b) for b in range(len(plan.blocks))])
        assert done.tolist() == world.possible().tolist()
        assert done.tolist() == world.sums.all(axis=1).tolist()
        ends[bool(done.all())] += 1
    assert ends[True]
    assert replaced < 1 or not ends[False]


def test_a_block_is_asked_for_as_soon_as_it_is_covered_and_not_before():
    rng, plan = np.random.default_rng(0), plan_of([(2, 1), (4, 2)], 4)
    for _ in range(30):
        world, covered = World(plan, rng, deaths=0, replaced=0.0), np.zeros((3, 4), bool)
        while any(event[0] == "task" for event in world.events()):
            w = int(rng.choice([event[1] for event in world.events() if event[0] == "task"]))
            task, full = plan.tasks(w)[world.done[w]], covered.all(axis=1)
            covered[task.block, task.subsets[0]] = True
            before = len(world.sent)
            world.task(w)
            now = {question.block for _, question in world.sent[before:]}
            assert now == set(np.flatnonzero(covered.all(axis=1) & ~full).tolist())
        for block in range(3):
            subsets = [j for _, q in world.sent if q.block == block for j in q.subsets]
            assert sorted(subsets) == [0, 1, 2, 3]


def test_who_has_most_is_asked_and_then_who_was_asked_least():
    holders = Holders(plan_of([(3, 2)], 3))
    for worker, subset in ((0, 0), (1, 1), (0, 1)):
        assert holders.report(worker, 0, (subset,)) == []
    assert [(q.worker, q.subsets) for q in holders.report(1, 0, (2,))] == [(0, (0, 1)), (1, (2,))]
    assert holders.report(2, 0, (2,)) == []  # nobody is asked twice
    for worker, subset in ((0, 0), (2, 0), (0, 1)):
        assert holders.report(worker, 1, (subset,)) == []
    # Those with one subset are alike, but for what they have been asked for.
    assert [(q.worker, q.subsets) for q in holders.report(2, 1, (2,))] == [(2, (0, 2)), (0, (1,))]
