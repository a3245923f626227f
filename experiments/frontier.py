"""Find the best scheme for each storage per worker and each request latency.

The study prints runtimes relative to uncoded steps, for the paper's distribution with
N = 20, and for times with a standard deviation of half their mean. A forward pass is
free, or takes 0.47 of a backward pass, and is counted once for each subset that a
worker computes. All workers are available again when a step ends.

Work sharing sends a request before each chunk, and uses the best of several numbers of
chunks. Cyclic schedules send one request for their sums. Codes and nested groups send
no requests. The study takes some minutes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments import looks
from experiments.report import grouped, print_table, run_command, save, with_progress

COORDINATES = 20_000
SAMPLES = 50
SETTINGS = {
    "paper, N = 20": (bcgc.ShiftedExponential(1e-3, 50.0), 20),
    "deviation half the mean, N = 20": (bcgc.ShiftedExponential(1e-3, 1000.0), 20),
}
# A forward pass over a backward pass: free, and what a training job of a large model
# recorded.
FORWARD = (0.0, 0.47)
SCHEMES = ("sharing", "cyclic", "nested", "optimal", "limit")
_LABELS = {"limit": "limit of every exact scheme with this storage"}
# What a question takes, over the expected runtime without redundancy.
ROUND_TRIPS = (0.0, 0.01, 0.02, 0.05)
# Chunks of work sharing: the best number for a round trip is taken.
CHUNKS = (2, 4, 8)


class Point(NamedTuple):
    """A scheme with so many stored subsets: runtime over uncoded, sent over L."""

    setting: str
    forward: float
    round_trip: float
    scheme: str
    stored_subsets: int
    runtime: float
    error: float
    sent: float


def stored_grid(workers: int) -> list[int]:
    """Return numbers of subsets from one to all."""
    return [stored for stored in (1, 2, 3, 5, 10) if stored < workers] + [workers]


def method_of(scheme: str, stored: int) -> str | Any:
    """Return the method of a scheme whose workers store so many subsets."""
    # A coordinate on no more subsets.
    if scheme == "optimal":
        return bcgc.Optimal(levels=range(stored))
    return f"{scheme}:{stored}"


def points(name: str, forward: float, key: jax.Array) -> Iterator[Point]:
    """Evaluate schemes at each storage, and two subsets at each round trip."""
    law, workers = SETTINGS[name]
    setup = forward * COORDINATES or None
    problem = bcgc.Problem(law, workers, COORDINATES, SAMPLES, setup_cycles=setup)
    unit = float(bcgc.solve(problem, "uncoded").expected_runtime)

    def point(scheme: str, stored: int, method: Any, trip: float = 0.0) -> Point:
        solution = bcgc.solve(problem, method, key=key)
        value = float(solution.expected_runtime) / unit
        error = float(solution.runtime_error) / unit
        if solution.needs is None:
            sent = float("nan")
        else:
            sent = float(solution.needs.sent)
        return Point(name, forward, trip, scheme, stored, value, error, sent)

    without = [
        point(scheme, stored, method_of(scheme, stored))
        for stored in stored_grid(workers)
        for scheme in SCHEMES
    ]
    yield from without
    for trip in ROUND_TRIPS[1:] if forward else ():
        schemes = [bcgc.Sharing(2, chunks, round_trip=trip * unit) for chunks in CHUNKS]
        yield min(
            (point("sharing", 2, scheme, trip) for scheme in schemes),
            key=lambda point: point.runtime,
        )
        for free in without:
            if free.stored_subsets == 2 and free.scheme != "sharing":
                asked = 0.0
                if free.scheme == "cyclic":
                    asked = trip
                yield free._replace(round_trip=trip, runtime=free.runtime + asked)


def print_points(rows: Sequence[Point]) -> None:
    """Draw times by subsets stored, and by the round trip."""
    for name, rows_of_setting in grouped(rows, lambda row: row.setting).items():
        row_of = {
            (row.round_trip, row.stored_subsets, row.scheme, row.forward): row
            for row in rows_of_setting
        }
        stored = sorted({row.stored_subsets for row in rows_of_setting})
        for forward in FORWARD:
            lines = [
                [
                    s,
                    *(
                        f"{row_of[0.0, s, scheme, forward].runtime:.3f}"
                        for scheme in SCHEMES
                    ),
                ]
                for s in stored
            ]
            title = f"{name}: runtime over uncoded, forward pass {forward:g}"
            print_table(title, ["stored", *SCHEMES], lines)
        lines = [
            [
                f"{100 * t:g} %",
                *(
                    f"{row_of[t, 2, scheme, FORWARD[-1]].runtime:.3f}"
                    for scheme in SCHEMES
                ),
            ]
            for t in ROUND_TRIPS
        ]
        title = (
            "By how long a question takes, over uncoded; 2 subsets stored, forward "
            f"pass {FORWARD[-1]:g}"
        )
        print_table(title, ["question", *SCHEMES], lines)
        lines = [
            [s, *(f"{row_of[0.0, s, scheme, 0.0].sent:.2f}" for scheme in SCHEMES[:-1])]
            for s in stored
        ]
        print_table(
            "What a worker sends, in L; free forward pass",
            ["stored", *SCHEMES[:-1]],
            lines,
        )


def draw(rows: Sequence[Point]) -> Any:
    """Above by what is stored, below by a question's time; all passes counted."""
    settings = grouped(
        [row for row in rows if row.forward == FORWARD[-1]], lambda row: row.setting
    )
    count = len(settings)
    figure, axes = plotting.new_figure(2, count, size=(1.2 + 2.8 * count, 5.6))
    for place, (name, rows_of_setting) in enumerate(settings.items()):
        first = place == 0
        above = [row for row in rows_of_setting if row.round_trip == 0]
        below = [row for row in rows_of_setting if row.stored_subsets == 2]
        for scheme in SCHEMES:
            _curve(axes[place], scheme, above, lambda row: row.stored_subsets)
            _curve(axes[count + place], scheme, below, lambda row: 100 * row.round_trip)
        stored = sorted({row.stored_subsets for row in above})
        y = ""
        if first:
            y = "runtime over uncoded"
        looks.label_axes(
            axes[place],
            "subsets stored by a worker",
            y,
            x_ticks=stored,
            title=name,
            log="x",
        )
        plotting.label_axes(axes[count + place], "a question, % of an uncoded step", y)
        for panel in (axes[place], axes[count + place]):
            panel.set_ylim(0, 1.05)
    handles = [
        looks.legend_handle(plotting.style(scheme), label=_LABELS.get(scheme, ""))
        for scheme in SCHEMES
    ]
    title = (
        "Cycle times: shifted exponential, rate 1e-3, shift 50 on the left, 1000 on "
        "the right.\n"
        "Forward pass 0.47 of a backward pass; workers are free as a step ends.\n"
        "Above: questions take no time; sharing in 8 chunks.\n"
        "Below: two subsets stored; sharing in 2, 4 or 8 chunks, the best."
    )
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


def _curve(axes: Any, scheme: str, rows: Sequence[Point], x: Any) -> None:
    rows_of_scheme = [row for row in rows if row.scheme == scheme]
    look = plotting.style(scheme)
    options = plotting.curve(look) | looks.points(look) | {"linestyle": look.line}
    axes.plot(
        [x(row) for row in rows_of_scheme],
        [row.runtime for row in rows_of_scheme],
        **options,
    )


def run(out: Path, *, seed: int = 0) -> None:
    rows = list[Point]()
    for name in with_progress(list(SETTINGS), "settings"):
        for forward in FORWARD:
            rows += points(name, forward, jax.random.key(seed))
    print_points(rows)
    save(out, {"frontier": rows}, {"frontier": draw(rows)})


if __name__ == "__main__":
    sys.exit(run_command(run, compiles_quickly=True))
