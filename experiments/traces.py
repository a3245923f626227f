"""Does coding pay on measured times? Plan on the first half of each trace, replay the rest step by step.

Partitions from all times pooled, from whole steps, and made anew every few steps from a window of the last
ones, beside the uncoded scheme, a single block and the best fixed partition in hindsight. Without a code:
schedules, in which every finished subset counts (workers on the circle as they are numbered in the trace, in
every step), work that is shared out chunk by chunk, and shares of the data by speed. Intervals of 95 % are
those of blocks of neighbouring steps, resampled; a block is as long as what ties a step to the next asks
for. Seven minutes of CPU time for four traces.
"""

import math
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
from bcgc_jax.measured.description import Description, Interval
from bcgc_jax.measured.resampling import resampled_means
from experiments import looks
from experiments.replay import KNOWING, RULES, Replayed, Rule, replay
from experiments.report import print_table, readable, run_command, save

# The share of the steps that plans are made on.
FIRST = 0.5
_FEWEST_STEPS = 8
_SUFFIXES = (".csv", ".csv.gz")
_WIDTH = 100


class Row(NamedTuple):
    """A scheme on a trace: mean time of a step, promised and taken, in the unit of the trace.

    In percent: `saved` against uncoded, `regret` against the best fixed partition in hindsight, `late` by how
    much it took longer than promised.
    """

    trace: str
    scheme: str
    kind: str
    promised: float
    taken: Interval
    saved: Interval
    regret: Interval
    late: Interval


class Study(NamedTuple):
    """One trace: its rows, the time of each replayed step by scheme, and how intervals were made."""

    trace: str
    rows: list[Row]
    taken: dict[str, np.ndarray]
    num_planned: int
    block: int
    description: Description

    def best(self, *kinds: str) -> Row | None:
        """The row that took least, of those of some kinds."""
        rows = [row for row in self.rows if row.kind in kinds]
        return min(rows, key=lambda row: row.taken.value, default=None)


# What can be planned, by whether and how the data's gradient comes together.
UNCODED, CODE, COPIES, SCHEDULE, SHARING, SHARES = "none", "code", "copies", "schedule", "sharing", "shares"
_KINDS = {"uncoded": UNCODED, "nested": COPIES, "sharing": SHARING, "shares": SHARES}
_KINDS |= dict.fromkeys(("cyclic", "alternating", "multi_message"), SCHEDULE)


def kind_of(scheme: str) -> str:
    """Empty for those who know the future.

    >>> kind_of("multi_message:2 50/10"), kind_of("whole steps"), kind_of("shares 20/1"), kind_of("limit")
    ('schedule', 'code', 'shares', '')
    """
    if scheme in KNOWING:
        return ""
    return _KINDS.get(scheme.partition(" ")[0].partition(":")[0], CODE)


def block_length(series: np.ndarray) -> int:
    r"""Steps that a block of a circular bootstrap needs: (2 G² / D)^{1/3} S^{1/3}; `[S]`.

    G = Σ λ |k| R(k), D = 4/3 (Σ λ R(k))², R the autocovariances, λ a flat-top window as wide as twice the lag
    from which on they are noise (Politis & White 2004); at most min(3 √S, S/3), and that where they are not
    yet noise at lag √S.
    """
    size = len(series)
    centred = series - series.mean()
    covariance = np.array([centred[: size - k] @ centred[k:] for k in range(size)]) / size
    if covariance[0] <= 1e-24 * np.mean(series**2):
        return 1
    quiet = max(5, math.ceil(math.sqrt(math.log10(size))))
    widest = min(math.ceil(math.sqrt(size)) + quiet, size - 1)
    loud = np.abs(covariance[1:] / covariance[0]) >= 2 * math.sqrt(math.log10(size) / size)
    longest = math.ceil(min(3 * math.sqrt(size), size / 3))
    last = next((m for m in range(widest) if not loud[m : m + quiet].any()), None)
    if last is None:
        return longest
    width = min(2 * max(last, 1), widest)
    lag = np.arange(1, width + 1)
    weighted = 2 * np.clip(2 * (1 - lag / width), 0, 1) * covariance[1 : width + 1]
    ratio = (lag @ weighted) / (covariance[0] + weighted.sum())
    return max(math.ceil(min((1.5 * ratio**2 * size) ** (1 / 3), longest)), 1)


def compute(
    name: str, trace: bcgc.measured.Trace, seed: int = 0, *, rules: Mapping[str, Rule] = RULES
) -> Study:
    """Plans and replays of one trace; steps in which a worker has no time are left out."""
    table = trace.table()
    rows = table[np.isfinite(table).all(axis=1)]
    if len(rows) < _FEWEST_STEPS or trace.num_workers < 2:
        raise ValueError(
            f"{name} has {len(rows)} steps with a time of each of {trace.num_workers} workers: a plan and "
            f"its replay need at least {_FEWEST_STEPS} steps of 2 workers"
        )
    num_planned = round(FIRST * len(rows))
    found = replay(rows, num_planned, rules=rules, name=name)
    uncoded = found["uncoded"].taken
    block = max(block_length(series) for r in found.values() for series in (r.taken, uncoded - r.taken))
    description = bcgc.measured.describe(trace)
    intervals = _rows(name, found, block, jax.random.key(seed))
    return Study(name, intervals, {k: r.taken for k, r in found.items()}, num_planned, block, description)


