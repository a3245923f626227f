"""A process of an example is killed: all processes end, start again and go on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
WORKERS, VICTIM = 3, 1
# Until all have ended; and all have done a step again, in which they import JAX.
ENDED, DONE = 5.0, 90.0
# It writes down when it begins a chunk, and has ended a step.
PROCESS = """
import importlib, json, os, sys, time
from bcgc_jax.balancing.dispatch import Share
name, folder, ports = json.loads(os.environ["RESTARTED"])
rank = int(os.environ.get("RANK") or sys.argv[1])
log = open(f"{folder}/{rank}", "a", buffering=1)
original = Share.step

def step(self, number):
    for chunk in original(self, number):
        print("chunk", os.getpid(), number, file=log)
        time.sleep(0.1)
        yield chunk
    print("over", os.getpid(), number, file=log)

Share.step = step
example = importlib.import_module(name)
example.WORKERS = 3
example.ending.run(lambda rank: example.main(rank, ports=ports))
"""
LOOP = 'until "$0" "$1" "$2"; do sleep 1; done'


def _commands(program, starter):
    if starter == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [[*torchrun, "--max-restarts=3", f"--nproc-per-node={WORKERS}", program]]
    return [
        ["bash", "-c", LOOP, sys.executable, program, str(rank)]
        for rank in range(WORKERS)
    ]


class Group:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wrote(self, kind: str, step: int = 0) -> dict[int, int]:
        """Of each rank that has written it last, the process."""
        processes = {}
        for rank in range(WORKERS):
            path = self.folder / str(rank)
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            for line in lines:
                what, process, number = line.split()
                if what == kind and int(number) >= step:
                    processes[rank] = int(process)
        return processes


def _wait(condition, seconds):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def _is_alive(process):
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "starter"),
    [("plain_jax", "loop"), ("with_torch", "loop"), ("with_torch", "torchrun")],
)
def test_all_end_and_start_again_where_one_is_killed(name, starter, tmp_path):
    if name == "with_torch":
        pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(PROCESS)
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        ports = first.getsockname()[1], second.getsockname()[1]
    environment = os.environ | {
        "BCGC_HANDOUT_KEY": os.urandom(16).hex(),
        "RESTARTED": json.dumps([name, str(tmp_path), ports]),
        "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parents[1]}",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "",
    }
    group = Group(tmp_path)
    started = [
        subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in _commands(str(program), starter)
    ]
    try:
        _wait(lambda: len(group.wrote("over", 1)) == WORKERS, DONE)
        before = group.wrote("over", 1)
        step = group.wrote("chunk", 2)
        _wait(lambda: group.wrote("chunk", 2) != step or len(step) == WORKERS, 10.0)
        os.kill(before[VICTIM], signal.SIGKILL)
        ended = _wait(lambda: not any(map(_is_alive, before.values())), ENDED)

        def has_gone_on():
            after = group.wrote("over")
            return not set(after.values()) & set(before.values())

        went_on = _wait(has_gone_on, DONE)
    finally:
        for process in started:  # torchrun ends its own
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(60)
    print(f"{name}, {starter}: ended in {ended:.2f} s, next step {went_on:.2f} s later")
