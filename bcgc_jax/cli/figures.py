"""What `--figure FILE` and `bcgc plot` draw: plans, sweeps, fitted distributions, trainings."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.cli.output import Row
from bcgc_jax.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LABELS = {
    "expected_runtime": plotting.RUNTIME_LABEL,
    "relative_gap": "proven gap to the optimum",
    "completion_probability": "probability of being in time",
    "num_workers": "number of workers $N$",
    "loss": "training loss",
    "accuracy": "test accuracy",
}


# Columns of a sweep's file that say what was found, not for which problem.
_FOUND = (
    *("law", "method", "status", "expected_runtime", "runtime_error", "lower_bound", "relative_gap"),
    *("num_steps", "stored_subsets", "sent", "round_trips", "exact_gradient", "partition"),
    *("completion_probability", "partition_runtime"),
)


class Drawn(NamedTuple):
    """A scheme's expected `runtime`, and of each block its size and how many workers compute each subset."""

    method: str
    runtime: float
    sizes: np.ndarray
    copies: np.ndarray


def drawn(row: Row) -> Drawn:
    """Of a row of `bcgc solve --format json`.

    >>> row = {"method": "optimal", "partition_runtime": 5.0, "partition": [3, 0, 2], "schedule": None}
    >>> drawn(row).copies.tolist()
    [1.0, 2.0, 3.0]
    """
    runtime = row["partition_runtime"] or row["expected_runtime"] or np.nan
    sizes: np.ndarray = np.zeros(0)
    copies: np.ndarray = np.zeros(0)
    if row["partition"] is not None:
        sizes = np.asarray(row["partition"], float)
        copies = np.arange(1.0, sizes.size + 1)
    elif row["schedule"]:
        sizes = np.asarray(row["schedule"]["sizes"], float)
        if "groups" in row["schedule"]:
            copies = np.array(
                [np.mean([len(group) for group in groups]) for groups in row["schedule"]["groups"]]
            )
        else:
            copies = np.bincount([block for _, block in row["schedule"]["tasks"]], minlength=sizes.size) * 1.0
    return Drawn(row["method"], runtime, sizes, copies)


def of_solution(solution: Solution) -> Drawn:
    """Of a plan's file."""
    plan = solution.plan
    if plan is None:
        raise click.UsageError("this file has no plan")
    sizes, block, data = (np.asarray(a, float) for a in (plan.sizes, plan.block, plan.data))
    data = data if data.ndim == 1 else data.mean(axis=0)  # of workers in groups of unlike sizes
    tasks = block[block >= 0].astype(int)
    copies = np.bincount(tasks, data[block >= 0], sizes.size)
    # Levels beyond N are padding.
    return Drawn(solution.method, float(solution.rounded_runtime), sizes[sizes > 0], copies[sizes > 0])


