"""The callback: each worker of this process requests its next chunk."""

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.compiled.layout import Layout
from bcgc_jax.balancing.compiled.losses import LossCheck
from bcgc_jax.balancing.dispatch.client import Chunk, Share, StepFailed

_AT_ONCE = (
    "two gradients of one SharedWork are computed at the same time. Make the second "
    "one depend on the `ok` of the first one, for example with "
    "jax.tree.map(lambda p: jnp.where(ok, p, jnp.nan), params)"
)
_CLOSED = "an earlier step has failed. Call reset() first"


class _Launch:
    """A step on all workers: those that have begun it, ended it well, and left it."""

    def __init__(self, key: object) -> None:
        self.key = key
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.left: set[int] = set()
        self.error: BaseException | None = None


class Launches:
    """Makes a step end in the same way for all workers of this process.

    A reduction follows a step, in which each worker waits for all others. So no worker
    may begin it if the step has failed for another one. If the step has failed, a
    worker can be at the next one, such as that of a `scan`, while others are still in
    the failed one, or have not begun it. It waits for them.

    Args:
      workers: The workers of this process.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self._workers = set(workers)
        self._launch = _Launch(None)
        self._launch.left.update(self._workers)
        self._is_closed = False
        self._changed = threading.Condition()

    def begin(self, worker: int, key: object) -> None:
        """A worker begins the step of this key: that of a program, and its number.

        Raises:
          RuntimeError: If a worker is at another step that has not failed, or `close`
            was called.
          BaseException: The error with which this step has failed for another worker.
        """
        with self._changed:
            last = self._launch
            if worker in last.left:
                self._changed.wait_for(
                    lambda: (
                        self._is_closed
                        or self._launch is not last
                        or last.left == self._workers
                    )
                )
            if self._is_closed:
                raise RuntimeError(_CLOSED)
            if self._launch.left == self._workers:
                self._launch = _Launch(key)
            launch = self._launch
            if launch.key != key or worker in launch.begun:
                raise RuntimeError(_AT_ONCE)
            launch.begun.add(worker)
            if launch.error is not None:
                raise launch.error

    def end(self, worker: int) -> None:
        """Return when all workers have ended the step.

        Raises:
          BaseException: The error with which it has failed for another worker.
        """
        with self._changed:
            launch = self._launch
            if launch.error is None:
                launch.ended.add(worker)
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: launch.error is not None or launch.ended == self._workers
            )
            if launch.error is not None:
                raise launch.error
            launch.left = self._workers

    def fail(self, error: BaseException) -> None:
        """The step has failed, unless all workers have ended it."""
        with self._changed:
            launch = self._launch
            if launch.ended != self._workers and launch.error is None:
                launch.error = error
            self._changed.notify_all()

    def leave(self, worker: int) -> None:
        """A worker has left a step that has failed."""
        with self._changed:
            self._launch.left = self._launch.left | {worker}
            self._changed.notify_all()

    def close(self) -> None:
        """The step has failed, and no other one begins."""
        self._is_closed = True
        self.fail(RuntimeError(_CLOSED))


# Kinds of answers without a chunk. The kinds from 1 to S are chunks of the S sizes of
# `Layout.sizes`, whose gradient is computed. Kind S + 1 computes the values of the
# halves of a chunk of the first size, and the kinds after it compute checksums.
OVER = 0
FAILED = -1
# Numbers at the beginning of a request: the step, the turn, the worker, and a number
# that is known only when the last gradient has been added. In a program that is
# checked, the weighted sums of the total and the numbers of the last check follow. At
# the end are the lengths of the worker's chunks.
HEAD = 4
# Numbers of a checksum.
CHECKSUM = 2


def report_size(check: LossCheck | None) -> int:
    """How many numbers the last check reports: a checksum, or values of two halves."""
    return 0 if check is None else max(CHECKSUM, 4 * len(check.names))


# Numbers of an answer: its kind, the first row of the chunk, its subset, its number
# there, and how many chunks of its kind follow it without a request.
ANSWER = 5


class Program(NamedTuple):
    """What the callback knows of a traced gradient.

    Attributes:
      number: Its number. Two gradients that run at the same time have different ones.
      layout: The rows of the chunks.
      check: Compares the values of a chunk with those of its halves; None if
        the loss and the stored rows are not checked.
    """

    number: int
    layout: Layout
    check: LossCheck | None


class _Request(NamedTuple):
    """A worker's request.

    Attributes:
      step: The step.
      turn: The number of the turn of the loop.
      worker: The worker.
      total: The `weighted_sums` of the values that have been added up.
      report: The numbers of the last check.
      loads: The lengths of the worker's chunks.
    """

    step: int
    turn: int
    worker: int
    total: np.ndarray
    report: np.ndarray
    loads: list[float] | None

    @classmethod
    def of(cls, numbers: np.ndarray, check: LossCheck | None) -> "_Request":
        step, turn, worker = numbers[:3].tolist()
        num_values = 0 if check is None else len(check.names)
        ends = np.cumsum([HEAD, num_values, report_size(check)])
        _, total, report, loads = np.split(numbers, ends)
        floats = total.view(np.float32), loads.view(np.float32).tolist()
        return cls(step, turn, worker, floats[0], report.copy(), floats[1] or None)


_Answers = Generator[np.ndarray, _Request, None]


class Questions:
    """Answers the requests of the workers of this process. `answer` never raises.

    An error that is raised in a callback would end the program of this process while
    others wait for it.

    Attributes:
      shares: The handles of the workers.
      count: Number of chunks that each worker computed in its last step.
      error: Why a step has failed since the last reset.
    """

    def __init__(self, shares: Mapping[int, Share]) -> None:
        self.shares = dict(sorted(shares.items()))
        self.count = dict.fromkeys(self.shares, 0)
        self.error: BaseException | None = None
        self.is_broken = False
        self._launches = Launches(self.shares)
        # The answers to each worker that is in a step.
        self._running: dict[int, _Answers] = {}
        # Pairs of a program and a worker that have been checked.
        self._checked: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def answer(self, program: Program, numbers: np.ndarray) -> np.ndarray:
        """What a worker computes next: int32 numbers of a request to `[ANSWER]`."""
        request = _Request.of(np.asarray(numbers), program.check)
        try:
            answers, is_new = self._enter(program, request)
            answer = next(answers) if is_new else answers.send(request)
            if answer[0] == OVER:
                self._launches.end(request.worker)
            return answer
        except BaseException as error:
            self.fail(error)
            self._launches.leave(request.worker)
            return _answer(FAILED)

    def fail(self, error: BaseException) -> None:
        """Note the first error. Any but a failed step ends the shares until `reset`."""
        self._launches.fail(error)
        with self._lock:
            if self.is_broken:
                return
            self.error = error
            if isinstance(error, StepFailed):
                return
            self.is_broken = True
        self.close()

    def close(self) -> None:
        """Leave, so that the step fails for the other workers."""
        self.is_broken = True
        self._launches.close()
        for share in self.shares.values():
            share.close()

    def acknowledge(self) -> None:
        """Forget the error of a step that has failed while the handles stay open."""
        self.error = None

    def successor(self, shares: Mapping[int, Share]) -> "Questions":
        """The same for new handles; programs that were checked stay checked."""
        following = Questions(shares)
        following._checked = self._checked
        return following

    def _enter(self, program: Program, request: _Request) -> tuple[_Answers, bool]:
        worker = request.worker
        is_new = request.turn == 0
        if is_new:
            self._launches.begin(worker, (program.number, request.step))
            self._running[worker] = self._answers(program, request)
            self.count[worker] = 0
        return self._running[worker], is_new

    def _answers(self, program: Program, request: _Request) -> _Answers:
        """The answers to a worker in a step. They receive its next requests."""
        worker, layout = request.worker, program.layout
        share = self.shares[worker]
        check = program.check
        if (program.number, worker) in self._checked:
            check = None
        if check is not None:
            yield from self._compare_copies(layout, request)
        runs: Iterator[tuple[Chunk, ...]] = share.runs(request.step, request.loads)
        for run in runs:
            # The sum has only this chunk then, and the halves are those of a whole one.
            is_whole = layout.place(worker, run[0]).size == layout.sizes[0]
            if check is not None and self.count[worker] == 0 and is_whole:
                yield from self._check_loss(check, layout, worker, run[0])
                self._checked.add((program.number, worker))
                self.count[worker] += 1
                run = run[1:]
            self.count[worker] += len(run)
            if run:
                yield _chunk_answer(layout, worker, run)
        yield _answer(OVER)

    def _compare_copies(self, layout: Layout, request: _Request) -> _Answers:
        """Compare the rows of each chunk that the worker stores with other copies."""
        worker = request.worker
        share = self.shares[worker]
        checksums = []
        for chunk in share.held:
            first_kind = len(layout.sizes) + 2
            answered = yield _chunk_answer(layout, worker, (chunk,), first_kind)
            checksum = int(answered.report[:CHECKSUM].view(np.int64)[0])
            checksums.append([chunk.subset, chunk.number, checksum])
        share.compare_copies(request.step, checksums)

    def _check_loss(
        self, check: LossCheck, layout: Layout, worker: int, chunk: Chunk
    ) -> _Answers:
        """Let a worker compute a chunk, and compare its values with its halves."""
        place = layout.place(worker, chunk)
        halves_kind = len(layout.sizes) + 1
        answered = yield _answer(halves_kind, place.begin, chunk)
        halves = answered.report[: 4 * len(check.names)].view(np.float32)
        answered = yield _chunk_answer(layout, worker, (chunk,))
        check.compare(answered.total, halves.reshape(2, 2, -1), place.size)


def _chunk_answer(
    layout: Layout, worker: int, run: tuple[Chunk, ...], first_kind: int = 1
) -> np.ndarray:
    place = layout.place(worker, run[0])
    kind = first_kind + layout.sizes.index(place.size)
    return _answer(kind, place.begin, run[0], len(run) - 1)


def _answer(
    kind: int, begin: int = 0, chunk: Chunk | None = None, follow: int = 0
) -> np.ndarray:
    subset, number = (0, 0) if chunk is None else (chunk.subset, chunk.number)
    return np.array([kind, begin, subset, number, follow], np.int32)
