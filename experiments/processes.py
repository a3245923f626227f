"""Run the processes of a study: each gets a JSON text, and prints its results."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def printed_by(
    module: str, specs: Iterable[Mapping[str, Any]], environment: Mapping[str, str]
) -> list[str]:
    """What `python -m module SPEC` prints, a process for each spec, all at once.

    Raises RuntimeError where a process fails.
    """
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(spec)],
            env=settings,
            stdout=subprocess.PIPE,
            text=True,
        )
        for spec in specs
    ]
    try:
        printed = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("a process has failed, see above")
    return printed


def free_ports(count: int) -> list[int]:
    """Ports of this machine at which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
