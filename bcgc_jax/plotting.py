"""The look of figures: one colour, marker and label per scheme; axes with units.

Needs matplotlib, which the extra `plot` brings. Figures are made with
`matplotlib.figure.Figure`: no pyplot, no window, no global setting is changed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcgc_jax._extras import to_install
from bcgc_jax.balancing.scheme_names import ABOUT, Style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# τ is a number of cycles times the time of one cycle.
RUNTIME_LABEL = "expected runtime\n(cycles × unit of cycle time)"


STYLES: Mapping[str, Style] = {
    word: about.look for word, about in ABOUT.items() if about.look is not None
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
    if options:
        return look._replace(label=f"{look.label} ({method})")
    return look


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
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (6.8, 3.9),
    **subplots: Any,
) -> "tuple[Figure, list[Axes]]":
    """A figure of `size` inches and its axes, by rows; see `Figure.subplots`."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).ravel())
    for ax in axes:
        ax.grid(True, which="major", color="0.82", linewidth=0.6)
        ax.grid(True, which="minor", color="0.90", linewidth=0.3)
        ax.set_axisbelow(True)
    return figure, axes


def label_axes(axes: "Axes", x: str, y: str, *, title: str = "", log: str = "") -> None:
    """Axis labels (with their units), a title, logarithmic axes ("x", "y" or "xy")."""
    axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
    axes.set_title(title, fontsize="medium", loc="left")


def edges(middles: "np.ndarray", *, log: bool = False) -> "np.ndarray":
    """Edges of cells around ascending points, half way to the next on their axis.

    >>> import numpy as np
    >>> edges(np.array([5.0, 10.0, 20.0])).tolist()
    [2.5, 7.5, 15.0, 25.0]
    >>> edges(np.array([1.0, 100.0]), log=True).tolist()
    [0.1, 10.0, 1000.0]
    """
    import numpy as np  # --help goes without

    if log:
        return 10.0 ** edges(np.log10(middles))
    halves = np.diff(middles) / 2
    if not halves.size:
        halves = np.array([0.5])
    first = middles[0] - halves[0]
    last = middles[-1] + halves[-1]
    return np.r_[first, middles[:-1] + halves[: middles.size - 1], last]


def legend_outside(
    figure: "Figure",
    handles: Sequence[Any],
    *,
    place: str = "right",
    title: str = "",
    columns: int = 1,
) -> None:
    """A legend of `handles`, beside ("right") or under ("lower") all axes."""
    where: Any = f"outside {place} center"
    left: Any = {}
    if title:
        left = {"title": title, "alignment": "left"}
    figure.legend(
        handles=handles,
        loc=where,
        ncols=columns,
        frameon=False,
        handlelength=3.2,
        **left,
    )