def _rows(name: str, found: Mapping[str, Replayed], block: int, key: jax.Array) -> list[Row]:
    """All schemes in the same resampled steps."""
    names = list(found)
    taken = np.stack([found[k].taken for k in names], axis=1)
    promised = np.stack([found[k].promised for k in names], axis=1)
    both = jnp.asarray(np.concatenate([taken, promised], axis=1))
    drawn = np.asarray(resampled_means(key, both, block=block))
    means = np.asarray(both.mean(axis=0))

    def interval(value: Callable[[np.ndarray], Any]) -> Interval:
        low, high = np.quantile(value(drawn), [0.025, 0.975])
        return Interval(float(value(means)), float(low), float(high))

    uncoded, hindsight = names.index("uncoded"), names.index("hindsight")

    def of_scheme(i: int) -> list[Interval]:
        own, at_once = (lambda m: m[..., i]), (lambda m: m[..., i + len(names)])
        return [
            interval(own),
            interval(lambda m: 100 * (1 - own(m) / m[..., uncoded])),
            interval(lambda m: 100 * (own(m) / m[..., hindsight] - 1)),
            interval(lambda m: 100 * (own(m) / at_once(m) - 1)),
        ]

    return [
        Row(name, scheme, kind_of(scheme), float(promised[:, i].mean()), *of_scheme(i))
        for i, scheme in enumerate(names)
    ]


# The rows of the picture: what a plan is, whose colour it has, and its line below if it has one.
_SHARES = plotting.Style("", looks.COLORS[1], "p")
_SHOWN: Mapping[str, tuple[str, plotting.Style, Any]] = {
    name: (label, _SHARES if of == "shares" else plotting.style(of), line)
    for name, label, of, line in (
        ("single_block", "single block", "single_block", ""),
        ("time", r"$\mathbf{x}^{(\mathrm{t})}$ (time)", "time", ""),
        ("nested", "nested groups, no code", "nested", (0, (12, 2))),
        ("pooled", "optimal, workers alike", "optimal", "-"),
        ("whole steps", "optimal, whole steps", "optimal", ""),
        ("whole steps 20/1", "optimal, anew", "optimal", "--"),
        ("hindsight", "optimal, in hindsight", "optimal", ""),
        ("each step's best", "best code of each step", "optimal", ""),
        ("cyclic", "cyclic, no code", "cyclic", ""),
        ("multi_message", "multi-message", "multi_message", ""),
        ("multi_message 50/10", "multi-message, anew", "multi_message", "-."),
        ("sharing:5", "work sharing", "sharing", ""),
        ("shares", "shares by speed", "shares", ""),
        ("shares 20/1", "shares by speed, anew", "shares", (0, (1.5, 1.5))),
        ("limit", "limit of any scheme", "limit", ""),
    )
}


def draw(studies: Sequence[Study]) -> Any:
    """Above, what each scheme saved against uncoded; below, how that came about."""
    count = len(studies)
    figure, axes = plotting.new_figure(
        2, count, size=(2.4 + 1.8 * max(count, 2), 8.4), height_ratios=(1.3, 1)
    )
    for i, study in enumerate(studies):
        _draw_saved(axes[i], study, labelled=i == 0)
        _draw_course(axes[count + i], study, labelled=i == 0)
    handles = axes[count].get_legend_handles_labels()[0]
    title = "above: means and 95 % intervals; open: needs to know the future; anew: planned before each step"
    title += "\nfrom the last 20, multi-message every ten steps from the last 50; others: from the first half"
    plotting.legend_outside(figure, handles, place="lower", columns=3, title=title)
    return figure


def _draw_saved(axes: Any, study: Study, *, labelled: bool) -> None:
    found = {row.scheme: row.saved for row in study.rows}
    shown = [name for name in _SHOWN if name in found][::-1]
    for place, name in enumerate(shown):
        (_, look, _), saved = _SHOWN[name], found[name]
        axes.plot([saved.low, saved.high], [place] * 2, color=look.color, linewidth=1.3)
        mark = look._replace(marker="|") if look.marker == "None" else look
        axes.plot(saved.value, place, **looks.points(mark, filled=name not in KNOWING))
    axes.axvline(0, color=plotting.style("uncoded").color, linewidth=1.3)
    labels = [_SHOWN[name][0] if labelled else "" for name in shown]
    axes.set_yticks(range(len(shown)), labels)
    title = f"{readable(study.trace)}\n{len(study.taken['uncoded'])} steps replayed"
    plotting.label_axes(axes, "time saved (%)", "", title=title)


