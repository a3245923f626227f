"""Workers that are slowed on purpose, for studies."""

import dataclasses

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.coding.training import TrainingScheme, draws_of
from bcgc_jax.distributions import Distribution, JointDistribution


@dataclasses.dataclass(frozen=True)
class InjectedDelay:
    """Slow the workers of `CodedWorkers` to the pace that a problem's model gives them.

    Worker w has done block b no earlier than `seconds` times when the model has it
    done. Nobody interrupts this slowness within a pass over a subset, as nobody
    interrupts real compute.

    Attributes:
      scheme: The result of `training_scheme`, with the pace of the workers.
      cycle_times: A distribution, which is drawn anew for each step, or measured rows
        `[K, N]`, which are replayed over and over.
      seconds: Wall-clock seconds in the unit of the cycle time. Defaults to 1.
      key: Randomness of the draws.

    >>> import jax.numpy as jnp
    >>> from bcgc_jax.coding import coding_plan
    >>> plan = coding_plan(jax.random.key(0), jnp.ones(2), [1, 1])
    >>> scheme = TrainingScheme(plan, jnp.array([1.0, 3.0]), jnp.zeros(2))
    >>> delay = InjectedDelay(scheme, [[1.0, 2.0], [4.0, 5.0]], 0.5)
    >>> delay.ends(step=3).tolist()
    [[2.0, 2.5], [6.0, 7.5]]
    """

    scheme: TrainingScheme
    cycle_times: Distribution | JointDistribution | ArrayLike
    seconds: float = 1.0
    key: Array | None = None

    def ends(self, step: int) -> np.ndarray:
        """When each worker has done each block, seconds from its begin, `[B, N]`."""
        times = self.cycle_times
        if not isinstance(times, Distribution | JointDistribution):
            times = np.asarray(times, float)
        start = self.scheme.start_up
        workers = self.scheme.plan.num_workers
        draw = draws_of(times, start, workers)
        key = jax.random.key(0) if self.key is None else self.key
        starts, drawn = draw(step, jax.random.fold_in(key, step))
        pace = self.scheme.pace(np.asarray(starts, float), np.asarray(drawn, float))
        return self.seconds * np.asarray(pace.ends())
