"""Style the figures of studies beyond `plotting`: markers, legends and schemes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcgc_jax import plotting
from bcgc_jax.plotting import Style
from bcgc_jax.solvers.schemes import Scheme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Schemes that were added, by their order, and what is no scheme: other colours, markers
# and lines than those of the package, in cycles of lengths without a common divisor, so
# that few are alike in any two of them.
COLORS = ("#882255", "#332288", "#44AA99", "#661100", "#DDCC77")
_MARKERS = ("<", ">", "2", "d", "H", "8", "1")
LINES: tuple[Any, ...] = ("--", (0, (4, 1, 1, 1, 1, 1)), (0, (10, 2)))


def style(method: str, schemes: Sequence[Scheme]) -> Style:
    """The `Style` of a method, or of one of its user's `schemes`."""
    names = [scheme.name for scheme in schemes]
    if method.partition(":")[0] in plotting.STYLES or method not in names:
        return plotting.style(method)
    i = names.index(method)
    color, marker, line = (cycle[i % len(cycle)] for cycle in (COLORS, _MARKERS, LINES))
    return Style(schemes[i].label, color, marker, line)


def points(look: Style, *, filled: bool = False) -> dict[str, Any]:
    """Keywords of `Axes.plot` for separate markers, open unless `filled`; no label."""
    face = {
        "markerfacecolor": look.color if filled else "none",
        "markeredgewidth": 1.2,
        "markersize": 6,
    }
    return {"color": look.color, "linestyle": "none", "marker": look.marker, **face}


def legend_handle(
    look: Style, *, marker: bool = True, filled: bool = False, label: str = ""
) -> "Line2D":
    """A method's legend entry: its line, its `marker` if asked, open or `filled`."""
    from matplotlib.lines import Line2D

    if marker:
        shape = points(look, filled=filled) | {"linestyle": look.line}
    else:
        shape = {"marker": None}
    return Line2D(
        [], [], **plotting.curve(look) | shape | {"label": label or look.label}
    )


def label_axes(
    axes: "Axes",
    x: str,
    y: str,
    *,
    x_ticks: Sequence[float] = (),
    y_ticks: Sequence[float] = (),
    **words: str,
) -> None:
    """Label axes as `plotting.label_axes`; given ticks have no minor ones."""
    plotting.label_axes(axes, x, y, **words)
    for ticks, axis in ((x_ticks, axes.xaxis), (y_ticks, axes.yaxis)):
        if ticks:
            axis.set_ticks(list(ticks), labels=[f"{t:g}" for t in ticks])
            axis.set_ticks([], minor=True)


def save_figure(figure: "Figure", folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.png and .svg into a `folder`, the same bytes for one figure."""
    import matplotlib
    from PIL import Image

    png = folder / f"{name}.png"
    svg = folder / f"{name}.svg"
    with io.BytesIO() as drawn:
        figure.savefig(drawn, dpi=180)
        # 256 colours are all that a figure has, in a third of the bytes.
        Image.open(drawn).convert("RGB").quantize(256).save(png, optimize=True)
    # The salt makes the ids of an SVG reproducible; the setting is put back after the
    # block.
    with matplotlib.rc_context({"svg.hashsalt": "bcgc_jax", "svg.fonttype": "path"}):
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
