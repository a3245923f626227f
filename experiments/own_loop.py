"""Measure work sharing in your own loop: requests for chunks, and an all-reduce.

Each process sleeps for its chunks without interruption. The time for a subset is
sampled independently for each worker and step. In the scheme *uncoded*, each worker
computes its own subset without requests.

For each scheme, the study prints the mean step time, and two model values. The first is
the model's runtime for the same samples, with free requests and sums
(`plans/shared_step.py`). The second is the mean lower bound for all exact schemes with
the same storage (`limit:D`). The study takes ten minutes. Run nothing else at the same
time.
"""

import contextlib
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.balancing.dispatch import serve
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.balancing.storage import least_alone
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.solvers.limit import storage_bound
from experiments.own_loop_worker import CHUNKS, paces
from experiments.processes import free_ports, printed_by
from experiments.report import number, print_table, run_command, save, with_progress


class Setting(NamedTuple):
    """Workers that take about `subset` seconds for theirs, by a law of
    `own_loop_worker.paces`.

    A share `fixed` of a whole chunk does not depend on its size.
    """

    law: str
    workers: int
    subset: float
    fixed: float = 0.0


SETTINGS = (
    Setting("exponential", 6, 0.6),
    Setting("two speeds", 8, 0.4),
    Setting("lognormal", 4, 0.4),
    Setting("equal", 6, 8 * 0.05),
)
_TITLES = {
    "exponential": "shifted exponential,\nshift a third of the mean,",
    "two speeds": "two speeds,\n1 in 8 five times as slow,",
    "lognormal": "lognormal,\nσ = 0.8,",
}
STORED = (1, 2, 3, None)  # subsets of a worker; None for all


def run(
    out: Path,
    seed: int = 0,
    format: str = "table",
    *,
    settings: Sequence[Setting] = SETTINGS,
    stored: Sequence[int | None] = STORED,
    steps: int = 60,
) -> None:
    tasks = [(setting, subsets) for setting in settings for subsets in stored]
    rows: list[dict[str, Any]] = []
    for setting, subsets in with_progress(tasks, "training"):
        place = Placement(setting.workers, subsets or setting.workers, CHUNKS)
        seconds = measured(setting, seed, steps, None if subsets == 1 else place)
        first = None
        if subsets != stored[0]:
            first = rows[-1 - stored.index(subsets) + 1]
        rows.append(_row(setting, seed, seconds, subsets, first))
    if format == "json":
        print(json.dumps(rows, indent=2))
    with contextlib.redirect_stdout(sys.stderr if format == "json" else sys.stdout):
        _tell(rows, steps)
        save(out, {"own_loop": rows}, {"own_loop": _figure(rows)})


def _tell(rows: Sequence[dict[str, Any]], steps: int) -> None:
    print_table(
        f"Seconds of a step, mean of {steps}; nobody interrupts a chunk; chunks of "
        f"1/{CHUNKS} and less",
        (
            "workers",
            "N",
            "scheme",
            "measured",
            "± s.e.",
            "predicted",
            "limit",
            "of uncoded",
            "of possible",
        ),
        [_printed(row) for row in rows],
    )
    print("\nof possible: the time that was saved, of what the limit allows.")


def measured(
    setting: Setting,
    seed: int,
    steps: int,
    place: Placement | None,
    *,
    adapt: bool = False,
    sends_lengths: bool = False,
    record: Path | None = None,
) -> np.ndarray:
    """Seconds of each step, by process 0; without a placement nobody is asked."""
    key = secrets.token_hex(16)
    spec = {"steps": steps, "seed": seed, "port": free_ports(1)[0], **setting._asdict()}
    spec["sends_lengths"] = sends_lengths
    alone = Placement(setting.workers, 1, CHUNKS)
    with serve(place or alone, key=key, record=record, adapt=adapt) as coordinator:
        if place is None:
            spec["address"] = None
        else:
            spec["address"] = coordinator.address
        specs = [{**spec, "rank": rank} for rank in range(setting.workers)]
        printed = printed_by(
            "experiments.own_loop_worker", specs, {"BCGC_HANDOUT_KEY": key}
        )
    return np.array(json.loads(printed[0]))


