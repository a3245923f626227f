"""Sweeps: thousands of problems together, against a Python loop over the compiled single solver."""

import functools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.sweeps.grid import Table
from benchmarks.timing import compare, curve_point, result_row

_TOLERANCE = 5e-7  # so that the certificate, an independent rule, has room to 1e-6


def paper_cell(num_workers: Any, rate: Any, max_workers: int) -> bcgc.Problem:
    """The paper's problem at a number of workers and a rate, both traced."""
    law = bcgc.ShiftedExponential(rate, 50.0)
    return bcgc.Problem(law, num_workers, 20_000, 50, max_workers=max_workers)


def _rows(plan: bcgc.Sweep) -> Table:
    tables = [plan.solve(chunk) for chunk in plan.chunks()]
    return {name: np.concatenate([table[name] for table in tables]) for name in plan.names}


def _plan(workers: Any, num_rates: int) -> bcgc.Sweep:
    cells = bcgc.grid(num_workers=workers, rate=np.geomspace(1e-4, 1e-1, num_rates))
    return bcgc.Sweep(paper_cell, cells, [bcgc.Optimal(tolerance=_TOLERANCE)])


def sweep() -> list[dict[str, Any]]:
    """A thousand certified optima; and cells of one N against a loop over `solve`, and over jit(solve)."""
    rows = []
    with jax.enable_x64(True):
        plan = _plan(np.arange(2, 51), 21)
        repeats = 3
        result = compare({"package": functools.partial(_rows, plan)}, repeats)["package"]
        gap = float(result.value["relative_gap"].max())
        converged = int(np.sum(result.value["status"] == "converged"))
        rows.append(
            result_row(
                "sweep",
                f"{len(plan.cells)} problems, N=2…50 × 21 rates",
                result,
                f"{converged} converged, largest gap {gap:.0e}; {len(plan.groups)} sizes compiled",
                repeats=repeats,
                gap=gap,
            )
        )
        for num_workers in (2, 5, 10, 20, 50):
            rows += _against_loops(num_workers)
    return rows


def _against_loops(num_workers: int) -> list[dict[str, Any]]:
    """Seconds of a cell, in a sweep and one by one; the loops too bring their answers to the host."""
    plan = _plan([num_workers], 512 if num_workers <= 10 else 128)
    rates = plan.cells.columns["rate"]
    some = rates[:: len(rates) // 32]

    def single(rate: Any) -> bcgc.Solution:
        return bcgc.solve(paper_cell(num_workers, rate, num_workers), bcgc.Optimal(tolerance=_TOLERANCE))

    compiled = jax.jit(single)
    repeats = 5
    result = compare(
        {
            "package": functools.partial(_rows, plan),
            "solve": lambda: [jax.device_get(single(rate)) for rate in some],
            "jit(solve)": lambda: [jax.device_get(compiled(rate)) for rate in some],
        },
        repeats,
    )
    gap = float(result["package"].value["relative_gap"].max())

    def per_cell(name: str, cells: int) -> Any:
        timings = {k: v / cells if k in ("median", "best") else v for k, v in result[name].seconds.items()}
        return result[name]._replace(seconds=timings)

    return [
        result_row(
            "sweep",
            f"a cell of a sweep, N={num_workers}",
            per_cell("package", len(rates)),
            f"{len(rates)} cells, largest gap {gap:.0e}; the loop over {len(some)} of them",
            peer=per_cell(peer, len(some)),
            against=f"a Python loop over {peer}",
            repeats=repeats,
            gap=gap,
        )
        for peer in ("solve", "jit(solve)")
    ]


_MEMORY = """
import sys, jax, numpy as np, bcgc_jax as bcgc
from benchmarks.sweeping import paper_cell, peak_memory
rates = np.geomspace(1e-4, 1e-1, int(sys.argv[1]))
plan = bcgc.Sweep(paper_cell, bcgc.grid(num_workers=[4, 5], rate=rates), ["time"])
bcgc.write_sweep(plan, sys.argv[2])
print(peak_memory())
"""


def peak_memory() -> float:
    """Peak resident memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says starts from the peak of the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory() -> list[dict[str, Any]]:
    """Peak memory of a sweep to a CSV file, 20,000 and 400,000 cells, each in a process of its own."""
    peaks, seconds = [], {}
    for count in (20_000, 400_000):
        with tempfile.TemporaryDirectory() as folder:

            def run(count: int = count, folder: str = folder) -> float:
                out = Path(folder) / "sweep.csv"
                out.unlink(missing_ok=True)
                command = [sys.executable, "-c", _MEMORY, str(count // 2), str(out)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                return float(answer.stdout.split()[-1])

            seconds[count] = compare({"package": run}, 1)["package"]
        peaks.append(seconds[count].value)
    growth = peaks[1] / peaks[0] - 1
    return [
        result_row(
            "memory",
            "400,000 cells of closed forms to CSV, in a new process",
            seconds[400_000],
            f"peak memory {peaks[1]:.0f} MB; 20,000 cells: {peaks[0]:.0f} MB, {100 * growth:+.1f} %",
            repeats=1,
            error=growth,
            dtype="float32",
        )
    ]


def sweep_scaling() -> list[dict[str, Any]]:
    """Curve: a sweep at N = 10, from 10 to 10,000 cells."""
    points = []
    with jax.enable_x64(True):
        for count in (10, 100, 1000, 10_000):
            plan = _plan([10], count)
            repeats = 3
            result = compare({"package": functools.partial(_rows, plan)}, repeats)["package"]
            gap = float(result.value["relative_gap"].max())
            points.append(curve_point("sweep", "cells", count, result, gap, repeats=repeats))
    return points
