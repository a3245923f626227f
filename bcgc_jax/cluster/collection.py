"""One iteration on the master: what the workers send, the earliest first, until each block is complete.

With the last block the workers are told to stop. A rule, `Coded` or `Summed`, says whom to ask for what, and
when a block is complete.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.cluster import signals
from bcgc_jax.cluster.coded import Coded
from bcgc_jax.cluster.holders import Question, Summed
from bcgc_jax.cluster.machine_check import unlike
from bcgc_jax.cluster.processes import Process, Processes, WorkersLost
from bcgc_jax.cluster.worker import Message
from bcgc_jax.coding.gradients import PyTree, assemble_gradient

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


class Collection:
    """One iteration of `processes`, by a new `rule`; `call` is new for each one, and what its end stops."""

    def __init__(
        self,
        rule: Coded | Summed,
        processes: Processes,
        params: PyTree,
        finish: np.ndarray | None,
        *,
        call: int,
    ) -> None:
        self.processes, self.plan, self.ray = processes, processes.duty.plan, processes.ray
        self.rule, self.blocks, self.params, self.finish = rule, self.plan.blocks, params, finish
        self.call, self.workers = call, range(self.plan.num_workers)
        self.begin = self.looked = time.monotonic()
        self.arrived = np.zeros((len(self.blocks), len(self.workers)), bool)
        self.completed = np.full(len(self.blocks), np.inf)
        self.parts: list[Any] = [None] * len(self.blocks)
        self.work: list[Work] = []
        # What may be ready next, and whose: a stream, an answer, the start of a worker, the end of an old
        # iteration.
        self.waiting: dict[Any, int] = {}
        self.streams: dict[int, Any] = {}
        self.asked: dict[Any, Question] = {}  # by the references of answers, what they answer
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        large = sum(leaf.nbytes for leaf in leaves) > _INLINE
        self.leaves = self.ray.put(leaves) if large else leaves

    def run(self) -> ClusterGradient:
        """The gradient; raises WorkersLost where there is none, and what the loss raised."""
        try:
            for worker in self.workers:
                self._dispatch(worker)
            self._check()
            while not np.all(np.isfinite(self.completed)):
                self._take()
        finally:
            for worker in self.streams:  # also where it ends with an exception
                if (process := self.processes[worker]) is not None:
                    process.actor.stop.remote(self.call)
        gradient = jax.block_until_ready(assemble_gradient(self.blocks, self.parts, self.params))
        seconds = time.monotonic() - self.begin
        return ClusterGradient(gradient, seconds, self.completed, self.arrived, tuple(self.work))

    def _add(self, worker: int, message: Message) -> None:
        """Take what a worker says of a task."""
        block, subsets = message.task
        if message.values is not None:
            self._answer(Question(-1, worker, block, subsets), message.values)
        else:
            self._ask(self.rule.report(worker, block, subsets))

    def _answer(self, question: Question, values: np.ndarray) -> None:
        """Take what a worker was asked for, or sends of itself."""
        block = question.block
        if not self.rule.take(question, values):
            return
        self.arrived[block, question.worker] = True
        if (part := self.rule.part(block)) is not None:
            self.parts[block], self.completed[block] = part, time.monotonic() - self.begin
        else:
            self._ask(self.rule.due(block))

    def _ask(self, questions: Sequence[Question]) -> None:
        for question in questions:
            process = self.processes[question.worker]
            assert process is not None  # of a lost one nothing counts as done
            answer = process.actor.deliver.remote(self.call, question.block, question.subsets)
            self.asked[answer], self.waiting[answer] = question, question.worker

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
        stream = process.compute(self.call, self.processes.iteration, self.leaves, finish)
        self.streams[worker] = stream
        self.waiting[stream] = worker

    def _take(self) -> None:
        """Wait for whatever comes next, and take all that is there."""
        waiting, pause = list(self.waiting), self.processes.pause
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=pause)
        signals.check()
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
                self._answer(question, self.ray.get(item))
            return
        if item is not self.streams.get(worker):
            del self.waiting[item]
            error = None
            if process.starting is not None:
                error = self.processes.has_loaded(worker)
                if error is None and (why := unlike(self.plan, self.processes.machines)):
                    error = RuntimeError(why)  # a successor; the others have been compared
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
            heard, subset = time.monotonic() - self.begin, self.plan.subset_of(message.task)
            task = self.processes.iteration, worker, message.task.block
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

    def _lose_by(self, error: Exception, worker: int) -> None:
        """Raises what all workers raise."""
        raised = isinstance(error, self.ray.exceptions.RayTaskError)
        if raised:
            self.processes.check_raised({worker: error})
        died = isinstance(error, self.ray.exceptions.RayError) and not raised
        self._lose(worker, "died" if died else "failed", error)

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {item: w for item, w in self.waiting.items() if w != worker}
        self.asked = {item: question for item, question in self.asked.items() if item in self.waiting}
        self.streams.pop(worker, None)
        self.processes.lose(worker, what, error)
        self._dispatch(worker)
        self._ask(self.rule.lose(worker))

    def _check(self) -> None:
        """WorkersLost where what has come and what may come is too little for a block."""
        coming = np.zeros(len(self.workers), bool)
        coming[list(self.waiting.values())] = True
        short = ~np.isfinite(self.completed) & ~self.rule.possible(coming)
        if short.any():
            level = min(self.blocks[b].level for b in np.flatnonzero(short))
            self.processes.lose_gone()
            raise WorkersLost(
                self.processes.lost,
                f"a block at level {level} survives no more than {level} of them{self.processes.why}; plan "
                "for the workers left, as train_on_cluster does, or let lost ones be replaced",
            ) from self.processes.error
