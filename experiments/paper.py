"""Fig. 3 and Fig. 4 of the paper, recomputed exactly, with its published values beside them.

The problems are solved one after the other: with `num_workers` traced below a fixed `max_workers`, each
method compiles once. A `jax.vmap` over them gives the same numbers, but runs every problem's
subgradients for as many steps as the slowest of them needs.
"""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from experiments.report import number, print_table, run_command, write_csv

# Each method, and the published scheme it stands beside; added schemes have none. The published "optimal"
# comes from the paper's own stochastic subgradients, and is not the optimum.
METHODS: Mapping[str, str] = {
    "optimal": "optimal",
    "subgradient": "optimal",
    "time": "time",
    "frequency": "frequency",
    "single_block": "single_block",
    "tandon_partial": "tandon_partial",
    "ferdinand_full": "ferdinand_full",
    "ferdinand_half": "ferdinand_half",
}
# Five digits of the optimum are enough for a figure; 6 is the paper's α of partial stragglers.
ALPHA = 6.0
OPTIONS = {"optimal": bcgc.Optimal(tolerance=1e-5), "tandon_partial": bcgc.TandonPartial(alpha=ALPHA)}
# Why published values are not on the line of the computed ones.
NOTES = {
    "optimal": "published: above the optimum",
    "ferdinand_half": "published: another\nof its equal optima",
}
IN_FIG3 = tuple(m for m, theirs in METHODS.items() if theirs in ("optimal", "time", "frequency"))

NUM_WORKERS, RATE = 20, 1e-3  # where the other one varies, and in Fig. 3
WORKERS_GRID = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50)
RATE_GRID = tuple(10 ** (e / 10) for e in range(-34, -25))
REFERENCE = Path(__file__).resolve().parent / "data"

WORKERS_LABEL = r"number of workers $N$"
RATE_LABEL = r"rate $\mu$ of the cycle time (1 / unit of cycle time)"


class Row(NamedTuple):
    """One point: `computed` and `published` are runtimes, in Fig. 3 numbers of coordinates."""

    figure: str
    axis: str
    x: float
    scheme: str
    computed: float
    published: float | None

    @property
    def ratio(self) -> float | None:
        """computed / published, None where nothing is published."""
        return self.computed / self.published if self.published else None


Published = Mapping[tuple[str, str, str], float]


