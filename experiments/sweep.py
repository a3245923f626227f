"""Compute what the optimum saves, over the number of workers and the cycle time's rate.

The grid has 2 to 50 workers, with shift 50, L = 20000, M = 50 and b = 1. All problems
are solved together, and rows are written to a CSV file. Savings are relative to uncoded
steps. The reduction of a cell is 1 - (runtime of the optimum) / (runtime of the best
baseline in this cell).

Forward passes are free, as in the paper. The scheme for partial stragglers (Tandon et
al.) uses the α of the distribution, which falls from 5.4 to 1.3 as the rate grows. The
paper's figures use α = 6.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.balancing.scheme_names import BASELINES
from bcgc_jax.cli import progress
from bcgc_jax.sweeps import read_rows
from experiments import looks
from experiments.paper import WORKERS_LABEL
from experiments.report import grouped, number, print_table, run_command, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

METHODS = ("optimal", "time", "frequency", *BASELINES)
WORKERS_GRID = tuple(range(2, 51))
RATE_GRID = tuple(np.geomspace(1e-4, 1e-1, 33).tolist())
# What the table shows, where it is on the grid.
IN_TABLE = (2, 3, 5, 10, 20, 30, 40, 50)

RATE_LABEL = r"rate $\mu$ (1 / unit of cycle time)"  # short: two panels side by side
SAVED_LABEL = "time that the optimum saves (%)"
NOTE = (
    "Cycle times: shifted exponential, shift 50. L = 20,000 coordinates, M = 50 "
    "samples; forward passes are free.\n"
    "Dotted: where the best baseline changes. Partial stragglers (Tandon et al.) have "
    "the α of the distribution."
)
# Single level 0 is the uncoded scheme: rounding must not decide which of the two is
# named.
_TIE = 1e-9


class Row(NamedTuple):
    """One cell under one method: NaN where the method does not exist for it."""

    num_workers: int
    rate: float
    method: str
    status: str
    expected_runtime: float
    relative_gap: float


class Cell(NamedTuple):
    """The optimum of one cell beside uncoded and the fastest baseline, `best`."""

    num_workers: int
    rate: float
    method: str
    expected_runtime: float
    uncoded: float
    baseline: float
    best: str
    relative_gap: float

    @property
    def saved(self) -> float:
        """Against uncoded, in percent."""
        return 100 * (1 - self.expected_runtime / self.uncoded)

    @property
    def reduction(self) -> float:
        """Against the best baseline, in percent."""
        return 100 * (1 - self.expected_runtime / self.baseline)

    @property
    def place(self) -> str:
        return f"N = {self.num_workers}, rate {number(self.rate)}"


def problem(max_workers: int, num_workers: Any, rate: Any) -> bcgc.Problem:
    """The problem of a cell."""
    law = bcgc.ShiftedExponential(rate, 50.0)
    return bcgc.Problem(law, num_workers, 20_000, 50.0, max_workers=max_workers)


def read(path: Path) -> list[Row]:
    """The rows of a sweep's file."""
    kinds: Sequence[Any] = (int, float, str, str, float, float)
    of_row = list(zip(kinds, Row._fields, strict=True))
    return [
        Row(*(kind(row[name] or "nan") for kind, name in of_row))
        for row in read_rows(path)
    ]


def compare(rows: Sequence[Row], schemes: Sequence[bcgc.Scheme] = ()) -> list[Cell]:
    """Each cell's optimum and best baseline; of equal baselines the first."""
    baselines = {*BASELINES, *(scheme.name for scheme in schemes if scheme.baseline)}
    cells = []
    for (workers, rate), rows_of_cell in grouped(
        rows, lambda row: (row.num_workers, row.rate)
    ).items():
        (optimum,) = (row for row in rows_of_cell if row.method == "optimal")
        baseline_rows = [
            row
            for row in rows_of_cell
            if row.method in baselines and np.isfinite(row.expected_runtime)
        ]
        least = min(row.expected_runtime for row in baseline_rows)
        best = next(
            row.method
            for row in baseline_rows
            if row.expected_runtime <= least * (1 + _TIE)
        )
        (uncoded,) = (
            row.expected_runtime for row in rows_of_cell if row.method == "uncoded"
        )
        cell = Cell(
            *(workers, rate, optimum.method, optimum.expected_runtime, uncoded),
            *(least, best, optimum.relative_gap),
        )
        cells.append(cell)
    return cells


def draw(cells: Sequence[Cell], schemes: Sequence[bcgc.Scheme] = ()):
    """Maps of savings over N and the rate, against uncoded and the best baseline."""
    workers = np.array(sorted({cell.num_workers for cell in cells}), float)
    rates = np.array(sorted({cell.rate for cell in cells}))
    by_place = {(cell.num_workers, cell.rate): cell for cell in cells}
    table = [[by_place[int(n), r] for n in workers] for r in rates]
    saved = np.array([[cell.saved for cell in line] for line in table])
    reduction = np.array([[cell.reduction for cell in line] for line in table])
    names = [
        m
        for m in (*BASELINES, *(s.name for s in schemes))
        if any(cell.best == m for cell in cells)
    ]
    best = np.array([[names.index(cell.best) for cell in line] for line in table])

    canvas, (left, right) = plotting.new_figure(1, 2, size=(7.2, 4.1), sharey=True)
    ticks = [n for n in (2, 10, 20, 30, 40, 50) if n in workers]
    highest = max(saved.max(), reduction.max())
    grid = workers, rates
    image = _map(left, *grid, saved, highest)
    _map(right, *grid, reduction, highest)
    for axes, title in (
        (left, "(a) against uncoded"),
        (right, "(b) against the best baseline"),
    ):
        label = ""
        if axes is left:
            label = RATE_LABEL
        looks.label_axes(
            axes, WORKERS_LABEL, label, log="y", title=title, x_ticks=ticks
        )
    if min(best.shape) > 1 and len(names) > 1:
        border: Any = {"colors": "white", "linewidths": 2.2, "linestyles": ":"}
        right.contour(workers, rates, best, np.arange(len(names) - 1) + 0.5, **border)
    for index, name in enumerate(names):
        rows, columns = np.nonzero(best == index)
        if rows.size > best.size / 10:
            up = 0.9 if np.median(rows) > rates.size / 2 else 0.25  # where no line is
            middle = workers[int(np.median(columns))], rates[int(np.quantile(rows, up))]
            text: Any = {
                "ha": "center",
                "va": "center",
                "color": "white",
                "fontsize": "small",
            }
            right.text(*middle, f"best: {looks.style(name, schemes).label}", **text)
    canvas.colorbar(
        image, ax=[left, right], label=SAVED_LABEL, location="bottom", aspect=50
    )
    canvas.supxlabel(NOTE, fontsize="small", x=0.01, ha="left")
    return canvas


