"""Start-up, link and chain on the command line: `solve`, `sweep` and `train`."""

import json
from typing import Any

import numpy as np
import pytest

from bcgc_jax import Deterministic, Problem, Weibull
from bcgc_jax.cli import solve, sweep, train
from bcgc_jax.cli.solve_table import Answer, print_answer
from bcgc_jax.cli.sweep_cells import problem_of_cell
from tests.cli.schema import problems

ASKED = ["--workers", "3", "--coordinates", "60"]
UNIFORM = ["--cycle-time", "uniform:low=0.4,high=2.6"]
UNCODED = ["--method", "uncoded", "--format", "json"]
WEIBULL = ["--start-up", "weibull:scale=4000,concentration=0.7"]


def test_a_constant_start_up_a_link_and_a_chain_are_paid_for(command):
    given = ["--start-up", "5", "--send-time", "0.25", "--chain-cycles", "0.5", "--cycles", "2"]
    status, out, err = command("solve", *ASKED, *UNIFORM, *given, *UNCODED, "--deadline", "80")
    assert status == 0, err
    answer = json.loads(out)
    assert problems("solve", answer) == []
    asked = {"start_up": 5.0, "send_time": 0.25, "chain_cycles": 0.5}
    assert answer["problem"].items() >= asked.items()
    assert "overlap" not in answer["problem"]
    # Uncoded, all wait for the slowest: 60 (2 + 0.5) / 3 cycles of it, after 5 and before 60 · 0.25.
    row, cycles = answer["solutions"][0], 60 * 2.5 / 3
    assert row["expected_runtime"] == pytest.approx(20 + cycles * (0.4 + 2.2 * 3 / 4), rel=1e-9)
    assert row["completion_probability"] == pytest.approx((((80 - 20) / cycles - 0.4) / 2.2) ** 3, rel=1e-9)
    assert (row["kind"], row["levels"]) == ("exact", [0])


def test_a_parameter_of_the_start_up_is_an_axis(command):
    law = ["--cycle-time", "deterministic:value=2", "--start-up", "two-speed:fast=3,probability=0.2"]
    axes = ["--axis", "start_up.slow=15,40", "--send-time", "0,0.5"]
    status, out, err = command("sweep", *ASKED, *law, *axes, *UNCODED)
    assert status == 0, err
    rows = json.loads(out)
    assert problems("sweep", rows) == []
    assert [row["start_up_law"] for row in rows] == ["two-speed"] * 4
    assert [(row["start_up.slow"], row["send_time"]) for row in rows] == [
        (15, 0),
        (15, 0.5),
        (40, 0),
        (40, 0.5),
    ]
    for row in rows:
        slow, fast = row["start_up.slow"], 0.8**3
        expected = 60 / 3 * 2 + 60 * row["send_time"] + 3 * fast + slow * (1 - fast)
        assert row["expected_runtime"] == pytest.approx(expected, rel=1e-12)


def test_an_axis_is_a_number_of_the_problem_that_a_cell_is():
    found = problem_of_cell(
        Deterministic, ("value",), Weibull, True, 4,
        num_workers=3, num_coordinates=60, value=2.0, chain_cycles=0.5,
        **{"start_up.scale": 3.0, "start_up.concentration": 0.7}, send_time=0.25,
    )  # fmt: skip
    wanted = Problem(
        Deterministic(2.0), 3, 60, max_workers=4, start_up=Weibull(3.0, 0.7), send_time=0.25, overlap=True,
        chain_cycles=0.5,
    )  # fmt: skip
    assert repr(found) == repr(wanted)


