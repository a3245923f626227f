"""Measure time and memory to read a large PyTorch trace, next to `json.load`."""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import compare, result_row

BYTES = 300_000_000
_STEP_SECONDS = 0.1
_KERNELS = 40
_STEPS = 50
_READ = """
import sys
from bcgc_jax.traces.profiles.kineto import read
read(sys.argv[1])
"""
_LOAD = """
import json, sys
with open(sys.argv[1]) as file:
    json.load(file)
"""
_PEAK = """
from benchmarks.peak import peak_memory
print(peak_memory())
"""


def profiles() -> list[dict[str, Any]]:
    """Read 300 MB of Kineto in a new process, and by `json.load` in another."""

    def run(script: str, path: Path) -> float:
        command = [sys.executable, "-c", script + _PEAK, str(path)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(answer.stdout)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank0.json"
        write(path, BYTES)
        scripts = {"package": _READ, "json": _LOAD}
        functions = {
            name: functools.partial(run, of, path) for name, of in scripts.items()
        }
        results = compare(functions, 3)
    peak = results["package"].value
    whole = results["json"].value
    what = f"{BYTES / 1e6:.0f} MB of a trace of the PyTorch profiler, in a new process"
    accuracy = f"peak memory {peak:.0f} MiB; json.load: {whole:.0f} MiB"
    figures = {"error": None, "mebibytes": peak}
    return [
        result_row(
            "profiles",
            what,
            results,
            accuracy,
            figures,
            against="json.load",
            peer="json",
        )
    ]


def write(path: Path, size: int) -> None:
    """Write a trace of so many bytes: fifty steps of kernels, and operators."""
    with open(path, "w") as file:
        file.write(
            '{"schemaVersion": 1, "distributedInfo": {"rank": 0, "world_size": 2},'
        )
        file.write('"traceEvents": [\n')
        for step in range(_STEPS):
            begin = step * _STEP_SECONDS
            marked = f"ProfilerStep#{step}"
            file.write(_event("gpu_user_annotation", marked, begin, _STEP_SECONDS))
            part = _STEP_SECONDS / (_KERNELS + 1)
            for kernel in range(_KERNELS):
                name = "ampere_sgemm_128x64_tn"
                file.write(_event("kernel", name, begin + kernel * part, 0.9 * part))
            name = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
            file.write(_event("kernel", name, begin + _KERNELS * part, 0.9 * part))
            while file.tell() < size * (step + 1) / _STEPS:
                file.write(
                    "".join(
                        _event("cpu_op", "aten::mm", begin, 1e-5) for _ in range(100)
                    )
                )
        file.write(
            '{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": '
            '"python"}}]}'
        )


def _event(category: str, name: str, begin: float, seconds: float) -> str:
    """As the profiler writes it: over several lines, with its arguments."""
    arguments = {
        "External id": 1025,
        "device": 0,
        "stream": 7,
        "correlation": 4,
        "grid": [1, 1, 1],
    }
    times = {"ts": round(1e6 * begin, 3), "dur": round(1e6 * seconds, 3)}
    event = {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, **times}
    return json.dumps({**event, "args": arguments}, indent=2) + ",\n"
