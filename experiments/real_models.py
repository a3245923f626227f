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
from experiments.report import each, grouped, number, print_table, run_command, save

WORKERS, STEPS, LONG, SLOWER, SLOW = 8, 80, 200, 3.0, 2
RATE, SHIFT = 1e-3, 50.0
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
    """A training: seconds of each iteration, `[K]`, what paces alone take, the loss
    after it.
    """

    model: str
    scheme: str
    seconds: np.ndarray
    paced: np.ndarray
    loss: np.ndarray
    changes: int


def times_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Cycle times, `[count, N]`, in units of 1/N of all work; the second half with slow
    workers.
    """
    found = SHIFT + rng.exponential(1 / RATE, (count, WORKERS))
    found[count // 2 :, :SLOW] *= SLOWER
    return found


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
            one
            for model in (first, second)
            for one in trainings(cluster, model, SCHEMES, times, pace)
        ]
        first = first._replace(title=f"{first.title}, {LONG} iterations")
        longer = trainings(
            cluster, first, ("sharing:2", LOOP), times_of(rng, LONG), pace
        )
    trained += longer
    show(trained)
    rows = [row for one in trained for row in _rows(one)]
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
    chosen = each(schemes, f"training of the {model.title}")
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
    given = (
        jax.random.key(0),
        model.loss,
        plans,
        run,
        model.params,
        model.batch,
        optax.adam(3e-3),
    )
    found = train_on_cluster(*given, len(times), evaluate=loss)
    losses = np.asarray(found.metrics, float)
    return Trained(
        model.title, scheme, found.seconds, found.paced, losses, len(found.decisions)
    )


def _rows(one: Trained) -> list[dict[str, Any]]:
    columns = zip(one.seconds, one.paced, np.cumsum(one.seconds), one.loss, strict=True)
    return [
        {"model": one.model, "scheme": one.scheme, "iteration": k}
        | dict(
            zip(("seconds", "paced", "clock", "loss"), map(float, values), strict=True)
        )
        for k, values in enumerate(columns, 1)
    ]


def show(trained: Sequence[Trained]) -> None:
    for model, mine in grouped(trained, lambda one: one.model).items():
        lines = []
        for one in mine:
            against = f"{100 * (one.seconds.sum() / mine[0].seconds.sum() - 1):+.1f}"
            means = [number(float(x.mean()), 3) for x in (one.paced, one.seconds)]
            lines.append(
                [
                    one.scheme,
                    *means,
                    against,
                    number(float(one.loss[-1]), 3),
                    one.changes,
                ]
            )
        title = (
            f"{model}: seconds of a step, means; all of it against the first scheme, %"
        )
        header = [
            "scheme",
            "paces alone",
            "measured",
            f"against {mine[0].scheme}",
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
    """Loss against the wall clock, of the rows of real_models.csv, which may be
    words.
    """
    models = grouped(rows, lambda row: row["model"])
    figure, axes = plotting.new_figure(1, len(models), size=(2.8 * len(models), 4.6))
    looked: dict[str, plotting.Style] = {}
    for panel, (model, mine) in zip(axes, models.items(), strict=True):
        for scheme, course in grouped(mine, lambda row: row["scheme"]).items():
            look = looked[scheme] = look_of(scheme)
            clock, loss = (
                [float(row[name]) for row in course] for name in ("clock", "loss")
            )
            panel.plot(clock, loss, **plotting.curve(look) | {"marker": ""})
            jump: Any = {"markevery": [len(course) // 2], "zorder": 3}
            panel.plot(clock, loss, **looks.points(look, filled=True) | jump)
        lowest = min(float(row["loss"]) for row in mine)
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
