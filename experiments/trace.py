"""Does the plan hold tomorrow? Plan on the first part of a trace, replay the rest step by step.

A plan is judged by the mean runtime of the steps that it has not seen, beside what it promised, what the
uncoded scheme takes in the same steps, and what the best partition in hindsight would have taken. Intervals
of 95 % are those of blocks of neighbouring steps, resampled. One part of a short trace says little, so every
quarter of it is also replayed under plans made for the other three.
"""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from bcgc_jax.measured.description import Interval
from bcgc_jax.measured.resampling import resampled_means
from experiments.report import print_table, run_command, write_csv

# The share of the steps that plans are made on: 84 of 120.
FIRST = 0.7
FOLDS = 4
COORDINATES = 1_000_000
# The optimum for three readings of the past, and for the smooth one made anew before every step.
SMOOTH, FITTED, STEPS, AGAIN = "optimal", "optimal, fitted law", "optimal, whole steps", "optimal, re-planned"
RULES = ("time", "frequency", "single_block", "uncoded", "ferdinand_full", "ferdinand_half")
CANDIDATES = ("gamma", "lognormal", "weibull", "shifted-exponential")


class Row(NamedTuple):
    """A scheme: what it promised, and what the steps that followed took; ends of intervals beside.

    Times are means of a step, in the unit of the trace times cycles; in percent, `saved` is against the
    uncoded scheme, `regret` against the best partition in hindsight, `difference` realised against predicted.
    The interval of a prediction is that of the plan's runtime in the steps it was made on.
    """

    scheme: str
    predicted: Interval
    realised: Interval
    saved: Interval
    regret: Interval
    difference: Interval

    @property
    def inside(self) -> bool:
        """Whether the interval of the realised runtime has the predicted one."""
        return self.realised.low <= self.predicted.value <= self.realised.high

    @property
    def held(self) -> bool:
        """Whether the two may be the same, the prediction too being a mean of so many steps."""
        return self.difference.low <= 0 <= self.difference.high


class Held(NamedTuple):
    """A scheme in all steps, each under a plan that had not seen it: percent saved against uncoded."""

    scheme: str
    saved: Interval


class Study(NamedTuple):
    """All rows, the runtimes of each replayed step by scheme, and where the trace was cut.

    `times` is by how much percent the mean cycle time of the replayed steps differs, with its interval.
    """

    rows: list[Row]
    held_out: list[Held]
    steps: dict[str, np.ndarray]
    num_planned: int
    times: Interval


Replay = Callable[[np.ndarray], np.ndarray]


def problem(law: bcgc.Law | bcgc.Rows, num_workers: int) -> bcgc.Problem:
    return bcgc.Problem(law, num_workers, COORDINATES)


def _replay(partition: Any) -> Replay:
    return lambda rows: np.asarray(bcgc.block_runtime(np.asarray(partition), rows))


def _tandon_partial(question: bcgc.Problem) -> tuple[float, Replay]:
    """(M b L / N) max of the uncoded part's end at the slowest worker and the coded one's at T_(N-s)."""
    solution = bcgc.solve(question, "tandon_partial")
    assert solution.parts is not None
    level, share, counts = (np.asarray(part) for part in solution.parts)
    loads = np.cumsum((level + 1) * share * counts) / question.max_workers

    def replay(rows: np.ndarray) -> np.ndarray:
        return np.max(loads * -np.sort(-rows, axis=1)[:, level], axis=1)

    return float(solution.expected_runtime), replay


