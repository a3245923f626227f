"""Compare schemes by training on handwritten digits: loss and accuracy against time.

The N = 20 workers train softmax regression, and a perceptron with a hidden layer of 32
units, by gradient descent on all samples. Cycle times have the paper's distribution
(rate 1e-3, shift 50). Every scheme takes the same steps, so only their times differ.
Each of 8 seeds has its own initial parameters and cycle times. Lines are medians over
the seeds, and bands are their ranges.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments import looks
from experiments.digits import DigitsRun, digits_problem, train_on_digits
from experiments.report import print_table, run_command, save, with_progress

METHODS = (
    *("uncoded", "tandon_partial", "single_block", "frequency", "time", "optimal"),
    *("nested", "sharing:2"),
)
# The closed forms of the paper would lie on the optimum.
DRAWN = tuple(method for method in METHODS if method not in ("frequency", "time"))
LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
SLOWNESS = (
    "{} workers, slow at random: cycle times are shifted exponential, rate 1e-3, "
    "shift 50.\nA worker ends its pass before the next step. Forward passes and "
    "questions are free.\nMedians of {} seeds, bands: their range"
)
# Test accuracy to be reached.
TARGET = 0.93
LOSS_TICKS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
TITLES = {"softmax": "softmax regression", "perceptron": "perceptron, 32 hidden units"}


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = 20,
    seeds: int = 8,
    steps: int = 200,
    methods: Sequence[str] = METHODS,
) -> None:
    runs: dict[str, list[DigitsRun]] = {}
    tasks = [(model, method) for model in TITLES for method in methods]
    for model, method in with_progress(tasks, "training"):
        problem = digits_problem(LAW, workers, model)
        key = jax.random.key(seed)
        digits_run = train_on_digits(
            key, problem, model, method, num_seeds=seeds, num_steps=steps
        )
        runs.setdefault(model, []).append(digits_run)
    rows = [_row(model, digits_run) for model in TITLES for digits_run in runs[model]]
    for model in TITLES:
        _print(model, [row for row in rows if row["model"] == model])
    save(out, {"training": rows}, {"training": _draw(runs, workers)})


def _row(model: str, digits_run: DigitsRun) -> dict[str, Any]:
    time = digits_run.time_to(TARGET)
    return {
        "model": model,
        "method": digits_run.method,
        "expected_runtime": digits_run.expected_runtime,
        "mean_runtime": float(
            digits_run.clock[:, -1].mean() / digits_run.clock.shape[1]
        ),
        "target": TARGET,
        "time_to_target": float(np.median(time)),
        "earliest": float(time.min()),
        "latest": float(time.max()),
        "final_loss": float(digits_run.loss[:, -1].mean()),
        "final_accuracy": float(digits_run.accuracy[:, -1].mean()),
    }


_COLUMNS = ("expected_runtime", "mean_runtime", "time_to_target", "earliest", "latest")


def _print(model: str, rows: Sequence[dict[str, Any]]) -> None:
    uncoded = next(
        (row["time_to_target"] for row in rows if row["method"] == "uncoded"), np.inf
    )
    lines = []
    for row in sorted(rows, key=lambda row: row["expected_runtime"]):
        saved = "–"
        if np.isfinite(uncoded):
            saved = f"{100 * (1 - row['time_to_target'] / uncoded):.1f} %"
        lines.append([row["method"], *(row[name] for name in _COLUMNS), saved])
    print_table(
        f"{TITLES[model]}: simulated time to {100 * TARGET:g} % test accuracy, median "
        "and range of the seeds",
        [
            "scheme",
            "E runtime",
            "mean runtime",
            "time to target",
            "earliest",
            "latest",
            "saved",
        ],
        lines,
    )


def _bands(
    digits_run: DigitsRun, values: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Median, least and largest of seeds at each time, of the last iteration."""
    steps = zip(digits_run.clock, values, strict=True)
    # NaN before the first iteration has ended, in all of them where it is in one.
    ended = [
        np.append(np.nan, value)[np.searchsorted(clock, grid, side="right")]
        for clock, value in steps
    ]
    return np.median(ended, axis=0), np.min(ended, axis=0), np.max(ended, axis=0)


_TARGET_LINE: Any = {"color": "0.4", "linewidth": 0.8}


def _draw(runs: dict[str, list[DigitsRun]], workers: int):
    from matplotlib.lines import Line2D

    figure, axes = plotting.new_figure(2, len(runs), size=(7.4, 6.8))
    for column, (model, trained) in enumerate(runs.items()):
        drawn = [run_ for run_ in trained if run_.method in DRAWN]
        # Up to the end of the fastest seed of the fastest scheme's training.
        grid = np.linspace(0, min(run_.clock[:, -1].min() for run_ in drawn), 200)
        scale = 10 ** np.floor(np.log10(grid[-1]))
        for row, what in enumerate(("loss", "accuracy")):
            panel = axes[row * len(runs) + column]
            for run_ in drawn:
                look = plotting.curve(plotting.style(run_.method)) | {"marker": ""}
                middle, low, high = _bands(run_, getattr(run_, what), grid)
                panel.fill_between(
                    grid / scale,
                    low,
                    high,
                    color=look["color"],
                    alpha=0.15,
                    linewidth=0,
                )
                panel.plot(grid / scale, middle, **look)
            power = f"$10^{{{int(np.log10(scale))}}}$"
            x = f"simulated time\n({power} cycles × unit of cycle time)"
            if what == "loss":
                scaled: Any = {"log": "y", "y_ticks": LOSS_TICKS}
                looks.label_axes(
                    panel, "", "training loss (nats)", title=TITLES[model], **scaled
                )
                lowest = min(float(run_.loss.min()) for run_ in drawn)
                panel.set_ylim(0.9 * lowest, 2.6)
            else:
                plotting.label_axes(panel, x, "test accuracy")
                panel.axhline(TARGET, **_TARGET_LINE)
                panel.set_ylim(0.75, 1.0)
    styles = [
        plotting.style(run_.method) for run_ in runs["softmax"] if run_.method in DRAWN
    ]
    handles = [looks.legend_handle(look, marker=False) for look in styles]
    handles.append(Line2D([], [], label=f"target accuracy {TARGET:g}", **_TARGET_LINE))
    title = SLOWNESS.format(workers, len(runs["softmax"][0].clock))
    plotting.legend_outside(figure, handles, place="lower", columns=3, title=title)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
