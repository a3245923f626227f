"""One iteration on the master: what the workers send, the earliest first, until each block is complete.

With the last block the workers are told to stop. What is coded is taken here, a schedule in `asking`.
"""

import abc
import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.cluster.decoder import Decoder
from bcgc_jax.cluster.processes import Process, Processes, WorkersLost
from bcgc_jax.cluster.worker import Message
from bcgc_jax.coding.gradients import PyTree, assemble_gradient
from bcgc_jax.coding.scheduled import SchedulePlan

# Larger arguments of a call are put into the store once, instead of being sent to each worker.
_INLINE = 2**16


class Work(NamedTuple):
    """What one task cost: `seconds` that a `worker` computed for a `block` of an `iteration`.

    `subset` is that of a schedule's task, None for all those that a coded block needs. `done`: seconds from
    when the worker began the iteration until the task was done, waiting and slowness on purpose included;
    `heard`: from when the master began it until it heard of that. What lies between is no worker's work.
    """

    iteration: int
    worker: int
    block: int
    seconds: float
    subset: int | None = None
    done: float = np.nan
    heard: float = np.nan


class ClusterGradient(NamedTuple):
    """The full gradient of the loss, and how it came about.

    `seconds` from the call to the last block; `completed`, `[B]`, when each block was; `arrived`, bool
    `[B, N]`, whose messages or sums had come by then; `work` of every task that was heard of.
    """

    gradient: PyTree
    seconds: float
    completed: np.ndarray
    arrived: np.ndarray
    work: tuple[Work, ...]


