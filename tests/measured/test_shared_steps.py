"""Work sharing in the steps of a trace, against one step at a time in plain Python."""

import numpy as np
import pytest

from bcgc_jax.measured.microbatches import Microbatches, predicted_seconds
from bcgc_jax.measured.shared_steps import (
    share_steps,
    steps_of_slow_data,
    steps_of_slow_workers,
)
from bcgc_jax.measured.traces import load_trace
from bcgc_jax.plans.desk import chunk_sizes
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.storage import spread
from experiments.report import TRACES
from tests.cli.steps import trace_of
from tests.oracles.sharing import shared
from tests.problems import known

pytestmark = pytest.mark.usefixtures("x64")

STEPS, WORKERS, CHUNKS = 8, 5, 3
LENGTHS = np.random.default_rng(0).gamma(2.0, 1.0, (STEPS, WORKERS, CHUNKS)) + 0.1
SECONDS = 3 * LENGTHS * np.random.default_rng(1).uniform(0.7, 1.4, LENGTHS.shape)
recorded = pytest.mark.skipif(
    not TRACES.exists(), reason="the recorded traces are not part of the repository"
)


def _of_data(seconds, stored, costs):
    """Where all store all, equal costs are handed out by microbatch, then subset."""
    _, workers, chunks = seconds.shape
    holders, ones = spread(workers, stored, chunks).holders, [1.0] * workers
    return [
        shared(holders, [1] * chunks, [0.0] * workers, ones, 0.0, [row.ravel()] * workers, cost.ravel(), ones)
        for row, cost in zip(seconds, costs, strict=True)
    ]


@pytest.mark.parametrize("stored", [2, WORKERS])
def test_slow_data_take_their_time_whoever_computes_them(stored):
    seconds, costs = SECONDS[4:], LENGTHS[4:]
    found, alike = steps_of_slow_data(seconds, stored, costs), steps_of_slow_data(seconds, stored)
    np.testing.assert_allclose(found, _of_data(seconds, stored, costs), rtol=1e-12)
    if stored == 2:
        np.testing.assert_allclose(alike, _of_data(seconds, stored, np.ones_like(costs)), rtol=1e-12)
        return
    # All begin with their own, and whoever is free takes the next: greedily, as in a queue.
    for row, end in zip(seconds, alike, strict=True):
        free = np.zeros(WORKERS)
        for length in row.T.ravel():
            free[np.argmin(free)] += length
        assert end == pytest.approx(free.max(), rel=1e-12)


@pytest.mark.parametrize("stored", [2, WORKERS])
def test_slow_workers_are_slow_for_all_data(stored):
    times, sizes = LENGTHS[4:].sum(axis=2), chunk_sizes(CHUNKS, equal=True)
    holders = spread(WORKERS, stored, len(sizes)).holders
    want = [shared(holders, sizes, [0.0] * WORKERS, row / sum(sizes)) for row in times]
    rule = WorkSharing(WORKERS, stored, CHUNKS, equal_chunks=True)
    np.testing.assert_allclose(steps_of_slow_workers(times, rule), want, rtol=1e-12)


@pytest.mark.parametrize("column", ["load", "forward"])
def test_costs_are_a_line_through_the_lengths_of_the_steps_before(column):
    seconds = 0.5 + SECONDS
    parts = Microbatches(seconds)._replace(**{column: LENGTHS})
    found = predicted_seconds(parts, slice(4))
    line = np.polynomial.Polynomial.fit(LENGTHS[:4].ravel(), seconds[:4].ravel(), 1)
    np.testing.assert_allclose(known(found), np.asarray(line(LENGTHS)), rtol=1e-10)
    assert predicted_seconds(Microbatches(seconds), slice(4)) is None
    # Of no length, where a line would be below 0.
    steep = Microbatches(10 * LENGTHS**3)._replace(**{column: LENGTHS})
    assert known(predicted_seconds(steep, slice(4))).min() == pytest.approx(
        0.01 * (10 * LENGTHS[:4] ** 3).mean()
    )


def _trace(seconds, **columns):
    return trace_of(seconds.sum(axis=2), microbatches=Microbatches(seconds, **columns))


