"""Schemes side by side on worker processes: wall clock against prediction, and through
faults.

N = 8 processes on this machine train softmax regression on the handwritten digits. They
are slowed on purpose: each worker sends its blocks at the pace of a cycle time that is
drawn for it in each iteration (the paper's law, rate 1e-3, shift 50; the same draws for
all schemes). As real compute, this slowness cannot be interrupted within the pass of a
subset: who is in one when an iteration ends begins the next one late. Passes are whole,
as the package has them for subsets of so few samples: eight chunks of each would keep
two cores busy for longer than the slowness lasts.

So there are two predictions: E τ̂, as if all workers were free when an iteration ends,
and the mean of iterations one after the other, in which each worker ends its pass
first. The measured time is held against the second. Then once more, with a worker
killed at a third of the run and another stopped at two thirds. A quarter of an hour.
"""

import dataclasses
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax._pytree import replace
from bcgc_jax.cluster import (
    Cluster,
    ClusterTraining,
    InjectedDelay,
    Run,
    train_on_cluster,
)
from bcgc_jax.cluster.planning import Told, scheme_for
from bcgc_jax.coding.training import SharedScheme, TrainingScheme
from bcgc_jax.plans.passes import in_a_row
from bcgc_jax.plans.worker import Load
from bcgc_jax.solvers.method import Method
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.solvers.sharing import Sharing
from experiments import digits, looks
from experiments.digits import DigitsRun
from experiments.endurance import signal_workers
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = tuple[DigitsRun, ClusterTraining]
METHODS = (
    "uncoded",
    "single_block",
    "tandon_partial",
    "time",
    "optimal",
    "cyclic:8",
    "nested",
    "sharing:2",
)
# Whose courses are drawn: more lines would lie on each other.
DRAWN = ("uncoded", "single_block", "optimal", "nested", "sharing:2")
LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
MODEL = "softmax"
WORKERS = 8
# Iterations in which all workers keep the same pace: what they take beyond it is the
# overhead.
_EVEN = 30
# Iterations, one after the other, that the second prediction is the mean of.
_SUCCESSIVE = 2000
SLOWNESS = (
    "slowed on purpose: shifted exponential, rate 1e-3, shift 50; no pass is "
    "interrupted"
)
_MARK: Any = {"markersize": 7, "markeredgewidth": 1.6, "linestyle": "", "zorder": 3}
FAULTS: Mapping[str, Any] = {
    "killed": _MARK | {"marker": "x"},
    "stopped": _MARK | {"marker": "s", "fillstyle": "none"},
}
FINISH = _MARK | {"marker": "o", "fillstyle": "none"}
MARKS = {
    "a worker is killed": FAULTS["killed"],
    "another worker is stopped": FAULTS["stopped"],
    "end of the training without faults": FINISH,
}
KILLED = 2
STOPPED = 5
LOSS_TICKS = (0.4, 0.6, 1.0, 2.0)


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = WORKERS,
    steps: int = 80,
    seconds: float = 0.4,
    patience: float = 2.0,
    methods: Sequence[str] = METHODS,
    disturbed: Sequence[str] = METHODS,
) -> None:
    """`seconds`: expected iteration of the optimal scheme; `patience`: the master's."""
    problem = digits.digits_problem(LAW, workers, MODEL)
    best = float(bcgc.solve(problem).rounded_runtime)
    pace = InjectedDelay(LAW, seconds / best)
    even_times = np.full((1, workers), float(LAW.mean()))
    even = InjectedDelay(even_times, pace.seconds)
    drawn = np.asarray(
        LAW.sample(jax.random.key(seed + 1), (_SUCCESSIVE, workers)), float
    )
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
        for method, kind in with_progress(tasks, "training"):
            run = Run(cluster, even if kind == "even" else pace)
            if kind == "faults":
                run = dataclasses.replace(run, before_step=disturb)
            count = steps
            if kind == "even":
                count = _EVEN
            course = train_on_processes(
                jax.random.key(seed), run, problem, method, count
            )
            if kind == "even":
                scheme = _scheme(problem, method)
                alike = successive(
                    scheme, pace.seconds * np.repeat(even_times, count, axis=0)
                )
                overheads[method] = float(course[1].seconds.mean() - alike.mean())
                busy[method] = float(successive(scheme, pace.seconds * drawn).mean())
            else:
                runs[method, kind == "faults"] = course
    rows = [
        _row(method, faults, runs[method, faults], overheads[method], busy[method])
        for method, faults in runs
    ]
    _print(rows, steps)
    courses = [
        row
        for (method, faults), course in runs.items()
        for row in _course(method, faults, course)
    ]
    save(
        out,
        {"cluster": rows, "cluster_steps": courses},
        {"cluster": draw(rows, courses)},
    )


