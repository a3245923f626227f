"""Work sharing where a step ends with its last chunk, by the rules of `Ledger` and
`Paces`.

A master adds the workers' sums. Whoever is busy then joins the next step late. So it
pays to compute a second copy of what a slow worker has begun, and of what a worker
keeps that is overdue.

A worker starts up, asks, and runs a chunk or rests. An event has four phases:

1. `_later`: if nobody asks and nothing ends, time goes on: to the next end, or before
   it to when a copy begins to be worth it or a worker is overdue. Who rests asks again.
2. `_heard`: of the workers that end a chunk now the first is heard of.
3. `_served`: once all of them have been heard of, the first that asks and can be given
   a chunk has its turn. The neediest open chunk comes first. Without one it copies a
   chunk: what is worth it, else what only overdue workers run, else what they keep.
4. `_begun`: it begins this chunk.
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
# What a worker does. It is free while it asks or rests.
_STARTS, _RUNS, _ASKS, _RESTS = range(4)


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


class _Runs(NamedTuple):
    """What workers run, `[N]`."""

    chunk: Array  # M for none
    size: Array  # 0 for none
    begun: Array
    until: Array  # also of a start-up; infinity for who is free


class _Done(NamedTuple):
    """What workers have done in this step, `[N]`."""

    pace: Array  # seconds for a unit of size of the last chunk; 0 before there is one
    seconds: Array  # of all chunks
    size: Array  # of all chunks


class _State(NamedTuple):
    """A step at a time: chunks are `[M + 1]`, the last of them none, workers `[N]`."""

    now: Array
    is_open: Array  # chunks that nobody has begun
    keeper: Array  # of each chunk the worker whose sum it is in, N for nobody
    status: Array  # of workers
    runs: _Runs
    done: _Done
    overdue: Array  # workers that are late and not heard of since
    patience: Array

    @property
    def is_kept(self) -> Array:
        return self.keeper < len(self.status)

    @property
    def is_complete(self) -> Array:
        return jnp.all(self.is_kept[:-1])

    @property
    def is_free(self) -> Array:
        return (self.status == _ASKS) | (self.status == _RESTS)

    @property
    def ends(self) -> Array:
        """The workers whose chunk or start-up ends now."""
        return self.has_come(self.runs.until)

    def has_come(self, time: Array) -> Array:
        rounding = _ROUNDINGS * jnp.finfo(self.now.dtype).eps
        return time <= self.now * (1 + rounding)


class _Turn(NamedTuple):
    """A worker and its next chunk."""

    worker: Array
    chunk: Array
    begins: Array  # whether each worker begins it, `[N]`; nobody may


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

    def event(state: _State) -> _State:
        state = _heard(_later(state))
        state, turn = _served(tables, state)
        length = _length_of(lengths, turn.worker, turn.chunk)
        seconds = round_trip + length * times[turn.worker]
        return _begun(tables, state, turn, seconds)

    def goes_on(state: _State) -> Array:
        return (~state.is_complete | jnp.any(state.ends)) & (state.now < jnp.inf)

    first = _first_state(tables, starts.astype(times.dtype), overdue)
    end = jax.lax.while_loop(goes_on, event, first)
    busy = jnp.where(end.is_free, end.now, end.runs.until)
    return StepEnd(end.now, busy, end.overdue)


def _first_state(tables: ChunkTables, starts: Array, overdue: Array | None) -> _State:
    """Everyone starts up."""
    workers = len(tables.stored)
    chunks = len(tables.size) - 1
    no_time = jnp.zeros(workers, starts.dtype)
    no_size = jnp.zeros(workers, tables.size.dtype)
    if overdue is None:
        overdue = jnp.zeros(workers, bool)
    return _State(
        now=jnp.zeros((), starts.dtype),
        is_open=jnp.arange(chunks + 1) < chunks,
        keeper=jnp.full(chunks + 1, workers),
        status=jnp.full(workers, _STARTS),
        runs=_Runs(jnp.full(workers, chunks), no_size, no_time, starts),
        done=_Done(no_time, no_time, no_size),
        overdue=overdue,
        patience=jnp.asarray(PATIENCE, starts.dtype),
    )


def _length_of(lengths: Array, worker: Array, chunk: Array) -> Array:
    if lengths.ndim == 1:
        return lengths[chunk]
    return lengths[worker, chunk]


# The phases of an event.


def _later(state: _State) -> _State:
    """The next end, or before it the first look that may change what is handed out."""
    pace = jnp.where(state.is_free, _pace_of_copies(state), jnp.inf)
    looks = jnp.append(
        _worth_from(state, pace[:, None]), _deadlines(state)[None], axis=0
    )
    look = jnp.min(jnp.where(state.has_come(looks), jnp.inf, looks))
    end = jnp.min(state.runs.until)
    rounding = _ROUNDINGS * jnp.finfo(end.dtype).eps
    # A look when a chunk ends is of no use.
    following = jnp.where(look < end * (1 - rounding), look, end)
    goes_on = ~jnp.any(state.status == _ASKS) & ~jnp.any(state.ends)
    asks = goes_on & (state.status == _RESTS)
    return state._replace(
        now=jnp.where(goes_on, following, state.now),
        status=jnp.where(asks, _ASKS, state.status),
    )


def _heard(state: _State) -> _State:
    """The first worker that ends a chunk, and all that end their start-up, ask."""
    runs = state.runs
    worker, ends = _first_of(state.ends & (state.status == _RUNS))
    state = _kept(state._replace(overdue=state.overdue & ~ends), worker, ends)
    asks = ends | (state.ends & (state.status == _STARTS))
    no_chunk = len(state.is_open) - 1
    return state._replace(
        status=jnp.where(asks, _ASKS, state.status),
        runs=runs._replace(
            chunk=jnp.where(ends, no_chunk, runs.chunk),
            size=jnp.where(ends, 0, runs.size),
            until=jnp.where(asks, jnp.inf, runs.until),
        ),
        done=_with_ended(state, ends),
    )


def _kept(state: _State, worker: Array, ends: Array) -> _State:
    """The chunk of the worker that `ends`, if any does, is kept unless it was before.

    The sum of an overdue worker is void as soon as another worker has a chunk of it.
    Then all its other chunks are open again, and patience doubles.
    """
    any_ends = jnp.any(ends)
    chunk = state.runs.chunk[worker]
    keeper = state.keeper[chunk]
    void = any_ends & jnp.append(state.overdue, False)[keeper]
    is_void = void & (state.keeper == keeper)
    keeps = any_ends & (~state.is_kept[chunk] | void)
    no_worker = len(state.status)
    return state._replace(
        is_open=state.is_open | (is_void & ~_is_run_by(state, state.status == _RUNS)),
        keeper=jnp.where(
            keeps & (jnp.arange(len(state.keeper)) == chunk),
            worker,
            jnp.where(is_void, no_worker, state.keeper),
        ),
        patience=jnp.where(void, 2 * state.patience, state.patience),
    )


def _with_ended(state: _State, ends: Array) -> _Done:
    """What workers have done, with the chunk of who `ends`."""
    runs, done = state.runs, state.done
    seconds = jnp.where(ends, state.now - runs.begun, 0)
    size = jnp.where(ends, runs.size, 0)
    return _Done(
        pace=jnp.where(ends, seconds / jnp.maximum(size, 1), done.pace),
        seconds=done.seconds + seconds,
        size=done.size + size,
    )


def _served(tables: ChunkTables, state: _State) -> tuple[_State, _Turn]:
    """The first that may be given a chunk has its turn; all before it rest.

    An overdue worker is heard of when it asks. It has another turn.
    """
    all_heard = ~jnp.any(state.ends) & ~state.is_complete
    late = all_heard & state.has_come(_deadlines(state))
    state = state._replace(overdue=state.overdue | late)
    copies = _copies(tables, state)
    asks = all_heard & (state.status == _ASKS)
    worker, comes = _first_of(
        asks & (_may_be_given(tables, state, copies) | state.overdue)
    )
    is_served = comes & ~state.overdue
    chunk = _choice(tables, state, copies, worker)
    waits = jnp.any(comes) & (jnp.arange(len(comes)) >= worker) & ~is_served
    state = state._replace(
        status=jnp.where(asks & ~waits, _RESTS, state.status),
        overdue=state.overdue & ~comes,
    )
    is_chunk = chunk < len(tables.size) - 1
    return state, _Turn(worker, chunk, is_served & is_chunk)


def _begun(tables: ChunkTables, state: _State, turn: _Turn, seconds: Array) -> _State:
    """The worker runs its chunk for so many `seconds`."""
    begins = turn.begins
    is_begun = jnp.any(begins) & (jnp.arange(len(state.is_open)) == turn.chunk)
    runs = state.runs
    return state._replace(
        is_open=state.is_open & ~is_begun,
        status=jnp.where(begins, _RUNS, state.status),
        runs=_Runs(
            chunk=jnp.where(begins, turn.chunk, runs.chunk),
            size=jnp.where(begins, tables.size[turn.chunk], runs.size),
            begun=jnp.where(begins, state.now, runs.begun),
            until=jnp.where(begins, state.now + seconds, runs.until),
        ),
    )


def _first_of(workers: Array) -> tuple[Array, Array]:
    """The first worker of a mask, `[N]`, and the mask of it alone, or of nobody."""
    first = jnp.argmax(workers)
    return first, workers & (jnp.arange(len(workers)) == first)


# Which chunk is next: the rules of `Ledger`.


class _Copies(NamedTuple):
    """Chunks that can be copied, `[M + 1]`."""

    begun: Array  # and not kept
    given_up: Array  # begun, and only overdue workers run them
    late: Array  # in the sum of an overdue worker


def _copies(tables: ChunkTables, state: _State) -> _Copies:
    """A late sum is replaced whole: a holder of each of its chunks must answer."""
    answers = jnp.append(~state.overdue, False)
    is_run = _is_run_by(state, ~state.overdue)
    begun = ~state.is_open & ~state.is_kept & (tables.size > 0)
    is_held = jnp.any(answers[tables.holders], axis=1)
    is_replaceable = jnp.ones(len(answers), bool).at[state.keeper].min(is_held)
    is_late = jnp.append(state.overdue, False) & is_replaceable
    return _Copies(begun, begun & ~is_run, is_late[state.keeper] & ~is_run)


def _is_run_by(state: _State, workers: Array) -> Array:
    """The chunks that some of these workers run, `[M + 1]`."""
    return jnp.zeros_like(state.is_open).at[state.runs.chunk].max(workers)


def _may_be_given(tables: ChunkTables, state: _State, copies: _Copies) -> Array:
    """Whether each worker may be given a chunk, `[N]`; False only if there is none."""
    # A copy that is not worth it for the fastest is so for nobody.
    asks = state.status == _ASKS
    pace = jnp.min(jnp.where(asks, _pace_of_copies(state), jnp.inf))
    worth = copies.begun & _is_worth(state, pace)
    possible = state.is_open | worth | copies.given_up | copies.late
    return jnp.any(possible[tables.stored], axis=1)


def _choice(
    tables: ChunkTables, state: _State, copies: _Copies, worker: Array
) -> Array:
    """The chunk for a free worker, M for none."""
    no_chunk = len(tables.size) - 1
    stored = tables.stored[worker]

    def first_stored(chunks: Array) -> Array:
        mask = chunks[stored]
        return jnp.where(jnp.any(mask), stored[jnp.argmax(mask)], no_chunk)

    left = jnp.sum(jnp.where(state.is_open, tables.size, 0)[tables.stored], axis=1)
    need = jnp.where(state.overdue, jnp.inf, left * _expected_pace(state))
    chunk = neediest(tables, state.is_open, need, worker)
    pace = _pace_of_copies(state)[worker]
    for copy in (
        _latest_worth(state, copies, stored, pace),
        first_stored(copies.given_up),
        first_stored(copies.late),
    ):
        chunk = jnp.where(chunk < no_chunk, chunk, copy)
    return chunk


def _latest_worth(state: _State, copies: _Copies, stored: Array, pace: Array) -> Array:
    """The stored chunk, worth a copy, with the latest expected end; M for none."""
    no_chunk = len(state.is_open) - 1
    never = jnp.full(no_chunk + 1, jnp.inf)
    ends = never.at[state.runs.chunk].min(_expected_ends(state))
    worth = (copies.begun & _is_worth(state, pace))[stored]
    latest = jnp.max(jnp.where(worth, ends[stored], -jnp.inf))
    return jnp.min(jnp.where(worth & (ends[stored] == latest), stored, no_chunk))


# What is expected: the rules of `Paces`. At time t a worker runs a chunk of size s
# since b. Its last chunk took p for a unit of size.


def _expected_pace(state: _State) -> Array:
    runs = state.runs
    return expected_pace(state.done.pace, runs.size, runs.begun, state.now)


def _pace_of_copies(state: _State) -> Array:
    """Nobody copies before anybody has done a chunk: infinity."""
    any_done = jnp.any(state.done.pace > 0)
    return jnp.where(any_done, _expected_pace(state), jnp.inf)


def _expected_ends(state: _State) -> Array:
    """b + p s, `[N]`; t + (t - b) where that is unknown or past."""
    runs, pace = state.runs, state.done.pace
    by_pace = runs.begun + pace * runs.size
    passed = state.now - runs.begun
    return jnp.where((pace > 0) & (by_pace > state.now), by_pace, state.now + passed)


def _is_worth(state: _State, pace: Array) -> Array:
    """Chunks whose copy, by a worker of this pace, is worth it, `[M + 1]`."""
    worth = state.has_come(_worth_from(state, pace))
    return jnp.ones_like(state.is_open).at[state.runs.chunk].min(worth)


def _worth_from(state: _State, pace: Array) -> Array:
    """When a copy of what each runs, by a worker of pace e, begins to be worth it.

    With r = `WORTH` e s it is t where b + p s - t > r, else b + max(p s, r).
    """
    runs = state.runs
    least_remainder = WORTH * pace * jnp.maximum(runs.size, 1)
    expected = state.done.pace * runs.size
    is_long = runs.begun + expected - state.now > least_remainder
    late = runs.begun + jnp.maximum(expected, least_remainder)
    return jnp.where(runs.size > 0, jnp.where(is_long, state.now, late), jnp.inf)


def _deadlines(state: _State) -> Array:
    """When each worker is overdue, `[N]`: b + patience s max(m, m of all).

    m is what has been taken for a unit of size in this step.
    """
    runs, done = state.runs, state.done
    mean = jnp.sum(done.seconds) / jnp.maximum(jnp.sum(done.size), 1)
    worker_mean = done.seconds / jnp.maximum(done.size, 1)
    ends = runs.begun + state.patience * jnp.maximum(worker_mean, mean) * runs.size
    return jnp.where((runs.size > 0) & jnp.any(done.size > 0), ends, jnp.inf)