def plans(
    past: bcgc.measured.Trace, seed: int, *, rules: Sequence[str] = RULES
) -> dict[str, tuple[float, Replay]]:
    """What each scheme promises after the steps of `past`, and how long it takes in others."""
    workers = past.num_workers
    smooth = problem(bcgc.measured.smooth_empirical(past.seconds), workers)
    fits = bcgc.measured.fit_laws(jax.random.key(seed), past.seconds, laws=CANDIDATES, num_replicates=20)
    found: dict[str, tuple[float, Replay]] = {}
    questions = {
        SMOOTH: smooth,
        FITTED: problem(fits[0].law, workers),
        STEPS: problem(bcgc.Rows(past.rows()), workers),
    }
    for name, question in questions.items():
        solution = bcgc.solve(question)
        found[name] = float(solution.expected_runtime), _replay(solution.partition)
    for method in rules:
        solution = bcgc.solve(smooth, method)
        if int(solution.status) == bcgc.Status.CONVERGED:
            found[method] = float(solution.expected_runtime), _replay(solution.partition)
    if "uncoded" in rules:
        found["tandon_partial"] = _tandon_partial(smooth)
    return found


def replanned(past: bcgc.measured.Trace, rest: bcgc.measured.Trace) -> np.ndarray:
    """Runtime of each step of the `rest` under the optimum for as many steps as `past` has, up to it."""
    rows = np.concatenate([past.rows(), rest.rows()])
    window = past.num_steps
    steps = []
    for i in each(range(rest.num_steps), "re-planning"):
        law = bcgc.measured.smooth_empirical(rows[i : i + window].ravel())
        partition = bcgc.solve(problem(law, rows.shape[1])).partition
        steps.append(_replay(partition)(rows[window + i : window + i + 1])[0])
    return np.array(steps)


def _interval(key: jax.Array, steps: np.ndarray, value: Callable[[np.ndarray], Any]) -> Interval:
    """Value and interval of a function of the means of several series, `[S, C]`."""
    means = np.asarray(resampled_means(key, jnp.asarray(steps)))
    low, high = np.quantile(value(means), [0.025, 0.975])
    return Interval(float(value(steps.mean(axis=0))), float(low), float(high))


