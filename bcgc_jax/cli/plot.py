"""`bcgc plot` and `--figure FILE`: plans, sweeps, measured times, trainings."""

import contextlib
import csv
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.cli.arguments import refuse_without_effect
from bcgc_jax.cli.commands import CHOICES, PlotOptions
from bcgc_jax.cli.logs import say_unusual
from bcgc_jax.cli.output import Row, saved_in_words, write_picture
from bcgc_jax.measured.traces import load_trace
from bcgc_jax.plans.plan import Plan
from bcgc_jax.solution import Solution
from bcgc_jax.sweeps import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "expected_runtime": plotting.RUNTIME_LABEL,
    "relative_gap": "proven gap to the optimum",
    "completion_probability": "probability of being in time",
    "num_workers": "number of workers $N$",
    "loss": "training loss",
    "time": "wall clock (s)",
    "saved": "share of uncoded time that is saved",
}


# Letters of a title that fit an inch of a figure's width.
_LETTERS = 12
# Ticks of an axis of a heat map, at values of the sweep.
_MOST_TICKS = 5


def answer(question: PlotOptions) -> None:
    figure = _of_file(question)
    write_picture(question, question.picture, lambda: figure)


def _of_file(question: PlotOptions) -> "Figure":
    """What it is, its columns say."""
    path = question.file
    log = path.suffix == ".jsonl"
    if path.suffix == ".json":
        loaded = Solution.load(path)
        scheme = drawn(loaded.method, float(loaded.rounded_runtime), loaded.plan)
        return plans([scheme], "the plan's unit")
    rows: list[Row] = []
    with contextlib.suppress(ValueError, csv.Error):  # it is packed, or no table
        if log:
            rows = read_log(path)
        else:
            rows = list(read(path))
    if not rows or "method" not in rows[0]:
        return _of_times(path, question.unit)
    refuse_without_effect("but on measured times", "unit")
    rows = _selected(rows, question)
    if log:
        return training(rows, question.value or "loss")
    return of_rows(rows, question.value or "expected_runtime", question.x, question.y)


def _of_times(path: Path, unit: str | None) -> "Figure":
    refuse_without_effect("on measured times", *CHOICES)
    try:
        trace = load_trace(path, unit=unit or "s")
    except ValueError as error:
        raise click.UsageError(
            f"{path} cannot be drawn: it is no table of `bcgc sweep` or `bcgc solve`, "
            "no plan in JSON, and no log of times. `bcgc fit` and `bcgc advise` draw "
            f"with --figure. As a log: {str(error).partition('. ')[0]}"
        ) from None
    if unit is None:
        say_unusual(trace)
    times = trace.largest_loads()
    return fits(times.seconds, times.censored, [])


def read(path: Path) -> Iterator[Row]:
    """Read the rows of a table, numbers as numbers, None for what is empty."""
    for row in read_rows(path):
        yield {name: _number(value) for name, value in row.items()}


def read_log(path: Path) -> list[Row]:
    """What `json_lines` wrote of a training's steps, with the time each ended."""
    rows = []
    end = 0.0
    for text in path.read_text("utf-8").splitlines():
        line = json.loads(text)
        if (
            not isinstance(line, dict)
            or not {"scheme", "step", "seconds"} <= line.keys()
        ):
            return []
        end += line["seconds"]
        rows.append({"method": line["scheme"], "time": end} | line)
    return rows


def _number(value: Any) -> Any:
    """What stands in a CSV file, which has no types."""
    try:
        if value:
            return float(value)
        return None
    except (TypeError, ValueError):
        return value


