"""The callback: each worker of this process asks its share for the next chunk."""

import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bcgc_jax.compiled.layout import Layout
from bcgc_jax.handout.client import Chunk, Share, StepFailed

# Answers that are no chunk; others are 1 and more: which of `Layout.sizes`.
OVER = 0
FAILED = -1
# Numbers of a question before the lengths of the worker's chunks: step, turn, worker,
# and one that is known when the gradient of the turn before is.
HEAD = 4
# Numbers of an answer: its kind, where its samples begin, its subset, its number there,
# and how many chunks of its kind follow without a question, each behind the last.
ANSWER = 5
_AT_ONCE = (
    "two gradients of one SharedWork are computed at once: make one depend on the "
    "other's ok, as by jax.tree.map(lambda p: jnp.where(ok, p, jnp.nan), params)"
)


class _Running(NamedTuple):
    """A worker's step: its call in the program, and its chunks, run by run."""

    call: int
    step: int
    runs: Iterator[tuple[Chunk, ...]]


class Questions:
    """Answers the questions of the workers of this process. `answer` never raises.

    Raised in a callback, an error would end this process's program while others wait
    for it.

    Attributes:
      count: chunks of each worker in its last step.
      error: why the last step that failed has failed.
    """

    def __init__(self, shares: Mapping[int, Share]) -> None:
        self.shares = dict(shares)
        self.count = dict.fromkeys(self.shares, 0)
        self.error: BaseException | None = None
        self._running: dict[int, _Running] = {}
        self._is_broken = False
        self._lock = threading.Lock()

    def answer(self, layout: Layout, call: int, question: np.ndarray) -> np.ndarray:
        """What a worker computes next: int32 numbers, `[HEAD + C']` to `[ANSWER]`."""
        numbers = np.asarray(question)
        step, turn, worker = numbers[:3].tolist()
        loads = numbers[HEAD:].view(np.float32).tolist() or None
        try:
            running = self._enter(call, step, turn, worker, loads)
            run = next(running.runs, None)
            if run is None:
                self._leave(worker)
                return _without_chunk(OVER)
            self.count[worker] += len(run)
            first = run[0]
            place = layout.place(worker, first)
            kind = 1 + layout.sizes.index(place.size)
            return np.array(
                [kind, place.begin, first.subset, first.number, len(run) - 1], np.int32
            )
        except BaseException as error:
            self._fail(worker, error)
            return _without_chunk(FAILED)

    def close(self) -> None:
        """Leave: for the others the step fails."""
        self._is_broken = True
        for share in self.shares.values():
            share.close()

    def _enter(
        self, call: int, step: int, turn: int, worker: int, loads: list[float] | None
    ) -> _Running:
        with self._lock:
            if self._is_broken:
                raise RuntimeError("an earlier step has failed: call reset()")
            running_steps = {
                (running.call, running.step) for running in self._running.values()
            }
            if running_steps - {(call, step)} or (turn == 0) == (
                worker in self._running
            ):
                raise RuntimeError(_AT_ONCE)
            if turn == 0:
                runs = self.shares[worker].runs(step, loads)
                self._running[worker] = _Running(call, step, runs)
                self.count[worker] = 0
            return self._running[worker]

    def _leave(self, worker: int) -> None:
        with self._lock:
            self._running.pop(worker, None)

    def _fail(self, worker: int, error: BaseException) -> None:
        """Note the first error. Any but a failed step ends the shares until `reset`."""
        with self._lock:
            self._running.pop(worker, None)
            if self._is_broken:
                return
            self.error = error
            if isinstance(error, StepFailed):
                return
            self._is_broken = True
        self.close()


def _without_chunk(kind: int) -> np.ndarray:
    return np.array([kind] + [0] * (ANSWER - 1), np.int32)
