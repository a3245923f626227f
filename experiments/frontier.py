"""The frontier of schemes: runtime against subsets stored, coordinates sent, and the latency of a question.

For the paper's setting and measured traces. A schedule asks once a block; all questions but the last are
asked while workers go on, so it takes one round trip more than its runtime. Work sharing pays one for each
chunk. A code and nested groups ask nothing. The map says which scheme is best for so many stored subsets, by
the latency. Traces that are not there are left out. Takes half an hour.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import measured, plotting
from experiments import looks
from experiments.report import TRACES, each, grouped, number, print_table, readable, run_command, save

FILES = ("llm_training_32_workers.csv", "pai_job_1_10_workers.csv", "pai_job_4_10_workers.csv")
# Round trips, as a share of the runtime of the paper's optimum, and chunks of a worker.
LATENCIES = tuple(np.geomspace(1e-3, 10, 25))
CHUNKS = 5
MAP = ("optimal", "nested", "multi_message", "cyclic", "sharing")
# Those that ask nobody anything.
UNASKED = ("uncoded", "optimal", "nested")


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


def settings(folder: Path = TRACES) -> Iterator[tuple[str, bcgc.Problem]]:
    """The paper's, and of each trace a smooth law of its times; those that are not there are left out."""
    law = bcgc.ShiftedExponential(1e-3, 50.0)
    yield "paper, N = 20", bcgc.Problem(law, 20, 20_000, 50)
    for name in FILES:
        if (folder / name).exists():
            trace = measured.load_trace(folder / name)
            of_trace, workers = measured.smooth_empirical(trace.seconds), trace.num_workers
            yield name.removesuffix(".csv"), bcgc.Problem(of_trace, workers, 20_000, workers)


def stored_grid(workers: int) -> list[int]:
    """From one subset to all, ever further apart."""
    return sorted({1, 2, 3, *(round(x) for x in np.geomspace(4, workers, 4)), workers})


def points(name: str, problem: bcgc.Problem, key: jax.Array) -> Iterator[Point]:
    """Each scheme at each number of stored subsets."""
    workers = int(np.asarray(problem.num_workers))
    asked: list[tuple[str, int, Any]] = []
    for stored in stored_grid(workers):
        # The paper's scheme of workers that store so many subsets: a coordinate on no more of them.
        asked.append(("optimal", stored, bcgc.Optimal(levels=range(stored))))
        names = "nested", "cyclic", *["multi_message"] * (stored > 1)
        asked += [(name, stored, f"{name}:{stored}") for name in names]
    for scheme, stored, method in [*asked, ("sharing", workers, bcgc.Sharing(CHUNKS))]:
        found = bcgc.solve(problem, method, key=key)
        assert found.needs is not None
        value, error = float(found.expected_runtime), float(found.runtime_error)
        yield Point(name, scheme, stored, value, error, float(found.needs.sent), int(found.needs.round_trips))


def unit_of(points: Sequence[Point]) -> float:
    """The runtime of the paper's optimum with all subsets, of one setting."""
    return min(point.runtime for point in points if point.scheme == "optimal")


def best_of(problem: bcgc.Problem, known: Sequence[Point], key: jax.Array) -> Iterator[Best]:
    """Which scheme is best for each number of stored subsets and each latency."""
    workers, unit = int(np.asarray(problem.num_workers)), unit_of(known)
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
            scheme = min(takes, key=takes.__getitem__)
            named = scheme if stored > 1 else "uncoded"  # all of them are, of one subset
            yield Best(known[0].setting, stored, latency, named, takes[scheme])


