"""Files of one log are read as one, and a line is named by its file."""

import numpy as np
import pytest

from bcgc_jax.traces.trace import load_trace

_HEADER = "step,worker,chunk,seconds\n"


def _files(folder, *texts):
    paths = []
    for number, text in enumerate(texts):
        (folder / f"worker-{number}.csv").write_text(text)
        paths.append(folder / f"worker-{number}.csv")
    return paths


def test_a_file_for_each_worker_is_the_log_of_all(tmp_path):
    rng = np.random.default_rng(0)
    seconds = rng.random((4, 3, 2)) + 0.5
    rows = [
        [
            f"{s},{w},{c},{seconds[s, w, c]!r}\n".replace("np.float64(", "").replace(
                ")", ""
            )
            for s in range(4)
            for c in range(2)
        ]
        for w in range(3)
    ]
    (tmp_path / "all.csv").write_text(_HEADER + "".join("".join(of) for of in rows))
    whole = load_trace(tmp_path / "all.csv")
    by_worker = load_trace(_files(tmp_path, *(_HEADER + "".join(of) for of in rows)))
    assert by_worker.microbatches is not None
    assert whole.microbatches is not None
    np.testing.assert_array_equal(by_worker.microbatches.seconds, seconds)
    np.testing.assert_array_equal(whole.microbatches.seconds, seconds)
    assert by_worker.worker_names.tolist() == ["0", "1", "2"]
    assert whole.worker_names.tolist() == ["0", "1", "2"]


def test_a_worker_may_be_named_by_its_file_and_columns_may_stand_otherwise(tmp_path):
    files = _files(
        tmp_path, "step,seconds\n1,2\n2,3\n", "seconds;host;step\n4;b;1\n5;b;2\n"
    )
    with pytest.raises(
        ValueError, match=r"worker-1\.csv has the columns seconds, host, step, and"
    ):
        load_trace(files)
    (tmp_path / "worker-1.csv").write_text("seconds;step\n4;1\n5;2\n")
    trace = load_trace(files)
    assert trace.worker_names.tolist() == ["worker-0", "worker-1"]
    assert trace.rows().tolist() == [[2.0, 4.0], [3.0, 5.0]]


def test_what_is_wrong_is_told_with_its_file_and_line(tmp_path):
    good = f"\n{_HEADER}1,a,0,2\n1,a,1,2\n"
    with pytest.raises(
        ValueError, match=r"worker-1\.csv, line 3: seconds must be a positive"
    ):
        load_trace(_files(tmp_path, good, f"{_HEADER}1,b,0,2\n1,b,1,soon\n"))
    with pytest.raises(
        ValueError, match=r"worker-0\.csv, line 4 and .*worker-1\.csv, line 2: step"
    ):
        load_trace(_files(tmp_path, good, f"{_HEADER}1,a,1,2\n"))
    with pytest.raises(
        ValueError, match=r"worker-0\.csv and 1 other file has no measured time"
    ):
        load_trace(_files(tmp_path, _HEADER, _HEADER))
