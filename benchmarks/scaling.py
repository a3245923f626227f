"""Measure seconds against the number of workers, and draw all scaling curves."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.solvers.closed_form import time_partition
from benchmarks.peak import peak_memory
from benchmarks.planning import paper_problem
from benchmarks.timing import Measured, compare, curve_point, in_float64, result_row
from experiments import looks
from experiments.report import grouped

SIZES = (10, 20, 50, 100, 200, 500, 1000)
MANY_SIZES = (10, 100, 1000, 3162, 10_000)

# Label, what `gap` is, and the method whose colour and marker the curve takes; in the
# legend's order.
_CURVES = {
    "optimum": ("certified optimum", "relative gap", "optimal"),
    "evaluation": ("exact expected runtime", "relative error", "time"),
    "sweep": ("sweep", "relative gap", "subgradient"),
}


@in_float64
def scaling() -> Iterator[dict[str, Any]]:
    """Curves: exact evaluation and certified optimum, N from 10 to 1000."""
    for num_workers in SIZES:
        problem = paper_problem(num_workers)
        x = time_partition(problem)
        package = compare(
            {"package": functools.partial(bcgc.expected_runtime, problem, x)}, 5
        )["package"]
        value, error = (float(v) for v in bcgc.plans.integrate_runtime(problem, x))
        yield curve_point("evaluation", "workers", num_workers, package, error / value)
        package = _optimum(
            num_workers,
            1e-4 if num_workers == 1000 else 1e-6,
            1 if num_workers >= 500 else 5,
        )
        gap = float(package.value.relative_gap)
        yield curve_point("optimum", "workers", num_workers, package, gap)


def _optimum(num_workers: int, tolerance: float, repeats: int) -> Measured:
    method = bcgc.Optimal(tolerance=tolerance)
    solve = functools.partial(bcgc.solve, paper_problem(num_workers), method)
    return compare({"package": solve}, repeats)["package"]


@in_float64
def large_n() -> Iterator[dict[str, Any]]:
    """Time the optimum, N from 10 to 10,000: gap, peak memory, exponent in N."""
    before = 0, math.nan
    for num_workers in MANY_SIZES:
        start = time.process_time()
        package = _optimum(num_workers, 1e-4 if num_workers > 1000 else 1e-6, 1)
        gap = float(package.value.relative_gap)
        seconds = package.seconds["median"]
        peak = peak_memory()
        text = f"gap {gap:.1e}, peak memory of the process so far {peak:.0f} MB"
        if before[0]:
            exponent = math.log(seconds / before[1]) / math.log(num_workers / before[0])
            text += f", exponent since N = {before[0]} {exponent:.2f}"
        text += f", CPU seconds of both calls {time.process_time() - start:.3g}"
        before = (num_workers, seconds)
        figures = {"gap": gap, "peak_mb": peak}
        what = f"optimum, N = {num_workers}"
        yield result_row("large_n", what, {"package": package}, text, figures)


def draw_curves(points: Sequence[dict[str, Any]], folder: Path, name: str) -> None:
    """Draw `name`.png and .svg in `folder`: seconds against workers, and cells."""
    panels = grouped(points, lambda point: point["x_name"])
    figure, axes = plotting.new_figure(
        1, len(panels), size=(0.6 + 3.6 * len(panels), 3.7)
    )
    for panel, (x_name, points_of_panel) in zip(axes, panels.items(), strict=True):
        curves = grouped(points_of_panel, lambda point: point["curve"])
        for curve in (curve for curve in _CURVES if curve in curves):
            points_of_curve = curves[curve]
            (text, reached, method) = _CURVES[curve]
            gaps = [
                point["gap"] for point in points_of_curve if point["gap"] is not None
            ]
            exponent = math.ceil(math.log10(max(gaps, default=1.0) or 1e-16))
            label = rf"{text}, {reached} ≤ $10^{{{exponent}}}$" if gaps else text
            style = plotting.style(method)
            look = (
                plotting.curve(style)
                | looks.points(style)
                | {"linestyle": style.line, "label": label}
            )
            panel.plot(
                [point["x"] for point in points_of_curve],
                [point["seconds"] for point in points_of_curve],
                **look,
            )
        sizes = (
            sorted({point["x"] for point in points_of_panel})
            if x_name == "workers"
            else ()
        )
        label = {
            "workers": "number of workers N",
            "cells": "number of cells of the sweep",
        }[x_name]
        looks.label_axes(panel, label, "median time (s)", log="xy", x_ticks=sizes)
        # Above the axes: never on the data.
        panel.legend(
            frameon=False,
            fontsize="x-small",
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
        )
    looks.save_figure(figure, folder, name)