def plans(schemes: Sequence[Drawn], unit: str = "cycles × unit of cycle time") -> "Figure":
    """Left the runtime of each scheme; right its blocks, darker where more workers compute the same.

    Schemes without a finite runtime are left out; UsageError where there is no other.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    schemes = [one for one in schemes if np.isfinite(one.runtime)]
    if not schemes:
        raise click.UsageError("no scheme has a finite expected runtime")
    figure, (left, right) = plotting.new_figure(
        1, 2, size=(8.6, 1.6 + 0.32 * len(schemes)), sharey=True, width_ratios=(2, 3)
    )
    shades, norm = colormaps["Blues"], Normalize(0, max(one.copies.max(initial=1) for one in schemes))
    power = math.floor(math.log10(max(one.runtime for one in schemes)))
    power = power if not -2 <= power <= 3 else 0  # such numbers are read as they are
    factor = f"$10^{{{power}}}$ " if power else ""
    for place, one in enumerate(schemes):
        left.barh(place, one.runtime / 10.0**power, color=plotting.style(one.method).color, height=0.7)
        share, start = one.sizes / max(one.sizes.sum(), 1e-300), 0.0
        for size, copies in zip(share, one.copies, strict=True):
            right.barh(
                place,
                size,
                left=start,
                color=shades(norm(copies)),
                edgecolor="0.4",
                linewidth=0.3,
                height=0.7,
            )
            start += size
        if not one.sizes.size:
            right.text(0.01, place, "no fixed blocks", va="center", fontsize=8)
    left.set_yticks(range(len(schemes)), [plotting.style(one.method).label for one in schemes])
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(False, axis="y")
    plotting.label_axes(left, f"expected runtime\n({factor}{unit})", "")
    plotting.label_axes(right, "share of the gradient, in the order of computation", "")
    right.set_xlim(0, 1)
    bar = figure.colorbar(ScalarMappable(norm, shades), ax=right, ticks=MaxNLocator(4, integer=True))
    bar.set_label("workers on\neach subset")
    return figure


def of_rows(
    rows: Sequence[Row], value: str = "expected_runtime", x: str | None = None, y: str | None = None
) -> "Figure":
    """Of a sweep: curves over one number that varies, heat maps over two.

    UsageError where the rows have no such column, and where more numbers vary.
    """
    varied = [name for name in rows[0] if name not in _FOUND and len({row[name] for row in rows}) > 1]
    axes = [name for name in (x, y) if name] or varied[:2]
    for name in (*axes, value):
        if name not in rows[0]:
            raise click.UsageError(f"there is no column {name}, only {', '.join(rows[0])}")
        check_numbers(rows, name)
    if not axes:
        raise click.UsageError("all rows are of one problem: there is nothing to draw a curve over")
    if others := [name for name in varied if name not in axes]:
        raise click.UsageError(
            f"these columns vary: {', '.join(varied)}; choose one or two of them with --x and --y, and one "
            f"value of {', '.join(others)} with --where"
        )
    return curves(rows, axes[0], value) if len(axes) == 1 else heat_maps(rows, axes[0], axes[1], value)


def check_numbers(rows: Sequence[Row], name: str) -> None:
    """UsageError for a column of words."""
    if words := [row[name] for row in rows if isinstance(row[name], str)]:
        raise click.UsageError(f"the column {name} holds no numbers, but {words[0]!r}")


def curves(rows: Sequence[Row], x: str, y: str) -> "Figure":
    """`y` against `x`, a curve for each method."""
    figure, (axes,) = plotting.new_figure()
    handles = []
    for method in dict.fromkeys(row["method"] for row in rows):
        pairs = sorted((row[x], row[y]) for row in rows if row["method"] == method and row[y] is not None)
        handles += axes.plot(*np.array(pairs).T, **plotting.curve(method))
    plotting.label_axes(axes, LABELS.get(x, x), LABELS.get(y, y), log=_log(rows, x, y))
    plotting.legend_outside(figure, handles)
    return figure


def _log(rows: Sequence[Row], *columns: str) -> str:
    """Which axes are logarithmic: of positive numbers over more than a decade and a half."""
    spans = [np.array([row[column] for row in rows if row[column] is not None], float) for column in columns]
    return "".join(
        name for name, a in zip("xy", spans, strict=True) if a.size and a.min() > 0 and a.max() > 30 * a.min()
    )


def heat_maps(rows: Sequence[Row], x: str, y: str, value: str) -> "Figure":
    """`value` over `x` and `y`, a panel for each method, on one scale."""
    from matplotlib.colors import LogNorm, Normalize

    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = plotting.new_figure(1, len(methods), size=(1.8 + 2.9 * len(methods), 3.4), sharey=True)
    across, up = (np.unique([row[name] for row in rows]) for name in (x, y))
    found = np.full((len(methods), up.size, across.size), np.nan)
    for row in rows:
        at = methods.index(row["method"]), np.searchsorted(up, row[y]), np.searchsorted(across, row[x])
        found[at] = np.nan if row[value] is None else row[value]
    low, high = np.nanmin(found), np.nanmax(found)
    norm = LogNorm(low, high) if 0 < low < high / 30 else Normalize(low, high)
    for axes, method, numbers in zip(panels, methods, found, strict=True):
        axes.grid(False)
        image = axes.imshow(numbers, cmap="cividis", norm=norm, origin="lower", aspect="auto")
        _tick(axes.xaxis, across, most=4)
        _tick(axes.yaxis, up, most=8)
        above = LABELS.get(y, y) if axes is panels[0] else ""
        plotting.label_axes(axes, LABELS.get(x, x), above, title=plotting.style(method).label)
    figure.colorbar(image, ax=panels, label=LABELS.get(value, value))
    return figure


def _tick(axis: "Axis", values: np.ndarray, most: int) -> None:
    """Every cell's value, or every second, third, …, at the middles of their cells."""
    places = np.arange(0, values.size, math.ceil(values.size / most))
    axis.set_ticks(places, [f"{values[place]:.2g}" for place in places])


def fits(seconds: np.ndarray, censored: np.ndarray | None, laws: Sequence[tuple[str, Any]]) -> "Figure":
    """P(T > t) of measured times (Kaplan and Meier), and of the four distributions that fit best."""
    import jax.numpy as jnp

    figure, (axes,) = plotting.new_figure()
    order = np.argsort(seconds, axis=None)
    times, whole = np.ravel(seconds)[order], np.ones(order.size)
    if censored is not None:
        whole = 1.0 - np.ravel(censored)[order]
    measured = np.cumprod(1 - whole / np.arange(order.size, 0, -1))
    handles = axes.step(times, measured, where="post", color="0.6", linewidth=3, label="measured")
    grid = np.geomspace(times[0], times[-1], 200) if times[0] > 0 else np.linspace(times[0], times[-1], 200)
    for (name, law), line in zip(laws, ("-", "--", "-.", ":"), strict=False):
        handles += axes.plot(grid, np.asarray(law.survival(jnp.asarray(grid))), line, label=name)
    log = "y" if times[0] <= 0 or times[-1] < 30 * times[0] else "xy"
    plotting.label_axes(axes, "cycle time $t$ (s)", "$P(T > t)$", log=log)
    axes.set_ylim(0.3 / times.size, 1.3)
    plotting.legend_outside(figure, handles)
    return figure


def training(rows: Sequence[Row], value: str = "loss", clock: str = "time (in the file's unit)") -> "Figure":
    """Of every iteration of some runs: a curve for each scheme, medians over its seeds."""
    seeds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        seeds.setdefault((row["method"], row["iteration"]), []).append((row["time"], row[value]))
    found = []
    for (method, _), each in seeds.items():
        time, middle = np.median(each, axis=0)
        found.append({"method": method, clock: time, value: middle})
    return curves(found, clock, value)
