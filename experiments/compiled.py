"""Work sharing inside one compiled program: steps of four workers, equal and slow ones.

A chunk takes a nap and matrix products. A slow worker takes five times as long, each in a seventh
of the steps. Workers are devices of one process, whose coordinator is in memory, or processes;
beside them is the same loop in Python, and the limit of every exact scheme with that storage. Each
gradient is compared with one that is computed at once. Nothing else should run beside it.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.plans.storage_bound import least_alone, storage_bound
from experiments.compiled_worker import WORKERS, paces
from experiments.report import each, number, print_table, run_command, save

STEPS, SUBSET = 40, 0.16  # seconds of a worker's subset
KINDS = "equal", "slow"


class Case(NamedTuple):
    """How many processes there are, whether each loops in Python, and the subsets stored."""

    processes: int
    in_python: bool
    stored: int

    @property
    def name(self) -> str:
        where = "devices" if self.processes == 1 else "processes"
        loop = "Python loop" if self.in_python else "compiled"
        return (
            f"{where}, uncoded" if self.stored == 1 else f"{where}, {loop}, sharing:{self.stored}"
        )


CASES = (
    *(Case(1, False, stored) for stored in (1, 2, 3)),
    *(Case(WORKERS, False, stored) for stored in (1, 2)),
    Case(WORKERS, True, 2),
)


def run(out: Path, seed: int = 0, *, steps: int = STEPS) -> None:
    tasks = [(kind, case) for kind in KINDS for case in CASES]
    rows: list[dict[str, Any]] = []
    for kind, case in each(tasks, "settings"):
        seconds = measured(kind, case, seed, steps)
        alone = least_alone(WORKERS, case.stored)
        drawn = paces(kind, seed, steps, SUBSET)[1:]
        limit = jax.vmap(lambda times, alone=alone: storage_bound(None, times, alone))(drawn)
        row = {"workers": kind, "case": case.name, "seconds": float(np.mean(seconds))}
        before = next(
            (
                other["seconds"]
                for other in rows
                if other["workers"] == kind and other["case"] == case._replace(stored=1).name
            ),
            None,
        )
        row["of_uncoded"] = None if before is None else row["seconds"] / before
        rows.append(row | {"limit": float(np.mean(limit))})
    print_table(
        f"Seconds of a step of four workers, mean of {steps - 1}; all gradients are exact",
        ["workers", "scheme", "seconds", "of uncoded", "limit"],
        [
            [
                *(row["workers"], row["case"], number(row["seconds"], 3)),
                "–" if row["of_uncoded"] is None else f"{row['of_uncoded']:.3f}",
                number(row["limit"], 3),
            ]
            for row in rows
        ],
    )
    save(out, {"compiled": rows}, {"compiled": _figure(rows)})


def measured(kind: str, case: Case, seed: int, steps: int) -> list[float]:
    """Seconds of each step after the first, by process 0."""
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (first, second)]
    spec = {"kind": kind, "seed": seed, "steps": steps, "subset": SUBSET, "ports": ports}
    spec |= {"processes": case.processes, "loop": case.in_python, "stored": case.stored}
    devices = WORKERS // case.processes
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "experiments.compiled_worker"]
    processes = [
        subprocess.Popen(
            [*command, json.dumps({"rank": rank, **spec})],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.processes)
    ]
    try:
        said = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("a process has failed, see above")
    return list(json.loads(said[0].splitlines()[-1]))


def _figure(rows: list[dict[str, Any]]) -> Any:
    """Bars as measured, and the limit of each storage."""
    figure, axes = plotting.new_figure(1, len(KINDS), size=(7.0, 3.2))
    for place, kind in zip(axes, KINDS, strict=True):
        shown = [row for row in rows if row["workers"] == kind]
        at = np.arange(len(shown))[::-1]
        place.barh(at, [row["seconds"] for row in shown], 0.6, color="0.75", label="measured")
        limits = [row["limit"] for row in shown]
        place.plot(
            limits, at, linestyle="none", marker="|", markersize=14, color="black", label="limit"
        )
        place.set_yticks(at, [row["case"] for row in shown] if place is axes[0] else [""] * len(at))
        place.grid(False, axis="y")
        plotting.label_axes(place, "seconds of a step", "", title=f"{kind} workers")
    axes[-1].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
