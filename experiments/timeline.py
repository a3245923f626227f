"""What each worker computes in one iteration: Fig. 1 of the paper, and one draw at N = 20.

Above: the paper's example, N = 4, L = 4, T = (0.1, 0.1, 0.25, 1): levels (1, 1, 2, 2) against one for all.
Below: the same for N = 20, L = 20000 and one draw of the paper's law (rate 1e-3, shift 50), workers by speed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments.report import number, print_table, run_command, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_1 = np.array([0.1, 0.1, 0.25, 1.0])


# How the cells of a timeline are shaded, and what they mean.
_USED, _WASTED, _IDLE = "#0072B2", "#E69F00", "#F2F2F2"
_KEY = {"computed and used": _USED, "computed, not used": _WASTED, "not computed": _IDLE}


class Timeline(NamedTuple):
    """What each worker had done of each block when the iteration ended.

    Attributes:
      levels: of the blocks in use, `[B]`.
      sizes: coordinates of each, `[B]`.
      computed: the share of its work that each worker had finished, `[N, B]`, workers in the given order.
      used: whether its message was among the N-n that the block was decoded from, `[N, B]`.
      runtime: τ̂, in the unit of the cycle times.
    """

    levels: np.ndarray
    sizes: np.ndarray
    computed: np.ndarray
    used: np.ndarray
    runtime: float


def timeline(partition: Any, cycle_times: Any, *, num_samples: float = 1.0, cycles: float = 1.0) -> Timeline:
    """The `Timeline` of one iteration, for a partition `[N]` and one draw of cycle times `[N]`.

    >>> timeline([0, 2, 2, 0], [0.1, 0.1, 0.25, 1.0], num_samples=4).computed[:, 1].round(9).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    x, times = np.asarray(partition, float), np.asarray(cycle_times, float)
    if x.shape != times.shape or x.ndim != 1:
        raise ValueError(
            f"partition and cycle_times must have one entry for each worker: {x.shape}, {times.shape}"
        )
    if not (np.all(x >= 0) and np.any(x > 0) and np.all(times > 0)):
        raise ValueError("a partition has entries of 0 and more, not all 0, and cycle times are above 0")
    levels = np.flatnonzero(x)
    work = (levels + 1) * x[levels] * num_samples * cycles / x.size
    ends = times[:, None] * np.cumsum(work)
    # N - n messages complete a block; of equal times the first ones.
    order = np.argsort(np.argsort(times, kind="stable"))
    used = order[:, None] < x.size - levels
    runtime = float(np.where(used, ends, 0).max())
    done = runtime * (1 + 1e-12) / times[:, None] - (np.cumsum(work) - work)
    return Timeline(levels, x[levels], np.where(used, 1.0, np.clip(done / work, 0, 1)), used, runtime)


def draw_timeline(axes: "Axes", found: Timeline, cycle_times: Any, *, title: str = "") -> None:
    """Fig. 1 of the paper for any iteration: one row a worker, its coordinates from left to right.

    A block is as wide as its coordinates; above it stands its redundancy level, beside a row its cycle time.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    starts = np.concatenate([[0], np.cumsum(found.sizes)])
    for worker in range(len(found.computed)):
        for block, (start, size) in enumerate(zip(starts, found.sizes, strict=False)):
            share = found.computed[worker, block]
            color = _USED if found.used[worker, block] else _WASTED
            axes.add_patch(Rectangle((start, worker - 0.4), size, 0.8, facecolor=_IDLE, linewidth=0))
            axes.add_patch(Rectangle((start, worker - 0.4), share * size, 0.8, facecolor=color, linewidth=0))
            axes.add_patch(
                Rectangle((start, worker - 0.4), size, 0.8, fill=False, edgecolor="white", linewidth=0.8)
            )
    for start, size, level in zip(starts, found.sizes, found.levels, strict=False):
        if size >= 0.05 * starts[-1]:
            axes.text(start + size / 2, -0.5, f"{level}", ha="center", va="bottom", fontsize="x-small")
    axes.grid(False)
    axes.set_xlim(0, starts[-1])
    axes.set_ylim(len(found.computed) - 0.5, -1.0 - 0.04 * len(found.computed))
    digits = 0 if np.min(cycle_times) > 10 else 2
    axes.set_yticks(
        range(len(found.computed)), [f"{t:.{digits}f}" for t in np.asarray(cycle_times)], fontsize="x-small"
    )
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    plotting.label_axes(axes, "coordinate", "cycle time", title=title)


def timeline_handles() -> "list[Any]":
    """Legend entries of a timeline's shades."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, edgecolor="0.6", label=name) for name, color in _KEY.items()]


def draw(panels: Sequence[tuple[str, Timeline, Any]]) -> "Figure":
    """Two rows of three panels: the title, the timeline and the cycle times of each."""
    figure, axes = plotting.new_figure(2, 3, size=(9.6, 6.8), height_ratios=[1, 2.2])
    for panel, (name, one, times) in zip(axes, panels, strict=True):
        draw_timeline(panel, one, times, title=f"{name}\nruntime {number(one.runtime, 3)}")
    title = "above a block: its redundancy level; runtimes in cycles × unit of the cycle time"
    plotting.legend_outside(figure, timeline_handles(), place="lower", columns=3, title=title)
    return figure


def run(out: Path, seed: int = 0) -> None:
    problem = bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), 20, 20_000, num_samples=50)
    drawn = np.sort(np.asarray(problem.cycle_time.sample(jax.random.key(seed), (20,))))
    cases: list[tuple[str, Any, np.ndarray, float]] = [
        ("proposed, levels (1, 1, 2, 2)", [0, 2, 2, 0], FIGURE_1, 4.0),
        ("one level, 1", [0, 4, 0, 0], FIGURE_1, 4.0),
        ("one level, 2", [0, 0, 4, 0], FIGURE_1, 4.0),
    ]
    for method in ("optimal", "single_block", "uncoded"):
        solution = bcgc.solve(problem, method)
        cases.append((plotting.style(method).label, np.asarray(solution.rounded), drawn, 50.0))
    rows: list[dict[str, Any]] = []
    found = []
    for name, partition, times, samples in cases:
        one = timeline(partition, times, num_samples=samples)
        found.append(one)
        cost = (one.levels + 1) * one.sizes
        done = (one.computed * cost).sum()
        rows.append(
            {
                "workers": len(times),
                "scheme": name,
                "runtime": one.runtime,
                "used": float((one.used * cost).sum() / done),
                "wasted": float(((one.computed * ~one.used) * cost).sum() / done),
            }
        )
    print_table(
        "one iteration: runtime, and the share of the computed work whose result was used",
        ["scheme", "workers", "runtime", "used", "not used"],
        [
            [r["scheme"], str(r["workers"]), number(r["runtime"])]
            + [f"{100 * r[k]:.0f} %" for k in ("used", "wasted")]
            for r in rows
        ],
    )
    write_csv(out / "timeline.csv", rows)
    panels = [(name, one, times) for (name, _, times, _), one in zip(cases, found, strict=True)]
    paths = plotting.save_figure(draw(panels), out, "timeline")
    print(f"\nWritten to {out}: timeline.csv, {paths[0].name}, {paths[1].name}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("timeline", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
