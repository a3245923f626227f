"""The frontier of schemes: runtime against subsets stored, coordinates sent, and the latency of a question.

For the paper's setting and measured traces. A schedule asks once a block; all questions but the last are
asked while workers go on, so it takes one round trip more than its runtime. Work sharing pays one for each
chunk. A code asks nothing. The map says which scheme is best for so many stored subsets, by the latency.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import measured, plotting
from bcgc_jax.cli.waiting import each
from experiments.report import TRACES, number, print_table, run_command, write_csv

FILES = ("llm_training_32_workers.csv", "pai_job_1_10_workers.csv", "pai_job_4_10_workers.csv")
# Round trips, as a share of the runtime of the paper's optimum, and chunks of a worker.
LATENCIES = tuple(np.geomspace(1e-3, 10, 25))
CHUNKS = 5
MAP = ("optimal", "credit", "cyclic", "sharing")


class Setting(NamedTuple):
    """A problem and what it is called."""

    name: str
    problem: bcgc.Problem


class Point(NamedTuple):
    """A scheme with so many stored subsets: runtime without latency, and what it sends and asks."""

    setting: str
    scheme: str
    stored_subsets: int
    runtime: float
    error: float
    sent: float
    round_trips: int


class Best(NamedTuple):
    """The best scheme for a latency, in units of the optimum's runtime, and its runtime in these."""

    setting: str
    stored_subsets: int
    latency: float
    scheme: str
    runtime: float


def settings(folder: Path = TRACES) -> Iterator[Setting]:
    """The paper's, and of each trace a smooth law of its times; those that are not there are left out."""
    law = bcgc.ShiftedExponential(1e-3, 50.0)
    yield Setting("paper, N = 20", bcgc.Problem(law, 20, 20_000, 50))
    for name in FILES:
        if not (folder / name).exists():
            continue
        trace = measured.load_trace(folder / name)
        of_trace = measured.smooth_empirical(trace.seconds)
        workers = trace.num_workers
        yield Setting(name.removesuffix(".csv"), bcgc.Problem(of_trace, workers, 20_000, workers))


def stored_grid(workers: int) -> list[int]:
    """From one subset to all, ever further apart."""
    return sorted({1, 2, 3, *(round(x) for x in np.geomspace(4, workers, 4)), workers})


def points(setting: Setting, seed: int) -> Iterator[Point]:
    """Each scheme at each number of stored subsets."""
    problem, key = setting.problem, jax.random.key(seed)
    workers = int(np.asarray(problem.num_workers))
    grid = stored_grid(workers)
    for stored in grid:
        # The paper's scheme of workers that store so many subsets: a coordinate on no more of them.
        yield _point(setting, "optimal", stored, bcgc.solve(problem, bcgc.Optimal(levels=range(stored))))
        for method in (f"cyclic:{stored}", *([f"credit:{stored}"] if stored > 1 else [])):
            yield _point(setting, method, stored, bcgc.solve(problem, method, key=key))
    chunked = bcgc.solve(problem, bcgc.Sharing(CHUNKS), key=key)
    yield _point(setting, "sharing", workers, chunked)


def _point(setting: Setting, method: str, stored: int, found: bcgc.Solution) -> Point:
    assert found.needs is not None
    value, error = float(found.expected_runtime), float(found.runtime_error)
    name = method.partition(":")[0]
    return Point(
        setting.name, name, stored, value, error, float(found.needs.sent), int(found.needs.round_trips)
    )


def best_of(setting: Setting, known: Sequence[Point], seed: int) -> Iterator[Best]:
    """Which scheme is best for each number of stored subsets and each latency."""
    problem, key = setting.problem, jax.random.key(seed)
    workers = int(np.asarray(problem.num_workers))
    unit = next(p.runtime for p in known if p.scheme == "optimal" and p.stored_subsets == workers)
    for latency in LATENCIES:
        sharing = bcgc.solve(problem, bcgc.Sharing(CHUNKS, latency * unit), key=key).expected_runtime
        for stored in stored_grid(workers):
            takes = {
                p.scheme: p.runtime / unit + (latency if p.round_trips else 0)
                for p in known
                if p.stored_subsets == stored and p.scheme != "sharing"
            }
            if stored == workers:
                takes["sharing"] = float(sharing) / unit
            name = min(takes, key=takes.__getitem__)
            yield Best(setting.name, stored, latency, name, takes[name])