def train_on_processes(
    key: Array, run: Run, problem: bcgc.Problem, method: str, num_steps: int
) -> Found:
    """`train_on_digits` on worker processes, at the pace of `run`: one row, in seconds.

    The same key gives every scheme the same start and draws of the pace.
    """
    assert run.pace is not None
    data = jax.tree.map(
        np.asarray, digits.load_digits(int(np.asarray(problem.num_workers)))
    )
    start_key, train_key = jax.random.split(key)

    @jax.jit
    def evaluate(params: Any) -> dict[str, Array]:
        loss = digits.cross_entropy(params, data.train)
        return {"loss": loss, "accuracy": digits.accuracy(params, data.test)}

    scheme = on_processes(method)
    training = train_on_cluster(
        train_key,
        digits.cross_entropy,
        Told(problem, scheme, {"order": digits.digits_order(MODEL)}),
        run,
        digits.initial_params(start_key, MODEL),
        data.train,
        optax.sgd(digits.LEARNING_RATE),
        num_steps,
        evaluate=evaluate,
    )
    solution = bcgc.solve(problem, scheme, key=train_key)
    expected = run.pace.seconds * float(solution.rounded_runtime)
    course = (
        np.array([training.metrics[name]], float) for name in ("loss", "accuracy")
    )
    return DigitsRun(method, expected, np.array([training.clock]), *course), training


def on_processes(method: str) -> Method:
    """The method as processes do it, for a prediction: sharing ends with sums."""
    scheme = method_of(method)
    if isinstance(scheme, Sharing):
        return replace(scheme, ends="sums")
    return scheme


def _scheme(problem: bcgc.Problem, method: str) -> TrainingScheme:
    """A plan as the training has it, but for the draws of its search."""
    plans = Told(problem, on_processes(method), {"order": digits.digits_order(MODEL)})
    key = jax.random.key(0)
    params = digits.initial_params(jax.random.key(0), MODEL)
    return scheme_for(
        key, plans, range(int(np.asarray(problem.num_workers))), params, None
    )


def successive(
    scheme: TrainingScheme, times: np.ndarray, unit: str = "subset"
) -> np.ndarray:
    """τ of iterations in a row, `[K]`, of times `[K, N]`: a `unit` ends first."""
    if isinstance(scheme, SharedScheme):
        return _shared(scheme, times)

    def last(begin: np.ndarray, times: np.ndarray) -> np.ndarray:
        return scheme.plan.completed(scheme.pace(begin, times)).max()

    passes = jax.tree.map(np.asarray, scheme.passes).of(unit)
    return in_a_row(last, passes, np.zeros_like(times), times)


def _shared(scheme: SharedScheme, times: np.ndarray) -> np.ndarray:
    """Return what `successive` does, of work sharing, whose questions take no time."""
    assert scheme.rule is not None
    step = jax.jit(scheme.rule.step, static_argnums=1)
    load = Load(scheme.load, None)
    late = np.zeros(times.shape[1])
    ends = []
    for row in times:
        end, late = step(load, False, late, row)
        ends.append(float(end))
    return np.array(ends)


def _row(
    method: str, faults: bool, result: Found, overhead: float, busy: float
) -> dict[str, Any]:
    course, training = result
    return {
        "method": method,
        "faults": faults,
        "predicted_seconds": course.expected_runtime,
        "busy_seconds": busy,
        "drawn_seconds": float(training.paced.mean()),
        "measured_seconds": float(training.seconds.mean()),
        "standard_error": float(
            training.seconds.std(ddof=1) / np.sqrt(training.seconds.size)
        ),
        "overhead_seconds": overhead,
        "longest_seconds": float(training.seconds.max()),
        "total_seconds": float(training.seconds.sum()),
        "final_loss": float(course.loss[0, -1]),
        "final_accuracy": float(course.accuracy[0, -1]),
        "events": "; ".join(f"worker {f.worker} {f.what}" for f in training.faults),
    }


