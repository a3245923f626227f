"""Steps that are left out: what is said of them."""

import pytest

import bcgc_jax as bcgc
from bcgc_jax.traces.trace import load_trace
from bcgc_jax.traces.whole_steps import (
    fewer_chunks_in_words,
    left_out_in_words,
    whole_steps,
)


def _chunks(path, numbers):
    """Write a log with so many chunks of each step and worker."""
    rows = ["step,worker,chunk,seconds"]
    for step, of_workers in enumerate(numbers):
        for worker, count in enumerate(of_workers):
            rows += [
                f"{step},{worker},{chunk},{1 + 0.01 * worker}" for chunk in range(count)
            ]
    path.write_text("\n".join(rows))
    return whole_steps(load_trace(path))


def test_steps_of_fewer_chunks_are_told_from_a_worker_that_is_missing(tmp_path):
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (6, 6)] * 20)
    said = [
        "Left out: 20 steps in which each worker has 6 of 8 chunks. Ask about these "
        "steps again"
    ]
    assert [text.partition(" in a log")[0] for text in left_out_in_words(steps)] == said
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (6, 6), (8, 8), (7, 7)])
    assert (
        "2 steps in which each worker has 6 or 7 of 8 chunks"
        in left_out_in_words(steps)[0]
    )
    # Where workers differ, their sums can be compared.
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (6, 8), (8, 8), (8, 7)])
    (text,) = left_out_in_words(steps)
    assert (
        "2 steps in which a worker has fewer than 8 chunks, 6 at least. To use them"
        in text
    )
    # One that breaks off.
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (8, 8), (8, 7)])
    said = ["Left out: 1 step in which a worker has fewer than 8 chunks, 7 at least."]
    assert left_out_in_words(steps) == fewer_chunks_in_words(steps) == said
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (8, 8), (8, 0), (6, 6)])
    first, *remarks = left_out_in_words(steps)
    assert first.startswith("Left out: 1 step in which each worker has 6 of 8 chunks.")
    assert remarks == [
        "Left out: 1 step in which a worker has no whole time.",
        "Worker 1 has one in 2 of 4 steps.",
    ]
    assert left_out_in_words(_chunks(tmp_path / "log.csv", [(8, 8)] * 2)) == []


def test_too_few_steps_of_as_many_chunks_are_refused_in_the_same_words(tmp_path):
    steps = _chunks(tmp_path / "log.csv", [(8, 8), (6, 6), (6, 6)])
    with pytest.raises(
        ValueError, match="2 steps in which each worker has 6 of 8 chunks"
    ):
        bcgc.advise(steps.trace)


def test_all_that_is_there_of_chunks_counts_for_the_forward_pass(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "step,worker,chunk,seconds,forward_seconds\n"
        "0,a,0,3,1\n0,a,1,3,1\n0,b,0,3,1\n0,b,1,3,1\n1,a,0,6,3\n1,b,0,6,3\n1,b,1,6,3\n"
    )
    parts = load_trace(path).microbatches
    assert parts is not None
    assert parts.forward_ratio == pytest.approx((4 + 9) / (8 + 9))
    assert parts.whole_steps().seconds.shape == (1, 2, 2)
