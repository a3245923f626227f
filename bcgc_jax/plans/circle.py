r"""Workers on a circle: worker w of N stores the subsets w, w+1, …, w+D-1, and the first to do one counts.

What a worker has spent after each task, when the last block is there, and the chance that a subset is missed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


@functools.partial(jax.jit, static_argnames="stored")
def cycles_of_tasks(
    sizes: Array, turn: Array, block: ArrayLike, stored: int, setup: ArrayLike = 0.0, chain: ArrayLike = 0.0
) -> Array:
    """C, cycles at the end of each task in coordinates, `[D, B]`; inf for what is not done.

    Task k computes `block[k]` of a worker's subset `turn[k]`, of `stored` ones; beyond the last task -1. A
    subset pays `setup` with its first task, and the `chain` once for each coordinate.
    """
    block = jnp.asarray(block)
    there, place, end = block >= 0, np.arange(block.size), jnp.cumsum(sizes)
    task = jnp.where(there, turn, stored), block  # subsets beyond the last are dropped
    order = jnp.full((stored, sizes.size), block.size).at[task].set(place, mode="drop")
    earlier = order[:, None] < order[:, :, None]  # of blocks b', for b of the same subset, [D, b, b']
    carried = jnp.max(jnp.where(earlier, end, 0), axis=2)
    cost = sizes + jnp.where(jnp.any(earlier, axis=2), 0, setup) + chain * jnp.maximum(end - carried, 0)
    done = jnp.cumsum(jnp.where(there, cost[task], 0))
    return jnp.full(order.shape, jnp.inf, done.dtype).at[task].set(done, mode="drop")


def schedule_runtime(
    cycles: Array, times: Array, starts: Array | None = None, num_workers: ArrayLike | None = None
) -> Array:
    """τ in units of κ, `[K]`, of cycle times and start-ups (units of κ) around the circle, `[K, N]`.

    Differentiable where no tasks tie. Workers from `num_workers` on do not count.

    >>> cycles = cycles_of_tasks(jnp.array([10.0]), jnp.array([0, 1]), jnp.array([0, 0]), stored=2)
    >>> schedule_runtime(cycles, jnp.array([[1.0, 5.0]])).tolist()  # the fast one does both
    [20.0]
    """
    workers = jnp.asarray(times.shape[1] if num_workers is None else num_workers)
    starts = jnp.zeros_like(times) if starts is None else starts
    worker, subset, block = _critical(*jax.lax.stop_gradient((cycles, times, starts)), workers)
    row = np.arange(len(times))
    return starts[row, worker] + times[row, worker] * cycles[subset, block]


def _critical(cycles: Array, times: Array, starts: Array, workers: Array) -> tuple[Array, Array, Array]:
    """Who finishes last what is needed: worker, and subset and block of the task; `[K]` each."""
    depth, num_blocks = cycles.shape
    place, row = np.arange(times.shape[1]), np.arange(len(times))
    best = soonest(cycles, times, starts, workers)
    # A block without tasks is none.
    counts = (place < workers)[:, None] & jnp.isfinite(jnp.min(cycles, axis=0))
    flat = jnp.where(counts, best, -jnp.inf).reshape(len(times), -1)
    last = jnp.argmax(flat, axis=1)
    which, block = last // num_blocks, last % num_blocks
    worker = (which[:, None] - np.arange(depth)) % workers
    done = jnp.take_along_axis(starts, worker, 1) + jnp.take_along_axis(times, worker, 1) * cycles[:, block].T
    subset = jnp.argmin(done, axis=1)
    return worker[row, subset], subset, block


def soonest(cycles: Array, times: Array, starts: Array, workers: Array) -> Array:
    """When each subset of each block has first been finished, in units of κ, `[K, N, B]`."""
    place = np.arange(times.shape[1])

    def sooner(best: Array, delta: Array) -> tuple[Array, None]:
        worker = (place - delta) % workers
        done = starts[:, worker, None] + times[:, worker, None] * cycles[delta]
        return jnp.minimum(best, done), None

    never = jnp.full((*times.shape, cycles.shape[1]), jnp.inf, times.dtype)
    return jax.lax.scan(sooner, never, jnp.arange(len(cycles)))[0]


def soonest_of(finish: Any, turn: np.ndarray, block: np.ndarray) -> Any:
    """When each subset of each block is there, `[..., B, N]`, from when tasks are done, `[..., K, N]`.

    NumPy in, NumPy out.
    """
    known, workers = isinstance(finish, np.ndarray), finish.shape[-1]
    xp = np if known else jnp
    shape = (*finish.shape[:-2], int(block.max()) + 1, workers)
    worker = (np.arange(workers) - turn[:, None]) % workers
    own = xp.take_along_axis(finish, worker.reshape((1,) * (finish.ndim - 2) + worker.shape), axis=-1)
    if not known:
        return jnp.full(shape, jnp.inf, finish.dtype).at[..., block, :].min(own)
    found = np.full(shape, np.inf)
    for task, b in enumerate(block):
        np.minimum(found[..., b, :], own[..., task, :], out=found[..., b, :])
    return found


def uncovered(late: Array, num_workers: ArrayLike, size: int) -> Array:
    """P(some subset is done by nobody), `[...]`, from P(r ≤ δ) for δ = 0…D-1 < N ≤ `size`, `[..., D]`."""
    workers = jnp.asarray(num_workers, int)
    missed = jnp.concatenate([jnp.ones_like(late[..., :1]), jnp.cumprod(late, axis=-1)], axis=-1)

    def step(cover: Array, _: None) -> tuple[Array, Array]:
        """P(no miss yet, and the cover is at most 0…D-1) after one more worker; P(the first miss is now)."""
        reached = cover * late
        miss = reached[..., 0]
        reached = jnp.concatenate([reached[..., 1:], cover[..., -1:]], axis=-1)
        return jnp.maximum(reached - miss[..., None], 0), miss

    _, first_miss = jax.lax.scan(step, jnp.ones_like(late), None, length=size)
    length = np.arange(1, size + 1)
    again = jnp.moveaxis(jnp.take(missed, jnp.clip(workers - length, 0, late.shape[-1]), axis=-1), -1, 0)
    weight = jnp.where(length <= workers, length, 0).astype(late.dtype)
    return jnp.sum(weight.reshape(-1, *(1,) * (late.ndim - 1)) * first_miss * again, axis=0)
