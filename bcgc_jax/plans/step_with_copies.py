"""Work sharing where a step ends with its last chunk, by the rules of `Ledger` and
`Paces`.

A master adds the workers' sums. Whoever is busy then joins the next step late. So it
pays to compute a second copy of what a slow worker has begun, and of what a worker
keeps that is overdue.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.plans.shared_step import expected_pace, neediest
from bcgc_jax.steps.paces import PATIENCE, WORTH
from bcgc_jax.steps.placement import ChunkTables

# Times that differ by so many roundings are the same: compilers round a product and a
# sum once or twice.
_ROUNDINGS = 64


class StepEnd(NamedTuple):
    """How a step has ended.

    Attributes:
      time: when its last chunk has ended.
      busy: until when each worker computes, or starts up, `[N]`.
      overdue: who is late and not heard of since, `[N]`.
    """

    time: Array
    busy: Array
    overdue: Array


class _State(NamedTuple):
    """A step: chunks `[M + 1]`, workers `[N]`; no chunk is number M, nobody is number
    N.
    """

    now: Array
    open: Array  # nobody has begun it
    keeper: Array  # whose sum it is in
    pace: Array  # seconds for a unit of size of the last chunk, 0 before there is one
    taken: Array  # seconds, of all chunks that are done
    done: Array  # their size
    running: Array  # chunk
    begun: Array
    until: Array
    free: Array
    asks: Array  # free workers that have not been served at this time
    overdue: Array
    patience: Array


def step_with_copies(
    tables: ChunkTables,
    starts: Array,
    times: Array,
    round_trip: Array | float = 0.0,
    lengths: Array | None = None,
    overdue: Array | None = None,
) -> StepEnd:
    """One step of `shared_runtime`'s arguments.

    What a chunk takes is its length times its worker's time: `lengths` are `[M]`, or
    `[N, M]` where they are not the same for each worker; the sizes by default.
    `overdue` since the step before are `[N]`. Of workers that are free at the same time
    the first by number is served first.
    """
    tables = ChunkTables(*map(jnp.asarray, tables))
    lengths = jnp.asarray(tables.size if lengths is None else lengths)
    workers = len(tables.stored)
    chunks = len(tables.size) - 1
    nothing = jnp.zeros(workers, times.dtype)
    nobody = jnp.zeros(workers, bool)
    first = _State(
        now=jnp.zeros((), times.dtype),
        open=jnp.arange(chunks + 1) < chunks,
        keeper=jnp.full(chunks + 1, workers),
        pace=nothing,
        taken=nothing,
        done=jnp.zeros(workers, tables.size.dtype),
        running=jnp.full(workers, chunks),
        begun=nothing,
        until=starts.astype(times.dtype),
        free=nobody,
        asks=nobody,
        overdue=nobody if overdue is None else overdue,
        patience=jnp.asarray(PATIENCE, times.dtype),
    )

    def event(at: _State) -> _State:
        at = _ended(tables, _later(tables, at))
        at, worker, chunk = _served(tables, at)
        seconds = round_trip + _length_of(lengths, worker, chunk) * times[worker]
        return _begun(at, worker, chunk, seconds)

    def goes_on(at: _State) -> Array:
        return (~_complete(at) | _any_ends(at)) & (at.now < jnp.inf)

    end = jax.lax.while_loop(goes_on, event, first)
    return StepEnd(end.now, jnp.where(end.free, end.now, end.until), end.overdue)


def _length_of(lengths: Array, worker: Array, chunk: Array) -> Array:
    if lengths.ndim == 1:
        return lengths[chunk]
    return lengths[worker, chunk]


def _complete(at: _State) -> Array:
    return jnp.all(at.keeper[:-1] < len(at.free))


def _any_ends(at: _State) -> Array:
    return jnp.any(_reached(at, at.until))


# What happens at a time: chunks end, then free workers are served.


def _later(tables: ChunkTables, at: _State) -> _State:
    """Time goes on to the next end, or until a copy is worth it or a worker is
    overdue.
    """
    own = jnp.where(at.free, _pace_of_copies(tables, at), jnp.inf)
    looks = jnp.append(
        _worth_from(tables, at, own[:, None]), _deadlines(tables, at)[None], axis=0
    )
    look = jnp.min(jnp.where(_reached(at, looks), jnp.inf, looks))
    end = jnp.min(at.until)
    rounding = _ROUNDINGS * jnp.finfo(end.dtype).eps
    # a look when a chunk ends is of no use
    following = jnp.where(look < end * (1 - rounding), look, end)
    goes_on = ~jnp.any(at.asks) & ~_any_ends(at)
    now = jnp.where(goes_on, following, at.now)
    return at._replace(now=now, asks=at.asks | (goes_on & at.free))


def _ended(tables: ChunkTables, at: _State) -> _State:
    """The first worker that ends its chunk now is heard of; those that begin the step
    are free.
    """
    chunks = len(tables.size) - 1
    now = _reached(at, at.until)
    worker, ends = _first_of(now & (at.running < chunks))
    chunk = jnp.where(jnp.any(ends), at.running[worker], chunks)
    at = _kept(tables, at._replace(overdue=at.overdue & ~ends), worker, chunk)
    took = jnp.where(ends, at.now - at.begun, 0)
    size = jnp.where(ends, tables.size[chunk], 0)
    free = ends | (now & (at.running == chunks))
    return at._replace(
        pace=jnp.where(ends, took / jnp.maximum(size, 1), at.pace),
        taken=at.taken + took,
        done=at.done + size,
        running=jnp.where(ends, chunks, at.running),
        until=jnp.where(free, jnp.inf, at.until),
        free=at.free | free,
        asks=at.asks | free,
    )


def _kept(tables: ChunkTables, at: _State, worker: Array, chunk: Array) -> _State:
    """A chunk counts if it is the first.

    An overdue worker's whole sum is void as soon as another one has a chunk of it.
    """
    workers = len(tables.stored)
    chunks = len(tables.size) - 1
    before = at.keeper[chunk]
    late = (chunk < chunks) & jnp.append(at.overdue, False)[before]
    void = late & (at.keeper == before)
    keeps = (
        (jnp.arange(chunks + 1) == chunk)
        & (chunk < chunks)
        & ((before == workers) | late)
    )
    running = jnp.zeros(chunks + 1, bool).at[at.running].set(True)
    return at._replace(
        open=at.open | (void & ~running),
        keeper=jnp.where(keeps, worker, jnp.where(void, workers, at.keeper)),
        patience=jnp.where(late, 2 * at.patience, at.patience),
    )


def _served(tables: ChunkTables, at: _State) -> tuple[_State, Array, Array]:
    """Once all ends of this time are known, the next free worker and its chunk, M for
    none.
    """
    workers = len(tables.stored)
    chunks = len(tables.size) - 1
    can = ~_any_ends(at) & ~_complete(at)
    at = at._replace(overdue=at.overdue | (can & _reached(at, _deadlines(tables, at))))
    copies = _copies(tables, at)
    worker, comes = _first_of(
        can & at.asks & (_may_be_given(tables, at, copies) | at.overdue)
    )
    # One that was overdue is heard of before it is served.
    served = comes & ~at.overdue
    chunk = jnp.where(jnp.any(served), _choice(tables, at, copies, worker), chunks)
    waits = jnp.any(comes) & (jnp.arange(workers) >= worker) & ~served
    return (
        at._replace(asks=at.asks & (waits | ~can), overdue=at.overdue & ~comes),
        worker,
        chunk,
    )


def _begun(at: _State, worker: Array, chunk: Array, seconds: Array) -> _State:
    begins = (jnp.arange(len(at.free)) == worker) & (chunk < len(at.open) - 1)
    return at._replace(
        open=at.open & (jnp.arange(len(at.open)) != chunk),
        running=jnp.where(begins, chunk, at.running),
        begun=jnp.where(begins, at.now, at.begun),
        until=jnp.where(begins, at.now + seconds, at.until),
        free=at.free & ~begins,
    )


def _first_of(workers: Array) -> tuple[Array, Array]:
    """Of some workers the first by number, and where it is, `[N]`; nowhere if there are
    none.
    """
    first = jnp.argmax(workers)
    return first, workers & (jnp.arange(len(workers)) == first)


# Which chunk is next: the rules of `Ledger`.


class _Copies(NamedTuple):
    """What can be copied: chunks that run, that only overdue workers run, and kept
    ones.
    """

    running: Array
    given_up: Array
    kept: Array


def _copies(tables: ChunkTables, at: _State) -> _Copies:
    workers = len(tables.stored)
    answer = jnp.append(~at.overdue, False)
    answering = jnp.zeros_like(at.open).at[at.running].max(~at.overdue)
    running = ~at.open & (at.keeper == workers) & (tables.size > 0)
    # All of the sum must be computed again.
    others = jnp.any(answer[tables.holders], axis=1)
    whole = jnp.ones(workers + 1, bool).at[at.keeper].min(others)
    late = jnp.append(at.overdue, False)
    return _Copies(
        running, running & ~answering, (late & whole)[at.keeper] & ~answering
    )


def _may_be_given(tables: ChunkTables, at: _State, copies: _Copies) -> Array:
    """Of each free worker whether there is something; False only where there is
    nothing, `[N]`.
    """
    # worth it for the fastest, or for nobody
    own = jnp.min(jnp.where(at.asks, _pace_of_copies(tables, at), jnp.inf))
    worth = copies.running & ~_hopeful(tables, at, own)
    some = at.open | worth | copies.given_up | copies.kept
    return jnp.any(some[tables.stored], axis=1)


def _choice(tables: ChunkTables, at: _State, copies: _Copies, worker: Array) -> Array:
    """The chunk for a free worker, M for none."""
    chunks = len(tables.size) - 1
    mine = tables.stored[worker]
    pace = _pace_now(tables, at)
    left = jnp.sum(jnp.where(at.open, tables.size, 0)[tables.stored], axis=1)
    need = jnp.where(at.overdue, jnp.inf, left * pace)
    fresh = neediest(tables, at.open, need, worker)
    ends = jnp.full(chunks + 1, jnp.inf).at[at.running].min(_expected_end(tables, at))
    own = _pace_of_copies(tables, at)[worker]
    worth = (copies.running & ~_hopeful(tables, at, own))[mine]
    latest = jnp.max(jnp.where(worth, ends[mine], -jnp.inf))
    copy = jnp.min(jnp.where(worth & (ends[mine] == latest), mine, chunks))
    given_up = _first_in(mine, copies.given_up, chunks)
    kept = _first_in(mine, copies.kept, chunks)
    chunk = fresh
    for following in (copy, given_up, kept):
        chunk = jnp.where(chunk < chunks, chunk, following)
    return chunk


def _first_in(mine: Array, some: Array, none: int) -> Array:
    """Of a worker's chunks the first that is one of these."""
    return jnp.where(jnp.any(some[mine]), mine[jnp.argmax(some[mine])], none)


