"""Reproduce Fig. 3 and Fig. 4 of the paper exactly, next to the published values.

The figures show partitions, and expected runtimes against the number of workers and the
rate. Cycle times are shifted exponential with shift 50, L = 20000, M = 50 and b = 1.
Two schemes from other sources are added: nested groups and work sharing. As in the
paper, only partial derivatives take time, so forward passes and requests are free. The
study writes PNG, SVG and CSV files, and prints the ratios computed / published.
"""

import csv
import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments import looks
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

# Each method, and the published scheme it stands beside; the paper has not all, and no
# added ones. Its "optimal" comes from its own stochastic subgradients, and is not the
# optimum.
METHODS: Mapping[str, str] = {
    "optimal": "optimal",
    "subgradient": "optimal",
    "time": "time",
    "frequency": "frequency",
    "single_block": "single_block",
    "tandon_partial": "tandon_partial",
    "ferdinand_full": "ferdinand_full",
    "ferdinand_half": "ferdinand_half",
    "uncoded": "",
    "nested": "",
    "sharing:2": "",
}
# Five digits of the optimum are enough for a figure; 6 is the paper's α of partial
# stragglers.
ALPHA = 6.0
OPTIONS = {
    "optimal": bcgc.Optimal(tolerance=1e-5),
    "tandon_partial": bcgc.TandonPartial(alpha=ALPHA),
}
# Why published values are not on the line of the computed ones.
NOTES = {"ferdinand_half": "published: another\nof its equal optima"}
IN_FIG3 = tuple(
    m for m, theirs in METHODS.items() if theirs in ("optimal", "time", "frequency")
)

# Where the other varies, and in Fig. 3.
NUM_WORKERS = 20
RATE = 1e-3
WORKERS_GRID = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50)
RATE_GRID = tuple(10 ** (e / 10) for e in range(-34, -25))
REFERENCE = Path(__file__).resolve().parent / "data"

WORKERS_LABEL = r"number of workers $N$"
RATE_LABEL = r"rate $\mu$ of the cycle time (1 / unit of cycle time)"
TITLES = {
    "3": "Fig. 3: coordinates at each redundancy level,\n"
    f"N = {NUM_WORKERS} workers, rate μ = {RATE:g}",
    "4a": "Fig. 4(a): expected time of a step against\n"
    f"the number of workers, rate μ = {RATE:g}",
    "4b": "Fig. 4(b): expected time of a step against\n"
    f"the rate μ, N = {NUM_WORKERS} workers",
}


class Row(NamedTuple):
    """A point: `computed` and `published` runtimes, or coordinates in Fig. 3."""

    figure: str
    axis: str
    x: float
    scheme: str
    computed: float
    published: float | None
    ratio: float | None


Published = Mapping[tuple[str, str, str], float]


