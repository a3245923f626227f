"""A column `wait`: own seconds are what is left, and the least wait the collective."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest

from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.diagnosis.slowness import NOT_TIMED_APART, WAITED_ELSEWHERE, slowness_in
from bcgc_jax.traces.trace import Trace, load_trace

_SECONDS = "step,worker,seconds\n"
_WAIT = "step,worker,seconds,wait\n"


def _read(rows: str, header: str = _WAIT, **options: Any) -> Trace:
    return load_trace(io.BytesIO(f"{header}{rows}".encode()), **options)


def _rows(*columns: np.ndarray) -> str:
    """Rows of these columns, each `[S, W]`."""
    lines = []
    for step, worker in np.ndindex(columns[0].shape):
        numbers = ",".join(repr(float(column[step, worker])) for column in columns)
        lines.append(f"{step},{worker},{numbers}\n")
    return "".join(lines)


def _waited(work: np.ndarray, collective: float) -> str:
    """What the clock of a job says: all of a step leave the collective together."""
    ends = np.broadcast_to(work.max(axis=1, keepdims=True) + collective, work.shape)
    return _rows(ends, ends - work)


def test_the_vector_of_the_derivation():
    trace = _read("1,0,1,.05\n1,1,1,.45\n1,2,1,.25\n2,0,2,.9\n2,1,2,.1\n2,2,2,.5\n")
    np.testing.assert_allclose(
        trace.rows(), [[0.95, 0.55, 0.75], [1.1, 1.9, 1.5]], rtol=1e-15
    )
    assert trace.collective is not None
    assert trace.collective.tolist() == [0.05, 0.1]


def test_a_log_behind_a_collective_says_with_waits_what_own_seconds_say():
    """In binary fractions, of which sums are exact."""
    work = np.round(256 * np.random.default_rng(1).gamma(9.0, 0.1, (24, 4))) / 256
    work[:, 2] *= 1.5
    seconds = _rows(
        np.broadcast_to(work.max(axis=1, keepdims=True), work.shape) + 0.125
    )
    alike = slowness_in(_read(seconds, _SECONDS))
    assert alike is not None
    assert alike.remarks()[0] == NOT_TIMED_APART
    assert "a column `wait`" in NOT_TIMED_APART
    waits = advise(_read(_waited(work, 0.125)))
    plain = advise(_read(_rows(work), _SECONDS))
    assert waits.slow_workers[0].worker == "2"
    assert (waits.collective, plain.collective) == (0.125, None)
    # Unknown ends of intervals are NaN, and equal nothing.
    assert str(dataclasses.replace(waits, collective=None)) == str(plain)
    assert waits.remarks()[0].startswith("The collective itself takes 0.125 s more")
    assert waits.remarks()[1:] == plain.remarks()


def test_all_alike_without_their_waits_have_waited_elsewhere():
    work = np.exp(np.random.default_rng(0).normal(0, 0.5, (20, 1))) * np.ones((20, 4))
    slowness = slowness_in(_read(_waited(work, 0.1)))
    assert slowness is not None
    assert slowness.remarks()[0] == WAITED_ELSEWHERE


def test_the_collective_of_chunks_is_the_least_wait_of_a_whole_step():
    rows = "1,a,0,1,\n1,a,1,2,.5\n1,b,0,2,.25\n1,b,1,1.5,.75\n"
    trace = _read(rows, "step,worker,chunk,seconds,wait\n")
    assert trace.microbatches is not None
    assert trace.microbatches.seconds.tolist() == [[[1.0, 1.5], [1.75, 0.75]]]
    assert trace.collective is not None
    assert trace.collective.tolist() == [0.5]


def test_waits_are_in_the_unit_of_seconds_and_may_have_another_name():
    text = "step,worker,dur,sync\n1,a,8,2\n1,b,8,4\n"
    trace = load_trace(io.BytesIO(text.encode()), seconds="dur", wait="sync", unit="ms")
    np.testing.assert_allclose(trace.rows(), [[0.006, 0.004]], rtol=1e-15)
    assert trace.collective == pytest.approx([0.002], rel=1e-15)


@pytest.mark.parametrize("wait", ["1", "2", "-.1", "soon", "nan", "1_0"])
def test_a_wait_is_a_part_of_its_seconds(wait):
    with pytest.raises(
        ValueError, match=r"line 2: wait must be a part of seconds, from 0 to less"
    ):
        _read(f"1,a,1,{wait}\n")
