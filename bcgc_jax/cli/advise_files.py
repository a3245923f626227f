"""What `bcgc advise` writes beside its answer: a picture, and the advised plan."""

from typing import TYPE_CHECKING, Any

import click
import numpy as np

from bcgc_jax import plotting
from bcgc_jax.balancing.remedies import Limit
from bcgc_jax.diagnosis.advice import Advice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bcgc_jax.solution import Solution

_CAUSES = {
    "data": "long chunks",
    "steady": "workers that\nstay slow",
    "random": "workers slow\nat random",
    "pauses": "pauses\nin a chunk",
    "rest": "slow in\nsingle steps",
    "data or pauses": "long chunks or\npauses",
    "workers": "slow workers",
}
# Told apart in grey too.
_ADVISED = {"color": "#2F6FAE", "label": "advised"}
_EXACT = {"color": "#BCD3E8", "label": "exact gradient"}
_INEXACT = {
    "color": "#FFFFFF",
    "edgecolor": "#4D4D4D",
    "hatch": "////",
    "label": "loses samples",
}
_LIMIT = {
    "color": "#FFFFFF",
    "edgecolor": "#4D4D4D",
    "linestyle": "--",
    "label": "limit",
}


def picture(advice: Advice) -> "Figure":
    """Draw what each remedy saves, and what each cause adds to the loss, with 95 %
    intervals.

    Raises UsageError where there are none.
    """
    if advice.alike:
        raise click.UsageError("nothing can be learnt from this log")
    heights = max(len(advice.rows), len(advice.causes))
    figure, (left, right) = plotting.new_figure(
        1, 2, size=(9.6, 1.5 + 0.3 * heights), width_ratios=(3, 2)
    )
    names = [row.remedy for row in advice.rows]
    _bars(
        left,
        names,
        [row.saved for row in advice.rows],
        [_look(advice, row) for row in advice.rows],
    )
    if advice.several_models:
        _mark_other_models(left, advice)
    causes = sorted(advice.causes, key=lambda cause: -advice.causes[cause].value)
    shares = [advice.causes[cause] for cause in causes]
    _bars(
        right,
        [_CAUSES[cause] for cause in causes],
        shares,
        [{"color": "#8C8C8C"}] * len(causes),
    )
    right.set(xlim=(0, 105), ylim=(max(len(causes), 4) - 0.4, -0.6))
    plotting.label_axes(
        left, "time saved (%)", "", title="what can be done, replayed in steps not seen"
    )
    title = f"why {100 * advice.loss:.3g} % of a step is lost"
    plotting.label_axes(right, "share of the loss (%)", "", title=title)
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    plotting.legend_outside(figure, list(handles.values()), place="lower", columns=5)
    return figure


def _look(advice: Advice, row: Any) -> dict[str, Any]:
    if row.remedy == advice.advised:
        return _ADVISED
    if row.remedy.startswith(Limit.name):
        return _LIMIT
    if row.lost:
        return _INEXACT
    return _EXACT


def _bars(
    axes: "Axes", names: list[str], shares: list[Any], looks: list[dict[str, Any]]
) -> None:
    """The first on top, in per cent."""
    for place, (share, look) in enumerate(zip(shares, looks, strict=True)):
        value, low, high = (100 * np.array(share)).tolist()
        axes.barh(place, value, height=0.7, **look)
        axes.plot(
            [low, high],
            [place, place],
            color="black",
            linewidth=1.2,
            marker="|",
            markersize=7,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color="black", linewidth=0.8)


def _mark_other_models(axes: "Axes", advice: Advice) -> None:
    ends = np.array([row.range for row in advice.rows])
    look: Any = {
        "marker": "D",
        "facecolor": "white",
        "edgecolor": "black",
        "s": 18,
        "zorder": 3,
    }
    places = np.arange(len(ends))
    what = "if chunks are slow, not workers"
    if advice.recorded:
        what = "if long chunks have paused"
    savings = np.where(ends[:, 0] < [row.saved.value for row in advice.rows], *ends.T)
    axes.scatter(100 * savings, places, label=what, **look)


def plan_of(advice: Advice) -> "Solution":
    """Make the plan of the remedy that is advised, with its seconds of a step.

    Raises UsageError where that is no work sharing.
    """
    import jax.numpy as jnp

    from bcgc_jax.plans.sharing import WorkSharing, sharing_plan
    from bcgc_jax.problem import Status
    from bcgc_jax.solution import Solution

    if advice.advised is None:
        raise click.UsageError("--out: no plan is written, for nothing is advised")
    row = advice.row(advice.advised)
    if not row.scheme.asks:
        raise click.UsageError(
            f"--out: no plan is written, for {row.remedy} needs no plan"
        )
    saved = row.saved
    limits = (Limit.name, f"{Limit.name}:{row.stored_subsets}")
    limit = min(bound.saved.value for bound in advice.rows if bound.remedy in limits)
    error = (saved.high - saved.low) / (2 * 1.96)
    line = advice.load_line
    load_line = None
    usual_cost = None
    if row.scheme.by_length and line is not None:
        load_line = line.base, line.slope
        usual_cost = line.usual
    rule = WorkSharing(
        num_workers=advice.num_workers,
        max_subsets=row.stored_subsets,
        chunks=advice.num_chunks,
        equal_chunks=row.equal_chunks,
        round_trip=advice.costs.asking.alone,
        load_line=load_line,
        usual_cost=usual_cost,
        hosts=advice.steps.trace.hosts,
    )
    return Solution(
        plan=sharing_plan(1.0, rule),
        rounded=None,
        expected_runtime=jnp.asarray(advice.step * (1 - saved.value)),
        runtime_error=jnp.asarray(advice.step * error),
        lower_bound=jnp.asarray(advice.step * (1 - limit)),
        status=jnp.asarray(int(Status.CONVERGED)),
        num_steps=jnp.asarray(0),
        method=row.remedy,
        kind="confidence",
    )
