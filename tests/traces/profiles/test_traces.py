"""Traces as profilers write them: read, refused with a reason, and in little memory."""

import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bcgc_jax.traces.profiles.events import Events
from bcgc_jax.traces.profiles.folder import log_of
from bcgc_jax.traces.profiles.kineto import read
from bcgc_jax.traces.profiles.log import MadeLog
from bcgc_jax.traces.trace import Trace, load_trace
from tests.traces.profiles.crafted import (
    OPTIMIZER,
    barriers,
    lengths,
    loss_of,
    overlapped,
    write_jax,
    write_kineto,
)

_CHUNKS = lengths(30, 4, 4)


def _log(folder: Path, chunk_name: str | None = None) -> MadeLog:
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    log = log_of(files, chunk_name)
    assert log is not None
    return log


def _trace(log: MadeLog) -> Trace:
    return load_trace(io.BytesIO(log.text.encode()))


@pytest.mark.parametrize("packed", [False, True])
def test_kineto_of_two_streams_has_the_chunks_of_each_rank(tmp_path, packed):
    """Clocks are seconds apart, and the host marks its steps too early."""
    job = overlapped(_CHUNKS)
    log = _log(write_kineto(tmp_path, job, packed=packed))
    trace = _trace(log)
    assert log.remarks[0] == (
        "The traces of the PyTorch profiler contain 4 workers and 29 steps with 5 "
        "collectives each. Left out: 1 step. The first step only starts the clock. "
        "Other steps lack a rank, or have another number of collectives."
    )
    assert trace.microbatches is not None
    # The worst is 1.6e-4, by a clock that drifts.
    np.testing.assert_allclose(trace.microbatches.seconds, job.chunks[1:], rtol=3e-4)
    assert trace.microbatches.forward is not None
    np.testing.assert_allclose(
        3 * trace.microbatches.forward, job.chunks[1:], rtol=3e-4
    )
    outside = OPTIMIZER / job.seconds[1:].mean()
    assert (
        f"has 4 in each step. {100 * outside:.1f} % of the compute time is outside of "
        in (log.remarks[1])
    )
    assert trace.collective is not None
    # In three steps another rank's earlier bucket comes last: all wait for that too.
    assert np.median(trace.collective) == pytest.approx(0.001, rel=1e-3)


def test_steps_that_are_numbered_otherwise_are_told_and_put_right(tmp_path):
    job = overlapped(_CHUNKS)
    plain = _log(write_kineto(tmp_path / "plain", job))
    moved = _log(write_kineto(tmp_path / "moved", job, shift=(0, 2, 0, -1)))
    assert moved.remarks[1:3] == [
        "The step numbers of worker 1 differ by +2 from the numbers of worker 0. They "
        "were corrected by the times at which workers leave the collectives.",
        "The step numbers of worker 3 differ by -1 from the numbers of worker 0. They "
        "were corrected by the times at which workers leave the collectives.",
    ]
    # Steps of which a file has no other number are left out.
    assert set(moved.text.splitlines()) <= set(plain.text.splitlines())


def test_a_chunk_may_begin_with_another_name(tmp_path):
    job = overlapped(_CHUNKS)
    write_kineto(tmp_path, job)
    for file in tmp_path.iterdir():
        file.write_text(
            file.read_text().replace("DistributedDataParallel.forward", "microbatch")
        )
    named = _log(tmp_path, "microbatch")
    assert named.remarks[1].startswith(
        "A chunk lasts from one microbatch to the next. A worker has 4 in each"
    )
    without = _log(tmp_path)
    assert (
        without.remarks[1]
        == "No chunks were found. Name the beginning of a chunk by --chunk-name."
    )
    np.testing.assert_allclose(_trace(without).rows(), job.seconds[1:], rtol=3e-4)
    with pytest.raises(
        ValueError,
        match=r"is named batch\. The most frequent names are: microbatch \(120\)\.$",
    ):
        _log(tmp_path, "batch")


