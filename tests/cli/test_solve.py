"""The command `bcgc`, as a person or a script meets it."""

import csv
import io
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from bcgc_jax import Problem, ShiftedExponential, Solution, expected_runtime
from bcgc_jax.cli.solve_table import blocks
from bcgc_jax.solvers.compare import draw
from bcgc_jax.solvers.completion import STARTS
from bcgc_jax.sweep_files import read_rows

PAPER = ["--workers", "20", "--coordinates", "20000", "--samples", "50", "--cycles", "1"]
LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]


@pytest.fixture
def bcgc(command):
    return command


def test_json_has_what_the_contract_says_and_the_exact_figures(bcgc):
    methods = [
        "--method",
        "time",
        "--method",
        "frequency",
        "--method",
        "tandon_partial",
        "--method",
        "uncoded",
    ]
    status, out, _ = bcgc("solve", *PAPER, *LAW, *methods, "--deadline", "1e8", "--format", "json")
    assert status == 0
    answer = json.loads(out)
    assert answer["problem"]["cycle_time"] == {"law": "shifted-exponential", "rate": 1e-3, "shift": 50.0}
    rows = {row["method"]: row for row in answer["solutions"]}
    assert next(iter(rows)) == "frequency"  # fastest first
    for name in ("time", "frequency", "uncoded"):
        row = rows[name]
        assert sum(row["partition"]) == 20_000
        assert len(row["partition"]) == 20
        if name != "uncoded":
            assert 0 < row["lower_bound"] < row["expected_runtime"]
            assert row["relative_gap"] == pytest.approx(1 - row["lower_bound"] / row["expected_runtime"])
        assert row["partition_runtime"] == pytest.approx(row["expected_runtime"], rel=1e-3)
        assert row["seconds"] > 0
    # Neither has a certificate: 0 bounds any runtime, and is not called one.
    for name in ("uncoded", "tandon_partial"):
        assert (rows[name]["lower_bound"], rows[name]["relative_gap"]) == (None, None)
    assert rows["tandon_partial"]["partition"] is None
    assert rows["tandon_partial"]["partition_runtime"] is None
    # E[T | T > median] / E[T | T ≤ median] of 50 + 1000 times an exponential variable.
    slow, quick = 50 + 1000 * (1 + np.log(2)), 50 + 1000 * (1 - np.log(2))
    assert rows["tandon_partial"]["alpha"] == pytest.approx(slow / quick, rel=1e-9)
    # Uncoded: κ E T_(20) with E T_(20) = 50 + 1000 H_20, and P = F(deadline/κ)^20, κ = 50 · 20000 / 20.
    harmonic = sum(1 / k for k in range(1, 21))
    assert rows["uncoded"]["expected_runtime"] == pytest.approx(5e4 * (50 + 1000 * harmonic), rel=1e-9)
    probability = (1 - np.exp(-1e-3 * (1e8 / 5e4 - 50))) ** 20
    assert rows["uncoded"]["completion_probability"] == pytest.approx(probability, rel=1e-9)
    assert answer["limit"] < rows["frequency"]["expected_runtime"]


def test_csv_rows_agree_with_json_rows(bcgc):
    args = ("solve", "--workers", "5", "--coordinates", "7000", *LAW)  # a law and a size as above
    args = (*args, "--method", "single_block", "--method", "tandon:2")
    _, text, _ = bcgc(*args, "--format", "csv")
    _, data, _ = bcgc(*args, "--format", "json")
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, expected in zip(rows, json.loads(data)["solutions"], strict=True):
        assert row["method"] == expected["method"]
        assert float(row["expected_runtime"]) == expected["expected_runtime"]
        assert [int(n) for n in row["partition"].split()] == expected["partition"]


def test_the_table_fits_in_100_columns_and_compares_with_the_baseline(bcgc):
    args = ("--workers", "30", "--coordinates", "5000", "--deadline", "12345", *LAW)
    methods = [a for m in ("time", "uncoded", "tandon_partial", "single_block") for a in ("--method", m)]
    status, out, _ = bcgc("solve", *args, *methods)
    assert status == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(line.partition("▁")[2] for line in lines)  # no bar is cut off
    assert "vs best" in out
    assert "less time than the uncoded scheme" in out
    assert "tandon_partial α 4.88" in out


