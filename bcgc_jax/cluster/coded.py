"""What a master knows of an iteration of a code: who has announced which message, whom it asked, what it has.

A block at level n is decoded with its (N-n)-th message, one of nested groups with one of each group. A large
message is announced, and asked for if it is one of these: no other is moved. No line here knows of processes.
"""

from collections.abc import Iterable

import numpy as np
from jax import Array

from bcgc_jax.cluster.decoder import Decoder
from bcgc_jax.cluster.holders import Question


class Coded:
    """One iteration. What is returned are questions to ask now."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self._wanted = decoder, decoder.needed.copy()
        plan, count = decoder.plan, len(decoder.plan.blocks)
        # Of each block the group of each worker, of which one is enough; of a code everybody is one.
        self._groups: list[dict[int, int]] = [
            {worker: k for k, group in enumerate(groups) for worker in group}
            for groups in plan.groups or [[[w] for w in range(plan.num_workers)]] * count
        ]
        self._done = np.zeros(count, bool)
        # Of each block: what came, by worker; who was asked; who has announced it and was not asked.
        self._messages: list[dict[int, np.ndarray]] = [{} for _ in range(count)]
        self._coming: list[set[int]] = [set() for _ in range(count)]
        self._ready: list[dict[int, tuple[int, ...]]] = [{} for _ in range(count)]

    def report(self, worker: int, block: int, subsets: tuple[int, ...]) -> list[Question]:
        """A worker has announced its message of a block."""
        self._ready[block][worker] = subsets
        return self.due(block)

    def take(self, question: Question, values: np.ndarray) -> bool:
        """A message came: whether it counts."""
        block, worker, messages = question.block, question.worker, self._messages[question.block]
        self._coming[block].discard(worker)
        if self._done[block] or not self._missing(block, worker, messages):
            return False
        messages[worker] = values
        return True

    def part(self, block: int) -> list[Array] | None:
        """The pieces of a block, None before its last message."""
        if len(self._messages[block]) < self._wanted[block]:
            return None
        if (part := self.decoder.part(block, self._messages[block])) is None:
            self._wanted[block] += 1  # random codes amplify too much once in a great while: one more helps
            return None
        self._done[block] = True
        # Who has sent one stays known.
        self._messages[block] = dict.fromkeys(self._messages[block], np.zeros(0))
        return part

    def lose(self, worker: int) -> list[Question]:
        """A worker is lost, and with it what it has announced and was asked for."""
        for ready, coming in zip(self._ready, self._coming, strict=True):
            ready.pop(worker, None)
            coming.discard(worker)
        return [question for block in range(len(self._ready)) for question in self.due(block)]

    def possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether what has come and what those may send who are `coming`, `[N]`, is enough, bool `[B]`."""
        there = [
            {groups[w] for w in (*had, *ready, *np.flatnonzero(coming))}
            for groups, had, ready in zip(self._groups, self._messages, self._ready, strict=True)
        ]
        return np.array([len(groups) for groups in there]) >= self._wanted

    def due(self, block: int) -> list[Question]:
        """As many of those who have announced a block as are wanted."""
        had, coming, questions = self._messages[block], self._coming[block], []
        for worker, subsets in list(self._ready[block].items()):
            wanted = len(had) + len(coming) < self._wanted[block]
            if wanted and self._missing(block, worker, [*had, *coming]):
                coming.add(worker)
                del self._ready[block][worker]
                questions.append(Question(-1, worker, block, subsets))
        return questions

    def _missing(self, block: int, worker: int, workers: Iterable[int]) -> bool:
        """Whether nobody of a worker's group is among these."""
        groups = self._groups[block]
        return groups[worker] not in {groups[other] for other in workers}
