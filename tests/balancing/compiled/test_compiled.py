"""Work sharing inside a compiled program, in one process and in three."""

import json
import os
import socket
import subprocess
import sys
from functools import cache

import pytest

from tests.balancing.compiled.program import SAMPLES

pytestmark = pytest.mark.slow
# Largest error of a gradient, in units of its largest number: 1.9e-7 was measured.
EXACT = 1e-6


@cache
def cases():
    """What each case found, in one process."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.balancing.compiled.program"]
    process = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    rows = [
        json.loads(line)
        for line in process.stdout.splitlines()
        if line.startswith('{"case"')
    ]
    return {row["case"]: row["result"] for row in rows}


def result_of(name):
    result = cases()[name]
    assert "raised" not in result, result["raised"]
    return result


@pytest.mark.parametrize(
    "name", ["layout_2_partitioner_Explicit", "layout_2_local_Auto", "elsewhere"]
)
def test_a_layout_gives_the_gradient_of_its_chunks(name):
    result = result_of(name)
    assert result["ok"]
    assert result["error"] < EXACT
    assert result["rows"] == SAMPLES


def test_a_question_stands_at_the_beginning_of_each_turn():
    result = result_of("order")
    # 75 steps of 40 chunks, and an end for each of four workers.
    assert (result["questions"], result["ends"], result["wrong"]) == (3300, 300, 0)
    assert result["error"] < EXACT


def test_a_chunk_has_ended_when_its_gradient_is_there():
    result = result_of("nap")
    assert result["chunks"] == 16
    assert result["least"] >= 0.03


def test_refusals_say_where_and_what_to_do():
    said = result_of("refusals")
    for name in ("psum", "pmean", "all_gather"):
        assert "over 'data' at" in said[name]
        assert "program.py:" in said[name]
        assert "auxiliary value" in said[name]
    assert "ppermute" in said["ppermute"]
    assert "program.py:" in said["ppermute"]
    assert "Use a multiple of 128 samples, for example 128" in said["samples"]
    assert "vmap within the loss" in said["vmap"]
    assert "derivatives within the loss" in said["grad"]


def test_two_gradients_at_once_are_never_silently_wrong():
    result = result_of("at_once")
    independent = result["independent"]
    # XLA may run them one after the other: then both are right.
    assert all(
        exact
        for ok, exact in zip(independent["ok"], independent["exact"], strict=True)
        if ok
    )
    assert all(independent["ok"]) or "at the same time" in independent["error"]
    assert result["chained"] == {
        "ok": [True, True],
        "exact": [True, True],
        "error": "None",
    }


def test_a_program_has_one_callback_and_one_loop():
    assert result_of("compiled_text") == {"callbacks": 1, "loops": 1}


def _processes(**spec):
    """What three processes of two devices each have printed."""
    with socket.socket() as first, socket.socket() as second:
        for endpoint in (first, second):
            endpoint.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    spec = {"address": f"127.0.0.1:{ports[0]}", "port": ports[1], **spec}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.balancing.compiled.processes",
                json.dumps({"rank": rank, **spec}),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        for text in said
    ]


def test_where_a_loader_raises_the_others_wait_until_its_process_has_joined_anew():
    for rank, lines in enumerate(_processes(steps=4, raises=[1, 2])):
        steps = [(line["step"], line["ok"]) for line in lines]
        failed = [(2, False)] if rank == 1 else []
        assert steps == [(0, True), (1, True), *failed, (2, True), (3, True)]
        assert max(line["error"] for line in lines) < EXACT
        assert not failed or lines[2]["why"] == "the disk is gone"


@pytest.mark.parametrize("when", ["dies", "dies_between"])
def test_the_others_are_told_if_a_process_dies(when, tmp_path):
    """In a step, and before it: after 0.2 and 1.1 s, of which a second is waited."""
    spec = {when: [2, 2], "folder": str(tmp_path)}
    *surviving, dead = _processes(steps=10, **spec)
    done = len(dead)
    assert done >= 2
    for lines in surviving:
        failed = lines[done]
        assert (failed["step"], failed["ok"]) == (done, False)
        assert failed["seconds"] < 5.0
        assert "worker 2 is lost" in failed["why"]
