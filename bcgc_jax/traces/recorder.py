"""Record a timing log in a training loop, for `bcgc advise FOLDER`.

Each process writes its own file. The module imports JAX or PyTorch only if the loop
already uses it.
"""

import csv
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_CHUNKS = ("step", "worker", "host", "chunk", "load", "seconds")
_STEPS = ("step", "worker", "host", "seconds", "wait")


def _ready(value: T) -> T:
    """Wait until JAX has computed a value. Other values are taken as computed."""
    jax = sys.modules.get("jax")
    if jax is None:
        return value
    return jax.block_until_ready(value)


class Recorder:
    """Write the log of one worker to `FOLDER/worker-NUMBER.csv`.

    The file has a row for each chunk (microbatch), or for each step and the time that
    the worker is blocked in its collective.

    Args:
      folder: Folder of the files, on a local or a shared disk. It is created if needed.
      worker: Number of this process.
      ready: Function that waits until a value is computed, and returns it. Defaults to
        `jax.block_until_ready` if JAX is imported.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = Recorder(folder, 3)
    ...     total = record.chunk(0, 0, sum, [1.0, 2.0], load=2)
    ...     header, row = (Path(folder) / "worker-3.csv").read_text().splitlines()
    >>> total, header, row.split(",")[:2]
    (3.0, 'step,worker,host,chunk,load,seconds', ['0', '3'])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        worker: int,
        ready: Callable[[Any], Any] = _ready,
    ) -> None:
        self.path = Path(folder) / f"worker-{worker}.csv"
        self.worker = worker
        self._ready = ready
        self._released: float | None = None
        self._columns: tuple[str, ...] = ()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", newline="")  # noqa: SIM115 - open for the whole training
        self._rows = csv.writer(self._file, lineterminator="\n")

    def chunk(
        self,
        step: int,
        number: int,
        compute: Callable[..., T],
        *arguments: Any,
        load: float | None = None,
    ) -> T:
        """Compute a chunk, and record how many seconds it takes.

        Args:
          step: Number of the step.
          number: Number of the chunk within the worker's step.
          compute: Function that runs the forward and the backward pass without a
            collective.
          *arguments: Arguments of `compute`.
          load: Length of the chunk, for example in tokens. Defaults to no length, for
            chunks of equal length.

        Returns:
          The result of `compute(*arguments)`.

        Raises:
          ValueError: If the file already has rows of complete steps.
        """
        begin = time.perf_counter()
        value: T = self._ready(compute(*arguments))
        seconds = time.perf_counter() - begin
        self.write(_CHUNKS, step, number, "" if load is None else load, seconds)
        return value

    def collective(self, step: int, reduce: Callable[..., T], *arguments: Any) -> T:
        """Run the collective of a step, and record the step time and the blocked time.

        The step time is the time since the end of the previous collective. The first
        call writes no row, because it only starts the clock.

        Args:
          step: Number of the step.
          reduce: Function that runs the collective, such as an all-reduce.
          *arguments: Arguments of `reduce`.

        Returns:
          The result of `reduce(*arguments)`.

        Raises:
          ValueError: If the file already has rows of chunks.
        """
        self._ready(arguments)
        entered = time.perf_counter()
        value: T = self._ready(reduce(*arguments))
        released = time.perf_counter()
        if self._released is not None:
            self.write(_STEPS, step, released - self._released, released - entered)
        self._released = released
        return value

    def write(self, columns: tuple[str, ...], step: int, *numbers: Any) -> None:
        """Write a row. The first row determines the columns of the file."""
        if not self._columns:
            self._rows.writerow(columns)
            self._columns = columns
        if columns != self._columns:
            raise ValueError(
                f"{self.path} can have rows of chunks or of complete steps, not both. "
                "Use two recorders with different folders."
            )
        self._rows.writerow([step, self.worker, socket.gethostname(), *numbers])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Host:
    """Moments on the host's clock."""

    def now(self) -> float:
        return time.perf_counter()

    def past(self, moment: float) -> bool:
        return True

    def seconds(self, first: float, second: float) -> float:
        return second - first


class _Cuda:
    """Moments on the current CUDA stream, as events without synchronisation."""

    def __init__(self, torch: Any) -> None:
        self._event = torch.cuda.Event

    def now(self) -> Any:
        event = self._event(enable_timing=True)
        event.record()
        return event

    def past(self, moment: Any) -> bool:
        return bool(moment.query())

    def seconds(self, first: Any, second: Any) -> float:
        return 1e-3 * float(first.elapsed_time(second))


def record_ddp(model: Any, folder: str | os.PathLike[str]) -> Recorder:
    """Record the steps of a PyTorch model in `DistributedDataParallel`.

    A communication hook records when the last bucket of gradients is ready, and when it
    is reduced. At the first time the backward pass is over, so the worker is blocked
    between the two times. The hook reduces buckets as DDP does by default. On a GPU,
    times are events of the current stream, and the hook does not synchronise.

    Args:
      model: Model in `DistributedDataParallel`.
      folder: Folder of the files, as in `Recorder`.

    Returns:
      The `Recorder`, whose worker number is the rank.

    Raises:
      RuntimeError: If the model already has a communication hook.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    on_gpu = next(model.parameters()).is_cuda
    steps = _Steps(
        Recorder(folder, dist.get_rank()), _Cuda(torch) if on_gpu else _Host()
    )

    # PyTorch refuses a hook with other type annotations.
    def hook(group, bucket):  # type: ignore[no-untyped-def]
        entered = None
        if bucket.is_last():
            entered = steps.clock.now()
        future = allreduce_hook(group, bucket)
        if entered is None:
            return future

        def released(done: Any) -> Any:
            steps.add(entered, steps.clock.now())
            return done.value()

        return future.then(released)

    model.register_comm_hook(model.process_group, hook)
    return steps.recorder


class _Steps:
    """Collect the moments of steps, and write the row of a step when they are past."""

    def __init__(self, recorder: Recorder, clock: _Host | _Cuda) -> None:
        self.recorder = recorder
        self.clock: Any = clock
        self._number = 0
        self._moments: list[tuple[Any, Any]] = []

    def add(self, entered: Any, released: Any) -> None:
        self._moments.append((entered, released))
        while len(self._moments) > 1 and self.clock.past(self._moments[1][1]):
            (_, before), (entered, released) = self._moments[:2]
            seconds = self.clock.seconds(before, released)
            self._number += 1
            wait = self.clock.seconds(entered, released)
            self.recorder.write(_STEPS, self._number, seconds, wait)
            del self._moments[0]