def test_what_a_table_says_of_a_plan_is_so(bcgc, x64):
    """The plan, what it takes to store, and the setup from which on a single block is faster."""
    args = ("solve", *PAPER, *LAW, "--method", "time")
    status, out, err = bcgc(*args)
    assert status == 0, err
    # The best baseline is that of all, asked for or not.
    _, data, _ = bcgc(*args, "--method", "single_block", "--format", "json")
    plan, block = json.loads(data)["solutions"]
    saved = plan["partition_runtime"] / block["partition_runtime"] - 1
    figures = ["time", f"{plan['partition_runtime']:.4g}", f"{100 * saved:+.1f}", "%"]
    assert out.splitlines()[2].split()[:4] == figures
    assert "in the cycle time's unit. Best baseline: single_block." in out
    assert f"in which they are computed:\n{blocks(plan['partition'])}\nLevel n" in out
    assert "each worker stores 20 of the 20" in out
    needs = " ".join(out[out.index("The gain needs a cheap forward pass") :].split())
    told = re.search(
        r"from (\d+) setup cycles .* on, ([\d.]+) % of a backward pass \(L b = 20000\), this plan is slower",
        needs,
    )
    assert told is not None
    most, share = map(float, told.groups())
    assert share == pytest.approx(100 * most / 20_000, rel=0.05)
    counts = np.zeros(32)
    counts[:20] = plan["partition"]
    for setup, slower in ((0.99 * most, False), (1.01 * most, True)):
        problem = Problem(ShiftedExponential(1e-3, 50.0), 20, 20_000, 50, max_workers=32, setup_cycles=setup)
        single = (1 + setup / 20_000) * block["partition_runtime"]
        assert (float(expected_runtime(problem, counts)) > single) == slower


def test_a_plan_is_written_where_it_is_asked_for(bcgc, tmp_path, x64):
    path = tmp_path / "plan.json"
    args = ("solve", *PAPER, *LAW, "--method", "time", "--method", "tandon_partial", "--format", "json")
    status, out, err = bcgc(*args, "--out", str(path))
    assert status == 0, err
    best = json.loads(out)["solutions"][0]
    found: Any = Solution.load(path)
    assert (found.method, found.rounded.tolist()) == ("time", best["partition"])
    assert found.partition.shape == found.levels.shape == found.parts.counts.shape == (20,)
    assert float(found.rounded_runtime) == best["partition_runtime"]
    assert float(found.lower_bound) == best["lower_bound"]
    problem = Problem(ShiftedExponential(1e-3, 50.0), 20, 20_000, 50)
    assert float(expected_runtime(problem, found.partition)) == pytest.approx(best["expected_runtime"])


@pytest.mark.parametrize("name", ["solve", "fit"])
def test_where_a_plan_goes_is_looked_at_first(bcgc, tmp_path, monkeypatch, name):
    (tmp_path / "steps.csv").write_text("step,worker,seconds\n1,a,1\n1,b,2\n")
    for module, work in (("solve", "_problem"), ("fit", "_answer")):
        monkeypatch.setattr(f"bcgc_jax.cli.{module}.{work}", lambda *_: pytest.fail("the work began"))
    asked = [str(tmp_path / "steps.csv")] if name == "fit" else [*PAPER, *LAW]
    for path in (tmp_path, tmp_path / "nowhere" / "plan.json"):
        status, out, err = bcgc(name, *asked, "--out", str(path))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "--out: " in err


@pytest.mark.slow
def test_the_numbers_of_a_table_come_first(bcgc):
    """However long the names are: levels as ranges, and what is longer than its column is cut."""
    args = ("--workers", "24", "--coordinates", "2000", *LAW, "--method", "uncoded")
    for levels, name in (
        ("0-20", "optimal, levels 0-20 "),
        ("0,2,4,6,8,10,12,14,16", "optimal, levels 0,2,4…"),
    ):
        status, out, err = bcgc("solve", *args, "--levels", levels)
        assert status == 0, err
        row = next(line for line in out.splitlines() if line.startswith("optimal, levels"))
        assert row.startswith(name)
        assert re.search(r" \d\.\d+e\+05 +[-+]\d+\.\d % ", row)
        assert max(map(len, out.splitlines())) <= 100


def test_an_overflow_is_not_infinity(bcgc):
    huge = ["--samples", "1e308", "--cycles", "1e308"]
    for output in ("table", "json"):
        status, out, err = bcgc("solve", *PAPER[:4], *huge, *LAW, "--method", "time", "--format", output)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "1.8e308, an overflow" in err
    status, out, err = bcgc("sweep", *PAPER[:4], *huge, *LAW, "--method", "time", "--format", "csv")
    assert (status, ",invalid," in out) == (1, True)
    assert "1 of 1 rows are invalid" in err


