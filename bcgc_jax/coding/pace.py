"""When each worker has done each task of a step: its begin, speed and link."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Instead of infinity, which times a load of 0 is nothing.
ENDLESS = 1e30


class Pace(NamedTuple):
    """The pace of all N workers, or of one (`of`), whose begin and unit are numbers.

    Attributes:
      begin: when a worker begins, `[N]`.
      unit: its time for a unit of load, `[N]`; infinity if it does not answer.
      load: until the end of each task, `[tasks]`, or `[tasks, N]` where workers do
        unequal work; in work sharing that of a whole subset, `[1]`.
      sent: what the link takes for all messages up to a task's, `[tasks]`.
      overlap: whether the link sends while the worker computes on.

    >>> pace = Pace(
    ...     np.array([0.0, 1.0]),
    ...     np.array([1.0, 2.0]),
    ...     np.array([1.0, 3.0]),
    ...     np.array([0.5, 0.75]),
    ... )
    >>> pace.ends().tolist(), pace.of(1).spans().tolist()
    ([[1.5, 3.5], [3.75, 7.75]], [[1.0, 3.0, 3.5], [3.5, 7.5, 7.75]])
    """

    begin: Any
    unit: Any
    load: Any
    sent: Any
    overlap: bool = False

    def checked(self, tasks: int, workers: int) -> "Pace":
        """NumPy, `ENDLESS` for infinity; ValueError for bad shapes and values."""
        shapes: dict[str, list[tuple[int, ...]]] = {
            "begin": [(workers,)],
            "unit": [(workers,)],
            "load": [(tasks,), (tasks, workers)],
            "sent": [(tasks,)],
        }
        fields = {}
        for name, allowed in shapes.items():
            values = np.asarray(getattr(self, name), float)
            if values.shape not in allowed or not np.all(values >= 0):
                raise ValueError(
                    f"{name} of a pace, slowness on purpose, must be 0 or more, of "
                    f"shape {' or '.join(map(str, allowed))}, got {values.tolist()}"
                )
            fields[name] = np.minimum(values, ENDLESS)
        return self._replace(**fields)

    def of(self, worker: int) -> "Pace":
        """The pace of one worker, of numbers that are known."""
        load = np.asarray(self.load, float)
        worker_load = load
        if load.ndim != 1:
            worker_load = load[:, worker]
        return Pace(
            begin=float(self.begin[worker]),
            unit=float(self.unit[worker]),
            load=worker_load,
            sent=np.asarray(self.sent, float),
            overlap=self.overlap,
        )

    def ends(self) -> Any:
        """When each worker has delivered each task, `[tasks, N]`; NumPy or JAX."""
        # in NumPy nothing is compiled
        xp = np if isinstance(self.unit, np.ndarray | float) else jnp
        load, sent = self._columns(xp)
        work = self.unit * load
        if self.overlap:
            waited = work - xp.concatenate([0 * sent[:1], sent[:-1]])
            work = np.maximum.accumulate(waited) if xp is np else jax.lax.cummax(waited)
        return self.begin + work + sent

    def spans(self) -> np.ndarray:
        """When a worker begins, has computed and has sent each task, `[tasks, 3]`."""
        ends = self.ends()
        load, sent = self._columns(np)
        computed = self.begin + self.unit * load
        if not self.overlap:
            computed = computed + np.concatenate([[0.0], sent[:-1]])
        before = ends
        if self.overlap:
            before = computed
        return np.stack(
            [np.concatenate([[self.begin], before[:-1]]), computed, ends], axis=-1
        )

    def _columns(self, xp: Any) -> tuple[Any, Any]:
        """Load and link, beside the workers where there are many."""
        load = xp.asarray(self.load)
        sent = xp.asarray(self.sent)
        if np.ndim(self.unit) == 0:
            return load, sent
        return (load if load.ndim == 2 else load[:, None]), sent[:, None]