def read_published(folder: Path = REFERENCE) -> Published:
    """The published values by (figure, scheme, x to six digits); none where the folder is not there."""
    values: dict[tuple[str, str, str], float] = {}
    if not folder.is_dir():
        return values
    with (folder / "published_runtimes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values[row["figure"], row["scheme"], f"{float(row['x']):.6g}"] = float(row["expected_runtime"])
    with (folder / "published_partitions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            level = row.pop("level")
            values.update({("3", scheme, level): float(count) for scheme, count in row.items()})
    return values


def compute(
    workers_grid: Iterable[int] = WORKERS_GRID,
    rate_grid: Iterable[float] = RATE_GRID,
    *,
    methods: Sequence[str] = tuple(METHODS),
    schemes: Sequence[bcgc.Scheme] = (),
    published: Published | None = None,
    seed: int = 0,
) -> list[Row]:
    """Every point of the three figures, of the `methods` and one's own `schemes`; Fig. 3 needs `NUM_WORKERS`
    on `workers_grid`.
    """
    workers_grid, published = sorted(set(workers_grid)), published or {}
    asked: dict[str, Any] = {method: OPTIONS.get(method, method) for method in methods}
    asked |= {scheme.name: scheme for scheme in schemes}
    largest = max(NUM_WORKERS, *workers_grid)
    grid = [("4a", "num_workers", n, RATE) for n in workers_grid]
    grid += [("4b", "rate", NUM_WORKERS, rate) for rate in rate_grid]
    rows = []

    def add(figure: str, axis: str, x: float, method: str, computed: float) -> None:
        known = published.get((figure, METHODS.get(method, ""), f"{x:.6g}"))
        rows.append(Row(figure, axis, x, method, computed, known))

    points = [(method, point) for method in asked for point in grid]
    for method, (figure, axis, num_workers, rate) in each(points, "solving"):
        problem = bcgc.Problem(
            bcgc.ShiftedExponential(rate, 50.0),
            num_workers,
            num_coordinates=20_000,
            num_samples=50.0,
            cycles=1.0,
            max_workers=largest,
        )
        solution = bcgc.solve(problem, asked[method], key=jax.random.key(seed))
        x = num_workers if figure == "4a" else rate
        runtime = float(solution.expected_runtime)
        add(figure, axis, x, method, runtime)
        shown = method not in METHODS and solution.rounded is not None and np.isfinite(runtime)
        if (method in IN_FIG3 or shown) and figure == "4a" and num_workers == NUM_WORKERS:
            counts = np.asarray(solution.rounded)[:num_workers]
            for level, count in enumerate(counts):
                add("3", "level", level, method, float(count))
    return sorted(rows, key=lambda row: row.figure)


def write_numbers(path: Path, rows: Iterable[Row]) -> None:
    """CSV of every point, with the ratio computed / published."""
    write_csv(path, ({**row._asdict(), "ratio": row.ratio} for row in rows))


def draw(rows: Sequence[Row], figure: str, schemes: Sequence[bcgc.Scheme] = ()):
    """Curves of the computed values, open markers for the published ones, of "3", "4a" or "4b"."""
    rows = [row for row in rows if row.figure == figure]
    methods = list(dict.fromkeys(row.scheme for row in rows))
    canvas, (axes,) = plotting.new_figure(size=(7.4, 3.9))
    handles, drawn = [], set()
    for method in methods:
        mine, name = [row for row in rows if row.scheme == method], METHODS.get(method)
        # A level without coordinates has no place on a logarithmic axis.
        axes.plot(
            [r.x for r in mine], [r.computed or np.nan for r in mine], **plotting.curve(method, schemes)
        )
        added = name is None
        if added:  # its few levels may have no neighbours, and no line
            points = [(r.x, r.computed or np.nan) for r in mine]
            axes.plot(*zip(*points, strict=True), **plotting.points(method, schemes, filled=True))
        theirs = [row for row in mine if row.published and name not in drawn]
        label = plotting.style(method, schemes).label
        label += rf", $\alpha = {ALPHA:g}$" if method == "tandon_partial" else ""
        if theirs:
            axes.plot(
                [r.x for r in theirs], [r.published or np.nan for r in theirs], **plotting.points(method)
            )
            drawn.add(name)
            if name != method:
                label += f"\n(published as “{name}”)"
            elif method in NOTES:
                label += f"\n({NOTES[method]})"
        handles.append(
            plotting.legend_handle(method, schemes, marker=added or bool(theirs), filled=added, label=label)
        )
    if figure == "3":
        levels = sorted({row.x for row in rows})
        plotting.label_axes(
            axes, r"redundancy level $n$", r"number of coordinates $x_n$", log="y", x_ticks=levels[::2]
        )
    elif figure == "4a":
        plotting.label_axes(axes, WORKERS_LABEL, plotting.RUNTIME_LABEL, log="y")
    else:
        plotting.label_axes(axes, RATE_LABEL, plotting.RUNTIME_LABEL, log="xy")
    title = "lines: computed exactly\nopen markers: published" if drawn else "computed exactly"
    plotting.legend_outside(canvas, handles, title=title)
    return canvas


def print_partitions(rows: Sequence[Row]) -> None:
    """Table of Fig. 3: a line for each level, computed and published counts side by side."""
    by_place = {(row.scheme, row.x): row for row in rows if row.figure == "3"}
    methods = list(dict.fromkeys(scheme for scheme, _ in by_place))
    if not methods:
        return
    known = {scheme for (scheme, _), row in by_place.items() if row.published}
    header = ["level"] + [h for m in methods for h in ([m, "published"] if m in known else [m])]
    lines = []
    for level in sorted({x for _, x in by_place}):
        line = [f"{level:g}"]
        for row in (by_place[method, level] for method in methods):
            line += [f"{row.computed:.0f}"] + (
                [f"{row.published:.0f}" if row.published else "–"] if row.scheme in known else []
            )
        lines.append(line)
    print_table(f"Fig. 3: coordinates at each level, N = {NUM_WORKERS}, rate {RATE:g}", header, lines)


def print_runtimes(rows: Sequence[Row], figure: str, title: str) -> None:
    """Table of Fig. 4: computed, published and ratio, one column for each published x."""
    by_place = {(row.scheme, row.x): row for row in rows if row.figure == figure}
    everywhere = sorted({x for _, x in by_place})
    shown = sorted({x for (_, x), row in by_place.items() if row.published})
    shown = shown or everywhere[:: -(-len(everywhere) // 6)]
    lines = []
    for method in dict.fromkeys(scheme for scheme, _ in by_place):
        mine = [by_place[method, x] for x in shown if (method, x) in by_place]
        if not mine:
            continue
        label = f"{method} α {ALPHA:g}" if method == "tandon_partial" else method
        lines.append([label, "computed", *(number(r.computed) for r in mine)])
        if any(r.published for r in mine):
            lines.append(["", "published", *(number(r.published) for r in mine)])
            lines.append(["", "ratio", *(number(r.ratio) for r in mine)])
    print_table(title, ["scheme", "", *(f"{x:.4g}" for x in shown)], lines)


def run(
    out: Path,
    *,
    seed: int = 0,
    workers_grid: Iterable[int] = WORKERS_GRID,
    rate_grid: Iterable[float] = RATE_GRID,
    methods: Sequence[str] = tuple(METHODS),
    schemes: Sequence[bcgc.Scheme] = (),
    reference: Path = REFERENCE,
) -> None:
    """Compute, print the tables, write paper.csv and the figures fig3, fig4a and fig4b to `out`."""
    published = read_published(reference)
    rows = compute(workers_grid, rate_grid, methods=methods, schemes=schemes, published=published, seed=seed)
    print_partitions(rows)
    print_runtimes(rows, "4a", f"Fig. 4(a): expected runtime against the number of workers, rate {RATE:g}")
    print_runtimes(rows, "4b", f"Fig. 4(b): expected runtime against the rate, N = {NUM_WORKERS}")
    if not published:
        print("\nNo published values there: computed values only.")
    elif any(row.scheme == "subgradient" for row in rows):
        print(
            '\nThe published scheme beside "subgradient" is the paper\'s "optimal", which is not the optimum.'
        )
    write_numbers(out / "paper.csv", rows)
    for figure in sorted({row.figure for row in rows}):
        plotting.save_figure(draw(rows, figure, schemes), out, f"fig{figure}")
    print(f"\nWritten to {out}: paper.csv and fig3, fig4a, fig4b as .png and .svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    description = (
        "Reproduces Fig. 3 (partitions), Fig. 4(a) (expected runtime against the number of workers) and\n"
        "Fig. 4(b) (against the rate) of Wang et al., GLOBECOM 2021: shifted exponential cycle times,\n"
        "shift 50, L = 20000, M = 50, b = 1. Writes PNG, SVG and CSV, prints computed / published ratios.\n"
    )
    return run_command("paper", description, run, argv, schemes=True)


if __name__ == "__main__":
    sys.exit(main())
