"""A training that is told nothing measures, plans, and changes its plan: what that is worth, simulated.

On traces and where times drift, jump or are tied together: all the time taken, against none of it coded and
the best plan that is never changed, made in hindsight. On independent times: the plan after 30 iterations
against the best plan that knows the law. A change takes an iteration's mean time, and so does to send all the
data once.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.adaptive import RULES, Decision, Planner, WorkPlan
from bcgc_jax.adaptive.rules import MOST_STORED, Window
from experiments import looks
from experiments.report import each, print_table, readable, run_command, save
from experiments.traces import files_of

# Iterations of a training, of its first part, and workers of the drifts.
STEPS, EARLY, WORKERS = 500, 30, 10
# Numbers of workers, and how many draws of the first iterations; a plan of 100 workers takes seconds.
SIZES = {8: 4, 20: 4, 100: 1}
# Workers of this drift need as long again to begin.
_LATE = "random start-ups"
# Iterations that who knows a law plans with, and that plans are judged by.
_KNOWN, _JUDGED = 512, 4000

LAWS: Mapping[str, bcgc.distributions.Distribution] = {
    "shifted exponential": bcgc.ShiftedExponential(1e-3, 50.0),
    "exponential": bcgc.Exponential(1.0),
    "weibull": bcgc.Weibull(1.0, 0.7, 0.2),
    "pareto": bcgc.Pareto(1.0, 2.2),
    "uniform": bcgc.Uniform(1.0, 3.0),
    "lognormal": bcgc.Lognormal(0.0, 0.8, 0.3),
    "gamma": bcgc.Gamma(3.0, 2.0, 0.5),
    "two speeds": bcgc.TwoSpeed(1.0, 4.0, 0.1),
    "deterministic": bcgc.distributions.Deterministic(2.0),
}


def drifts(rng: np.random.Generator, steps: int, workers: int) -> dict[str, np.ndarray]:
    """Cycle times, `[K, N]`, by what becomes of them."""
    shape, half = (steps, workers), steps // 2
    jump, turns = np.ones((2, steps, workers))
    jump[half:, :3] = 3  # in the middle three workers become slower
    turns[np.arange(steps), np.arange(steps) // 50 % workers] = 4  # every 50 iterations another one is slow

    def steady() -> np.ndarray:
        return 0.5 + rng.exponential(0.5, shape)

    return {
        "three workers become slower": jump * steady(),
        # In the middle times that hardly differ become those of a heavy tail.
        "equal times become heavy-tailed": np.r_[
            rng.uniform(1, 1.2, (half, workers)), rng.pareto(2, (steps - half, workers)) + 1
        ],
        "speeds wander": np.exp(np.cumsum(rng.normal(0, 0.05, shape), axis=0)) * steady(),
        "one slow worker, another every 50 steps": turns * steady(),
        # All workers of an iteration are slow together; hardly one is slower than the others.
        "all slow in the same steps": rng.lognormal(0, 1, (steps, 1)) * rng.uniform(1, 1.1, shape),
        "all times equal to 2 %": rng.uniform(1, 1.02, shape),  # nothing to be gained
        _LATE: rng.uniform(0.2, 0.24, shape),
    }


# Time saved until each iteration, `[K]`, in percent; the first iteration with each new plan.
Saved = tuple[np.ndarray, list[int]]


class Course(NamedTuple):
    """A training: the time of each iteration, `[K]`, changes before it included; and what was decided."""

    taken: np.ndarray
    decisions: tuple[Decision, ...]
    plan: WorkPlan


class Row(NamedTuple):
    """All iterations: seconds in the unit of the trace; `saved` in percent, against uncoded.

    `fixed`: of the best plan that is never changed, made and chosen in hindsight; costs nothing.
    """

    times: str
    workers: int
    steps: int
    uncoded: float
    adaptive: float
    saved: float
    fixed: float
    fixed_plan: str
    changes: int
    last_plan: str


class Early(NamedTuple):
    """Expected runtime of the plan after `EARLY` iterations; `excess` over that which knows the law, in %.

    Means over the draws, and the `worst` excess; the plan is that of the last draw.
    """

    law: str
    workers: int
    uncoded: float
    planned: float
    known: float
    excess: float
    worst: float
    plan: str
    known_plan: str


def train(
    times: np.ndarray, key: jax.Array, num_steps: int | None = None, cost: float = 0.0, start_ups: Any = None
) -> Course:
    """A planner meets these cycle times and start-ups, `[K, N]` each, one iteration after the other.

    It is shown what a master sees: of who has done a task his times, of the others that they took longer.
    """
    start_ups = np.zeros_like(times) if start_ups is None else start_ups
    count = num_steps or len(times)
    planner = Planner(times.shape[1], count, key=key, change_seconds=cost, move_seconds=cost)
    taken = np.zeros(len(times))
    for k, (row, start) in enumerate(zip(times, start_ups, strict=True)):
        plan = planner.plan
        taken[k] += (runtime := float(plan.runtimes(row[None], start[None])[0]))
        seen = start + row * plan.loads[:, 0] <= runtime * (1 + 1e-12)  # whose cycle times can be told
        at_least = np.where(seen, row, runtime / plan.loads[:, 0])
        planner.observe(at_least, seen, runtime, start_ups=np.where(seen, start, 0))
        if planner.plan is not plan and k + 1 < len(times):
            taken[k + 1] += cost * (1 + planner.plan.moved(plan))
    return Course(taken, tuple(planner.decisions), planner.plan)


def best_plan(
    times: np.ndarray, key: jax.Array, judged: np.ndarray | None = None, start_ups: np.ndarray | float = 0.0
) -> tuple[str, float]:
    """The rule whose plan, made from all these times, takes least on average, and that mean."""
    window = Window(times, min(MOST_STORED, times.shape[1]), key, start_ups)
    judged = times if judged is None else judged
    found = {name: float(rule(window).runtimes(judged, start_ups).mean()) for name, rule in RULES.items()}
    return min(found.items(), key=lambda one: one[1])


def course(name: str, times: np.ndarray, seed: int, start_ups: np.ndarray | None = None) -> tuple[Row, Saved]:
    """A row of the table, and what was saved so far."""
    train_key, fixed_key = jax.random.split(jax.random.key(seed))
    start_ups = np.zeros_like(times) if start_ups is None else start_ups
    uncoded = np.max(start_ups + times, axis=1)
    found = train(times, train_key, cost=float(uncoded.mean()), start_ups=start_ups)
    fixed_plan, fixed = best_plan(times, fixed_key, start_ups=start_ups)
    total, plain = float(found.taken.sum()), float(uncoded.sum())
    row = Row(
        *(name, times.shape[1], len(times), plain, total, 100 * (1 - total / plain)),
        *(100 * (1 - fixed * len(times) / plain), fixed_plan, len(found.decisions), found.plan.name),
    )
    percent = 100 * (1 - np.cumsum(found.taken) / np.cumsum(uncoded))
    return row, (percent, [d.step for d in found.decisions if d.step < len(percent)])


def early(name: str, workers: int, draws: int, seed: int) -> Early:
    """What is planned after a few iterations with independent times, and what who knows the law would."""
    law = LAWS[name]
    draw, judge, learn, know, known = jax.random.split(jax.random.key(seed), 5)

    def sample(key: jax.Array, rows: int) -> np.ndarray:
        return np.asarray(law.sample(key, (rows, workers)), float)

    judged = sample(judge, _JUDGED)
    best, value = best_plan(sample(know, _KNOWN), known, judged)
    planned = []
    for key in jax.random.split(draw, draws):
        found = train(sample(key, EARLY), learn, num_steps=STEPS)
        planned.append(float(found.plan.runtimes(judged).mean()))
    excess = [100 * (one / value - 1) for one in planned]
    uncoded, mean = float(judged.max(axis=1).mean()), float(np.mean(planned))
    return Early(
        name, workers, uncoded, mean, value, float(np.mean(excess)), max(excess), found.plan.name, best
    )


def show(rows: Sequence[Row], earlies: Sequence[Early]) -> None:
    print_table(
        "All steps: time saved against uncoded, %",
        ["times", "workers", "steps", "adaptive", "best fixed", "which", "changes"],
        [
            [r.times, r.workers, r.steps, f"{r.saved:.1f}", f"{r.fixed:.1f}", r.fixed_plan, r.changes]
            for r in rows
        ],
    )
    print_table(
        f"Plan after {EARLY} steps, expected runtime; excess over one that knows the distribution, %",
        ["times", "workers", "uncoded", "planned", "known", "excess", "worst", "planned as", "known as"],
        [[*one[:5], f"{one.excess:.1f}", f"{one.worst:.1f}", one.plan, one.known_plan] for one in earlies],
    )


def draw(courses: Mapping[str, Saved], count: int) -> Any:
    """What was saved so far, the first `count` on the left: traces; drifts on the right."""
    figure, axes = plotting.new_figure(1, 2, size=(8.4, 5.6))
    names = list(courses)
    titles = f"(a) saved on {count} measured traces", f"(b) saved on simulated times, {WORKERS} workers"
    for panel, title, chosen in zip(axes, titles, (names[:count], names[count:]), strict=True):
        for name, color, line in zip(chosen, cycle(looks.COLORS), cycle(("-", *looks.LINES))):
            (saved, changes), label = courses[name], readable(name).replace("\n", ", ")
            look: Any = {"color": color, "linestyle": line, "linewidth": 1.5, "label": label}
            marks: Any = {"marker": "o", "markersize": 4, "markevery": changes}
            panel.plot(np.linspace(0, 100, len(saved)), saved, **look, **marks)
        panel.axhline(0, color=plotting.style("uncoded").color, linewidth=0.8)
        below: Any = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.17), "alignment": "left"}
        dots = "dots: the plan changes, which takes\nthe time of one or two steps" * (panel is axes[0])
        panel.legend(title=dots, frameon=False, handlelength=5, **below)
        y = "time saved so far\nagainst uncoded (%)" if panel is axes[0] else ""
        plotting.label_axes(panel, "steps done (%)", y, title=title)
    return figure


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    """Print both tables; write adaptive.csv, adaptive_early.csv and the figure to `out`."""
    tables = {file.name.split(".")[0]: bcgc.measured.load_trace(file).table() for file in files_of(traces)}
    measured = {name: table[np.isfinite(table).all(axis=1)] for name, table in tables.items()}
    rng = np.random.default_rng(seed)
    given = list({**measured, **drifts(rng, STEPS, WORKERS)}.items())
    starts = {_LATE: rng.exponential(1.0, (STEPS, WORKERS))}
    found = {name: course(name, t, seed, starts.get(name)) for name, t in each(given, "trainings")}
    rows = [row for row, _ in found.values()]
    cases = [(name, workers, draws) for workers, draws in SIZES.items() for name in LAWS]
    earlies = [early(*case, seed) for case in each(cases, "distributions")]
    show(rows, earlies)
    figure = draw({name: saved for name, (_, saved) in found.items()}, len(measured))
    save(out, {"adaptive": rows, "adaptive_early": earlies}, {"adaptive": figure})


if __name__ == "__main__":
    sys.exit(run_command(run))
