"""Times of microbatches: read, and asked whether the workers are slow or the data."""

import io
import re

import numpy as np
import pytest

from bcgc_jax.diagnosis.description import describe
from bcgc_jax.traces.microbatches import predicted_seconds
from bcgc_jax.traces.trace import Trace, load_trace
from experiments.report import TRACES
from tests.problems import not_none

RECORDED = TRACES / "llm_training_32_workers_microbatches.csv"
recorded = pytest.mark.skipif(
    not RECORDED.exists(), reason=f"{RECORDED.name} is not part of the repository"
)

_HEADER = "step,worker,chunk,load,seconds,forward_seconds\n"


def _read(rows: str, header: str = _HEADER) -> Trace:
    return load_trace(io.BytesIO(f"{header}{rows}".encode()))


def test_microbatches_are_read_and_a_step_is_their_sum():
    trace = _read(
        "2,a,10,4,3,1\n"
        "2,a,9,5,6,2\n"
        "1,b,9,7,1.5,.5\n"
        "1,b,10,8,2.5,1\n"
        "1,a,9,6,4,1\n"
        "1,a,10,3,5,1.5\n"
        "2,b,9,1,,\n"
    )
    parts = trace.microbatches
    assert parts is not None
    assert (trace.step_names.tolist(), trace.worker_names.tolist()) == (
        ["1", "2"],
        ["a", "b"],
    )
    np.testing.assert_array_equal(trace.table(), [[9.0, 4.0], [9.0, np.nan]])
    assert trace.num_missing == 1
    # [step][worker][microbatch], in the order of the numbers 9 and 10.
    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(
        parts.seconds, [[[4, 5], [1.5, 2.5]], [[6, 3], nothing]]
    )
    np.testing.assert_array_equal(
        parts.forward, [[[1, 1.5], [0.5, 1]], [[2, 1], nothing]]
    )
    np.testing.assert_array_equal(parts.load, [[[6, 3], [7, 8]], [[5, 4], nothing]])
    assert parts.forward_ratio == pytest.approx(7 / (22 - 7))


def test_a_log_that_breaks_off_within_a_step_is_read_up_to_there():
    rows = "1,a,0,2\n1,a,1,3\n1,b,0,4\n1,b,1,5\n2,a,0,6\n2,a,1,7\n2,b,0,8\n"
    trace = _read(rows, "step,worker,chunk,seconds\n")
    np.testing.assert_array_equal(trace.table(), [[5, 9], [13, np.nan]])
    parts = not_none(trace.microbatches)
    np.testing.assert_array_equal(parts.seconds[1], [[6, 7], [8, np.nan]])
    assert parts.whole_steps().seconds.tolist() == [[[2, 3], [4, 5]]]


def test_without_a_column_chunk_nothing_changes_and_forward_and_load_may_be_left_out():
    plain = _read(
        "1,a,4,2,1\n1,a,8,3,1\n", "step,worker,load,seconds,forward_seconds\n"
    )
    assert plain.microbatches is None
    assert plain.load is not None
    alone = _read("1,a,0,2\n1,a,1,3\n", "step,worker,chunk,seconds\n").microbatches
    assert alone is not None
    assert (alone.forward, alone.load, alone.forward_ratio) == (None, None, None)
    # A column of that name may be another's.
    named = load_trace(
        io.BytesIO(b"step,chunk,seconds\n1,a,2\n1,b,3\n"), worker="chunk"
    )
    assert (named.worker_names.tolist(), named.microbatches) == (["a", "b"], None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "1,a,0,1,2,1\n1,b,0,1,2,1\n1,a,0,1,3,1\n",
            (
                "lines 2 and 4: step 1 has two times of chunk 0 of worker a: leave out "
                "what"
            ),
        ),
        (
            "1,a,0,1,2,1\n1,a,1,1,2,1\n1,b,1,1,3,1\n",
            (
                "no step has all chunks of all workers. Step 1 has no time of chunk 0 "
                "of worker b"
            ),
        ),
        (
            "1,a,0,1,2,1\n1,a,1,1,2,1\n1,b,0,1,3,1\n",
            "no time of chunk 1 .*unequal numbers of chunks, give",
        ),
        (
            "1,a,0,1,2,2\n",
            "line 2: forward_seconds must be a part of seconds.*got '2' of 2",
        ),
        (
            "1,a,0,1,2,\n",
            (
                "line 2: forward_seconds must .*give it for all chunks, or leave the "
                "column out"
            ),
        ),
        (
            "1,a,0,,2,1\n1,a,1,4,2,1\n",
            "line 2: load is empty, .* in all rows, or in none",
        ),
        ("1,a,,1,2,1\n", "line 2: the label of a step, worker or chunk is empty"),
    ],
)
def test_microbatches_that_cannot_be_are_refused_with_their_reason(rows, message):
    with pytest.raises(ValueError, match=message):
        _read(rows)


def test_microbatches_that_were_cut_off_and_wide_files_are_refused():
    text = b"step,worker,chunk,seconds,cut\n1,a,0,2,1\n"
    with pytest.raises(
        ValueError,
        match="chunks that were cut off are not supported: leave their steps",
    ):
        load_trace(io.BytesIO(text), censored="cut")
    with pytest.raises(ValueError, match="the wide layout has no place for chunk"):
        load_trace(io.BytesIO(b"step,chunk,w1\n1,0,2\n"), layout="wide")


def test_seconds_are_a_line_through_the_loads():
    lengths = np.random.default_rng(0).gamma(2.0, 1.0, (8, 5, 3)) + 0.1
    seconds = 0.5 + 3 * lengths * np.random.default_rng(1).uniform(
        0.7, 1.4, lengths.shape
    )
    line = np.polynomial.Polynomial.fit(lengths.ravel(), seconds.ravel(), 1)
    prediction = predicted_seconds(seconds, lengths)
    np.testing.assert_allclose(prediction, np.asarray(line(lengths)), rtol=1e-10)
    # Where a line would be below 0.
    steep = 10 * lengths**3
    assert predicted_seconds(steep, lengths).min() == pytest.approx(0.01 * steep.mean())


def test_one_microbatch_alone_says_not_who_is_slow():
    description = describe(
        _read("1,a,0,2\n1,b,0,3\n2,a,0,2\n2,b,0,3\n", "step,worker,chunk,seconds\n")
    )
    assert not_none(description.slowness).causes.keys() == {"rest"}
    assert not re.search("microbatch|chunk", " ".join(description.remarks()))


@recorded
def test_the_recorded_microbatches_are_slow_by_their_data():
    """What the README of the traces says of them."""
    trace = load_trace(RECORDED)
    parts = not_none(trace.microbatches)
    assert not_none(describe(trace, with_tail=False).slowness).of_data
    assert parts.forward_ratio == pytest.approx(0.466, abs=5e-4)
    assert (parts.seconds.shape, trace.num_missing) == ((43, 32, 8), 0)
