"""The pictures of `--figure FILE`: plans, sweeps, and measured times."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.cli.output import Row, saved_in_words
from bcgc_jax.plans.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"num_workers": "number of workers $N$"}
# Letters of a title that fit an inch of a figure's width.
_LETTERS = 12
# Ticks of an axis of a heat map, at values of the sweep.
_MOST_TICKS = 5


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


def varied_numbers(problems: Mapping[str, Iterable[Any]]) -> list[str]:
    """Return the names of the numbers of the problems that vary.

    UsageError for more than two, which no picture shows.
    """
    varied = [name for name, values in problems.items() if len(set(values)) > 1]
    if len(varied) > 2:
        raise click.UsageError(
            "--figure draws over at most two numbers that vary, but these vary: "
            f"{', '.join(varied)}"
        )
    return varied


def of_sweep(rows: Sequence[Row]) -> "Figure":
    """Draw a sweep: bars for one problem, curves over one number that varies, heat maps
    over two.
    """
    # The answer's columns come after those of the problem.
    problem = list(rows[0])[: list(rows[0]).index("method")]
    axes = varied_numbers({name: [row[name] for row in rows] for name in problem})
    if not axes:
        return _bars_of_problem(rows)
    if len(axes) == 1:
        figure = curves(rows, axes[0])
    else:
        figure = heat_maps(rows, *axes)
    fixed = [name for name in problem if name not in axes]
    space = "\N{NO-BREAK SPACE}"  # lines of the title end behind a comma
    setting = ", ".join(
        f"{name}{space}={space}{rows[0][name]}".removesuffix(".0") for name in fixed
    )
    letters = int(_LETTERS * figure.get_figwidth())
    title = textwrap.fill(f"schemes compared at {setting}", letters)
    figure.suptitle(title, fontsize="medium", x=0.02, ha="left")
    return figure


def _bars_of_problem(rows: Sequence[Row]) -> "Figure":
    """Draw the methods of one problem, a bar for each."""
    rows = [row for row in rows if row["expected_runtime"] is not None]
    if not rows:
        raise click.UsageError("no scheme has a finite expected runtime")
    figure, (axes,) = plotting.new_figure(size=(6.8, 1.2 + 0.32 * len(rows)))
    schemes = [
        without_blocks(row["method"], row["expected_runtime"], row.get("saved"))
        for row in rows
    ]
    _bars(axes, schemes)
    with_savings = any(scheme.saved is not None for scheme in schemes)
    title = ""
    if with_savings:
        title = "runtime,  share of uncoded time that is saved"
    plotting.label_axes(axes, plotting.RUNTIME_LABEL, "", title=title)
    return figure


def curves(rows: Sequence[Row], x: str) -> "Figure":
    y = "expected_runtime"
    figure, (axes,) = plotting.new_figure()
    with_value = [row for row in rows if row[y] is not None]
    for method in dict.fromkeys(row["method"] for row in rows):
        pairs = sorted(
            (row[x], row[y]) for row in with_value if row["method"] == method
        )
        axes.plot(*np.array(pairs).T, **_look(method))
    plotting.label_axes(
        axes, LABELS.get(x, x), plotting.RUNTIME_LABEL, log=_log(rows, x, y)
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


def heat_maps(rows: Sequence[Row], x: str, y: str) -> "Figure":
    """Expected runtimes over `x` and `y`, a panel for each method, on one scale."""
    from matplotlib.colors import LogNorm, Normalize

    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = plotting.new_figure(
        1, len(methods), size=(1.8 + 2.9 * len(methods), 3.4), sharey=True
    )
    across, up = (np.unique([row[name] for row in rows]) for name in (x, y))
    value_at = {
        (row["method"], row[y], row[x]): row["expected_runtime"] for row in rows
    }
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
    figure.colorbar(image, ax=panels, label=plotting.RUNTIME_LABEL)
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
