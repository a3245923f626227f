"""The storage bound: what no exact scheme beats whose workers store so many subsets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.distributions.order import slowest_first


def storage_bound(starts: Array | None, times: Any, alone: Any) -> Any:
    r"""max_k min{t: Σ_{w among the k slowest} (t - S_w)⁺ / T_w ≥ N C(k, D) / C(N, D)},
    of one draw.

    No exact scheme with D subsets stored has a mean below that of these. S, `[N]`, are
    the start-ups, None if there are none; T, `[N]`, the seconds for a subset, forward
    and backward pass; `alone` is `least_alone`. Without start-ups `times` may be those
    of many draws, `[..., N]`, also of NumPy.

    Data that only k workers store can only be computed by these. However the data are
    placed, k workers that are picked at random store at least N C(k, D) / C(N, D)
    subsets that nobody else has, on average: with r holders of a datum this is C(k, r)
    / C(N, r), which is convex in r. Workers are exchangeable, so the k slowest are as
    good as k random ones. A mean of maxima is at least the maximum of means.
    """
    if starts is None:
        xp = np if isinstance(times, np.ndarray) else jnp
        together = xp.cumsum(1 / slowest_first(times), axis=-1)
        return xp.max(xp.asarray(alone, times.dtype) / together, axis=-1)
    workers = len(times)
    alone = jnp.asarray(alone, times.dtype)
    rank = jnp.zeros(workers, int).at[jnp.argsort(-times)].set(np.arange(workers))
    order = jnp.argsort(starts)

    def least_end(slowest: tuple[Array, Array]) -> Array:
        """When the slowest are done: those that have begun by then share the work."""
        count, data = slowest
        speed = jnp.where(rank[order] < count, 1 / times[order], 0)
        together = jnp.cumsum(speed)
        work = data + jnp.cumsum(speed * starts[order])
        ends = work / jnp.where(together > 0, together, 1)
        return jnp.min(jnp.where(together > 0, ends, jnp.inf))

    # One set after the other: all together would be N² numbers for each draw.
    ends = jax.lax.map(least_end, (jnp.arange(workers) + 1, alone))
    return jnp.max(jnp.where(alone > 0, ends, 0))
