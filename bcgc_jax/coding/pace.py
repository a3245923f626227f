"""When each worker has done each task of a step: its begin, speed and link."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Pace(NamedTuple):
    """The pace of all N workers.

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
    >>> pace.ends().tolist()
    [[1.5, 3.5], [3.75, 7.75]]
    """

    begin: Any
    unit: Any
    load: Any
    sent: Any
    overlap: bool = False

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

    def _columns(self, xp: Any) -> tuple[Any, Any]:
        """Load and link, beside the workers where there are many."""
        load = xp.asarray(self.load)
        sent = xp.asarray(self.sent)
        if np.ndim(self.unit) == 0:
            return load, sent
        return (load if load.ndim == 2 else load[:, None]), sent[:, None]
