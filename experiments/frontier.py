"""The best scheme for so many stored subsets, and for so slow questions: time over
uncoded.

For the paper's setting at N = 20, and for times whose deviation is half of their mean.
A forward pass is free, or takes 0.47 of a backward pass, which is counted once for each
subset that a worker computes. Workers are free as a step ends. Work sharing asks before
each chunk, with the best of some numbers of chunks; cyclic asks for its sums once; a
code and nested groups ask nothing. Some minutes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments import looks
from experiments.report import each, grouped, print_table, run_command, save

COORDINATES, SAMPLES = 20_000, 50
SETTINGS = {
    "paper, N = 20": (bcgc.ShiftedExponential(1e-3, 50.0), 20),
    "deviation half the mean, N = 20": (bcgc.ShiftedExponential(1e-3, 1000.0), 20),
}
# A forward pass over a backward pass: free, and what a training job of a large model
# recorded.
FORWARD = (0.0, 0.47)
SCHEMES = ("sharing", "cyclic", "nested", "optimal", "limit")
# Of a question, over the expected runtime without redundancy.
ROUND_TRIPS = (0.0, 0.01, 0.02, 0.05)
# Of work sharing: the best number for a round trip is taken.
CHUNKS = (2, 4, 8)


class Point(NamedTuple):
    """A scheme with so many stored subsets: its runtime over uncoded, and what it
    sends, in L.
    """

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
    """Evaluate schemes at each number of stored subsets, and two subsets at each round
    trip.
    """
    law, workers = SETTINGS[name]
    setup = forward * COORDINATES or None
    problem = bcgc.Problem(law, workers, COORDINATES, SAMPLES, setup_cycles=setup)
    unit = float(bcgc.solve(problem, "uncoded").expected_runtime)

    def point(scheme: str, stored: int, method: Any, trip: float = 0.0) -> Point:
        found = bcgc.solve(problem, method, key=key)
        value, error = (
            float(found.expected_runtime) / unit,
            float(found.runtime_error) / unit,
        )
        if found.needs is None:
            sent = float("nan")
        else:
            sent = float(found.needs.sent)
        return Point(name, forward, trip, scheme, stored, value, error, sent)

    without = [
        point(scheme, stored, method_of(scheme, stored))
        for stored in stored_grid(workers)
        for scheme in SCHEMES
    ]
    yield from without
    for trip in ROUND_TRIPS[1:] if forward else ():
        some = [bcgc.Sharing(2, chunks, round_trip=trip * unit) for chunks in CHUNKS]
        yield min(
            (point("sharing", 2, one, trip) for one in some),
            key=lambda point: point.runtime,
        )
        for one in without:
            if one.stored_subsets == 2 and one.scheme != "sharing":
                asked = 0.0
                if one.scheme == "cyclic":
                    asked = trip
                yield one._replace(round_trip=trip, runtime=one.runtime + asked)


def print_points(rows: Sequence[Point]) -> None:
    """Draw times by subsets stored, and by the round trip."""
    for name, mine in grouped(rows, lambda row: row.setting).items():
        at = {
            (row.round_trip, row.stored_subsets, row.scheme, row.forward): row
            for row in mine
        }
        stored = sorted({row.stored_subsets for row in mine})
        header = [
            "stored",
            *(f"{scheme}, {forward:g}" for scheme in SCHEMES for forward in FORWARD),
        ]
        lines = [
            [
                s,
                *(
                    f"{at[0.0, s, one, forward].runtime:.3f}"
                    for one in SCHEMES
                    for forward in FORWARD
                ),
            ]
            for s in stored
        ]
        print_table(
            f"{name}: runtime over uncoded, by scheme and forward pass", header, lines
        )
        lines = [
            [
                f"{100 * t:g} %",
                *(f"{at[t, 2, one, FORWARD[-1]].runtime:.3f}" for one in SCHEMES),
            ]
            for t in ROUND_TRIPS
        ]
        title = (
            "By how long a question takes, over uncoded; 2 subsets stored, forward "
            f"pass {FORWARD[-1]:g}"
        )
        print_table(title, ["question", *SCHEMES], lines)
        lines = [
            [s, *(f"{at[0.0, s, one, 0.0].sent:.2f}" for one in SCHEMES[:-1])]
            for s in stored
        ]
        print_table(
            "What a worker sends, in L; free forward pass",
            ["stored", *SCHEMES[:-1]],
            lines,
        )


def draw(rows: Sequence[Point]) -> Any:
    """Above by what is stored, below by how long a question takes; all passes
    counted.
    """
    settings = grouped(
        [row for row in rows if row.forward == FORWARD[-1]], lambda row: row.setting
    )
    count = len(settings)
    figure, axes = plotting.new_figure(2, count, size=(1.2 + 2.8 * count, 5.6))
    for place, (name, mine) in enumerate(settings.items()):
        first = place == 0
        above = [row for row in mine if row.round_trip == 0]
        below = [row for row in mine if row.stored_subsets == 2]
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
    handles = [looks.legend_handle(plotting.style(scheme)) for scheme in SCHEMES]
    title = (
        "above: questions take no time; below: two subsets stored\n"
        "forward pass 0.47 of a backward pass"
    )
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


def _curve(axes: Any, scheme: str, rows: Sequence[Point], x: Any) -> None:
    here = [row for row in rows if row.scheme == scheme]
    look = plotting.style(scheme)
    given = plotting.curve(look) | looks.points(look) | {"linestyle": look.line}
    axes.plot([x(row) for row in here], [row.runtime for row in here], **given)


def run(out: Path, *, seed: int = 0) -> None:
    rows = list[Point]()
    for name in each(list(SETTINGS), "settings"):
        for forward in FORWARD:
            rows += points(name, forward, jax.random.key(seed))
    print_points(rows)
    save(out, {"frontier": rows}, {"frontier": draw(rows)})


if __name__ == "__main__":
    sys.exit(run_command(run))