def _draw_course(axes: Any, study: Study, *, labelled: bool) -> None:
    reference = np.cumsum(study.taken["uncoded"])
    step = study.num_planned + 1 + np.arange(reference.size)
    for name in (name for name, (_, _, line) in _SHOWN.items() if line and name in study.taken):
        label, look, line = _SHOWN[name]
        saved, drawn = (
            100 * (1 - np.cumsum(study.taken[name]) / reference),
            look._replace(line=line, width=1.5),
        )
        axes.plot(step, saved, **plotting.curve(drawn) | {"marker": "", "label": label})
    look = plotting.style("uncoded")
    axes.axhline(0, color=look.color, linewidth=1.3, label=look.label)
    y = "time saved so far\nagainst uncoded (%)" if labelled else ""
    plotting.label_axes(axes, "step of the trace", y)


def _percent(x: Interval) -> str:
    return f"{x.value:.1f} ({x.low:.1f} … {x.high:.1f})"


def show(studies: Sequence[Study]) -> None:
    lines: list[list[object]] = []
    for study in studies:
        lines.append([f"{study.trace}:", *[""] * 5])
        for row in study.rows:
            name = f"  {row.scheme}{'*' * (row.scheme in KNOWING)}"
            percents = _percent(row.saved), _percent(row.regret)
            lines.append([name, row.kind, row.promised, row.taken.value, *percents])
    print_table(
        "Time of a step, promised and taken; saved against uncoded, regret against hindsight, % (95 %)",
        ["scheme", "kind", "promised", "taken", "saved", "regret"],
        lines,
    )
    print(
        "\n50/10: made anew every 10 steps from the last 50 (fewer where the first half is shorter);\n"
        "others once, from the first half. Schedules: no code, every finished subset counts; all subsets\n"
        "stored, or two (:2); multi_message pooled is for workers that are alike, the other for steps.\n"
        "They ask once a block, sharing for every chunk; what questions take is left out. Shares: uneven\n"
        "ones of the data, by speed, no code.\n"
        "* Needs to know the future; hindsight is the best fixed partition.\n"
        "Below, the largest saving is that of the best of several plans, chosen afterwards; a block is the\n"
        "steps that are resampled together."
    )
    named = [(readable(study.trace).replace("\n", ", "), study) for study in studies]
    lines = []
    for name, study in named:
        about, steps = study.description, f"{study.num_planned}+{len(study.taken['uncoded'])}"
        shares = [f"{100 * max(x.value, 0):.0f} %" for x in (about.between_workers, about.between_steps)]
        lines.append([name, steps, study.block, *shares, f"{about.autocorrelation.value:.2f}"])
    print_table(
        "Variance between workers and common to a step, correlation to the next",
        ["trace", "steps", "block", "workers", "common", "next"],
        lines,
    )
    lines = []
    for name, study in named:
        lines.append([f"{name}:", "", ""])
        best = filter(None, map(study.best, (CODE, COPIES, SCHEDULE, SHARING, SHARES)))
        lines += [["  " + row.kind, row.scheme, _percent(row.saved)] for row in best]
    print_table("Largest saving of each kind, %", ["kind", "scheme", "saved"], lines)
    print()
    for study in studies:
        print(textwrap.fill(verdict(study), _WIDTH, subsequent_indent="    "))


def verdict(study: Study) -> str:
    """The best that could be planned, and the best schedule and code, and what is not beyond doubt."""
    best = study.best(UNCODED, CODE, COPIES, SCHEDULE, SHARING, SHARES)
    assert best is not None
    if best.saved.low <= 0:
        return f"{study.trace}: uncoded; nothing that could be planned is faster beyond doubt"
    line = f"{study.trace}: {best.scheme}, {best.saved.value:.1f} % less time than uncoded"
    for what, kind in (("with a schedule", SCHEDULE), ("with copies", COPIES), ("with a code", CODE)):
        row = study.best(kind)
        if row is not None and row is not best:
            doubt = "" if row.saved.low > 0 else ", not beyond doubt"
            line += f"; {what} {row.scheme}, {row.saved.value:.1f} %{doubt}"
    return line.replace(" %", "\u00a0%")  # no line starts with the sign


def _flat(row: Row) -> dict[str, Any]:
    """A column for each number."""
    flat: dict[str, Any] = {}
    for name, value in row._asdict().items():
        if isinstance(value, Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = value
    return flat


def files_of(path: Path) -> list[Path]:
    """A file itself, or those of a folder that may be traces; ValueError where there is none."""
    inside = path.iterdir() if path.is_dir() else []
    found = [path] if path.is_file() else sorted(file for file in inside if file.name.endswith(_SUFFIXES))
    if not found:
        raise ValueError(
            f"{path} has no CSV files: give a folder of traces, or one of them, with --traces PATH; one that "
            "comes along is experiments/data/steps.csv"
        )
    return found


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    measured = [(file.name.split(".")[0], bcgc.measured.load_trace(file)) for file in files_of(traces)]
    studies = [compute(name, trace, seed) for name, trace in measured]
    show(studies)
    save(out, {"traces": [_flat(row) for study in studies for row in study.rows]}, {"traces": draw(studies)})


if __name__ == "__main__":
    sys.exit(run_command(run))
