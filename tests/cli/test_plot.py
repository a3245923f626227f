"""What is drawn is what stands in the file."""

import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax import ShiftedExponential, Uniform, solve
from bcgc_jax.cli import plot
from bcgc_jax.cli.output import write_rows
from bcgc_jax.cli.solve_rows import Solved
from bcgc_jax.cli.sweep import Swept
from bcgc_jax.measured.fits import Fit
from bcgc_jax.plans.completion import AnyOf, OneOfEach
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.sharing import WorkSharing, sharing_plan
from experiments import sweep as sweep_study
from tests.problems import padded

assert_close: Any = np.testing.assert_allclose
RATES, WORKERS = (1e-4, 1e-3, 1e-2), (4, 8)
LAW, COLUMNS = (
    ShiftedExponential(1e-3, 50.0),
    ("num_workers", "rate", "method", "status", "expected_runtime"),
)
CELLS = itertools.product(WORKERS, RATES, {"optimal": 1.0, "uncoded": 3.0}.items())
ROWS = [
    dict(zip(COLUMNS, (n, rate, method, "converged", factor * n / rate), strict=True))
    for n, rate, (method, factor) in CELLS
]


@pytest.fixture
def sweep(tmp_path):
    """A sweep's file, with an empty cell."""
    path = tmp_path / "sweep.csv"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        write_rows([*ROWS, {**ROWS[0], "method": "nested", "expected_runtime": None}])
    return path


def test_curves_and_heat_maps_show_the_numbers_of_the_rows():
    of_four = [row for row in ROWS if row["num_workers"] == 4]
    (axes,) = plot.curves(of_four, "rate", "expected_runtime").axes
    for line, factor in zip(axes.lines, (1, 3), strict=True):
        assert_close(line.get_xydata(), [(rate, factor * 4 / rate) for rate in RATES])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    three_rows = [{**row, "num_workers": n} for n, row in enumerate(ROWS[:3], 1)]
    (axes,) = plot.curves(three_rows, "num_workers", "expected_runtime").axes
    assert axes.get_xticks().tolist() == axes.get_xticks().round().tolist()
    panels = plot.heat_maps(ROWS, "rate", "num_workers", "expected_runtime").axes[:2]
    for axes, factor in zip(panels, (1, 3), strict=True):
        mesh: Any = axes.collections[0]
        assert_close(mesh.get_array(), factor * np.outer(WORKERS, 1 / np.array(RATES)))
        # A value is in the middle of its cell as the axis shows it, and at a tick.
        low, high = mesh.get_coordinates()[:-1, :-1], mesh.get_coordinates()[1:, 1:]
        assert_close(np.sqrt(low[0, :, 0] * high[0, :, 0]), RATES)
        assert_close((low[:, 0, 1] + high[:, 0, 1]) / 2, WORKERS)
        assert_close(axes.get_xticks(), RATES)
        assert_close(axes.get_yticks(), WORKERS)


@pytest.mark.parametrize(("values", "ticks"), [(5, 5), (6, 3), (11, 4)])
def test_an_axis_of_a_heat_map_has_five_ticks_at_most(values, ticks):
    rows = [{**row, "rate": rate} for row in ROWS[::6] for rate in range(1, values + 1)]
    axes = plot.heat_maps(rows, "rate", "num_workers", "expected_runtime").axes[0]
    assert len(axes.get_xticks()) == ticks


def test_a_title_of_many_numbers_is_no_wider_than_its_figure():
    numbers = {f"number_of_the_problem_{place}": 1000.0 for place in range(9)}
    figure = plot.of_rows([numbers | row for row in ROWS if row["num_workers"] == 4])
    figure.draw_without_rendering()
    (title,) = [text for text in figure.texts if "compared" in text.get_text()]
    assert 0.7 < title.get_window_extent().width / figure.bbox.width < 0.96


def test_blocks_are_as_long_as_their_share_of_the_gradient():
    groups = OneOfEach((((0,), (1, 2)), ((0, 1, 2),)))
    # How many subsets each worker goes over for each block: as many as its group has
    # workers.
    work = np.array([[1, 3], [2, 3], [2, 3]])
    nested = Plan(jnp.array([10.0, 30.0]), np.arange(2), work, np.ones(2), groups)
    whole = partition_plan(np.array([30.0, 0.0, 10.0]), 3)
    plans = ("optimal", 2.0, whole), ("nested", 1.0, nested), ("limit", 3.0, None)
    drawn = [plot.drawn(*plan) for plan in plans]
    assert [plan.copies.tolist() for plan in drawn] == [
        [1, 3],
        [pytest.approx(5 / 3), 3],
        [],
    ]
    left, right = plot.plans(drawn).axes[:2]
    for axes, lengths in (left, [2.0, 1.0, 3.0]), (right, [0.75, 0.25, 0.25, 0.75]):
        assert_close([bar.get_bbox().width for bar in axes.patches], lengths)  # type: ignore[attr-defined]
    assert [text.get_text() for text in right.texts] == ["no fixed blocks"]
    assert right.get_xlim() == (0, 1)
    halves = Plan(
        jnp.ones(2), np.arange(2), np.arange(2), np.array([0.4, 1.0]), AnyOf(3)
    )
    shared = sharing_plan(40.0, WorkSharing(num_workers=3, max_subsets=2, chunks=8))
    # Nobody knows who does which chunk.
    assert plot.drawn("sharing:2", 1.0, shared).sizes.size == 0
    # A part of the data is none of the gradient.
    assert plot.drawn("tandon_partial", 1.0, halves).sizes.size == 0


