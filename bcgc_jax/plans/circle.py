"""Model workers on a circle: worker w of N stores the subsets w, w+1, …, w+D-1.

A subset is complete when one worker has finished it. This module computes when the last
subset is complete, which worker sends each subset, and the probability that a subset is
missing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def circle_runtime(
    work: Array,
    times: Array,
    starts: Array | None = None,
    num_workers: ArrayLike | None = None,
) -> Array:
    """Compute τ, `[...]`, from cycle and start-up times around the circle, `[..., N]`.

    τ and the start-up times are in units of κ. `work` is a worker's load after each of
    its subsets, `[D]`. Workers from `num_workers` on are padding. The result is
    differentiable if no two workers tie.

    >>> circle_runtime(
    ...     jnp.array([10.0, 20.0]), jnp.array([[1.0, 5.0]])
    ... ).tolist()  # the faster worker computes both subsets
    [20.0]
    """
    size = times.shape[-1]
    workers = size if num_workers is None else num_workers
    best, _ = _soonest(
        work, times, jnp.zeros_like(times) if starts is None else starts, workers
    )
    exists = np.arange(size) < jnp.asarray(workers)
    return jnp.max(jnp.where(exists, best, -jnp.inf), axis=-1)


def sent_on_circle(
    work: Array, times: Array, starts: Array, num_workers: ArrayLike
) -> Array:
    """Compute the mean communication load per worker, `[K]`, in L.

    Only a worker that is the first to finish some subset sends a message.
    """
    workers = jnp.asarray(num_workers)
    draws, size = times.shape
    _, first = _soonest(work, times, starts, workers)
    first = jnp.where(np.arange(size) < workers, first, size)
    asked = (
        jnp.zeros(times.shape, bool)
        .at[np.arange(draws)[:, None], first]
        .set(True, mode="drop")
    )
    return jnp.sum(asked, axis=1, dtype=times.dtype) / workers.astype(times.dtype)


def _soonest(
    work: Array, times: Array, starts: Array, num_workers: ArrayLike
) -> tuple[Array, Array]:
    """Compute when each subset is first finished, and by which worker, `[..., N]`."""
    place = np.arange(times.shape[-1])

    def sooner(
        so_far: tuple[Array, Array], turn: Array
    ) -> tuple[tuple[Array, Array], None]:
        best, first = so_far
        worker = (place - turn) % jnp.asarray(num_workers)
        done = starts[..., worker] + times[..., worker] * work[turn]
        return (jnp.minimum(best, done), jnp.where(done < best, worker, first)), None

    no_finish = jnp.full_like(times, jnp.inf), jnp.zeros(times.shape, int)
    return jax.lax.scan(sooner, no_finish, jnp.arange(len(work)))[0]


def soonest_of(finish: Any) -> Any:
    """Compute when each subset is complete, from ends of tasks, `[..., D, N]`."""
    xp = np if isinstance(finish, np.ndarray) else jnp
    of_subset = [
        xp.roll(finish[..., k, :], k, axis=-1) for k in range(finish.shape[-2])
    ]
    return xp.stack(of_subset).min(axis=0)


def uncovered(late: Array, num_workers: ArrayLike, size: int) -> Array:
    """Compute the probability that a subset is missing, `[...]`.

    `late` is P(r ≤ δ) for δ = 0 … D-1, where r is the number of subsets that a worker
    has finished. D-1 < N ≤ `size`.
    """
    workers = jnp.asarray(num_workers, int)
    missed = jnp.concatenate(
        [jnp.ones_like(late[..., :1]), jnp.cumprod(late, axis=-1)], axis=-1
    )

    def step(cover: Array, _: None) -> tuple[Array, Array]:
        """Add a worker to P(no miss yet, cover ≤ s), and return P(first miss now)."""
        reached = cover * late
        miss = reached[..., 0]
        reached = jnp.concatenate([reached[..., 1:], cover[..., -1:]], axis=-1)
        return jnp.maximum(reached - miss[..., None], 0), miss

    _, first_miss = jax.lax.scan(step, jnp.ones_like(late), None, length=size)
    length = np.arange(1, size + 1)
    tail = jnp.clip(workers - length, 0, late.shape[-1])
    tail_missed = jnp.moveaxis(jnp.take(missed, tail, axis=-1), -1, 0)
    weight = jnp.where(length <= workers, length, 0).astype(late.dtype)
    return jnp.sum(
        weight.reshape(-1, *(1,) * (late.ndim - 1)) * first_miss * tail_missed, axis=0
    )
