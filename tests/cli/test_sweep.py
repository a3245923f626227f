"""`bcgc sweep`: rows, axes, files, and what is said of rows that are no answer."""

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest

from bcgc_jax.cli.arguments import COUNT, axis
from bcgc_jax.cli.sweep import _summary
from bcgc_jax.sweeps import read_rows
from tests.cli.schema import problems, strict_json

PARETO = [
    "sweep",
    "--workers",
    "2,3",
    "--coordinates",
    "60",
    "--cycle-time",
    "pareto:scale=1",
]
# Of one program: six cells and a deadline.
PARETO += ["--method", "uncoded", "--partitions", "--deadline", "50"]


@pytest.mark.slow
def test_a_sweep_prints_every_cell_and_its_axes(command, answer):
    args = [
        "sweep",
        "--workers",
        "2:4",
        "--coordinates",
        "60",
        "--cycle-time",
        "uniform:low=1",
    ]
    args += [
        "--axis",
        "high=2:4:2",
        "--method",
        "uncoded",
        "--method",
        "single_block",
        "--partitions",
    ]
    rows = answer(*args)
    cells = itertools.product((2, 3, 4), (2.0, 4.0), ("uncoded", "single_block"))
    assert [(r["num_workers"], r["high"], r["method"]) for r in rows] == list(cells)
    for row in rows:
        n, high = row["num_workers"], row["high"]
        single = [
            60 / n * (s + 1) * (1 + (high - 1) * (n - s) / (n + 1)) for s in range(n)
        ]
        expected = single[0] if row["method"] == "uncoded" else min(single)
        assert row["expected_runtime"] == pytest.approx(expected, rel=1e-9)
        assert row["saved"] == pytest.approx(1 - expected / single[0], abs=1e-9)
        assert sum(row["partition"]) == 60
    lines = command(*args)[1].splitlines()
    assert max(map(len, lines)) <= 100
    # what does not vary is no column
    assert lines[1].split()[:3] == ["num_workers", "high", "scheme"]
    assert len(lines) == 2 + 12


def test_the_largest_gap_of_a_sweep_is_one_of_what_converged(tmp_path):
    """The gap to a cell's best bound of the optimum; a loose bound is none."""

    def largest(**rows: list[str]) -> list[Any]:
        """The largest gap of each method in three cells: status, runtime, bound."""
        path = tmp_path / "s.csv"
        head = "method,bound_of,status,expected_runtime,lower_bound"
        sweep: Any = SimpleNamespace(num_cells=3, methods=dict.fromkeys(rows))
        kinds = {name: "groups" if name == "nested" else "levels" for name in rows}
        cells = zip(
            *(
                [f"{name},{kinds[name]},{text}" for text in texts]
                for name, texts in rows.items()
            ),
            strict=True,
        )
        path.write_text("\n".join((head, *itertools.chain(*cells))))
        lines, counts = _summary(sweep, path)
        assert counts["step limit"] == 1
        return [line.largest_relative_gap for line in lines]

    optimal = ["converged,10,9", "converged,10,8", "step limit,10,3"]
    time = ["converged,10,2", "converged,12.5,2", "converged,3,1"]
    nested = ["converged,9,8.1", "converged,7,7", "infinite,,"]
    gaps = largest(optimal=optimal, time=time, nested=nested)
    assert gaps == [pytest.approx(0.2), pytest.approx(0.36), None]
    # The bound of one plan is for all of its cell, as in a table of `bcgc solve`.
    gaps = largest(time=[*time[:2], "step limit,10,9"], uncoded=["converged,10,"] * 3)
    assert gaps == [None, pytest.approx(0.1)]


@pytest.mark.slow
def test_a_sweep_measures_plans_by_the_bound_that_solve_takes(command, answer):
    """The own bound of nested is not for the optimum; that of a partition is."""
    problem = ["--workers", "4", "--coordinates", "2000"]
    problem += ["--cycle-time", "shifted-exponential:rate=1,shift=1"]
    asked = ["time", "uncoded", "nested", "tandon_partial", "backup:1"]
    methods = [word for method in asked for word in ("--method", method)]
    for optimal in ([], ["--method", "optimal"]):
        cells = []
        for name in ("solve", "sweep"):
            _, out, _ = command(name, *problem, *methods, *optimal)
            rows = {
                method: next(
                    line for line in out.splitlines() if method in line.split()
                )
                for method in asked
            }
            above = r"(best found|– |[\d.e-]+ %)\s+\d+\s+\d\.\d\d"
            cells.append(
                {name: re.findall(above, row)[0] for name, row in rows.items()}
            )
        assert cells[0] == cells[1]
        assert cells[0]["nested"] == "best found"
        assert cells[0]["backup:1"] == "– "
        assert "%" in cells[0]["tandon_partial"]
    rows = answer("sweep", *problem, *methods)
    bound_of = ["levels", "levels", "groups", "levels", None]
    assert [row["bound_of"] for row in rows] == bound_of
    assert [row["kind"] for row in rows] == [
        "exact",
        "exact",
        "local",
        "exact",
        "exact",
    ]


def test_a_sweep_says_which_rows_are_infinite_or_invalid(command):
    """A method that is given twice has its rows once."""
    args = [*PARETO, "--method", "uncoded", "--format", "json"]
    status, out, err = command(*args, "--axis", "shape=-1,0.5,2")
    rows = strict_json(out)
    assert problems("sweep", rows) == []
    assert (status, [row["status"] for row in rows]) == (
        1,
        ["invalid", "infinite", "converged"] * 2,
    )
    assert [row["expected_runtime"] is None for row in rows] == [True, True, False] * 2
    assert [row["saved"] for row in rows] == [None, None, 0.0] * 2
    said = "bcgc: 2 of 6 rows are invalid: their numbers make no problem"
    assert err.startswith(said)
    assert err.count("\n") == 1
    huge = ["--samples", "1e308", "--cycles", "1e308"]
    status, out, err = command(*args, "--axis", "shape=1.5,2,3", *huge)
    assert (status, [row["status"] for row in strict_json(out)]) == (1, ["invalid"] * 6)
    assert "6 of 6 rows are invalid" in err


def test_the_file_of_a_sweep_says_which_law_and_has_one_type_a_column(answer, tmp_path):
    args, tables = [*PARETO, "--axis", "shape=0.5,1.5,2"], []
    for number, options in enumerate(([], ["--cycles", "1", "--samples", "1"])):
        path = tmp_path / f"{number}.csv"
        answer(*args, *options, "--out", str(path))
        tables.append(list(read_rows(path)))
        # All at one level has no certificate.
        assert {str(row["relative_gap"]) for row in tables[-1]} <= {""}
    assert tables[0] == tables[1]  # however they were given
    for row in tables[0]:
        assert (row["distribution"], str(row["cycles"]), str(row["num_samples"])) == (
            "pareto",
            "1.0",
            "1.0",
        )


def test_an_axis_is_the_numbers_that_its_words_say():
    for typed, numbers in {
        "3,1": [1, 3],
        "999998:1000001": [999_998, 999_999, 1_000_000, 1_000_001],
        "2:8:4": [2, 4, 6, 8],
        "1:8:4:log": [1, 2, 4, 8],
    }.items():
        assert axis(COUNT).convert(typed, None, None).tolist() == numbers
