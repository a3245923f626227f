"""The frontier of schemes: runtime against subsets stored, coordinates sent, and the latency of a question.

For the paper's setting and measured traces. A schedule asks once a block; all questions but the last are
asked while workers go on, so it takes one round trip more than its runtime. Work sharing pays one for each
chunk. A code and nested groups ask nothing. The map says which scheme is best for so many stored subsets, by
the latency. Traces that are not there are left out. Takes half an hour.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
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
    """From one subset to all of at least ten, ever further apart."""
    return sorted({*range(1, 7), *(round(x) for x in np.geomspace(7, workers, 5))})


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


# What a scheme's areas of the map are hatched with: they are told apart without colours.
_HATCHES = {"uncoded": "...", "multi_message": "////", "cyclic": "\\\\", "sharing": "xxx"}
_TITLES = "(a) time by what is stored", "(b) time by what is sent", "(c) the fastest, by latency"
_X = (
    "subsets stored by a worker",
    "sent by a worker\n(share of all coordinates)",
    "latency of a question\n(optimum's runtimes)",
)


def draw(rows: Sequence[Point], bests: Sequence[Best]) -> Any:
    """One row of panels for each setting: by storage, by what is sent, and the map."""
    from matplotlib.patches import Patch

    settings = list(grouped(rows, lambda row: row.setting).items())
    canvas, panels = plotting.new_figure(len(settings), 3, size=(9.6, 1.6 + 2.3 * len(settings)))
    edges = np.sqrt(np.array(LATENCIES[1:]) * np.array(LATENCIES[:-1]))
    bounds = dict(zip(LATENCIES, pairwise([LATENCIES[0], *edges, LATENCIES[-1]]), strict=True))
    for place, (name, mine) in enumerate(settings):
        left, middle, right = three = panels[3 * place : 3 * place + 3]
        unit = unit_of(mine)
        for scheme in MAP:
            here = [row for row in mine if row.scheme == scheme]
            y = [row.runtime / unit for row in here]
            style = plotting.style(scheme)
            look = plotting.curve(style) | looks.points(style) | {"linestyle": style.line}
            left.plot([row.stored_subsets for row in here], y, **look)
            middle.plot([row.sent for row in here], y, **looks.points(style))
        cells = [row for row in bests if row.setting == name]
        stored = sorted({row.stored_subsets for row in cells})
        for row in cells:
            low, high = bounds[row.latency]
            right.barh(stored.index(row.stored_subsets), high - low, 1, low, **_area(row.scheme))
        right.set(ylim=(-0.5, len(stored) - 0.5), xlim=(LATENCIES[0], LATENCIES[-1]))
        words = [_X if place == len(settings) - 1 else [""] * 3, [""] * 3 if place else _TITLES]
        y_labels = f"{readable(name)}\nruntime (optimum's)", "", "subsets stored"
        for axes, x_label, title, y_label in zip(three, *words, y_labels, strict=True):
            plotting.label_axes(axes, x_label, y_label, title=title, log="x" if axes is right else "")
        right.set_yticks(range(len(stored)), [str(s) for s in stored])
    lines = [looks.legend_handle(plotting.style(s)) for s in MAP]
    fastest = [s for s in ("uncoded", *MAP) if s in {row.scheme for row in bests}]
    areas = [Patch(label=f"fastest: {plotting.style(s).label}", **_area(s)) for s in fastest]
    plotting.legend_outside(canvas, [*lines, *areas], place="lower", columns=3)
    return canvas


def _area(scheme: str) -> dict[str, Any]:
    colour = plotting.style(scheme).color
    return {"facecolor": colour, "hatch": _HATCHES.get(scheme, ""), "edgecolor": "white", "linewidth": 0}


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
