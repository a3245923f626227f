"""Logs that cannot be read or meant, and absurd numbers: one line, and status 2."""

import gzip
import warnings

import pytest

LONG = "step,worker,seconds\n" + "".join(
    f"{step},{worker},{1 + (7 * step + 3 * worker) % 5}\n"
    for step in range(9)
    for worker in range(3)
)
CHUNKS = "step,worker,chunk,seconds,load\n" + "".join(
    f"{step},{worker},{chunk},{1 + (7 * step + 3 * worker + chunk) % 5},2\n"
    for step in range(9)
    for worker in range(3)
    for chunk in range(2)
)
# What is in a file, and a part of what is said.
NO_LOGS: dict[str, tuple[bytes, str]] = {
    "an empty object": (b"{}", "line 1: an object without names"),
    "many empty objects": (b"{}\n{}\n", "line 1: an object without names"),
    "an array": (b'[{"step": 1}]', "is one JSON array"),
    "an array over lines": (b"[\n]", "is one JSON array"),
    "another object": (b'{"a": 1}', "has no column step, worker, seconds"),
    "a cut object": (b'{"step": 1, "wor', "line 1: not JSON"),
    "a deep object": (b'{"a": ' + 100_000 * b"[", "line 1: not JSON"),
    "a long number": (b'{"a": ' + 5000 * b"9" + b"}", "line 1: not JSON"),
    "nothing": (b"", "is empty"),
    "bytes": (bytes(range(256)), "is not a text file"),
    "a cut archive": (gzip.compress(LONG.encode())[:40], "is not a whole gzip file"),
    "a trace of another kind": (
        b'{"schemaVersion": 1, "distributedInfo": [1], "traceEvents": []}',
        "no collective",
    ),
    "a deep trace": (
        b'{"traceEvents": [{"ph": "X", "args": ' + 100_000 * b"[",
        "nested too deeply",
    ),
}


@pytest.mark.parametrize("name", NO_LOGS)
def test_a_file_that_is_no_log_is_refused(refusal, tmp_path, name):
    content, said = NO_LOGS[name]
    (tmp_path / "log.json").write_bytes(content)
    assert said in refusal("advise", str(tmp_path / "log.json"))


def test_a_broken_recording_of_jax_is_refused(refusal, tmp_path):
    (tmp_path / "vm.xplane.pb").write_bytes(b"no recording")
    assert "is not a trace of jax.profiler" in refusal(
        "advise", str(tmp_path / "vm.xplane.pb")
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("seconds", "1e308", "line 5: seconds must be from 1e-30 to 1e+30"),
        ("seconds", "1e-308", "line 5: seconds must be from 1e-30 to 1e+30"),
        ("load", "1e308", "line 5: load must be from 1e-30 to 1e+30"),
        ("seconds", "1e29", "step 0 has a time of 1e+29 s of worker 1"),
        ("seconds", "1e-29", "step 0 has a time of 1e-29 s of worker 1"),
        ("chunk", "-1", "line 5: '-1' is no label"),
        ("chunk", "nan", "line 5: 'nan' is no label"),
        ("worker", "-1", "line 5: '-1' is no label"),
        ("worker", "inf", "line 5: 'inf' is no label"),
        ("worker", "1e999", "line 5: '1e999' is no label"),
        ("step", "nan", "line 5: 'nan' is no label"),
    ],
)
def test_a_cell_that_cannot_be_meant_is_refused(refusal, tmp_path, column, value, said):
    header, *rows = CHUNKS.splitlines()
    cells = rows[3].split(",")
    cells[header.split(",").index(column)] = value
    text = "\n".join([header, *rows[:3], ",".join(cells), *rows[4:], ""])
    (tmp_path / "log.csv").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert said in refusal("advise", str(tmp_path / "log.csv"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--chunks 999999999", "at most 1,024"),
        ("--chunks nan", "whole number at least 2"),
        ("--round-trip 1e308", "at most 1,000,000,000"),
        ("--chunk-overhead 1e308", "at most 1,000,000,000"),
        ("--method nested:2 --forward 1e308", "from 0 to 10"),
        ("--cost 1e308,1e308", "from 0 to 1e+30"),
        ("--cost 1,nan", "from 0 to 1e+30"),
    ],
)
def test_an_absurd_number_is_refused(refusal, tmp_path, options, said):
    (tmp_path / "log.csv").write_text(LONG)
    assert said in refusal("advise", str(tmp_path / "log.csv"), *options.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [("--replicates 1e15", "at most 100,000"), ("--samples 1e300", "at most 1e+100")],
)
def test_an_absurd_number_of_a_fit_is_refused(refusal, tmp_path, options, said):
    (tmp_path / "log.csv").write_text(LONG)
    assert said in refusal("fit", str(tmp_path / "log.csv"), *options.split())
