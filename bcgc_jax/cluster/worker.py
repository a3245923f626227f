"""What a worker process does: it holds data subsets, and computes task after task of an
iteration.

A pass of a subset goes over its chunks, and between these the worker looks whether it
is to stop. A coded task is sent when it is done; where that is much, the worker says
that it is done and keeps it, until the master asks for it. So it does with a schedule's
tasks, each a block of the gradient of a subset, of which the master asks for the sum of
some. No line here knows of Ray.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.codes import message, row_of
from bcgc_jax.coding.gradients import CodingPlan, Loss, PyTree, Task, num_samples
from bcgc_jax.coding.losses import keys_of
from bcgc_jax.coding.pace import Pace
from bcgc_jax.coding.stages import Pass, Stages, stages

P = TypeVar("P", CodingPlan, SharedPlan)


class Duty(NamedTuple, Generic[P]):
    """What all workers are told once: the loss, the plan, shapes and dtypes of the
    parameters.

    `weights`, `[N]`, are what the mean gradient of each subset counts in N times the
    mean over all samples: 1 where subsets are alike, and for losses that are sums; in
    work sharing, `[N, chunks]`, what the gradient of each chunk counts. `batch_size`
    samples of each subset are drawn anew for each iteration, with `seed`; None for all.
    With it a loss gets its keys too.
    """

    loss: Loss
    plan: P
    params: PyTree
    weights: np.ndarray
    batch_size: int | None
    seed: int
    x64: bool


class Message(NamedTuple):
    """One task of one worker: the `seconds` it took, and the pieces of its block,
    `[size]`.

    Without `values` they are kept: of a schedule, and where they are many. `done`:
    seconds since the worker began the iteration; `overrun`: those that it was still
    busy with the one before when that had ended.
    """

    task: Task
    seconds: float
    values: np.ndarray | None
    done: float = np.nan
    overrun: float = 0.0


# Seconds, more than threads can wait for: a task that is done no earlier is not done in
# the iteration.
NEVER = 1e9
# Bytes of a message that is not sent before the master wants it: its question takes
# half a millisecond.
_MUCH = 2**20

# A part: a subset, and the share of its samples.
_Key = tuple[int, tuple[float, float]]


@dataclasses.dataclass
class _Passing:
    """The pass of a chunk, as far as it is.

    `progress` is how far it is, `weight` what its gradient counts against that of the
    part's first chunk, `until` the share of the part's samples up to its last.
    """

    cut: Stages
    progress: Pass
    weight: float
    until: float


class _Part(NamedTuple):
    """A part's chunks, and what the gradient of the first counts; maybe none."""

    chunks: list[_Passing]
    weight: float


# How a note begins; JAX adds notes of its own.
NOTE = "It was raised for"


