"""Reading of measured times."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bcgc_jax.traces import load_trace

_SHARED = Path(__file__).parents[2] / "shared/traces/llm_training_32_workers.csv"


def _write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return str(path)


def test_a_trace_is_read_whatever_the_order_of_its_columns_and_rows(tmp_path):
    text = "seconds,note,worker,step\n2.5,x,b,1\n1.25,,a,1\n3.5,y,a,2\n0.75,z,b,2\n"
    trace = load_trace(_write(tmp_path, text))
    assert trace.seconds.tolist() == [2.5, 1.25, 3.5, 0.75]
    assert (trace.num_workers, trace.num_steps) == (2, 2)
    np.testing.assert_allclose(np.asarray(trace.law().times), [0.75, 1.25, 2.5, 3.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("step,worker,seconds\n", "no rows"),
        ("step,worker,time\n1,a,2\n", "no column seconds"),
        ("step,worker,seconds\n1,a,2\n1,b,fast\n", "line 3: seconds must be a positive number, got 'fast'"),
        ("step,worker,seconds\n1,a,2\n1,b,-1\n", "line 3"),
        ("step,worker,seconds\n1,a,0\n1,b,1\n", "line 2"),
        ("step,worker,seconds\n1,a,nan\n1,b,1\n", "line 2"),
        ("step,worker,seconds\n1,a,inf\n1,b,1\n", "line 2"),
        ("step,worker,seconds\n1,a,1\n1\n", "line 3"),
        ("step,worker,seconds\n1,a,1\n2,a,3\n", "one worker only"),
        ("step;worker;seconds\n1;a;1\n", "no column step, worker, seconds"),
    ],
)
def test_a_broken_trace_is_refused_with_its_reason(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"trace\.csv") as caught:
        load_trace(_write(tmp_path, text))
    assert message in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x81" * 50)
    with pytest.raises(ValueError, match="not a text file"):
        load_trace(str(path))


def test_the_shared_trace_has_32_workers():
    if not _SHARED.exists():
        pytest.skip("the shared trace is not laid out beside the project")
    trace = load_trace(str(_SHARED))
    with _SHARED.open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert (trace.num_workers, trace.num_steps, trace.seconds.size) == (32, 43, len(seconds))
    assert float(trace.law().mean()) == pytest.approx(sum(seconds) / len(seconds), rel=1e-5)


def test_rows_are_the_steps_of_the_trace(tmp_path):
    text = "step,worker,seconds\n7,b,2.5\n7,a,1.25\n3,a,3.5\n3,b,0.75\n"
    assert load_trace(_write(tmp_path, text)).rows().tolist() == [[2.5, 1.25], [0.75, 3.5]]
    missing = "step,worker,seconds\n7,b,2.5\n7,a,1.25\n3,a,3.5\n"
    with pytest.raises(ValueError, match="step 3 has no time of worker b"):
        load_trace(_write(tmp_path, missing)).rows()
    twice = text + "3,a,9.0\n"
    with pytest.raises(ValueError, match="step 3 has two times of worker a"):
        load_trace(_write(tmp_path, twice)).rows()
