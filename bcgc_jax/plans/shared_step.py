"""Simulate dynamic load balancing of one step: free workers take the most urgent chunk.

A chunk is a forward and a backward pass over a microbatch. A free worker takes one of
the chunks that it stores and that no worker has begun. It takes the chunk c with the
greatest size_c min_b r_b e_b, where b are the other workers that store c. Let r_b be
the size of all unbegun chunks that b stores. The pace e_b is the expected time of b per
unit of size. It is the pace of b's last chunk, or of the running chunk so far if that
is slower. Before b's first chunk ends, it is the mean pace of the other workers. Before
any chunk ends, all workers have the same pace. Of equally urgent chunks, a worker takes
the largest, then one of its own subset, then the first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import check
from bcgc_jax.balancing.placement import ChunkTables


class _State(NamedTuple):
    """Hold a step's state: open chunks, `[M + 1]`, and numbers per worker, `[N]`."""

    open: Array
    left: Array
    pace: Array  # of the last finished chunk
    running: Array  # size of the running chunk, or 0
    begun: Array
    until: Array
    end: Array  # end of the latest chunk so far


def shared_runtime(
    tables: ChunkTables,
    starts: Array,
    times: Array,
    round_trip: Array | float = 0.0,
    turns: Array | None = None,
) -> Array:
    """Simulate a step of dynamic load balancing, and return when its last chunk ends.

    No chunk is interrupted or computed twice. Before each chunk there is a
    `round_trip`.

    Args:
      tables: The chunks that each worker stores.
      starts: Time at which each worker begins, finite, `[N]`; `inf` for padding.
      times: Seconds per unit of size for each worker, `[N]`.
      round_trip: Request latency, in seconds. Defaults to 0.
      turns: Number of requests, if the tables are padded. Defaults to one request per
        chunk and one last request per worker.

    Raises:
      ValueError: If the tables are not padded and a start is negative, infinite or NaN.
        Traced starts cannot be checked.
    """
    if turns is None:
        check("starts", starts, ">= 0")
    workers = len(tables.stored)
    dtype = times.dtype
    tables = ChunkTables(*map(jnp.asarray, tables))
    nothing = jnp.zeros(workers, dtype)
    first = _State(
        open=jnp.asarray(tables.size) > 0,
        left=jnp.sum(tables.size[tables.stored], axis=1),
        pace=nothing,
        running=jnp.zeros(workers, tables.size.dtype),
        begun=nothing,
        until=starts.astype(dtype),
        end=jnp.zeros((), dtype),
    )

    def serve(_: int, state: _State) -> _State:
        """Serve the next free worker."""
        now = jnp.min(state.until)
        worker = _first_of(state.until == now)
        last, pace = _paces(state, now)
        chunk = neediest(tables, state.open, state.left * pace, worker)
        has_chunk = chunk < len(tables.size) - 1
        until = now + round_trip + tables.size[chunk] * times[worker]
        return _State(
            open=state.open.at[chunk].set(False),
            left=state.left.at[tables.holders[chunk]].add(
                -tables.size[chunk], mode="drop"
            ),
            pace=state.pace.at[worker].set(last[worker]),
            running=state.running.at[worker].set(tables.size[chunk]),
            begun=state.begun.at[worker].set(now),
            until=state.until.at[worker].set(jnp.where(has_chunk, until, jnp.inf)),
            end=jnp.where(has_chunk, jnp.maximum(state.end, until), state.end),
        )

    every_turn: Any = turns
    if turns is None:
        every_turn = len(tables.size) - 1 + workers
    return jax.lax.fori_loop(0, every_turn, serve, first).end


def padded_tables(tables: ChunkTables, max_workers: int) -> ChunkTables:
    """Pad the tables to `max_workers`, so that all numbers of workers share a program.

    >>> from bcgc_jax.balancing.placement import chunk_tables, spread
    >>> tables = chunk_tables(spread(3, 2, 1), (1,))
    >>> tables.stored.tolist(), padded_tables(tables, 4).stored.tolist()
    ([[0, 2], [1, 0], [2, 1]], [[0, 2], [1, 0], [2, 1], [4, 4]])
    """
    workers = len(tables.stored)
    chunks = len(tables.size) - 1
    room = max_workers * chunks // workers
    added = [(0, max_workers - workers), (0, 0)]
    added_chunks = [(0, room - chunks), (0, 0)]
    stored = np.where(tables.stored == chunks, room, tables.stored)
    holders = np.where(tables.holders == workers, max_workers, tables.holders)
    return ChunkTables(
        size=np.pad(tables.size, added_chunks[0]),
        stored=np.pad(stored, added, constant_values=room),
        holders=np.pad(holders, added_chunks, constant_values=max_workers),
    )