def _map(
    axes: "Axes",
    workers: np.ndarray,
    rates: np.ndarray,
    percent: np.ndarray,
    highest: float,
) -> "QuadMesh":
    """Colours, and lines of equal shares."""
    edges = plotting.edges(workers), plotting.edges(rates, log=True)
    # Rasterised: no hair lines between the cells of an SVG.
    image = axes.pcolormesh(
        *edges, percent, cmap="viridis", vmin=0, vmax=highest, rasterized=True
    )
    axes.grid(False)
    step = 5
    if highest > 20:
        step = 10
    levels = np.arange(step, percent.max(), step)
    if min(percent.shape) > 1 and levels.size:
        # White shows on the dark end of the colours, black on the bright one.
        shades = ["white" if level < 0.6 * highest else "black" for level in levels]
        lines = axes.contour(
            workers, rates, percent, levels=levels, colors=shades, linewidths=0.9
        )
        places = _crossings(percent, levels, workers, rates)
        axes.clabel(
            lines, fmt="%g %%", fontsize="small", manual=places, inline_spacing=0
        )
    return image


def _crossings(
    values: np.ndarray, levels: np.ndarray, workers: np.ndarray, rates: np.ndarray
) -> list[tuple[float, float]]:
    """Place levels' labels along the rates, at two thirds of N; not at an edge."""
    column = 2 * (workers.size - 1) // 3
    below = values[:, column, None] < levels
    row, which = np.nonzero(below[2:-1] != below[1:-2])
    row += 1
    before = values[row, column]
    after = values[row + 1, column]
    share = (levels[which] - before) / (after - before)
    heights = np.exp(np.log(rates[row]) + share * np.log(rates[row + 1] / rates[row]))
    return [(float(workers[column]), float(height)) for height in heights]


def print_numbers(rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    """Print reduction, extremes, how often baselines are best, the largest gap."""
    rates = sorted({cell.rate for cell in cells})
    rates = rates[:: -(-len(rates) // 9)]
    lines = []
    for workers, cells_of_row in grouped(cells, lambda cell: cell.num_workers).items():
        if workers in IN_TABLE:
            cells_shown = [cell for cell in cells_of_row if cell.rate in rates]
            lines.append(
                [
                    workers,
                    *(
                        f"{cell.saved:.0f}, {cell.reduction:.0f}"
                        for cell in cells_shown
                    ),
                ]
            )
    title = "Time saved against uncoded, against the best baseline, in %; columns: rate"
    print_table(title, ["N", *(number(rate, 3) for rate in rates)], lines)
    print()
    for what, extreme in (("largest", max), ("smallest", min)):
        cell = extreme(cells, key=lambda cell: cell.reduction)
        print(
            f"{what} reduction: {cell.reduction:.2f} % against {cell.best} at "
            f"{cell.place}"
        )
    counts = Counter(cell.best for cell in cells).most_common()
    print(
        f"best baseline: {', '.join(f'{name} in {count}' for name, count in counts)} "
        f"of {len(cells)} cells"
    )
    worst = max(cells, key=lambda cell: cell.relative_gap)
    print(
        f"largest relative gap of the optimum over all cells: {worst.relative_gap:.2g} "
        f"at {worst.place}"
    )
    early = sum(row.method == "optimal" and row.status != "converged" for row in rows)
    if early:
        print(
            f"the search for the optimum did not converge in {early} cells: see the "
            "status in the file"
        )


def run(
    out: Path,
    *,
    seed: int = 0,
    workers_grid: Sequence[int] = WORKERS_GRID,
    rate_grid: Sequence[float] = RATE_GRID,
    methods: Sequence[str] = METHODS,
    schemes: Sequence[bcgc.Scheme] = (),
) -> None:
    """Compute sweep.csv, print its table, draw its cells."""
    cells = bcgc.sweeps.grid(
        num_workers=np.array(workers_grid), rate=np.array(rate_grid)
    )
    sweep = bcgc.sweeps.Sweep(
        problem, cells, (*methods, *schemes), key=jax.random.key(seed)
    )
    path = out / "sweep.csv"
    path.unlink(missing_ok=True)
    with progress.Progress("sweep") as bar:
        bcgc.sweeps.write_sweep(sweep, path, progress=bar.reach)
    rows = read(path)
    compared = compare(rows, schemes)
    print_numbers(rows, compared)
    save(out, {"sweep_cells": compared}, {"sweep": draw(compared, schemes)})


if __name__ == "__main__":
    sys.exit(run_command(run))
