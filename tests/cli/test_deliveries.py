"""Start-up, link and chain on the command line: `solve`, `sweep` and `train`."""

import numpy as np
import pytest

from bcgc_jax import Problem, Weibull
from bcgc_jax.cli import train
from bcgc_jax.cli.sweep import problem_of_cell
from bcgc_jax.distributions import Deterministic

ASKED = ["--workers", "3", "--coordinates", "60"]
UNIFORM = ["--cycle-time", "uniform:low=0.4,high=2.6"]
UNCODED = ["--method", "uncoded"]


def test_a_constant_start_up_a_link_and_a_chain_are_paid_for(answer):
    given = ["--start-up", "5", "--send-time", "0.25", "--chain-cycles", "0.5", "--cycles", "2"]
    found = answer("solve", *ASKED, *UNIFORM, *given, *UNCODED, "--deadline", "80")
    asked = {"start_up": 5.0, "send_time": 0.25, "chain_cycles": 0.5}
    assert found["problem"].items() >= asked.items()
    assert "overlap" not in found["problem"]
    # Uncoded, all wait for the slowest: 60 (2 + 0.5) / 3 cycles of it, after 5 and before 60 · 0.25.
    row, cycles = found["solutions"][0], 60 * 2.5 / 3
    assert row["expected_runtime"] == pytest.approx(20 + cycles * (0.4 + 2.2 * 3 / 4), rel=1e-9)
    assert row["completion_probability"] == pytest.approx((((80 - 20) / cycles - 0.4) / 2.2) ** 3, rel=1e-9)
    assert (row["kind"], row["levels"]) == ("exact", [0])


@pytest.mark.slow
def test_a_start_up_has_a_law_whose_parameter_is_an_axis(answer):
    cycle, start = ["--cycle-time", "deterministic:value=2"], "two-speed:fast=3,probability=0.2"
    found = answer("solve", *ASKED, *cycle, "--start-up", f"{start},slow=15", *UNCODED)
    law = {"law": "two-speed", "fast": 3.0, "slow": 15.0, "probability": 0.2}
    assert found["problem"]["start_up"] == law
    (alone,) = found["solutions"]
    axes = ["--axis", "start_up.slow=15,40", "--send-time", "0,0.5"]
    rows = answer("sweep", *ASKED, *cycle, "--start-up", start, *axes, *UNCODED)
    assert [row["start_up_law"] for row in rows] == ["two-speed"] * 4
    cells = [(row["start_up.slow"], row["send_time"]) for row in rows]
    assert cells == [(15, 0), (15, 0.5), (40, 0), (40, 0.5)]
    for row in rows:
        slow, fast = row["start_up.slow"], 0.8**3
        expected = 60 / 3 * 2 + 60 * row["send_time"] + 3 * fast + slow * (1 - fast)
        assert row["expected_runtime"] == pytest.approx(expected, rel=1e-12)
    assert alone["expected_runtime"] == pytest.approx(rows[0]["expected_runtime"], rel=1e-12)


def test_an_axis_is_a_number_of_the_problem_that_a_cell_is():
    found = problem_of_cell(
        Deterministic, ("value",), Weibull, True, 4,
        num_workers=3, num_coordinates=60, value=2.0, chain_cycles=0.5,
        **{"start_up.scale": 3.0, "start_up.shape": 0.7}, send_time=0.25,
    )  # fmt: skip
    wanted = Problem(
        Deterministic(2.0), 3, 60, max_workers=4, start_up=Weibull(3.0, 0.7), send_time=0.25, overlap=True,
        chain_cycles=0.5,
    )  # fmt: skip
    assert repr(found) == repr(wanted)


def test_training_asks_for_the_same_problem(command, monkeypatch):
    asked: list[Problem] = []

    def stop(problem: Problem) -> None:
        asked.append(problem)
        raise ValueError("enough")

    monkeypatch.setattr(train, "check_size", stop)
    given = ["--start-up", "weibull:scale=4000,shape=0.7", "--send-time", "0.25", "--overlap"]
    status, _, err = command("train", "--workers", "3", *UNIFORM, *given, "--chain-cycles", "0.1")
    assert (status, err) == (2, "bcgc: enough\n")
    (problem,) = asked
    assert repr(problem.start_up) == repr(Weibull(4000.0, 0.7))
    assert (problem.send_time, problem.overlap, problem.chain_cycles) == (0.25, True, 0.1)


@pytest.mark.slow
def test_all_methods_have_a_row_and_none_is_below_the_bound(answer):
    # So many coordinates that units are not searched; of atoms, whose optimum is compiled in half the time.
    asked = ["--workers", "3", "--coordinates", "2000", "--start-up", "400", "--send-time", "0.1"]
    law = "two-speed:fast=0.4,slow=2.6,probability=0.2"
    found = answer("solve", *asked, "--overlap", "--cycle-time", law)
    rows = {row["method"]: row for row in found["solutions"]}
    assert set(rows) == {
        "optimal", "subgradient", "time", "frequency", "uncoded", "single_block", "tandon_partial",
        "ferdinand_full", "ferdinand_half",
    }  # fmt: skip
    assert {row["kind"] for row in rows.values()} == {"exact"}
    best = rows["optimal"]
    runtimes = np.array([row["expected_runtime"] for row in rows.values()])
    assert runtimes.min() == best["expected_runtime"]
    assert found["limit"] < best["lower_bound"] <= best["expected_runtime"]