def test_a_trace_brings_its_law_and_its_number_of_workers(bcgc, tmp_path):
    path = tmp_path / "trace.csv"
    times = np.random.default_rng(3).gamma(3.0, size=(6, 4)) + 0.2
    rows = [f"{s},{w},{t:.6f}" for s, row in enumerate(times) for w, t in enumerate(row)]
    path.write_text("\n".join(["step,worker,seconds", *rows]))
    status, out, _ = bcgc(
        "solve", "--trace", str(path), "--coordinates", "100", "--method", "uncoded", "--format", "json"
    )
    assert status == 0
    answer = json.loads(out)
    assert answer["problem"]["num_workers"] == 4
    assert answer["problem"]["cycle_time"]["measured_times"] == 24
    # E max of 4 draws with replacement from the 24 times, written out.
    t = np.sort(np.round(times.ravel(), 6))
    share = np.arange(1, 25) / 24
    expected = np.sum(t * (share**4 - (share - 1 / 24) ** 4)) * 100 / 4
    assert answer["solutions"][0]["expected_runtime"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_workers_that_are_not_alike_get_a_law_each(bcgc):
    args = ["solve", "--coordinates", "3000", "--cycle-time", "3*uniform:low=0.7,high=1.6", "--workers", "4"]
    args += ["--cycle-time", "shifted-exponential:rate=0.4,shift=2.5", "--deadline", "7000"]
    args += [a for m in ("uncoded", "time") for a in ("--method", m)]
    status, out, err = bcgc(*args, "--format", "json")
    assert status == 0, err
    answer = json.loads(out)
    fast = {"law": "uniform", "low": 0.7, "high": 1.6}
    slow = {"law": "shifted-exponential", "rate": 0.4, "shift": 2.5}
    assert answer["problem"]["cycle_time"] == [fast, fast, fast, slow]
    assert answer["problem"]["num_workers"] == 4
    rows = {row["method"]: row for row in answer["solutions"]}
    # Uncoded: the last worker, the slowest of all always, takes 2.5 + 1 / 0.4 on average.
    assert abs(rows["uncoded"]["expected_runtime"] - 3000 / 4 * 5) < 4 * rows["uncoded"]["runtime_error"]
    late = np.exp(-0.4 * (7000 / 750 - 2.5))
    draws = answer["problem"]["num_draws"]
    assert abs(rows["uncoded"]["completion_probability"] - 1 + late) < 4 * np.sqrt(late / draws)
    assert rows["time"]["partition_runtime"] == pytest.approx(rows["time"]["expected_runtime"], rel=1e-3)
    assert answer["limit"] < rows["time"]["expected_runtime"] < rows["uncoded"]["expected_runtime"]
    _, out, _ = bcgc(*args)
    assert max(map(len, out.splitlines())) <= 100
    assert f"Means of {draws} draws" in out
    # All workers alike: their number alone is new, and runtimes are exact.
    args = ["solve", "--coordinates", "3000", "--cycle-time", "3*uniform:low=0.7,high=1.6"]
    _, out, _ = bcgc(*args, "--method", "uncoded", "--format", "json")
    answer = json.loads(out)
    assert answer["problem"]["cycle_time"] == fast
    exact = 3000 / 3 * (0.7 + 0.9 * 3 / 4)
    assert answer["solutions"][0]["expected_runtime"] == pytest.approx(exact, rel=1e-9)


def test_a_trace_may_keep_its_workers(bcgc, tmp_path):
    path = tmp_path / "trace.csv"
    times = np.random.default_rng(3).gamma(3.0, size=(6, 4)) * [0.5, 2.5, 0.7, 0.6] + 0.2
    rows = [f"{s},{w},{t:.6f}" for s, row in enumerate(times) for w, t in enumerate(row)]
    path.write_text("\n".join(["step,worker,seconds", *rows]))
    args = ["solve", "--trace", str(path), "--keep-workers", "--coordinates", "3000", "--method", "uncoded"]
    status, out, err = bcgc(*args, "--format", "json")
    assert status == 0, err
    answer = json.loads(out)
    law = answer["problem"]["cycle_time"]
    assert (law.pop("mean"), law) == (pytest.approx(times.mean()), {"law": "rows", "steps": 6, "workers": 4})
    expected = times.round(6).max(axis=1).mean() * 3000 / 4
    assert answer["solutions"][0]["expected_runtime"] == pytest.approx(expected, rel=1e-9)
    _, out, _ = bcgc(*args)
    assert "over the trace's 6 steps" in out
    assert "with 95 % confidence" in out
    assert max(map(len, out.splitlines())) <= 100
    status, _, err = bcgc(*args, "--workers", "3")
    assert (status, err.count("\n")) == (2, 1)
    assert "law of 4 workers" in err


@pytest.mark.parametrize("name", ["solve", "sweep", "train"])
def test_a_trace_of_one_worker_is_no_plan(bcgc, tmp_path, name):
    path = tmp_path / "trace.csv"
    path.write_text("step,worker,seconds\n1,a,2.5\n2,a,1.5\n")
    more = [] if name == "train" else ["--coordinates", "60"]
    status, out, err = bcgc(name, "--trace", str(path), *more)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "has one worker only" in err


@pytest.mark.slow
def test_a_deadline_leads_with_the_plan_that_meets_it_most_often(bcgc):
    args = ["--workers", "10", "--coordinates", "40000", "--samples", "50"]
    args += [
        "--cycle-time",
        "shifted-exponential:rate=0.1,shift=1",
        "--method",
        "time",
        "--method",
        "optimal",
    ]
    goal = ["--objective", "completion-probability", "--deadline", "3162278", "--format", "json"]
    status, out, _ = bcgc("solve", *args, *goal)
    assert status == 0
    rows = json.loads(out)["solutions"]
    assert [row["method"] for row in rows] == ["deadline", "optimal", "time"]
    assert rows[0]["completion_probability"] == pytest.approx(0.7456, abs=1e-3)
    assert rows[0]["start"] in STARTS
    fastest = min(rows, key=lambda row: row["expected_runtime"])
    assert fastest["method"] == "optimal"
    # The fastest of those that are in time nearly as often.
    goal = ["--min-completion", "0.7453", "--deadline", "3162278", "--format", "json"]
    status, out, _ = bcgc("solve", *args, *goal)
    assert status == 0
    answer = json.loads(out)
    assert answer["problem"]["min_completion"] == 0.7453
    between = answer["solutions"][0]
    assert between["method"] == "deadline"
    assert between["completion_probability"] == pytest.approx(0.7453, abs=1e-5)
    assert fastest["expected_runtime"] < between["expected_runtime"] < rows[0]["expected_runtime"]


@pytest.mark.slow
def test_units_setup_and_levels_come_from_the_command_line(bcgc, tmp_path):
    path = tmp_path / "layers.txt"
    path.write_text("3\n1\n\n0.5\n4\n")
    args = ["--workers", "4", "--unit-costs", str(path), "--setup-cycles", "0.4", "--levels", "0,2-3"]
    status, out, _ = bcgc("solve", *args, "--cycle-time", "uniform:low=0.4,high=2.6", "--format", "json")
    assert status == 0
    answer = json.loads(out)
    assert answer["problem"]["unit_costs"] == [3.0, 1.0, 0.5, 4.0]
    assert answer["problem"]["levels"] == [0, 2, 3]
    rows = {row["method"]: row for row in answer["solutions"]}
    # Nobody asked for the methods that know no setup or no units.
    assert set(rows) == {"optimal, levels 0,2,3", "optimal", "time", "frequency", "uncoded", "single_block"}
    assert all(sum(row["partition"]) == 4 for row in rows.values())
    assert rows["optimal, levels 0,2,3"]["partition"][1] == 0
    free = rows["optimal"]["partition_runtime"]
    assert free <= rows["optimal, levels 0,2,3"]["partition_runtime"] * (1 + 1e-9)
    # Uncoded: (8.5 + 0.4) E T_(4) / 4, E T_(4) = 0.4 + 2.2 · 4/5.
    assert rows["uncoded"]["partition_runtime"] == pytest.approx(8.9 * (0.4 + 2.2 * 0.8) / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "words"), [("1\n-2\n", "line 2"), ("one\n", "line 1"), ("\n", "no unit costs")]
)
def test_a_file_of_unit_costs_is_refused_by_line(bcgc, tmp_path, text, words):
    path = tmp_path / "layers.txt"
    path.write_text(text)
    law = ["--cycle-time", "uniform:low=1,high=2"]
    status, out, err = bcgc("solve", "--workers", "4", "--unit-costs", str(path), *law)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


