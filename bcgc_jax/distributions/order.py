"""Two orders of workers and levels along an axis, and conversions between them.

*Slowest first* is used nearly everywhere, along the last axis. Entry n holds T_(N-n),
which belongs to redundancy level n. *Ascending in k* is used in the recursions of
`exact.crossing`, along axis 0, with k = N - n. Its first threshold is the earliest.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def slowest_first(times: Any) -> Any:
    """Sort the times of workers, `[..., N]`, slowest first, with NumPy or JAX.

    >>> slowest_first(np.array([1.0, 3.0, 2.0])).tolist()
    [3.0, 2.0, 1.0]
    """
    xp = np if isinstance(times, np.ndarray) else jnp
    return xp.sort(times, axis=-1)[..., ::-1]


def ascending_in_k(by_level: Array) -> Array:
    """Convert values by level, `[..., N]`, to the order ascending in k, `[N, ...]`."""
    return jnp.moveaxis(by_level, -1, 0)[::-1]


def by_level(ascending: Array) -> Array:
    """Convert values ascending in k, `[N, ...]`, to the order by level, `[..., N]`."""
    return jnp.moveaxis(ascending[::-1], 0, -1)
