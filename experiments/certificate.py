"""The subgradient method's progress against the certified optimum, step by step.

The same stochastic subgradient run as in `solve`, with its exact expected runtime every few steps, above the
optimum that Newton's method certifies, for the paper's law and two others.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from experiments.report import number, print_table, run_command, write_csv

LAWS: Mapping[str, bcgc.Law] = {
    "shifted exponential, rate 0.001, shift 50": bcgc.ShiftedExponential(1e-3, 50.0),
    "Pareto, scale 1, shape 1.5": bcgc.Pareto(1.0, 1.5),
    "Weibull, scale 1, concentration 0.7, shift 0.5": bcgc.Weibull(1.0, 0.7, 0.5),
}
WORKERS = (20, 50)
EVERY, STEPS = 50, 2_000


class Row(NamedTuple):
    """Relative distance of the averaged iterate from the certified lower bound after `steps` steps."""

    law: str
    num_workers: int
    steps: int
    excess: float
    certified_gap: float


def compute(workers: Sequence[int] = WORKERS, *, steps: int = STEPS, seed: int = 0) -> list[Row]:
    """The record of one run for every law and every number of workers."""
    rows = []
    for name, count in each([(name, n) for name in LAWS for n in workers], "certificate"):
        problem = bcgc.Problem(LAWS[name], count, 20_000, 50)
        best = bcgc.solve(problem)
        # No stopping rule: a negative improvement never comes.
        method = bcgc.Subgradient(tolerance=-1.0, check_every=EVERY, max_steps=steps)
        run = bcgc.solve(problem, method, key=jax.random.key(seed))
        for check, value in enumerate(np.asarray(run.history)):
            excess = float(value / best.lower_bound) - 1
            rows.append(Row(name, count, check * EVERY, excess, float(best.relative_gap)))
    return rows


def draw(rows: Sequence[Row]):
    """One panel for each number of workers."""
    workers = sorted({row.num_workers for row in rows})
    canvas, panels = plotting.new_figure(1, len(workers), size=(7.2, 3.4), sharey=True)
    dashes = dict(zip(LAWS, ("-", "--", "-."), strict=True))
    for axes, count in zip(panels, workers, strict=True):
        for law in LAWS:
            mine = [row for row in rows if (row.law, row.num_workers) == (law, count)]
            steps, excess = [row.steps for row in mine], [row.excess for row in mine]
            axes.plot(steps, excess, linestyle=dashes[law], label=law)
        first = count == workers[0]
        axes.set_yscale("log")
        label = "expected runtime above\nthe certified bound (relative)" if first else ""
        plotting.label_axes(axes, "subgradient steps", label, title=f"N = {count}")
    handles = panels[0].get_lines()
    plotting.legend_outside(canvas, handles, place="lower", columns=1)
    return canvas


def run(out: Path, *, workers: Sequence[int] = WORKERS, steps: int = STEPS, seed: int = 0) -> None:
    """Compute, print the table, write certificate.csv, .png and .svg to `out`."""
    rows = compute(workers, steps=steps, seed=seed)
    shown = [s for s in (0, 100, 200, 500, 1_000, 2_000) if s <= steps]
    for count in workers:
        lines = []
        for law in LAWS:
            mine = {r.steps: r for r in rows if (r.law, r.num_workers) == (law, count)}
            gap = f"{mine[0].certified_gap:.0e}"
            lines.append([law.partition(",")[0], *(number(100 * mine[s].excess, 3) for s in shown), gap])
        header = ["law", *(f"{s} steps" for s in shown), "gap"]
        print_table(f"N = {count}: % above the certified bound; gap of the optimum itself", header, lines)
    write_csv(out / "certificate.csv", (row._asdict() for row in rows))
    plotting.save_figure(draw(rows), out, "certificate")
    print(f"\nWritten to {out}: certificate.csv, certificate.png, certificate.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    description = (
        "How near the stochastic subgradient method comes to the certified optimum, and when.\n"
        "Writes PNG, SVG and CSV, prints the tables."
    )
    return run_command("certificate", description, run, argv)


if __name__ == "__main__":
    sys.exit(main())