def test_a_file_becomes_a_picture_and_what_it_lacks_is_told(sweep, command, refusal):
    picture = sweep.with_suffix(".png")
    assert command("plot", str(sweep)) == (0, f"\nThe picture: {picture}\n", "")
    assert picture.stat().st_size > 10_000
    message = f"bcgc: {picture} is there already: --out PICTURE says where to draw\n"
    assert refusal("plot", str(sweep)) == message
    assert command("plot", str(sweep), "--out", str(picture))[0] == 0
    picture.unlink()
    for asked, words in [
        ("--x shift", "there is no column shift"),
        ("--method best", "--method best: the file has optimal, uncoded, nested"),
        ("--x rate", "one value of num_workers with --where"),
        ("--x rate --where num_workers=5", "the nearest has 4"),
        (
            "--value status --where num_workers=4",
            "the column status holds no numbers, but 'converged'",
        ),
        ("--where status=1", "the column status holds no numbers"),
        ("--out map.gif", "--out must end in .png or .svg or .pdf"),
    ]:
        assert words in refusal("plot", str(sweep), *asked.split())


def test_the_cells_of_the_study_are_drawn_too(command, tmp_path):
    file = Path(sweep_study.__file__).with_name("figures") / "sweep_cells.csv"
    options = (
        "--where",
        "num_workers=20",
        "--value",
        "relative_gap",
        "--out",
        str(tmp_path / "gap.png"),
    )
    assert command("plot", str(file), *options)[0] == 0


TIMES = "step,w0,w1\n" + "".join(f"{k},{1 + k % 3},{2 + k % 2}\n" for k in range(6))
STEPS = "".join(
    f'{{"loss": {1 / k}, "step": {k}, "seconds": 0.5, "scheme": "uncoded"}}\n'
    for k in (1, 2)
)


def test_every_file_that_the_package_writes_is_drawn(command, refusal, tmp_path):
    solved = (
        "method,status,expected_runtime,saved\n"
        "optimal,converged,2,0.5\nuncoded,converged,4,0\n"
    )
    files = {"times.csv": TIMES, "solved.csv": solved, "log.jsonl": STEPS}
    for name, text in files.items():
        (file := tmp_path / name).write_text(text)
        assert command("plot", str(file))[0] == 0, name
        assert file.with_suffix(".png").stat().st_size > 10_000
    (axes,) = plot.bars([*plot.read(tmp_path / "solved.csv")], "expected_runtime").axes
    assert [bar.get_bbox().width for bar in axes.patches] == [2, 4]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["2,  50.0 %", "4,  0.0 %"]
    steps = plot.read_log(tmp_path / "log.jsonl")
    assert [(row["method"], row["time"], row["loss"]) for row in steps] == [
        ("uncoded", 0.5, 1.0),
        ("uncoded", 1.0, 0.5),
    ]
    (axes,) = plot.training(steps, "loss").axes
    assert_close(axes.lines[0].get_xydata(), [[0.5, 1.0], [1.0, 0.5]])
    message = refusal(
        "plot", str(tmp_path / "log.jsonl"), "--value", "los", "--out", "x.png"
    )
    assert "there is no column los, only method, time, loss" in message
    times = str(tmp_path / "times.csv")
    picture = str(tmp_path / "again.png")
    message = refusal("plot", times, "--x", "rate", "--out", picture)
    assert message == "bcgc: --x has no effect on measured times\n"
    message = refusal(
        "plot", str(tmp_path / "log.jsonl"), "--unit", "ms", "--out", picture
    )
    assert message == "bcgc: --unit has no effect but on measured times\n"
    (other_table := tmp_path / "other.csv").write_text("distribution,aic\ngamma,3\n")
    message = refusal("plot", str(other_table))
    assert message.startswith(
        f"bcgc: {other_table} cannot be drawn: it is no table of `bcgc sweep`"
    )


