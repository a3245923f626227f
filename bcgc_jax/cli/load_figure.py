"""The picture of times of several loads: how they grow with the load, and whether the tails agree at each."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bcgc_jax.measured.start_up import StartUpFit
from bcgc_jax.measured.traces import Trace
from bcgc_jax.plotting import label_axes, legend_outside, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")
# Draws behind the model's quantiles, points of a cloud, loads at which the survival is drawn.
_DRAWS, _POINTS, _LOADS = 40_000, 3_000, 5


def draw_loads(
    trace: Trace, fit: StartUpFit, *, unit: str = "seconds", load_unit: str = "cycles"
) -> "Figure":
    """Times against loads with the fitted mean and quantiles, and the survival P(time > t) at each load.

    The dashed line is time that all grows with the load: through the origin, and the mean at the mean load.
    """
    from matplotlib.lines import Line2D

    assert trace.load is not None
    rng, load = np.random.default_rng(0), trace.load
    start, cycle = _draws(rng, fit)
    figure, axes = new_figure(1, 2, size=(9.2, 4.4))
    some = rng.permutation(load.size)[:_POINTS]
    # Loads that are few are spread a little, so that their times do not hide each other.
    few = np.unique(load).size <= 20
    spread = 1 + (0.03 * (rng.random(some.size) - 0.5) if few else 0)
    axes[0].plot(load[some] * spread, trace.seconds[some], ".", color="0.55", markersize=3, alpha=0.6)
    grid = np.linspace(0, 1.06 * load.max(), 60)
    quantiles = np.array([np.quantile(start + y * cycle, [0.05, 0.5, 0.95]) for y in grid])
    blue, red = _COLORS[0], _COLORS[1]
    axes[0].fill_between(grid, quantiles[:, 0], quantiles[:, 2], color=blue, alpha=0.15, linewidth=0)
    axes[0].plot(grid, fit.means[0] + fit.means[1] * grid, color=blue, linewidth=1.8)
    middle = fit.loads[1]
    rate = (fit.means[0] + fit.means[1] * middle) / middle
    axes[0].plot(grid, rate * grid, color=red, linestyle=(0, (6, 2)), linewidth=1.5)
    axes[0].plot([0], [fit.means[0]], "D", color=blue, markersize=6, clip_on=False, zorder=5)
    axes[0].set_xlim(0, grid[-1])
    axes[0].set_ylim(0, 1.1 * np.quantile(trace.seconds, 0.995))
    label_axes(axes[0], f"load ({load_unit})", f"time ({unit})", title="time against load")
    handles = [
        Line2D([], [], color="0.55", marker=".", linestyle="none", label="measured"),
        Line2D([], [], color=blue, linewidth=1.8, label="S + T · load, mean; 5 to 95 % shaded"),
        Line2D([], [], color=blue, marker="D", linestyle="none", label="mean start-up"),
        Line2D([], [], color=red, linestyle=(0, (6, 2)), label="T · load alone, mean"),
    ]
    handles += _survival(axes[1], trace, start, cycle)
    label_axes(axes[1], f"time t ({unit})", "P(time > t)", title="survival at each load", log="xy")
    legend_outside(figure, handles, place="lower", columns=3)
    return figure


def _draws(rng: np.random.Generator, fit: StartUpFit) -> tuple[np.ndarray, np.ndarray]:
    if fit.dependent and fit.pairs is not None:
        chosen = fit.pairs[rng.integers(len(fit.pairs), size=_DRAWS)]
        return chosen[:, 0], chosen[:, 1]
    hazards = rng.exponential(size=(2, _DRAWS))
    cycle = np.asarray(fit.cycle_time.with_fast_inverse().inverse_cumulative_hazard(hazards[1]))
    if fit.start_up is None:
        return np.zeros(_DRAWS), cycle
    return np.asarray(fit.start_up.with_fast_inverse().inverse_cumulative_hazard(hazards[0])), cycle


def _survival(axes: "Axes", trace: Trace, start: np.ndarray, cycle: np.ndarray) -> list[Any]:
    """Measured and fitted, at each of a few loads; where there are many, in thirds of them."""
    from matplotlib.lines import Line2D

    assert trace.load is not None
    load = trace.load
    values = np.unique(load)
    if values.size > _LOADS:
        edges = np.quantile(load, np.linspace(0, 1, 4))
        classes = [(edges[i] <= load) & (load <= edges[i + 1]) for i in range(3)]
    else:
        classes = [load == y for y in values]
    handles = []
    for i, rows in enumerate(classes):
        rows = rows & ~trace.censored
        if rows.sum() < 2:
            continue
        color, marker = _COLORS[i % 5], _MARKERS[i % 5]
        times = np.sort(trace.seconds[rows])
        left = (np.arange(times.size, 0, -1) - 0.5) / times.size
        axes.plot(
            times, left, marker, color=color, markersize=2.5, markerfacecolor="none", markeredgewidth=0.6
        )
        model = np.sort(start + cycle * np.resize(load[rows], start.size))
        share = (np.arange(model.size, 0, -1) - 0.5) / model.size
        shown = share > 0.2 / times.size
        axes.plot(model[shown], share[shown], color=color, linewidth=1.3)
        low, high = load[rows].min(), load[rows].max()
        label = f"load {low:g}" if low == high else f"loads {low:.3g} to {high:.3g}"
        handles.append(Line2D([], [], color=color, marker=marker, markersize=3, label=label))
    return handles
