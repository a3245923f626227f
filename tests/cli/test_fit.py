"""`bcgc fit`, and traces on the command line: what is printed, drawn and refused."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import fit, fit_answer
from bcgc_jax.cli.output import json_of
from bcgc_jax.solution import assess
from bcgc_jax.traces.fits import Fit
from tests.cli.schema import problems, strict_json
from tests.cli.steps import trace_of

TIMES = np.random.default_rng(4).gamma(2.5, 0.6, (60, 3)) + 0.8


@pytest.fixture
def path(tmp_path):
    lines = [f"{s};{w};{time:.9f}" for (s, w), time in np.ndenumerate(TIMES)]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(["iteration;rank;time_s", *lines]))
    return str(file)


PLAIN, LOADS = "step,worker,seconds\n", "step,worker,load,seconds\n"
COLUMNS = (
    "--step-column",
    "iteration",
    "--worker-column",
    "rank",
    "--seconds-column",
    "time_s",
)
NOT_KNOWN = "The plans assume that all time grows with the work."


@pytest.fixture
def once(command, monkeypatch):
    """The command, that says the first answer again."""
    kept: list[Any] = []
    find = fit.found_in

    def answered(*args):
        kept[:] = kept or [find(*args)]
        return kept[0]

    monkeypatch.setattr(fit, "found_in", answered)
    return command


def _best_of_few(problem):
    """Stand in for a search, which has tests of its own."""
    n = int(problem.num_workers)
    x = np.array(
        [
            [1, 0, 0, 0],
            [3, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1],
        ]
    )[:, :n]
    padded = np.pad(
        x / x.sum(axis=1, keepdims=True), ((0, 0), (0, problem.max_workers - n))
    )
    solutions = [assess(problem, problem.total * shares) for shares in padded]
    best = min(solutions, key=lambda solution: float(solution.expected_runtime))
    return dataclasses.replace(best, problem=problem)


_GOOD, _BAD = (
    (-230.0, 466.1, 0.058, 0.19, 0.58, 0.14, 180),
    (-312.9, 629.9, 0.298, 0.04, 26.5, 0.04, 180),
)
_FITS = [
    Fit(
        "weibull",
        bcgc.Weibull(1.73, 1.63, 0.83),
        {"scale": 0.1, "shape": 0.11, "shift": 0.04},
        *_GOOD,
    ),
    Fit("pareto", bcgc.Pareto(0.845, 1.05), {"scale": 0.0037, "shape": 0.11}, *_BAD),
]


@pytest.mark.parametrize(
    "searched",
    [
        pytest.param(True, marks=pytest.mark.slow),
        pytest.param(False, marks=pytest.mark.smoke),
    ],
)
def test_a_fit_is_that_of_the_library_and_plans_are_evaluated_under_all_laws(
    answer, once, path, tmp_path, monkeypatch, searched
):
    if not searched:
        monkeypatch.setattr(fit_answer, "solve", _best_of_few)
        monkeypatch.setattr(fit_answer, "fit_distributions", lambda *_, **__: _FITS)
    plan_file = tmp_path / "plan.json"
    options = [
        "--distribution",
        "weibull",
        "--distribution",
        "pareto",
        "--replicates",
        "20",
    ]
    asked = ("fit", path, *COLUMNS, *options)
    output = answer(*asked, "--out", str(plan_file), "--coordinates", "10000")
    assert (output["trace"]["num_workers"], output["trace"]["num_steps"]) == (3, 60)
    assert output["trace"]["mean"] == pytest.approx(TIMES.mean(), rel=1e-8)
    assert [fit["distribution"] for fit in output["fits"]] == ["weibull", "pareto"]
    best = output["fits"][0]
    assert (
        abs(best["parameters"]["shape"] - 1.65) < 4 * best["standard_errors"]["shape"]
    )
    assert NOT_KNOWN in output["remarks"][-1]
    plans = {plan["distribution"]: plan for plan in output["plans"]}
    assert plans["uncoded"]["partition"] == [10_000, 0, 0]
    for name in plans.keys() - {"uncoded"}:
        plan = plans[name]
        assert sum(plan["partition"]) == 10_000
        assert not searched or plan["relative_gap"] < 2e-6
        for rival in plans.values():
            assert rival["runtime_under"][name] >= plan["runtime_under"][name] * (
                1 - 1e-5
            )
    load = np.cumsum(np.arange(1, 4) * np.array(plans["weibull"]["partition"])) / 3
    steps = (load * -np.sort(-TIMES, axis=1)).max(axis=1)
    assert plans["weibull"]["replayed_runtime"] == pytest.approx(steps.mean(), rel=1e-6)
    draws = np.random.default_rng(0).choice(TIMES.ravel(), (200_000, 3))
    runtimes = (load * -np.sort(-draws, axis=1)).max(axis=1)
    exact = plans["weibull"]["runtime_under"]["measured times"]
    assert abs(exact - runtimes.mean()) < 4 * runtimes.std() / np.sqrt(200_000)
    assert (
        np.asarray(bcgc.Solution.load(plan_file).rounded).tolist()
        == plans["weibull"]["partition"]
    )
    status, out, _ = once(*asked)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    said = (
        "Best: weibull",
        "180 times of 3 workers over 60 steps",
        ("Under measured times the choice of what"),
    )
    assert all(words in out for words in said)
    assert "at random" not in out  # all 180 times are fitted
    assert NOT_KNOWN in " ".join(out.split())
    status, out, _ = once(*asked, "--format", "csv")
    assert status == 0
    begun = "distribution,parameters,standard_errors", "weibull,scale=", "pareto,scale="
    assert all(
        line.startswith(begin)
        for line, begin in zip(out.splitlines(), begun, strict=True)
    )


def test_a_worker_that_was_slow_for_a_while_is_in_the_answer():
    times = np.random.default_rng(910_000).gamma(100.0, 0.01, (200, 4))
    times[70:130, 2] *= 1.5
    description = bcgc.diagnosis.describe(trace_of(times), with_tail=False)
    best: Any = SimpleNamespace(problem=None)
    options: Any = {
        "remarks": [],
        "fits": [],
        "plans": [],
        "best": best,
    }
    answer = fit_answer.FitAnswer(
        trace_of(times), trace_of(times), description, **options
    )
    output = strict_json(json_of(fit._json(answer)))
    assert problems("fit", output) == []
    assert output["trace"]["causes"]["steady"][0] > 0.5
    (slow,) = output["trace"]["slow_workers"]
    assert slow["worker"] == "2"
    assert abs(int(slow["first_step"]) - 70) < 8
    assert abs(int(slow["last_step"]) - 129) < 8
    assert slow["ratio"] == pytest.approx(1.5, abs=0.05)


@pytest.mark.slow
def test_solve_reads_named_columns_and_takes_a_smooth_law(command, answer, path):
    asked = (
        "solve",
        "--trace",
        path,
        *COLUMNS,
        "--coordinates",
        "10000",
        "--method",
        "uncoded",
    )
    answered = answer(*asked, "--trace-distribution", "smooth")
    assert answered["problem"]["cycle_time"]["distribution"] == "smooth"
    # L / N times the mean of the slowest of three, ∫ P(T_(3) > t) dt.
    t = np.linspace(0.0, 60.0, 600_001)
    late = (
        1
        - (
            1
            - np.asarray(
                bcgc.traces.smooth_empirical(np.round(TIMES, 9)).survival(t), float
            )
        )
        ** 3
    )
    runtime = answered["solutions"][0]["expected_runtime"]
    assert runtime == pytest.approx(10_000 / 3 * np.trapezoid(late, t), rel=1e-5)
    status, _, err = command(
        *asked, "--trace-distribution", "atoms", "--workers", "10000"
    )
    assert status == 2
    assert "--trace-distribution smooth" in err


def _of_loads(tmp_path, loads, steps=40, workers=4):
    rng, (step, worker) = (
        np.random.default_rng(0),
        np.indices((steps, workers)).reshape(2, -1),
    )
    load = np.array(loads)[step % len(loads)]
    seconds = rng.gamma(4.0, 0.5, step.size) + load * (
        0.01 + rng.exponential(0.01, step.size)
    )
    table = {"header": "step,worker,samples,seconds", "delimiter": ",", "comments": ""}
    np.savetxt(
        tmp_path / "loads.csv", np.stack([step, worker, load, seconds], axis=1), **table
    )
    return str(tmp_path / "loads.csv")


@pytest.mark.slow
def test_a_trace_of_loads_is_planned_as_if_all_time_grew_with_the_load(
    answer, once, tmp_path, monkeypatch
):
    monkeypatch.setattr(fit_answer, "solve", _best_of_few)
    path = _of_loads(tmp_path, (100, 200, 400))
    options = ["--distribution", "shifted-exponential", "--replicates", "20"]
    asked = ("fit", path, "--load-column", "samples", *options)
    output = answer(*asked, "--coordinates", "2000")
    assert [fit["distribution"] for fit in output["fits"]] == ["shifted-exponential"]
    _, load, seconds = np.loadtxt(path, delimiter=",", skiprows=1).T[1:]
    assert output["trace"]["mean"] == pytest.approx(np.mean(seconds / load), rel=1e-5)
    status, out, err = once(*asked)
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 100
    assert "160 times of 4 workers over 40 steps, at 3 loads from 100 to 400" in out
    assert "assume that all time grows with the work" in " ".join(out.split())


def test_solve_divides_seconds_by_their_loads_and_says_so(command, tmp_path):
    path = _of_loads(tmp_path, (100, 200), steps=6)
    asked = (
        "solve",
        "--trace",
        path,
        "--coordinates",
        "100",
        "--method",
        "uncoded",
        "--format",
        "json",
    )
    status, out, err = command(*asked, "--load-column", "samples")
    assert status == 0
    assert "seconds are divided by their loads" in err
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    mean = json.loads(out)["problem"]["cycle_time"]["mean"]
    assert mean == pytest.approx(np.mean(rows[:, 3] / rows[:, 2]), rel=1e-6)