def _selected(rows: Sequence[Row], question: PlotOptions) -> list[Row]:
    """The rows of the methods, and of the numbers, that were asked for."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if unknown := set(question.methods).difference(methods):
        raise click.UsageError(
            f"--method {unknown.pop()}: the file has {', '.join(methods)}"
        )
    chosen = [row for row in rows if row["method"] in (question.methods or methods)]
    for name, number in question.where:
        check_numbers(chosen, name)
        values = np.array([row[name] for row in chosen], float)
        near = values[np.argmin(np.abs(values - number))]
        if not np.isclose(near, number, rtol=1e-3):
            where = f"--where {name}={number:g}"
            raise click.UsageError(f"{where}: no such row; the nearest has {near:g}")
        chosen = [
            row for row, value in zip(chosen, values, strict=True) if value == near
        ]
    return chosen


def _look(method: str) -> dict[str, Any]:
    """Keywords of a method's curve; options, as the 5 of nested:5, mark it too."""
    look = plotting.curve(plotting.style(method))
    if options := method.partition(":")[2]:
        look |= {
            "marker": f"${options}$",
            "markersize": 8,
            "markevery": 0.1,
            "linewidth": 0.8,
        }
    return look


class Drawn(NamedTuple):
    """A scheme: expected `runtime`, sizes of blocks, how many workers compute each
    subset.

    `saved`: its share of the uncoded scheme's time.
    """

    method: str
    runtime: float
    sizes: np.ndarray
    copies: np.ndarray
    saved: float | None = None


def drawn(
    method: str, runtime: float, plan: Plan | None, saved: float | None = None
) -> Drawn:
    """Describe a plan; it has no blocks where nobody plans who does what, or subsets
    are cut.

    >>> from bcgc_jax.plans.plan import partition_plan
    >>> drawn(
    ...     "optimal", 5.0, partition_plan(np.array([3.0, 0.0, 2.0]), 3)
    ... ).copies.tolist()
    [1.0, 3.0]
    """
    cut = plan is not None and np.any(np.asarray(plan.share) < 1)
    rule = None if plan is None else plan.completion
    if plan is None or rule is None or rule.handed_out or cut:
        return without_blocks(method, runtime, saved)
    sizes, block, data = (
        np.asarray(a, float) for a in (plan.sizes, plan.block, plan.data)
    )
    # Workers in groups of unlike sizes have unlike data.
    data = data if data.ndim == 1 else data.mean(axis=0)
    copies = np.bincount(block[block >= 0].astype(int), data[block >= 0], sizes.size)
    # No padded levels.
    return Drawn(method, runtime, sizes[sizes > 0], copies[sizes > 0], saved)


def without_blocks(method: str, runtime: float, saved: float | None) -> Drawn:
    empty = np.zeros(0)
    return Drawn(method, runtime, sizes=empty, copies=empty, saved=saved)


