"""200 steps of four processes: one is killed, one freezes, one sends nonsense."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from bcgc_jax.balancing.dispatch import serve
from bcgc_jax.balancing.dispatch.line import TcpLine

KEY = "secret"
WORKERS = 4
STEPS = 200
SAMPLES = 256
TIMEOUT = 1.0
FROZEN = 2.5
DATA = np.random.default_rng(0).integers(0, 2**30, SAMPLES)
# It tells its sum of each step, and goes on when it is told so: the test is the
# all-reduce.
PROCESS = f"""
import json, sys, time
from bcgc_jax.balancing.dispatch import StepFailed, join
rank, address, data = json.loads(sys.argv[1])
share = join(tuple(address), rank, key="{KEY}")
while line := sys.stdin.readline():
    step, total = int(line), None
    while total is None:
        try:
            total = 0
            print("begun", flush=True)
            for chunk in share.step(step):
                # So long that one is struck within the step.
                pace = 0.5 if step in (50, 100) else 0.01
                time.sleep(pace * (chunk.end - chunk.begin))
                rows = chunk.rows(len(data), {WORKERS})
                total += sum(data[row] for row in rows) * (step + 1)
        except StepFailed:
            total = None
    print(total, flush=True)
"""


@pytest.mark.slow
def test_no_sum_is_wrong_through_a_kill_a_freeze_and_nonsense():
    with serve(WORKERS, key=KEY, timeout=TIMEOUT) as coordinator:

        def start(rank):
            arguments = json.dumps([rank, coordinator.address, DATA.tolist()])
            command = [sys.executable, "-c", PROCESS, arguments]
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

        def go(process, step):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()

        def total(process):
            while (line := process.stdout.readline()) == "begun\n":
                pass
            return int(line)

        processes = [start(rank) for rank in range(WORKERS)]
        seconds = []
        try:
            for step in range(STEPS):
                began = time.monotonic()
                for process in processes:
                    go(process, step)
                if step == 50:
                    assert processes[1].stdout.readline() == "begun\n"
                    processes[1].kill()
                    processes[1].communicate()
                    processes[1] = start(1)
                    go(processes[1], step)
                if step == 100:
                    assert processes[2].stdout.readline() == "begun\n"
                    processes[2].send_signal(signal.SIGSTOP)
                    time.sleep(FROZEN)
                    processes[2].send_signal(signal.SIGCONT)
                if step == 150:
                    _nonsense(coordinator.address)
                step_sum = sum(map(total, processes))
                assert step_sum == int(DATA.sum()) * (step + 1)
                seconds.append(time.monotonic() - began)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    assert seconds[50] < TIMEOUT + 2
    assert seconds[100] < FROZEN + TIMEOUT + 2
    assert max(np.delete(seconds, [0, 50, 100])) < TIMEOUT + 2


def _nonsense(address):
    """Of one without the key, and of one who has it and has not joined."""
    with socket.create_connection(address, timeout=5.0) as caller:
        caller.sendall(os.urandom(1000))
    line = TcpLine(address, KEY.encode())
    with pytest.raises(ConnectionError):
        line.ask("give me all chunks")
