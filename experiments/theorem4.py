"""The bounds of Theorem 4 beside the actual ratios E τ̂(x) / optimum, for N from 2 to 1000.

For a shifted exponential cycle time the paper proves, with H_N = Σ_{n≤N} 1/n,

    E τ̂(x^(t)) / optimum ≤ (H_N + 1)(H_N + μ t0) / (μ t0)²,    E τ̂(x^(f)) / optimum ≤ H_N / (μ t0) + 1.

The optimum is computed and certified: each ratio lies between E τ̂(x) / its runtime and E τ̂(x) / a proven
lower bound, which differ by 1e-5.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from experiments.report import number, print_table, run_command, write_csv

SCHEMES = ("time", "frequency")
SHIFT = 50.0
# μ t0: the paper's own value, and one where the shift is as long as the mean of the rest.
PRODUCTS = (0.05, 1.0)
WORKERS_GRID = (2, 3, 5, 7, 10, 14, 20, 30, 50, 100, 200, 1000)
# Problems are padded to one of these sizes, so that everything compiles once for each.
SIZES = (50, 100, 200, 1000)


class Row(NamedTuple):
    """One scheme at one N: the bound of Theorem 4, and the limits of the actual ratio to the optimum."""

    rate_times_shift: float
    num_workers: int
    scheme: str
    bound: float
    ratio: float
    ratio_at_most: float
    expected_runtime: float
    optimum: float
    lower_bound: float


def bound(scheme: str, num_workers: int, rate_times_shift: float) -> float:
    """The bound of Theorem 4 on E τ̂(x) / optimum.

    >>> bound("time", 2, 1.0), bound("frequency", 2, 1.0)
    (6.25, 2.5)
    """
    harmonic = math.fsum(1 / n for n in range(1, num_workers + 1))
    if scheme == "time":
        return (harmonic + 1) * (harmonic + rate_times_shift) / rate_times_shift**2
    return harmonic / rate_times_shift + 1


def compute(
    workers_grid: Iterable[int] = WORKERS_GRID,
    products: Iterable[float] = PRODUCTS,
    *,
    sizes: Sequence[int] = SIZES,
) -> list[Row]:
    """Bounds and ratios of both closed forms for every N and every μ t0."""
    rows = []
    points = [(product, n) for product in products for n in workers_grid]
    for product, num_workers in each(points, "theorem 4"):
        problem = bcgc.Problem(
            bcgc.ShiftedExponential(product / SHIFT, SHIFT),
            num_workers,
            num_coordinates=20_000,
            num_samples=50.0,
            max_workers=min(size for size in sizes if size >= num_workers),
        )
        best = bcgc.solve(problem, bcgc.Optimal(tolerance=1e-5))
        optimum, lower = float(best.expected_runtime), float(best.lower_bound)
        for scheme in SCHEMES:
            runtime = float(bcgc.solve(problem, scheme).expected_runtime)
            rows.append(
                Row(
                    rate_times_shift=product,
                    num_workers=num_workers,
                    scheme=scheme,
                    bound=bound(scheme, num_workers, product),
                    ratio=runtime / optimum,
                    ratio_at_most=runtime / lower,
                    expected_runtime=runtime,
                    optimum=optimum,
                    lower_bound=lower,
                )
            )
    return rows


def draw(rows: Sequence[Row]):
    """A column for each μ t0: bounds and ratios on a logarithmic axis, and under it the ratios enlarged."""
    from matplotlib.lines import Line2D

    products = sorted({row.rate_times_shift for row in rows})
    canvas, panels = plotting.new_figure(2, len(products), size=(7.2, 6.0), sharex=True, sharey="row")
    above, below = panels[: len(products)], panels[len(products) :]
    for i, product in enumerate(products):
        for scheme in SCHEMES:
            mine = [r for r in rows if r.scheme == scheme and r.rate_times_shift == product]
            workers, ratio = [r.num_workers for r in mine], [r.ratio for r in mine]
            look = plotting.style(scheme)
            above[i].plot(workers, [r.bound for r in mine], color=look.color, linestyle="--")
            for axes in (above[i], below[i]):
                axes.plot(workers, ratio, **plotting.curve(scheme))
                axes.plot(workers, ratio, **plotting.points(scheme))
        title = rf"({'ab'[i % 2]})  $\mu t_0 = {product:g}$"
        plotting.label_axes(above[i], "", "ratio to the optimum\n(logarithmic)", title=title, log="xy")
        plotting.label_axes(below[i], "number of workers $N$", "ratio to the optimum\n(enlarged)", log="x")
    for axes in (*above[1:], *below[1:]):
        axes.set_ylabel("")
    handles = [plotting.legend_handle(scheme) for scheme in SCHEMES]
    for scheme in SCHEMES:
        look = plotting.style(scheme)
        label = f"bound of Theorem 4 on {look.label}"
        handles.append(Line2D([], [], color=look.color, linestyle="--", label=label))
    gap = max(row.ratio_at_most / row.ratio - 1 for row in rows)
    title = f"the optimum is certified to a relative gap of {gap:.0e}"
    plotting.legend_outside(canvas, handles, place="lower", columns=2, title=title)
    return canvas


def print_bounds(rows: Sequence[Row]) -> None:
    """One table for each μ t0."""
    header = ["N", *(f"{s} {what}" for s in SCHEMES for what in ("bound", "ratio", "at most"))]
    for product in sorted({row.rate_times_shift for row in rows}):
        mine = [row for row in rows if row.rate_times_shift == product]
        lines = []
        for workers in sorted({row.num_workers for row in mine}):
            line = [str(workers)]
            for r in (r for r in mine if r.num_workers == workers):
                line += [number(r.bound), number(r.ratio), number(r.ratio_at_most)]
            lines.append(line)
        print_table(f"Theorem 4, rate × shift = {product:g}", header, lines)
    print("\nratio: expected runtime / that of the optimum; at most: / proven lower bound of the optimum.")


def run(
    out: Path,
    *,
    workers_grid: Iterable[int] = WORKERS_GRID,
    products: Iterable[float] = PRODUCTS,
    sizes: Sequence[int] = SIZES,
) -> None:
    """Compute, print the tables, write theorem4.csv, .png and .svg to `out`."""
    rows = compute(workers_grid, products, sizes=sizes)
    print_bounds(rows)
    write_csv(out / "theorem4.csv", (row._asdict() for row in rows))
    plotting.save_figure(draw(rows), out, "theorem4")
    print(f"\nWritten to {out}: theorem4.csv, theorem4.png, theorem4.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    description = (
        "Puts the two bounds of Theorem 4 of Wang et al., GLOBECOM 2021, beside the actual ratios,\n"
        "expected runtime / that of the optimum, of the closed forms x^(t) and x^(f), for shifted\n"
        "exponential cycle times and N from 2 to 1000. Writes PNG, SVG and CSV, prints the tables."
    )
    return run_command("theorem4", description, run, argv, seeded=False)


if __name__ == "__main__":
    sys.exit(main())
