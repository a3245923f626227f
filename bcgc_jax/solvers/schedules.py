r"""Schemes without a code, by name: schedules, backup workers, work that is shared out.

Their runtimes are exact where one block is covered by workers that are alike (`FirstHolder`), and where the
fastest workers are enough; else means of draws, with standard errors. The draws of a schedule are those of
the cyclic one too, whose mean is then known: what they have in common drops out (a control variate).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import concrete, replace
from bcgc_jax.deliveries import Load
from bcgc_jax.iterations import Independent
from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.problem import Problem
from bcgc_jax.quadrature import Expectation
from bcgc_jax.schedules import (
    Group,
    Schedule,
    cycles_of_problem,
    over_draws,
    schedule_of,
    schedule_runtime,
    sent_of,
)
from bcgc_jax.solution import Needs
from bcgc_jax.solvers.credit import optimise_credit
from bcgc_jax.solvers.methods import Alternating, Backup, Credit, Scheduled, Sharing

# Draws of a runtime, and of what is sent, of which two digits are enough: of many workers each draw has many.
NUM_DRAWS, _SENT_DRAWS, _SENT_WORKERS, _FEWEST = 2**17, 2**12, 2**22, 32
# Intervals of the rule for a cover.
_NUM_NODES = 96
# Halvings of the time at which the last chunk is handed out.
_HALVINGS = 60


def schedule_for(problem: Problem, method: Scheduled, key: Array | None) -> Schedule | None:
    """What the workers do, all subsets of a block and all blocks in one order; None where nobody plans it."""
    total = problem.total
    match method:
        case Backup() | Sharing():
            return None
        case Alternating(stored=stored, num_blocks=blocks):
            return schedule_of([Group(stored, blocks)], jnp.full(blocks, total / blocks))
        case Credit(max_subsets=most):
            assert key is not None
            stored = problem.max_workers if most is None else most
            return optimise_credit(key, problem, min(stored, problem.max_workers))
    return schedule_of([Group(method.stored, 1)], total[None])  # type: ignore[attr-defined]


def without_padding(found: Schedule) -> Schedule:
    """Without the tasks and blocks that are none, where it is known which these are."""
    block = concrete(found.block)
    if block is None or block.ndim > 1:
        return found
    there = block >= 0
    sizes = found.sizes[: block.max() + 1]
    return replace(found, sizes=sizes, subset=found.subset[there], block=found.block[there])


@jax.jit
def scheduled_runtime(
    problem: Problem, schedule: Schedule | None, key: Array | None, method: Scheduled
) -> tuple[Expectation, Needs]:
    """Expected runtime with its error, NaN where there is no such scheme, and what the scheme needs.

    The error is a standard error where it comes from draws, which need the key (`is_drawn`).
    """
    workers = jnp.asarray(problem.num_workers)
    if isinstance(method, Backup):
        return _backup(problem, method.spare)
    if isinstance(method, Sharing):
        return _sharing(problem, method, key)
    assert schedule is not None
    drawn = is_drawn(problem, method)
    found = _by_draws(problem, schedule, key) if drawn else _exact(problem, schedule)
    found = jax.tree.map(lambda a: jnp.where(_stored(schedule) <= workers, a, jnp.nan), found)
    return found, _needs_of(problem, schedule)


def is_drawn(problem: Problem, method: Scheduled) -> bool:
    """Whether its runtime is a mean of draws."""
    if isinstance(method, Alternating | Credit | Sharing):
        return True
    return not (isinstance(method, Backup) or _alike(problem))


def _alike(problem: Problem) -> bool:
    return isinstance(problem.iteration, Independent)


def _exact(problem: Problem, schedule: Schedule) -> Expectation:
    work = cycles_of_problem(problem, schedule)[:, 0]
    rule = FirstHolder(problem.num_workers, problem.max_workers)
    found = expected_completion(problem.iteration.worker, Load(work), rule, num_nodes=_NUM_NODES)
    return Expectation(problem.scale * found.value, problem.scale * found.error)


def _by_draws(problem: Problem, schedule: Schedule, key: Array | None) -> Expectation:
    assert key is not None
    known = schedule_of([Group(schedule.stored, 1)], problem.total[None])
    cycles, of_known = (cycles_of_problem(problem, one) for one in (schedule, known))

    def both(starts: Array, times: Array) -> tuple[Array, Array]:
        workers = problem.num_workers
        tau = schedule_runtime(cycles, times, starts, workers)
        if not _alike(problem):
            return tau, jnp.zeros_like(tau)
        return tau, schedule_runtime(of_known, times, starts, workers)

    width = schedule.sizes.size + 1
    tau, beside = (problem.scale * a for a in over_draws(key, problem, both, NUM_DRAWS, width))
    mean, error = jnp.mean(tau), jnp.std(tau) / NUM_DRAWS**0.5
    if not _alike(problem):
        return Expectation(mean, error)
    exact = _exact(problem, known)
    off = beside - jnp.mean(beside)
    share = jnp.mean(off * tau) / jnp.maximum(jnp.mean(off**2), jnp.finfo(tau.dtype).tiny)
    rest = jnp.std(tau - share * beside) / NUM_DRAWS**0.5
    # Where the variance is infinite there is nothing to gain, and nothing known.
    better = jnp.isfinite(exact.value) & (rest < error)
    value = jnp.where(better, mean + share * (exact.value - jnp.mean(beside)), mean)
    return Expectation(value, jnp.where(better, rest + share * exact.error, error))


def _needs_of(problem: Problem, schedule: Schedule) -> Needs:
    cycles = cycles_of_problem(problem, schedule)

    def sent(starts: Array, times: Array) -> Array:
        return sent_of(schedule, cycles, times, starts, problem.num_workers)

    # The same draws always: of a figure with two digits.
    draws = min(_SENT_DRAWS, max(_SENT_WORKERS // problem.max_workers, _FEWEST))
    found = over_draws(jax.random.key(0), problem, sent, draws, 2 * schedule.sizes.size)
    blocks = jnp.sum(schedule.sizes > 0)
    return Needs(_stored(schedule), jnp.mean(found), blocks, jnp.asarray(True))


def _stored(schedule: Schedule) -> Array:
    """Of the tasks that there are."""
    return jnp.max(jnp.where(schedule.block >= 0, schedule.subset + 1, 0))


def _backup(problem: Problem, spare: int) -> tuple[Expectation, Needs]:
    """All work at level `spare`, but on a single subset."""
    workers, used = jnp.asarray(problem.num_workers), np.arange(problem.max_workers) >= spare
    one = problem.total + problem.setup_load + problem.chain_load * problem.total
    work = jnp.where(used, one, 0).astype(problem.dtype)
    sent = jnp.where(used, problem.send_load / problem.scale * problem.total, 0).astype(problem.dtype)
    found = problem.iteration.expected_max(Load(work, None if problem.send_time is None else sent))
    exists = spare < workers
    value, error = (jnp.where(exists, problem.scale * a, jnp.nan) for a in found)
    waited = (workers - spare) / workers.astype(problem.dtype)
    return Expectation(value, error), Needs(jnp.asarray(1), waited, jnp.asarray(0), jnp.asarray(spare == 0))


def _sharing(problem: Problem, method: Sharing, key: Array | None) -> tuple[Expectation, Needs]:
    assert key is not None
    chunk = problem.total / method.chunks
    trip = jnp.asarray(method.round_trip, problem.dtype) / problem.scale
    workers = jnp.asarray(problem.num_workers)

    def shared(starts: Array, times: Array) -> Array:
        return jax.vmap(lambda s, t: share_out(s, t * chunk + trip, workers, method.chunks))(starts, times)

    # A worker's last answer needs no further question.
    tau = problem.scale * over_draws(key, problem, shared, NUM_DRAWS // 8, problem.max_workers)
    found = Expectation(jnp.mean(tau), jnp.std(tau) / tau.size**0.5)
    one = jnp.ones((), problem.dtype)
    return found, Needs(workers, one, jnp.asarray(method.chunks), jnp.asarray(True))


def share_out(starts: Array, seconds: Array, num_workers: Array, chunks: int) -> Array:
    """When all chunks are done that are handed to whoever is free: N · `chunks`, then a second copy of each.

    `starts` and the `seconds` of a chunk, `[N]`; who asks first gets the next one. Of those that are not done
    when all have been handed out, the oldest gets the first copy.
    """
    place = np.arange(starts.size)
    exists = place < num_workers
    count = num_workers * chunks

    def asked(t: Array) -> Array:
        """How often each worker has asked by t."""
        return jnp.where(exists & (starts <= t), jnp.floor((t - starts) / seconds) + 1, 0)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        enough = jnp.sum(asked(middle)) >= count
        return jnp.where(enough, ends[0], middle), jnp.where(enough, middle, ends[1])

    high = jnp.max(jnp.where(exists, starts + chunks * seconds, 0))
    last = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(high), high))[1]
    had = asked(last)
    # Of those that ask in the same moment the first ones get the rest.
    surplus = jnp.sum(had) - count
    at_last = (had > 0) & (starts + (had - 1) * seconds >= last * (1 - 1e-9))
    behind = jnp.cumsum(at_last[::-1])[::-1]
    had = had - (at_last & (behind <= surplus))
    begun = starts + (had - 1) * seconds
    busy = exists & (had > 0)
    done = jnp.where(busy, begun + seconds, -jnp.inf)  # of the chunk that each has
    free = jnp.where(exists, jnp.where(busy, done, starts), jnp.inf)

    def copy(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        done, free, copied = carry
        who = jnp.argmin(free)
        now = free[who]
        left = busy & ~copied & (done > now)
        which = jnp.argmin(jnp.where(left, begun, jnp.inf))
        again = now + seconds[who]
        some = jnp.any(left)
        done = done.at[which].set(jnp.where(some, jnp.minimum(done[which], again), done[which]))
        free = free.at[who].set(jnp.where(some, again, jnp.inf))
        return done, free, copied.at[which].set(copied[which] | some)

    done, _, _ = jax.lax.fori_loop(0, 2 * starts.size, copy, (done, free, jnp.zeros(starts.size, bool)))
    return jnp.max(done)