_SMALL = ["solve", "--workers", "4", "--coordinates", "10"]
_UNIFORM = ["--cycle-time", "uniform:low=1,high=2"]
_SWEEP = ["sweep", "--workers", "2,3", "--coordinates", "10"]
_PARETO = ["--cycle-time", "pareto:scale=1"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["solve", *LAW, "--workers", "4"], "--coordinates"),
        ([*_SMALL], "either --cycle-time or --trace"),
        ([*_SMALL, *_UNIFORM, "--unit-costs", "x.txt"], "either --coordinates or --unit-costs"),
        (["solve", "--workers", "4", *_UNIFORM, "--unit-costs", "x.txt"], "cannot read x.txt"),
        ([*_SMALL, *_UNIFORM, "--setup-cycles", "-1"], "at least 0"),
        (
            [*_SMALL, *_UNIFORM, "--setup-cycles", "1", "--method", "subgradient"],
            "subgradient knows no --setup-cycles",
        ),
        ([*_SMALL, *_UNIFORM, "--levels", "0,x"], "levels and ranges"),
        ([*_SMALL, *_UNIFORM, "--levels", "3-1"], "levels and ranges"),
        # With a method that is quick: what was started beside it is finished in any case.
        ([*_SMALL, *_UNIFORM, "--levels", "0,4", "--method", "limit"], "from 0 to 3"),
        ([*_SMALL, *_UNIFORM, "--objective", "completion-probability"], "needs a --deadline"),
        ([*_SMALL, *_UNIFORM, "--objective", "speed"], "completion-probability"),
        ([*_SMALL, *_UNIFORM, "--min-completion", "0.9"], "needs a --deadline"),
        ([*_SMALL, *_UNIFORM, "--min-completion", "1.5", "--deadline", "9"], "at most 1"),
        ([*_SMALL, *LAW, "--trace", "x.csv"], "either --cycle-time or --trace"),
        ([*_SMALL, *LAW, "--keep-workers"], "--keep-workers has no effect without --trace"),
        ([*_SMALL, *LAW, *_UNIFORM], "for 2 workers, but --workers is 4"),
        ([*_SMALL, "--cycle-time", "3*uniform:low=1,high=2"], "for 3 workers, but --workers is 4"),
        ([*_SMALL, "--cycle-time", "x*uniform:low=1,high=2"], "whole number"),
        (
            ["solve", "--coordinates", "9", *LAW, "--cycle-time", "1e9*uniform:low=1,high=2"],
            "at most 131,072",
        ),
        (["solve", "--coordinates", "9", *LAW], "--workers"),
        (["solve", "--workers", "2.5", "--coordinates", "9", *LAW], "whole number"),
        (["solve", "--workers", "0", "--coordinates", "9", *LAW], "at least 1"),
        (["solve", "--workers", "-3", "--coordinates", "9", *LAW], "at least 1"),
        (["solve", "--workers", "nan", "--coordinates", "9", *LAW], "whole number"),
        (["solve", "--workers", "3", "--coordinates", "inf", *LAW], "whole number"),
        ([*_SMALL, *_UNIFORM, "--samples", "-1"], "above 0"),
        ([*_SMALL, *_UNIFORM, "--cycles", "nan"], "finite number above 0"),
        ([*_SMALL, *_UNIFORM, "--deadline", "0"], "above 0"),
        ([*_SMALL, *_UNIFORM, "--method", "tme"], 'did you mean "time"'),
        ([*_SMALL, *_UNIFORM, "--method", "tandon:4"], "from 0 to 3"),
        ([*_SMALL, *_UNIFORM, "--method", "tandon"], "as in"),
        ([*_SMALL, *_UNIFORM, "--method", "ferdinand:11"], "from 1 to 10"),
        ([*_SMALL, *_UNIFORM, "--format", "xml"], "xml"),
        ([*_SMALL, *_UNIFORM, "--round-trip", "2"], "no effect without a --method sharing:CHUNKS"),
        (
            [*_SWEEP, *_PARETO, "--axis", "shape=2", "--method", "sharing:2", "--round-trip", "-1"],
            "at least 0",
        ),
        ([*_SMALL, "--cycle-time", "unifrm:low=1,high=2"], "did you mean uniform"),
        ([*_SMALL, "--cycle-time", "uniform:low=1"], "high missing"),
        ([*_SMALL, "--cycle-time", "uniform:low=1,high"], "cannot read 'high'"),
        ([*_SMALL, "--cycle-time", "uniform:low=1,high=x"], "must be a number"),
        ([*_SMALL, "--cycle-time", "uniform:low=1,low=1,high=2"], "twice"),
        ([*_SMALL, "--cycle-time", "uniform:low=2,high=1"], "low must be below high"),
        ([*_SMALL, "--cycle-time", "weibull:scale=nan,concentration=2"], "scale must be finite"),
        ([*_SMALL, "--cycle-time", "pareto:scale=1,shape=0.9"], "mean of Pareto is infinite"),
        ([*_SMALL, "--cycle-time", "two-speed:fast=1,slow=inf,probability=0.2"], "deadline"),
        (["solve", "--trace", "no-such-file.csv", "--coordinates", "9"], "no-such-file.csv"),
        (["solve", "--trace", ".", "--coordinates", "9"], "cannot read"),
        (["slove"], "slove"),
        ([*_SWEEP], "either --cycle-time or --trace"),
        ([*_SWEEP, "--cycle-time", "pareto:scale=1"], "needs shape"),
        ([*_SWEEP, *_PARETO, "--axis", "shap=1,2"], "has the parameters scale, shape"),
        ([*_SWEEP, *_PARETO, "--axis", "scale=1,2"], "given twice"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--axis", "shape=3"], "two axes"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=1:2"], "LOW:HIGH:COUNT"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=0:2:5:log"], "starts above 0"),
        ([*_SWEEP, *_PARETO, "--axis", "shape"], "must be PARAMETER=NUMBERS"),
        (["sweep", "--workers", "2:x", "--coordinates", "9", *_PARETO], "whole number"),
        (["sweep", "--workers", "5:2", "--coordinates", "9", *_PARETO], "LOW:HIGH"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--method", "optimle"], 'did you mean "optimal"'),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--resume"], "give it with --out"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--out", "sweep.txt"], "must end in .csv or .parquet"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--out", "no/such/sweep.csv"], "there is no folder"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--processes", "2"], "need --coordinator"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=2", "--objective", "completion-probability"], "deadline"),
        ([*_SMALL, *_UNIFORM, "--schemes", "no-such-file.py"], "cannot read no-such-file.py"),
        # In the shell's words, and no longer than a line.
        (
            ["solve", "--workers", "1e300", "--coordinates", "9", *LAW],
            "at most 131,072, got '1e300'",
        ),
        (
            ["solve", "--workers", "9", "--coordinates", "1e19", *LAW],
            "at most 9,007,199,254,740,992, got '1e19'",
        ),
        (
            ["sweep", "--workers", "9", "--coordinates", "1,1e300", *LAW],
            "at most 9,007,199,254,740,992, got '1e300'",
        ),
        # No combination makes a law: not the constant, nor any number of the axis.
        (
            [*_SWEEP, "--cycle-time", "pareto:scale=-1", "--axis", "shape=2,3"],
            "scale must be finite and > 0, got -1",
        ),
        ([*_SWEEP, "--cycle-time", "pareto:scale=1,shape=-1"], "shape must be finite and > 0, got -1"),
        ([*_SWEEP, *_PARETO, "--axis", "shape=-2,-3,0"], "shape must be finite and > 0"),
        # What would change nothing.
        ([*_SMALL, *_UNIFORM, "--layout", "wide"], "--layout has no effect without --trace"),
        ([*_SMALL, *_UNIFORM, "--worker-column", "rank"], "--worker-column has no effect without --trace"),
        (
            [*_SWEEP, *_PARETO, "--axis", "shape=2", "--trace-law", "smooth"],
            "--trace-law has no effect without",
        ),
        (
            ["train", "--workers", "4", *LAW, "--censored-column", "cut"],
            "--censored-column has no effect without",
        ),
        (["train", "--workers", "4", *LAW, "--pace", "0.2"], "--pace has no effect without --engine ray"),
        (["train", "--workers", "4", *LAW, "--resume"], "--resume has no effect without --engine ray"),
        (
            ["train", "--workers", "4", *LAW, "--address", "a:1"],
            "--address has no effect without --engine ray",
        ),
        (
            ["solve", "--trace", "x", "--keep-workers", "--trace-law", "atoms"],
            "--trace-law has no effect with",
        ),
        (
            ["solve", "--trace", "x", "--layout", "wide", "--worker-column", "a"],
            "--worker-column has no effect in",
        ),
        (
            ["fit", "x", "--layout", "wide", "--seconds-column", "a"],
            "--seconds-column has no effect in the wide",
        ),
        (
            [*_SWEEP, *_PARETO, "--axis", "shape=2", "--method", "time", "--tolerance", "1e-3"],
            "--tolerance has no effect without --method optimal",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(bcgc, args, words):
    status, out, err = bcgc(*args)
    assert status == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("bcgc: ")
    assert words in lines[0]


@pytest.mark.parametrize("name", ["solve", "sweep", "train"])
def test_a_file_of_schemes_that_nobody_asks_for_is_refused(bcgc, tmp_path, name):
    file = tmp_path / "mine.py"
    file.write_text("import bcgc_jax\nSCHEMES = [bcgc_jax.Scheme('own', lambda p: p)]\n")
    args = ["--workers", "4", *LAW, "--schemes", str(file), "--method", "time"]
    status, out, err = bcgc(name, *args, *([] if name == "train" else ["--coordinates", "9"]))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--schemes has no effect unless a --method is one of these" in err


@pytest.mark.parametrize("name", ["solve", "sweep", "train", "fit"])
def test_examples_can_be_pasted_into_any_shell(bcgc, name):
    _, out, _ = bcgc(name, "--help")
    words = out.partition("Examples:")[2].partition("\n\n")[0].split()
    assert words.count("bcgc") > 2
    assert not [word for word in words if re.search(r"[*?\[]", word) and not word.startswith("'")]


def test_help_shows_examples_and_every_law(bcgc):
    status, out, _ = bcgc("solve", "--help")
    assert status == 0
    assert "Examples:" in out
    for name in ("shifted-exponential", "two-speed", "lognormal", "ferdinand_half"):
        assert name in out


@pytest.mark.slow
def test_a_sweep_prints_every_cell_and_its_axes(bcgc):
    args = ["sweep", "--workers", "2:4", "--coordinates", "60", "--cycle-time", "uniform:low=1"]
    args += ["--axis", "high=2:4:2", "--method", "uncoded", "--method", "single_block", "--partitions"]
    status, out, _ = bcgc(*args, "--format", "json")
    assert status == 0
    rows = json.loads(out)
    assert [(r["num_workers"], r["high"], r["method"]) for r in rows[:3]] == [
        (2, 2.0, "uncoded"),
        (2, 2.0, "single_block"),
        (2, 4.0, "uncoded"),
    ]
    assert len(rows) == 12
    for row in rows:
        n, high = row["num_workers"], row["high"]
        single = [60 / n * (s + 1) * (1 + (high - 1) * (n - s) / (n + 1)) for s in range(n)]
        expected = single[0] if row["method"] == "uncoded" else min(single)
        assert row["expected_runtime"] == pytest.approx(expected, rel=1e-9)
        assert sum(row["partition"]) == 60
    status, text, _ = bcgc(*args, "--format", "csv")
    assert status == 0
    table = list(csv.DictReader(io.StringIO(text)))
    assert [float(r["expected_runtime"]) for r in table] == [r["expected_runtime"] for r in rows]
    _, out, _ = bcgc(*args)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].split()[:3] == ["num_workers", "high", "scheme"]  # what does not vary is no column
    assert len(lines) == 2 + 12


