"""Schemes look different from each other, files come out the same twice, and nothing global changes."""

import sys

import matplotlib
import pytest

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.solvers.methods import BASELINES, PROPOSED
from experiments import looks


def test_every_method_has_a_look_of_its_own():
    assert {*PROPOSED, *BASELINES} <= set(plotting.STYLES)
    for name in ("label", "color", "marker"):
        values = [getattr(look, name) for look in plotting.STYLES.values()]
        assert len(set(values)) == len(values)


def test_added_schemes_look_different_and_have_their_label():
    unknown = plotting.style("plotting_0")
    assert (unknown.label, unknown.color) == ("plotting_0", plotting.style("tandon:3").color)
    names = [f"plotting_{i}" for i in range(9)]
    own = [bcgc.Scheme(name, lambda problem: problem.exists, label=f"label of {name}") for name in names]
    styles = [looks.style(name, own) for name in names]
    assert [look.label for look in styles] == [f"label of {name}" for name in names]
    every = [*plotting.STYLES.values(), *styles]
    assert len({(look.color, str(look.line)) for look in every}) == len(every)
    markers = {look.marker for look in plotting.STYLES.values()}
    assert len({look.marker for look in styles[:7]} - markers) == 7
    assert looks.style("plotting_0", ()) == unknown


def small_figure():
    figure, (axes,) = plotting.new_figure()
    look = plotting.style("time")
    axes.plot([1, 10], [2, 30], **plotting.curve(look))
    axes.plot([1, 10], [2, 30], **looks.points(look))
    looks.label_axes(axes, "x (s)", "y (s)", log="xy", x_ticks=(1, 3, 10))
    plotting.legend_outside(figure, [looks.legend_handle(look)], title="title")
    return figure


def test_same_figure_same_bytes_and_nothing_else_is_changed(tmp_path):
    (tmp_path / "again").mkdir()
    before, pyplot_loaded = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    first = looks.save_figure(small_figure(), tmp_path, "figure")
    second = looks.save_figure(small_figure(), tmp_path / "again", "figure")
    assert [path.name for path in first] == ["figure.png", "figure.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert "<dc:date>" not in first[1].read_text()
    assert (dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules) == (before, pyplot_loaded)


def test_legend_is_outside_the_axes():
    figure = small_figure()
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not axes.get_window_extent().overlaps(legend.get_window_extent())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "3", "10"]


def test_missing_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[plot\]'"):
        plotting.new_figure()
