"""Chunks dealt by length to each worker as many, and steps that go chunk by chunk."""

import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcgc_jax.balancing.remedies import (
    AlikeRows,
    Dealt,
    DealtEqual,
    Limit,
    Nothing,
    OtherMachines,
    Sorted,
)
from bcgc_jax.balancing.scheme import Resources
from bcgc_jax.balancing.scheme_names import possible
from bcgc_jax.balancing.steps import Steps
from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.diagnosis.causes import Parts, losses
from bcgc_jax.traces.trace import Trace, load_trace

TRACES = Path(os.environ.get("TRACES", Path(__file__).parents[3] / "shared" / "traces"))


def _steps(
    count: int, workers: int, chunks: int, *, lock_step: bool, alike: bool = True
) -> Steps:
    rng = np.random.default_rng(count)
    lengths = rng.gamma(1.5, 1.0, (count, workers, chunks)) + 0.1
    pace = (
        np.ones((count, workers)) if alike else rng.uniform(0.8, 1.5, (count, workers))
    )
    pauses = np.zeros(lengths.shape) if alike else rng.exponential(0.1, lengths.shape)
    return Steps(pace, lengths, pauses, 0 * pace, lengths, lock_step=lock_step)


def _lock_step(rows: list[list[float]]) -> float:
    """What a step takes that goes chunk by chunk, of each worker's seconds."""
    return sum(max(together) for together in zip(*rows, strict=True))


@pytest.mark.parametrize("kind", [Sorted, AlikeRows, DealtEqual])
def test_each_worker_gets_its_number_of_chunks_and_all_are_dealt(kind):
    costs = _steps(30, 5, 4, lock_step=True).lengths
    dealt = kind().chunks(costs)
    assert dealt.shape == costs.shape
    assert (np.sort(dealt.reshape(30, -1), axis=1) == np.arange(20)).all()
    inside = np.take_along_axis(
        costs.reshape(30, -1), dealt.reshape(30, -1), 1
    ).reshape(30, 5, 4)
    assert (np.diff(inside, axis=2) <= 0).all()
    if kind is Sorted:
        assert (dealt // 4 == np.arange(5)[:, None]).all()
    if kind is AlikeRows:
        assert (inside[:, :, :-1].min(axis=1) >= inside[:, :, 1:].max(axis=1)).all()


@pytest.mark.parametrize("alike", [True, False])
def test_a_step_that_goes_chunk_by_chunk_against_a_loop(alike):
    steps = _steps(20, 4, 3, lock_step=True, alike=alike)
    seconds = steps.seconds
    want = [_lock_step(rows) for rows in seconds.tolist()]
    np.testing.assert_allclose(Nothing().replay(steps).seconds, want, rtol=1e-14)
    assert (Limit().replay(steps).seconds <= want).all()
    order = Sorted().chunks(steps.lengths)
    rows = []
    for pace, lengths, pauses, dealt in zip(*steps[:3], order, strict=True):
        dealt_lengths = [[lengths.ravel()[chunk] for chunk in of] for of in dealt]
        rows.append(
            _lock_step((pace[:, None] * np.array(dealt_lengths) + pauses).tolist())
        )
    np.testing.assert_allclose(Sorted().replay(steps).seconds, rows, rtol=1e-14)
    slow = np.arange(4) == 2
    pace = steps.pace.copy()
    pace[:, 2] = np.median(np.delete(pace, 2, axis=1), axis=1)
    pauses = np.where(slow[:, None], 0, steps.pauses)
    by_loop = [
        _lock_step(step)
        for step in (pace[:, :, None] * steps.lengths + pauses).tolist()
    ]
    np.testing.assert_allclose(
        OtherMachines(slow).replay(steps).seconds, by_loop, rtol=1e-14
    )


def test_rows_of_alike_chunks_are_the_best_dealing_in_lock_step():
    """Of all that two workers can do with six chunks of one speed."""
    steps = _steps(10, 2, 3, lock_step=True)
    ends = AlikeRows().replay(steps).seconds
    for lengths, seconds in zip(
        steps.lengths.reshape(10, 6).tolist(), ends, strict=True
    ):
        dealings = (
            _lock_step([list(order[:3]), list(order[3:])])
            for order in itertools.permutations(lengths)
        )
        assert seconds == pytest.approx(min(dealings), rel=1e-14)


def test_dealing_equal_numbers_loses_little_and_sorting_needs_lock_step():
    steps = _steps(200, 6, 6, lock_step=False)
    nothing, any_number, equal, sorted_seconds = (
        scheme.replay(steps).seconds.mean()
        for scheme in (Nothing(), Dealt(), DealtEqual(), Sorted())
    )
    assert sorted_seconds == pytest.approx(nothing, rel=1e-14)
    assert any_number <= equal < 1.02 * any_number < 0.8 * nothing


def test_nothing_is_offered_in_lock_step_that_changes_the_numbers():
    names = list(possible(Resources(4, know_lengths=True, lock_step=True)))
    rows = ["own chunks sorted", "rows of alike chunks", "dealt, equal numbers"]
    assert names == ["limit", *rows, "nothing", "slowest replaced"]
    assert list(possible(Resources(4, 2, know_lengths=True, lock_step=True))) == [
        "limit",
        "own chunks sorted",
        "nothing",
        "slowest replaced",
    ]
    assert list(possible(Resources(4, know_lengths=True, know_speeds=False))) == [
        "limit",
        "dealt by length",
        "dealt, equal numbers",
        "nothing",
    ]


def test_what_causes_add_in_lock_step_is_the_loss_of_each_chunk():
    rng = np.random.default_rng(0)
    parts = Parts(
        rng.normal(0, 0.3, (9, 4)),
        rng.normal(0, 0.3, (9, 4)),
        rng.gamma(2.0, 1.0, (9, 4, 3)),
        rng.exponential(0.2, (9, 4, 3)),
    )
    causes = losses(parts, lock_step=True)
    total = [_lock_step(rows) for rows in parts.seconds.tolist()]
    total = np.array(total) - parts.seconds.sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(sum(causes.values()), total, rtol=1e-12)
    data_alone = Parts(0 * parts.steady, 0 * parts.random, parts.data, 0 * parts.pauses)
    causes_of_data = losses(data_alone, lock_step=True)
    assert [
        name for name, added in causes_of_data.items() if np.abs(added).max() > 1e-12
    ] == ["data"]


def _log(text: str, **options: Any) -> Trace:
    return load_trace(io.BytesIO(text.encode()), **options)


def test_lengths_alone_cost_what_is_said():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 2000, (12, 4, 5))
    rows = "".join(f"{s},{w},{c},{n}\n" for (s, w, c), n in np.ndenumerate(lengths))
    text = f"step,worker,chunk,load\n{rows}"
    trace = _log(text, cost=(2.0, 0.001))
    want = 2.0 * lengths + 0.001 * lengths**2
    np.testing.assert_allclose(trace.rows(), want.sum(axis=2), rtol=1e-14)
    advice = advise(trace, lock_step=True)
    # What they lose is of the data: workers are alike by what is said.
    assert advice.causes["data"].value == pytest.approx(1, abs=1e-5)  # 2e-6
    assert advice.slow_workers == []
    assert advice.step == pytest.approx(want.max(axis=1).sum(axis=1).mean(), rel=1e-12)
    assert advice.advised == "rows of alike chunks"
    steps = Steps(
        np.ones((12, 4)), want, 0 * want, np.zeros((12, 4)), want, lock_step=True
    )
    for scheme in (Sorted(), AlikeRows(), DealtEqual()):
        saved = 1 - scheme.replay(steps).seconds.mean() / steps.last().mean()
        # The model of the log takes a millionth for chance: 2e-6.
        assert advice.row(scheme.name).saved.value == pytest.approx(saved, abs=1e-5)
    assert {row.remedy for row in advice.rows} == {
        "limit",
        *(scheme.name for scheme in (Sorted, AlikeRows, DealtEqual)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "step,worker,chunk,load,seconds\n1,a,0,5,1\n",
            "has seconds: a cost is for a log of lengt",
        ),
        (
            "step,worker,load\n1,a,5\n",
            "a log of lengths has the columns step, worker, chunk and",
        ),
        ("step,chunk,load\n1,0,5\n", "has no column worker"),
    ],
)
def test_what_is_no_log_of_lengths_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        _log(text, cost=(1.0, 0.0))


