"""One iteration on the master: what the workers send, the earliest first, until each block is complete.

With the last block the workers are told to stop. A rule, `Coded` or `Summed`, says whom to ask for what, and
when a block is complete.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.cluster import signals
from bcgc_jax.cluster.processes import Processes, WorkersLost
from bcgc_jax.cluster.rules import Coded, Question, Summed
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
        self, rule: Coded | Summed, processes: Processes, params: PyTree, finish: np.ndarray | None, call: int
    ) -> None:
        self.rule, self.processes, self.params, self.finish = rule, processes, params, finish
        self.call, self.plan, self.ray = call, processes.given.duty.plan, processes.ray
        self.begin = self.looked = time.monotonic()
        self.arrived = np.zeros((len(self.plan.blocks), self.plan.num_workers), bool)
        self.completed = np.full(len(self.plan.blocks), np.inf)
        self.parts: list[Any] = [None] * len(self.plan.blocks)
        self.work: list[Work] = []
        # What may be ready next, whose it is, and who takes it: a stream of messages, an answer, the start of
        # a worker, the end of an old iteration.
        self.waiting: dict[Any, tuple[int, Callable[[Any, int], None]]] = {}
        self.streams: dict[int, Any] = {}
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        large = sum(leaf.nbytes for leaf in leaves) > _INLINE
        self.leaves = self.ray.put(leaves) if large else leaves

    def run(self) -> ClusterGradient:
        """The gradient; raises WorkersLost where there is none, and what the loss raised."""
        try:
            for worker in range(self.plan.num_workers):
                self._dispatch(worker)
            self._check()
            while not np.all(np.isfinite(self.completed)):
                self._take()
        finally:
            for worker in self.streams:  # also where it ends with an exception
                if (process := self.processes[worker]) is not None:
                    process.actor.stop.remote(self.call)
        gradient = assemble_gradient(self.plan.blocks, self.parts, self.params)
        gradient, seconds = jax.block_until_ready(gradient), time.monotonic() - self.begin
        return ClusterGradient(gradient, seconds, self.completed, self.arrived, tuple(self.work))

    def _dispatch(self, worker: int) -> None:
        """Give a worker the iteration, or wait for the event after which it can have it."""
        process = self.processes[worker]
        if process is None:
            return
        if (event := process.awaited()) is not None:
            self.waiting[event] = worker, self._awaited
            if why := self.processes.silence(worker):
                self._lose(worker, "hung", why)
            return
        finish = None if self.finish is None else self.finish[:, worker]
        stream = process.compute(self.call, self.processes.iteration, self.leaves, finish)
        self.streams[worker] = stream
        self.waiting[stream] = worker, self._hear

    def _take(self) -> None:
        """Wait for whatever comes next, and take all that is there."""
        waiting, pause = list(self.waiting), self.processes.pause
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=pause)
        signals.check()
        if ready and len(waiting) > 1:
            ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for item in ready:
            if item in self.waiting:  # else lost by an event before
                worker, take = self.waiting[item]
                take(item, worker)
        # Also while others speak: what a silent one was asked for may be there already.
        if not ready or time.monotonic() - self.looked > pause:
            self.looked = time.monotonic()
            for worker in dict.fromkeys(worker for worker, _ in self.waiting.values()):
                if why := self.processes.silence(worker):
                    self._lose(worker, "hung", why)
            self._check()

    def _awaited(self, event: Any, worker: int) -> None:
        """A worker has started, or caught up."""
        process = self.processes[worker]
        assert process is not None
        del self.waiting[event]
        if process.starting is None or (error := self.processes.has_loaded(worker)) is None:
            self._dispatch(worker)
        else:
            self._lose_by(error, worker)
        self._check()

    def _hear(self, stream: Any, worker: int) -> None:
        """A message, or the end of a stream: after the last task, or where the worker was told to stop."""
        message: Message | None = None
        with self._hearing(worker), contextlib.suppress(StopIteration):
            message = Message(*self.ray.get(next(stream)))
            heard, subset = time.monotonic() - self.begin, self.plan.subset_of(message.task)
            task = self.processes.iteration, worker, message.task.block
            self.work.append(Work(*task, message.seconds, subset, message.done, heard))
            question = Question(worker, *message.task)
            if message.values is None:
                self._ask(self.rule.report(question))
            else:
                self._count(question, message.values)
        if stream in self.waiting and (message is None or message.task == self.plan.tasks(worker)[-1]):
            del self.waiting[stream], self.streams[worker]
            self._check()

    def _ask(self, questions: Sequence[Question]) -> None:
        for question in questions:
            process = self.processes[question.worker]
            assert process is not None  # of a lost one nothing counts as done
            answer = process.actor.deliver.remote(self.call, question.block, question.subsets)
            self.waiting[answer] = question.worker, functools.partial(self._answered, question)

    def _answered(self, question: Question, answer: Any, worker: int) -> None:
        del self.waiting[answer]
        with self._hearing(worker):
            self._count(question, self.ray.get(answer))

    def _count(self, question: Question, values: np.ndarray) -> None:
        """Take what a worker was asked for, or sends of itself."""
        block = question.block
        if not self.rule.take(question, values):
            return
        self.arrived[block, question.worker] = True
        if (part := self.rule.part(block)) is not None:
            self.parts[block], self.completed[block] = part, time.monotonic() - self.begin
        else:
            self._ask(self.rule.due(block))

    @contextlib.contextmanager
    def _hearing(self, worker: int) -> Iterator[None]:
        """While something of a worker is taken: it is lost if it raised something or has ended instead.

        Raises what all workers raise.
        """
        try:
            yield
        except self.ray.exceptions.RayError as error:  # that too if messages are lost
            self._lose_by(error, worker)
            self._check()
        else:
            if (process := self.processes[worker]) is not None:
                process.speaks()

    def _lose_by(self, error: Exception, worker: int) -> None:
        """Raises what all workers raise."""
        raised = isinstance(error, self.ray.exceptions.RayTaskError)
        if raised:
            self.processes.check_raised({worker: error})
        self._lose(worker, "failed" if raised else "died", error)

    def _lose(self, worker: int, what: str, why: Exception | str) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {item: whose for item, whose in self.waiting.items() if whose[0] != worker}
        self.streams.pop(worker, None)
        self.processes.lose(worker, what, why)
        self._dispatch(worker)
        self._ask(self.rule.lose(worker))

    def _check(self) -> None:
        """WorkersLost where what has come and what may come is too little for a block."""
        coming = np.isin(range(self.plan.num_workers), [worker for worker, _ in self.waiting.values()])
        short = ~np.isfinite(self.completed) & ~self.rule.possible(coming)
        if short.any():
            level = min(self.plan.blocks[b].level for b in np.flatnonzero(short))
            self.processes.lose_gone()
            raise WorkersLost(
                self.processes.lost,
                f"a block at level {level} survives no more than {level} of them{self.processes.why}; plan "
                "for the workers left, as train_on_cluster does, or let lost ones be replaced",
            ) from self.processes.error
