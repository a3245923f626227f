"""The subgradient method's progress against the certified optimum, step by step.

The same stochastic subgradients as in `solve`, with their exact expected runtime every few steps, above the
optimum that Newton's method certifies, for the paper's law and two others; a run for each of some seeds.
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
SEEDS = 5


class Row(NamedTuple):
    """Relative distance of the averaged iterate from the certified lower bound after `steps` steps."""

    law: str
    num_workers: int
    seed: int
    steps: int
    excess: float
    certified_gap: float


def compute(
    workers: Sequence[int] = WORKERS, *, steps: int = STEPS, seeds: int = SEEDS, seed: int = 0
) -> list[Row]:
    """The records of `seeds` runs, from `seed` on, for every law and every number of workers."""
    rows = []
    for name, count in each([(name, n) for name in LAWS for n in workers], "certificate"):
        problem = bcgc.Problem(LAWS[name], count, 20_000, 50)
        best = bcgc.solve(problem)
        # No stopping rule: a negative improvement never comes.
        method = bcgc.Subgradient(tolerance=-1.0, check_every=EVERY, max_steps=steps)
        for one in range(seed, seed + seeds):
            run = bcgc.solve(problem, method, key=jax.random.key(one))
            for check, value in enumerate(np.asarray(run.history)):
                excess = float(value / best.lower_bound) - 1
                rows.append(Row(name, count, one, check * EVERY, excess, float(best.relative_gap)))
    return rows


def _excess(rows: Sequence[Row], law: str, workers: int) -> tuple[list[int], np.ndarray]:
    """The steps, and the excess of every seed at each of them, `[K, S]`."""
    mine = [row for row in rows if (row.law, row.num_workers) == (law, workers)]
    steps = sorted({row.steps for row in mine})
    return steps, np.array([[row.excess for row in mine if row.steps == step] for step in steps])


def draw(rows: Sequence[Row]):
    """One panel for each number of workers."""
    workers = sorted({row.num_workers for row in rows})
    canvas, panels = plotting.new_figure(1, len(workers), size=(7.2, 3.4), sharey=True)
    dashes = dict(zip(LAWS, ("-", "--", "-."), strict=True))
    for axes, count in zip(panels, workers, strict=True):
        for law in LAWS:
            steps, excess = _excess(rows, law, count)
            (line,) = axes.plot(steps, np.median(excess, axis=1), linestyle=dashes[law], label=law)
            axes.fill_between(
                steps, excess.min(axis=1), excess.max(axis=1), color=line.get_color(), alpha=0.2, linewidth=0
            )
        first = count == workers[0]
        axes.set_yscale("log")
        label = "expected runtime above\nthe certified bound (relative)" if first else ""
        plotting.label_axes(axes, "subgradient steps", label, title=f"N = {count}")
    handles = panels[0].get_lines()
    title = f"medians of {len({row.seed for row in rows})} runs, bands: their range"
    plotting.legend_outside(canvas, handles, place="lower", columns=1, title=title)
    return canvas


def run(
    out: Path, *, workers: Sequence[int] = WORKERS, steps: int = STEPS, seeds: int = SEEDS, seed: int = 0
) -> None:
    """Compute, print the table, write certificate.csv, .png and .svg to `out`."""
    rows = compute(workers, steps=steps, seeds=seeds, seed=seed)
    shown = [s for s in (0, 100, 200, 500, 1_000, 2_000) if s <= steps]
    for count in workers:
        lines = []
        for law in LAWS:
            taken, excess = _excess(rows, law, count)
            median = dict(zip(taken, 100 * np.median(excess, axis=1), strict=True))
            gap = next(row.certified_gap for row in rows if (row.law, row.num_workers) == (law, count))
            lines.append([law.partition(",")[0], *(number(median[s], 3) for s in shown), f"{gap:.0e}"])
        header = ["law", *(f"{s} steps" for s in shown), "gap"]
        title = f"N = {count}: % above the certified bound, median of {seeds}; gap of the optimum itself"
        print_table(title, header, lines)
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
