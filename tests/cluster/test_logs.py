"""What a training says of itself: in order, once, in a thread; read again by others."""

import json
import struct
import threading
import time

import jax.numpy as jnp
import pytest

from bcgc_jax.cluster import Step, json_lines, tensorboard
from bcgc_jax.cluster.logs import Watch


def _step(k):
    return Step(k, 0.5 + k, "multi_message", 3, None)


def test_iterations_are_told_in_order_and_in_the_callers_precision(x64):
    told: list[Step] = []
    threads: set[int] = set()

    def evaluate(params):
        threads.add(threading.get_ident())
        return {"loss": params * jnp.float64(1.0)}

    with Watch(evaluate, told.append) as watch:
        for k in range(7):
            watch.add(_step(k), jnp.float64(k))
    assert [step.step for step in told] == list(range(7))
    assert [float(m["loss"]) for m in watch.metrics] == list(range(7))
    assert {m["loss"].dtype for m in watch.metrics} == {jnp.dtype("float64")}
    assert threading.get_ident() not in threads


def test_what_an_evaluation_raises_is_raised_and_ends_the_training():
    def broken(params):
        raise RuntimeError("no test data")

    def all_steps():
        with Watch(broken, None) as watch:
            watch.add(_step(0), None)

    with pytest.raises(RuntimeError, match="no test data"):
        all_steps()


def test_a_line_an_iteration(tmp_path):
    log = json_lines(tmp_path / "new" / "log.jsonl")
    for k in range(2):
        log(_step(k)._replace(metrics=(jnp.float32(0.25), {"accuracy": 0.5 + k, "rows": jnp.zeros(3)})))
    lines = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    measured = {"0": 0.25, "1/accuracy": 1.5, "seconds": 1.5}
    assert lines[1] == measured | {"step": 1, "scheme": "multi_message", "num_workers": 3}
    assert len(lines) == 2


def _scalars(events, raw):
    """Frame by frame: length, its check, the event, its check."""
    at = 0
    found: dict[tuple[str, int], float] = {}
    while at + 8 <= len(raw):
        (length,) = struct.unpack("<Q", raw[at : at + 8])
        event = events.Event.FromString(raw[at + 12 : at + 12 + length])
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        at += length + 16
    return found


def test_events_are_tensorboards(tmp_path):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    log = tensorboard(tmp_path)
    for k in range(3):
        log(_step(k)._replace(metrics={"loss": 1.0 / (1 + k)}))
    (file,) = tmp_path.iterdir()
    for _ in range(600):
        found = _scalars(events, file.read_bytes())
        if ("seconds", 2) in found:
            break
        time.sleep(0.2)
    assert [found["loss", k] for k in range(3)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [found["seconds", k] for k in range(3)] == [0.5, 1.5, 2.5]
