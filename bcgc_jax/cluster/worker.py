"""What a worker process does: it holds data subsets, and computes task after task of an iteration.

A coded task is sent when it is done. Of a schedule's task, a block of the gradient of a subset, the worker
says that it is done and keeps the piece, until the master asks for the sum of some.

No line here knows of Ray: the master's side (`cluster.master`) puts a `Worker` into a process of its own.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.codes import message, row_of
from bcgc_jax.coding.gradients import CodingPlan, Loss, PyTree, Task
from bcgc_jax.coding.scheduled import SchedulePlan


class Duty(NamedTuple):
    """What all workers are told once: the loss, the plan, shapes and dtypes of the parameters.

    `weights`, `[N]`, are what the mean gradient of each subset counts in N times the mean over all samples:
    1 where subsets are alike, and for losses that are sums. `batch_size` samples of each subset are drawn
    anew for each iteration, with `seed`; None for all.
    """

    loss: Loss
    plan: CodingPlan | SchedulePlan
    params: PyTree
    weights: np.ndarray
    batch_size: int | None
    seed: int
    x64: bool


class Message(NamedTuple):
    """One task of one worker: the `seconds` it took, and the pieces of its block in a row, `[size]`.

    Of a schedule without `values`: they are kept. `done`: seconds since the worker began the iteration.
    """

    task: Task
    seconds: float
    values: np.ndarray | None
    done: float = np.nan


class Worker:
    """One worker's share of the work. `stop` and `deliver` may be called by another thread while it computes.

    Args:
      duty: that of all workers.
      index: whose row of the codes this is.
      subsets: by number, the data subsets of `duty.plan.held(index)`, pytrees of arrays `[m, …]`.
    """

    def __init__(self, duty: Duty, index: int, subsets: Mapping[int, PyTree]) -> None:
        self.duty, self.index, self.subsets = duty, index, subsets
        self._tasks = duty.plan.tasks(index)
        # Arguments of a program, which is then the same for all workers.
        self._codes = duty.plan.codes if isinstance(duty.plan, CodingPlan) else None
        if self._codes is None:
            self._rows: list[Any] = [np.ones(1)] * len(duty.plan.blocks)
        else:
            self._rows = [row_of(code, index) for code in self._codes]
        self._forward = jax.jit(self._pull)
        self._encode = jax.jit(self._message, static_argnums=0)
        self._stopped = -1
        # A call of the master, and what was computed for it, by block and subset.
        self._kept: tuple[int, dict[tuple[int, int], np.ndarray]] = (-1, {})
        self._changed = threading.Condition()

    def warm_up(self) -> None:
        """Compile everything, so that the first iteration takes as long as the others."""
        zeros = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), self.duty.params)
        for _ in self.compute(0, 0, jax.tree.leaves(zeros)):
            pass

    def stop(self, call: int) -> None:
        """Do no further task for this call of the master or for an earlier one."""
        with self._changed:
            self._stopped = max(self._stopped, call)
            self._changed.notify_all()

    def compute(
        self, call: int, iteration: int, leaves: list[np.ndarray], finish: np.ndarray | None = None
    ) -> Iterator[Message]:
        """The messages of one iteration, in the order of the tasks.

        `call` counts what the master asks for, and is what `stop` stops; `iteration` is what samples are
        drawn for, the same again if the master has to ask again. With `finish`, `[tasks]`, seconds from now
        on, a task is done no earlier than then: slowness on purpose.
        """
        begin = time.perf_counter()
        with jax.enable_x64(self.duty.x64):  # a setting of each thread
            params = jax.tree.unflatten(jax.tree.structure(self.duty.params), leaves)
            # One forward pass for each subset, when a level first asks for it.
            passes: dict[tuple[int, tuple[float, float]], tuple[Any, float]] = {}
        kept: dict[tuple[int, int], np.ndarray] = {}
        self._kept = (call, kept)
        for number, task in enumerate(self._tasks):
            if self._stopped >= call:
                return
            start = time.perf_counter()
            with jax.enable_x64(self.duty.x64):
                values = np.asarray(self._values(task, iteration, params, passes))
            seconds = time.perf_counter() - start
            if finish is not None and self._wait(call, begin + finish[number]):
                return
            if self._codes is None:
                kept[task.block, task.subsets[0]] = values
            done = time.perf_counter() - begin
            yield Message(task, seconds, None if self._codes is None else values, done)

    def deliver(self, call: int, block: int, subsets: Sequence[int]) -> np.ndarray | None:
        """The sum over `subsets` of what was computed of a block, `[size]`; None if for another call.

        In the gradients' own dtype, at least float32. To be asked for what was said to be done.
        """
        of, kept = self._kept
        if of != call:
            return None
        total = kept[block, subsets[0]].copy()
        for subset in subsets[1:]:
            total += kept[block, subset]
        return total

    def _wait(self, call: int, until: float) -> bool:
        """Until a time, or until told to stop: whether it was."""
        with self._changed:
            left = until - time.perf_counter()
            return self._changed.wait_for(lambda: self._stopped >= call, timeout=max(left, 0))

    def _values(self, task: Task, iteration: int, params: PyTree, passes: dict[Any, Any]) -> Array:
        block, subsets = task
        share = self.duty.plan.blocks[block].share
        for j in subsets:
            if (j, share) not in passes:
                batch, portion = self._batch(j, iteration, share)
                passes[j, share] = (None if batch is None else self._forward(params, batch), portion)
        chosen = [passes[j, share] for j in subsets]
        weights = np.array([portion for _, portion in chosen])
        return self._encode(block, self._rows[block], weights, [found for found, _ in chosen])

    def _batch(self, subset: int, iteration: int, share: tuple[float, float]) -> tuple[PyTree, float]:
        """The samples of a subset that count for a block, None if there are none, and their weight."""
        data, size = self.subsets[subset], self.duty.batch_size
        samples = len(jax.tree.leaves(data)[0])
        if size is not None:
            # The same for all workers that hold the subset.
            draw = np.random.default_rng([self.duty.seed, iteration, subset])
            chosen = draw.permutation(samples)[:size]
            data, samples = jax.tree.map(lambda x: x[chosen], data), size
        part, portion = self.duty.plan.samples_of(share, samples)
        if not portion:
            return None, 0.0
        return jax.tree.map(lambda x: x[part], data), portion * float(self.duty.weights[subset])

    def _pull(self, params: PyTree, batch: PyTree) -> tuple[Array, Any]:
        return jax.vjp(lambda p: self.duty.loss(p, batch), params)

    def _message(
        self, block: int, row: Array, weights: Array, passes: list[tuple[Array, Any] | None]
    ) -> Array:
        """Only the leaves of the block are differentiated; a subset without samples counts nothing."""
        wide = self._codes is not None and self._codes[block].wide
        params = jax.tree.leaves(self.duty.params)
        gradients = []
        for found in passes:
            if found is None:
                gradients.append([jnp.zeros(leaf.shape, leaf.dtype) for leaf in params])
            else:
                value, pull = found
                gradients.append(jax.tree.leaves(pull(jnp.ones_like(value))[0]))
        sent = []
        for leaf, start, stop in self.duty.plan.blocks[block].pieces:
            parts = [g[leaf].ravel()[start:stop] for g in gradients]
            parts = [w.astype(g.dtype) * g for w, g in zip(weights, parts, strict=True)]
            sent.append(message(row, parts, wide))
        with jax.enable_x64(True):  # a code may need float64
            return jnp.concatenate(sent)
