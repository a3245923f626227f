"""Schemes side by side on worker processes: the wall clock against the prediction, and through faults.

N = 8 processes on this machine train softmax regression on the handwritten digits. Each worker sends its
blocks at the pace of a cycle time that is drawn for it in each iteration (the paper's law, rate 1e-3, shift
50; the same draws for all schemes), so that the measured time of an iteration can be held against E τ̂. Then
once more, with a worker killed at a third of the run and another stopped at two thirds. Twenty minutes.
"""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cluster import Cluster, ClusterTraining, InjectedDelay, Run
from bcgc_jax.cluster.digits import train_digits_on_cluster
from bcgc_jax.coding.digits import DigitsRun, digits_problem
from experiments import looks
from experiments.endurance import signal_workers
from experiments.report import each, number, print_table, run_command, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = tuple[DigitsRun, ClusterTraining]
METHODS = ("uncoded", "single_block", "tandon_partial", "time", "optimal", "cyclic:8", "multi_message")
LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
MODEL = "softmax"
# Iterations in which all workers keep the same pace: what they take beyond it is the overhead.
_EVEN = 30
KILLED, STOPPED = 2, 5
LOSS_TICKS = (0.4, 0.6, 1.0, 2.0)


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = 8,
    steps: int = 120,
    seconds: float = 0.25,
    patience: float = 2.0,
    methods: Sequence[str] = METHODS,
    disturbed: Sequence[str] = METHODS,
) -> None:
    """`seconds` is the expected iteration of the optimal scheme, `patience` that of the master."""
    problem = digits_problem(LAW, workers, MODEL)
    best = float(bcgc.solve(problem).rounded_runtime)
    pace = InjectedDelay(LAW, seconds / best)
    even = InjectedDelay(np.full((1, workers), float(LAW.mean())), pace.seconds)
    overheads: dict[str, float] = {}
    runs: dict[tuple[str, bool], Found] = {}
    with Cluster(workers, patience=patience) as cluster:

        def disturb(step: int, cluster: Cluster) -> None:
            if step == steps // 3:
                signal_workers(cluster, [KILLED], signal.SIGKILL)
            if step == 2 * steps // 3:
                signal_workers(cluster, [STOPPED], signal.SIGSTOP)

        tasks = [(method, kind) for kind in ("even", "plain") for method in methods]
        tasks += [(method, "faults") for method in methods if method in disturbed]
        for method, kind in each(tasks, "training"):
            run = Run(cluster, even if kind == "even" else pace)
            if kind == "faults":
                run = dataclasses.replace(run, before_step=disturb)
            count = _EVEN if kind == "even" else steps
            given = jax.random.key(seed), run, problem, MODEL, method
            found = train_digits_on_cluster(*given, num_steps=count)
            if kind == "even":
                overheads[method] = float(np.mean(found[1].seconds - found[1].paced))
            else:
                runs[method, kind == "faults"] = found
    rows = [_row(method, faults, runs[method, faults], overheads[method]) for method, faults in runs]
    _print(rows, steps)
    save(out, {"cluster": rows}, {"cluster": _draw(runs, rows, methods)})


def _row(method: str, faults: bool, found: Found, overhead: float) -> dict[str, Any]:
    course, training = found
    return {
        "method": method,
        "faults": faults,
        "predicted_seconds": course.expected_runtime,
        "drawn_seconds": float(training.paced.mean()),
        "measured_seconds": float(training.seconds.mean()),
        "standard_error": float(training.seconds.std(ddof=1) / np.sqrt(training.seconds.size)),
        "overhead_seconds": overhead,
        "longest_seconds": float(training.seconds.max()),
        "total_seconds": float(training.seconds.sum()),
        "final_loss": float(course.loss[0, -1]),
        "final_accuracy": float(course.accuracy[0, -1]),
        "events": "; ".join(f"worker {f.worker} {f.what}" for f in training.faults),
    }


