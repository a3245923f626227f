"""The look of figures: one colour, marker and label per scheme; axes with units.

Needs matplotlib, which the extra `plot` brings. Figures are made with
`matplotlib.figure.Figure`: no pyplot, no window, no global setting is changed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bcgc_jax._extras import to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# τ is a number of cycles times the time of one cycle.
RUNTIME_LABEL = "expected runtime\n(cycles × unit of cycle time)"


class Style(NamedTuple):
    """The look of one scheme."""

    label: str
    color: str
    marker: Any
    line: Any = "-"
    width: float = 1.5


_DOTTED = (0, (1.5, 1.5))
# Okabe and Ito's palette, told apart by colour-blind readers; the line patterns and the markers
# tell the schemes apart without any colour. The proposed schemes are solid, the baselines are not.
# Two are wide, so that they show under a curve that often coincides: the subgradients', full
# replication's.
STYLES: Mapping[str, Style] = {
    "optimal": Style("optimal", "#000000", "o", "-", 2.6),
    "subgradient": Style("stochastic subgradient", "#0072B2", "*"),
    "time": Style(r"$\mathbf{x}^{(\mathrm{t})}$ (time)", "#D55E00", "s"),
    "frequency": Style(r"$\mathbf{x}^{(\mathrm{f})}$ (frequency)", "#009E73", "^"),
    "single_block": Style("single block", "#CC79A7", "D", (0, (2, 0.8)), 3.0),
    "tandon_partial": Style("Tandon et al., partial", "#E69F00", "v", "-."),
    "ferdinand_full": Style(r"Ferdinand–Draper, $r = L$", "#56B4E9", "P", _DOTTED),
    "ferdinand_half": Style(
        r"Ferdinand–Draper, $r = L/2$", "#7F7F7F", "X", (0, (6, 2, 1, 2, 1, 2))
    ),
    "uncoded": Style("uncoded", "#999933", "h", (0, (8, 3))),
    "nested": Style("nested groups, no code", "#117733", (6, 1, 0), "-", 2.6),
    "cyclic": Style("cyclic, no code", "#228833", "+", (0, (7, 1.5))),
    "sharing": Style("work sharing", "#4477AA", "p", (0, (3, 1, 1, 1)), 2.0),
    "backup": Style("backup workers (inexact)", "#BBBBBB", "3", (0, (5, 5))),
    "drop": Style("stop at a threshold (inexact)", "#882255", "4", (0, (2, 2))),
    "deadline": Style("most probably in time", "#DDAA33", (6, 2, 0), "-", 2.6),
    "equal_risk": Style("equal risk (closed form)", "#CC3311", (4, 1, 45), (0, (5, 1, 1, 1, 1, 1))),
    "large_deadline": Style("large deadline (journal)", "#0099AA", (5, 1, 36), (0, (4, 2))),
    "limit": Style("limit of any scheme", "#7B4B2A", "None", _DOTTED),
}


def style(method: str) -> Style:
    """The `Style` of a method; plain grey for what is unknown.

    >>> style("time").marker, style("nested:5").label, style("mine").label
    ('s', 'nested groups, no code (nested:5)', 'mine')
    """
    scheme, _, options = method.partition(":")
    if scheme not in STYLES:
        return Style(method, "#555555", "x", ":")
    look = STYLES[scheme]
    return look._replace(label=f"{look.label} ({method})") if options else look


def curve(look: Style) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a computed curve, a dot at each computed point."""
    return {
        "color": look.color,
        "linestyle": look.line,
        "linewidth": look.width,
        "label": look.label,
        "marker": ".",
        "markersize": 4,
    }


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


def label_axes(axes: "Axes", x: str, y: str, *, title: str = "", log: str = "") -> None:
    """Axis labels (with their units), a title, logarithmic axes ("x", "y" or "xy")."""
    axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
    axes.set_title(title, fontsize="medium", loc="left")


def legend_outside(
    figure: "Figure",
    handles: Sequence[Any],
    *,
    place: str = "right",
    title: str = "",
    columns: int = 1,
) -> None:
    """One legend of `handles`, beside ("right") or under ("lower") all axes: never on the data."""
    where: Any = f"outside {place} center"
    left: Any = {"title": title, "alignment": "left"} if title else {}
    figure.legend(
        handles=handles, loc=where, ncols=columns, frameon=False, handlelength=3.2, **left
    )