def test_times_are_drawn_in_seconds_whatever_their_unit(command, tmp_path, monkeypatch):
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(plot, "fits", lambda seconds, *_: drawn.append(seconds))
    monkeypatch.setattr(plot, "write_picture", lambda *_: None)
    (path := tmp_path / "times.csv").write_text(TIMES)
    assert command("plot", str(path), "--unit", "ms") == (0, "", "")
    assert command("plot", str(path)) == (0, "", "")
    assert_close(drawn[0], drawn[1] / 1e3)
    path.write_text(
        "step,w0,w1\n" + "".join(f"{k},{10_000 + k},20000\n" for k in range(6))
    )
    assert "give their unit with --unit: ms" in command("plot", str(path))[2]


def test_a_plan_has_no_columns_to_choose(refusal, tmp_path):
    (tmp_path / "plan.json").touch()
    for asked in (["--x", "rate"], ["--where", "rate=1"], ["--method", "optimal"]):
        message = f"bcgc: {asked[0]} has no effect on a plan\n"
        assert refusal("plot", str(tmp_path / "plan.json"), *asked) == message


def test_small_runtimes_are_plain_numbers_and_what_has_none_is_left_out():
    nested = plot.Drawn("nested", 82.7, np.ones(2), np.array([1.0, 8.0]))
    left, _, bar = plot.plans([nested]).axes
    assert left.patches[0].get_bbox().width == 82.7  # type: ignore[attr-defined]
    assert all(tick == round(tick) for tick in bar.get_yticks())
    infinite = plot.Drawn("ferdinand_full", np.nan, np.zeros(0), np.zeros(0))
    five = nested._replace(method="nested:5", saved=0.125)
    left, _, bar = plot.plans([infinite, nested, five]).axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["nested groups, no code", "nested groups, no code (nested:5)"]
    assert [text.get_text() for text in left.texts] == ["82.7", "82.7,  12.5 %"]
    assert bar.get_ylim() == (1, 8)  # nobody computes a subset on no worker
    with pytest.raises(
        click.UsageError, match="no scheme has a finite expected runtime"
    ):
        plot.plans([infinite])


def test_every_command_draws_its_answer(command, tmp_path, monkeypatch):
    solution: Any = SimpleNamespace(plan=partition_plan(np.ones(2), 2))
    row = Solved(
        "optimal", solution, "converged", 2.0, partition=[30, 10], partition_runtime=2.0
    )
    times = SimpleNamespace(
        seconds=np.asarray(LAW.sample(jax.random.key(0), (50,))), censored=None
    )
    exact = [Fit("exact", LAW, {}, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50)]
    plans = [SimpleNamespace(distribution="exact")]
    fitted = SimpleNamespace(
        fits=exact, times=times, seconds=times.seconds, plans=plans
    )
    for work, answered in {
        "solve.compared": SimpleNamespace(rows=[row], limit=None),
        "sweep._collect": [Swept.of(row) for row in ROWS],
        "fit.found_in": fitted,
    }.items():
        monkeypatch.setattr(
            f"bcgc_jax.cli.{work}", lambda *_, answered=answered: answered
        )
    options = "--cycle-time", "shifted-exponential:rate=1e-3,shift=50", "--workers", "4"
    for name, *asked in [
        ("solve", *options, "--coordinates", "40"),
        ("sweep", *options, "--coordinates", "40"),
        ("fit", "-"),
    ]:
        picture = tmp_path / f"{name}.svg"
        status, _, err = command(
            name, *asked, "--format", "csv", "--figure", str(picture)
        )
        assert (status, err) == (0, "")
        assert "<path" in picture.read_text()


def test_a_saved_plan_has_the_blocks_of_its_workers_and_no_padding(x64):
    solution = solve(padded(LAW, 3, 100), "single_block")
    drawn = plot.drawn("single_block", 1.0, solution.plan)
    assert drawn.sizes.tolist() == [100]
    # By hand: s + 1 workers, and of 3 the (3 - s)-th is waited for, 50 + 1000
    # (1/3 + ... + 1/(s + 1)).
    cost = [
        (s + 1) * (50 + 1000 * sum(1 / k for k in range(s + 1, 4))) for s in range(3)
    ]
    assert drawn.copies.tolist() == [1 + np.argmin(cost)]


def test_times_that_were_cut_off_count_as_longer():
    arguments = (
        np.array([3.0, 1.0, 2.0, 4.0]),
        np.array([0, 0, 1, 0]),
        [("exact", Uniform(1.0, 5.0))],
    )
    (axes,) = plot.fits(*arguments).axes
    # After 1 three of four are left; at 2 one is cut off, no matter; then one of two
    # is, then none.
    assert_close(axes.lines[0].get_ydata(), [0.75, 0.75, 0.375, 0])
