"""Measure work sharing in one compiled program: step times with and without stragglers.

Four workers compute chunks that sleep for 20 ms and multiply matrices. The last chunk
of each subset is cut into a half and two quarters. As a straggler, each worker takes
five times as long in a seventh of the steps. Workers are devices of one process with a
coordinator in memory, or separate processes.

The results are compared with the same loop in Python, and with the lower bound for all
exact schemes with the same storage. Each gradient is compared with the gradient of a
single program. The study takes four minutes. Run nothing else at the same time.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.balancing.storage import least_alone
from bcgc_jax.solvers.limit import storage_bound
from experiments.compiled_worker import WORKERS, paces
from experiments.processes import free_ports, printed_by
from experiments.report import number, print_table, run_command, save, with_progress

STEPS = 40
SUBSET = 0.16  # seconds of a worker's subset
KINDS = "equal", "slow"


class Case(NamedTuple):
    """Where workers are, whether they loop in Python, and how many subsets they store.

    All steps are shared, or with `adapt` those in which that saves time.
    """

    processes: int
    in_python: bool
    stored: int
    adapt: bool = False

    @property
    def where(self) -> str:
        if self.processes == 1:
            return "one process"
        return "four processes"

    @property
    def scheme(self) -> str:
        if self.stored == 1:
            return "uncoded"
        name = f"sharing:{self.stored}" + ", in Python" * self.in_python
        return name + ", if it saves time" * self.adapt


# The first case of each place is uncoded.
CASES = (
    *(Case(1, False, stored) for stored in (1, 2, 3)),
    Case(1, False, 2, adapt=True),
    *(Case(WORKERS, False, stored) for stored in (1, 2)),
    Case(WORKERS, False, 2, adapt=True),
    Case(WORKERS, True, 2),
)


def run(
    out: Path, seed: int = 0, *, cases: Sequence[Case] = CASES, steps: int = STEPS
) -> None:
    tasks = [(kind, case) for kind in KINDS for case in cases]
    rows: list[dict[str, Any]] = []
    uncoded: dict[str, float] = {}
    for kind, case in with_progress(tasks, "settings"):
        seconds = np.array(measured(kind, case, seed, steps))
        if case.stored == 1:
            uncoded[case.where] = seconds.mean()
        row = {
            "workers": kind,
            "where": case.where,
            "scheme": case.scheme,
            "seconds": float(seconds.mean()),
            "standard_error": float(seconds.std(ddof=1) / np.sqrt(len(seconds))),
            "of_uncoded": float(seconds.mean() / uncoded[case.where]),
            "limit": limit(kind, case, seed, steps),
        }
        rows.append(row)
    print_table(
        (
            f"Seconds of a step of four workers, mean of {steps - 1}; all gradients "
            "are exact"
        ),
        ["workers", "where", "scheme", "seconds", "± s.e.", "of uncoded", "limit"],
        [
            [
                *(
                    row["workers"],
                    row["where"],
                    row["scheme"],
                    number(row["seconds"], 3),
                ),
                *(number(row["standard_error"], 2), f"{row['of_uncoded']:.3f}"),
                number(row["limit"], 3),
            ]
            for row in rows
        ],
    )
    save(out, {"compiled": rows}, {"compiled": figure(rows)})


def limit(kind: str, case: Case, seed: int, steps: int) -> float:
    """Mean of the least seconds that exact schemes with this storage need."""
    alone = least_alone(WORKERS, case.stored)
    drawn = paces(kind, seed, steps, SUBSET)[1:]
    bounds = jax.vmap(lambda times: storage_bound(None, times, alone))(drawn)
    return float(np.mean(bounds))


def measured(kind: str, case: Case, seed: int, steps: int) -> list[float]:
    """Seconds of each step after the first, by process 0."""
    spec = {
        "kind": kind,
        "seed": seed,
        "steps": steps,
        "subset": SUBSET,
        "ports": free_ports(2),
    }
    spec |= {"processes": case.processes, "loop": case.in_python}
    spec |= {"stored": case.stored, "adapt": case.adapt}
    specs = [{**spec, "rank": rank} for rank in range(case.processes)]
    devices = WORKERS // case.processes
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    printed = printed_by("experiments.compiled_worker", specs, environment)
    return list(json.loads(printed[0].splitlines()[-1]))


def figure(rows: list[dict[str, Any]]) -> Any:
    """Bars as measured, with two standard errors, and the limit of each storage."""
    figure, axes = plotting.new_figure(
        1, len(KINDS), size=(7.2, 3.2), sharex=True, sharey=True
    )
    for place, kind in zip(axes, KINDS, strict=True):
        drawn = _draw(place, [row for row in rows if row["workers"] == kind])
        plotting.label_axes(place, "seconds of a step", "", title=f"{kind} workers")
    axes[0].set_xlim(
        right=1.15 * max(row["seconds"] + 2 * row["standard_error"] for row in rows)
    )
    plotting.legend_outside(figure, drawn, place="lower", columns=2)
    return figure


def _draw(place: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """Bars under the name of the place where workers are; the handles of a legend."""
    labels: list[str] = []
    heights: list[int] = []
    for row in rows:
        if f"{row['where']}:" not in labels:
            labels.append(f"{row['where']}:")
        heights.append(-len(labels))
        labels.append(row["scheme"])
    seconds = np.array([row["seconds"] for row in rows])
    errors = 2 * np.array([row["standard_error"] for row in rows])
    bars = place.barh(heights, seconds, 0.7, color="0.75", label="measured, ± 2 s.e.")
    place.errorbar(seconds, heights, xerr=errors, fmt="none", color="0.35", linewidth=1)
    (marks,) = place.plot(
        [row["limit"] for row in rows],
        heights,
        linestyle="none",
        marker="|",
        markersize=13,
        markeredgewidth=2,
        color="black",
        label="limit of every exact scheme with this storage",
    )
    for row, height, end in zip(rows, heights, seconds + errors, strict=True):
        if row["scheme"] != "uncoded":
            text = f" {row['of_uncoded']:.2f} of uncoded"
            place.annotate(text, (end, height), va="center", fontsize="small")
    place.set_yticks(-np.arange(len(labels)), labels)
    place.set_ylim(0.6 - len(labels), 0.6)
    place.tick_params(axis="y", length=0)
    place.grid(False, axis="y")
    return [bars, marks]


if __name__ == "__main__":
    sys.exit(run_command(run))
