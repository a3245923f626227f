r"""Work sharing: a step's chunks are handed out to free workers that store them, neediest first.

A chunk is one whole forward and backward pass of a microbatch. When a worker is free it takes, of the largest
chunks that it stores and nobody has begun, the one whose other holders would come to it last: the one with
the greatest min over holders b of r_b e_b. r_b is the size of what b stores and nobody has begun, e_b the
seconds that b takes for a unit of size: by its last chunk, or by what the running one has taken so far, if
that is more; before its first chunk the mean of the others. Of equal ones it takes its own, then in order.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.plans.storage import Storage

# Of the last chunk of a subset, which is cut once more: small ones level out the end of a step.
_LAST = (2, 1, 1)
UNITS = sum(_LAST)


def chunk_sizes(num_chunks: int, equal: bool = False) -> tuple[int, ...]:
    """Of a subset's chunks, `UNITS` for each of `num_chunks` of equal size, of which the last is cut again.

    >>> chunk_sizes(3), chunk_sizes(3, equal=True)
    ((4, 4, 2, 1, 1), (4, 4, 4))
    """
    return (UNITS,) * num_chunks if equal else (UNITS,) * (num_chunks - 1) + _LAST


class Desk(NamedTuple):
    """Which chunks a worker may be given: static, NumPy. M chunks, of which a worker stores at most S.

    Attributes:
      size: of each chunk, and 0 for none, `[M + 1]`.
      stored: of each worker, its chunks in the order of preference, then M, `[N, S]`.
      others: of these, who else stores them, then N, `[N, S, D - 1]`.
    """

    size: np.ndarray
    stored: np.ndarray
    others: np.ndarray


@functools.cache
def desk_of(storage: Storage, sizes: tuple[int, ...]) -> Desk:
    """For subsets whose chunks have these sizes."""
    workers = len(storage.holders)
    holders = [chunk for subset in storage.holders for chunk in subset]
    size = np.array([*(sizes * workers), 0], np.int32)
    ordered = []
    for w in range(workers):
        mine = [k for k, some in enumerate(holders) if w in some]
        own = [k for k in mine if k // len(sizes) == w]
        ordered.append([*own, *(k for k in mine if k not in own)])
    most, deep = max(map(len, ordered)), max(1, max(map(len, holders)) - 1)
    stored = np.full((workers, most), len(holders), np.int32)
    others = np.full((workers, most, deep), workers, np.int32)
    for worker, own in enumerate(ordered):
        stored[worker, : len(own)] = own
        for place, k in enumerate(own):
            rest = [b for b in holders[k] if b != worker]
            others[worker, place, : len(rest)] = rest
    return Desk(size, stored, others)


class _State(NamedTuple):
    """Of one step: what is open, what each worker does, `[N]`, and when the last chunk has ended."""

    now: Array
    open: Array
    left: Array
    pace: Array
    begun: Array
    running: Array
    until: Array
    free: Array
    last: Array


def shared_runtime(desk: Desk, starts: Array, times: Array, round_trip: Array | float = 0.0) -> Array:
    """When everyone has ended its last chunk, of start-ups and seconds for a unit of size, `[N]` each.

    Everyone ends its chunk, and no chunk is done twice. Before each chunk there is a `round_trip`.
    """
    workers, dtype = len(desk.stored), times.dtype
    if desk.stored.shape[1] == len(desk.size) - 1 and np.all(desk.stored < len(desk.size) - 1):
        return _all_data_runtime(desk, starts, times, round_trip)
    size, stored, others = (jnp.asarray(a) for a in desk)
    nothing = jnp.zeros(workers, dtype)
    first = _State(
        now=jnp.zeros((), dtype),
        open=jnp.asarray(np.arange(len(desk.size)) < len(desk.size) - 1),
        left=jnp.asarray(desk.size[desk.stored].sum(axis=1)),
        pace=nothing,
        begun=nothing,
        running=jnp.zeros(workers, size.dtype),
        until=starts.astype(dtype),
        free=jnp.zeros(workers, bool),
        last=jnp.zeros((), dtype),
    )

    def serve(_: int, at: _State) -> _State:
        at = _next_ends(at)
        worker = jnp.argmax(at.free)
        mine = stored[worker]
        can = at.open[mine]
        largest = jnp.max(jnp.where(can, size[mine], 0))
        need = jnp.append(at.left * _expected_pace(at), jnp.inf)
        neediest = jnp.min(need[others[worker]], axis=-1)
        place = jnp.argmax(jnp.where(can & (size[mine] == largest), neediest, -1.0))
        chunk = jnp.where(largest > 0, mine[place], len(desk.size) - 1)
        until = jnp.where(largest > 0, at.now + round_trip + largest * times[worker], jnp.inf)
        holders = jnp.append(others[worker, place], worker)
        return at._replace(
            open=at.open.at[chunk].set(False),
            left=at.left.at[holders].add(-largest, mode="drop"),
            begun=at.begun.at[worker].set(at.now),
            running=at.running.at[worker].set(largest),
            until=at.until.at[worker].set(until),
            free=at.free.at[worker].set(False),
            last=jnp.where(largest > 0, jnp.maximum(at.last, until), at.last),
        )

    # Each chunk is begun once, and each worker is sent away once.
    return jax.lax.fori_loop(0, len(desk.size) - 1 + workers, serve, first).last


def _all_data_runtime(desk: Desk, starts: Array, times: Array, round_trip: Array | float) -> Array:
    """Where all workers store all data, whoever is free takes the largest chunk that is left."""
    largest_first = jnp.asarray(np.sort(desk.size[:-1])[::-1])

    def give(until_and_last: tuple[Array, Array], size: Array) -> tuple[tuple[Array, Array], None]:
        until, last = until_and_last
        worker = jnp.argmin(until)
        end = until[worker] + round_trip + size * times[worker]
        return (until.at[worker].set(end), jnp.maximum(last, end)), None

    first = starts.astype(times.dtype), jnp.zeros((), times.dtype)
    return jax.lax.scan(give, first, largest_first)[0][1]


def _next_ends(at: _State) -> _State:
    """Time goes on to the next end of a chunk, where nobody is free."""
    now = jnp.where(jnp.any(at.free), at.now, jnp.min(at.until))
    ended = at.until == now
    taken = (now - at.begun) / jnp.maximum(at.running, 1)
    return at._replace(
        now=now,
        pace=jnp.where(ended & (at.running > 0), taken, at.pace),
        running=jnp.where(ended, 0, at.running),
        until=jnp.where(ended, jnp.inf, at.until),
        free=at.free | ended,
    )


def _expected_pace(at: _State) -> Array:
    """e, seconds for a unit of size, `[N]`; 1 where nothing is known."""
    known = at.pace > 0
    count = jnp.sum(known)
    mean = jnp.where(count > 0, jnp.sum(at.pace) / jnp.maximum(count, 1), 1.0)
    so_far = (at.now - at.begun) / jnp.maximum(at.running, 1)
    expected = jnp.where(known, at.pace, mean)
    return jnp.where(at.running > 0, jnp.maximum(expected, so_far), expected)


def storage_bound(starts: Array, times: Array, max_subsets: int) -> Array:
    r"""Of one draw, `[N]` each: no exact scheme with `max_subsets` subsets stored has a mean below its.

    max_k min{t: Σ_{w among the k slowest} (t - S_w)⁺ / T_w ≥ N C(k, D) / C(N, D)}, with S the start-ups and T
    the seconds for a subset, forward and backward pass.

    Data that only k workers store can only be computed by these. However the data are placed, k workers that
    are picked at random store at least N C(k, D) / C(N, D) subsets that nobody else has, on average: with r
    holders of a datum this is C(k, r) / C(N, r), which is convex in r. Workers are exchangeable, so the k
    slowest are as good as k random ones. A mean of maxima is at least the maximum of means.
    """
    workers = len(times)
    alone = np.array([math.comb(k + 1, max_subsets) for k in range(workers)], float)
    alone *= workers / math.comb(workers, max_subsets)
    slowest_first = jnp.argsort(-times)
    rank = jnp.zeros(workers, int).at[slowest_first].set(np.arange(workers))
    # Of each set in the order of their starts: those that begin before its end share the work.
    order = jnp.argsort(starts)
    speed = jnp.where(rank[order] <= np.arange(workers)[:, None], 1 / times[order], 0)
    together = jnp.cumsum(speed, axis=1)
    work = alone.astype(times.dtype)[:, None] + jnp.cumsum(speed * starts[order], axis=1)
    ends = jnp.where(together > 0, work / jnp.where(together > 0, together, 1), jnp.inf)
    return jnp.max(jnp.where(alone > 0, jnp.min(ends, axis=1), 0))
