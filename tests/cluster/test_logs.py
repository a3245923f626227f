"""What a training says of itself: in order, once, in a thread; read again by others."""

import json
import threading

import jax.numpy as jnp
import pytest

from bcgc_jax.cluster import Step, json_lines
from bcgc_jax.cluster.training import Watch
from tests.raising import raising


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
    assert watch.steps == told
    assert [float(step.metrics["loss"]) for step in told] == list(range(7))
    assert {step.metrics["loss"].dtype for step in told} == {jnp.dtype("float64")}
    assert threading.get_ident() not in threads


def test_what_an_evaluation_raises_is_raised_and_ends_the_training():
    broken = raising(RuntimeError("no test data"))
    with pytest.raises(RuntimeError, match="no test data"), Watch(broken, None) as watch:
        watch.add(_step(0), None)


def test_a_line_an_iteration(tmp_path):
    log = json_lines(tmp_path / "new" / "log.jsonl")
    for k in range(2):
        log(_step(k)._replace(metrics=(jnp.float32(0.25), {"accuracy": 0.5 + k, "rows": jnp.zeros(3)})))
    lines = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    measured = {"0": 0.25, "1/accuracy": 1.5, "seconds": 1.5}
    assert lines[1] == measured | {"step": 1, "scheme": "multi_message", "num_workers": 3}
    assert len(lines) == 2