class Collection(abc.ABC):
    """One iteration of `processes`.

    `call` is new for each collection, and what its end stops; `iteration` is what samples are drawn for.
    """

    def __init__(
        self,
        processes: Processes,
        params: PyTree,
        finish: np.ndarray | None,
        *,
        call: int,
        iteration: int,
    ) -> None:
        assert processes.duty is not None
        self.processes, self.plan, self.ray = processes, processes.duty.plan, processes.ray
        self.blocks, self.params, self.finish = self.plan.blocks, params, finish
        self.call, self.iteration = call, iteration
        self.begin = self.looked = time.monotonic()
        self.arrived = np.zeros((len(self.blocks), len(processes)), bool)
        self.completed = np.full(len(self.blocks), np.inf)
        self.parts: list[Any] = [None] * len(self.blocks)
        self.work: list[Work] = []
        # What may be ready next, and whose: a stream, an answer, the start of a worker, the end of an old
        # iteration.
        self.waiting: dict[Any, int] = {}
        self.streams: dict[int, Any] = {}
        self.asked: dict[Any, Any] = {}  # by the references of answers, what they answer
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        large = sum(leaf.nbytes for leaf in leaves) > _INLINE
        self.leaves = self.ray.put(leaves) if large else leaves

    def run(self) -> ClusterGradient:
        """The gradient; raises WorkersLost where there is none, and what the loss raised."""
        try:
            for worker in range(len(self.processes)):
                self._dispatch(worker)
            self._check()
            while not np.all(np.isfinite(self.completed)):
                self._take()
        finally:
            for worker in self.streams:  # also where it ends with an exception
                if (process := self.processes[worker]) is not None:
                    process.stop(self.call)
        gradient = jax.block_until_ready(assemble_gradient(self.blocks, self.parts, self.params))
        seconds = time.monotonic() - self.begin
        return ClusterGradient(gradient, seconds, self.completed, self.arrived, tuple(self.work))

    @abc.abstractmethod
    def _add(self, worker: int, message: Message) -> None:
        """Take what a worker says of a task."""

    @abc.abstractmethod
    def _answer(self, worker: int, question: Any, values: np.ndarray) -> None:
        """Take what a worker was asked for."""

    @abc.abstractmethod
    def _possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether what has come and what those may send who are `coming`, `[N]`, is enough, bool `[B]`."""

    def _complete(self, block: int, part: Any) -> None:
        self.parts[block], self.completed[block] = part, time.monotonic() - self.begin

    def _ask(self, question: Any, worker: int, block: int, subsets: tuple[int, ...]) -> None:
        process = self.processes[worker]
        assert process is not None  # of a lost one nothing counts as done
        answer = process.deliver(self.call, block, subsets)
        self.asked[answer], self.waiting[answer] = question, worker

    def _dispatch(self, worker: int) -> None:
        """Give a worker the iteration, or wait for the event after which it can have it."""
        process = self.processes[worker]
        if process is None:
            return
        if (event := process.awaited()) is not None:
            self.waiting[event] = worker
            if self.processes.is_silent(worker):
                self._lose(worker, "hung")
            return
        finish = None if self.finish is None else self.finish[:, worker]
        stream = process.compute(self.call, self.iteration, self.leaves, finish)
        self.streams[worker] = stream
        self.waiting[stream] = worker

    def _take(self) -> None:
        """Wait for whatever comes next, and take all that is there."""
        waiting, pause = list(self.waiting), self.processes.pause
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=pause)
        if ready and len(waiting) > 1:
            ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for item in ready:
            if item in self.waiting:  # else lost by an event before
                self._event(item, self.waiting[item])
        # Also while others speak: what a silent one was asked for may be there already.
        if not ready or time.monotonic() - self.looked > pause:
            self.looked = time.monotonic()
            for worker in list(dict.fromkeys(self.waiting.values())):
                if self.processes.is_silent(worker):
                    self._lose(worker, "hung")
            self._check()

    def _event(self, item: Any, worker: int) -> None:
        """A message, the end of a stream, a worker that started, or one that caught up."""
        process = self.processes[worker]
        assert process is not None
        if item in self.asked:
            question = self.asked.pop(item)
            del self.waiting[item]
            with self._hearing(worker, process):
                self._answer(worker, question, self.ray.get(item))
            return
        if item is not self.streams.get(worker):
            del self.waiting[item]
            error = None if process.starting is None else self._error_of_start(worker)
            if error is None:
                self._dispatch(worker)
            else:
                self._lose_by(error, worker)
            self._check()
            return
        with self._hearing(worker, process):
            try:
                message = Message(*self.ray.get(next(self.streams[worker])))
            except StopIteration:  # it was told to stop before
                self._end(worker)
                return
            block, subsets = message.task
            subset = subsets[0] if isinstance(self.plan, SchedulePlan) else None
            heard = time.monotonic() - self.begin
            task = self.iteration, worker, block
            self.work.append(Work(*task, message.seconds, subset, message.done, heard))
            self._add(worker, message)
            if message.task == self.plan.tasks(worker)[-1]:
                self._end(worker)

    def _end(self, worker: int) -> None:
        """Nothing more comes from a worker of itself."""
        del self.waiting[self.streams.pop(worker)]
        self._check()

    @contextlib.contextmanager
    def _hearing(self, worker: int, process: Process) -> Iterator[None]:
        """While something of a worker is taken: it is lost if it raised something or has ended instead.

        Raises what all workers raise.
        """
        try:
            yield
        except self.ray.exceptions.RayError as error:  # that too if messages are lost
            self._lose_by(error, worker)
            self._check()
        else:
            process.speaks()

    def _error_of_start(self, worker: int) -> Exception | None:
        error = self.processes.has_loaded(worker)
        if error is None and (why := self.processes.unlike()):  # a successor; the others have been compared
            return RuntimeError(why)
        return error

    def _lose_by(self, error: Exception, worker: int) -> None:
        """Raises what all workers raise."""
        if isinstance(error, self.ray.exceptions.RayTaskError):
            self.processes.check_raised({worker: error})
            what = "failed"
        else:
            what = "died" if isinstance(error, self.ray.exceptions.RayError) else "failed"
        self._lose(worker, what, error)

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {item: w for item, w in self.waiting.items() if w != worker}
        self.asked = {item: question for item, question in self.asked.items() if item in self.waiting}
        self.streams.pop(worker, None)
        self.processes.lose(worker, what, self.iteration, error)
        self._dispatch(worker)

    def _check(self) -> None:
        """WorkersLost where what has come and what may come is too little for a block."""
        coming = np.zeros(len(self.processes), bool)
        coming[list(self.waiting.values())] = True
        short = ~np.isfinite(self.completed) & ~self._possible(coming)
        if short.any():
            level = min(self.blocks[b].level for b in np.flatnonzero(short))
            self.processes.lose_gone(self.iteration)
            raise WorkersLost(
                self.processes.lost,
                f"a block at level {level} survives no more than {level} of them{self.processes.why}; plan "
                "for the workers left, as train_on_cluster does, or let lost ones be replaced",
            ) from self.processes.error


class Decoding(Collection):
    """Of a coding plan: a block at level n is decoded with its (N-n)-th message.

    A large message is announced, and asked for if it is one of these: no other is moved.
    """

    def __init__(self, decoder: Decoder, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder = decoder
        self.wanted = decoder.needed.copy()
        # Of each block: what came, by worker; who was asked; who has announced it and was not asked.
        self.messages: list[dict[int, np.ndarray]] = [{} for _ in self.blocks]
        self.coming: list[set[int]] = [set() for _ in self.blocks]
        self.ready: list[dict[int, tuple[int, ...]]] = [{} for _ in self.blocks]

    def _add(self, worker: int, message: Message) -> None:
        block, subsets = message.task
        if message.values is not None:
            self._answer(worker, block, message.values)
        elif not self.arrived[block, worker]:
            self.ready[block][worker] = subsets
            self._ask_for(block)

    def _ask_for(self, block: int) -> None:
        """As many of those who have announced a block as are wanted."""
        ready, coming = self.ready[block], self.coming[block]
        if np.isfinite(self.completed[block]):
            return
        while ready and len(self.messages[block]) + len(coming) < self.wanted[block]:
            worker = next(iter(ready))
            coming.add(worker)
            self._ask(block, worker, block, ready.pop(worker))

    def _answer(self, worker: int, question: int, values: np.ndarray) -> None:
        block, messages = question, self.messages[question]
        self.coming[block].discard(worker)
        if np.isfinite(self.completed[block]) or self.arrived[block, worker]:
            return
        messages[worker] = values
        self.arrived[block, worker] = True
        if len(messages) < self.wanted[block]:
            return
        part = self.decoder.part(block, messages)
        if part is None:  # by construction of the codes not; if ever, one message more helps
            self.wanted[block] += 1
            self._ask_for(block)
            return
        self._complete(block, part)
        messages.clear()

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        for ready, coming in zip(self.ready, self.coming, strict=True):
            ready.pop(worker, None)
            coming.discard(worker)
        super()._lose(worker, what, error)
        for block in range(len(self.blocks)):
            self._ask_for(block)

    def _possible(self, coming: np.ndarray) -> np.ndarray:
        there = self.arrived | coming
        for block, ready in enumerate(self.ready):
            there[block, list(ready)] = True
        return np.sum(there, axis=1) >= self.decoder.needed
