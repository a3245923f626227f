"""What is drawn is what stands in the file."""

from types import SimpleNamespace

import click
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax
import bcgc_jax.cli.fit
import bcgc_jax.cli.solve
import bcgc_jax.cli.sweep
import bcgc_jax.cli.train
from bcgc_jax import cli
from bcgc_jax.cli import plot
from bcgc_jax.coding.digits import DigitsRun
from bcgc_jax.plans.completion import AnyOf, OneOfEach
from bcgc_jax.plans.plan import Plan, partition_plan

RATES, WORKERS = (1e-4, 1e-3, 1e-2), (4, 8)
ROWS = [
    {
        "num_workers": n,
        "rate": rate,
        "method": method,
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
    (axes,) = plot.curves(of_four, "rate", "expected_runtime").axes
    for line, factor in zip(axes.lines, (1, 3), strict=True):
        np.testing.assert_allclose(
            np.array(line.get_xydata()), np.array([(rate, factor * 4 / rate) for rate in RATES])
        )
    assert axes.get_xscale() == axes.get_yscale() == "log"
    panels = plot.heat_maps(ROWS, "rate", "num_workers", "expected_runtime").axes[:2]
    for axes, factor in zip(panels, (1, 3), strict=True):
        shown = np.array(axes.collections[0].get_array())
        np.testing.assert_allclose(shown, np.array([[factor * n / rate for rate in RATES] for n in WORKERS]))


def test_blocks_are_as_long_as_their_share_of_the_gradient():
    groups = OneOfEach((((0,), (1, 2)), ((0, 1, 2),)))
    # How many subsets each worker goes over for each block: as many as its group has workers.
    nested = Plan(
        jnp.array([10.0, 30.0]), np.arange(2), np.array([[1, 3], [2, 3], [2, 3]]), np.ones(2), groups
    )
    whole = partition_plan(np.array([30.0, 0.0, 10.0]), 3)
    drawn = [
        plot.drawn("optimal", 2.0, whole),
        plot.drawn("nested", 1.0, nested),
        plot.drawn("limit", 3.0, None),
    ]
    assert [one.copies.tolist() for one in drawn] == [[1, 3], [pytest.approx(5 / 3), 3], []]
    left, right = plot.plans(drawn).axes[:2]
    lengths = [np.array([bar.get_bbox().width for bar in axes.patches]) for axes in (left, right)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(lengths[0], np.array([2.0, 1.0, 3.0]))
    np.testing.assert_allclose(lengths[1], np.array([0.75, 0.25, 0.25, 0.75]))
    assert [text.get_text() for text in right.texts] == ["no fixed blocks"]
    halves = Plan(jnp.ones(2), np.arange(2), np.arange(2), np.array([0.4, 0.6]), AnyOf(3))
    # Its parts are of the data, not of the gradient.
    assert plot.drawn("tandon_partial", 1.0, halves).sizes.size == 0


def test_a_file_becomes_a_picture_and_what_it_lacks_is_told(sweep, command):
    picture = sweep.with_suffix(".png")
    assert command("plot", str(sweep)) == (0, f"\nThe picture: {picture}\n", "")
    assert picture.stat().st_size > 10_000
    there = f"bcgc: {picture} is there already: --out PICTURE says where to draw\n"
    assert command("plot", str(sweep)) == (2, "", there)
    assert command("plot", str(sweep), "--out", str(picture))[0] == 0
    picture.unlink()
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


def test_small_runtimes_are_plain_numbers_and_what_has_none_is_left_out():
    one = plot.Drawn("nested", 82.7, np.ones(2), np.array([1.0, 8.0]))
    left, _, bar = plot.plans([one]).axes
    assert left.get_xlabel() == "expected runtime\n(cycles × unit of cycle time)"
    assert left.patches[0].get_bbox().width == 82.7  # type: ignore[attr-defined]
    assert all(tick == round(tick) for tick in bar.get_yticks())
    none = plot.Drawn("ferdinand_full", np.nan, np.zeros(0), np.zeros(0))
    left = plot.plans([none, one._replace(runtime=2e8)]).axes[0]
    assert "$10^{8}$ cycles" in left.get_xlabel()
    assert [label.get_text() for label in left.get_yticklabels()] == ["nested groups, no code"]
    with pytest.raises(click.UsageError, match="no scheme has a finite expected runtime"):
        plot.plans([none])


def test_every_command_draws_its_answer(command, tmp_path, monkeypatch):
    law = bcgc_jax.ShiftedExponential(1e-3, 50.0)
    solved = {"status": "converged", "partition_runtime": 2.0, "partition": [30, 10], "schedule": None}
    rows = [{"method": "optimal", **solved}]
    found = rows[0] | {"expected_runtime": 2.0}, SimpleNamespace(plan=partition_plan(np.ones(2), 2))
    monkeypatch.setattr(cli.solve, "_answer", lambda *_: ([found], SimpleNamespace(rows=rows, limit=None)))
    monkeypatch.setattr(cli.sweep, "_collect", lambda *_: ROWS)
    times = SimpleNamespace(seconds=np.asarray(law.sample(jax.random.key(0), (50,))), censored=None)
    exact = [SimpleNamespace(name="exact", law=law)]
    fitted = SimpleNamespace(fits=exact, times=times, seconds=times.seconds, plans=[{"law": "exact"}])
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
    drawn = plot.drawn("single_block", 1.0, bcgc_jax.solve(problem, "single_block").plan)
    assert drawn.sizes.tolist() == [100]
    # By hand: s + 1 workers, and of 3 the (3 - s)-th is waited for, 50 + 1000 (1/3 + ... + 1/(s + 1)).
    cost = [(s + 1) * (50 + 1000 * sum(1 / k for k in range(s + 1, 4))) for s in range(3)]
    assert drawn.copies.tolist() == [1 + np.argmin(cost)]


def test_a_curve_is_the_median_of_its_seeds():
    rows = [
        {"method": "uncoded", "seed": seed, "iteration": step, "time": step * (1 + seed), "loss": seed / step}
        for seed in range(3)
        for step in (1, 2)
    ]
    (axes,) = plot.training(rows).axes
    np.testing.assert_allclose(np.array(axes.lines[0].get_xydata()), np.array([[2, 1], [4, 0.5]]))


def test_times_that_were_cut_off_count_as_longer():
    law = bcgc_jax.Uniform(1.0, 5.0)
    (axes,) = plot.fits(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0, 0, 1, 0]), [("exact", law)]).axes
    # After 1 three of four are left; at 2 one is cut off, no matter; then one of two is, then none.
    np.testing.assert_allclose(np.array(axes.lines[0].get_ydata()), np.array([0.75, 0.75, 0.375, 0]))
