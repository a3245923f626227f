"""Injected delays, which slow the workers of a study by a model."""

import dataclasses

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.coding.training import TrainingScheme, draws_of
from bcgc_jax.distributions import Distribution, JointDistribution


@dataclasses.dataclass(frozen=True)
class InjectedDelay:
    """Slow the workers of `CodedWorkers` to the speeds of a problem's model.

    Let F_wb be the end of block b of worker w in the model. The worker sends the block
    no earlier than `seconds` F_wb after its start of the step. A new step does not
    interrupt a delay within a pass over a subset, as in real computation.

    Attributes:
      scheme: Result of `training_scheme`, which contains the model's costs.
      cycle_times: Distribution, sampled independently in each step, or measured times
        `[K, N]`, which are replayed in a cycle.
      seconds: Seconds per unit of the cycle time. Defaults to 1.
      key: PRNG key of the samples. Defaults to `jax.random.key(0)`.

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
        """Return the earliest end of each block, seconds after its start, `[B, N]`."""
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
