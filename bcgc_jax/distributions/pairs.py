"""A law of one worker's start-up and cycle time together, where the two are not independent."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bcgc_jax._pytree import check, meets, pytree_dataclass, working_dtype
from bcgc_jax.distributions.atoms import Empirical
from bcgc_jax.distributions.base import Atomic, Distribution


@pytree_dataclass
class EmpiricalPairs(Distribution):
    r"""Each pair of a start-up and a cycle time, `[K]` and `[K]`, with probability 1/K.

    As a law it is that of the cycle time alone; a `Problem` takes the start-ups that go with it too. Both are
    times: the start-up in the unit of runtimes, ≥ 0, the cycle time > 0.

    Raises ValueError for none, for two lengths, and for numbers that are no such times.

    >>> law = EmpiricalPairs(start_ups=[3.0, 1.0], cycle_times=[0.5, 2.0])
    >>> float(law.mean()), float(law.cdf(0.5))
    (1.25, 0.5)
    """

    start_ups: ArrayLike | Sequence[float]
    cycle_times: ArrayLike | Sequence[float]

    ranks = (("start_ups", 1), ("cycle_times", 1))
    has_start_up = True

    def __post_init__(self) -> None:
        both = [a if isinstance(a, jax.Array) else np.asarray(a) for a in (self.start_ups, self.cycle_times)]
        if not both[0].size or both[0].shape != both[1].shape:
            raise ValueError(
                "start_ups and cycle_times must be pairs, at least one, got shapes "
                f"{both[0].shape} and {both[1].shape}"
            )
        check("start_ups", both[0], ">= 0")
        check("cycle_times", both[1], "> 0")
        dtype = working_dtype(*both)
        for name, value in zip(("start_ups", "cycle_times"), both, strict=True):
            object.__setattr__(self, name, jnp.asarray(value, dtype))

    def valid(self):
        return jnp.all(meets(self.start_ups, ">= 0")) & jnp.all(meets(self.cycle_times, "> 0"))

    def arrays(self) -> tuple[Array, Array]:
        """The start-ups and the cycle times."""
        return jnp.asarray(self.start_ups), jnp.asarray(self.cycle_times)

    def alone(self) -> Empirical:
        """The law of the cycle time."""
        return Empirical(jnp.asarray(self.cycle_times))

    def sample_pairs(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Array, Array]:
        """Draws of start-ups and the cycle times that go with them."""
        starts, times = self.arrays()
        chosen = jax.random.randint(key, shape, 0, times.size)
        return starts[chosen].astype(dtype), times[chosen].astype(dtype)

    def cumulative_hazard(self, t):
        return self.alone().cumulative_hazard(t)

    def inverse_cumulative_hazard(self, a):
        return self.alone().inverse_cumulative_hazard(a)

    def mean(self):
        return jnp.mean(jnp.asarray(self.cycle_times))

    def infimum(self):
        return jnp.min(jnp.asarray(self.cycle_times))

    def summary(self):
        return self.alone().summary()

    def pieces(self):
        return Atomic(jnp.sort(jnp.asarray(self.cycle_times)))
