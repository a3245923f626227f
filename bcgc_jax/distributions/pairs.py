"""A distribution of one worker's start-up and cycle time together, where the two are not independent."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bcgc_jax._pytree import pytree_dataclass
from bcgc_jax.distributions.atoms import Empirical
from bcgc_jax.distributions.base import Distribution, as_floats


@pytree_dataclass
class EmpiricalPairs(Distribution):
    r"""Each pair of a start-up and a cycle time, `[K]` and `[K]`, with probability 1/K.

    As a `Distribution` it is that of the cycle time alone; a `Problem` takes the start-ups that go with it
    too. Both are times: the start-up in the unit of runtimes, ≥ 0, the cycle time > 0. Raises ValueError for
    none, for two lengths, and for numbers that are no such times.

    >>> law = EmpiricalPairs(start_ups=[3.0, 1.0], cycle_times=[0.5, 2.0])
    >>> float(law.mean()), float(law.cdf(0.5))
    (1.25, 0.5)
    """

    start_ups: ArrayLike | Sequence[float]
    cycle_times: ArrayLike | Sequence[float]

    conditions = (("start_ups", ">= 0"), ("cycle_times", "> 0"))
    ranks = (("start_ups", 1), ("cycle_times", 1))
    has_start_up = True

    def __post_init__(self) -> None:
        one, other = np.shape(self.start_ups), np.shape(self.cycle_times)
        if 0 in one or one != other:
            raise ValueError(
                f"start_ups and cycle_times must be pairs, at least one, got shapes {one} and {other}"
            )
        super().__post_init__()
        for name, value in zip(
            ("start_ups", "cycle_times"), as_floats(self.start_ups, self.cycle_times), strict=True
        ):
            object.__setattr__(self, name, value)

    def arrays(self) -> tuple[Array, Array]:
        """The start-ups and the cycle times."""
        return jnp.asarray(self.start_ups), jnp.asarray(self.cycle_times)

    def alone(self) -> Empirical:
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
        return self.alone().pieces()