@contextlib.contextmanager
def noted(samples: str, iteration: int) -> Iterator[None]:
    """Whatever is raised has a note of the samples that it was raised for."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{NOTE} {samples}, in iteration {iteration}.")
        raise


class WorkerProcess:
    """One worker's share of the work, which other threads may `stop` and ask to
    `deliver`.

    Nothing interrupts the pass of a chunk, of a program that runs or of slowness on
    purpose: `stop` takes effect between chunks.

    Args:
      duty: that of all workers.
      index: whose row of the codes this is.
      subsets: by number, the data subsets of `duty.plan.held(index)`, pytrees of arrays
        `[m, …]`.
    """

    def __init__(
        self, duty: Duty[CodingPlan], index: int, subsets: Mapping[int, PyTree]
    ) -> None:
        self.duty = duty
        self.index = index
        self.subsets = subsets
        self.plan = duty.plan
        self._tasks = duty.plan.tasks(index)
        self._coded = duty.plan.coded
        self._keys = keys_of(duty.loss, jax.random.key(duty.seed))
        # Arguments of a program, which is then the same for all workers.
        self._rows = [row_of(code, index) for code in duty.plan.codes]
        self._later = _later(duty.plan, self._tasks)
        # Programs, by the share of the samples and their shapes.
        self._stages: dict[Any, Stages] = {}
        # A program of the plan alone: if it knew the worker, it would keep it, and all
        # that it has compiled.
        encode = functools.partial(_message, duty.plan, jax.tree.leaves(duty.params))
        self._encode = jax.jit(encode, static_argnums=0)
        # The last call that was stopped, and when; how long the one that ran then took
        # to end.
        self._stopped = -1
        self._stopped_at = 0.0
        self._overrun = self._slept = 0.0
        # A call of the master, and what was computed for it, by block and subset.
        self._kept: tuple[int, dict[tuple[int, int], np.ndarray]] = (-1, {})
        self._changed = threading.Condition()

    def warm_up(self) -> None:
        """Compile everything: the first iteration takes no longer than others."""
        zeros = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), self.duty.params)
        for _ in self.compute(0, 0, jax.tree.leaves(zeros)):
            pass

    def stop(self, call: int) -> None:
        """Begin no further chunk for this call of the master or for an earlier one."""
        with self._changed:
            if call > self._stopped:
                self._stopped = call
                self._stopped_at = time.perf_counter()
            self._changed.notify_all()

    def compute(
        self,
        call: int,
        iteration: int,
        leaves: list[np.ndarray],
        pace: Pace | None = None,
    ) -> Iterator[Message]:
        """The messages of one iteration, in the order of the tasks.

        `call` is what `stop` stops, and another one if the master asks again;
        `iteration` is what samples are drawn for. With a `pace`, in seconds from now,
        nothing is done earlier: the time of a task is that of its subsets, equally
        long.
        """
        begin = time.perf_counter()
        overrun = self._overrun
        self._overrun = 0.0
        with jax.enable_x64(self.duty.x64):  # a setting of each thread
            tree = jax.tree.structure(self.duty.params)
            # Once for all programs.
            params = jax.tree.unflatten(tree, jax.device_put(leaves))
            # One backward pass for each chunk: it begins when a task first asks for it,
            # and goes on.
            passes: dict[_Key, _Part] = {}
        spans = None
        if pace is not None:
            spans = begin + pace.spans()
        sends_beside = pace is not None and pace.overlap
        kept: dict[tuple[int, int], np.ndarray] = {}
        self._kept = (call, kept)
        for number, task in enumerate(self._tasks):
            start = time.perf_counter()
            self._slept = 0.0
            span = None
            if spans is not None:
                span = spans[number]
            with jax.enable_x64(self.duty.x64):
                values = self._values(call, number, iteration, params, passes, span)
            seconds = time.perf_counter() - start - self._slept
            if values is not None and span is not None:
                self._sleep(call, span[2], sends_beside)
            if values is None or self._stopped >= call:
                self._overrun = time.perf_counter() - self._stopped_at
                return
            # A message that is large is asked for, unless everyone's are needed.
            large = values.nbytes >= _MUCH and self.plan.blocks[task.block].level > 0
            keep = large or not self._coded
            if keep:
                kept[task.block, task.subsets[0]] = values
            yield Message(
                task=task,
                seconds=seconds,
                values=None if keep else values,
                done=time.perf_counter() - begin,
                overrun=overrun,
            )

    def deliver(
        self, call: int, block: int, subsets: Sequence[int]
    ) -> np.ndarray | None:
        """The sum over `subsets` of what was computed of a block, `[size]`, or its kept
        message.

        To be read only, and asked for what was said to be done; None if for another
        call.
        """
        of, kept = self._kept
        if of != call:
            return None
        if self._coded or len(subsets) == 1:
            return kept[block, subsets[0]]
        total = kept[block, subsets[0]] + kept[block, subsets[1]]
        for subset in subsets[2:]:
            total += kept[block, subset]
        return total

    def _sleep(self, call: int, until: float, free: bool = False) -> None:
        """Slowness on purpose, which nobody interrupts unless the worker is `free`
        meanwhile.

        Who never gets there, as one that does not answer, only waits for "stop".
        """
        begin = time.perf_counter()
        left = max(until - begin, 0)
        if left >= NEVER or free:
            longest = min(left, threading.TIMEOUT_MAX)
            with self._changed:
                self._changed.wait_for(lambda: self._stopped >= call, longest)
        else:
            time.sleep(left)
        self._slept += time.perf_counter() - begin

    def _values(
        self,
        call: int,
        number: int,
        iteration: int,
        params: PyTree,
        passes: dict[_Key, _Part],
        span: np.ndarray | None,
    ) -> np.ndarray | None:
        """A task's message, or its subset's gradient; None if stopped before."""
        block, subsets = self._tasks[number]
        share = self.plan.blocks[block].share
        weights = np.zeros(len(subsets))
        gradients = list[Any]([None] * len(subsets))
        for k, j in enumerate(subsets):
            with noted(f"subset {j}", iteration):
                if (j, share) not in passes:
                    passes[j, share] = self._begin(j, iteration, share, params)
                part = passes[j, share]
                weights[k] = part.weight
                for chunk in part.chunks:
                    if self._stopped >= call:
                        return None
                    gradient, chunk.progress = chunk.cut.gradients(
                        chunk.progress, block, self._later[number][j]
                    )
                    so_far = gradients[k]
                    if so_far is None:
                        gradients[k] = gradient
                    else:
                        gradients[k] = added(so_far, gradient, chunk.weight)
                    # Else the next chunk would be begun before "stop" is heard.
                    jax.block_until_ready(gradients[k])
                    if span is not None:
                        done = (k + chunk.until) / len(subsets)
                        self._sleep(call, span[0] + (span[1] - span[0]) * done)
        encoded = self._encode(block, self._rows[block], weights, gradients)
        pieces = [np.asarray(piece) for piece in encoded]
        # Not by XLA, which asks of each number anew which piece it is of: nine times
        # slower.
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces)

    def _begin(self, subset: int, iteration: int, share: Any, params: PyTree) -> _Part:
        """Begin a part's pass, in chunks that differ by a sample at most."""
        data = self.subsets[subset]
        if self.duty.batch_size is not None:
            data = drawn(data, self.duty.batch_size, self.duty.seed, iteration, subset)
        part, portion = self.plan.samples_of(share, num_samples(data))
        if not portion:
            return _Part([], 0.0)
        count = part.stop - part.start
        numbers = np.array_split(np.arange(count), self.plan.chunks_of(count))
        sizes = list(map(len, numbers))
        chunks = list[_Passing]()
        end = 0
        for size in sizes:
            rows = slice(part.start + end, part.start + end + size)
            batch = jax.device_put(jax.tree.map(lambda x, rows=rows: x[rows], data))
            key = self._keys(iteration, subset, rows.start)
            cut = self._cut(share, params, batch, *key)
            end += size
            weight = 1.0
            if self.plan.mean:
                weight = size / sizes[0]
            chunks.append(
                _Passing(cut, cut.begin(params, batch, *key), weight, end / count)
            )
        first = 1.0
        if self.plan.mean:
            first = sizes[0] / count
        return _Part(chunks, portion * first * float(self.duty.weights[subset]))

    def _cut(
        self, share: Any, params: PyTree, batch: PyTree, *loss_key: Array
    ) -> Stages:
        """The programs for samples of these shapes."""
        key = (share, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)))
        if key not in self._stages:
            # Blocks of another share of the samples have no leaf here.
            blocks = [
                [piece.leaf for piece in block.pieces if block.share == share]
                for block in self.plan.blocks
            ]
            self._stages[key] = stages(self.duty.loss, params, batch, blocks, *loss_key)
        return self._stages[key]