def test_lock_step_needs_chunks():
    rows = "".join(
        f"{step},{worker},{1 + step % 3 + worker}\n"
        for step in range(9)
        for worker in (0, 1)
    )
    with pytest.raises(
        ValueError, match="lock-step is of chunks, and the log has none"
    ):
        advise(_log(f"step,worker,seconds\n{rows}"), lock_step=True)


@pytest.mark.slow
def test_the_training_job_saves_what_is_documented():
    """Its forward passes stand for lengths: its data are slow, not its workers.

    So the recorded seconds may be dealt too. They save 24.5, 32.7 and 47.7 %.
    """
    path = TRACES / "llm_training_32_workers_microbatches.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    header, *rows = path.read_text().splitlines()
    place = header.split(",").index("forward_seconds")
    text = "\n".join(
        [f"{header},load", *(f"{row},{row.split(',')[place]}" for row in rows)]
    )
    trace = _log(text)
    assert trace.microbatches is not None
    seconds = trace.microbatches.seconds
    for scheme, lock_step, percent in (
        (DealtEqual(), False, 24.3),
        (Sorted(), True, 32.7),
        (AlikeRows(), True, 47.6),
    ):
        saved = 100 * advise(trace, lock_step=lock_step).row(scheme.name).saved.value
        assert saved == pytest.approx(percent, abs=0.1)
        pace = np.ones(seconds.shape[:2])
        costs = trace.microbatches.load
        steps = Steps(pace, seconds, 0 * seconds, 0 * pace, costs, lock_step=lock_step)
        recorded = 100 * (1 - scheme.replay(steps).seconds.mean() / steps.last().mean())
        assert saved == pytest.approx(recorded, abs=0.3)  # 0.2, 0.0, 0.1
