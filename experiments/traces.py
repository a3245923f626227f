"""Compute what saves time on measured steps: `bcgc advise` for each log of a folder.

Each remedy is planned on one half of the steps and replayed on the other half, in both
directions, with all passes counted. Requests take seconds. In a log without a unit,
such as a log of PAI jobs whose largest time is 1000, requests are free. Intervals have
a confidence level of 95 %. To replay codes, use `bcgc advise --method`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.diagnosis import Advice
from bcgc_jax.traces.intervals import Interval
from experiments import looks
from experiments.report import print_table, readable, run_command, save, with_progress

_SUFFIXES = (".csv", ".csv.gz")


# The rows of the picture, from below: its label, and whose colour and marker it has.
_SHARES = plotting.Style("", looks.COLORS[1], "p")
_SHARING = plotting.style("sharing")._replace(marker="D")
_SHOWN: Mapping[str, tuple[str, plotting.Style]] = {
    "dealt by length": ("dealt by length", _SHARES),
    "shares anew": ("shares by speed, anew", _SHARES),
    "sharing:2": ("work sharing, 2 subsets", _SHARING),
    "sharing:3": ("work sharing, 3 subsets", _SHARING),
    "sharing:all": ("work sharing, all data", _SHARING),
}


def draw(advices: Mapping[str, Advice]) -> Any:
    """A panel for each log: what remedies saved, and any exact scheme could at most."""
    from matplotlib.lines import Line2D

    replayed = {row.remedy for advice in advices.values() for row in advice.rows}
    remedies = [remedy for remedy in _SHOWN if remedy in replayed]
    figure, axes = plotting.new_figure(
        1, len(advices), size=(2.2 + 2.0 * len(advices), 1.2 + 0.44 * len(remedies))
    )
    for panel, (name, advice) in zip(axes, advices.items(), strict=True):
        _draw_saved(panel, name, advice, remedies, labelled=panel is axes[0])
    handles, _ = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="0.4", linewidth=1.3, label="95 % interval"))
    plotting.legend_outside(figure, handles, place="lower", columns=2)
    return figure


def _draw_saved(
    axes: Any, name: str, advice: Advice, remedies: Sequence[str], *, labelled: bool
) -> None:
    saved = {
        row.remedy: Interval(*(100 * value for value in row.saved))
        for row in advice.rows
    }
    for place, remedy in enumerate(remedies):
        if (share := saved.get(remedy)) is not None:
            look = _SHOWN[remedy][1]
            axes.plot(
                [share.low, share.high], [place] * 2, color=look.color, linewidth=1.3
            )
            axes.plot(share.value, place, **looks.points(look, filled=True))
    color = plotting.style("limit").color
    axes.axvline(
        saved["limit"].value,
        color=color,
        label="no exact scheme saves more, with all data stored",
    )
    axes.set_yticks(
        range(len(remedies)),
        [_SHOWN[remedy][0] if labelled else "" for remedy in remedies],
    )
    least, greatest = axes.get_xlim()
    margin = 0.05 * (greatest - least)
    axes.set(
        xlim=(min(0.0, least), greatest + margin), ylim=(-0.6, len(remedies) - 0.4)
    )
    plotting.label_axes(axes, "time saved (%)", "", title=readable(name))


def show(advices: Mapping[str, Advice]) -> None:
    lines: list[list[object]] = []
    for name, advice in advices.items():
        lines.append(
            [
                f"{name}: {advice.num_workers} workers, {advice.num_steps} steps",
                "",
                "",
                "",
            ]
        )
        lines += [
            [
                f"  {row.remedy}",
                f"{100 * row.saved.value:.1f}"
                + (f" ({row.saved.in_percent()})" if row.saved.is_known else ""),
                f"{100 * row.lost:.1f}" if row.lost else "",
                "advised" if row.remedy == advice.advised else "",
            ]
            for row in advice.rows
        ]
    title = "Saved against uncoded, %, of the time for a sample that is used"
    print_table(title, ["remedy", "saved (95 %)", "samples lost", ""], lines)


def _flat(name: str, advice: Advice) -> list[dict[str, Any]]:
    """A column for each number."""
    return [
        {"trace": name, "remedy": row.remedy, "advised": row.remedy == advice.advised}
        | {
            "saved": row.saved.value,
            "saved_low": row.saved.low,
            "saved_high": row.saved.high,
        }
        | {"lost": row.lost, "stored_subsets": row.stored_subsets}
        for row in advice.rows
    ]


def files_of(path: Path) -> list[Path]:
    """A file, or those of a folder that may be traces; ValueError for none."""
    inside = path.iterdir() if path.is_dir() else []
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in inside if file.name.endswith(_SUFFIXES))
    )
    if not files:
        raise ValueError(
            f"{path} has no CSV files: give a folder of traces, or one of them, with "
            "--traces PATH; one that comes along is experiments/data/steps.csv"
        )
    return files


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    measured = [
        (file.name.split(".")[0], bcgc.traces.load_trace(file))
        for file in files_of(traces)
    ]
    advices = {
        name: bcgc.advise(trace, seed=seed)
        for name, trace in with_progress(measured, "logs")
    }
    show(advices)
    rows = [row for name, advice in advices.items() for row in _flat(name, advice)]
    save(out, {"traces": rows}, {"traces": draw(advices)})


if __name__ == "__main__":
    sys.exit(run_command(run))