def _mean(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _regret(means: np.ndarray) -> np.ndarray:
    """Percent by which the first series lies above the second."""
    return 100 * (means[..., 0] / means[..., 1] - 1)


def _saved(means: np.ndarray) -> np.ndarray:
    """Percent by which the first series lies below the second."""
    return 100 * (1 - means[..., 0] / means[..., 1])


def compute(trace: bcgc.measured.Trace, seed: int = 0, *, first: float = FIRST, folds: int = FOLDS) -> Study:
    """Plans on the `first` share of the steps, and every one of `folds` parts under plans for the others."""
    num_planned = round(first * trace.num_steps)
    past, rest = trace.split(num_planned)
    before, rows, workers = past.rows(), rest.rows(), trace.num_workers
    made = plans(past, seed)
    steps = {name: replay(rows) for name, (_, replay) in made.items()}
    seen = {name: replay(before) for name, (_, replay) in made.items()}
    promised = {name: value for name, (value, _) in made.items()}
    steps[AGAIN], seen[AGAIN], promised[AGAIN] = replanned(past, rest), seen[SMOOTH], promised[SMOOTH]
    steps["limit"], seen["limit"] = (COORDINATES / np.sum(1 / r, axis=1) for r in (rows, before))
    promised["limit"] = float(
        bcgc.runtime_limit(problem(bcgc.measured.smooth_empirical(past.seconds), workers))
    )
    hindsight = bcgc.solve(problem(bcgc.Rows(rows), workers))
    best = _replay(hindsight.partition)(rows)
    key = jax.random.key(seed)
    found = []
    for name, runtimes in steps.items():
        pairs = [np.stack([runtimes, other], axis=1) for other in (steps["uncoded"], best)]
        shift = promised[name] - seen[name].mean()
        predicted = _interval(key, (seen[name] + shift)[:, None], _mean)
        found.append(
            Row(
                name,
                predicted,
                _interval(key, runtimes[:, None], _mean),
                _interval(key, pairs[0], _saved),
                _interval(key, pairs[1], _regret),
                _change(key, runtimes, seen[name] + shift),
            )
        )
    found.sort(key=lambda row: row.realised.value)
    times = _change(key, rows.mean(axis=1), before.mean(axis=1))
    return Study(found, _held_out(trace, folds, seed), steps, num_planned, times)


def _change(key: jax.Array, after: np.ndarray, before: np.ndarray) -> Interval:
    """Percent by which a mean differs from that of other steps, both resampled."""
    new, old = (
        np.asarray(resampled_means(k, jnp.asarray(steps)))
        for k, steps in zip(jax.random.split(key), (after, before), strict=True)
    )
    low, high = np.quantile(100 * (new / old - 1), [0.025, 0.975])
    return Interval(float(100 * (after.mean() / before.mean() - 1)), float(low), float(high))


def _held_out(trace: bcgc.measured.Trace, folds: int, seed: int) -> list[Held]:
    parts = np.array_split(np.arange(trace.num_steps), folds)
    rows = trace.rows()
    kept: dict[str, list[np.ndarray]] = {}
    for part in each(parts, "holding out"):
        seen = ~np.isin(trace.step, part)
        names = np.delete(trace.step_names, part)
        past = bcgc.measured.Trace(
            names,
            trace.worker_names,
            np.unique(trace.step[seen], return_inverse=True)[1],
            trace.worker[seen],
            trace.seconds[seen],
            trace.censored[seen],
        )
        for name, (_, replay) in plans(past, seed, rules=("time", "frequency", "uncoded")).items():
            kept.setdefault(name, []).append(replay(rows[part]))
    uncoded = np.concatenate(kept["uncoded"])
    key = jax.random.key(seed + 1)
    found = [
        Held(name, _interval(key, np.stack([np.concatenate(steps), uncoded], axis=1), _saved))
        for name, steps in kept.items()
        if name != "uncoded"
    ]
    return sorted(found, key=lambda row: -row.saved.value)


_LABELS: Mapping[str, str] = {
    SMOOTH: "optimal, smooth law",
    FITTED: "optimal, fitted law",
    STEPS: "optimal, whole steps",
    AGAIN: "optimal, re-planned each step",
}
# Four plans of one scheme, in its colour: told apart by line and marker.
_PLANS: Mapping[str, tuple[Any, str]] = {
    SMOOTH: ("-", "o"),
    FITTED: ("--", "^"),
    STEPS: ((0, (1.5, 1.5)), "s"),
    AGAIN: ("-.", "D"),
}
_SHOWN = 1.3  # times the uncoded runtime: schemes beyond it are in the table alone


def draw(study: Study, folder: Path) -> tuple[Path, Path]:
    """Predicted beside realised runtimes, and what has been saved up to each step."""
    figure, (left, right) = plotting.new_figure(1, 2, size=(9.6, 4.2))
    uncoded = next(row.realised.value for row in study.rows if row.scheme == "uncoded")
    shown = [row for row in study.rows if row.realised.value < _SHOWN * uncoded][::-1]
    for place, row in enumerate(shown):
        color = _color(row.scheme)
        for interval, mark, up in ((row.realised, "o", 0.13), (row.predicted, "D", -0.13)):
            filled = color if mark == "o" else "white"
            value, low, high = (x / 1e3 for x in interval)
            left.plot([low, high], [place + up] * 2, color=color, linewidth=1.3)
            left.plot(value, place + up, mark, color=color, markersize=4.5, markerfacecolor=filled)
    left.set_yticks(range(len(shown)), [_label(row.scheme) for row in shown], fontsize="small")
    plotting.label_axes(
        left,
        "runtime of a step (10³ cycles × unit of the trace)",
        "",
        title=f"{len(study.steps['uncoded'])} steps: realised (●) and predicted (◇), 95 %",
    )
    reference = np.cumsum(study.steps["uncoded"])
    step = study.num_planned + 1 + np.arange(reference.size)
    for name in (*_PLANS, "time", "frequency"):
        look = plotting.style(name)
        line, marker = _PLANS.get(name, (look.line, look.marker))
        right.plot(
            step,
            100 * (1 - np.cumsum(study.steps[name]) / reference),
            color=_color(name),
            linestyle=line,
            linewidth=1.3,
            marker=marker,
            markersize=4,
            markerfacecolor="none",
            markevery=max(1, reference.size // 9),
            label=_label(name),
        )
    right.axhline(0, color="0.4", linewidth=0.8)
    plotting.label_axes(
        right, "step of the trace", "time saved so far\nagainst uncoded (%)", title="replayed step by step"
    )
    plotting.legend_outside(figure, right.get_legend_handles_labels()[0], place="lower", columns=3)
    return plotting.save_figure(figure, folder, "trace")


def _color(name: str) -> str:
    return plotting.style("optimal" if name in _PLANS else name).color


def _label(name: str) -> str:
    return _LABELS.get(name) or plotting.style(name).label


def _print(study: Study) -> None:
    def times(x: Interval) -> str:
        digits = 1 if x.value < 1e6 else 0
        return f"{x.value / 1e3:.{digits}f} ({x.low / 1e3:.{digits}f}–{x.high / 1e3:.{digits}f})"

    def percent(x: Interval) -> str:
        return f"{x.value:.1f} ({x.low:.1f}–{x.high:.1f})" if abs(x.value) < 100 else f"{x.value:.0f}"

    print_table(
        f"Planned on {study.num_planned} steps, replayed in the next {len(study.steps['uncoded'])}: "
        "thousands, saved and regret in %",
        ["scheme", "predicted", "realised", "differ", "saved", "regret"],
        [
            [
                row.scheme,
                times(row.predicted),
                times(row.realised),
                "no" if row.held else "yes",
                percent(row.saved),
                f"{row.regret.value:.2f}" if abs(row.regret.value) < 100 else f"{row.regret.value:.0f}",
            ]
            for row in study.rows
        ],
    )
    value, low, high = study.times
    text = (
        f"The mean cycle time of the replayed steps differs by {value:.1f} % ({low:.1f} … {high:.1f}) "
        "from that of the steps planned on. "
    )
    outside = [row.scheme for row in study.rows if not row.inside]
    if outside:
        text += (
            f"For {len(outside)} of {len(study.rows)} schemes the prediction is outside of the interval of "
            f"the realised runtime alone; it is an estimate from {study.num_planned} steps itself, and "
            'whether the two differ (column "differ") takes both into account.'
        )
    print("\n" + textwrap.fill(text, 98))
    print_table(
        "Every step, under a plan made without its quarter of the trace",
        ["scheme", "saved against uncoded %, 95 %"],
        [[row.scheme, percent(row.saved)] for row in study.held_out],
    )


def _flat(row: Row | Held) -> dict[str, Any]:
    """A column for each number."""
    flat: dict[str, Any] = {}
    for name, value in row._asdict().items():
        if isinstance(value, Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = value
    return flat


def run(out: Path, *, seed: int, trace: Path) -> None:
    if not trace.exists():
        raise ValueError(f"there is no trace {trace}: give one with --trace FILE")
    measured = bcgc.measured.load_trace(trace)
    if measured.num_workers < 2:
        raise ValueError(f"{trace} has one worker only: coding needs the times of at least two")
    study = compute(measured, seed)
    _print(study)
    write_csv(
        out / "trace.csv", (_flat(row) | {"inside": row.inside, "held": row.held} for row in study.rows)
    )
    write_csv(out / "trace_held_out.csv", map(_flat, study.held_out))
    png, svg = draw(study, out)
    print(f"\nWritten to {out / 'trace.csv'}, {out / 'trace_held_out.csv'}, {png}, {svg}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("trace", __doc__ or "", run, argv, traced=True)


if __name__ == "__main__":
    sys.exit(main())