def drawn(data: PyTree, count: int, *seed: int) -> PyTree:
    """So many samples, the same for all workers that store the data."""
    chosen = np.random.default_rng(seed).permutation(num_samples(data))[:count]
    return jax.tree.map(lambda x: x[chosen], data)


@jax.jit
def added(total: Sequence[Any], gradient: Sequence[Any], weight: float) -> list[Array]:
    """The sum, in float32 at least."""
    sums = []
    for leaf, addend in zip(total, gradient, strict=True):
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        sums.append(leaf.astype(dtype) + weight * addend.astype(dtype))
    return sums


def _message(
    plan: CodingPlan,
    leaves: Sequence[Any],
    block: int,
    row: Array,
    weights: Array,
    gradients: list[Any],
) -> list[Array]:
    """The message by pieces, from subsets' gradients by leaf; None counts nothing."""
    sent = []
    for k, (leaf, start, stop) in enumerate(plan.blocks[block].pieces):
        zero = jnp.zeros(leaves[leaf].shape, leaves[leaf].dtype)
        arrays = [zero if gradient is None else gradient[k] for gradient in gradients]
        parts = [array.ravel()[start:stop] for array in arrays]
        parts = [w.astype(g.dtype) * g for w, g in zip(weights, parts, strict=True)]
        sent.append(message(row, parts, plan.codes[block].wide))
    return sent


def _later(plan: CodingPlan, tasks: Sequence[Task]) -> list[dict[int, tuple[int, ...]]]:
    """The later blocks of the same samples, for each task and subset."""
    backwards: list[dict[int, tuple[int, ...]]] = []
    later_blocks: dict[_Key, tuple[int, ...]] = {}
    for block, subsets in reversed(tasks):
        share = plan.blocks[block].share
        later = {j: later_blocks.get((j, share), ()) for j in subsets}
        later_blocks.update({(j, share): (block, *later[j]) for j in subsets})
        backwards.append(later)
    return backwards[::-1]
