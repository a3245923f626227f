"""Measure sweeps of thousands of problems against a Python loop over the solver."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.sweeps import Table
from benchmarks.timing import compare, curve_point, in_float64, result_row

_TOLERANCE = 5e-7  # so that the certificate, an independent rule, has room to 1e-6


def paper_cell(num_workers: Any, rate: Any, max_workers: int) -> bcgc.Problem:
    """The paper's problem at a number of workers and a rate, both traced."""
    law = bcgc.ShiftedExponential(rate, 50.0)
    return bcgc.Problem(law, num_workers, 20_000, 50, max_workers=max_workers)


def _rows(plan: bcgc.sweeps.Sweep) -> Table:
    tables = [plan.solve(chunk) for chunk in plan.chunks]
    return {
        name: np.concatenate([table[name] for table in tables]) for name in plan.names
    }


def _plan(workers: Any, num_rates: int) -> bcgc.sweeps.Sweep:
    cells = bcgc.sweeps.grid(
        num_workers=workers, rate=np.geomspace(1e-4, 1e-1, num_rates)
    )
    return bcgc.sweeps.Sweep(paper_cell, cells, [bcgc.Optimal(tolerance=_TOLERANCE)])


@in_float64
def sweep() -> Iterator[dict[str, Any]]:
    """Time 1000 certified optima, and cells of one N against loops over `solve`."""
    plan = _plan(np.arange(2, 51), 21)
    results = compare({"package": functools.partial(_rows, plan)}, 3)
    table = results["package"].value
    gap = float(table["relative_gap"].max())
    converged = int(np.sum(table["status"] == "converged"))
    what = f"{plan.num_cells} problems, N=2…50 × 21 rates"
    sizes = {chunk.max_workers for chunk in plan.chunks}
    accuracy = (
        f"{converged} converged, largest gap {gap:.0e}; {len(sizes)} sizes compiled"
    )
    yield result_row("sweep", what, results, accuracy, {"gap": gap})
    for num_workers in (2, 5, 10, 20, 50):
        yield from _against_loops(num_workers)


def _against_loops(num_workers: int) -> list[dict[str, Any]]:
    """Seconds of a cell, in a sweep and one by one, with answers on the host."""
    plan = _plan([num_workers], 512 if num_workers <= 10 else 128)
    rates = plan.cells["rate"]
    looped_rates = rates[:: len(rates) // 32]

    def single(rate: Any) -> bcgc.Solution:
        return bcgc.solve(
            paper_cell(num_workers, rate, num_workers),
            bcgc.Optimal(tolerance=_TOLERANCE),
        )

    compiled = jax.jit(single)
    results = compare(
        {
            "package": functools.partial(_rows, plan),
            "solve": lambda: [jax.device_get(single(rate)) for rate in looped_rates],
            "jit(solve)": lambda: [
                jax.device_get(compiled(rate)) for rate in looped_rates
            ],
        },
        5,
    )
    gap = float(results["package"].value["relative_gap"].max())
    results_of_cell = {}
    for name, result in results.items():
        if name == "package":
            cells = len(rates)
        else:
            cells = len(looped_rates)
        of_cell = {
            key: result.seconds[key] / cells for key in ("median", "best", "worst")
        }
        results_of_cell[name] = result._replace(seconds=result.seconds | of_cell)
    what = f"a cell of a sweep, N={num_workers}"
    accuracy = (
        f"{len(rates)} cells, largest gap {gap:.0e}; the loop over "
        f"{len(looped_rates)} of them"
    )
    loops = {peer: f"a Python loop over {peer}" for peer in ("solve", "jit(solve)")}
    return [
        result_row(
            "sweep",
            what,
            results_of_cell,
            accuracy,
            {"gap": gap},
            peer=peer,
            against=against,
        )
        for peer, against in loops.items()
    ]


_MEMORY = """
import sys, jax, numpy as np, bcgc_jax as bcgc
from benchmarks.sweeping import paper_cell
from benchmarks.peak import peak_memory
rates = np.geomspace(1e-4, 1e-1, int(sys.argv[1]))
grid = bcgc.sweeps.grid(num_workers=[4, 5], rate=rates)
plan = bcgc.sweeps.Sweep(paper_cell, grid, ["time"])
bcgc.sweeps.write_sweep(plan, sys.argv[2])
print(peak_memory())
"""


def memory() -> list[dict[str, Any]]:
    """Measure the peak memory of sweeps to a file, 20,000 and 400,000 cells."""

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-c",
                _MEMORY,
                str(count // 2),
                f"{folder}/sweep.csv",
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(answer.stdout.split()[-1])

    small, large = (
        compare({"package": functools.partial(run, count)}, 1)
        for count in (20_000, 400_000)
    )
    before = small["package"].value
    peak = large["package"].value
    growth = peak / before - 1
    what = "400,000 cells of closed forms to CSV, in a new process"
    accuracy = (
        f"peak memory {peak:.0f} MB; 20,000 cells: {before:.0f} MB, "
        f"{100 * growth:+.1f} %"
    )
    return [
        result_row("memory", what, large, accuracy, {"error": growth}, dtype="float32")
    ]


@in_float64
def sweep_scaling() -> Iterator[dict[str, Any]]:
    """Curve: a sweep at N = 10, from 10 to 10,000 cells."""
    for count in (10, 100, 1000, 10_000):
        package = compare({"package": functools.partial(_rows, _plan([10], count))}, 3)[
            "package"
        ]
        gap = float(package.value["relative_gap"].max())
        yield curve_point("sweep", "cells", count, package, gap)