def print_points(rows: Sequence[Point]) -> None:
    """Runtime over the paper's optimum with all subsets, by subsets stored."""
    for name in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == name]
        unit = min(row.runtime for row in mine if row.scheme == "optimal")
        lines = []
        for stored in sorted({row.stored_subsets for row in mine}):
            at = {row.scheme: row for row in mine if row.stored_subsets == stored}
            shown = [number(at[s].runtime / unit) if s in at else "–" for s in MAP]
            lines.append([str(stored), *shown, *[f"{at[s].sent:.2f}" if s in at else "–" for s in MAP]])
        header = ["subsets stored", *MAP, *[f"sent, {s}" for s in MAP]]
        print_table(f"{name}: runtime in units of the optimum's, {unit:.4g}; sent in L", header, lines)


def print_map(rows: Sequence[Best]) -> None:
    """From which latency on nothing beats the code."""
    lines = []
    for name in dict.fromkeys(row.setting for row in rows):
        for stored in sorted({row.stored_subsets for row in rows if row.setting == name}):
            mine = [row for row in rows if (row.setting, row.stored_subsets) == (name, stored)]
            coded = [row.latency for row in mine if row.scheme == "optimal"]
            first = mine[0].scheme
            lines.append([name, str(stored), first, f"{min(coded):.3g}" if coded else "–"])
    header = ["setting", "subsets", "best without latency", "code best from a latency of"]
    print_table("Latency of a round trip, in units of the optimum's runtime", header, lines)


def draw(rows: Sequence[Point], bests: Sequence[Best]) -> Any:
    """One row of panels for each setting: by storage, by what is sent, and the map."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(row.setting for row in rows))
    canvas, panels = plotting.new_figure(len(names), 3, size=(9.6, 2.7 * len(names)))
    grid = np.reshape(np.array(panels, dtype=object), (len(names), 3))
    for name, (left, middle, right) in zip(names, grid, strict=True):
        mine = [row for row in rows if row.setting == name]
        unit = min(row.runtime for row in mine if row.scheme == "optimal")
        for scheme in MAP:
            here = [row for row in mine if row.scheme == scheme]
            y = [row.runtime / unit for row in here]
            look = plotting.curve(scheme) | plotting.points(scheme)
            left.plot(
                [row.stored_subsets for row in here], y, **look | {"linestyle": plotting.style(scheme).line}
            )
            middle.plot([row.sent for row in here], y, **plotting.points(scheme))
        for axes, label, value in (
            (left, "subsets stored by a worker", f"{name}\nruntime / optimum"),
            (middle, r"sent by a worker (in $L$)", ""),
        ):
            plotting.label_axes(axes, label, value, log="y", y_ticks=(0.25, 0.5, 1, 2, 4))
        cells = [row for row in bests if row.setting == name]
        stored = sorted({row.stored_subsets for row in cells})
        place = {(row.stored_subsets, row.latency): MAP.index(row.scheme) for row in cells}
        colours = ListedColormap([plotting.style(scheme).color for scheme in MAP])
        image = [[place[s, latency] for latency in LATENCIES] for s in stored]
        edges = np.sqrt(np.array(LATENCIES[1:]) * np.array(LATENCIES[:-1]))
        x = np.r_[LATENCIES[0], edges, LATENCIES[-1]]
        right.pcolormesh(x, np.arange(len(stored) + 1), image, cmap=colours, vmin=-0.5, vmax=len(MAP) - 0.5)
        right.set_yticks(np.arange(len(stored)) + 0.5, [str(s) for s in stored])
        plotting.label_axes(right, "latency / optimum's runtime", "subsets stored", log="x")
    handles = [Patch(color=plotting.style(s).color, label=plotting.style(s).label) for s in MAP]
    plotting.legend_outside(canvas, handles, title="marks, and best scheme\n(right)")
    return canvas


def run(out: Path, *, seed: int) -> None:
    """Compute, print the tables, write frontier.csv, frontier_map.csv, .png and .svg to `out`."""
    rows: list[Point] = []
    bests: list[Best] = []
    for setting in each(list(settings()), "settings"):
        mine = list(points(setting, seed))
        rows += mine
        bests += best_of(setting, mine, seed)
    print_points(rows)
    print_map(bests)
    write_csv(out / "frontier.csv", (row._asdict() for row in rows))
    write_csv(out / "frontier_map.csv", (row._asdict() for row in bests))
    plotting.save_figure(draw(rows, bests), out, "frontier")
    print(f"\nWritten to {out}: frontier.csv, frontier_map.csv, frontier.png, frontier.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    description = (
        "Runtime against subsets stored, coordinates sent and the latency of a question, of the paper's\n"
        "optimum, cyclic and optimised schedules and work sharing, in the paper's setting and on the traces\n"
        "that are there; which scheme is best where. Takes half an hour; writes PNG, SVG and CSV."
    )
    return run_command("frontier", description, run, argv)


if __name__ == "__main__":
    sys.exit(main())