def plans(
    schemes: Sequence[Drawn], unit: str = "cycles × unit of cycle time"
) -> "Figure":
    """Left the runtime of each scheme, and what it saves; right its blocks, darker on
    more workers.

    Schemes without a finite runtime are left out; UsageError where there is no other.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    schemes = [scheme for scheme in schemes if np.isfinite(scheme.runtime)]
    if not schemes:
        raise click.UsageError("no scheme has a finite expected runtime")
    figure, (left, right) = plotting.new_figure(
        1, 2, size=(9.2, 1.6 + 0.32 * len(schemes)), sharey=True, width_ratios=(1, 1)
    )
    shades = ListedColormap(colormaps["Blues"](np.linspace(0.1, 1, 256)))
    norm = Normalize(1, max(scheme.copies.max(initial=2) for scheme in schemes))
    _bars(left, schemes)
    for place, scheme in enumerate(schemes):
        if not scheme.sizes.size:
            right.text(0.01, place, "no fixed blocks", va="center", fontsize=8)
            continue
        share = scheme.sizes / scheme.sizes.sum()
        colors = shades(norm(scheme.copies))
        look: Any = {
            "color": colors,
            "edgecolor": "0.4",
            "linewidth": 0.3,
            "height": 0.7,
        }
        right.barh([place] * share.size, share, left=np.cumsum(share) - share, **look)
    right.grid(False, axis="y")
    with_savings = any(scheme.saved is not None for scheme in schemes)
    title = "runtime"
    if with_savings:
        title = "runtime,  share saved"
    plotting.label_axes(left, f"expected runtime\n({unit})", "", title=title)
    plotting.label_axes(
        right, "share of the gradient", "", title="blocks, darker on more workers"
    )
    right.set_xlim(0, 1)
    ticks = MaxNLocator(4, integer=True)
    bar = figure.colorbar(ScalarMappable(norm, shades), ax=right, ticks=ticks)
    bar.set_label("workers on\neach subset")
    return figure


def _bars(axes: "Axes", schemes: Sequence[Drawn], form: str = ".4g") -> None:
    """The first on top; numbers beside the bars."""
    for place, scheme in enumerate(schemes):
        axes.barh(
            place, scheme.runtime, color=_look(scheme.method)["color"], height=0.7
        )
        text = f"{scheme.runtime:{form}}"
        if scheme.saved is not None:
            text += f",  {saved_in_words(scheme.saved)}"
        look: Any = {"va": "center", "fontsize": 8, "textcoords": "offset points"}
        axes.annotate(text, (max(scheme.runtime, 0), place), (4, 0), **look)
    axes.set_yticks(
        range(len(schemes)), [_look(scheme.method)["label"] for scheme in schemes]
    )
    axes.invert_yaxis()
    axes.margins(x=1.0)
    axes.grid(False, axis="y")


def bars(rows: Sequence[Row], value: str) -> "Figure":
    """Draw the methods of one problem, a bar for each."""
    rows = [row for row in rows if row[value] is not None]
    if not rows:
        raise click.UsageError(f"the column {value} is empty")
    figure, (axes,) = plotting.new_figure(size=(6.8, 1.2 + 0.32 * len(rows)))
    of_runtime = value == "expected_runtime"
    schemes = [
        without_blocks(
            row["method"], row[value], row.get("saved") if of_runtime else None
        )
        for row in rows
    ]
    _bars(axes, schemes)
    with_savings = any(scheme.saved is not None for scheme in schemes)
    title = ""
    if with_savings:
        title = "runtime,  share of uncoded time that is saved"
    plotting.label_axes(axes, LABELS.get(value, value), "", title=title)
    return figure


def of_rows(
    rows: Sequence[Row],
    value: str = "expected_runtime",
    x: str | None = None,
    y: str | None = None,
) -> "Figure":
    """Draw a sweep: bars for one problem, curves over one number that varies, heat maps
    over two.

    UsageError where the rows have no such column, and where more numbers vary.
    """
    # What was found comes after.
    problem = list(rows[0])[: list(rows[0]).index("method")]
    varied = [name for name in problem if len({row[name] for row in rows}) > 1]
    axes = [name for name in (x, y) if name] or varied[:2]
    for name in (*axes, value):
        check_numbers(rows, name)
    if not axes:
        return bars(rows, value)
    if other_columns := [name for name in varied if name not in axes]:
        raise click.UsageError(
            f"these columns vary: {', '.join(varied)}; choose axes with --x and --y, "
            f"and one value of {', '.join(other_columns)} with --where"
        )
    if len(axes) == 1:
        figure = curves(rows, axes[0], value)
    else:
        figure = heat_maps(rows, axes[0], axes[1], value)
    fixed = [name for name in problem if name not in axes]
    space = "\N{NO-BREAK SPACE}"  # lines of the title end behind a comma
    setting = ", ".join(
        f"{name}{space}={space}{rows[0][name]}".removesuffix(".0") for name in fixed
    )
    letters = int(_LETTERS * figure.get_figwidth())
    title = textwrap.fill(f"schemes compared at {setting}", letters)
    figure.suptitle(title, fontsize="medium", x=0.02, ha="left")
    return figure


def check_numbers(rows: Sequence[Row], name: str) -> None:
    """Raise UsageError where there is no such column, or one of words."""
    if name not in rows[0]:
        raise click.UsageError(f"there is no column {name}, only {', '.join(rows[0])}")
    if words := [row[name] for row in rows if isinstance(row[name], str)]:
        raise click.UsageError(f"the column {name} holds no numbers, but {words[0]!r}")


def curves(rows: Sequence[Row], x: str, y: str, title: str = "") -> "Figure":
    figure, (axes,) = plotting.new_figure()
    with_value = [row for row in rows if row[y] is not None]
    for method in dict.fromkeys(row["method"] for row in rows):
        pairs = sorted(
            (row[x], row[y]) for row in with_value if row["method"] == method
        )
        axes.plot(*np.array(pairs).T, **_look(method))
    plotting.label_axes(
        axes, LABELS.get(x, x), LABELS.get(y, y), title=title, log=_log(rows, x, y)
    )
    if axes.get_xscale() == "linear":
        axes.locator_params("x", integer=x == "num_workers")
    plotting.legend_outside(figure, axes.lines)
    return figure


def _log(rows: Sequence[Row], *columns: str) -> str:
    """Name the logarithmic axes: positive numbers over more than 1.5 decades."""
    log = ""
    for axis, column in zip("xy", columns, strict=True):
        values = [float(row[column]) for row in rows if row[column] is not None]
        if values and min(values) > 0 and max(values) > 30 * min(values):
            log += axis
    return log


def heat_maps(rows: Sequence[Row], x: str, y: str, value: str) -> "Figure":
    """`value` over `x` and `y`, a panel for each method, on one scale."""
    from matplotlib.colors import LogNorm, Normalize

    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = plotting.new_figure(
        1, len(methods), size=(1.8 + 2.9 * len(methods), 3.4), sharey=True
    )
    across, up = (np.unique([row[name] for row in rows]) for name in (x, y))
    value_at = {(row["method"], row[y], row[x]): row[value] for row in rows}
    log = _log(rows, x, y)
    edges = [
        plotting.edges(ticks, log=axis in log)
        for axis, ticks in (("x", across), ("y", up))
    ]
    values = np.array(
        [[[value_at.get((m, v, u)) for u in across] for v in up] for m in methods],
        float,
    )
    low = np.nanmin(values)
    high = np.nanmax(values)
    norm = LogNorm(low, high) if 0 < low < high / 30 else Normalize(low, high)
    for axes, method, numbers in zip(panels, methods, values, strict=True):
        axes.grid(False)
        image = axes.pcolormesh(*edges, numbers, cmap="cividis", norm=norm)
        above = LABELS.get(y, y) if axes is panels[0] else ""
        title = _look(method)["label"]
        plotting.label_axes(axes, LABELS.get(x, x), above, title=title, log=log)
        for axis, ticks in ((axes.xaxis, across), (axes.yaxis, up)):
            labelled = ticks[:: -(-ticks.size // _MOST_TICKS)]
            words = [f"{tick:.3g}" for tick in labelled]
            axis.set_ticks(labelled, labels=words, fontsize="small")
            axis.set_ticks([], minor=True)
    figure.colorbar(image, ax=panels, label=LABELS.get(value, value))
    return figure


def fits(
    seconds: np.ndarray, censored: np.ndarray | None, laws: Sequence[tuple[str, Any]]
) -> "Figure":
    """Draw P(T > t) of measured times (Kaplan and Meier), and of the four best fits."""
    figure, (axes,) = plotting.new_figure()
    order = np.argsort(seconds, axis=None)
    times = np.ravel(seconds)[order]
    whole = np.ones(order.size)
    if censored is not None:
        whole = 1.0 - np.ravel(censored)[order]
    measured = np.cumprod(1 - whole / np.arange(order.size, 0, -1))
    handles = axes.step(
        times, measured, where="post", color="0.6", linewidth=3, label="measured"
    )
    space = np.geomspace if times[0] > 0 else np.linspace
    grid = space(times[0], times[-1], 200)
    for (name, law), line in zip(laws, ("-", "--", "-.", ":"), strict=False):
        handles += axes.plot(grid, np.asarray(law.survival(grid)), line, label=name)
    log = "y" if times[0] <= 0 or times[-1] < 30 * times[0] else "xy"
    plotting.label_axes(
        axes,
        "cycle time $t$ (s)",
        "$P(T > t)$",
        title="share of times above $t$",
        log=log,
    )
    axes.set_ylim(0.3 / times.size, 1.3)
    plotting.legend_outside(figure, handles)
    return figure


def training(rows: Sequence[Row], value: str) -> "Figure":
    """Draw a column of every step of a training, a curve for each scheme."""
    check_numbers(rows, value)
    return curves(rows, "time", value, "the training, scheme by scheme")
