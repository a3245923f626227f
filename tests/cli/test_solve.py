"""`bcgc solve`, as a person or a script meets it. Its table has a file of its own."""

import csv
import io
import re
from typing import Any, cast

import numpy as np
import pytest

from bcgc_jax import (
    Empirical,
    Heterogeneous,
    Problem,
    ShiftedExponential,
    Solution,
    expected_runtime,
)
from bcgc_jax.cli.solve_rows import _chance
from bcgc_jax.cli.solve_table import blocks
from bcgc_jax.plans.simulation import added_in_a_row
from tests.problems import not_none
from tests.scripts import python

PAPER = [
    "--workers",
    "20",
    "--coordinates",
    "20000",
    "--samples",
    "50",
    "--cycles",
    "1",
]
LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]
UNIFORM = ["--cycle-time", "uniform:low=1,high=2"]


def of(*names):
    return [word for name in names for word in ("--method", name)]


@pytest.mark.smoke
def test_json_has_the_exact_figures_and_the_best_plan_is_written(answer, tmp_path, x64):
    methods, path = (
        of("limit", "time", "frequency", "tandon_partial", "uncoded"),
        tmp_path / "plan.json",
    )
    output = answer(
        "solve", *PAPER, *LAW, *methods, "--deadline", "1e8", "--out", str(path)
    )
    assert list(output) == ["version", "problem", "limit", "solutions"]
    law = {"distribution": "shifted-exponential", "rate": 1e-3, "shift": 50.0}
    assert output["problem"]["cycle_time"] == law
    rows = {row["method"]: row for row in output["solutions"]}
    assert list(rows)[:2] == ["limit", "frequency"]  # fastest first
    for name in ("time", "frequency"):
        row = rows[name]
        assert (sum(row["partition"]), len(row["partition"])) == (20_000, 20)
        assert 0 < row["lower_bound"] < row["expected_runtime"]
        assert row["relative_gap"] == pytest.approx(
            1 - row["lower_bound"] / row["expected_runtime"]
        )
        assert row["partition_runtime"] == pytest.approx(
            row["expected_runtime"], rel=1e-3
        )
        assert row["seconds"] > 0
    # Neither has a certificate: 0 bounds any runtime, and is not called one.
    for name in ("uncoded", "tandon_partial"):
        assert (rows[name]["lower_bound"], rows[name]["relative_gap"]) == (None, None)
    assert rows["tandon_partial"]["partition"] is None
    assert rows["tandon_partial"]["partition_runtime"] is None
    # E[T | T > median] / E[T | T ≤ median] of 50 + 1000 times an exponential variable.
    slow, quick = 50 + 1000 * (1 + np.log(2)), 50 + 1000 * (1 - np.log(2))
    assert rows["tandon_partial"]["alpha"] == pytest.approx(slow / quick, rel=1e-9)
    # Uncoded: κ E T_(20) with E T_(20) = 50 + 1000 H_20, and P = F(deadline/κ)^20,
    # κ = 50 · 20000 / 20.
    harmonic = sum(1 / k for k in range(1, 21))
    assert rows["uncoded"]["expected_runtime"] == pytest.approx(
        5e4 * (50 + 1000 * harmonic), rel=1e-9
    )
    probability = (1 - np.exp(-1e-3 * (1e8 / 5e4 - 50))) ** 20
    assert rows["uncoded"]["completion_probability"] == pytest.approx(
        probability, rel=1e-9
    )
    assert output["limit"] < rows["frequency"]["expected_runtime"]
    # The limit is no plan.
    best, plan = rows["frequency"], cast(Any, Solution.load(path))
    assert (plan.method, plan.rounded.tolist()) == ("frequency", best["partition"])
    assert plan.partition.shape == plan.levels.shape == plan.rounded.shape == (20,)
    assert float(plan.rounded_runtime) == best["partition_runtime"]
    assert float(plan.lower_bound) == best["lower_bound"]
    problem = Problem(
        ShiftedExponential(1e-3, 50.0), 20, 20_000, 50, max_workers=32, setup_cycles=0.0
    )
    counts = np.pad(best["partition"], (0, 12))
    assert float(expected_runtime(problem, counts)) == pytest.approx(
        best["partition_runtime"]
    )
    # One step after the other: uncoded nobody has more to do when the last one ends.
    added_seconds, error = not_none(added_in_a_row(problem, counts))
    added = best["chained_runtime"] - best["partition_runtime"]
    assert added == pytest.approx(added_seconds)
    assert best["chained_error"] == pytest.approx(error)
    assert rows["uncoded"]["chained_runtime"] == rows["uncoded"]["partition_runtime"]
    assert rows["limit"]["chained_runtime"] is None


