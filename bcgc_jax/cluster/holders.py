"""What a master knows of an iteration of a schedule: who has finished what, whom it asked, what it has.

Each subset of a block is asked for once, as soon as all that nobody was asked for are finished by somebody.
If one who was asked dies, what it was to send counts as not asked for. No line here knows of processes.
"""

from typing import Any, NamedTuple

import numpy as np
from jax import Array

from bcgc_jax.cluster.decoder import Decoder
from bcgc_jax.coding.gradients import CodingPlan


class Question(NamedTuple):
    """For a sum over `subsets` of a `block` that a `worker` has finished; its `number` is used once."""

    number: int
    worker: int
    block: int
    subsets: tuple[int, ...]


class Holders:
    """One iteration of `plan`. What is returned are questions to ask now.

    >>> from bcgc_jax.coding.scheduled import schedule_plan
    >>> from bcgc_jax.plans.schedules import Group, schedule_of
    >>> both = schedule_of([Group(2, 1)], [1.0])  # of two workers each its own subset, then the other's
    >>> holders = Holders(schedule_plan(both, np.zeros(1), num_workers=2))
    >>> holders.report(worker=1, block=0, subsets=(1,))
    []
    >>> [(q.worker, q.subsets) for q in holders.report(1, 0, (0,))]  # it is the faster one
    [(1, (0, 1))]
    >>> holders.lose(1)  # and dies: nobody else has what it had
    []
    >>> holders.report(0, 0, (0,)), holders.possible(np.array([True, False])).tolist()
    ([], [True])
    >>> asked = holders.report(0, 0, (1,))
    >>> holders.answer(asked[0].number) == asked[0], holders.is_done(0)
    (True, True)
    """

    def __init__(self, plan: CodingPlan) -> None:
        self.plan = plan
        workers, blocks = plan.num_workers, len(plan.blocks)
        # Whom: `[B, worker, subset]`. What: `[B, subset]`.
        self._finished = np.zeros((blocks, workers, workers), bool)
        self._unasked = np.ones((blocks, workers), bool)
        self._counted = np.zeros((blocks, workers), bool)
        self._open: dict[int, Question] = {}
        self._asked = np.zeros(workers, int)
        self._next = 0

    def report(self, worker: int, block: int, subsets: tuple[int, ...]) -> list[Question]:
        """A worker has finished a block of a subset."""
        self._finished[block, worker, subsets[0]] = True
        return self.due(block)

    def answer(self, number: int) -> Question | None:
        """A sum came: the question that it answers, None if it does not count any more."""
        question = self._open.pop(number, None)
        if question is not None:
            self._counted[question.block, list(question.subsets)] = True
        return question

    def lose(self, worker: int) -> list[Question]:
        """A worker is lost, and with it what it had finished and was asked for; a successor begins anew."""
        self._finished[:, worker] = False
        lost = [question for question in self._open.values() if question.worker == worker]
        for question in lost:
            del self._open[question.number]
            self._unasked[question.block, list(question.subsets)] = True
        return [new for block in {question.block for question in lost} for new in self.due(block)]

    def is_done(self, block: int) -> bool:
        """Whether sums over all subsets have come."""
        return bool(self._counted[block].all())

    def possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether each block can be had, bool `[B]`, if all tasks of `coming`, bool `[N]`, will be done."""
        times = np.where(coming, 0, np.inf) + np.zeros((len(self.plan.order), 1))
        may = ~self._unasked | self._finished.any(axis=1) | np.isfinite(self.plan.ready(times))
        return np.all(may, axis=1)

    def due(self, block: int) -> list[Question]:
        """For all that nobody was asked for, if it is covered: few questions, and of those who had few."""
        left, finished = self._unasked[block], self._finished[block]
        if not left.any() or not finished[:, left].any(axis=0).all():
            return []
        questions = []
        while left.any():
            useful = np.sum(finished[:, left], axis=1)
            worker = int(np.lexsort((self._asked, -useful))[0])
            chosen = left & finished[worker]
            subsets = tuple(np.flatnonzero(chosen).tolist())
            questions.append(Question(self._next, worker, block, subsets))
            left &= ~chosen
            self._asked[worker] += 1
            self._next += 1
        self._open |= {question.number: question for question in questions}
        return questions


class Summed(Holders):
    """The same with the sums themselves: a block is the sum of those that were asked for."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.plan)
        self.decoder = decoder
        self._totals: list[Any] = [None] * len(decoder.plan.blocks)

    def take(self, question: Question, values: np.ndarray) -> bool:
        """A sum came: whether it counts."""
        if self.answer(question.number) is None:
            return False
        total = self._totals[question.block]
        if total is None or not total.flags.writeable:  # the first one is Ray's own
            self._totals[question.block] = values if total is None else total + values
        else:
            total += values
        return True

    def part(self, block: int) -> list[Array] | None:
        """The pieces of a block, None before its last sum."""
        if not self.is_done(block):
            return None
        total, self._totals[block] = self._totals[block], None
        return self.decoder.sum(block, np.ones(1), [total])
