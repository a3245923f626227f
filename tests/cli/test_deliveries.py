"""Start-up, link and chain on the command line: `solve` and `sweep`."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bcgc_jax import Problem, Uniform
from bcgc_jax.cli import fit_answer, solve, sweep, traces
from bcgc_jax.traces.fits import Fit
from bcgc_jax.traces.trace import load_trace
from tests.cli.steps import TIMES, written_in_parts

ASKED = ["--workers", "3", "--coordinates", "60"]
UNIFORM = ["--cycle-time", "uniform:low=0.4,high=2.6"]
UNCODED = ["--method", "uncoded"]


@pytest.mark.slow
def test_a_constant_start_up_a_link_and_a_chain_are_paid_for(answer):
    options = [
        "--start-up",
        "5",
        "--send-time",
        "0.25",
        "--chain-cycles",
        "0.5",
        "--cycles",
        "2",
    ]
    law = ["--cycle-time", "two-speed:fast=0.4,slow=2.6,probability=0.2"]
    output = answer("solve", *ASKED, *law, *options, *UNCODED, "--deadline", "80")
    asked = {"start_up": 5.0, "send_time": 0.25, "chain_cycles": 0.5}
    assert output["problem"].items() >= asked.items()
    assert "overlap" not in output["problem"]
    # Uncoded, all wait for the slowest: 60 (2 + 0.5) / 3 cycles of it, after 5 and
    # before 60 · 0.25.
    row, cycles, all_fast = output["solutions"][0], 60 * 2.5 / 3, 0.8**3
    assert row["expected_runtime"] == pytest.approx(
        20 + cycles * (2.6 - 2.2 * all_fast), rel=1e-9
    )
    # In 40, or 150.
    assert row["completion_probability"] == pytest.approx(all_fast, rel=1e-9)
    assert (row["kind"], row["levels"]) == ("exact", [0])


def test_a_sweep_asks_for_the_problem_of_its_options(command, monkeypatch):
    options = [
        "--start-up",
        "4000",
        "--send-time",
        "0.25",
        "--overlap",
    ]
    options += ["--workers", "3", "--coordinates", "60", *UNIFORM]
    options += ["--chain-cycles", "0.1"]
    asked: list[Problem] = []

    def swept(of_cell, cells, *_, **__):
        columns = cells.items()
        asked.append(of_cell(4, **{name: values[0].item() for name, values in columns}))
        raise ValueError("enough")

    monkeypatch.setattr(sweep, "Sweep", swept)
    assert command("sweep", *options) == (2, "", "bcgc: enough\n")
    (problem,) = asked
    assert problem.start_up == 4000.0
    assert (problem.send_time, problem.overlap, problem.chain_cycles) == (
        0.25,
        True,
        0.1,
    )
    assert (repr(problem.cycle_time), problem.num_workers) == (
        repr(Uniform(0.4, 2.6)),
        3,
    )


UNIFORM_FIT = Fit("uniform", Uniform(0.4, 2.6), {}, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 24)


@pytest.mark.parametrize("typed", ["47%", "0.47"])
def test_a_forward_pass_may_be_a_ratio_to_the_backward_pass(
    command, monkeypatch, trace, typed
):
    """A backward pass computes each coordinate, and goes past it."""
    problems: list[Problem] = []

    def planned(*arguments):
        problems.extend(
            problem for problem in arguments if isinstance(problem, Problem)
        )
        raise ValueError("enough")

    def swept(of_cell, cells, *_, **__):
        planned(
            of_cell(4, **{name: values[0].item() for name, values in cells.items()})
        )

    monkeypatch.setattr(solve, "compared", planned)
    monkeypatch.setattr(fit_answer, "solve", planned)
    monkeypatch.setattr(fit_answer, "fit_distributions", lambda *_, **__: [UNIFORM_FIT])
    monkeypatch.setattr(sweep, "Sweep", swept)
    options = ["--forward", typed, "--cycles", "2", "--chain-cycles", "0.5"]
    for name in ("solve", "sweep"):
        assert command(name, *ASKED, *UNIFORM, *options) == (2, "", "bcgc: enough\n")
    assert command("fit", trace, "--coordinates", "60", *options) == (
        2,
        "",
        "bcgc: enough\n",
    )
    assert len(problems) == 3
    for problem in problems:
        backward = sum(np.full(np.asarray(problem.num_coordinates), 2 + 0.5))
        assert np.asarray(problem.setup_cycles) == pytest.approx(0.47 * backward)
        assert problem.chain_cycles == 0.5


@pytest.mark.parametrize(
    ("typed", "ratio"),
    [([], 1 / 3), (["--forward", "47%"], 0.47), (["--setup-cycles", "0"], 0)],
)
def test_a_log_of_microbatches_says_what_a_forward_pass_takes(
    command, monkeypatch, tmp_path, typed, ratio
):
    """A quarter of the seconds, unless it is said."""
    path = written_in_parts(
        tmp_path / "log.csv", np.repeat(TIMES[..., None], 2, axis=2), forward=0.25
    )
    problems: list[Problem] = []

    def planned(*arguments):
        problems.extend(
            problem for problem in arguments if isinstance(problem, Problem)
        )
        raise ValueError("enough")

    monkeypatch.setattr(solve, "compared", planned)
    monkeypatch.setattr(fit_answer, "solve", planned)
    monkeypatch.setattr(fit_answer, "fit_distributions", lambda *_, **__: [UNIFORM_FIT])
    options = ["--coordinates", "60", "--cycles", "2", "--chain-cycles", "0.5", *typed]
    assert command("solve", "--trace", path, *options) == (2, "", "bcgc: enough\n")
    assert command("fit", path, *options) == (2, "", "bcgc: enough\n")
    assert len(problems) == 2
    for problem in problems:
        assert np.asarray(problem.setup_cycles) == pytest.approx(ratio * 60 * (2 + 0.5))
    law: Any = problems[0].cycle_time
    assert np.mean(np.asarray(law.times)) == pytest.approx(2 * TIMES.mean())
    asked: Any = SimpleNamespace(asks_forward=bool(typed))
    said = traces.forward_in_words(asked, load_trace(path))
    assert len(said) == (not typed)
    assert all("takes 0.333 of a backward pass" in line for line in said)


@pytest.mark.slow
def test_all_methods_have_a_row_and_none_is_below_the_bound(answer):
    # So many coordinates that units are not searched; of atoms, whose optimum is
    # compiled in half the time.
    asked = [
        "--workers",
        "3",
        "--coordinates",
        "2000",
        "--start-up",
        "400",
        "--send-time",
        "0.1",
    ]
    law = "two-speed:fast=0.4,slow=2.6,probability=0.2"
    output = answer("solve", *asked, "--overlap", "--cycle-time", law)
    rows = {row["method"]: row for row in output["solutions"]}
    names = "optimal subgradient time frequency uncoded single_block tandon_partial"
    shared = {"sharing:2", "sharing:all"}
    assert rows.keys() == {
        *names.split(),
        "ferdinand_full",
        "ferdinand_half",
        "nested",
        *shared,
    }
    # A link sends after all chunks, so work sharing is not the fastest here.
    for row in map(rows.pop, shared):
        assert 0.98 * output["limit"] < row["lower_bound"] <= row["expected_runtime"]
        assert (row["kind"], row["bound_of"]) == ("confidence", "storage")
    nested = rows.pop("nested")
    assert output["limit"] < nested["lower_bound"] <= nested["expected_runtime"]
    assert {row["kind"] for row in rows.values()} == {"exact"}
    best = min(rows.values(), key=lambda row: row["expected_runtime"])
    assert best is rows["optimal"]
    assert output["limit"] < best["lower_bound"] <= best["expected_runtime"]