# What is expected: the rules of `Paces`.


def _pace_now(tables: ChunkTables, at: _State) -> Array:
    return expected_pace(at.pace, tables.size[at.running], at.begun, at.now)


def _pace_of_copies(tables: ChunkTables, at: _State) -> Array:
    """Nobody copies before anybody has done a chunk."""
    known = jnp.any(at.pace > 0)
    return jnp.where(known, _pace_now(tables, at), jnp.inf)


def _expected_end(tables: ChunkTables, at: _State) -> Array:
    """Of running chunks, `[N]`: if one is unknown or late, as much is to come as has
    passed.
    """
    by_pace = at.begun + at.pace * tables.size[at.running]
    passed = at.now - at.begun
    return jnp.where((at.pace > 0) & (by_pace > at.now), by_pace, at.now + passed)


def _hopeful(tables: ChunkTables, at: _State, own: Array) -> Array:
    """The chunks of which a copy, by who takes `own` for a unit, would not end before
    the first.
    """
    hopeful = ~_reached(at, _worth_from(tables, at, own))
    return jnp.zeros_like(at.open).at[at.running].max(hopeful)


def _worth_from(tables: ChunkTables, at: _State, own: Array) -> Array:
    """From when on a copy of what each runs is worth it, by who takes `own` for a
    unit.
    """
    size = tables.size[at.running]
    needed = WORTH * own * jnp.maximum(size, 1)
    expected = at.pace * size
    long = at.begun + expected - at.now > needed
    worth = jnp.where(long, at.now, at.begun + jnp.maximum(expected, needed))
    return jnp.where(size > 0, worth, jnp.inf)


def _deadlines(tables: ChunkTables, at: _State) -> Array:
    """When each worker is overdue, `[N]`."""
    size = tables.size[at.running]
    mean = jnp.sum(at.taken) / jnp.maximum(jnp.sum(at.done), 1)
    own = at.taken / jnp.maximum(at.done, 1)
    ends = at.begun + at.patience * jnp.maximum(own, mean) * size
    return jnp.where((size > 0) & jnp.any(at.done > 0), ends, jnp.inf)


def _reached(at: _State, when: Array) -> Array:
    return when <= at.now * (1 + _ROUNDINGS * jnp.finfo(at.now.dtype).eps)
