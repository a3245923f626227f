"""What a reader needs of a figure: a colour for each scheme, a name for all, error bars, text that fits."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bcgc_jax import plotting
from experiments import cluster, paper, replay, start_ups, traces
from tests.studies import assert_text_fits


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_the_figures_of_the_paper_say_why_published_values_are_off_the_line():
    rows = [paper.Row("4a", "num_workers", 20, name, 1.1, 1.0) for name in ("ferdinand_half", "time")]
    half, time = texts(paper.draw(rows, "4a").legends[0])
    assert paper.NOTES["ferdinand_half"] in half
    assert "published" not in time
    rows = [paper.Row("4a", "num_workers", 20, "ferdinand_half", 1.1, None)]
    assert "published" not in texts(paper.draw(rows, "4a").legends[0])[0]


def test_traces_have_a_colour_for_each_scheme_and_a_marker_for_each_of_its_plans():
    schemes = [*replay.RULES, *replay.KNOWING]
    looks = [traces.look_of(name) for name in schemes]
    assert len({(look.color, look.marker) for look in looks}) == len(schemes)
    of_one = [name for name in schemes if traces.look_of(name).color == plotting.style("optimal").color]
    assert set(of_one) == set(traces._LOOKS)
    assert {traces.look_of(name).color for name in traces._SHARE_LOOKS} == {traces._SHARES.color}
    scheduled = {name for name in schemes if traces.kind_of(name) == traces.SCHEDULE}
    assert scheduled == set(traces._SCHEDULE_LOOKS)
    assert {traces.look_of(name).color for name in scheduled} == {plotting.style("cyclic").color}
    courses = [traces.look_of(name) for name in traces._COURSES]
    assert len({(look.color, str(look.line)) for look in courses}) == len(courses)


def test_the_panels_of_start_ups_have_units_and_names():
    rng = np.random.default_rng(0)
    values = [
        start_ups.Value("Weibull", "Uniform", False, 3, 1.0, 1e-9, of_mean, 1.0, 0.5, of_share)
        for of_mean, of_share in rng.normal(size=(20, 2))
    ]
    plans = [start_ups.Plan("Weibull", "Uniform", 3, 1.0, 1.0, excess, 0.5) for excess in (-1e-5, 0.0, 2e-4)]
    figure = start_ups.draw(values, plans)
    assert [len(texts(axes.get_legend())) for axes in figure.axes] == [3, 1]
    assert "standard errors" in figure.axes[0].get_ylabel()
    assert_text_fits(figure)


def test_wall_clocks_have_error_bars():
    run = SimpleNamespace(clock=np.arange(1.0, 6.0)[None], loss=1 / np.arange(1.0, 6.0)[None])
    runs: Any = {("time", faults): SimpleNamespace(run=run) for faults in (False, True)}
    row = {"method": "time", "faults": False, "measured_seconds": 0.3, "standard_error": 0.02}
    row |= {"predicted_seconds": 0.28, "overhead_seconds": 0.01}
    figure = cluster._draw(runs, [row], ["time"])
    (bars,) = (c for c in figure.axes[0].containers if hasattr(c, "errorbar") and c.errorbar)
    (segment,) = bars.errorbar.lines[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([0.26, 0.34])
    assert_text_fits(figure)
