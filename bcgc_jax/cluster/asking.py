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
        self.totals: list[Any] = [None] * len(self.blocks)

    def _add(self, worker: int, message: Message) -> None:
        block, subsets = message.task
        self._ask_all(self.credit.report(worker, block, subsets[0]))

    def _possible(self, coming: np.ndarray) -> np.ndarray:
        return self.credit.possible(coming)

    def _ask_all(self, questions: Sequence[Question]) -> None:
        for question in questions:
            self._ask(question.number, question.worker, question.block, question.subsets)

    def _answer(self, worker: int, question: int, values: np.ndarray) -> None:
        if (answered := self.credit.answer(question)) is None:
            return
        block, total = answered.block, self.totals[answered.block]
        if total is None:
            self.totals[block] = values
        elif total.flags.writeable:
            total += values
        else:  # the first one, which is Ray's own
            self.totals[block] = total + values
        self.arrived[block, worker] = True
        if self.credit.is_done(block):
            self._complete(block, self.divider.part(block, self.totals[block]))
            self.totals[block] = None

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        super()._lose(worker, what, error)
        self._ask_all(self.credit.lose(worker))