def test_a_round_trip_is_paid_for_each_chunk_and_rows_say_what_they_need(bcgc):
    """Workers of one speed, in turn: each chunk takes a cycle, and a question before it."""
    args = ["--workers", "3", "--coordinates", "6", "--cycle-time", "deterministic:value=1"]
    args += ["--method", "sharing:2", "--method", "uncoded", "--round-trip", "0.5", "--format", "json"]
    for name in ("solve", "sweep"):
        status, out, _ = bcgc(name, *args)
        assert status == 0
        found = json.loads(out)
        rows = {row["method"]: row for row in (found["solutions"] if name == "solve" else found)}
        sharing, uncoded = rows["sharing:2"], rows["uncoded"]
        assert sharing["expected_runtime"] == pytest.approx(2 * (1 + 0.5), rel=1e-6)
        assert uncoded["expected_runtime"] == pytest.approx(2, rel=1e-6)
        needs = ("stored_subsets", "sent", "round_trips", "exact_gradient")
        assert [sharing[name] for name in needs] == [3, pytest.approx(1), 2, True]
        assert [uncoded[name] for name in needs] == [1, 1, 0, True]


def test_a_sweep_to_a_file_ends_with_a_summary(bcgc, tmp_path):
    args = ["sweep", "--workers", "2,3", "--coordinates", "60", "--cycle-time", "pareto:scale=1"]
    args += ["--axis", "shape=0.5,2", "--method", "uncoded", "--out", str(tmp_path / "s.csv")]
    status, out, _ = bcgc(*args, "--format", "json")
    assert status == 0
    (line,) = json.loads(out)["methods"]
    assert (line["cells"], line["converged"], line["infinite"]) == (4, 2, 2)
    status, out, err = bcgc(*args)
    assert (status, out) == (2, "")
    assert "not overwritten" in err
    status, out, _ = bcgc(*args, "--resume")
    assert status == 0
    assert "4 cells" in out


