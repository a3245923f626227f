"""Processes of a job on this machine, each a rank."""

import json
import os
import socket
import subprocess
import sys
from typing import Any


def run_ranks(
    module: str, specs: list[dict[str, Any]], **environment: str
) -> list[Any]:
    """What each rank of `python -m MODULE SPEC` has printed last, as JSON."""
    address = f"127.0.0.1:{_free_port()}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                module,
                json.dumps({"rank": rank, "address": address, **spec}),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for rank, spec in enumerate(specs)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(specs)
    return [json.loads(text.splitlines()[-1]) for text in printed]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
