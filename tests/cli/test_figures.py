"""What is drawn is what stands in the file."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax import ShiftedExponential, Uniform, solve
from bcgc_jax.cli import figures
from bcgc_jax.cli.solve_rows import Solved
from bcgc_jax.cli.sweep import Swept
from bcgc_jax.plans.completion import AnyOf, OneOfEach
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.sharing import WorkSharing, sharing_plan
from bcgc_jax.traces.fits import Fit
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


def test_curves_and_heat_maps_show_the_numbers_of_the_rows():
    of_four = [row for row in ROWS if row["num_workers"] == 4]
    (axes,) = figures.curves(of_four, "rate").axes
    for line, factor in zip(axes.lines, (1, 3), strict=True):
        assert_close(line.get_xydata(), [(rate, factor * 4 / rate) for rate in RATES])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    three_rows = [{**row, "num_workers": n} for n, row in enumerate(ROWS[:3], 1)]
    (axes,) = figures.curves(three_rows, "num_workers").axes
    assert axes.get_xticks().tolist() == axes.get_xticks().round().tolist()
    panels = figures.heat_maps(ROWS, "rate", "num_workers").axes[:2]
    for axes, factor in zip(panels, (1, 3), strict=True):
        mesh: Any = axes.collections[0]
        assert_close(mesh.get_array(), factor * np.outer(WORKERS, 1 / np.array(RATES)))
        # A value is in the middle of its cell as the axis shows it, and at a tick.
        low, high = mesh.get_coordinates()[:-1, :-1], mesh.get_coordinates()[1:, 1:]
        assert_close(np.sqrt(low[0, :, 0] * high[0, :, 0]), RATES)
        assert_close((low[:, 0, 1] + high[:, 0, 1]) / 2, WORKERS)
        assert_close(axes.get_xticks(), RATES)
        assert_close(axes.get_yticks(), WORKERS)


def test_blocks_are_as_long_as_their_share_of_the_gradient():
    groups = OneOfEach((((0,), (1, 2)), ((0, 1, 2),)))
    # How many subsets each worker goes over for each block: as many as its group has
    # workers.
    work = np.array([[1, 3], [2, 3], [2, 3]])
    nested = Plan(jnp.array([10.0, 30.0]), np.arange(2), work, np.ones(2), groups)
    whole = partition_plan(np.array([30.0, 0.0, 10.0]), 3)
    plans = ("optimal", 2.0, whole), ("nested", 1.0, nested), ("limit", 3.0, None)
    drawn = [figures.drawn(*plan) for plan in plans]
    assert [plan.copies.tolist() for plan in drawn] == [
        [1, 3],
        [pytest.approx(5 / 3), 3],
        [],
    ]
    left, right = figures.plans(drawn).axes[:2]
    for axes, lengths in (left, [2.0, 1.0, 3.0]), (right, [0.75, 0.25, 0.25, 0.75]):
        assert_close([bar.get_bbox().width for bar in axes.patches], lengths)  # type: ignore[attr-defined]
    assert [text.get_text() for text in right.texts] == ["no fixed blocks"]
    assert right.get_xlim() == (0, 1)
    halves = Plan(
        jnp.ones(2), np.arange(2), np.arange(2), np.array([0.4, 1.0]), AnyOf(3)
    )
    shared = sharing_plan(40.0, WorkSharing(num_workers=3, max_subsets=2, chunks=8))
    # Nobody knows who does which chunk.
    assert figures.drawn("sharing:2", 1.0, shared).sizes.size == 0
    # A part of the data is none of the gradient.
    assert figures.drawn("tandon_partial", 1.0, halves).sizes.size == 0


def test_one_problem_is_drawn_as_bars_and_three_axes_are_refused(refusal):
    rows: list[Any] = [
        {"method": "optimal", "expected_runtime": 2.0, "saved": 0.5},
        {"method": "nested", "expected_runtime": None, "saved": None},
        {"method": "uncoded", "expected_runtime": 4.0, "saved": 0.0},
    ]
    (axes,) = figures.of_sweep(rows).axes
    assert [bar.get_bbox().width for bar in axes.patches] == [2, 4]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["2,  50.0 %", "4,  0.0 %"]
    three = ["--workers", "4,5", "--coordinates", "40,50", "--samples", "1,2"]
    law = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]
    message = refusal("sweep", *three, *law, "--figure", "sweep.png")
    assert "these vary: num_workers, num_coordinates, num_samples" in message


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
    drawn = figures.drawn("single_block", 1.0, solution.plan)
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
    (axes,) = figures.fits(*arguments).axes
    # After 1 three of four are left; at 2 one is cut off, no matter; then one of two
    # is, then none.
    assert_close(axes.lines[0].get_ydata(), [0.75, 0.75, 0.375, 0])
