"""What is drawn is what stands in the file."""

from types import SimpleNamespace

import click
import jax
import numpy as np
import pytest

import bcgc_jax
import bcgc_jax.cli.fit
import bcgc_jax.cli.solve
import bcgc_jax.cli.sweep
import bcgc_jax.cli.train
from bcgc_jax import cli
from bcgc_jax.cli import figures
from bcgc_jax.coding.digits import DigitsRun

RATES, WORKERS = (1e-4, 1e-3, 1e-2), (4, 8)
ROWS = [
    {
        "method": method,
        "num_workers": n,
        "rate": rate,
        "status": "converged",
        "expected_runtime": factor * n / rate,
    }
    for n in WORKERS
    for rate in RATES
    for method, factor in (("optimal", 1.0), ("uncoded", 3.0))
]


@pytest.fixture
def sweep(tmp_path):
    """A sweep's file, with an empty cell."""
    path = tmp_path / "sweep.csv"
    cells = [*ROWS, {**ROWS[0], "method": "nested", "expected_runtime": ""}]
    path.write_text(
        "\n".join([",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in cells)]) + "\n"
    )
    return path


def test_curves_and_heat_maps_show_the_numbers_of_the_rows():
    of_four = [row for row in ROWS if row["num_workers"] == 4]
    (axes,) = figures.curves(of_four, "rate", "expected_runtime").axes
    for line, factor in zip(axes.lines, (1, 3), strict=True):
        np.testing.assert_allclose(
            np.array(line.get_xydata()), np.array([(rate, factor * 4 / rate) for rate in RATES])
        )
    assert axes.get_xscale() == axes.get_yscale() == "log"
    panels = figures.heat_maps(ROWS, "rate", "num_workers", "expected_runtime").axes[:2]
    for axes, factor in zip(panels, (1, 3), strict=True):
        shown = np.array(axes.images[0].get_array())
        np.testing.assert_allclose(shown, np.array([[factor * n / rate for rate in RATES] for n in WORKERS]))


def test_blocks_are_as_long_as_their_share_of_the_gradient():
    schemes = [
        {"method": "optimal", "partition_runtime": 2.0, "partition": [30, 0, 10], "schedule": None},
        {
            "method": "nested",
            "partition_runtime": 1.0,
            "partition": None,
            "schedule": {"sizes": [10, 30], "groups": [[[0], [1, 2]], [[0, 1, 2]]]},
        },
    ]
    drawn = [figures.drawn(row) for row in schemes]
    assert [one.copies.tolist() for one in drawn] == [[1, 2, 3], [1.5, 3]]
    left, right = figures.plans(drawn).axes[:2]
    lengths = [np.array([bar.get_bbox().width for bar in axes.patches]) for axes in (left, right)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(lengths[0], np.array([2.0, 1.0]))
    np.testing.assert_allclose(lengths[1], np.array([0.75, 0, 0.25, 0.25, 0.75]))


def test_a_file_becomes_a_picture_and_what_it_lacks_is_told(sweep, command):
    status, out, _ = command("plot", str(sweep))
    assert (status, out) == (0, f"The picture: {sweep.with_suffix('.png')}\n")
    assert sweep.with_suffix(".png").stat().st_size > 10_000
    for asked, told in [
        ("--x shift", "there is no column shift"),
        ("--method best", "--method best: the file has optimal, uncoded, nested"),
        ("--x rate", "one value of num_workers with --where"),
        ("--x rate --where num_workers=5", "the nearest has 4"),
        ("--value status --where num_workers=4", "the column status holds no numbers, but 'converged'"),
        ("--where status=1", "the column status holds no numbers"),
        ("--out map.gif", "--out must end in .png or .svg or .pdf"),
    ]:
        status, _, err = command("plot", str(sweep), *asked.split())
        assert (status, err.count("\n"), told in err) == (2, 1, True), err


def test_a_plan_has_no_columns_to_choose(command, tmp_path):
    plan = tmp_path / "plan.json"
    plan.touch()
    for asked in ("--x rate", "--where rate=1", "--method optimal"):
        status, _, err = command("plot", str(plan), *asked.split())
        assert (status, err) == (2, f"bcgc: {asked.split()[0]} has no effect on a plan\n")


def test_small_runtimes_and_whole_workers_are_plain_numbers():
    one = figures.Drawn("nested", 82.7, np.ones(2), np.array([1.0, 8.0]))
    left, _, bar = figures.plans([one]).axes
    assert left.get_xlabel() == "expected runtime\n(cycles × unit of cycle time)"
    assert left.patches[0].get_bbox().width == 82.7  # type: ignore[attr-defined]
    assert all(tick == round(tick) for tick in bar.get_yticks())
    left = figures.plans([one._replace(runtime=2e8)]).axes[0]
    assert "$10^{8}$ cycles" in left.get_xlabel()


def test_every_command_draws_its_answer(command, tmp_path, monkeypatch):
    law = bcgc_jax.ShiftedExponential(1e-3, 50.0)
    solved = {"status": "converged", "partition_runtime": 2.0, "partition": [30, 10], "schedule": None}
    rows = [{"method": "optimal", **solved}]
    shown = SimpleNamespace(rows=rows, limit=None, in_units_of=lambda _: SimpleNamespace(rows=rows))
    monkeypatch.setattr(cli.solve, "_answer", lambda *_: (shown, None))
    monkeypatch.setattr(cli.sweep, "_collect", lambda *_: ROWS)
    times = SimpleNamespace(seconds=np.asarray(law.sample(jax.random.key(0), (50,))), censored=None)
    exact = [SimpleNamespace(name="exact", law=law)]
    fitted = SimpleNamespace(best=None, fits=exact, times=times, start_up=None)
    monkeypatch.setattr(cli.fit, "_answer", lambda *_: fitted)
    monkeypatch.setattr(cli.fit, "_fit_row", lambda fit: {"law": fit.name})
    steps = np.arange(1.0, 7).reshape(2, 3)
    run = DigitsRun("uncoded", 1.0, steps, 1 / steps, 1 - 1 / steps)
    monkeypatch.setattr(cli.train, "_train_all", lambda *_: [run])
    given = "--cycle-time", "shifted-exponential:rate=1e-3,shift=50", "--workers", "4"
    for name, *asked in [
        ("solve", *given, "--coordinates", "40"),
        ("sweep", *given, "--coordinates", "40"),
        ("fit", "-"),
        ("train", *given, "--method", "uncoded"),
    ]:
        picture = tmp_path / f"{name}.svg"
        status, _, err = command(name, *asked, "--format", "csv", "--figure", str(picture))
        assert (status, err) == (0, "")
        assert "<path" in picture.read_text()


def test_a_saved_plan_has_the_blocks_of_its_workers_and_no_padding():
    law = bcgc_jax.ShiftedExponential(1e-3, 50.0)
    problem = bcgc_jax.Problem(law, 3, 100, max_workers=12)
    drawn = figures.of_solution(bcgc_jax.solve(problem, "single_block"))
    assert drawn.sizes.tolist() == [100]
    # By hand: s + 1 workers, and of 3 the (3 - s)-th is waited for, 50 + 1000 (1/3 + ... + 1/(s + 1)).
    cost = [(s + 1) * (50 + 1000 * sum(1 / k for k in range(s + 1, 4))) for s in range(3)]
    assert drawn.copies.tolist() == [1 + np.argmin(cost)]


def test_schemes_without_a_runtime_are_left_out():
    none = figures.Drawn("ferdinand_full", np.nan, np.zeros(0), np.zeros(0))
    left, _ = figures.plans([none, figures.Drawn("uncoded", 3.0, np.ones(1), np.ones(1))], "seconds").axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == ["uncoded"]
    with pytest.raises(click.UsageError, match="no scheme has a finite expected runtime"):
        figures.plans([none])


def test_a_curve_is_the_median_of_its_seeds():
    rows = [
        {"method": "uncoded", "seed": seed, "iteration": step, "time": step * (1 + seed), "loss": seed / step}
        for seed in range(3)
        for step in (1, 2)
    ]
    (axes,) = figures.training(rows).axes
    np.testing.assert_allclose(np.array(axes.lines[0].get_xydata()), np.array([[2, 1], [4, 0.5]]))


def test_times_that_were_cut_off_count_as_longer():
    law = bcgc_jax.Uniform(1.0, 5.0)
    (axes,) = figures.fits(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0, 0, 1, 0]), [("exact", law)]).axes
    # After 1 three of four are left; at 2 one is cut off, no matter; then one of two is, then none.
    np.testing.assert_allclose(np.array(axes.lines[0].get_ydata()), np.array([0.75, 0.75, 0.375, 0]))