def test_csv_rows_agree_with_json_rows(command, answer):
    args = (
        "solve",
        "--workers",
        "5",
        "--coordinates",
        "7000",
        *LAW,
        *of("single_block", "tandon:2"),
    )
    _, text, _ = command(*args, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, expected in zip(rows, answer(*args)["solutions"], strict=True):
        assert row["method"] == expected["method"]
        assert float(row["expected_runtime"]) == expected["expected_runtime"]
        assert [int(n) for n in row["partition"].split()] == expected["partition"]


def test_what_a_table_says_of_a_plan_is_so(command, answer, x64):
    """Its blocks, its storage, and the setup that makes a single block faster."""
    args = ("solve", *PAPER, *LAW, "--method", "time")
    status, out, err = command(*args)
    assert status == 0, err
    # Savings are of the uncoded scheme, and the best baseline is that of all, asked for
    # or not.
    plan, block = answer(*args, "--method", "single_block")["solutions"]
    uncoded = 5e4 * (50 + 1000 * sum(1 / k for k in range(1, 21)))
    saved = 1 - plan["partition_runtime"] / uncoded
    assert plan["saved"] == pytest.approx(saved, rel=1e-9)
    figures = ["time", f"{plan['partition_runtime']:.4g}", f"{100 * saved:.1f}", "%"]
    assert out.splitlines()[2].split()[:4] == figures
    assert (
        "in the cycle time's unit. Blocks are rounded to whole coordinates; the "
        "optimum is not.\n"
    ) in out
    less = 100 * (1 - plan["partition_runtime"] / block["partition_runtime"])
    sentence = (
        f"the fastest earlier scheme, takes {block['partition_runtime']:.4g}. time "
        f"takes {less:.1f} % less."
    )
    assert f"\nBest baseline: single_block, {sentence}\n" in out
    assert f"in which they are computed:\n{blocks(plan['partition'])}\nLevel n" in out
    assert "each worker stores 20 of the 20" in out
    needs = " ".join(out[out.index("assumes a free forward pass") :].split())
    pattern = (
        r"more than ([\d.]+) % of a backward pass "
        r"\((\d+) cycles per sample and subset\), single_b"
    )
    share, limit = map(float, not_none(re.search(pattern, needs)).groups())
    assert share == pytest.approx(100 * limit / 20_000, rel=0.05)
    counts = np.pad(plan["partition"], (0, 12))
    for setup, slower in ((0.99 * limit, False), (1.01 * limit, True)):
        problem = Problem(
            ShiftedExponential(1e-3, 50.0),
            20,
            20_000,
            50,
            max_workers=32,
            setup_cycles=setup,
        )
        single = (1 + setup / 20_000) * block["partition_runtime"]
        assert (float(expected_runtime(problem, counts)) > single) == slower


def test_an_overflow_is_not_infinity(refusal):
    huge = ["--samples", "1e308", "--cycles", "1e308", "--method", "time"]
    assert "1.8e308, an overflow" in refusal("solve", *PAPER[:4], *huge, *LAW)


def test_a_probability_by_draws_is_known_to_a_hundredth():
    """A half, of which the error is the largest: one of two unlike workers is slow."""
    law = Heterogeneous([Empirical([1.0, 2.0]), Empirical([1.0, 1.0])])
    chance = _chance(Problem(law, 2, 60), np.array([60.0, 0.0]), 45.0)
    assert 0 < chance.standard_error < 0.01
    assert abs(chance.mean - 0.5) < 4 * chance.standard_error


@pytest.mark.slow
def test_workers_that_are_not_alike_get_a_law_each(answer):
    alike = [
        "solve",
        "--coordinates",
        "3000",
        "--cycle-time",
        "3*uniform:low=0.7,high=1.6",
    ]
    args = [
        *alike,
        "--workers",
        "4",
        "--cycle-time",
        "shifted-exponential:rate=0.4,shift=2.5",
    ]
    output = answer(*args, "--deadline", "7000", *of("uncoded", "time"))
    fast = {"distribution": "uniform", "low": 0.7, "high": 1.6}
    slow = {"distribution": "shifted-exponential", "rate": 0.4, "shift": 2.5}
    assert output["problem"]["cycle_time"] == [fast, fast, fast, slow]
    assert output["problem"]["num_workers"] == 4
    rows = {row["method"]: row for row in output["solutions"]}
    # Uncoded: the last worker, the slowest of all always, takes 2.5 + 1 / 0.4 on
    # average.
    assert (
        abs(rows["uncoded"]["expected_runtime"] - 3000 / 4 * 5)
        < 4 * rows["uncoded"]["runtime_error"]
    )
    late = np.exp(-0.4 * (7000 / 750 - 2.5))
    draws = output["problem"]["num_draws"]
    assert abs(rows["uncoded"]["completion_probability"] - 1 + late) < 4 * np.sqrt(
        late / draws
    )
    assert rows["time"]["partition_runtime"] == pytest.approx(
        rows["time"]["expected_runtime"], rel=1e-3
    )
    assert (
        output["limit"]
        < rows["time"]["expected_runtime"]
        < rows["uncoded"]["expected_runtime"]
    )
    # All workers alike: their number alone is new, and runtimes are exact.
    output = answer(*alike, "--method", "uncoded")
    assert output["problem"]["cycle_time"] == fast
    exact = 3000 / 3 * (0.7 + 0.9 * 3 / 4)
    assert output["solutions"][0]["expected_runtime"] == pytest.approx(exact, rel=1e-9)


@pytest.mark.slow
def test_a_deadline_leads_with_the_plan_that_meets_it_most_often(answer):
    args = [
        "solve",
        "--workers",
        "10",
        "--coordinates",
        "40000",
        "--samples",
        "50",
        "--deadline",
        "3162278",
    ]
    args += [
        "--cycle-time",
        "shifted-exponential:rate=0.1,shift=1",
        *of("deadline", "time", "optimal"),
    ]
    rows = answer(*args, "--objective", "completion-probability")["solutions"]
    assert [row["method"] for row in rows] == ["deadline", "optimal", "time"]
    assert rows[0]["completion_probability"] == pytest.approx(0.7456, abs=1e-3)
    fastest = min(rows, key=lambda row: row["expected_runtime"])
    assert fastest["method"] == "optimal"
    # The fastest of those that are in time nearly as often.
    output = answer(*args, "--min-completion", "0.7453")
    between = output["solutions"][0]
    assert (output["problem"]["min_completion"], between["method"]) == (
        0.7453,
        "deadline",
    )
    assert between["completion_probability"] == pytest.approx(0.7453, abs=1e-5)
    assert (
        fastest["expected_runtime"]
        < between["expected_runtime"]
        < rows[0]["expected_runtime"]
    )


@pytest.fixture
def of_units(tmp_path):
    """What is typed for four workers and units that differ."""
    path = tmp_path / "layers.txt"
    path.write_text("3\n1\n\n0.5\n4\n")
    asked = ["--workers", "4", "--unit-costs", str(path), "--setup-cycles", "0.4"]
    return ["solve", *asked, "--cycle-time", "uniform:low=0.4,high=2.6"]


@pytest.mark.slow
def test_units_setup_and_levels_come_from_the_command_line(answer, of_units):
    output = answer(*of_units, "--levels", "0,2-3")
    assert output["problem"]["unit_costs"] == [3.0, 1.0, 0.5, 4.0]
    assert output["problem"]["levels"] == [0, 2, 3]
    rows = {row["method"]: row for row in output["solutions"]}
    # Nobody asked for the methods that know no setup or no units.
    assert rows.pop("nested")["stored_subsets"] == 4
    assert rows.pop("sharing:2")["stored_subsets"] == 2
    assert (
        rows.pop("sharing:all")["expected_runtime"]
        < rows["uncoded"]["partition_runtime"]
    )
    assert set(rows) == {
        "optimal, levels 0,2-3",
        "optimal",
        "time",
        "frequency",
        "uncoded",
        "single_block",
    }
    assert all(sum(row["partition"]) == 4 for row in rows.values())
    assert rows["optimal, levels 0,2-3"]["partition"][1] == 0
    free = rows["optimal"]["partition_runtime"]
    assert free <= rows["optimal, levels 0,2-3"]["partition_runtime"] * (1 + 1e-9)
    # Uncoded: (8.5 + 0.4) E T_(4) / 4, E T_(4) = 0.4 + 2.2 · 4/5.
    assert rows["uncoded"]["partition_runtime"] == pytest.approx(
        8.9 * (0.4 + 2.2 * 0.8) / 4, rel=1e-9
    )


@pytest.mark.slow
def test_blocks_of_nested_groups_are_whole_units(answer, of_units):
    (row,) = answer(*of_units, *of("nested"))["solutions"]
    assert sum(row["schedule"]["sizes"]) == 4
    assert row["schedule"]["groups"] == [
        [[0], [1], [2], [3]],
        [[0, 1], [2, 3]],
        [[0, 1, 2, 3]],
    ]
    assert (row["round_trips"], row["exact_gradient"], row["partition"]) == (
        0,
        True,
        None,
    )


@pytest.mark.slow
def test_a_deadline_may_be_met_where_the_mean_is_infinite(answer, command):
    goal = [
        "--workers",
        "4",
        "--coordinates",
        "5000",
        "--objective",
        "completion-probability",
    ]
    goal += ["--deadline", "6e6", "--cycle-time", "pareto:scale=1,shape=0.9"]
    solutions = answer("solve", *goal)["solutions"]  # of methods that need no mean
    rows = {row["method"]: row for row in solutions}
    # The command ends well with a table too.
    assert (command("solve", *goal)[0], set(rows)) == (0, {"deadline", "nested"})
    for row in rows.values():
        # At least as often as where each does all, and the quickest of four is in time.
        assert 1 - (6e6 / 5000) ** (4 * -0.9) <= row["completion_probability"] < 1
        assert row["status"] == "converged"
    # Nearly all is for the quickest of four, 5000 E T_(1); nobody waits for a single
    # worker.
    assert rows["nested"]["expected_runtime"] == pytest.approx(
        5000 * 3.6 / 2.6, rel=1e-6
    )


def test_a_file_of_unit_costs_is_refused_by_what_is_wrong(refusal, tmp_path):
    path = tmp_path / "layers.txt"
    for text, words in {
        "1\n-2": "above 0, got '-2'",
        "one\n": "got 'one'",
        "\n": "no unit costs",
    }.items():
        path.write_text(text)
        assert words in refusal(
            "solve", "--workers", "4", "--unit-costs", str(path), *UNIFORM
        )


@pytest.mark.parametrize(
    "name", ["solve", pytest.param("sweep", marks=pytest.mark.slow)]
)
def test_a_round_trip_is_paid_for_each_chunk_and_rows_say_what_they_need(answer, name):
    """Workers of one speed ask before each of three chunks of 2 cycles a subset."""
    args = [
        "--workers",
        "3",
        "--coordinates",
        "6",
        "--cycle-time",
        "deterministic:value=1",
    ]
    output = answer(name, *args, *of("sharing:2:1", "uncoded"), "--round-trip", "0.5")
    rows = {
        row["method"]: row
        for row in (output["solutions"] if name == "solve" else output)
    }
    sharing, uncoded = rows["sharing:2:1"], rows["uncoded"]
    assert sharing["expected_runtime"] == pytest.approx(2 + 3 * 0.5, rel=1e-6)
    assert uncoded["expected_runtime"] == pytest.approx(2, rel=1e-6)
    needs = ("stored_subsets", "sent", "round_trips", "exact_gradient")
    assert [sharing[name] for name in needs] == [2, 1, 3, True]
    assert [uncoded[name] for name in needs] == [1, 1, 0, True]


@pytest.mark.parametrize("name", ["solve", "sweep", "fit"])
def test_help_shows_examples_that_can_be_pasted_into_any_shell(command, name):
    _, out, _ = command(name, "--help")
    assert "at most 131,072" in " ".join(out.split())
    # What a command inherits comes last, in sections; what it says of it itself too.
    heads = re.findall(
        r"^(Options|Schemes|Times of the workers|Files and output):$", out, re.MULTILINE
    )
    middle = ["Schemes", "Times of the workers"] if name != "fit" else []
    assert heads == ["Options", *middle, "Files and output"]
    if name == "solve":
        assert "if workers differ, repeat it" in " ".join(
            out.partition("Times of the workers:")[2].split()
        )
        for law in ("shifted-exponential", "two-speed", "lognormal", "ferdinand_half"):
            assert law in out
    words = out.partition("Examples:")[2].partition("\n\n")[0].split()
    assert words.count("bcgc") > 2
    assert not [
        word
        for word in words
        if re.search(r"[*?\[]", word) and not word.startswith("'")
    ]


def test_without_the_extra_the_command_says_what_to_install():
    result = python(
        "import sys; sys.modules['click'] = None; from bcgc_jax import cli; cli.main()"
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "in a clone of the project, pip install '.[cli]'" in result.stderr
