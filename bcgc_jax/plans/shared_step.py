r"""Work sharing: a step's chunks are handed out to free workers that store them,
neediest first.

A chunk is one whole forward and backward pass of a microbatch. When a worker is free it
takes, of the chunks c that it stores and nobody has begun, the one whose other holders
b would come to it last, for its size: the one with the greatest size_c min_b r_b e_b.
r_b is the size of what b stores and nobody has begun, e_b the seconds that b takes for
a unit of size: by its last chunk, or by what the running one has taken so far, if that
is more; before its first chunk the mean of the others. Before anybody has done a chunk
all are taken to be alike. Of equal ones it takes the largest, then its own, then in
order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import check
from bcgc_jax.balancing.placement import ChunkTables


class _State(NamedTuple):
    """A step: open chunks, `[M + 1]`, and what workers have done and do, `[N]`."""

    open: Array
    left: Array
    pace: Array  # of the chunk before
    running: Array  # its size, 0 for none
    begun: Array
    until: Array
    end: Array  # of the last chunk so far


def shared_runtime(
    tables: ChunkTables,
    starts: Array,
    times: Array,
    round_trip: Array | float = 0.0,
    turns: Array | None = None,
) -> Array:
    """When everyone has ended its last chunk; start-ups and seconds for a unit of size
    are `[N]`.

    Everyone ends its chunk, and no chunk is done twice. Before each chunk there is a
    `round_trip`.

    Args:
      tables: what each worker may be given.
      starts: when each worker begins, a finite time; of padding never, `inf`.
      times: what each worker takes for a unit of size.
      round_trip: seconds.
      turns: how often a worker is served, of padded tables; else each chunk is begun
        once, and each worker is sent away once.

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
        """The next worker that is free."""
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
    """The tables with room for `max_workers`, so that all numbers share a program.

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
    """`shared_runtime` by padded tables, `[K]`, of draws, `[K, max_workers]`."""

    def runtime(starts: Array, times: Array) -> Array:
        return shared_runtime(tables, starts, times, round_trip, turns)

    return jax.vmap(runtime)(starts, times)


def all_data_runtime(
    sizes: tuple[int, ...], starts: Array, times: Array, round_trip: Array | float = 0.0
) -> Array:
    """`shared_runtime` where all store all data: who is free takes the largest chunk
    that is left.

    No tables are needed: `sizes` are those of a subset's chunks.
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
    """The first that is true; with `argmax` a CPU takes 50 % longer for 256 workers."""
    return jnp.min(
        jnp.where(mask, jnp.arange(len(mask), dtype=np.int32), len(mask) - 1)
    )


def _paces(state: _State, now: Array) -> tuple[Array, Array]:
    """The last chunk's pace, 0 before there is one, and the expected one, `[N]`."""
    ended = state.until == now
    ended_pace = (now - state.begun) / jnp.where(state.running > 0, state.running, 1)
    last = jnp.where(ended & (state.running > 0), ended_pace, state.pace)
    return last, expected_pace(
        last, jnp.where(ended, 0, state.running), state.begun, now
    )


def neediest(tables: ChunkTables, is_open: Array, need: Array, worker: Array) -> Array:
    """The chunk for a free worker, M if there is none.

    Args:
      tables: what each worker may be given.
      is_open: the chunks that nobody has begun, `[M + 1]`.
      need: r e, when each worker would have done all that is left of what it stores,
        `[N]`.
      worker: who is free.
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
    """e, seconds for a unit of size, `[N]`; 1 where nothing is known.

    Args:
      last: of each worker's last chunk, 0 before there is one.
      running: the size of the chunk that it computes, 0 if it computes none.
      begun: since when.
      now: the time.
    """
    timed = last > 0
    count = jnp.sum(timed)
    mean = jnp.sum(last) / jnp.maximum(count, 1)
    so_far = (now - begun) / jnp.where(running > 0, running, 1)
    expected = jnp.where(timed, last, mean)
    expected = jnp.where(running > 0, jnp.maximum(expected, so_far), expected)
    return jnp.where(count > 0, expected, 1.0)
