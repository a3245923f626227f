"""What the master knows of an iteration: who has announced what, whom it asked, what has come, and its sums.

A block at level n of a code is decoded with its (N-n)-th message, one of nested groups with one of each
group: large messages are announced, and so many are asked for. Of a schedule each subset of a block is asked
for once, as soon as all that nobody was asked for are finished by somebody. If a worker dies, what it had and
was to send counts as not asked for. No line here knows of processes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.codes import REPEATED, decoding_weights
from bcgc_jax.coding.gradients import Block, CodingPlan, PyTree, assemble_gradient, decode_block


class Question(NamedTuple):
    """For a worker's message of a `block`; of a schedule, for the sum over `subsets` that it has finished."""

    worker: int
    block: int
    subsets: tuple[int, ...]


class Decoder:
    """Makes blocks of what the workers of `plan` send, for parameters like `params`; compiled when made.

    Of a code `needed`, `[B]`, is how many messages of each block are enough. Messages are read where they
    are, in Ray's store, in one pass that writes the gradients of the leaves.
    """

    def __init__(self, plan: CodingPlan, params: PyTree) -> None:
        leaves = jax.tree.leaves(params)
        self.plan, self._shapes = plan, tuple(np.shape(leaf) for leaf in leaves)
        self._dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)
        self.needed = plan.rule.awaited(None)
        self._encodings = [np.asarray(code.encoding) for code in plan.codes]
        # Messages that count: where the workers of a group send the same, one of each group.
        self._used = [
            len(set(code.subsets)) if code.construction in REPEATED else needed
            for code, needed in zip(plan.codes, self.needed.tolist(), strict=True)
        ]
        narrow = np.result_type(np.float32, *self._dtypes)  # of messages that no code amplifies
        parts: list[Any] = []
        for block, code in enumerate(plan.codes):
            zero = np.zeros(plan.blocks[block].size, float if code.wide else narrow)
            if plan.coded:
                parts.append(self.part(block, dict.fromkeys(range(plan.num_workers), zero)))
            else:
                parts.append(self.sum(block, np.ones(1), [zero]))
        jax.block_until_ready(assemble_gradient(plan.blocks, parts, params))

    def part(self, block: int, messages: Mapping[int, np.ndarray]) -> list[Array] | None:
        """The pieces of a block from the `messages`, `[size]`, of some workers; None if they are too few."""
        arrived = np.isin(np.arange(self.plan.num_workers), list(messages))
        found = decoding_weights(self._encodings[block], arrived)
        if not found.decodable:
            return None
        weights = np.asarray(found.weights)
        chosen = sorted(messages, key=lambda worker: weights[worker] == 0)[: self._used[block]]
        return self.sum(block, weights[chosen], [messages[worker] for worker in chosen])

    def sum(self, block: int, weights: np.ndarray, messages: Sequence[np.ndarray]) -> list[Array]:
        """The pieces of a block from weighted messages, of a schedule sums over subsets."""
        with jax.enable_x64(True):  # else messages of float64 would be cut on their way into `jit`
            # Memory at a multiple of 64 bytes, as that of Ray's store, is taken as it is.
            given = {"block": self.plan.blocks[block], "scaling": self.plan.scaling}
            return _part(weights, list(messages), **given, shapes=self._shapes, dtypes=self._dtypes)


