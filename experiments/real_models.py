"""Real models on worker processes: uncoded, the paper's optimum, nested, and untold plans.

A small convolutional net (noisy images of ten kinds) and a small transformer (tokens of a Markov chain) on
eight processes of this machine, slowed on purpose: cycle times of the paper's law, and in the middle
two workers become three times slower. `told` has at both times the best plan that knows the law and the
workers; `adaptive` is told nothing and measures. Both have the workers compile the next plan beside their
work. Wall clock against prediction, loss against wall clock, from when the first plan is taken up; and a
longer training of the first model, told and not told, for what is learned is learned once. Half an hour.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.adaptive import WorkPlan
from bcgc_jax.adaptive.rules import Rule, Window, rules
from bcgc_jax.cluster import ClosedLoop, Cluster, InjectedDelay, Run, train_on_cluster
from bcgc_jax.cluster.planning import loads_of, plan_of
from bcgc_jax.coding.gradients import split_by
from bcgc_jax.plans.plan import partition_plan
from experiments import looks
from experiments.models import Model, convolutional, transformer
from experiments.replay import pooled, problem
from experiments.report import each, grouped, number, print_table, run_command, save

WORKERS, STEPS, LONG, SLOWER, SLOW = 8, 240, 900, 3.0, 2
RATE, SHIFT = 1e-3, 50.0  # the paper's law
# Seconds that an uncoded iteration takes before the jump, on average.
SECONDS = 0.8
_KNOWN = 512
SCHEMES = ("uncoded", "optimum", "nested", "told", "adaptive")
LOSS_TICKS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


Plans = Mapping[str, Sequence[WorkPlan]]


class Trained(NamedTuple):
    """A training: seconds of each iteration, `[K]`, what the paces alone take, and the loss after it."""

    model: str
    scheme: str
    seconds: np.ndarray
    paced: np.ndarray
    loss: np.ndarray
    predicted: float
    plans: str


def times_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Cycle times, `[count, N]`, in units of 1/N of all work; the second half with slow workers."""
    found = SHIFT + rng.exponential(1 / RATE, (count, WORKERS))
    found[count // 2 :, :SLOW] *= SLOWER
    return found


def _optimum(window: Window) -> WorkPlan:
    """The paper's, for the law of all times."""
    x = np.asarray(bcgc.solve(problem(pooled(window.times), WORKERS)).partition, float)
    return WorkPlan("optimum", np.full(WORKERS, 1 / WORKERS), partition_plan(x / x.sum(), WORKERS))


def plans(rng: np.random.Generator) -> Plans:
    """For each scheme that is told the law, its plan in either half."""
    halves = np.split(times_of(rng, 2 * _KNOWN), 2)
    windows = [Window(half, WORKERS, jax.random.key(0)) for half in halves]
    all_rules = rules()

    def best(window: Window) -> WorkPlan:
        return min(
            (rule(window) for rule in all_rules.values()), key=lambda p: p.runtimes(window.times).mean()
        )

    def once(rule: Rule) -> list[WorkPlan]:
        return [rule(windows[0])] * 2

    return {
        "uncoded": once(all_rules["uncoded"]),
        "optimum": [_optimum(windows[0])] * 2,
        "nested": once(all_rules["nested"]),
        "told": [best(window) for window in windows],
    }


def train_as_told(
    cluster: Cluster, model: Model, given: Sequence[WorkPlan], times: np.ndarray, loss: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, paces and losses of a training that changes its plan in the middle, if it is another one."""
    optimizer, params = optax.adam(3e-3), model.params
    state = optimizer.init(params)

    @jax.jit
    def advance(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    jax.block_until_ready(advance(params, state, params))  # compiled before the clock runs
    (seconds, paced), losses = np.zeros((2, len(times))), []
    work = [plan_of(plan, params, jax.random.key(0), {}) for plan in given]
    loads = [loads_of(one, plan.shares) for one, plan in zip(work, given, strict=True)]
    parts = [split_by(model.batch, plan.shares) for plan in given]
    now, then = (
        cluster.prepare(model.loss, one, params, part) for one, part in zip(work, parts, strict=True)
    )
    cluster.take_up(now)
    with ThreadPoolExecutor(1) as beside:
        for step, row in enumerate(times):
            begin, late = time.perf_counter(), step >= len(times) // 2
            if given[0] is not given[1]:
                ready = cluster.is_ready(then)
                if step == len(times) // 2:
                    print(f"{model.title}: told is {'ready' if ready else 'not ready'}", file=sys.stderr)
                    cluster.take_up(then)
            found = cluster.gradient(params, row * loads[late])
            params, state = jax.block_until_ready(advance(params, state, found.gradient))
            seconds[step] = time.perf_counter() - begin
            paced[step] = work[late].completed(row * loads[late]).max()
            losses.append(beside.submit(loss, params))
    return seconds, paced, np.array([float(one.result()) for one in losses])


def run(out: Path, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    given, times = plans(rng), times_of(rng, STEPS)
    pace = SECONDS / float(times[: STEPS // 2].max(axis=1).mean())
    first = convolutional(512)
    second = transformer(2, 256, width=32, heads=2, length=16, vocabulary=16, chain=True)
    with Cluster(WORKERS) as cluster:
        trained = [
            one for model in (first, second) for one in trainings(cluster, model, SCHEMES, given, times, pace)
        ]
        first = first._replace(title=f"{first.title}, {LONG} iterations")
        longer = trainings(cluster, first, ("told", "adaptive"), given, times_of(rng, LONG), pace)
    show([*trained, *longer])
    save(out, {"real_models": [row for one in trained for row in _rows(one)]}, {"real_models": draw(trained)})


def trainings(
    cluster: Cluster, model: Model, schemes: Sequence[str], given: Plans, times: np.ndarray, pace: float
) -> list[Trained]:
    """Of one model by each of the schemes, one after the other."""
    loss = jax.jit(lambda params: model.loss(params, model.batch))
    trained = []
    for scheme in each(schemes, f"training of the {model.title}"):
        if scheme == "adaptive":
            trained.append(_adaptive(cluster, model, times, pace, loss))
            continue
        found = train_as_told(cluster, model, given[scheme], pace * times, loss)
        halves = zip(given[scheme], np.split(times, 2), strict=True)
        predicted = sum(plan.runtimes(half).sum() for plan, half in halves)
        names = " → ".join(dict.fromkeys(plan.name for plan in given[scheme]))
        trained.append(Trained(model.title, scheme, *found, pace * predicted / len(times), names))
    return trained


def _adaptive(
    cluster: Cluster, model: Model, times: np.ndarray, pace: float, loss: Callable[[Any], Any]
) -> Trained:
    run = Run(cluster, InjectedDelay(times, pace))
    given = jax.random.key(0), model.loss, ClosedLoop(), run, model.params, model.batch, optax.adam(3e-3)
    found = train_on_cluster(*given, len(times), evaluate=loss)
    names = " → ".join(["uncoded", *(decision.after for decision in found.decisions)])
    losses = np.asarray(found.metrics, float)
    return Trained(model.title, "adaptive", found.seconds, found.paced, losses, np.nan, names)


def _rows(one: Trained) -> list[dict[str, Any]]:
    columns = zip(one.seconds, one.paced, np.cumsum(one.seconds), one.loss, strict=True)
    return [
        {"model": one.model, "scheme": one.scheme, "iteration": k}
        | dict(zip(("seconds", "paced", "clock", "loss"), map(float, values), strict=True))
        for k, values in enumerate(columns, 1)
    ]


def show(trained: Sequence[Trained]) -> None:
    for model, mine in grouped(trained, lambda one: one.model).items():
        told = next(one for one in mine if one.scheme == "told").seconds.sum()
        lines = []
        for one in mine:
            values = one.predicted, one.paced.mean(), one.seconds.mean()
            above = f"{100 * (one.seconds.sum() / told - 1):+.1f}", number(float(one.loss[-1]), 3)
            plans = one.plans if len(one.plans) < 40 else f"{one.plans.count('→')} changes"
            lines.append([one.scheme, *(number(float(x), 3) for x in values), *above, plans])
        title = f"{model}: seconds of a step, means; all of it against the plan that is told, %"
        header = ["scheme", "predicted", "paces alone", "measured", "against told", "last loss", "plans"]
        print_table(title, header, lines)


def look_of(scheme: str) -> plotting.Style:
    """Of a training whose plan is no scheme's, one of its own."""
    if scheme == "told":
        return plotting.Style("told all: the best plan in either half", looks.COLORS[3], "", ":", 2.2)
    if scheme == "adaptive":
        return plotting.Style("told nothing: measures, plans anew", looks.COLORS[1], "", looks.LINES[1])
    return plotting.style("optimal" if scheme == "optimum" else scheme)


def draw(trained: Sequence[Trained]) -> Any:
    """Loss against the wall clock."""
    models = grouped(trained, lambda one: one.model)
    figure, axes = plotting.new_figure(1, len(models), size=(8.4, 4.6))
    for panel, (model, mine) in zip(axes, models.items(), strict=True):
        for one in mine:
            look = plotting.curve(look_of(one.scheme)) | {"marker": ""}
            panel.plot(np.cumsum(one.seconds), one.loss, **look)
        lowest = min(float(one.loss.min()) for one in mine)
        ticks = [t for t in LOSS_TICKS if t >= lowest]
        looks.label_axes(panel, "wall clock (s)", "training loss (nats)", title=model, log="y", y_ticks=ticks)
    handles, _ = axes[0].get_legend_handles_labels()
    title = f"one training each of {STEPS} steps; {SLOW} of {WORKERS} workers become slower in the middle"
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