def _course(method: str, faults: bool, result: Found) -> list[dict[str, Any]]:
    """Its iterations; `event` is what was done to a worker before one."""
    course, training = result
    steps = training.seconds.size
    events = {}
    if faults:
        events = {steps // 3: "killed", 2 * steps // 3: "stopped"}
    columns = zip(training.seconds, course.clock[0], course.loss[0], strict=True)
    return [
        {"method": method, "faults": faults, "iteration": k, "event": events.get(k)}
        | dict(zip(("seconds", "clock", "loss"), map(float, values), strict=True))
        for k, values in enumerate(columns)
    ]


def _print(rows: Sequence[dict[str, Any]], steps: int) -> None:
    plain = sorted(
        (r for r in rows if not r["faults"]), key=lambda r: r["predicted_seconds"]
    )
    lines = []
    for row in plain:
        names = ("predicted", "drawn", "busy", "measured", "overhead")
        seconds = [number(row[f"{k}_seconds"], 3) for k in names]
        seconds.insert(4, number(row["standard_error"], 2))
        ratio = row["measured_seconds"] / (
            row["busy_seconds"] + row["overhead_seconds"]
        )
        lines.append([row["method"], *seconds, f"{ratio:.3f}"])
    print(f"Workers are {SLOWNESS}.")
    print(
        "predicted, drawn: as if all were free when a step ends; busy: predicted, each "
        "ends its pass first\n"
    )
    title = (
        f"Seconds of a step, means of {steps}; overhead: time beyond busy, if all keep "
        "the same pace"
    )
    columns = (
        "predicted",
        "drawn",
        "busy",
        "measured",
        "± s.e.",
        "overhead",
        ("measured / (busy + overhead)"),
    )
    print_table(title, ["scheme", *columns], lines)
    measured = [
        row["measured_seconds"]
        for row in sorted(plain, key=lambda r: r["busy_seconds"])
    ]
    ordered = "are not"
    if measured == sorted(measured):
        ordered = "are"
    print(f"\nThe schemes {ordered} in the predicted order.")
    without = {row["method"]: row for row in plain}
    lines = []
    for row in sorted(
        (r for r in rows if r["faults"]), key=lambda r: r["total_seconds"]
    ):
        undisturbed = without[row["method"]]
        seconds = [
            number(row["total_seconds"]),
            number(undisturbed["total_seconds"]),
            number(row["longest_seconds"], 3),
        ]
        lines.append(
            [
                row["method"],
                *seconds,
                f"{row['final_loss'] - undisturbed['final_loss']:.1e}",
            ]
        )
    title = "The same with one worker killed at a third and one stopped at two thirds"
    header = [
        "scheme",
        "total [s]",
        "without faults [s]",
        "longest step [s]",
        "loss minus that without",
    ]
    print_table(title, header, lines)


def draw(
    rows: Iterable[Mapping[str, Any]], courses: Iterable[Mapping[str, Any]]
) -> "Figure":
    """Draw the figure from rows of cluster.csv and cluster_steps.csv, or words."""
    figure, (left, right) = plotting.new_figure(1, 2, size=(7.6, 4.8))
    handles = _draw_times(left, [row for row in rows if str(row["faults"]) == "False"])
    handles += _draw_courses(right, [row for row in courses if row["method"] in DRAWN])
    title = f"{WORKERS} worker processes, {SLOWNESS}"
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


def _draw_times(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Measured and predicted; what the legend says."""
    places = np.arange(len(rows))[::-1]
    names = ("measured", "standard_error", "predicted", "busy", "overhead")
    columns = [
        name if name == "standard_error" else f"{name}_seconds" for name in names
    ]
    measured, error, free, busy, overhead = np.array(
        [[float(row[c]) for c in columns] for row in rows]
    ).T
    styles = [plotting.style(row["method"]) for row in rows]
    axes.barh(
        places, measured, color=[look.color for look in styles], alpha=0.45, height=0.6
    )
    bars: Any = {
        "capsize": 3,
        "linestyle": "",
        "color": "0.35",
        "label": "measured, ± 2 standard errors",
    }
    handles: list[Any] = [axes.errorbar(measured, places, xerr=2 * error, **bars)]
    marks: Any = {"marker": "|", "markersize": 13, "linestyle": "", "color": "black"}
    first = "predicted, if all were free at once"
    second = "predicted, each ends its pass first, + overhead"
    handles += axes.plot(free, places, **marks, markeredgewidth=2.4, label=first)
    handles += axes.plot(
        busy + overhead, places, **marks, markeredgewidth=0.9, label=second
    )
    axes.set_yticks(places, [look.label for look in styles])
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    plotting.label_axes(
        axes, "mean time of a step (s)", "", title="(a) steps without faults"
    )
    return handles


def _draw_courses(axes: "Axes", courses: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Draw losses through the faults, and the last one without; name the lines."""
    handles = []
    for (method, faults), course in grouped(
        courses, lambda row: (row["method"], str(row["faults"]))
    ).items():
        look = plotting.style(method)
        events = [row["event"] for row in course]
        clock, loss = (
            [float(row[name]) for row in course] for name in ("clock", "loss")
        )
        if faults == "False":
            axes.plot(clock[-1], loss[-1], **looks.points(look) | FINISH)
            continue
        handles += axes.plot(clock, loss, **plotting.curve(look) | {"marker": ""})
        for event, mark in FAULTS.items():
            axes.plot(
                clock, loss, markevery=[events.index(event)], color=look.color, **mark
            )
    handles += [
        axes.plot([], [], color="0.35", label=label, **mark)[0]
        for label, mark in MARKS.items()
    ]
    title = "(b) one training, through two faults"
    looks.label_axes(
        axes,
        "wall clock (s)",
        "training loss (nats)",
        title=title,
        log="y",
        y_ticks=LOSS_TICKS,
    )
    axes.set_xlim(left=0)
    return handles


if __name__ == "__main__":
    sys.exit(run_command(run))