def _print(rows: Sequence[dict[str, Any]], steps: int) -> None:
    plain = sorted((r for r in rows if not r["faults"]), key=lambda r: r["predicted_seconds"])
    lines = []
    for row in plain:
        seconds = [number(row[f"{k}_seconds"], 3) for k in ("predicted", "drawn", "measured", "overhead")]
        seconds.insert(3, number(row["standard_error"], 2))
        ratio = row["measured_seconds"] / (row["predicted_seconds"] + row["overhead_seconds"])
        lines.append([row["method"], *seconds, f"{ratio:.3f}"])
    title = f"Seconds of a step, means of {steps}; overhead: time beyond the pace, if all keep the same"
    columns = "predicted", "drawn", "measured", "± s.e.", "overhead", "measured / (predicted + overhead)"
    print_table(title, ["scheme", *columns], lines)
    measured = [row["measured_seconds"] for row in plain]
    ordered = "are" if measured == sorted(measured) else "are not"
    print(f"\nThe schemes {ordered} in the predicted order.")
    without, lines = {row["method"]: row for row in plain}, []
    for row in sorted((r for r in rows if r["faults"]), key=lambda r: r["total_seconds"]):
        same = without[row["method"]]
        seconds = [
            number(row["total_seconds"]),
            number(same["total_seconds"]),
            number(row["longest_seconds"], 3),
        ]
        lines.append([row["method"], *seconds, f"{row['final_loss'] - same['final_loss']:.1e}"])
    title = "The same with one worker killed at a third and one stopped at two thirds"
    header = ["scheme", "total [s]", "without faults [s]", "longest step [s]", "loss minus that without"]
    print_table(title, header, lines)


def _draw(
    runs: dict[tuple[str, bool], Found], rows: Sequence[dict[str, Any]], methods: Sequence[str]
) -> "Figure":
    figure, axes = plotting.new_figure(1, 3, size=(9.6, 4.8))
    plain = {row["method"]: row for row in rows if not row["faults"]}
    predicted: Any = {"color": "black", "linewidth": 1.6, "label": "predicted"}
    added: Any = {"color": "black", "linewidth": 1, "linestyle": ":", "label": "predicted + overhead"}
    for place, method in enumerate(reversed(methods)):
        row, look = plain[method], plotting.style(method)
        error: Any = {"xerr": 2 * row["standard_error"], "capsize": 3, "ecolor": look.color}
        axes[0].barh(place, row["measured_seconds"], color=look.color, alpha=0.45, height=0.6, **error)
        low, ends = row["predicted_seconds"], [place - 0.38, place + 0.38]
        lines = axes[0].plot([low, low], ends, **predicted)
        lines += axes[0].plot([low + row["overhead_seconds"]] * 2, ends, **added)
    axes[0].set_yticks(range(len(methods)), [plotting.style(m).label for m in reversed(methods)])
    title = "(a) a step: measured\n(bars, ± 2 standard errors)"
    plotting.label_axes(axes[0], "mean time of a step (s)", "", title=title)
    for axis, faults in zip(axes[1:], (False, True), strict=True):
        for method in (m for m in methods if (m, faults) in runs):
            found = runs[method, faults][0]
            line = plotting.curve(plotting.style(method)) | {"marker": ""}
            axis.plot(found.clock[0], found.loss[0], **line)
        title = (
            "(c) a worker killed,\nlater one stopped" if faults else "(b) one training,\nall workers there"
        )
        y = "" if faults else "training loss (nats)"
        looks.label_axes(axis, "wall clock (s)", y, title=title, log="y", y_ticks=LOSS_TICKS)
        axis.set_xlim(0, 1.02 * max(one[0].clock[0, -1] for one in runs.values()))
    handles = [*lines, *(looks.legend_handle(plotting.style(m), marker=False) for m in methods)]
    plotting.legend_outside(figure, handles, place="lower", columns=4)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
