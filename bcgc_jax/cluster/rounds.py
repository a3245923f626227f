"""What the master makes of an iteration: whom it asks what, and when the gradient is
there.

`Round` is what codes and work sharing have in common. They know no processes, and no
clock: times are passed in.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bcgc_jax.cluster.message_book import Decoder, MessageBook, Request
from bcgc_jax.cluster.worker import Message
from bcgc_jax.coding.gradients import PyTree
from bcgc_jax.coding.pace import Pace


class Ask(NamedTuple):
    """What a worker is to be asked now: a method of its actor, and its arguments."""

    worker: int
    method: str
    arguments: tuple[Any, ...]


class Work(NamedTuple):
    """What one task cost: `seconds` that a `worker` computed for a `block` of an
    `iteration`.

    `subset` is that of a schedule's task, None of a code's; in work sharing `block` is
    the number of the chunk in its `subset`. `done`: seconds from when the worker began
    the iteration until the task was done, waiting and slowness on purpose included;
    `heard`: from when the master began it until it heard of that. `overrun`: seconds
    that the worker was still busy with the iteration before when that had ended.
    """

    iteration: int
    worker: int
    block: int
    seconds: float
    subset: int | None = None
    done: float = np.nan
    heard: float = np.nan
    overrun: float = 0.0


class Round(Protocol):
    """One iteration, by messages or by work sharing; what is returned is to be asked at
    once.

    `now` is seconds since it began.

    Attributes:
      work: of every task that was heard of.
      completed, arrived: as in `ClusterGradient`.
    """

    work: list[Work]
    completed: np.ndarray
    arrived: np.ndarray

    def begin(self, worker: int, now: float) -> list[Ask]:
        """A worker's process is there and free: its first, or a successor."""

    def heard(self, ask: Ask, message: Any, now: float) -> list[Ask]:
        """What was asked for has come, or the next message of a stream."""

    def ended(self, ask: Ask, message: Any) -> bool:
        """Whether nothing comes after this message of a stream."""

    def lost(self, worker: int, now: float) -> list[Ask]:
        """A worker's process is given up, or is not there to begin with."""

    def look(self, now: float) -> list[Ask]:
        """Now and then, and whenever something is heard of."""

    def short(self, coming: Collection[int]) -> str:
        """What is missing for good if only these workers' messages come, or ""."""

    def gradient(self) -> PyTree | None:
        """None before all is there."""

    def end(self) -> None:
        """The iteration is over, with a gradient or without."""


class CodedRound:
    """A `Round` of a code, nested groups, or a schedule: tasks are done in order."""

    def __init__(
        self,
        decoder: Decoder,
        call: int,
        iteration: int,
        leaves: Any,
        pace: Pace | None,
    ) -> None:
        self.decoder = decoder
        self.book = MessageBook(decoder)
        self.plan = decoder.plan
        self._call = call
        self._iteration = iteration
        self._leaves = leaves
        self._pace = pace
        self.arrived = np.zeros((len(self.plan.blocks), self.plan.num_workers), bool)
        self.completed = np.full(len(self.plan.blocks), np.inf)
        self.work: list[Work] = []
        self._parts: list[Any] = [None] * len(self.plan.blocks)

    def begin(self, worker: int, now: float) -> list[Ask]:
        pace = None
        if self._pace is not None:
            pace = self._pace.of(worker)
        return [
            Ask(worker, "compute", (self._call, self._iteration, self._leaves, pace))
        ]

    def heard(self, ask: Ask, message: Any, now: float) -> list[Ask]:
        if ask.method == "deliver":
            _, block, subsets = ask.arguments
            return self._count(Request(ask.worker, block, subsets), message, now)
        assert isinstance(message, Message)
        subset = self.plan.subset_of(message.task)
        self.work.append(
            Work(
                iteration=self._iteration,
                worker=ask.worker,
                block=message.task.block,
                seconds=message.seconds,
                subset=subset,
                done=message.done,
                heard=now,
                overrun=message.overrun,
            )
        )
        request = Request(ask.worker, *message.task)
        if message.values is None:
            return self._asks(self.book.report(request))
        return self._count(request, message.values, now)

    def ended(self, ask: Ask, message: Any) -> bool:
        return message.task == self.decoder.last[ask.worker]

    def lost(self, worker: int, now: float) -> list[Ask]:
        return self._asks(self.book.lose(worker))

    def look(self, now: float) -> list[Ask]:
        return []

    def short(self, coming: Collection[int]) -> str:
        is_coming = np.isin(range(self.plan.num_workers), list(coming))
        short = ~np.isfinite(self.completed) & ~self.book.possible(is_coming)
        if not short.any():
            return ""
        level = min(self.plan.blocks[b].level for b in np.flatnonzero(short))
        return f"a block at level {level} survives no more than {level} of them"

    def gradient(self) -> PyTree | None:
        if np.all(np.isfinite(self.completed)):
            return self.decoder.gradient(self._parts)
        return None

    def end(self) -> None:
        pass

    def _asks(self, requests: Sequence[Request]) -> list[Ask]:
        asks = []
        for worker, block, subsets in requests:
            asks.append(Ask(worker, "deliver", (self._call, block, subsets)))
        return asks

    def _count(self, request: Request, values: np.ndarray, now: float) -> list[Ask]:
        """Take what a worker was asked for, or sends of itself."""
        block = request.block
        if not self.book.take(request, values):
            return []
        self.arrived[block, request.worker] = True
        gradients = self.book.gradients(block)
        if gradients is None:
            return self._asks(self.book.due(block))
        self._parts[block] = gradients
        self.completed[block] = now
        return []
