"""Steps that end with their last chunk, against `Ledger`, one event after the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.plans.step_with_copies import _State, step_with_copies
from bcgc_jax.steps.chunk_lengths import UNITS, chunk_sizes
from bcgc_jax.steps.driven import driven
from bcgc_jax.steps.ledger import Ledger
from bcgc_jax.steps.paces import Paces
from bcgc_jax.steps.placement import chunk_tables, spread, whole_subsets
from tests.problems import slow

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 50


def _drawn(rng, workers, sizes, whole):
    """Late starts or none, seconds for a unit, varying lengths, and pauses."""
    starts = rng.exponential(3.0, (STEPS, workers)) * rng.integers(0, 2, (STEPS, 1))
    times = rng.exponential(size=(STEPS, workers)) + 0.05
    shape = STEPS, workers, workers * len(sizes)
    lengths = np.tile(sizes, workers) * rng.uniform(0.9, 1.1, shape)
    if whole:  # many ties
        starts = starts.round()
        times = rng.integers(1, 4, times.shape).astype(float)
        lengths = np.broadcast_to(np.tile(sizes, workers), shape).astype(float)
    pauses = rng.integers(1, 40, shape) * (rng.random(shape) < 0.05)
    return starts, times, lengths + pauses


def _chain(step, num_workers, drawn):
    """Ends of `step(late, overdue, draw)`; busy workers begin the next late."""

    def following(before, draw):
        end = step(*before, draw)
        return (jnp.maximum(end.busy - end.time, 0), end.overdue), end

    none_overdue = jnp.zeros(num_workers, bool)
    return jax.lax.scan(following, (jnp.zeros(num_workers), none_overdue), drawn)[1]


@pytest.mark.parametrize(
    "case",
    [(6, 2, 3, False), *slow((5, 3, 2, True), (7, 7, 1, False), (3, 1, 2, True))],
)
def test_a_chain_of_steps_is_what_the_machine_hands_out(case):
    """To 1e-12; measured 5e-16 in 6,800 steps of ten shapes."""
    workers, stored, chunks, equal = case
    sizes = chunk_sizes(chunks, equal)
    rng = np.random.default_rng(workers)
    storage = spread(workers, stored, len(sizes))
    tables = chunk_tables(storage, sizes)

    def step(late, overdue, drawn):
        starts, times, lengths = drawn
        return step_with_copies(tables, late + starts, times, 0.25, lengths, overdue)

    chain = jax.jit(lambda *drawn: _chain(step, workers, drawn))
    voided = 0
    for whole in (False, True):
        starts, times, lengths = _drawn(rng, workers, sizes, whole)
        ends = chain(starts, times, lengths)
        late = np.zeros(workers)
        roster = None
        for k in range(STEPS):
            ledger = Ledger(k, storage, [sizes] * workers, before=roster)
            seconds = 0.25 + lengths[k] * times[k][:, None]
            end, busy = driven(ledger, Paces(workers), seconds, late + starts[k])
            late = busy - end
            roster = ledger.roster
            voided += ledger.voided
            assert float(ends.time[k]) == pytest.approx(end, rel=1e-12)
            np.testing.assert_allclose(ends.busy[k], busy, rtol=1e-12)
            assert set(np.flatnonzero(ends.overdue[k])) == roster.overdue
    assert voided > 0 or stored == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_times_a_few_roundings_apart_are_the_same(dtype):
    nothing: Any = dict.fromkeys(_State._fields)
    state = _State(**nothing)._replace(now=jnp.ones((), dtype))
    later = 1 + np.array([48, 96]) * np.finfo(dtype).eps
    assert state.has_come(later.astype(dtype)).tolist() == [True, False]


# Workers, how likely a pause is for each chunk, its least and its longest in steps.
# Where chunks are spread a step takes 1.395, 1.546 (1.526 ± 0.009 in three times as
# many), 1.912, 2.293; uncoded 2.44 to 5.98.
PAUSES = [
    (spread, 16, 0.004, 0.5, 5.0, 1.45),
    (spread, 16, 0.002, 2.0, 10.0, 1.52),
    (spread, 32, 0.002, 2.0, 10.0, 1.93),
    (spread, 64, 0.0005, 5.0, 30.0, 2.42),
    # 1.391: few workers that pause store the same chunk
    (whole_subsets, 16, 0.002, 2.0, 10.0, 1.42),
]


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.parametrize(
    "case", PAUSES, ids=lambda case: f"{case[0].__name__}-{case[1:]}"
)
def test_pauses_cost_little_where_chunks_are_copied(case):
    """Each chunk takes its size ± 5 %, and seldom a pause."""
    place, workers, likely, least, longest, limit = case
    sizes = chunk_sizes(8)
    tables = chunk_tables(place(workers, 2, len(sizes)), sizes)
    share = jnp.asarray(tables.size[:-1]) / (8 * UNITS)
    shape = workers, len(share)

    def step(late, overdue, key):
        noise, chance, long = jax.random.split(key, 3)
        lengths = share * jax.random.uniform(noise, shape, minval=0.95, maxval=1.05)
        pauses = jax.random.uniform(long, shape, minval=least, maxval=longest)
        lengths += jnp.where(jax.random.uniform(chance, shape) < likely, pauses, 0)
        return step_with_copies(
            tables, late, jnp.ones(workers), lengths=lengths, overdue=overdue
        )

    chains = jax.jit(
        jax.vmap(lambda key: _chain(step, workers, jax.random.split(key, 300)).time)
    )
    means = np.mean(chains(jax.random.split(jax.random.key(0), 20)), axis=1)
    error = np.std(means, ddof=1) / np.sqrt(20)
    assert np.mean(means) < limit + 2 * error
