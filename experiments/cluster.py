"""Schemes side by side on worker processes: the wall clock against the prediction, and through faults.

N = 8 processes on this machine train softmax regression on the handwritten digits. They are slowed on
purpose: each worker sends its blocks at the pace of a cycle time that is drawn for it in each iteration (the
paper's law, rate 1e-3, shift 50; the same draws for all schemes). As real compute, this slowness cannot be
interrupted within the pass of a chunk, an eighth of a subset: who is in one when an iteration ends begins the
next one late.

So there are two predictions: E τ̂, as if all workers were free when an iteration ends, and the mean of
iterations one after the other, in which each worker ends its chunk first. The measured time is held against
the second. Then once more, with a worker killed at a third of the run and another stopped at two thirds.
Twenty minutes.
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
from bcgc_jax.cluster.planning import Told, scheme_for
from bcgc_jax.coding.digits import DigitsRun, digits_order, digits_problem, initial_params
from bcgc_jax.coding.training import TrainingScheme
from bcgc_jax.plans.passes import in_a_row
from experiments import looks
from experiments.endurance import signal_workers
from experiments.report import each, number, print_table, run_command, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = tuple[DigitsRun, ClusterTraining]
METHODS = ("uncoded", "single_block", "tandon_partial", "time", "optimal", "cyclic:8")
LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
MODEL = "softmax"
CHUNKS = 8  # of a subset, in passes of plans with redundancy
# Iterations in which all workers keep the same pace: what they take beyond it is the overhead.
_EVEN = 30
# Iterations, one after the other, that the second prediction is the mean of.
_SUCCESSIVE = 2000
SLOWNESS = "slowed on purpose: shifted exponential, rate 1e-3, shift 50; no chunk is interrupted"
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
    same = np.full((1, workers), float(LAW.mean()))
    even = InjectedDelay(same, pace.seconds)
    drawn = np.asarray(LAW.sample(jax.random.key(seed + 1), (_SUCCESSIVE, workers)), float)
    busy: dict[str, float] = {}
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
            found = train_digits_on_cluster(*given, num_steps=count, chunks=CHUNKS)
            if kind == "even":
                scheme = _scheme(problem, method)
                alike = successive(scheme, pace.seconds * np.repeat(same, count, axis=0))
                overheads[method] = float(found[1].seconds.mean() - alike.mean())
                busy[method] = float(successive(scheme, pace.seconds * drawn).mean())
            else:
                runs[method, kind == "faults"] = found
    rows = [
        _row(method, faults, runs[method, faults], overheads[method], busy[method]) for method, faults in runs
    ]
    _print(rows, steps)
    save(out, {"cluster": rows}, {"cluster": _draw(runs, rows, methods)})


def _scheme(problem: bcgc.Problem, method: str) -> TrainingScheme:
    """A plan as the training has it, but for the draws of its search."""
    told = Told(problem, method, {"order": digits_order(MODEL), "chunks": CHUNKS})
    key, params = jax.random.key(0), initial_params(jax.random.key(0), MODEL)
    return scheme_for(key, told, range(int(np.asarray(problem.num_workers))), params, None)


def successive(scheme: TrainingScheme, times: np.ndarray) -> np.ndarray:
    """τ of iterations one after the other, `[K]`, with cycle times `[K, N]`: each ends its chunk first."""

    def last(begin: np.ndarray, times: np.ndarray) -> np.ndarray:
        return scheme.plan.completed(scheme.pace(begin, times)).max()

    chunks = jax.tree.map(np.asarray, scheme.passes).of(f"chunk:{CHUNKS}")
    return in_a_row(last, chunks, np.zeros_like(times), times)


def _row(method: str, faults: bool, found: Found, overhead: float, busy: float) -> dict[str, Any]:
    course, training = found
    return {
        "method": method,
        "faults": faults,
        "predicted_seconds": course.expected_runtime,
        "busy_seconds": busy,
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
        names = ("predicted", "drawn", "busy", "measured", "overhead")
        seconds = [number(row[f"{k}_seconds"], 3) for k in names]
        seconds.insert(4, number(row["standard_error"], 2))
        ratio = row["measured_seconds"] / (row["busy_seconds"] + row["overhead_seconds"])
        lines.append([row["method"], *seconds, f"{ratio:.3f}"])
    print(f"Workers are {SLOWNESS}.")
    print(
        "predicted, drawn: as if all were free when a step ends; busy: predicted, each ends its chunk first\n"
    )
    title = f"Seconds of a step, means of {steps}; overhead: time beyond busy, if all keep the same pace"
    columns = "predicted", "drawn", "busy", "measured", "± s.e.", "overhead", "measured / (busy + overhead)"
    print_table(title, ["scheme", *columns], lines)
    measured = [row["measured_seconds"] for row in sorted(plain, key=lambda r: r["busy_seconds"])]
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
    predicted: Any = {"color": "black", "linewidth": 1.6, "label": "predicted, if all were free at once"}
    added: Any = {
        "color": "black",
        "linewidth": 1,
        "linestyle": ":",
        "label": "predicted, each ends its chunk first, + overhead",
    }
    for place, method in enumerate(reversed(methods)):
        row, look = plain[method], plotting.style(method)
        error: Any = {"xerr": 2 * row["standard_error"], "capsize": 3, "ecolor": look.color}
        axes[0].barh(place, row["measured_seconds"], color=look.color, alpha=0.45, height=0.6, **error)
        low, ends = row["predicted_seconds"], [place - 0.38, place + 0.38]
        lines = axes[0].plot([low, low], ends, **predicted)
        lines += axes[0].plot([row["busy_seconds"] + row["overhead_seconds"]] * 2, ends, **added)
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
    plotting.legend_outside(figure, handles, place="lower", columns=3, title=f"workers {SLOWNESS}")
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