def predicted(times: np.ndarray, subsets: int) -> np.ndarray:
    """Seconds of steps in which workers take these for a subset, `[K, N]` to `[K]`."""
    rule = WorkSharing(num_workers=times.shape[1], max_subsets=subsets, chunks=CHUNKS)
    return rule.in_lockstep(times)


def least(times: np.ndarray, subsets: int) -> np.ndarray:
    """The storage bound of each step."""
    alone = least_alone(times.shape[1], subsets)
    return np.asarray(jax.vmap(lambda row: storage_bound(None, row, alone))(times))


def _row(
    setting: Setting,
    seed: int,
    measured: np.ndarray,
    subsets: int | None,
    uncoded: dict[str, Any] | None,
) -> dict[str, Any]:
    """`uncoded` is the row of these workers without sharing, None for that row."""
    times = paces(setting.law, seed, len(measured), setting.workers, setting.subset)
    count = subsets or setting.workers
    model = float(predicted(times, count).mean())
    limit = float(least(times, count).mean())
    seconds = float(measured.mean())
    before = seconds
    if uncoded is not None:
        before = uncoded["measured"]
    names = {1: "uncoded", None: f"sharing:all:{CHUNKS}"}
    return {
        "workers": setting.law,
        "num_workers": setting.workers,
        "subset": setting.subset,
        "scheme": names.get(subsets, f"sharing:{subsets}:{CHUNKS}"),
        "steps": len(measured),
        "measured": seconds,
        "standard_error": float(measured.std(ddof=1) / np.sqrt(len(measured))),
        "predicted": model,
        "limit": limit,
        "overhead": seconds - model,
        "of_uncoded": seconds / before,
        # Where all workers are equal there is nothing to save.
        "of_possible": (before - seconds) / (before - limit)
        if limit < 0.9 * before and uncoded
        else None,
    }


def _printed(row: dict[str, Any]) -> list[object]:
    return [
        *(row["workers"], row["num_workers"], row["scheme"]),
        *(
            number(row[name], 3)
            for name in ("measured", "standard_error", "predicted", "limit")
        ),
        *(
            f"{row['of_uncoded']:.3f}",
            "–" if row["of_possible"] is None else f"{row['of_possible']:.0%}",
        ),
    ]


def _figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Bars as measured; where the model and the limit are."""
    settings = list(dict.fromkeys((row["workers"], row["num_workers"]) for row in rows))
    figure, axes = plotting.new_figure(
        1, len(settings), size=(2.3 * len(settings), 3.6)
    )
    for place, (law, workers) in zip(axes, settings, strict=True):
        rows_of_panel = [
            row
            for row in rows
            if (row["workers"], row["num_workers"]) == (law, workers)
        ]
        positions = np.arange(len(rows_of_panel))
        place.bar(
            positions,
            [row["measured"] for row in rows_of_panel],
            0.6,
            yerr=[row["standard_error"] for row in rows_of_panel],
            capsize=4,
            color="0.75",
            label="measured, ± standard error",
        )
        dots: dict[str, Any] = {"linestyle": "none", "color": "black"}
        place.plot(
            positions,
            [row["predicted"] for row in rows_of_panel],
            marker="o",
            label="model",
            **dots,
        )
        place.plot(
            positions,
            [row["limit"] for row in rows_of_panel],
            marker="_",
            markersize=16,
            label="limit",
            **dots,
        )
        stored = (
            row["scheme"].removeprefix("sharing:").partition(":")[0]
            for row in rows_of_panel
        )
        place.set_xticks(
            positions,
            ["1\n(uncoded)" if name == "uncoded" else name for name in stored],
        )
        place.grid(False, axis="x")
        label = ""
        if place is axes[0]:
            label = "seconds of a step"
        subset = rows_of_panel[0]["subset"]
        title = f"{_TITLES.get(law, f'{law},')}\nmean {subset:g} s, N = {workers}"
        plotting.label_axes(place, "subsets stored", label, title=title)
        place.set_ylim(bottom=0)
    plotting.legend_outside(
        figure, axes[0].get_legend_handles_labels()[0], place="lower", columns=3
    )
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
