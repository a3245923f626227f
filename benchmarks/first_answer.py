"""Measure a process's CPU seconds until its first answer, with and without cache."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.timing import measured, result_row

_SMALLEST = "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"
_PYTHON = """
import jax, bcgc_jax as bcgc
jax.config.update("jax_enable_x64", True)
law = bcgc.{law}
solution = bcgc.solve(bcgc.Problem(law, {workers}, 20_000, 50){options})
print(float(solution.relative_gap))
"""
_EXPONENTIAL = "ShiftedExponential(rate=1e-3, shift=50.0)"
_DEADLINE = ", bcgc.Deadline(8e7)"
_SOLVE = (
    "solve --workers {workers} --coordinates 20000 --samples 50 "
    "--cycle-time shifted-exponential:rate={rate},shift=50"
)
_SWEEP = (
    "sweep --workers 2:50 --coordinates 20000 --samples 50 --cycle-time "
    "shifted-exponential:shift=50 --axis rate=1e-4:1e-1:33:log --method optimal "
    "--method single_block --out {folder}/{name}.csv"
)


def first_answer() -> list[dict[str, Any]]:
    """CPU seconds of a process that asks once, beside one that compiles x + 1."""
    smallest = _run([sys.executable, "-c", _SMALLEST])
    rows = []
    for what, workers, law, options in (
        ("solve in Python, N = 20", 20, _EXPONENTIAL, ""),
        ("solve in Python, N = 50", 50, _EXPONENTIAL, ""),
        (
            "solve in Python, gamma law, N = 20",
            20,
            "Gamma(shape=2.0, rate=1e-3, shift=50.0)",
            "",
        ),
        ("solve in Python to a deadline, N = 20", 20, _EXPONENTIAL, _DEADLINE),
    ):
        script = _PYTHON.format(law=law, workers=workers, options=options)
        rows.append(_row(what, _run([sys.executable, "-c", script]), smallest))
    with tempfile.TemporaryDirectory() as folder:
        for what, arguments in (
            (
                "bcgc solve, all methods, empty cache",
                _SOLVE.format(workers=20, rate="1e-3"),
            ),
            (
                "bcgc solve again, another N and rate",
                _SOLVE.format(workers=24, rate="2e-3"),
            ),
            (
                "bcgc sweep, 1617 cells, empty cache",
                _SWEEP.format(folder=folder, name="first"),
            ),
            ("bcgc sweep again", _SWEEP.format(folder=folder, name="again")),
        ):
            command = [sys.executable, "-m", "bcgc_jax", *shlex.split(arguments)]
            rows.append(_row(what, _run(command, cache=folder), smallest))
    return rows


def _run(command: list[str], cache: str | None = None) -> tuple[float, float]:
    """CPU and wall seconds of a process whose programs are kept in `cache`."""
    settings = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is None:
        kept = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    else:
        kept = {"XDG_CACHE_HOME": cache}
    before = os.times()
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=settings | kept)
    after = os.times()
    wall = time.perf_counter() - start
    used = (
        after.children_user
        - before.children_user
        + after.children_system
        - before.children_system
    )
    return used, wall


def _row(
    what: str, used: tuple[float, float], smallest: tuple[float, float]
) -> dict[str, Any]:
    cpu, wall = used
    multiple = cpu / smallest[0]
    return result_row(
        "first answer, CPU seconds of the process",
        what,
        {"package": measured(cpu, [cpu]), "peer": measured(smallest[0], smallest[:1])},
        f"{multiple:.1f} times its CPU seconds; {wall:.1f} s on the clock",
        {"multiple": multiple, "wall": wall},
        against="a process that imports jax and compiles x + 1",
    )