def test_microbatches_in_one_jit_are_said_to_be_in_no_trace(tmp_path):
    """Each run of the only program is a whole step, so no name finds chunks."""
    job = overlapped(lengths(12, 3, 4))
    write_jax(tmp_path, job)
    for log in (_log(tmp_path), _log(tmp_path, "step")):
        assert log.remarks[-1].startswith("No trace shows the microbatches within one")
        assert "`dispatch.serve(…, record=FILE)`" in log.remarks[-1]
    with pytest.raises(ValueError, match=r"jit_step \(12\)\. No trace shows"):
        _log(tmp_path, "microbatch")
    write_jax(tmp_path / "chunks", job, chunks=True)
    assert "No trace" not in " ".join(_log(tmp_path / "chunks", "gradient").remarks)


def test_a_rank_that_is_missing_is_told(tmp_path):
    write_kineto(tmp_path, overlapped(_CHUNKS))
    (tmp_path / "rank2.json").unlink()
    assert (
        _log(tmp_path)
        .remarks[-1]
        .startswith("Traces are missing for 1 rank of 4 (2). Time that")
    )


@pytest.mark.parametrize("early", [0.0, 0.011])
def test_jax_counts_steps_by_runs_of_the_program(tmp_path, early):
    """A host that runs ahead marks a step while the one before is computed."""
    job = overlapped(_CHUNKS)
    log = _log(write_jax(tmp_path, job, early=early, chunks=True), "gradient")
    trace = _trace(log)
    assert log.remarks[0].startswith(
        "The traces of jax.profiler contain 4 workers and 29 steps"
    )
    assert trace.worker_names.tolist() == ["p0/vm", "p1/vm", "p2/vm", "p3/vm"]
    assert trace.microbatches is not None
    np.testing.assert_allclose(trace.microbatches.seconds, job.chunks[1:], rtol=3e-4)
    with pytest.raises(
        ValueError, match=r"named lambda\. .* jit_gradient \(120\), jit_step \(30\)\.$"
    ):
        _log(tmp_path, "lambda")


def test_jax_without_numbers_of_runs_goes_by_the_marks_of_steps(tmp_path):
    job = overlapped(lengths(20, 3, 1))
    for marked in (True, False):
        folder = write_jax(tmp_path / str(marked), job, marked=marked)
        for file in folder.rglob("*.gz"):
            text = gzip.decompress(file.read_bytes()).replace(b"run_id", b"run")
            file.write_bytes(gzip.compress(text))
    trace = _trace(_log(tmp_path / "True"))
    np.testing.assert_allclose(trace.rows(), job.seconds[1:], rtol=3e-4)
    with pytest.raises(
        ValueError, match="process p0/vm does not mark runs of programs or steps"
    ):
        _log(tmp_path / "False")


def test_of_several_recordings_of_a_process_the_last_is_read(tmp_path):
    job = overlapped(lengths(20, 3, 1))
    write_jax(tmp_path, job, marked=False)
    log = _log(tmp_path)
    old_folder = tmp_path / "p1" / "plugins" / "profile" / "2025_01_01_00_00_00"
    old_folder.mkdir()
    (old_folder / "vm.trace.json.gz").write_bytes(
        gzip.compress(b'{"traceEvents": [{"ph": "M"}]}')
    )
    second_log = _log(tmp_path)
    assert second_log.text == log.text
    assert second_log.remarks[-1].startswith("1 trace of older recordings")


def _cut(folder: Path) -> None:
    file = folder / "rank1.json"
    file.write_bytes(file.read_bytes()[:-300])


def _cut_packed(folder: Path) -> None:
    (folder / "rank1.json").write_bytes(
        gzip.compress((folder / "rank1.json").read_bytes())[:-300]
    )


def _alone(folder: Path) -> None:
    for number in (1, 2, 3):
        (folder / f"rank{number}.json").unlink()


def _twice(folder: Path) -> None:
    (folder / "again.json").write_bytes((folder / "rank1.json").read_bytes())


