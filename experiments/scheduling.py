r"""Schedules for measured steps: credit for every finished subset, workers in the places of their numbers.

A schedule is a table C of cycles, `[D, B]` (see `bcgc_jax.plans.schedules`), the same for all workers, in
units of a worker's uncoded work. Worker w of a trace is worker w on the circle in every step: a cluster does
not reshuffle its data, so who is slow stays beside the same neighbours. The runtime of a step is that of its
times, exactly; what the questions take, a round trip a block, is left out.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax.plans.schedules import Group, cycles_of, schedule_of, schedule_runtime, simulate_schedule
from bcgc_jax.solvers.credit import optimise_credit
from bcgc_jax.solvers.schedules import share_out

# The table of a plan, and the time of a step that it promises, made from times, `[steps, N]`.
Plan = Callable[[np.ndarray], tuple[float, np.ndarray]]

# Chunks a worker of work that is shared out, blocks of an alternating schedule, and draws of a promise.
CHUNKS, _BLOCKS, _DRAWS = 5, 10, 2**14
# What comes before the alternating blocks. In the first halves of four traces the better of both is within
# 0.2 % of what six orders and twice the steps find.
_FRONTS = (Group(1, 1),), (Group(1, 1), Group(2, 2))
_MOST_BLOCKS = _BLOCKS + 3
# Adam's steps, and the largest of them.
_STEPS, _LARGEST_STEP = 300, 0.2


@jax.jit
def _runtimes(tables: Array, rows: Array) -> Array:
    return jax.vmap(lambda c, t: schedule_runtime(c, t[None])[0])(tables, rows)


def scheduled(tables: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of schedules, `[R, D, B]`, in as many steps, `[R, N]`, the runtimes, `[R]`.

    >>> alone = np.ones((1, 1, 1))
    >>> scheduled(alone, np.array([[2.0, 3.0]])).tolist()
    [3.0]
    """
    return np.asarray(_runtimes(tables, rows))


def shared_out(_: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each step's time where a master hands out `CHUNKS` chunks a worker at no cost, `[R]`."""
    return np.asarray(_shared_out(rows))


@jax.jit
def _shared_out(rows: Array) -> Array:
    workers, at_once = jnp.asarray(rows.shape[1]), jnp.zeros(rows.shape[1])
    return jax.vmap(lambda t: share_out(at_once, t / CHUNKS, workers, CHUNKS))(rows)


def shared(rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Nothing to plan."""
    return float(shared_out(np.empty(0), rows).mean()), np.empty(0)


def fixed(groups: Callable[[int], Sequence[Group]]) -> Plan:
    """The groups for a number of workers, blocks of one size: nothing of the times is in it but a promise."""

    def plan(rows: np.ndarray) -> tuple[float, np.ndarray]:
        chosen = groups(rows.shape[1])
        blocks = sum(group.num_blocks for group in chosen)
        table = np.asarray(cycles_of(schedule_of(chosen, jnp.full(blocks, 1 / blocks))))
        promised = scheduled(np.broadcast_to(table, (len(rows), *table.shape)), rows).mean()
        return float(promised), table

    return plan


def cyclic(stored: int | None = None) -> Plan:
    return fixed(lambda workers: [Group(min(stored or workers, workers), 1)])


def alternating() -> Plan:
    return fixed(lambda workers: [Group(workers, _BLOCKS)])


def credit_alike(problem: Callable[[np.ndarray], bcgc.Problem]) -> Plan:
    """The package's search for workers that are alike, as in `problem` of the steps, all subsets stored."""

    def plan(rows: np.ndarray) -> tuple[float, np.ndarray]:
        given, (search, compare) = problem(rows), jax.random.split(jax.random.key(0))
        found = optimise_credit(search, given, rows.shape[1])
        promised = jnp.mean(simulate_schedule(compare, given, found, _DRAWS))
        return float(promised), np.asarray(cycles_of(found.with_sizes(found.sizes / found.sizes.sum())))

    return plan


def credit_of_steps(stored: int | None = None) -> Plan:
    """Sizes of least mean runtime that are found for the steps as they were, workers in their places."""

    def plan(rows: np.ndarray) -> tuple[float, np.ndarray]:
        depth = min(stored or rows.shape[1], rows.shape[1])
        orders = [(*front, Group(depth, _BLOCKS)) for front in _FRONTS if front[-1].depth < depth]
        found = [_fitted(jnp.asarray(rows), order) for order in orders or [(Group(depth, _BLOCKS),)]]
        promised, table = min(found, key=lambda one: float(one[0]))
        return float(promised), _padded(np.asarray(table))

    return plan


def _padded(table: np.ndarray) -> np.ndarray:
    """With blocks that nobody does, which are none: plans of different orders have one shape."""
    missing = _MOST_BLOCKS - table.shape[1]
    return np.pad(table, ((0, 0), (0, missing)), constant_values=np.inf)


@functools.partial(jax.jit, static_argnames="order")
def _fitted(rows: Array, order: tuple[Group, ...]) -> tuple[Array, Array]:
    """Subgradient steps on log x, half of the coordinates in the last group at first; the best seen."""
    *front, last = order
    before = sum(group.num_blocks for group in front)
    share = np.repeat(
        [0.5 / max(before, 1), (0.5 if before else 1) / last.num_blocks], [before, last.num_blocks]
    )
    begin = jnp.log(jnp.asarray(share, rows.dtype))
    schedule = schedule_of(order, jnp.exp(begin))

    def table_of(logits: Array) -> Array:
        return cycles_of(schedule.with_sizes(jax.nn.softmax(logits)))

    def loss(logits: Array) -> Array:
        return jnp.mean(schedule_runtime(table_of(logits), rows))

    unit = loss(begin)
    optimiser = optax.adam(optax.cosine_decay_schedule(_LARGEST_STEP, _STEPS, 0.02))

    def step(_: int, carry: tuple) -> tuple:
        logits, state, least, best = carry
        value, slope = jax.value_and_grad(loss)(logits)
        best = jnp.where(value < least, logits, best)
        update, state = optimiser.update(slope / unit, state)
        return optax.apply_updates(logits, update), state, jnp.minimum(value, least), best

    start = begin, optimiser.init(begin), unit, begin
    _, _, least, best = jax.lax.fori_loop(0, _STEPS, step, start)
    return least, table_of(best)
