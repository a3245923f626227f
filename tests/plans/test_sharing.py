"""Work sharing: a batch of steps against handing out; bounds by linear programs."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import UNITS, chunk_sizes
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.placement import chunk_tables, spread
from bcgc_jax.balancing.storage import least_alone
from bcgc_jax.plans.shared_step import all_data_runtime, shared_runtime
from bcgc_jax.solvers.limit import storage_bound
from experiments.event_loop import driven
from tests.oracles.work_sharing import VECTORS
from tests.problems import slow

pytestmark = pytest.mark.usefixtures("x64")

WORKERS = 6


@functools.cache
def _program(workers, stored, chunks, equal):
    sizes = chunk_sizes(chunks, equal)
    step = functools.partial(all_data_runtime, sizes)
    if stored < workers:
        tables = chunk_tables(spread(workers, stored, len(sizes)), sizes)
        step = functools.partial(shared_runtime, tables)
    return jax.jit(jax.vmap(step, (0, 0, None)))


@functools.partial(jax.jit, static_argnums=2)
def _bounds(starts, times, stored):
    alone = jnp.asarray(least_alone(times.shape[1], stored))
    return jax.vmap(storage_bound, (0, 0, None))(starts, times, alone)


def test_the_bounds_of_eight_published_steps():
    """They have nine digits. test_ledger.py says when the steps end."""
    with VECTORS.open() as file:
        for row in csv.DictReader(file):
            times = np.array(row["cycle_times"].split(), float)
            bound = float(_bounds(np.zeros((1, len(times))), times[None], 2)[0])
            assert bound == pytest.approx(float(row["storage_bound"]), rel=1e-8)


OTHERS = slow((1, 2, False), (3, 4, True), (5, 3, False))


@pytest.mark.parametrize(
    "case",
    [(2, 3, False), (3, 3, False), (6, 2, False), *OTHERS],
    ids=lambda case: str(case),
)
def test_a_batch_is_what_a_queue_hands_out(case):
    """By JAX; workers begin late or not, and a third of the steps has ties."""
    stored, chunks, equal = case
    sizes = chunk_sizes(chunks, equal)
    storage = spread(WORKERS, stored, len(sizes))
    rng = np.random.default_rng(stored)
    times = rng.exponential(size=(24, WORKERS)) + 0.05
    times[:8] = rng.integers(1, 4, (8, WORKERS))
    starts = rng.exponential(0.5, (24, WORKERS)) * (np.arange(24) % 2)[:, None]
    for round_trip in (0.0, 0.25):
        ends = _program(WORKERS, stored, chunks, equal)(starts, times, round_trip)
        asking = Asking(round_trip)
        for end, begins, paces in zip(ends, starts, times, strict=True):
            ledger = Ledger(storage, [sizes] * WORKERS)
            seconds = np.outer(paces, sizes * WORKERS)
            want = driven(ledger, seconds, begins, asking=asking).time
            assert float(end) == pytest.approx(want, rel=1e-12)


def test_a_worker_that_never_begins_is_refused():
    """With one that does not, the others would do its chunks as if it had no data."""
    tables = chunk_tables(spread(4, 2, 3), chunk_sizes(3, False))
    starts, times = jnp.array([0.0, jnp.inf, 0.0, 0.0]), jnp.ones(4)
    with pytest.raises(ValueError, match="starts must be finite and >= 0, got inf"):
        shared_runtime(tables, starts, times)


def _least_time(holders, starts, times):
    """The least t by which a subset's equal chunks can be dealt among their holders."""
    workers = len(times)
    parts = [chunk for subset in holders for chunk in subset]
    count = len(parts) // workers
    pairs = [(k, w) for k, group in enumerate(parts) for w in group]
    # Variables: how much each holder does of a part, then t. With starts 0: time of
    # w = Σ amounts · T_w ≤ t.
    amounts = np.array(
        [[k == p for k, _ in pairs] + [False] for p in range(len(parts))], float
    )
    spent = np.array(
        [[(u == w) * times[w] for _, u in pairs] + [-1.0] for w in range(workers)]
    )
    cost = np.zeros(len(pairs) + 1)
    cost[-1] = 1
    solved = linprog(cost, spent, -starts, amounts, np.full(len(parts), 1 / count))
    return solved.fun


def test_the_bound_of_a_storage_is_below_that_of_any_placement():
    """On average over which worker is which; and for all data it is the limit."""
    rng = np.random.default_rng(3)
    times = rng.exponential(size=(40, WORKERS)) + 0.1
    orders = np.concatenate([rng.permuted(times, axis=1) for _ in range(5)])
    nothing = np.zeros_like(orders)
    for stored in (2, 3):
        placed = spread(WORKERS, stored, 5).holders
        best = np.mean([_least_time(placed, np.zeros(WORKERS), row) for row in orders])
        bound = float(jnp.mean(_bounds(nothing, orders, stored)))
        assert 0.9 * best < bound <= best
    all_data = _bounds(nothing, orders, WORKERS)
    np.testing.assert_allclose(
        all_data, WORKERS / np.sum(1 / orders, axis=1), rtol=1e-12
    )


@pytest.mark.slow
def test_eight_chunks_take_hardly_longer_than_uncoded_and_no_less_than_the_bound():
    """At most 1.06 times as long as uncoded; 1.0594 was the most in 40,000 draws."""
    rng = np.random.default_rng(0)
    unlike = rng.choice([0.01, 0.1, 0.3, 1.0, 3.0], (2000, 1))
    times = 1 + unlike * rng.exponential(size=(2000, WORKERS))
    nothing = np.zeros_like(times)
    ends = _program(WORKERS, 2, 8, False)(nothing, times / (UNITS * 8), 0.0)
    assert np.max(ends / times.max(axis=1)) < 1.06
    bounds = _bounds(nothing, times, 2)
    for spread_of in np.unique(unlike):
        alike = unlike[:, 0] == spread_of
        assert np.mean(bounds[alike]) < np.mean(ends[alike])


def test_the_bound_counts_start_ups():
    """Two slow workers that start late alone have a share of the data: by hand."""
    starts = jnp.array([0.0, 3.0, 1.0])
    times = jnp.array([1.0, 2.0, 4.0])
    # Two subsets each: k = 2 has 1 subset, k = 3 all 3. {1, 2}: (t - 1) / 4 + (t - 3)⁺
    # / 2 = 1 at t = 11 / 3. All: t + (t - 1) / 4 + (t - 3)⁺ / 2 = 3 at t = 2.6.
    assert float(storage_bound(starts, times, least_alone(3, 2))) == pytest.approx(
        11 / 3
    )
    assert float(storage_bound(starts, times, least_alone(3, 3))) == pytest.approx(2.6)