def print_points(rows: Sequence[Point]) -> None:
    """Runtime over the paper's optimum with all subsets, by subsets stored."""
    for name, mine in grouped(rows, lambda row: row.setting).items():
        unit, lines = unit_of(mine), []
        for stored, here in sorted(grouped(mine, lambda row: row.stored_subsets).items()):
            at = {row.scheme: row for row in here}
            shown = [number(at[s].runtime / unit) if s in at else "–" for s in MAP]
            lines.append([stored, *shown, *[f"{at[s].sent:.2f}" if s in at else "–" for s in MAP]])
        header = ["subsets stored", *MAP, *[f"sent, {s}" for s in MAP]]
        print_table(f"{name}: runtime in units of the optimum's, {unit:.4g}; sent in L", header, lines)


def print_map(rows: Sequence[Best]) -> None:
    """From which latency on nothing beats what asks nobody."""
    lines = []
    for (name, stored), mine in grouped(rows, lambda row: (row.setting, row.stored_subsets)).items():
        unasked = [row.latency for row in mine if row.scheme in UNASKED]
        lines.append([name, stored, mine[0].scheme, f"{min(unasked):.3g}" if unasked else "–"])
    header = ["setting", "subsets", "best without latency", "none from a latency of"]
    print_table("Latency of a round trip, in units of the optimum's runtime", header, lines)


def draw(rows: Sequence[Point], bests: Sequence[Best]) -> Any:
    """One row of panels for each setting: by storage, by what is sent, and the map."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    settings, shown = grouped(rows, lambda row: row.setting), ("uncoded", *MAP)
    canvas, panels = plotting.new_figure(len(settings), 3, size=(9.6, 2.7 * len(settings)))
    grid = np.reshape(np.array(panels, dtype=object), (len(settings), 3))
    for (name, mine), (left, middle, right) in zip(settings.items(), grid, strict=True):
        unit = unit_of(mine)
        for scheme in MAP:
            here = [row for row in mine if row.scheme == scheme]
            y = [row.runtime / unit for row in here]
            style = plotting.style(scheme)
            look = plotting.curve(style) | looks.points(style) | {"linestyle": style.line}
            left.plot([row.stored_subsets for row in here], y, **look)
            middle.plot([row.sent for row in here], y, **looks.points(style))
        look, y_label = {"log": "y", "y_ticks": (0.25, 0.5, 1, 2, 4)}, f"{readable(name)}\nruntime / optimum"
        looks.label_axes(left, "subsets stored by a worker", y_label, **look)
        looks.label_axes(middle, r"sent by a worker (in $L$)", "", **look)
        cells = [row for row in bests if row.setting == name]
        stored = sorted({row.stored_subsets for row in cells})
        place = {(row.stored_subsets, row.latency): shown.index(row.scheme) for row in cells}
        colours = ListedColormap([plotting.style(scheme).color for scheme in shown])
        image = [[place[s, latency] for latency in LATENCIES] for s in stored]
        edges = np.sqrt(np.array(LATENCIES[1:]) * np.array(LATENCIES[:-1]))
        x = np.r_[LATENCIES[0], edges, LATENCIES[-1]]
        right.pcolormesh(x, np.arange(len(stored) + 1), image, cmap=colours, vmin=-0.5, vmax=len(shown) - 0.5)
        right.set_yticks(np.arange(len(stored)) + 0.5, [str(s) for s in stored])
        plotting.label_axes(right, "latency / optimum's runtime", "subsets stored", log="x")
    handles = [Patch(color=plotting.style(s).color, label=plotting.style(s).label) for s in shown]
    plotting.legend_outside(canvas, handles, title="marks, and best scheme\n(right)")
    return canvas


def run(out: Path, *, seed: int = 0) -> None:
    rows, bests = list[Point](), list[Best]()
    for name, problem in each(list(settings()), "settings"):
        mine = list(points(name, problem, jax.random.key(seed)))
        rows += mine
        bests += best_of(problem, mine, jax.random.key(seed))
        jax.clear_caches()  # programs of other numbers of workers: a process may not have enough maps for all
    print_points(rows)
    print_map(bests)
    save(out, {"frontier": rows, "frontier_map": bests}, {"frontier": draw(rows, bests)})


if __name__ == "__main__":
    sys.exit(run_command(run))