def _replaced(before: str, after: str):
    def change(folder: Path) -> None:
        file = folder / "rank1.json"
        file.write_text(file.read_text().replace(before, after))

    return change


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            _cut,
            r"rank1\.json is truncated\. Copy it again\. Events are sorted by thread, "
            "not by time",
        ),
        (_cut_packed, r"rank1\.json is truncated\. Copy it again"),
        (_alone, "only rank 0 has a trace. Record all ranks"),
        (_twice, "two traces of rank 1 contain the same steps"),
        (
            _replaced("ProfilerStep#", "Step"),
            r"Pass `schedule=` .*, and call `profiler\.step\(\)` after each step",
        ),
        (
            _replaced("ncclDevKernel_AllReduce_Sum_f32", "sum"),
            r"has no collective \(NCCL, gloo\) of rank 1",
        ),
        (
            _replaced("AllReduce", "SendRecv"),
            r"sends to single ranks \(ncclDevKernel_SendRecv_Sum_f32\), for example as "
            "a stage of a pipeline",
        ),
        (_replaced('"traceEvents"', '"events", "ph"'), "has no entry `traceEvents`"),
        (
            lambda folder: write_jax(folder, overlapped(lengths(20, 3, 1))),
            "some traces are from PyTorch, others from JAX. Use traces of one job",
        ),
    ],
)
def test_what_is_broken_is_refused_in_a_sentence(tmp_path, broken, message):
    write_kineto(tmp_path, overlapped(_CHUNKS))
    broken(tmp_path)
    with pytest.raises(ValueError, match=message):
        _log(tmp_path)


def test_ranks_that_meet_in_each_layer_are_refused(tmp_path):
    seconds = 0.005 * np.random.default_rng(0).lognormal(0, 0.4, (30, 3, 6))
    with pytest.raises(
        ValueError, match=r"all ranks wait during 1\d\.\d % of a step.*FSDP, a pipeline"
    ):
        _log(write_kineto(tmp_path, barriers(seconds)))


def test_a_log_of_the_same_seconds_loses_as_much(tmp_path):
    """With and without chunks, and from the other profiler."""
    job = overlapped(lengths(30, 4, 1))
    torch = _trace(_log(write_kineto(tmp_path / "torch", job)))
    jax = _trace(_log(write_jax(tmp_path / "jax", job)))
    np.testing.assert_allclose(jax.rows(), job.seconds[1:], rtol=3e-4)
    np.testing.assert_allclose(torch.rows(), job.seconds[1:] - OPTIMIZER, rtol=3e-4)
    assert loss_of(jax.rows()) == pytest.approx(loss_of(job.seconds[1:]), abs=1e-4)


def test_a_large_trace_is_read_as_a_stream(tmp_path, monkeypatch):
    """2.7 MB of Kineto; `python -m benchmarks --only profiles` reads 300."""
    monkeypatch.setattr("bcgc_jax.traces.profiles.events._WINDOW", 1 << 14)
    path = write_kineto(tmp_path, overlapped(lengths(10, 1, 4))) / "rank0.json"
    events = json.dumps(json.loads(path.read_text())["traceEvents"])[1:-1]
    arrow = json.dumps({"ph": "s", "cat": "ac2g", "name": "x" * 100, "args": {"n": 1}})
    with open(path, "w") as file:
        file.write('{"schemaVersion": 1, "traceEvents": [')
        file.write(f"{arrow},\n" * 18_000)
        file.write(f"{events}]}}")
    assert os.path.getsize(path) > 2.7e6
    tracemalloc.start()
    try:
        recording = read(str(path)).recording
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(recording.step)) == 10
    assert peak < 2.5e5  # 1.3e5


@pytest.mark.parametrize("window", [1, 2, 3, 7, 1000])
def test_events_may_stand_alone_and_windows_end_anywhere(tmp_path, monkeypatch, window):
    monkeypatch.setattr("bcgc_jax.traces.profiles.events._WINDOW", window)
    path = tmp_path / "events.json"
    arguments = {"k": [1, {"x": "}"}]}
    spans = [
        {"ph": "X", "name": "a]b", "ts": 1e6, "dur": 2e6, "args": arguments},
        {"ph": "s"},
        {},
    ]
    events = [*spans, {"ph": "M", "name": "process_name", "pid": 3}]
    for text in (
        json.dumps(events),
        json.dumps({"a": 1, "traceEvents": events}, indent=2),
    ):
        path.write_text(text)
        span, metadata = Events(str(path))
        assert span == ("X", "a]b", "", 1.0, 3.0, None, arguments)
        assert (metadata.name, metadata.process) == ("process_name", 3)