def test_training_asks_for_the_same_problem(command, monkeypatch):
    asked: list[Problem] = []

    def stop(question: Any, problem: Problem) -> None:
        asked.append(problem)
        raise ValueError("enough")

    monkeypatch.setattr(train, "_announce", stop)
    given = ["--start-up", "weibull:scale=4000,concentration=0.7", "--send-time", "0.25", "--overlap"]
    status, _, err = command("train", "--workers", "3", *UNIFORM, *given, "--chain-cycles", "0.1")
    assert (status, err) == (2, "bcgc: enough\n")
    (problem,) = asked
    assert repr(problem.start_up) == repr(Weibull(4000.0, 0.7))
    assert (problem.send_time, problem.overlap, problem.chain_cycles) == (0.25, True, 0.1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["solve", *UNIFORM, "--start-up", "pareto:scale=1,shape=0.9"],
            "the mean of the start-up, Pareto",
        ),
        (["solve", *UNIFORM, "--start-up", "-3"], "at least 0, got '-3'"),
        (["solve", *UNIFORM, "--start-up", "nan"], "at least 0, got 'nan'"),
        (["solve", *UNIFORM, "--start-up", "weibul:scale=3,concentration=1"], "did you mean weibull"),
        (["solve", *UNIFORM, "--start-up", "weibull:scale=3"], "concentration missing"),
        (["solve", *UNIFORM, "--send-time", "-1"], "at least 0"),
        (["solve", *UNIFORM, "--chain-cycles", "inf"], "at least 0"),
        (["solve", *UNIFORM, "--overlap"], "--overlap has no effect without --send-time"),
        (["solve", *UNIFORM, "--chain-cycles", "1", "--method", "subgradient"], "no --chain-cycles"),
        (
            ["solve", "--cycle-time", "2*uniform:low=1,high=2", *UNIFORM, *WEIBULL],
            "--start-up may be a law only where all workers have one law of the cycle time, not with several",
        ),
        (["solve", "--trace", "x.csv", "--keep-workers", *WEIBULL], "not with --keep-workers: give a number"),
        (["sweep", "--trace", "x.csv", "--keep-workers", *WEIBULL], "not with --keep-workers: give a number"),
        (["sweep", *UNIFORM, "--start-up", "weibull:scale=3"], "weibull needs concentration: in --start-up"),
        (["sweep", *UNIFORM, *WEIBULL, "--axis", "start_up.scale=1,2"], "start_up.scale is given twice"),
        (
            ["sweep", *UNIFORM, *WEIBULL, "--axis", "start_up.rate=1"],
            "start_up.scale, start_up.concentration",
        ),
        (["sweep", *UNIFORM, "--axis", "start_up.rate=1,2"], "--axis start_up.rate needs a --start-up LAW"),
        (["sweep", *UNIFORM, "--start-up", "1,-2"], "at least 0, got '-2'"),
        (
            ["sweep", *UNIFORM, "--start-up", "weibull:scale=-1,concentration=2"],
            "scale must be finite and > 0",
        ),
    ],
)
def test_bad_input_is_one_clear_line(command, monkeypatch, args, words):
    for module, work in ((solve, "_solve_all"), (sweep, "_collect")):
        monkeypatch.setattr(module, work, lambda *_: pytest.fail("the work began"))
    status, out, err = command(args[0], *ASKED, *args[1:])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_the_table_says_best_found_where_nothing_is_proven(capsys):
    known: Any = {"status": "converged", "runtime_error": 0.0, "seconds": 1.0, "relative_gap": None}
    known |= {"schedule": None, "sent": 1.0, "round_trips": 0, "exact_gradient": True, "stored_subsets": 1}
    found = {"method": "optimal", "partition": [40, 15, 5], "partition_runtime": 50.0, "lower_bound": 44.0}
    other = {"method": "uncoded", "partition": [60, 0, 0], "partition_runtime": 66.0, "lower_bound": 40.0}
    rows = [
        known | found | {"expected_runtime": 50.0, "kind": "local"},
        known | other | {"expected_runtime": 66.0, "kind": "exact"},
    ]
    problem = Problem(Deterministic(2.0), 3, 60, start_up=Weibull(4000.0, 0.7))
    print_answer(Answer(rows, 30.0, rows[1:]), problem, deadline=None, unit="the cycle time's unit", own=[])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[2].split()[:6] == ["optimal", "50", "-24.2", "%", "best", "found"]
    assert lines[3].split()[:6] == ["uncoded", "66", "+0.0", "%", "50", "%"]
    text = " ".join(out.split())
    assert "optimal: the best found by several local searches" in text
    assert "No plan is faster than 44, 12 % less." in text
    assert "every cycle used, after the first start-up" in text
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("start", ["weibull:scale=12,concentration=0.7", "12"])
def test_all_methods_have_a_row_and_none_is_below_the_bound(command, start):
    given = ["--start-up", start, "--send-time", "0.1", "--overlap", "--format", "json"]
    status, out, err = command("solve", *ASKED, *UNIFORM, *given)
    assert status == 0, err
    answer = json.loads(out)
    assert problems("solve", answer) == []
    rows = {row["method"]: row for row in answer["solutions"]}
    assert set(rows) == {
        "optimal", "subgradient", "time", "frequency", "uncoded", "single_block", "tandon_partial",
        "ferdinand_full", "ferdinand_half",
    }  # fmt: skip
    best = rows["optimal"]
    assert best["kind"] == ("exact" if start == "12" else "local")
    assert all(row["kind"] == "exact" for name, row in rows.items() if name != "optimal")
    runtimes = np.array([row["expected_runtime"] for row in rows.values()])
    assert runtimes.min() == best["expected_runtime"]
    assert answer["limit"] < best["lower_bound"] <= best["expected_runtime"]
