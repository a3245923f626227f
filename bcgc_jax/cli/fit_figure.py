"""The picture of a fit: do the quantiles agree, and do the tails?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from bcgc_jax.laws import Law
from bcgc_jax.measured.likelihood import sorted_times
from bcgc_jax.plotting import label_axes, legend_outside, new_figure

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours; every law has its own line and marker too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", (0, (6, 2)), "-.", (0, (1.5, 1.5)), (0, (8, 3)), (0, (3, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Points of a quantile plot; more would lie on each other.
_POINTS = 400


def draw_fit(
    times: ArrayLike,
    laws: Mapping[str, Law],
    censored: ArrayLike | None = None,
    *,
    unit: str = "unit of the trace",
) -> "Figure":
    r"""Quantiles of the measured `times` against those of each law, and survival P(T > t), both logarithmic.

    The measured survival is Kaplan and Meier's where times are `censored`; `laws` are at most six, by label.

    >>> from bcgc_jax.laws import Gamma
    >>> figure = draw_fit(np.random.default_rng(0).gamma(2.0, 1.0, 50), {"gamma": Gamma(2.0, 1.0)})
    >>> len(figure.axes)
    2
    """
    from matplotlib.lines import Line2D

    t, cut = sorted_times(times, censored)
    leaves = np.where(cut, 0, 1 / np.arange(t.size, 0, -1))
    survival = np.cumprod(1 - leaves)
    # The middle of each step of the measured curve.
    middle = (np.r_[1, survival[:-1]] + survival) / 2
    whole = np.flatnonzero(~cut)
    if whole.size > _POINTS:  # the extremes all, the others thinned
        few = np.linspace(0, whole.size - 1, _POINTS - 60).astype(int)
        whole = whole[np.unique(np.r_[np.arange(30), few, whole.size - 30 + np.arange(30)])]
    figure, axes = new_figure(1, 2, size=(8.6, 4.2))
    span = np.array([t[whole].min(), t[whole].max()])
    grid = np.geomspace(span[0] * 0.98, span[1] * 1.1, 400)
    handles = [Line2D([], [], color="black", marker=".", linestyle="none", label="measured")]
    axes[1].plot(t[whole], middle[whole], ".", color="black", markersize=4, zorder=5)
    axes[0].plot(span, span, color="0.4", linewidth=0.8)
    for i, (name, law) in enumerate(laws.items()):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        line: Any = _LINES[i % len(_LINES)]
        quantile = np.asarray(law.inverse_cumulative_hazard(-np.log(middle[whole])))
        axes[0].plot(
            quantile, t[whole], marker, color=color, markersize=3, markerfacecolor="none", markeredgewidth=0.7
        )
        curve = np.asarray(law.survival(grid))
        axes[1].plot(grid, np.where(curve > 0, curve, np.nan), color=color, linestyle=line, linewidth=1.5)
        handles.append(Line2D([], [], color=color, linestyle=line, marker=marker, markersize=3, label=name))
    label_axes(
        axes[0], f"quantile of the law ({unit})", f"measured time ({unit})", title="quantiles", log="xy"
    )
    label_axes(axes[1], f"cycle time t ({unit})", "P(T > t)", title="survival", log="xy")
    axes[1].set_ylim(0.4 / t.size, 1.5)
    low, high = span
    axes[0].set_xlim(low * 0.93, high * 1.35)
    axes[0].set_ylim(low * 0.93, high * 1.15)
    _plain_ticks(axes[0].xaxis, low * 0.93, high * 1.35)
    _plain_ticks(axes[0].yaxis, low * 0.93, high * 1.15)
    _plain_ticks(axes[1].xaxis, grid[0], grid[-1])
    legend_outside(figure, handles, place="lower", columns=4)
    return figure


def _plain_ticks(axis: "Axis", low: float, high: float) -> None:
    """Ticks with plain labels where the axis covers less than a decade or two."""
    if high / low > 50:
        return
    steps = np.array([1, 1.5, 2, 3, 4, 5, 6, 8])
    ticks = np.concatenate(
        [10.0**e * steps for e in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    )
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axis.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
    axis.set_ticks([], minor=True)