def read_published(folder: Path = REFERENCE) -> Published:
    """The published values by (figure, scheme, x to six digits)."""
    values: dict[tuple[str, str, str], float] = {}
    with (folder / "published_runtimes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values[row["figure"], row["scheme"], f"{float(row['x']):.6g}"] = float(
                row["expected_runtime"]
            )
    with (folder / "published_partitions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            level = row.pop("level")
            values.update(
                {("3", scheme, level): float(count) for scheme, count in row.items()}
            )
    return values


def compute(
    workers_grid: Iterable[int],
    rate_grid: Iterable[float],
    schemes: Sequence[bcgc.Scheme],
    seed: int,
) -> list[Row]:
    """Every point of the three figures; Fig. 3 needs `NUM_WORKERS` on `workers_grid`.

    Problems are solved one after the other: with `num_workers` traced below a fixed
    `max_workers` most methods compile once. A `jax.vmap` would run the subgradients of
    all for as many steps as the slowest needs.
    """
    workers_grid = sorted(set(workers_grid))
    published = read_published()
    asked: dict[str, Any] = {method: OPTIONS.get(method, method) for method in METHODS}
    asked |= {scheme.name: scheme for scheme in schemes}
    # With one more than the most: a problem without padding has a program of `nested`
    # of its own.
    max_workers = max(NUM_WORKERS, *workers_grid) + 1

    @functools.cache  # a point is on two figures
    def solved(method: str, num_workers: int, rate: float) -> bcgc.Solution:
        law = bcgc.ShiftedExponential(rate, 50.0)
        problem = bcgc.Problem(
            law, num_workers, 20_000, num_samples=50.0, max_workers=max_workers
        )
        return bcgc.solve(problem, asked[method], key=jax.random.key(seed))

    grid = [("4a", "num_workers", n, RATE) for n in workers_grid]
    grid += [("4b", "rate", NUM_WORKERS, rate) for rate in rate_grid]
    rows = []

    def add(figure: str, axis: str, x: float, method: str, computed: float) -> None:
        published_value = published.get((figure, METHODS.get(method, ""), f"{x:.6g}"))
        rows.append(
            Row(
                figure,
                axis,
                x,
                method,
                computed,
                published_value,
                computed / published_value if published_value else None,
            )
        )

    points = [(method, point) for method in asked for point in grid]
    for method, (figure, axis, num_workers, rate) in with_progress(points, "solving"):
        solution = solved(method, num_workers, rate)
        runtime = float(solution.expected_runtime)
        add(figure, axis, num_workers if figure == "4a" else rate, method, runtime)
        is_shown = (
            method not in METHODS
            and solution.rounded is not None
            and np.isfinite(runtime)
        )
        if (
            (method in IN_FIG3 or is_shown)
            and figure == "4a"
            and num_workers == NUM_WORKERS
        ):
            for level, count in enumerate(np.asarray(solution.rounded)[:num_workers]):
                add("3", "level", level, method, float(count))
    return sorted(rows, key=lambda row: row.figure)


def draw(rows: Sequence[Row], figure: str, schemes: Sequence[bcgc.Scheme]) -> Any:
    """Curves of computed values, open markers for published: "3", "4a", "4b"."""
    canvas, (axes,) = plotting.new_figure(size=(7.4, 3.9))
    handles = []
    drawn = set()
    for method, rows_of_scheme in grouped(rows, lambda row: row.scheme).items():
        look = looks.style(method, schemes)
        name = METHODS.get(method)
        x = [row.x for row in rows_of_scheme]
        # A level without coordinates has no place on a logarithmic axis.
        y = [row.computed or np.nan for row in rows_of_scheme]
        axes.plot(x, y, **plotting.curve(look))
        added = name is None
        if added:  # its few levels may have no neighbours, and no line
            axes.plot(x, y, **looks.points(look, filled=True))
        # The published "optimal" is the paper's subgradients', and stands on their
        # curve.
        theirs = [
            row
            for row in rows_of_scheme
            if row.published and method != "optimal" and name not in drawn
        ]
        label = look.label
        label += rf", $\alpha = {ALPHA:g}$" if method == "tandon_partial" else ""
        if theirs:
            published: list[Any] = [row.published for row in theirs]
            axes.plot(
                [row.x for row in theirs],
                published,
                **looks.points(plotting.style(method)),
            )
            drawn.add(name)
            if name != method:
                label += f"\n(published as “{name}”)"
            elif method in NOTES:
                label += f"\n({NOTES[method]})"
        marked = added or bool(theirs)
        handles.append(
            looks.legend_handle(look, marker=marked, filled=added, label=label)
        )
    x_label, y_label, log = {
        "3": (r"redundancy level $n$", r"number of coordinates $x_n$", "y"),
        "4a": (WORKERS_LABEL, plotting.RUNTIME_LABEL, "y"),
        "4b": (RATE_LABEL, plotting.RUNTIME_LABEL, "xy"),
    }[figure]
    levels = sorted({row.x for row in rows})[::2] if figure == "3" else ()
    looks.label_axes(
        axes, x_label, y_label, log=log, x_ticks=levels, title=TITLES[figure]
    )
    counted = (
        ""
        if figure == "3"
        else "\nforward passes and questions\nare free, as in the paper"
    )
    title = f"lines: computed\nopen markers: published{counted}"
    plotting.legend_outside(canvas, handles, title=title)
    return canvas


def print_partitions(rows: Sequence[Row]) -> None:
    """Table of Fig. 3: a line for each level, computed and published counts."""
    by_scheme = grouped(rows, lambda row: row.scheme)
    published_schemes = {
        scheme
        for scheme, rows_of_scheme in by_scheme.items()
        if any(row.published for row in rows_of_scheme)
    }
    header = ["level"] + [
        h
        for m in by_scheme
        for h in ([m, "published"] if m in published_schemes else [m])
    ]
    lines = []
    for level, rows_of_level in grouped(rows, lambda row: row.x).items():
        line = [f"{level:g}"]
        for row in rows_of_level:
            line.append(f"{row.computed:.0f}")
            line += [f"{row.published:.0f}" if row.published else "–"] * (
                row.scheme in published_schemes
            )
        lines.append(line)
    print_table(
        f"Fig. 3: coordinates at each level, N = {NUM_WORKERS}, rate {RATE:g}",
        header,
        lines,
    )


def print_runtimes(rows: Sequence[Row], title: str) -> None:
    """Table of Fig. 4: computed, published, ratio; a column for each published x."""
    published_x = sorted({row.x for row in rows if row.published})
    lines = []
    for method, all_of_it in grouped(rows, lambda row: row.scheme).items():
        rows_shown = [row for row in all_of_it if row.x in published_x]
        label = method
        if method == "tandon_partial":
            label = f"{method} α {ALPHA:g}"
        lines.append([label, "computed", *(row.computed for row in rows_shown)])
        if any(row.published for row in rows_shown):
            lines.append(
                ["", "published", *(number(row.published) for row in rows_shown)]
            )
            lines.append(["", "ratio", *(number(row.ratio) for row in rows_shown)])
    print_table(title, ["scheme", "", *(f"{x:.4g}" for x in published_x)], lines)


def run(
    out: Path,
    *,
    seed: int = 0,
    workers_grid: Iterable[int] = WORKERS_GRID,
    rate_grid: Iterable[float] = RATE_GRID,
    schemes: Sequence[bcgc.Scheme] = (),
) -> None:
    """Compute, print the tables, write paper.csv and fig3, fig4a and fig4b to `out`."""
    rows = compute(workers_grid, rate_grid, schemes, seed)
    figures = grouped(rows, lambda row: row.figure)
    print_partitions(figures["3"])
    title = "Fig. 4({}): expected runtime against the {}"
    print_runtimes(
        figures["4a"], title.format("a", f"number of workers, rate {RATE:g}")
    )
    print_runtimes(figures["4b"], title.format("b", f"rate, N = {NUM_WORKERS}"))
    print(
        '\nThe published scheme beside "subgradient" is the paper\'s "optimal", '
        "which is not the optimum."
    )
    drawn = {
        f"fig{name}": draw(rows_of_figure, name, schemes)
        for name, rows_of_figure in figures.items()
    }
    save(out, {"paper": rows}, drawn)


if __name__ == "__main__":
    sys.exit(run_command(run, compiles_quickly=True))
