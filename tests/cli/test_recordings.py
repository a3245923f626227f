"""`bcgc advise` of a folder, several files, a pattern: profilers' traces, and logs."""

import json

import numpy as np
import pytest

from bcgc_jax.traces.recorder import Recorder
from tests.cli.steps import written
from tests.traces.profiles.crafted import lengths, overlapped, write_jax, write_kineto


@pytest.fixture
def traces(tmp_path):
    return write_kineto(tmp_path / "traces", overlapped(lengths(24, 4, 4)))


def _said(out: str) -> str:
    return " ".join(out.split())


def test_a_folder_of_traces_is_advised_on(command, traces):
    (traces / "notes.txt").write_text("no trace")
    status, out, err = command("advise", str(traces))
    assert (status, err) == (0, "")
    said = _said(out)
    assert said.startswith(
        "The traces of the PyTorch profiler contain 4 workers and 23 steps with 5"
    )
    assert (
        "A chunk lasts from one DistributedDataParallel.forward to the next. A" in said
    )
    assert "traces: 4 workers, 23 steps, 4 chunks in a worker's step." in said
    assert "The collective itself takes 0.00" in said
    assert "long chunks: data, or a core that others use" in said
    assert "Forward passes are longer too: that is data, or a core that" in said
    assert "Do this: share the work" in said


def test_a_step_of_one_chunk_asks_for_microbatches(command, tmp_path):
    folder = write_kineto(tmp_path / "traces", overlapped(lengths(24, 4, 1)))
    said = _said(command("advise", str(folder))[1])
    assert "A worker's step is one chunk. Record one with several microbatches" in said
    assert "Give a row for each chunk" not in said


def test_the_log_that_was_made_gives_the_same_answer(command, answer, traces, tmp_path):
    log = tmp_path / "made.csv"
    status, out, err = command(
        "advise", str(traces), "--log", str(log), "--format", "csv"
    )
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("bcgc: The traces of the PyTorch profiler contain 4 workers")
    assert command("advise", str(log), "--format", "csv")[1] == out
    assert answer("advise", str(log)) == answer("advise", str(traces))
    assert log.read_text().startswith(
        "step,worker,chunk,seconds,wait,forward_seconds\n1,0,0,0."
    )


def test_files_and_patterns_are_a_folder(answer, traces):
    output = answer("advise", str(traces))
    assert (
        answer("advise", *(str(traces / f"rank{number}.json") for number in range(4)))
        == output
    )
    assert answer("advise", str(traces / "rank*.json")) == output


def test_jax_names_workers_after_their_folders(answer, tmp_path):
    folder = write_jax(tmp_path / "log", overlapped(lengths(24, 3, 4)), chunks=True)
    output = answer("advise", str(folder), "--chunk-name", "gradient")
    assert (output["num_workers"], output["num_chunks"]) == (3, 4)
    assert output["num_steps"] == 23
    assert output["recorded"]


def test_a_folder_of_a_recorder_is_a_log(command, answer, tmp_path):
    """Of seconds and waits, by a clock that goes as is said."""
    seconds = np.round(256 * np.random.default_rng(1).gamma(9.0, 0.1, (12, 4))) / 256
    ends = seconds.max(axis=1) + 0.125
    for worker in range(4):
        record = Recorder(tmp_path / "log", worker)
        columns = ("step", "worker", "host", "seconds", "wait")
        for step in range(12):
            record.write(columns, step, ends[step], ends[step] - seconds[step, worker])
        record.close()
    output = answer("advise", str(tmp_path / "log"))
    plain = answer("advise", written(tmp_path / "plain.csv", seconds))
    # In binary fractions, of which sums are exact.
    assert output == {**plain, "collective": 0.125}
    text = command("advise", *map(str, sorted((tmp_path / "log").iterdir())))[1]
    assert "worker-0.csv and 3 others: 4 workers, 12 steps." in _said(text)


def test_what_has_no_effect_or_is_not_there_is_refused(
    refusal, traces, trace, tmp_path
):
    assert "--chunk-name has no effect without traces" in refusal(
        "advise", trace, "--chunk-name", "x"
    )
    log = str(tmp_path / "made.csv")
    assert "--log has no effect without traces" in refusal(
        "advise", trace, "--log", log
    )
    assert "--unit has no effect on traces" in refusal(
        "advise", str(traces), "--unit", "ms"
    )
    assert "--log must end in .csv" in refusal(
        "advise", str(traces), "--log", "made.json"
    )
    assert "rank0.json is named x" in refusal(
        "advise", str(traces), "--chunk-name", "x"
    )
    assert "'none' does not exist" in refusal("advise", "none")
    (tmp_path / "log.parquet").write_bytes(b"PAR1\x15\x04\x00\n")
    assert (
        "log.parquet is not a text file (UTF-8): write it as CSV, by pandas"
        in refusal("advise", str(tmp_path / "log.parquet"))
    )
    (tmp_path / "empty").mkdir()
    assert (
        "empty has no traces of a profiler (PyTorch: *.json, JAX: *.xplane.pb), and"
        in refusal("advise", str(tmp_path / "empty"))
    )
    broken = traces / "rank1.json"
    broken.write_text(broken.read_text()[:-100])
    assert "rank1.json is truncated. Copy it again" in refusal("advise", str(traces))


def test_a_bad_event_is_no_traceback(refusal, traces):
    """Fields that a profiler never leaves out, and that are not what they should be."""
    file = traces / "rank1.json"
    content = json.loads(file.read_text())
    for odd in ({"ts": "soon"}, {"dur": None}, {"args": 3}):
        first = {**content["traceEvents"][0], **odd}
        file.write_text(json.dumps({**content, "traceEvents": [first]}))
        assert "rank1.json has an event that no profiler writes: {" in refusal(
            "advise", str(traces)
        )