def test_a_sweep_says_how_many_rows_are_invalid(bcgc, tmp_path):
    args = ["sweep", "--workers", "2,3", "--coordinates", "60", "--cycle-time", "pareto:scale=1"]
    args += ["--axis", "shape=-1,2", "--method", "uncoded", "--format", "json"]
    status, out, err = bcgc(*args)
    assert (status, [row["status"] for row in json.loads(out)]) == (0, ["invalid", "converged"] * 2)
    said = "bcgc: 2 of 4 rows are invalid: their numbers make no problem"
    assert (err.startswith(said), err.count("\n")) == (True, 1)
    status, out, err = bcgc(*args, "--out", str(tmp_path / "s.csv"))
    assert (status, json.loads(out)["methods"][0]["invalid"], err.startswith(said)) == (0, 2, True)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_file_of_a_sweep_says_which_law_and_has_one_type_a_column(bcgc, tmp_path, form):
    args = ["sweep", "--workers", "2,3", "--coordinates", "60", "--cycle-time", "pareto:scale=1"]
    args += ["--axis", "shape=0.5,2", "--method", "uncoded"]
    tables = []
    for number, more in enumerate(([], ["--cycles", "1", "--samples", "1"])):
        path = tmp_path / f"{number}.{form}"
        status, _, err = bcgc(*args, *more, "--out", str(path))
        assert status == 0, err
        tables.append(list(read_rows(path, ("law", "cycles", "num_samples"))))
        # All at one level has no certificate.
        assert {str(row["relative_gap"]) for row in read_rows(path, ("relative_gap",))} <= {"", "nan"}
    assert tables[0] == tables[1]  # however they were given
    for row in tables[0]:
        assert (row["law"], str(row["cycles"]), str(row["num_samples"])) == ("pareto", "1.0", "1.0")


