"""How figures look: one colour, marker and label per scheme; axes with units; PNG and deterministic SVG.

Needs matplotlib, which the extra `plot` brings. Figures are made with
`matplotlib.figure.Figure`: no pyplot, no window, no global setting is changed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from bcgc_jax._extras import to_install
from bcgc_jax.solvers.schemes import Scheme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# τ is a number of cycles times the time of one cycle.
RUNTIME_LABEL = "expected runtime\n(cycles × unit of cycle time)"


class Style(NamedTuple):
    """How one scheme is drawn."""

    label: str
    color: str
    marker: Any
    line: Any = "-"
    width: float = 1.5


_DOTTED = (0, (1.5, 1.5))
# Okabe and Ito's palette, told apart by colour-blind readers; the line patterns and the markers tell
# the schemes apart without any colour. The proposed schemes are solid, the baselines are not. Two are
# wide, so that they show under a curve that often coincides: the subgradients', full replication's.
STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "optimal": Style("optimal", "#000000", "o", "-", 2.6),
        "subgradient": Style("stochastic subgradient", "#0072B2", "*"),
        "time": Style(r"$\mathbf{x}^{(\mathrm{t})}$ (time)", "#D55E00", "s"),
        "frequency": Style(r"$\mathbf{x}^{(\mathrm{f})}$ (frequency)", "#009E73", "^"),
        "single_block": Style("single block", "#CC79A7", "D", (0, (2, 0.8)), 3.0),
        "tandon_partial": Style("Tandon et al., partial", "#E69F00", "v", "-."),
        "ferdinand_full": Style(r"Ferdinand–Draper, $r = L$", "#56B4E9", "P", _DOTTED),
        "ferdinand_half": Style(r"Ferdinand–Draper, $r = L/2$", "#7F7F7F", "X", (0, (6, 2, 1, 2, 1, 2))),
        "uncoded": Style("uncoded", "#999933", "h", (0, (8, 3))),
        "nested": Style("nested groups, no code", "#117733", (6, 1, 0), "-", 2.6),
        "multi_message": Style("multi-message", "#AA3377", "4", "-", 2.2),
        "cyclic": Style("cyclic, no code", "#228833", "+", (0, (7, 1.5))),
        "sharing": Style("work sharing", "#4477AA", "2", (0, (3, 1, 1, 1))),
        "backup": Style("backup workers (inexact)", "#BBBBBB", "3", (0, (5, 5))),
        "deadline": Style("most probably in time", "#DDAA33", (6, 2, 0), "-", 2.6),
        "equal_risk": Style("equal risk (closed form)", "#CC3311", (4, 1, 45), (0, (5, 1, 1, 1, 1, 1))),
        "large_deadline": Style("large deadline (journal)", "#0099AA", (5, 1, 36), (0, (4, 2))),
        "limit": Style("limit of any scheme", "#7B4B2A", "None", _DOTTED),
    }
)
# Schemes that were added, by their order: other colours, markers and lines than those above, and cycles of
# lengths without a common divisor, so that few schemes are alike in any two of them.
_COLORS = ("#882255", "#332288", "#44AA99", "#661100", "#DDCC77")
_MARKERS = ("<", ">", "p", "d", "H", "8", "1")
_LINES: tuple[Any, ...] = ("--", (0, (4, 1, 1, 1, 1, 1)), (0, (10, 2)))


def style(method: str, own: Sequence[Scheme] = ()) -> Style:
    """The `Style` of a method, or of one of its user's `own` schemes; plain grey for what is unknown.

    >>> style("time").marker, style("tandon:3").label
    ('s', 'tandon:3')
    """
    kind = method.partition(":")[0]  # of cyclic:6
    if kind in STYLES:
        return STYLES[kind]
    names = [scheme.name for scheme in own]
    if method not in names:
        return Style(method, "#555555", "x", ":")
    i = names.index(method)
    color, marker, line = (cycle[i % len(cycle)] for cycle in (_COLORS, _MARKERS, _LINES))
    return Style(own[i].label, color, marker, line)


def curve(method: str, own: Sequence[Scheme] = ()) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a computed curve of a method, a dot at each computed point."""
    label, color, _, line, width = style(method, own)
    dots = {"marker": ".", "markersize": 4}
    return {"color": color, "linestyle": line, "linewidth": width, "label": label, **dots}


def points(method: str, own: Sequence[Scheme] = (), *, filled: bool = False) -> dict[str, Any]:
    """Keywords of `Axes.plot` for separate markers of a method, open unless `filled`; no label."""
    look = style(method, own)
    face = {"markerfacecolor": look.color if filled else "none", "markeredgewidth": 1.2, "markersize": 6}
    return {"color": look.color, "linestyle": "none", "marker": look.marker, **face}


def legend_handle(
    method: str, own: Sequence[Scheme] = (), *, marker: bool = True, filled: bool = False, label: str = ""
) -> "Line2D":
    """A legend entry of a method: its line, and its marker with it if `marker`, open unless `filled`."""
    from matplotlib.lines import Line2D

    look = style(method, own)
    shape = points(method, own, filled=filled) | {"linestyle": look.line} if marker else {"marker": None}
    return Line2D([], [], **curve(method, own) | shape | {"label": label or look.label})


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {to_install('plot')}") from error


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (6.8, 3.9), **subplots: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure of `size` inches and its axes, row by row; `subplots` go to `Figure.subplots`."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).ravel())
    for one in axes:
        one.grid(True, which="major", color="0.82", linewidth=0.6)
        one.grid(True, which="minor", color="0.90", linewidth=0.3)
        one.set_axisbelow(True)
    return figure, axes


def label_axes(
    axes: "Axes",
    x: str,
    y: str,
    *,
    title: str = "",
    log: str = "",
    x_ticks: Sequence[float] = (),
    y_ticks: Sequence[float] = (),
) -> None:
    """Axis labels (with their units), a title, logarithmic axes ("x", "y" or "xy"), plain tick labels.

    Ticks that are given are printed as plain numbers, and replace the minor ones.
    """
    axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
    for ticks, axis in ((x_ticks, axes.xaxis), (y_ticks, axes.yaxis)):
        if ticks:
            axis.set_ticks(list(ticks), labels=[f"{t:g}" for t in ticks])
            axis.set_ticks([], minor=True)
    axes.set_title(title, fontsize="medium", loc="left")


def legend_outside(
    figure: "Figure", handles: Sequence[Any], *, place: str = "right", title: str = "", columns: int = 1
) -> None:
    """One legend of `handles`, beside ("right") or under ("lower") all axes: never on the data."""
    where: Any = f"outside {place} center"
    left: Any = {"title": title, "alignment": "left"} if title else {}
    figure.legend(handles=handles, loc=where, ncols=columns, frameon=False, handlelength=3.2, **left)


def save_figure(figure: "Figure", folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write `name`.png and `name`.svg into an existing `folder`; the same figure gives the same bytes."""
    import matplotlib

    png, svg = Path(folder) / f"{name}.png", Path(folder) / f"{name}.svg"
    figure.savefig(png, dpi=200)
    # The salt makes the ids of an SVG reproducible; the setting is put back after the block.
    with matplotlib.rc_context({"svg.hashsalt": "bcgc_jax", "svg.fonttype": "path"}):
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
