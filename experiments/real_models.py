"""Real models on worker processes: uncoded, the paper, nested groups, sharing, a closed
loop.

A small convolutional net (noisy images of ten kinds) and a small transformer (tokens of
a Markov chain) on eight processes of this machine, slowed on purpose: cycle times of
the paper's law, and in the middle two workers become three times slower. Nobody
interrupts a pass. All schemes but the closed loop are planned for the law; the closed
loop is told nothing and measures. Wall clock against what the paces alone take, loss
against wall clock, from when the first plan is taken up; and a longer training of the
first model, for what is learned is learned once. A quarter of an hour.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cluster import (
    ClosedLoop,
    Cluster,
    InjectedDelay,
    Run,
    Told,
    train_on_cluster,
)
from experiments import looks
from experiments.models import Model, convolutional, transformer
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

WORKERS = 8
STEPS = 80
LONG = 200
SLOWER = 3.0
SLOW = 2
RATE = 1e-3
SHIFT = 50.0
LAW = bcgc.ShiftedExponential(RATE, SHIFT)  # the paper's
# Seconds that an uncoded iteration takes before the jump, on average.
SECONDS = 0.8
LOOP = "ClosedLoop()"
SCHEMES = ("uncoded", "optimal", "nested", "sharing:2", LOOP)
SLOWNESS = (
    f"{WORKERS} worker processes, slowed on purpose: cycle times are shifted "
    f"exponential\n(rate {RATE:g}, shift {SHIFT:g}), so that uncoded steps take "
    f"{SECONDS} s at first; in the second\nhalf {SLOW} workers are {SLOWER:g} times as "
    "slow. Loss after each step of one training each, equal\ndraws."
)
LOSS_TICKS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


class Trained(NamedTuple):
    """A training: seconds of iterations, `[K]`, by paces alone, and losses."""

    model: str
    scheme: str
    seconds: np.ndarray
    paced: np.ndarray
    loss: np.ndarray
    changes: int


def times_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Cycle times, `[count, N]`, of 1/N of all work; slow workers in the last half."""
    times = SHIFT + rng.exponential(1 / RATE, (count, WORKERS))
    times[count // 2 :, :SLOW] *= SLOWER
    return times


def run(out: Path, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    times = times_of(rng, STEPS)
    pace = SECONDS / float(times[: STEPS // 2].max(axis=1).mean())
    first = convolutional(512)
    second = transformer(
        2, 256, width=32, heads=2, length=16, vocabulary=16, chain=True
    )
    with Cluster(WORKERS) as cluster:
        trained = [
            training
            for model in (first, second)
            for training in trainings(cluster, model, SCHEMES, times, pace)
        ]
        first = first._replace(title=f"{first.title}, {LONG} iterations")
        longer = trainings(
            cluster, first, ("sharing:2", LOOP), times_of(rng, LONG), pace
        )
    trained += longer
    show(trained)
    rows = [row for training in trained for row in _rows(training)]
    save(out, {"real_models": rows}, {"real_models": draw(rows)})


def trainings(
    cluster: Cluster,
    model: Model,
    schemes: Sequence[str],
    times: np.ndarray,
    pace: float,
) -> list[Trained]:
    """Train one model by each of the schemes, one after the other."""
    loss = jax.jit(lambda params: model.loss(params, model.batch))
    chosen = with_progress(schemes, f"training of the {model.title}")
    return [_trained(cluster, model, scheme, times, pace, loss) for scheme in chosen]


def _trained(
    cluster: Cluster,
    model: Model,
    scheme: str,
    times: np.ndarray,
    pace: float,
    loss: Callable[[Any], Any],
) -> Trained:
    plans: Any = ClosedLoop()
    if scheme != LOOP:  # uncoded a worker takes its cycle time
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
        plans = Told(bcgc.Problem(LAW, WORKERS, count, cycles=WORKERS / count), scheme)
    run = Run(cluster, InjectedDelay(times, pace))
    training = train_on_cluster(
        *(jax.random.key(0), model.loss, plans, run),
        *(model.params, model.batch, optax.adam(3e-3), len(times)),
        evaluate=loss,
    )
    losses = np.asarray(training.metrics, float)
    return Trained(
        model.title,
        scheme,
        training.seconds,
        training.paced,
        losses,
        len(training.decisions),
    )


def _rows(training: Trained) -> list[dict[str, Any]]:
    columns = zip(
        training.seconds,
        training.paced,
        np.cumsum(training.seconds),
        training.loss,
        strict=True,
    )
    return [
        {"model": training.model, "scheme": training.scheme, "iteration": k}
        | dict(
            zip(("seconds", "paced", "clock", "loss"), map(float, values), strict=True)
        )
        for k, values in enumerate(columns, 1)
    ]


def show(trained: Sequence[Trained]) -> None:
    for model, trainings_of_model in grouped(
        trained, lambda training: training.model
    ).items():
        lines = []
        for training in trainings_of_model:
            ratio = training.seconds.sum() / trainings_of_model[0].seconds.sum()
            against = f"{100 * (ratio - 1):+.1f}"
            means = [
                number(float(x.mean()), 3) for x in (training.paced, training.seconds)
            ]
            lines.append(
                [
                    training.scheme,
                    *means,
                    against,
                    number(float(training.loss[-1]), 3),
                    training.changes,
                ]
            )
        title = (
            f"{model}: seconds of a step, means; all of it against the first scheme, %"
        )
        header = [
            "scheme",
            "paces alone",
            "measured",
            f"against {trainings_of_model[0].scheme}",
            "last loss",
            "changes",
        ]
        print_table(title, header, lines)


def look_of(scheme: str) -> plotting.Style:
    """Make the row of a training whose plan is no scheme's, but one of its own."""
    if scheme == LOOP:
        return plotting.Style(
            "closed loop: told nothing, measures", looks.COLORS[0], "o"
        )
    return plotting.style(scheme)


def draw(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Loss against the wall clock, from rows of real_models.csv or words."""
    models = grouped(rows, lambda row: row["model"])
    figure, axes = plotting.new_figure(1, len(models), size=(2.8 * len(models), 4.6))
    looked: dict[str, plotting.Style] = {}
    for panel, (model, rows_of_model) in zip(axes, models.items(), strict=True):
        for scheme, course in grouped(rows_of_model, lambda row: row["scheme"]).items():
            look = looked[scheme] = look_of(scheme)
            clock, loss = (
                [float(row[name]) for row in course] for name in ("clock", "loss")
            )
            panel.plot(clock, loss, **plotting.curve(look) | {"marker": ""})
            jump: Any = {"markevery": [len(course) // 2], "zorder": 3}
            panel.plot(clock, loss, **looks.points(look, filled=True) | jump)
        lowest = min(float(row["loss"]) for row in rows_of_model)
        ticks = [t for t in LOSS_TICKS if t >= lowest]
        y = ""
        if panel is axes[0]:
            y = "training loss (nats)"
        title = model.replace(", ", ",\n")
        looks.label_axes(
            panel, "wall clock (s)", y, title=title, log="y", y_ticks=ticks
        )
        panel.set_xlim(left=0)
    handles = [looks.legend_handle(look, filled=True) for look in looked.values()]
    title = f"{SLOWNESS}\nMarkers: the second half begins."
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
