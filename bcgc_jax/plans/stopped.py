"""Define `Stopped`: workers stop at a threshold, and lose unfinished chunks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import pytree_dataclass, replace, static_field
from bcgc_jax.balancing.placement import Storage, on_circle
from bcgc_jax.balancing.remedies import stopped
from bcgc_jax.plans.completion import Completion, in_order
from bcgc_jax.plans.passes import Passes
from bcgc_jax.plans.worker import Cost, Load, Tasks


@pytree_dataclass
class Stopped(Completion):
    """Define that a step ends at a threshold θ, or when all chunks are finished.

    The runtime is τ = min(θ, max_n F_n). Only finished chunks are in the gradient.

    Attributes:
      num_workers: N.
      threshold: θ, in the unit of `Worker`.
      chunks: Number of chunks (microbatches) per subset, C. Workers stop immediately,
        and lose the running chunk.
      at_limit: Whether `threshold` is the lowest value that was allowed.
    """

    num_workers: ArrayLike
    threshold: Array
    chunks: int = static_field()
    at_limit: ArrayLike = False

    exact_gradient = False

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute the load of a complete data subset."""
        return in_order(sizes, tasks, cost)

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Compute the runtimes. Each worker sends its sum when the step ends."""
        exists = np.arange(times.shape[-1]) < jnp.asarray(self.num_workers)
        last = jnp.max(jnp.where(exists, starts + times * load.work[-1], 0), axis=-1)
        sent = 0 if load.sent is None else load.sent[-1]
        return jnp.minimum(self.threshold, last) + sent

    def ended(
        self,
        subset: float,
        passes: Passes | None,
        block: np.ndarray,
        starts: Any,
        times: Any,
    ) -> np.ndarray:
        starts, times = np.asarray(starts)[..., None], np.asarray(times)[..., None]
        ended = np.arange(self.chunks + 1) / self.chunks
        clock = starts + times * subset * ended
        threshold = float(np.asarray(self.threshold))
        return stopped(threshold, clock[..., :-1], clock[..., 1:], at_once=True)[0]

    def columns(self, scale: Any) -> dict[str, Any]:
        return {"threshold": self.threshold * scale, "at_limit": self.at_limit}

    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        return on_circle(num_workers, 1)

    def least_workers(self, data: np.ndarray) -> int:
        return 1

    def of_problem(self, num_workers: ArrayLike, max_workers: int) -> "Stopped":
        return replace(self, num_workers=num_workers)