@jax.jit
def padded_runtimes(
    tables: ChunkTables, turns: Array, starts: Array, times: Array, round_trip: Array
) -> Array:
    """Compute `shared_runtime` by padded tables, for samples, `[K, max_workers]`."""

    def runtime(starts: Array, times: Array) -> Array:
        return shared_runtime(tables, starts, times, round_trip, turns)

    return jax.vmap(runtime)(starts, times)


def all_data_runtime(
    sizes: tuple[int, ...], starts: Array, times: Array, round_trip: Array | float = 0.0
) -> Array:
    """Simulate `shared_runtime` if each worker stores all data.

    A free worker takes the largest remaining chunk, so no tables are needed. `sizes`
    are the sizes of a subset's chunks.
    """
    in_order = jnp.asarray(sorted(sizes * len(times), reverse=True))

    def give(
        until_and_last: tuple[Array, Array], size: Array
    ) -> tuple[tuple[Array, Array], None]:
        until, last = until_and_last
        worker = _first_of(until == jnp.min(until))
        end = until[worker] + round_trip + size * times[worker]
        return (until.at[worker].set(end), jnp.maximum(last, end)), None

    first = starts.astype(times.dtype), jnp.zeros((), times.dtype)
    return jax.lax.scan(give, first, in_order)[0][1]


def _first_of(mask: Array) -> Array:
    """Return the first true index. For 256 workers, `argmax` takes 50 % longer."""
    return jnp.min(
        jnp.where(mask, jnp.arange(len(mask), dtype=np.int32), len(mask) - 1)
    )


def _paces(state: _State, now: Array) -> tuple[Array, Array]:
    """Return the pace of each worker's last chunk, or 0, and its expected pace."""
    ended = state.until == now
    ended_pace = (now - state.begun) / jnp.where(state.running > 0, state.running, 1)
    last = jnp.where(ended & (state.running > 0), ended_pace, state.pace)
    return last, expected_pace(
        last, jnp.where(ended, 0, state.running), state.begun, now
    )


def neediest(tables: ChunkTables, is_open: Array, need: Array, worker: Array) -> Array:
    """Return the most urgent chunk for a free worker, or M if no chunk is left for it.

    Args:
      tables: The chunks that each worker stores.
      is_open: Mask of the chunks that no worker has begun, `[M + 1]`.
      need: r e: time that each worker would need for all its unbegun chunks, `[N]`.
      worker: The free worker.
    """
    own_chunks = tables.stored[worker]
    can = is_open[own_chunks]
    holder_need = jnp.append(need, jnp.inf).at[worker].set(jnp.inf)
    comes_first = jnp.min(holder_need[tables.holders[own_chunks]], axis=-1)
    size = tables.size[own_chunks]
    key = jnp.where(can, size * comes_first, -1.0)
    of_neediest = jnp.where(key == jnp.max(key), size, -1)
    place = _first_of(of_neediest == jnp.max(of_neediest))
    return jnp.where(jnp.any(can), own_chunks[place], len(tables.size) - 1)


def expected_pace(last: Array, running: Array, begun: Array, now: Array) -> Array:
    """Return the expected pace e, in seconds per unit of size, `[N]`.

    It is 1 if no pace is known.

    Args:
      last: Pace of each worker's last chunk, `[N]`; 0 before the first one ends.
      running: Size of the running chunk, `[N]`; 0 for an idle worker.
      begun: Time at which the running chunk began, `[N]`.
      now: Current time.
    """
    timed = last > 0
    count = jnp.sum(timed)
    mean = jnp.sum(last) / jnp.maximum(count, 1)
    so_far = (now - begun) / jnp.where(running > 0, running, 1)
    expected = jnp.where(timed, last, mean)
    expected = jnp.where(running > 0, jnp.maximum(expected, so_far), expected)
    return jnp.where(count > 0, expected, 1.0)
