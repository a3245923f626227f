"""Which way an axis of workers or levels runs: two orders, and the step from one to the
other.

*Slowest first*, the last axis, nearly everywhere: axis n holds T_(N-n), beside
redundancy level n. *Ascending in k*, axis 0, in the recursions of `exact.crossing`: k =
N - n, the earliest threshold first.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def slowest_first(times: Any) -> Any:
    """Times of workers, `[..., N]`, sorted; NumPy or JAX.

    >>> slowest_first(np.array([1.0, 3.0, 2.0])).tolist()
    [3.0, 2.0, 1.0]
    """
    xp = np if isinstance(times, np.ndarray) else jnp
    return xp.sort(times, axis=-1)[..., ::-1]


def ascending_in_k(by_level: Array) -> Array:
    """From values by level, slowest first, `[..., N]` to `[N, ...]`."""
    return jnp.moveaxis(by_level, -1, 0)[::-1]


def by_level(ascending: Array) -> Array:
    """The way back, `[N, ...]` to `[..., N]`."""
    return jnp.moveaxis(ascending[::-1], 0, -1)
