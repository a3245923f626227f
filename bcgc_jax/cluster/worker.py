"""What a worker process does: it holds data subsets, and computes task after task of an iteration.

A coded task is sent when it is done; where that is much, the worker says that it is done and keeps it, until
the master asks for it. So it does with a schedule's tasks, each a block of the gradient of a subset, of which
the master asks for the sum of some. No line here knows of Ray.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.codes import message, row_of
from bcgc_jax.coding.gradients import CodingPlan, Loss, PyTree, Task, num_samples
from bcgc_jax.coding.stages import Pass, Stages, stages


class Duty(NamedTuple):
    """What all workers are told once: the loss, the plan, shapes and dtypes of the parameters.

    `weights`, `[N]`, are what the mean gradient of each subset counts in N times the mean over all samples:
    1 where subsets are alike, and for losses that are sums; in work sharing, `[N, chunks]`, what the gradient
    of each chunk counts. `batch_size` samples of each subset are drawn
    anew for each iteration, with `seed`; None for all.
    """

    loss: Loss
    plan: CodingPlan | SharedPlan
    params: PyTree
    weights: np.ndarray
    batch_size: int | None
    seed: int
    x64: bool


class Message(NamedTuple):
    """One task of one worker: the `seconds` it took, and the pieces of its block in a row, `[size]`.

    Without `values` they are kept: of a schedule, and where they are many. `done`: seconds since the worker
    began the iteration; `overrun`: those that it was still busy with the one before when that had ended.
    """

    task: Task
    seconds: float
    values: np.ndarray | None
    done: float = np.nan
    overrun: float = 0.0


# Seconds, more than threads can wait for: a task that is done no earlier is not done in the iteration.
NEVER = 1e9
# Bytes of a message that is not sent before the master wants it: its question takes half a millisecond.
_MUCH = 2**20

_Part = tuple[int, tuple[float, float]]  # a subset, and the share of its samples


@dataclasses.dataclass
class _Passing:
    """The pass of a part, as far as it is, and what its gradient counts."""

    cut: Stages
    at: Pass
    weight: float


class WorkerProcess:
    """One worker's share of the work. `stop` and `deliver` may be called by another thread while it computes.

    Nothing interrupts a pass, of a program that runs or of slowness on purpose: `stop` takes effect between
    the subsets of a task.

    Args:
      duty: that of all workers.
      index: whose row of the codes this is.
      subsets: by number, the data subsets of `duty.plan.held(index)`, pytrees of arrays `[m, …]`.
    """

    def __init__(self, duty: Duty, index: int, subsets: Mapping[int, PyTree]) -> None:
        self.duty, self.index, self.subsets = duty, index, subsets
        assert isinstance(duty.plan, CodingPlan)
        self.plan = duty.plan
        self._tasks = duty.plan.tasks(index)
        self._coded = duty.plan.coded
        # Arguments of a program, which is then the same for all workers.
        self._rows = [row_of(code, index) for code in duty.plan.codes]
        self._later = _later(duty.plan, self._tasks)
        self._stages: dict[Any, Stages] = {}  # by the share of the samples and their shapes
        # Of the plan alone: a program that knows the worker would keep it, and all that it has compiled.
        encode = functools.partial(_message, duty.plan, jax.tree.leaves(duty.params))
        self._encode = jax.jit(encode, static_argnums=0)
        # The last call that was stopped, and when; how long the one that ran then took to end.
        self._stopped, self._stopped_at = -1, 0.0
        self._overrun = 0.0
        # A call of the master, and what was computed for it, by block and subset.
        self._kept: tuple[int, dict[tuple[int, int], np.ndarray]] = (-1, {})
        self._changed = threading.Condition()

    def warm_up(self) -> None:
        """Compile everything, so that the first iteration takes as long as the others."""
        zeros = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), self.duty.params)
        for _ in self.compute(0, 0, jax.tree.leaves(zeros)):
            pass

    def stop(self, call: int) -> None:
        """Begin no further pass for this call of the master or for an earlier one."""
        with self._changed:
            if call > self._stopped:
                self._stopped = call
                self._stopped_at = time.perf_counter()
            self._changed.notify_all()

    def compute(
        self, call: int, iteration: int, leaves: list[np.ndarray], finish: np.ndarray | None = None
    ) -> Iterator[Message]:
        """The messages of one iteration, in the order of the tasks.

        `call` is what `stop` stops, and another one if the master asks again; `iteration` is what samples are
        drawn for. With `finish`, `[tasks]`, seconds from now, a task is done no earlier than then: the time
        since the task before it is that of its subsets' passes, equally long.
        """
        begin = time.perf_counter()
        overrun = self._overrun
        self._overrun = 0.0
        with jax.enable_x64(self.duty.x64):  # a setting of each thread
            tree = jax.tree.structure(self.duty.params)
            params = jax.tree.unflatten(tree, jax.device_put(leaves))  # once for all programs
            # One backward pass for each part: it begins when a task first asks for it, and goes on.
            passes: dict[_Part, _Passing | None] = {}
        kept: dict[tuple[int, int], np.ndarray] = {}
        self._kept = (call, kept)
        for number, task in enumerate(self._tasks):
            start = time.perf_counter()
            with jax.enable_x64(self.duty.x64):
                values = self._values(call, number, iteration, params, passes)
            seconds = time.perf_counter() - start
            if values is not None and finish is not None:
                since = float(finish[number - 1]) if number else 0.0
                self._wait(call, begin, since, float(finish[number]), len(task.subsets))
            if values is None or self._stopped >= call:
                self._overrun = time.perf_counter() - self._stopped_at
                return
            # A message that is large is asked for, unless everyone's are needed.
            large = values.nbytes >= _MUCH and self.plan.blocks[task.block].level > 0
            if keep := large or not self._coded:
                kept[task.block, task.subsets[0]] = values
            done = time.perf_counter() - begin
            yield Message(task, seconds, None if keep else values, done, overrun)

    def deliver(self, call: int, block: int, subsets: Sequence[int]) -> np.ndarray | None:
        """The sum over `subsets` of what was computed of a block, `[size]`, or its message if that was kept.

        To be read only, and asked for what was said to be done; None if for another call.
        """
        of, kept = self._kept
        if of != call:
            return None
        total = kept[block, subsets[0]]
        for number, subset in enumerate(() if self._coded else subsets[1:]):
            total = np.add(total, kept[block, subset], out=total if number else None)
        return total

    def _wait(self, call: int, begin: float, since: float, until: float, passes: int) -> None:
        """Slowness on purpose, to the end of the task or of the pass in which the call is stopped.

        Who never ends a task, as one that does not answer, only waits for that.
        """
        if until >= NEVER:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped >= call)
        for number in range(passes):
            if self._stopped >= call:
                return
            end = begin + since + (until - since) * (number + 1) / passes
            time.sleep(max(end - time.perf_counter(), 0))

    def _values(
        self, call: int, number: int, iteration: int, params: PyTree, passes: dict[_Part, Any]
    ) -> np.ndarray | None:
        """The message of a task, or the gradient of its subset; None if the call is stopped before it."""
        block, subsets = self._tasks[number]
        share = self.plan.blocks[block].share
        weights, gradients = np.zeros(len(subsets)), [None] * len(subsets)
        for k, j in enumerate(subsets):
            jax.block_until_ready(gradients[:k])  # else the next pass would be begun before "stop" is heard
            if self._stopped >= call:
                return None
            if (j, share) not in passes:
                passes[j, share] = self._begin(j, iteration, share, params)
            if (own := passes[j, share]) is not None:
                gradients[k], own.at = own.cut.gradients(own.at, block, self._later[number][j])
                weights[k] = own.weight
        pieces = [np.asarray(piece) for piece in self._encode(block, self._rows[block], weights, gradients)]
        # Not by XLA, which asks of each number anew which piece it is of: nine times slower.
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _begin(self, subset: int, iteration: int, share: Any, params: PyTree) -> _Passing | None:
        """None where the part has no samples."""
        data, size = self.subsets[subset], self.duty.batch_size
        samples = num_samples(data)
        if size is not None:
            # The same for all workers that hold the subset.
            draw = np.random.default_rng([self.duty.seed, iteration, subset])
            chosen = draw.permutation(samples)[:size]
            data, samples = jax.tree.map(lambda x: x[chosen], data), size
        part, portion = self.plan.samples_of(share, samples)
        if not portion:
            return None
        batch = jax.device_put(jax.tree.map(lambda x: x[part], data))
        key = (share, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)))
        if key not in self._stages:
            # Of blocks of another share of the samples no leaf.
            own = [block.pieces if block.share == share else () for block in self.plan.blocks]
            blocks = [[piece.leaf for piece in pieces] for pieces in own]
            self._stages[key] = stages(self.duty.loss, params, batch, blocks)
        cut = self._stages[key]
        return _Passing(cut, cut.begin(params, batch), portion * float(self.duty.weights[subset]))


def _message(
    plan: CodingPlan, leaves: Sequence[Any], block: int, row: Array, weights: Array, gradients: list[Any]
) -> list[Array]:
    """Piece by piece, from the subsets' gradients of the leaves; one without samples counts nothing."""
    sent = []
    for k, (leaf, start, stop) in enumerate(plan.blocks[block].pieces):
        zero = jnp.zeros(leaves[leaf].shape, leaves[leaf].dtype)
        parts = [(zero if found is None else found[k]).ravel()[start:stop] for found in gradients]
        parts = [w.astype(g.dtype) * g for w, g in zip(weights, parts, strict=True)]
        sent.append(message(row, parts, plan.codes[block].wide))
    return sent


def _later(plan: CodingPlan, tasks: Sequence[Task]) -> list[dict[int, tuple[int, ...]]]:
    """For each task and each of its subsets, the blocks that tasks after it need of the same samples."""
    found: list[dict[int, tuple[int, ...]]] = []
    known: dict[_Part, tuple[int, ...]] = {}
    for block, subsets in reversed(tasks):
        share = plan.blocks[block].share
        found.append({j: known.get((j, share), ()) for j in subsets})
        known.update({(j, share): (block, *found[-1][j]) for j in subsets})
    return found[::-1]
