"""A log from a training loop, for `bcgc advise FOLDER`: each process writes a file of
its own.

Nothing is imported but what the loop has imported already: JAX, or PyTorch.
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
    """Wait for JAX's devices; all else is there when it is returned."""
    jax = sys.modules.get("jax")
    if jax is None:
        return value
    return jax.block_until_ready(value)


class Recorder:
    """Writes `FOLDER/worker-NUMBER.csv`: a row for each chunk, or for each step and its
    wait.

    Args:
      folder: of the files, on a disk of the worker's own or of all; it is made.
      worker: the number of this process.
      ready: waits until a value is computed, and returns it; by default JAX's
        `block_until_ready`.

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
        """Compute a chunk, and write how long that took: `compute(*arguments)`.

        Args:
          step, number: of the step, and of the chunk within the worker's step.
          compute: both passes, without any collective.
          load: the length of the chunk, such as its tokens, where chunks differ.
        """
        begin = time.perf_counter()
        value: T = self._ready(compute(*arguments))
        seconds = time.perf_counter() - begin
        self.write(_CHUNKS, step, number, "" if load is None else load, seconds)
        return value

    def collective(self, step: int, reduce: Callable[..., T], *arguments: Any) -> T:
        """Reduce what is computed, `reduce(*arguments)`, and write what the step took
        and waited.

        Seconds are those since the last collective. The first one writes nothing, for
        it begins the clock.
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
        """Write a row; the first one says which columns the file has."""
        if not self._columns:
            self._rows.writerow(columns)
            self._columns = columns
        if columns != self._columns:
            raise ValueError(
                f"{self.path} has chunks or whole steps, not both: take two folders"
            )
        self._rows.writerow([step, self.worker, socket.gethostname(), *numbers])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Host:
    """Moments of the host's clock."""

    def now(self) -> float:
        return time.perf_counter()

    def past(self, moment: float) -> bool:
        return True

    def seconds(self, first: float, second: float) -> float:
        return second - first


class _Cuda:
    """Moments of the stream that is current: events, which nobody waits for."""

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
    """Record the steps of a PyTorch model in `DistributedDataParallel`, from now on.

    A communication hook notes when the last bucket of gradients is ready, and when it
    is reduced: the backward pass is over, so what is between is the wait. It reduces as
    DDP itself does. On a GPU these are events of its streams, and nothing is
    synchronised.

    Raises RuntimeError of PyTorch where the model has a communication hook already.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    on_gpu = next(model.parameters()).is_cuda
    steps = _Steps(
        Recorder(folder, dist.get_rank()), _Cuda(torch) if on_gpu else _Host()
    )

    # PyTorch refuses a hook with annotations that are not its own.
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
    """Moments of steps, of which the rows are written as soon as they are past."""

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