def test_a_file_of_schemes_puts_them_into_every_command(bcgc, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax.numpy as jnp, bcgc_jax\n"
        "def uniform(problem):\n"
        "    exists = jnp.arange(problem.max_workers) < problem.num_workers\n"
        "    return jnp.where(exists, problem.total / problem.num_workers, 0)\n"
        "SCHEMES = [bcgc_jax.Scheme('uniform_blocks', uniform, baseline=True)]\n"
    )
    args = [*_UNIFORM, "--coordinates", "60", "--schemes", str(file), "--format", "json"]
    status, out, err = bcgc("solve", "--workers", "3", *args, "--method", "uniform_blocks")
    assert status == 0, err
    (row,) = json.loads(out)["solutions"]
    assert row["partition"] == [20, 20, 20]
    status, out, _ = bcgc("sweep", "--workers", "3,4", *args, "--method", "uniform_blocks")
    assert status == 0
    swept = json.loads(out)
    assert swept[0]["expected_runtime"] == pytest.approx(row["expected_runtime"], rel=1e-9)
    file.write_text("1 / 0\n")
    status, out, err = bcgc("solve", "--workers", "3", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize(("name", "size"), [("solve", "3"), ("sweep", "3,4")])
def test_a_scheme_that_fails_is_one_line_before_any_work(bcgc, tmp_path, monkeypatch, name, size):
    def work(*_):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("bcgc_jax.cli.solve._solve_all", work)
    file = tmp_path / "mine.py"
    file.write_text(
        "import bcgc_jax, jax.numpy as jnp\n"
        "def traced(problem):\n"
        "    return jnp.ones(problem.max_workers) if problem.num_workers > 2 else None\n"
        "SCHEMES = [bcgc_jax.Scheme('traced', traced)]\n"
    )
    arguments = ["--workers", size, *_UNIFORM, "--coordinates", "60", "--schemes", str(file)]
    status, out, err = bcgc(name, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert f'scheme "traced": {file}, line 3: TracerBoolConversionError' in err


def test_without_the_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['click'] = None; from bcgc_jax import cli; cli.main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "in a clone of the project, pip install '.[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bar_is_drawn_for_each_level_or_group_of_levels():
    assert draw([0, 4, 0]) == "·█·"
    assert len(draw(list(range(100)))) == 20
    assert draw(None) == "no partition"


def test_a_limit_is_no_scheme_and_a_fast_scheme_has_no_levels(bcgc, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import bcgc_jax\nSCHEMES = [bcgc_jax.Scheme('quick', lambda p, t: t[..., -1], gives='runtime')]\n"
    )
    status, out, err = bcgc("solve", *PAPER, *LAW, "--method", "limit", "--method", "uncoded")
    assert status == 0, err
    assert "less time than the uncoded" not in out
    args = ["--workers", "3", *_UNIFORM, "--coordinates", "2000"]
    status, out, err = bcgc(
        "solve", *args, "--schemes", str(file), "--method", "quick", "--method", "time", "--setup-cycles", "5"
    )
    assert status == 0, err
    assert "time uses the levels" in out
    status, _, err = bcgc("sweep", *args, "--method", "deadline")
    assert (status, err.count("\n")) == (2, 1)
    assert "needs a --deadline" in err
    status, out, err = bcgc("sweep", *args, "--method", "time", "--method", "time", "--format", "csv")
    assert (status, out.count("\n")) == (0, 2), err
