"""One iteration of a schedule on the master: workers say what is finished, and send what it asks for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bcgc_jax.cluster.collection import Collection
from bcgc_jax.cluster.credit import Credit, Question
from bcgc_jax.cluster.decoder import Divider
from bcgc_jax.cluster.worker import Message


class Asking(Collection):
    """Of a schedule: a block is the sum of sums, and each subset is in that of one worker."""

    def __init__(self, divider: Divider, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.divider, self.credit = divider, Credit(divider.plan)
        self.totals: list[Any] = [0] * len(self.blocks)
        # The references of answers, and the numbers of their questions.
        self.asked: dict[Any, int] = {}

    def _add(self, worker: int, message: Message) -> None:
        block, subsets = message.task
        self._ask(self.credit.report(worker, block, subsets[0]))

    def _possible(self, coming: np.ndarray) -> np.ndarray:
        return self.credit.possible(coming)

    def _ask(self, questions: Sequence[Question]) -> None:
        for number, worker, block, subsets in questions:
            process = self.processes[worker]
            assert process is not None  # of a lost one nothing counts as finished
            answer = process.deliver(self.call, block, subsets)
            self.asked[answer], self.waiting[answer] = number, worker

    def _event(self, item: Any, worker: int) -> None:
        if item not in self.asked:
            super()._event(item, worker)
            return
        process, number = self.processes[worker], self.asked.pop(item)
        assert process is not None
        del self.waiting[item]
        with self._hearing(worker, process):
            values = self.ray.get(item)
            if (question := self.credit.answer(number)) is None:
                return
            block = question.block
            self.totals[block] = self.totals[block] + values
            self.arrived[block, worker] = True
            if self.credit.is_done(block):
                self._complete(block, self.divider.part(block, self.totals[block]))
                self.totals[block] = 0

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        super()._lose(worker, what, error)
        self._ask(self.credit.lose(worker))
