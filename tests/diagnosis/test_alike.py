"""Logs of own computation and logs behind a collective are told apart if possible."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.diagnosis.slowness import (
    deviations,
    slowness_in,
    workers_alike,
)
from bcgc_jax.traces.trace import load_trace
from bcgc_jax.traces.whole_steps import whole_steps
from experiments.advice import OWN
from experiments.report import TRACES
from tests.cli.steps import trace_of
from tests.problems import not_none

# Workers and steps.
SIZES = [(2, 8), (2, 32), (8, 8), (8, 100), (32, 8), (32, 100)]


def _normal(rng, deviation, *shape):
    return np.exp(rng.normal(0, deviation, shape))


def _own_seconds(rng, kind, steps, workers):
    """Seconds of own computation, `[S, W]`."""
    shape = steps, workers
    if kind == "independent":
        return _normal(rng, rng.choice([0.05, 0.1, 0.3, 0.6]), *shape)
    if kind == "a heavy tail":
        return 1 + rng.pareto(2, shape)
    if kind == "slow data":
        return _normal(rng, rng.uniform(0.25, 0.7), *shape, 8).sum(axis=2)
    if kind == "pauses":
        pauses = np.where(rng.random(shape) < 0.05, rng.uniform(1, 8, shape), 0)
        return _normal(rng, 0.05, *shape) + pauses
    times = _normal(rng, 0.1, *shape)
    if kind == "a slow worker":
        times[:, rng.integers(workers)] *= rng.choice([1.2, 1.5, 3])
    elif kind == "a first step that compiles":
        times[0] *= 20
    elif kind == "twice the data from a step on":
        times[steps // 2 :] *= 2
    return times


def _alike(tables):
    return sum(map(workers_alike, tables))


@pytest.mark.parametrize(
    "kind",
    [
        "independent",
        "a heavy tail",
        "slow data",
        "pauses",
        "a slow worker",
        "a first step that compiles",
        "twice the data from a step on",
    ],
)
def test_own_computation_is_seldom_taken_for_times_behind_a_collective(kind):
    for workers, steps in SIZES:
        rng = np.random.default_rng([1, workers, steps])
        count = _alike(_own_seconds(rng, kind, steps, workers) for _ in range(50))
        # Two workers in eight steps are alike by chance, in 2 of 200 logs at worst;
        # others in none.
        assert count <= (2 if (workers, steps) == (2, 8) else 0), (workers, steps)


def _all_slow(rng, kind, steps):
    """What all workers take more in a step by one cause, `[S, 1]`."""
    if kind == "in 15 % of steps":
        factor = np.where(rng.random(steps) < 0.15, rng.uniform(1.5, 4, steps), 1)
    elif kind == "in each step":
        factor = _normal(rng, 0.5, steps)
    else:
        deviation = rng.choice([0.1, 0.3])
        drift = [rng.normal()]
        for _ in range(steps - 1):
            drift.append(0.9 * drift[-1] + np.sqrt(1 - 0.9**2) * rng.normal())
        factor = np.exp(deviation * np.array(drift))
    return factor[:, None]


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("kind", "between", "counts"),
    [
        ("in 15 % of steps", 0.1, [45, 7, 27, 0, 32, 0]),
        ("drift", 0.03, [73, 99, 90, 102, 81, 104]),
        ("drift", 0.1, [3, 0, 4, 0, 0, 0]),
        ("in each step", 0.1, [168, 200, 185, 200, 191, 200]),
        ("in each step", 0.3, [35, 26, 18, 0, 9, 0]),
        (0.1, 0.01, [200, 200, 191, 200, 194, 200]),
        (0.1, 0.03, [107, 162, 87, 102, 62, 8]),
        (0.3, 0.03, [194, 200, 191, 200, 194, 200]),
        (0.3, 0.1, [90, 135, 75, 45, 47, 0]),
        (1.0, 0.1, [194, 200, 191, 200, 194, 200]),
    ],
)
def test_the_table_of_the_module_is_true(kind, between, counts):
    """A study of 12,000 logs. A number as kind: own times behind a collective."""
    alike_counts = []
    for workers, steps in SIZES:
        tables = []
        for log in range(200):
            rng = np.random.default_rng([10_000 + log, workers, steps])
            if isinstance(kind, str):
                common = _all_slow(rng, kind, steps)
            else:
                common = _normal(rng, kind, steps, workers).max(axis=1, keepdims=True)
            tables.append(common * _normal(rng, between, steps, workers))
        alike_counts.append(_alike(tables))
    # Rounding may move a log that is at the edge.
    np.testing.assert_allclose(alike_counts, counts, atol=1)


@pytest.mark.parametrize(
    ("jitter", "deviation"), [(0.0, 0.1), (0.01, 0.1), (0.03, 0.3), (0.1, 1.0)]
)
def test_a_log_behind_a_collective_is_seen_where_jitter_is_small_against_steps(
    jitter, deviation
):
    """All wait for the slowest of independent workers; the number is their spread."""
    for workers, steps in SIZES:
        rng = np.random.default_rng([2, workers, steps])
        tables = (
            _normal(rng, deviation, steps, workers).max(axis=1, keepdims=True)
            * _normal(rng, jitter, steps, workers)
            for _ in range(50)
        )
        # The worst: 44 of 50 for eight steps, and 50 for more.
        assert _alike(tables) >= (40 if steps == 8 else 49), (workers, steps)


def test_the_two_deviations_are_those_that_were_put_in():
    rng = np.random.default_rng(3)
    steps = _normal(rng, 0.4, 2000, 1)
    steps[:100] *= 5
    steps[500] *= 50
    for workers in (2, 32):
        common, between = deviations(steps * _normal(rng, 0.1, 2000, workers))
        assert (common, between) == (
            pytest.approx(0.4, rel=0.05),
            pytest.approx(0.1, rel=0.05),
        )
    assert deviations(_normal(rng, 0.1, 2000, 8))[0] < 0.02


def test_a_worker_that_stays_slow_has_not_waited():
    rng = np.random.default_rng(4)
    times = _normal(rng, 0.4, 40, 1) * _normal(rng, 0.03, 40, 8)
    assert not_none(slowness_in(trace_of(times))).alike
    times[:, 3] *= 1.2
    assert workers_alike(times)
    slowness = not_none(slowness_in(trace_of(times)))
    (slow_worker,) = slowness.slow_workers
    assert (slow_worker.worker, slowness.alike) == ("3", False)


def test_a_pause_of_a_single_worker_has_kept_nobody_waiting():
    rng = np.random.default_rng(5)
    times = _normal(rng, 0.4, 40, 1) * _normal(rng, 0.03, 40, 8)
    assert workers_alike(times)
    usual = np.median(times[7])
    times[7, 2] = 1.8 * usual
    assert workers_alike(times)
    times[7, 2] = 2.3 * usual
    assert not workers_alike(times)


@pytest.mark.parametrize(
    ("steps", "workers", "ratio", "alike"),
    [
        # In long logs steps differ twice as much as workers, in the shortest one three
        # times.
        (100, 8, 1.9, False),
        (100, 8, 2.1, True),
        (8, 2, 2.8, False),
        (8, 2, 3.2, True),
    ],
)
def test_what_is_common_to_a_step_is_compared_with_what_is_not(
    steps, workers, ratio, alike
):
    apart = 0.03 * (-1.0) ** np.arange(workers)
    between = apart.std(ddof=1)
    changes = np.sqrt(2 * ((ratio * between) ** 2 + between**2 / workers)) / 1.4826
    times = np.exp(changes * (np.arange(steps)[:, None] % 2) + apart)
    assert np.divide(*deviations(times)) == pytest.approx(ratio, rel=1e-3)
    assert workers_alike(times) == alike


def test_few_steps_do_not_tell_what_is_common():
    rng = np.random.default_rng(6)
    times = _normal(rng, 0.4, 8, 1) * _normal(rng, 0.03, 8, 8)
    assert workers_alike(times)
    assert not workers_alike(times[1:])
    assert workers_alike(np.ones((2, 8)))


def test_nothing_is_said_of_causes_and_remedies():
    rng = np.random.default_rng(7)
    times = _normal(rng, 0.4, 40, 1) * _normal(rng, 0.03, 40, 8)
    advice = bcgc.advise(trace_of(times))
    assert advice.alike
    assert (advice.causes, advice.rows, advice.advised, advice.look_at) == (
        {},
        [],
        None,
        [],
    )
    first, second = advice.remarks()
    assert "Record the seconds of each worker's own computation" in first
    assert "all workers are slow in the same steps" in second
    apart = bcgc.advise(trace_of(times), timed_apart=True)
    assert (apart.alike, apart.causes.keys(), apart.together) == (
        False,
        {"steady", "rest"},
        advice.together,
    )
    assert apart.row("sharing:2").saved.low > 0


@pytest.mark.parametrize(
    "path", [*sorted(TRACES.glob("*.csv")), *OWN], ids=lambda path: path.stem
)
def test_recorded_own_computation_is_not_taken_for_times_behind_a_collective(path):
    if not path.exists():
        pytest.skip("this log is not part of the repository")
    times = whole_steps(load_trace(path)).times
    assert not workers_alike(times)
    # No eight steps in a row: common to all workers is at most 1.01 times what differs
    # between.
    starts = range(0, len(times) - 7, 1 + len(times) // 200)
    assert not any(workers_alike(times[start : start + 8]) for start in starts)
    rng = np.random.default_rng(8)
    waited = times.max(axis=1, keepdims=True) * _normal(rng, 0.003, *times.shape)
    assert workers_alike(waited)