# Plans of the same blocks share these programs, whatever their codes.
@functools.partial(jax.jit, static_argnames=("block", "scaling", "shapes", "dtypes"))
def _part(
    weights: Array,
    messages: Sequence[Array],
    *,
    block: Block,
    scaling: float,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[Any],
) -> list[Array]:
    ends = np.cumsum([piece.stop - piece.start for piece in block.pieces])
    with jax.enable_x64(True):
        pieces = [[m[a:b] for m in messages] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    found = decode_block(block, scaling, weights, pieces, dtypes)
    # A leaf that is whole has its shape from here on: nothing is left to be done with it.
    wholes = [shapes[piece.leaf] for piece in block.pieces]
    return [
        part.reshape(whole) if part.size == math.prod(whole) else part
        for part, whole in zip(found, wholes, strict=True)
    ]


class Coded:
    """One iteration of a code. What is returned are questions to ask now."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self._wanted = decoder, decoder.needed.copy()
        plan = decoder.plan
        blocks, workers = len(plan.blocks), plan.num_workers
        # Of each block the group of each worker, of which one is enough; of a code everybody is one.
        self._group = np.tile(np.arange(workers), (blocks, 1))
        for block, groups in enumerate(plan.groups):
            for number, group in enumerate(groups):
                self._group[block, list(group)] = number
        # Who has announced a block and was not asked for it, and who was; and what came, by worker.
        self._ready, self._coming = np.zeros((2, blocks, workers), bool)
        self._messages: list[dict[int, np.ndarray]] = [{} for _ in range(blocks)]

    def report(self, announced: Question) -> list[Question]:
        """A worker has announced its message of a block."""
        self._ready[announced.block, announced.worker] = True
        return self.due(announced.block)

    def take(self, question: Question, values: np.ndarray) -> bool:
        """A message came: whether it counts."""
        worker, block, _ = question
        self._coming[block, worker] = False
        group = self._group[block]
        if not self._wanted[block] or group[worker] in group[[*self._messages[block]]]:
            return False
        self._messages[block][worker] = values
        return True

    def part(self, block: int) -> list[Array] | None:
        """The pieces of a block, None before its last message."""
        if len(self._messages[block]) < self._wanted[block]:
            return None
        if (part := self.decoder.part(block, self._messages[block])) is None:
            self._wanted[block] += 1  # random codes amplify too much once in a great while: one more helps
            return None
        self._wanted[block], self._messages[block] = 0, {}
        return part

    def lose(self, worker: int) -> list[Question]:
        """A worker is lost, and with it what it has announced and was asked for."""
        self._ready[:, worker] = self._coming[:, worker] = False
        return [question for block in range(len(self._ready)) for question in self.due(block)]

    def possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether what has come and what those may send who are `coming`, `[N]`, is enough, bool `[B]`."""
        found = [len(self._groups(block, coming | self._ready[block])) for block in range(len(self._ready))]
        return np.array(found) >= self._wanted

    def due(self, block: int) -> list[Question]:
        """As many of those who have announced a block as are wanted."""
        questions = []
        for worker in np.flatnonzero(self._ready[block]).tolist():
            expected = self._groups(block, self._coming[block])
            if len(expected) < self._wanted[block] and self._group[block, worker] not in expected:
                self._ready[block, worker], self._coming[block, worker] = False, True
                questions.append(Question(worker, block, self.decoder.plan.codes[block].subsets[worker]))
        return questions

    def _groups(self, block: int, workers: np.ndarray) -> set[int]:
        """Those whose message came or may come of these workers, bool `[N]`."""
        return set(self._group[block][[*self._messages[block], *np.flatnonzero(workers)]].tolist())


class Summed:
    """One iteration of a schedule: a block is the sum of the sums that were asked for.

    >>> from bcgc_jax.coding.scheduled import schedule_plan
    >>> from bcgc_jax.plans.schedules import Group, schedule_of
    >>> both = schedule_of([Group(2, 1)], [1.0])  # of two workers each its own subset, then the other's
    >>> rule = Summed(Decoder(schedule_plan(both, np.zeros(1), num_workers=2), np.zeros(1)))
    >>> rule.report(Question(1, 0, (1,)))
    []
    >>> [(q.worker, q.subsets) for q in rule.report(Question(1, 0, (0,)))]  # it is the faster one
    [(1, (0, 1))]
    >>> rule.lose(1)  # and dies: nobody else has what it had
    []
    >>> rule.report(Question(0, 0, (0,))), rule.possible(np.array([True, False])).tolist()
    ([], [True])
    >>> asked = rule.report(Question(0, 0, (1,)))
    >>> rule.take(asked[0], np.array([6.0])), float(rule.part(0)[0][0])
    (True, 3.0)
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        workers, blocks = decoder.plan.num_workers, len(decoder.plan.blocks)
        # Whom: `[B, worker, subset]`. What: `[B, subset]`.
        self._finished = np.zeros((blocks, workers, workers), bool)
        self._unasked = np.ones((blocks, workers), bool)
        self._open: set[Question] = set()
        self._asked = np.zeros(workers, int)
        self._totals: list[Any] = [None] * blocks

    def report(self, finished: Question) -> list[Question]:
        """A worker has finished a block of a subset."""
        self._finished[finished.block, finished.worker, finished.subsets[0]] = True
        return self.due(finished.block)

    def take(self, question: Question, values: np.ndarray) -> bool:
        """A sum came: whether it counts."""
        if question not in self._open:
            return False
        self._open.remove(question)
        total = self._totals[question.block]
        if total is None or not total.flags.writeable:  # the first one is Ray's own
            self._totals[question.block] = values if total is None else total + values
        else:
            total += values
        return True

    def part(self, block: int) -> list[Array] | None:
        """The pieces of a block, None before its last sum."""
        if self._unasked[block].any() or any(question.block == block for question in self._open):
            return None
        total, self._totals[block] = self._totals[block], None
        return self.decoder.sum(block, np.ones(1), [total])

    def lose(self, worker: int) -> list[Question]:
        """A worker is lost, and with it what it had finished and was asked for; a successor begins anew."""
        self._finished[:, worker] = False
        lost = {question for question in self._open if question.worker == worker}
        self._open -= lost
        for question in lost:
            self._unasked[question.block, list(question.subsets)] = True
        return [new for block in {question.block for question in lost} for new in self.due(block)]

    def possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether each block can be had, bool `[B]`, if all tasks of `coming`, bool `[N]`, will be done."""
        plan = self.decoder.plan
        times = np.where(coming, 0, np.inf) + np.zeros((len(plan.order), 1))
        may = ~self._unasked | self._finished.any(axis=1) | np.isfinite(plan.ready(times))
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
            questions.append(Question(worker, block, tuple(np.flatnonzero(chosen).tolist())))
            left &= ~chosen
            self._asked[worker] += 1
        self._open.update(questions)
        return questions
