"""What saves time on measured steps? Plan on the first half of each trace, replay the rest step by step.

All passes are counted (see `experiments.replay`): work sharing with two and three subsets stored and with all
data, shares of the data by speed, nested groups and the paper's optimum, beside what no exact scheme beats.
Intervals of 95 % are those of blocks of neighbouring steps, resampled; a block is as long as what ties a step
to the next asks for.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.measured.description import Description
from bcgc_jax.measured.intervals import Interval, block_length, resample
from experiments import looks
from experiments.replay import BOUNDS, FORWARD, RULES, Rule, replay
from experiments.report import print_table, readable, run_command, save

# The share of the steps that plans are made on.
FIRST = 0.5
_FEWEST_STEPS = 8
_SUFFIXES = (".csv", ".csv.gz")


class Row(NamedTuple):
    """A scheme on a trace: mean time of a step, in the unit of the trace, and saved against uncoded, %."""

    trace: str
    scheme: str
    taken: Interval
    saved: Interval


class Study(NamedTuple):
    """One trace: its rows, how many steps were planned on and replayed, and how intervals were made."""

    trace: str
    rows: list[Row]
    num_planned: int
    num_replayed: int
    block: int
    description: Description


def compute(
    name: str, trace: bcgc.measured.Trace, seed: int = 0, *, rules: Mapping[str, Rule] = RULES
) -> Study:
    """Plans and replays of one trace; steps in which a worker has no time are left out."""
    table = trace.table()
    rows = table[np.isfinite(table).all(axis=1)]
    if len(rows) < _FEWEST_STEPS or trace.num_workers < 2:
        raise ValueError(
            f"{name} has {len(rows)} steps with a time of each of {trace.num_workers} workers: a plan and "
            f"its replay need at least {_FEWEST_STEPS} steps of 2 workers"
        )
    num_planned = round(FIRST * len(rows))
    taken = replay(rows, num_planned, rules=rules, name=name)
    block = max(block_length(series) for own in taken.values() for series in (own, taken["uncoded"] - own))
    found = intervals(name, taken, block, seed)
    return Study(name, found, num_planned, len(rows) - num_planned, block, bcgc.measured.describe(trace))


def intervals(name: str, taken: Mapping[str, np.ndarray], block: int, seed: int) -> list[Row]:
    """All schemes in the same resampled steps."""
    found = resample(np.stack(list(taken.values()), axis=1), block, seed)
    uncoded = list(taken).index("uncoded")

    def of_scheme(i: int) -> tuple[Interval, Interval]:
        saved = found.interval(lambda mean: 100 * (1 - mean[..., i] / mean[..., uncoded]))
        return found.interval(lambda mean: mean[..., i]), saved

    return [Row(name, scheme, *of_scheme(i)) for i, scheme in enumerate(taken)]


# The rows of the picture, from below: its label, and whose colour and marker it has.
_SHARES, _SHARING = plotting.Style("", looks.COLORS[1], "p"), plotting.style("sharing")._replace(marker="D")
_SHOWN: Mapping[str, tuple[str, plotting.Style]] = {
    "optimal": ("the paper's optimum", plotting.style("optimal")),
    "nested": ("nested groups", plotting.style("nested")),
    "shares 20/1": ("shares by speed, anew", _SHARES),
    "sharing:2": ("work sharing, 2 subsets", _SHARING),
    "sharing:3": ("work sharing, 3 subsets", _SHARING),
    "sharing:all": ("work sharing, all data", _SHARING),
}


def draw(studies: Sequence[Study]) -> Any:
    """A panel for each trace: what each scheme saved against uncoded, and the most that any could."""
    figure, axes = plotting.new_figure(1, len(studies), size=(2.2 + 2.0 * len(studies), 3.4))
    for panel, study in zip(axes, studies, strict=True):
        _draw_saved(panel, study, labelled=panel is axes[0])
    plotting.legend_outside(figure, axes[0].get_legend_handles_labels()[0], place="lower", columns=1)
    return figure


def _draw_saved(axes: Any, study: Study, *, labelled: bool) -> None:
    found = {row.scheme: row.saved for row in study.rows}
    shown = [name for name in _SHOWN if name in found]
    for place, name in enumerate(shown):
        (_, look), saved = _SHOWN[name], found[name]
        axes.plot([saved.low, saved.high], [place] * 2, color=look.color, linewidth=1.3)
        axes.plot(saved.value, place, **looks.points(look, filled=True))
    color = plotting.style("limit").color
    axes.axvline(found["limit"].value, color=color, label="no exact scheme saves more, with all data stored")
    axes.set_yticks(range(len(shown)), [_SHOWN[name][0] if labelled else "" for name in shown])
    axes.set(xlim=(min(0.0, axes.get_xlim()[0]), None), ylim=(-0.6, len(shown) - 0.4))
    plotting.label_axes(axes, "time saved (%)", "", title=readable(study.trace))


def _percent(x: Interval) -> str:
    return f"{x.value:.1f} ({x.low:.1f} … {x.high:.1f})"


def show(studies: Sequence[Study]) -> None:
    lines: list[list[object]] = []
    for study in studies:
        lines.append([f"{study.trace}:", "", ""])
        lines += [
            [f"  {row.scheme}{'*' * (row.scheme in BOUNDS)}", row.taken.value, _percent(row.saved)]
            for row in study.rows
        ]
    title = (
        f"Time of a step, and saved against uncoded, %; a forward pass takes {FORWARD:g} of a backward pass"
    )
    print_table(title, ["scheme", "time", "saved (95 %)"], lines)
    print(
        "\nPlans are made once, from the first half; shares 20/1 before each step, from the last 20.\n"
        "sharing:D stores D subsets, or all data. * What no exact scheme beats: with all data (limit), and\n"
        "with two subsets (limit:2) on average over all places of the workers. Who knows who is slow may."
    )
    lines = []
    for study in studies:
        about, steps = study.description, f"{study.num_planned}+{study.num_replayed}"
        shares = [f"{100 * max(x.value, 0):.0f} %" for x in (about.between_workers, about.between_steps)]
        name = readable(study.trace).replace("\n", ", ")
        lines.append([name, steps, study.block, *shares, f"{about.autocorrelation.value:.2f}"])
    print_table(
        "Variance between workers and common to a step, correlation to the next; steps resampled together",
        ["trace", "steps", "block", "workers", "common", "next"],
        lines,
    )


def _flat(row: Row) -> dict[str, Any]:
    """A column for each number."""
    flat: dict[str, Any] = {"trace": row.trace, "scheme": row.scheme}
    for name, value in (("taken", row.taken), ("saved", row.saved)):
        flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return flat


def files_of(path: Path) -> list[Path]:
    """A file itself, or those of a folder that may be traces; ValueError where there is none."""
    inside = path.iterdir() if path.is_dir() else []
    found = [path] if path.is_file() else sorted(file for file in inside if file.name.endswith(_SUFFIXES))
    if not found:
        raise ValueError(
            f"{path} has no CSV files: give a folder of traces, or one of them, with --traces PATH; one that "
            "comes along is experiments/data/steps.csv"
        )
    return found


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    measured = [(file.name.split(".")[0], bcgc.measured.load_trace(file)) for file in files_of(traces)]
    studies = [compute(name, trace, seed) for name, trace in measured]
    show(studies)
    save(out, {"traces": [_flat(row) for study in studies for row in study.rows]}, {"traces": draw(studies)})


if __name__ == "__main__":
    sys.exit(run_command(run))