def test_the_model_that_the_trace_speaks_for_is_replayed():
    seconds = SECONDS
    found = share_steps(_trace(seconds, forward=LENGTHS))
    assert found is not None
    assert (found.slow_data, found.num_steps) == (True, 4)
    late, costs = seconds[4:], known(predicted_seconds(Microbatches(seconds, LENGTHS), slice(4)))[4:]
    uncoded = late.sum(axis=2).max(axis=1)
    assert found.uncoded == pytest.approx(uncoded.mean())
    assert found.limit == pytest.approx(1 - late.sum() / WORKERS / uncoded.sum())
    savings = {(one.stored_subsets, one.by_length): one for one in found.savings}
    assert savings.keys() == {(2, False), (2, True), (WORKERS, False), (WORKERS, True)}
    for stored in (2, WORKERS):
        saved = uncoded - _of_data(late, stored, costs)
        one = savings[stored, True]
        assert one.saved == pytest.approx(saved.sum() / uncoded.sum())
        assert one.error == pytest.approx(np.std(saved, ddof=1) / 2 / uncoded.mean())
    assert all(one.saved < found.limit for one in found.savings)

    slow = LENGTHS[4:, :, :1] + 0.01 * LENGTHS[4:]
    found, times = share_steps(_trace(slow, forward=slow / 3)), slow.sum(axis=2)
    assert found is not None
    assert (found.slow_data, found.num_steps) == (False, 4)
    assert [(one.stored_subsets, one.by_length) for one in found.savings] == [(2, False), (WORKERS, False)]
    taken = steps_of_slow_workers(times, WorkSharing(WORKERS, 2, CHUNKS, equal_chunks=True))
    assert found.savings[0].saved == pytest.approx(1 - taken.sum() / times.max(axis=1).sum())
    assert found.limit == pytest.approx(
        1 - (WORKERS / np.sum(1 / times, axis=1)).sum() / times.max(axis=1).sum()
    )


def test_without_microbatches_or_whole_steps_there_is_nothing_to_replay():
    assert share_steps(trace_of(LENGTHS.sum(axis=2))) is None
    assert share_steps(_trace(LENGTHS[:, :, :1])) is None
    missing = LENGTHS.copy()
    missing[:, 0] = np.nan
    assert share_steps(_trace(missing)) is None


@recorded
@pytest.mark.slow
def test_recorded_microbatches_are_shared_as_published():
    """Measured: 16.0, 23.0, 17.2, 26.4 %, at most 28.5; in all steps 14.4 and 16.3 without lengths."""
    trace = load_trace(TRACES / "llm_training_32_workers_microbatches.csv")
    found, parts = share_steps(trace), trace.microbatches
    assert found is not None
    assert parts is not None
    saved = {(one.stored_subsets, one.by_length): 100 * one.saved for one in found.savings}
    assert saved[2, False] > 15.9
    assert saved[32, False] > 17.1
    assert saved[2, True] > 22.9
    assert saved[32, True] > 26.3
    assert max(saved.values()) < 100 * found.limit < 28.6
    times = parts.seconds.sum(axis=2)
    for stored, least in ((2, 14.3), (32, 16.2)):
        assert 100 * (1 - steps_of_slow_data(parts.seconds, stored).mean() / times.max(axis=1).mean()) > least


@recorded
@pytest.mark.slow
def test_recorded_workers_share_their_steps_as_published():
    """Measured: 26.7, 27.2 (training), 9.4, 9.7, 67.4 % (second half)."""
    cases = [("llm_training_32", 2, 0.0, 26.6), ("llm_training_32", 3, 0.0, 27.1)]
    cases += [(f"pai_job_{job}_10", 2, 0.5, least) for job, least in ((1, 9.4), (2, 9.7), (4, 67.3))]
    for name, stored, first, least in cases:
        rows = load_trace(TRACES / f"{name}_workers.csv").rows()
        rows = rows[round(first * len(rows)) :]
        taken = steps_of_slow_workers(rows, WorkSharing(rows.shape[1], stored, 8))
        assert 100 * (1 - taken.mean() / rows.max(axis=1).mean()) > least, name
