"""How far the closed forms x^(t) and x^(f) are from the optimum when cycle times have heavy tails.

Two families: Pareto, P(T > t) = t^(-shape), and a Weibull of concentration 0.7 that starts at a shift. The
ratios do not depend on the scale of time, which is 1. The best single level is drawn for comparison.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from experiments.report import number, print_table, run_command, write_csv

SCHEMES = ("time", "frequency", "single_block")
CONCENTRATION = 0.7
NUM_WORKERS = 20  # where the law varies
SHAPE, SHIFT = 1.5, 0.1  # where the number of workers varies


class Point(NamedTuple):
    """One problem: a law of a family, the parameter that makes it, and the number of workers."""

    panel: str
    family: str
    parameter: float
    num_workers: int

    def problem(self, max_workers: int) -> bcgc.Problem:
        law: bcgc.Law = (
            bcgc.Pareto(1.0, self.parameter)
            if self.family == "Pareto"
            else bcgc.Weibull(1.0, CONCENTRATION, self.parameter)
        )
        return bcgc.Problem(
            law, self.num_workers, num_coordinates=20_000, num_samples=50.0, max_workers=max_workers
        )


def grid(
    shapes: Sequence[float] = (1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0),
    shifts: Sequence[float] = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
    workers: Sequence[int] = (2, 5, 10, 20, 35, 50),
) -> list[Point]:
    """The points of the four panels."""
    return (
        [Point("a", "Pareto", shape, NUM_WORKERS) for shape in shapes]
        + [Point("b", "Weibull", shift, NUM_WORKERS) for shift in shifts]
        + [Point("c", "Pareto", SHAPE, n) for n in workers]
        + [Point("d", "Weibull", SHIFT, n) for n in workers]
    )


# Panel: its title, its horizontal label, and whether the number of workers runs along it.
PANELS: Mapping[str, tuple[str, str, bool]] = {
    "a": (f"Pareto, $N = {NUM_WORKERS}$", "shape (small: heavy tail)", False),
    "b": (f"Weibull, concentration {CONCENTRATION:g}, $N = {NUM_WORKERS}$", "shift / scale", False),
    "c": (f"Pareto, shape {SHAPE:g}", "number of workers $N$", True),
    "d": (f"Weibull, concentration {CONCENTRATION:g}, shift {SHIFT:g}", "number of workers $N$", True),
}


class Row(NamedTuple):
    """One scheme on one problem; `relative_gap` says by how much the optimum may still be lower."""

    panel: str
    family: str
    parameter: float
    num_workers: int
    scheme: str
    ratio: float
    expected_runtime: float
    optimum: float
    relative_gap: float

    @property
    def x(self) -> float:
        return self.num_workers if PANELS[self.panel][2] else self.parameter


def compute(points: Sequence[Point]) -> list[Row]:
    """Every scheme on every point, beside the certified optimum."""
    largest = max(point.num_workers for point in points)
    rows = []
    for point in each(points, "heavy tails"):
        problem = point.problem(largest)
        best = bcgc.solve(problem, bcgc.Optimal(tolerance=1e-5))
        optimum, gap = float(best.expected_runtime), float(best.relative_gap)
        for scheme in SCHEMES:
            runtime = float(bcgc.solve(problem, scheme).expected_runtime)
            rows.append(Row(*point, scheme, runtime / optimum, runtime, optimum, gap))
    return rows


def draw(rows: Sequence[Row]):
    """Four panels of ratios to the optimum."""
    canvas, panels = plotting.new_figure(2, 2, size=(7.2, 6.4), sharey=True)
    for axes, (panel, (title, x_label, _)) in zip(panels, PANELS.items(), strict=True):
        for scheme in SCHEMES:
            mine = [row for row in rows if row.panel == panel and row.scheme == scheme]
            x, ratio = [row.x for row in mine], [row.ratio for row in mine]
            axes.plot(x, ratio, **plotting.curve(scheme))
            axes.plot(x, ratio, **plotting.points(scheme))
        axes.axhline(1.0, color="0.4", linewidth=0.8)
        y_label = "expected runtime / optimum" if panel in "ac" else ""
        y_ticks = (1, 1.2, 1.5, 2, 2.5, 3)
        plotting.label_axes(axes, x_label, y_label, title=f"({panel})  {title}", log="y", y_ticks=y_ticks)
        if panel == "b":  # Decades, and 0.
            axes.set_xscale("symlog", linthresh=0.01, linscale=0.5)
            axes.set_xlim(-0.002, 1.3)
            ticks = (0, 0.01, 0.1, 1)
            axes.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
    handles = [plotting.legend_handle(scheme) for scheme in SCHEMES]
    plotting.legend_outside(canvas, handles, place="lower", columns=len(handles))
    return canvas


def print_ratios(rows: Sequence[Row]) -> None:
    """One table for each panel."""
    for panel, (title, x_label, _) in PANELS.items():
        mine = [row for row in rows if row.panel == panel]
        if not mine:
            continue
        lines = []
        for x in sorted({row.x for row in mine}):
            here = {row.scheme: row for row in mine if row.x == x}
            gap = here[SCHEMES[0]].relative_gap
            lines.append([f"{x:g}", *(number(here[s].ratio) for s in SCHEMES), f"{gap:.1e}"])
        header = [x_label.replace("$", ""), *SCHEMES, "gap of the optimum"]
        print_table(f"({panel}) {title.replace('$', '')}: expected runtime / optimum", header, lines)


def run(out: Path, *, points: Sequence[Point] | None = None) -> None:
    """Compute, print the tables, write heavy_tails.csv, .png and .svg to `out`."""
    rows = compute(grid() if points is None else points)
    print_ratios(rows)
    write_csv(out / "heavy_tails.csv", (row._asdict() for row in rows))
    plotting.save_figure(draw(rows), out, "heavy_tails")
    print(f"\nWritten to {out}: heavy_tails.csv, heavy_tails.png, heavy_tails.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    description = (
        "How far the closed forms x^(t) and x^(f), made for the shifted exponential law, are from the\n"
        "optimum when cycle times follow a Pareto law (shapes 1.2 to 3) or a Weibull law of\n"
        "concentration 0.7. Writes PNG, SVG and CSV, prints the tables."
    )
    return run_command("heavy_tails", description, run, argv, seeded=False)


if __name__ == "__main__":
    sys.exit(main())
