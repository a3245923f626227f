"""Steps that the workers of a process begin and end together."""

import threading
from collections.abc import Iterable

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
